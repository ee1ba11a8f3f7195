"""Locks without a block, after they were left, and beside keys that are none of theirs."""

from __future__ import annotations

import asyncio

import anyio
import pytest
from anyio.lowlevel import checkpoint

from aioetcd import (
    Client,
    Lock,
    LockLostError,
    LockNotAcquiredError,
    Session,
)
from tests.concurrency.locks import NAME, is_owner, queue, wait_for_queue

# Without a block.


@pytest.mark.own_logic("what a lock says of itself")
@pytest.mark.parametrize("what", ["lock", "shared lock", "session"])
async def test_z17_left(client: Client, what: str) -> None:
    """What was left has no time left, cannot be lost, and cannot be entered again: it says so."""
    async with client.session(ttl=60) as outer:
        held: Lock | Session
        if what == "session":
            held = client.session(ttl=60)
        elif what == "lock":
            held = client.lock(NAME, ttl=60)
        else:
            held = client.lock(NAME, session=outer)
        assert held.expires_in == 0
        async with held:
            assert 50 < held.expires_in <= 60
            waiting = asyncio.create_task(held.wait_lost())
            await checkpoint()
        assert held.expires_in == 0
        with pytest.raises(RuntimeError, match="left"):
            await waiting
        with pytest.raises(RuntimeError, match="left"):
            await held.wait_lost()
        with pytest.raises(RuntimeError, match="make another one"):
            await held.__aenter__()
        assert not held.is_lost


@pytest.mark.own_logic("what a lock says of itself")
async def test_no_time_is_left_of_what_is_lost(client: Client) -> None:
    """A lock whose key was deleted is not surely held, though its lease lives on."""
    async with client.session(ttl=60) as session:
        lock = client.lock(NAME, session=session)
        await lock.acquire()
        await client.kv.delete(lock.key)
        await lock.wait_lost()
        assert lock.expires_in == 0
        assert session.expires_in > 50
        await lock.release()
        assert isinstance(await lock.wait_lost(), LockLostError)


@pytest.mark.own_logic("what a lock says of itself")
async def test_acquire_and_release(client: Client) -> None:
    """A lock without a block is held from `acquire` to `release`, by whichever task."""
    lock = client.lock(NAME, ttl=60)
    with pytest.raises(RuntimeError, match="not acquired"):
        await lock.release()
    await lock.acquire()
    assert await is_owner(client, lock)
    with pytest.raises(RuntimeError, match="once"):
        await lock.acquire()
    await asyncio.create_task(lock.release())
    assert await queue(client) == []
    assert (await client.lease.leases()).ids == ()
    await lock.release()
    with pytest.raises(RuntimeError, match="make another one"):
        await lock.acquire()


@pytest.mark.own_logic("what a lock says of itself")
async def test_a_loss_without_a_block(client: Client) -> None:
    """Nothing is cancelled, `wait_lost` tells, and releasing what is lost is no error."""
    lock = client.lock(NAME, ttl=60)
    await lock.acquire()
    await client.kv.delete(lock.key)
    async with asyncio.timeout(10):
        error = await lock.wait_lost()
    assert isinstance(error, LockLostError)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await lock.release()
    assert (await client.lease.leases()).ids == ()


@pytest.mark.own_logic("what a lock says of itself")
@pytest.mark.parametrize("shared", [False, True])
async def test_no_owner_before_its_turn(client: Client, shared: bool) -> None:
    """A waiter has no token and no comparison: it must not pass for the owner."""
    async with client.lock(NAME, ttl=60), client.session(ttl=60) as session:
        waiting = client.lock(NAME, session=session) if shared else client.lock(NAME, ttl=60)
        task = asyncio.create_task(waiting.acquire())
        await wait_for_queue(client, 2)
        with pytest.raises(RuntimeError, match="not acquired"):
            waiting.is_owner()
        with pytest.raises(RuntimeError, match="not acquired"):
            waiting.revision  # noqa: B018  # that it raises
        task.cancel()
        await asyncio.wait({task})


# Keys that are none of the lock's.


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("with_lease", [False, True])
async def test_data_below_the_name(client: Client, blocking: bool, with_lease: bool) -> None:
    """Data below a lock's name is named by an error, at once, instead of being waited for."""
    async with client.session(ttl=60) as session:
        lease = session.lease_id if with_lease else None
        await client.kv.put(NAME + "/config", "data", lease=lease)
        with anyio.fail_after(10), pytest.raises(LockNotAcquiredError) as caught:
            await client.lock(NAME, ttl=60, blocking=blocking).acquire()
        assert f"{NAME}/config" in str(caught.value)
        assert caught.value.holder.value == b"data"
        assert await queue(client) == [f"{NAME}/config".encode()]
        assert (await client.lease.leases()).ids == (session.lease_id,)
        await client.kv.delete(NAME + "/config")
    async with client.lock(NAME, blocking=False):
        pass


async def test_data_before_everybody(client: Client) -> None:
    """Data that is older than all in the queue is seen at once, and not after the others' turns."""
    await client.kv.put(NAME + "/config", "data")
    async with client.session(ttl=60) as session:
        await client.kv.put(f"{NAME}/{session.lease_id:x}", "a holder", lease=session.lease_id)
        with anyio.fail_after(10), pytest.raises(LockNotAcquiredError, match="config"):
            await client.lock(NAME, ttl=60).acquire()
    await client.kv.delete(NAME + "/config")


async def test_data_between_two_holders(client: Client) -> None:
    """A waiter that comes to wait for data, after a holder has left, says so as well."""

    async def wait(lock: Lock) -> None:
        async with lock:
            pytest.fail("the lock was held")

    async with client.lock(NAME, ttl=60) as first:
        await client.kv.put(NAME + "/config", "data")
        task = asyncio.create_task(wait(client.lock(NAME, ttl=60)))
        with anyio.fail_after(10), pytest.raises(LockNotAcquiredError, match="config"):
            await task
        assert await is_owner(client, first)
    await client.kv.delete(NAME + "/config")
