"""A lock has one holder at a time, whatever happens to the network and the server."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest

from aioetcd import Client, GetResponse, LockLostError, Op
from aioetcd.concurrency._turn import Turn
from aioetcd.testing import EtcdServer, FaultProxy
from tests.concurrency.counting import Counter, Weather, calm, cuts, kills
from tests.concurrency.locks import (
    EXCLUSIVE,
    NAME,
    Locks,
    is_owner,
    locks_of,
    on_either_lease,
    one_of,
    queue,
    wait_for_queue,
    watches_created,
)
from tests.harness import Faulty
from tests.waiting import until

# X1: ten holders, in any weather.

HOLDERS = 10


@pytest.mark.fault("X1")
@on_either_lease
@pytest.mark.parametrize(
    ("weather", "sections", "faults"), [(calm, 20, 0), (cuts, 12, 3), (kills, 8, 2)]
)
async def test_x1_ten_holders(
    own_server: EtcdServer,
    rng: random.Random,
    shared: bool,
    weather: Weather,
    sections: int,
    faults: int,
) -> None:
    """Each of ten holders has all its turns, alone, and what they count together is exact."""
    counter = Counter()
    turns = 0
    is_over = anyio.Event()

    async def hold(client: Client, make: Locks, number: int) -> None:
        nonlocal turns
        own = 0
        while own < sections or (faults and not is_over.is_set()):  # until all faults happened
            await counter.add(client, make(NAME), f"holder {number}")
            own += 1
            turns += 1

    async with (
        FaultProxy(own_server.endpoint) as proxy,
        Client(own_server.endpoint) as oracle,
        AsyncExitStack() as stack,
    ):
        clients = [await stack.enter_async_context(Client(proxy.endpoint)) for _ in range(2)]
        locks = [await stack.enter_async_context(locks_of(each, shared)) for each in clients]
        holding = [
            asyncio.create_task(hold(clients[number % 2], locks[number % 2], number))
            for number in range(HOLDERS)
        ]
        happened = await weather(
            own_server, proxy, rng, lambda: any(task.done() for task in holding)
        )
        is_over.set()
        await asyncio.gather(*holding)
        assert happened >= faults
        assert counter.added == turns >= HOLDERS * sections
        await counter.check(oracle)
        assert await queue(oracle) == []


# X3: the owner's loop stands still for too long.


@on_either_lease
@pytest.mark.parametrize("kind", EXCLUSIVE)
async def test_x3_a_holder_whose_loop_is_blocked(
    quick_server: EtcdServer, shared: bool, kind: str
) -> None:
    """It does not know better than the store: what the lock guards does not happen any more."""
    await quick_server.clear()
    holds, is_over = threading.Event(), threading.Event()
    seen: dict[str, object] = {}

    async def hold_and_block() -> None:
        async with Client(quick_server.endpoint) as client, AsyncExitStack() as stack:
            session = None
            if shared:
                session = client.session(ttl=1, on_lost="ignore")
                await stack.enter_async_context(session)
            ttl = None if shared else 1
            lock = one_of(kind, client, ttl=ttl, session=session, on_lost="ignore")
            await stack.enter_async_context(lock)
            await client.kv.put("data", "first")
            is_first = lock.is_owner()
            holds.set()
            # What this is about. Nothing is told before the loop has a turn again.
            seen["over"] = is_over.wait(10)
            seen["lost"] = lock.is_lost
            late = await client.kv.txn(compare=[is_first], success=[Op.put("data", "too late")])
            seen["succeeded"], seen["token"] = late.succeeded, lock.revision

    async def hold_next() -> int:
        async with Client(quick_server.endpoint) as client:
            async with one_of(kind, client, ttl=60, timeout=8) as lock:
                result = await client.kv.txn(
                    compare=[lock.is_owner()], success=[Op.put("data", "second")]
                )
                assert result.succeeded
                is_over.set()
                await until(lambda: "succeeded" in seen)
                assert (await client.kv.get("data")).value == b"second"
                assert await is_owner(client, lock)
            await client.kv.delete("data")
            return lock.revision

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, lambda: asyncio.run(hold_and_block()))
        try:
            await until(holds.is_set)
            token = await hold_next()
        finally:
            is_over.set()
    assert seen == {"over": True, "lost": True, "succeeded": False, "token": seen["token"]}
    assert isinstance(seen["token"], int)
    assert token > seen["token"]


# X6: the server goes and comes back while they wait.


@on_either_lease
async def test_x6_the_server_is_killed_while_they_wait(
    own_server: EtcdServer, shared: bool
) -> None:
    """Each waiter keeps the one key that it has, and with it its place in the queue."""
    served: list[int] = []

    async def wait(number: int, make: Locks) -> None:
        async with make(NAME) as lock:
            served.append(number)
            assert await is_owner(oracle, lock)

    async with Client(own_server.endpoint) as oracle, AsyncExitStack() as stack:
        first = await stack.enter_async_context(Client(own_server.endpoint))
        held = first.lock(NAME, ttl=60)
        await held.acquire()
        async with asyncio.TaskGroup() as tasks:
            for number in range(4):
                client = await stack.enter_async_context(Client(own_server.endpoint))
                make = await stack.enter_async_context(locks_of(client, shared))
                tasks.create_task(wait(number, make))
                await wait_for_queue(oracle, number + 2)
            before, pid = await queue(oracle), own_server.pid
            await own_server.kill()
            await own_server.start()
            assert own_server.pid != pid
            assert await queue(oracle) == before
            assert served == []
            await held.release()
        assert served == [0, 1, 2, 3]
        assert await queue(oracle) == []


# X7: holders that have a client, and perhaps a lease, in common.


@on_either_lease
async def test_x7_two_tasks_of_one_client(client: Client, shared: bool) -> None:
    """The second task waits for the first as it would for a stranger, and tries like one."""
    order: list[str] = []
    has_begun = asyncio.Event()

    async def second(make: Locks) -> None:
        has_begun.set()
        async with make(NAME) as lock:
            order.append("second")
            assert await is_owner(client, lock)

    async with (
        locks_of(client, shared) as make,
        asyncio.TaskGroup() as tasks,
        make(NAME) as first,
    ):
        tasks.create_task(second(make))
        await has_begun.wait()
        # Longer than it takes to acquire one.
        for _ in range(5):
            async with make("another"):
                pass
        assert order == []
        assert (await queue(client))[0] == first.key
        assert await is_owner(client, first)
        order.append("first")
    assert order == ["first", "second"]
    assert await queue(client) == []


# X8: who was before us goes just when we have seen it.


@asynccontextmanager
async def gone_once_seen(
    oracle: Client, monkeypatch: pytest.MonkeyPatch, *, compacted: bool
) -> AsyncIterator[list[bytes]]:
    """Delete the first key that a waiter is about to watch, between its reading and its watch."""
    gone: list[bytes] = []
    before = Turn._before

    async def deleting(turn: Turn) -> GetResponse:
        found = await before(turn)
        if found.kv is not None and not gone:
            gone.append(found.kv.key)
            await oracle.kv.delete(found.kv.key)
            if compacted:
                last = await oracle.kv.put("another", "write")
                await oracle.kv.compact(last.header.revision, physical=True)
                await oracle.kv.delete("another")
        return found

    with monkeypatch.context() as patched:
        patched.setattr(Turn, "_before", deleting)
        yield gone


@on_either_lease
@pytest.mark.parametrize("compacted", [False, True])
async def test_x8_the_one_before_goes_between_reading_and_watching(
    client: Client,
    server: EtcdServer,
    monkeypatch: pytest.MonkeyPatch,
    shared: bool,
    compacted: bool,
) -> None:
    """A waiter watches from what it has read on: it sees what came in between, and goes on."""
    async with Client(server.endpoint) as own, locks_of(own, shared) as make:
        before = client.lock(NAME, ttl=60, on_lost="ignore")
        await before.acquire()
        async with gone_once_seen(client, monkeypatch, compacted=compacted) as gone:
            with anyio.fail_after(10):
                async with make(NAME) as lock:
                    assert await is_owner(client, lock)
        assert gone == [before.key]
        assert isinstance(await before.wait_lost(), LockLostError)
        await before.release()


@pytest.mark.usefixtures("patient_look")
async def test_x8_the_one_before_goes_in_the_middle_of_the_queue(
    faulty: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it was not the holder who went, a waiter looks again, and waits for the next before."""
    async with faulty.oracle.lock(NAME, ttl=60) as held:
        between = asyncio.create_task(faulty.oracle.lock(NAME, ttl=60).acquire())
        await wait_for_queue(faulty.oracle, 2)
        await watches_created(faulty.oracle, 3)  # that one has seen who is before
        middle = (await queue(faulty.oracle))[1]
        async with gone_once_seen(faulty.oracle, monkeypatch, compacted=False) as gone:
            last = asyncio.create_task(faulty.client.lock(NAME, ttl=60, timeout=30).acquire())
            with pytest.raises(LockLostError):
                await between
            await until(lambda: gone == [middle])
            waits = faulty.client.lock(NAME, ttl=60, timeout=0.2)
            with pytest.raises(TimeoutError):
                await waits.acquire()
            assert not last.done()
            assert await is_owner(faulty.oracle, held)
            last.cancel()
            await asyncio.wait({last})
