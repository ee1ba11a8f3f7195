"""One caller's haste, an endpoint that lies, a silent connection: nobody else notices."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import anyio
import anyio.lowlevel
import pytest

from aioetcd import (
    Client,
    ClusterMismatchError,
    DeadlineExceededError,
    EtcdError,
    NoEndpointError,
    UnsupportedByServerError,
)
from aioetcd._constructor import create
from aioetcd._proto.lock_pb2 import LockRequest
from aioetcd._transport import members
from aioetcd._transport import picker as picker_module
from aioetcd._transport.call import Failure
from aioetcd._transport.methods import LOCK
from aioetcd._transport.transport import Transport
from aioetcd.kv import KV
from aioetcd.testing import EtcdCluster, EtcdServer, FaultProxy
from tests._transport.test_look import Answering
from tests._transport.weather import Forgetful, connected
from tests.harness import first_in_use
from tests.programs import run_program, stranger
from tests.waiting import lateness, until

# --- haste -------------------------------------------------------------------------------------


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a member that is in doubt more time than it takes on the slowest machine."""
    monkeypatch.setattr(picker_module, "_DOUBT_TIMEOUT", 10.0)


async def hurry(transport: Transport, rng: random.Random, is_enough: Callable[[int], bool]) -> None:
    """Call with deadlines that nobody could keep, or hardly.

    Args:
        transport: Through it.
        rng: Chooses.
        is_enough: Whether to end, by how many were missed.
    """
    kv = create(KV, transport)
    missed = 0
    while not is_enough(missed):
        timeout = 10 ** rng.uniform(-6, -1.22)  # 1 µs to 60 ms
        call = (
            kv.put("hasty", "v", timeout=timeout)
            if rng.random() < 0.5
            else kv.get("hasty", timeout=timeout)
        )
        try:
            await call
        except DeadlineExceededError:
            missed += 1
        except NoEndpointError:  # a write that waited for what the last one's haste has meant
            missed += 1


async def nobody_notices(
    proxy: FaultProxy,
    other: str | None,
    rng: random.Random,
    caplog: pytest.LogCaptureFixture,
    *,
    has_neighbours: bool,
) -> None:
    """Hurry through a proxy, and see that nobody else is harmed."""
    endpoints = [proxy.endpoint] if other is None else [proxy.endpoint, other]
    async with connected(*endpoints, timeout=5) as transport:
        kv = create(KV, transport)
        await kv.put("k", "v")
        before = transport.picker.current
        connections = proxy.connections_total
        proxy.delay(0.015)  # there and back 30 ms
        over = False
        calls = 0
        end = time.monotonic() + 1.2

        def is_enough(missed: int) -> bool:
            has_called = calls > 20 or not has_neighbours
            return missed > 20 and has_called and time.monotonic() > end

        async def neighbour(number: int) -> None:
            nonlocal calls
            while not over:
                await kv.put(f"k{number}", "v")
                assert (await kv.get(f"k{number}")).value == b"v"
                calls += 1

        with anyio.fail_after(15):  # where neighbours are harmed it is never enough
            async with anyio.create_task_group() as group:
                for number in range(4 if has_neighbours else 0):
                    group.start_soon(neighbour, number)
                await hurry(transport, rng, is_enough)
                over = True
        await until(lambda: not transport.picker._doubts)
        assert transport.picker.current is before
        assert transport.picker.members.moves == 0
        assert proxy.connections_total == connections
        assert transport.monitor.retries == 0
        assert not [record for record in caplog.records if record.levelname != "DEBUG"]


@pytest.mark.own_logic("the deadlines are the client's")
@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("other", ["alone", "dead", "silent"])
@pytest.mark.parametrize("has_neighbours", [True, False], ids=["neighbours", "nobody else"])
async def test_z10_haste_is_nobody_elses(
    proxy: FaultProxy,
    rng: random.Random,
    caplog: pytest.LogCaptureFixture,
    other: str,
    has_neighbours: bool,
) -> None:
    """Deadlines too short for anybody move nobody, connect nobody anew, and fail nobody else."""
    async with FaultProxy("127.0.0.1:9") as second:
        if other == "dead":
            second.refuse()
        else:
            second.hang()
        endpoint = None if other == "alone" else second.endpoint
        await nobody_notices(proxy, endpoint, rng, caplog, has_neighbours=has_neighbours)


@pytest.mark.fault("Z10")
@pytest.mark.usefixtures("patient")
async def test_z10_beside_one_without_a_quorum(
    rng: random.Random, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody is sent to a member that is cut off from the others."""
    async with EtcdCluster() as cluster:
        cut = await cluster.isolate("leader")
        _ = await cluster.leader()
        index = next(i for i, member in enumerate(cluster.members) if member is not cut.member)
        proxy, other = cluster.client_proxies[index], cut.member.endpoint
        await nobody_notices(proxy, other, rng, caplog, has_neighbours=True)
        assert cut.bytes_swallowed > 0


@pytest.mark.usefixtures("patient")
async def test_z10_what_a_handler_waits_for(client: Client) -> None:
    """A server that gives up with the caller, and says so as if it were its own error."""
    transport = client._transport
    async with client.session() as one, client.session() as other:
        _ = await transport.unary(LOCK, LockRequest(name=b"/l", lease=one.lease_id))
        used = transport.picker.current
        for _ in range(20):
            # A write would wait for what the last one's haste has meant, and for 0.05 s at the most
            await until(lambda: not transport.picker._doubts)
            with pytest.raises(DeadlineExceededError, match="no answer"):
                _ = await transport.unary(LOCK, LockRequest(name=b"/l", lease=other.lease_id), 0.05)
            assert transport.picker.current is used
        await until(lambda: not transport.picker._doubts)
        assert transport.picker.current is used


@pytest.mark.parametrize("code", ["UNKNOWN", "UNAVAILABLE", "DEADLINE_EXCEEDED"])
@pytest.mark.parametrize("text", ["context deadline exceeded", "mutex: context deadline exceeded"])
def test_a_deadline_by_gos_text(code: str, text: str) -> None:
    """It may be the caller's own, whatever code comes with it."""
    assert Failure(code, text).is_deadline


@pytest.mark.alone("Z11: CPU time")
@pytest.mark.parametrize("moment", ["before the first call", "in use", "in a search"])
async def test_z11_waiting_costs_nothing(
    proxy: FaultProxy, server: EtcdServer, moment: str
) -> None:
    """Sixty callers who wait through a total outage sleep, and all are served after it."""
    async with (
        FaultProxy(server.endpoint) as second,
        connected(proxy.endpoint, second.endpoint, timeout=30) as transport,
    ):
        kv = create(KV, transport)
        if moment == "before the first call":
            proxy.refuse()
            second.hang()
        else:
            await kv.get("k")
        if moment == "in a search":
            proxy.hang()
            second.refuse()
            with pytest.raises(EtcdError):
                await kv.get("k", timeout=0.5)
            await until(lambda: transport.picker.current is None)
        async with anyio.create_task_group() as group:
            for number in range(60):
                group.start_soon(kv.get, f"k{number}")
            await anyio.lowlevel.checkpoint()
            proxy.refuse()
            proxy.cut()
            second.refuse()
            second.cut()
            began, used = time.monotonic(), time.process_time()
            await anyio.sleep(5)  # for as long as the CPU time is measured
            used, seconds = time.process_time() - used, time.monotonic() - began
            assert transport.picker.current is None
            await proxy.heal()
        assert used / seconds < 0.1


# --- lies --------------------------------------------------------------------------------------


@pytest.fixture
def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an endpoint looked at when the one before has answered, however slow this machine is."""
    monkeypatch.setattr(members, "HEAD_START", 5.0)
    monkeypatch.setattr(members, "SECOND_CHOICE", 10.0)


@pytest.mark.usefixtures("in_order")
async def test_z14_another_server_of_grpc(server: EtcdServer, client: Client) -> None:
    """It is not used beside an etcd; alone, the error says that it is none."""
    with stranger() as liar:
        async with connected(liar, server.endpoint) as transport:
            for _ in range(5):
                await create(KV, transport).put("k", "v")
            assert transport.state == f"connected to {server.endpoint}"
            assert transport.monitor.retries == 0
            assert {m.reason for m in transport.picker.members} == {
                None,
                "it is a gRPC server, and no etcd",
            }
        async with connected(liar) as transport:
            with pytest.raises(UnsupportedByServerError) as caught:
                await create(KV, transport).put("k", "v")
            assert caught.value.endpoint == liar
            assert "it is a gRPC server, and no etcd" in str(caught.value)


@pytest.mark.usefixtures("in_order")
async def test_z14_one_that_does_not_serve(server: EtcdServer, client: Client) -> None:
    """It is not used beside one that serves; alone it is asked, for it may be wrong."""
    async with Answering("NOT_SERVING").listening() as liar:
        async with connected(liar, server.endpoint) as transport:
            for _ in range(5):
                assert (await create(KV, transport).get("k")).count == 0
            assert transport.state == f"connected to {server.endpoint}"
        async with connected(liar) as transport:
            assert (await create(KV, transport).get("k")).count == 77


@pytest.mark.parametrize("is_write", [True, False])
async def test_z14_another_cluster_on_the_same_connection(*, is_write: bool) -> None:
    """A balancer that sends a call to another cluster is found out by the answer."""
    answering = Answering("SERVING")
    async with answering.listening() as liar, connected(liar, timeout=3) as transport:
        kv = create(KV, transport)
        assert (await kv.get("k")).count == 77
        answering.cluster_id = 8
        with pytest.raises(ClusterMismatchError, match="cluster 8") as caught:
            await (kv.put("k", "v") if is_write else kv.get("k"))
        assert caught.value.maybe_applied is is_write
        if is_write:  # whoever waits while the endpoints are looked at is told as well
            with pytest.raises(ClusterMismatchError, match="cluster 8"):
                await kv.get("k")
        # All endpoints answer for it by now: it is the client's cluster from here on.
        assert (await kv.get("k")).count == 77


@pytest.mark.fault("Z14")
async def test_z14_another_cluster(own_server: EtcdServer, server: EtcdServer) -> None:
    """It is not used in the place of the one that is lost, and nothing is written there."""
    await server.clear()
    async with connected(own_server.endpoint, server.endpoint, timeout=1.2) as transport:
        kv = create(KV, transport)
        with first_in_use():
            await kv.put("k", "v", timeout=10)
        await own_server.kill()
        for call in (kv.put("k", "w"), kv.get("k")):
            with pytest.raises(EtcdError) as caught:
                await call
        assert isinstance(caught.value, NoEndpointError)
        assert "cluster" in caught.value.reasons[server.endpoint]
        await own_server.start()
        assert (await kv.get("k", timeout=5)).value == b"v"
    async with Client(server.endpoint) as other:
        assert (await other.kv.get("k")).count == 0


@pytest.mark.fault("Z14: elections, and time-outs of members")
async def test_z14_a_member_without_a_quorum() -> None:
    """One that is cut off is left for one that is not, and not chosen where there is another."""
    async with EtcdCluster() as cluster:
        leader = await cluster.leader()
        others = [member.endpoint for member in cluster.members if member is not leader]
        async with connected(leader.endpoint, *others, timeout=10) as transport:
            kv = create(KV, transport)
            with first_in_use():
                await kv.put("k", "1")
            assert transport.state == f"connected to {leader.endpoint}"
            await cluster.isolate(leader)
            began = time.monotonic()
            assert (await kv.get("k")).value == b"1"
            assert time.monotonic() - began < 5
            await kv.put("k", "2")
            assert transport.state != f"connected to {leader.endpoint}"
        async with connected(leader.endpoint, *others, timeout=10) as transport:
            await create(KV, transport).put("k", "3")
            assert transport.monitor.retries == 0
            assert transport.state != f"connected to {leader.endpoint}"


@pytest.mark.fault("Z14: elections, and time-outs of members")
async def test_z14_alone_without_a_quorum() -> None:
    """The error of a call to one that is cut off says what is wrong with it."""
    async with EtcdCluster() as cluster:
        leader = await cluster.leader()
        await cluster.isolate(leader)
        async with connected(leader.endpoint, timeout=3) as transport:
            with pytest.raises(EtcdError) as caught:
                await create(KV, transport).get("k")
            (member,) = transport.picker.members
            assert member.reason is not None
            assert "no quorum" in member.reason or "no leader" in member.reason
            told = f"{caught.value} {caught.value.__cause__}"
        assert "no leader" in told or "no quorum" in told


# --- silence -----------------------------------------------------------------------------------


@pytest.mark.fault("Z15")
async def test_z15_an_idle_connection_was_forgotten(server: EtcdServer) -> None:
    """A read is rescued within its deadline, and the next call is quick."""
    await server.clear()
    balancer = Forgetful(server)
    async with balancer.listening() as endpoint, connected(endpoint) as transport:
        kv = create(KV, transport)
        await kv.put("k", "v")
        balancer.forget()
        began = time.monotonic()
        async with lateness() as late:
            assert (await kv.get("k", timeout=10)).value == b"v"
            assert time.monotonic() - began < 3 + late.seconds
            assert balancer.connections == 2
            began = time.monotonic()
            await kv.put("k", "w")
            assert time.monotonic() - began < 1 + late.seconds  # one that is stuck takes 1.8 s
        assert (await kv.get("k")).value == b"w"


@pytest.mark.fault("Z15")
async def test_z15_a_write_is_not_sent_twice(server: EtcdServer, client: Client) -> None:
    """A write on it ends with the truth, and is not repeated; meanwhile others go another way."""
    balancer = Forgetful(server)
    async with balancer.listening() as endpoint, connected(endpoint) as transport:
        kv = create(KV, transport)
        await kv.put("k", "v")
        balancer.forget()

        async def put() -> None:
            with pytest.raises(EtcdError) as caught:
                await kv.put("lost", "v", timeout=4)
            assert caught.value.maybe_applied is True

        async with anyio.create_task_group() as group:
            group.start_soon(put)
            assert (await kv.get("k", timeout=10)).value == b"v"
            await kv.put("k", "w", timeout=1)
        assert (await client.kv.get("lost")).count == 0
        assert (await client.kv.get("k")).kvs[0].version == 2


@pytest.mark.fault("Z15: a call of three seconds")
async def test_z15_a_grant_that_was_given_up_may_have_been_applied(
    proxy: FaultProxy, server: EtcdServer
) -> None:
    """What may be repeated leaves a silent member; that it was sent there is not forgotten."""
    async with Client(proxy.endpoint) as client:
        await client.kv.put("k", "v")
        proxy.blackhole(client_to_server=False)
        with pytest.raises(EtcdError) as caught:
            await client.lease.grant(60, timeout=3)
        assert client.stats().retries == 1
        assert caught.value.maybe_applied is True
    await server.clear()  # as it was


async def test_what_a_write_has_waited_for(proxy: FaultProxy) -> None:
    """One that was not sent because calls hang there says so: it surely was not applied."""
    async with connected(proxy.endpoint) as transport:
        kv = create(KV, transport)
        await kv.put("k", "v")
        proxy.hang()
        async with anyio.create_task_group() as group:

            async def read() -> None:
                with pytest.raises(EtcdError):
                    await kv.get("k", timeout=2)

            group.start_soon(read)
            await until(lambda: bool(transport.picker._doubts))
            with pytest.raises(NoEndpointError, match="calls wait there for an answer") as caught:
                await kv.put("k", "w", timeout=0.1)
            assert caught.value.maybe_applied is False


# --- the environment ---------------------------------------------------------------------------

PROXIED = """
import grpc, grpc.aio

async def main():
    # That the proxy would be in the way of another client of gRPC's.
    async with grpc.aio.insecure_channel(ENDPOINT) as channel:
        ask = channel.unary_unary("/grpc.health.v1.Health/Check")
        try:
            await ask(b"", timeout=5)
        except grpc.aio.AioRpcError as error:
            say(error.code().name)
    async with Client(ENDPOINT, timeout=5) as client:
        await client.kv.put("k", "v")
        say((await client.kv.get("k")).value.decode())
        async with client.watch("k") as watch:
            await client.kv.put("k", "w")
            say((await anext(aiter(watch))).kv.value.decode())

run(main())
"""


@pytest.mark.fault("Z16")
async def test_z16_proxies_in_the_environment_are_not_for_etcd(
    server: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dead proxy for the web, in any of its variables, does not concern an etcd."""
    await server.clear()
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    ended = await asyncio.to_thread(run_program, PROXIED, server.endpoint)
    assert (ended.code, ended.out) == (0, ["UNAVAILABLE", "v", "w"]), ended.err
