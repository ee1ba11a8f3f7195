"""What the tests of the transport have in common."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aioetcd import Client
from aioetcd._transport.backoff import Backoff
from aioetcd._transport.transport import Transport
from aioetcd.config.client import Config
from aioetcd.config.endpoints import parse_endpoints
from aioetcd.testing import EtcdServer
from aioetcd.testing._process import HOST
from tests.waiting import until

# The size of a key or value by which a request or its answer is told from what gRPC still has to
# say about the call before: some ten bytes that may come at any time.
LARGE = 10_000

# What a deadline may be missed by, early or late, on a busy machine.
SLACK = 0.3


def config_of(*endpoints: str, timeout: float | None = 10.0) -> Config:
    """What a client is told that is told nothing but this."""
    return Config(
        endpoints=parse_endpoints(endpoints),
        timeout=timeout,
        keepalive_time=10.0,
        keepalive_timeout=5.0,
        tls=None,
        user=None,
        auto_sync=None,
        observers=(),
    )


@contextlib.asynccontextmanager
async def connected(*endpoints: str, timeout: float = 10.0) -> AsyncIterator[Transport]:
    """A transport as a client makes it."""
    transport = Transport(config_of(*endpoints, timeout=timeout))
    try:
        yield transport
    finally:
        await transport.aclose()


async def exists(client: Client, key: str) -> bool:
    """Whether there is such a key."""
    return (await client.kv.get(key)).kv is not None


def was_refused(transport: Transport) -> bool:
    """Whether an endpoint was tried in vain by now."""
    return all(member.reason is not None for member in transport.picker.members)


class FewPauses(Backoff):
    """The pauses of a call before it is sent again: some as they are, then one beyond its deadline.

    So it ends after a known number of tries, and with what the last one was told. Else a try may be
    in flight at the deadline, on a slow machine the first, which is another failure.

    Attributes:
        pauses: Those that were made.
    """

    NUMBER = 4

    def __init__(self, first: float, most: float) -> None:
        super().__init__(first, most)
        self.pauses: list[float] = []

    def next_delay(self) -> float:
        """Give the seconds to wait now."""
        if len(self.pauses) == self.NUMBER:
            return 1000.0
        self.pauses.append(super().next_delay())
        return self.pauses[-1]


class Forgetful:
    """A balancer that forgets a connection that was idle: it goes on to take what is sent on it.

    Attributes:
        connections: How many were made.
    """

    def __init__(self, server: EtcdServer) -> None:
        self.connections = 0
        self._server = server
        self._forgotten = 0
        self._writers: set[asyncio.StreamWriter] = set()

    def forget(self) -> None:
        """Drop what comes on the connections of now, in silence."""
        self._forgotten = self.connections

    @contextlib.asynccontextmanager
    async def listening(self, host: str = HOST, port: int = 0) -> AsyncIterator[str]:
        """Give the endpoint to connect to."""
        listener = await asyncio.start_server(self._connected, host, port)
        try:
            yield f"{host}:{listener.sockets[0].getsockname()[1]}"
        finally:
            listener.close()
            for writer in self._writers:
                writer.transport.abort()
            await until(lambda: not self._writers)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        self._writers.add(writer)
        host, _, port = self._server.endpoint.partition(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))

        async def pump(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while chunk := await source.read(65536):
                    if number > self._forgotten:
                        to.write(chunk)
            to.close()

        try:
            await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
        finally:
            self._writers.discard(writer)
