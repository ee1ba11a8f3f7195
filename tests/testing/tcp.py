"""A backend and a client for the tests of the proxy, which see how a connection ends."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import cast

import anyio

from aioetcd.testing.proxy import FaultProxy

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
