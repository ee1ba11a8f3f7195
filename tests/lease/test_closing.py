"""Ending while nobody answers: a session, a revocation, the whole client.

Each test proves that its fault happened. The ids in the names are for finding a case again.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from types import NoneType

import anyio
import pytest

from aioetcd import (
    Client,
    ClientClosedError,
    DeadlineExceededError,
    EtcdError,
    KeepAlive,
    LeaseLostError,
    Lock,
    LockLostError,
    Session,
)
from aioetcd.testing import EtcdServer, FaultProxy
from tests.harness import Faulty, faulty_client
from tests.lease.renewals import keep_alive_metrics
from tests.waiting import lateness, until, until_metric
from tests.watch.following import STREAMS, WATCHERS

pytestmark = pytest.mark.own_logic("what closing leaves of the client")


@pytest.mark.fault("L13")
async def test_l13_leaving_a_session(quick_server: EtcdServer) -> None:
    """A session that is left while nobody answers is done within the smaller of its bounds."""
    await quick_server.clear()
    for timeout, ttl in ((1.0, 30), (10.0, 2)):
        async with faulty_client(quick_server, timeout=timeout) as faulty:
            session = faulty.client.session(ttl=ttl, on_lost="ignore")
            async with lateness() as late:
                async with session:
                    faulty.proxy.blackhole()
                    began = time.monotonic()
                took = time.monotonic() - began
            assert took <= min(timeout, ttl) + 0.5 + late.seconds
            assert faulty.proxy.bytes_swallowed > 0
            if ttl > 10:
                await faulty.oracle.lease.revoke(session.lease_id)
            await until(faulty.no_leases)


async def test_l13_revoking(faulty: Faulty) -> None:
    """A revocation that is not answered ends at its deadline, and says that it may be done."""
    lease = await faulty.client.lease.grant(60)
    faulty.proxy.blackhole(client_to_server=False)
    async with lateness() as late:
        began = time.monotonic()
        with pytest.raises(DeadlineExceededError) as caught:
            await faulty.client.lease.revoke(lease.id, timeout=0.7)
        took = time.monotonic() - began
    assert took <= 1.2 + late.seconds
    assert caught.value.maybe_applied
    assert faulty.proxy.bytes_swallowed > 0
    await until(faulty.no_leases)


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


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, marks=[pytest.mark.fault("P4")] if fault == "slow" else [])
        for fault in FAULTS
    ],
)
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

    async with EtcdServer(quick=True) as server, FaultProxy(server.endpoint) as proxy:
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
            await until(lambda: len(ended["unknown"]) == 1 and client.stats().leases == 8)
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
            await until(lambda: client.stats().calls > calls)
            if fault in ("blackhole", "requests lost", "answers lost"):
                await proxy.wait_until(lambda proxy: proxy.bytes_swallowed > 0)
            async with lateness() as late:
                began = time.monotonic()
                await client.aclose()
                took = time.monotonic() - began
            assert took <= 2 + late.seconds
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
        assert isinstance(lost, LockLostError)

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

            await until(no_stream)
