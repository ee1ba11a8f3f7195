"""Calls that are made at the same time share round trips."""

from __future__ import annotations

from typing import Any

from aioetcd._transport.calls import Calls, Relayed
from aioetcd._transport.methods import DELETE_RANGE, PUT, RANGE, Method, Request, Response
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
        # Who waits without limit does not go with others: they have a time to give up. Nor does a
        # deletion with puts, which a full server refuses.
        self._lanes: dict[tuple[Method[Any, Any], bool], Lane[Any, Any]] = {
            (method, is_endless): Lane(calls, method, keys)
            for method in (RANGE, PUT, DELETE_RANGE)
            for is_endless in (False, True)
        }

    async def unary(
        self,
        method: Method[Request, Response],
        request: Request,
        timeout: float | Default | None = DEFAULT,
        *,
        at: Endpoint | None = None,
    ) -> Response:
        """Call a unary RPC, with others where that may be."""
        if at is not None or not _is_of_one_key(method, request):
            return await super().unary(method, request, timeout, at=at)
        seconds = self._calls.resolve_timeout(timeout)
        lane: Lane[Request, Response] = self._lanes[method, seconds is None]
        return await lane.call(request, seconds)


def _is_of_one_key(method: Method[Any, Any], request: Any) -> bool:
    """Whether it is for a single key as it is now."""
    if method is RANGE:
        return not (request.range_end or request.revision or request.serializable)
    return method is PUT or (method is DELETE_RANGE and not request.range_end)
