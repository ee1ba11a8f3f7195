"""Leases at a real server: granting, revoking, looking, keeping alive."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any

import anyio
import pytest

from aioetcd import Client, KeepAlive, LeaseExistsError, LeaseExpiredError, LeaseNotFoundError, Op
from aioetcd.testing import EtcdServer
from tests.harness import Faulty
from tests.lease.renewals import UNKNOWN, follow, keep_alive_metrics, renewed_for
from tests.waiting import until

# Granting and revoking.


async def test_grant(client: Client) -> None:
    """A granted lease has an id and the time to live asked for, and is there."""
    lease = await client.lease.grant(60)
    assert lease.ttl == 60
    assert lease.header.cluster_id
    assert (await client.lease.leases()).ids == (lease.id,)
    await client.lease.revoke(lease.id)
    assert (await client.lease.leases()).ids == ()


async def test_grant_tells_what_the_server_made_of_it(client: Client) -> None:
    """The server's smallest time to live is what counts, not the smaller one asked for."""
    began = monotonic()
    lease = await client.lease.grant(1)
    assert lease.ttl == 2
    left = await client.lease.time_to_live(lease.id)
    assert left.granted_ttl == 2
    expires_in = client.lease.keep_alive(lease.id).expires_in or 0
    assert 2.0 - (monotonic() - began) <= expires_in <= 2.0
    await client.lease.revoke(lease.id)


async def test_grant_takes_the_longest_time(client: Client) -> None:
    """The longest time to live that etcd knows can be granted and kept alive."""
    lease = await client.lease.grant(9_000_000_000)
    assert lease.ttl == 9_000_000_000
    assert (await client.lease.keep_alive_once(lease.id)).ttl == 9_000_000_000
    await client.lease.revoke(lease.id)


@pytest.mark.parametrize("lease_id", [-(2**63), -0x1F, 1, 2**63 - 1])
async def test_any_id_of_ones_own(client: Client, lease_id: int) -> None:
    """An id may be any that etcd's numbers allow, as others choose them; all calls take it."""
    assert (await client.lease.grant(60, lease_id=lease_id)).id == lease_id
    await client.kv.put("k", "v", lease=lease_id)
    got = await client.kv.get("k")
    if got.kv is not None and got.kv.lease is not None:  # etcd 3.7 leaves it out
        assert got.kv.lease == lease_id
    left = await client.lease.time_to_live(lease_id, keys=True)
    assert (left.id, left.keys) == (lease_id, (b"k",))
    assert (await client.lease.leases()).ids == (lease_id,)
    assert (await client.lease.keep_alive_once(lease_id)).id == lease_id
    assert (await anext(client.lease.keep_alive(lease_id))).ttl == 60
    await client.lease.revoke(lease_id)
    assert (await client.kv.get("k")).kv is None
    with pytest.raises(LeaseNotFoundError, match="requested lease not found"):
        await client.lease.revoke(lease_id)
    with pytest.raises(LeaseNotFoundError, match=f"lease {lease_id:x} is not known"):
        await client.lease.keep_alive_once(lease_id)


async def test_a_negative_id_is_told_as_go_does(client: Client) -> None:
    """A negative id stands in an error as ``etcdctl`` would print it and take it."""
    with pytest.raises(LeaseNotFoundError, match="lease -1f is not known"):
        await client.lease.time_to_live(-31)
    assert repr(client.lease.keep_alive(-31)) == "<KeepAlive -1f>"


async def test_grant_of_a_taken_id(client: Client) -> None:
    """An id that is taken is refused, and the lease that has it is unharmed."""
    await client.lease.grant(60, lease_id=77)
    with pytest.raises(LeaseExistsError) as caught:
        await client.lease.grant(120, lease_id=77)
    assert caught.value.code == "FAILED_PRECONDITION"
    assert not caught.value.maybe_applied
    assert (await client.lease.time_to_live(77)).granted_ttl == 60
    await client.lease.revoke(77)


@pytest.mark.own_logic("nothing is sent")
@pytest.mark.parametrize(
    ("ttl", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        (9_000_000_001, ValueError),
        (1.5, TypeError),
        (True, TypeError),
        ("10", TypeError),
        (None, TypeError),
    ],
)
async def test_grant_refuses_a_wrong_ttl(ttl: Any, error: type[Exception]) -> None:
    """A time to live that is none is refused before anything is sent, by name."""
    client = Client("127.0.0.1:1")
    with pytest.raises(error, match="ttl"):
        await client.lease.grant(ttl)
    with pytest.raises(error, match="ttl"):
        client.session(ttl=ttl)


@pytest.mark.own_logic("nothing is sent")
@pytest.mark.parametrize(
    ("lease_id", "error"),
    [
        (0, ValueError),
        (-(2**63) - 1, ValueError),
        (2**63, ValueError),
        (1.0, TypeError),
        (True, TypeError),
    ],
)
async def test_a_wrong_id_is_refused(lease_id: Any, error: type[Exception]) -> None:
    """An id that etcd cannot have is refused everywhere before anything is sent, by name."""
    leases = Client("127.0.0.1:1").lease
    with pytest.raises(error, match="lease_id"):
        await leases.grant(10, lease_id=lease_id)
    with pytest.raises(error, match=r"^lease must"):
        await leases.revoke(lease_id)
    with pytest.raises(error, match=r"^lease must"):
        await leases.time_to_live(lease_id)
    with pytest.raises(error, match=r"^lease must"):
        leases.keep_alive(lease_id)
    with pytest.raises(error, match=r"^lease must"):
        await leases.keep_alive_once(lease_id)


async def test_whatever_stands_on_a_lease_names_it(client: Client) -> None:
    """A `Lease`, a `Session` and a `Lock` are taken wherever a lease's id is."""
    granted = await client.lease.grant(10)
    async with client.session(ttl=10) as session, client.lock("L", ttl=10) as lock:
        for lease, lease_id in (
            (granted, granted.id),
            (session, session.lease_id),
            (lock, lock.lease_id),
        ):
            await client.kv.put("k", "v", lease=lease)
            found = (await client.kv.get("k")).kv
            assert found is not None
            assert found.lease == lease_id
            assert b"k" in (await client.lease.time_to_live(lease, keys=True)).keys
            assert (await client.lease.keep_alive_once(lease)).id == lease_id
            async with client.lease.keep_alive(lease) as renewals:
                assert (await anext(renewals)).id == lease_id
            await client.kv.txn(success=[Op.put("k", "w", lease=lease)])
    await client.lease.revoke(granted)
    with pytest.raises(LeaseNotFoundError):
        await client.lease.time_to_live(granted)


async def test_an_unknown_lease_is_not_found_anywhere(client: Client) -> None:
    """Whatever is asked of a lease that is not there raises the same error."""
    with pytest.raises(LeaseNotFoundError):
        await client.lease.revoke(UNKNOWN)
    with pytest.raises(LeaseNotFoundError):
        await client.lease.time_to_live(UNKNOWN)
    with pytest.raises(LeaseNotFoundError):
        await client.lease.keep_alive_once(UNKNOWN)
    with pytest.raises(LeaseNotFoundError):
        await follow(client.lease.keep_alive(UNKNOWN))
    with pytest.raises(LeaseNotFoundError):
        await client.kv.put("k", "v", lease=UNKNOWN)


async def test_revoke_deletes_the_keys(client: Client) -> None:
    """Revoking a lease deletes its keys at the revision that the answer tells, and no others."""
    lease = await client.lease.grant(60)
    await client.kv.put("with", "v", lease=lease.id)
    put = await client.kv.put("without", "v")
    revoked = await client.lease.revoke(lease.id)
    assert revoked.header.revision == put.header.revision + 1
    assert [kv.key for kv in (await client.kv.get("", prefix=True)).kvs] == [b"without"]


async def test_time_to_live(client: Client) -> None:
    """What is left of a lease is told with its keys where asked for, in order."""
    lease = await client.lease.grant(60)
    for key in ("b", "a", "c"):
        await client.kv.put(key, "v", lease=lease.id)
    left = await client.lease.time_to_live(lease.id, keys=True)
    assert left.id == lease.id
    assert left.granted_ttl == 60
    assert 55 <= left.ttl <= 60
    assert sorted(left.keys) == [b"a", b"b", b"c"]
    assert (await client.lease.time_to_live(lease.id)).keys == ()
    await client.lease.revoke(lease.id)


async def test_time_to_live_of_the_last_second(faulty: Faulty) -> None:
    """A lease with less than a second left, which etcd tells as 0, is there."""
    lease = await faulty.client.lease.grant(1)
    left = await faulty.client.lease.time_to_live(lease.id)
    assert (left.id, left.ttl, left.granted_ttl) == (lease.id, 0, 1)
    await faulty.client.lease.revoke(lease.id)


async def test_leases_lists_all(client: Client) -> None:
    """Leases of every client are listed."""
    ids = {(await client.lease.grant(60)).id for _ in range(5)}
    listed = await client.lease.leases()
    assert set(listed.ids) == ids
    assert len(listed.ids) == 5
    for lease_id in ids:
        await client.lease.revoke(lease_id)


# Keeping alive.


@pytest.mark.fault("a lease outlives its time, which takes longer than that")
async def test_keep_alive_outlives_the_ttl(client: Client) -> None:
    """A lease in a keep-alive loop lives on beyond its time to live, and each answer is an item."""
    lease = await client.lease.grant(2)
    await client.kv.put("k", "v", lease=lease.id)
    renewals = await renewed_for(client.lease.keep_alive(lease.id), 2.5)
    assert (await client.kv.get("k")).value == b"v"
    # At once, then each 0.6 s or a little more.
    assert 3 <= len(renewals) <= 7
    assert {(renewal.id, renewal.ttl) for renewal in renewals} == {(lease.id, 2)}
    assert renewals[0].header.cluster_id
    await client.lease.revoke(lease.id)


@pytest.mark.fault("a lease outlives its time, which takes longer than that")
async def test_a_slow_loop_keeps_the_lease_alive(faulty: Faulty) -> None:
    """The lease is renewed whether or not the loop keeps pace, and the loop sees the latest."""
    lease = await faulty.client.lease.grant(3)
    _, _, before = await keep_alive_metrics(faulty.server)

    async def renewed_often() -> bool:
        return (await keep_alive_metrics(faulty.server))[2] >= before + 6

    async with faulty.client.lease.keep_alive(lease.id) as keep_alive:
        async for _ in keep_alive:
            await until(renewed_often)
            break
        # In the block, the loop may be left and entered again; one answer is kept for it.
        with anyio.move_on_after(0.1) as scope:
            count = 0
            async for _ in keep_alive:
                count += 1
        assert scope.cancelled_caught
        assert 1 <= count <= 2
        assert await faulty.lease_ids() == (lease.id,)
    await faulty.client.lease.revoke(lease.id)


async def leave_by_break(keep_alive: KeepAlive) -> None:
    async for _ in keep_alive:
        break


async def leave_by_exception(keep_alive: KeepAlive) -> None:
    async def fail() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        await follow(keep_alive, fail)


async def leave_by_scope(keep_alive: KeepAlive) -> None:
    with anyio.CancelScope() as scope:
        async for _ in keep_alive:
            scope.cancel()
    assert scope.cancelled_caught


async def leave_by_task_cancellation(keep_alive: KeepAlive) -> None:
    renewed = anyio.Event()

    async def loop() -> None:
        async for _ in keep_alive:
            renewed.set()

    task = asyncio.create_task(loop())
    await renewed.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def leave_by_aclose(keep_alive: KeepAlive) -> None:
    async for _ in keep_alive:
        await keep_alive.aclose()
        await keep_alive.aclose()


async def leave_the_block(keep_alive: KeepAlive) -> None:
    async with keep_alive:
        async for _ in keep_alive:
            break


LEAVING = [
    leave_by_break,
    leave_by_exception,
    leave_by_scope,
    leave_by_task_cancellation,
    leave_by_aclose,
    leave_the_block,
]


@pytest.mark.fault("leases run out that nobody renews")
async def test_leaving_the_loop_stops_the_renewals(faulty: Faulty) -> None:
    """However a keep-alive loop is left, the lease ends by itself and the stream is closed."""
    leases = set()
    started, ended, _ = await keep_alive_metrics(faulty.server)
    for leave in LEAVING:
        lease = await faulty.client.lease.grant(3)
        leases.add(lease.id)
        await leave(faulty.client.lease.keep_alive(lease.id))
        assert faulty.client.stats().leases == 0
    assert set(await faulty.lease_ids()) == leases

    async def all_streams_ended() -> bool:
        now_started, now_ended, _ = await keep_alive_metrics(faulty.server)
        return now_started - started == now_ended - ended > 0

    await until(all_streams_ended)
    await until(faulty.no_leases)


async def enter_in_a_cancelled_scope(keep_alive: KeepAlive) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        async with keep_alive:
            pytest.fail("it was entered")
    assert scope.cancelled_caught


async def enter_in_a_cancelled_task(keep_alive: KeepAlive) -> None:
    async def enter() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        async with keep_alive:
            pytest.fail("it was entered")

    task = asyncio.create_task(enter())
    with pytest.raises(asyncio.CancelledError):
        await task


async def loop_in_a_cancelled_scope(keep_alive: KeepAlive) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await follow(keep_alive)
    assert scope.cancelled_caught


@pytest.mark.own_logic("nothing is renewed")
@pytest.mark.parametrize(
    "enter", [enter_in_a_cancelled_scope, enter_in_a_cancelled_task, loop_in_a_cancelled_scope]
)
async def test_entered_when_cancelled_already(
    client: Client, enter: Callable[[KeepAlive], Awaitable[None]]
) -> None:
    """A keep-alive whose block is never entered, being cancelled, leaves nothing renewing."""
    lease = await client.lease.grant(60)
    await enter(client.lease.keep_alive(lease.id))
    assert client.stats().leases == 0
    await client.lease.revoke(lease.id)


@pytest.mark.fault("a lease outlives its time, which takes longer than that")
async def test_leaving_one_lease_does_not_stop_the_others(faulty: Faulty) -> None:
    """The renewals of a lease go on when those of others are no longer wanted."""
    kept, *left = [await faulty.client.lease.grant(3) for _ in range(20)]
    async with faulty.client.lease.keep_alive(kept.id) as keep_alive:
        for lease in left:  # they would be due at different times
            await leave_the_block(faulty.client.lease.keep_alive(lease.id))
        assert len(await renewed_for(keep_alive, 3.5)) >= 3
    await faulty.client.lease.revoke(kept.id)
    await until(faulty.no_leases)


@pytest.mark.fault("leases outlive their time, which takes longer than that")
async def test_leases_that_come_and_go(faulty: Faulty, rng: random.Random) -> None:
    """Whoever begins to keep a lease, and lets it go, when they like: none is lost meanwhile."""
    end = monotonic() + 10

    async def come_and_go() -> None:
        while monotonic() < end:
            lease = await faulty.client.lease.grant(rng.randint(4, 6))
            async with faulty.client.lease.keep_alive(lease.id) as keep_alive:
                until = monotonic() + rng.choice([0.0, 0.1, 0.5, 4.0, 8.0]) * rng.random()
                async for renewal in keep_alive:
                    assert renewal.ttl == lease.ttl
                    if monotonic() > until:
                        break
                else:
                    pytest.fail("it has ended by itself")
                assert (keep_alive.expires_in or 0) > lease.ttl / 3
            await faulty.client.lease.revoke(lease.id)

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(come_and_go)


@pytest.mark.fault("a lease outlives its time, which takes longer than that")
async def test_two_keep_alives_of_one_lease(faulty: Faulty) -> None:
    """Each of two loops sees the answers, and the lease is kept until the second one is left."""
    lease = await faulty.client.lease.grant(3)
    both = [faulty.client.lease.keep_alive(lease.id) for _ in range(2)]
    async with both[1]:
        async with both[0]:
            for keep_alive in both:
                assert (await anext(keep_alive)).ttl == 3
            assert faulty.client.stats().leases == 1
        assert len(await renewed_for(both[1], 3.5)) >= 2
    assert await faulty.lease_ids() == (lease.id,)
    await faulty.client.lease.revoke(lease.id)


@pytest.mark.own_logic("the streams that the client opens")
async def test_all_leases_share_one_stream(client: Client, server: EtcdServer) -> None:
    """Many leases are kept alive over one stream."""
    leases = [await client.lease.grant(60) for _ in range(50)]
    started, _, received = await keep_alive_metrics(server)

    async def first_renewal(lease_id: int) -> None:
        async with client.lease.keep_alive(lease_id) as keep_alive:
            async for _ in keep_alive:
                break
            everybody.append(lease_id)
            await all_renewed.wait()

    everybody: list[int] = []
    all_renewed = anyio.Event()
    async with anyio.create_task_group() as tasks:
        for lease in leases:
            tasks.start_soon(first_renewal, lease.id)
        await until(lambda: len(everybody) == 50)
        now_started, _, now_received = await keep_alive_metrics(server)
        all_renewed.set()
    assert now_started == started + 1
    assert now_received == received + 50
    for lease in leases:
        await client.lease.revoke(lease.id)


@pytest.mark.fault("a lease outlives its time, which takes longer than that")
async def test_keep_alive_of_a_foreign_lease(faulty: Faulty) -> None:
    """A lease that another client granted can be kept alive; its time is known by the answer."""
    lease = await faulty.oracle.lease.grant(3)
    assert faulty.client.lease.keep_alive(lease.id).expires_in is None
    keep_alive = faulty.client.lease.keep_alive(lease.id)
    assert (await anext(keep_alive)).ttl == 3
    assert 0 < (keep_alive.expires_in or 0) <= 3
    assert len(await renewed_for(keep_alive, 3.5)) >= 2
    assert await faulty.lease_ids() == (lease.id,)
    await faulty.oracle.lease.revoke(lease.id)


async def test_keep_alive_once(client: Client) -> None:
    """One renewal gives the lease its full time again, and is answered by its own answer."""
    lease = await client.lease.grant(60)
    for _ in range(3):
        renewal = await client.lease.keep_alive_once(lease.id)
        assert (renewal.id, renewal.ttl) == (lease.id, 60)
    assert client.stats().leases == 0
    assert client.lease.keep_alive(lease.id).expires_in == pytest.approx(60, abs=2)
    await client.lease.revoke(lease.id)


@pytest.mark.own_logic("who of several gets an answer")
async def test_keep_alive_once_beside_a_loop(client: Client) -> None:
    """A single renewal beside a running loop disturbs nobody."""
    lease = await client.lease.grant(60)
    async with client.lease.keep_alive(lease.id) as keep_alive:
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(client.lease.keep_alive_once, lease.id)
        assert (await anext(aiter(keep_alive))).id == lease.id
        assert client.stats().leases == 1
    await client.lease.revoke(lease.id)


@pytest.mark.fault("L2")
async def test_expires_in_counts_down_and_is_raised_by_an_answer(faulty: Faulty) -> None:
    """`expires_in` falls with the time, jumps back with a renewal, and is 0 after the loss."""
    lease = await faulty.client.lease.grant(2)
    keep_alive = faulty.client.lease.keep_alive(lease.id)
    first = keep_alive.expires_in
    assert first is not None
    assert 0 < first <= 2
    await until(lambda: 0 < (keep_alive.expires_in or 0) < first - 0.2)
    low = keep_alive.expires_in
    low_at = monotonic()
    assert low is not None
    await anext(keep_alive)
    assert monotonic() + (keep_alive.expires_in or 0) > low_at + low
    faulty.proxy.blackhole()
    with pytest.raises(LeaseExpiredError):
        await renewed_for(keep_alive, 10)
    assert keep_alive.expires_in == 0
    assert faulty.proxy.bytes_swallowed > 0
