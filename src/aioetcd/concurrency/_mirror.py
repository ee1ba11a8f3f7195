"""Keys that are followed: listed, then watched, and listed again after a compaction.

What holds at any moment:

- `kvs` is what the store had at `revision`, all of it; it changes from one revision to another as a
  whole, and never backwards.
- The changes that were told, applied one after the other to nothing, are `kvs`: also where the
  history between two listings is gone, and their difference is told in its place.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import suppress
from itertools import groupby
from time import monotonic
from typing import NamedTuple

import anyio

from aioetcd._transport.backoff import PASSING, Backoff
from aioetcd.concurrency._parts import Parts
from aioetcd.config.timeouts import DEFAULT, Default
from aioetcd.errors import CompactedError
from aioetcd.keys import encode
from aioetcd.ops import Op
from aioetcd.types.store import Batch, Event, EventType, KeyValue
from aioetcd.watch import Watch

# The first listing fails when so many were overtaken by compactions.
_TRIES = 5


class Step(NamedTuple):
    """One key that has changed: what it was, and what it is; None where it is not there."""

    old: KeyValue | None
    new: KeyValue | None


class Mirror:
    """A key, or those below a prefix.

    Args:
        parts: List and watch.
        key: The key, or the prefix.
        prefix: Which of both it is.

    Attributes:
        key: The key, or the prefix.
        kvs: What is there, by key.
        revision: The revision that they are of; 0 before the first listing.
    """

    def __init__(self, parts: Parts, key: str | bytes, *, prefix: bool) -> None:
        Op.get(key, prefix=prefix)  # which checks them
        self.key: bytes = encode("key", key)
        self.kvs: dict[bytes, KeyValue] = {}
        self.revision: int = 0
        self._kv = parts.kv
        self._ending = parts.transport.ending
        self._watcher = parts.watcher
        self._prefix = prefix
        self._backoff = Backoff(0.1, 5.0)
        # What has come and was not given: revisions, and their events.
        self._pending: deque[tuple[int, list[Event]]] = deque()
        self._closed = False
        self._waiting: anyio.CancelScope | None = None
        self._watch: Watch | None = None
        self._batches: AsyncIterator[Batch] | None = None
        # When all that the store had was known at the latest, where no watch says so.
        self._current_at = -math.inf

    @property
    def is_connected(self) -> bool:
        """Whether changes arrive, as far as this client knows."""
        # In the child of a fork no watch is told of the end.
        is_open = self._ending.reason is None
        return is_open and self._watch is not None and self._watch.is_connected

    @property
    def stale_for(self) -> float | None:
        """For how many seconds changes may have been missed so far; None while they arrive."""
        if self.is_connected:
            self._current_at = monotonic()
            return None
        stale_for = None if self._watch is None else self._watch.stale_for
        return monotonic() - self._current_at if stale_for in (None, math.inf) else stale_for

    async def store_revision(self, timeout: float | Default | None) -> int:
        """Ask the quorum which revision the store is at."""
        # A single key, and one that may be read: the server would count those of a prefix.
        found = await self._kv.get(self.key or b"\0", count_only=True, timeout=timeout)
        return found.header.revision

    async def ask(self) -> None:
        """Have the server say up to where everything has arrived: `revision` moves on.

        Raises:
            UnsupportedByServerError: It does not know.
        """
        if self._watch is not None:
            with suppress(RuntimeError):  # it has just ended
                await self._watch.request_progress()

    async def list_again(self) -> None:
        """Read all keys again; where they are about to be read anyhow, it does nothing."""
        if self._watch is not None and self._watch.is_connected:
            await self._watch.aclose()

    async def aclose(self) -> None:
        """Follow no more: whoever waits for `next` is given None."""
        self._closed = True
        if self._waiting is not None:
            self._waiting.cancel()
        if self._watch is not None:
            await self._watch.aclose()

    async def next(self) -> list[Step] | None:
        """Give what has changed with the next revision; at first everything is new.

        There is nothing in it where only `revision` has; None where it was closed. To be cancelled
        loses nothing.

        Raises:
            EtcdError: The first listing failed, or what follows it, or there can be no other.
        """
        # Not a generator: one that is cancelled while it waits has ended.
        if not self._closed:
            with anyio.CancelScope() as self._waiting:
                return await self._next()
        return None

    async def _next(self) -> list[Step]:
        while not self._pending:
            if self._batches is None:
                return await self._begin()
            try:
                batch = await anext(self._batches)
            except (CompactedError, StopAsyncIteration):
                # How old it is then is not what the watch says, which has just been answered.
                self._watch = self._batches = None
            else:
                self._current_at = monotonic()
                self._backoff.reset()
                self._pending += _revisions(batch)
        return self._apply(*self._pending.popleft())

    async def _begin(self) -> list[Step]:
        """Read all keys, begin to follow them, and give what is another than before."""
        is_first, tries = self.revision == 0, 0
        while True:
            asked_at = monotonic()
            try:
                revision = await self.store_revision(DEFAULT)
                kvs: dict[bytes, KeyValue] = {}
                async for kv in self._kv.scan(self.key, prefix=self._prefix, revision=revision):
                    kvs[kv.key] = kv
                break
            except CompactedError:  # somebody compacts just now, perhaps again and again
                tries += 1
                if is_first and tries == _TRIES:
                    raise
            except PASSING:
                if is_first:
                    raise
            await anyio.sleep(self._backoff.next_delay())
        watch = self._watcher(
            self.key,
            prefix=self._prefix,
            start_revision=revision + 1,
            timeout=DEFAULT if is_first else None,
        )
        if is_first:
            await watch.__aenter__()  # so that whoever waits for the keys is told the truth
        self._watch, self._batches = watch, watch.batches()
        old, self.kvs, self.revision = self.kvs, kvs, revision
        self._current_at = asked_at
        gone = [Step(kv, None) for key, kv in old.items() if key not in kvs]
        return gone + [Step(old.get(key), kv) for key, kv in kvs.items() if old.get(key) != kv]

    def _apply(self, revision: int, events: Iterable[Event]) -> list[Step]:
        steps = []
        for event in events:
            key = event.kv.key
            if event.type is EventType.PUT:
                steps.append(Step(self.kvs.get(key), event.kv))
                self.kvs[key] = event.kv
            elif (old := self.kvs.pop(key, None)) is not None:
                steps.append(Step(old, None))
        self.revision = revision
        return steps


def _revisions(batch: Batch) -> Iterator[tuple[int, list[Event]]]:
    """Give the events of each revision; at the end, what the batch says beyond them."""
    last = 0
    for last, events in groupby(batch.events, key=lambda event: event.kv.mod_revision):
        yield last, [*events]
    if last < batch.revision:
        yield batch.revision, []
