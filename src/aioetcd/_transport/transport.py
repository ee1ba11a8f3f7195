"""The one way to etcd: every unary RPC passes `Transport.unary`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic
from typing import Any

import anyio

from aioetcd._checks import check_seconds
from aioetcd._proto import rpc_pb2
from aioetcd._transport import _fork
from aioetcd._transport.backoff import Backoff
from aioetcd._transport.call import ChannelClosedError, Failure, LeftError
from aioetcd._transport.connection import Connection
from aioetcd._transport.credentials import Credentials
from aioetcd._transport.methods import AUTHENTICATE, Method, Request, Response
from aioetcd._transport.monitor import Monitor, WatchedCall
from aioetcd._transport.picker import CONNECT_TIMEOUT, Picker
from aioetcd._transport.supervisor import AS_ALL, Supervisor
from aioetcd._transport.token import Tokens, User
from aioetcd._verdicts.raised import error_from_status
from aioetcd._verdicts.table import Blame, verdict_for
from aioetcd.config.endpoints import Endpoint
from aioetcd.config.timeouts import DEFAULT, Default
from aioetcd.config.tls import TLS
from aioetcd.errors import (
    ClientClosedError,
    ClusterMismatchError,
    DeadlineExceededError,
    EtcdError,
    NoEndpointError,
)
from aioetcd.observe import Observer

logger = logging.getLogger("aioetcd.transport")


# When a call has waited so long, or a fifth of its time, its member is looked at.
_PATIENCE = 1.0
# A call is sent again so often because its token was refused: a fresh one may not have come to all
# members yet (etcd #18437).
_REFUSALS = 4
# Closing takes so long at the most.
_CLOSING = 5.0


def _not_closed(why: str) -> None:
    logger.warning("the client was not closed in order: %s", why)


def _patience(seconds: float | None) -> float:
    return _PATIENCE if seconds is None else min(_PATIENCE, seconds / 5)


def _cluster_id(response: Any) -> int:
    cluster_id: int = response.header.cluster_id
    return cluster_id


def channel_options(keepalive_time: float, keepalive_timeout: float) -> list[tuple[str, Any]]:
    """Give the gRPC options that decide how a client lives through faults."""
    return [
        # gRPC's default of 4 MiB would end a watch for good; etcd's answers have no limit.
        ("grpc.max_receive_message_length", -1),
        ("grpc.keepalive_time_ms", int(keepalive_time * 1000)),
        ("grpc.keepalive_timeout_ms", int(keepalive_timeout * 1000)),
        # Without this one the keepalive timeout is ignored while data is on its way, and a
        # paused member goes unnoticed for more than a minute.
        ("grpc.http2.ping_timeout_ms", int(keepalive_timeout * 1000)),
        # The default stops pinging a stream that has been idle for two pings.
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        # gRPC's name for how long one attempt to connect may take.
        ("grpc.min_reconnect_backoff_ms", int(CONNECT_TIMEOUT * 1000)),
        # So that a client is back within 2 s of the member.
        ("grpc.max_reconnect_backoff_ms", 1000),
        # Two clients of one process would share a connection, and its faults.
        ("grpc.use_local_subchannel_pool", 1),
        # A proxy that the environment names is meant for the web.
        ("grpc.enable_http_proxy", 0),
    ]


class Transport:
    """A client's connections, its deadlines and retries, and its background tasks.

    It starts with the first use, in the event loop of that use, and belongs to that loop.

    Attributes:
        picker: Gives the connection to use.
        tokens: Gives what goes with a call.
        supervisor: The owner of all background tasks.
        timeout: The default deadline of a call in seconds.
        longest_silence: Seconds after which gRPC itself finds a dead connection with open streams.
        monitor: Counts, logs and tells.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        timeout: float | None,
        keepalive_time: float,
        keepalive_timeout: float,
        tls: TLS | None = None,
        user: User | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.timeout = timeout
        self.longest_silence: float = keepalive_time + keepalive_timeout
        self.monitor: Monitor = Monitor(observers)
        self.supervisor: Supervisor = Supervisor(self._end)
        self._credentials = Credentials(
            tls,
            channel_options(keepalive_time, keepalive_timeout),
            signs_in=lambda: self.tokens.user is not None,
        )
        self.tokens: Tokens = Tokens(
            user, authenticate=self._authenticate, spawn=self.supervisor.spawn
        )
        self.picker: Picker = Picker(
            endpoints,
            credentials=self._credentials,
            metadata=lambda: self.tokens.metadata,
            monitor=self.monitor,
            supervisor=self.supervisor,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed: ClientClosedError | None = None
        self._closing: asyncio.Task[None] | None = None
        self._is_inherited = False
        self._another = partial(
            Transport,
            endpoints,
            timeout=timeout,
            keepalive_time=keepalive_time,
            keepalive_timeout=keepalive_timeout,
            tls=tls,
            user=user,
            observers=observers,
        )
        self._closers: list[Callable[[EtcdError], None]] = []
        self._ended = asyncio.Event()

    def check_usable(self) -> asyncio.AbstractEventLoop:
        """Start with the first use, and give the loop; refuse a closed client and another loop.

        Raises:
            ClientClosedError: The client was closed.
            RuntimeError: This is not the client's event loop, or there is none.
        """
        if self._closed is not None:
            raise self._closed_error()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError("aioetcd needs a running asyncio event loop") from None
        if loop is not self._loop:
            if self._loop is not None:
                raise RuntimeError(
                    "this client belongs to another event loop: open one client a loop"
                )
            _fork.opened(self)
            self._loop = loop
            self.supervisor.start(loop)
        return loop

    @property
    def state(self) -> str:
        """Where it stands, in words."""
        if self._closed is not None:
            return "closed"
        if self._loop is None:
            return "unused"
        current = self.picker.current
        return "not connected" if current is None else f"connected to {current.endpoint.name}"

    def resolve_timeout(self, timeout: float | Default | None) -> float | None:
        """Give the deadline in seconds that a call's ``timeout`` means."""
        return self.timeout if timeout is DEFAULT else check_seconds("timeout", timeout)

    def _closed_error(self, *, maybe_applied: bool = False) -> ClientClosedError:
        """Make an error of its own for each call, with the reason for the closing behind it."""
        closed = self._closed or ClientClosedError("the client is closed")
        error = ClientClosedError(str(closed), maybe_applied=maybe_applied)
        error.__cause__ = closed.__cause__
        return error

    async def unary(
        self,
        method: Method[Request, Response],
        request: Request,
        timeout: float | Default | None = DEFAULT,
        *,
        connection: Connection | None = None,
    ) -> Response:
        """Call a unary RPC.

        It waits for a connection, repairs what grpc.aio does to cancellation, maps errors, and
        tries again where that cannot do a write twice: when the request surely was not applied
        and the cause may pass, or when an answer was lost and the RPC may be repeated.

        Args:
            method: The RPC.
            request: Its request message.
            timeout: The deadline in seconds for all of this together.
            connection: Ask this connection only, without retries.

        Raises:
            EtcdError: By cause; see `aioetcd.errors`.
        """
        loop = self.check_usable()
        seconds = self.resolve_timeout(timeout)
        self.monitor.calls += 1
        if not self.monitor.is_watched:
            return await self._call(loop, method, request, seconds, connection)
        with WatchedCall(self.monitor, method.name) as watched:
            return await self._call(loop, method, request, seconds, connection, watched)

    async def _call(
        self,
        loop: asyncio.AbstractEventLoop,
        method: Method[Request, Response],
        request: Request,
        seconds: float | None,
        connection: Connection | None,
        watched: WatchedCall | None = None,
    ) -> Response:
        deadline = None if seconds is None else monotonic() + seconds
        metadata = self.monitor.metadata(method.name) if watched is not None else ()
        fixed = connection is not None
        effect = method.effect
        backoff: Backoff | None = None
        patience = _patience(seconds)
        # Whether an attempt before this one may have been applied.
        uncertain = False
        refusals = 0
        failure: EtcdError | None = None
        while True:
            if connection is None:
                connection = self.picker.in_use()
                if connection is None or (connection.is_doubted and not effect.is_repeatable):
                    sure = not effect.is_repeatable
                    connection = await self._connect(deadline, uncertain, failure, sure=sure)
            if self.tokens.is_missing and method is not AUTHENTICATE:
                await self.signed_in(deadline, uncertain=uncertain, failure=failure)
            if watched is not None:
                watched.endpoint = connection.endpoint.name
            generation = self.tokens.generation
            sent = (*self.tokens.metadata, *metadata) if metadata else self.tokens.metadata
            sent_at = monotonic()
            left = None if deadline is None else deadline - sent_at
            wait = [sent_at + patience, sent_at]
            waiting = connection.waiting
            waiting[id(wait)] = wait
            if not self.picker.is_watching:
                self.picker.watch(loop)
            try:
                # No name for the call: a traceback that somebody keeps would hold gRPC's thread.
                response: Response = await connection.calls.answer(
                    connection.unary(method)(request, timeout=left, metadata=sent or None),
                    may_leave=effect.is_repeatable and not fixed,
                )
            except Failure as caught:
                status = caught
            except LeftError:
                uncertain = uncertain or effect.is_write
                failure = DeadlineExceededError(
                    f"{method.name} at {connection.endpoint.name}: no answer",
                    timeout=seconds,
                    code="DEADLINE_EXCEEDED",
                    details="Deadline Exceeded",
                    maybe_applied=uncertain,
                    endpoint=connection.endpoint.name,
                )
                if fixed:
                    raise failure from None
                # The next one may only be slow, and what is slow must come to an end.
                patience *= 2
                self._retry(method, connection, 0.0, failure, watched)
                connection = None
                continue
            except ChannelClosedError:
                # If it was not us, somebody has cancelled gRPC's own task.
                self.supervisor.end("gRPC's task for a call was cancelled" + AS_ALL)
                closed = self._closed_error(maybe_applied=uncertain or effect.is_write)
                raise closed from closed.__cause__
            else:
                connection.heard_at = sent_at
                if self.picker.members.is_ours(_cluster_id(response)):
                    return response
                failure = self._of_another_cluster(method, connection, response)
                if effect.is_write or fixed:
                    raise failure
                connection = None
                continue
            finally:
                del waiting[id(wait)]
            left = None if deadline is None else deadline - monotonic()
            timed_out = left is not None and left <= 0.01 and status.is_deadline
            code, details = status.code, status.details
            if timed_out:
                code, details = "DEADLINE_EXCEEDED", "Deadline Exceeded"
            verdict = verdict_for(code, details, request_size=request.ByteSize())
            failure = error_from_status(
                verdict,
                code=code,
                details=details,
                what=method.name,
                is_write=effect.is_write,
                endpoint=connection.endpoint.name,
                request=request,
                timeout=seconds if timed_out else None,
            )
            failure.__cause__ = status.__cause__
            uncertain = failure.maybe_applied = uncertain or failure.maybe_applied
            if timed_out:  # which may just be this caller's haste
                self.picker.doubt(connection, sent_at)
                raise failure
            connection.heard_at = sent_at
            self.picker.failed(connection, verdict.blame, failure)
            is_stale = (
                verdict.blame is Blame.TOKEN
                and method is not AUTHENTICATE
                and refusals < _REFUSALS
                and self.tokens.refused(generation)
            )
            refusals += is_stale
            if not is_stale and (fixed or not verdict.transient):
                raise failure
            if verdict.maybe_applied and not effect.is_repeatable:
                raise failure
            backoff = backoff or Backoff(0.025, 1.0)
            delay = backoff.next_delay()
            if left is not None and delay >= left:
                raise failure
            self._retry(method, connection, delay, failure, watched)
            if not fixed:
                is_role = verdict.blame is Blame.ROLE
                connection = self.picker.elsewhere(connection) if is_role else None
            with anyio.move_on_after(delay):
                await self._ended.wait()
            if self._closed is not None:
                raise self._closed_error(maybe_applied=uncertain)

    def _retry(
        self,
        method: Method[Any, Any],
        connection: Connection,
        delay: float,
        failure: EtcdError,
        watched: WatchedCall | None,
    ) -> None:
        self.monitor.retried(method.name, connection.endpoint.name, delay, failure)
        if watched is not None:
            watched.retries += 1

    async def _authenticate(self, user: User) -> str:
        request = rpc_pb2.AuthenticateRequest(name=user.name, password=user.password)
        token = (await self.unary(AUTHENTICATE, request)).token
        self.monitor.signed_in()
        return token

    async def signed_in(
        self,
        deadline: float | None = None,
        *,
        uncertain: bool = False,
        failure: EtcdError | None = None,
    ) -> None:
        """Wait for the token.

        Raises:
            EtcdError: There was none by `deadline`; the authentication failed.
        """
        limit = None if deadline is None else deadline - monotonic()
        with anyio.move_on_after(limit) as scope:
            try:
                await self.tokens.wait()
            except ClientClosedError:
                closed = self._closed_error(maybe_applied=uncertain)
                raise closed from closed.__cause__
        if scope.cancelled_caught:
            if uncertain and failure is not None:
                raise failure
            if self.picker.current is None:
                raise self.picker.unreachable() from failure
            raise DeadlineExceededError("no token: Authenticate was not answered") from failure

    def _of_another_cluster(
        self, method: Method[Any, Any], connection: Connection, response: Any
    ) -> ClusterMismatchError:
        other, ours = _cluster_id(response), self.picker.members.cluster_id
        name = connection.endpoint.name
        failure = ClusterMismatchError(
            f"{method.name} at {name}: cluster {other:x} has answered, and the others are of "
            f"{ours:x}",
            maybe_applied=method.effect.is_write,
            endpoint=name,
        )
        self.picker.failed(connection, Blame.MEMBER, failure)
        return failure

    async def _connect(
        self,
        deadline: float | None,
        uncertain: bool,
        failure: EtcdError | None,
        *,
        sure: bool = False,
    ) -> Connection:
        try:
            return await self.picker.wait(deadline, sure=sure)
        except ClientClosedError:
            closed = self._closed_error(maybe_applied=uncertain)
            raise closed from closed.__cause__
        except NoEndpointError as error:
            # That it was not applied, or never sent, would be a lie.
            if failure is not None and (uncertain or isinstance(failure, DeadlineExceededError)):
                raise failure from failure.__cause__ or error
            raise error from failure

    async def wait_connected(self) -> float | None:
        """Wait until there is a server to ask, so that whoever gives up has asked nobody.

        Gives what is then left of the default timeout, in seconds.

        Raises:
            NoEndpointError: None could be reached in time.
        """
        self.check_usable()
        deadline = None if self.timeout is None else monotonic() + self.timeout
        if self.picker.current is None:
            await self._connect(deadline, uncertain=False, failure=None)
        return None if deadline is None else max(deadline - monotonic(), 0.001)

    async def last_unary(
        self, method: Method[Request, Response], request: Request, timeout: float
    ) -> Response:
        """Call a unary RPC in order to tidy up: also while the client closes, and after.

        Args:
            method: The RPC, which may be repeated.
            request: Its request message.
            timeout: The deadline in seconds for all of this together.

        Raises:
            EtcdError: By cause.
        """
        deadline = monotonic() + timeout
        if self._is_inherited:  # what there is to tidy up is the parent's
            raise self._closed_error()
        if self._closed is None:
            with contextlib.suppress(ClientClosedError):
                return await self.unary(method, request, timeout)
        apart = self._another()
        try:
            return await apart.unary(method, request, max(deadline - monotonic(), 0.001))
        finally:
            await apart.aclose()

    def forked(self) -> None:
        """This is the child of a process that was forked while the client was open.

        Nobody is told: whoever waits, waits in a copy of the parent's event loop.
        """
        self._is_inherited = True
        self._refuse("it was opened by the parent process: open one in this process")

    def forgotten(self) -> None:
        """Nobody holds the client any more: close it, and say so if nobody did."""
        why = "nobody held it any more"
        if self._loop is None:  # whoever kept one of its services would open what nobody can close
            self._refuse(why)
        elif self._closing is None and not self._is_inherited:
            with contextlib.suppress(RuntimeError):  # the loop is closed, at the latest just now
                self._loop.call_soon_threadsafe(self._close, why)  # this may be another thread
            warnings.warn(
                "a client was not closed: use it as `async with`", ResourceWarning, stacklevel=3
            )

    def on_close(self, closer: Callable[[EtcdError], None]) -> None:
        """Have `closer` called with the error to tell when the client closes."""
        self._closers.append(closer)

    def _refuse(self, why: str, cause: BaseException | None = None) -> bool:
        """Take no more calls; False if it was so before."""
        if self._closed is not None:
            return False
        self._closed = ClientClosedError(
            f"the client is closed: {why}" if why else "the client is closed"
        )
        self._closed.__cause__ = cause
        return True

    def _end(self, why: str, cause: BaseException | None = None) -> None:
        """Tell everybody that there is nobody to wait for any more."""
        if not self._refuse(why, cause):
            return
        # Last in, first out; and whatever one of them raises, the others are told.
        with contextlib.ExitStack() as everybody:
            for connection in self.picker:
                everybody.callback(connection.calls.close)
            for closer in reversed(self._closers):
                everybody.callback(closer, self._closed_error())
            everybody.callback(self.picker.close)
            everybody.callback(self._ended.set)

    async def aclose(self) -> None:
        """End everything that is open with `ClientClosedError`, then close the connections.

        To be cancelled ends only the waiting for it.
        """
        if self._loop is None or self._is_inherited or self._loop.is_closed():
            self._refuse("")
            self._loop = None  # there is nobody to tell, and nothing to warn of
            return
        if self._loop is not asyncio.get_running_loop():
            raise RuntimeError("this client belongs to another event loop: close it there")
        closing = self._close("")
        with anyio.CancelScope(shield=True):
            await asyncio.wait({closing})

    def _close(self, why: str) -> asyncio.Task[None]:
        try:
            self.supervisor.end(why)
        finally:
            if self._closing is None:
                self._closing = self.supervisor.tidy(
                    self._disconnect, "aioetcd closing", seconds=_CLOSING, give_up=_not_closed
                )
        return self._closing

    async def _disconnect(self, seconds: float) -> None:
        await self.supervisor.aclose()
        if self._is_inherited:
            return
        try:
            await self.picker.aclose()
        finally:
            _fork.closed(self)
