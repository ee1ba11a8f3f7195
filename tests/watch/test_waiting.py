"""Waiting for events may be cancelled, shared and taken up again."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest

from aioetcd import Batch, Client, DeadlineExceededError, Event, Op
from aioetcd.testing import EtcdServer, FaultProxy
from aioetcd.watch import Watch
from aioetcd.watch._state import Phase
from tests.waiting import until, until_metric
from tests.watch.following import WATCHERS, put_all, revisions, take

pytestmark = pytest.mark.own_logic("how the client hands over what it has, whatever sent it")


def itself(watch: Watch) -> Watch:
    return watch


Waits = Callable[[Watch], Any]
WAYS = pytest.mark.parametrize("waits", [itself, aiter, Watch.batches])


def all_revisions(got: list[Event | Batch]) -> list[int]:
    """Give the revisions of events, and of the events of batches."""
    return [
        event.mod_revision
        for item in got
        for event in (item.events if isinstance(item, Batch) else [item])
    ]


@WAYS
async def test_z17_a_wait_that_timed_out_loses_nothing(
    client: Client, server: EtcdServer, rng: random.Random, waits: Waits
) -> None:
    """Whether entered or not, `wait_for` around `anext` at any moment: the next wait goes on."""
    for entered in (True, False):
        timeouts, written = 0, False
        got: list[Event | Batch] = []
        first = last = await put_all(client, "k")
        watch = client.watch("k", start_revision=first)
        if entered:
            await watch.__aenter__()
        iterator = waits(watch)

        async def write() -> None:
            nonlocal last, written
            while last < first + 200 or timeouts < 50:  # noqa: B023
                last = await put_all(client, "k")
            written = True

        async with anyio.create_task_group() as group:
            group.start_soon(write)
            with anyio.fail_after(20):
                while not written or len(all_revisions(got)) <= last - first:
                    try:
                        got.append(await asyncio.wait_for(anext(iterator), rng.uniform(0, 0.003)))
                    except TimeoutError:
                        timeouts += 1
        assert all_revisions(got) == list(range(first, last + 1))
        await watch.aclose()
    await until_metric(server, WATCHERS, 0)


async def test_z17_a_wait_cancelled_from_outside_loses_nothing(
    client: Client, rng: random.Random
) -> None:
    """A task for each wait, cancelled natively at any moment: an event is taken or stays."""
    got: list[Event] = []
    cancelled = 0
    async with client.watch("k", prefix=True) as watch, anyio.create_task_group() as group:

        async def write() -> None:
            for number in range(300):
                await client.kv.txn(success=[Op.put(f"k{number}{part}", "") for part in "ab"])

        group.start_soon(write)
        with anyio.fail_after(20):
            while len(got) < 600:
                task = asyncio.create_task(anext(watch))
                for _ in range(rng.randrange(4)):
                    await asyncio.sleep(0)
                task.cancel()
                try:
                    got.append(await task)
                except asyncio.CancelledError:
                    cancelled += 1
    assert cancelled > 20
    assert [event.kv.key.decode() for event in got] == [
        f"k{number}{part}" for number in range(300) for part in "ab"
    ]


async def test_z17_anext_of_the_watch_itself(client: Client, server: EtcdServer) -> None:
    """It begins the watch; loops may come and go then; and it ends with the object."""
    revision = await put_all(client, "k", "k", "k", "k")
    watch = client.watch("k", start_revision=revision - 3)
    with anyio.fail_after(5):
        assert (await anext(watch)).mod_revision == revision - 3
    assert revisions(await take(watch, 2)) == [revision - 2, revision - 1]
    with anyio.fail_after(5):
        assert (await anext(watch)).mod_revision == revision
    await until_metric(server, WATCHERS, 1)
    del watch
    await until_metric(server, WATCHERS, 0)
    await until(lambda: client.stats().watches == 0)


async def test_z17_anext_and_a_close_meanwhile(client: Client) -> None:
    """Who waits hears that there is nothing more; who comes later, what to do."""
    watch = client.watch("k")
    waiting = asyncio.create_task(anext(watch))
    await until(lambda: watch._state.phase is Phase.OPEN)
    await watch.aclose()
    with pytest.raises(StopAsyncIteration):
        await waiting
    with pytest.raises(RuntimeError, match=f"start_revision={watch.revision + 1}"):
        await anext(watch)


@WAYS
async def test_z17_the_opener_cancelled_beside_another_task(
    proxy: FaultProxy, server: EtcdServer, waits: Waits
) -> None:
    """The task that began a watch is cancelled before it is created: the other one's goes on."""
    for opens in (Watch.__aenter__, lambda watch: anext(waits(watch))):
        async with Client(proxy.endpoint) as client, Client(server.endpoint) as direct:
            await client.kv.get("k")  # the connection is there
            proxy.blackhole(client_to_server=False)
            watch = client.watch("k")
            opener = asyncio.create_task(opens(watch))
            await until(lambda w=watch: w._state.phase is Phase.CREATING)  # type: ignore[misc]
            other = asyncio.create_task(anext(waits(watch)))
            await asyncio.sleep(0)
            opener.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opener
            assert watch._state.created_revision is None
            await proxy.heal()
            await until(lambda w=watch: w._state.phase is Phase.OPEN)  # type: ignore[misc]
            revision = await put_all(direct, "k")
            with anyio.fail_after(5):
                assert all_revisions([await other]) == [revision]
            await watch.aclose()


async def test_z17_the_opener_cancelled_alone(proxy: FaultProxy, server: EtcdServer) -> None:
    """A creation that nobody waits for is given up, in a block or a loop; the watch says so."""

    async def loop(watch: Watch) -> None:
        async for _ in watch:
            pass

    for use in (Watch.__aenter__, loop):
        async with Client(proxy.endpoint) as client:
            await client.kv.get("k")  # the connection is there
            proxy.blackhole(client_to_server=False)
            watch = client.watch("k")
            task = asyncio.create_task(use(watch))
            await until(lambda w=watch: w._state.phase is Phase.CREATING)  # type: ignore[misc]
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda c=client: c.stats().watches == 0)  # type: ignore[misc]
            await proxy.heal()
            with pytest.raises(RuntimeError, match="make a new one"):
                aiter(watch)
            await until_metric(server, WATCHERS, 0)


async def test_z17_the_time_limit_is_the_watchs_own(proxy: FaultProxy) -> None:
    """It goes on when the task that began the watch is cancelled, and tells all who wait."""
    async with Client(proxy.endpoint) as client:
        await client.kv.get("k")
        proxy.blackhole(client_to_server=False)
        watch = client.watch("k", timeout=0.4)
        opener = asyncio.create_task(watch.__aenter__())
        await until(lambda: watch._state.phase is Phase.CREATING)
        others = [asyncio.create_task(anext(watch)) for _ in range(2)]
        await asyncio.sleep(0)
        opener.cancel()
        with anyio.fail_after(2):
            for other in others:
                with pytest.raises(DeadlineExceededError, match=r"0\.4 s"):
                    await other
        with pytest.raises(asyncio.CancelledError):
            await opener
        await proxy.heal()


async def test_z17_two_loops_without_a_block(client: Client, server: EtcdServer) -> None:
    """The first that is left leaves the watch to the other; the last one ends it."""
    watch = client.watch("k")
    first, second = aiter(watch), aiter(watch)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(first), 0)
    waiting = asyncio.ensure_future(anext(second))
    await until_metric(server, WATCHERS, 1)
    del first
    revision = await put_all(client, "k")
    with anyio.fail_after(5):
        assert (await waiting).mod_revision == revision
    await put_all(client, "k")
    with anyio.fail_after(5):
        assert (await anext(second)).mod_revision == revision + 1
    assert watch._state.phase is Phase.OPEN
    del second
    await until_metric(server, WATCHERS, 0)
    with pytest.raises(RuntimeError, match=f"start_revision={revision + 2}"):
        watch.batches()


async def test_z17_entered_twice(client: Client, server: EtcdServer) -> None:
    """A second block is refused, inside the first or beside it, and the first one goes on."""
    watch = client.watch("k")
    beside = [asyncio.create_task(watch.__aenter__()) for _ in range(2)]
    await asyncio.wait(beside)
    assert beside[0].result() is watch
    with pytest.raises(RuntimeError, match="entered already: make another one"):
        beside[1].result()
    with pytest.raises(RuntimeError, match="entered already: make another one"):
        async with watch:
            pytest.fail("it was entered")
    revision = await put_all(client, "k")
    assert revisions(await take(watch, 1)) == [revision]
    await watch.__aexit__(None, None, None)
    await until_metric(server, WATCHERS, 0)


async def test_z17_entered_after_a_cancelled_entering(
    proxy: FaultProxy, server: EtcdServer
) -> None:
    """An entering that was cancelled is no block: where the watch lives on, it can be entered."""
    async with Client(proxy.endpoint) as client:
        await client.kv.get("k")  # the connection is there
        proxy.blackhole(client_to_server=False)
        watch = client.watch("k")
        other = aiter(watch)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(watch.__aenter__(), 0.05)
        assert watch._state.created_revision is None
        await proxy.heal()
        async with watch:
            revision = await put_all(client, "k")
            with anyio.fail_after(5):
                assert (await anext(other)).mod_revision == revision
        await until_metric(server, WATCHERS, 0)


async def test_z17_a_block_left_with_loops_in_it(client: Client, server: EtcdServer) -> None:
    """Leaving the block ends the watch in the next line, whoever holds a loop or has used anext."""
    revision = await put_all(client, "k")
    async with client.watch("k", start_revision=revision) as watch:
        assert (await anext(watch)).mod_revision == revision
        loops = [aiter(watch), watch.batches()]
        await until_metric(server, WATCHERS, 1)
    assert client.stats().watches == 0
    await until_metric(server, WATCHERS, 0)
    for loop in loops:
        with pytest.raises(StopAsyncIteration):
            await anext(loop)


async def test_z17_an_error_that_is_kept_does_not_keep_the_loop(
    client: Client, server: EtcdServer
) -> None:
    """A loop that was cancelled has ended its watch, whoever holds the exception's traceback."""
    kept: list[BaseException] = []
    watch = client.watch("k")

    async def loop() -> None:
        try:
            async for _ in watch:
                pass
        except asyncio.CancelledError as error:
            kept.append(error)

    task = asyncio.create_task(loop())
    await until_metric(server, WATCHERS, 1)
    task.cancel()
    await task
    assert len(kept) == 1
    with pytest.raises(RuntimeError, match="make a new one"):
        aiter(watch)
    await until_metric(server, WATCHERS, 0)


async def test_z17_a_block_left_is_not_entered_again(client: Client) -> None:
    """Neither the block nor a loop in it looks like an empty one; a new watch goes on."""
    async with client.watch("k") as watch:
        revision = await put_all(client, "k")
        assert revisions(await take(watch, 1)) == [revision]
    await put_all(client, "k")
    with pytest.raises(RuntimeError, match=f"start_revision={revision + 1}"):
        await watch.__aenter__()
    async with client.watch("k", start_revision=watch.revision + 1) as again:
        assert revisions(await take(again, 1)) == [revision + 1]


@WAYS
async def test_a_watch_that_is_dropped_in_a_cycle(
    client: Client, server: EtcdServer, waits: Waits
) -> None:
    """The garbage collector may find it in any thread, at any moment: it ends at the server."""
    revision = await put_all(client, "k")
    cycle: list[object] = [waits(client.watch("k", start_revision=revision))]
    with anyio.fail_after(5):
        await anext(cycle[0])  # type: ignore[call-overload]
    cycle.append(cycle)
    await until_metric(server, WATCHERS, 1)
    del cycle
    await anyio.to_thread.run_sync(gc.collect)
    await until_metric(server, WATCHERS, 0)
    assert client.stats().watches == 0


def test_a_watch_that_outlives_its_loop(server: EtcdServer) -> None:
    """Dropping it when the loop is closed, or never began, is silent."""
    kept: list[AsyncIterator[Event]] = []

    async def main() -> None:
        async with Client(server.endpoint) as client:
            kept.extend(aiter(client.watch("k")) for _ in range(2))
            revision = await put_all(client, "k")
            kept.append(aiter(client.watch("k", start_revision=revision)))
            await anext(kept[-1])

    asyncio.run(main())
    kept.clear()
    gc.collect()
