"""Leaving cannot go wrong: whatever happens meanwhile, nothing is left behind."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from time import monotonic

import pytest

from aioetcd import Client
from aioetcd.testing import EtcdServer
from tests.concurrency.locks import soon
from tests.loops import LOOPS, run_on
from tests.watch.following import WATCHERS

pytestmark = pytest.mark.own_logic("what the client does with cancellations")

# Cancelled at any moment.


class Moment:
    """Where somebody was when it was cancelled."""

    def __init__(self) -> None:
        self.where = "before"
        self.leaves = asyncio.Event()


async def hold_lock(client: Client, name: str, moment: Moment) -> None:
    lock = client.lock(name, ttl=600)
    moment.where = "entering"
    async with lock:
        moment.where = "inside"
        await asyncio.sleep(0)
        moment.where = "leaving"
        moment.leaves.set()
    moment.where = "after"


async def hold_session(client: Client, name: str, moment: Moment) -> None:
    moment.where = "entering"
    async with client.session(ttl=600) as session:
        moment.where = "inside"
        await client.kv.put(f"{name}/key", "v", lease=session.lease_id)
        moment.where = "leaving"
        moment.leaves.set()
    moment.where = "after"


async def hold_shared(client: Client, name: str, moment: Moment) -> None:
    moment.where = "entering"
    async with client.session(ttl=600) as session, client.lock(name, session=session):
        moment.where = "inside"
        await asyncio.sleep(0)
        moment.where = "leaving"
        moment.leaves.set()
    moment.where = "after"


async def watch(client: Client, name: str, moment: Moment) -> None:
    moment.where = "entering"
    seen = (await client.kv.get("watched")).kv
    assert seen is not None
    async with client.watch("watched", start_revision=seen.mod_revision) as watching:
        moment.where = "inside"
        async for _ in watching:
            break
        moment.where = "leaving"
        moment.leaves.set()
        await asyncio.sleep(0)
    moment.where = "after"


Held = Callable[[Client, str, Moment], Awaitable[None]]


async def by_cancel(
    work: Callable[[], Awaitable[None]], when: Callable[[], Awaitable[None]]
) -> None:
    """Cancel as `Task.cancel` does, by somebody else."""

    async def body() -> None:
        await work()

    task = asyncio.create_task(body())
    await when()
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        assert task.exception() is None


async def by_timeout(
    work: Callable[[], Awaitable[None]], when: Callable[[], Awaitable[None]]
) -> None:
    """Cancel as `asyncio.timeout` does, which may hit anything that is awaited."""
    loop = asyncio.get_running_loop()

    async def expire(timeout: asyncio.Timeout) -> None:
        await when()
        if not timeout.expired():
            timeout.reschedule(loop.time())

    expiring = None
    try:
        async with asyncio.timeout(None) as timeout:
            expiring = asyncio.create_task(expire(timeout))
            await work()
    except TimeoutError:
        pass
    finally:
        if expiring is not None:
            expiring.cancel()
            await asyncio.wait({expiring})


async def by_task_group(
    work: Callable[[], Awaitable[None]], when: Callable[[], Awaitable[None]]
) -> None:
    """Cancel as a task group does when another of its tasks fails."""

    async def body() -> None:
        await work()

    async def fail() -> None:
        await when()
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(body())
            tasks.create_task(fail())
    assert len(caught.value.exceptions) == 1
    assert caught.group_contains(ZeroDivisionError)


Way = Callable[[Callable[[], Awaitable[None]], Callable[[], Awaitable[None]]], Awaitable[None]]
WAYS = (by_cancel, by_timeout, by_task_group)
WORKERS = 24
MOMENTS = 600


async def cancel_at_any_moment(
    server: EtcdServer, hold: Held, chance: random.Random, moments: int
) -> Counter[tuple[str, str]]:
    """Hold and be cancelled so many times; then see that nothing is left. Give where, and how."""
    seen: Counter[tuple[str, str]] = Counter()
    inside = 0  # not when all was over already
    took = 0.0  # from entering to the end, as it is just now
    leaving = 0.1 if hold is watch else 0.6  # a watch is left in one step
    ways = itertools.cycle(WAYS)

    async def one(client: Client, name: str, way: Way) -> None:
        moment = Moment()

        async def when() -> None:
            nonlocal inside, took
            if chance.random() < leaving:  # while it leaves, or a moment after
                began = monotonic()
                await moment.leaves.wait()
                took += (1.5 * (monotonic() - began) - took) / 8
                await asyncio.sleep(took * chance.uniform(0, 0.4) if chance.random() < 0.8 else 0)
            else:
                await asyncio.sleep(took * chance.uniform(0, 1))
            seen[moment.where, way.__name__] += 1
            inside += moment.where != "after"

        await way(lambda: hold(client, name, moment), when)

    async def work(client: Client, name: str) -> None:
        while inside < moments:
            await one(client, name, next(ways))

    async with Client(server.endpoint) as client, Client(server.endpoint) as other:
        await other.kv.put("watched", "v")
        began = monotonic()
        async with asyncio.TaskGroup() as tasks:  # as busy as it will be
            for worker in range(WORKERS):
                tasks.create_task(_discard(hold(client, f"warm/{worker}", Moment())))
        took = monotonic() - began
        async with asyncio.TaskGroup() as tasks:
            for worker in range(WORKERS):
                tasks.create_task(work(client, f"L/{worker}"))
        assert client.stats().leases == 0
        assert client.stats().watches == 0

        async def is_tidy() -> bool:
            keys = await other.kv.get("", prefix=True, count_only=True)
            watchers = (await server.metrics())[WATCHERS]
            return keys.count == 1 and not (await other.lease.leases()).ids and watchers == 0

        await soon(is_tidy)
        async with asyncio.timeout(10):
            for worker in range(WORKERS):
                async with other.lock(f"L/{worker}", blocking=False):
                    pass
    return seen


async def _discard(work: Awaitable[None]) -> None:
    await work


@pytest.mark.fault("Z1")
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("hold", [hold_lock, hold_session, hold_shared, watch])
def test_z1_cancelled_at_any_moment(
    server: EtcdServer, rng: random.Random, hold: Held, loop: str
) -> None:
    """Cancelled 600 times in three ways, mostly while leaving: no key, lease, renewal or watch."""
    seen: Counter[tuple[str, str]] = Counter()

    async def main() -> None:
        await server.clear()
        seen.update(await cancel_at_any_moment(server, hold, rng, MOMENTS))
        async with Client(server.endpoint) as client:
            await client.kv.delete("", prefix=True)

    run_on(loop, main())
    where: Counter[str] = Counter()
    ways: Counter[str] = Counter()
    for (place, way), times in seen.items():
        where[place] += times
        ways[way] += times if place != "after" else 0
    assert ways.total() >= MOMENTS
    assert all(ways[way.__name__] >= 150 for way in WAYS), ways
    assert where["entering"] + where["inside"] > 50
    if hold is not watch:  # which is left in one step
        assert where["leaving"] > 200


async def test_z1_cancelled_again_and_again(client: Client) -> None:
    """A leaver that is cancelled at each step leaves at once; the lease is revoked all the same."""
    left = asyncio.Event()
    session = client.session(ttl=600)

    async def body() -> None:
        async with session:
            await client.kv.put("k", "v", lease=session.lease_id)
            left.set()

    task = asyncio.create_task(body())
    await left.wait()
    for _ in range(5):
        task.cancel()
        await asyncio.sleep(0)
    assert task.cancelled()

    async def is_revoked() -> bool:
        return (await client.lease.leases()).ids == ()

    await soon(is_revoked)


async def test_cancelled_with_a_message(client: Client) -> None:
    """What a task is cancelled with is what its caller sees, out of entering, body and leaving."""
    for steps in (1, 3, 6, 9, 12, 20):
        inside = asyncio.Event()

        async def body(inside: asyncio.Event = inside) -> None:
            async with client.lock("L", ttl=60), client.session(ttl=60):
                inside.set()
                await asyncio.sleep(10)

        task = asyncio.create_task(body())
        for _ in range(steps):
            await asyncio.sleep(0)
        if steps == 20:
            await inside.wait()
        task.cancel("why")
        with pytest.raises(asyncio.CancelledError, match="why"):
            await task
