"""Leases at a real server in bad weather: lost, nearly lost, and answers that never come."""

from __future__ import annotations

import asyncio
import re
import time
from time import monotonic

import anyio
import pytest

from aioetcd import (
    Client,
    ClientClosedError,
    DeadlineExceededError,
    EtcdError,
    EventType,
    LeaseExpiredError,
    LeaseLostError,
    LeaseNotFoundError,
    NoEndpointError,
)
from aioetcd.testing import EtcdServer, FaultProxy
from tests.harness import Faulty, faulty_client, lose_answer, refused_calls
from tests.lease.renewals import UNKNOWN, follow, keep_alive_metrics, renewed_for
from tests.waiting import lateness, until

# Losing.


async def test_revoked_by_another_client(faulty: Faulty) -> None:
    """A revocation elsewhere is told by the next renewal, with its reason."""
    lease = await faulty.client.lease.grant(3)
    revoked_at = asked = 0.0

    async def revoke() -> None:
        nonlocal revoked_at, asked
        await faulty.oracle.lease.revoke(lease.id)
        revoked_at = monotonic()
        _, _, asked = await keep_alive_metrics(faulty.server)

    async with lateness() as late:
        with pytest.raises(LeaseLostError) as caught:
            await follow(faulty.client.lease.keep_alive(lease.id), revoke)
        lost_after = monotonic() - revoked_at
    assert lost_after < 3 / 3 + 0.5 + late.seconds
    assert (await keep_alive_metrics(faulty.server))[2] <= asked + 1
    assert not isinstance(caught.value, LeaseExpiredError)
    assert (caught.value.lease_id, caught.value.reason) == (lease.id, "revoked")


@pytest.mark.own_logic("who is told")
async def test_revoked_by_this_client(client: Client) -> None:
    """A revocation by the client itself is told at once, to every loop and to `on_lost`."""
    lease = await client.lease.grant(600)
    told: list[EtcdError] = []
    async with client.lease._keep(lease.id, told.append) as keep_alive:
        async for _ in keep_alive:
            break
        with anyio.fail_after(10):  # it is minutes to the next renewal
            await client.lease.revoke(lease.id)
            assert [type(error) for error in told] == [LeaseLostError]
            with pytest.raises(LeaseLostError) as caught:
                await follow(keep_alive)
    assert caught.value.reason == "revoked"
    assert told == [caught.value]
    with pytest.raises(LeaseNotFoundError):
        await client.lease.revoke(lease.id)


async def expire(faulty: Faulty, how: str) -> None:
    """Break the connection for good."""
    match how:
        case "blackhole":
            faulty.proxy.blackhole()
        case "answers lost":
            faulty.proxy.blackhole(client_to_server=False)
        case "refused":
            faulty.proxy.refuse()
            faulty.proxy.cut()


@pytest.mark.fault("L2")
@pytest.mark.parametrize("how", ["blackhole", "refused"])
async def test_expired_before_the_server_deletes(faulty: Faulty, how: str) -> None:
    """Cut off for longer than its time, a lease is lost before its keys go, and told once."""
    lease = await faulty.client.lease.grant(2)
    await faulty.client.kv.put("k", "v", lease=lease.id)
    # A renewal reaches the server so much later than it was sent, which is what counts.
    faulty.proxy.delay(0.4)
    told: list[EtcdError] = []
    keep_alive = faulty.client.lease._keep(lease.id, told.append)
    answers = 0
    left: float | None = None
    cut_at = 0.0

    async def expire_after_two() -> None:
        nonlocal answers, left, cut_at
        answers += 1
        if answers == 2:
            await expire(faulty, how)
            left = keep_alive.expires_in
            cut_at = monotonic()

    async with faulty.oracle.watch("k") as watch:
        deleted = asyncio.ensure_future(anext(watch))
        with pytest.raises(LeaseExpiredError) as caught:
            await follow(keep_alive, expire_after_two)
        assert not deleted.done()
        lost_after = monotonic() - cut_at
        assert (await deleted).type is EventType.DELETE
    assert answers == 2
    assert left is not None
    assert left - 0.05 <= lost_after <= left + 2
    assert (caught.value.lease_id, caught.value.reason) == (lease.id, "expired")
    assert isinstance(caught.value, LeaseLostError)
    await faulty.proxy.heal()
    # The server is there again, and nothing is told again.
    assert (await faulty.client.kv.get("k")).value is None
    assert told == [caught.value]


@pytest.mark.own_logic("nothing is answered")
async def test_lost_when_only_the_answers_are_lost(faulty: Faulty) -> None:
    """Renewals without answers do not count, although the server goes on renewing."""
    lease = await faulty.client.lease.grant(1)
    with pytest.raises(LeaseExpiredError):
        await follow(
            faulty.client.lease.keep_alive(lease.id), lambda: expire(faulty, "answers lost")
        )
    assert await faulty.lease_ids() == (lease.id,)


@pytest.mark.own_logic("nothing is answered")
async def test_lost_when_no_renewal_was_ever_answered(faulty: Faulty) -> None:
    """Without any answer, the time counts from the sending of the grant."""
    before = monotonic()
    lease = await faulty.client.lease.grant(1)
    await expire(faulty, "blackhole")
    with pytest.raises(LeaseExpiredError):
        await follow(faulty.client.lease.keep_alive(lease.id))
    # Not before its time, and not so late that its time does not matter.
    assert 0.9 <= monotonic() - before <= 3


@pytest.mark.own_logic("nothing is answered")
async def test_lost_when_the_server_is_paused() -> None:
    """A server that stops answering loses the lease at its deadline, connection or not."""
    async with (
        EtcdServer(args=["--heartbeat-interval=50", "--election-timeout=250"]) as server,
        Client(server.endpoint) as client,
    ):
        lease = await client.lease.grant(1)
        with pytest.raises(LeaseExpiredError):
            await follow(client.lease.keep_alive(lease.id), server.pause)
        await server.resume()
        await client.kv.get("k")


@pytest.mark.fault("L1")
async def test_a_short_cut_loses_nothing(faulty: Faulty) -> None:
    """After a cut the lease is renewed on a new stream, in time, and nobody notices."""
    lease = await faulty.client.lease.grant(2)
    keep_alive = faulty.client.lease.keep_alive(lease.id)
    for _ in range(4):
        await anext(keep_alive)
        assert faulty.proxy.cut() >= 1
    assert len(await renewed_for(keep_alive, 2.1)) >= 2
    assert await faulty.lease_ids() == (lease.id,)
    assert faulty.client.stats().reconnects >= 4
    await faulty.client.lease.revoke(lease.id)


@pytest.mark.fault("L9")
async def test_slow_answers_lose_nothing(faulty: Faulty) -> None:
    """Answers that take longer than the time between two renewals keep the lease alive."""
    lease = await faulty.client.lease.grant(4)
    faulty.proxy.delay(0.8)
    keep_alive = faulty.client.lease.keep_alive(lease.id)
    began = monotonic()
    renewals = [await anext(keep_alive)]
    assert monotonic() - began >= 1.6
    renewals += await renewed_for(keep_alive, 5.2)
    assert len(renewals) >= 4
    faulty.proxy.delay(0.0)
    await faulty.client.lease.revoke(lease.id)


@pytest.mark.fault("L4")
async def test_a_blocked_loop_believes_no_old_answer(faulty: Faulty) -> None:
    """After the event loop was blocked for too long, the loss comes before a waiting answer."""
    lease = await faulty.client.lease.grant(3)
    blocked = 0

    async def block() -> None:
        nonlocal blocked
        _, _, before = await keep_alive_metrics(faulty.server)

        async def renewed_again() -> bool:
            return (await keep_alive_metrics(faulty.server))[2] > before

        # The answer to this one may lie there unread.
        await until(renewed_again)
        blocked += 1
        time.sleep(3.3)  # noqa: ASYNC251  # what this is about

    with pytest.raises(LeaseExpiredError):
        await follow(faulty.client.lease.keep_alive(lease.id), block)
    assert blocked == 1


@pytest.mark.own_logic("what closing ends")
async def test_closing_the_client_ends_the_loop(server: EtcdServer) -> None:
    """A loop that waits while its client is closed raises ClientClosedError, and so do new ones."""
    client = Client(server.endpoint)
    lease = await client.lease.grant(60)
    with pytest.raises(ClientClosedError):
        await follow(client.lease.keep_alive(lease.id), client.aclose)
    with pytest.raises(ClientClosedError):
        await follow(client.lease.keep_alive(lease.id))
    with pytest.raises(ClientClosedError):
        await client.lease.keep_alive_once(lease.id)
    async with Client(server.endpoint) as other:
        await other.lease.revoke(lease.id)


@pytest.mark.own_logic("what callbacks may do")
@pytest.mark.parametrize("how", ["revoked", "revoked elsewhere", "expired", "closed"])
async def test_a_callback_that_raises(
    faulty: Faulty, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """What `on_lost` raises is logged: all others are told, and the client goes on."""
    client = faulty.client
    lease = await client.lease.grant(1 if how == "expired" else 30)
    other = await client.lease.grant(30)
    told: list[EtcdError] = []

    def fail(error: EtcdError) -> None:
        raise ZeroDivisionError(str(error))

    keep_alives = [
        client.lease._keep(lease.id, on_lost) for on_lost in [fail, told.append, fail, told.append]
    ]
    for keep_alive in keep_alives:
        await keep_alive.__aenter__()
    async with client.lease.keep_alive(other.id) as kept:
        async for _ in kept:
            break
        match how:
            case "revoked":
                await client.lease.revoke(lease.id)
            case "revoked elsewhere":
                await faulty.oracle.lease.revoke(lease.id)
                with pytest.raises(LeaseLostError):
                    await client.lease.keep_alive_once(lease.id)
            case "expired":
                faulty.proxy.blackhole()
            case "closed":
                await client.aclose()
        await until(lambda: len(told) == 2)
        for keep_alive in keep_alives:
            with pytest.raises(type(told[0])):
                await follow(keep_alive)
        if how != "closed":
            await faulty.proxy.heal()
            assert (await client.lease.keep_alive_once(other.id)).ttl == 30
            assert kept.expires_in
            assert client.stats().leases == 1
    assert len(told) == 2
    failures = [record.exc_info for record in caplog.records if record.name == "aioetcd.lease"]
    raised = [info[0] for info in failures if info is not None]
    assert raised == [ZeroDivisionError] * 2
    if how == "closed":
        await faulty.oracle.lease.revoke(lease.id)
    await faulty.oracle.lease.revoke(other.id)


@pytest.mark.own_logic("who is told")
async def test_losing_one_lease_leaves_the_others_alone(client: Client) -> None:
    """On the shared stream, the end of one lease is no matter of the others."""
    lost, kept = await client.lease.grant(60), await client.lease.grant(60)
    async with client.lease.keep_alive(kept.id) as keep_alive:
        with pytest.raises(LeaseNotFoundError):
            await client.lease.keep_alive_once(UNKNOWN)
        await client.lease.revoke(lost.id)
        assert (await anext(aiter(keep_alive))).ttl == 60
    await client.lease.revoke(kept.id)


# Answers that are lost, and servers that are not there.


async def test_a_grant_without_an_answer_is_repeated_with_its_id(faulty: Faulty) -> None:
    """A grant whose answer was lost is sent again and leaves exactly one lease."""
    existed = await refused_calls(faulty.server, "LeaseGrant", "FailedPrecondition")
    faulty.proxy.blackhole(client_to_server=False)

    async def is_granted() -> bool:
        return len(await faulty.lease_ids()) == 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lose_answer, faulty.proxy, is_granted)
        before = monotonic()
        lease = await faulty.client.lease.grant(30)
    assert lease.ttl == 30
    told = await refused_calls(faulty.server, "LeaseGrant", "FailedPrecondition")
    assert told == existed + 1
    assert await faulty.lease_ids() == (lease.id,)
    # The time counts from the first sending.
    spent = monotonic() - before
    expires_in = faulty.client.lease.keep_alive(lease.id).expires_in
    assert expires_in is not None
    assert expires_in <= 30 - spent + 0.05
    await faulty.client.lease.revoke(lease.id)


async def test_a_revocation_without_an_answer_counts_as_done(faulty: Faulty) -> None:
    """A revocation whose answer was lost is sent again, and not being found then is success."""
    lease = await faulty.client.lease.grant(30)
    unknown = await refused_calls(faulty.server, "LeaseRevoke", "NotFound")
    faulty.proxy.blackhole(client_to_server=False)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lose_answer, faulty.proxy, faulty.no_leases)
        revoked = await faulty.client.lease.revoke(lease.id)
    assert revoked.header.cluster_id
    assert await refused_calls(faulty.server, "LeaseRevoke", "NotFound") == unknown + 1


async def test_a_grant_that_never_is_answered_keeps_its_deadline(faulty: Faulty) -> None:
    """A grant that runs into its deadline says that it may have been applied."""
    faulty.proxy.blackhole(client_to_server=False)
    before = monotonic()
    with pytest.raises(DeadlineExceededError) as caught:
        await faulty.client.lease.grant(1, timeout=0.3)
    assert 0.3 <= monotonic() - before < 5
    assert caught.value.maybe_applied


@pytest.mark.own_logic("nothing is answered")
async def test_keep_alive_once_keeps_its_deadline(faulty: Faulty) -> None:
    """A single renewal that is not answered ends at its timeout, however long the lease lives."""
    lease = await faulty.client.lease.grant(30)
    faulty.proxy.blackhole()
    before = monotonic()
    with pytest.raises(DeadlineExceededError) as caught:
        await faulty.client.lease.keep_alive_once(lease.id, timeout=0.3)
    assert 0.3 <= monotonic() - before < 5
    assert caught.value.timeout == 0.3
    # Although the error that is still there holds the frames.
    assert faulty.client.stats().leases == 0
    await faulty.oracle.lease.revoke(lease.id)


@pytest.mark.own_logic("nothing is answered")
async def test_keep_alive_of_a_foreign_lease_keeps_its_deadline(faulty: Faulty) -> None:
    """The first answer for a foreign lease must come within the timeout."""
    lease = await faulty.oracle.lease.grant(30)
    faulty.proxy.blackhole()
    with pytest.raises(DeadlineExceededError, match=re.escape(f"{lease.id:x}")):
        await follow(faulty.client.lease.keep_alive(lease.id, timeout=0.3))
    assert faulty.client.stats().leases == 0
    await faulty.oracle.lease.revoke(lease.id)


@pytest.mark.own_logic("nothing is answered")
async def test_no_server_at_all(quick_server: EtcdServer) -> None:
    """Without a reachable endpoint everything ends at its timeout, and says why."""
    async with FaultProxy(quick_server.endpoint) as proxy:
        proxy.refuse()
        async with Client(proxy.endpoint, timeout=0.3) as client:
            for refused in (client.lease.grant(10), client.lease.leases()):
                with pytest.raises(NoEndpointError) as caught:
                    await refused
                assert not caught.value.maybe_applied
            with pytest.raises(NoEndpointError):
                await client.lease.keep_alive_once(5)
            with pytest.raises(NoEndpointError):
                await follow(client.lease.keep_alive(5))


@pytest.mark.fault("L10")
async def test_many_leases_survive_a_cut(quick_server: EtcdServer) -> None:
    """Five hundred leases on one stream are all renewed after a cut."""
    async with faulty_client(quick_server) as faulty:

        def deadline(lease_id: int) -> float:
            return faulty.client._shared.leases.rules.deadline(lease_id) or 0.0

        limiter = anyio.Semaphore(50)
        ids: list[int] = []

        async def grant() -> None:
            async with limiter:
                ids.append((await faulty.client.lease.grant(5)).id)

        async def revoke(lease_id: int) -> None:
            async with limiter:
                await faulty.client.lease.revoke(lease_id)

        async with anyio.create_task_group() as tasks:
            for _ in range(500):
                tasks.start_soon(grant)
        kept = [faulty.client.lease.keep_alive(lease_id) for lease_id in ids]
        for keep_alive in kept:
            await keep_alive.__aenter__()
        for keep_alive in kept:
            async for _ in keep_alive:
                break
        deadlines = {lease_id: deadline(lease_id) for lease_id in ids}
        faulty.proxy.cut()
        await until(lambda: all(deadline(i) > before for i, before in deadlines.items()))
        assert faulty.client.stats().leases == 500
        assert faulty.client.stats().reconnects == 1
        for keep_alive in kept:
            await keep_alive.__aexit__(None, None, None)
        async with anyio.create_task_group() as tasks:
            for lease_id in ids:
                tasks.start_soon(revoke, lease_id)
        await until(faulty.no_leases)
