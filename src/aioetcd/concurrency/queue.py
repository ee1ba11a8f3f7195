"""Queues: each item is taken once, the first one first."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from time import monotonic

import anyio

from aioetcd._checks import check_int, check_seconds
from aioetcd._constructor import NoPublicConstructor
from aioetcd._transport.supervisor import PATIENCE
from aioetcd.compare import Compare
from aioetcd.concurrency._claim import Claim, Seen
from aioetcd.concurrency._parts import Parts, new_id
from aioetcd.config.timeouts import DEFAULT, Default, deadline_in, seconds_left
from aioetcd.errors import CompactedError, DeadlineExceededError, EtcdError
from aioetcd.keys import encode_key
from aioetcd.types.answers import GetResponse
from aioetcd.types.store import EventType, KeyValue, SortTarget

__all__ = ["PriorityQueue", "Queue"]

# So many items are read at a time: the server sorts the whole queue for that.
_PAGE = 32
_LAST_PRIORITY = 99_999


class Queue(metaclass=NoPublicConstructor):
    """A queue of values in the store; ``client.queue(name)`` makes it, which sends nothing.

    The first item that was put is taken first, and each is given to one taker. It is taken before
    it is given: when the process that has taken it dies, it is gone. What must survive that belongs
    into a work queue.

    Any number of tasks and processes may put and get. A `get` that is cancelled while it takes an
    item has it put back, at the end of the queue, in the background; closing the client waits for
    that up to a second. What could not be put back is logged, with the first 1000 bytes of its
    value.

    Example:
        queue = client.queue("/queues/mails")
        await queue.put("hello")
        await queue.get()  # b"hello"
        await queue.poll()  # None
    """

    # Whether one task may claim an item while another one of this object claims one before it.
    _claims_together = True

    def __init__(self, parts: Parts, name: str | bytes) -> None:
        self._parts = parts
        self._name = encode_key(name, "name")
        self._items = self._name + b"/items/"
        self._receipt = self._name + b"/receipt"
        # What was there when it was looked for last, and nobody here has claimed.
        self._page: deque[Seen] = deque()
        self._seen_at = 0
        self._claiming: set[bytes] = set()
        # What was taken while somebody lists what is there: the answer may still have it.
        self._gone: set[bytes] = set()
        self._listing = 0
        self._is_held_up = False  # by that alone
        # Whose turn it is to look for more, and how it is told that there may be.
        self._turn = asyncio.Lock()
        # Who does not wait for an item takes turns with others like that alone.
        self._quick_turn = asyncio.Lock()
        self._waiting: anyio.CancelScope | None = None

    def __repr__(self) -> str:
        """Show the name."""
        return f"<{type(self).__name__} {self._name!r}>"

    async def put(self, value: str | bytes, *, timeout: float | Default | None = DEFAULT) -> None:
        """Put a value at the end of the queue (RPC ``Put``).

        Args:
            value: What `get` gives.
            timeout: The deadline in seconds; None is none.

        Raises:
            TypeError: The value is neither str nor bytes.
            EtcdError: By cause. With `maybe_applied` it may be in the queue, or have been there and
                be taken.

        Example:
            await client.queue("/queues/mails").put("hello")
        """
        await self._put(self._items, value, timeout)

    async def get(self, *, timeout: float | None = None) -> bytes:
        """Take the first value, and wait for one where there is none.

        It costs one request (RPC ``Txn``), and another one for each 32 items; one more for each
        item that another process was faster with; where it waits, a watch. Tasks are served in the
        order of their coming.

        Args:
            timeout: Wait so many seconds at the most; None waits without limit.

        Raises:
            ValueError: `timeout` is not above 0.
            TypeError: It is no number.
            DeadlineExceededError: There was nothing within it. With `maybe_applied`, nobody has
                answered yet whether an item was taken: if so, it will be put back.
            NoEndpointError: No endpoint could be reached.
            QueueError: Nobody can know whether an item was taken here; it has its key and value.
            EtcdError: By cause.

        Example:
            await client.queue("/queues/mails").put("hello")
            await client.queue("/queues/mails").get(timeout=5)  # b"hello"
        """
        value = await self._take(check_seconds("timeout", timeout), waits=True)
        assert value is not None
        return value

    async def poll(self, *, timeout: float | Default | None = DEFAULT) -> bytes | None:
        """Take the first value; None where there is none.

        Args:
            timeout: The deadline in seconds; None is none.

        Raises:
            EtcdError: As of `get`.

        Example:
            await client.queue("/queues/mails").poll()  # None
        """
        return await self._take(self._parts.calls.resolve_timeout(timeout), waits=False)

    async def size(self, *, timeout: float | Default | None = DEFAULT) -> int:
        """Give how many values are in the queue (RPC ``Range``).

        Args:
            timeout: The deadline in seconds; None is none.

        Raises:
            EtcdError: By cause.

        Example:
            await client.queue("/queues/mails").put("hello")
            await client.queue("/queues/mails").size()  # 1
        """
        found = await self._parts.kv.get(self._items, prefix=True, count_only=True, timeout=timeout)
        return found.count

    async def _put(
        self, prefix: bytes, value: str | bytes, timeout: float | Default | None
    ) -> None:
        kv = self._parts.kv
        deadline = deadline_in(self._parts.calls.resolve_timeout(timeout))
        key = prefix + new_id()
        try:
            await kv.put(key, value, timeout=seconds_left(deadline))
        except EtcdError as error:
            if not error.maybe_applied:
                raise
            try:
                found = await kv.get(key, timeout=seconds_left(deadline))
            except EtcdError:
                raise error from None
            if found.kv is None:  # not yet, or not any more
                raise

    async def _take(self, seconds: float | None, *, waits: bool) -> bytes | None:
        """Take the first one; None where there is none and nobody waits."""
        deadline = deadline_in(seconds)
        with anyio.move_on_after(seconds) as timer:
            while True:
                async with self._turn if waits else self._quick_turn:
                    seen = await self._next(waits=waits)
                    if seen is None:
                        return None
                    if timer.cancel_called:  # in the same step of the event loop
                        self._page.appendleft(seen)
                        break
                    timer.deadline = math.inf  # a claim has its own time
                    if not self._claims_together:
                        claim = await self._claim(seen, deadline)
                if self._claims_together:
                    claim = await self._claim(seen, deadline)
                if claim.is_taken:
                    return claim.item.value
                if claim.is_overtaken:
                    self._page.clear()
                timer.deadline = math.inf if deadline is None else deadline
        picker = self._parts.transport.picker
        if picker.current is None:
            raise picker.unreachable()
        why = "there was nothing" if waits else "nobody has answered whether there is anything"
        raise DeadlineExceededError(f"{why} in the queue {self._name!r}", timeout=seconds)

    async def _next(self, *, waits: bool) -> Seen | None:
        """Give the first one that nobody here has claimed; with `waits`, as soon as there is."""
        while True:
            # So that whoever gives up without a connection has asked nobody.
            await self._parts.transport.wait_connected()
            if self._page:
                return self._page.popleft()
            self._listing += 1
            try:
                kvs, self._seen_at = await self._list()
                kvs = [kv for kv in kvs if kv.key not in self._gone]
            finally:
                self._listing -= 1
                if not self._listing:
                    self._gone.clear()
            self._add(Seen(kv, self._seen_at) for kv in kvs)
            if not self._page:
                if not waits:
                    return None
                self._is_held_up = bool(kvs)
                await self._wait()

    def _place(self, item: KeyValue) -> tuple[bytes, int]:
        """Give what items are sorted by."""
        return b"", item.create_revision

    def _add(self, items: Iterable[Seen]) -> None:
        """Note what was found, but for what somebody here claims just now."""
        found = {seen.kv.key: seen for seen in (*self._page, *items)}
        free = (seen for key, seen in found.items() if key not in self._claiming)
        self._page = deque(sorted(free, key=lambda seen: self._place(seen.kv)))

    async def _list(self) -> tuple[Sequence[KeyValue], int]:
        """Read the first ones, and the revision."""
        found = await self._oldest(self._items)
        return found.kvs, found.header.revision

    async def _oldest(self, prefix: bytes) -> GetResponse:
        limit = _PAGE + len(self._claiming)  # which may still be there
        return await self._parts.kv.get(
            prefix, prefix=True, sort_target=SortTarget.CREATE, limit=limit, timeout=None
        )

    async def _wait(self) -> None:
        """Wait until something is put, or may be there again. It may be for nothing."""
        watch = self._parts.watcher(
            self._items,
            prefix=True,
            start_revision=self._seen_at + 1,
            only=EventType.PUT,
            timeout=None,
        )
        with anyio.CancelScope() as self._waiting, suppress(CompactedError):
            async with watch:
                async for batch in watch.batches():
                    if batch.events:
                        self._add(Seen(event.kv, event.mod_revision) for event in batch.events)
                        return

    def _first(self, item: KeyValue) -> tuple[Compare, ...]:
        """Make what must hold for an item to be the first."""
        return ()

    async def _claim(self, seen: Seen, deadline: float | None) -> Claim:
        """Try to take it."""
        claim = Claim(self._parts, seen, receipt=self._receipt, first=self._first(seen.kv))
        transport = self._parts.transport
        _ = transport.supervisor.tidy(
            claim.run, f"aioetcd claim {seen.kv.key!r}", seconds=math.inf, give_up=claim.give_up
        )
        self._claiming.add(seen.kv.key)
        claim.settled.add_done_callback(lambda _: self._settled(claim, seen))
        patience = [] if transport.timeout is None else [transport.timeout]
        if deadline is not None:
            patience.append(max(deadline - monotonic(), 0.0) + PATIENCE)
        is_abandoned = True
        try:
            await asyncio.wait({claim.settled}, timeout=min(patience, default=None))
            if not claim.settled.done():
                raise DeadlineExceededError(
                    f"the item {seen.kv.key!r} was to be taken, and nobody has answered; if it "
                    "was, it will be put back",
                    timeout=min(patience),
                    maybe_applied=True,
                )
            is_abandoned = False
        finally:
            claim.leave(is_abandoned=is_abandoned)
        if claim.error is not None:
            raise claim.error
        return claim

    def _settled(self, claim: Claim, seen: Seen) -> None:
        """Have others go on, and take it where it is still there."""
        self._claiming.discard(seen.kv.key)
        if claim.error is not None and not claim.error.maybe_applied:
            self._add([seen])
        elif self._listing:
            self._gone.add(seen.kv.key)
        if self._waiting is not None and self._is_held_up:
            self._waiting.cancel()


class PriorityQueue(Queue):
    """A queue that gives the most urgent first; ``client.priority_queue(name)`` makes it.

    Of one priority the first that was put is taken first. Nobody is given a value while there is a
    more urgent one, but where the answer to its claim was lost and that has come since. It is as a
    `Queue` otherwise; of those who get from one object, one at a time takes an item.

    Example:
        queue = client.priority_queue("/queues/mails")
        await queue.put("newsletter", priority=9)
        await queue.put("password reset", priority=1)
        await queue.get()  # b"password reset"
    """

    # One would be refused as long as what is before it is not taken.
    _claims_together = False

    async def put(
        self,
        value: str | bytes,
        *,
        priority: int = 0,
        timeout: float | Default | None = DEFAULT,
    ) -> None:
        """Put a value behind all that are as urgent, or more (RPC ``Put``).

        Args:
            value: What `get` gives.
            priority: From 0, the most urgent, to 99 999.
            timeout: The deadline in seconds; None is none.

        Raises:
            ValueError: The priority is out of its limits.
            TypeError: An argument of the wrong type.
            EtcdError: By cause. With `maybe_applied` it may be in the queue, or have been there and
                be taken.

        Example:
            await client.priority_queue("/queues/mails").put("newsletter", priority=9)
        """
        check_int("priority", priority, 0, _LAST_PRIORITY)
        await self._put(self._items + b"%05d/" % priority, value, timeout)

    def _priority(self, item: KeyValue) -> bytes:
        """Give the part of the key that tells it."""
        return item.key[len(self._items) :].partition(b"/")[0]

    def _place(self, item: KeyValue) -> tuple[bytes, int]:
        return self._priority(item), item.create_revision

    def _first(self, item: KeyValue) -> tuple[Compare, ...]:
        end = self._items + self._priority(item) + b"/"
        return (Compare.missing(self._items, range_end=end),)

    def _add(self, items: Iterable[Seen]) -> None:
        found = [*items]
        first = min(found, key=lambda seen: self._place(seen.kv), default=None)
        # As long as nobody knows whether that is taken, it is in the way of all others.
        if first is None or first.kv.key not in self._claiming:
            super()._add(found)

    async def _list(self) -> tuple[Sequence[KeyValue], int]:
        while True:
            limit = _PAGE + len(self._claiming)
            found = await self._parts.kv.get(self._items, prefix=True, limit=limit, timeout=None)
            if not found.more:
                return found.kvs, found.header.revision
            # By their keys those of the last priority come in any order, and not all of them do.
            last = self._priority(found.kvs[-1])
            whole = [kv for kv in found.kvs if self._priority(kv) != last]
            if whole:
                return whole, found.header.revision
            found = await self._oldest(self._items + last + b"/")
            if found.kvs:
                return found.kvs, found.header.revision
