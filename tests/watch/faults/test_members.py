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
from tests.watch.faults.scenes import CALM, KEEPALIVE, LONG, now, progress_every
from tests.watch.following import Traffic, following, takes_at_most, until


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


# How long nothing may be heard with `KEEPALIVE`: two of the seconds are for a busy machine.
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
