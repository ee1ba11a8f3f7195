"""What services and recipes ask etcd through: the one seam between them and the transport."""

from __future__ import annotations

from typing import Protocol

from aioetcd._transport.methods import Method, Request, Response
from aioetcd.config.timeouts import DEFAULT, Default


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
    ) -> Response:
        """Call a unary RPC; see `Transport.unary`."""
        ...

    async def last_unary(
        self, method: Method[Request, Response], request: Request, timeout: float
    ) -> Response:
        """Call one in order to tidy up; see `Transport.last_unary`."""
        ...
