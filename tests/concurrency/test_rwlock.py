"""Locks that several may hold: readers beside each other, and semaphores."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import anyio
import pytest

from aioetcd import (
    Client,
    Lock,
    LockLostError,
    LockNotAcquiredError,
    LockTimeoutError,
)
from tests.concurrency.test_election import until_nothing_is_left
from tests.waiting import until

NAME = "/locks/catalogue"


async def wait_for_locks(client: Client, count: int) -> None:
    """Wait until so many hold one, or wait for it."""

    async def are_there() -> bool:
        return len(await client.locks(NAME)) == count

    await until(are_there)


def acquired(lock: Lock) -> asyncio.Task[None]:
    """Acquire it in another task."""
    return asyncio.ensure_future(lock.acquire())


async def settle(client: Client) -> None:
    """Give whoever is to enter the time for some calls."""
    for _ in range(5):
        await client.ping()


async def test_readers_are_inside_together(client: Client) -> None:
    """A writer waits for all of them, and they for a writer that came first."""
    shared = client.rwlock(NAME, ttl=60)
    first, second = shared.read(value="first"), shared.read(value="second")
    await first.acquire()
    await second.acquire()
    writer = shared.write(value="writer")
    writing = acquired(writer)
    await wait_for_locks(client, 3)
    late = shared.read(value="late")  # behind the writer: it is not to starve
    reading = acquired(late)
    await wait_for_locks(client, 4)
    assert [kv.text for kv in await client.locks(NAME)] == ["first", "second", "writer", "late"]
    await settle(client)
    assert not writing.done()
    await first.release()
    await settle(client)
    assert not writing.done()
    await second.release()
    await writing
    assert not reading.done()
    with pytest.raises(LockNotAcquiredError) as caught:
        await shared.read(blocking=False).acquire()
    assert caught.value.holder.text == "writer"
    await writer.release()
    await reading
    async with shared.read(blocking=False):
        with pytest.raises(LockNotAcquiredError):
            await shared.write(blocking=False).acquire()
    await late.release()
    async with shared.write(blocking=False):
        pass
    await until_nothing_is_left(client)


@pytest.mark.usefixtures("patient_look")
async def test_a_reader_with_a_time_limit(client: Client) -> None:
    """The error says who writes, and nothing is left behind."""
    shared = client.rwlock(NAME, ttl=60)
    async with shared.write(value="writer"):
        with pytest.raises(LockTimeoutError) as caught:
            await shared.read(timeout=0.2).acquire()
        assert caught.value.holder is not None
        assert caught.value.holder.text == "writer"
        await wait_for_locks(client, 1)


async def test_what_is_lost(client: Client) -> None:
    """The body is cancelled, reading as writing; and the next one enters."""
    shared = client.rwlock(NAME)
    for lock in (shared.read(), shared.write()):
        with pytest.raises(LockLostError):
            async with lock:
                await client.lease.revoke(lock)
                await anyio.sleep(10)
    async with shared.write(timeout=5):
        pass


@pytest.mark.fault("X1")
async def test_x1_readers_and_writers_at_random(client: Client, rng: random.Random) -> None:
    """A writer is alone, whoever comes, and gives up, whenever."""
    shared = client.rwlock(NAME, ttl=60)
    readers = writers = most = 0

    async def read() -> None:
        nonlocal readers, most
        async with shared.read():
            readers += 1
            most = max(most, readers)
            assert writers == 0
            await anyio.sleep(rng.uniform(0, 0.01))
            readers -= 1

    async def write() -> None:
        nonlocal writers
        async with shared.write():
            writers += 1
            try:
                assert (readers, writers) == (0, 1)
                await anyio.sleep(rng.uniform(0, 0.01))
            finally:
                writers -= 1

    async def come_and_go() -> None:
        for _ in range(10):
            do = read if rng.random() < 0.7 else write
            if rng.random() < 0.2:
                with anyio.move_on_after(rng.uniform(0, 0.01)):
                    await write()
            await do()

    async with anyio.create_task_group() as tasks:
        for _ in range(6):
            tasks.start_soon(come_and_go)
    assert most > 1
    await wait_for_locks(client, 0)


async def test_a_semaphore_lets_so_many_in(client: Client) -> None:
    """In the order of their coming; a release lets in the next one alone."""
    locks = [client.semaphore(NAME, 3, ttl=60, value=str(number)) for number in range(7)]
    tasks: list[asyncio.Task[None]] = []
    for lock in locks:
        tasks.append(acquired(lock))
        await wait_for_locks(client, len(tasks))
    await until(lambda: all(task.done() for task in tasks[:3]))
    await settle(client)
    assert [task.done() for task in tasks] == [True] * 3 + [False] * 4
    with pytest.raises(LockNotAcquiredError):
        await client.semaphore(NAME, 3, blocking=False).acquire()
    # Not the oldest: whose place becomes free does not matter.
    for leaving, next_one in ((1, 3), (3, 4), (0, 5)):
        await locks[leaving].release()
        await tasks[next_one]
        await settle(client)
        assert [task.done() for task in tasks] == [True] * (next_one + 1) + [False] * (6 - next_one)
    await locks[2].release()
    await tasks[6]
    for lock in locks[4:]:
        await lock.release()
    async with client.semaphore(NAME, 3, blocking=False):
        pass
    await until_nothing_is_left(client)


async def test_waiters_that_give_up(client: Client) -> None:
    """Those behind them move up."""
    holder = client.semaphore(NAME, 2, ttl=60, on_lost="ignore")
    async with holder, client.semaphore(NAME, 2, ttl=60):
        middle = acquired(client.semaphore(NAME, 2, ttl=60))
        await wait_for_locks(client, 3)
        last = client.semaphore(NAME, 2, ttl=60)
        waiting = acquired(last)
        await wait_for_locks(client, 4)
        middle.cancel()
        await asyncio.wait([middle])
        await wait_for_locks(client, 3)
        await settle(client)
        assert not waiting.done()
        await client.lease.revoke(holder)
        await waiting
        await last.release()


async def test_who_does_not_wait_fails_at_once(client: Client) -> None:
    """Also where what is in the way is on the same session; the error names who was first."""
    async with client.session(ttl=60) as session:
        shared = client.rwlock(NAME, session=session)
        async with shared.read(value="mine") as mine:
            with anyio.fail_after(5), pytest.raises(LockNotAcquiredError) as caught:
                await shared.read(blocking=False).acquire()
            assert caught.value.holder.key == mine.key
        async with client.semaphore(NAME, 3, session=session):
            attempts = [client.semaphore(NAME, 3, session=session, blocking=False) for _ in "ab"]
            with anyio.fail_after(5):
                outcomes = await asyncio.gather(
                    *(attempt.acquire() for attempt in attempts), return_exceptions=True
                )
            assert [type(outcome) for outcome in outcomes] == [LockNotAcquiredError] * 2
    oldest = client.semaphore(NAME, 2, ttl=60, value="oldest")
    async with oldest, client.semaphore(NAME, 2, ttl=60):
        waiting = acquired(client.semaphore(NAME, 2, ttl=60))
        await wait_for_locks(client, 3)
        with pytest.raises(LockNotAcquiredError) as caught:
            await client.semaphore(NAME, 2, blocking=False).acquire()
        assert caught.value.holder.key == oldest.key
        assert len(await client.locks(NAME)) == 3
        waiting.cancel()
        await asyncio.wait([waiting])


async def test_tries_at_the_same_time(client: Client) -> None:
    """As many get in as there is room for, and no try keeps another one out."""
    for _ in range(10):
        locks = [client.semaphore(NAME, 3, ttl=60, blocking=False) for _ in range(6)]
        outcomes = await asyncio.gather(*(lock.acquire() for lock in locks), return_exceptions=True)
        assert sum(outcome is None for outcome in outcomes) == 3
        for lock, outcome in zip(locks, outcomes, strict=True):
            if outcome is None:
                await lock.release()
            else:
                assert isinstance(outcome, LockNotAcquiredError)
        await wait_for_locks(client, 0)


@pytest.mark.fault("X1")
async def test_x1_a_semaphore_at_random(client: Client, rng: random.Random) -> None:
    """Never more than so many are inside, and at times all that may."""
    inside = most = 0

    async def come_and_go() -> None:
        nonlocal inside, most
        for _ in range(10):
            async with client.semaphore(NAME, 3, ttl=60):
                inside += 1
                most = max(most, inside)
                await anyio.sleep(rng.uniform(0, 0.01))
                inside -= 1

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(come_and_go)
    assert most == 3
    await wait_for_locks(client, 0)


@pytest.mark.parametrize(
    ("permits", "error"), [(0, ValueError), ("3", TypeError), (True, TypeError)]
)
async def test_wrong_permits(client: Client, permits: Any, error: type[Exception]) -> None:
    """They are refused by name."""
    with pytest.raises(error, match=r"^permits must"):
        client.semaphore(NAME, permits)
    with pytest.raises(ValueError, match="key must not be empty"):
        client.rwlock("")
