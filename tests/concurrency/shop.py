"""What the tests of partitioners share: a shop that writes down who worked on what, and when."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from time import monotonic

from aioetcd import Client, Partitioner, Share
from aioetcd.testing import EtcdServer
from tests.waiting import until

NAME = "/shop"


@dataclass
class Stint:
    """A time in which somebody worked on an item."""

    item: str
    revision: int
    began: float
    ended: float


class Shop:
    """Who works on what, and has worked on it.

    Attributes:
        working: The shares that are worked on, by item.
        stints: What has ended.
        slow: The items whose work ends only when the event is set.
        begun: How many works have begun.
    """

    def __init__(self) -> None:
        self.working: dict[str, Share[str]] = {}
        self.stints: list[Stint] = []
        self.slow: dict[str, asyncio.Event] = {}
        self.begun = 0

    async def work(self, share: Share[str]) -> None:
        """Work on an item until cancelled; nobody else does."""
        assert share.item not in self.working
        self.working[share.item] = share
        self.begun += 1
        began = monotonic()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            if (ended := self.slow.get(share.item)) is not None:
                await ended.wait()
            del self.working[share.item]
            self.stints.append(Stint(share.item, share.revision, began, monotonic()))


def check_never_twice(stints: Iterable[Stint]) -> None:
    """No item was worked on by two at a time, and later works have later tokens."""
    of_item: dict[str, list[Stint]] = defaultdict(list)
    for stint in stints:
        of_item[stint.item].append(stint)
    for each in of_item.values():
        each.sort(key=lambda stint: stint.began)
        for one, another in pairwise(each):
            assert one.ended <= another.began, (one, another)
            assert one.revision < another.revision, (one, another)


Work = Callable[[Share[str]], Awaitable[object]]


class Members:
    """Partitioners that run, each with a client of its own."""

    def __init__(self, server: EtcdServer, items: Collection[str], work: Work, ttl: int) -> None:
        self._server = server
        self._items = items
        self._work = work
        self._ttl = ttl
        self._stack = AsyncExitStack()
        self.running: dict[Partitioner[str], asyncio.Task[None]] = {}

    async def come(self, endpoint: str | None = None) -> Partitioner[str]:
        """Have one more."""
        client = Client(endpoint or self._server.endpoint, timeout=1)
        await self._stack.enter_async_context(client)
        partitioner = client.partitioner(
            NAME, self._items, value=f"{len(self.running)}", ttl=self._ttl
        )
        self.running[partitioner] = asyncio.create_task(partitioner.run(self._work))
        return partitioner

    async def go(self, partitioner: Partitioner[str]) -> None:
        """Have one less, in order."""
        task = self.running.pop(partitioner)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    def counts(self) -> list[int]:
        """How many items each has."""
        return [len(partitioner.held) for partitioner in self.running]

    async def until_balanced(self, *, within: float = 10) -> None:
        """Wait until all items are held, each by one, and by nobody too many of them."""

        def is_balanced() -> bool:
            held = [item for partitioner in self.running for item in partitioner.held]
            counts = self.counts()
            return sorted(held) == sorted(self._items) and max(counts) - min(counts) <= 1

        await until(is_balanced, within=within)


@asynccontextmanager
async def members_of(
    server: EtcdServer, items: Collection[str], work: Work, *, ttl: int = 60
) -> AsyncIterator[Members]:
    """Have members for a block, at the end of which they go."""
    members = Members(server, items, work, ttl)
    async with members._stack:
        try:
            yield members
        finally:
            for partitioner in [*members.running]:
                await members.go(partitioner)
