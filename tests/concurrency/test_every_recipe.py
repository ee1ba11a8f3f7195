"""What is promised of every recipe: however it ends, nothing is left, and others go on."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from subprocess import PIPE, Popen
from time import monotonic

import anyio
import pytest

from aioetcd import Client, EtcdError
from aioetcd.testing import EtcdServer
from tests.concurrency.locks import soon, until_run_out
from tests.concurrency.recipes import RECIPES, Recipe
from tests.concurrency.test_leaving import Moment, cancel_at_any_moment
from tests.harness import Faulty, faulty_client
from tests.loops import run_on
from tests.programs import PREAMBLE
from tests.waiting import lateness, until

every_recipe = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())

MOMENTS = 300


@pytest.mark.fault("Z1")
@every_recipe
def test_z1_cancelled_at_any_moment(server: EtcdServer, rng: random.Random, recipe: Recipe) -> None:
    """Cancelled 300 times in three ways: no key, lease, renewal, watch or task is left."""

    async def hold(client: Client, name: str, moment: Moment) -> None:
        moment.where = "entering"
        async with recipe(client, name, 600):
            moment.where = "inside"
            await asyncio.sleep(0)
            moment.where = "leaving"
            moment.leaves.set()
        moment.where = "after"

    seen: Counter[tuple[str, str]] = Counter()

    async def main() -> None:
        await server.clear()
        seen.update(await cancel_at_any_moment(server, hold, rng, MOMENTS))
        await server.clear()

    run_on("asyncio", main())
    assert sum(times for (where, _), times in seen.items() if where != "after") >= MOMENTS


@every_recipe
async def test_z5_left_in_any_order(client: Client, rng: random.Random, recipe: Recipe) -> None:
    """Three of it, and one of each other kind, in one task."""
    for _ in range(3):
        blocks = [recipe(client, f"mine/{number}", 60) for number in range(3)]
        blocks += [each(client, f"{kind}/", 60) for kind, each in RECIPES.items()]
        for block in blocks:
            await block.__aenter__()
        rng.shuffle(blocks)
        for block in blocks:
            assert not await block.__aexit__(None, None, None)
        assert client.stats().leases == 0

    async def is_tidy() -> bool:
        keys = await client.kv.get("", prefix=True, count_only=True)
        return keys.count == 0 and (await client.lease.leases()).ids == ()

    await soon(is_tidy)


# Closed during a fault.


async def _cut(faulty: Faulty) -> None:
    faulty.proxy.refuse()
    faulty.proxy.cut()


async def _hang(faulty: Faulty) -> None:
    faulty.proxy.hang()
    faulty.proxy.cut()


async def _blackhole(faulty: Faulty) -> None:
    faulty.proxy.blackhole()


async def _answers_lost(faulty: Faulty) -> None:
    faulty.proxy.blackhole(client_to_server=False)


async def _requests_lost(faulty: Faulty) -> None:
    faulty.proxy.blackhole(server_to_client=False)


async def _slow(faulty: Faulty) -> None:
    faulty.proxy.delay(0.3)


async def _compacted_while_cut(faulty: Faulty) -> None:
    await _cut(faulty)
    revision = (await faulty.oracle.kv.put("other", "v")).header.revision
    await faulty.oracle.kv.delete("other")
    await faulty.oracle.kv.compact(revision)


async def _revoked(faulty: Faulty) -> None:
    for lease_id in await faulty.lease_ids():
        await faulty.oracle.lease.revoke(lease_id)


async def _deleted(faulty: Faulty) -> None:
    await faulty.oracle.kv.delete("", prefix=True)


async def _loop_blocked(faulty: Faulty) -> None:
    time.sleep(TTL + 0.5)  # noqa: ASYNC251  # which is the fault


FAULTS: dict[str, Callable[[Faulty], Awaitable[None]]] = {
    "W1 cut": _cut,
    "W6 compacted": _compacted_while_cut,
    "W10 blackhole": _blackhole,
    "W10 answers lost": _answers_lost,
    "W10 requests lost": _requests_lost,
    "L3 revoked": _revoked,
    "L4 blocked": _loop_blocked,
    "L8 hang": _hang,
    "L9 slow": _slow,
    "X9 deleted": _deleted,
}
TTL = 2


async def _close_during(
    faulty: Faulty, rng: random.Random, fault: Callable[[Faulty], Awaitable[None]]
) -> None:
    """Let a client with every recipe in use close during a fault, and see everybody out."""
    entered: Counter[str] = Counter()
    closing = asyncio.Event()
    before = asyncio.all_tasks()

    async def use(kind: str, recipe: Recipe) -> None:
        async with recipe(faulty.client, f"{kind}/", TTL):
            entered[kind] += 1
            await anyio.sleep(rng.uniform(0.05, 0.5))
            await closing.wait()

    users = [asyncio.create_task(use(kind, each)) for kind, each in RECIPES.items()]
    await until(lambda: len(entered) == len(RECIPES))
    await fault(faulty)
    async with lateness() as late:
        began = monotonic()
        closed = asyncio.create_task(faulty.client.aclose())
        closing.set()
        await asyncio.wait({closed, *users})
        took = monotonic() - began
    assert took < 2.5 + late.seconds
    assert closed.exception() is None
    for user in users:
        error = user.exception()
        assert error is None or isinstance(error, EtcdError)

    async def is_over() -> bool:
        left = {task.get_name() for task in asyncio.all_tasks() - before}
        return not any(name.startswith("aioetcd ") for name in left)

    await soon(is_over)


@pytest.mark.fault("P4: the leases run out")
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
async def test_p4_closed_during_a_fault(
    faulty: Faulty, rng: random.Random, fault: Callable[[Faulty], Awaitable[None]]
) -> None:
    """Everybody is out, which takes 2 s at the most, and a second after the TTL nothing is left."""
    await _close_during(faulty, rng, fault)
    await faulty.proxy.heal()

    async def is_tidy() -> bool:
        return await faulty.no_keys() and await faulty.no_leases()

    await soon(is_tidy, within=TTL + 1)


@pytest.mark.fault("P4: a server that goes away, and is back")
@pytest.mark.parametrize("how", ["W8 killed", "W9 paused"])
async def test_p4_closed_while_the_server_is_away(rng: random.Random, how: str) -> None:
    """Everybody is out, which takes 2 s at the most; the server ends the leases when it is back."""
    async with EtcdServer(quick=True) as server, faulty_client(server) as faulty:

        async def go_away(_: Faulty) -> None:
            if how == "W8 killed":
                await server.kill()
            else:
                await server.pause()

        await _close_during(faulty, rng, go_away)
        if how == "W8 killed":
            await server.start()
        else:
            await server.resume()

        async def is_tidy() -> bool:
            return await faulty.no_keys() and await faulty.no_leases()

        await until(is_tidy)


# Killed.

USER = """
from tests.concurrency.recipes import RECIPES

async def use(client, kind, recipe):
    async with recipe(client, kind + "/", 2):
        say("in")
        await asyncio.sleep(600)

async def main():
    async with Client(ENDPOINT) as client, asyncio.TaskGroup() as tasks:
        for kind, recipe in RECIPES.items():
            tasks.create_task(use(client, kind, recipe))

run(main())
"""


@pytest.fixture
async def cleared(quick_server: EtcdServer) -> EtcdServer:
    """A server without anybody's key or lease."""
    await quick_server.clear()
    return quick_server


@pytest.fixture
def user(cleared: EtcdServer) -> Iterator[Popen[str]]:
    """A process that is inside of every recipe."""
    command = [sys.executable, "-c", PREAMBLE + USER, cleared.endpoint, "asyncio"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with Popen(command, stdout=PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            for _ in RECIPES:
                assert process.stdout.readline() == "in\n"
            yield process
        finally:
            process.kill()


@pytest.mark.fault("P: the leases of a process run out that was killed with -9")
async def test_a_user_that_is_killed(quick_server: EtcdServer, user: Popen[str]) -> None:
    """Others enter, and nothing of it is left, a second after its leases have run out."""
    async with Client(quick_server.endpoint) as client, asyncio.TaskGroup() as tasks:
        its_leases = {*(await client.lease.leases()).ids}
        assert its_leases
        user.send_signal(signal.SIGKILL)

        async def enter(recipe: Recipe, name: str) -> None:
            async with recipe(client, name, 60):
                pass

        entering = [
            tasks.create_task(enter(recipe, f"{kind}/")) for kind, recipe in RECIPES.items()
        ]

        async def is_over() -> bool:
            keys = await client.kv.get("", prefix=True, count_only=True)
            is_tidy = keys.count == 0 and (await client.lease.leases()).ids == ()
            return is_tidy and all(task.done() for task in entering)

        await until_run_out(client, its_leases)
        await soon(is_over)
