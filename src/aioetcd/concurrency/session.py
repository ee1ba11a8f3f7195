"""A session: a lease that is kept alive for a block of code."""

from __future__ import annotations

import asyncio

from aioetcd._transport.transport import Transport
from aioetcd.concurrency._guard import OnLost
from aioetcd.concurrency._hold import Hold
from aioetcd.concurrency._tenure import Tenure
from aioetcd.lease import Leases

__all__ = ["Session"]


class Session(Hold):
    """A lease for the time of an ``async with``; ``client.session(...)`` makes it.

    The lease is granted when the block is entered (RPC ``LeaseGrant``), kept alive inside, and
    revoked when it is left, which deletes the keys attached to it. When it is lost the body is
    cancelled and the block raises `LeaseLostError`; nothing is granted again in secret.

    Leaving waits up to a second for the revocation, which goes on without whoever does not wait for
    it: whose task is cancelled meanwhile, or whose servers do not answer. When it fails for good, a
    warning is logged, and the lease ends with its time to live.

    A session may be used by many tasks, and entered once. Locks may stand on its lease
    (``client.lock(..., session=session)``); those that still do when it is left are lost.

    Raises:
        LeaseLostError: The lease was lost in the block, which was cancelled.
        RuntimeError: It is entered a second time.
        EtcdError: The lease could not be granted, by cause, within the client's timeout.

    Example:
        async with client.session(ttl=10) as session:
            await client.kv.put("/services/a", "10.0.0.7:80", lease=session)
            0 < session.expires_in <= 10, session.is_lost  # (True, False)
        (await client.kv.get("/services/a")).value  # None
    """

    _kind = "session"

    def __init__(self, transport: Transport, leases: Leases, *, ttl: int, on_lost: OnLost) -> None:
        super().__init__(transport.supervisor, Tenure(transport, leases, ttl), on_lost)

    async def _take(self) -> None:
        self._tenure.listeners.append(self._guard.lost)
        await self._tenure.begin()

    def _let_go(self) -> asyncio.Task[None] | None:
        self._tenure.listeners.remove(self._guard.lost)
        return self._tenure.end()
