"""Calls that are made at the same time share round trips."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aioetcd._transport.calls import Calls, Relayed
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
from aioetcd.config.endpoints import Endpoint
from aioetcd.config.timeouts import DEFAULT, Default
from aioetcd.kv._lane import Keys, Lane


class Batched(Relayed):
    """Makes the RPCs of somebody else, those for single keys in few round trips.

    Args:
        calls: That somebody.
    """

    def __init__(self, calls: Calls) -> None:
        super().__init__(calls)
        keys = Keys()
        # Who waits without limit does not go with others: they have a time to give up.
        self._reads = {is_endless: Lane(calls, READ_ONLY_TXN, keys) for is_endless in (0, 1)}
        self._writes = {is_endless: Lane(calls, TXN, keys) for is_endless in (0, 1)}

    async def unary(
        self,
        method: Method[Request, Response],
        request: Request,
        timeout: float | Default | None = DEFAULT,
        *,
        at: Endpoint | None = None,
    ) -> Response:
        """Call a unary RPC, with others where that may be."""
        lanes = self._lanes(method, request) if at is None else None
        if lanes is None:
            return await super().unary(method, request, timeout, at=at)
        seconds = self._calls.resolve_timeout(timeout)
        return await lanes[seconds is None].call(method, request, seconds)

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
