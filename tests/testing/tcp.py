"""Both ends of connections for the tests of the proxy, which see how a connection ends.

`Backend` and `Peer` take what comes at once, as programs do; `Wire` reads nothing unasked.
"""

import asyncio
import contextlib
import os
import random
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import cast

import anyio

from aioetcd.testing._sockets import close_with_reset, host_and_port, joined, unsent
from aioetcd.testing.proxy import FaultProxy
from tests.waiting import until

BOUND = 10.0


@dataclass
class Backend:
    """A TCP server that echoes; it knows what it received and how its connections ended."""

    name: bytes = b""
    received: bytearray = field(default_factory=bytearray)
    endings: list[str] = field(default_factory=list)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    port: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        writer.write(self.name)
        ending = "FIN"
        try:
            while data := await reader.read(65_536):
                self.received += data
                await self.notify()
                writer.write(data)
                await writer.drain()
        except ConnectionResetError:
            ending = "RST"
        self.endings.append(ending)
        await self.notify()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def wait_endings(self, count: int) -> None:
        with anyio.fail_after(BOUND):
            async with self.changed:
                await self.changed.wait_for(lambda: len(self.endings) >= count)

    async def wait_received(self, count: int) -> None:
        with anyio.fail_after(BOUND):
            async with self.changed:
                await self.changed.wait_for(lambda: len(self.received) >= count)


@contextlib.asynccontextmanager
async def running(backend: Backend) -> AsyncIterator[Backend]:
    """A backend that serves for the block."""
    server = await asyncio.start_server(backend.serve, "127.0.0.1", 0)
    backend.port = server.sockets[0].getsockname()[1]
    try:
        yield backend
    finally:
        server.close()
        for writer in backend.writers:
            writer.transport.abort()
        await server.wait_closed()


class Peer(asyncio.Protocol):
    """A client connection; unlike a StreamReader it keeps what came before a reset."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.received = bytearray()
        self.end: str | None = None
        self.writable = asyncio.Event()
        self.changed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's has another base
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.changed.set()

    def eof_received(self) -> bool:
        self.end = "FIN"
        self.changed.set()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if isinstance(exc, ConnectionResetError):
            self.end = "RST"
        self.changed.set()
        self.writable.set()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def reset(self) -> None:
        """Close with RST."""
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.transport.abort()

    async def send(self, data: bytes) -> None:
        """Write and wait until the kernel has most of it."""
        self.transport.write(data)
        await self.writable.wait()

    async def read(self, count: int) -> bytes:
        """Take so many bytes."""
        with anyio.fail_after(BOUND):
            while len(self.received) < count:
                assert self.end is None, self.end
                self.changed.clear()
                await self.changed.wait()
        data = bytes(self.received[:count])
        del self.received[:count]
        return data

    async def echo(self, data: bytes) -> None:
        """Prove that the way there and back is open."""
        await self.send(data)
        assert await self.read(len(data)) == data

    async def ending(self) -> tuple[bytes, str]:
        """What still came, and how the connection ended."""
        with anyio.fail_after(BOUND):
            while self.end is None:
                self.changed.clear()
                await self.changed.wait()
        return bytes(self.received), self.end

    async def silent(self, seconds: float = 0.15) -> bool:
        """Whether nothing comes for a while: absence can only be shown by waiting."""
        with anyio.move_on_after(seconds):
            while not self.received and self.end is None:
                self.changed.clear()
                await self.changed.wait()
            return False
        return True


@contextlib.asynccontextmanager
async def connected(proxy: FaultProxy) -> AsyncIterator[Peer]:
    """A connection through the proxy."""
    host, _, port = proxy.endpoint.rpartition(":")
    loop = asyncio.get_running_loop()
    _, peer = await loop.create_connection(Peer, host, int(port))
    try:
        yield peer
    finally:
        peer.transport.abort()


@dataclass
class End:
    """One end of a connection, as a bare socket: what it does not ask for stays in the kernel."""

    sock: socket.socket

    async def send(self, data: bytes) -> None:
        """Give all of it to the kernel."""
        with anyio.fail_after(BOUND):
            await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def fill(self) -> int:
        """Send until nothing is taken any more: every buffer on the way is full."""
        sent = 0
        progress = time.monotonic()
        while time.monotonic() - progress < 0.25:
            try:
                sent += self.sock.send(pattern(sent, 65_536))
                progress = time.monotonic()
            except BlockingIOError:
                await anyio.sleep(0.005)  # absence of progress can only be shown by waiting
        return sent

    async def read(self, count: int) -> bytes:
        """Take so many bytes."""
        data = bytearray()
        with anyio.fail_after(BOUND):
            while len(data) < count:
                more = await asyncio.get_running_loop().sock_recv(self.sock, count - len(data))
                assert more, "FIN"
                data += more
        return bytes(data)

    async def read_some(self) -> bytes:
        """Take what has come, at least a byte."""
        with anyio.fail_after(BOUND):
            return await asyncio.get_running_loop().sock_recv(self.sock, 1 << 20)

    async def read_until_silent(self, seconds: float = 0.2) -> bytes:
        """Take what comes, until nothing does for a while."""
        data = bytearray()
        while True:
            more = b""
            with anyio.move_on_after(seconds):
                more = await asyncio.get_running_loop().sock_recv(self.sock, 1 << 20)
            if not more:
                return bytes(data)
            data += more

    async def ending(self) -> tuple[bytes, str]:
        """What still comes, and how the connection ended."""
        data = bytearray()
        with anyio.fail_after(BOUND):
            while True:
                try:
                    more = await asyncio.get_running_loop().sock_recv(self.sock, 1 << 20)
                except ConnectionResetError:
                    return bytes(data), "RST"
                if not more:
                    return bytes(data), "FIN"
                data += more

    async def finish(self) -> None:
        """Send FIN behind what was sent; reading goes on."""
        self.sock.shutdown(socket.SHUT_WR)

    async def reset(self) -> None:
        """Send RST, when all that was sent has reached the peer's kernel."""
        await until(lambda: not unsent(self.sock))
        close_with_reset(self.sock)


def descriptors() -> Counter[str]:
    """What this process has open, as the kernel calls it, and how often."""
    found: Counter[str] = Counter()
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one of the listing
            found[os.readlink(f"/proc/self/fd/{descriptor}")] += 1
    return found


@dataclass
class Wire:
    """A connection through a proxy, by its ends."""

    client: End
    server: End

    def ends(self, way: str) -> tuple[End, End]:
        """The end that sends and the one that receives, for "up" (to the server) or "down"."""
        return (self.client, self.server) if way == "up" else (self.server, self.client)


@contextlib.asynccontextmanager
async def wired(proxy: FaultProxy) -> AsyncIterator[Wire]:
    """A connection through a proxy whose target is ours for the block."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as client:
        listening.setblocking(False)
        client.setblocking(False)
        proxy.retarget(joined(*listening.getsockname()))
        with anyio.fail_after(BOUND):
            await loop.sock_connect(client, host_and_port(proxy.endpoint))
            server, _ = await loop.sock_accept(listening)
        with server:
            yield Wire(End(client), End(server))


def pattern(start: int, size: int) -> bytes:
    """A piece of an endless sequence of bytes in which a gap or a repetition is seen."""
    lead = start % len(_PATTERN)
    return (_PATTERN * (size // len(_PATTERN) + 2))[lead : lead + size]


_PATTERN = random.Random(0).randbytes(10_007)
