"""Partitioners while networks and processes fail: nothing is held twice, nor by nobody for long."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

import anyio
import pytest

from aioetcd import Client, EventType, Share
from aioetcd.testing import EtcdServer, FaultProxy
from tests.concurrency.shop import NAME, Shop, Stint, check_never_twice, members_of
from tests.concurrency.test_election import until_nothing_is_left
from tests.harness import Faulty
from tests.programs import PREAMBLE
from tests.waiting import lateness, until

ITEMS = [f"i{number:03}" for number in range(12)]

# How many members, how many items, for how many seconds: the suite has a small one of it.
MEMBERS = int(os.environ.get("AIOETCD_TEST_PARTITION_MEMBERS", "3"))
SHARED = int(os.environ.get("AIOETCD_TEST_PARTITION_ITEMS", "30"))
SECONDS = float(os.environ.get("AIOETCD_TEST_PARTITION_SECONDS", "8"))


async def test_a_lease_that_is_revoked(client: Client) -> None:
    """All works are cancelled, and it joins again, with another one."""
    shop = Shop()
    partitioner = client.partitioner(NAME, ITEMS, ttl=60)
    running = asyncio.create_task(partitioner.run(shop.work))
    await until(lambda: len(shop.working) == 12)
    before = shop.working[ITEMS[0]]
    await client.lease.revoke(before.lease_id)
    await until(lambda: shop.begun == 24)
    await until(lambda: len(shop.working) == 12)
    assert shop.working[ITEMS[0]].lease_id != before.lease_id
    assert shop.working[ITEMS[0]].revision > before.revision
    running.cancel()
    await asyncio.wait([running])
    check_never_twice(shop.stints)
    await until_nothing_is_left(client)


async def test_cancelled_while_it_ends_for_another_reason(client: Client) -> None:
    """It does not join again."""
    shop = Shop()
    partitioner = client.partitioner(NAME, ITEMS, ttl=60)
    running = asyncio.create_task(partitioner.run(shop.work))
    await until(lambda: len(shop.working) == 12)
    shop.slow[ITEMS[0]] = asyncio.Event()
    await client.lease.revoke(shop.working[ITEMS[0]].lease_id)
    await until(lambda: len(shop.working) == 1)
    running.cancel()
    for _ in range(3):
        await client.ping()
    assert not running.done()
    shop.slow.pop(ITEMS[0]).set()
    await asyncio.wait([running])
    assert running.cancelled()
    assert shop.begun == 12
    await until_nothing_is_left(client)


async def test_k4_what_is_given_back_late(faulty: Faulty) -> None:
    """The key of who has the item by then is not deleted."""
    shop = Shop()
    partitioner = faulty.client.partitioner(NAME, ITEMS[:2], ttl=60)
    running = asyncio.create_task(partitioner.run(shop.work))
    await until(lambda: len(shop.working) == 2)
    shop.slow[ITEMS[1]] = asyncio.Event()
    key = shop.working[ITEMS[0]].key
    faulty.proxy.hang()
    await faulty.oracle.kv.delete(key)
    await faulty.oracle.kv.put(key, "another's")
    running.cancel()

    def is_given_back() -> bool:  # which is on its way when that the member leaves is
        return any("member of" in task.get_name() for task in asyncio.all_tasks())

    await until(is_given_back)
    await faulty.proxy.heal()

    async def has_arrived() -> bool:
        return (await faulty.oracle.kv.get(f"{NAME}/members/", prefix=True)).count == 0

    await until(has_arrived)
    shop.slow.pop(ITEMS[1]).set()
    await asyncio.wait([running])
    assert (await faulty.oracle.kv.get(key)).text == "another's"
    await faulty.oracle.kv.delete(key)


@pytest.mark.fault("X3")
async def test_x3_a_loop_that_is_blocked(faulty: Faulty) -> None:
    """For longer than the lease lives: nobody begins to work then, and it joins again."""
    partitioner = faulty.client.partitioner(NAME, ITEMS[:3], ttl=3)
    begun: list[Share[str]] = []
    is_blocked = asyncio.Event()

    async def work(share: Share[str]) -> None:
        guarded = await faulty.client.kv.txn(compare=[share.is_owner()])
        assert guarded.succeeded
        begun.append(share)
        if len(begun) == 3 and not is_blocked.is_set():
            is_blocked.set()
            time.sleep(5)  # noqa: ASYNC251
        await asyncio.Event().wait()

    running = asyncio.create_task(partitioner.run(work))
    await until(lambda: len(begun) == 6, within=20)
    assert len({share.lease_id for share in begun}) == 2
    assert len(partitioner.held) == 3
    running.cancel()
    await asyncio.wait([running])


@pytest.mark.fault("L2")
async def test_l2_cut_off_for_longer_than_it_lives(quick_server: EtcdServer) -> None:
    """Its works are cancelled before others have its items; it joins again when it can."""
    await quick_server.clear()
    shop = Shop()
    async with (
        FaultProxy(quick_server.endpoint) as proxy,
        members_of(quick_server, ITEMS, shop.work, ttl=2) as members,
    ):
        cut_off = await members.come(proxy.endpoint)
        other = await members.come()
        await members.until_balanced()
        for break_it in (proxy.cut, proxy.blackhole):
            proxy.refuse()
            began = monotonic()
            break_it()
            async with lateness() as late:
                await until(lambda: len(other.held) == 12)
                assert monotonic() - began < 2 + 2 + late.seconds
            assert cut_off.held == frozenset()
            await until(lambda: len(shop.working) == 12)
            await proxy.heal()
            await members.until_balanced(within=20)
    check_never_twice(shop.stints)


@pytest.mark.fault("L2")
async def test_l2_a_work_that_outlives_the_lease(faulty: Faulty) -> None:
    """It cannot be helped, but its token is not the owner's; it joins again when it has ended."""
    shop = Shop()
    partitioner = faulty.client.partitioner(NAME, ITEMS[:1], ttl=1)
    running = asyncio.create_task(partitioner.run(shop.work))
    await until(lambda: len(shop.working) == 1)
    share = shop.working[ITEMS[0]]
    shop.slow[ITEMS[0]] = asyncio.Event()
    await faulty.oracle.lease.revoke(share.lease_id)
    await until(lambda: partitioner.held == frozenset())
    guarded = await faulty.oracle.kv.txn(compare=[share.is_owner()])
    assert not guarded.succeeded
    assert await faulty.no_leases()
    shop.slow.pop(ITEMS[0]).set()
    await until(lambda: shop.begun == 2)
    assert shop.working[ITEMS[0]].revision > share.revision
    running.cancel()
    await asyncio.wait([running])


async def test_answers_that_are_lost(faulty: Faulty) -> None:
    """Keys that were put, and of which nobody has heard, are held all the same, and given back."""
    shop = Shop()
    partitioner = faulty.client.partitioner(NAME, ITEMS, ttl=60)
    other = faulty.oracle.partitioner(NAME, ITEMS, ttl=60)
    async with asyncio.TaskGroup() as group:
        second = group.create_task(other.run(shop.work))
        await until(lambda: len(shop.working) == 12)
        first = group.create_task(partitioner.run(shop.work))
        await until(lambda: len(partitioner.held) == 6)
        faulty.proxy.blackhole(client_to_server=False)
        second.cancel()

        async def are_put() -> bool:
            return len(await other.holders()) == 12

        # Six items are free: who is to have them does not hear of it.
        await until(lambda: len(other.held) == 0)
        await faulty.proxy.wait_until(lambda proxy: proxy.bytes_swallowed > 0)
        await faulty.proxy.heal()
        await until(are_put)
        await until(lambda: len(shop.working) == 12)
        assert len(partitioner.held) == 12
        first.cancel()
    check_never_twice(shop.stints)


async def test_k4_the_answer_to_a_claim_is_lost(faulty: Faulty) -> None:
    """The key is there, and it is its own."""
    shop = Shop()
    partitioner = faulty.client.partitioner(NAME, ITEMS[:1], ttl=60)
    await faulty.oracle.kv.put(f"{NAME}/items/{ITEMS[0]}", "by hand")
    running = asyncio.create_task(partitioner.run(shop.work))

    async def has_joined() -> bool:
        return (await faulty.oracle.kv.get(f"{NAME}/members/", prefix=True)).count == 1

    await until(has_joined)
    for _ in range(3):
        await faulty.client.ping()
    faulty.proxy.cut_after(1)  # the event of the deletion comes, and what follows does not
    await faulty.oracle.kv.delete(f"{NAME}/items/{ITEMS[0]}")
    await until(lambda: len(shop.working) == 1)
    assert faulty.proxy.cuts >= 1
    running.cancel()
    await asyncio.wait([running])


async def test_w6_a_compaction_while_it_is_cut_off(faulty: Faulty) -> None:
    """What became of the items meanwhile is seen, those that were deleted too."""
    shop = Shop()
    partitioner = faulty.client.partitioner(NAME, ITEMS, ttl=60)
    running = asyncio.create_task(partitioner.run(shop.work))
    await until(lambda: len(shop.working) == 12)
    tokens = {item: share.revision for item, share in shop.working.items()}
    faulty.proxy.refuse()
    faulty.proxy.cut()
    for item in ITEMS[:3]:
        await faulty.oracle.kv.delete(f"{NAME}/items/{item}")
    await faulty.oracle.kv.compact((await faulty.oracle.kv.put("k", "v")).header.revision)
    await faulty.oracle.kv.delete("k")
    await faulty.proxy.accept()
    await until(lambda: shop.begun == 15)
    await until(lambda: len(shop.working) == 12)
    for item, share in shop.working.items():
        assert (share.revision > tokens[item]) == (item in ITEMS[:3])
    running.cancel()
    await asyncio.wait([running])
    check_never_twice(shop.stints)


async def test_a_store_that_is_away_at_first(own_server: EtcdServer) -> None:
    """It joins as soon as it can."""
    shop = Shop()
    await own_server.stop()
    async with Client(own_server.endpoint, timeout=0.3) as client:
        running = asyncio.create_task(client.partitioner(NAME, ITEMS, ttl=60).run(shop.work))
        await anyio.sleep(0.5)
        assert not running.done()
        await own_server.start()
        await until(lambda: len(shop.working) == 12)
        running.cancel()
        await asyncio.wait([running])


MEMBER = """
import threading
from aioetcd import Op

async def main():
    items, ttl = ARGUMENTS[0].split(","), int(ARGUMENTS[1])

    async def work(share):
        say("began", share.item, share.revision, time.monotonic())
        try:
            while True:
                tell = Op.put("/tokens/" + share.item, str(share.revision))
                await client.kv.txn(compare=[share.is_owner()], success=[tell])
                await asyncio.sleep(0.2)
        finally:
            await asyncio.sleep(0.005)
            say("ended", share.item, share.revision, time.monotonic())

    async with Client(ENDPOINT, timeout=2) as client:
        partitioner = client.partitioner("/shop", items, ttl=ttl)
        running = asyncio.create_task(partitioner.run(work))
        asyncio.get_running_loop().add_signal_handler(15, running.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await running

run(main())
"""


class Process:
    """A member in a process of its own, and what it says."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._open: dict[str, tuple[int, float]] = {}
        self.stints: list[Stint] = []
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, endpoint: str, items: list[str], ttl: int) -> Process:
        """Begin one."""
        command = [sys.executable, "-c", PREAMBLE + MEMBER, endpoint, "asyncio", ",".join(items)]
        return cls(
            await asyncio.create_subprocess_exec(*command, str(ttl), stdout=asyncio.subprocess.PIPE)
        )

    @property
    def held(self) -> frozenset[str]:
        """What it works on."""
        return frozenset(self._open)

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := (await self._process.stdout.readline()).decode().split():
            verb, item, revision, when = line[0], line[1], int(line[2]), float(line[3])
            if verb == "began":
                self._open[item] = revision, when
            else:
                began = self._open.pop(item)[1]
                self.stints.append(Stint(item, revision, began, when))

    async def end(self, how: signal.Signals) -> None:
        """End it; of one that is killed all work ends there."""
        if self._process.returncode is None:
            self._process.send_signal(how)
        code = await self._process.wait()
        now = monotonic()
        await self._reading
        if how != signal.SIGKILL:
            assert self._open == {}
            assert code == 0 or (code == -how and self.stints == [])  # it had only just begun
        self.stints += [
            Stint(i, revision, began, now) for i, (revision, began) in self._open.items()
        ]
        self._open = {}


@asynccontextmanager
async def processes() -> AsyncIterator[list[Process]]:
    """Those that are started in the block end with it."""
    started: list[Process] = []
    try:
        yield started
    finally:
        for process in started:
            await process.end(signal.SIGKILL if sys.exc_info()[0] else signal.SIGTERM)


@pytest.mark.outside("its members are programs that know no prefix")
@pytest.mark.alone("X1: it measures how soon others have the items")
async def test_a_member_that_is_killed(quick_server: EtcdServer) -> None:
    """Others have its items within the time to live of its lease, and two seconds."""
    await quick_server.clear()
    shop = Shop()
    async with (
        members_of(quick_server, ITEMS, shop.work, ttl=2) as members,
        processes() as started,
    ):
        partitioner = await members.come()
        started.append(await Process.start(quick_server.endpoint, ITEMS, 2))
        await until(lambda: len(started[0].held) == 6)
        await until(lambda: len(shop.working) == 6)
        async with lateness() as late:
            killed = started.pop()
            await killed.end(signal.SIGKILL)
            began = monotonic()
            await until(lambda: len(shop.working) == 12)
            assert monotonic() - began < 2 + 2 + late.seconds
        assert len(partitioner.held) == 12
    assert len(killed.stints) >= 6
    check_never_twice([*shop.stints, *killed.stints])


@pytest.mark.outside("its members are programs that know no prefix")
@pytest.mark.alone("X1: it measures how soon processes of others have the items")
@pytest.mark.timeout(SECONDS + 120)
async def test_x1_members_that_come_and_go(quick_server: EtcdServer, rng: random.Random) -> None:
    """Killed, ended in order, begun: no item is ever held twice, nor by nobody for long.

    Intervals are compared on the one monotonic clock of the machine, and what each holder wrote as
    the owner has growing tokens.
    """
    await quick_server.clear()
    items = [f"i{number:03}" for number in range(SHARED)]
    ended: list[Process] = []
    waits: dict[str, list[float]] = defaultdict(list)
    async with Client(quick_server.endpoint) as client, processes() as started:

        async def until_all_are_held(why: str, seconds: float) -> None:
            began = monotonic()
            async with lateness() as late:
                await until(
                    lambda: sum(len(process.held) for process in started) == SHARED,
                    within=seconds + 20,
                )
                waits[why].append(monotonic() - began)
                assert waits[why][-1] < seconds + late.seconds, why

        async def end(how: signal.Signals) -> None:
            process = started.pop(rng.randrange(len(started)))
            ended.append(process)
            await process.end(how)

        async with client.watch("/tokens/", prefix=True, only=EventType.PUT) as watch:
            for _ in range(MEMBERS):
                started.append(await Process.start(quick_server.endpoint, items, 2))
            await until_all_are_held("start", 30)
            over = monotonic() + SECONDS
            while monotonic() < over:
                what = rng.choice(["killed", "ended", "begun"])
                if what == "begun" and len(started) < MEMBERS:
                    started.append(await Process.start(quick_server.endpoint, items, 2))
                    await anyio.sleep(rng.uniform(0, 1))
                elif what != "begun" and len(started) > 1:
                    await end(signal.SIGKILL if what == "killed" else signal.SIGTERM)
                    await until_all_are_held(what, 2 + 2)
            last = (await client.kv.put("/tokens/", "0")).header.revision
            tokens: dict[bytes, int] = defaultdict(int)
            async for event in watch:
                if event.mod_revision == last:
                    break
                assert int(event.kv.value) >= tokens[event.kv.key]
                tokens[event.kv.key] = int(event.kv.value)
        assert len(tokens) == SHARED
        while started:
            await end(signal.SIGTERM)
        await client.kv.delete("", prefix=True)
    stints = [stint for process in ended for stint in process.stints]
    assert len(stints) > SHARED
    check_never_twice(stints)
    print(  # noqa: T201
        len(stints),
        "stints;",
        *(f"{why}: {len(all_)} times, {max(all_):.2f} s;" for why, all_ in waits.items()),
    )
