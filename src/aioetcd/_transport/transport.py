"""The one way to etcd: every unary RPC passes `Transport.unary`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import warnings
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from time import monotonic
from typing import Any

import anyio

from aioetcd._checks import check_seconds
from aioetcd._proto import rpc_pb2
from aioetcd._transport import _fork
from aioetcd._transport.connection import Connection
from aioetcd._transport.credentials import Credentials
from aioetcd._transport.download import Download
from aioetcd._transport.ending import Ending
from aioetcd._transport.methods import AUTHENTICATE, MEMBER_LIST, Method, Request, Response
from aioetcd._transport.monitor import Monitor, WatchedCall
from aioetcd._transport.picker import CONNECT_TIMEOUT, Picker
from aioetcd._transport.supervisor import Supervisor
from aioetcd._transport.sync import EndpointSync
from aioetcd._transport.token import Tokens
from aioetcd._transport.unary import Unary
from aioetcd.config.client import Config
from aioetcd.config.endpoints import Endpoint
from aioetcd.config.timeouts import DEFAULT, Default, deadline_in, seconds_left
from aioetcd.config.user import User
from aioetcd.errors import ClientClosedError, EtcdError

logger = logging.getLogger("aioetcd.transport")


# Closing takes so long at the most.
_CLOSING = 5.0


def _not_closed(why: str) -> None:
    logger.warning("the client was not closed in order: %s", why)


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

    Args:
        config: What the client was told at the start.

    Attributes:
        picker: Gives the connection to use.
        unreachable: Makes the error that says why there is no connection.
        endpoint_sync: Takes the endpoints that the cluster names.
        tokens: Gives what goes with a call.
        supervisor: The owner of all background tasks.
        timeout: The default deadline of a call in seconds.
        longest_silence: Seconds after which gRPC itself finds a dead connection with open streams.
        monitor: Counts, logs and tells.
        ending: That the client has closed.
        calls: Makes the unary calls, and waits for what a stream needs as well.
        prefix: What it puts before each key, which is nothing.
    """

    prefix = b""

    def __init__(self, config: Config) -> None:
        self.timeout: float | None = config.timeout
        self.longest_silence: float = config.keepalive_time + config.keepalive_timeout
        self.monitor: Monitor = Monitor(config.observers)
        self.supervisor: Supervisor = Supervisor(self._end)
        self._credentials = Credentials(
            config.tls,
            channel_options(config.keepalive_time, config.keepalive_timeout),
            signs_in=lambda: self.tokens.user is not None,
        )
        self.tokens: Tokens = Tokens(
            config.user, authenticate=self._authenticate, spawn=self.supervisor.spawn
        )
        self.picker: Picker = Picker(
            config.endpoints,
            credentials=self._credentials,
            metadata=lambda: self.tokens.metadata,
            monitor=self.monitor,
            supervisor=self.supervisor,
        )
        self.unreachable: Callable[[], EtcdError] = self.picker.unreachable
        self.ending: Ending = Ending()
        self.calls: Unary = Unary(
            self.picker,
            self.tokens,
            monitor=self.monitor,
            supervisor=self.supervisor,
            ending=self.ending,
        )
        self.endpoint_sync: EndpointSync = EndpointSync(
            self.picker, is_secure=self._credentials.is_secure, ask=self._members
        )
        self._config = config
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: asyncio.Task[None] | None = None
        self._is_inherited = False
        self._closers: list[Callable[[EtcdError], None]] = []

    def _another(self) -> Transport:
        """Make one for what is left to do: with the endpoints and the user of by now."""
        endpoints = tuple(member.endpoint for member in self.picker.members)
        return Transport(
            self._config.__replace__(endpoints=endpoints, user=self.tokens.user, auto_sync=None)
        )

    def check_usable(self) -> asyncio.AbstractEventLoop:
        """Start with the first use, and give the loop; refuse a closed client and another loop.

        Raises:
            ClientClosedError: The client was closed.
            RuntimeError: This is not the client's event loop, or there is none.
        """
        if self.ending.reason is not None:
            raise self.ending.error()
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
            if self._config.auto_sync is not None:
                keep_in_sync = partial(self.endpoint_sync.forever, self._config.auto_sync)
                _ = self.supervisor.spawn(keep_in_sync, "aioetcd endpoint sync")
        return loop

    @property
    def state(self) -> str:
        """Where it stands, in words."""
        if self.ending.reason is not None:
            return "closed"
        if self._loop is None:
            return "unused"
        current = self.picker.current
        return "not connected" if current is None else f"connected to {current.endpoint.name}"

    def resolve_timeout(self, timeout: float | Default | None) -> float | None:
        """Give the deadline in seconds that a call's ``timeout`` means."""
        return self.timeout if timeout is DEFAULT else check_seconds("timeout", timeout)

    def unary(
        self,
        method: Method[Request, Response],
        request: Request,
        timeout: float | Default | None = DEFAULT,
        *,
        connection: Connection | None = None,
        at: Endpoint | None = None,
    ) -> Coroutine[Any, Any, Response]:
        """Call a unary RPC.

        It waits for a connection, repairs what grpc.aio does to cancellation, maps errors, and
        tries again where that cannot do a write twice: when the request surely was not applied
        and the cause may pass, or when an answer was lost and the RPC may be repeated.

        Args:
            method: The RPC.
            request: Its request message.
            timeout: The deadline in seconds for all of this together.
            connection: Ask this connection only, without retries.
            at: Ask this member only, without retries; it need not be among the endpoints.

        Raises:
            EtcdError: By cause; see `aioetcd.errors`.
        """
        loop = self.check_usable()
        seconds = self.resolve_timeout(timeout)
        if at is not None:
            return self._unary_at(at, method, request, seconds)
        self.monitor.calls += 1
        if self.monitor.is_watched:
            return self._watched_unary(loop, method, request, seconds, connection)
        return self.calls.call(loop, method, request, seconds, connection)

    async def _unary_at(
        self,
        at: Endpoint,
        method: Method[Request, Response],
        request: Request,
        seconds: float | None,
    ) -> Response:
        apart = self.picker.apart(at)
        try:
            return await self.unary(method, request, seconds, connection=apart)
        finally:
            self.picker.release(apart)

    async def _watched_unary(
        self,
        loop: asyncio.AbstractEventLoop,
        method: Method[Request, Response],
        request: Request,
        seconds: float | None,
        connection: Connection | None,
    ) -> Response:
        with WatchedCall(self.monitor, method.name) as watched:
            return await self.calls.call(loop, method, request, seconds, connection, watched)

    def download(
        self,
        method: Method[Request, Response],
        request: Request,
        timeout: float | Default | None = DEFAULT,
        *,
        at: Endpoint | None = None,
    ) -> Download[Request, Response]:
        """Begin a server stream.

        Args:
            method: The RPC.
            request: Its request message.
            timeout: Seconds that the next answer may take; None is no limit.
            at: Ask this member only.

        Raises:
            ClientClosedError: The client was closed.
        """
        self.check_usable()
        self.monitor.calls += 1
        return Download(self, method, request, timeout=self.resolve_timeout(timeout), at=at)

    async def _authenticate(self, user: User) -> str:
        request = rpc_pb2.AuthenticateRequest(name=user.name, password=user.password)
        token = (await self.unary(AUTHENTICATE, request)).token
        self.monitor.signed_in()
        return token

    async def _members(self, timeout: float | Default | None) -> Iterable[rpc_pb2.Member]:
        request = rpc_pb2.MemberListRequest(linearizable=True)
        return (await self.unary(MEMBER_LIST, request, timeout)).members

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection to use, and no doubt about it, as far as is known."""
        connection = self.picker.in_use()
        return connection is not None and not connection.is_doubted

    async def wait_connected(self) -> float | None:
        """Wait until there is a server to ask, so that whoever gives up has asked nobody.

        Gives what is then left of the default timeout, in seconds.

        Raises:
            NoEndpointError: None could be reached in time.
        """
        self.check_usable()
        deadline = deadline_in(self.timeout)
        if self.picker.current is None:
            _ = await self.calls.connect(deadline)
        return seconds_left(deadline)

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
            raise self.ending.error()
        if self.ending.reason is None:
            with contextlib.suppress(ClientClosedError):
                return await self.unary(method, request, timeout)
        apart = self._another()
        try:
            return await apart.unary(method, request, seconds_left(deadline))
        finally:
            await apart.aclose()

    def forked(self) -> None:
        """This is the child of a process that was forked while the client was open.

        Nobody is told: whoever waits, waits in a copy of the parent's event loop.
        """
        self._is_inherited = True
        self.ending.begin("it was opened by the parent process: open one in this process")

    def forgotten(self) -> None:
        """Nobody holds the client any more: close it, and say so if nobody did."""
        why = "nobody held it any more"
        if self._loop is None:  # whoever kept one of its services would open what nobody can close
            self.ending.begin(why)
        elif self._closing is None and not self._is_inherited:
            with contextlib.suppress(RuntimeError):  # the loop is closed, at the latest just now
                self._loop.call_soon_threadsafe(self._close, why)  # this may be another thread
            warnings.warn(
                "a client was not closed: use it as `async with`", ResourceWarning, stacklevel=3
            )

    def on_close(self, closer: Callable[[EtcdError], None]) -> None:
        """Have `closer` called with the error to tell when the client closes."""
        self._closers.append(closer)

    def _end(self, why: str, cause: BaseException | None = None) -> None:
        """Tell everybody that there is nobody to wait for any more."""
        if not self.ending.begin(why, cause):
            return
        # Last in, first out; and whatever one of them raises, the others are told.
        with contextlib.ExitStack() as everybody:
            for connection in self.picker:
                everybody.callback(connection.calls.close)
            for closer in reversed(self._closers):
                everybody.callback(closer, self.ending.error())
            everybody.callback(self.picker.close)
            everybody.callback(self.ending.told.set)

    async def aclose(self) -> None:
        """End everything that is open with `ClientClosedError`, then close the connections.

        To be cancelled ends only the waiting for it.
        """
        if self._loop is None or self._is_inherited or self._loop.is_closed():
            self.ending.begin("")
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
