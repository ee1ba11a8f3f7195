"""Bookmarks that real servers are asked for: soon, of every watch, and never ahead of an event."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import anyio
import pytest

from aioetcd import Client
from aioetcd._proto import rpc_pb2
from aioetcd._transport.methods import Effect, Method
from aioetcd.testing import EtcdServer, FaultProxy
from aioetcd.watch import Watch, _stream
from tests.waiting import until
from tests.watch.following import put_all, revisions, take


@pytest.fixture(autouse=True)
def _a_server_that_can_be_asked(request: pytest.FixtureRequest) -> None:
    if "server" in request.fixturenames:
        server: EtcdServer = request.getfixturevalue("server")
        if server.version_info < (3, 5, 8):
            pytest.skip("this server cannot be asked")


@pytest.fixture
async def direct(server: EtcdServer) -> AsyncIterator[Client]:
    """A client that no fault reaches."""
    async with Client(server.endpoint) as direct:
        yield direct


async def bookmark(watch: Watch) -> int:
    """Ask, and give the answer, which comes behind no event: unasked it takes ten minutes."""
    with anyio.fail_after(10):
        await watch.request_progress()
        async for batch in watch.batches():
            assert not batch.events
            return batch.revision
    raise AssertionError("the watch has ended")


async def expect_next(direct: Client, *watches: Watch) -> int:
    """Write, and see that each watch is told, of nothing else."""
    revision = await put_all(direct, "k")
    for watch in watches:
        assert revisions(await take(watch, 1)) == [revision]
    return revision


async def test_progress_of_watches_after_a_get(client: Client, direct: Client) -> None:
    """On a quiet store, all that begin with the revision after a read: each asks, and again."""
    await put_all(direct, "k")
    now = (await client.kv.get("k")).header.revision
    async with (
        client.watch("k", start_revision=now + 1, prev_kv=True) as after,
        client.watch("k") as beside,
        client.watch("k", start_revision=now + 20, progress_notify=True) as ahead,
        client.watch("k", start_revision=now) as past,
    ):
        assert revisions(await take(past, 1)) == [now]
        for watch in (after, beside, past):
            assert await bookmark(watch) == now
        assert await bookmark(ahead) == now + 19
        now = await expect_next(direct, after, beside, past)
        now = await put_all(direct, "elsewhere")
        for watch in (past, beside, after):
            assert await bookmark(watch) == now
        # All others are at the store's own revision by now, which this one reaches.
        expected = [await put_all(direct, "k") for _ in range(18)]
        assert expected[-1] == ahead.revision + 1
        assert revisions(await take(ahead, 1)) == expected[-1:]
        for watch in (past, beside, after):
            assert revisions(await take(watch, 18)) == expected


async def test_progress_of_resumed_watches(
    proxy: FaultProxy, direct: Client, rng: random.Random
) -> None:
    """Cut on a quiet store, all watches start beyond it when they resume, and each is told."""
    async with Client(proxy.endpoint) as client, AsyncExitStack() as stack:
        watches = [await stack.enter_async_context(client.watch("k")) for _ in range(4)]
        now = await expect_next(direct, *watches)
        for _ in range(3):
            reconnects = client.stats().reconnects
            assert proxy.cut() > 0
            await until(lambda r=reconnects: client.stats().reconnects > r)  # type: ignore[misc]
            for watch in rng.sample(watches, len(watches)):
                assert await bookmark(watch) == now
            now = await expect_next(direct, *watches)


async def test_progress_asked_before_a_cut(proxy: FaultProxy, direct: Client) -> None:
    """The question is not lost with the connection: the answer comes from the next one."""
    await put_all(direct, "k")
    async with Client(proxy.endpoint) as client:
        now = (await client.kv.get("k")).header.revision
        async with client.watch("k", start_revision=now + 1) as watch, client.watch("k") as other:
            await watch.request_progress()
            assert proxy.cut() > 0
            with anyio.fail_after(10):
                batch = await anext(watch.batches())
            assert (batch.events, batch.revision) == ((), now)
            await expect_next(direct, watch, other)


async def test_progress_when_the_version_cannot_be_read_at_first(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A question that fails is asked again: whoever waits for the bookmark gets it."""
    caplog.set_level(logging.DEBUG, "aioetcd.watch")
    now = await put_all(client, "k")
    async with client.watch("k") as watch:
        await watch.request_progress()
        with monkeypatch.context() as patch:
            # The stream's own question comes after that of the call, and goes nowhere.
            nowhere = Method(
                "Status",
                "/nowhere/Status",
                rpc_pb2.StatusRequest,
                rpc_pb2.StatusResponse,
                Effect.READ,
            )
            patch.setattr(_stream, "STATUS", nowhere)
            await until(lambda: "cannot ask about the watch stream yet" in caplog.text)
        with anyio.fail_after(3):
            batch = await anext(watch.batches())
        assert (batch.events, batch.revision) == ((), now)


async def bookmarks_told(client: Client, direct: Client, rng: random.Random) -> int:
    """Have watches come and go, and see what bookmarks say; give how many there were."""
    writes = 80
    first = (await client.kv.get("k")).header.revision + 1

    async def come_and_go() -> None:
        while True:
            now = (await client.kv.get("k")).header.revision
            start = max(1, now + rng.choice([-3, 1, 1, 5]))
            async with client.watch("k", start_revision=start):
                await anyio.sleep(rng.uniform(0, 0.02))

    async def write() -> None:
        for _ in range(writes):
            await put_all(direct, "k")
            await anyio.sleep(rng.uniform(0, 0.01))

    async def ask(watch: Watch) -> None:
        while True:
            await watch.request_progress()
            await anyio.sleep(0.01)

    told = 0

    async def follow(watch: Watch, start: int) -> None:
        # What a bookmark says is delivered would be dropped: an event would be missing.
        nonlocal told
        expected = list(range(start, first + writes))
        with anyio.fail_after(20):
            async for batch in watch.batches():
                told += not batch.events
                for event in batch.events:
                    assert event.mod_revision == expected.pop(0)
                if not expected:
                    return

    async with AsyncExitStack() as stack:
        starts = [first, first, first + 20]
        watches = [
            await stack.enter_async_context(client.watch("k", start_revision=start))
            for start in starts
        ]
        async with anyio.create_task_group() as background:
            for _ in range(3):
                background.start_soon(come_and_go)
            for watch in watches:
                background.start_soon(ask, watch)
            async with anyio.create_task_group() as group:
                group.start_soon(write)
                for watch, start in zip(watches, starts, strict=True):
                    group.start_soon(follow, watch, start)
            background.cancel_scope.cancel()
    return told


async def test_progress_with_a_lock_held(client: Client, direct: Client) -> None:
    """A lock that is held, and one that is waited for, stand in nobody's way."""
    async with (
        client.lock("lock", ttl=60),
        client.watch("k") as watch,
        anyio.create_task_group() as group,
    ):
        queue = (await direct.kv.get("lock/", prefix=True)).header.revision

        async def wait() -> None:
            async with client.lock("lock", ttl=60):
                raise AssertionError("the lock is held by another one")

        group.start_soon(wait)
        with anyio.fail_after(5):
            while (got := await direct.kv.get("lock/", prefix=True)).count < 2:
                await anyio.sleep(0.002)
        assert got.header.revision > queue
        told = await bookmark(watch)
        assert got.header.revision <= told <= (await direct.kv.get("k")).header.revision
        await expect_next(direct, watch)
        group.cancel_scope.cancel()


async def test_progress_while_others_begin_and_write(
    client: Client, direct: Client, rng: random.Random
) -> None:
    """Watches that start at, before and beyond the store come and go: no bookmark lies."""
    told = 0
    while told <= 3:  # there are none while one of them lags, which may be for most of the time
        told += await bookmarks_told(client, direct, rng)
