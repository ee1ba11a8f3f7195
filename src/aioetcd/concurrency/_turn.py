"""A place in a queue of keys, served in the order of their create revisions.

Everybody in the queue has a key of its own below the queue's name, with a lease: the name, a slash,
and the lease's id in hexadecimal, as the Go client, `etcdctl lock` and `etcdctl elect` have it. The
first key has its turn; each other one waits for the one just before it to be deleted. Queues may be
waited for by others: readers wait for writers alone, writers for both. And where several have their
turn at a time, one waits until there are fewer before it.

What holds at any moment:

- The key was put by one txn, which compares that it was not there; `revision` is its create
  revision, also where the answer to that txn was lost.
- From then on to the end its deletion is a loss, and watched for.
- Nobody waits for a key that is none of a queue's: that might stay for ever.
- On one lease, one has the key at a time, from before it is put until it is surely deleted. Where
  nobody knows whether it was put, it is deleted whenever it arrives.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence, Set
from time import monotonic

import anyio

from aioetcd._transport.backoff import Backoff
from aioetcd._transport.methods import IDEMPOTENT_TXN, RANGE
from aioetcd.compare import Compare
from aioetcd.concurrency._parts import Parts
from aioetcd.concurrency._tenure import Seat, Tenure
from aioetcd.config.timeouts import seconds_left
from aioetcd.errors import ClientClosedError, CompactedError, EtcdError
from aioetcd.ops import AnyOp, Op, TxnResponse
from aioetcd.types.answers import GetResponse
from aioetcd.types.store import EventType, KeyValue, SortOrder, SortTarget
from aioetcd.watch import Watcher

logger = logging.getLogger("aioetcd.concurrency")

# A member that was stopped carries out what it had received, and nobody answered, when it goes on.
# So long that is waited for.
_LATE = 300.0


class Turn:
    """One's place in a queue.

    Args:
        parts: Take the place, and watch the keys.
        tenure: The lease of the key.
        queue: The queue's name and a slash.
        behind: The queues of those whose turn is over first: the longest prefix that they have in
            common, and each of them.
        permits: So many have their turn at a time.
        value: What others see.
        on_lost: Called with the reason, and the error behind it, when the place is lost.
    """

    def __init__(
        self,
        parts: Parts,
        tenure: Tenure,
        *,
        queue: bytes,
        behind: tuple[bytes, ...],
        permits: int,
        value: bytes,
        on_lost: Callable[[str, EtcdError | None], None],
    ) -> None:
        self._transport, self._calls, self._kv, _, self._watcher = parts
        self._tenure = tenure
        self._queue = queue
        self._prefix, *queues = behind
        self._queues = queues or behind
        self._permits = permits
        self._value = value
        self._on_lost = on_lost
        self._revision: int | None = None
        self._maybe_put = False
        self._may_be_late = False
        self._ended = False
        self._seat: Seat | None = None
        self._watching: asyncio.Task[None] | None = None

    @property
    def key(self) -> bytes:
        """One's own key."""
        return self._queue + f"{self._tenure.lease_id:x}".encode()

    @property
    def _place(self) -> bytes:
        """The key at the server: a lease may have keys in many namespaces."""
        return self._calls.prefix + self.key

    @property
    def revision(self) -> int:
        """The key's create revision.

        Raises:
            RuntimeError: It was not put.
        """
        if self._revision is None:
            raise RuntimeError(f"the key {self.key!r} was not put")
        return self._revision

    def is_owner(self) -> Compare:
        """Make the comparison that holds as long as the key is there."""
        return Compare.create_revision(self.key) == self.revision

    def is_ours(self, kv: KeyValue | None) -> bool:
        """Whether it is the key that was put here."""
        return kv is not None and kv.create_revision == self._revision

    def is_behind(self, kv: KeyValue | None) -> bool:
        """Whether it is our key, though nobody has answered that perhaps, or one after it."""
        if kv is None:
            return False
        is_later = self._revision is not None and kv.create_revision > self._revision
        return is_later or (kv.key == self.key and self._maybe_put)

    async def take_if_first(self) -> KeyValue | None:
        """Take a place if nobody has one. Give the first key of the queue if it is another's."""
        # Whoever has the place on this lease is about to put the key, or to delete it.
        backoff = Backoff(0.005, 0.2)
        while self._tenure.seat(self._place).is_taken:
            found = await self._kv.txn(success=[self._get_first(), Op.get(self.key)])
            for each in found.responses:
                if isinstance(each, GetResponse) and each.kv is not None:
                    return each.kv
            await anyio.sleep(backoff.next_delay())
        await self._take_seat()  # at once: nobody can have come in between
        backoff.reset()
        while True:
            room = await self._room()
            if isinstance(room, KeyValue):
                return room
            result = await self._put_own(
                room,
                Compare.create_revision(self.key) == 0,
                then=(),
                otherwise=(Op.get(self.key), self._get_first()),
            )
            if result.succeeded:
                self._begin(result.header.revision)
                return None
            own, first = result.responses
            if isinstance(own, GetResponse) and own.kv is not None:
                return await self._adopt(own.kv)
            self._maybe_put = False
            if self._permits == 1:
                return _found(first)
            await anyio.sleep(backoff.next_delay())  # somebody came: there may still be room

    async def _room(self) -> Compare | KeyValue:
        """Give what holds as long as there is room; where there is none, the first key."""
        created = Compare.create_revision(self._prefix, prefix=True)
        if self._permits == 1:
            return created == 0
        found = await self._kv.get(
            self._prefix,
            prefix=True,
            sort_target=SortTarget.CREATE,
            sort_order=SortOrder.ASCEND,
            limit=self._permits,
        )
        if len(found.kvs) == self._permits:
            return found.kvs[0]
        return created < found.header.revision + 1  # a txn cannot count: nobody has come since

    async def _adopt(self, own: KeyValue) -> KeyValue | None:
        """Take the key that an earlier try has put; give the first one if too many are before."""
        self._begin(own.create_revision)
        await self._correct(own)
        if len((await self._before()).kvs) < self._permits:
            return None
        first = await self.first()
        return None if first is None or first.create_revision >= own.create_revision else first

    async def _correct(self, own: KeyValue) -> None:
        """Have others see our value where an earlier try, perhaps another's, has put its own."""
        if own.value != self._value:
            put = Op.put(self.key, self._value, lease=self._tenure.lease_id)
            await self._kv.txn(compare=[self.is_owner()], success=[put], idempotent=True)

    async def take(self) -> KeyValue | None:
        """Take a place at the end of the queue, and wait for the turn.

        A key in the way that is none of a queue's is not waited for, but given.
        """
        first = await self.take_place()
        if first is None or first.key == self.key:
            return None
        if not self.is_queued(first):
            return first
        while len(before := (found := await self._before()).kvs) == self._permits:
            if (alien := next((kv for kv in before if not self.is_queued(kv)), None)) is not None:
                return alien
            # As long as all of these are there, it is not one's turn.
            await wait_deleted(
                self._watcher,
                {kv.key for kv in before},
                found.header.revision + 1,
                prefix=self._prefix,
            )
        # The wait may have ended because the queue was swept away, our key with it.
        if not self.is_ours((await self._kv.get(self.key)).kv):
            self._lost("its key was deleted while it waited")
        return None

    async def take_place(self) -> KeyValue | None:
        """Take a place at the end of the queue; give the first of those that are waited for."""
        result = await self._put_own(
            Compare.create_revision(self.key) == 0,
            then=(self._get_first(),),
            otherwise=(Op.get(self.key), self._get_first()),
        )
        own, first = result.responses
        if isinstance(own, GetResponse):
            # An earlier try, whose answer was lost, has put it.
            self._begin(_found(own).create_revision)
            await self._correct(_found(own))
        else:
            self._begin(result.header.revision)
        assert isinstance(first, GetResponse)
        return first.kv

    async def first(self) -> KeyValue | None:
        """Read the first key of the queue."""
        result = await self._kv.txn(success=[self._get_first()])
        (found,) = result.responses
        return found.kv if isinstance(found, GetResponse) else None

    def is_queued(self, kv: KeyValue) -> bool:
        """Whether a key is that of somebody in the queue, who leaves it some day."""
        if kv.lease is None:
            return False
        own = f"{kv.lease:x}".encode()
        return any(kv.key == queue + own for queue in (self._queue, *self._queues))

    def end(self, *, delete: bool) -> asyncio.Task[None] | None:
        """Leave the queue: stop watching, at once, and start to delete the key.

        Args:
            delete: False leaves that to the end of the lease.
        """
        self._ended = True
        if self._watching is not None:
            self._transport.supervisor.stop(self._watching)
        seat, self._seat = self._seat, None
        if seat is None:
            return None
        if not delete or not self._maybe_put or not self._tenure.is_held:
            seat.leave()
            if delete and self._may_be_late:
                self._expect_late_put()
            return None

        task = self._transport.supervisor.tidy(
            self._delete, f"aioetcd delete {self.key!r}", seconds=math.inf, give_up=self._warn
        )

        def leave(_: object) -> None:
            # Not before the key is gone: the next one would take it for its own.
            seat.leave()
            if self._may_be_late:
                self._expect_late_put()

        task.add_done_callback(leave)
        return task

    async def _delete(self, seconds: float) -> None:
        """Delete the key, however long that takes: its lease is renewed for others meanwhile."""
        deadline = monotonic() + seconds
        backoff = Backoff(0.1, 1.0)
        is_first = is_looked_for = True
        while self._tenure.is_held:
            left = min(seconds_left(deadline), self._tenure.bound)
            try:
                if self._revision is None:
                    request = Op.get(self.key)._request
                    found = await self._calls.last_unary(RANGE, request, left)
                    if not found.kvs and is_looked_for:
                        is_looked_for = False  # what was cancelled a moment ago may just arrive
                        await anyio.sleep(0.1)
                        continue
                    if not found.kvs:
                        return
                    self._revision = found.kvs[0].create_revision
                deletion = self._deletion(self._revision)._request
                await self._calls.last_unary(IDEMPOTENT_TXN, deletion, left)
            except EtcdError as error:
                if monotonic() >= deadline:
                    raise
                if is_first:
                    self._warn(str(error))
                is_first = False
                await anyio.sleep(backoff.next_delay())
            else:
                return

    def _expect_late_put(self) -> None:
        """What nobody has waited for may still arrive, and nobody would delete it."""
        late = self._tenure.late
        if not self._tenure.is_held:
            return
        until = self._tenure.late_until
        until[self._place] = monotonic() + _LATE
        if self._place in late:
            return
        try:
            task = self._transport.supervisor.spawn(
                self._delete_late, f"aioetcd late puts of {self.key!r}"
            )
        except ClientClosedError:
            return  # the lease is revoked
        late[self._place] = task
        task.add_done_callback(lambda _: (late.pop(self._place), until.pop(self._place)))

    async def _delete_late(self) -> None:
        """Delete the key whenever it is there and nobody on this lease has it."""
        backoff = Backoff(0.1, 5.0)
        while (left := self._tenure.late_until[self._place] - monotonic()) > 0:
            watch = self._watcher(self.key, only=EventType.PUT, timeout=None)
            with anyio.move_on_after(left):
                try:
                    async with watch:
                        await self._delete_if_nobodys()
                        async for _ in watch:
                            await self._delete_if_nobodys()
                except ClientClosedError:
                    return
                except EtcdError as error:
                    logger.debug("cannot look for late puts of %r: %s", self.key, error)
                    await anyio.sleep(backoff.next_delay())

    async def _delete_if_nobodys(self) -> None:
        seat = self._tenure.seat(self._place)
        await seat.take()
        try:
            found = (await self._kv.get(self.key)).kv
            if found is not None:
                deletion = self._deletion(found.create_revision)._request
                await self._calls.unary(IDEMPOTENT_TXN, deletion)
        finally:
            seat.leave()

    def _deletion(self, revision: int) -> Op[TxnResponse]:
        """Delete the key of that create revision: it may arrive when there is another's."""
        return Op.txn(
            compare=[Compare.create_revision(self.key) == revision], success=[Op.delete(self.key)]
        )

    def _warn(self, why: str) -> None:
        logger.warning(
            "the key %r could not be deleted, others wait for that or for the end of its lease: %s",
            self.key,
            why,
        )

    async def _take_seat(self) -> None:
        """Wait until nobody else on this lease has the key."""
        if self._seat is None:
            seat = self._tenure.seat(self._place)
            await seat.take()
            self._seat = seat

    async def _put_own(
        self, *compare: Compare, then: Sequence[AnyOp], otherwise: Sequence[AnyOp]
    ) -> TxnResponse:
        """Put the key if all that holds, as soon as nobody else on this lease has it."""
        await self._take_seat()
        await self._transport.wait_connected()
        put = Op.put(self.key, self._value, lease=self._tenure.lease_id)
        self._maybe_put = self._may_be_late = True
        retries = self._transport.monitor.retries
        try:
            result = await self._kv.txn(
                compare=compare, success=[put, *then], failure=otherwise, idempotent=True
            )
        except EtcdError as error:
            self._maybe_put = self._may_be_late = error.maybe_applied
            raise
        # An earlier try that a member did not answer may be carried out by it after all.
        self._may_be_late = self._transport.monitor.retries != retries
        return result

    def _get_first(self) -> AnyOp:
        return Op.get(
            self._prefix,
            prefix=True,
            sort_target=SortTarget.CREATE,
            sort_order=SortOrder.ASCEND,
            limit=1,
        )

    async def _before(self) -> GetResponse:
        """Find the keys just before ours: as many as may have their turn."""
        # Not `keys_only`: etcd from 3.7 on answers that from its index, which knows no leases.
        return await self._kv.get(
            self._prefix,
            prefix=True,
            sort_target=SortTarget.CREATE,
            sort_order=SortOrder.DESCEND,
            limit=self._permits,
            max_create_revision=self.revision - 1,
        )

    def _begin(self, revision: int) -> None:
        """Our key is there: from now on its deletion is a loss."""
        self._revision = revision
        self._watching = self._transport.supervisor.spawn(
            self._watch_own_key, f"aioetcd watch of {self.key!r}"
        )

    async def _watch_own_key(self) -> None:
        start_revision = self.revision + 1
        try:
            while not await wait_deleted(self._watcher, {self.key}, start_revision):
                found = await self._kv.get(self.key)
                if not self.is_ours(found.kv):
                    break
                start_revision = found.header.revision + 1
        except ClientClosedError:
            return  # the lease tells
        except EtcdError as error:
            self._lost(f"its key cannot be watched: {error}", error)
        else:
            self._lost("its key was deleted")

    def _lost(self, why: str, cause: EtcdError | None = None) -> None:
        if not self._ended:
            self._on_lost(why, cause)


async def wait_deleted(
    watcher: Watcher, keys: Set[bytes], start_revision: int, *, prefix: bytes = b""
) -> bool:
    """Wait until one of these is deleted. False: the history was compacted, look again.

    Args:
        watcher: Watches them.
        keys: They.
        start_revision: They were there before it.
        prefix: What all of them begin with, where they are many.
    """
    is_one = len(keys) == 1
    watch = watcher(
        min(keys) if is_one else prefix,
        prefix=not is_one,
        start_revision=start_revision,
        only=EventType.DELETE,
        timeout=None,
    )
    try:
        async with watch:
            while (await anext(watch)).kv.key not in keys:
                pass
    except CompactedError:
        return False
    return True


def _found(response: object) -> KeyValue:
    """Give the key that a txn must have found."""
    if isinstance(response, GetResponse) and response.kv is not None:
        return response.kv
    raise EtcdError(
        f"the server's answer is none to what it was asked: {response!r}", maybe_applied=True
    )
