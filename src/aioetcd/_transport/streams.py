"""The one way to own a bidirectional stream.

A stream of etcd is shared by many users: watches or leases of a client. What is said on it
is decided by rules without I/O (`StreamRules`); this module connects, reads, writes, keeps the
time and connects again. Nobody but its tasks touches the gRPC call, because cancelling a read or
a write ends the call for all.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import Any, Generic, Protocol, TypeVar

import anyio
import grpc
import grpc.aio
from anyio.lowlevel import checkpoint_if_cancelled
from google.protobuf.message import DecodeError

from aioetcd._transport.backoff import Backoff
from aioetcd._transport.call import Failure, no_message
from aioetcd._transport.connection import Connection
from aioetcd._transport.group import Group
from aioetcd._transport.methods import Method, Request, Response
from aioetcd._transport.token import REFUSALS
from aioetcd._transport.transport import Transport
from aioetcd._transport.wish import Wish
from aioetcd._verdicts.raised import error_from_status
from aioetcd._verdicts.table import Blame, Verdict, verdict_for
from aioetcd.errors import AuthError, ClientClosedError, ClusterMismatchError, EtcdError

Request_co = TypeVar("Request_co", covariant=True)
Response_contra = TypeVar("Response_contra", contravariant=True)

# An idle stream is kept for so long, for the next watch or lease.
LINGER = 1.0


class StreamRules(Protocol[Request_co, Response_contra]):
    """What a stream's owner asks the rules, and tells them. Times are `time.monotonic`'s."""

    @property
    def wanted(self) -> bool:
        """Whether there is anything to have a stream for."""

    def opened(self, endpoint: str, now: float) -> None:
        """A new stream is there; nothing was sent on it yet."""

    def next_request(self, now: float) -> Request_co | None:
        """Give what to send next, or None for nothing now."""

    def received(self, response: Response_contra, size: int, now: float) -> Wish | None:
        """An answer of `size` bytes came."""

    def lost(self, error: EtcdError, *, final: bool, now: float) -> None:
        """The stream ended. `final`: another one would end in the same way."""

    def next_tick(self) -> float | None:
        """Give the time at which `tick` wants to be called; None for no time.

        It is asked again after each tick, after each change, and when `next_request` has nothing
        more: what is overdue needs no tick.
        """

    def tick(self, now: float) -> Wish | None:
        """Time has passed."""


class SharedStream(Generic[Request, Response]):
    """Keeps a stream open for as long as its rules want one.

    Args:
        transport: Gives connections, and the supervisor for the stream's task.
        method: The RPC.
        rules: What to say, and what the answers mean.
        require_leader: Have the server end the stream when it has no leader; without that it
            stays open and silent in a partition.
        logger: Told when the stream is lost, and when it is back.

    Attributes:
        connection: Where the stream is now, or None.
        reconnects: How often it was lost, and then opened again.
    """

    def __init__(
        self,
        transport: Transport,
        method: Method[Request, Response],
        rules: StreamRules[Request, Response],
        *,
        require_leader: bool,
        logger: logging.Logger,
    ) -> None:
        self.connection: Connection | None = None
        self.reconnects: int = 0
        self._transport = transport
        self._method = method
        self._rules = rules
        self._metadata = (("hasleader", "true"),) if require_leader else ()
        self._logger = logger
        self._task: asyncio.Task[None] | None = None
        self._on_call: anyio.CancelScope | None = None
        self._left_for: Wish | None = None
        self._lost_at: float | None = None
        self._backoff = Backoff(0.05, 2.0)
        self._send_wake = asyncio.Event()
        self._time_wake = asyncio.Event()

    def poke(self) -> None:
        """Look at the rules again: there may be something to send, or another time to wait for."""
        if self._rules.wanted and (self._task is None or self._task.done()):
            self._task = self._transport.supervisor.spawn(
                self._run, f"aioetcd {self._method.name} stream"
            )
        self._send_wake.set()
        self._time_wake.set()

    async def _run(self) -> None:
        while self._rules.wanted:  # again: somebody came while the last stream was taken down
            try:
                async with Group() as group:
                    group.start(self._converse(), f"aioetcd {self._method.name} reader")
                    while await self._keep_time():
                        pass
                    group.cancel_scope.cancel()
            finally:
                self._lost_at = None
                self._backoff.reset()
                self.connection = None

    async def _keep_time(self) -> bool:
        """Let the rules have their ticks; False when nobody wants the stream any more."""
        while self._rules.wanted:
            self._time_wake.clear()
            at = self._rules.next_tick()
            with anyio.move_on_after(None if at is None else at - monotonic()) as timer:
                await self._time_wake.wait()
            if timer.cancelled_caught:
                wish = self._rules.tick(monotonic())
                if wish is Wish.ELSEWHERE and len(self._transport.picker.members) > 1:
                    self._leave_for(wish)
                self._send_wake.set()
        self._time_wake.clear()
        with anyio.move_on_after(LINGER):
            while not self._rules.wanted:
                await self._time_wake.wait()
                self._time_wake.clear()
        return self._rules.wanted

    async def _converse(self) -> None:
        refusals = 0
        while True:
            while not self._rules.wanted:  # nobody to open it, or to sign in, for
                self._send_wake.clear()
                await self._send_wake.wait()
            try:
                connection = await self._transport.picker.wait(None)
            except ClientClosedError:
                return  # the rules were told already
            except ClusterMismatchError:
                continue  # the first answer tells the rules
            tokens = self._transport.tokens
            if tokens.is_missing:
                try:
                    await self._transport.calls.sign_in()
                except EtcdError as refused:
                    is_final = isinstance(refused, AuthError)
                    self._rules.lost(refused, final=is_final, now=monotonic())
                    self._time_wake.set()
                    await anyio.sleep(self._backoff.next_delay())
                continue  # the connection may be another one by now
            self.connection = connection
            generation = tokens.generation
            added = self._transport.monitor.metadata(self._method.name)
            call = connection.bidi(self._method, (*tokens.metadata, *self._metadata, *added))
            name = connection.endpoint.name
            self._rules.opened(name, monotonic())
            failure = self._left_for = None
            try:
                with anyio.CancelScope() as on_call:
                    self._on_call = on_call
                    connection.on_leave(on_call.cancel)
                    async with Group() as group:
                        group.start(self._write(call), f"aioetcd {self._method.name} writer")
                        failure = await self._read(call, connection)
                        group.cancel_scope.cancel()
            finally:
                connection.calls.drop(call)
                connection.stay(on_call.cancel)
                self.connection = self._on_call = None
            if failure is not None:
                verdict, error = self._failure(failure.code, failure.details, name)
                error.__cause__ = failure.__cause__
            elif not on_call.cancelled_caught:
                verdict, error = self._failure("UNAVAILABLE", "the server ended the stream", name)
            elif self._left_for is Wish.FRESH_TOKEN:
                code, text = "UNAUTHENTICATED", "etcdserver: invalid auth token"
                verdict, error = self._failure(code, text, name)
            elif self._left_for is Wish.ELSEWHERE:
                verdict, error = self._failure("UNAVAILABLE", "no answers for too long", name)
            else:
                verdict, error = self._failure("UNAVAILABLE", "its connection is left", name)
            is_news = self._lost_at is None
            if is_news:
                self._lost_at = monotonic()
            monitor = self._transport.monitor
            monitor.stream_lost(self._logger, self._method.name, name, error, is_news=is_news)
            self._transport.picker.failed(connection, verdict.blame, error)
            is_stale = verdict.blame is Blame.TOKEN and tokens.refused(generation)
            refusals = refusals + 1 if is_stale else 0
            is_final = not verdict.transient and not 0 < refusals <= REFUSALS
            self._rules.lost(error, final=is_final, now=monotonic())
            self._time_wake.set()
            self.reconnects += 1
            await anyio.sleep(self._backoff.next_delay())

    async def _write(self, call: Any) -> None:
        try:
            while True:
                self._send_wake.clear()
                while (request := self._rules.next_request(monotonic())) is not None:
                    await call.write(request)
                self._time_wake.set()
                await self._send_wake.wait()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # the reader has the reason
        except asyncio.CancelledError:
            await checkpoint_if_cancelled()
            return  # the call was cancelled: the reader says why

    async def _read(self, call: Any, connection: Connection) -> Failure | None:
        """Hand over the answers; give why there are no more (None: the server ended the stream)."""
        answered = False
        try:
            while (answer := await call.read()) is not grpc.aio.EOF:
                response = self._method.response.FromString(answer)
                if not answered:  # which shows that the stream is there: gRPC says nothing before
                    answered = True
                    self._is_there(connection.endpoint.name)
                wish = self._rules.received(response, len(answer), monotonic())
                if wish is Wish.FRESH_TOKEN:
                    self._leave_for(wish)
                elif wish is Wish.LOOK:
                    self._send_wake.set()
                    self._time_wake.set()
                del answer, response  # they may be large, and this frame may live for long
        except grpc.aio.AioRpcError as error:
            return connection.calls.end(call, error)
        except DecodeError:
            return no_message()
        except asyncio.CancelledError:
            await checkpoint_if_cancelled()
            raise
        return None

    def _leave_for(self, wish: Wish) -> None:
        """End the call, if there is one, for another that fulfils the wish."""
        if self._on_call is not None:
            self._left_for = wish
            self._on_call.cancel()

    def _is_there(self, endpoint: str) -> None:
        self._backoff.reset()
        seconds = None if self._lost_at is None else monotonic() - self._lost_at
        self._lost_at = None
        monitor = self._transport.monitor
        monitor.stream_opened(self._logger, self._method.name, endpoint, seconds)

    def _failure(self, code: str, details: str, endpoint: str) -> tuple[Verdict, EtcdError]:
        verdict = verdict_for(code, details)
        what = self._method.name
        return verdict, error_from_status(
            verdict, code=code, details=details, what=what, is_write=False, endpoint=endpoint
        )
