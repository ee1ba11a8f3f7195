"""What the user holds of a lease's renewals: when it works, and when it says what to do."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise
from typing import Any

import anyio
import pytest

from aioetcd import (
    Client,
    ClientClosedError,
    EtcdError,
    KeepAlive,
    LeaseLostError,
    LeaseNotFoundError,
    LeaseRenewal,
)
from aioetcd.testing import EtcdServer
from tests.lease.faults import Faulty, eventually
from tests.lease.renewals import UNKNOWN, follow

MAKE_ANOTHER = r"was stopped: make another one, with client\.lease\.keep_alive\(\)"


@pytest.fixture
async def lease_id(client: Client) -> AsyncIterator[int]:
    """A lease whose renewals are far apart: what comes in a test was asked for by it."""
    lease = await client.lease.grant(600)
    yield lease.id
    async with Client(next(iter(client.stats().connections))) as other:
        await other.lease.revoke(lease.id)


# -- waiting for one renewal -----------------------------------------------------------------


@pytest.mark.parametrize("entered", [True, False])
async def test_z17_the_next_renewal(client: Client, lease_id: int, *, entered: bool) -> None:
    """`anext` gives one renewal after the other, in a block or without one."""
    keep_alive = client.lease.keep_alive(lease_id)
    if entered:
        await keep_alive.__aenter__()
    for _ in range(3):
        renewals: list[LeaseRenewal] = []

        async def take(renewals: list[LeaseRenewal] = renewals) -> None:
            renewals.append(await anext(keep_alive))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(take)
            await client.lease.keep_alive_once(lease_id)
        assert [renewal.id for renewal in renewals] == [lease_id]
        assert client.stats().leases == 1
    await keep_alive.aclose()
    assert client.stats().leases == 0


@pytest.mark.parametrize("how", ["anext", "loop", "entered"])
async def test_z17_timed_out_by_wait_for(
    client: Client, lease_id: int, rng: random.Random, how: str
) -> None:
    """Waiting that was timed out takes nothing: what comes then, or just then, is the next."""
    keep_alive = client.lease.keep_alive(lease_id)
    if how == "entered":
        await keep_alive.__aenter__()
    renewals = aiter(keep_alive) if how == "loop" else keep_alive
    await anext(renewals)
    timed_out = 0
    for number in range(100):
        patience = 0.0005 if number == 0 else 0.004 * rng.random()

        async def try_to_take(patience: float = patience) -> LeaseRenewal | None:
            try:
                return await asyncio.wait_for(anext(renewals), patience)
            except TimeoutError:
                return None

        renewal, _ = await asyncio.gather(try_to_take(), client.lease.keep_alive_once(lease_id))
        if renewal is None:
            timed_out += 1
            async with asyncio.timeout(5):
                renewal = await anext(renewals)
        assert renewal.id == lease_id
    assert timed_out > 0
    await keep_alive.aclose()


@pytest.mark.parametrize("turns", range(6))
async def test_z17_cancelled_in_the_moment_of_an_answer(
    client: Client, lease_id: int, turns: int
) -> None:
    """At whatever turn of the loop a waiter is cancelled after an answer, the answer is given."""
    cancelled = 0
    async with client.lease.keep_alive(lease_id) as keep_alive:
        await anext(keep_alive)
        for _ in range(10):
            before = client.lease.rules.deadline(lease_id)
            waiter = asyncio.ensure_future(anext(keep_alive))
            once = asyncio.create_task(client.lease.keep_alive_once(lease_id))
            while client.lease.rules.deadline(lease_id) == before:
                await asyncio.sleep(0)  # so that it is seen in the very turn
            for _ in range(turns):
                await asyncio.sleep(0)
            waiter.cancel()
            await asyncio.wait([waiter, once])
            if waiter.cancelled():
                cancelled += 1
                async with asyncio.timeout(5):
                    assert (await anext(keep_alive)).id == lease_id
            else:
                assert waiter.result().id == lease_id
    assert turns > 0 or cancelled == 10


async def test_z17_one_of_two_waiters_is_cancelled(client: Client, lease_id: int) -> None:
    """Two tasks may wait at one keep-alive; cancelling one of them leaves the other alone."""
    async with client.lease.keep_alive(lease_id) as keep_alive:
        await anext(keep_alive)
        first, second = [asyncio.ensure_future(anext(keep_alive)) for _ in range(2)]
        await asyncio.wait([first, second], timeout=0.01)
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled()
        assert not second.done()
        await client.lease.keep_alive_once(lease_id)
        assert (await second).id == lease_id


# -- used again ------------------------------------------------------------------------------


async def leave_the_block(keep_alive: KeepAlive) -> None:
    async with keep_alive:
        await anext(keep_alive)


async def leave_the_loop(keep_alive: KeepAlive) -> None:
    async for _ in keep_alive:
        break


async def close(keep_alive: KeepAlive) -> None:
    await anext(keep_alive)
    await keep_alive.aclose()


async def close_unused(keep_alive: KeepAlive) -> None:
    await keep_alive.aclose()


async def enter(keep_alive: KeepAlive) -> None:
    async with keep_alive:
        pytest.fail("it was entered")


async def take(keep_alive: KeepAlive) -> None:
    await anext(keep_alive)
    pytest.fail("there was another")


@pytest.mark.parametrize("use", [enter, follow, take])
@pytest.mark.parametrize("leave", [leave_the_block, leave_the_loop, close, close_unused])
async def test_z17_used_again(
    client: Client,
    lease_id: int,
    leave: Callable[[KeepAlive], Awaitable[None]],
    use: Callable[[KeepAlive], Awaitable[None]],
) -> None:
    """A keep-alive that was stopped says so and what to do; nothing is an empty loop."""
    keep_alive = client.lease.keep_alive(lease_id)
    await leave(keep_alive)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=MAKE_ANOTHER):
            await use(keep_alive)
    assert client.stats().leases == 0
    await keep_alive.aclose()
    await leave_the_loop(client.lease.keep_alive(lease_id))


async def test_z17_entered_twice(client: Client, lease_id: int) -> None:
    """A second block is refused, and the first one goes on."""
    async with client.lease.keep_alive(lease_id) as keep_alive:
        with pytest.raises(RuntimeError, match="entered already: make another one"):
            await enter(keep_alive)
        assert client.stats().leases == 1
        await anext(keep_alive)


async def test_z17_asked_again_after_a_loss(client: Client) -> None:
    """Whoever asks a keep-alive again that was lost is told again, by the same error."""
    lease = await client.lease.grant(600)
    keep_alive = client.lease.keep_alive(lease.id)
    with pytest.raises(LeaseLostError):
        await follow(keep_alive, lambda: client.lease.revoke(lease.id))
    for use in (enter, follow, take):
        with pytest.raises(LeaseLostError) as caught:
            await use(keep_alive)
        assert caught.value.reason == "revoked"
    await keep_alive.aclose()
    with pytest.raises(LeaseLostError):
        await take(keep_alive)


async def test_z17_a_running_loop_ends_when_closed_elsewhere(client: Client, lease_id: int) -> None:
    """`aclose` by another task ends the loops that are running, without an error."""
    for entered in (True, False):
        keep_alive = client.lease.keep_alive(lease_id)
        if entered:
            await keep_alive.__aenter__()
        ended: list[str] = []
        running = [anyio.Event(), anyio.Event()]

        async def loop(began: anyio.Event, keep_alive: KeepAlive = keep_alive) -> None:
            async for _ in keep_alive:
                began.set()
            ended.append("a loop")  # noqa: B023  # this turn's

        async with anyio.create_task_group() as tasks:
            for began in running:
                tasks.start_soon(loop, began)
                await eventually(lambda: client.stats().leases == 1)
                while not began.is_set():
                    await client.lease.keep_alive_once(lease_id)
            await keep_alive.aclose()
            assert client.stats().leases == 0
        assert ended == ["a loop"] * 2


async def test_z17_a_loop_over_an_iterator_that_has_ended(client: Client, lease_id: int) -> None:
    """An iterator that has ended stays so, as Python wants it."""
    keep_alive = client.lease.keep_alive(lease_id)
    renewals = aiter(keep_alive)
    assert aiter(renewals) is renewals
    await anext(renewals)
    await keep_alive.aclose()
    for _ in range(2):
        with pytest.raises(StopAsyncIteration):
            await anext(renewals)


async def test_a_closed_client_is_told_before_all_else(server: EtcdServer) -> None:
    """With its client closed, a keep-alive raises ClientClosedError, however it is used."""
    client = Client(server.endpoint)
    lease = await client.lease.grant(60)
    used, unused = (client.lease.keep_alive(lease.id) for _ in range(2))
    await anext(used)
    await client.aclose()
    for keep_alive in (used, unused):
        for use in (enter, follow, take):
            with pytest.raises(ClientClosedError):
                await use(keep_alive)
    async with Client(server.endpoint) as other:
        await other.lease.revoke(lease.id)


# -- dropped ---------------------------------------------------------------------------------


async def test_a_loop_left_stops_at_once(client: Client, lease_id: int) -> None:
    """A loop that is left by whatever has stopped the renewing in the next line."""
    keep_alive = client.lease.keep_alive(lease_id)
    async for _ in keep_alive:
        assert client.stats().leases == 1
        break
    assert client.stats().leases == 0
    keep_alive = client.lease.keep_alive(lease_id)

    async def fail() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        await follow(keep_alive, fail)
    assert client.stats().leases == 0
    keep_alive = client.lease.keep_alive(lease_id)
    waiting = asyncio.create_task(follow(keep_alive, lambda: asyncio.sleep(0)))
    await eventually(lambda: client.stats().leases == 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await waiting
    # The exception that is still there, and with it the frames, keep nothing going.
    assert client.stats().leases == 0
    assert caught.value.__traceback__ is not None


async def test_an_iterator_dropped_in_a_block_stops_nothing(client: Client, lease_id: int) -> None:
    """Where there is a block, it is the block that stops the renewing."""
    before = aiter(keep_alive := client.lease.keep_alive(lease_id))
    async with keep_alive:
        async for _ in keep_alive:
            break
        del before
        assert client.stats().leases == 1
        await client.lease.keep_alive_once(lease_id)
        await anext(keep_alive)
    assert client.stats().leases == 0


async def test_an_unused_iterator_stops_nothing(client: Client, lease_id: int) -> None:
    """Making an iterator begins nothing, and dropping it ends nothing."""
    keep_alive = client.lease.keep_alive(lease_id)
    aiter(keep_alive)
    assert client.stats().leases == 0
    assert (await anext(keep_alive)).id == lease_id


def in_this_thread(drop: Callable[[], object]) -> None:
    drop()


def in_another_thread(drop: Callable[[], object]) -> None:
    thread = threading.Thread(target=drop)
    thread.start()
    thread.join()


@pytest.mark.parametrize("entered", [True, False])
@pytest.mark.parametrize("where", [in_this_thread, in_another_thread])
async def test_a_keep_alive_that_nobody_has_any_more(
    client: Client,
    lease_id: int,
    where: Callable[[Callable[[], object]], None],
    *,
    entered: bool,
) -> None:
    """A lease is never renewed by nobody: what was dropped stops, wherever and however late."""
    held = [client.lease.keep_alive(lease_id)]
    if entered:
        await held[0].__aenter__()
    await anext(held[0])
    assert client.stats().leases == 1
    where(held.clear)
    assert client.stats().leases == 0

    held = [client.lease.keep_alive(lease_id)]
    await anext(held[0])
    cycle: list[Any] = [held.pop()]
    cycle.append(cycle)
    del cycle
    assert client.stats().leases == 1
    where(gc.collect)
    assert client.stats().leases == 0
    # The stream is closed as after any other stop.
    await eventually(lambda: all(s.connection is None for s in client.lease.streams.values()))


async def test_z17_two_loops_without_a_block(client: Client, lease_id: int) -> None:
    """The first that is left leaves the renewing to the other; the last one ends it."""
    keep_alive = client.lease.keep_alive(lease_id)
    first, second = aiter(keep_alive), aiter(keep_alive)
    await anext(first)
    waiting = asyncio.ensure_future(anext(second))
    await asyncio.wait([waiting], timeout=0.01)
    del first
    assert client.stats().leases == 1
    await client.lease.keep_alive_once(lease_id)
    async with asyncio.timeout(5):
        assert (await waiting).id == lease_id
    assert client.stats().leases == 1
    del second
    assert client.stats().leases == 0
    with pytest.raises(RuntimeError, match=MAKE_ANOTHER):
        aiter(keep_alive)


async def test_z17_a_loop_after_anext(client: Client, lease_id: int) -> None:
    """What `anext` began outlives the loops that come and go, and ends with the object."""
    keep_alive = client.lease.keep_alive(lease_id)
    await anext(keep_alive)
    waiting = asyncio.ensure_future(follow(keep_alive, lambda: asyncio.sleep(0)))
    await asyncio.wait([waiting], timeout=0.01)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert client.stats().leases == 1
    await client.lease.keep_alive_once(lease_id)
    async with asyncio.timeout(5):
        assert (await anext(keep_alive)).id == lease_id
    del keep_alive, waiting
    assert client.stats().leases == 0


# -- how a loss is told ----------------------------------------------------------------------


async def test_a_keep_alive_that_was_stopped_is_told_nothing(client: Client) -> None:
    """Once it was stopped nothing is called any more, whoever stops it: also another's callback."""
    lease = await client.lease.grant(600)
    told: list[str] = []
    kept: dict[str, KeepAlive] = {}

    def tell(name: str, other: str) -> Callable[[EtcdError], None]:
        def on_lost(error: EtcdError) -> None:
            told.append(name)
            kept[other]._stop()

        return on_lost

    for name, other in (("a", "b"), ("b", "c"), ("c", "a")):
        kept[name] = client.lease._keep(lease.id, tell(name, other))
        kept[name]._start()
    await client.lease.revoke(lease.id)
    # The second one was stopped by the first, the first one by the third.
    assert told == ["a", "c"]


async def test_z4_a_base_exception_of_a_callback(client: Client) -> None:
    """KeyboardInterrupt out of one callback reaches the caller, after all others were told."""
    lease = await client.lease.grant(600)
    told: list[EtcdError] = []

    def interrupt(error: EtcdError) -> None:
        raise KeyboardInterrupt

    kept = [
        client.lease._keep(lease.id, on_lost)
        for on_lost in (told.append, interrupt, told.append, interrupt, told.append)
    ]
    for keep_alive in kept:
        keep_alive._start()
    with pytest.raises(KeyboardInterrupt) as caught:
        await client.lease.revoke(lease.id)
    assert isinstance(caught.value.__context__, KeyboardInterrupt)
    assert [type(error) for error in told] == [LeaseLostError] * 3
    assert client.stats().leases == 0


# -- answers ---------------------------------------------------------------------------------


async def test_keep_alive_once_waits_for_its_own_answer(faulty: Faulty) -> None:
    """A single renewal is answered by its own answer, not by that to another's before it."""
    lease = await faulty.client.lease.grant(600)
    faulty.proxy.delay(0.2)
    loop = asyncio.get_running_loop()
    async with faulty.client.lease.keep_alive(lease.id) as keep_alive:
        others = asyncio.ensure_future(anext(keep_alive))
        await asyncio.wait([others], timeout=0.1)
        began = loop.time()
        await faulty.client.lease.keep_alive_once(lease.id)
        took = loop.time() - began
        assert others.done(), "the other's answer came before"
    assert took >= 0.4
    faulty.proxy.delay(0)
    await faulty.oracle.lease.revoke(lease.id)


async def test_the_timeout_is_for_the_first_answer_only(faulty: Faulty) -> None:
    """A loop over a lease whose life is known outlives the pauses between the renewals."""
    lease = await faulty.client.lease.grant(4)
    times = []
    async for _ in faulty.client.lease.keep_alive(lease.id, timeout=0.1):
        times.append(asyncio.get_running_loop().time())
        if len(times) == 3:
            break
    assert len(times) == 3
    assert max(after - before for before, after in pairwise(times)) > 0.2
    await faulty.client.lease.revoke(lease.id)


async def test_a_revocation_that_finds_nothing_ends_the_renewals(faulty: Faulty) -> None:
    """Where a lease is gone, revoking it tells its keepers at once, long before they would ask."""
    lease = await faulty.client.lease.grant(600)
    told: list[EtcdError] = []
    async with faulty.client.lease._keep(lease.id, told.append) as keep_alive:
        await anext(keep_alive)
        await faulty.oracle.lease.revoke(lease.id)
        assert not told
        with pytest.raises(LeaseNotFoundError):
            await faulty.client.lease.revoke(lease.id)
        assert [type(error) for error in told] == [LeaseLostError]
        assert faulty.client.stats().leases == 0


async def test_a_foreign_lease_that_is_not_there_stops(client: Client) -> None:
    """A lease that is not found is told once, and nothing is renewed."""
    keep_alive = client.lease.keep_alive(UNKNOWN)
    with pytest.raises(LeaseNotFoundError):
        await anext(keep_alive)
    assert client.stats().leases == 0
