"""The endpoint in use is one that answers, and silence is found out."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
from pathlib import Path

import anyio
import pytest

from aioetcd import (
    Client,
    DeadlineExceededError,
    EtcdError,
    NoEndpointError,
    UnavailableError,
)
from aioetcd._constructor import create
from aioetcd._transport import members
from aioetcd._transport import picker as picker_module
from aioetcd._transport.transport import Transport, channel_options
from aioetcd.kv import KV
from aioetcd.testing import EtcdServer, FaultProxy
from tests._transport.weather import LARGE, SLACK, config_of, connected, was_refused
from tests.waiting import lateness, until

pytestmark = pytest.mark.own_logic("which endpoint the client uses")


@pytest.fixture
def first_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the first endpoint be the one in use at first, also where this machine is slow."""
    monkeypatch.setattr(members, "HEAD_START", 5.0)


# --- nobody there ------------------------------------------------------------------------------


async def test_nobody_listens(proxy: FaultProxy) -> None:
    """Every endpoint and its reason are told at the deadline, and nothing was applied."""
    proxy.refuse()
    async with FaultProxy("127.0.0.1:9") as silent:
        silent.hang()
        names = [f"http://{proxy.endpoint}", silent.endpoint]
        async with connected(*names) as transport, anyio.create_task_group() as group:
            kv = create(KV, transport)
            group.start_soon(kv.get, "k")  # has both looked at, which may take a while
            await until(lambda: "refused" in str(transport.picker.unreachable()).lower())
            for call in (kv.put("k", "v", timeout=0.6), kv.get("k", timeout=0.6)):
                start = time.monotonic()
                async with lateness() as late:
                    with pytest.raises(NoEndpointError) as caught:
                        await call
                assert 0.55 < time.monotonic() - start < 0.6 + SLACK + late.seconds
                error = caught.value
                assert sorted(error.reasons) == sorted(names)
                assert "refused" in error.reasons[names[0]].lower()
                assert error.reasons[names[1]]
                for name, reason in error.reasons.items():
                    assert name in str(error)
                    assert reason in str(error)
                assert error.maybe_applied is False
                assert (error.code, error.details, error.endpoint) == (None, None, None)
            group.cancel_scope.cancel()


async def test_nobody_listens_under_a_scope(proxy: FaultProxy) -> None:
    """The nearer of the call's deadline and the caller's scope decides what is raised."""
    proxy.refuse()
    async with connected(proxy.endpoint) as transport:
        kv = create(KV, transport)
        with anyio.fail_after(5), pytest.raises(NoEndpointError):
            await kv.put("k", "v", timeout=0.2)
        start = time.monotonic()
        async with lateness() as late:
            with pytest.raises(TimeoutError) as caught, anyio.fail_after(0.2):
                await kv.put("k", "v", timeout=5)
        assert not isinstance(caught.value, EtcdError)
        assert time.monotonic() - start < 0.2 + SLACK + late.seconds


async def test_second_endpoint_serves_when_the_first_refuses(
    proxy: FaultProxy, server: EtcdServer
) -> None:
    """A dead first endpoint costs next to nothing, and is not asked again by each call."""
    proxy.refuse()
    async with connected(proxy.endpoint, server.endpoint) as transport:
        kv = create(KV, transport)
        start = time.monotonic()
        async with lateness() as late:
            await kv.put("k", "v")
            assert time.monotonic() - start < 1 + late.seconds
        assert (await kv.get("k")).value == b"v"
        assert transport.monitor.retries == 0


async def test_second_endpoint_serves_when_the_first_is_silent(
    proxy: FaultProxy, server: EtcdServer
) -> None:
    """A first endpoint that accepts and says nothing costs a moment, not the deadline."""
    proxy.hang()
    async with connected(proxy.endpoint, server.endpoint) as transport:
        start = time.monotonic()
        async with lateness() as late:
            await create(KV, transport).put("k", "v")
            assert time.monotonic() - start < 2 + late.seconds  # or it waits for the first one, 3 s


@pytest.mark.usefixtures("first_in_use")
async def test_endpoint_that_falls_silent_is_left(proxy: FaultProxy, server: EtcdServer) -> None:
    """The call in flight ends at its deadline, the next one is answered by another endpoint."""
    async with connected(proxy.endpoint, server.endpoint) as transport:
        kv = create(KV, transport)
        await kv.put("k", "1")
        assert proxy.connections_total == 1
        proxy.hang()
        with pytest.raises(DeadlineExceededError) as caught:
            await kv.get("k", timeout=0.3)
        assert caught.value.endpoint == proxy.endpoint
        start = time.monotonic()
        async with lateness() as late:
            await kv.put("k", "2")
            assert time.monotonic() - start < 2 + late.seconds  # or it waits for that one, 3 s


@pytest.mark.usefixtures("first_in_use")
async def test_read_moves_to_another_endpoint(proxy: FaultProxy, server: EtcdServer) -> None:
    """A read whose connection breaks is answered by another endpoint, within the same call."""
    async with connected(proxy.endpoint, server.endpoint) as transport:
        kv = create(KV, transport)
        value = b"v" * LARGE
        await kv.put("k", value)
        proxy.blackhole(client_to_server=False)
        async with anyio.create_task_group() as group:

            async def read() -> None:
                assert (await kv.get("k")).value == value

            group.start_soon(read)
            await proxy.wait_until(lambda proxy: proxy.bytes_swallowed > LARGE)
            proxy.refuse()
            assert proxy.cut() == 1
        assert (transport.monitor.calls, transport.monitor.retries) == (2, 1)


@pytest.mark.usefixtures("first_in_use")
async def test_silence_is_noticed(proxy: FaultProxy, server: EtcdServer) -> None:
    """Pings find out a silent connection: reads without a deadline move on, writes raise."""
    config = config_of(proxy.endpoint, server.endpoint, timeout=None)
    # Shorter than users may have it, so that the test does not take longer.
    transport = Transport(config.__replace__(keepalive_time=1.0, keepalive_timeout=0.5))
    try:
        kv = create(KV, transport)
        await kv.put("k", "v")
        proxy.hang()
        start = time.monotonic()
        async with lateness() as late, anyio.create_task_group() as group:

            async def put() -> None:
                with pytest.raises(UnavailableError) as caught:
                    await kv.put("k", "w")
                assert caught.value.maybe_applied is True

            group.start_soon(put)
            assert (await kv.get("k")).value == b"v"
        assert time.monotonic() - start < 4 + late.seconds
    finally:
        await transport.aclose()


@pytest.mark.usefixtures("first_in_use")
async def test_a_late_failure_moves_nobody(
    proxy: FaultProxy, server: EtcdServer, caplog: pytest.LogCaptureFixture
) -> None:
    """When a call of the connection in use before fails at last, the one in use now stays."""
    async with connected(proxy.endpoint, server.endpoint, timeout=20) as transport:
        kv = create(KV, transport)
        value = b"v" * LARGE
        await kv.put("k", value)
        before = transport.picker.current
        proxy.blackhole(client_to_server=False)
        async with anyio.create_task_group() as group:

            async def put() -> None:
                with pytest.raises(UnavailableError):
                    await kv.put("k", value)

            group.start_soon(put)
            await proxy.wait_until(lambda proxy: proxy.bytes_swallowed > 0)
            await kv.get("other")  # which moves everybody
            current = transport.picker.current
            assert current is not before
            assert current is not None
            assert proxy.cut() == 1
        assert transport.monitor.retries == 1
        assert transport.picker.current is current
        assert caplog.text.count("is lost") == 1


async def test_nobody_waits_any_more(proxy: FaultProxy) -> None:
    """The search for an endpoint ends with the last who waits for it, and begins with the next."""
    proxy.refuse()
    async with connected(proxy.endpoint) as transport:
        kv = create(KV, transport)
        for _ in range(2):
            with pytest.raises(NoEndpointError):
                await kv.get("k", timeout=0.2)
            await until(lambda: not transport.supervisor._tasks, within=5)
        await proxy.accept()
        await kv.get("k")


async def test_a_reason_ends_with_a_good_answer(proxy: FaultProxy) -> None:
    """An endpoint that answers again is not reported with why it did not."""
    proxy.refuse()
    async with connected(proxy.endpoint) as transport:
        kv = create(KV, transport)
        async with anyio.create_task_group() as group:
            group.start_soon(kv.get, "k")  # is answered in the end
            await until(lambda: was_refused(transport))
            with pytest.raises(NoEndpointError, match="refused"):
                await kv.get("k", timeout=0.3)
            await proxy.accept()
        (member,) = transport.picker.members
        assert member.reason is None
        assert "refused" not in str(transport.picker.unreachable())


@pytest.mark.usefixtures("first_in_use")
async def test_a_failed_endpoint_comes_last(proxy: FaultProxy, server: EtcdServer) -> None:
    """An endpoint that failed is the last to be tried, also where it would answer again."""
    async with connected(proxy.endpoint, server.endpoint) as transport:
        kv = create(KV, transport)
        await kv.get("k")
        assert str(transport.state) == f"connected to {proxy.endpoint}"
        proxy.cut()
        # Whoever asks before the client knows of it is brought back there by gRPC itself.
        await until(lambda: not transport.is_connected)
        await kv.get("k")
        assert str(transport.state) == f"connected to {server.endpoint}"


@pytest.mark.fault("two seconds: twice somebody silent is looked at")
async def test_each_loss_is_told(proxy: FaultProxy, caplog: pytest.LogCaptureFixture) -> None:
    """The log has a line for each loss of the endpoint, and one for each return."""
    caplog.set_level("INFO", "aioetcd.transport")
    async with connected(proxy.endpoint) as transport:
        kv = create(KV, transport)
        for times in (1, 2):
            await kv.get("k")
            proxy.hang()
            with pytest.raises(DeadlineExceededError):
                await kv.get("k", timeout=0.2)
            await until(lambda: transport.picker.current is None)  # whoever looks has found out
            await proxy.heal()
            await kv.get("k")
            assert caplog.text.count(f"endpoint {proxy.endpoint} is lost") == times
            assert caplog.text.count(f"endpoint {proxy.endpoint} is in use after") == times


async def test_silence_is_no_health(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that accepts and never answers the health check is not used."""
    monkeypatch.setattr(picker_module, "CONNECT_TIMEOUT", 0.2)
    proxy.blackhole(client_to_server=False)
    async with connected(proxy.endpoint) as transport:
        with pytest.raises(NoEndpointError) as caught:
            await create(KV, transport).get("k", timeout=1)
        assert caught.value.reasons == {proxy.endpoint: "no answer within 0.2 s"}
        assert transport.picker.current is None


def test_pings_are_in_milliseconds() -> None:
    """gRPC is told of the pings in its own unit."""
    options = dict(channel_options(10.0, 2.5))
    assert options["grpc.keepalive_time_ms"] == 10_000
    assert options["grpc.keepalive_timeout_ms"] == 2_500
    assert options["grpc.http2.ping_timeout_ms"] == 2_500


@pytest.mark.fault("C5")
async def test_back_soon_after_an_outage(proxy: FaultProxy) -> None:
    """However long nobody listened, clients are back within two seconds of the port."""
    proxy.refuse()
    recovered: list[float] = []

    async def wait_for_it() -> None:
        async with connected(proxy.endpoint, timeout=20) as transport:
            await create(KV, transport).get("k")
            recovered.append(time.monotonic())

    async with lateness() as late, anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(wait_for_it)
        await anyio.sleep(4)  # the outage: long enough for gRPC's own pauses to grow
        await proxy.accept()
        listening = time.monotonic()
    assert len(recovered) == 8
    assert max(recovered) - listening < 2 + late.seconds


# --- the channel -------------------------------------------------------------------------------


@pytest.mark.contract
async def test_unix_socket(server: EtcdServer) -> None:
    """An endpoint may be a Unix socket."""
    await server.clear()
    folder = Path(tempfile.mkdtemp(prefix="aioetcd-"))  # short: a socket's path is limited
    path = folder / "etcd.sock"

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = server.endpoint.partition(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        async with anyio.create_task_group() as group:
            group.start_soon(pump, reader, far_writer)
            group.start_soon(pump, far_reader, writer)

    listener = await asyncio.start_unix_server(relay, path)
    try:
        async with connected(f"unix://{path}") as transport:
            kv = create(KV, transport)
            await kv.put("k", "v")
            assert (await kv.get("k")).value == b"v"
    finally:
        listener.close()
        await listener.wait_closed()
        shutil.rmtree(folder)


async def test_two_clients_do_not_share_a_connection(proxy: FaultProxy) -> None:
    """Each client has a connection of its own, or one's faults would be the other's."""
    async with connected(proxy.endpoint) as first, connected(proxy.endpoint) as second:
        await create(KV, first).get("k")
        await create(KV, second).get("k")
        assert proxy.connections_open == 2


@pytest.mark.contract
async def test_one_call_is_one_request(client_metrics: Metrics, direct: Client) -> None:
    """A call is one RPC, and nothing else is sent beside it."""
    await direct.kv.get("k")
    before = await client_metrics()
    for _ in range(10):
        await direct.kv.get("k")
    after = await client_metrics()
    assert {name: after[name] - before[name] for name in after if after[name] != before[name]} == {
        "Range": 10
    }


class Metrics:
    """The server's count of the unary RPCs that it was sent, by method."""

    def __init__(self, server: EtcdServer) -> None:
        self._server = server

    async def __call__(self) -> dict[str, float]:
        return {
            name.partition('grpc_method="')[2].partition('"')[0]: value
            for name, value in (await self._server.metrics()).items()
            if name.startswith("grpc_server_started_total") and 'grpc_type="unary"' in name
        }


@pytest.fixture
def client_metrics(server: EtcdServer) -> Metrics:
    """See `Metrics`."""
    return Metrics(server)


async def test_another_list_while_running(proxy: FaultProxy, server: EtcdServer) -> None:
    """Calls and streams on an endpoint that is gone from the list move to one that is there."""
    async with Client(proxy.endpoint) as client, client.watch("k") as watch:
        await client.kv.put("k", "1")
        assert (await anext(watch)).kv.value == b"1"
        client.set_endpoints([server.endpoint])
        await client.kv.put("k", "2")
        assert (await anext(watch)).kv.value == b"2"
        assert client.stats().connections == {server.endpoint: "READY"}
        await proxy.wait_until(lambda proxy: proxy.connections_open == 0)
        with pytest.raises(ValueError, match="at least one"):
            client.set_endpoints([])
