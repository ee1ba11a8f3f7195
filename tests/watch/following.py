"""What tests of watches share: consumers that write down what they got, the server's view."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.abc
import pytest

from aioetcd import Client, DeleteResponse, EtcdError, Event, EventType, Op
from aioetcd._proto import rpc_pb2
from aioetcd._transport.wish import Wish
from aioetcd.testing import RecordedClient, Recorder
from aioetcd.testing.checkers import assert_clean, check_history
from aioetcd.testing.checkers.requests import all_requests
from aioetcd.testing.history import (
    EventKind,
    Operation,
    StoreRevision,
    Subscription,
)
from aioetcd.watch import Watch
from aioetcd.watch._rules import _EVENT_OVERHEAD, WatchRules

WATCHERS = "etcd_debugging_mvcc_watcher_total"
STREAMS = "etcd_debugging_mvcc_watch_stream_total"


async def take(watch: Watch, count: int, *, within: float = 10.0) -> list[Event]:
    """Give the next events; the loop over the watch is left in between."""
    events: list[Event] = []
    with anyio.fail_after(within):
        async for event in watch:
            events.append(event)
            if len(events) == count:
                break
    return events


def short(events: list[Event] | tuple[Event, ...]) -> list[tuple[str, bytes, bytes]]:
    """Give type, key and value."""
    return [(event.type.name, event.kv.key, event.kv.value) for event in events]


def revisions(events: list[Event] | tuple[Event, ...]) -> list[int]:
    """Give the revisions of events."""
    return [event.kv.mod_revision for event in events]


class Follower:
    """Reads a watch in a task of its own and records what it delivers.

    Attributes:
        name: Its name in the records.
        watch: The watch.
        revision: All up to here was delivered.
        batches: How many deliveries there were.
        error: What the watch ended with.
        has_ended: Whether the loop is over.
    """

    def __init__(self, recorder: Recorder, name: str, watch: Watch, *, pace: float = 0.0) -> None:
        self.watch = watch
        self.revision = watch.revision
        self.batches = 0
        self.error: EtcdError | None = None
        self.has_ended = False
        self.name = name
        self._recorder = recorder
        self._pace = pace

    async def run(self) -> None:
        """Read until the watch ends."""
        try:
            async for batch in self.watch.batches():
                self._recorder.delivered(self.name, batch.revision, batch.events)
                self.revision = batch.revision
                self.batches += 1
                if self._pace:
                    await anyio.sleep(self._pace)
        except EtcdError as error:
            self.error = error
        finally:
            self.has_ended = True

    async def wait_for(self, revision: int, *, within: float = 15.0) -> None:
        """Wait until all up to a revision was delivered."""
        with anyio.move_on_after(within):
            while self.revision < revision:
                if self.has_ended:
                    raise AssertionError(f"{self.name} ended at {self.revision}: {self.error!r}")
                await anyio.sleep(0.002)
            return
        raise AssertionError(f"{self.name} is at {self.revision} after {within} s, not {revision}")


class Following:
    """The followers of one test, and the history that they are checked against."""

    def __init__(self, group: anyio.abc.TaskGroup, recorder: Recorder) -> None:
        self.recorder = recorder
        self.followers: list[Follower] = []
        self._group = group

    async def add(
        self, client: Client, key: str, *, name: str | None = None, pace: float = 0.0, **how: Any
    ) -> Follower:
        """Open a watch, and follow it in the background."""
        watch = client.watch(key, **how)
        await watch.__aenter__()  # the follower's end is the test's, which cancels and closes
        follower = Follower(self.recorder, name or f"w{len(self.followers)}", watch, pace=pace)
        only: EventType | None = how.get("only")
        prefix = key.encode()
        self.recorder.add(
            Subscription(
                watch=follower.name,
                key=prefix,
                start_revision=how.get("start_revision") or watch.revision + 1,
                range_end=prefix[:-1] + bytes([prefix[-1] + 1]) if how.get("prefix") else None,
                only=None if only is None else EventKind[only.name],
                prev_kv=how.get("prev_kv", False),
            )
        )
        self.followers.append(follower)
        self._group.start_soon(follower.run)
        return follower

    async def add_all_kinds(self, client: Client, prefix: str, **how: Any) -> None:
        """Follow a `Traffic` in all ways on one stream: with what was before, filtered, slowly."""
        await self.add(client, prefix, name="all", prefix=True, prev_kv=True, **how)
        await self.add(client, prefix, name="puts", prefix=True, only=EventType.PUT, **how)
        await self.add(client, prefix, name="deletes", prefix=True, only=EventType.DELETE, **how)
        await self.add(client, f"{prefix}0", name="key", **how)
        await self.add(client, prefix, name="slow", prefix=True, pace=0.002, **how)

    async def wait_for(self, revision: int, *, within: float = 15.0) -> None:
        """Wait until all followers are there."""
        for follower in self.followers:
            await follower.wait_for(revision, within=within)

    async def check(self, *, store: Client, start_revision: int, through: int) -> None:
        """Compare all that was delivered up to `through` with the store's own history."""
        if not self.recorder.of(StoreRevision):
            await read_history(store, self.recorder, start_revision, through)
        written = {
            each.key for op in self.recorder.of(Operation) for each in all_requests(op.request)
        }
        found = check_history(
            self.recorder,
            outside=lambda event: event.kv.key not in written,
            watched_through=through,
        )
        assert_clean(found)


async def read_history(store: Client, recorder: Recorder, first: int, last: int) -> None:
    """Write down everything that the store did, told to a client without faults at the end."""
    if last < first:
        return
    everything = store.watch("", prefix=True, start_revision=first, prev_kv=True, timeout=None)
    with anyio.fail_after(30):
        async with everything as watch:
            async for batch in watch.batches():
                recorder.stored(e for e in batch.events if e.kv.mod_revision <= last)
                if batch.revision >= last:
                    return


@contextlib.asynccontextmanager
async def following(recorder: Recorder | None = None) -> AsyncIterator[Following]:
    """Follow watches; at the end of the block they are given up."""
    async with anyio.create_task_group() as group:
        followed = Following(group, Recorder() if recorder is None else recorder)
        try:
            yield followed
        finally:
            for follower in followed.followers:
                await follower.watch.aclose()
            group.cancel_scope.cancel()


class Traffic:
    """Writes below a prefix: puts, deletes and txns, each value once, each call recorded.

    Attributes:
        revision: The last one that was told.
        failures: Calls that were not answered.
    """

    def __init__(
        self, client: Client, recorder: Recorder, prefix: str, rng: random.Random, *, keys: int = 20
    ) -> None:
        self.revision = 0
        self.failures = 0
        self._kv = RecordedClient(client, recorder, "writer").kv
        self._keys = [f"{prefix}{number}".encode() for number in range(keys)]
        self._rng = rng
        self._count = 0

    def _value(self, key: bytes) -> bytes:
        self._count += 1
        return b"%s=%d" % (key, self._count)

    async def write(self) -> None:
        """Write once."""
        kind = self._rng.random()
        (key,) = self._rng.sample(self._keys, 1)
        if kind < 0.6:
            header = (await self._kv.put(key, self._value(key))).header
        elif kind < 0.75:
            header = (await self._kv.delete(key)).header
        else:
            keys = self._rng.sample(self._keys, self._rng.randint(2, 5))
            header = (await self._kv.txn(success=[Op.put(k, self._value(k)) for k in keys])).header
        self.revision = max(self.revision, header.revision)

    async def run(self, per_second: float) -> None:
        """Write until cancelled, whatever happens."""
        due = anyio.current_time()
        while True:
            due = max(due + 1 / per_second, anyio.current_time() - 0.1)
            await anyio.sleep_until(due)
            try:
                await self.write()
            except EtcdError:
                self.failures += 1

    async def last_word(self, *, within: float = 30.0) -> int:
        """Write something for every kind of watch, once that works, and give its revision."""
        end = self._keys[0] + b"/end"
        with anyio.fail_after(within):
            while True:
                try:
                    await self._kv.put(end, self._value(end))
                    done = await self._kv.txn(
                        success=[Op.put(self._keys[0], self._value(self._keys[0])), Op.delete(end)]
                    )
                except EtcdError:
                    self.failures += 1
                else:
                    deletion = done.responses[1]
                    assert isinstance(deletion, DeleteResponse)
                    assert deletion.deleted == 1
                    self.revision = max(self.revision, done.header.revision)
                    return done.header.revision


@contextlib.contextmanager
def takes_at_most(seconds: float) -> Iterator[None]:
    """Fail where the block took longer, without cutting it short."""
    start = anyio.current_time()
    yield
    assert anyio.current_time() - start <= seconds


async def fill(client: Client, count: int, *, each: int, digits: int) -> None:
    """Put keys below ``k``, so many in a transaction, each of a letter and so many digits."""
    for first in range(0, count, each):
        await client.kv.txn(
            success=[Op.put(f"k{n:0{digits}}", "") for n in range(first, first + each)]
        )


async def take_revision(watch: Watch, revision: int, count: int) -> None:
    """Take so many events, all of them of one revision."""
    got = 0
    with anyio.fail_after(20):
        async for batch in watch.batches():
            assert batch.revision == revision
            got += len(batch.events)
            if got == count:
                break


async def put_all(client: Client, *keys: str) -> int:
    """Put keys one by one, each with its own name as its value."""
    revision = 0
    for key in keys:
        revision = (await client.kv.put(key, key)).header.revision
    return revision


def whole_answers(monkeypatch: pytest.MonkeyPatch, split: int) -> list[int]:
    """Keep the sizes of answers that etcd should have split, and did not.

    It does not split what it had found before it announced the watch, at any version: such an
    answer follows the announcement, and where another does, it is not etcd that is at fault.
    """
    whole: list[int] = []
    announced: set[int] = set()
    received = WatchRules.received

    def watched(
        rules: WatchRules, response: rpc_pb2.WatchResponse, size: int, now: float
    ) -> Wish | None:
        if response.created:
            announced.add(response.watch_id)
        elif size < split:
            announced.discard(response.watch_id)
        else:
            assert response.watch_id in announced, "not split, and not the first"
            whole.append(size + len(response.events) * _EVENT_OVERHEAD)
        return received(rules, response, size, now)

    monkeypatch.setattr(WatchRules, "received", watched)
    return whole
