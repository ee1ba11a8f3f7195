"""The one place that waits for gRPC calls, and for what gRPC does after they are cancelled."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import grpc
import grpc.aio

# So long gRPC may take to be done with a call that has ended: it asks nobody for that.
_DONE = 1.0


class ChannelClosedError(Exception):
    """The call was cancelled here, but not by whoever waits for it: its channel closes."""


def no_message() -> grpc.aio.AioRpcError:
    """Make the failure of a call whose answer cannot be read, as gRPC's other languages tell it."""
    nothing = grpc.aio.Metadata()
    details = "the answer is no message of protobuf's"
    return grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, nothing, nothing, details=details)


class Calls:
    """The calls of one channel with which gRPC is not done.

    grpc.aio tells that a call was cancelled before its core knows. What the core has to say of it
    afterwards must find the event loop open, or it ends in a traceback.
    """

    def __init__(self) -> None:
        # By gRPC's own task, which ends when its core is done with the call.
        self._unary: dict[asyncio.Task[Any], Any] = {}
        self._streams: dict[asyncio.Task[Any], Any] = {}
        self._ends: weakref.WeakKeyDictionary[Any, grpc.aio.AioRpcError] = (
            weakref.WeakKeyDictionary()
        )

    def __len__(self) -> int:
        """Give how many unary calls there are."""
        return len(self._unary)

    async def answer(self, call: Any) -> Any:
        """Wait for the answer to a unary call, and cancel the call when we are cancelled.

        Waiting for the call itself would lose the message of the cancellation, and the mark by
        which anyio knows its own.

        Raises:
            grpc.aio.AioRpcError: It failed.
            ChannelClosedError: See there.
        """
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = next(call.__await__())
        self._unary[task] = call
        # Of the task and not of the call, which has no end where whoever cancels all tasks has
        # cancelled gRPC's before its first step.
        task.add_done_callback(partial(self._done, over))
        # No frame may keep the call when an exception passes: a traceback that somebody keeps would
        # hold gRPC's thread.
        try:
            await over
        except BaseException:
            self._cancel(call)
            del call
            raise
        try:
            answer = await call
            if answer is not None:
                return answer
            failure: Exception = no_message()  # grpc.aio logs why, and gives None
        except grpc.aio.AioRpcError as error:
            failure = error.with_traceback(None)
        except asyncio.CancelledError:
            failure = ChannelClosedError()
        del call
        try:
            raise failure
        finally:
            del failure

    def _done(self, over: asyncio.Future[None], task: asyncio.Task[Any]) -> None:
        del self._unary[task]
        if not over.done():
            over.set_result(None)
        elif not task.cancelled():
            task.exception()  # which nobody will ask for any more

    @staticmethod
    def _cancel(call: Any) -> None:
        # The public one would also cancel the task that waits for the core.
        call._cancel("the client has cancelled it")

    def stream(self, begin: Callable[[], Any]) -> Any:
        """Begin a stream, and give its call.

        Args:
            begin: Makes the call.
        """
        loop = asyncio.get_running_loop()
        before: set[asyncio.Task[Any]] = set()
        # The first step of gRPC's task, which runs between these two, makes another one: that waits
        # for the core to end the call, and nothing else tells of it.
        loop.call_soon(lambda: before.update(asyncio.all_tasks(loop)))
        already = asyncio.all_tasks(loop)
        call = begin()
        call.add_done_callback(self._note)
        # An eager task factory has run that step just now.
        self._remember(call, asyncio.all_tasks(loop) - already)
        loop.call_soon(lambda: self._remember(call, asyncio.all_tasks(loop) - before))
        return call

    def _remember(self, call: Any, tasks: set[asyncio.Task[Any]]) -> None:
        for task in tasks - self._streams.keys():
            self._streams[task] = call
            task.add_done_callback(self._streams.pop)

    def _note(self, call: Any) -> None:
        code, details = _now(call.code()), _now(call.details())
        nothing = grpc.aio.Metadata()
        end = grpc.aio.AioRpcError(code, nothing, nothing, details=details)
        self._ends.setdefault(call, end)  # `drop` may end it once more

    def end(self, call: Any, failure: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError | None:
        """Give why a stream is at its end; None where the server has just ended it.

        Args:
            call: The stream.
            failure: What reading it has raised. That is not the server's reason where the end has
                met a write: grpc.aio forgets it then for an internal error of its own.
        """
        end = self._ends.get(call, failure)
        return None if end.code() is grpc.StatusCode.OK else end

    @staticmethod
    def drop(call: Any) -> None:
        """End a stream, whatever has become of it.

        One that had no connection yet when a write failed is over for grpc.aio, which then cancels
        nothing. Its core would wait for the connection for ever, and with it gRPC's thread.
        """
        if not call.cancel():
            call._cython_call.cancel("the client has ended it")

    def close(self) -> None:
        """End all unary calls."""
        for call in self._unary.values():
            self._cancel(call)

    async def wait_done(self) -> None:
        """Wait until gRPC is done with all calls, which were cancelled."""
        if tasks := {*self._unary, *self._streams}:
            await asyncio.wait(tasks, timeout=_DONE)


def _now(answer: Coroutine[Any, Any, Any]) -> Any:
    """Give what gRPC knows already."""
    try:
        answer.send(None)
    except StopIteration as stop:
        return stop.value
    raise RuntimeError("gRPC tells that a call is over, and not how")
