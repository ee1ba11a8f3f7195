"""Calls in bad weather: in time, told truly, and no write twice."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Awaitable
from typing import Any

import anyio
import grpc.aio
import pytest

from aioetcd import (
    Client,
    ClientClosedError,
    Compare,
    DeadlineExceededError,
    EtcdError,
    GetResponse,
    LeaseNotFoundError,
    NoEndpointError,
    Op,
    UnavailableError,
)
from aioetcd._constructor import create
from aioetcd._proto import rpc_pb2
from aioetcd._proto.rpc_pb2_grpc import KVStub
from aioetcd._transport.methods import PUT
from aioetcd.kv import KV
from aioetcd.testing import EtcdServer, FaultProxy
from tests._transport.weather import (
    LARGE,
    SLACK,
    connected,
    exists,
    was_refused,
)
from tests.harness import until_answer_lost
from tests.waiting import lateness, until

# --- deadlines ---------------------------------------------------------------------------------


async def test_paused_server(own_server: EtcdServer) -> None:
    """A call to a stopped process ends at its deadline, and only a write may have been applied."""
    async with connected(own_server.endpoint, timeout=1.0) as transport:
        kv = create(KV, transport)
        await kv.put("k", "0")
        await own_server.pause()

        async def expect(call: Awaitable[object], seconds: float, maybe_applied: bool) -> None:
            start = time.monotonic()
            with pytest.raises(DeadlineExceededError) as caught:
                await call
            assert seconds - 0.05 < time.monotonic() - start < seconds + SLACK + late.seconds
            assert caught.value.timeout == seconds
            assert caught.value.code == "DEADLINE_EXCEEDED"
            assert caught.value.maybe_applied is maybe_applied
            assert caught.value.endpoint == own_server.endpoint
            assert f"{seconds:g} s" in str(caught.value)

        async with lateness() as late, anyio.create_task_group() as group:
            group.start_soon(expect, kv.put("k", "1", timeout=0.5), 0.5, True)
            group.start_soon(expect, kv.get("k", timeout=0.5), 0.5, False)
            group.start_soon(expect, kv.delete("l"), 1.0, True)
            group.start_soon(expect, kv.txn(success=[Op.get("k")]), 1.0, False)
            group.start_soon(expect, kv.txn(success=[Op.put("k", "1")]), 1.0, True)
        await own_server.resume()
        assert (await kv.get("k", timeout=10)).value is not None


async def test_k3_answer_lost(proxy: FaultProxy, direct: Client) -> None:
    """A put whose answer is lost is told as such, was applied once, and later calls work."""
    async with connected(proxy.endpoint) as transport:
        kv = create(KV, transport)
        await kv.get("k")
        proxy.blackhole(client_to_server=False)
        with pytest.raises(DeadlineExceededError) as caught:
            await kv.put("k", "v", timeout=1.5)  # in which it is applied on a busy machine, too
        assert caught.value.maybe_applied is True
        await proxy.heal()
        assert (await kv.get("k")).value == b"v"
        assert (await direct.kv.get("k")).kvs[0].version == 1


# --- what others do to gRPC --------------------------------------------------------------------


class Tracer(
    grpc.aio.UnaryUnaryClientInterceptor,
    grpc.aio.UnaryStreamClientInterceptor,
    grpc.aio.StreamStreamClientInterceptor,
):
    """Counts calls, and passes them on, as OpenTelemetry's, Sentry's and Datadog's do."""

    def __init__(self) -> None:
        self.calls = 0

    async def _intercept(self, continuation: Any, details: Any, request: Any) -> Any:
        self.calls += 1
        return await continuation(details, request)

    intercept_unary_unary: Any = _intercept
    intercept_unary_stream: Any = _intercept
    intercept_stream_stream: Any = _intercept


async def test_a_program_that_traces_its_calls(
    server: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What intercepts grpc.aio's channels is not in the way: calls are answered and cancelled."""
    tracer = Tracer()

    def traced(target: str, *_: object, **__: object) -> grpc.aio.Channel:
        return insecure_channel(target, interceptors=[tracer])

    insecure_channel = grpc.aio.insecure_channel
    monkeypatch.setattr(grpc.aio, "insecure_channel", traced)
    async with (
        grpc.aio.insecure_channel(server.endpoint) as channel,
        FaultProxy(server.endpoint) as proxy,
        Client(proxy.endpoint) as client,
        client.watch("k") as watch,
    ):
        await KVStub(channel).Range(rpc_pb2.RangeRequest(key=b"k"))
        assert tracer.calls == 1
        await client.kv.put("k", "v")
        assert (await anext(watch)).kv.value == b"v"
        assert (await client.kv.get("k")).value == b"v"
        proxy.hang()
        call = asyncio.create_task(client.kv.get("k"))
        await asyncio.sleep(0)
        call.cancel("enough")
        with pytest.raises(asyncio.CancelledError, match="enough"):
            await call
        await proxy.heal()
    assert tracer.calls == 1


# --- no write twice ----------------------------------------------------------------------------


async def test_put_cut_after_it_was_applied(proxy: FaultProxy, direct: Client) -> None:
    """A put whose connection is cut before the answer raises at once and is not sent again."""
    async with connected(proxy.endpoint) as transport:
        kv = create(KV, transport)
        await kv.get("k")
        proxy.blackhole(client_to_server=False)
        async with anyio.create_task_group() as group:

            async def put() -> None:
                with pytest.raises(UnavailableError) as caught:
                    await kv.put("k", "v")
                assert type(caught.value) is UnavailableError
                assert caught.value.maybe_applied is True
                assert caught.value.code == "UNAVAILABLE"
                assert caught.value.endpoint == proxy.endpoint
                assert "may have been applied" in str(caught.value)
                assert isinstance(caught.value.__cause__, grpc.aio.AioRpcError)

            group.start_soon(put)
            await until_answer_lost(proxy, lambda: exists(direct, "k"))
            assert proxy.cut() == 1
        assert transport.monitor.retries == 0
        await proxy.heal()
        await kv.put("after", "v")
        assert (await direct.kv.get("k")).kvs[0].version == 1


async def test_a_put_on_a_connection_that_is_closed(server: EtcdServer) -> None:
    """It was not sent, and is not said to have been."""
    async with connected(server.endpoint) as transport:
        await create(KV, transport).get("k")
        assert transport.picker.current is not None
        closed = transport.picker.apart(transport.picker.current.endpoint)
        await closed.aclose()
        put = rpc_pb2.PutRequest(key=b"k")
        with pytest.raises(EtcdError) as caught:
            await transport.unary(PUT, put, 5.0, connection=closed)
        assert not caught.value.maybe_applied


async def test_k2_server_killed_with_a_put_in_flight(own_server: EtcdServer) -> None:
    """Nobody knows whether a killed server has applied it, and it is not sent again."""
    async with FaultProxy(own_server.endpoint) as proxy, connected(proxy.endpoint) as transport:
        kv = create(KV, transport)
        await kv.get("k")
        sent = proxy.bytes_from_client
        await own_server.pause()
        async with anyio.create_task_group() as group:

            async def put() -> None:
                with pytest.raises(UnavailableError) as caught:
                    await kv.put("k", b"v" * LARGE)
                assert not isinstance(caught.value, NoEndpointError)
                assert caught.value.maybe_applied is True

            group.start_soon(put)
            await proxy.wait_until(lambda proxy: proxy.bytes_from_client > sent + LARGE)
            await own_server.kill()
        await own_server.start()
        assert [kv.version for kv in (await kv.get("k")).kvs] in ([], [1])


async def test_write_is_never_done_twice(proxy: FaultProxy, direct: Client) -> None:
    """Wherever the connection is cut, a put is applied at most once, and errors do not lie."""
    seed = random.randrange(2**32)
    sys.stdout.write(f"seed {seed}\n")
    dice = random.Random(seed)
    outcomes = {"done": 0, "maybe": 0, "not": 0}

    async def one(number: int, kv: KV) -> None:
        key = f"k{number}"
        # The answer is some 200 bytes; the request goes out in the first millisecond.
        by_count = dice.random() < 0.6
        if by_count:
            proxy.cut_after(dice.randrange(0, 220))
        else:
            proxy.chunk(1)
        outcome = "done"
        async with anyio.create_task_group() as group:

            async def put() -> None:
                nonlocal outcome
                try:
                    await kv.put(key, "v", timeout=10)
                except EtcdError as error:
                    outcome = "maybe" if error.maybe_applied else "not"

            group.start_soon(put)
            if not by_count:
                await anyio.sleep(dice.random() * 0.005)  # where to cut, not what to wait for
                proxy.cut()
        await proxy.heal()
        outcomes[outcome] += 1
        found = [kv.version for kv in (await direct.kv.get(key)).kvs]
        allowed = {"done": ([1],), "maybe": ([], [1]), "not": ([],)}[outcome]
        assert found in allowed, (seed, number, outcome, found)

    for number in range(30):
        async with connected(proxy.endpoint) as transport:
            kv = create(KV, transport)
            await kv.get("warm")
            await one(number, kv)
    sys.stdout.write(f"{outcomes}, cuts: {proxy.cuts}\n")
    assert proxy.cuts >= 10, (seed, outcomes)
    assert outcomes["maybe"] > 0, (seed, outcomes)


async def test_k1_refused_write_waits(proxy: FaultProxy, direct: Client) -> None:
    """A write that nobody took waits for the server, and is then applied once."""
    proxy.refuse()
    async with connected(proxy.endpoint) as transport:
        kv = create(KV, transport)
        async with anyio.create_task_group() as group:
            for key in ("a", "b", "c"):
                group.start_soon(kv.put, key, "v")
            await until(lambda: was_refused(transport))
            assert (await direct.kv.get("", prefix=True)).count == 0
            await proxy.accept()
            listening = time.monotonic()
        assert time.monotonic() - listening < 2
        assert [kv.version for kv in (await direct.kv.get("", prefix=True)).kvs] == [1, 1, 1]


async def test_refused_write_of_a_connected_client_waits(proxy: FaultProxy, direct: Client) -> None:
    """A write that finds its connection gone and the port closed waits, and is applied once."""
    async with connected(proxy.endpoint) as transport:
        kv = create(KV, transport)
        await kv.get("k")
        connection = transport.picker.current
        assert connection is not None
        proxy.refuse()
        proxy.cut()
        await until(lambda: connection.state != "READY")
        async with anyio.create_task_group() as group:
            group.start_soon(kv.put, "k", "v")
            await until(lambda: was_refused(transport))
            await proxy.accept()
        assert (await direct.kv.get("k")).kvs[0].version == 1


async def test_write_after_an_idle_connection_was_lost(proxy: FaultProxy, direct: Client) -> None:
    """A write after a cut that nobody noticed is done once, or says that it may have been."""
    async with connected(proxy.endpoint) as transport:
        kv = create(KV, transport)
        for number in range(5):
            await kv.get("k")
            proxy.cut()
            await proxy.wait_until(lambda proxy: proxy.connections_open == 0)
            done = True
            try:
                await kv.put(f"k{number}", "v")
            except UnavailableError as error:
                assert error.maybe_applied  # noqa: PT017
                done = False
            found = [kv.version for kv in (await direct.kv.get(f"k{number}")).kvs]
            assert found == [1] or (found == [] and not done)


async def test_uncertain_txn_stays_uncertain(proxy: FaultProxy, direct: Client) -> None:
    """An idempotent txn that was lost and then finds nobody does not claim to be unapplied."""
    async with connected(proxy.endpoint) as transport:
        kv = create(KV, transport)
        await kv.get("k")
        proxy.blackhole(client_to_server=False)
        async with anyio.create_task_group() as group:

            async def txn() -> None:
                with pytest.raises(UnavailableError) as caught:
                    await kv.txn(
                        compare=[Compare.version("k") == 0],
                        success=[Op.put("k", "v")],
                        idempotent=True,
                        timeout=1.5,
                    )
                assert caught.value.maybe_applied is True
                # whose promise is that nothing was applied
                assert not isinstance(caught.value, NoEndpointError)
                assert type(caught.value) is UnavailableError
                assert transport.monitor.retries == 1

            group.start_soon(txn)
            await until_answer_lost(proxy, lambda: exists(direct, "k"))
            proxy.refuse()
            assert proxy.cut() == 1
        assert (await direct.kv.get("k")).kvs[0].version == 1


async def test_refusal_of_a_repeated_txn_stays_uncertain(
    proxy: FaultProxy, server: EtcdServer
) -> None:
    """What a second try is told says nothing of the first, which may have been applied."""
    async with Client(server.endpoint) as direct, connected(proxy.endpoint) as transport:
        kv = create(KV, transport)
        await kv.get("k")
        lease = await direct.lease.grant(60)
        put = Op.put("k", "v", lease=lease.id)
        proxy.blackhole(client_to_server=False)
        async with anyio.create_task_group() as group:

            async def txn() -> None:
                with pytest.raises(LeaseNotFoundError) as caught:
                    await kv.txn(success=[put], idempotent=True)
                assert caught.value.maybe_applied is True

            group.start_soon(txn)
            await until_answer_lost(proxy, lambda: exists(direct, "k"))
            await direct.lease.revoke(lease.id)
            await proxy.heal()  # resets the connection that has lost the answer
        assert transport.monitor.retries == 1


async def test_idempotent_txn_is_sent_again(proxy: FaultProxy, direct: Client) -> None:
    """A txn that may be repeated is, when its answer was lost; its comparison then fails."""
    async with connected(proxy.endpoint) as transport:
        kv = create(KV, transport)
        await kv.get("k")
        proxy.blackhole(client_to_server=False)
        async with anyio.create_task_group() as group:

            async def txn() -> None:
                result = await kv.txn(
                    compare=[Compare.version("k") == 0],
                    success=[Op.put("k", "v")],
                    failure=[Op.get("k")],
                    idempotent=True,
                )
                assert not result.succeeded
                (found,) = result.responses
                assert isinstance(found, GetResponse)
                assert found.value == b"v"

            group.start_soon(txn)
            await until_answer_lost(proxy, lambda: exists(direct, "k"))
            await proxy.heal()  # resets the connection that has lost the answer
        assert proxy.connections_total == 2
        assert transport.monitor.retries == 1
        assert (await direct.kv.get("k")).kvs[0].version == 1


# --- reads go on -------------------------------------------------------------------------------


async def test_k1_reads_live_through_a_restart(own_server: EtcdServer) -> None:
    """Reads are repeated within their deadline, and answered soon after the server is back."""
    async with FaultProxy(own_server.endpoint) as proxy, connected(proxy.endpoint) as transport:
        kv = create(KV, transport)
        key = b"k" * LARGE
        await kv.put(key, "v")
        sent = proxy.bytes_from_client
        answered = 0.0

        async def read() -> None:
            nonlocal answered
            assert (await kv.get(key, timeout=20)).value == b"v"
            answered = time.monotonic()

        async def read_txn() -> None:
            assert (await kv.txn(success=[Op.get(key)], timeout=20)).succeeded

        await own_server.pause()
        async with lateness() as late, anyio.create_task_group() as group:
            group.start_soon(read)
            group.start_soon(read_txn)
            await proxy.wait_until(lambda proxy: proxy.bytes_from_client > sent + 2 * LARGE)
            await own_server.kill()
            await until(lambda: transport.monitor.retries >= 1)
            await own_server.start()
            healthy = time.monotonic()
        assert answered - healthy < 2 + late.seconds
        assert transport.monitor.retries >= 2


async def test_k1_readers_and_a_killed_server(own_server: EtcdServer) -> None:
    """Readers that never stop see no error over a crash, and no hole after it."""
    async with connected(own_server.endpoint, timeout=20) as transport:
        kv = create(KV, transport)
        await kv.put("k", "v")
        reads = 0
        stop = False

        async def reader() -> None:
            nonlocal reads
            while not stop:
                assert (await kv.get("k")).value == b"v"
                reads += 1

        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(reader)
            await until(lambda: reads > 100)
            await own_server.kill()
            await own_server.start()
            before = reads
            start = time.monotonic()
            async with lateness() as late:
                await until(lambda: reads > before + 100)
                # A pause of 1 s may come before them; a connection that is stuck takes 3 s more.
                assert time.monotonic() - start < 3 + late.seconds
            stop = True


async def test_k10_slow_link(proxy: FaultProxy) -> None:
    """On a slow link all works, only slower, on one connection and without a retry."""
    async with connected(proxy.endpoint) as transport:
        kv = create(KV, transport)
        proxy.delay(0.1, 0.05)
        proxy.rate(5_000)  # the value takes a fifth of a second each way: a turn of the loop a byte
        proxy.chunk(1)
        start = time.monotonic()
        await kv.put("k", b"x" * 1_000)
        assert (await kv.get("k")).value == b"x" * 1_000
        assert time.monotonic() - start > 0.5
        assert (transport.monitor.retries, proxy.connections_total) == (0, 1)


# --- a bug of ours -----------------------------------------------------------------------------


async def test_crashed_background_task(proxy: FaultProxy, caplog: pytest.LogCaptureFixture) -> None:
    """A bug in a background task is logged and ends every call with its reason: no hang."""

    async def crash() -> None:
        raise ZeroDivisionError("a bug")

    async with connected(proxy.endpoint) as transport:
        kv = create(KV, transport)
        await kv.get("k")
        proxy.hang()
        async with anyio.create_task_group() as group:

            async def expect_closed() -> None:
                with pytest.raises(ClientClosedError, match="a bug") as caught:
                    await kv.get("k", timeout=None)
                assert isinstance(caught.value.__cause__, ZeroDivisionError)

            group.start_soon(expect_closed)
            await until(lambda: transport.monitor.calls == 2)
            crashing = transport.supervisor.spawn(crash, "crash")
        assert isinstance(crashing.exception(), ZeroDivisionError)
        with pytest.raises(ClientClosedError, match="a bug"):
            await kv.get("k")
    assert "the task 'crash' failed" in caplog.text


async def test_crashed_search(proxy: FaultProxy, caplog: pytest.LogCaptureFixture) -> None:
    """A call that waits for a connection learns the reason as well."""

    async def crash() -> None:
        raise ZeroDivisionError("a bug")

    proxy.refuse()
    async with connected(proxy.endpoint) as transport, anyio.create_task_group() as group:

        async def expect_closed() -> None:
            with pytest.raises(ClientClosedError, match="a bug") as caught:
                await create(KV, transport).put("k", "v", timeout=None)
            assert isinstance(caught.value.__cause__, ZeroDivisionError)
            assert caught.value.maybe_applied is False

        group.start_soon(expect_closed)
        await until(lambda: was_refused(transport))
        crashing = transport.supervisor.spawn(crash, "crash")
    assert isinstance(crashing.exception(), ZeroDivisionError)
    assert "the task 'crash' failed" in caplog.text
