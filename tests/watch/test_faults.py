"""Watches in bad weather: each event once, in order, or an error that says what is lost.

The tests are named after the rows of the project's list of faults. Each proves that its fault took
place, and compares what was delivered with the store's own history.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import random
import shutil
import threading
import time
import urllib.request
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import anyio
import pytest

from aioetcd import (
    Batch,
    Client,
    ClientClosedError,
    ClusterMismatchError,
    CompactedError,
    EventType,
    Op,
)
from aioetcd.testing import EtcdCluster, EtcdServer, FaultProxy, Recorder
from aioetcd.testing.history import Delivery
from aioetcd.watch import Watch, _state
from aioetcd.watch._state import INBOX_BYTES
from tests.watch.following import (
    WATCHERS,
    Traffic,
    following,
    revisions,
    take,
    takes_at_most,
    until,
    until_metric,
)

LONG = os.environ.get("AIOETCD_TEST_LONG") == "1"

# A single member elects itself after one election timeout when it comes back.
QUICK = ("--heartbeat-interval=50", "--election-timeout=250")

# Several members on a busy machine would lose their leader all the time with that.
CALM = ("--heartbeat-interval=100", "--election-timeout=600")


@pytest.fixture
def rng() -> random.Random:
    """Chance, and its seed in the report of a failure."""
    seed = int(os.environ.get("AIOETCD_TEST_SEED", random.randrange(2**32)))
    print("AIOETCD_TEST_SEED", seed)  # noqa: T201
    return random.Random(seed)


@pytest.fixture
async def proxy(server: EtcdServer) -> AsyncIterator[FaultProxy]:
    """A network between a client and the session's etcd."""
    async with FaultProxy(server.endpoint) as proxy:
        yield proxy


@pytest.fixture
async def client(proxy: FaultProxy) -> AsyncIterator[Client]:
    """The client that is tested, behind the proxy."""
    async with Client(proxy.endpoint) as client:
        yield client


@pytest.fixture
async def direct(server: EtcdServer) -> AsyncIterator[Client]:
    """A client that no fault reaches, of a server without keys."""
    await server.clear()
    async with Client(server.endpoint) as client:
        yield client


@pytest.fixture
async def own_server() -> AsyncIterator[EtcdServer]:
    """An etcd that a test may kill."""
    async with EtcdServer(args=QUICK) as server:
        yield server


async def now(client: Client) -> int:
    """Give the store's revision."""
    return (await client.kv.get("-")).header.revision


async def put(client: Client, key: str, value: str = "") -> int:
    """Put a key."""
    return (await client.kv.put(key, value)).header.revision


def xfail_before(
    request: pytest.FixtureRequest, server: EtcdServer, version: tuple[int, ...], reason: str
) -> None:
    """Expect that a bug of older servers may show."""
    if server.version_info < version:
        fixed = ".".join(map(str, version))
        request.applymarker(pytest.mark.xfail(strict=False, reason=f"etcd < {fixed}: {reason}"))


def progress_every(interval: str) -> list[str]:
    """Give the flag that has etcd send bookmarks so often."""
    flag = "watch-progress-notify-interval"
    return [f"--{'' if EtcdServer().version_info >= (3, 6) else 'experimental-'}{flag}={interval}"]


def has_reconnected(client: Client, proxy: FaultProxy, connections: int) -> bool:
    """Whether the client made a new connection since there were so many, and has its watches."""
    return proxy.connections_total > connections and all(
        state.phase.value == "created"
        for stream in client.watch.streams.values()
        for state in stream.rules._watches
    )


@contextlib.asynccontextmanager
async def unreachable(proxy: FaultProxy) -> AsyncIterator[None]:
    """Cut all connections at the start, and let none be made until the end."""
    await proxy.wait_until(lambda proxy: proxy.connections_open > 0)
    proxy.refuse()
    assert proxy.cut() > 0
    yield
    await proxy.heal()


# --- W1-W4: where a watch resumes -------------------------------------------------------------


async def test_w1_random_cuts(
    proxy: FaultProxy, client: Client, direct: Client, rng: random.Random
) -> None:
    """Whenever connections are cut, each watch is one endless stream without gap or repeat."""
    start = await now(direct) + 1
    async with following() as followed:
        await followed.add_all_kinds(client, "w1/")
        traffic = Traffic(direct, followed.recorder, "w1/", rng)
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(traffic.run, 70)  # 1.8 events each: 500 a second
            with anyio.move_on_after(20 if LONG else 8):
                while True:
                    await anyio.sleep(rng.uniform(0.05, 0.5))
                    proxy.cut()
            group.cancel_scope.cancel()
        last = await traffic.last_word()
        await followed.wait_for(last)
        await followed.check(store=direct, start_revision=start, through=last)
    assert proxy.cuts > 10
    assert client.stats().reconnects > 10
    assert last - start > 1000


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
        connections = proxy.connections_total
        async with anyio.create_task_group() as group:
            group.start_soon(enter, watch)
            with anyio.fail_after(5):
                await held.wait()
            with anyio.move_on_after(0.03):  # `created` may be on its way through this process
                await until(lambda w=watch: is_created(w))  # type: ignore[misc]
            if is_created(watch) and not watch._state.inbox:
                cut_there += 1
            else:
                cut_elsewhere += 1
            assert proxy.cut() == 1
        assert revisions(await take(watch, 3)) == [first, first + 1, last]
        assert proxy.connections_total > connections
        await watch.aclose()
    assert cut_there > 0
    assert cut_elsewhere > 0


async def enter(watch: Watch) -> None:
    await watch.__aenter__()


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


# --- W5-W7: fragments, compaction -------------------------------------------------------------


async def test_w5_cut_between_fragments(
    proxy: FaultProxy, client: Client, direct: Client, rng: random.Random
) -> None:
    """Half a txn is not delivered when its other half is cut off, and then it is read again."""
    value = "v" * 400_000
    first = await now(direct) + 1
    for number in range(6):
        done = await direct.kv.txn(success=[Op.put(f"w5/{number}{x}", value) for x in "abc"])
    last = done.header.revision
    cut_in_a_txn = 0
    for _ in range(12):
        batches: list[Batch] = []
        held = proxy.hold_after(rng.randrange(2_000_000, 7_000_000))
        async with (
            client.watch("w5/", prefix=True, start_revision=first) as watch,
            anyio.create_task_group() as group,
        ):
            group.start_soon(read_until, watch, last, batches)
            with anyio.fail_after(10):
                await held.wait()
            with anyio.move_on_after(0.1):
                await until(lambda w=watch: bool(w._state.partial))  # type: ignore[misc]
            cut_in_a_txn += bool(watch._state.partial)
            assert proxy.cut() == 1
        assert all(len(batch.events) % 3 == 0 for batch in batches)
        events = [event for batch in batches for event in batch.events]
        assert [event.kv.key.decode() for event in events] == [
            f"w5/{number}{x}" for number in range(6) for x in "abc"
        ]
        assert all(event.kv.value == value.encode() for event in events)
    assert cut_in_a_txn > 0


async def read_until(watch: Watch, last: int, batches: list[Batch]) -> None:
    with anyio.fail_after(20):
        async for batch in watch.batches():
            batches.append(batch)
            if batch.revision >= last:
                return


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
        (event,) = await take(watch, 1, within=2)
        assert (event.mod_revision, event.type.name.lower()) == (missed, kind)
        last = await put(direct, "k", "last")
        assert revisions(await take(watch, 1)) == [last]


# --- W8-W12: members that die, stop, fall silent, lose the others, lag -------------------------


@contextlib.asynccontextmanager
async def written(traffic: Traffic, per_second: float, *, writers: int = 2) -> AsyncIterator[None]:
    """Write in the background of the block."""
    async with anyio.create_task_group() as group:
        for _ in range(writers):
            group.start_soon(traffic.run, per_second / writers)
        yield
        group.cancel_scope.cancel()


def used(client: Client, cluster: EtcdCluster) -> int:
    """Give the member that a client of `cluster.endpoints` uses."""
    endpoint = client.stats().endpoint
    assert endpoint is not None
    return cluster.endpoints.index(endpoint)


async def until_elsewhere(client: Client, cluster: EtcdCluster, member: int, within: float) -> int:
    """Wait until the client uses another member, and give that."""
    endpoint = cluster.endpoints[member]
    await until(lambda: client.stats().endpoint not in (None, endpoint), within=within)
    return used(client, cluster)


def longest_gap(recorder: Recorder, watch: str) -> float:
    """Give the longest time between two batches of a watch, in seconds."""
    times = [delivery.at_ns for delivery in recorder.of(Delivery) if delivery.watch == watch]
    return max(after - before for before, after in pairwise(times)) / 1e9


async def test_w8_the_server_is_killed(own_server: EtcdServer, rng: random.Random) -> None:
    """A server that crashes and comes back with its data goes on with its watches."""
    # These versions may tell a single member's last write before it is safe (#14370).
    writes_through = not (3, 5, 0) <= own_server.version_info < (3, 5, 5)
    async with (
        Client(own_server.endpoint) as client,
        Client(own_server.endpoint, timeout=1) as direct,
        following() as followed,
    ):
        await followed.add_all_kinds(client, "w8/", start_revision=1)
        traffic = Traffic(direct, followed.recorder, "w8/", rng)
        for _ in range(3):
            before, pid = traffic.revision, own_server.pid
            async with written(traffic, 400, writers=8):
                await until(lambda: traffic.revision > before + 50)  # noqa: B023
                if writes_through:
                    await own_server.kill()
            await own_server.kill()
            await own_server.start()
            assert own_server.pid != pid
            last = await traffic.last_word()
            with takes_at_most(3):
                await followed.wait_for(last)
        await followed.check(store=direct, start_revision=1, through=last)
        assert client.stats().reconnects >= 3


async def test_w8_a_member_is_killed(rng: random.Random) -> None:
    """The watches of a member that crashes go on at another one, and so on."""
    async with (
        EtcdCluster(args=CALM) as cluster,
        Client(cluster.endpoints) as client,
        Client(cluster.direct_endpoints, timeout=2) as direct,
        following() as followed,
    ):
        # These versions may come back from a crash with other data than they had (#13766).
        comes_back = not (3, 5, 0) <= cluster.members[0].version_info < (3, 5, 3)
        await followed.add_all_kinds(client, "w8/", start_revision=1)
        traffic = Traffic(direct, followed.recorder, "w8/", rng)
        async with written(traffic, 100):
            for _ in range(3 if comes_back else 1):
                before = traffic.revision
                await until(lambda: traffic.revision > before + 20)  # noqa: B023
                member = used(client, cluster)
                await cluster.members[member].kill()
                assert await until_elsewhere(client, cluster, member, 5) != member
                if comes_back:
                    await cluster.members[member].start()
                    await cluster.wait_healthy()
        last = await traffic.last_word()
        await followed.wait_for(last)
        await followed.check(store=direct, start_revision=1, through=last)
        assert traffic.revision > 20


KEEPALIVE = {"keepalive_time": 5, "keepalive_timeout": 1}
# Two seconds for what a busy machine adds to them.
KEEPALIVE_GAP = 5 + 1 + 1 + 2


@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
async def test_w9_a_member_stands_still(rng: random.Random, *, busy: bool) -> None:
    """Watches leave a member that is stopped without a word as soon as its pings are missed."""
    async with (
        EtcdCluster(args=CALM) as cluster,
        Client(cluster.endpoints, **KEEPALIVE) as client,
        following() as followed,
    ):
        await followed.add_all_kinds(client, "w9/", start_revision=1)
        member = used(client, cluster)
        others = [m.endpoint for m in cluster.members if m is not cluster.members[member]]
        await cluster.move_leader((member + 1) % 3)  # so that writes go on
        async with Client(others) as direct:
            traffic = Traffic(direct, followed.recorder, "w9/", rng)
            await followed.wait_for(await traffic.last_word())
            async with written(traffic, 50) if busy else contextlib.nullcontext():
                await cluster.members[member].pause()
                await traffic.last_word()
                await until_elsewhere(client, cluster, member, KEEPALIVE_GAP)
                await followed.followers[0].wait_for(traffic.revision)
                gap = longest_gap(followed.recorder, "all")
                assert cluster.members[member].is_paused
                if LONG:
                    await anyio.sleep(15)
                await cluster.members[member].resume()
            last = await traffic.last_word()
            await followed.wait_for(last)
            await followed.check(store=direct, start_revision=1, through=last)
        assert 0.5 < gap < KEEPALIVE_GAP


@pytest.mark.parametrize("swallowed", ["answers", "requests"])
async def test_w10_one_direction_is_swallowed(
    server: EtcdServer, direct: Client, rng: random.Random, swallowed: str
) -> None:
    """Watches leave a connection on which only one direction still works."""
    async with (
        FaultProxy(server.endpoint) as proxy,
        FaultProxy(server.endpoint) as other,
        Client([proxy.endpoint, other.endpoint], **KEEPALIVE) as client,
        following() as followed,
    ):
        start = await now(direct) + 1
        await followed.add_all_kinds(client, "w10/")
        assert client.stats().endpoint == proxy.endpoint
        traffic = Traffic(direct, followed.recorder, "w10/", rng)
        async with written(traffic, 50):
            await until(lambda: followed.followers[0].revision > start + 10)
            proxy.blackhole(
                client_to_server=swallowed == "requests", server_to_client=swallowed == "answers"
            )
            if swallowed == "answers":
                await until(lambda: other.connections_total > 0, within=KEEPALIVE_GAP)
        if swallowed == "requests":
            # While events come the connection looks alive; once they cease it does not.
            last = await traffic.last_word()
            await followed.wait_for(last)
            await until(lambda: other.connections_total > 0, within=KEEPALIVE_GAP)
        last = await traffic.last_word()
        await followed.wait_for(last)
        await followed.check(store=direct, start_revision=start, through=last)
        assert proxy.bytes_swallowed > 0
        assert client.stats().endpoint == other.endpoint
        assert longest_gap(followed.recorder, "all") < KEEPALIVE_GAP
        await proxy.heal()


async def test_w11_a_member_is_cut_off_from_the_others(rng: random.Random) -> None:
    """Watches leave a member that has no leader; those that do not ask for one wait for it."""
    async with (
        EtcdCluster(args=CALM) as cluster,
        Client(cluster.endpoints) as client,
        following() as followed,
    ):
        await followed.add_all_kinds(client, "w11/", start_revision=1)
        patient = await followed.add(
            client, "w11/", name="patient", prefix=True, start_revision=1, require_leader=False
        )
        member = used(client, cluster)
        others = [m.endpoint for m in cluster.members if m is not cluster.members[member]]
        async with Client(others, timeout=2) as direct:
            traffic = Traffic(direct, followed.recorder, "w11/", rng)
            await patient.wait_for(await traffic.last_word())
            await cluster.isolate(member)
            cut_off = traffic.revision
            async with written(traffic, 50):
                with takes_at_most(5):
                    await until_elsewhere(client, cluster, member, 10)
            last = await traffic.last_word()
            for follower in followed.followers:
                if follower is not patient:
                    await follower.wait_for(last)
            assert patient.revision == cut_off, "it has heard of what its member does not know"
            await cluster.rejoin(member)
            last = await traffic.last_word()
            await followed.wait_for(last)
            await followed.check(store=direct, start_revision=1, through=last)
        assert client.watch.streams[False].shared.reconnects == 0
        assert client.watch.streams[True].shared.reconnects > 0


async def test_w12_a_member_that_lags(rng: random.Random) -> None:
    """A watch that resumes at a member behind it neither goes back nor takes that for an error."""
    async with (
        EtcdCluster(args=[*CALM, *progress_every("100ms")]) as cluster,
        following() as followed,
    ):
        leader = cluster.members.index(await cluster.leader())
        ahead, behind = (leader + 1) % 3, (leader + 2) % 3
        two = [cluster.endpoints[ahead], cluster.endpoints[behind]]
        async with Client(two) as client, Client(cluster.direct_endpoints[leader]) as direct:
            # Those that want no leader stay with the one behind, where the others come and go.
            for name, wants_leader in (("patient", False), ("strict", True)):
                await followed.add(
                    client,
                    "w12/",
                    name=name,
                    prefix=True,
                    prev_kv=True,
                    start_revision=1,
                    progress_notify=True,
                    require_leader=wants_leader,
                )
            assert used(client, cluster) == ahead
            traffic = Traffic(direct, followed.recorder, "w12/", rng)
            await followed.wait_for(await traffic.last_word())
            await cluster.isolate(behind)
            for _ in range(50):
                await traffic.write()
            last = await traffic.last_word()
            await followed.wait_for(last)
            cluster.client_proxies[ahead].refuse()
            assert cluster.client_proxies[ahead].cut() > 0
            stream = client.watch.streams[False]
            await until(lambda: stream.rules.suspect is not None)
            assert used(client, cluster) == behind
            await cluster.rejoin(behind)
            async with written(traffic, 100):
                await until(lambda: stream.rules.suspect is None)
            last = await traffic.last_word()
            await followed.wait_for(last)
            await followed.check(store=direct, start_revision=1, through=last)
            assert used(client, cluster) == behind
            await cluster.client_proxies[ahead].heal()


# --- W13, W15-W17: idle, slow, large, many ------------------------------------------------------


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
            for number in range(10_000 // 8 if LONG else 250):
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


async def test_w15_a_slow_consumer(own_server: EtcdServer) -> None:
    """A consumer that sleeps costs bounded memory and nobody else's time, and loses nothing."""
    txns, size = 500, 1000  # 100 puts each: 50 000 events, 50 MB
    async with (
        Client(own_server.endpoint) as client,
        Client(own_server.endpoint) as direct,
        client.watch("k", prefix=True) as slow,
        client.watch("k", prefix=True) as fast,
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
        most_bytes = 0

        async def measure() -> None:
            nonlocal most_bytes
            while True:
                most_bytes = max(most_bytes, slow._state.inbox_bytes)
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
        assert INBOX_BYTES <= most_bytes < INBOX_BYTES + 3 * 2**20
        # It goes on as any other.
        last = await put(direct, "k0", "last")
        assert revisions(await take(slow, 1)) == revisions(await take(fast, 1)) == [last]
        assert client.stats().reconnects == 0


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
            patience = rng.uniform(0, 0.1) if rng.random() < 0.4 else 20
            watch = client.watch(f"w17/{number}", start_revision=start[number])
            with anyio.move_on_after(patience) as scope:
                if rng.random() < 0.5:
                    async with watch:
                        events = await take(watch, 1)
                else:
                    events = await take(watch, 1)
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


# --- W18-W20: other data, txns in cuts, duplicates ----------------------------------------------


async def test_w18_the_history_went_back(own_server: EtcdServer) -> None:
    """A server that was restored from a backup ends the watches loudly; new ones work."""
    async with (
        Client(own_server.endpoint) as client,
        Client(own_server.endpoint) as direct,
        following() as followed,
    ):
        for number in range(10):
            await put(direct, "w18/k", str(number))
        await own_server.stop()
        backup = own_server.data_dir.with_name("backup")
        shutil.copytree(own_server.data_dir, backup)
        await own_server.start()
        await followed.add_all_kinds(client, "w18/")
        for number in range(20):
            last = await put(direct, "w18/0", str(number))
        await followed.followers[0].wait_for(last)
        await own_server.kill()
        shutil.rmtree(own_server.data_dir)
        backup.rename(own_server.data_dir)
        await own_server.start()
        assert await now(direct) < last
        for follower in followed.followers:
            await until(lambda: follower.has_ended)  # noqa: B023
            assert isinstance(follower.error, ClusterMismatchError)
            assert "went back" in str(follower.error)
        assert client.stats().watches == 0


async def test_w18_another_cluster(
    proxy: FaultProxy, client: Client, direct: Client, own_server: EtcdServer
) -> None:
    """An endpoint that leads to another cluster now ends the watches loudly."""
    async with following() as followed:
        await followed.add_all_kinds(client, "w18/")
        last = await put(direct, "w18/0", "here")
        await followed.followers[0].wait_for(last)
        async with Client(own_server.endpoint) as other:
            while await put(other, "w18/0", "there") <= last + 10:
                pass
        proxy.retarget(own_server.endpoint)
        assert proxy.cut() > 0
        for follower in followed.followers:
            await until(lambda: follower.has_ended)  # noqa: B023
            assert isinstance(follower.error, ClusterMismatchError)
            assert "cluster" in str(follower.error)
        assert followed.followers[0].revision == last, "nothing of the other one was delivered"


async def test_w19_txns_in_cuts(
    proxy: FaultProxy, client: Client, direct: Client, rng: random.Random
) -> None:
    """Each txn of a hundred keys is one batch, in the order of its operations, cut or not."""
    orders: dict[int, list[bytes]] = {}
    async with client.watch("w19/", prefix=True) as watch, anyio.create_task_group() as group:

        async def write() -> None:
            for _ in range(100):
                keys = [b"w19/%d" % n for n in range(100)]
                rng.shuffle(keys)
                done = await direct.kv.txn(success=[Op.put(key, bytes(100)) for key in keys])
                orders[done.header.revision] = keys

        async def cut() -> None:
            for _ in range(8):  # the 100 txns are some 1.5 MB
                await proxy.cut_after(rng.randrange(150_000)).wait()

        group.start_soon(cut)
        group.start_soon(write)
        got: dict[int, list[bytes]] = {}
        with anyio.fail_after(20):
            async for batch in watch.batches():
                whole: dict[int, list[bytes]] = {}
                for event in batch.events:
                    whole.setdefault(event.mod_revision, []).append(event.kv.key)
                assert not whole.keys() & got.keys()
                assert {len(keys) for keys in whole.values()} == {100}
                got |= whole
                if len(got) == 100:
                    break
        group.cancel_scope.cancel()
    assert got == orders
    assert proxy.cuts > 3


async def test_w20_a_member_comes_back_by_a_snapshot(rng: random.Random) -> None:
    """A member that replaces its data under its watches makes them neither repeat nor skip."""
    args = [*CALM, "--snapshot-count=100"]
    if EtcdServer().version_info >= (3, 6):
        args.append("--snapshot-catchup-entries=100")
        writes = 600
    else:
        writes = 5600  # it keeps 5000 entries for those that lag
    async with EtcdCluster(args=args) as cluster, following() as followed:
        leader = cluster.members.index(await cluster.leader())
        behind = (leader + 1) % 3
        async with (
            Client(cluster.endpoints[behind]) as client,
            Client(cluster.direct_endpoints[leader]) as direct,
        ):
            # Those that want no leader stay with their member.
            await followed.add_all_kinds(client, "w20/", start_revision=1, require_leader=False)
            traffic = Traffic(direct, followed.recorder, "w20/", rng)
            for _ in range(20):
                await traffic.write()
            await followed.wait_for(await traffic.last_word())
            await cluster.isolate(behind)

            async def write() -> None:
                for _ in range(writes // 40):
                    await traffic.write()

            async with anyio.create_task_group() as group:
                for _ in range(40):
                    group.start_soon(write)
            await cluster.rejoin(behind)
            async with written(traffic, 100):
                await until_snapshot(cluster.members[behind])
            last = await traffic.last_word()
            await followed.wait_for(last)
            await followed.check(store=direct, start_revision=1, through=last)
            assert traffic.failures == 0
            assert client.stats().reconnects == 0


async def until_snapshot(member: EtcdServer) -> None:
    """Wait until a member has taken another's data."""
    with anyio.fail_after(15):
        while True:
            metrics = await member.metrics()
            if any(
                count
                for name, count in metrics.items()
                if name.startswith("etcd_network_snapshot_receive_success")
            ):
                return
            await anyio.sleep(0.02)


# --- P1, P4, P5: the program itself -------------------------------------------------------------


async def test_p1_a_blocked_loop(direct: Client, server: EtcdServer) -> None:
    """A program that blocks its event loop for long loses neither the watch nor an event."""
    told: list[int] = []

    def write_from_outside() -> None:
        key = base64.b64encode(b"p1").decode()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for _ in range(20):
            request = json.dumps({"key": key, "value": key}).encode()
            with opener.open(f"{server.client_url}/v3/kv/put", request, timeout=5) as answer:
                told.append(int(json.load(answer)["header"]["revision"]))

    async with Client(server.endpoint, **KEEPALIVE) as client, client.watch("p1") as watch:
        writer = threading.Thread(target=write_from_outside)
        writer.start()
        time.sleep(15 if LONG else 7)  # noqa: ASYNC251 - longer than all of the keepalive together
        writer.join()
        assert revisions(await take(watch, 20)) == told
        last = await put(direct, "p1", "last")
        assert revisions(await take(watch, 1)) == [last]
        assert client.stats().reconnects == 0


FAULTS = [
    "nothing",
    "refused",
    "hanging",
    "answers swallowed",
    "requests swallowed",
    "held in a fragment",
    "paused",
    "killed",
]


@pytest.mark.parametrize("fault", FAULTS)
async def test_p4_closing_the_client_in_a_fault(own_server: EtcdServer, fault: str) -> None:
    """Closing takes no longer than two seconds, and ends every loop with the reason."""
    async with FaultProxy(own_server.endpoint) as proxy:
        client = Client(proxy.endpoint)
        async with following() as followed, Client(own_server.endpoint) as direct:
            value = "v" * 1_000_000
            for number in range(4):
                last = await put(direct, f"p4/{number}", value)
            await followed.add_all_kinds(client, "p4/")
            full = client.watch("p4/", prefix=True, start_revision=1)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(_state, "INBOX_BYTES", 1)
                await full.__aenter__()
                await until(lambda: bool(full._state.inbox))
                await put(direct, "p4/0", "x")
                await until(lambda: client.stats().paused_watches == 1)
            match fault:
                case "refused":
                    proxy.refuse()
                    proxy.cut()
                    await until(lambda: client.stats().reconnects == 1)
                case "hanging":
                    proxy.hang()
                case "answers swallowed":
                    proxy.blackhole(client_to_server=False)
                case "requests swallowed":
                    proxy.blackhole(server_to_client=False)
                case "held in a fragment":
                    held = proxy.hold_after(1_500_000)
                    await followed.add(client, "p4/", name="held", prefix=True, start_revision=1)
                    await held.wait()
                case "paused":
                    await own_server.pause()
                case "killed":
                    await own_server.kill()
            coming = asyncio.create_task(enter(client.watch("p4/coming", timeout=None)))
            calling = asyncio.create_task(put(client, "p4/call", "x"))
            await asyncio.sleep(0)
            with takes_at_most(2):
                await client.aclose()
                for follower in followed.followers:
                    await until(lambda: follower.has_ended)  # noqa: B023
                    assert isinstance(follower.error, ClientClosedError)
                for task in (coming, calling):
                    with pytest.raises(ClientClosedError):
                        await task
            with pytest.raises(ClientClosedError):
                await take(full, 1)
            assert client.stats().watches == 0
            if own_server.is_paused:
                await own_server.resume()
            await proxy.heal()
        assert last


async def test_p5_an_error_in_a_consumer(
    client: Client, direct: Client, server: EtcdServer
) -> None:
    """A consumer's own error ends its watch, leaves as itself, and disturbs no other watch."""
    async with following() as followed:
        await followed.add_all_kinds(client, "p5/")

        async def fail(watch: Watch) -> None:
            async for event in watch:
                raise ZeroDivisionError(event.kv.key)

        async def fail_in_a_block() -> None:
            async with client.watch("p5/1") as watch:
                await fail(watch)

        bare = asyncio.create_task(fail(client.watch("p5/1")))
        block = asyncio.create_task(fail_in_a_block())
        await until_metric(server, WATCHERS, 7)
        traffic = Traffic(direct, followed.recorder, "p5/", random.Random(5))
        start = await put(direct, "p5/1", "x") + 1
        for task in (bare, block):
            with pytest.raises(ZeroDivisionError, match="p5/1"):
                await task
        await until_metric(server, WATCHERS, 5)
        last = await traffic.last_word()
        await followed.wait_for(last)
        await followed.check(store=direct, start_revision=start - 1, through=last)
        assert client.stats().reconnects == 0
