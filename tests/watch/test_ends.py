"""Watches end when and as they should, and are not begun with bad input."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest

from aioetcd import (
    Batch,
    Client,
    ClientClosedError,
    CompactedError,
    DeadlineExceededError,
    Event,
    EventType,
    InvalidRequestError,
    NoEndpointError,
    PermissionDeniedError,
)
from aioetcd._proto import rpc_pb2
from aioetcd.testing import EtcdServer, FaultProxy
from aioetcd.watch import Watch
from tests.answers import received
from tests.waiting import lateness, until, until_metric
from tests.watch.following import STREAMS, WATCHERS, put_all, revisions, take

PUT, DELETE = EventType.PUT, EventType.DELETE


@pytest.fixture
async def own_server() -> AsyncIterator[EtcdServer]:
    """An etcd that a test may stop and pause."""
    async with EtcdServer() as server:
        yield server


async def enter(watch: Watch) -> None:
    await watch.__aenter__()


async def collect(watch: Watch) -> list[Event]:
    with anyio.fail_after(10):
        return [event async for event in watch]


async def collect_batches(watch: Watch) -> list[Batch]:
    with anyio.fail_after(10):
        return [batch async for batch in watch.batches()]


# --- the end ----------------------------------------------------------------------------------


async def test_the_block_is_the_life_at_the_server(client: Client, server: EtcdServer) -> None:
    """Entered, the watch is there; left, it is cancelled there, and its stream ends in a while."""
    async with client.watch("k"):
        assert (await server.metrics())[WATCHERS] == 1
        async with client.watch("k"):
            await until_metric(server, STREAMS, 1)  # another test's may end just now
            assert (await server.metrics())[WATCHERS] == 2
        await until_metric(server, WATCHERS, 1)
    await until_metric(server, WATCHERS, 0)
    await until_metric(server, STREAMS, 0)


async def leave_by_break(watch: Watch) -> None:
    async for _ in watch:
        break


async def leave_by_exception(watch: Watch) -> None:
    async def loop() -> None:
        async for _ in watch:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await loop()


async def leave_by_scope(watch: Watch) -> None:
    with anyio.CancelScope() as scope:
        async for _ in watch:
            scope.cancel()
    assert scope.cancelled_caught


async def leave_by_task(watch: Watch) -> None:
    seen = asyncio.Event()

    async def loop() -> None:
        async for _ in watch:
            seen.set()

    task = asyncio.create_task(loop())
    await seen.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    "leave", [leave_by_break, leave_by_exception, leave_by_scope, leave_by_task]
)
async def test_leaving_a_loop_without_a_block(
    client: Client, server: EtcdServer, leave: Callable[[Watch], Any]
) -> None:
    """However the loop is left, the watch is cancelled at the server, and its siblings stay."""
    revision = await put_all(client, "k")
    async with client.watch("k") as sibling:
        watch = client.watch("k", start_revision=revision)
        await leave(watch)
        await until_metric(server, WATCHERS, 1)
        with pytest.raises(RuntimeError, match=rf"start_revision={watch.revision + 1}\)"):
            await collect(watch)
        await put_all(client, "k")
        assert len(await take(sibling, 1)) == 1


async def test_aclose_from_another_task(client: Client, server: EtcdServer) -> None:
    """Closing ends all loops over the watch without an error, in a block or not."""
    ended: list[object] = []

    async def loop(watch: Watch, read: Callable[[Watch], Any]) -> None:
        ended.append(await read(watch))

    bare = client.watch("k")
    async with client.watch("k") as watch, anyio.create_task_group() as group:
        for which in (watch, bare):
            for read in (collect, collect_batches):
                group.start_soon(loop, which, read)
        await until_metric(server, WATCHERS, 2)
        for which in (watch, bare):
            await which.aclose()
            await which.aclose()
    assert ended == [[]] * 4
    for read in (collect, collect_batches):
        with pytest.raises(RuntimeError, match="closed"):
            await read(watch)
    await until_metric(server, WATCHERS, 0)


async def test_aclose_before_the_beginning(client: Client, server: EtcdServer) -> None:
    """A watch closed before it began never begins, and says so."""
    watch = client.watch("k")
    await watch.aclose()
    for use in (enter, collect, collect_batches, anext, Watch.request_progress):
        with pytest.raises(RuntimeError, match="closed"):
            await use(watch)
    assert (await server.metrics())[WATCHERS] == 0


@pytest.mark.parametrize("read", [aiter, Watch.batches])
async def test_aclose_before_a_loop_has_begun(
    client: Client, read: Callable[[Watch], AsyncIterator[object]]
) -> None:
    """The loop ends, as each does whose watch is closed meanwhile."""
    watch = client.watch("k")
    loop = read(watch)
    await watch.aclose()
    assert [each async for each in loop] == []


async def test_leaving_the_block_ends_loops_of_other_tasks(client: Client) -> None:
    """A loop in a task that outlives the block ends with it."""
    async with anyio.create_task_group() as group:
        async with client.watch("k") as watch:
            loops = [asyncio.create_task(collect(watch)) for _ in range(2)]
            revision = await put_all(client, "k")
            await until(lambda: watch.revision == revision)
        with anyio.fail_after(5):
            got = [await loop for loop in loops]
        group.cancel_scope.cancel()
    assert sorted(map(len, got)) == [0, 1]


async def test_an_error_of_the_block_leaves_it_as_itself(
    client: Client, server: EtcdServer
) -> None:
    """The user's exception is neither wrapped nor changed."""
    error = LookupError("mine")
    with pytest.raises(LookupError) as caught:
        async with client.watch("k"):
            raise error
    assert caught.value is error
    await until_metric(server, WATCHERS, 0)


async def test_a_refused_watch_ends_alone(client: Client, server: EtcdServer) -> None:
    """The refusal is raised to who asked for it; others on the stream, old and new, go on."""
    async with client.watch("k") as before:
        after: list[Watch] = []
        refusals: list[InvalidRequestError] = []

        async def refused() -> None:
            with pytest.raises(InvalidRequestError, match="range is empty") as caught:
                await enter(client.watch("b", range_end="a"))
            refusals.append(caught.value)

        async def accepted() -> None:
            after.append(await client.watch("k").__aenter__())

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(refused)
                group.start_soon(accepted)
        await until_metric(server, WATCHERS, 6)
        await until_metric(server, STREAMS, 1)
        await put_all(client, "k")
        for watch in (before, *after):
            assert len(await take(watch, 1)) == 1
            await watch.aclose()
    assert len(refusals) == 5
    assert all("mvcc: watcher range is empty" in str(error.details) for error in refusals)
    with pytest.raises(InvalidRequestError):
        await collect(client.watch("a", range_end="a"))


async def test_what_had_arrived_comes_before_the_error(client: Client) -> None:
    """A watch that the server ends hands over what is in its inbox, then raises the reason."""
    async with client.watch("k") as watch:
        revision = await put_all(client, "k")
        await until(lambda: len(watch._state.inbox) == 1)
        ended = rpc_pb2.WatchResponse(
            watch_id=watch._state.watch_id,
            canceled=True,
            cancel_reason="etcdserver: permission denied",
        )
        received(watch._stream.rules, ended, 0)
        assert revisions(await take(watch, 1)) == [revision]
        with pytest.raises(PermissionDeniedError):
            await anext(watch)


async def test_start_before_the_compaction(client: Client) -> None:
    """The loop raises, with the first revision that is left; a watch from there works."""
    first = await put_all(client, "k")
    await put_all(client, *["k"] * 5)
    compacted = await put_all(client, "k")
    last = await put_all(client, "k")
    await client.kv.compact(compacted)
    async with client.watch("k") as sibling:
        async with client.watch("k", start_revision=first) as watch:
            for _ in range(2):  # it goes on saying so
                with pytest.raises(CompactedError) as caught:
                    await collect(watch)
                assert caught.value.compact_revision == compacted
                assert str(compacted) in str(caught.value)
        async with client.watch("k", start_revision=compacted) as watch:
            assert revisions(await take(watch, 2)) == [compacted, last]
        last = await put_all(client, "k")
        assert revisions(await take(sibling, 1)) == [last]


# --- bad input, no server, no client ----------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "error", "named"),
    [
        ({"key": ""}, ValueError, "key"),
        ({"key": None}, TypeError, "key"),
        ({"key": 5}, TypeError, "key"),
        ({"prefix": True, "range_end": "z"}, ValueError, "prefix"),
        ({"range_end": ""}, ValueError, "range_end"),
        ({"range_end": 5}, TypeError, "range_end"),
        ({"start_revision": 0}, ValueError, "start_revision"),
        ({"start_revision": -1}, ValueError, "start_revision"),
        ({"start_revision": 2**63}, ValueError, "start_revision"),
        ({"start_revision": "1"}, TypeError, "start_revision"),
        ({"start_revision": True}, TypeError, "start_revision"),
        ({"only": "PUT"}, TypeError, "only must be an EventType or None, not str"),
        ({"only": 2}, TypeError, "only must be an EventType or None, not int"),
        ({"only": True}, TypeError, "only must be an EventType or None, not bool"),
        ({"prev_kv": "yes"}, TypeError, "prev_kv"),
        ({"progress_notify": b"1"}, TypeError, "progress_notify"),
        ({"fragment": 1.5}, TypeError, "fragment"),
        ({"require_leader": None}, TypeError, "require_leader"),
        ({"timeout": 0}, ValueError, "timeout"),
        ({"timeout": -1}, ValueError, "timeout"),
        ({"timeout": float("nan")}, ValueError, "timeout"),
        ({"timeout": "1"}, TypeError, "timeout"),
    ],
)
async def test_bad_arguments(
    client: Client, how: dict[str, Any], error: type[Exception], named: str
) -> None:
    """They are refused before anything is sent, and the client's other watches do not suffer."""
    async with client.watch("k") as sibling:
        with pytest.raises(error, match=named):
            client.watch(**{"key": "k", **how})
        await put_all(client, "k")
        assert len(await take(sibling, 1)) == 1


async def test_nobody_to_create_it(server: EtcdServer) -> None:
    """Creation takes its timeout at the most, and says why; the client can be used afterwards."""
    async with FaultProxy(server.endpoint) as proxy, Client(proxy.endpoint) as client:
        proxy.refuse()
        first = asyncio.create_task(enter(client.watch("k", timeout=None)))
        await until(lambda: "refused" in str(client._transport.picker.unreachable()))
        first.cancel()
        for use in (enter, collect):
            start = anyio.current_time()
            async with lateness() as late:
                with pytest.raises(NoEndpointError, match="refused") as caught:
                    await use(client.watch("k", timeout=0.4))
                took = anyio.current_time() - start
            assert 0.35 < took < 1.0 + late.seconds
            assert list(caught.value.reasons) == [proxy.endpoint]
        async with anyio.create_task_group() as group:
            group.start_soon(proxy.heal)
            async with client.watch("k", timeout=None) as watch:
                await put_all(client, "k")
                assert len(await take(watch, 1)) == 1


async def test_a_server_that_does_not_answer(own_server: EtcdServer) -> None:
    """The connection is there and the server is not: the timeout holds, and no watcher is left."""
    async with Client(own_server.endpoint) as client:
        async with client.watch("k") as sibling:
            await own_server.pause()
            start = anyio.current_time()
            unanswered = client.watch("k", timeout=0.4)
            async with lateness() as late:
                with pytest.raises(DeadlineExceededError) as caught:
                    await enter(unanswered)
                took = anyio.current_time() - start
            assert 0.35 < took < 1.0 + late.seconds
            assert caught.value.timeout == 0.4
            with pytest.raises(DeadlineExceededError):  # and does not look like an empty one now
                await collect(unanswered)
            with anyio.move_on_after(0.1) as scope:
                await enter(client.watch("k"))
            assert scope.cancelled_caught
            await own_server.resume()
            await put_all(client, "k")
            assert len(await take(sibling, 1)) == 1
            await until_metric(own_server, WATCHERS, 1)
        await until_metric(own_server, WATCHERS, 0)


async def test_closing_the_client_ends_its_watches(server: EtcdServer) -> None:
    """Loops raise `ClientClosedError` at once, what was not taken yet included."""
    errors: list[ClientClosedError] = []

    async def loop(watch: Watch) -> None:
        with pytest.raises(ClientClosedError) as caught:
            await collect(watch)
        errors.append(caught.value)

    client = Client(server.endpoint)
    async with anyio.create_task_group() as group:  # noqa: SIM117 - the watches end first
        async with client.watch("waiting") as waiting, client.watch("full") as full:
            for watch in (waiting, client.watch("bare"), client.watch("bare", timeout=None)):
                group.start_soon(loop, watch)
            await until_metric(server, WATCHERS, 4)
            await put_all(client, "full", "full")
            assert len(await take(full, 1)) == 1
            await client.aclose()
            with pytest.raises(ClientClosedError):
                await take(full, 1)
    assert len({id(error) for error in errors}) == len(errors) == 3
    await until_metric(server, WATCHERS, 0)


async def test_a_closed_client_creates_no_watch(server: EtcdServer) -> None:
    """Neither entering nor looping works, nor trying it again, and nothing hangs."""
    client = Client(server.endpoint)
    unused = client.watch("k", timeout=None)
    await put_all(client, "k")
    await client.aclose()
    for watch in (unused, client.watch("k", timeout=None)):
        for use in (enter, collect, collect_batches, Watch.request_progress) * 2:
            with anyio.fail_after(1), pytest.raises(ClientClosedError):
                await use(watch)


async def test_how_it_shows_itself(client: Client) -> None:
    """The repr has the key and where the watch stands."""
    watch = client.watch("k")
    assert repr(watch) == "<Watch b'k' to be created>"
    async with watch:
        assert repr(watch) == "<Watch b'k' created>"
    assert repr(watch) == "<Watch b'k' ended>"
