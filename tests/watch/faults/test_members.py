"""Watches of members that die, stop, fall silent, lose the others or lag (W8-W12, W20)."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator
from itertools import pairwise

import anyio
import pytest

from aioetcd import Client
from aioetcd.testing import EtcdCluster, EtcdServer, FaultProxy, Recorder
from aioetcd.testing.history import Delivery
from tests.harness import writes_through
from tests.waiting import until
from tests.watch.faults.scenes import KEEPALIVE, now, progress_every
from tests.watch.following import Traffic, following, takes_at_most


@contextlib.asynccontextmanager
async def written(traffic: Traffic, per_second: float, *, writers: int = 2) -> AsyncIterator[None]:
    """Write in the background of the block."""
    async with anyio.create_task_group() as group:
        for _ in range(writers):
            group.start_soon(traffic.run, per_second / writers)
        yield
        group.cancel_scope.cancel()


def stream_at(client: Client, *, require_leader: bool = True) -> str | None:
    """Give the endpoint that a client's watches are at now; None while their stream is lost."""
    connection = client._shared.watches._streams[require_leader][0].shared.connection
    return None if connection is None else connection.endpoint.name


async def used(client: Client, cluster: EtcdCluster, *, require_leader: bool = True) -> int:
    """Give the member that the watches of a client of `cluster.endpoints` are at."""
    with anyio.fail_after(5):  # an election may just have cost them their stream
        while (endpoint := stream_at(client, require_leader=require_leader)) is None:
            await anyio.sleep(0.002)
    return cluster.endpoints.index(endpoint)


async def until_elsewhere(
    client: Client, cluster: EtcdCluster, member: int, *, within: float
) -> None:
    """Wait until the client's watches are at another member."""
    await until(lambda: stream_at(client) not in (None, cluster.endpoints[member]), within=within)


def longest_gap(recorder: Recorder, watch: str) -> float:
    """Give the longest time between two batches of a watch, in seconds."""
    times = [delivery.at_ns for delivery in recorder.of(Delivery) if delivery.watch == watch]
    return max(after - before for before, after in pairwise(times)) / 1e9


@pytest.mark.fault("W8")
async def test_w8_the_server_is_killed(own_server: EtcdServer, rng: random.Random) -> None:
    """A server that crashes and comes back with its data goes on with its watches."""
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
                if writes_through(own_server):
                    await own_server.kill()
            await own_server.kill()
            await own_server.start()
            assert own_server.pid != pid
            last = await traffic.last_word()
            with takes_at_most(10):
                await followed.wait_for(last)
        await followed.check(store=direct, start_revision=1, through=last)
        assert client.stats().reconnects >= 3


@pytest.mark.fault("W8")
async def test_w8_a_member_is_killed(rng: random.Random) -> None:
    """The watches of a member that crashes go on at another one, and so on."""
    async with (
        EtcdCluster(quick=False) as cluster,
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
                member = await used(client, cluster)
                await cluster.members[member].kill()
                await until_elsewhere(client, cluster, member, within=5)
                if comes_back:
                    await cluster.members[member].start()
                    await cluster.wait_healthy()
        last = await traffic.last_word()
        await followed.wait_for(last)
        await followed.check(store=direct, start_revision=1, through=last)
        assert traffic.revision > 20


# How long nothing may be heard with `KEEPALIVE`: two of the seconds are for a busy machine.
KEEPALIVE_GAP = 5 + 1 + 1 + 2


@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
@pytest.mark.fault("W9")
async def test_w9_a_member_stands_still(rng: random.Random, *, busy: bool) -> None:
    """Watches leave a member that is stopped without a word as soon as its pings are missed."""
    async with (
        EtcdCluster(quick=False) as cluster,
        Client(cluster.endpoints, **KEEPALIVE) as client,
        following() as followed,
    ):
        await followed.add_all_kinds(client, "w9/", start_revision=1)
        member = await used(client, cluster)
        others = [m.endpoint for m in cluster.members if m is not cluster.members[member]]
        await cluster.move_leader((member + 1) % 3)  # so that writes go on
        async with Client(others) as direct:
            traffic = Traffic(direct, followed.recorder, "w9/", rng)
            await followed.wait_for(await traffic.last_word())
            async with written(traffic, 50) if busy else contextlib.nullcontext():
                await cluster.members[member].pause()
                paused = anyio.current_time()
                await traffic.last_word()
                await until_elsewhere(client, cluster, member, within=KEEPALIVE_GAP)
                await followed.followers[0].wait_for(traffic.revision)
                gap = longest_gap(followed.recorder, "all")
                await anyio.sleep_until(paused + 15)  # so long it stands still
                assert cluster.members[member].is_paused
                await cluster.members[member].resume()
            last = await traffic.last_word()
            await followed.wait_for(last)
            await followed.check(store=direct, start_revision=1, through=last)
        assert 0.5 < gap < KEEPALIVE_GAP


@pytest.mark.parametrize("swallowed", ["answers", "requests"])
@pytest.mark.fault("W10")
async def test_w10_one_direction_is_swallowed(
    server: EtcdServer, direct: Client, rng: random.Random, swallowed: str
) -> None:
    """Watches leave a connection on which only one direction still works."""
    async with (
        FaultProxy(server.endpoint) as one,
        FaultProxy(server.endpoint) as two,
        Client([one.endpoint, two.endpoint], **KEEPALIVE) as client,
        following() as followed,
    ):
        start = await now(direct) + 1
        await followed.add_all_kinds(client, "w10/")
        proxy, other = (one, two) if stream_at(client) == one.endpoint else (two, one)
        assert stream_at(client) == proxy.endpoint
        traffic = Traffic(direct, followed.recorder, "w10/", rng)
        async with written(traffic, 50):
            await until(lambda: followed.followers[0].revision > start + 10)
            proxy.blackhole(
                client_to_server=swallowed == "requests", server_to_client=swallowed == "answers"
            )
            if swallowed == "answers":
                await until(lambda: stream_at(client) == other.endpoint, within=KEEPALIVE_GAP)
        if swallowed == "requests":
            # While events come the connection looks alive; once they cease it does not.
            last = await traffic.last_word()
            await followed.wait_for(last)
            await until(lambda: stream_at(client) == other.endpoint, within=KEEPALIVE_GAP)
        last = await traffic.last_word()
        await followed.wait_for(last)
        await followed.check(store=direct, start_revision=start, through=last)
        assert proxy.bytes_swallowed > 0
        assert stream_at(client) == other.endpoint
        assert longest_gap(followed.recorder, "all") < KEEPALIVE_GAP
        await proxy.heal()


@pytest.mark.fault("W11")
async def test_w11_a_member_is_cut_off_from_the_others(rng: random.Random) -> None:
    """Watches leave a member that has no leader, with those that do not ask for one."""
    async with (
        EtcdCluster(quick=False) as cluster,
        Client(cluster.endpoints) as client,
        following() as followed,
    ):
        await followed.add_all_kinds(client, "w11/", start_revision=1)
        patient = await followed.add(
            client, "w11/", name="patient", prefix=True, start_revision=1, require_leader=False
        )
        member = await used(client, cluster)
        others = [m.endpoint for m in cluster.members if m is not cluster.members[member]]
        async with Client(others, timeout=2) as direct:
            traffic = Traffic(direct, followed.recorder, "w11/", rng)
            await patient.wait_for(await traffic.last_word())
            await cluster.isolate(member)
            async with written(traffic, 50):
                with takes_at_most(10):  # etcd itself takes three to five to end a stream
                    await until_elsewhere(client, cluster, member, within=15)
            last = await traffic.last_word()
            await followed.wait_for(last)
            await cluster.rejoin(member)
            last = await traffic.last_word()
            await followed.wait_for(last)
            await followed.check(store=direct, start_revision=1, through=last)
        assert client._shared.watches._streams[False][0].shared.reconnects > 0
        assert client._shared.watches._streams[True][0].shared.reconnects > 0


@pytest.mark.fault("W12")
async def test_w12_a_member_that_lags(rng: random.Random) -> None:
    """A watch that resumes at a member behind it neither goes back nor takes that for an error."""
    async with (
        EtcdCluster(args=progress_every("100ms"), quick=False) as cluster,
        following() as followed,
    ):
        leader = cluster.members.index(await cluster.leader())
        two = [cluster.endpoints[(leader + 1) % 3], cluster.endpoints[(leader + 2) % 3]]
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
            ahead = await used(client, cluster, require_leader=False)
            assert await used(client, cluster) == ahead
            (behind,) = {0, 1, 2} - {leader, ahead}
            traffic = Traffic(direct, followed.recorder, "w12/", rng)
            await followed.wait_for(await traffic.last_word())
            await cluster.isolate(behind)
            for _ in range(50):
                await traffic.write()
            last = await traffic.last_word()
            await followed.wait_for(last)
            cluster.client_proxies[ahead].refuse()
            assert cluster.client_proxies[ahead].cut() > 0
            (stream,) = client._shared.watches._streams[False]
            await until(lambda: stream.rules.suspicion is not None)
            assert await used(client, cluster, require_leader=False) == behind
            await cluster.rejoin(behind)
            async with written(traffic, 100):
                await until(lambda: stream.rules.suspicion is None)
            last = await traffic.last_word()
            await followed.wait_for(last)
            await followed.check(store=direct, start_revision=1, through=last)
            assert await used(client, cluster, require_leader=False) == behind
            await cluster.client_proxies[ahead].heal()


@pytest.mark.fault("W20")
async def test_w20_a_member_comes_back_by_a_snapshot(rng: random.Random) -> None:
    """A member that replaces its data under its watches makes them neither repeat nor skip."""
    args = ["--snapshot-count=100"]
    if EtcdServer().version_info >= (3, 6):
        args.append("--snapshot-catchup-entries=100")
        writes = 600
    else:
        writes = 5600  # it keeps 5000 entries for those that lag
    async with EtcdCluster(args=args, quick=False) as cluster, following() as followed:
        leader = cluster.members.index(await cluster.leader())
        behind = (leader + 1) % 3
        async with (
            Client(cluster.endpoints[behind]) as client,
            Client(cluster.direct_endpoints[leader]) as direct,
        ):
            # Those that want no leader stay with their member.
            await followed.add_all_kinds(client, "w20/", start_revision=1, require_leader=False)
            traffic = Traffic(direct, followed.recorder, "w20/", rng)
            async with written(traffic, 100):
                await until(lambda: traffic.revision > 20)
            before = await traffic.last_word()
            await followed.wait_for(before)
            assert await snapshots(cluster.members[behind]) == 0
            await cluster.isolate(behind)
            async with written(traffic, 100_000, writers=40):  # as fast as they can
                await until(lambda: traffic.revision > before + writes, within=40)
            await cluster.rejoin(behind)
            async with written(traffic, 100):
                with anyio.fail_after(15):
                    while await snapshots(cluster.members[behind]) == 0:
                        await anyio.sleep(0.02)
            last = await traffic.last_word()
            await followed.wait_for(last)
            await followed.check(store=direct, start_revision=1, through=last)


async def snapshots(member: EtcdServer) -> float:
    """Give how often a member has taken another's data."""
    name = "etcd_network_snapshot_receive_success"
    return sum(count for key, count in (await member.metrics()).items() if key.startswith(name))
