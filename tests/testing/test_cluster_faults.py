"""Faults of EtcdCluster are what they say, prove themselves, and do not mix with those by hand."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator

import pytest

from aioetcd.testing import EtcdCluster, EtcdServer
from tests.waiting import until, until_elected

pytestmark = pytest.mark.own_logic("who is cut off from whom")


@pytest.fixture
async def cluster() -> AsyncIterator[EtcdCluster]:
    async with EtcdCluster() as cluster:
        yield cluster


@pytest.fixture
async def calm_cluster() -> AsyncIterator[EtcdCluster]:
    """A cluster in which nobody is elected unasked, busy as the machine may be."""
    async with EtcdCluster(quick=False) as cluster:
        yield cluster


def _others(cluster: EtcdCluster, member: EtcdServer) -> list[EtcdServer]:
    return [other for other in cluster.members if other is not member]


# -- who leads -------------------------------------------------------------------------------


@pytest.mark.fault("the others take their time to miss their leader")
async def test_an_isolated_leader_is_not_the_leader(cluster: EtcdCluster) -> None:
    """The leader can be isolated by that name, and is not given from then on."""
    old = await cluster.leader()
    cut = await cluster.isolate("leader")
    assert cut.groups[0] == (cut.member,)
    assert set(cut.groups[1]) == set(_others(cluster, cut.member))
    new = await cluster.leader()
    assert new is not cut.member
    assert cut.bytes_swallowed > 0
    await cluster.rejoin(cut.member)
    await cluster.wait_healthy()
    assert old in cluster.members


async def test_an_isolated_member_is_no_target(cluster: EtcdCluster) -> None:
    """The lead is not moved to a member that nobody hears, nor is anything asked for that."""
    for isolated in (await cluster.leader(), _others(cluster, await cluster.leader())[0]):
        await cluster.isolate(isolated)
        with pytest.raises(RuntimeError, match=f"{isolated.name} is cut off"):
            await cluster.move_leader(isolated)
        await cluster.rejoin(isolated)
        await cluster.wait_healthy()


async def test_a_member_cut_off_by_hand_is_no_target(calm_cluster: EtcdCluster) -> None:
    """Neither is one that the leader does not reach by faults that the proxies were told."""
    cluster = calm_cluster
    leader = await cluster.leader()
    target, other = _others(cluster, leader)
    for pair in ((leader, target), (target, leader)):
        cluster.peer_proxy(*pair).blackhole()
    # It reaches a majority, and has to be elected by the one that still hears both.
    if await cluster.leader() is leader:
        with pytest.raises(RuntimeError, match=f"{target.name} is cut off from {leader.name}"):
            await cluster.move_leader(target)
    for pair in ((other, target), (target, other)):
        cluster.peer_proxy(*pair).hang()
    with pytest.raises(RuntimeError, match=f"{target.name} is cut off from a majority"):
        await cluster.move_leader(target)


@pytest.mark.fault("members that take their time to miss one another, and to elect at first")
async def test_a_cluster_with_one_cut_off_is_not_healthy() -> None:
    """Not even before the members have missed one another."""
    async with EtcdCluster(quick=False) as cluster:
        await cluster.isolate(_others(cluster, await cluster.leader())[0])
        with pytest.raises(TimeoutError, match="not all members are healthy"):
            await cluster.wait_healthy(timeout=0.9)


# -- who is meant ----------------------------------------------------------------------------


async def test_a_member_that_there_is_not_is_refused(cluster: EtcdCluster) -> None:
    """An index out of range and a stranger are refused by name, and nothing is cut."""
    stranger = EtcdServer()
    for wrong in (-1, 3):
        for use in (cluster.isolate, cluster.rejoin, cluster.move_leader):
            with pytest.raises(IndexError, match=f"no member {wrong}: they are 0 to 2"):
                await use(wrong)
        with pytest.raises(IndexError, match=f"no member {wrong}"):
            cluster.peer_proxy(0, wrong)
    with pytest.raises(ValueError, match="no member of this cluster"):
        await cluster.isolate(stranger)
    with pytest.raises(TypeError, match="an index or an EtcdServer"):
        await cluster.isolate(True)
    assert not any(_is_severed(cluster, *pair) for pair in cluster._pairs)
    await stranger.aclose()


async def test_nothing_is_cut_where_there_is_nothing() -> None:
    """A cluster that is not open, or of one, does not pretend that a member was cut off."""
    async with EtcdCluster(1) as single:
        with pytest.raises(ValueError, match="no others"):
            await single.isolate(0)
    for cluster in (single, EtcdCluster()):
        with pytest.raises(RuntimeError, match="not open"):
            await cluster.isolate(0)
        with pytest.raises(RuntimeError, match="not open"):
            await cluster.partition([0], [1, 2])
        with pytest.raises(RuntimeError, match="not open"):
            cluster.peer_proxy(0, 0)


@pytest.mark.parametrize(
    "groups", [[[0, 1, 2]], [[0, 1]], [[0], [1]], [[0, 1], [1, 2]], [[0, 1, 2], []]]
)
async def test_a_partition_names_each_member_once(
    cluster: EtcdCluster, groups: list[list[int]]
) -> None:
    """A partition that leaves out a member, names one twice or divides nothing is refused."""
    with pytest.raises(ValueError, match="each of the members 0 to 2"):
        await cluster.partition(*groups)
    assert not any(_is_severed(cluster, *pair) for pair in cluster._pairs)


def _is_severed(cluster: EtcdCluster, source: int, target: int) -> bool:
    return bool(cluster.peer_proxy(source, target)._link.swallowed)


def _severed(cluster: EtcdCluster) -> set[tuple[int, int]]:
    return {pair for pair in cluster._pairs if _is_severed(cluster, *pair)}


# -- partitions ------------------------------------------------------------------------------


@pytest.mark.fault("the majority may have to elect")
async def test_a_partition_divides(cluster: EtcdCluster) -> None:
    """The larger side goes on by itself, the smaller has no leader; another takes its place."""
    cut = await cluster.partition([0, 1], [2])
    assert _severed(cluster) == {(0, 2), (2, 0), (1, 2), (2, 1)}
    assert cut.groups == (tuple(cluster.members[:2]), (cluster.members[2],))

    async def is_alone() -> bool:
        return (await cluster._ask(cluster.members[2])).leader_id == 0

    await until(is_alone)
    assert await cluster.leader() in cluster.members[:2]
    assert cut.bytes_swallowed > 0
    second = await cluster.partition([0], [cluster.members[1], 2])
    ended = cut.bytes_swallowed
    both = [cluster.peer_proxy(0, 2), cluster.peer_proxy(2, 0)]  # the ways that both cut
    before = sum(way.bytes_swallowed for way in both)
    await until(lambda: sum(way.bytes_swallowed for way in both) > before)
    assert second.bytes_swallowed > 0
    assert cut.bytes_swallowed == ended
    assert _severed(cluster) == {(0, 2), (2, 0), (0, 1), (1, 0)}
    assert await cluster.leader() in cluster.members[1:]
    await cluster.rejoin()
    assert _severed(cluster) == set()
    await cluster.wait_healthy()


async def test_partition_and_isolation_end_apart(cluster: EtcdCluster) -> None:
    """A member that rejoins reaches all that are not isolated themselves."""
    await cluster.partition([0], [1, 2])
    await cluster.isolate(1)
    await cluster.rejoin(0)
    assert _severed(cluster) == {(0, 1), (1, 0), (1, 2), (2, 1)}
    await cluster.rejoin(1)
    assert _severed(cluster) == set()


# -- the proof -------------------------------------------------------------------------------


async def test_an_isolation_counts_what_it_swallowed(cluster: EtcdCluster) -> None:
    """It begins at 0, counts the ways of its own member only, and stands still at its end."""
    leader = await cluster.leader()
    one, other = _others(cluster, leader)
    first = await cluster.isolate(one)
    assert await cluster.isolate(one) is first
    await until(lambda: first.bytes_swallowed > 0)
    ways = [cluster.peer_proxy(*pair) for x in (leader, other) for pair in ((one, x), (x, one))]
    assert first.bytes_swallowed == sum(way.bytes_swallowed for way in ways)
    await cluster.rejoin(one)
    ended = first.bytes_swallowed
    second = await cluster.isolate(one)
    assert second.bytes_swallowed == 0
    await until(lambda: second.bytes_swallowed > 0)
    assert first.bytes_swallowed == ended > 0


# -- faults by hand --------------------------------------------------------------------------


async def test_faults_by_hand_are_kept(cluster: EtcdCluster) -> None:
    """What a proxy between members was told outlives isolations, of its members and others."""
    proxy = cluster.peer_proxy(0, 1)
    proxy.blackhole(server_to_client=False)
    told = proxy._link.swallowed
    assert len(told) == 1
    for member in (2, 0):
        await cluster.isolate(member)
        await cluster.rejoin(member)
        assert proxy._link.swallowed == told
    await cluster.isolate(0)
    await proxy.heal()
    assert len(proxy._link.swallowed) == 2  # healing the proxy does not end the isolation
    await cluster.rejoin(0)
    assert not proxy._link.swallowed


# -- one that hangs --------------------------------------------------------------------------


@pytest.mark.fault("a member that hangs, and the others' election")
async def test_a_hung_member_does_not_stall_the_others(cluster: EtcdCluster) -> None:
    """One that was stopped behind our back is asked beside the others, and named."""
    hung = await cluster.leader()
    os.kill(hung.pid, signal.SIGSTOP)
    try:
        await until(hung._running().are_stopped)  # its threads may still answer until then
        await until_elected(cluster, _others(cluster, hung))  # which takes as long as it does
        began = time.monotonic()
        assert await cluster.leader() is not hung
        assert time.monotonic() - began < 4.5  # an unanswered question takes five
        with pytest.raises(TimeoutError) as caught:
            await cluster.wait_healthy(timeout=5)  # long enough to ask twice
        told = str(caught.value)
        assert "not all members are healthy within 5 s" in told
        assert f"{hung.name} " in told.partition(" does not answer; its log ends with:")[0]
        assert "lost the TCP streaming connection" in told or "{" in told
        assert told.count(" in term ") == 2, "the others have answered"
    finally:
        os.kill(hung.pid, signal.SIGCONT)
    await cluster.wait_healthy()


async def test_no_leader_is_told_of_each_member(cluster: EtcdCluster) -> None:
    """Who waits in vain learns what each member said."""
    for member in cluster.members[1:]:
        await member.kill()
    with pytest.raises(TimeoutError, match="no leader that a majority follows") as caught:
        await cluster.leader(timeout=0.3)
    for member in cluster.members:
        assert member.name in str(caught.value)
    assert str(caught.value).count("stopped") == 2


# -- what it costs ---------------------------------------------------------------------------


@pytest.mark.alone("counts CPU time")
async def test_a_dead_member_costs_its_peers_dials(cluster: EtcdCluster) -> None:
    """They dial it again and again; who asks whose dial each one is does nothing else meanwhile."""
    await cluster.members[0].kill()
    dead = [cluster.peer_proxy(source, 0) for source in (1, 2)]
    dialled = [proxy.connections_total for proxy in dead]
    began, used = time.monotonic(), time.process_time()
    await until(
        lambda: all(
            proxy.connections_total > before + 20
            for proxy, before in zip(dead, dialled, strict=True)
        )
    )
    assert time.process_time() - used < 0.1 * (time.monotonic() - began)
