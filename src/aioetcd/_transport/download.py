"""A server stream: one request, many answers, each handed over once and in order."""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import Any, Generic

import anyio
import grpc.aio
from anyio.lowlevel import checkpoint_if_cancelled
from google.protobuf.message import DecodeError

from aioetcd._transport.backoff import Backoff
from aioetcd._transport.call import Failure, no_message
from aioetcd._transport.connection import Connection
from aioetcd._transport.methods import SNAPSHOT, Method, Request, Response
from aioetcd._transport.monitor import WatchedCall
from aioetcd._transport.token import REFUSALS
from aioetcd._transport.unary import PATIENCE
from aioetcd._verdicts.table import Blame
from aioetcd.config.endpoints import Endpoint
from aioetcd.errors import DeadlineExceededError, EtcdError

# So many answers wait for who takes them; then the server waits.
_INBOX = 4


class Download(Generic[Request, Response]):
    """The answers to one request. Up to the first one it is sent again as a unary read would be.

    What is there is read by a task of the client's: to cancel who waits for it loses nothing.

    Args:
        transport: Gives connections, and the supervisor for the task.
        method: The RPC.
        request: Its request message.
        timeout: Seconds that the next answer may take; None is no limit.
        at: Ask this member only.
    """

    def __init__(
        self,
        transport: Any,
        method: Method[Request, Response],
        request: Request,
        *,
        timeout: float | None,
        at: Endpoint | None,
    ) -> None:
        self._transport = transport
        self._method = method
        self._request = request
        self._timeout = timeout
        self._fixed = None if at is None else transport.picker.apart(at)
        self._inbox: deque[Response] = deque()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._error: EtcdError | None = None
        self._began = monotonic()
        self._asked: Connection | None = None
        self._failure: EtcdError | None = None
        self._task = transport.supervisor.spawn(self._run, f"aioetcd {method.name} download")
        # One that is cancelled before its first step never comes to a `finally` of its own.
        self._task.add_done_callback(self._ended)

    def __aiter__(self) -> Download[Request, Response]:
        """Iterate over the answers."""
        return self

    async def __anext__(self) -> Response:
        """Give the next one.

        Raises:
            EtcdError: There will be none, by cause.
        """
        self._began = monotonic()
        with anyio.move_on_after(self._timeout):
            while not self._inbox and not self._task.done():
                self._news.clear()
                await self._news.wait()
        if self._inbox:
            self._room.set()
            return self._inbox.popleft()
        if not self._task.done():
            self._error = self._too_late()
            self.close()
        if self._error is not None:
            raise self._error
        if self._task.cancelled():
            raise self._transport.ending.error()
        raise StopAsyncIteration

    def close(self) -> None:
        """End it, wherever it is."""
        self._transport.supervisor.stop(self._task)

    def _ended(self, task: object) -> None:
        self._news.set()
        if self._fixed is not None:
            self._transport.picker.release(self._fixed)

    def _too_late(self) -> EtcdError:
        if self._failure is not None:
            return self._failure
        if self._asked is None:
            unreachable: EtcdError = self._transport.picker.unreachable()
            return unreachable
        name = self._asked.endpoint.name
        return DeadlineExceededError(
            f"{self._method.name} at {name}: no answer", timeout=self._timeout, endpoint=name
        )

    async def _run(self) -> None:
        monitor = self._transport.monitor
        try:
            if not monitor.is_watched:
                await self._read_all()
                return
            with WatchedCall(monitor, self._method.name) as watched:
                try:
                    await self._read_all(watched)
                except asyncio.CancelledError:
                    if self._error is None:
                        raise
                    raise self._error from None  # it was too late, and is told as that
        except EtcdError as error:
            self._error = error

    async def _read_all(self, watched: WatchedCall | None = None) -> None:
        transport, refusals, backoff = self._transport, 0, Backoff(0.025, 1.0)
        while True:
            deadline = None if self._timeout is None else self._began + self._timeout
            connection = self._fixed or await transport.calls.connect(deadline)
            if transport.tokens.is_missing:
                await transport.calls.sign_in(deadline)
                continue  # the connection may be another one by now
            self._asked, self._failure = connection, None
            if watched is not None:
                watched.endpoint = connection.endpoint.name
            generation = transport.tokens.generation
            failure, has_begun = await self._read(connection)
            if failure is None:
                return
            verdict, error = transport.calls.judge(self._method, self._request, connection, failure)
            transport.picker.failed(connection, verdict.blame, error)
            is_stale = (
                verdict.blame is Blame.TOKEN
                and refusals < REFUSALS
                and transport.tokens.refused(generation)
            )
            refusals += is_stale
            is_passing = verdict.transient and self._fixed is None
            if has_begun or not (is_stale or is_passing):
                raise error
            self._failure = error
            delay = backoff.next_delay()
            transport.monitor.retried(self._method.name, connection.endpoint.name, delay, error)
            if watched is not None:
                watched.retries += 1
            await anyio.sleep(delay)

    async def _read(self, connection: Connection) -> tuple[Failure | None, bool]:
        """Read to the end; give why it ended, where it was not done, and whether anything came."""
        transport = self._transport
        added = transport.monitor.metadata(self._method.name)
        # A snapshot is of what the member has, leader or not; all else had better be the cluster's.
        needs = () if self._method is SNAPSHOT else (("hasleader", "true"),)
        call = connection.download(
            self._method, self._request, (*transport.tokens.metadata, *needs, *added)
        )
        has_begun = False
        on_call = anyio.CancelScope()
        leave = on_call.cancel
        if self._fixed is None:
            connection.on_leave(leave)
        try:
            with on_call:
                while (answer := await self._next(call, connection)) is not grpc.aio.EOF:
                    has_begun = True
                    self._inbox.append(self._method.response.FromString(answer))
                    self._news.set()
                    while len(self._inbox) >= _INBOX:
                        self._room.clear()
                        await self._room.wait()
                return None, has_begun
            return Failure("UNAVAILABLE", "its connection is left"), has_begun
        except grpc.aio.AioRpcError as error:
            return connection.calls.end(call, error), has_begun
        except DecodeError:
            return no_message(), has_begun
        finally:
            connection.stay(leave)
            connection.calls.drop(call)

    async def _next(self, call: Any, connection: Connection) -> Any:
        """Read the next answer. A member that is waited for is looked at, as for a unary call."""
        asked_at = monotonic()
        wait = [asked_at + min(PATIENCE, (self._timeout or 0.0) / 5), asked_at]
        picker = self._transport.picker
        if self._timeout is not None and not self._method.waits:
            connection.waiting[id(wait)] = wait
            if not picker.is_watching:
                picker.watch(asyncio.get_running_loop())
        try:
            answer = await call.read()
        except asyncio.CancelledError:
            await checkpoint_if_cancelled()  # grpc.aio's has not the mark by which anyio knows it
            raise
        finally:
            connection.waiting.pop(id(wait), None)
        connection.heard_at = asked_at
        return answer
