"""A lease that recipes stand on: granted, kept alive, and revoked at the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from copy import copy
from time import monotonic

import anyio

from aioetcd._checks import check_int
from aioetcd._proto import rpc_pb2
from aioetcd._transport.methods import LEASE_REVOKE
from aioetcd._transport.transport import Transport
from aioetcd.config.timeouts import seconds_left
from aioetcd.errors import EtcdError, LeaseLostError, LeaseNotFoundError
from aioetcd.lease import MAX_TTL, KeepAlive, Leases, new_lease_id

logger = logging.getLogger("aioetcd.lease")

# A request that was cancelled may still be on its way: what it does is undone once more after that.
_LATE = 0.1


class Seat:
    """A key that only one of those who stand on a lease has at a time."""

    def __init__(self, seats: dict[bytes, Seat], key: bytes) -> None:
        self._seats = seats
        self._key = key
        self._lock = asyncio.Lock()
        self._users = 0

    @property
    def is_taken(self) -> bool:
        """Whether somebody has it, or waits for it."""
        return self._users > 0

    async def take(self) -> None:
        """Wait until nobody else has it."""
        self._seats[self._key] = self
        self._users += 1
        try:
            await self._lock.acquire()
        except BaseException:
            self._forget()
            raise

    def leave(self) -> None:
        """Let the next one have it."""
        self._lock.release()
        self._forget()

    def _forget(self) -> None:
        self._users -= 1
        if not self._users:
            del self._seats[self._key]


class Tenure:
    """A lease that is held: a session's, or a lock's own.

    Attributes:
        lease_id: Its id, chosen here, so that it can be revoked whatever became of the grant.
        listeners: Called with the error when the lease is lost, or given up.
        late: By key, the tasks that delete what is put late; they end with the lease.
        late_until: By key, how long that is waited for, in `time.monotonic`'s seconds.
    """

    def __init__(self, transport: Transport, leases: Leases, ttl: int) -> None:
        self.lease_id: int = new_lease_id()
        self.listeners: list[Callable[[LeaseLostError], None]] = []
        self.late: dict[bytes, asyncio.Task[None]] = {}
        self.late_until: dict[bytes, float] = {}
        self._seats: dict[bytes, Seat] = {}
        self._transport = transport
        self._leases = leases
        self._ttl = check_int("ttl", ttl, 1, MAX_TTL)
        self._granted = False
        self._maybe_granted = False
        self._error: LeaseLostError | None = None
        self._ended = False
        self._keep_alive: KeepAlive | None = None

    @property
    def expires_in(self) -> float:
        """The seconds for which the lease surely lives on; 0 when it is lost."""
        if self._error is not None or self._keep_alive is None or self._ended:
            return 0.0
        return self._keep_alive.expires_in or 0.0

    @property
    def bound(self) -> float:
        """How long anybody waits for the end of what depends on the lease."""
        timeout = self._transport.timeout
        return self._ttl if timeout is None else min(timeout, self._ttl)

    @property
    def is_held(self) -> bool:
        """Whether the lease may be there, and is renewed, or was until the client closed."""
        is_lost = self._error is not None and self._error.reason != "closed"
        return self._maybe_granted and not is_lost and not self._ended

    def check(self) -> None:
        """Tell the loss now if the lease's time is over, though the event loop was blocked."""
        if self._keep_alive is not None:
            self._keep_alive._check()

    def require(self) -> None:
        """See that there is a lease for somebody else to stand on.

        Raises:
            RuntimeError: It was not granted yet, or is revoked already.
            LeaseLostError: It is lost.
        """
        self.check()
        if self._error is not None:
            raise copy(self._error)  # it is told again and again
        if not self._granted or self._ended:
            raise RuntimeError("the session is not open: use it inside its `async with`")

    def seat(self, key: bytes) -> Seat:
        """Give what stands for a key on this lease."""
        return self._seats.get(key) or Seat(self._seats, key)

    async def begin(self) -> None:
        """Grant the lease and keep it alive. After a failure, `end` it too."""
        left = await self._transport.wait_connected()
        self._maybe_granted = True
        try:
            lease = await self._leases.grant(self._ttl, lease_id=self.lease_id, timeout=left)
        except EtcdError as error:
            self._maybe_granted = error.maybe_applied
            raise
        self._granted = True
        self._ttl = lease.ttl
        self._keep_alive = self._leases._keep(self.lease_id, self._lost)
        self._keep_alive._start()

    def _lost(self, error: EtcdError) -> None:
        if not isinstance(error, LeaseLostError):
            reason = "not found" if isinstance(error, LeaseNotFoundError) else "closed"
            lost = LeaseLostError(
                f"lease {self.lease_id:x} is no longer kept alive: {error}",
                lease_id=self.lease_id,
                reason=reason,
            )
            lost.__cause__ = error
            error = lost
        self._tell(error)

    def _tell(self, error: LeaseLostError) -> None:
        self._error = error
        for listener in list(self.listeners):
            listener(error)
        self._stop_late()

    def _stop_late(self) -> None:
        for task in self.late.values():
            self._transport.supervisor.stop(task)

    def end(self) -> asyncio.Task[None] | None:
        """Stop renewing, and start to revoke the lease, which deletes its keys.

        Whoever still stands on it is told. The task that revokes is given to be waited for, but not
        where the lease has run out: the servers were away for that long.
        """
        reason = None if self._error is None else self._error.reason
        self._ended = True
        self._stop_late()
        if self._keep_alive is not None:
            self._keep_alive._stop()
        if self._error is None and self.listeners:
            self._tell(
                LeaseLostError(
                    f"lease {self.lease_id:x} is given up: its session was left",
                    lease_id=self.lease_id,
                    reason="closed",
                )
            )
        if not self._maybe_granted or reason in ("revoked", "not found"):
            return None
        revocation = self._transport.supervisor.tidy(
            self._revoke,
            f"aioetcd revoke {self.lease_id:x}",
            seconds=self._ttl,
            give_up=self._warn,
        )
        return None if reason == "expired" else revocation

    async def _revoke(self, seconds: float) -> None:
        deadline = monotonic() + seconds
        request = rpc_pb2.LeaseRevokeRequest(ID=self.lease_id)
        for pause in (0.0, _LATE):
            await anyio.sleep(pause)
            try:
                await self._transport.last_unary(LEASE_REVOKE, request, seconds_left(deadline))
            except LeaseNotFoundError:
                if self._granted:
                    break
            else:
                break
        self._leases._streams.revoked(self.lease_id)  # somebody else may keep it alive as well

    def _warn(self, why: str) -> None:
        logger.warning(
            "lease %x could not be revoked, its keys stay for up to %d s: %s",
            self.lease_id,
            self._ttl,
            why,
        )
