"""All keys below a prefix, followed: listed, then watched, and listed again after a compaction.

What holds at any moment:

- `kvs` is what the store had at `revision`, all of it; it changes from one revision to another as a
  whole, and never backwards.
- The changes that were told, applied one after the other to nothing, are `kvs`: also where the
  history between two listings is gone, and their difference is told in its place.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

import anyio

from aioetcd._transport.backoff import Backoff
from aioetcd.concurrency._parts import PASSING, Parts
from aioetcd.errors import CompactedError
from aioetcd.types.store import Batch, Event, EventType, KeyValue
from aioetcd.watch import Watch


class Step(NamedTuple):
    """One key that has changed: what it was, and what it is; None where it is not there."""

    old: KeyValue | None
    new: KeyValue | None


class Mirror:
    """The keys below a prefix.

    Args:
        parts: List and watch.
        prefix: What the keys begin with.

    Attributes:
        kvs: They, by key.
        revision: The revision that they are of; 0 before the first listing.
        watch: What follows them; None while they are listed.
    """

    def __init__(self, parts: Parts, prefix: bytes) -> None:
        self.kvs: dict[bytes, KeyValue] = {}
        self.revision: int = 0
        self.watch: Watch | None = None
        self._kv = parts.kv
        self._watcher = parts.watcher
        self._prefix = prefix

    async def steps(self) -> AsyncGenerator[list[Step], None]:
        """Give what has changed, one revision at a time, for ever; at first everything is new.

        There is nothing in a step where only `revision` has.

        Raises:
            EtcdError: The first listing failed, or there can be no other.
        """
        yield await self._list()
        backoff = Backoff(0.1, 5.0)
        while True:
            try:
                async with self._watcher(
                    self._prefix, prefix=True, start_revision=self.revision + 1, timeout=None
                ) as self.watch:
                    async for batch in self.watch.batches():
                        for revision, events in _revisions(batch):
                            yield self._apply(revision, events)
                        backoff.reset()
            except CompactedError:
                pass
            finally:
                self.watch = None
            while True:
                try:
                    steps = await self._list()
                    break
                except PASSING:
                    await anyio.sleep(backoff.next_delay())
            yield steps

    async def _list(self) -> list[Step]:
        """Read all keys, and give what is another than before."""
        while True:
            now = await self._kv.get(self._prefix, prefix=True, count_only=True)
            revision = now.header.revision
            kvs: dict[bytes, KeyValue] = {}
            try:
                async for kv in self._kv.scan(self._prefix, prefix=True, revision=revision):
                    kvs[kv.key] = kv
            except CompactedError:
                continue  # somebody compacts just now
            break
        old, self.kvs, self.revision = self.kvs, kvs, revision
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


def _revisions(batch: Batch) -> Iterator[tuple[int, Iterable[Event]]]:
    """Give the events of each revision; at the end, what the batch says beyond them."""
    last = 0
    for last, events in groupby(batch.events, key=lambda event: event.kv.mod_revision):
        yield last, events
    if last < batch.revision:
        yield batch.revision, ()
