"""What readers, writers, permits and candidates do in the faults that locks are tested in."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from time import monotonic
from typing import Any

import anyio
import pytest

from aioetcd import Client, LeadershipLostError, Lock, LockLostError, NoEndpointError
from aioetcd.testing import EtcdServer
from tests.concurrency.locks import (
    NAME,
    Held,
    is_owner,
    on_either_lease,
    one_of,
    queue,
    soon,
    wait_for_queue,
)
from tests.harness import Faulty, faulty_client
from tests.waiting import lateness

KINDS = ("election", "writer", "reader", "semaphore")
on_each_kind = pytest.mark.parametrize("kind", KINDS)


def before(kind: str, client: Client, name: str = NAME, **more: Any) -> Held:
    """Make what one of a kind has to wait for."""
    return one_of("writer" if kind == "reader" else kind, client, name, **more)


async def acquire(held: Held) -> None:
    """Have it, without a block."""
    await (held.acquire() if isinstance(held, Lock) else held.win())


async def release(held: Held) -> None:
    """Leave it, without a block."""
    await (held.release() if isinstance(held, Lock) else held.resign())


async def lease_of(
    stack: AsyncExitStack, client: Client, shared: bool, *, ttl: int = 60
) -> dict[str, Any]:
    """Give what makes something stand on a lease of its own, or on a session's."""
    if not shared:
        return {"ttl": ttl}
    session = client.session(ttl=ttl, on_lost="ignore")
    return {"session": await stack.enter_async_context(session)}


@on_each_kind
@on_either_lease
@pytest.mark.parametrize("how", ["lease revoked", "key deleted"])
async def test_x4_taken_away_from_a_waiter(
    client: Client, kind: str, shared: bool, how: str
) -> None:
    """A waiter whose lease or key is taken away is told at once, and never enters."""
    async with before(kind, client, ttl=600) as held, AsyncExitStack() as stack:
        waits = one_of(kind, client, **await lease_of(stack, client, shared))
        waiting = asyncio.create_task(acquire(waits))
        await wait_for_queue(client, 2)
        async with lateness() as late:
            taken = monotonic()
            if how == "lease revoked":
                await client.lease.revoke(waits.lease_id)
            else:
                await client.kv.delete(waits.key)
            with pytest.raises((LockLostError, LeadershipLostError), match=NAME):
                await waiting
            assert monotonic() - taken < 1 + late.seconds
        with pytest.raises(RuntimeError, match="not acquired"):
            waits.is_owner()
        assert await queue(client) == [held.key]
        assert await is_owner(client, held)


@pytest.mark.fault("X5")
@on_each_kind
@on_either_lease
async def test_x5_given_up_at_random(
    client: Client, rng: random.Random, kind: str, shared: bool
) -> None:
    """Whenever it is given up while it waits, there is neither key nor lease of it soon."""
    held = before(kind, client, ttl=600)
    await acquire(held)
    async with AsyncExitStack() as stack:
        lease = await lease_of(stack, client, shared)
        leases = set((await client.lease.leases()).ids)
        was_queued = 0
        moment = 0.01  # seconds; how long each step takes depends on the machine, and is followed

        async def are_left() -> bool:
            left = {*(await client.lease.leases()).ids}
            return await queue(client) == [held.key] and left == leases

        async def give_up() -> None:
            nonlocal was_queued, moment
            waits = one_of(kind, client, **lease)
            task = asyncio.create_task(acquire(waits))
            await asyncio.sleep(moment * 10 ** rng.uniform(-1, 1))
            is_queued = waits._turn._revision is not None
            was_queued += is_queued
            moment *= 0.8 if is_queued else 1.25
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await soon(are_left)

        for _ in range(30):
            await give_up()
        assert 0 < was_queued < 30
        assert await is_owner(client, held)
        behind = one_of(kind, client, ttl=60)
        waiting = asyncio.create_task(acquire(behind))
        await wait_for_queue(client, 2)
        await release(held)
        with anyio.fail_after(10):
            await waiting
        await release(behind)


@on_each_kind
@on_either_lease
async def test_x5_what_arrives_late(faulty: Faulty, kind: str, shared: bool) -> None:
    """A key that is put when nobody waits for it any more is deleted; others go on."""
    async with AsyncExitStack() as stack:
        lease = await lease_of(stack, faulty.client, shared)
        leases = await faulty.lease_ids()

        async def is_gone() -> bool:
            return await queue(faulty.oracle) == [] and await faulty.lease_ids() == leases

        for _ in range(10):  # until one has arrived: with a stall, its connection's end is there
            came = await faulty.oracle.kv.put("another", "key")
            await faulty.client.ping()  # it is connected
            faulty.proxy.delay(0.4)  # twice as long as it waits
            began = monotonic()
            with pytest.raises(NoEndpointError):
                await acquire(one_of(kind, faulty.client, timeout=0.2, **lease))
            await faulty.proxy.heal()
            await anyio.sleep(max(0.0, began + 1.2 - monotonic()))  # whatever was late is there
            await soon(is_gone)
            then = came.header.revision
            has_arrived = (await faulty.oracle.kv.get("another")).header.revision > then
            if has_arrived:  # what is late is a key, and it was there
                watch = faulty.oracle.watch(NAME, prefix=True, start_revision=then + 1)
                with anyio.fail_after(5):
                    assert [(await anext(watch)).type.name for _ in "pd"] == ["PUT", "DELETE"]
            async with before(kind, faulty.oracle, ttl=60, timeout=10):
                pass
            await faulty.oracle.kv.delete("another")
            if has_arrived or not shared:  # a late grant changes no key
                return
    pytest.fail("nothing arrived late")


@pytest.mark.fault("X6")
async def test_x6_the_server_is_killed_while_they_wait(own_server: EtcdServer) -> None:
    """Each waiter keeps its key, and its place: of all kinds at once."""
    served: dict[str, list[int]] = {kind: [] for kind in KINDS}

    async def wait(client: Client, kind: str, number: int) -> None:
        async with one_of(kind, client, f"/{kind}", ttl=60) as held:
            served[kind].append(number)
            assert await is_owner(client, held)

    async with Client(own_server.endpoint) as client, asyncio.TaskGroup() as tasks:
        first = {kind: before(kind, client, f"/{kind}", ttl=60) for kind in KINDS}
        await asyncio.gather(*map(acquire, first.values()))
        for kind in KINDS:
            for number in range(3):
                tasks.create_task(wait(client, kind, number))
                await wait_for_queue(client, number + 2, f"/{kind}")
        places = [await queue(client, f"/{kind}") for kind in KINDS]
        await own_server.kill()
        await own_server.start()
        assert [await queue(client, f"/{kind}") for kind in KINDS] == places
        assert not any(served.values())
        await asyncio.gather(*map(release, first.values()))
    readers = served.pop("reader")
    assert sorted(readers) == [0, 1, 2]  # all at once
    assert list(served.values()) == [[0, 1, 2]] * 3


@pytest.mark.parametrize("kind", [*KINDS, "lock"])
@on_either_lease
@pytest.mark.parametrize("how", ["lease revoked", "key deleted"])
async def test_x9_taken_away_from_the_holder(
    client: Client, kind: str, shared: bool, how: str
) -> None:
    """The body is cancelled at once; who waited enters, with a greater token."""
    async with AsyncExitStack() as stack:
        held = one_of(kind, client, **await lease_of(stack, client, shared))
        after = one_of("writer" if kind == "reader" else kind, client, ttl=60)
        waiting: asyncio.Task[None] | None = None
        with anyio.fail_after(8), pytest.raises((LockLostError, LeadershipLostError)) as caught:
            async with held:
                waiting = asyncio.create_task(acquire(after))
                await wait_for_queue(client, 2)
                if how == "lease revoked":
                    await client.lease.revoke(held.lease_id)
                else:
                    await client.kv.delete(held.key)
                await anyio.sleep(10)
        assert held.is_lost
        assert await held.wait_lost() is caught.value
        assert waiting is not None
        await waiting
        assert after.revision > held.revision
        assert not await is_owner(client, held)
        await release(after)


@pytest.mark.fault("X10")
async def test_x10_released_while_cut_off_for_a_while(quick_server: EtcdServer) -> None:
    """Leaving is bounded; the next one enters when the server is back, not when the lease ends."""
    await quick_server.clear()
    async with faulty_client(quick_server) as faulty, AsyncExitStack() as stack:
        shared = await lease_of(stack, faulty.client, shared=True)
        names = [f"/{kind}/{how}" for kind in KINDS for how in ("own", "session")]
        helds = []
        for name in names:
            _, kind, how = name.split("/")
            lease = shared if how == "session" else {"ttl": 60}
            helds.append(one_of(kind, faulty.client, name, **lease))
        await asyncio.gather(*map(acquire, helds))
        faulty.client._transport.timeout = 0.5  # from now on: they had time to be acquired
        faulty.proxy.blackhole()
        async with lateness() as late:
            began = monotonic()
            await asyncio.gather(*map(release, helds))
            assert 0.4 < monotonic() - began < 1 + late.seconds
        assert [await queue(faulty.oracle, name) for name in names] == [[h.key] for h in helds]
        await faulty.proxy.heal()
        faulty.client._transport.timeout = 10.0
        for name in names:
            kind = name.split("/")[1]
            async with before(kind, faulty.oracle, name, ttl=60, timeout=5):
                pass
