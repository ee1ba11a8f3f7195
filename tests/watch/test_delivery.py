"""Watches deliver what was asked for, whole and in order."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest

from aioetcd import (
    Batch,
    Client,
    ClientClosedError,
    Event,
    EventType,
    KeyValue,
    Op,
    UnsupportedByServerError,
)
from aioetcd._constructor import create
from aioetcd.testing import EtcdServer, FaultProxy
from aioetcd.watch import Watcher, WatchStreams, _state
from tests.waiting import until, until_metric
from tests.watch.following import (
    STREAMS,
    WATCHERS,
    put_all,
    revisions,
    short,
    take,
    whole_answers,
)

PUT, DELETE = EventType.PUT, EventType.DELETE


async def put_together(client: Client, *keys: str, value: str | None = None) -> int:
    """Put keys in one txn."""
    done = await client.kv.txn(success=[Op.put(key, value or key) for key in keys])
    return done.header.revision


async def now(client: Client) -> int:
    """Give the store's revision."""
    return (await client.kv.get("-")).header.revision


# --- what is delivered ------------------------------------------------------------------------


async def test_what_events_say(client: Client) -> None:
    """Each change of the key comes once, in order, and says how it changed the key."""
    kv = client.kv
    async with client.watch("k", prev_kv=True) as watch:
        created = (await kv.put("k", "1")).header.revision
        await kv.put("other", "1")
        changed = (await kv.put("k", "2")).header.revision
        deleted = (await kv.delete("k")).header.revision
        again = (await kv.put("k", b"")).header.revision
        events = await take(watch, 4)
    first = KeyValue(b"k", b"1", created, created, 1, None)
    second = KeyValue(b"k", b"2", created, changed, 2, None)
    assert events == [
        Event(PUT, first, None),
        Event(PUT, second, first),
        Event(DELETE, KeyValue(b"k", b"", 0, deleted, 0, None), second),
        Event(PUT, KeyValue(b"k", b"", again, again, 1, None), None),
    ]
    facts = [(event.type.name, event.is_create, event.is_modify) for event in events]
    assert facts == [
        ("PUT", True, False),
        ("PUT", False, True),
        ("DELETE", False, False),
        ("PUT", True, False),
    ]


async def test_a_lease_in_events(client: Client) -> None:
    """A put says which lease the key hangs on; the lease's end is a DELETE."""
    lease = await client.lease.grant(60)
    async with client.watch("k") as watch:
        await client.kv.put("k", "v", lease=lease.id)
        await client.lease.revoke(lease.id)
        put, delete = await take(watch, 2)
    assert put.kv.lease == lease.id
    assert (delete.type, delete.kv.lease) == (DELETE, None)


@pytest.mark.parametrize(
    ("key", "how", "expected"),
    [
        ("b", {}, ["b"]),
        ("b", {"prefix": True}, ["b", "b/", "b/1", "b\xff"]),
        ("", {"prefix": True}, ["a", "b", "b/", "b/1", "b\xff", "c", "ы"]),
        ("b", {"range_end": "b/1"}, ["b", "b/"]),
        ("b/1", {"range_end": "\0"}, ["b/1", "b\xff", "c", "ы"]),
        ("a", {"range_end": b"b\0"}, ["a", "b"]),
        (b"\xd1", {"prefix": True}, ["ы"]),
    ],
)
async def test_what_is_watched(
    client: Client, key: str | bytes, how: dict[str, Any], expected: list[str]
) -> None:
    """A key, a prefix, a range, a range without an end: its events come and no others."""
    async with client.watch(key, **how) as watch:
        last = await put_all(client, "a", "b", "b/", "b/1", "b\xff", "c", "ы")
        events = await take(watch, len(expected))
        # What should not have come would have come before this.
        await put_all(client, expected[0])
        assert [last + 1] == revisions(await take(watch, 1))
    assert [event.kv.key.decode() for event in events] == expected


async def test_start_in_the_past(client: Client) -> None:
    """The history is delivered from the start revision on, that one included, then what follows."""
    await put_all(client, "k")
    start = await put_all(client, "k")
    await put_all(client, "x", "k")
    async with client.watch("k", start_revision=start) as watch:
        await put_all(client, "k")
        assert revisions(await take(watch, 3)) == [start, start + 2, start + 3]


async def test_start_in_the_future(client: Client) -> None:
    """Nothing comes from before the start revision, however far ahead that is."""
    start = await now(client) + 4
    async with client.watch("k", start_revision=start) as watch:
        for _ in range(6):
            await put_all(client, "k")
        assert revisions(await take(watch, 3)) == [start, start + 1, start + 2]


async def test_start_at_creation(client: Client) -> None:
    """Without a start revision the past is not delivered, and all after entering is."""
    await put_all(client, "k", "k")
    for _ in range(20):
        async with client.watch("k") as watch:
            revision = await put_all(client, "k")
            assert revisions(await take(watch, 1)) == [revision]


async def test_after_a_get_nothing_is_missed(client: Client) -> None:
    """A read and a watch from the revision after it give the whole state, whatever is written."""
    async with anyio.create_task_group() as group:

        async def write() -> None:
            for number in range(200):
                await client.kv.put(f"k/{number % 7}", str(number))

        group.start_soon(write)
        await until(lambda: client.stats().calls > 50)
        got = await client.kv.get("k/", prefix=True)
        state = {kv.key: kv.value for kv in got.kvs}
        start = got.header.revision + 1
        async with client.watch("k/", prefix=True, start_revision=start) as watch:
            with anyio.fail_after(10):
                async for event in watch:
                    state[event.kv.key] = event.kv.value
                    if event.kv.value == b"199":
                        break
    assert state == {kv.key: kv.value for kv in (await client.kv.get("k/", prefix=True)).kvs}


async def test_prev_kv_is_only_there_where_asked_for(client: Client) -> None:
    """Without `prev_kv` events carry nothing of the past."""
    await put_all(client, "k")
    async with client.watch("k") as watch:
        await put_all(client, "k")
        await client.kv.delete("k")
        assert [event.prev_kv for event in await take(watch, 2)] == [None, None]


async def test_prev_kv_is_absent_where_it_is_compacted(client: Client) -> None:
    """The key before a change that is older than the history is None, and the change comes."""
    await put_all(client, "k")
    last = await put_all(client, "k")
    await client.kv.compact(last, physical=True)
    async with client.watch("k", prev_kv=True, start_revision=last) as watch:
        (event,) = await take(watch, 1)
    assert (event.kv.mod_revision, event.prev_kv) == (last, None)


@pytest.mark.parametrize(("only", "expected"), [(PUT, "PUT PUT"), (DELETE, "DELETE DELETE")])
async def test_only_one_type_of_event(client: Client, only: EventType, expected: str) -> None:
    """The other type of event is left out."""
    async with client.watch("k", only=only) as watch:
        for _ in range(2):
            await put_all(client, "k")
            await client.kv.delete("k")
        await client.kv.txn(success=[Op.put("k", "last")])
        await client.kv.delete("k")
        assert " ".join(event.type.name for event in await take(watch, 2)) == expected


# --- batches, and where a watch stands --------------------------------------------------------


async def test_a_txn_is_one_batch(client: Client) -> None:
    """All events of a revision come together, in the order of the operations."""
    names = [f"k/{number}" for number in range(100)]
    random.Random(7).shuffle(names)
    async with client.watch("k/", prefix=True) as watch:
        revision = await put_together(client, *names)
        with anyio.fail_after(10):
            batch = await anext(aiter(watch.batches()))
        assert batch.revision == watch.revision == revision
    assert [event.kv.key.decode() for event in batch.events] == names
    assert set(revisions(batch.events)) == {revision}


async def test_batches_of_the_past_are_whole_revisions(client: Client) -> None:
    """A long history comes in batches that never split a txn, and `revision` follows them."""
    first = await now(client) + 1
    for number in range(1500):
        last = await put_together(client, f"a/{number}", f"b/{number}", "c")
    got: list[Event] = []
    async with client.watch("", prefix=True, start_revision=first) as watch:
        assert watch.revision == first - 1
        with anyio.fail_after(10):
            async for batch in watch.batches():
                assert watch.revision == batch.revision == batch.events[-1].kv.mod_revision
                assert len(batch.events) % 3 == 0
                got += batch.events
                if batch.revision == last:
                    break
    assert revisions(got) == [revision for revision in range(first, last + 1) for _ in "abc"]
    assert len({(event.kv.mod_revision, event.kv.key) for event in got}) == len(got)


async def test_revision_of_a_loop_over_events(client: Client) -> None:
    """In the middle of a txn its revision does not count as handed over, at its end it does."""
    watch = client.watch("k", prefix=True)
    assert watch.revision == 0
    async with watch:
        before = await now(client)
        assert watch.revision == before
        revision = await put_together(client, "k1", "k2", "k3")
        seen = []
        with anyio.fail_after(10):
            async for _ in watch:
                seen.append(watch.revision)
                if len(seen) == 3:
                    break
        assert seen == [before, before, revision]
        assert revision == before + 1


@pytest.mark.parametrize("in_a_block", [True, False], ids=["block", "loop"])
async def test_revision_of_a_watch_left_amid_a_txn(client: Client, *, in_a_block: bool) -> None:
    """What nobody took does not count as handed over: a new watch from there has all of it."""
    revision = await put_together(client, "k1", "k2", "k3")
    watch = client.watch("k", prefix=True, start_revision=revision)
    if in_a_block:
        async with watch:
            assert len(await take(watch, 1)) == 1
    else:
        with anyio.fail_after(10):
            async for _ in watch:
                break
    assert watch.revision == revision - 1
    async with client.watch("k", prefix=True, start_revision=watch.revision + 1) as again:
        assert revisions(await take(again, 3)) == [revision] * 3


async def test_leaving_and_entering_loops_again(client: Client) -> None:
    """Inside the block loops may end anywhere, in the middle of a batch too: nothing is lost."""
    async with client.watch("k", prefix=True) as watch:
        expected = []
        for number in range(8):
            names = [f"k{number}{part}" for part in "abc"]
            await put_together(client, *names)
            expected += names
        events: list[Event] = []
        for count in (1, 1, 3, 2, 7, 1, 9):
            events += await take(watch, count)
    assert [event.kv.key.decode() for event in events] == expected


async def test_events_and_batches_mixed(client: Client) -> None:
    """What a loop over events left of a batch is the first batch of a loop over batches."""
    async with client.watch("k", prefix=True) as watch:
        first = await put_together(client, "k1", "k2", "k3")
        assert short(await take(watch, 1)) == [("PUT", b"k1", b"k1")]
        second = await put_together(client, "k4", "k5")
        batches: list[Batch] = []
        with anyio.fail_after(10):
            async for batch in watch.batches():
                batches.append(batch)
                if batch.revision == second:
                    break
        assert [(short(b.events)[0][1], len(b.events), b.revision) for b in batches] == [
            (b"k2", 2, first),
            (b"k4", 2, second),
        ]
        assert watch.revision == second
        await put_together(client, "k6", "k7")
        assert [event.kv.key for event in await take(watch, 2)] == [b"k6", b"k7"]


@pytest.mark.parametrize("by_batches", [False, True], ids=["events", "batches"])
async def test_a_loop_cancelled_at_any_moment_loses_nothing(
    client: Client, *, by_batches: bool
) -> None:
    """Inside the block a loop's scope may be cancelled at any await: the next loop goes on."""
    seed = random.randrange(2**32)
    print("seed", seed)  # noqa: T201
    rng = random.Random(seed)
    got: list[Event] = []
    interrupted = 0

    async def write() -> None:
        for number in range(300):
            await put_together(client, f"k{number}", f"k{number}'")

    async with client.watch("k", prefix=True) as watch, anyio.create_task_group() as group:
        group.start_soon(write)
        with anyio.fail_after(20):
            while len(got) < 600:
                with anyio.move_on_after(rng.uniform(0, 0.004)) as scope:
                    if by_batches:
                        async for batch in watch.batches():
                            got += batch.events
                            await anyio.lowlevel.checkpoint()
                    else:
                        async for event in watch:
                            got.append(event)
                interrupted += scope.cancelled_caught
    assert interrupted > 20
    assert [event.kv.key.decode() for event in got] == [
        name for number in range(300) for name in (f"k{number}", f"k{number}'")
    ]


async def test_a_paused_watch_goes_on_by_itself(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taking what had arrived is all that it needs: nobody else has to say anything."""
    monkeypatch.setattr(_state, "INBOX_EVENTS", 4)
    async with client.watch("k") as watch:
        expected = [await put_all(client, "k") for _ in range(10)]
        await until(lambda: client.stats().paused_watches == 1)
        assert revisions(await take(watch, 10)) == expected


async def test_two_consumers(client: Client) -> None:
    """Two loops over one watch share its events: each goes to one of them, in order."""
    got: tuple[list[int], list[int]] = ([], [])

    async def consume(mine: list[int]) -> None:
        async for event in watch:
            mine.append(event.kv.mod_revision)
            await anyio.lowlevel.checkpoint()

    async with client.watch("k") as watch, anyio.create_task_group() as group:
        for mine in got:
            group.start_soon(consume, mine)
        first = await now(client) + 1
        for _ in range(100):
            await put_all(client, "k")
        await until(lambda: len(got[0]) + len(got[1]) == 100)
        await watch.aclose()
    assert sorted(got[0] + got[1]) == list(range(first, first + 100))
    assert all(mine == sorted(mine) for mine in got)
    assert all(got)


# --- bookmarks --------------------------------------------------------------------------------


async def test_progress_notify() -> None:
    """A watch without events learns from the server how far it is, and shows it as a bookmark."""
    version = EtcdServer().version_info
    flag = "watch-progress-notify-interval"
    if version < (3, 6):
        flag = f"experimental-{flag}"
    async with EtcdServer(args=[f"--{flag}=100ms"]) as server:  # noqa: SIM117 - reads in steps
        async with (
            Client(server.endpoint) as client,
            client.watch("k", progress_notify=True) as watch,
            client.watch("k") as other,
        ):
            created = watch.revision
            await put_all(client, "k")  # etcd before 3.5.13 tells nothing before the first event
            assert len(await take(watch, 1)) == len(await take(other, 1)) == 1
            last = await put_all(client, *(["elsewhere"] * 5))
            bookmarks = []
            with anyio.fail_after(10):
                async for batch in watch.batches():
                    assert batch.events == ()
                    assert batch.revision == watch.revision
                    bookmarks.append(batch.revision)
                    if batch.revision >= last:
                        break
            assert bookmarks[-1] == last
            assert bookmarks == sorted(bookmarks)
            assert other.revision == created + 1, "nobody asked for it there"
            # A loop over events does not see bookmarks, but moves on with them.
            assert (await put_all(client, "k")) == (await take(watch, 1))[0].kv.mod_revision


async def test_request_progress(client: Client, server: EtcdServer) -> None:
    """The answer is a bookmark behind all events; servers that would lie are refused by version."""
    async with client.watch("k", prefix=True) as watch:
        first = await put_all(client, "k1")
        last = await put_all(client, "elsewhere", "elsewhere")
        if server.version_info < (3, 5, 8):
            with pytest.raises(UnsupportedByServerError, match=r"3\.5\.8.*3\.4\.25") as caught:
                await watch.request_progress()
            assert (caught.value.server_version, caught.value.needs) == (server.version, "3.5.8")
            assert server.version in str(caught.value)
            assert revisions(await take(watch, 1)) == [first]
            return
        await watch.request_progress()
        batches = []
        with anyio.fail_after(10):
            async for batch in watch.batches():
                batches.append(batch)
                if not batch.events:
                    break
        assert [(revisions(batch.events), batch.revision) for batch in batches] == [
            ([first], first),
            ([], last),
        ]
        assert watch.revision == last


async def test_request_progress_while_others_write(client: Client, server: EtcdServer) -> None:
    """Bookmarks asked for in the midst of writes are never ahead of events still to come."""
    if server.version_info < (3, 5, 8):
        pytest.skip("this server cannot be asked")
    bookmark = bookmarks = 0

    async def write() -> None:
        for number in range(300):
            await client.kv.put("k", str(number))

    async def ask() -> None:
        while True:
            await watch.request_progress()
            await anyio.sleep(0.01)  # so that the writes get their turns

    async with client.watch("k") as watch, anyio.create_task_group() as group:
        group.start_soon(write)
        group.start_soon(ask)
        with anyio.fail_after(20):
            async for batch in watch.batches():
                if not batch.events:
                    bookmarks += 1
                    assert batch.revision >= bookmark
                    bookmark = batch.revision
                elif batch.events[-1].kv.value == b"299":
                    break
                assert all(event.kv.mod_revision > bookmark for event in batch.events)
        group.cancel_scope.cancel()
    assert bookmarks > 3


# --- large answers, many watches --------------------------------------------------------------


@pytest.mark.parametrize("fragment", [True, False])
async def test_large_answers_are_whole_revisions(
    client: Client, monkeypatch: pytest.MonkeyPatch, *, fragment: bool
) -> None:
    """Txns whose events span the server's fragments arrive whole, each in one batch."""
    whole = whole_answers(monkeypatch, split=3 * 2**20) if fragment else []
    value = "v" * 400_000
    first = await now(client) + 1
    for number in range(6):
        last = await put_together(client, *(f"k{number}{part}" for part in "abc"), value=value)
    batches: list[Batch] = []
    async with client.watch("k", prefix=True, start_revision=first, fragment=fragment) as watch:
        with anyio.fail_after(15):
            async for batch in watch.batches():
                batches.append(batch)
                if batch.revision == last:
                    break
    events = [event for batch in batches for event in batch.events]
    assert [event.kv.key.decode() for event in events] == [
        f"k{number}{part}" for number in range(6) for part in "abc"
    ]
    assert revisions(events) == [revision for revision in range(first, last + 1) for _ in "abc"]
    assert all(event.kv.value == value.encode() for event in events)
    assert all(len(batch.events) % 3 == 0 for batch in batches)
    if fragment:
        # 7.2 MB in fragments of about 2 MiB, hence five events: three, and two of the next txn.
        assert len(batches) >= 3 or whole, "it was not fragmented"
    else:
        assert len(batches) == 1


async def test_a_thousand_watches_share_four_streams(server: EtcdServer) -> None:
    """They cost one connection and four streams, and each gets what is its own."""
    await server.clear()
    async with FaultProxy(server.endpoint) as proxy, Client(proxy.endpoint) as client:
        got: dict[int, list[tuple[str, bytes, bytes]]] = {}

        async def follow(number: int) -> None:
            async with client.watch(f"k/{number}") as watch:
                got[number] = short(await take(watch, 2, within=30))

        async with anyio.create_task_group() as group:
            for number in range(1000):
                group.start_soon(follow, number)
            await until_metric(server, WATCHERS, 1000, within=30)
            await until_metric(server, STREAMS, 4)
            assert watches_by_stream(client) == [250, 250, 250, 250]
            for base in range(0, 1000, 100):
                await put_together(client, *(f"k/{base + n}" for n in range(100)))
            for base in range(0, 1000, 100):
                await client.kv.txn(success=[Op.delete(f"k/{base + n}") for n in range(100)])
        assert got == {
            number: [("PUT", b"k/%d" % number, b"k/%d" % number), ("DELETE", b"k/%d" % number, b"")]
            for number in range(1000)
        }
        assert client.stats().watches == 0
        await until_metric(server, WATCHERS, 0)
        assert proxy.connections_total == 1


def watches_by_stream(client: Client) -> list[int]:
    """How many watches each stream has, of those with `require_leader`."""
    return [len(stream.rules) for stream in client._shared.watches._streams[True]]


async def test_watches_fill_one_stream_after_the_other(client: Client, server: EtcdServer) -> None:
    """Where there is room they go first, and a stream that has none any more ends."""
    made = [client.watch(f"k/{number}") for number in range(120)]
    async with AsyncExitStack() as first, AsyncExitStack() as others:
        for watch in made[:50]:
            await first.enter_async_context(watch)
        assert watches_by_stream(client) == [50]
        for watch in made[50:]:
            await others.enter_async_context(watch)
        assert watches_by_stream(client) == [50, 50, 20]
        await until_metric(server, STREAMS, 3)
        await first.aclose()
        assert watches_by_stream(client) == [0, 50, 20]
        await until_metric(server, STREAMS, 2)
        async with client.watch("k/") as late:
            assert watches_by_stream(client) == [1, 50, 20]
            await put_together(client, "k/", "k/60", "k/119")
            for watch in (late, made[60], made[119]):
                assert len(await take(watch, 1)) == 1
    await until_metric(server, WATCHERS, 0)


async def test_without_require_leader_it_is_another_stream(
    client: Client, server: EtcdServer
) -> None:
    """What a stream asks of its server holds for all on it: so there are two of them."""
    async with (
        client.watch("k") as first,
        client.watch("k", require_leader=False) as second,
        client.watch("k", require_leader=False) as third,
    ):
        await until_metric(server, WATCHERS, 3)
        await until_metric(server, STREAMS, 2)
        await put_all(client, "k")
        for watch in (first, second, third):
            assert len(await take(watch, 1)) == 1


async def test_watchers_of_one_client_are_independent(client: Client, server: EtcdServer) -> None:
    """A second one has a stream of its own, which ends with its watches, or with the client."""
    async with client.watch("k") as first:
        watcher = create(Watcher, client._calls, WatchStreams(client._transport))
        watch = watcher("k")
        async with watch:
            await until_metric(server, WATCHERS, 2)
            await until_metric(server, STREAMS, 2)
            last = await put_all(client, "k")
            for each in (first, watch):
                assert revisions(await take(each, 1)) == [last]
        await until_metric(server, STREAMS, 1)
        async with watcher("k") as watch:
            await client.aclose()
            for each in (first, watch):
                with pytest.raises(ClientClosedError):
                    await take(each, 1)
