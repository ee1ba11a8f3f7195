"""What everybody in a stress run shares: the history, the dice, and the clients."""

from __future__ import annotations

import gc
import random
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import anyio

from aioetcd import Client, ClientClosedError, ClientStats, EtcdError, EventType
from aioetcd.kv import KV
from aioetcd.testing.checkers import Violation
from aioetcd.testing.history import Recorder


class Lateness:
    """Knows how late the event loop was, and when: what is told then cannot be told in time.

    It asks for turns of the loop all the time. From a timer to the code of whoever waits for it
    there are some turns, each of which may be late: the timer's callback, the task that it wakes,
    the cancellation of the owner's code.

    Attributes:
        most: The most that one turn was late, in nanoseconds.
        total: All that the turns were late together, in nanoseconds.
    """

    TURNS = 5

    def __init__(self) -> None:
        self.most = 0
        self.total = 0
        self._ends: list[int] = []
        self._late: list[int] = []

    async def measure(self) -> None:
        """Ask for turns of the loop, and see when they come."""
        while True:
            before = time.monotonic_ns()
            await anyio.sleep(0.005)
            now = time.monotonic_ns()
            self.add(now, now - before - 5_000_000)
            # A collection that looks at all records would itself stop the loop for a long time.
            gc.freeze()

    def add(self, end_ns: int, late_ns: int) -> None:
        """A turn came, so much later than asked for."""
        self._ends.append(end_ns)
        self._late.append(max(0, late_ns))
        self.most = max(self.most, late_ns)
        self.total += max(0, late_ns)

    def between(self, began_ns: int, ended_ns: int) -> int:
        """How late the loop was from one time to another, in nanoseconds."""
        first = bisect_left(self._ends, began_ns)
        return sum(self._late[first : bisect_left(self._ends, ended_ns) + 1])

    def in_time(self, told_ns: int) -> int:
        """When something would have been told, had the turns before it not been late."""
        turn = bisect_left(self._ends, told_ns) + 1  # with the one that was under way
        return told_ns - sum(self._late[max(0, turn - self.TURNS) : turn])


class Stopwatch:
    """Measures seconds, without those for which the event loop did not get on."""

    def __init__(self, lateness: Lateness) -> None:
        self._lateness = lateness
        self._began_ns = time.monotonic_ns() - lateness.total

    @property
    def seconds(self) -> float:
        """How long it has been running."""
        return (time.monotonic_ns() - self._lateness.total - self._began_ns) / 1e9


class Party:
    """One client in the traffic; when it is closed under its users a fresh one takes its place.

    Attributes:
        name: Which one it is.
        client: The one of today.
        closed: What those before had done.
    """

    def __init__(self, name: str, make: Callable[[], Client]) -> None:
        self.name = name
        self.client = make()
        self.closed: list[ClientStats] = []
        self._make = make

    def replace(self) -> Client:
        """Let a fresh client take its place; give the old one."""
        old, self.client = self.client, self._make()
        self.closed.append(old.stats())
        return old


@dataclass(frozen=True, slots=True)
class Share:
    """One of those who may hold something at a time."""

    name: str
    who: str
    acquired_ns: int
    ended_ns: int
    is_lost: bool


class Run:
    """What all actors of a run share.

    Attributes:
        recorder: The history.
        seed: Decides what the actors do, but not when.
        is_batched: Whether calls that are made at the same time share round trips.
        batched: The views of the clients that do so.
        lateness: How late the event loop was.
        stopping: Set when no actor shall begin anything new.
        settled: Set when all is well again, and what is open then must have everything.
        consuming: Slow consumers wait for it; cleared while that fault lasts.
        counts: What happened, for the report.
        violations: What an actor itself saw going wrong.
        last_seen: Up to which revision each watch that is open has handed over.
        only: The events that each watch that is open asked for.
        revision: The greatest revision that anybody was told.
        owners: Whose a lease is, or was, for the report of one that is left behind.
        shares: What some held at a time.
        traded: What was put into a queue, and whether that is certain.
        taken: What was taken out of it.
        jobs: Those that were put, by their values.
        done: How often each was acknowledged.
        perhaps_done: How often each may have been.
    """

    def __init__(self, seed: int, *, is_batched: bool) -> None:
        self.recorder = Recorder()
        self.seed = seed
        self.is_batched = is_batched
        self.batched: WeakKeyDictionary[Client, KV] = WeakKeyDictionary()
        self.lateness = Lateness()
        self.stopping = False
        self.settled = False
        self.consuming = anyio.Event()
        self.consuming.set()
        self.counts: Counter[str] = Counter()
        self.violations: list[Violation] = []
        self.last_seen: dict[str, int] = {}
        self.only: dict[str, EventType | None] = {}
        self.revision = 1
        self.owners: dict[int, str] = {}
        self.shares: list[Share] = []
        self.traded: dict[bytes, str] = {}
        self.taken: Counter[bytes] = Counter()
        self.jobs: set[bytes] = set()
        self.done: Counter[bytes] = Counter()
        self.perhaps_done: Counter[bytes] = Counter()
        self._values = 0
        self._inside: dict[object, tuple[str, Client]] = {}

    def chance(self, actor: str) -> random.Random:
        """Give an actor's own dice."""
        return random.Random(f"{self.seed} {actor}")

    def value(self) -> bytes:
        """Give a value that nobody else puts."""
        self._values += 1
        return f"v{self._values}".encode()

    def saw(self, revision: int) -> int:
        """Remember a revision that somebody was told."""
        self.revision = max(self.revision, revision)
        return revision

    @contextmanager
    def inside(self, who: str, client: Client) -> Iterator[None]:
        """Somebody is in a block or a loop that is to end when the client does."""
        self._inside[key := object()] = (who, client)
        try:
            yield
        finally:
            del self._inside[key]

    def users(self, client: Client) -> dict[object, str]:
        """Name those who are inside something of a client."""
        return {key: who for key, (who, theirs) in self._inside.items() if theirs is client}


Actor = Callable[[Run, Party, str], Coroutine[Any, Any, None]]


@asynccontextmanager
async def tried(
    run: Run, party: Party, client: Client, chance: random.Random
) -> AsyncIterator[None]:
    """Let a call fail, and cancel some of them at a random moment."""
    patience = chance.uniform(0, 0.02) if chance.random() < 0.03 else None
    with anyio.move_on_after(patience) as scope:
        try:
            yield
        except EtcdError as error:
            only_if_closed(run, party, client, error)
            run.counts[f"error {type(error).__name__}"] += 1
            await anyio.sleep(0.02)
    run.counts["cancelled calls"] += scope.cancelled_caught


def only_if_closed(run: Run, party: Party, client: Client, error: BaseException) -> None:
    """Nobody may be told that a client is closed which is not."""
    if isinstance(error, ClientClosedError) and party.client is client and not run.stopping:
        raise error
