"""One relayed TCP connection."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from aioetcd.testing._flow import READ_SIZE, Flow
from aioetcd.testing._link import Direction, Link
from aioetcd.testing._sockets import close_with_reset, no_delay

_CLOSE_GRACE = 1.0
_READS_AT_ONCE = 64

# What a connection tells that was made, and reset before we saw it: its bytes can still be read.
_RESET = (errno.ECONNRESET, errno.EPIPE)

_Infos = list[tuple[Any, ...]]
"""What `socket.getaddrinfo` gives."""


class Relay:
    """One client connection and its connection to the target.

    It lives in callbacks of the event loop and has no task: whoever ends it, by `reset` or as a
    fault, has closed its sockets when the call returns, and nothing can cancel that half-way.

    Made by the proxy, which owns it through its link. It connects when `resume` is first called,
    or when the link hangs no longer.

    Args:
        link: The faults and counters that it shares.
        client: The client's connection, which does not block. It is closed here.
        host: Where the target is; a name is resolved in a thread of the loop's.
        port: The target's port.
    """

    def __init__(self, link: Link, client: socket.socket, host: str, port: int) -> None:
        self.holes: set[Direction] = set()
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._target = (host, port)
        self._client = client
        self._server: socket.socket | None = None
        self._flows: tuple[Flow, ...] = ()
        self._dialing: asyncio.Handle | None = None
        self._addresses: _Infos = []
        self._resolving: asyncio.Future[_Infos] | None = None
        self._passed: set[Direction] = set()
        self._grace: asyncio.TimerHandle | None = None
        self._is_over = False
        no_delay(client)

    # --- what the link tells it ---------------------------------------------------------------

    def resume(self) -> None:
        """Go by the faults that are in force now."""
        if self._is_over or self._grace is not None:
            return
        for flow in self._flows:
            flow.resume()
        if self._dialing is None and not self._link.hanging:
            # In the next turn: a client in this loop learns first that it is connected, and then
            # that the target is dead.
            self._dialing = self._loop.call_soon(self._resolve)

    def reset(self) -> None:
        """Send RST both ways; whatever is still queued is lost."""
        self._close(close_with_reset)

    def finish(self) -> None:
        """Send FIN both ways; whatever is still queued is lost."""
        if self._is_over or self._grace is not None:
            return
        self._grace = self._loop.call_later(_CLOSE_GRACE, self._close)
        if not self._flows:
            self._stop_dialing()
        for flow in self._flows:
            flow.stop()
        # Read on to the peer's own end: closing with bytes unread would send RST.
        open_ones = {sock for sock in (self._client, self._server) if sock is not None}
        for sock in list(open_ones):
            if not self._is_over:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_WR)
                self._loop.add_reader(sock, self._discard, sock, open_ones)

    # --- what its flows tell it ---------------------------------------------------------------

    def lost(self, direction: Direction) -> None:
        """Know that the peer that sends in this direction has reset the connection."""
        for flow in self._flows:
            if flow.direction is not direction:
                flow.stop()  # there is nobody to write to
        for flow in self._flows:
            if flow.direction is direction:
                flow.source_was_reset()

    def fin_passed(self, direction: Direction) -> None:
        """Know that the end of this direction was passed on."""
        self._passed.add(direction)
        if len(self._passed) == len(self._flows):
            self._close()

    # --- connecting ---------------------------------------------------------------------------

    def _resolve(self) -> None:
        if self._link.hanging:
            self._dialing = None
            return
        host, port = self._target
        look_up: Callable[..., _Infos]
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        try:
            self._addresses = look_up(flags=socket.AI_NUMERICHOST)
        except (OSError, UnicodeError):  # a name: asking for it takes time
            self._resolving = self._loop.run_in_executor(None, look_up)
            self._resolving.add_done_callback(self._resolved)
        else:
            self._dial()

    def _resolved(self, infos: asyncio.Future[_Infos]) -> None:
        if infos.cancelled() or self._is_over or self._grace is not None:
            return
        if infos.exception() is None:
            self._addresses = infos.result()
        self._dial()

    def _dial(self) -> None:
        while self._addresses:
            family, kind, protocol, _, address = self._addresses.pop(0)
            try:
                self._server = socket.socket(family, kind, protocol)
            except OSError:
                continue
            self._server.setblocking(False)
            if self._server.connect_ex(address) in (0, errno.EINPROGRESS):
                self._loop.add_writer(self._server, self._dialed)
                return
            self._hang_up()
        self._link.connect_failures += 1
        self.reset()

    def _hang_up(self) -> None:
        if self._server is not None:
            self._loop.remove_writer(self._server)
            self._server.close()
            self._server = None

    def _stop_dialing(self) -> None:
        if self._dialing is not None:
            self._dialing.cancel()
        if self._resolving is not None:
            self._resolving.cancel()
        self._hang_up()

    def _dialed(self) -> None:
        assert self._server is not None
        error = self._server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error and error not in _RESET:
            self._hang_up()
            self._dial()
            return
        self._loop.remove_writer(self._server)
        no_delay(self._server)
        link, client, server = self._link, self._client, self._server
        self._flows = (
            Flow(link, Direction.FROM_CLIENT, client, server, self),
            Flow(link, Direction.FROM_SERVER, server, client, self),
        )
        if error:
            self.lost(Direction.FROM_SERVER)
        self.resume()

    # --- ending -------------------------------------------------------------------------------

    def _discard(self, sock: socket.socket, open_ones: set[socket.socket]) -> None:
        for _ in range(_READS_AT_ONCE):
            try:
                if sock.recv(READ_SIZE):
                    continue
            except BlockingIOError:
                return
            except OSError:
                pass
            self._loop.remove_reader(sock)
            open_ones.discard(sock)
            if not open_ones:
                self._close()
            return

    def _close(self, close: Callable[[socket.socket], None] = socket.socket.close) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._link.relays.pop(self, None)
        if self._grace is not None:
            self._grace.cancel()
        try:
            for flow in self._flows:
                flow.stop()
        finally:
            if not self._flows:
                self._stop_dialing()
            for sock in (self._client, self._server):
                if sock is not None:
                    self._loop.remove_reader(sock)  # of `finish`
                    close(sock)
            self._link.changed()
