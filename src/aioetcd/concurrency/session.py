"""A session: a lease that is kept alive for a block of code."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType

import anyio

from aioetcd.concurrency._guard import BodyGuard, OnLost
from aioetcd.errors import EtcdError, LeaseLostError, LeaseNotFoundError
from aioetcd.lease import MAX_TTL, KeepAlive, LeaseService, new_lease_id
from aioetcd.ranges import check_int

__all__ = ["HeldLease", "Session"]

logger = logging.getLogger("aioetcd.lease")

# A grant that was cancelled may still be on its way; see `HeldLease.release`.
_LATE = 0.1


class HeldLease:
    """A lease of one holder: granted, kept alive, and revoked at the end.

    Args:
        leases: The lease service.
        ttl: Seconds to live.
        timeout: Bounds the revocation, together with the time to live.
        on_lost: Called with the error when the lease is lost; at most once.

    Attributes:
        lease_id: Its id, chosen here, so that it can be revoked whatever became of the grant.
    """

    def __init__(
        self,
        leases: LeaseService,
        ttl: int,
        timeout: float | None,
        on_lost: Callable[[LeaseLostError], None],
    ) -> None:
        self.lease_id = new_lease_id()
        self._leases = leases
        self._ttl = check_int("ttl", ttl, 1, MAX_TTL)
        self._timeout = timeout
        self._on_lost = on_lost
        self._granted = False
        self._maybe_granted = False
        self._lost = False
        self._keep_alive: KeepAlive | None = None

    @property
    def expires_in(self) -> float:
        """The seconds for which the lease surely lives on; 0 when it is lost."""
        if self._lost or self._keep_alive is None:
            return 0.0
        return self._keep_alive.expires_in or 0.0

    def check(self) -> None:
        """Tell the loss now if the lease's time is over, though the event loop was blocked."""
        if self._keep_alive is not None:
            self._keep_alive._check()

    async def acquire(self) -> None:
        """Grant the lease and keep it alive. After a failure, `release` it too."""
        left = await self._leases._wait_connected(self._timeout)
        self._maybe_granted = True
        try:
            lease = await self._leases.grant(self._ttl, lease_id=self.lease_id, timeout=left)
        except EtcdError as error:
            self._maybe_granted = error.maybe_applied
            raise
        self._granted = True
        self._ttl = lease.ttl
        self._keep_alive = self._leases._keep(self.lease_id, self._tell)
        await self._keep_alive.__aenter__()

    def _tell(self, error: EtcdError) -> None:
        self._lost = True
        if not isinstance(error, LeaseLostError):
            reason = "not found" if isinstance(error, LeaseNotFoundError) else "closed"
            lost = LeaseLostError(
                f"lease {self.lease_id:x} is no longer kept alive: {error}",
                lease_id=self.lease_id,
                reason=reason,
            )
            lost.__cause__ = error
            error = lost
        self._on_lost(error)

    async def release(self) -> None:
        """Revoke the lease, and with it delete its keys; it never takes longer than it lives."""
        if self._keep_alive is not None:
            await self._keep_alive.__aexit__(None, None, None)
        if self._lost or not self._maybe_granted:
            return
        bound = self._ttl if self._timeout is None else min(self._timeout, self._ttl)
        with anyio.move_on_after(bound, shield=True) as scope:
            try:
                await self._revoke()
            except EtcdError as error:
                self._warn(str(error))
        if scope.cancelled_caught:
            self._warn("no answer in time")

    async def _revoke(self) -> None:
        try:
            await self._leases.revoke(self.lease_id, timeout=None)
        except LeaseNotFoundError:
            if self._granted:
                return
            # The grant failed or was cancelled, and may overtake nothing any more, but come after
            # this revocation.
            await anyio.sleep(_LATE)
            try:
                await self._leases.revoke(self.lease_id, timeout=None)
            except LeaseNotFoundError:
                return

    def _warn(self, why: str) -> None:
        logger.warning(
            "lease %x could not be revoked, its keys stay for up to %d s: %s",
            self.lease_id,
            self._ttl,
            why,
        )


class Session:
    """A lease for the time of an ``async with``; ``client.session(...)`` makes it.

    The lease is granted when the block is entered, kept alive inside, and revoked when it is left,
    which deletes the keys attached to it. When it is lost the body is cancelled and the block
    raises `LeaseLostError`; nothing is granted again in secret.

    A session may be used by many tasks, and entered once.
    """

    def __init__(
        self,
        leases: LeaseService,
        *,
        ttl: int,
        on_lost: OnLost,
        timeout: float | None,
    ) -> None:
        self._guard = BodyGuard(on_lost)
        self._held = HeldLease(leases, ttl, timeout, self._guard.lost)
        self._entered = False

    @property
    def lease_id(self) -> int:
        """The lease's id."""
        return self._held.lease_id

    @property
    def expires_in(self) -> float:
        """The seconds for which the lease surely lives on, were no renewal to succeed any more."""
        return self._held.expires_in

    @property
    def is_lost(self) -> bool:
        """Whether the lease is lost."""
        self._held.check()
        return self._guard.error is not None

    async def wait_lost(self) -> EtcdError:
        """Wait until the lease is lost, and give the `LeaseLostError` that says why."""
        return await self._guard.wait_lost()

    async def __aenter__(self) -> Session:
        """Grant the lease.

        Raises:
            EtcdError: It could not be granted, by cause.
        """
        if self._entered:
            raise RuntimeError("a session can be entered once: make another one")
        self._entered = True
        try:
            await self._held.acquire()
            self._held.check()
        except BaseException:
            await self._held.release()
            raise
        self._guard.enter()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        """Revoke the lease.

        Raises:
            LeaseLostError: It was lost, unless the body raised something of its own.
        """
        self._held.check()  # the body may have blocked the event loop to its very end
        return await self._guard.exit(self._held.release, exc_type, exc, traceback)
