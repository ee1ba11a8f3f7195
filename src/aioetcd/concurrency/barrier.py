"""Barriers: one that holds everybody up, and one that so many enter and leave together."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

import anyio

from aioetcd._checks import check_int, check_lease, check_seconds
from aioetcd._constructor import NoPublicConstructor
from aioetcd.compare import Compare
from aioetcd.concurrency._guard import OnLost
from aioetcd.concurrency._parts import Parts
from aioetcd.concurrency._queued import Queued, held_by
from aioetcd.concurrency._turn import wait_deleted
from aioetcd.config.timeouts import DEFAULT, Default, deadline_in, seconds_left
from aioetcd.errors import BarrierLostError, CompactedError, DeadlineExceededError, EtcdError
from aioetcd.keys import encode, encode_key
from aioetcd.ops import Op
from aioetcd.types.leases import LeaseLike
from aioetcd.types.store import EventType, KeyValue, SortTarget

__all__ = ["Barrier", "DoubleBarrier"]


class Barrier(metaclass=NoPublicConstructor):
    """A key that holds up whoever waits for it; ``client.barrier(key)`` makes it.

    The Go client's ``recipe.Barrier`` on the same key understands it. Any number of tasks may use
    one.

    Example:
        barrier = client.barrier("/barriers/migration")
        await barrier.hold(value="host-7")  # True
        await barrier.release()
        await barrier.wait()
    """

    def __init__(self, parts: Parts, key: str | bytes) -> None:
        self._transport, self._calls, self._kv, _, self._watcher = parts
        self._key = encode_key(key)

    def __repr__(self) -> str:
        """Show the key."""
        return f"<Barrier {self._key!r}>"

    async def hold(
        self,
        *,
        value: str | bytes = b"",
        lease: LeaseLike | None = None,
        timeout: float | Default | None = DEFAULT,
    ) -> bool:
        """Hold up whoever waits from now on (RPC ``Txn``); where it is held already, do nothing.

        Where an answer is lost, the key is read: with this value and lease it counts as put here.
        Otherwise the error is raised, because it may have been put and be released again; as it is
        where there is neither a value nor a lease by which to know the key. Who holds with a lease,
        or a value of its own, is not mistaken for anybody else.

        Args:
            value: What others see, for example in the error of a `wait` that took too long.
            lease: What it falls with: a lease's id, or a Lease, Session or Lock; None leaves it to
                `release`.
            timeout: The deadline in seconds; None is none.

        Returns:
            Whether this call put the key: False where it was there.

        Raises:
            TypeError: An argument of the wrong type.
            LeaseNotFoundError: There is no such lease.
            EtcdError: By cause; see its `maybe_applied`.

        Example:
            async with client.session(ttl=10) as session:
                await client.barrier("/barriers/start").hold(lease=session)  # True
                await client.barrier("/barriers/start").hold()  # False
        """
        deadline = deadline_in(self._calls.resolve_timeout(timeout))
        put = Op.put(self._key, value, lease=lease)
        try:
            result = await self._kv.txn(
                compare=[Compare.missing(self._key)], success=[put], timeout=seconds_left(deadline)
            )
        except EtcdError as error:
            if not error.maybe_applied:
                raise
            try:
                there = (await self._kv.get(self._key, timeout=seconds_left(deadline))).kv
            except EtcdError:
                raise error from None
            lease_id = None if lease is None else check_lease("lease", lease)
            if not value and lease_id is None:  # anybody's key would look like this
                raise
            ours = (1, encode("value", value), lease_id)
            if there is None or (there.version, there.value, there.lease) != ours:
                raise
            return True
        return result.succeeded

    async def release(self, *, timeout: float | Default | None = DEFAULT) -> None:
        """Let everybody go, whoever holds it (RPCs ``Range`` and ``Txn``).

        It deletes what it has found when it was called: not what somebody holds after that.

        Args:
            timeout: The deadline in seconds; None is none.

        Raises:
            EtcdError: By cause; see its `maybe_applied`.

        Example:
            await client.barrier("/barriers/migration").release()
        """
        deadline = deadline_in(self._calls.resolve_timeout(timeout))
        held = (await self._kv.get(self._key, timeout=seconds_left(deadline))).kv
        if held is not None:
            await self._kv.txn(
                compare=[Compare.create_revision(self._key) == held.create_revision],
                success=[Op.delete(self._key)],
                idempotent=True,
                timeout=seconds_left(deadline),
            )

    async def wait(self, *, timeout: float | None = None) -> None:
        """Wait until nobody holds it; where nobody does, for one answer (RPC ``Range``).

        It returns as well when it was released and is held again since. To be cancelled ends the
        waiting alone.

        Args:
            timeout: Wait so many seconds at the most; None waits without limit.

        Raises:
            ValueError: `timeout` is not above 0.
            TypeError: It is no number.
            DeadlineExceededError: It was not released in time; the text names its holder.
            NoEndpointError: No endpoint could be reached.
            EtcdError: By cause.

        Example:
            await client.barrier("/barriers/migration").hold(value="host-7")
            try:
                await client.barrier("/barriers/migration").wait(timeout=1)
            except DeadlineExceededError as error:
                "host-7" in str(error)  # True
        """
        seconds = check_seconds("timeout", timeout)
        held: KeyValue | None = None
        with anyio.move_on_after(seconds):
            while True:
                found = await self._kv.get(self._key, timeout=None)
                if found.kv is None:
                    return
                if held is not None and found.kv.create_revision != held.create_revision:
                    return
                held = found.kv
                if await wait_deleted(self._watcher, {self._key}, found.header.revision + 1):
                    return
        if held is None and self._transport.picker.current is None:
            raise self._transport.picker.unreachable()
        holder = "" if held is None else f", held {held_by(held)},"
        raise DeadlineExceededError(
            f"the barrier {self._key!r}{holder} was not released", timeout=seconds
        )


class DoubleBarrier(Queued):
    """What so many enter and leave together; ``client.double_barrier(...)`` makes it.

    Entering waits until `count` parties are there, and leaving until all that have entered with
    this one have left, or are gone. Each has a key of its own, on a lease of its own; the last of
    `count` writes all their keys at one revision, which is when they have entered. Who comes then
    waits for the next `count`: it does not wait for those before to leave.

    When the lease is lost or the key is deleted, the body is cancelled and the block raises
    `BarrierLostError`; the others are not told, and do not wait for it any more. A block that ends
    by an exception waits for nobody. To be cancelled while one waits for the others ends the
    waiting alone: one has left by then.

    It is entered once: make another one for another time. Go's ``recipe.DoubleBarrier`` does not
    understand it.

    Raises:
        BarrierLostError: It was lost in the block, which was cancelled, or while it waited.
        DeadlineExceededError: Too few came within the timeout, or some had not left.
        TooManyOpsError: `count` is greater than the server's ``--max-txn-ops``, 128 by default.
            The party that is the last one is told; the others wait.
        EtcdError: By cause.

    Example:
        async with client.double_barrier("/barriers/step-1", 1) as barrier:
            barrier.is_lost  # False
    """

    _kind = "double barrier"

    def __init__(
        self,
        parts: Parts,
        name: str | bytes,
        count: int,
        *,
        ttl: int | None,
        timeout: float | None,
        on_lost: OnLost,
    ) -> None:
        self._count = check_int("count", count, 1)
        self._watcher = parts.watcher
        self._opened_at: int | None = None
        super().__init__(
            parts, name, value=b"", session=None, ttl=ttl, timeout=timeout, on_lost=on_lost
        )
        self._prefix = self._name + b"/"

    def __repr__(self) -> str:
        """Show the key."""
        return f"<DoubleBarrier {self.key!r}>"

    @property
    def revision(self) -> int:
        """The revision at which it was entered: the same for all who entered together.

        Raises:
            RuntimeError: It was not entered.
        """
        self._check_held()
        assert self._opened_at is not None
        return self._opened_at

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave, and wait for the others."""
        await super().__aexit__(exc_type, exc, traceback)
        if exc is None:
            await self._wait_left()

    # A key is written twice: when its party comes, and when it enters.

    async def _wait_turn(self) -> None:
        await self._turn.take_place()
        while self._opened_at is None:
            found = await self._kv.get(
                self._prefix,
                prefix=True,
                sort_target=SortTarget.CREATE,
                max_create_revision=self._turn.revision,
                timeout=None,
            )
            own = next((kv for kv in found.kvs if kv.key == self.key), None)
            if own is None or not self._turn.is_ours(own):
                self._lost("its key was deleted while it waited", None)
                return
            waiting = [kv for kv in found.kvs if kv.version == 1 and self._turn.is_queued(kv)]
            if own.version > 1:
                self._opened_at = own.mod_revision
            elif len(waiting) >= self._count:
                await self._open(waiting[: self._count])
            else:
                # Whoever makes them enough comes later, sees all of them, and opens it.
                await self._wait_opened(found.header.revision + 1)

    async def _open(self, waiting: Sequence[KeyValue]) -> None:
        """Have these enter, if all of them still wait."""
        await self._kv.txn(
            compare=[Compare.unchanged(kv) for kv in waiting],
            success=[Op.put(kv.key, b"", ignore_lease=True) for kv in waiting],
            idempotent=True,
            timeout=None,
        )

    async def _wait_opened(self, start_revision: int) -> None:
        """Wait until one's own key says so. If the history was compacted, look again."""
        watch = self._watcher(
            self.key, start_revision=start_revision, only=EventType.PUT, timeout=None
        )
        try:
            async with watch:
                event = await anext(watch)
                if self._turn.is_ours(event.kv):
                    self._opened_at = event.mod_revision
        except CompactedError:
            pass

    async def _wait_left(self) -> None:
        """Wait until nobody is left of those who have entered together."""
        left = -1
        with anyio.move_on_after(self._timeout):
            while left:
                found = await self._kv.get(
                    self._prefix,
                    prefix=True,
                    min_mod_revision=self.revision,
                    max_mod_revision=self.revision,
                    timeout=None,
                )
                keys = {kv.key for kv in found.kvs}
                if not keys:
                    return
                watch = self._watcher(
                    self._prefix,
                    prefix=True,
                    start_revision=found.header.revision + 1,
                    only=EventType.DELETE,
                    timeout=None,
                )
                try:
                    async with watch:
                        while left := len(keys):
                            keys.discard((await anext(watch)).kv.key)
                except CompactedError:
                    pass  # look again
            return
        raise DeadlineExceededError(
            f"{'some' if left < 0 else left} of the {self._count} who entered the double barrier "
            f"{self._name!r} together had not left",
            timeout=self._timeout,
        )

    def _late(self, holder: KeyValue | None, seconds: float) -> DeadlineExceededError:
        return DeadlineExceededError(
            f"there were fewer than {self._count} to enter the double barrier {self._name!r}",
            timeout=seconds,
        )

    def _loss(self, why: str) -> BarrierLostError:
        return BarrierLostError(f"the double barrier {self._name!r} is lost: {why}")
