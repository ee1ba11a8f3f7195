"""Blocks may be left in any order, by any task, and entered where nobody stays to be told."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import anyio
import pytest

from aioetcd import Client, LeaseLostError, Lock, LockLostError
from tests.concurrency.locks import check_is_as_before, queue
from tests.waiting import until

pytestmark = pytest.mark.own_logic("how bodies are cancelled and left, by the client itself")

# In any order.


async def test_z5_hand_over_hand(client: Client) -> None:
    """Locks that are handed over, each left after the next one was entered, are all released."""
    locks = [client.lock(f"/nodes/{number}", ttl=60) for number in range(4)]
    await locks[0].__aenter__()
    for left, entered in itertools.pairwise(locks):
        await entered.__aenter__()
        await left.__aexit__(None, None, None)
        assert await queue(client, "/nodes") == [entered.key]
    await locks[-1].__aexit__(None, None, None)
    assert (await client.lease.leases()).ids == ()


@pytest.mark.parametrize("last_in_first_out", [False, True])
async def test_z5_services_of_one_task(client: Client, last_in_first_out: bool) -> None:
    """Sessions entered by one task are left in any order."""
    sessions = [client.session(ttl=60) for _ in range(3)]
    for session in sessions:
        await session.__aenter__()
    for session in reversed(sessions) if last_in_first_out else sessions:
        await session.__aexit__(None, None, None)
        assert session.lease_id not in (await client.lease.leases()).ids
    await check_is_as_before()


async def test_z5_lost_while_left_in_another_order(client: Client) -> None:
    """The loss of a block that is left later than one inside it is raised by that block."""
    first, second = client.session(ttl=60), client.session(ttl=60)
    await first.__aenter__()
    await second.__aenter__()
    with pytest.raises(LeaseLostError) as caught:
        try:
            await client.lease.revoke(first.lease_id)
            await asyncio.sleep(10)
        except asyncio.CancelledError as cancelled:
            await first.__aexit__(type(cancelled), cancelled, None)
    await second.__aexit__(type(caught.value), caught.value, None)
    await check_is_as_before()
    assert caught.value.lease_id == first.lease_id
    assert (await client.lease.leases()).ids == ()


async def test_z5_an_abandoned_generator(client: Client) -> None:
    """A lock that an abandoned generator holds is released by the loop, in a task of its own."""

    async def numbers() -> AsyncIterator[int]:
        async with client.lock("L", ttl=60):
            for number in range(10):
                yield number

    async with client.session(ttl=60):
        async for _ in numbers():
            break

        async def is_free() -> bool:
            return await queue(client, "L") == []

        await until(is_free)
    await check_is_as_before()


# Entered by a task that is over, or inside of what is over.


async def enter_in_a_task(stack: AsyncExitStack, lock: Lock) -> None:
    await asyncio.create_task(stack.enter_async_context(lock))


async def enter_with_gather(stack: AsyncExitStack, lock: Lock) -> None:
    await asyncio.gather(stack.enter_async_context(lock), asyncio.sleep(0))


async def enter_in_a_task_group(stack: AsyncExitStack, lock: Lock) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(stack.enter_async_context(lock))


async def enter_with_fail_after(stack: AsyncExitStack, lock: Lock) -> None:
    with anyio.fail_after(10):
        await stack.enter_async_context(lock)


async def enter_with_timeout(stack: AsyncExitStack, lock: Lock) -> None:
    async with asyncio.timeout(10):
        await stack.enter_async_context(lock)


@pytest.mark.parametrize(
    ("enter", "is_told"),
    [
        (enter_in_a_task, False),
        (enter_with_gather, False),
        (enter_in_a_task_group, False),
        (enter_with_fail_after, True),
        (enter_with_timeout, True),
    ],
)
async def test_z6_entered_elsewhere(
    client: Client,
    enter: Callable[[AsyncExitStack, Lock], Awaitable[None]],
    is_told: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A loss that has nobody to be delivered to is warned of, and raised when the block is left."""
    lock = client.lock("L", ttl=60)
    went_on = False
    with caplog.at_level(logging.WARNING, "aioetcd.concurrency"), pytest.raises(LockLostError):
        async with AsyncExitStack() as stack:
            await enter(stack, lock)
            assert await queue(client, "L") == [lock.key]
            await client.kv.delete(lock.key)
            await lock.wait_lost()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            went_on = True
    assert went_on is not is_told
    assert ("nobody can be cancelled" in caplog.text) is not is_told
    await check_is_as_before()


async def test_z6_left_by_another_task(client: Client) -> None:
    """The task that entered is cancelled, though another one leaves; nothing of it stays."""
    session = client.session(ttl=60)
    told = asyncio.Event()
    go_on = asyncio.Event()

    async def enter() -> int:
        await session.__aenter__()
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            told.set()
        await go_on.wait()
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    entering = asyncio.create_task(enter())
    await until(lambda: session.expires_in > 0)
    await client.lease.revoke(session.lease_id)
    await told.wait()
    with pytest.raises(LeaseLostError):
        await session.__aexit__(None, None, None)
    go_on.set()
    assert await entering == 0
