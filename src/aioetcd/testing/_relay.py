"""One relayed TCP connection."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct
import sys
import time
from array import array
from collections import deque
from dataclasses import dataclass, field

import anyio

from aioetcd.testing._link import CutBudget, Direction, Link

READ_SIZE = 65_536
"""Bytes taken from a socket at once; also half of what asyncio's reader holds before it pauses."""

_CLOSE_GRACE = 1.0
_SIOCOUTQNSD = 0x894B
_LINGER_ZERO = struct.pack("ii", 1, 0)
_CLOSED_SOCKET = (OSError, ValueError)  # asyncio's and uvloop's way to say so


@dataclass(slots=True, eq=False)
class _Flow:
    """One direction of one connection: `fill` reads and stamps, `empty` writes when due."""

    link: Link
    relay: Relay
    direction: Direction
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    _queue: deque[tuple[float, bytes]] = field(default_factory=deque)
    _queued: int = 0
    _last_due: float = 0.0
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)
    _room: asyncio.Event = field(default_factory=asyncio.Event)

    async def fill(self) -> None:
        while True:
            await self.link.wait_not_hanging()
            try:
                data = await self.reader.read(READ_SIZE)
            except OSError:
                await self._broken(self.direction)
                return
            self._last_due = max(self._last_due, self.link.due())
            self._queue.append((self._last_due, data))
            self._queued += len(data)
            self._arrived.set()
            if not data:
                return
            while self._queued >= self.link.buffer_limit:
                self._room.clear()
                await self._room.wait()

    async def empty(self) -> None:
        while True:
            while not self._queue:
                self._arrived.clear()
                await self._arrived.wait()
            due, data = self._queue.popleft()
            wait = due - time.monotonic()
            if wait > 0:
                await anyio.sleep(wait)
            try:
                if not data:
                    await self._end()
                    return
                await self._forward(memoryview(data))
            except OSError:
                await self._broken(self.direction.opposite)
                return
            self._queued -= len(data)
            self._room.set()

    async def _forward(self, data: memoryview) -> None:
        link = self.link
        while data:
            size = link.piece(len(data))
            await link.pace(self.direction, size)
            await link.wait_not_hanging()
            if self.relay.is_over:  # the cancellation is on its way
                await anyio.sleep_forever()
            if self.direction in link.swallowed:
                self.relay.holes.add(self.direction)
                link.bytes_swallowed += len(data)
                link.changed()
                return
            budget = link.budget if self.direction is Direction.FROM_SERVER else None
            if budget is not None:
                if budget.claimed:  # another connection carries the last byte: the cut comes
                    await link.wait_until(lambda: link.budget is not budget)  # noqa: B023
                    continue
                size = min(size, budget.left)
                budget.left -= size
                budget.claimed = budget.left == 0
            await self._write(data[:size], budget)
            if link.chunk is not None:
                await asyncio.sleep(0)  # some loops gather the writes of one turn
            data = data[size:]

    async def _write(self, piece: memoryview, budget: CutBudget | None) -> None:
        try:
            if piece:
                self.writer.write(piece)
                self.link.count(self.direction, len(piece))
                await self.writer.drain()
            if budget is not None and budget.claimed:
                await self._sent()
                await anyio.sleep(budget.pause or 0)
        finally:  # also where this connection breaks meanwhile: the others wait for it
            if budget is not None and budget.claimed:
                self.link.spend(budget)

    async def _sent(self) -> None:
        """Wait until the kernel has sent everything: a reset throws away what it still holds."""
        sock = self.writer.get_extra_info("socket")
        while sock is not None and _unsent(sock):
            await anyio.sleep(0.001)

    async def _end(self) -> None:
        await self.link.wait_not_hanging()
        if self.direction in self.link.swallowed:
            self.relay.holes.add(self.direction)
            await anyio.sleep_forever()
        if self.writer.can_write_eof():
            self.writer.write_eof()

    async def _broken(self, news: Direction) -> None:
        """A side was reset; the other learns it unless the link swallows that news as well."""
        await self.link.wait_not_hanging()
        if news in self.link.swallowed:
            self.relay.holes.add(news)
            await anyio.sleep_forever()
        self.relay.reset()


class Relay:
    """One client connection and its connection to the target.

    Made and run by the task that asyncio's server starts for the connection; it ends with both
    sockets closed. `reset` and `finish` may be called from any task of the loop.
    """

    def __init__(
        self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.holes: set[Direction] = set()
        self._link = link
        self._streams = [(reader, writer)]
        self._scope = anyio.CancelScope()
        self._finishing = False

    @property
    def is_over(self) -> bool:
        """Whether it was reset or finished, so that nothing may be written any more."""
        return self._scope.cancel_called

    def reset(self) -> None:
        """Send RST both ways; whatever is still queued is lost."""
        for _, writer in self._streams:
            _reset(writer)
        self._scope.cancel()

    def finish(self) -> None:
        """Send FIN both ways; whatever is still queued is lost."""
        self._finishing = True
        self._scope.cancel()

    async def run(self, host: str, port: int) -> None:
        """Relay until both ends have closed, or one was reset, or the link was cut."""
        try:
            with self._scope:
                await self._link.wait_not_hanging()
                if await self._connect(host, port):
                    await self._relay()
            if self._finishing:
                await self._say_goodbye()
        finally:
            with anyio.move_on_after(_CLOSE_GRACE, shield=True):
                await self._close()

    async def _connect(self, host: str, port: int) -> bool:
        try:
            stream = await asyncio.open_connection(host, port, limit=READ_SIZE)
        except OSError:
            self._link.connect_failures += 1
            self.reset()
            return False
        self._streams.append(stream)
        for _, writer in self._streams:
            writer.transport.set_write_buffer_limits(high=0)
        return True

    async def _relay(self) -> None:
        (client_in, client_out), (server_in, server_out) = self._streams
        up = _Flow(self._link, self, Direction.FROM_CLIENT, client_in, server_out)
        down = _Flow(self._link, self, Direction.FROM_SERVER, server_in, client_out)
        async with anyio.create_task_group() as tasks:
            for flow in (up, down):
                tasks.start_soon(flow.fill)
                tasks.start_soon(flow.empty)

    async def _say_goodbye(self) -> None:
        """FIN, then read on to the peer's own: closing with bytes unread would send RST."""
        with anyio.move_on_after(_CLOSE_GRACE), contextlib.suppress(OSError):
            for _, writer in self._streams:
                if writer.can_write_eof():
                    writer.write_eof()
            for reader, _ in self._streams:
                while await reader.read(READ_SIZE):
                    pass

    async def _close(self) -> None:
        for _, writer in self._streams:
            if writer.transport.get_write_buffer_size():
                writer.transport.abort()
            writer.close()
        for _, writer in self._streams:
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(*_CLOSED_SOCKET):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
    writer.transport.abort()


def _unsent(sock: socket.socket) -> int:
    """Bytes that wait in the kernel for the peer's window; 0 where it cannot be asked."""
    if sys.platform != "linux":
        return 0
    answer = array("i", [0])
    with contextlib.suppress(*_CLOSED_SOCKET):
        fcntl.ioctl(sock.fileno(), _SIOCOUTQNSD, answer)
    return answer[0]


def stop_listening(server: asyncio.Server) -> None:
    """Refuse new connections from now on; `stop_accepting` must follow, but may follow later.

    What the kernel has queued for asyncio is reset. The port is free to be bound, and to be
    listened on, by a socket with `SO_REUSEADDR`.
    """
    loop = asyncio.get_running_loop()
    for listening in server.sockets:
        loop.remove_reader(listening.fileno())
        try:
            listening.shutdown(socket.SHUT_RD)
        except (OSError, TypeError):
            # Only Linux can. Under uvloop there is no need: it hands over at once what it accepts.
            server.close()


async def stop_accepting(server: asyncio.Server) -> None:
    """Stop listening, and let what the kernel has accepted come out of asyncio to its handler.

    A server that is closed while asyncio is about to hand it a connection loses that: its socket is
    left to the garbage collector. So first nothing more is accepted, and then it is closed.
    """
    loop = asyncio.get_running_loop()
    for listening in server.sockets:
        loop.remove_reader(listening.fileno())
    await _turns()
    server.close()
    await _turns()


async def _turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def host_and_port(target: str) -> tuple[str, int]:
    """Take `host:port` apart, which may have a scheme."""
    address = target.partition("://")[2] or target
    host, colon, port = address.rstrip("/").rpartition(":")
    if not colon or not host or not port.isdigit():
        raise ValueError(f"target must be 'host:port', not {target!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def joined(host: str, port: int) -> str:
    """Put host and port together."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
