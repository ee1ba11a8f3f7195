"""What the user holds of a lease's renewals: what ends them, and what is told then."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from time import monotonic
from typing import Any

import pytest

from aioetcd import (
    Client,
    DeadlineExceededError,
    EtcdError,
    KeepAlive,
    LeaseLostError,
    LeaseNotFoundError,
)
from aioetcd._proto import rpc_pb2
from tests.harness import Faulty
from tests.lease.renewals import MAKE_ANOTHER, UNKNOWN, follow
from tests.waiting import until

pytestmark = pytest.mark.own_logic("what the handle says and does by itself")

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
    await until(lambda: client.stats().leases == 1)
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
    # In which asyncio refuses what another thread may not do.
    asyncio.get_running_loop().set_debug(True)
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
    await until(lambda: all(s.connection is None for s in client._shared.leases._streams.values()))


async def test_dropped_when_its_loop_is_closed(client: Client, lease_id: int) -> None:
    """A keep-alive that outlives its event loop, as at the end of a program, is dropped quietly."""
    keep_alive = client.lease.keep_alive(lease_id)
    await anext(keep_alive)
    keep_alive._loop = asyncio.new_event_loop()
    keep_alive._loop.close()
    del keep_alive  # what it raised would be a warning, and so a failure
    gc.collect()
    assert client.stats().leases == 0


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
    await anext(kept[0])  # no renewal is on its way that could tell it first
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
    lease = await faulty.client.lease.grant(2)
    times = []
    async for _ in faulty.client.lease.keep_alive(lease.id, timeout=0.1):
        times.append(asyncio.get_running_loop().time())
        if len(times) == 3:
            break
    assert len(times) == 3
    assert max(after - before for before, after in pairwise(times)) > 0.2
    await faulty.client.lease.revoke(lease.id)


async def test_a_first_answer_that_does_not_come_stops_the_renewing(faulty: Faulty) -> None:
    """Whoever was told that a foreign lease does not answer has nothing renewing any more."""
    lease = await faulty.oracle.lease.grant(600)
    faulty.proxy.blackhole()
    keep_alive = faulty.client.lease.keep_alive(lease.id, timeout=0.1)
    with pytest.raises(DeadlineExceededError):
        await anext(keep_alive)
    assert faulty.client.stats().leases == 0
    with pytest.raises(RuntimeError, match=MAKE_ANOTHER):
        await anext(keep_alive)
    await faulty.oracle.lease.revoke(lease.id)


async def test_an_answer_in_the_moment_of_the_timeout(faulty: Faulty) -> None:
    """A first answer that comes when the time is just over, but nobody was told yet, is given."""
    lease = await faulty.oracle.lease.grant(600)
    faulty.proxy.blackhole()
    lane = faulty.client._shared.leases.rules.lanes[0]  # what a first lease is renewed on
    loop = asyncio.get_running_loop()

    def answer() -> None:
        response = rpc_pb2.LeaseKeepAliveResponse(ID=lease.id, TTL=600)
        lane.received(response, response.ByteSize(), monotonic())

    async with faulty.client.lease.keep_alive(lease.id, timeout=0.5) as keep_alive:
        await until(lambda: bool(lane._in_flight))
        waiting = asyncio.ensure_future(anext(keep_alive))
        await asyncio.wait([waiting], timeout=0.01)
        loop.call_later(0.6, answer)
        time.sleep(0.7)  # noqa: ASYNC251  # both are due when it goes on, in their order
        assert (await waiting).ttl == 600
    await faulty.oracle.lease.revoke(lease.id)


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
        # And the stream is closed, although nobody has left the block.
        streams = faulty.client._shared.leases._streams.values()
        await until(lambda: all(stream.connection is None for stream in streams))


async def test_a_foreign_lease_that_is_not_there_stops(client: Client) -> None:
    """A lease that is not found is told once, and nothing is renewed."""
    keep_alive = client.lease.keep_alive(UNKNOWN)
    with pytest.raises(LeaseNotFoundError):
        await anext(keep_alive)
    assert client.stats().leases == 0
