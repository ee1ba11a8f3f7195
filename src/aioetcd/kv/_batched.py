"""Calls that are made at the same time share round trips."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from aioetcd._transport.calls import Answers, Calls
from aioetcd._transport.methods import (
    DELETE_RANGE,
    PUT,
    RANGE,
    READ_ONLY_TXN,
    TXN,
    Method,
    Request,
    Response,
)
from aioetcd._transport.supervisor import Spawn
from aioetcd.config.endpoints import Endpoint
from aioetcd.config.timeouts import DEFAULT, Default
from aioetcd.errors import EtcdError
from aioetcd.kv._lane import Keys, Lane


class Batched:
    """Makes the RPCs of somebody else, those for single keys in few round trips.

    Args:
        calls: That somebody.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        keys = Keys()
        # Who waits without limit does not go with others: they have a time to give up.
        self._reads = {is_endless: Lane(calls, READ_ONLY_TXN, keys) for is_endless in (0, 1)}
        self._writes = {is_endless: Lane(calls, TXN, keys) for is_endless in (0, 1)}
        self.spawn: Spawn = calls.spawn
        self.unreachable: Callable[[], EtcdError] = calls.unreachable

    @property
    def prefix(self) -> bytes:
        """What stands before each key, at the server."""
        return self._calls.prefix

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection to use, as far as is known."""
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
        """Call a unary RPC, with others where that may be."""
        if at is not None:
            return await self._calls.unary(method, request, timeout, at=at)
        lanes = self._lanes(method, request)
        if lanes is None:
            return await self._calls.unary(method, request, timeout)
        seconds = self._calls.resolve_timeout(timeout)
        return await lanes[seconds is None].call(method, request, seconds)

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

    def _lanes(self, method: Method[Any, Any], request: Any) -> Mapping[int, Lane] | None:
        """Give those that it may go with: calls for a single key as it is now."""
        if method is RANGE:
            alone = request.range_end or request.revision or request.serializable
            return None if alone else self._reads
        if method is PUT:
            return self._writes
        if method is DELETE_RANGE:
            return None if request.range_end else self._writes
        return None
