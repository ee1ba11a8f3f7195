"""EtcdCluster: real members that find a leader, lose one another, and leave nothing behind."""

from __future__ import annotations

import base64
import gc
import re
import socket
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from aioetcd.testing import EtcdCluster, EtcdServer, EtcdStartError
from aioetcd.testing._binary import ask
from tests.waiting import until, until_elected

pytestmark = pytest.mark.fault("three members, and their elections")


@pytest.fixture
async def cluster() -> AsyncIterator[EtcdCluster]:
    async with EtcdCluster() as cluster:
        yield cluster


@pytest.fixture
async def calm_cluster() -> AsyncIterator[EtcdCluster]:
    """A cluster in which nobody is elected unasked, busy as the machine may be."""
    async with EtcdCluster(quick=False) as cluster:
        yield cluster


async def _ask(member: EtcdServer, path: str, body: dict[str, object]) -> Any:
    """Call the gateway, and again where an election came in between: it may be repeated."""
    with anyio.fail_after(15):
        while True:
            try:
                return await member.gateway(path, body)
            except (TimeoutError, RuntimeError) as error:
                told = str(error)
                if isinstance(error, RuntimeError) and not re.search("leader|timed out", told):
                    raise
                await anyio.sleep(0.02)


async def _put(member: EtcdServer, key: str, value: str) -> None:
    await _ask(member, "kv/put", {"key": _base64(key), "value": _base64(value)})


async def _value(member: EtcdServer, key: str, *, serializable: bool = False) -> str | None:
    body = {"key": _base64(key), "serializable": serializable}
    kvs = (await _ask(member, "kv/range", body)).get("kvs", [])
    return base64.b64decode(kvs[0]["value"]).decode() if kvs else None


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


async def _leader_id(member: EtcdServer) -> int:
    return int((await member.gateway("maintenance/status")).get("leader", 0))


def _others(cluster: EtcdCluster, member: EtcdServer) -> list[EtcdServer]:
    return [other for other in cluster.members if other is not member]


# -- forming ---------------------------------------------------------------------------------


async def test_members_form_one_cluster(cluster: EtcdCluster) -> None:
    """What is written at one member is read at every other, and all three are members."""
    await _put(cluster.members[0], "k", "v")
    assert [await _value(member, "k") for member in cluster.members] == ["v", "v", "v"]
    listed = (await _ask(cluster.members[1], "cluster/member/list", {}))["members"]
    assert {entry["name"] for entry in listed} == {member.name for member in cluster.members}


@pytest.mark.own_logic("which proxy is before whom is decided here")
async def test_endpoints_lead_to_the_members_in_order(cluster: EtcdCluster) -> None:
    """Each endpoint is a proxy in front of the member of the same index."""
    assert [proxy.target for proxy in cluster.client_proxies] == cluster.direct_endpoints
    assert cluster.endpoints == [proxy.endpoint for proxy in cluster.client_proxies]
    assert cluster.direct_endpoints == [member.endpoint for member in cluster.members]
    for proxy in cluster.client_proxies:
        host, _, port = proxy.endpoint.partition(":")
        async with await anyio.connect_tcp(host, int(port)) as stream:
            await stream.send(b"GET /version HTTP/1.0\r\n\r\n")
            assert b"etcdserver" in b"".join([chunk async for chunk in stream])
        assert proxy.connections_total == 1


async def test_members_advertise_the_proxies(cluster: EtcdCluster) -> None:
    """A client that follows the member list meets the proxies, and so the faults."""
    listed = (await _ask(cluster.members[0], "cluster/member/list", {}))["members"]
    advertised = {url for entry in listed for url in entry["clientURLs"]}
    assert advertised == {f"http://{endpoint}" for endpoint in cluster.endpoints}


async def test_peers_pass_a_proxy_for_each_pair(cluster: EtcdCluster) -> None:
    """Every member's connections to another go through the proxy of just that pair."""
    for source in range(3):
        for target in range(3):
            used = cluster.peer_proxy(source, target).connections_total
            assert (used > 0) == (source != target), (source, target)


async def test_one_member() -> None:
    """A cluster may be of one, and have arguments of its own."""
    async with EtcdCluster(1, args=["--max-txn-ops=3"]) as cluster:
        assert await cluster.leader() is cluster.members[0]
        await cluster.move_leader(0)
        assert "--max-txn-ops=3" in cluster.members[0].args


@pytest.mark.own_logic("nothing is started")
def test_a_cluster_of_none_is_refused() -> None:
    """A size below one is an error before anything starts."""
    with pytest.raises(ValueError, match="size"):
        EtcdCluster(0)


@pytest.mark.own_logic("what becomes of the others is decided here")
async def test_a_member_that_cannot_start_fails_the_cluster() -> None:
    """The error of the member that failed comes out as it is, and the others are gone."""
    cluster = EtcdCluster(args=["--no-such-flag"])
    with pytest.raises(EtcdStartError, match="no-such-flag"):
        async with cluster:
            raise AssertionError("it cannot have started")
    assert not any(member.is_running for member in cluster.members)


@pytest.mark.own_logic("what becomes of the others is decided here")
async def test_whatever_stops_a_start_comes_out_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No group of errors, where a member fails by something else than etcd's end."""
    cluster = EtcdCluster()
    await ask(cluster.members[0].binary, "--help")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError, match="absent"):
        async with cluster:
            raise AssertionError("it cannot have started")


@pytest.mark.own_logic("ports are picked here")
async def test_ports_that_were_taken_meanwhile_are_replaced() -> None:
    """Where somebody took a member's port after it was picked, the cluster takes others."""
    cluster = EtcdCluster(1)
    taken = cluster.members[0].endpoint
    host, _, port = taken.partition(":")
    with socket.create_server((host, int(port))):
        async with cluster:
            assert cluster.direct_endpoints != [taken]
            assert await cluster.leader() is cluster.members[0]


# -- the leader ------------------------------------------------------------------------------


async def test_move_leader(calm_cluster: EtcdCluster) -> None:
    """The member asked for leads, and a majority follows it."""
    old = await calm_cluster.leader()
    for target in _others(calm_cluster, old):
        await calm_cluster.move_leader(target)
        assert await calm_cluster.leader() is target
    await calm_cluster.move_leader(calm_cluster.members.index(old))
    assert await calm_cluster.leader() is old


async def test_killing_the_leader_elects_another(calm_cluster: EtcdCluster) -> None:
    """Two of three elect a new leader and take writes; the old one comes back as a follower."""
    old = await calm_cluster.leader()
    await old.kill()
    new = await calm_cluster.leader()
    assert new is not old
    await _put(new, "k", "while it was away")
    await old.start()
    await calm_cluster.wait_healthy()
    assert await _value(old, "k") == "while it was away"


async def test_a_paused_leader_is_replaced(cluster: EtcdCluster) -> None:
    """A leader that is stopped does not count, and no question waits for its answer."""
    old = await cluster.leader()
    await old.pause()
    await until_elected(cluster, _others(cluster, old))  # which takes as long as it does
    began = time.monotonic()
    assert await cluster.leader() is not old
    assert time.monotonic() - began < 5
    await old.resume()
    await cluster.wait_healthy()


async def test_no_leader_without_a_majority(cluster: EtcdCluster) -> None:
    """Where most members are gone nobody leads, and waiting for one ends by its timeout."""
    for member in cluster.members[1:]:
        await member.kill()
    with pytest.raises(TimeoutError):
        await cluster.leader(timeout=1)
    with pytest.raises(TimeoutError):
        await cluster.wait_healthy(timeout=0.2)


# -- partitions ------------------------------------------------------------------------------


@pytest.mark.parametrize("leads", [True, False], ids=["leader", "follower"])
@pytest.mark.fault("members take their time to miss one another")
async def test_isolate_and_rejoin(calm_cluster: EtcdCluster, leads: bool) -> None:
    """A member cut off has no leader and takes no write, the others go on, and it heals."""
    cluster = calm_cluster
    await _put(cluster.members[0], "k", "before")
    leader = await cluster.leader()
    cut_off = leader if leads else _others(cluster, leader)[0]

    async def has_it() -> bool:  # a majority had it when it was written
        return await _value(cut_off, "k", serializable=True) == "before"

    await until(has_it)
    await cluster.isolate(cut_off)

    async def is_alone() -> bool:
        return await _leader_id(cut_off) == 0

    await until(is_alone)
    assert await cluster.leader() is not cut_off
    with pytest.raises(TimeoutError):  # there is no answer: the write waits for a leader
        await cut_off.gateway("kv/put", {"key": _base64("k"), "value": _base64("lost")})
    for member in _others(cluster, cut_off):
        await _put(member, "k", f"at {member.name}")
    assert await _value(cut_off, "k", serializable=True) == "before"
    swallowed = [
        cluster.peer_proxy(*pair).bytes_swallowed
        for other in _others(cluster, cut_off)
        for pair in ((cut_off, other), (other, cut_off))
    ]
    assert all(swallowed), swallowed

    await cluster.rejoin(cut_off)
    await cluster.wait_healthy()
    assert await _value(cut_off, "k") == f"at {_others(cluster, cut_off)[-1].name}"


@pytest.mark.fault("a member waits for the others in vain")
async def test_a_member_restarted_while_isolated_stays_isolated(cluster: EtcdCluster) -> None:
    """New connections of a new process are cut off as the old ones were."""
    follower = _others(cluster, await cluster.leader())[0]
    await cluster.isolate(follower)
    await follower.kill()
    with pytest.raises(EtcdStartError, match="not healthy"):
        await follower.start(timeout=3)
    await cluster.rejoin(follower)
    await follower.start()
    await cluster.wait_healthy()


async def test_isolating_two_leaves_no_majority(cluster: EtcdCluster) -> None:
    """One of two that were cut off is not back before the other, as far as the two see."""
    await cluster.isolate(0)
    await cluster.isolate(1)

    async def nobody_leads() -> bool:
        return not any([await _leader_id(member) for member in cluster.members])

    await until(nobody_leads)
    await cluster.rejoin(0)
    assert await cluster.leader() is not cluster.members[1]
    assert await _leader_id(cluster.members[1]) == 0
    await cluster.rejoin(1)
    await cluster.wait_healthy()


@pytest.mark.own_logic("who dials is found out from the kernel")
async def test_strangers_do_not_get_through(cluster: EtcdCluster) -> None:
    """A connection to a peer URL from outside of the cluster is reset: no pair is its own."""
    url = next(
        arg.partition("=")[2]
        for arg in cluster.members[0].args
        if arg.startswith("--initial-advertise-peer-urls=")
    )
    host, _, port = url.partition("://")[2].partition(":")
    async with await anyio.connect_tcp(host, int(port)) as stream:
        with pytest.raises(anyio.BrokenResourceError):
            await stream.receive()


@pytest.mark.own_logic("chance is drawn in the proxies")
async def test_a_seed_decides_the_jitter() -> None:
    """With the same seed all proxies of two clusters draw the same delays, each its own."""
    drawn = []
    for _ in range(2):
        async with EtcdCluster(1, seed=7) as cluster:
            proxies = [*cluster.client_proxies, cluster.peer_proxy(0, 0)]
            drawn.append([proxy._link.random.random() for proxy in proxies])
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 2


# -- the end ---------------------------------------------------------------------------------


@pytest.mark.fault("starts two clusters")
async def test_nothing_is_left(cluster: EtcdCluster) -> None:
    """After the block there is no process, no data, no listening port and no open socket."""
    async with EtcdCluster() as other:
        ports = [endpoint.rpartition(":")[2] for endpoint in other.endpoints]
        folders = [member.data_dir for member in other.members]
        await other.members[0].kill()
        await other.members[1].pause()
        await other.isolate(2)
        assert all(folder.is_dir() for folder in folders)
    assert not any(member.is_running for member in other.members)
    assert not any(folder.exists() for folder in folders)
    assert other.client_proxies == []
    for port in ports:
        with pytest.raises(OSError, match="connect"):
            await anyio.connect_tcp("127.0.0.1", int(port))
    gc.collect()  # an open socket would warn here, which is an error
    assert all(Path(member.log_path).exists() for member in cluster.members)


@pytest.mark.own_logic("how the block is left")
async def test_an_exception_in_the_block_closes_too() -> None:
    """An exception in the block passes, and everything is closed."""
    cluster = EtcdCluster(1)

    async def fail() -> None:
        async with cluster:
            assert cluster.members[0].is_running
            raise LookupError

    with pytest.raises(LookupError):
        await fail()
    assert not cluster.members[0].is_running
