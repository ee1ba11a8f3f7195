"""What tests of watches share: consumers that write down what they got, the server's view."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.abc

from aioetcd import Client, EtcdError, Event, EventType, Op
from aioetcd.testing import Recorder
from aioetcd.testing.checkers import assert_clean, check_history
from aioetcd.testing.history import (
    Delete,
    EventKind,
    Operation,
    Put,
    Request,
    StoreRevision,
    Subscription,
    Txn,
)
from aioetcd.watch import Watch

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
        written = {key for op in self.recorder.of(Operation) for key in keys_of(op.request)}
        found = check_history(
            self.recorder,
            outside=lambda event: event.kv.key not in written,
            watched_through=through,
        )
        assert_clean(found)


def keys_of(request: Request) -> set[bytes]:
    """The keys that a request names."""
    if isinstance(request, Txn):
        return {op.key for op in (*request.success, *request.failure)}
    return {request.key}


async def read_history(store: Client, recorder: Recorder, first: int, last: int) -> None:
    """Write down everything that the store did, told to a client without faults at the end."""
    if last < first:
        return
    with anyio.fail_after(20):
        async with store.watch("", prefix=True, start_revision=first, prev_kv=True) as watch:
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
        self._client = client
        self._recorder = recorder
        self._keys = [f"{prefix}{number}".encode() for number in range(keys)]
        self._rng = rng
        self._count = 0

    def _put(self, key: bytes) -> Put:
        self._count += 1
        return Put(key, b"%s=%d" % (key, self._count))

    async def write(self) -> None:
        """Write once."""
        kind = self._rng.random()
        kv = self._client.kv
        (key,) = self._rng.sample(self._keys, 1)
        if kind < 0.6:
            put = self._put(key)
            with self._recorder.call("writer", put) as call:
                header = (await kv.put(put.key, put.value)).header
                call.ok(header.revision)
        elif kind < 0.75:
            with self._recorder.call("writer", Delete(key)) as call:
                answer = await kv.delete(key)
                header = answer.header
                call.ok(header.revision, deleted=answer.deleted)
        else:
            puts = tuple(map(self._put, self._rng.sample(self._keys, self._rng.randint(2, 5))))
            with self._recorder.call("writer", Txn((), puts)) as call:
                done = await kv.txn(success=[Op.put(put.key, put.value) for put in puts])
                header = done.header
                call.ok(header.revision, succeeded=done.succeeded)
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

    async def last_word(self, *, within: float = 20.0) -> int:
        """Write something for every kind of watch, once that works, and give its revision."""
        end = self._keys[0] + b"/end"
        with anyio.fail_after(within):
            while True:
                first, last = self._put(end), self._put(self._keys[0])
                try:
                    with self._recorder.call("writer", first) as call:
                        call.ok((await self._client.kv.put(end, first.value)).header.revision)
                    with self._recorder.call("writer", Txn((), (last, Delete(end)))) as call:
                        done = await self._client.kv.txn(
                            success=[Op.put(last.key, last.value), Op.delete(end)]
                        )
                        revision = done.header.revision
                        call.ok(revision, succeeded=True, deleted=1)
                except EtcdError:
                    self.failures += 1
                else:
                    self.revision = max(self.revision, revision)
                    return revision


@contextlib.contextmanager
def takes_at_most(seconds: float) -> Iterator[None]:
    """Fail where the block took longer, without cutting it short."""
    start = anyio.current_time()
    yield
    assert anyio.current_time() - start <= seconds


async def put_all(client: Client, *keys: str) -> int:
    """Put keys one by one, each with its own name as its value."""
    revision = 0
    for key in keys:
        revision = (await client.kv.put(key, key)).header.revision
    return revision
