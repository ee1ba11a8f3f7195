"""Processes exclude one another, by a clock that they share, also where one of them is killed."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import pytest

from aioetcd import Client
from aioetcd.testing import EtcdServer, FaultProxy, Recorder
from aioetcd.testing.history import LockHold
from tests.concurrency.counting import Counter, Weather, cuts, kills
from tests.concurrency.locks import EXCLUSIVE, one_of, queue, soon, until_run_out

ROOT = Path(__file__).parents[2]
PROCESSES = 4

pytestmark = pytest.mark.outside("processes of their own")


@asynccontextmanager
async def counting(*arguments: str) -> AsyncIterator[Process]:
    """Run `tests.concurrency.counting`, which has said its first line, for a block."""
    command = [sys.executable, "-W", "error", "-m", "tests.concurrency.counting", *arguments]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=PIPE, stdout=PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def first_line(process: Process) -> bytes:
    """Wait for what it says first."""
    assert process.stdout is not None
    with anyio.fail_after(20):
        return await process.stdout.readline()


@pytest.mark.fault("X1")
@pytest.mark.parametrize(("weather", "faults"), [(cuts, 3), (kills, 2)])
async def test_x1_processes(
    own_server: EtcdServer,
    rng: random.Random,
    tmp_path: Path,
    weather: Weather,
    faults: int,
) -> None:
    """Each has its turns, alone by the clock of the machine, and they count exactly."""
    paths = [tmp_path / f"{number}.jsonl" for number in range(PROCESSES)]
    async with FaultProxy(own_server.endpoint) as proxy, AsyncExitStack() as stack:
        processes = [
            await stack.enter_async_context(
                counting("count", proxy.endpoint, path.stem, "10", str(path))
            )
            for path in paths
        ]
        for process in processes:
            assert await first_line(process) == b"begun\n"
        happened = await weather(own_server, proxy, rng, lambda: False)
        with anyio.fail_after(30):
            await asyncio.gather(*(process.communicate(b"") for process in processes))
        assert [process.returncode for process in processes] == [0] * PROCESSES
        assert happened >= faults
    counter = Counter()
    counter.recorder = Recorder.load(*paths)
    holders = [hold.holder for hold in counter.recorder.of(LockHold)]
    counter.added = len(holders)
    assert all(holders.count(path.stem) >= 10 for path in paths)
    async with Client(own_server.endpoint) as oracle:
        await counter.check(oracle)
        assert await queue(oracle) == []


@pytest.mark.fault("X11")
async def test_x11_a_holder_that_is_killed(quick_server: EtcdServer) -> None:
    """By ``kill -9``: who waits enters when its lease is over, and not much later."""
    ttl = 2
    entered: set[str] = set()
    await quick_server.clear()
    async with counting("hold", quick_server.endpoint, str(ttl)) as process:
        tokens = json.loads(await first_line(process))
        async with Client(quick_server.endpoint) as oracle:
            its_leases = {kv.lease for kv in (await oracle.kv.get("/", prefix=True)).kvs}
        assert len(its_leases) == len(EXCLUSIVE)

        async def wait(client: Client, kind: str) -> None:
            async with one_of(kind, client, f"/{kind}", ttl=60) as held:
                entered.add(kind)
                assert held.revision > tokens[kind]

        async with Client(quick_server.endpoint) as client, asyncio.TaskGroup() as tasks:
            for kind in EXCLUSIVE:
                tasks.create_task(wait(client, kind))
            while min([len(await queue(client, f"/{kind}")) for kind in EXCLUSIVE]) < 2:
                await anyio.sleep(0.01)
            assert not entered
            process.kill()

            async def have_entered() -> bool:
                await client.ping()  # a server that is late is seen by that
                return entered == set(EXCLUSIVE)

            await until_run_out(client, its_leases)
            await soon(have_entered)
