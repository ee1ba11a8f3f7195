"""Leases in outages: none is lost needlessly, and a loss is told before the store shows it.

Each test proves that its fault happened. The ids in the names are for finding a case again.
"""

from __future__ import annotations

import random
import time
from contextlib import AsyncExitStack

import anyio
import pytest

from aioetcd import (
    Client,
    LeaseExpiredError,
    LeaseLostError,
    Session,
)
from aioetcd.testing import EtcdCluster, EtcdServer
from aioetcd.testing.history import LeaseSignal
from tests.harness import Faulty, faulty_client
from tests.lease.signals import SECOND, LeaseWitness, kept_lease, wait_renewed_for, witnessed
from tests.waiting import until

# A network's, one way: a renewal reaches the server so much later than it was sent, which is what
# counts. It is the margin in which the owner must be told, and the store be looked at.
LATENCY = 0.4


async def until_surely_renewed(
    witness: LeaseWitness, oracle: Client, lease_id: int, ttl: int
) -> None:
    """Wait until the server has given a lease its time again because the client asked for it.

    A server that starts or comes to lead gives each lease its full time, once: some seconds later,
    only a renewal has.
    """
    await wait_renewed_for(witness, lease_id, 4)
    assert (await oracle.lease.time_to_live(lease_id)).ttl > ttl - 4
    assert (await oracle.kv.get(f"lease/{lease_id}")).kv is not None


# -- shorter than the lease ------------------------------------------------------------------


@pytest.mark.fault("L1")
async def test_l1_cuts(faulty: Faulty) -> None:
    """Resets again and again, none of them for longer than the lease lives, lose nothing."""
    async with (
        witnessed(faulty.client, faulty.oracle) as witness,
        kept_lease(witness, faulty.client, 3) as (lease_id, _),
    ):
        await witness.wait_answered(lease_id, since_ns=0)
        for _ in range(6):
            since_ns = time.monotonic_ns()
            assert faulty.proxy.cut() >= 1
            await witness.wait_answered(lease_id, since_ns=since_ns)
        await wait_renewed_for(witness, lease_id, 3.2)
        assert len(witness.spy.reopened_ns) >= 7
        assert (await faulty.oracle.lease.time_to_live(lease_id)).ttl > 0
        assert witness.nothing_lost


@pytest.mark.fault("L1")
async def test_l1_kill_and_restart() -> None:
    """A member that crashes and is back before the lease's time is over costs no lease."""
    ttl = 10  # a busy machine may take some seconds to start it
    async with (
        EtcdServer(quick=True) as server,
        faulty_client(server) as faulty,
        witnessed(faulty.client, faulty.oracle) as witness,
        kept_lease(witness, faulty.client, ttl) as (lease_id, _),
    ):
        await witness.wait_answered(lease_id, since_ns=0)
        pid = server.pid
        await server.kill()
        await server.start()
        assert server.pid != pid
        assert faulty.proxy.connections_total >= 2
        await until_surely_renewed(witness, faulty.oracle, lease_id, ttl)
        assert len(witness.spy.reopened_ns) >= 2
        assert witness.nothing_lost


# -- longer than the lease -------------------------------------------------------------------


@pytest.mark.fault("L2")
@pytest.mark.parametrize("ttl", [2, 3, 5])
async def test_l2_blackhole(faulty: Faulty, ttl: int) -> None:
    """Cut off in silence, the owner is told before the key goes, although nobody can be asked."""
    async with (
        witnessed(faulty.client, faulty.oracle) as witness,
        kept_lease(witness, faulty.client, ttl) as (lease_id, _),
    ):
        await witness.wait_answered(lease_id, since_ns=0)
        faulty.proxy.delay(LATENCY)
        await witness.wait_answered(lease_id, since_ns=time.monotonic_ns())
        faulty.proxy.blackhole()
        error = await witness.wait_told(lease_id)
        assert isinstance(error, LeaseExpiredError)
        await witness.wait_deleted(lease_id)
        assert faulty.proxy.bytes_swallowed > 0


async def test_l3_revoked_by_another_client(faulty: Faulty) -> None:
    """A lease that somebody else revokes is lost at its next renewal, with that reason."""
    ttl = 3
    async with (
        witnessed(faulty.client, faulty.oracle) as witness,
        kept_lease(witness, faulty.client, ttl) as (lease_id, _),
    ):
        await witness.wait_answered(lease_id, since_ns=0)
        await faulty.oracle.lease.revoke(lease_id)
        revoked_ns = time.monotonic_ns()
        error = await witness.wait_told(lease_id)
        assert isinstance(error, LeaseLostError)
        assert error.reason == "revoked"
        told_after = witness.signals(lease_id, "lost")[0].at_ns - revoked_ns
        assert told_after <= (ttl / 3 + 0.5 + witness.late.seconds) * SECOND
        asked = [s for s in witness.signals(lease_id, "sent") if s.at_ns > revoked_ns]
        assert len(asked) <= 1  # none where it was just on its way
        await witness.wait_deleted(lease_id)


# -- the cluster -----------------------------------------------------------------------------


def renewing_member(client: Client, cluster: EtcdCluster) -> int | None:
    """Give the member that a client of `cluster.endpoints` renews at; None while at none."""
    streams = client._shared.leases._streams.values()
    names = {s.connection.endpoint.name for s in streams if s.connection is not None}
    assert len(names) <= 1
    return cluster.endpoints.index(names.pop()) if names else None


async def until_elsewhere(
    client: Client, cluster: EtcdCluster, member: int, *, within: float
) -> None:
    """Wait until a client renews at another member."""
    await until(lambda: renewing_member(client, cluster) not in (None, member), within=within)


@pytest.mark.fault("L7")
async def test_l7_leader_change() -> None:
    """Leases live on when the leader is moved, and when it crashes and their stream with it."""
    ttl = 20  # a busy machine may take many seconds to elect a leader
    async with (
        EtcdCluster(quick=False) as cluster,
        Client(cluster.endpoints) as client,
        Client(cluster.direct_endpoints) as oracle,
        witnessed(client, oracle) as witness,
        kept_lease(witness, client, ttl) as (lease_id, _),
    ):
        await witness.wait_answered(lease_id, since_ns=0)
        old = await cluster.leader()
        await cluster.move_leader((cluster.members.index(old) + 1) % 3)
        assert await cluster.leader() is not old
        await until_surely_renewed(witness, oracle, lease_id, ttl)
        leader = None
        while leader is None or renewing_member(client, cluster) != leader:
            await until(lambda: renewing_member(client, cluster) is not None)
            leader = renewing_member(client, cluster)
            assert leader is not None
            await cluster.move_leader(leader)
        await cluster.members[leader].kill()
        assert await cluster.leader() is not cluster.members[leader]
        await until_elsewhere(client, cluster, leader, within=ttl)
        await until_surely_renewed(witness, oracle, lease_id, ttl)
        assert witness.nothing_lost


@pytest.mark.fault("L7")
async def test_l7_a_leader_after_a_while() -> None:
    """A member without a leader is asked again and again, and renews once it has one."""
    async with EtcdCluster(quick=False) as cluster:
        asked, *others = cluster.members
        await cluster.move_leader(asked)
        async with (
            Client(cluster.endpoints[0]) as client,
            Client(cluster.direct_endpoints) as oracle,
            witnessed(client, oracle) as witness,
            kept_lease(witness, client, 20) as (lease_id, _),
        ):
            await witness.wait_answered(lease_id, since_ns=0)
            for member in others:
                await member.pause()
            await until(lambda: len(witness.spy.reopened_ns) >= 5, within=15)
            for member in others:
                await member.resume()
            resumed_ns = time.monotonic_ns()
            await witness.wait_answered(lease_id, since_ns=resumed_ns)
            assert witness.nothing_lost


@pytest.mark.fault("L7")
async def test_l7_the_member_stands_still() -> None:
    """A lease whose member is stopped without a word is renewed at another one in time.

    Although it takes the client's pings longer to notice than the lease lives.
    """
    ttl = 6
    async with EtcdCluster(quick=False) as cluster, Client(cluster.endpoints) as client:
        await client.kv.get("connect")
        member = cluster.endpoints.index(client.stats().endpoint or "")
        others = [m.endpoint for m in cluster.members if m is not cluster.members[member]]
        await cluster.move_leader((member + 1) % 3)  # so that the others can renew it
        async with (
            Client(others) as oracle,
            witnessed(client, oracle) as witness,
            kept_lease(witness, client, ttl) as (lease_id, _),
        ):
            await witness.wait_answered(lease_id, since_ns=0)
            assert renewing_member(client, cluster) == member
            # When to stop it, not what to wait for: gRPC pings at an answer, and just now that ping
            # would find out.
            await anyio.sleep(0.5)
            await cluster.members[member].pause()
            paused_ns = time.monotonic_ns()
            await until_elsewhere(client, cluster, member, within=ttl)
            await witness.wait_answered(lease_id, since_ns=paused_ns + (ttl + 1) * SECOND)
            assert cluster.members[member].is_paused
            assert renewing_member(client, cluster) != member
            assert witness.nothing_lost
            assert (await oracle.kv.get(f"lease/{lease_id}")).kv is not None
            await cluster.members[member].resume()


# -- answers that never come, or late --------------------------------------------------------


@pytest.mark.fault("L8")
async def test_l8_never_answered(faulty: Faulty) -> None:
    """Where no renewal is ever answered, the time counts from the sending of the grant."""
    async with (
        witnessed(faulty.client, faulty.oracle) as witness,
    ):
        lease = await faulty.client.lease.grant(2)
        await witness.attach(lease.id)
        faulty.proxy.blackhole(client_to_server=False)
        async with witness.keep(lease.id):
            error = await witness.wait_told(lease.id)
        assert isinstance(error, LeaseExpiredError)
        assert witness.signals(lease.id, "sent")
        assert not witness.signals(lease.id, "answered")
        assert faulty.proxy.bytes_swallowed > 0
        await witness.wait_deleted(lease.id)


@pytest.mark.fault("L9")
async def test_l9_slow_answers(faulty: Faulty) -> None:
    """Answers that take more than a third of the lease's time, but less than all, lose nothing."""
    ttl = 5
    async with (
        witnessed(faulty.client, faulty.oracle) as witness,
        kept_lease(witness, faulty.client, ttl) as (lease_id, _),
    ):
        await witness.wait_answered(lease_id, since_ns=0)
        faulty.proxy.delay(ttl / 3 / 2 + 0.02, jitter=0.05)  # each way
        await wait_renewed_for(witness, lease_id, ttl + 0.2)
        faulty.proxy.delay(0)
        assert witness.spy.in_flight_most >= 2
        slow = [s.at_ns - (s.sent_ns or 0) for s in witness.signals(lease_id, "answered")]
        assert max(slow) > ttl / 3 * SECOND
        assert witness.nothing_lost


@pytest.mark.fault("L10")
async def test_l10_a_thousand_leases(quick_server: EtcdServer) -> None:
    """An outage shorter than half of their time loses none of 1000 leases; the urgent go first."""
    await quick_server.clear()
    async with (
        faulty_client(quick_server) as faulty,
        witnessed(faulty.client, faulty.oracle) as witness,
    ):
        ids: list[int] = []
        limiter = anyio.Semaphore(50)

        async def grant(number: int) -> None:
            async with limiter:
                lease = await faulty.client.lease.grant(8 + number % 5)
                ids.append(lease.id)

        async def revoke(lease_id: int) -> None:
            async with limiter:
                witness.recorder.add(LeaseSignal(lease_id, "revoked", time.monotonic_ns()))
                await faulty.oracle.lease.revoke(lease_id)

        async with anyio.create_task_group() as tasks:
            for number in range(1000):
                tasks.start_soon(grant, number)
        keep_alives = [witness.keep(lease_id) for lease_id in ids]
        for keep_alive in keep_alives:
            await keep_alive.__aenter__()
        for keep_alive in keep_alives:
            async for _ in keep_alive:
                break
        rules = faulty.client._shared.leases.rules
        faulty.proxy.refuse()
        assert faulty.proxy.cut() >= 1
        await anyio.sleep(3.5)  # the outage itself: less than half of the shortest time
        deadlines = {lease_id: rules.deadline(lease_id) or 0.0 for lease_id in ids}
        await faulty.proxy.heal()
        healed_ns = time.monotonic_ns()
        await until(lambda: all((rules.deadline(i) or 0) > deadlines[i] for i in ids))

        sent = [s for s in witness.recorder.of(LeaseSignal) if s.kind == "sent"]
        for lane in (lane for lane in rules.lanes if lane.wanted):
            renewed = [s.lease_id for s in sent if s.at_ns > healed_ns and s.lease_id in lane.kept]
            overdue = renewed[:200]
            urgency = [deadlines[lease_id] for lease_id in overdue]
            assert urgency == sorted(urgency)
            assert len(set(overdue)) == len(overdue) == 200
        assert len(rules) == 1000
        assert witness.errors == {}
        for keep_alive in keep_alives:
            await keep_alive.aclose()
        async with anyio.create_task_group() as tasks:
            for lease_id in ids:
                tasks.start_soon(revoke, lease_id)
        await until(faulty.no_leases)


# -- the lead --------------------------------------------------------------------------------


@pytest.mark.fault("L2")
async def test_the_loss_is_told_before_the_store_shows_it(
    faulty: Faulty, rng: random.Random
) -> None:
    """Of many sessions cut off at once, each is told before its key goes: the lead is positive."""
    ttl = 2
    sessions = [faulty.client.session(ttl=ttl, on_lost="ignore") for _ in range(10)]
    async with (
        witnessed(faulty.client, faulty.oracle) as witness,
        AsyncExitStack() as held,
        anyio.create_task_group() as tasks,
    ):

        async def begin(session: Session) -> None:
            await anyio.sleep(rng.uniform(0, ttl))  # so that their renewals are not in step
            await held.enter_async_context(session)
            await witness.attach(session.lease_id)
            tasks.start_soon(witness.listen_to, session)

        async with anyio.create_task_group() as beginning:
            for session in sessions:
                beginning.start_soon(begin, session)
        faulty.proxy.delay(LATENCY)
        delayed_ns = time.monotonic_ns()
        for session in sessions:
            await witness.wait_answered(session.lease_id, since_ns=delayed_ns)
        assert witness.nothing_lost
        faulty.proxy.blackhole()
        for session in sessions:
            await witness.wait_deleted(session.lease_id)
            await witness.wait_told(session.lease_id)
        assert faulty.proxy.bytes_swallowed > 0
        leads = [
            witness.deleted_ns[session.lease_id]
            - witness.signals(session.lease_id, "lost")[0].at_ns
            for session in sessions
        ]
        assert len(leads) == 10
        assert min(leads) > 0
