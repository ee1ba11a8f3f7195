"""Workers that are killed at any moment: every job is handed out, acknowledged once, in order."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

import pytest

from aioetcd import Client, JobCounts
from aioetcd.testing import EtcdServer
from tests.concurrency.work import NAME, begun, history, keys
from tests.programs import PREAMBLE
from tests.waiting import until

WORKER = """
import random

async def work(client):
    async with client.work_queue(ARGUMENTS[0]).worker(ttl=2) as worker:
        async for job in worker:
            async with job:
                await asyncio.sleep(random.uniform(0, 0.05))  # the work
                await client.kv.put(f"/handled/{job.id.decode()}", job.value)

async def main():
    async with Client(ENDPOINT) as client:
        while True:
            with contextlib.suppress(aioetcd.JobLostError):  # a machine that is busy for seconds
                await work(client)

run(main())
"""

# So many jobs there are when somebody asks for the full size.
JOBS = int(os.environ.get("AIOETCD_TEST_JOBS", "600"))
PRODUCERS = WORKERS = 5


class Crowd:
    """Processes that work, of which one or the other is killed and another one started."""

    def __init__(self, endpoint: str) -> None:
        self.killed = 0
        self._endpoint = endpoint
        self._processes: list[asyncio.subprocess.Process] = []

    async def start(self) -> None:
        self._processes.append(
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", PREAMBLE + WORKER, self._endpoint, "asyncio", NAME),
                stdin=asyncio.subprocess.DEVNULL,
            )
        )

    async def kill(self, process: asyncio.subprocess.Process) -> None:
        self._processes.remove(process)
        process.send_signal(signal.SIGKILL)
        assert await process.wait() == -signal.SIGKILL, "it had ended before"

    async def kill_some(self, client: Client, rng: random.Random) -> None:
        while True:
            await asyncio.sleep(rng.uniform(0.2, 0.8))
            await self.kill(rng.choice(self._processes))
            self.killed += 1
            await self.start()

    async def end(self) -> None:
        for process in [*self._processes]:
            await self.kill(process)


@asynccontextmanager
async def crowd(endpoint: str) -> AsyncIterator[Crowd]:
    working = Crowd(endpoint)
    try:
        for _ in range(WORKERS):
            await working.start()
        yield working
    finally:
        await working.end()


@pytest.mark.fault("X: processes that are killed")
@pytest.mark.timeout(60 if JOBS < 1000 else 600)
async def test_x_workers_that_are_killed(quick_server: EtcdServer, rng: random.Random) -> None:
    """Each job is handed out at least once and acknowledged exactly once; none is overtaken."""
    await quick_server.clear()
    async with Client(quick_server.endpoint) as client, crowd(quick_server.endpoint) as working:
        await begun(client)
        queue = client.work_queue(NAME)

        async def all_work() -> bool:
            return len(await keys(client, "workers")) == WORKERS

        await until(all_work, within=30)

        async def produce(producer: int) -> list[bytes]:
            return [await queue.put(f"{producer}/{n}") for n in range(JOBS // PRODUCERS)]

        async def is_done() -> bool:
            return await queue.counts() == JobCounts(0, 0, 0, 0)

        killing = asyncio.create_task(working.kill_some(client, rng))
        began = monotonic()
        putting = [asyncio.create_task(produce(number)) for number in range(PRODUCERS)]
        ids = {id for each in putting for id in await each}
        await until(is_done, within=500)
        took = monotonic() - began
        killing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await killing
        happened = await history(client)
        handled = await client.kv.get("/handled/", prefix=True, keys_only=True)
        print(  # noqa: T201
            f"{len(ids)} jobs in {took:.1f} s, {working.killed} workers killed, "
            f"{happened.handed_out.total() - len(ids)} jobs handed out again"
        )
    assert len(ids) == JOBS
    assert happened.puts == ids
    assert {kv.key.removeprefix(b"/handled/") for kv in handled.kvs} == ids
    assert {*happened.handed_out} == ids
    assert happened.acknowledged == dict.fromkeys(ids, 1)
    assert happened.left == 0
    assert happened.handed_out.total() > len(ids), "none was killed while it had a job"
