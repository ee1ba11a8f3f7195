"""What the user holds of a lease's renewals: when it works, and when it says what to do."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import anyio
import pytest

from aioetcd import (
    Client,
    ClientClosedError,
    KeepAlive,
    LeaseLostError,
    LeaseRenewal,
)
from aioetcd.testing import EtcdServer
from tests.lease.renewals import MAKE_ANOTHER, follow
from tests.waiting import until

pytestmark = pytest.mark.own_logic("what the handle says and does by itself")

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
            before = client._shared.leases.rules.deadline(lease_id)
            waiter = asyncio.ensure_future(anext(keep_alive))
            once = asyncio.create_task(client.lease.keep_alive_once(lease_id))
            while client._shared.leases.rules.deadline(lease_id) == before:
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
    for use in (enter, enter, follow, take):
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
                await until(lambda: client.stats().leases == 1)
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
        for use in (enter, enter, follow, take):
            with pytest.raises(ClientClosedError):
                await use(keep_alive)
    async with Client(server.endpoint) as other:
        await other.lease.revoke(lease.id)
