"""The lease by which the server lets a job's delay pass."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import monotonic
from typing import Any, TypeAlias

import anyio

from aioetcd._proto import rpc_pb2
from aioetcd._transport.methods import LEASE_GRANT, LEASE_REVOKE
from aioetcd.concurrency._parts import Parts
from aioetcd.config.timeouts import seconds_left
from aioetcd.errors import EtcdError, LeaseExistsError, LeaseNotFoundError
from aioetcd.lease import new_lease_id

_logger: logging.Logger = logging.getLogger("aioetcd.concurrency")

Call: TypeAlias = Callable[[Any, Any, Any], Awaitable[Any]]
"""Sends a request."""

# A grant that was cancelled may still be on its way: it is undone once more after that.
_LATE = 0.1


class Delay:
    """One delay; whoever makes it ends it, which revokes what came to nothing.

    Args:
        parts: Grant and revoke.
        ttl: The time to live, in seconds.

    Attributes:
        lease_id: The lease's id.
        is_granted: Whether the lease is known to be granted.
        may_be_used: Whether a job may be delayed by it: then it is not revoked.
    """

    def __init__(self, parts: Parts, ttl: int) -> None:
        self.lease_id: int = new_lease_id()
        self.is_granted: bool = False
        self.may_be_used: bool = False
        self._transport, self._calls, *_ = parts
        self._ttl = ttl
        self._maybe_granted = False

    async def grant(self, call: Call, timeout: float | None) -> None:
        """Grant the lease, once, however often that is asked for."""
        if self.is_granted:
            return
        was_maybe_granted, self._maybe_granted = self._maybe_granted, True
        request = rpc_pb2.LeaseGrantRequest(TTL=self._ttl, ID=self.lease_id)
        try:
            with suppress(LeaseExistsError):  # by an earlier try, whose answer was lost
                await call(LEASE_GRANT, request, timeout)
        except EtcdError as error:
            self._maybe_granted = was_maybe_granted or error.maybe_applied
            raise
        self.is_granted = True

    def end(self) -> None:
        """Nothing more is done with it here."""
        if self._maybe_granted and not self.may_be_used:
            _ = self._transport.supervisor.tidy(
                self._revoke,
                f"aioetcd revoke the delay {self.lease_id:x}",
                seconds=self._ttl,
                give_up=lambda why: _logger.debug(
                    "the delay's lease %x runs out by itself: %s", self.lease_id, why
                ),
            )

    async def _revoke(self, seconds: float) -> None:
        deadline = monotonic() + seconds
        request = rpc_pb2.LeaseRevokeRequest(ID=self.lease_id)
        for pause in (0.0,) if self.is_granted else (0.0, _LATE):
            await anyio.sleep(pause)
            with suppress(LeaseNotFoundError):
                await self._calls.last_unary(LEASE_REVOKE, request, seconds_left(deadline))
                return
