"""A TCP proxy on the loopback that breaks connections on demand.

Put it between a client and an etcd member (or between two members: give its endpoint as the
advertised peer URL) and the network can fail in every way a test needs, without privileges:

    async with FaultProxy(server.endpoint) as proxy:
        async with Client(proxy.endpoint) as client:
            await client.kv.put("k", "v")
            proxy.cut()                       # RST, as by a crashed router
            proxy.blackhole(client_to_server=False)
            await proxy.heal()

Counters (`connections_total`, `bytes_from_server`, `cuts` …) prove that a fault took place;
`wait_until` waits for them, so that no test has to sleep.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Self

import anyio

from aioetcd.testing._link import CutBudget, Direction, Link, Pace
from aioetcd.testing._relay import Relay
from aioetcd.testing._sockets import (
    Listener,
    bind,
    close_with_reset,
    host_and_port,
    joined,
    port_of,
)

__all__ = ["FaultProxy"]


class FaultProxy:
    """A TCP proxy whose faults are switched on and off while connections are open.

    Made by a test, opened by `async with` (or `start`) and closed by leaving it (or `aclose`),
    which resets what is still open. Both are done without awaiting and it has no task, so that no
    cancellation, whenever it comes, leaves a socket behind. Entering and leaving may happen in
    different tasks, so it fits a fixture; all tasks of the loop may share it.

    Faults add up and stay until `heal`. They take effect at once: after `blackhole` or `hang`
    returns not one more byte is written (what the kernel has got already is under way), and a
    reset has left. RST and FIN pass through as what they are, behind the bytes that came before
    them and as late; only a peer that takes no bytes for half a second does not keep a RST
    waiting. At most `buffer_bytes` a direction and connection are held in memory while a delay is
    set, 128 KiB or so otherwise; then the sender feels back-pressure.

    Three things a proxy cannot do: it accepts before it knows whether the target does (a dead
    target therefore looks like an accepted connection that is reset; use `refuse` for "connection
    refused"), it cannot drop SYNs (a new connection through a blackhole is accepted and then
    silent), and on systems other than Linux `cut_after` may lose bytes that a client with a full
    receive window had not taken yet.

    Args:
        target: `"host:port"` of the server, with or without `http://` or `https://`.
        host: The address to listen on.
        port: The port to listen on; 0 picks a free one. It stays the same until the proxy closes.
        seed: Seeds the jitter of `delay`, so that a run can be repeated.
        buffer_bytes: The most one direction of one connection holds while a delay is set. The
            throughput then reaches `buffer_bytes / delay`.

    Raises:
        ValueError: The target is not `host:port`.
    """

    def __init__(
        self,
        target: str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        seed: int | None = None,
        buffer_bytes: int = 16 * 1024 * 1024,
    ) -> None:
        if buffer_bytes < 1:
            raise ValueError("buffer_bytes must be positive")
        self._target = host_and_port(target)
        self._address = (host, port)
        self._link = Link(random.Random(seed), buffer_bytes)
        self._listener: Listener | None = None
        self._reserved: socket.socket | None = None
        self._refuses = False
        self._started = False
        self._closed = False

    # --- life -------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def start(self) -> None:
        """Listen, or refuse where `refuse` said so. Does nothing when it was started already.

        Raises:
            OSError: The port is taken.
            RuntimeError: The proxy was closed.
        """
        if self._closed:
            raise RuntimeError("this proxy is closed")
        if self._started:
            return
        self._reserved = bind(*self._address)
        self._address = (self._address[0], port_of(self._reserved))
        if not self._refuses:
            self._listen()
        self._started = True

    async def aclose(self) -> None:
        """Stop listening and reset what is open: every socket is closed, and the port is free.

        It does not wait for anything, so that it cannot be cancelled half-way.
        """
        self._closed = True
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None
        self._link.budget = None
        for relay in list(self._link.relays):
            relay.reset()
        self._link.changed()

    @property
    def endpoint(self) -> str:
        """`"host:port"`, for a client's endpoint list.

        Raises:
            RuntimeError: The proxy was never opened.
        """
        host, port = self._address
        if not port:
            raise RuntimeError("the proxy has no port yet: enter it first")
        return joined(host, port)

    @property
    def target(self) -> str:
        """`"host:port"` of the server that new connections go to."""
        return joined(*self._target)

    # --- faults -----------------------------------------------------------------------------

    def cut(self) -> int:
        """Reset (RST) every open connection on both sides, and give their number."""
        return self._link.cut()

    def close_connections(self) -> int:
        """End (FIN) every open connection on both sides, as by a server that stops in order.

        Bytes that the proxy still holds are dropped. A peer that does not close its own side
        within a second is closed on. Gives the number of connections.
        """
        relays = list(self._link.relays)
        for relay in relays:
            relay.finish()
        return len(relays)

    def refuse(self) -> None:
        """Refuse new connections, as where no process listens; open ones go on.

        A connection that the kernel has accepted and the loop has not seen yet is reset. The port
        stays reserved for `accept` and `heal`. Before `start` it lets the proxy begin so.

        Raises:
            OSError: Another process took the port in this moment.
        """
        self._refuses = True
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            self._reserved = bind(*self._address)

    async def accept(self) -> None:
        """Accept new connections again after `refuse`, on the same port.

        Raises:
            OSError: Another process listens on the port, although it was reserved.
        """
        self._refuses = False
        if self._started and not self._closed and self._listener is None:
            self._listen()

    def hang(self) -> None:
        """Neither read nor forward anything, as by a server process that was stopped.

        This is true for open connections and for new ones, which are accepted but do not reach
        the target. Nothing is lost: all of them go on where they were after `heal`.
        """
        self._link.hanging = True
        self._link.faults_changed()

    def blackhole(self, *, client_to_server: bool = True, server_to_client: bool = True) -> None:
        """Swallow every byte in the directions given; the connections stay open.

        FIN and RST are swallowed as well, so the far side does not learn that the near one left.
        A direction given as `False` is open (again). A connection that lost bytes is reset when
        that direction opens again, for no TCP stream goes on with a hole in it.
        """
        swallowed = {Direction.FROM_CLIENT} if client_to_server else set()
        if server_to_client:
            swallowed.add(Direction.FROM_SERVER)
        self._link.swallowed = frozenset(swallowed)
        self._link.reset_holes()
        self._link.faults_changed()

    def delay(self, seconds: float, jitter: float = 0.0) -> None:
        """Let every byte arrive later, each way, in order and without limiting the throughput.

        Args:
            seconds: The delay of each direction; a round trip takes twice as long.
            jitter: Up to so many seconds more, uniformly random per read of the proxy.
        """
        if seconds < 0 or jitter < 0:
            raise ValueError("seconds and jitter must not be negative")
        self._link.delay, self._link.jitter = seconds, jitter
        self._link.faults_changed()

    def rate(self, bytes_per_second: float) -> None:
        """Limit the throughput of each direction, shared by all connections.

        What waits for its turn at another rate waits for it at this one.
        """
        if bytes_per_second <= 0:
            raise ValueError("bytes_per_second must be positive")
        self._link.pace = Pace(bytes_per_second)
        self._link.faults_changed()

    def chunk(self, size: int = 1) -> None:
        """Write at most `size` bytes at a time, each in a system call of its own."""
        if size < 1:
            raise ValueError("size must be positive")
        self._link.chunk = size
        self._link.faults_changed()

    def cut_after(self, size: int, *, pause: float = 0.0) -> anyio.Event:
        """Reset every connection as soon as exactly `size` more bytes from the server passed.

        The bytes are counted over all connections, as they leave towards the clients. The reset
        follows the last of them and does not wait for another; with 0 it takes the place of the
        next byte. It fires once and spares connections made afterwards. Another call, or
        `hold_after`, replaces it; `heal` disarms it.

        The next byte need not belong to the answer of the next call: with gRPC it may be what
        HTTP/2 still has to say about an earlier one (the answer to a ping, a window update), and
        the request may not have arrived by then. To lose the answer to a request that surely has,
        use ``blackhole(client_to_server=False)``, wait for the request's effect, then `cut` or
        `heal`.

        All bytes are in the peer's kernel by then, but a program may see the reset before it reads
        them: a gRPC client does, and drops most of what came just before. To cut between two
        messages use a `pause`, or `hold_after` and then `cut`.

        Args:
            size: The number of bytes.
            pause: Seconds from the last byte to the reset, in which no more bytes pass.

        Returns:
            An event that is set when the cut was made: `await event.wait()`, `event.is_set()`.
        """
        if pause < 0:
            raise ValueError("pause must not be negative")
        return self._arm(size, pause)

    def hold_after(self, size: int) -> anyio.Event:
        """Stop all bytes from the server after exactly `size` more of them, until `cut` or `heal`.

        Counted as in `cut_after`. Nothing is lost: without a `cut` the rest follows after `heal`.

        Returns:
            An event that is set when the last of the bytes has left and the hold has begun.
        """
        return self._arm(size, None)

    def retarget(self, target: str) -> None:
        """Lead new connections to another server; open ones stay where they are."""
        self._target = host_and_port(target)

    async def heal(self) -> None:
        """End every fault: accept, forward, undelayed and unlimited.

        Bytes that a delay holds still come at their time. Connections that lost bytes in a
        `blackhole` are reset. The target stays as `retarget` left it.
        """
        link = self._link
        link.swallowed = frozenset()
        link.delay = link.jitter = 0.0
        link.pace = link.chunk = link.budget = None
        link.reset_holes()
        link.hanging = False
        link.faults_changed()
        await self.accept()

    def relay(self, connection: socket.socket) -> None:
        """Relay a connection that somebody else accepted, as if it had come here; it is ours now.

        The proxy need not be started for that.
        """
        if self._closed:
            close_with_reset(connection)
            return
        connection.setblocking(False)
        link = self._link
        relay = Relay(link, connection, *self._target)
        link.relays[relay] = None
        link.connections_total += 1
        relay.resume()
        link.changed()

    # --- proof ------------------------------------------------------------------------------

    @property
    def connections_total(self) -> int:
        """Connections accepted so far."""
        return self._link.connections_total

    @property
    def connections_open(self) -> int:
        """Connections that are open now, half-open ones included."""
        return len(self._link.relays)

    @property
    def connect_failures(self) -> int:
        """Connections that were reset because the target could not be reached."""
        return self._link.connect_failures

    @property
    def bytes_from_server(self) -> int:
        """Bytes that came from the server and were passed on to a client."""
        return self._link.bytes_passed[Direction.FROM_SERVER]

    @property
    def bytes_from_client(self) -> int:
        """Bytes that came from a client and were passed on to the server."""
        return self._link.bytes_passed[Direction.FROM_CLIENT]

    @property
    def writes_from_server(self) -> int:
        """Writes towards the clients: with `chunk(1)` as many as bytes."""
        return self._link.writes[Direction.FROM_SERVER]

    @property
    def writes_from_client(self) -> int:
        """Writes towards the server."""
        return self._link.writes[Direction.FROM_CLIENT]

    @property
    def bytes_swallowed(self) -> int:
        """Bytes that a `blackhole` took, both ways."""
        return self._link.bytes_swallowed

    @property
    def cuts(self) -> int:
        """Connections reset by `cut` and `cut_after`."""
        return self._link.cuts

    async def wait_until(
        self, condition: Callable[[FaultProxy], bool], *, timeout: float = 10.0
    ) -> None:
        """Wait for a condition over the counters; it is looked at whenever one changes.

        Raises:
            TimeoutError: It did not come true in `timeout` seconds; the text has the counters.
        """
        with anyio.move_on_after(timeout):
            await self._link.wait_until(lambda: condition(self))
            return
        raise TimeoutError(f"the condition did not come true in {timeout} s: {self!r}")

    async def wait_for_connections(self, count: int, *, timeout: float = 10.0) -> None:
        """`wait_until` at least `count` connections have been accepted since the start."""
        await self.wait_until(lambda proxy: proxy.connections_total >= count, timeout=timeout)

    def __repr__(self) -> str:
        return (
            f"<FaultProxy {joined(*self._address)} -> {self.target}"
            f" connections={self.connections_open}/{self.connections_total} cuts={self.cuts}"
            f" from_client={self.bytes_from_client} from_server={self.bytes_from_server}"
            f" swallowed={self.bytes_swallowed}>"
        )

    # --- inside -----------------------------------------------------------------------------

    def _arm(self, size: int, pause: float | None) -> anyio.Event:
        if size < 0:
            raise ValueError("size must not be negative")
        budget = CutBudget(size, anyio.Event(), pause)
        self._link.budget = budget
        self._link.faults_changed()
        return budget.fired

    def _listen(self) -> None:
        bound, self._reserved = self._reserved or bind(*self._address), None
        self._listener = Listener(bound, self.relay)
