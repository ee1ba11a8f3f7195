"""EtcdCluster's members come and go, and what remains is a cluster with all its proxies."""

from __future__ import annotations

import base64
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from aioetcd import Client
from aioetcd.testing import EtcdCluster, EtcdServer
from aioetcd.testing._membership import initial_cluster
from aioetcd.testing._sockets import host_and_port
from tests.waiting import until

pytestmark = [
    pytest.mark.fault("members that start, and elections"),
    pytest.mark.timeout(120),
]


@pytest.fixture
async def cluster() -> AsyncIterator[EtcdCluster]:
    """It takes a change at once, whoever is connected since when, and elects nobody unasked."""
    args = ["--strict-reconfig-check=false"]
    async with EtcdCluster(args=args, quick=False) as cluster:
        yield cluster


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


async def put(cluster: EtcdCluster, key: str) -> None:
    """Write at the leader, and again where an election came in between."""
    with anyio.fail_after(40):
        while True:
            leader = await cluster.leader(timeout=40)
            with contextlib.suppress(OSError, RuntimeError):
                await leader.gateway("kv/put", {"key": encoded(key)})
                return


async def has(member: EtcdServer, key: str) -> bool:
    """Whether the member itself has it, whoever leads."""
    body = {"key": encoded(key), "serializable": True}
    return "kvs" in await member.gateway("kv/range", body)


async def listed(member: EtcdServer) -> dict[str, dict[str, Any]]:
    """What a member says of who is one, by name."""
    entries = (await member.gateway("cluster/member/list"))["members"]
    return {entry["name"]: entry for entry in entries}


# -- coming ----------------------------------------------------------------------------------


async def test_a_member_is_added(cluster: EtcdCluster) -> None:
    """It has what the others have, counts as one, and its client proxy is among the endpoints."""
    await put(cluster, "before")
    added = await cluster.add()
    assert cluster.members[3] is added
    await cluster.wait_healthy()
    assert await has(added, "before")
    entries = await listed(added)
    assert entries.keys() == {member.name for member in cluster.members}
    assert entries[added.name]["clientURLs"] == [f"http://{cluster.endpoints[3]}"]
    assert "isLearner" not in entries[added.name]
    assert cluster.client_proxies[3].target == added.endpoint
    async with Client(cluster.endpoints[3]) as client:
        await client.kv.put("after", "v", timeout=20)
    assert cluster.client_proxies[3].connections_total > 0
    await cluster.move_leader(added)
    assert await cluster.leader() is added


async def test_it_counts_for_the_majority(cluster: EtcdCluster) -> None:
    """Of four members, three are a majority and two are none."""
    await cluster.add()
    await cluster.move_leader(3)
    await cluster.members[0].kill()
    await put(cluster, "three")
    await cluster.members[1].kill()
    with pytest.raises(TimeoutError, match="no leader that a majority follows within 1 s"):
        await cluster.leader(timeout=1)


async def test_an_added_member_is_isolated(cluster: EtcdCluster) -> None:
    """Its proxies are as the others': it is cut off, hears nothing, and comes back."""
    added = await cluster.add()
    for other in range(3):
        assert cluster.peer_proxy(other, added).connections_total > 0
        assert cluster.peer_proxy(added, other).connections_total > 0
    await cluster.move_leader(0)
    cut = await cluster.isolate(added)
    await until(lambda: cut.bytes_swallowed > 0)
    await put(cluster, "apart")
    assert not await has(added, "apart")
    await cluster.rejoin(added)
    await cluster.wait_healthy()
    await until(lambda: has(added, "apart"))


async def test_a_learner_is_promoted(cluster: EtcdCluster) -> None:
    """A learner has everything and no vote; promoted, it may lead."""
    await put(cluster, "before")
    learner = await cluster.add(learner=True)
    await cluster.wait_healthy()
    assert await has(learner, "before")
    assert (await listed(cluster.members[0]))[learner.name]["isLearner"] is True
    with pytest.raises(RuntimeError, match="is a learner: it cannot lead"):
        await cluster.move_leader(learner)
    with pytest.raises(RuntimeError, match="rpc not supported for learner"):
        await learner.gateway("kv/put", {"key": encoded("k")})
    await cluster.promote(3)
    assert "isLearner" not in (await listed(await cluster.leader()))[learner.name]
    await cluster.move_leader(learner)
    assert await cluster.leader() is learner


async def test_a_learner_has_no_vote(cluster: EtcdCluster) -> None:
    """Two voters of three are a majority with a learner, and one voter with it is none."""
    learner = await cluster.add(learner=True)
    await cluster.members[0].kill()
    assert await cluster.leader(timeout=40) is not learner
    await cluster.members[1].kill()
    with pytest.raises(TimeoutError, match="no leader that a majority follows"):
        await cluster.leader(timeout=1)


async def test_with_tls_and_auth() -> None:
    """A member that is added serves what the others serve, to whom they serve it."""
    async with EtcdCluster(1, tls=True, auth=("root", "pw")) as cluster:
        learner = await cluster.add(learner=True)
        await cluster.wait_healthy()
        await cluster.promote(learner)
        await cluster.wait_healthy()
        assert (await learner.gateway("auth/user/list"))["users"] == ["root"]
        async with Client(
            cluster.endpoints[1], tls=cluster.tls, username="root", password="pw"
        ) as client:
            await client.kv.put("k", "v", timeout=20)


# -- going -----------------------------------------------------------------------------------


async def test_the_leader_is_removed(cluster: EtcdCluster) -> None:
    """Its process, its data and its endpoint are gone, the others lead on, and indexes move up."""
    await put(cluster, "before")
    await cluster.move_leader(0)
    gone, *rest = cluster.members
    data, endpoint = gone.data_dir, cluster.endpoints[0]
    await cluster.remove(0)
    assert cluster.members == rest
    assert not gone.is_running
    assert not data.exists()
    assert endpoint not in cluster.endpoints
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(host_and_port(endpoint))  # nobody is given its port
    assert [proxy.target for proxy in cluster.client_proxies] == cluster.direct_endpoints
    assert (await listed(await cluster.leader())).keys() == {member.name for member in rest}
    await cluster.wait_healthy()
    await put(cluster, "after")
    for wrong in (gone, EtcdServer()):
        with pytest.raises(ValueError, match="no member of this cluster"):
            await cluster.remove(wrong)
    with pytest.raises(IndexError, match="no member 2: they are 0 to 1"):
        await cluster.remove(2)


async def test_a_separation_outlives_a_removal(cluster: EtcdCluster) -> None:
    """Who is isolated stays so when others get other indexes, and so do the other pairs."""
    await cluster.add()
    _, second, third, fourth = cluster.members
    pair = cluster.peer_proxy(second, fourth)
    await cluster.move_leader(second)
    cut = await cluster.isolate(third)
    await cluster.remove(0)
    assert cluster.peer_proxy(0, 2) is pair
    assert cut.member is third
    await put(cluster, "apart")
    assert not await has(third, "apart")
    with pytest.raises(ValueError, match="members 0 to 2"):
        await cluster.partition([0], [1])
    await cluster.rejoin(1)
    await cluster.wait_healthy()
    await until(lambda: has(third, "apart"))


async def test_a_dead_member_is_replaced(cluster: EtcdCluster) -> None:
    """In its place there is one that has got everything from the others, and no data of before."""
    await put(cluster, "before")
    dead, endpoint = cluster.members[1], cluster.endpoints[1]
    await cluster.move_leader(2)
    await dead.kill()
    fresh = await cluster.replace(1)
    assert cluster._wiring._former == [], "a port is kept that nobody could be given any more"
    assert cluster.members[1] is fresh
    assert fresh is not dead
    assert cluster.client_proxies[1].target == fresh.endpoint
    assert endpoint not in cluster.endpoints
    await cluster.wait_healthy()
    assert await has(fresh, "before")
    entries = await listed(fresh)
    assert entries.keys() == {member.name for member in cluster.members}
    assert dead.name not in entries
    assert cluster.peer_proxy(1, 2).connections_total > 0


async def test_all_members_are_restarted(cluster: EtcdCluster) -> None:
    """Each is another process at the same endpoint, and never two of them are down."""
    await put(cluster, "before")
    pids = [member.pid for member in cluster.members]
    endpoints = cluster.endpoints
    await cluster.roll()
    assert not {member.pid for member in cluster.members} & set(pids)
    assert cluster.endpoints == endpoints
    assert all([await has(member, "before") for member in cluster.members])


# -- refused ---------------------------------------------------------------------------------


async def test_etcd_is_asked_until_it_takes_the_change() -> None:
    """A member that is down or new keeps etcd from adding one: it is waited for, and told."""
    async with EtcdCluster() as cluster:
        members = list(cluster.members)
        await members[2].kill()
        with pytest.raises(TimeoutError, match=r"add: not within 2 s; at last: .*unhealthy"):
            await cluster.add(timeout=2)
        assert cluster.members == members
        assert len(cluster.endpoints) == 3
        await members[2].start()
        await cluster.wait_healthy()
        added = await cluster.add()
        assert (await listed(added)).keys() == {member.name for member in cluster.members}


async def test_nobody_to_ask() -> None:
    """A change needs another member that runs; the only one is not removed at all."""
    async with EtcdCluster(1) as cluster:
        with pytest.raises(ValueError, match="the only one with a vote"):
            await cluster.remove(0)
        with pytest.raises(ValueError, match="is no learner"):
            await cluster.promote(0)
        await cluster.members[0].kill()
        with pytest.raises(TimeoutError, match=r"within 0\.3 s; at last: no member runs"):
            await cluster.add(timeout=0.3)
        assert len(cluster.members) == 1
    for change in (cluster.add, lambda: cluster.remove(0), lambda: cluster.replace(0)):
        with pytest.raises(RuntimeError, match="not open"):
            await change()


def test_a_member_that_never_started_has_no_name() -> None:
    """What a new member is told of the others has a name for each, its own for itself."""
    entries = [
        {"ID": "7", "name": "member0", "peerURLs": ["http://a", "http://b"]},
        {"ID": "8", "peerURLs": ["http://c"]},
        {"ID": "9", "peerURLs": ["http://d"]},
    ]
    assert initial_cluster(entries, "http://d", "new") == (
        "member0=http://a,member0=http://b,id8=http://c,new=http://d"
    )
