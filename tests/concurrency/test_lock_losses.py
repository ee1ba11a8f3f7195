"""Locks that are lost: the holder and the waiter are told, in time, and others go on."""

from __future__ import annotations

import asyncio
import time
from time import monotonic
from typing import Literal

import anyio
import pytest
from anyio.lowlevel import checkpoint

from aioetcd import Client, LeaseExpiredError, LeaseLostError, Lock, LockLostError
from aioetcd.testing import EtcdServer
from tests.concurrency.locks import (
    NAME,
    Room,
    body,
    is_owner,
    locks_of,
    on_either_lease,
    queue,
    wait_for_queue,
)
from tests.harness import Faulty
from tests.waiting import lateness, until

# X2, X4: cut off.


@pytest.mark.fault("X2")
@on_either_lease
async def test_x2_holder_cut_off(faulty: Faulty, shared: bool) -> None:
    """A holder that is cut off is cancelled before the next one has the lock, and only then."""
    room = Room()

    async def cut_off(lock: Lock) -> None:
        # A renewal reaches the server so much later than it was sent, which is what counts.
        faulty.proxy.delay(0.5)
        seen = []
        for _ in range(3):
            seen.append(faulty.client._shared.leases.rules.deadline(lock.lease_id))
            await until(
                lambda: faulty.client._shared.leases.rules.deadline(lock.lease_id) not in seen
            )
        faulty.proxy.blackhole()

    async def hold(lock: Lock) -> None:
        async with lock, room.entered(lock):
            await cut_off(lock)
            await anyio.sleep(10)

    async def wait(lost: Lock) -> None:
        async with faulty.oracle.lock(NAME, ttl=60) as second, room.entered(second):
            assert await is_owner(faulty.oracle, second)
            assert not await is_owner(faulty.oracle, lost)

    async def lose(lock: Lock) -> None:
        with pytest.raises(LockLostError) as caught:
            await hold(lock)
        assert isinstance(caught.value.__cause__, LeaseLostError)
        assert caught.value.__cause__.reason == "expired"

    async with locks_of(faulty.client, shared, ttl=3) as make, anyio.create_task_group() as tasks:
        lock = make(NAME)
        tasks.start_soon(lose, lock)
        await wait_for_queue(faulty.oracle, 1)
        tasks.start_soon(wait, lock)
        await wait_for_queue(faulty.oracle, 2)
    assert faulty.proxy.bytes_swallowed > 0
    room.check(2)
    lost, second = room.turns
    assert lost.left < second.entered


@on_either_lease
async def test_x4_waiter_cut_off(faulty: Faulty, shared: bool) -> None:
    """A waiter whose lease runs out does not wait any longer, and never has the lock."""
    async with (
        faulty.oracle.lock(NAME, ttl=60) as held,
        locks_of(faulty.client, shared, ttl=1) as make,
    ):
        began = 0.0

        async def cut_off() -> None:
            nonlocal began
            await wait_for_queue(faulty.oracle, 2)
            faulty.proxy.blackhole()
            began = monotonic()

        lock = make(NAME)
        async with lateness() as late, anyio.create_task_group() as tasks:
            tasks.start_soon(cut_off)
            with pytest.raises(LockLostError):
                await lock.acquire()
            took = monotonic() - began
        assert took < 1.3 + late.seconds
        with pytest.raises(RuntimeError, match="not acquired"):
            lock.is_owner()
        assert faulty.proxy.bytes_swallowed > 0
        await wait_for_queue(faulty.oracle, 1)
        assert await is_owner(faulty.oracle, held)


@on_either_lease
@pytest.mark.parametrize("how", ["lease revoked", "key deleted"])
async def test_x4_taken_away_from_a_waiter(client: Client, shared: bool, how: str) -> None:
    """A waiter whose lease or key is taken away does not wait any longer, nor has the lock."""
    async with client.lock(NAME, ttl=600) as held, locks_of(client, shared, ttl=600) as make:
        lock = make(NAME)
        waiting = asyncio.create_task(lock.acquire())
        await wait_for_queue(client, 2)
        assert (await queue(client))[1] == lock.key
        async with lateness() as late:
            taken = monotonic()
            if how == "lease revoked":
                await client.lease.revoke(lock.lease_id)
            else:
                await client.kv.delete(lock.key)
            with pytest.raises(LockLostError, match=NAME):
                await waiting
            took = monotonic() - taken
        assert took < 1 + late.seconds
        with pytest.raises(RuntimeError, match="not acquired"):
            lock.is_owner()
        assert await queue(client) == [held.key]
        assert await is_owner(client, held)


# X9: taken away.


@on_either_lease
@pytest.mark.parametrize("how", ["lease revoked", "key deleted", "all keys deleted"])
async def test_x9_taken_away_from_the_holder(
    client: Client, server: EtcdServer, shared: bool, how: str
) -> None:
    """A holder whose lease or key somebody takes away is cancelled at once, and told why."""
    async with Client(server.endpoint) as other, locks_of(client, shared, ttl=600) as make:
        lock = make(NAME)

        async def take_away() -> None:
            assert await is_owner(other, lock)
            if how == "lease revoked":
                await other.lease.revoke(lock.lease_id)
            else:
                await other.kv.delete(lock.key if how == "key deleted" else "", prefix=True)

        with anyio.fail_after(8), pytest.raises(LockLostError, match=NAME) as caught:
            await body(lock, take_away)
        assert lock.is_lost
        assert not await is_owner(other, lock)
        assert await lock.wait_lost() is caught.value
        if shared and how != "lease revoked":  # it was this lock's key, and nothing else
            async with make(NAME, blocking=False) as again:
                assert await is_owner(other, again)
    async with Client(server.endpoint) as other:
        assert (await other.lease.leases()).ids == ()


# Otherwise.


@pytest.mark.fault("a loop that is blocked for longer than a lease lives")
@pytest.mark.parametrize("on_lost", ["cancel", "ignore"])
async def test_a_body_that_blocks_the_loop_to_its_end(
    faulty: Faulty, on_lost: Literal["cancel", "ignore"]
) -> None:
    """A block that ends before the loop had a turn after the lock's time is over raises the loss.

    And what the lock guards at the server does not happen, though nobody asked.
    """
    async with Client(faulty.server.endpoint) as client:  # a proxy would be blocked as well
        lock = client.lock(NAME, ttl=1, on_lost=on_lost)

        async def hold() -> None:
            async with lock:
                seen = client._shared.leases.rules.deadline(lock.lease_id)
                await until(
                    lambda: client._shared.leases.rules.deadline(lock.lease_id) not in (None, seen)
                )
                time.sleep(2.5)  # noqa: ASYNC251  # its time, and the server's half a second

        if on_lost == "ignore":
            await hold()
        else:
            with pytest.raises(LockLostError) as caught:
                await hold()
            assert isinstance(caught.value.__cause__, LeaseExpiredError)
        assert lock.is_lost
        assert not await is_owner(client, lock)
        async with client.lock(NAME, blocking=False):
            pass


@pytest.mark.own_logic("what becomes of a body")
async def test_ignoring_the_loss(client: Client) -> None:
    """With on_lost="ignore" the body goes on; `wait_lost` and `is_lost` tell."""
    async with client.lock(NAME, ttl=600, on_lost="ignore") as lock:
        await client.kv.delete(lock.key)
        with anyio.fail_after(8):
            error = await lock.wait_lost()
        assert isinstance(error, LockLostError)
        assert lock.is_lost
        await checkpoint()
    assert (await client.lease.leases()).ids == ()
