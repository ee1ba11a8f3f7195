"""One membership of a partitioner, from the grant of its lease to the end of its last work.

What holds at any moment:

- An item is worked on only here while its key is on our lease: the work begins after the key was
  put, and the key is deleted after the work has ended; nobody puts a key that is there.
- For an item there is one `Holding` at most, from before its key is asked for until the mirror
  shows that the key is gone: where it is behind, a key that was given back is not taken for held.
- No work outlives the membership, and the lease is revoked after the last one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import TypeVar

import anyio

from aioetcd._transport.backoff import PASSING, Backoff
from aioetcd._transport.supervisor import PATIENCE
from aioetcd.compare import Compare
from aioetcd.concurrency._assignment import plan_for
from aioetcd.concurrency._mirror import Mirror
from aioetcd.concurrency._parts import Parts
from aioetcd.concurrency._tenure import Tenure
from aioetcd.errors import ClientClosedError, EtcdError, LeaseLostError, NoSpaceError
from aioetcd.ops import AnyOp, Op
from aioetcd.types.answers import GetResponse
from aioetcd.types.store import KeyValue

_T = TypeVar("_T")

_logger: logging.Logger = logging.getLogger("aioetcd.concurrency")

# So many keys are put or deleted at a time.
_AT_A_TIME = 32
# After it has been worked out what is to be done, for so many times as long it is not again: many
# changes come at a time, and each could change all.
_PAUSE = 4
# When all works are to end and some have not after so long, the others' items are given back first.
_MOMENT = 0.2


class Holding:
    """An item here: claimed, worked on, given back.

    Attributes:
        revision: The create revision of its key; None before it was put.
        refused_at: The revision at which somebody else had it.
        is_ending: Whether it is to be given back.
        is_gone: Whether its key is.
        work: What works on it.
        task: What does all that.
    """

    def __init__(self, revision: int | None) -> None:
        self.revision = revision
        self.refused_at = 0
        self.is_ending = False
        self.is_gone = False
        self.work: asyncio.Task[None] | None = None
        self.task: asyncio.Task[None] | None = None
        self.ending = asyncio.Event()

    @property
    def is_held(self) -> bool:
        """Whether its key is there, as far as this client knows."""
        return self.revision is not None and not self.is_gone and not self.has_ended

    @property
    def has_ended(self) -> bool:
        """Whether nothing more is done about it."""
        return self.task is not None and self.task.done()

    @property
    def is_working(self) -> bool:
        """Whether the work on it has not ended."""
        return self.work is not None and not self.work.done()

    def end(self) -> None:
        """Give it back, as soon as the work has ended, which is cancelled once."""
        if not self.is_ending:
            self.is_ending = True
            self.ending.set()
            if self.work is not None:
                self.work.cancel()


class Membership:
    """A member of a partitioner on one lease.

    Args:
        parts: Do it.
        name: The partitioner's.
        items: What is shared out, in order.
        value: What others see.
        ttl: The lease's time to live.
        work: Called with an item, its key's create revision and the lease to work on it.

    Attributes:
        failure: What a work has raised, the first one.
        has_joined: Whether others could see it.
    """

    def __init__(
        self,
        parts: Parts,
        name: bytes,
        items: Sequence[bytes],
        value: bytes,
        ttl: int,
        work: Callable[[bytes, int, int], Awaitable[object]],
    ) -> None:
        self.failure: BaseException | None = None
        self.has_joined = False
        self._parts = parts
        self._name = name
        self._supervisor = parts.transport.supervisor
        self._keys = {item: name + b"/items/" + item for item in items}
        self._items = items
        self._value = value
        self._work = work
        self._tenure = Tenure(parts.transport, parts.leases, ttl)
        self._me = f"{self._tenure.lease_id:x}"
        self._members = name + b"/members/"
        self._member_key = self._members + self._me.encode()
        self._mirror = Mirror(parts, name + b"/", prefix=True)
        self._holdings: dict[bytes, Holding] = {}
        self._slots = asyncio.Semaphore(_AT_A_TIME)
        self._over: Exception | None = None
        self._changed = asyncio.Event()
        self._is_leaving = False
        self._may_release = asyncio.Event()
        self._may_release.set()
        self._following: asyncio.Task[None] | None = None
        self._showing: asyncio.Task[None] | None = None
        # The revision up to which what was done about that is not to be seen yet.
        self._asked_at = 0

    @property
    def held(self) -> frozenset[bytes]:
        """The items that are surely held."""
        if self._tenure.expires_in == 0:
            return frozenset()
        return frozenset(item for item, holding in self._holdings.items() if holding.is_held)

    async def run(self) -> None:
        """Hold one's share of the items, and work on them, until that cannot go on.

        Raises:
            BaseException: `failure`.
            LeaseLostError: The lease is lost.
            EtcdError: It cannot go on, by cause.
        """
        self._tenure.listeners.append(self._lost)
        try:
            try:
                await self._tenure.begin()
                self._following = self._spawn(self._follow, "follower of")
                while not self._is_over:
                    self._changed.clear()
                    began = monotonic()
                    self._reconcile()
                    await anyio.sleep(_PAUSE * (monotonic() - began))
                    await self._changed.wait()
                    self._tenure.check()
            finally:
                await self._end()
        except (asyncio.CancelledError, EtcdError):
            if self.failure is None:
                raise
        error = self.failure or self._over
        assert error is not None
        raise error

    @property
    def _is_over(self) -> bool:
        return self._over is not None or self.failure is not None

    def _spawn(
        self, job: Callable[[], Awaitable[None]], what: str, name: bytes | None = None
    ) -> asyncio.Task[None]:
        async def run() -> None:
            try:
                await job()
            except EtcdError as error:
                self._finish(error)

        task = self._supervisor.spawn(run, f"aioetcd {what} {name or self._name!r}")
        task.add_done_callback(lambda _: self._changed.set())
        return task

    def _finish(self, why: Exception) -> None:
        """It cannot go on."""
        if self._over is None:
            self._over = why
            self._changed.set()

    def _lost(self, error: LeaseLostError) -> None:
        is_closed = error.reason == "closed"
        self._finish(ClientClosedError("the client is closed") if is_closed else error)
        self._end_all()  # at once: `run` may be pausing

    def _end_all(self) -> None:
        for holding in self._holdings.values():
            holding.end()

    async def _follow(self) -> None:
        try:
            while await self._mirror.next() is not None:
                self._changed.set()
        finally:
            await self._mirror.aclose()

    # What is to be done.

    def _reconcile(self) -> None:
        """Do what follows from what the mirror shows, if it shows anything yet."""
        if self._mirror.revision == 0:
            return
        kvs = self._mirror.kvs
        self._show(self._member_key in kvs)
        holders = self._look(kvs)
        if self._is_leaving:
            self._end_all()
            return
        members = [
            member
            for key, kv in kvs.items()
            if key.startswith(self._members)
            and key == self._members + (member := f"{kv.lease or 0:x}").encode()
        ]
        ending = {item for item, holding in self._holdings.items() if holding.is_ending}
        plan = plan_for(self._me, members, self._items, holders, ending=ending)
        for item in plan.release:
            self._holdings[item].end()
        for item in plan.claim:
            if item not in self._holdings:
                self._hold(item, None)

    def _show(self, is_shown: bool) -> None:
        """Have others see that we are there, or that we are not."""
        self.has_joined |= is_shown
        is_busy = self._showing is not None and not self._showing.done()
        if is_shown == self._is_leaving and not is_busy and self._asked_at <= self._mirror.revision:
            self._showing = self._spawn(self._hide if is_shown else self._join, "member of")

    def _look(self, kvs: Mapping[bytes, KeyValue]) -> dict[bytes, str]:
        """See what has become of what is held, and give who has which item."""
        found = {item: kv for item, key in self._keys.items() if (kv := kvs.get(key)) is not None}
        holders = {item: f"{kv.lease or 0:x}" for item, kv in found.items()}
        for item, holding in [*self._holdings.items()]:
            kv = found.get(item)
            if holding.revision is None or holding.revision > self._mirror.revision:
                # What is shown is older.
                if not holding.has_ended:
                    holders[item] = self._me
                elif holding.revision is None and holding.refused_at <= self._mirror.revision:
                    del self._holdings[item]
            elif kv is None or (kv.create_revision, holders[item]) != (holding.revision, self._me):
                holding.is_gone = True
                holding.end()
                if holding.has_ended:
                    del self._holdings[item]
        for item, holder in holders.items():
            if holder == self._me and item not in self._holdings:
                # What nobody has waited for: its answer was lost, or it came late.
                self._hold(item, found[item].create_revision)
        return holders

    # How it is done.

    async def _insist(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        """Try until there is an answer."""
        backoff = Backoff(0.1, 2.0)
        while True:
            try:
                async with self._slots:
                    return await attempt()
            except (*PASSING, NoSpaceError) as error:
                _logger.info("a share of %r waits: %s", self._name, error)
            await anyio.sleep(backoff.next_delay())

    async def _join(self) -> None:
        await self._ask(
            Compare.missing(self._member_key),
            Op.put(self._member_key, self._value, lease=self._tenure.lease_id),
        )

    async def _hide(self) -> None:
        await self._ask(Compare.exists(self._member_key), Op.delete(self._member_key))

    async def _ask(self, compare: Compare, op: AnyOp) -> None:
        result = await self._insist(
            lambda: self._parts.kv.txn(compare=[compare], success=[op], idempotent=True)
        )
        self._asked_at = result.header.revision

    def _hold(self, item: bytes, revision: int | None) -> None:
        holding = self._holdings[item] = Holding(revision)
        holding.task = self._spawn(partial(self._live, item, holding), "share", self._keys[item])

    async def _live(self, item: bytes, holding: Holding) -> None:
        """Claim an item, have it worked on, and give it back."""
        if holding.revision is None:
            await self._insist(partial(self._claim, item, holding))
        if holding.revision is None:
            return
        self._tenure.check()  # the answer may have come too late
        if not holding.is_ending and self._over is None:
            holding.work = asyncio.create_task(
                self._run_work(item, holding.revision), name=f"work on {self._keys[item]!r}"
            )
            holding.work.add_done_callback(partial(self._work_ended, item, holding))
            await asyncio.wait([holding.work])
        await holding.ending.wait()
        await self._may_release.wait()
        if not holding.is_gone:
            await self._insist(partial(self._release, item, holding.revision))

    async def _claim(self, item: bytes, holding: Holding) -> None:
        if holding.is_ending:
            return
        key = self._keys[item]
        look: Op[GetResponse] = Op.get(key)
        result = await self._parts.kv.txn(
            compare=[Compare.missing(key), Compare.exists(self._member_key)],
            success=[Op.put(key, self._value, lease=self._tenure.lease_id)],
            failure=[look],
            idempotent=True,
        )
        kv = None if result.succeeded else result[look].kv
        if result.succeeded:
            holding.revision = result.header.revision
        elif kv is None:  # we are not there for the others
            holding.refused_at = self._mirror.revision + 1
        elif kv.lease == self._tenure.lease_id:  # by an earlier try, whose answer was lost
            holding.revision = kv.create_revision
        else:
            holding.refused_at = kv.create_revision

    async def _release(self, item: bytes, revision: int) -> None:
        key = self._keys[item]
        await self._parts.kv.txn(
            compare=[Compare.create_revision(key) == revision],
            success=[Op.delete(key)],
            idempotent=True,
        )

    async def _run_work(self, item: bytes, revision: int) -> None:
        await self._work(item, revision, self._tenure.lease_id)

    def _work_ended(self, item: bytes, holding: Holding, work: asyncio.Task[None]) -> None:
        self._changed.set()
        if work.cancelled():
            if not holding.is_ending:
                self._finish(RuntimeError(f"the work on {item!r} was cancelled by somebody else"))
            return
        error = work.exception()
        if error is None:
            return
        if self.failure is None:
            self.failure = error
        else:
            _logger.error("the work on %r failed too", item, exc_info=error)

    # Leaving.

    async def _end(self) -> None:
        """End all works, and wait for that, whoever cancels; then give all back."""
        self._is_leaving = True
        self._may_release.clear()
        self._end_all()
        cancelled: asyncio.CancelledError | None = None
        slow = asyncio.get_running_loop().call_later(_MOMENT, self._give_back_first)
        try:
            with anyio.CancelScope(shield=True):
                while any(holding.is_working for holding in self._holdings.values()):
                    try:
                        await self._changed.wait()
                    except asyncio.CancelledError as error:
                        cancelled = error
                    self._changed.clear()
                    if self._may_release.is_set() and self._over is None:
                        self._reconcile()
        finally:
            slow.cancel()
            tasks = [self._following, self._showing, *(h.task for h in self._holdings.values())]
            for task in tasks:
                if task is not None:
                    self._supervisor.stop(task)
            self._tenure.listeners.remove(self._lost)
            revocation = self._tenure.end()
        if revocation is not None:
            await self._supervisor.wait_tidied(revocation, min(PATIENCE, self._tenure.bound))
        if cancelled is not None:
            raise cancelled

    def _give_back_first(self) -> None:
        self._may_release.set()
        self._changed.set()
