"""Watches that are idle, slow, large, or many (W13, W15-W17)."""

from __future__ import annotations

import random
from pathlib import Path

import anyio
import pytest

from aioetcd import Batch, Client, CompactedError, Op
from aioetcd.testing import EtcdServer, FaultProxy
from aioetcd.testing.history import Delivery
from aioetcd.watch import Watch
from aioetcd.watch._state import INBOX_BYTES
from tests.waiting import until, until_metric
from tests.watch.faults.scenes import now, progress_every, put, read_until, unreachable
from tests.watch.following import (
    WATCHERS,
    fill,
    following,
    revisions,
    take,
    take_revision,
    takes_at_most,
    whole_answers,
)


@pytest.mark.fault("W13")
async def test_w13_an_idle_watch_and_a_compaction(rng: random.Random) -> None:
    """Bookmarks carry an idle watch over the compaction of all that it ever saw."""
    async with (
        EtcdServer(args=progress_every("100ms")) as server,
        FaultProxy(server.endpoint) as proxy,
        Client(proxy.endpoint) as client,
        Client(server.endpoint) as direct,
        following() as followed,
    ):
        notified = await followed.add(client, "idle", name="notified", progress_notify=True)
        forgotten = await followed.add(client, "idle", name="forgotten")
        asking = await followed.add(client, "idle", name="asking", require_leader=False)
        can_ask = server.version_info >= (3, 5, 8)
        await followed.wait_for(await put(direct, "idle", "first"))

        async def write() -> None:
            for number in range(10_000 // 8):
                await direct.kv.put("busy", str(number))

        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(write)
        compacted = await now(direct)
        if can_ask:
            await asking.watch.request_progress()
            await asking.wait_for(compacted)
        await notified.wait_for(compacted)
        async with unreachable(proxy):
            await direct.kv.compact(compacted, physical=True)
        last = await put(direct, "idle", "last")
        await notified.wait_for(last)
        await until(lambda: forgotten.has_ended)
        assert isinstance(forgotten.error, CompactedError), "it has no way to know, and says so"
        if can_ask:
            await asking.wait_for(last)
        for follower in (notified, *([asking] if can_ask else [])):
            events = [
                event
                for delivery in followed.recorder.of(Delivery)
                if delivery.watch == follower.name
                for event in delivery.events
            ]
            assert [event.kv.value for event in events] == [b"first", b"last"]


@pytest.mark.fault("W15")
async def test_w15_a_slow_consumer(own_server: EtcdServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A consumer that sleeps costs bounded memory and nobody else's time, and loses nothing."""
    txns, size = 500, 2000  # 100 puts each: 50 000 events, 100 MB
    whole = whole_answers(monkeypatch, split=3 * 2**20)
    async with (
        Client(own_server.endpoint) as client,
        Client(own_server.endpoint) as direct,
        client.watch("k", prefix=True, fragment=True) as slow,
        client.watch("k", prefix=True, fragment=True) as fast,
    ):
        first = await now(direct) + 1
        last = first + txns - 1
        value = b"v" * size

        async def write() -> None:
            for number in range(txns):
                await direct.kv.txn(
                    success=[Op.put(f"k{n}", b"%d " % number + value) for n in range(100)]
                )

        async def read(watch: Watch) -> list[tuple[int, int]]:
            got: list[tuple[int, int]] = []
            with anyio.fail_after(30):
                async for batch in watch.batches():
                    for event in batch.events:
                        assert event.kv.value == b"%d " % (event.mod_revision - first) + value
                        got.append((event.mod_revision, int(event.kv.key[1:])))
                    if batch.revision == last:
                        return got
            raise AssertionError("the watch has ended")

        expected = [(revision, n) for revision in range(first, last + 1) for n in range(100)]
        most_bytes = most_memory = 0
        memory = resident_bytes()

        async def measure() -> None:
            nonlocal most_bytes, most_memory
            while True:
                most_bytes = max(most_bytes, slow._state.inbox_bytes)
                most_memory = max(most_memory, resident_bytes())
                await anyio.sleep(0.002)

        async with anyio.create_task_group() as group:
            group.start_soon(measure)
            group.start_soon(write)
            assert await read(fast) == expected
            assert client.stats().paused_watches == 1
            await until_metric(own_server, WATCHERS, 1)
            assert slow.revision < first, "nobody took anything"
            assert await read(slow) == expected
            group.cancel_scope.cancel()
        # The limit, and one answer more.
        one_more = max(whole, default=3 * 2**20)
        assert INBOX_BYTES <= most_bytes < INBOX_BYTES + one_more
        # What one watch may hold for its consumer, twice, and as much for all else that there is:
        # half of what 50 000 events of this size take.
        assert most_memory - memory < 4 * INBOX_BYTES + 2 * sum(whole)
        # It goes on as any other.
        last = await put(direct, "k0", "last")
        assert revisions(await take(slow, 1)) == revisions(await take(fast, 1)) == [last]
        assert client.stats().reconnects == 0


def resident_bytes() -> int:
    """Give the memory that this process has (Linux; 0 elsewhere)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize("fragment", [True, False])
async def test_w16_a_backlog_above_the_usual_limit(
    client: Client, direct: Client, *, fragment: bool
) -> None:
    """An answer larger than gRPC's usual 4 MB is taken as any other, without a reconnect."""
    first = await now(direct) + 1
    for number in range(6):
        last = await put(direct, f"w16/{number}", str(number) * 1_000_000)
    batches: list[Batch] = []
    async with client.watch("w16/", prefix=True, start_revision=first, fragment=fragment) as watch:
        await read_until(watch, last, batches)
        if not fragment:
            assert len(batches) == 1, "it was not one answer"
        events = [event for batch in batches for event in batch.events]
        assert revisions(events) == list(range(first, last + 1))
        assert {len(event.kv.value) for event in events} == {1_000_000}
        assert client.stats().reconnects == 0


@pytest.mark.fault("W17")
async def test_w17_a_thousand_watches_come_and_go_in_cuts(
    proxy: FaultProxy, client: Client, direct: Client, server: EtcdServer, rng: random.Random
) -> None:
    """No watch gets what is another's, none stays behind at the server or in the client."""
    tasks, each = 50, 20
    start = {n: await put(direct, f"w17/{n}", str(n)) for n in range(tasks)}
    finished = given_up = 0

    async def come_and_go(number: int) -> None:
        nonlocal finished, given_up
        for _ in range(each):
            patience = rng.uniform(0, 0.1) if rng.random() < 0.4 else None
            watch = client.watch(f"w17/{number}", start_revision=start[number], timeout=20)
            with anyio.move_on_after(patience) as scope:
                if rng.random() < 0.5:
                    async with watch:
                        events = await take(watch, 1, within=20)
                else:
                    events = await take(watch, 1, within=20)
                assert [event.kv.value for event in events] == [b"%d" % number]
                finished += 1
            given_up += scope.cancelled_caught

    async with anyio.create_task_group() as group:

        async def cut() -> None:
            while True:
                await anyio.sleep(rng.uniform(0.05, 0.3))
                proxy.cut()

        group.start_soon(cut)
        async with anyio.create_task_group() as users:
            for number in range(tasks):
                users.start_soon(come_and_go, number)
        group.cancel_scope.cancel()
    assert finished + given_up == tasks * each
    assert given_up > 0
    assert proxy.cuts > 3
    await until(lambda: client.stats().watches == 0)
    await until_metric(server, WATCHERS, 0)
    async with client.watch("w17/0") as watch:
        last = await put(direct, "w17/0", "last")
        assert revisions(await take(watch, 1)) == [last]
        await until_metric(server, WATCHERS, 1)


@pytest.mark.alone("Z12: 120 000 events, and a second for what comes behind them")
async def test_z12_a_txn_of_very_many_keys() -> None:
    """All others on the stream are told of what is theirs at once, though one gets a flood."""
    keys, each = 120_000, 10_000
    async with (
        EtcdServer(args=[f"--max-txn-ops={each}"]) as server,
        Client(server.endpoint) as client,
        Client(server.endpoint) as direct,
    ):
        await fill(direct, keys, each=each, digits=19)
        async with (
            client.watch("k", prefix=True) as flooded,
            client.watch("other") as other,
            client.watch("another", require_leader=False) as apart,
        ):
            deleted = await direct.kv.delete("k", prefix=True)
            assert deleted.deleted == keys
            with takes_at_most(1):
                for watch, key in ((other, "other"), (apart, "another")):
                    last = await put(direct, key)
                    assert revisions(await take(watch, 1)) == [last]
            await take_revision(flooded, deleted.header.revision, keys)
