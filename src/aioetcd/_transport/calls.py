"""What services and recipes ask etcd through: the one seam between them and the transport."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from aioetcd._transport.methods import Method, Request, Response
from aioetcd.config.endpoints import Endpoint
from aioetcd.config.timeouts import DEFAULT, Default
from aioetcd.errors import EtcdError

Response_co = TypeVar("Response_co", covariant=True)


class Answers(Protocol[Response_co]):
    """The answers of a server stream."""

    def __aiter__(self) -> Answers[Response_co]:
        """Iterate over them."""
        ...

    async def __anext__(self) -> Response_co:
        """Give the next one."""
        ...

    def close(self) -> None:
        """End it, wherever it is."""
        ...


class Calls(Protocol):
    """Makes RPCs: the transport, or what stands before it."""

    @property
    def prefix(self) -> bytes:
        """What it puts before each key."""
        ...

    def resolve_timeout(self, timeout: float | Default | None) -> float | None:
        """Give the deadline in seconds that a call's ``timeout`` means."""
        ...

    async def unary(
        self,
        method: Method[Request, Response],
        request: Request,
        timeout: float | Default | None = DEFAULT,
        *,
        at: Endpoint | None = None,
    ) -> Response:
        """Call a unary RPC; see `Transport.unary`."""
        ...

    async def last_unary(
        self, method: Method[Request, Response], request: Request, timeout: float
    ) -> Response:
        """Call one in order to tidy up; see `Transport.last_unary`."""
        ...

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection to use, and no doubt about it, as far as is known."""
        ...

    def unreachable(self) -> EtcdError:
        """Make the error that says why there is none."""
        ...

    def download(
        self,
        method: Method[Request, Response],
        request: Request,
        timeout: float | Default | None = DEFAULT,
        *,
        at: Endpoint | None = None,
    ) -> Answers[Response]:
        """Begin a server stream; see `Transport.download`."""
        ...


class Relayed:
    """Makes the RPCs of somebody else: what stands before him says what it does otherwise.

    Args:
        calls: That somebody.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self.unreachable: Callable[[], EtcdError] = calls.unreachable

    @property
    def prefix(self) -> bytes:
        """What stands before each key, at the server."""
        return self._calls.prefix

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection to use, and no doubt about it, as far as is known."""
        return self._calls.is_connected

    def resolve_timeout(self, timeout: float | Default | None) -> float | None:
        """Give the deadline in seconds that a call's ``timeout`` means."""
        return self._calls.resolve_timeout(timeout)

    async def unary(
        self,
        method: Method[Request, Response],
        request: Request,
        timeout: float | Default | None = DEFAULT,
        *,
        at: Endpoint | None = None,
    ) -> Response:
        """Call a unary RPC."""
        return await self._calls.unary(method, request, timeout, at=at)

    async def last_unary(
        self, method: Method[Request, Response], request: Request, timeout: float
    ) -> Response:
        """Call one in order to tidy up."""
        return await self._calls.last_unary(method, request, timeout)

    def download(
        self,
        method: Method[Request, Response],
        request: Request,
        timeout: float | Default | None = DEFAULT,
        *,
        at: Endpoint | None = None,
    ) -> Answers[Response]:
        """Begin a server stream."""
        return self._calls.download(method, request, timeout, at=at)
