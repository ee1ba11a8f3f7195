"""Where a watch resumes after a cut (W1-W5), and where it may not (W6, W7)."""

from __future__ import annotations

import random
from typing import Any

import anyio
import pytest

from aioetcd import Batch, Client, CompactedError, Event, EventType, Op
from aioetcd.testing import EtcdServer, FaultProxy
from aioetcd.watch import Watch
from tests.waiting import until
from tests.watch.faults.scenes import (
    LONG,
    enter,
    has_reconnected,
    now,
    put,
    read_until,
    unreachable,
    xfail_before,
)
from tests.watch.following import Traffic, following, revisions, take


@pytest.mark.fault("W1")
async def test_w1_random_cuts(
    proxy: FaultProxy, client: Client, direct: Client, rng: random.Random
) -> None:
    """Whenever connections are cut, each watch is one endless stream without gap or repeat."""
    start = await now(direct) + 1
    seconds = 20 if LONG else 8
    async with following() as followed:
        await followed.add_all_kinds(client, "w1/")
        traffic = Traffic(direct, followed.recorder, "w1/", rng)
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(traffic.run, 70)  # 1.8 events each: 500 a second
            end = anyio.current_time() + seconds
            # On a slow machine for longer: at least half of the events are to be written in cuts.
            with anyio.fail_after(3 * seconds):
                while anyio.current_time() < end or traffic.revision - start < 140 * seconds:
                    await anyio.sleep(rng.uniform(0.05, 0.5))
                    proxy.cut()
            group.cancel_scope.cancel()
        last = await traffic.last_word()
        await followed.wait_for(last)
        await followed.check(store=direct, start_revision=start, through=last)
    assert proxy.cuts > seconds
    assert client.stats().reconnects > seconds


@pytest.mark.fault("W2")
async def test_w2_cut_between_created_and_the_past(
    proxy: FaultProxy, client: Client, direct: Client
) -> None:
    """Cut behind `created`, a watch resumes at the revision asked for, not at the store's."""
    first = await put(direct, "k", "1")
    await put(direct, "k", "2")
    last = await put(direct, "k", "3")
    await client.kv.get("k")  # so that the connection is there
    ways: list[dict[str, Any]] = [{}, {"only": EventType.PUT}, {"prev_kv": True}, {"prefix": True}]
    cut_there = cut_elsewhere = 0
    # Where `created` ends is somewhere in the first 200 bytes: each place is tried.
    for number, size in enumerate(range(10, 210, 8)):
        watch = client.watch("k", start_revision=first, **ways[number % len(ways)])
        held = proxy.hold_after(size)
        connections, reconnects = proxy.connections_total, client.stats().reconnects
        async with anyio.create_task_group() as group:
            group.start_soon(enter, watch)
            with anyio.fail_after(5):
                await held.wait()
            with anyio.move_on_after(0.03):  # `created` may be on its way through this process
                await until(lambda w=watch: is_created(w))  # type: ignore[misc]
            assert proxy.cut() == 1
            # Not before: events may have passed the proxy and be on their way, too.
            await until(lambda r=reconnects: client.stats().reconnects > r)  # type: ignore[misc]
            if is_created(watch) and not watch._state.inbox:
                cut_there += 1
            else:
                cut_elsewhere += 1
        assert revisions(await take(watch, 3)) == [first, first + 1, last]
        assert proxy.connections_total > connections
        await watch.aclose()
    assert cut_there > 0
    assert cut_elsewhere > 0


def is_created(watch: Watch) -> bool:
    return watch._state.created_revision is not None


async def test_w3_cut_before_any_event(proxy: FaultProxy, client: Client, direct: Client) -> None:
    """A watch from now on that is cut before its first event does not deliver what was before."""
    await put(direct, "k", "old")
    await put(direct, "w3/k", "old")
    async with (
        client.watch("k") as plain,
        client.watch("w3/", prefix=True, prev_kv=True) as prefix,
        client.watch("k", only=EventType.PUT) as puts,
    ):
        for _ in range(3):
            connections = proxy.connections_total
            assert proxy.cut() == 1
            await until(lambda: has_reconnected(client, proxy, connections))  # noqa: B023
        last = await put(direct, "w3/k", "new")
        assert [(e.mod_revision, e.prev_kv.value) for e in await take(prefix, 1) if e.prev_kv] == [
            (last, b"old")
        ]
        last = await put(direct, "k", "new")
        for watch in (plain, puts):
            assert revisions(await take(watch, 1)) == [last]


async def test_w4_put_while_cut_off(proxy: FaultProxy, client: Client, direct: Client) -> None:
    """A watch from now on delivers once what is put between a cut and the reconnection."""
    await put(direct, "k", "old")
    async with (
        client.watch("k") as plain,
        client.watch("", prefix=True, prev_kv=True) as prefix,
        client.watch("k", only=EventType.PUT) as puts,
    ):
        expected = []
        for number in range(3):
            async with unreachable(proxy):
                expected.append(await put(direct, "k", str(number)))
        expected.append(await put(direct, "k", "last"))
        for watch in (plain, prefix, puts):
            assert revisions(await take(watch, 4)) == expected


@pytest.mark.fault("W5")
async def test_w5_cut_between_fragments(
    proxy: FaultProxy, client: Client, direct: Client, rng: random.Random
) -> None:
    """Half a txn is not delivered when its other half is cut off, and then it is read again."""
    value = b"v" * 400_000
    numbers = range(6)
    for number in numbers:
        await direct.kv.txn(success=[Op.put(f"w5/{number}{x}", f"old {x}") for x in "abcd"])
    first = await now(direct) + 1
    for number in numbers:
        puts = [Op.put(f"w5/{number}{x}", value) for x in "abc"]
        done = await direct.kv.txn(success=[*puts, Op.delete(f"w5/{number}d")])
    last = done.header.revision
    history = [
        *((EventType.PUT, f"w5/{n}{x}", value, f"old {x}") for n in numbers for x in "abc"),
        *((EventType.DELETE, f"w5/{n}d", b"", "old d") for n in numbers),
    ]
    history.sort(key=lambda event: event[1])  # which is the order of the operations, too
    ways: list[dict[str, Any]] = [
        {"fragment": True, **way} for way in ({}, {"prev_kv": True}, {"only": EventType.PUT})
    ]
    cut_in_a_txn = [0] * len(ways)

    async def read(watch: Watch, batches: list[Batch]) -> None:
        async with watch:
            await read_until(watch, last, batches)

    for _ in range(12):
        batches: list[list[Batch]] = [[] for _ in ways]
        watches = [client.watch("w5/", prefix=True, start_revision=first, **way) for way in ways]
        held = proxy.hold_after(rng.randrange(2_000_000, 20_000_000))
        async with anyio.create_task_group() as group:
            for watch, got in zip(watches, batches, strict=True):
                group.start_soon(read, watch, got)
            with anyio.fail_after(10):
                await held.wait()
            with anyio.move_on_after(0.1):
                await until(lambda w=watches: any(each._state.partial for each in w))  # type: ignore[misc]
            cut_in_a_txn = [
                count + bool(watch._state.partial)
                for count, watch in zip(cut_in_a_txn, watches, strict=True)
            ]
            assert proxy.cut() == 1
        for way, got in zip(ways, batches, strict=True):
            expected = [event for event in history if event[0] is way.get("only", event[0])]
            assert all(len(batch.events) % (len(expected) // 6) == 0 for batch in got)
            assert [
                (event.type, event.kv.key.decode(), event.kv.value, before(event))
                for batch in got
                for event in batch.events
            ] == [(*event[:3], event[3] if way.get("prev_kv") else None) for event in expected]
    assert max(cut_in_a_txn) > 0


def before(event: Event) -> str | None:
    return None if event.prev_kv is None else event.prev_kv.value.decode()


async def test_w6_compaction_beyond_the_watch(
    proxy: FaultProxy, client: Client, direct: Client
) -> None:
    """What was compacted while the watch was cut off is told as lost: once, and by where."""
    start = await now(direct) + 1
    async with following() as followed:
        await followed.add_all_kinds(client, "w6/")
        # One that begins behind the compaction has lost nothing.
        future = await followed.add(
            client, "w6/", name="future", prefix=True, start_revision=start + 30
        )
        for number in range(10):
            before = await put(direct, f"w6/{number % 2}", str(number))
        await followed.followers[0].wait_for(before)
        async with unreachable(proxy):
            for number in range(10):
                await put(direct, "w6/0", str(number))
            compacted = await now(direct)
            await direct.kv.compact(compacted, physical=True)
        for follower in followed.followers[:-1]:
            await until(lambda: follower.has_ended)  # noqa: B023
            assert isinstance(follower.error, CompactedError)
            assert follower.error.compact_revision == compacted
            with pytest.raises(CompactedError):
                await take(follower.watch, 1)
        assert followed.followers[0].revision == before
        for number in range(20):
            last = await put(direct, f"w6/{number}", "x")
        await future.wait_for(last)
        assert future.error is None
        await until(lambda: client.stats().watches == 1)


@pytest.mark.parametrize("kind", ["put", "delete"])
@pytest.mark.fault("W7")
async def test_w7_compaction_exactly_where_it_resumes(
    proxy: FaultProxy,
    client: Client,
    direct: Client,
    server: EtcdServer,
    request: pytest.FixtureRequest,
    kind: str,
) -> None:
    """The history begins at its compaction: a watch that resumes there has lost nothing."""
    if kind == "delete":
        xfail_before(request, server, (3, 5, 18), "the delete at a compaction is missing (#19179)")
    await put(direct, "k", "old")
    async with client.watch("k") as watch:
        await put(direct, "k", "seen")
        await take(watch, 1)
        async with unreachable(proxy):
            if kind == "delete":
                missed = (await direct.kv.delete("k")).header.revision
            else:
                missed = await put(direct, "k", "missed")
            await direct.kv.compact(missed, physical=True)
        (event,) = await take(watch, 1)
        assert (event.mod_revision, event.type.name.lower()) == (missed, kind)
        last = await put(direct, "k", "last")
        assert revisions(await take(watch, 1)) == [last]
