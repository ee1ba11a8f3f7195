"""Attempts at a lock that are given up leave nothing behind, and the next one has its turn."""

from __future__ import annotations

import asyncio
import random
from functools import partial
from time import monotonic

import anyio
import pytest

from aioetcd import Client, Lock, LockTimeoutError, NoEndpointError
from aioetcd.testing import EtcdServer
from tests.concurrency.locks import (
    NAME,
    is_owner,
    locks_of,
    on_either_lease,
    queue,
    soon,
    wait_for_queue,
)
from tests.harness import Faulty
from tests.waiting import lateness


@pytest.mark.usefixtures("patient_look")
@on_either_lease
async def test_x5_timeout(client: Client, shared: bool) -> None:
    """Who waits for too long gets an error in time, and leaves the queue to who is behind."""
    held = client.lock(NAME, ttl=60)
    await held.acquire()
    async with locks_of(client, shared) as make:
        leases = set((await client.lease.leases()).ids)
        async with lateness() as late:
            before = monotonic()
            with pytest.raises(LockTimeoutError, match=NAME) as caught:
                await make(NAME, timeout=0.3).acquire()
            took = monotonic() - before
        assert 0.3 <= took < 1.3 + late.seconds
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.timeout == 0.3
        assert caught.value.holder is not None
        assert caught.value.holder.key == held.key
        await _left(client, [held.key], leases)
        # So long, because others must come behind it meanwhile.
        given_up, behind = make(NAME, timeout=1), client.lock(NAME, ttl=60)
        async with asyncio.TaskGroup() as tasks:
            giving_up = tasks.create_task(_gives_up(given_up))
            await wait_for_queue(client, 2)
            waiting = tasks.create_task(behind.acquire())
            await wait_for_queue(client, 3)
            await giving_up
            await _left(client, [held.key, behind.key], {*leases, behind.lease_id})
            await held.release()
            async with asyncio.timeout(10):
                await waiting
        await behind.release()


async def _left(client: Client, keys: list[bytes], leases: set[int]) -> None:
    """Soon, only these keys and leases are left."""

    async def are_left() -> bool:
        return await queue(client) == keys and {*(await client.lease.leases()).ids} == leases

    await soon(are_left)


async def _gives_up(lock: Lock) -> None:
    with pytest.raises(LockTimeoutError):
        await lock.acquire()


@pytest.mark.fault("X5")
async def test_x5_cancelled_at_any_moment(client: Client, rng: random.Random) -> None:
    """200 acquisitions cancelled at random moments leave neither a key nor a lease."""
    outcomes: dict[str, int] = {}
    moment = 0.01  # seconds; how long each step takes depends on the machine, and is followed

    async def is_gone(lock: Lock, name: str, held_by: bytes | None) -> bool:
        has_key = await queue(client, name) != ([] if held_by is None else [held_by])
        return not has_key and lock.lease_id not in (await client.lease.leases()).ids

    async def cancel(name: str, held_by: bytes | None) -> None:
        nonlocal moment
        for _ in range(20):
            lock = client.lock(name, ttl=600)
            entered = False
            with anyio.move_on_after(moment * 10 ** rng.uniform(-1, 1)):
                async with lock:
                    entered = True
                    await anyio.sleep_forever()
            queued = lock._turn._revision is not None
            outcome = "held" if entered else "queued" if queued else "before"
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
            moment *= 0.8 if queued else 1.25
            await soon(partial(is_gone, lock, name, held_by))

    async with client.lock("/locks/held", ttl=600) as held:
        async with anyio.create_task_group() as tasks:
            for number in range(7):
                tasks.start_soon(cancel, f"/locks/{number}", None)
        for _ in range(3):  # behind a holder
            await cancel("/locks/held", held.key)
        assert await is_owner(client, held)
        assert (await client.lease.leases()).ids == (held.lease_id,)
    assert sum(outcomes.values()) == 200
    # The moments were spread over all of it.
    assert set(outcomes) == {"before", "queued", "held"}
    assert min(outcomes.values()) >= 5


@pytest.mark.fault("X5: as many turns as it takes, of a tenth of a second")
@on_either_lease
async def test_x5_cancelled_at_every_await(
    client: Client, server: EtcdServer, shared: bool
) -> None:
    """Wherever it waits for something: its key is gone, and so is the lease that was its own."""
    waited = 0
    async with (
        Client(server.endpoint) as own,
        locks_of(own, shared) as make,
        client.lock(NAME, ttl=600) as held,
    ):
        leases = set((await client.lease.leases()).ids)
        # Every turn of the loop, up to where it waits for its turn.
        turn = 0
        while waited < 3:
            turn += 1
            lock = make(NAME)
            task = asyncio.create_task(lock.acquire())
            for _ in range(turn):
                await asyncio.sleep(0)
            waited += lock._turn._revision is not None
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await _left(client, [held.key], leases)
        assert turn > waited, "none was cancelled before its key was put"
        assert await is_owner(client, held)


@on_either_lease
@pytest.mark.parametrize("how", ["timeout", "cancelled"])
async def test_x5_what_arrives_late(faulty: Faulty, shared: bool, how: str) -> None:
    """A request that reaches the server when nobody waits for it any more is undone."""
    service, method = ("KV", "Txn") if shared else ("Lease", "LeaseGrant")

    async def arrived() -> float:
        metrics = await faulty.server.metrics()
        labels = f'grpc_method="{method}",grpc_service="etcdserverpb.{service}",grpc_type="unary"'
        return metrics[f"grpc_server_started_total{{{labels}}}"]

    async def is_gone() -> bool:
        return await queue(faulty.oracle) == [] and await faulty.lease_ids() == leases

    async with locks_of(faulty.client, shared) as make:
        leases = await faulty.lease_ids()
        for _ in range(10):  # until one has arrived: with a stall, its connection's end is there
            await faulty.client.ping()  # it is connected
            before, began = await arrived(), monotonic()
            faulty.proxy.delay(0.4)  # twice as long as anybody waits
            async with lateness() as late:
                if how == "timeout":
                    with pytest.raises(NoEndpointError):
                        await make(NAME, timeout=0.2).acquire()
                else:
                    with anyio.move_on_after(0.2):
                        await make(NAME).acquire()
                took = monotonic() - began
            assert 0.2 <= took < 1.2 + late.seconds
            await faulty.proxy.heal()
            await anyio.sleep(max(0.0, began + 1.2 - monotonic()))  # whatever was late is there
            has_arrived = await arrived() > before
            await soon(is_gone)
            async with faulty.oracle.lock(NAME, ttl=60, timeout=10):
                pass
            if has_arrived:
                return
    pytest.fail("nothing arrived late")
