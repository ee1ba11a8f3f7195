"""What the proxy needs of sockets: addresses, listening, and what the kernel knows of one."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import select
import socket
import struct
import sys
from array import array
from collections.abc import Callable

BACKLOG = 1024

_SIOCOUTQNSD = 0x894B
_LINGER_ZERO = struct.pack("ii", 1, 0)
_OUT_OF_DESCRIPTORS = 0.1


def host_and_port(target: str) -> tuple[str, int]:
    """Take `host:port` apart, which may have a scheme."""
    address = target.partition("://")[2] or target
    host, colon, port = address.rstrip("/").rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65_535:
        raise ValueError(f"target must be 'host:port', not {target!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def joined(host: str, port: int) -> str:
    """Put host and port together."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bind(host: str, port: int) -> socket.socket:
    """Take a port, without listening on it; 0 is a free one.

    Raises:
        OSError: Somebody listens on it.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setblocking(False)
        sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def port_of(sock: socket.socket) -> int:
    """The port that a socket is bound to."""
    port: int = sock.getsockname()[1]
    return port


class Listener:
    """A listening socket; each connection goes to a callback, which then owns it.

    Opened and closed without awaiting, so that no cancellation comes in between: a socket that
    listens is either somebody's or closed.

    Args:
        bound: A bound socket. It is closed with the listener, or where listening fails.
        on_connection: Gets each connection, which does not block. It must not raise.
    """

    def __init__(
        self, bound: socket.socket, on_connection: Callable[[socket.socket], None]
    ) -> None:
        self._socket = bound
        self._on_connection = on_connection
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        try:
            bound.listen(BACKLOG)
            self._loop.add_reader(bound, self._accept)
        except BaseException:
            bound.close()
            raise
        self.port = port_of(bound)

    def close(self) -> None:
        """Listen no longer; the kernel resets what it has accepted and nobody took."""
        if self._pause is not None:
            self._pause.cancel()
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._socket.close()

    def _accept(self) -> None:
        for _ in range(BACKLOG):
            try:
                sock, _ = self._socket.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as exc:  # no descriptor is free: asking again at once would spin
                self._loop.call_exception_handler(
                    {"message": "the proxy cannot accept a connection", "exception": exc}
                )
                self._loop.remove_reader(self._socket)
                self._pause = self._loop.call_later(
                    _OUT_OF_DESCRIPTORS, self._loop.add_reader, self._socket, self._accept
                )
                return
            sock.setblocking(False)
            self._on_connection(sock)
            if self._socket.fileno() < 0:  # the callback closed us
                return


def no_delay(sock: socket.socket) -> None:
    """Let each write leave by itself."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def close_with_reset(sock: socket.socket) -> None:
    """Send RST now; what the kernel still holds is lost."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
    sock.close()


def unsent(sock: socket.socket) -> int:
    """Bytes that wait in the kernel for the peer's window; 0 where it cannot be asked."""
    if sys.platform != "linux":
        return 0
    answer = array("i", [0])
    with contextlib.suppress(OSError, ValueError):
        fcntl.ioctl(sock.fileno(), _SIOCOUTQNSD, answer)
    return answer[0]


def was_reset(sock: socket.socket) -> bool:
    """Whether the peer has reset a connection, although there may be bytes to read before that."""
    poll = select.poll()
    poll.register(sock, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))
