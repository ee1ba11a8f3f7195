"""Double barriers through faults: connections, servers and parties that go away."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections import Counter
from contextlib import AsyncExitStack
from functools import partial
from time import monotonic
from typing import Any

import anyio
import pytest

from aioetcd import BarrierLostError, Client
from aioetcd.testing import EtcdServer, FaultProxy
from tests.concurrency.locks import cancel_after, queue, soon, wait_for_queue, watches_created
from tests.concurrency.test_barrier import compact
from tests.concurrency.test_double_barrier import NAME, Rooms, parties
from tests.concurrency.test_election import until_nothing_is_left
from tests.harness import Faulty, writes_through
from tests.programs import PREAMBLE
from tests.waiting import until


@pytest.mark.fault("X2")
async def test_x2_cut_off_for_longer_than_it_lives(faulty: Faulty) -> None:
    """Its body is cancelled in time; who entered with it leaves when its key is gone."""
    entered = asyncio.Event()

    async def visit() -> None:
        async with faulty.oracle.double_barrier(NAME, 2, ttl=60):
            entered.set()

    async with asyncio.TaskGroup() as tasks:
        other = tasks.create_task(visit())
        with pytest.raises(BarrierLostError, match="its lease is lost"):
            async with faulty.client.double_barrier(NAME, 2, ttl=1):
                await entered.wait()
                faulty.proxy.blackhole()
                assert not other.done()
                await asyncio.sleep(20)
                pytest.fail("the body was not cancelled")
        async with asyncio.timeout(10):
            await other


async def test_compacted_while_cut_off(client: Client, server: EtcdServer) -> None:
    """Who waits to enter, and who waits to leave, looks again."""
    async with FaultProxy(server.endpoint) as proxy, Client(proxy.endpoint) as cut_off:

        async def while_cut_off(do: Any) -> None:
            proxy.refuse()
            proxy.cut()
            await do
            await compact(client)
            await proxy.accept()

        rooms, leave = Rooms(), asyncio.Event()
        visiting = asyncio.create_task(rooms.visit(cut_off, 2))
        await watches_created(cut_off, 2)
        other = asyncio.create_task(rooms.visit(client, 2, leave=leave))
        await while_cut_off(until(lambda: bool(rooms.inside)))

        async def has_left() -> bool:
            return len(await queue(client, NAME)) == 1

        await until(has_left)
        await watches_created(cut_off, 1)
        assert not visiting.done()
        leave.set()
        await while_cut_off(until(lambda: not rooms.inside.total()))
        async with asyncio.timeout(10):
            await asyncio.gather(visiting, other)
    await until_nothing_is_left(client)


# Answers that are lost.


async def test_k3_opened_while_its_own_answer_was_lost(faulty: Faulty) -> None:
    """Who does not know yet that its key was put is in, and changes nothing about that."""
    rooms = Rooms()
    faulty.proxy.delay(0.1)
    visiting = asyncio.create_task(rooms.visit(faulty.client, 2))
    await wait_for_queue(faulty.oracle, 1, NAME)
    faulty.proxy.blackhole(client_to_server=False)  # the answer is on its way
    await faulty.proxy.wait_until(lambda proxy: proxy.bytes_swallowed > 0)
    other = asyncio.create_task(rooms.visit(faulty.oracle, 2))

    async def is_opened() -> bool:
        return [kv.version for kv in await parties(faulty.oracle)][:1] == [2]

    await until(is_opened)
    assert not visiting.done()
    await faulty.proxy.heal()
    async with asyncio.timeout(10):
        assert await visiting == await other


@pytest.mark.fault("sixty broken connections")
async def test_k3_cut_anywhere(faulty: Faulty, rng: random.Random) -> None:
    """Connections that break at any byte of anybody's entering or leaving change nothing."""
    for number in range(60):
        rooms = Rooms()
        faulty.proxy.cut_after(rng.randrange(700))
        others = [faulty.oracle, faulty.oracle, faulty.client]
        rng.shuffle(others)
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            for each in others:
                tasks.create_task(rooms.visit(each, 3))
                if number % 2:
                    await anyio.sleep(rng.uniform(0, 0.02))
        assert list(rooms.entered.values()) == [3]
        await faulty.proxy.heal()
    assert faulty.proxy.cuts > 20


@pytest.mark.fault("K2: the server is killed ten times")
async def test_k2_the_server_is_killed(own_server: EtcdServer, rng: random.Random) -> None:
    """Rounds go on over that, each of all."""
    rooms = Rooms()
    rounds = [0, 0, 0]
    last: int | None = None  # the same round for all

    async def party(client: Client, number: int) -> None:
        while last is None or rounds[number] < last:
            await rooms.visit(client, 3, ttl=30)
            rounds[number] += 1

    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(Client(own_server.endpoint, timeout=30))
            for _ in range(3)
        ]
        async with asyncio.TaskGroup() as tasks:
            for number, client in enumerate(clients):
                tasks.create_task(party(client, number))
            for _ in range(10):
                before = min(rounds)
                await until(lambda before=before: min(rounds) > before, within=30)  # type: ignore[misc]
                await anyio.sleep(rng.uniform(0, 0.05))
                keeps = writes_through(own_server)
                await (own_server.kill() if keeps else own_server.stop())
                await own_server.start()
            last = max(rounds) + 2
    assert len(set(rounds)) == 1


# Parties that are given up.


@pytest.mark.fault("Z1")
@pytest.mark.parametrize("native", [True, False])
async def test_z1_cancelled_at_any_moment(client: Client, rng: random.Random, native: bool) -> None:
    """300 parties cancelled at random moments leave nothing, and harm nobody who is not."""
    where: Counter[str] = Counter()
    took = 0.0

    async def one(name: str) -> None:
        nonlocal took
        place = "entering"
        try:
            async with client.double_barrier(name, 2):
                place = "inside"
                await asyncio.sleep(0)
                place = "leaving"
            place = "through"
        finally:
            where[place] += 1
            took *= 1.05 if place == "entering" else 0.95  # as it is just now

    async def cancel(name: str) -> None:
        for _ in range(30):
            await cancel_after(took * rng.uniform(0, 2), partial(one, name), native=native)

    names = [f"{NAME}-{number // 2}" for number in range(10)]
    began = monotonic()
    await asyncio.gather(*(one(name) for name in names))
    took = monotonic() - began
    await asyncio.gather(*(cancel(name) for name in names))
    assert where.total() == 310
    assert where["entering"] > 20
    assert where["leaving"] + where["through"] > 20

    async def is_clear() -> bool:
        return (await client.kv.get("", prefix=True, count_only=True)).count == 0

    await soon(is_clear)
    await until_nothing_is_left(client)
    assert client.stats().watches == client.stats().leases == 0


PARTY = """
async def main():
    async with Client(ENDPOINT) as client:
        async with client.double_barrier(ARGUMENTS[0], 2, ttl=1):
            say("inside")
            await asyncio.sleep(60)

run(main())
"""


@pytest.mark.fault("a process that is killed, and its lease")
@pytest.mark.outside("another process")
async def test_a_party_is_killed(quick_server: EtcdServer) -> None:
    """With kill -9, waiting or inside: the others do not wait for it for longer than it lives."""
    await quick_server.clear()
    async with Client(quick_server.endpoint) as client:

        def party() -> subprocess.Popen[str]:
            program = [sys.executable, "-c", PREAMBLE + PARTY, quick_server.endpoint, "asyncio"]
            return subprocess.Popen([*program, NAME], stdout=subprocess.PIPE, text=True)

        with party() as process:
            try:
                await wait_for_queue(client, 1, NAME)
            finally:
                process.kill()
        with party() as process:
            try:
                async with asyncio.timeout(20), client.double_barrier(NAME, 2, ttl=60):
                    # With the first one, which is dead, or with the second.
                    process.kill()
            finally:
                process.kill()
        await until_nothing_is_left(client)
