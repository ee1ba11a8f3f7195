"""Leaving a keep-alive, by whatever and whenever: nothing is renewed any more."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field

import anyio
import pytest

from aioetcd import Client, KeepAlive
from aioetcd.testing import EtcdServer
from tests.lease.renewals import keep_alive_metrics
from tests.loops import LOOPS, run_on
from tests.waiting import until

pytestmark = pytest.mark.own_logic("what cancellation leaves of the client")

WORKERS = 50
ROUNDS = 8

SPANS = (0.002, 0.02, 0.2)
"""Seconds within which moments are: a renewal is answered after some, or many on a busy machine."""


@dataclass
class Use:
    """One use of a keep-alive, which says how far it came.

    Attributes:
        keep_alive: What is used.
        reached: The phases that were begun.
    """

    keep_alive: KeepAlive
    reached: list[str] = field(default_factory=list)

    async def block(self) -> None:
        """Enter a block, loop in it, and stay in it."""
        self.reached.append("entering")
        async with self.keep_alive:
            self.reached.append("iterating")
            async for _ in self.keep_alive:
                break
            self.reached.append("in the block")
            await asyncio.sleep(60)

    async def loop(self) -> None:
        """Loop without a block."""
        self.reached.append("iterating")
        async for _ in self.keep_alive:
            self.reached.append("in the loop")
            await asyncio.sleep(60)

    async def one_by_one(self) -> None:
        """Take one renewal after the other with a timeout, and close it at the end."""
        try:
            while True:
                self.reached.append("taking one")
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.002):
                        await anext(self.keep_alive)
        finally:
            await self.keep_alive.aclose()


async def moment(rng: random.Random) -> None:
    """Let some time pass, mostly no more than a few turns of the loop: entering takes but one."""
    if rng.random() < 0.3:
        await asyncio.sleep(rng.choice(SPANS) * rng.random())
    for _ in range(rng.choice([0, 1, 2, 3, rng.randrange(12)])):
        await asyncio.sleep(0)


async def natively(use: Coroutine[None, None, None], rng: random.Random) -> None:
    """Cancel the task, and soon once more: who is in a hurry does not wait for the clean-up."""
    task = asyncio.create_task(use)
    for _ in range(2):
        await moment(rng)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def by_timeout(use: Coroutine[None, None, None], rng: random.Random) -> None:
    """Let `asyncio.timeout` run out."""

    async def limited() -> None:
        async with asyncio.timeout(rng.choice([0, *SPANS]) * rng.random()):
            await use

    with pytest.raises(TimeoutError):
        await limited()


async def by_task_group(use: Coroutine[None, None, None], rng: random.Random) -> None:
    """Abort the TaskGroup that it runs in."""

    async def group() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(use)
            await moment(rng)
            raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as caught:
        await group()
    assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]


EVERYWHERE = {"entering", "iterating", "in the block", "in the loop", "taking one"}
"""What a keep-alive may be cancelled in."""

Cancel = Callable[[Coroutine[None, None, None], random.Random], Awaitable[None]]


@pytest.mark.fault("Z1")
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("cancel", [natively, by_timeout, by_task_group])
def test_z1_keep_alive_left_at_any_moment(
    server: EtcdServer, rng: random.Random, cancel: Cancel, loop: str
) -> None:
    """Cancelled at any moment of its use, a keep-alive renews nothing in the next line."""
    last: Counter[str] = Counter()

    async def main() -> None:
        await server.clear()
        async with Client(server.endpoint) as client:
            with anyio.fail_after(30):
                while not {*last} >= EVERYWHERE:
                    last.update(await leave_at_any_moment(client, server, rng, cancel))

    run_on(loop, main())
    assert last.total() % (WORKERS * ROUNDS) == 0


async def leave_at_any_moment(
    client: Client, server: EtcdServer, rng: random.Random, cancel: Cancel
) -> Counter[str]:
    """Use keep-alives and be cancelled, 400 times; nothing is left. Give how far they came."""
    leases = [(await client.lease.grant(600)).id for _ in range(WORKERS)]
    last: Counter[str] = Counter()
    started, ended, _ = await keep_alive_metrics(server)

    async def work(lease_id: int) -> None:
        for number in range(ROUNDS):
            use = Use(client.lease.keep_alive(lease_id))
            how = [use.block, use.loop, use.one_by_one][(number + lease_id) % 3]
            await cancel(how(), rng)
            assert 0 <= client.stats().leases < WORKERS
            assert lease_id not in client._shared.leases.rules._kept
            last[use.reached[-1] if use.reached else "nothing"] += 1

    async with asyncio.TaskGroup() as tasks:
        for lease_id in leases:
            tasks.create_task(work(lease_id))
    assert client.stats().leases == 0

    async def all_streams_ended() -> bool:
        now_started, now_ended, _ = await keep_alive_metrics(server)
        return now_started - started == now_ended - ended > 0

    await until(all_streams_ended)
    for lease_id in leases:
        await client.lease.revoke(lease_id)
    return last
