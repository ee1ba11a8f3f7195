"""A lock: fair, with a lease behind it, understood by etcdctl and the Go client."""

from __future__ import annotations

from aioetcd.concurrency._guard import OnLost
from aioetcd.concurrency._parts import Parts
from aioetcd.concurrency._queued import Queued, held_by
from aioetcd.concurrency.session import Session
from aioetcd.errors import LockLostError, LockNotAcquiredError, LockTimeoutError
from aioetcd.types.store import KeyValue

__all__ = ["Lock"]


class Lock(Queued):
    """A lock on a name for the time of an ``async with``; ``client.lock(...)`` makes it.

    Inside the block the lock is held as far as anybody can know; when the lease is lost or the
    key is deleted, the body is cancelled and the block raises `LockLostError`. A process that is
    stopped for longer than the lease lives cannot be told in time: put ``lock.is_owner()`` among
    the comparisons of each txn that the lock protects, or give ``lock.revision``, which grows from
    holder to holder, to what you write to.

    Leaving waits up to a second until the key is gone from the server. That goes on without whoever
    does not wait for it: whose task is cancelled meanwhile, or whose servers do not answer. When it
    fails for good, a warning is logged, and the next one enters when the lease has ended.

    Who cannot use a block calls `acquire` and `release`; then nothing is cancelled, and `wait_lost`
    tells.

    Every `Lock` is a holder of its own, also among tasks of one client and of one session, and is
    entered once. Holders are served in the order of their coming; of those that share a session one
    at a time stands in the queue, and they take turns among themselves. Do not use a name that is
    another lock's name followed by a slash and more.

    Raises:
        LockLostError: The lock was lost in the block, which was cancelled.
        EtcdError: It was not acquired, by the causes of `acquire`.

    Example:
        async with client.lock("/locks/nightly", value="host-7") as lock:
            lock.key.startswith(b"/locks/nightly/"), lock.is_lost  # (True, False)
            try:
                async with client.lock("/locks/nightly", blocking=False):
                    ...
            except LockNotAcquiredError as error:
                error.holder.value  # b"host-7"
    """

    _kind = "lock"

    def __init__(
        self,
        parts: Parts,
        name: str | bytes,
        *,
        value: str | bytes,
        session: Session | None,
        ttl: int | None,
        blocking: bool,
        timeout: float | None,
        on_lost: OnLost,
        queue: bytes = b"",
        behind: tuple[bytes, ...] = (b"",),
        permits: int = 1,
    ) -> None:
        if not blocking and timeout is not None:
            raise ValueError("timeout is for a lock that waits: leave it out with blocking=False")
        self._blocking = blocking
        super().__init__(
            parts,
            name,
            value=value,
            session=session,
            ttl=ttl,
            timeout=timeout,
            on_lost=on_lost,
            queue=queue,
            behind=behind,
            permits=permits,
        )

    def __repr__(self) -> str:
        """Show the key."""
        return f"<Lock {self.key!r}>"

    async def acquire(self) -> None:
        """Acquire the lock without a block: `release` it.

        A failed or cancelled attempt leaves neither key nor lease behind, and takes a second
        longer at the most.

        Raises:
            LockNotAcquiredError: Somebody else has it, with ``blocking=False``; or what has it is
                a key that is no lock's.
            LockTimeoutError: Its turn did not come within the timeout.
            NoEndpointError: No endpoint could be reached within it.
            LockLostError: The lease or the key was lost while waiting.
            RuntimeError: It was entered before, or the session is not open.
            EtcdError: By cause.

        Example:
            lock = client.lock("/locks/nightly", timeout=5)
            await lock.acquire()
            try:
                lock.is_lost  # False
            finally:
                await lock.release()
        """
        await self._enter()

    async def release(self) -> None:
        """Release a lock that was acquired without a block; again, it does nothing.

        It waits, a second at the most, until the key is gone from the server, which goes on in the
        background without whoever is cancelled or does not get an answer.

        Raises:
            RuntimeError: It was not acquired.

        Example:
            lock = client.lock("/locks/nightly")
            await lock.acquire()
            await lock.release()
        """
        self._check_held()
        await self._leave()

    async def _wait_turn(self) -> None:
        if self._blocking:
            if (alien := await self._turn.take()) is not None:
                raise self._never_free(alien)
            return
        if (holder := await self._turn.take_if_first()) is None:
            return
        if not self._turn.is_queued(holder):
            raise self._never_free(holder)
        raise LockNotAcquiredError(
            f"the lock {self._name!r} is held {held_by(holder)}", holder=holder
        )

    def _never_free(self, alien: KeyValue) -> LockNotAcquiredError:
        return LockNotAcquiredError(
            f"the lock {self._name!r} cannot be had while there is the key {alien.key!r}: it is "
            "older, and no lock's, so it may stay for ever",
            holder=alien,
        )

    def _late(self, holder: KeyValue | None, seconds: float) -> LockTimeoutError:
        held = "" if holder is None else f": it is held {held_by(holder)}"
        return LockTimeoutError(
            f"the lock {self._name!r} was not free within {seconds:g} s{held}",
            timeout=seconds,
            holder=holder,
        )

    def _loss(self, why: str) -> LockLostError:
        return LockLostError(f"the lock {self._name!r} is lost: {why}")
