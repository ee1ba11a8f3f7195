"""Members that do not answer, and are left for another one while the leases live."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest

from aioetcd import Client
from aioetcd._proto import rpc_pb2
from aioetcd.testing import EtcdServer, FaultProxy
from tests.harness import Faulty
from tests.lease.signals import SECOND, LeaseWitness, wait_renewed_for, witnessed
from tests.waiting import until


@asynccontextmanager
async def two_ways(
    server: EtcdServer,
) -> AsyncIterator[tuple[Client, FaultProxy, FaultProxy, LeaseWitness]]:
    """A client with two endpoints, which uses the first one; both lead to one server."""
    await server.clear()
    async with (
        FaultProxy(server.endpoint) as first,
        FaultProxy(server.endpoint) as second,
        Client(server.endpoint) as oracle,
        Client([first.endpoint, second.endpoint]) as client,
        witnessed(client, oracle) as witness,
    ):
        await client.kv.get("connect")
        if client.stats().endpoint != first.endpoint:
            first, second = second, first
        yield client, first, second, witness


@pytest.mark.fault("L8")
@pytest.mark.parametrize(
    ("ttl", "pause", "warm"),
    [
        pytest.param(6, 0, False, id="at once"),
        pytest.param(6, 0, True, id="on a stream that has answered"),
        pytest.param(8, 3, False, id="late"),
    ],
)
async def test_a_member_that_granted_and_then_hangs(
    quick_server: EtcdServer, ttl: int, pause: float, *, warm: bool
) -> None:
    """A lease is renewed elsewhere in time, though its member has answered no renewal of it."""
    async with two_ways(quick_server) as (client, first, second, witness):
        other = None
        if warm:
            other = await client.lease.grant(600)
            await client.lease.keep_alive_once(other.id)
        lease = await client.lease.grant(ttl)
        granted_ns = time.monotonic_ns()
        await witness.attach(lease.id)
        await anyio.sleep(pause)  # the age of the lease is what this is about
        assert client.stats().endpoint == first.endpoint
        first.hang()
        async with witness.keep(lease.id) as keep_alive:
            renewal = await anext(keep_alive)
            assert renewal.id == lease.id
            # It was asked for at the member that hangs, and then at the other one.
            assert len(witness.spy.reopened_ns) == 2
            sent = [s.at_ns for s in witness.signals(lease.id, "sent")]
            assert sent[0] < witness.spy.reopened_ns[1] <= sent[-1]
            (answered,) = witness.signals(lease.id, "answered")
            assert (answered.sent_ns or 0) > witness.spy.reopened_ns[1]
            await until(lambda: time.monotonic_ns() > granted_ns + (ttl + 0.3) * SECOND)
            assert client.stats().endpoint == second.endpoint
            assert client.stats().reconnects == 1
            assert witness.nothing_lost
        await witness.revoke(lease.id)
        if other is not None:
            await client.lease.revoke(other.id)


@pytest.mark.alone("L9: a link as slow as so short a lease can stand leaves no time to lose")
async def test_a_slow_link_is_not_left(quick_server: EtcdServer) -> None:
    """Answers over a link of 300 ms each way and 20 kB/s are waited for, the first one too."""
    async with two_ways(quick_server) as (client, first, second, witness):
        for proxy in (first, second):
            proxy.delay(0.3)
            proxy.rate(20_000)
        async with AsyncExitStack() as kept:
            leases = []
            for ttl in (2, 3):
                leases.append(await client.lease.grant(ttl))
                await kept.enter_async_context(witness.keep(leases[-1].id))
            for lease in leases:
                await wait_renewed_for(witness, lease.id, 1.0)
                answered = witness.signals(lease.id, "answered")
                assert min(s.at_ns - (s.sent_ns or 0) for s in answered) >= 0.6 * SECOND
            assert client.stats().endpoint == first.endpoint
            assert client.stats().reconnects == 0
            assert len(witness.spy.reopened_ns) == 1
            assert witness.nothing_lost
        for proxy in (first, second):
            await proxy.heal()
        for lease in leases:
            await witness.revoke(lease.id)


@pytest.mark.fault("L9")
async def test_the_only_member_is_waited_for(faulty: Faulty) -> None:
    """Where there is nobody else to ask, a stream is not left for answers that take long."""
    lease = await faulty.client.lease.grant(4)
    async with faulty.client.lease.keep_alive(lease.id) as keep_alive:
        await anext(keep_alive)
        faulty.proxy.delay(1.2)  # each way: with another endpoint it would be left after 2 s
        asked = time.monotonic()
        while time.monotonic() < asked + 3:  # one that was asked for by now, at the earliest
            await anext(keep_alive)
        assert faulty.client.stats().reconnects == 0
    await faulty.proxy.heal()
    await faulty.client.lease.revoke(lease.id)


@pytest.mark.fault("L4")
async def test_a_blocked_loop_is_no_silent_member(quick_server: EtcdServer) -> None:
    """A member is not left for an answer that lay there unread while the loop was blocked."""
    port = quick_server.endpoint.rpartition(":")[2]
    await quick_server.clear()
    # No proxies: they would be blocked as well.
    async with Client([quick_server.endpoint, f"localhost:{port}"]) as client:
        await client.kv.get("connect")
        used = client.stats().endpoint
        lease = await client.lease.grant(4)
        lane = client._shared.leases.rules.lanes[0]  # what a first lease is renewed on
        next_request = lane.next_request
        blocked: list[float] = []

        def block() -> None:
            began = time.monotonic()
            time.sleep(2.4)  # half of the lease's time is 2 s
            blocked.append(time.monotonic() - began)

        def send_and_block(now: float) -> rpc_pb2.LeaseKeepAliveRequest | None:
            request = next_request(now)
            if request is not None and not blocked:
                asyncio.get_running_loop().call_soon(block)
            return request

        async with client.lease.keep_alive(lease.id) as keep_alive:
            await anext(keep_alive)
            # On a stream that has answered, a renewal leaves before the loop is blocked.
            lane.next_request = send_and_block  # type: ignore[method-assign]
            await anext(keep_alive)
            assert len(blocked) == 1
            await anext(keep_alive)
            assert client.stats().endpoint == used
            assert client.stats().reconnects == 0
        await client.lease.revoke(lease.id)
