"""Grants that go unanswered or are refused, and what the server grants.

Each test proves that its fault happened. The ids in the names are for finding a case again.
"""

from __future__ import annotations

from itertools import pairwise
from statistics import median
from typing import Any

import anyio
import pytest

from aioetcd import (
    Client,
    DeadlineExceededError,
    LeaseNotFoundError,
    NoSpaceError,
)
from aioetcd._transport import unary as unary_module
from aioetcd._transport.methods import LEASE_TIME_TO_LIVE
from aioetcd.testing import EtcdServer
from tests.harness import Faulty, faulty_client, lose_answer, refused_calls
from tests.lease.signals import SECOND, kept_lease, wait_renewed_for, witnessed
from tests.waiting import until


async def test_l11_grant_without_an_answer(faulty: Faulty) -> None:
    """A session whose grant's answer was lost takes the lease for its own, and leaves none."""
    existed = await refused_calls(faulty.server, "LeaseGrant", "FailedPrecondition")
    faulty.proxy.blackhole(client_to_server=False)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lose_answer, faulty.proxy, faulty.has_leases)
        async with faulty.client.session(ttl=600) as session:
            assert await faulty.lease_ids() == (session.lease_id,)
            assert (await faulty.oracle.lease.time_to_live(session.lease_id)).granted_ttl == 600
    # The second try was told that the lease exists.
    told = await refused_calls(faulty.server, "LeaseGrant", "FailedPrecondition")
    assert told == existed + 1
    assert faulty.client.stats().retries == 1
    assert await faulty.lease_ids() == ()


async def heal_when_it_has_run_out(faulty: Faulty) -> None:
    """Wait until a lease was granted, and is over."""
    await until(faulty.has_leases)
    await until(faulty.no_leases)
    await faulty.proxy.heal()


async def test_l11_grant_answered_too_late(faulty: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grant whose answer came after the lease had run out is an error: no session is entered."""
    monkeypatch.setattr(unary_module, "PATIENCE", 60)  # nobody looks what the member is doing
    faulty.proxy.hold_after(0)
    entered = False

    async def use() -> None:
        nonlocal entered
        async with faulty.client.session(ttl=1):
            entered = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(heal_when_it_has_run_out, faulty)
        with pytest.raises(LeaseNotFoundError):
            await use()
    assert not entered


@pytest.mark.fault("L11")
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
        await until(lambda: "could not be revoked" in caplog.text)
        assert faulty.proxy.bytes_swallowed > 0
        await until(faulty.no_leases)


def break_before_asking(faulty: Faulty) -> None:
    """Let no answer come any more from when the client asks what is left of a lease."""
    transport = faulty.client._transport
    unary = transport.unary

    async def asking(method: Any, *args: Any, **options: Any) -> Any:
        if method is LEASE_TIME_TO_LIVE:
            faulty.proxy.blackhole(client_to_server=False)
        return await unary(method, *args, **options)

    transport.unary = asking  # type: ignore[method-assign]


@pytest.mark.fault("L11")
async def test_l11_grant_without_an_answer_twice(faulty: Faulty) -> None:
    """A grant repeated that cannot be told from another's may be applied, and ends at its time."""
    break_before_asking(faulty)
    faulty.proxy.blackhole(client_to_server=False)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lose_answer, faulty.proxy, faulty.has_leases)
        with pytest.raises(DeadlineExceededError) as caught:
            await faulty.client.lease.grant(600, lease_id=78, timeout=2)
    assert caught.value.maybe_applied
    assert caught.value.timeout is not None
    assert caught.value.timeout < 2  # what was left
    await faulty.oracle.lease.revoke(78)


@pytest.mark.fault("L13")
async def test_l13_revocation_without_an_answer_twice(faulty: Faulty) -> None:
    """A revocation repeated of which the end is not known may be applied, and ends at its time."""
    lease = await faulty.client.lease.grant(600)
    break_before_asking(faulty)
    faulty.proxy.blackhole(client_to_server=False)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lose_answer, faulty.proxy, faulty.no_leases)
        with pytest.raises(DeadlineExceededError) as caught:
            await faulty.client.lease.revoke(lease.id, timeout=2)
    assert caught.value.maybe_applied
    assert caught.value.timeout is not None
    assert caught.value.timeout < 2  # what was left


@pytest.mark.fault("L11")
async def test_l11_grant_answered_too_late_and_then_nothing(
    faulty: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it cannot be asked whether a lease granted so late still lives, it may be there."""
    # Nobody looks what the member is doing, and finds that it hangs.
    monkeypatch.setattr(faulty.client._transport.picker, "doubt", lambda *_: None)
    faulty.proxy.hold_after(0)
    rules = faulty.client._shared.leases.rules
    granted = rules.granted

    def break_when_granted(lease_id: int, ttl: int, sent_at: float, now: float) -> None:
        faulty.proxy.blackhole()
        granted(lease_id, ttl, sent_at, now)

    rules.granted = break_when_granted  # type: ignore[method-assign]

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(heal_when_it_has_run_out, faulty)
        with pytest.raises(DeadlineExceededError) as caught:
            await faulty.client.lease.grant(1, timeout=5)
    assert caught.value.maybe_applied
    assert caught.value.timeout is not None
    assert caught.value.timeout < 5  # what was left


@pytest.mark.fault("L12")
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
        assert max(first, *pauses) <= 2 * third + witness.late.seconds * SECOND
        assert {signal.ttl for signal in witness.signals(lease_id, "answered")} == {granted}
        assert witness.nothing_lost
        assert not session.is_lost


@pytest.mark.fault("L14")
async def test_l14_no_space() -> None:
    """A store without space refuses grants clearly and once, and goes on renewing leases."""
    async with (
        EtcdServer(quick=True, args=["--quota-backend-bytes=17000000"]) as server,
        Client(server.endpoint) as client,
        Client(server.endpoint) as oracle,
        witnessed(client, oracle) as witness,
        kept_lease(witness, client, 2) as (lease_id, _),
    ):
        with pytest.raises(NoSpaceError):  # noqa: PT012  # any of them may be the one
            for _ in range(200):  # the server looks at its size when it has committed, by and by
                await client.kv.put("big", b"x" * 1_000_000)
        retries = client.stats().retries
        for _ in range(3):
            with pytest.raises(NoSpaceError) as caught:
                await client.lease.grant(5)
            assert caught.value.maybe_applied
        assert client.stats().retries == retries
        await wait_renewed_for(witness, lease_id, 2.2)
        assert witness.nothing_lost
