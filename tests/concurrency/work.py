"""What the tests of work queues share: what happened to a queue, and whether that may be."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from itertools import groupby

from aioetcd import Client, Event, EventType, Job, JobCounts, Op, WorkQueue
from aioetcd.concurrency._jobs import Keys

NAME = "/work/mail"


async def begun(client: Client, name: str = NAME) -> None:
    """Note where the history of a queue begins: a server has that of other tests as well."""
    await client.kv.put(f"{name}.begun", "")


async def is_owner(client: Client, job: Job) -> bool:
    """Ask the server, as a guarded write would."""
    result = await client.kv.txn(compare=[job.is_owner()], success=[Op.get("any")])
    return result.succeeded


async def keys(client: Client, kind: str = "", name: str = NAME) -> list[str]:
    """Give the keys of a queue, or those of a kind, without its name."""
    found = await client.kv.get(f"{name}/{kind}", prefix=True, keys_only=True)
    return [kv.key.decode().removeprefix(f"{name}/") for kv in found.kvs]


async def no_keys(client: Client) -> bool:
    """Whether nothing is left of a queue: a worker that was left may be gone a moment later."""
    return await keys(client) == []


def is_count(queue: WorkQueue, *counts: int) -> Callable[[], Awaitable[bool]]:
    """Give what looks whether a queue has so many jobs."""

    async def look() -> bool:
        return await queue.counts() == JobCounts(*counts)

    return look


async def drain(queue: WorkQueue) -> list[tuple[bytes, int]]:
    """Take and acknowledge all that there is; give the values and the attempts."""
    done = []
    async with queue.worker(ttl=60) as worker:
        while (counts := await queue.counts()).waiting or counts.delayed:
            async with await worker.take(timeout=30) as job:
                done.append((job.value, job.attempt))
    return done


async def history(client: Client, name: str = NAME, *, in_order: bool = True) -> History:
    """Replay all that happened to a queue since it was `begun`."""
    since = (await client.kv.get(f"{name}.begun")).kvs[0].mod_revision
    mark = f"{name}/mark"
    end = (await client.kv.put(mark, "")).header.revision
    await client.kv.delete(mark)
    events: list[Event] = []
    async with client.watch(f"{name}/", prefix=True, start_revision=since) as watch:
        async for event in watch:
            if event.mod_revision == end:
                break
            events.append(event)
    return History(events, name, in_order=in_order)


class History:
    """What happened to a queue, replayed: each step of it is checked.

    Args:
        events: All of it.
        name: The queue's.
        in_order: Whether none was overtaken: each worker has one task, as what several of them
            ask for at a time may be done in another order.

    Attributes:
        puts: The jobs that were put.
        handed_out: How often each was claimed.
        acknowledged: How often each was acknowledged.
        buried: How often each was put aside.
    """

    def __init__(self, events: Iterable[Event], name: str, *, in_order: bool) -> None:
        self._in_order = in_order
        self.puts: set[bytes] = set()
        self.handed_out: Counter[bytes] = Counter()
        self.acknowledged: Counter[bytes] = Counter()
        self.buried: Counter[bytes] = Counter()
        self._keys = Keys(name.encode())
        self._there: dict[str, dict[bytes, int]] = {}
        # The places of those that may be taken, and since when they may.
        self._free: list[int] = []
        self._since: dict[int, int] = {}
        for revision, each in groupby(events, key=lambda event: event.mod_revision):
            self._step(revision, [*each])

    @property
    def left(self) -> int:
        """How many jobs are left at the end."""
        return len(self._of("items"))

    def _of(self, kind: str) -> dict[bytes, int]:
        return self._there.setdefault(kind, {})

    def _step(self, revision: int, events: list[Event]) -> None:
        put: set[tuple[str, bytes]] = set()
        gone: set[tuple[str, bytes]] = set()
        for event in events:
            kind, id = self._keys.parse(event.kv.key)
            (put if event.type is EventType.PUT else gone).add((kind, id))
            if kind == "claims" and event.type is EventType.PUT:
                self._claimed(id, revision, seen=int(event.kv.value))
        for id in {id for kind, id in gone if kind == "items"}:
            if ("dead", id) in put:
                self.buried[id] += 1
                assert id not in self._of("claims"), f"{id!r} was put aside while it was claimed"
            else:
                self.acknowledged[id] += 1
                assert ("claims", id) in gone, f"{id!r} was acknowledged by nobody"
        for kind, id in gone:
            place = self._of(kind).pop(id)
            if kind == "items":
                self._bind(place)
        for event in events:
            kind, id = self._keys.parse(event.kv.key)
            if event.type is EventType.PUT:
                self._of(kind).setdefault(id, event.kv.create_revision)
                if kind == "items" and event.is_create:
                    self.puts.add(id)
        for id in {id for kind, id in put | gone if kind in ("items", "claims", "delays")}:
            if id not in self._of("items"):
                continue
            place = self._of("items")[id]
            if id in self._of("claims") or id in self._of("delays"):
                self._bind(place)
            elif place not in self._since:
                insort(self._free, place)
                self._since[place] = revision

    def _bind(self, place: int) -> None:
        if self._since.pop(place, None) is not None:
            del self._free[bisect_left(self._free, place)]

    def _claimed(self, id: bytes, revision: int, *, seen: int) -> None:
        """A job was claimed by who knew the queue up to `seen`."""
        self.handed_out[id] += 1
        place = self._of("items")[id]
        assert place in self._since, f"{id!r} was claimed, and was not free"
        for earlier in () if not self._in_order else self._free[: bisect_left(self._free, place)]:
            # It was to be seen, and was free until the very end.
            assert self._since[earlier] > seen, f"{earlier} was overtaken by {place} at {revision}"
