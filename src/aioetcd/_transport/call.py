"""The one place that waits for gRPC calls, and for what gRPC does after they are cancelled."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import Any, NoReturn

import grpc
import grpc.aio

# So long gRPC may take to be done with a call that has ended: it asks nobody for that.
_DONE = 1.0


_EOF = grpc.aio.EOF
# HTTP/2's CANCEL, by a server that lost its interest in a call.
_CANCELLED_BY_SERVER = "Received RST_STREAM with error code 8"
# Go's error of a context, which a handler of etcd's may pass on with any code.
_OF_GOS_CONTEXT = "context deadline exceeded"


class Failure(Exception):  # noqa: N818  # nobody is to see it
    """A call failed, for a reason that gRPC gives.

    Attributes:
        code: The name of the status.
        details: Its message.
    """

    def __init__(self, code: str, details: str) -> None:
        # Where a socket cannot be had gRPC's message ends with the address as it lies in memory.
        details = details.partition("\0")[0].rstrip()
        super().__init__(f"{code}: {details}")
        self.code: str = code
        self.details: str = details

    @property
    def is_deadline(self) -> bool:
        """Whether it can be a call's own deadline.

        The server's timer may be first: it drops the call, and tells that to nobody but HTTP/2; or
        what waits inside of it ends, and says so.
        """
        return (
            self.code == "DEADLINE_EXCEEDED"
            or _CANCELLED_BY_SERVER in self.details
            or self.details.endswith(_OF_GOS_CONTEXT)
        )


class ChannelClosedError(Exception):
    """The call was cancelled here, but not by whoever waits for it: its channel closes."""


class LeftError(Exception):
    """The call was given up here, because its connection is left: it may be sent elsewhere."""


class _Answer(asyncio.Future[Any]):
    """Waits for gRPC's task, which goes on when whoever waits is cancelled.

    Waiting for the task itself would hand the cancellation on to it, and get it back without its
    message, and the mark by which anyio knows its own. A future that is told by the task takes one
    more turn of the event loop for each call. So the waiting task is woken by gRPC's itself, and
    only what does not come from there passes through here.

    Args:
        task: gRPC's.

    Attributes:
        is_cancelled: Whether somebody has cancelled whoever waits.
    """

    __slots__ = ("_context", "_error", "_is_over", "_task", "_wake", "is_cancelled")

    def __init__(self, task: asyncio.Task[Any]) -> None:
        super().__init__(loop=task.get_loop())
        self.is_cancelled: bool = False
        self._task = task
        # Whether whoever waited does so no more: he is not to be woken from what he does then.
        self._is_over = False
        self._error: BaseException | None = None

    def __await__(self) -> Generator[Any, None, Any]:
        """Wait."""
        if not self._task.done():
            self._asyncio_future_blocking = True
            try:
                yield self
            except BaseException:
                self._is_over = True
                del self  # it knows whom to wake, who may keep the traceback
                raise
        return self._task.result()

    def add_done_callback(
        self, wake: Callable[[Any], object], *, context: Context | None = None
    ) -> None:
        """Have gRPC's task wake who waits, which asyncio asks for."""
        self._wake, self._context = wake, context
        self._task.add_done_callback(wake, context=context)

    def done(self) -> bool:
        """Whether nothing is waited for any more, which anyio asks."""
        return self._is_over or self._task.done()

    def cancel(self, msg: Any = None) -> bool:
        """Be woken by whoever cancels."""
        self.is_cancelled = True
        return self.give_up(
            asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg)
        )

    def give_up(self, error: BaseException) -> bool:
        """Raise this, unless it is over; give whether it was not."""
        if self.done():
            return False
        self._is_over = True
        self._error = error
        self._task.remove_done_callback(self._wake)
        self.get_loop().call_soon(self._wake, self, context=self._context)
        return True

    def result(self) -> NoReturn:
        """Raise that for which it was given up: for the rest, gRPC's task is asked itself."""
        error, self._error = self._error, None
        assert error is not None
        try:
            raise error
        finally:
            del self, error  # its traceback is not to hold itself


def _failure(error: grpc.aio.AioRpcError) -> Failure:
    failure = Failure(error.code().name, error.details() or "")
    failure.__cause__ = error.with_traceback(None)  # whose frames hold the call, and gRPC's thread
    return failure


def no_message() -> Failure:
    """Make the failure of a call whose answer cannot be read, as gRPC's other languages tell it."""
    return Failure("INTERNAL", "the answer is no message of protobuf's")


class OpenCalls:
    """The calls of one channel with which gRPC is not done.

    grpc.aio tells that a call was cancelled before its core knows. What the core has to say of it
    afterwards must find the event loop open, or it ends in a traceback.
    """

    def __init__(self) -> None:
        # By gRPC's own task, which ends when its core is done with the call.
        self._unary: dict[asyncio.Task[Any], tuple[Any, _Answer, bool]] = {}
        self._streams: dict[asyncio.Task[Any], Any] = {}
        self._ends: weakref.WeakKeyDictionary[Any, Failure | None] = weakref.WeakKeyDictionary()

    def __len__(self) -> int:
        """Give how many unary calls there are."""
        return len(self._unary)

    async def answer(self, call: Any, *, may_leave: bool = False) -> Any:
        """Wait for the answer to a unary call, and cancel the call when we are cancelled.

        Args:
            call: The call.
            may_leave: Whether `leave` may give it up.

        Raises:
            Failure: It failed.
            LeftError: `leave` has given it up.
            ChannelClosedError: See there.
        """
        # Of the task and not of the call, which has no end where whoever cancels all tasks has
        # cancelled gRPC's before its first step.
        task: asyncio.Task[Any] = call._call_response
        waiting = _Answer(task)
        self._unary[task] = call, waiting, may_leave
        # No frame may keep the call when an exception passes: a traceback that somebody keeps would
        # hold gRPC's thread.
        failure: Exception
        try:
            message = await waiting
            if message is _EOF:
                message = await call  # which knows why, and raises it
            if message is not None:
                return message
            failure = no_message()  # grpc.aio logs why, and gives None
        except grpc.aio.AioRpcError as error:
            failure = _failure(error)
        except asyncio.CancelledError:
            if waiting.is_cancelled:
                raise
            failure = ChannelClosedError()
        finally:
            if task.done():
                self._done(task)
            else:
                self._cancel(call)
                task.add_done_callback(self._done)
            del call, task, waiting
        try:
            raise failure
        finally:
            del failure

    def _done(self, task: asyncio.Task[Any]) -> None:
        del self._unary[task]
        if not task.cancelled():
            task.exception()  # which nobody may ask for any more

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
        end = None if code is grpc.StatusCode.OK else Failure(code.name, details or "")
        self._ends.setdefault(call, end)  # `drop` may end it once more

    def end(self, call: Any, failure: grpc.aio.AioRpcError) -> Failure | None:
        """Give why a stream is at its end; None where the server has just ended it.

        Args:
            call: The stream.
            failure: What reading it has raised. That is not the server's reason where the end has
                met a write: grpc.aio forgets it then for an internal error of its own.
        """
        return self._ends[call] if call in self._ends else _failure(failure)

    def leave(self) -> None:
        """Give up the unary calls that may be sent elsewhere."""
        for _, waiting, may_leave in self._unary.values():
            if may_leave:
                waiting.give_up(LeftError())

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
        for call, *_ in self._unary.values():
            self._cancel(call)

    async def wait_idle(self) -> None:
        """Wait until there is no unary call any more."""
        while self._unary:
            await asyncio.wait(list(self._unary))

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
