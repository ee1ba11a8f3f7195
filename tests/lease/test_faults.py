"""Leases under faults: none is lost needlessly, and a loss is told before the store shows it.

Each test proves that its fault happened, and each witness checks at its end that what was told was
right (see `signals`). The ids in the names are for finding a case again.
"""

from __future__ import annotations

import functools
import json
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from subprocess import PIPE
from types import NoneType

import anyio
import pytest
from anyio.abc import Process
from anyio.streams.text import TextReceiveStream

from aioetcd import (
    Client,
    ClientClosedError,
    DeadlineExceededError,
    EtcdError,
    KeepAlive,
    LeaseExpiredError,
    LeaseLostError,
    LeaseNotFoundError,
    Lock,
    LockLostError,
    NoSpaceError,
    Session,
)
from aioetcd.testing import EtcdCluster, EtcdServer, FaultProxy
from aioetcd.testing.history import LeaseSignal
from benchmarks.lease_lead import measure
from tests.lease.faults import Faulty, eventually, faulty_client, lose_answer, refused_calls
from tests.lease.renewals import keep_alive_metrics
from tests.lease.signals import LeaseWitness, kept_lease, witnessed
from tests.watch.following import STREAMS, WATCHERS, until_metric

QUICK = ("--heartbeat-interval=50", "--election-timeout=250")

# Several members on a busy machine would lose their leader all the time with that.
CALM = ("--heartbeat-interval=100", "--election-timeout=600")

SECOND = 1_000_000_000

# A network's, one way: a renewal reaches the server so much later than it was sent, which is what
# counts. It is the margin in which the owner must be told, and the store be looked at.
LATENCY = 0.2

PAUSED_CLIENT = Path(__file__).parent.parent / "data" / "paused_client.py"


async def wait_renewed_for(
    witness: LeaseWitness, lease_id: int, seconds: float, *, within: float = 20.0
) -> None:
    """Wait until renewals were answered for so long from now on: beyond the lease's time."""
    since_ns = time.monotonic_ns() + int(seconds * SECOND)
    await witness.wait_answered(lease_id, since_ns=since_ns, within=within)


# -- shorter than the lease ------------------------------------------------------------------


async def test_l1_cuts(faulty: Faulty) -> None:
    """Resets again and again, none of them for longer than the lease lives, lose nothing."""
    async with (
        witnessed(faulty.client, faulty.oracle) as witness,
        kept_lease(witness, faulty.client, 2) as (lease_id, _),
    ):
        await witness.wait_answered(lease_id, since_ns=0)
        for _ in range(6):
            since_ns = time.monotonic_ns()
            assert faulty.proxy.cut() >= 1
            await witness.wait_answered(lease_id, since_ns=since_ns)
        await wait_renewed_for(witness, lease_id, 2.2)
        assert len(witness.spy.reopened_ns) >= 7
        assert (await faulty.oracle.lease.time_to_live(lease_id)).ttl > 0
        assert witness.nothing_lost


async def test_l1_kill_and_restart() -> None:
    """A member that crashes and is back before the lease's time is over costs no lease."""
    ttl = 10  # a busy machine may take some seconds to start it
    async with (
        EtcdServer(args=QUICK) as server,
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
        await wait_renewed_for(witness, lease_id, 3)
        assert len(witness.spy.reopened_ns) >= 2
        # A server that starts gives each lease its full time, once: 3 s later, only a renewal has.
        assert (await faulty.oracle.lease.time_to_live(lease_id)).ttl > ttl - 3
        assert (await faulty.oracle.kv.get(f"lease/{lease_id}")).kv is not None
        assert witness.nothing_lost


# -- longer than the lease -------------------------------------------------------------------


@pytest.mark.parametrize("ttl", [2, 3, 5])
async def test_l2_blackhole(faulty: Faulty, ttl: int) -> None:
    """Cut off in silence, the owner is told before the key goes, although nobody can be asked."""
    faulty.proxy.delay(LATENCY)
    async with (
        witnessed(faulty.client, faulty.oracle) as witness,
        kept_lease(witness, faulty.client, ttl) as (lease_id, _),
    ):
        await witness.wait_answered(lease_id, since_ns=0)
        faulty.proxy.blackhole()
        error = await witness.wait_told(lease_id)
        assert isinstance(error, LeaseExpiredError)
        assert (await faulty.oracle.kv.get(f"lease/{lease_id}")).kv is not None
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
        assert told_after <= (ttl / 3 + 0.5) * SECOND
        await witness.wait_deleted(lease_id)


# -- the client's own time -------------------------------------------------------------------


@pytest.mark.parametrize("asks", [True, False], ids=["asked", "not asked"])
async def test_l4_blocked_loop(faulty: Faulty, *, asks: bool) -> None:
    """After a loop was blocked beyond the deadline, the loss comes before all else, and once.

    Before a renewal's answer that came meanwhile, which would have prolonged the lease; before
    anything begins that the renewals allow; and at once where `is_lost` is asked.
    """
    ttl = 3
    acted: list[int] = []
    sent_ns = woke_ns = 0
    async with (
        Client(faulty.server.endpoint) as client,  # a proxy would be blocked as well
        witnessed(client, faulty.oracle) as witness,
    ):
        session = client.session(ttl=ttl)
        lease_id = session.lease_id
        # There is no turn of the loop to tell it in; and the store drops it later, being asked to.
        witness.excused.add(lease_id)

        async def act() -> None:
            keep_alive = client.lease.keep_alive(lease_id)
            witness.listen(keep_alive, lease_id)
            try:
                async for _ in keep_alive:
                    acted.append(time.monotonic_ns())  # noqa: PERF401  # one by one
            except LeaseExpiredError:
                return
            pytest.fail("the loop has ended")

        async def block() -> tuple[int, int]:
            for _ in range(3):
                await witness.wait_answered(lease_id, since_ns=time.monotonic_ns())
            with anyio.fail_after(ttl):
                while (sent_ns := witness.spy.unanswered_ns(lease_id)) is None:
                    await anyio.lowlevel.checkpoint()
            deadline = client.lease.rules.deadline(lease_id)
            assert deadline is not None
            time.sleep(deadline - time.monotonic() + 0.1)  # noqa: ASYNC251  # the fault
            return sent_ns, time.monotonic_ns()

        async def use() -> None:
            nonlocal sent_ns, woke_ns
            async with session:
                tasks.start_soon(act)
                sent_ns, woke_ns = await block()
                if asks:
                    assert session.is_lost
                    assert session.expires_in == 0
                    assert lease_id in witness.errors
                    await anyio.lowlevel.checkpoint()
                    pytest.fail("the body was not cancelled at once")
                await anyio.sleep_forever()

        async with anyio.create_task_group() as tasks:
            with anyio.fail_after(20), pytest.raises(LeaseExpiredError):
                await use()
        assert time.monotonic_ns() < woke_ns + SECOND
        assert acted
        assert max(acted) < woke_ns
        # The answer was there, and was still good.
        await eventually(lambda: witness.spy.unanswered_ns(lease_id) is None)
        assert witness.signals(lease_id, "answered")[-1].sent_ns == sent_ns
        assert sent_ns + ttl * SECOND > woke_ns
        await eventually(faulty.no_leases)
        assert len(witness.signals(lease_id, "lost")) == 1


async def test_p1_blocked_loop_with_much_in_use(faulty: Faulty) -> None:
    """A loop blocked for three times the leases' time loses each of them once, and no watch."""
    ttl = 1
    told: list[tuple[int, EtcdError]] = []
    raised: list[EtcdError] = []
    held: list[Session | Lock] = []

    async def hold(what: Session | Lock) -> None:
        try:
            async with what:
                held.append(what)
                await anyio.sleep_forever()
        except EtcdError as error:
            raised.append(error)

    async with (
        Client(faulty.server.endpoint) as client,  # a proxy would be blocked as well
        client.watch("seen/", prefix=True) as watch,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(hold, client.session(ttl=ttl))
        tasks.start_soon(hold, client.lock("p1", ttl=ttl))
        keep_alives = {}
        for _ in range(20):
            lease = await client.lease.grant(ttl)
            keep_alive = client.lease.keep_alive(lease.id)
            keep_alive.on_lost = functools.partial(
                lambda i, error: told.append((i, error)), lease.id
            )
            await keep_alive.__aenter__()
            keep_alives[lease.id] = keep_alive
        for keep_alive in keep_alives.values():
            async for _ in keep_alive:
                break
        await eventually(lambda: len(held) == 2)
        await client.kv.put("seen/1", "before")
        assert (told, raised) == ([], [])
        time.sleep(3 * ttl)  # noqa: ASYNC251  # a body that blocks the loop is the fault
        assert [keep_alive.expires_in for keep_alive in keep_alives.values()] == [0] * 20
        assert [what.is_lost for what in held] == [True, True]
        await eventually(lambda: len(told) == 20 and len(raised) == 2)
        await client.kv.put("seen/2", "after")
        events = []
        async for event in watch:
            events.append(event.kv.value)
            if len(events) == 2:
                break
        assert events == [b"before", b"after"]
        assert client.stats().reconnects == 0
        for keep_alive in keep_alives.values():
            await keep_alive.aclose()
        await client.kv.delete("seen/", prefix=True)
    assert sorted(lease_id for lease_id, _ in told) == sorted(keep_alives)
    assert all(isinstance(error, LeaseExpiredError) for _, error in told)
    assert sorted(type(error).__name__ for error in raised) == [
        "LeaseExpiredError",
        "LockLostError",
    ]


class PausedClient:
    """A client in a process of its own, and what it has said."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.said: list[dict[str, object]] = []
        assert process.stdout is not None
        self._output = TextReceiveStream(process.stdout)
        self._rest = ""

    async def wait_for(self, what: str) -> dict[str, object]:
        """Read on until it has said something."""
        with anyio.fail_after(20):
            while not (found := [line for line in self.said if line["what"] == what]):
                await self._read()
        return found[0]

    async def read_all(self) -> None:
        """Read until it has ended."""
        with anyio.fail_after(20):
            try:
                while True:
                    await self._read()
            except anyio.EndOfStream:
                return

    async def _read(self) -> None:
        *lines, self._rest = (self._rest + await self._output.receive()).split("\n")
        self.said += map(json.loads, lines)


async def test_l5_paused_client_process(faulty: Faulty) -> None:
    """A process that was stopped for longer than its lease lives knows it before it acts again."""
    ttl = 2
    async with witnessed(faulty.client, faulty.oracle) as witness:
        command = [sys.executable, str(PAUSED_CLIENT), faulty.server.endpoint, str(ttl)]
        async with await anyio.open_process(command, stdout=PIPE, stderr=None) as process:
            client = PausedClient(process)
            held = await client.wait_for("held")
            lease_id = int(str(held["lease_id"]))
            await client.wait_for("acted")
            process.send_signal(signal.SIGSTOP)
            stat = Path(f"/proc/{process.pid}/stat")
            await eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")
            deleted_ns = await witness.wait_deleted(lease_id)
            resumed_ns = time.monotonic_ns()
            process.send_signal(signal.SIGCONT)
            await client.read_all()
            assert await process.wait() == 0
        lost = [line for line in client.said if line["what"] == "lost"]
        assert [line["error"] for line in lost] == ["LeaseExpiredError"]
        assert resumed_ns <= int(str(lost[0]["at_ns"])) <= resumed_ns + SECOND
        acted = [int(str(line["at_ns"])) for line in client.said if line["what"] == "acted"]
        assert acted
        assert max(acted) < deleted_ns
        witness.excused.add(lease_id)  # its owner could not be told while it was stopped


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
async def test_l6_wall_clock_jump(
    faulty: Faulty, jump: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wall clock that is set an hour forth or back changes nothing."""
    real = time.time
    async with (
        witnessed(faulty.client, faulty.oracle) as witness,
        kept_lease(witness, faulty.client, 2) as (lease_id, _),
    ):
        await witness.wait_answered(lease_id, since_ns=0)
        with monkeypatch.context() as patch:  # not for calls with a deadline: grpc's core sees none
            patch.setattr(time, "time", lambda: real() + jump)
            assert abs(time.time() - real()) > 3000
            await wait_renewed_for(witness, lease_id, 2.2)
        assert witness.nothing_lost


# -- the cluster -----------------------------------------------------------------------------


def renewing_member(client: Client, cluster: EtcdCluster) -> int | None:
    """Give the member that a client of `cluster.endpoints` renews at; None while at none."""
    streams = client.lease.streams.values()
    names = {s.connection.endpoint.name for s in streams if s.connection is not None}
    assert len(names) <= 1
    return cluster.endpoints.index(names.pop()) if names else None


async def until_elsewhere(
    client: Client, cluster: EtcdCluster, member: int, *, within: float
) -> None:
    """Wait until a client renews at another member."""
    await eventually(lambda: renewing_member(client, cluster) not in (None, member), within=within)


async def test_l7_leader_change() -> None:
    """Leases live on when the leader is moved, and when it crashes and their stream with it."""
    ttl = 3
    async with (
        EtcdCluster() as cluster,
        Client(cluster.endpoints) as client,
        Client(cluster.direct_endpoints) as oracle,
        witnessed(client, oracle) as witness,
        kept_lease(witness, client, ttl) as (lease_id, _),
    ):
        await witness.wait_answered(lease_id, since_ns=0)
        old = await cluster.leader()
        await cluster.move_leader((cluster.members.index(old) + 1) % 3)
        assert await cluster.leader() is not old
        await wait_renewed_for(witness, lease_id, ttl + 0.2)
        leader = None
        while leader is None or renewing_member(client, cluster) != leader:
            await eventually(lambda: renewing_member(client, cluster) is not None)
            leader = renewing_member(client, cluster)
            assert leader is not None
            await cluster.move_leader(leader)
        await cluster.members[leader].kill()
        assert await cluster.leader() is not cluster.members[leader]
        await until_elsewhere(client, cluster, leader, within=ttl)
        await wait_renewed_for(witness, lease_id, ttl + 0.2)
        assert witness.nothing_lost


async def test_l7_the_member_stands_still() -> None:
    """A lease whose member is stopped without a word is renewed at another one in time.

    Although it takes the client's pings longer to notice than the lease lives.
    """
    ttl = 6
    async with EtcdCluster(args=CALM) as cluster, Client(cluster.endpoints) as client:
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


async def test_l8_never_answered(faulty: Faulty) -> None:
    """Where no renewal is ever answered, the time counts from the sending of the grant."""
    async with (
        witnessed(faulty.client, faulty.oracle) as witness,
    ):
        lease = await faulty.client.lease.grant(2)
        await witness.attach(lease.id)
        faulty.proxy.blackhole(client_to_server=False)
        keep_alive = faulty.client.lease.keep_alive(lease.id)
        witness.listen(keep_alive, lease.id)
        async with keep_alive:
            error = await witness.wait_told(lease.id)
        assert isinstance(error, LeaseExpiredError)
        assert witness.signals(lease.id, "sent")
        assert not witness.signals(lease.id, "answered")
        assert faulty.proxy.bytes_swallowed > 0
        await witness.wait_deleted(lease.id)


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
        keep_alives = [faulty.client.lease.keep_alive(lease_id) for lease_id in ids]
        for lease_id, keep_alive in zip(ids, keep_alives, strict=True):
            witness.listen(keep_alive, lease_id)
            await keep_alive.__aenter__()
        for keep_alive in keep_alives:
            async for _ in keep_alive:
                break
        rules = faulty.client.lease.rules
        faulty.proxy.refuse()
        assert faulty.proxy.cut() >= 1
        await anyio.sleep(3.5)  # the outage itself: less than half of the shortest time
        deadlines = {lease_id: rules.deadline(lease_id) or 0.0 for lease_id in ids}
        await faulty.proxy.heal()
        healed_ns = time.monotonic_ns()
        await eventually(lambda: all((rules.deadline(i) or 0) > deadlines[i] for i in ids))

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
        await eventually(faulty.no_leases)


async def test_l11_grant_without_an_answer(faulty: Faulty) -> None:
    """A session whose grant's answer was lost takes the lease for its own, and leaves none."""
    existed = await refused_calls(faulty.server, "LeaseGrant", "FailedPrecondition")
    faulty.proxy.blackhole(client_to_server=False)

    async def is_granted() -> bool:
        return await faulty.lease_ids() != ()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lose_answer, faulty, is_granted)
        async with faulty.client.session(ttl=600) as session:
            assert await faulty.lease_ids() == (session.lease_id,)
            assert (await faulty.oracle.lease.time_to_live(session.lease_id)).granted_ttl == 600
    # The second try was told that the lease exists.
    told = await refused_calls(faulty.server, "LeaseGrant", "FailedPrecondition")
    assert told == existed + 1
    assert faulty.client.stats().retries == 1
    assert await faulty.lease_ids() == ()


async def test_l11_grant_answered_too_late(faulty: Faulty) -> None:
    """A grant whose answer came after the lease had run out is an error: no session is entered."""
    faulty.proxy.hold_after(0)
    entered = False

    async def use() -> None:
        nonlocal entered
        async with faulty.client.session(ttl=1):
            entered = True

    async def outlive() -> None:
        async def is_granted() -> bool:
            return await faulty.lease_ids() != ()

        await eventually(is_granted)
        await eventually(faulty.no_leases)
        await faulty.proxy.heal()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(outlive)
        with pytest.raises(LeaseNotFoundError):
            await use()
    assert not entered


async def test_l11_grant_never_answered(
    quick_server: EtcdServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A session that cannot be granted nor revoked says so, and leaves a lease that runs out."""
    await quick_server.clear()
    async with faulty_client(quick_server, timeout=1) as faulty:
        faulty.proxy.blackhole(client_to_server=False)
        with pytest.raises(DeadlineExceededError) as caught:
            async with faulty.client.session(ttl=2):
                pytest.fail("it was granted")
        assert caught.value.maybe_applied
        assert "could not be revoked" in caplog.text
        assert faulty.proxy.bytes_swallowed > 0
        await eventually(faulty.no_leases)


@pytest.mark.parametrize(("election_timeout", "granted"), [(1000, 2), (2000, 3)])
async def test_l12_the_granted_time_counts(election_timeout: int, granted: int) -> None:
    """Where the server raises a time of 1 s, all goes by what it made of it."""
    third = granted / 3 * SECOND
    async with (
        EtcdServer(args=[f"--election-timeout={election_timeout}"]) as server,
        Client(server.endpoint) as client,
        Client(server.endpoint) as oracle,
        witnessed(client, oracle) as witness,
        kept_lease(witness, client, 1) as (lease_id, keep_alive),
        client.session(ttl=1) as session,
    ):
        assert [signal.ttl for signal in witness.signals(lease_id, "granted")] == [granted]
        assert granted - 1 < (keep_alive.expires_in or 0) <= granted
        assert granted - 1 < session.expires_in <= granted
        await wait_renewed_for(witness, lease_id, 2 * granted)
        sent = [signal.at_ns for signal in witness.signals(lease_id, "sent")]
        first, *pauses = [after - before for before, after in pairwise(sent)]
        assert 0.25 * third <= first
        assert min(pauses) >= 0.85 * third
        # One that is late is so by chance; that half of them are is a wrong interval.
        assert median(pauses) <= 1.15 * third
        assert max(first, *pauses) <= 2 * third
        assert {signal.ttl for signal in witness.signals(lease_id, "answered")} == {granted}
        assert witness.nothing_lost
        assert not session.is_lost


# -- ending while nobody answers -------------------------------------------------------------


async def test_l13_leaving_a_session(quick_server: EtcdServer) -> None:
    """A session that is left while nobody answers is done within the smaller of its bounds."""
    await quick_server.clear()
    for timeout, ttl in ((1.0, 30), (10.0, 2)):
        async with faulty_client(quick_server, timeout=timeout) as faulty:
            session = faulty.client.session(ttl=ttl, on_lost="ignore")
            async with session:
                faulty.proxy.blackhole()
                began = time.monotonic()
            assert time.monotonic() - began <= min(timeout, ttl) + 0.5
            assert faulty.proxy.bytes_swallowed > 0
            if ttl > 10:
                await faulty.oracle.lease.revoke(session.lease_id)
            await eventually(faulty.no_leases)


async def test_l13_revoking(faulty: Faulty) -> None:
    """A revocation that is not answered ends at its deadline, and says that it may be done."""
    lease = await faulty.client.lease.grant(60)
    faulty.proxy.blackhole(client_to_server=False)
    began = time.monotonic()
    with pytest.raises(DeadlineExceededError) as caught:
        await faulty.client.lease.revoke(lease.id, timeout=0.7)
    assert time.monotonic() - began <= 1.2
    assert caught.value.maybe_applied
    assert faulty.proxy.bytes_swallowed > 0
    await eventually(faulty.no_leases)


async def test_l14_no_space() -> None:
    """A store without space refuses grants clearly and once, and goes on renewing leases."""
    async with (
        EtcdServer(args=[*QUICK, "--quota-backend-bytes=17000000"]) as server,
        Client(server.endpoint) as client,
        Client(server.endpoint) as oracle,
        witnessed(client, oracle) as witness,
        kept_lease(witness, client, 2) as (lease_id, _),
    ):
        with pytest.raises(NoSpaceError):  # noqa: PT012  # any of them may be the one
            for _ in range(40):
                await client.kv.put("big", b"x" * 1_000_000)
        retries = client.stats().retries
        for _ in range(3):
            with pytest.raises(NoSpaceError) as caught:
                await client.lease.grant(5)
            assert not caught.value.maybe_applied
        assert client.stats().retries == retries
        await wait_renewed_for(witness, lease_id, 2.2)
        assert witness.nothing_lost


# -- closing during each fault ---------------------------------------------------------------


def refuse(proxy: FaultProxy, server: EtcdServer) -> None:
    """Look like a machine on which nothing listens any more."""
    proxy.refuse()
    assert proxy.cut() >= 1


async def hang(proxy: FaultProxy, server: EtcdServer) -> None:
    """Have the client connect again, to somebody who accepts and says nothing."""
    connections = proxy.connections_total
    proxy.hang()
    assert proxy.cut() >= 1
    await proxy.wait_until(lambda proxy: proxy.connections_total > connections)


async def pause(proxy: FaultProxy, server: EtcdServer) -> None:
    """Stop the server without a word."""
    await server.pause()
    assert server.is_paused


async def kill(proxy: FaultProxy, server: EtcdServer) -> None:
    """End the server, and have the client see it."""
    await server.kill()
    assert not server.is_running
    await proxy.wait_until(lambda proxy: proxy.connections_open == 0)


def cut(proxy: FaultProxy, server: EtcdServer) -> None:
    """Reset the connection."""
    assert proxy.cut() == 1


FAULTS: dict[str, Callable[[FaultProxy, EtcdServer], Awaitable[object] | object]] = {
    "none": lambda proxy, server: None,
    "cut": cut,
    "refused": refuse,
    "hanging": hang,
    "blackhole": lambda proxy, server: proxy.blackhole(),
    "requests lost": lambda proxy, server: proxy.blackhole(server_to_client=False),
    "answers lost": lambda proxy, server: proxy.blackhole(client_to_server=False),
    "slow": lambda proxy, server: proxy.delay(2.5),
    "paused": pause,
    "killed": kill,
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_p4_close_during(fault: str) -> None:
    """A client closes within 2 s whatever the network does: all in use ends, and at the server."""
    ended: dict[str, list[EtcdError | None]] = defaultdict(list)

    async def record(what: str, use: Awaitable[object]) -> None:
        try:
            await use
        except EtcdError as error:
            ended[what].append(error)
        else:
            ended[what].append(None)

    async def follow(keep_alive: KeepAlive) -> None:
        async for _ in keep_alive:
            pass

    async def hold(what: Session | Lock) -> None:
        async with what:
            await anyio.sleep_forever()

    async with EtcdServer(args=QUICK) as server, FaultProxy(server.endpoint) as proxy:
        client = Client(proxy.endpoint)
        leases = [await client.lease.grant(30) for _ in range(5)]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(record, "session", hold(client.session(ttl=30)))
            tasks.start_soon(record, "lock", hold(client.lock("p4", ttl=30)))
            await until_metric(server, WATCHERS, 1)
            tasks.start_soon(record, "waiter", hold(client.lock("p4", ttl=30)))
            for lease in leases:
                tasks.start_soon(record, "kept", follow(client.lease.keep_alive(lease.id)))
            # Asks for it, and is told.
            tasks.start_soon(record, "unknown", follow(client.lease.keep_alive(12345)))
            await eventually(lambda: len(ended["unknown"]) == 1 and client.stats().leases == 8)
            await until_metric(server, WATCHERS, 3)
            assert [*ended] == ["unknown"]
            did = FAULTS[fault](proxy, server)
            if isinstance(did, Awaitable):
                await did
            calls = client.stats().calls
            tasks.start_soon(record, "once", client.lease.keep_alive_once(leases[0].id))
            tasks.start_soon(record, "grant", client.lease.grant(30))
            for lease in leases:
                tasks.start_soon(record, "more", follow(client.lease.keep_alive(lease.id)))
            await eventually(lambda: client.stats().calls > calls)
            if fault in ("blackhole", "requests lost", "answers lost"):
                await proxy.wait_until(lambda proxy: proxy.bytes_swallowed > 0)
            began = time.monotonic()
            await client.aclose()
            assert time.monotonic() - began <= 2
        for what, count in ("kept", 5), ("more", 5), ("once", 1), ("grant", 1):
            assert len(ended[what]) == count
            may_be_answered = what in ("once", "grant") and fault in ("none", "cut")
            # Where nobody answered, this is also the proof of the fault.
            allowed = (ClientClosedError, NoneType) if may_be_answered else ClientClosedError
            assert all(isinstance(error, allowed) for error in ended[what]), ended[what]
        (lost,) = ended["session"]
        assert isinstance(lost, LeaseLostError)
        assert lost.reason == "closed"
        (lost,) = ended["lock"]
        assert isinstance(lost, LockLostError)
        (lost,) = ended["waiter"]
        assert isinstance(lost, LockLostError | ClientClosedError)

        # Whoever could not hear of the end does now, and then has nothing of this client any more.
        if server.is_paused:
            await server.resume()
        await proxy.heal()
        if fault != "killed":
            await until_metric(server, WATCHERS, 0)
            await until_metric(server, STREAMS, 0)

            async def no_stream() -> bool:
                started, over, _ = await keep_alive_metrics(server)
                return 0 < started == over

            await eventually(no_stream)


# -- the lead --------------------------------------------------------------------------------


async def test_the_loss_is_told_before_the_store_shows_it() -> None:
    """Of many sessions cut off at once, each is told before its key goes: the lead is positive."""
    leads = await measure(sessions=10, ttl=2, latency=0.15)
    assert len(leads) == 10
    assert min(leads) > 0
