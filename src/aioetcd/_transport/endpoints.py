"""Which endpoint a request goes to.

Each endpoint has a channel of its own, so that "could not connect" and "sent and lost" are told
apart. One endpoint at a time is in use; when it fails, the others are tried, each a moment after
the one before, and the first that answers gRPC's health check is the next one in use.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import Any

import anyio
import grpc
import grpc.aio

from aioetcd._proto import health_pb2, health_pb2_grpc
from aioetcd._transport.backoff import Backoff
from aioetcd._transport.call import Calls, ChannelClosedError
from aioetcd._transport.failures import status_of
from aioetcd._transport.group import Group
from aioetcd._transport.methods import Bidi, Unary
from aioetcd._transport.supervisor import Supervisor
from aioetcd._transport.tls_port import speaks_tls
from aioetcd.config.endpoints import Endpoint
from aioetcd.errors import ClientClosedError, EtcdError, NoEndpointError

logger = logging.getLogger("aioetcd.transport")

# How long an endpoint may take to connect and answer a health check.
CONNECT_TIMEOUT = 3.0
# The next endpoint is tried when the one before has not answered for so long.
HEAD_START = 0.3

# What is left of a plaintext connection that a TLS server, or a web server's, has refused.
_REFUSALS = ("Socket closed", "http1.x server")
_TLS_PORT = " (it speaks TLS at this port, and this client does not)"


class Connection:
    """One endpoint's channel, opened at the first use.

    Attributes:
        endpoint: Where it leads.
        reason: Why it failed when it was tried last; None where it never was, or answered.
        calls: Those with which gRPC is not done.
    """

    def __init__(self, endpoint: Endpoint, options: Sequence[tuple[str, Any]]) -> None:
        self.endpoint = endpoint
        self.reason: str | None = None
        self.calls: Calls = Calls()
        self._options = options
        self._channel: grpc.aio.Channel | None = None
        self._is_closed = False
        self._speaks_tls: bool | None = None
        self._stubs: dict[type, Any] = {}
        self._calls: dict[Unary[Any, Any], Any] = {}

    def unary(self, method: Unary[Any, Any]) -> Any:
        """Give the multi-callable of a unary RPC."""
        found = self._calls.get(method)
        if found is None:
            found = self._calls[method] = getattr(self._stub(method.stub), method.name)
        return found

    def bidi(self, method: Bidi[Any, Any], metadata: Sequence[tuple[str, str]]) -> Any:
        """Begin a stream, whose answers are bytes."""
        begin: Callable[..., Any] = self._open().stream_stream(
            f"/{method.service}/{method.name}",
            request_serializer=method.request.SerializeToString,
        )
        return self.calls.stream(lambda: begin(metadata=metadata))

    def _stub(self, stub: type) -> Any:
        found = self._stubs.get(stub)
        if found is None:
            found = self._stubs[stub] = stub(self._open())
        return found

    def _open(self) -> grpc.aio.Channel:
        if self._is_closed:
            raise ClientClosedError("the client is closed")
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self.endpoint.target, options=self._options)
        return self._channel

    async def probe(self) -> bool:
        """Ask for its health: any answer but a failure of the connection will do."""
        check = self._stub(health_pb2_grpc.HealthStub).Check
        try:
            await self.calls.answer(check(health_pb2.HealthCheckRequest(), timeout=CONNECT_TIMEOUT))
        except ChannelClosedError:
            self.reason = "the client closes"
            return False
        except grpc.aio.AioRpcError as error:
            code, details = status_of(error)
            if code == "DEADLINE_EXCEEDED":
                self.reason = f"no answer within {CONNECT_TIMEOUT:g} s"
                return False
            if code in ("UNAVAILABLE", "CANCELLED"):
                self.reason = details.rpartition("last error: ")[2] or code
                if await self._refuses_plaintext(self.reason):
                    self.reason += _TLS_PORT
                return False
        self.reason = None
        self._speaks_tls = None  # another server may come in its place
        return True

    async def _refuses_plaintext(self, reason: str) -> bool:
        """Whether it has closed the connection because it speaks TLS; asked once."""
        if self._speaks_tls is None and any(text in reason for text in _REFUSALS):
            self._speaks_tls = await speaks_tls(self.endpoint.target)
        return bool(self._speaks_tls)

    @property
    def state(self) -> str:
        """gRPC's name for the channel's state, or ``"UNUSED"``."""
        return "UNUSED" if self._channel is None else self._channel.get_state().name

    async def aclose(self) -> None:
        """Close the channel; calls still open on it are cancelled.

        Nothing holds it afterwards: gRPC's thread ends with the last one that does.
        """
        self._is_closed = True
        channel, self._channel = self._channel, None
        self._stubs.clear()
        self._calls.clear()
        if channel is not None:
            await channel.close()
        await self.calls.wait_done()


class Endpoints:
    """Picks the connection to use.

    Attributes:
        current: The connection in use, or None while one is searched.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        options: Sequence[tuple[str, Any]],
        supervisor: Supervisor,
    ) -> None:
        self.current: Connection | None = None
        # In the order in which they are tried; one that fails goes to the end.
        self._connections = [Connection(endpoint, options) for endpoint in endpoints]
        self._supervisor = supervisor
        self._waiting = 0
        self._search_task: asyncio.Task[None] | None = None
        self._closed = False
        self._lost_at: float | None = None
        self._found = anyio.Event()

    def __iter__(self) -> Iterator[Connection]:
        """Iterate over all connections."""
        return iter(self._connections)

    def __len__(self) -> int:
        """Give how many there are."""
        return len(self._connections)

    def failed(self, connection: Connection, error: EtcdError) -> None:
        """Stop using a connection: the next one to ask looks for another endpoint first."""
        if connection is self.current:
            self.current = None
            if self._lost_at is None:
                self._lost_at = monotonic()
                logger.warning("endpoint %s is lost: %s", connection.endpoint.name, error)
            self._connections.remove(connection)
            self._connections.append(connection)

    async def wait_connected(self, deadline: float | None) -> Connection:
        """Wait until an endpoint answers.

        Raises:
            NoEndpointError: None did by `deadline` (in `time.monotonic`'s seconds).
            ClientClosedError: The client closes.
        """
        self._waiting += 1
        try:
            with anyio.move_on_after(None if deadline is None else deadline - monotonic()):
                while self.current is None and not self._closed:
                    if self._search_task is None or self._search_task.done():
                        self._found = anyio.Event()
                        self._search_task = self._supervisor.spawn(
                            self._search, "aioetcd endpoint search"
                        )
                    await self._found.wait()
        finally:
            self._waiting -= 1
        if self._closed:
            raise ClientClosedError("the client is closed")
        if self.current is None:
            raise self.unreachable()
        return self.current

    def unreachable(self) -> NoEndpointError:
        """Make the error that says why each endpoint failed."""
        reasons = {c.endpoint.name: c.reason or "no answer yet" for c in self._connections}
        told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        return NoEndpointError(f"no endpoint could be reached in time: {told}", reasons=reasons)

    async def _search(self) -> None:
        # gRPC itself waits before it connects to a refusing address again: up to 1 s, see
        # `channel_options`. Asking more often than that costs next to nothing.
        backoff = Backoff(0.05, 0.5)
        try:
            while self.current is None and self._waiting:
                await self._try_all()
                if self.current is None:
                    await anyio.sleep(backoff.next_delay())
        finally:
            self._found.set()

    async def _try_all(self) -> None:
        async with Group() as group:

            async def try_one(connection: Connection, done: anyio.Event) -> None:
                if await connection.probe() and self.current is None:
                    self.current = connection
                    if self._lost_at is not None:
                        seconds, self._lost_at = monotonic() - self._lost_at, None
                        name = connection.endpoint.name
                        logger.info("endpoint %s is in use after %.3f s", name, seconds)
                    self._found.set()
                    group.cancel_scope.cancel()
                done.set()

            for connection in list(self._connections):
                done = anyio.Event()
                group.start(try_one(connection, done), f"aioetcd try of {connection.endpoint.name}")
                with anyio.move_on_after(HEAD_START):
                    await done.wait()

    def close(self) -> None:
        """Let nobody wait for a connection any more."""
        self._closed = True
        self.current = None
        self._found.set()

    async def aclose(self) -> None:
        """Close every channel."""
        async with Group() as group:
            for connection in self._connections:
                group.start(connection.aclose(), f"aioetcd end of {connection.endpoint.name}")
