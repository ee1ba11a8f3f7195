"""A lock: fair, with a lease behind it, understood by etcdctl and the Go client.

Each holder puts a key of its own below the lock's name, in a txn that compares the key's create
revision. Keys are served in the order of their create revisions: the first one holds the lock,
and each other one waits for the one just before it to be deleted.
"""

from __future__ import annotations

from types import TracebackType

import anyio

from aioetcd._transport.supervisor import Supervisor
from aioetcd.concurrency._guard import BodyGuard, OnLost
from aioetcd.concurrency.session import HeldLease
from aioetcd.errors import (
    ClientClosedError,
    CompactedError,
    EtcdError,
    LeaseLostError,
    LockLostError,
    LockNotAcquiredError,
    LockTimeoutError,
)
from aioetcd.kv import KV
from aioetcd.lease import LeaseService
from aioetcd.ranges import check_seconds, encode, encode_key
from aioetcd.txn import Compare, Op
from aioetcd.types import EventType, GetResponse, KeyValue, SortOrder, SortTarget
from aioetcd.watch import Watch, Watcher

__all__ = ["Lock"]


class Lock:
    """A lock on a name for the time of an ``async with``; ``client.lock(...)`` makes it.

    Inside the block the lock is held as far as anybody can know; when the lease is lost or the
    key is deleted, the body is cancelled and the block raises `LockLostError`. A process that is
    stopped for longer than the lease lives cannot be told in time: put ``lock.is_owner()`` among
    the comparisons of each txn that the lock protects, or give ``lock.revision``, which grows from
    holder to holder, to what you write to.

    Every `Lock` is a holder of its own, also among tasks of one client, and is entered once.
    Do not use a name that is another lock's name followed by a slash and more.
    """

    def __init__(
        self,
        kv: KV,
        leases: LeaseService,
        watcher: Watcher,
        supervisor: Supervisor,
        name: str | bytes,
        *,
        value: str | bytes,
        ttl: int,
        blocking: bool,
        timeout: float | None,
        on_lost: OnLost,
        call_timeout: float | None,
    ) -> None:
        self._kv = kv
        self._watcher = watcher
        self._supervisor = supervisor
        self._prefix = encode_key(name) + b"/"
        self._value = encode("value", value)
        self._blocking = blocking
        self._timeout = check_seconds("timeout", timeout)
        if not blocking and timeout is not None:
            raise ValueError("timeout is for a lock that waits: leave it out with blocking=False")
        self._guard = BodyGuard(on_lost)
        self._held = HeldLease(leases, ttl, call_timeout, self._lease_lost)
        self._acquiring: anyio.CancelScope | None = None
        self._revision: int | None = None
        self._own_watch: Watch | None = None
        self._entered = False
        self._released = False

    def __repr__(self) -> str:
        """Show the key."""
        return f"<Lock {self.key!r}>"

    @property
    def key(self) -> bytes:
        """This holder's key: the name, a slash, and the lease's id in hexadecimal."""
        return self._prefix + f"{self.lease_id:x}".encode()

    @property
    def lease_id(self) -> int:
        """The id of this holder's lease."""
        return self._held.lease_id

    @property
    def revision(self) -> int:
        """The fencing token: the key's create revision, greater than any holder's before.

        Raises:
            RuntimeError: The lock was not acquired.
        """
        if self._revision is None:
            raise RuntimeError("the lock was not acquired")
        return self._revision

    @property
    def expires_in(self) -> float:
        """The seconds for which the lock is surely held, were no renewal to succeed any more."""
        return self._held.expires_in

    @property
    def is_lost(self) -> bool:
        """Whether the lock is lost."""
        self._held.check()
        return self._guard.error is not None

    def is_owner(self) -> Compare:
        """Make the comparison that holds as long as this holder has the lock.

        Raises:
            RuntimeError: The lock was not acquired.
        """
        return Compare.create_revision(self.key) == self.revision

    async def wait_lost(self) -> EtcdError:
        """Wait until the lock is lost, and give the `LockLostError` that says why."""
        return await self._guard.wait_lost()

    async def __aenter__(self) -> Lock:
        """Acquire the lock. A failed or cancelled attempt leaves neither key nor lease behind.

        Raises:
            LockNotAcquiredError: Somebody else has it, with ``blocking=False``.
            LockTimeoutError: Its turn did not come within the timeout.
            LockLostError: The lease or the key was lost while waiting.
            EtcdError: By cause.
        """
        if self._entered:
            raise RuntimeError("a lock can be entered once: make another one")
        self._entered = True
        try:
            await self._acquire_in_time()
        except BaseException:
            await self._release()
            raise
        self._guard.enter()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        """Release the lock.

        Raises:
            LockLostError: It was lost, unless the body raised something of its own.
        """
        self._held.check()  # the body may have blocked the event loop to its very end
        return await self._guard.exit(self._release, exc_type, exc, traceback)

    async def _acquire_in_time(self) -> None:
        # Two scopes, for two reasons to stop waiting: the time, and the loss of the lease.
        with anyio.move_on_after(self._timeout) as timer:
            with anyio.CancelScope() as self._acquiring:
                await self._held.acquire()
                if self._blocking:
                    await self._wait_turn()
                else:
                    await self._try_once()
            self._acquiring = None
        self._held.check()  # the event loop may have been blocked
        if self._guard.error is not None:
            raise self._guard.error
        if timer.cancelled_caught:
            assert self._timeout is not None
            raise LockTimeoutError(
                f"the lock {self._prefix[:-1]!r} was not free within {self._timeout:g} s",
                timeout=self._timeout,
            )

    async def _try_once(self) -> None:
        result = await self._kv.txn(
            compare=[Compare.create_revision(self._prefix, prefix=True) == 0],
            success=[self._put()],
            failure=[self._first()],
            idempotent=True,
        )
        if result.succeeded:
            self._begin(result.header.revision)
            return
        (found,) = result.responses
        assert isinstance(found, GetResponse)
        assert found.kv is not None  # the comparison says that there is one
        if found.kv.key != self.key:
            raise LockNotAcquiredError(
                f"the lock {self._prefix[:-1]!r} is held with the key {found.kv.key!r}",
                holder=found.kv,
            )
        # An earlier try, whose answer was lost, has put it.
        self._begin(found.kv.create_revision)

    async def _wait_turn(self) -> None:
        result = await self._kv.txn(
            compare=[Compare.create_revision(self.key) == 0],
            success=[self._put(), self._first()],
            failure=[Op.get(self.key), self._first()],
            idempotent=True,
        )
        own, first = result.responses
        assert isinstance(first, GetResponse)
        assert first.kv is not None  # at the least our own
        if isinstance(own, GetResponse):
            # An earlier try, whose answer was lost, has put it.
            assert own.kv is not None
            self._begin(own.kv.create_revision)
        else:
            self._begin(result.header.revision)
        if first.kv.key == self.key:
            return
        while (predecessor := await self._predecessor()) is not None:
            await self._wait_deleted(*predecessor)
        # The wait may have ended because the queue was swept away, our key with it.
        if not self._is_ours((await self._kv.get(self.key)).kv):
            self._lost("its key was deleted while it waited")

    def _put(self) -> Op:  # type: ignore[type-arg]
        return Op.put(self.key, self._value, lease=self.lease_id)

    def _first(self) -> Op:  # type: ignore[type-arg]
        return Op.get(
            self._prefix,
            prefix=True,
            sort_target=SortTarget.CREATE,
            sort_order=SortOrder.ASCEND,
            limit=1,
        )

    async def _predecessor(self) -> tuple[bytes, int] | None:
        """Find the key just before ours, and the revision at which it was seen."""
        found = await self._kv.get(
            self._prefix,
            prefix=True,
            sort_target=SortTarget.CREATE,
            sort_order=SortOrder.DESCEND,
            limit=1,
            keys_only=True,
            max_create_revision=self.revision - 1,
        )
        return None if found.kv is None else (found.kv.key, found.header.revision)

    async def _wait_deleted(self, key: bytes, seen_at: int) -> None:
        watch = self._watcher(key, start_revision=seen_at + 1, only=EventType.DELETE, timeout=None)
        try:
            async with watch:
                async for _ in watch:
                    return
        except CompactedError:
            return  # the caller looks again

    def _begin(self, revision: int) -> None:
        """Our key is there: from now on its deletion is a loss."""
        self._revision = revision
        self._supervisor.spawn(self._watch_own_key, "aioetcd lock watch")

    async def _watch_own_key(self) -> None:
        start_revision = self.revision + 1
        try:
            while not self._released:
                watch = self._own_watch = self._watcher(
                    self.key, start_revision=start_revision, only=EventType.DELETE, timeout=None
                )
                try:
                    async with watch:
                        async for _ in watch:
                            self._lost("its key was deleted")
                            return
                except CompactedError:
                    found = await self._kv.get(self.key)
                    if not self._is_ours(found.kv):
                        self._lost("its key was deleted")
                        return
                    start_revision = found.header.revision + 1
        except ClientClosedError:
            return  # the lease tells
        except EtcdError as error:
            self._lost(f"its key cannot be watched: {error}", error)

    def _is_ours(self, kv: KeyValue | None) -> bool:
        return kv is not None and kv.create_revision == self._revision

    def _lease_lost(self, error: LeaseLostError) -> None:
        self._lost(f"its lease is lost ({error.reason})", error)

    def _lost(self, why: str, cause: EtcdError | None = None) -> None:
        if self._released:
            return
        lost = LockLostError(f"the lock {self._prefix[:-1]!r} is lost: {why}")
        lost.__cause__ = cause
        self._guard.lost(lost)
        if self._acquiring is not None:
            self._acquiring.cancel()

    async def _release(self) -> None:
        self._released = True
        if self._own_watch is not None:
            # Not a checkpoint: whatever cancels us now, the lease is still to be revoked.
            with anyio.CancelScope(shield=True):
                await self._own_watch.aclose()
        await self._held.release()
