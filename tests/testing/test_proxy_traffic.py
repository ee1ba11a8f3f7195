"""The fault proxy's traffic: swallowed, delayed, slowed, chopped, and cut after a count."""

import asyncio
import os
import time
from collections.abc import AsyncIterator

import anyio
import pytest

from aioetcd.testing.proxy import FaultProxy
from tests.testing.tcp import BOUND, Backend, connected, running


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    """An echo server."""
    async with running(Backend()) as backend:
        yield backend


@pytest.fixture
async def proxy(backend: Backend) -> AsyncIterator[FaultProxy]:
    """A proxy in front of the echo server."""
    async with FaultProxy(backend.endpoint, seed=1) as proxy:
        yield proxy


@pytest.mark.parametrize("from_client", [True, False])
async def test_blackhole_swallows_one_direction(
    proxy: FaultProxy, backend: Backend, from_client: bool
) -> None:
    """Bytes in the swallowed direction never arrive, the other one works, nothing is closed."""
    async with connected(proxy) as peer:
        await peer.echo(b"a")
        proxy.blackhole(client_to_server=from_client, server_to_client=not from_client)
        if from_client:
            await peer.send(b"lost")
            backend.writers[0].write(b"news")
            assert await peer.read(4) == b"news"
        else:
            await peer.send(b"seen")
            await backend.wait_received(5)
        await proxy.wait_until(lambda p: p.bytes_swallowed == 4)
        assert await peer.silent()
        assert bytes(backend.received) == (b"a" if from_client else b"aseen")
        assert proxy.connections_open == 1
        await proxy.heal()
        assert await peer.ending() == (b"", "RST")
    async with connected(proxy) as peer:
        await peer.echo(b"after")


async def test_blackhole_swallows_the_end_too(proxy: FaultProxy, backend: Backend) -> None:
    """Neither FIN nor RST passes a blackhole: the server does not learn that the client left."""
    async with connected(proxy) as peer:
        await peer.echo(b"a")
        proxy.blackhole()
    async with connected(proxy) as peer:
        await proxy.wait_for_connections(2)
        peer.reset()
    with pytest.raises(TimeoutError, match="did not come true"):
        await proxy.wait_until(lambda p: p.connections_open < 2, timeout=0.2)
    assert backend.endings == []
    await proxy.heal()
    await proxy.wait_until(lambda p: p.connections_open == 0)
    assert proxy.cuts == 0


async def test_blackhole_without_traffic_leaves_no_trace(proxy: FaultProxy) -> None:
    """A connection that lost nothing in a blackhole goes on after it."""
    async with connected(proxy) as peer:
        await peer.echo(b"a")
        proxy.blackhole()
        await proxy.heal()
        await peer.echo(b"b")


async def test_reopened_direction_with_a_hole_is_reset(proxy: FaultProxy) -> None:
    """A direction with a hole is not used again, even if the other one is still swallowed."""
    async with connected(proxy) as peer:
        await peer.echo(b"a")
        proxy.blackhole()
        await peer.send(b"lost")
        await proxy.wait_until(lambda p: p.bytes_swallowed == 4)
        proxy.blackhole(client_to_server=False)
        assert await peer.ending() == (b"", "RST")


async def test_delay_is_a_pipeline(proxy: FaultProxy) -> None:
    """A delay moves the time of arrival, keeps the order, and does not limit the throughput."""
    data = os.urandom(4_000_000)
    async with connected(proxy) as peer:
        await peer.echo(b"warm")
        proxy.delay(0.2)
        start = time.monotonic()
        await peer.echo(b"x")
        assert time.monotonic() - start >= 0.4
        start = time.monotonic()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(peer.send, data)
            assert await peer.read(len(data)) == data
        elapsed = time.monotonic() - start
        assert 0.4 <= elapsed < 4.0  # over 60 reads each way: a sleep per read would take 24 s
        await proxy.heal()


async def test_jitter_keeps_the_order(proxy: FaultProxy) -> None:
    """With jitter larger than the gaps between writes, bytes still come in order."""
    proxy.delay(0.0, jitter=0.05)
    async with connected(proxy) as peer:
        data = bytes(range(100))
        for byte in data:
            await peer.send(bytes([byte]))
            await asyncio.sleep(0)
        assert await peer.read(100) == data
    assert proxy.writes_from_client > 1


async def test_delayed_bytes_are_bounded(backend: Backend) -> None:
    """A long delay holds no more than the buffer, then pushes back."""
    async with FaultProxy(backend.endpoint, buffer_bytes=200_000) as proxy:
        proxy.delay(3600)
        async with connected(proxy) as peer:
            with pytest.raises(TimeoutError), anyio.fail_after(0.5):
                await peer.send(bytes(64 * 1024 * 1024))


async def test_rate_limits_each_direction(proxy: FaultProxy) -> None:
    """So many bytes take at least as long as the rate says, over all connections together."""
    proxy.rate(100_000)
    async with connected(proxy) as one, connected(proxy) as two:
        start = time.monotonic()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.echo, bytes(20_000))
            tasks.start_soon(two.echo, bytes(20_000))
        assert 0.3 <= time.monotonic() - start < 4.0
        await proxy.heal()
        start = time.monotonic()
        await one.echo(bytes(1_000_000))
        assert time.monotonic() - start < 4.0


async def test_chunk_writes_single_bytes(proxy: FaultProxy) -> None:
    """Chunks of one byte are as many writes as bytes, and reach the client in many reads."""
    reads: list[int] = []

    class Protocol(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            reads.append(len(data))

    proxy.chunk(1)
    host, _, port = proxy.endpoint.rpartition(":")
    transport, _ = await asyncio.get_running_loop().create_connection(Protocol, host, int(port))
    transport.write(bytes(500))
    await proxy.wait_until(lambda p: p.bytes_from_server == 500)
    assert proxy.writes_from_client == proxy.writes_from_server == 500
    assert len(reads) > 50
    await proxy.heal()
    transport.write(bytes(500))
    await proxy.wait_until(lambda p: p.bytes_from_server == 1000)
    assert proxy.writes_from_server < 510
    transport.abort()


@pytest.mark.parametrize("size", [1, 7, 65_537, 1_000_000])
@pytest.mark.parametrize("chunk", [None, 100])
async def test_cut_after_exactly(
    proxy: FaultProxy, backend: Backend, size: int, chunk: int | None
) -> None:
    """Exactly the bytes asked for reach the client, then RST; the cut says that it fired."""
    if chunk is not None and size > 65_537:
        chunk = 10_000
    async with connected(proxy) as peer, connected(proxy) as bystander:
        await peer.echo(b"before")
        await bystander.echo(b"before")
        if chunk is not None:
            proxy.chunk(chunk)
        fired = proxy.cut_after(size)
        data = os.urandom(size + 100_000)
        backend.writers[0].write(data)
        assert await peer.ending() == (data[:size], "RST")
        with anyio.fail_after(BOUND):
            await fired.wait()
        assert await bystander.ending() == (b"", "RST")
    assert proxy.bytes_from_server == 12 + size
    assert proxy.cuts == 2
    await backend.wait_endings(2)
    assert backend.endings == ["RST", "RST"]
    async with connected(proxy) as peer:
        await peer.echo(b"only once")


async def test_cut_after_waits_for_a_slow_reader(proxy: FaultProxy, backend: Backend) -> None:
    """Bytes that the client has no window for yet are delivered before the reset."""
    size = 8_000_000
    async with connected(proxy) as peer:
        await peer.echo(b"x")
        peer.transport.pause_reading()
        fired = proxy.cut_after(size)
        backend.writers[0].write(bytes(size))
        await proxy.wait_until(lambda p: p.bytes_from_server > 500_000)
        assert not fired.is_set()
        peer.transport.resume_reading()
        rest, how = await peer.ending()
        assert (len(rest), how) == (size, "RST")


async def test_cut_after_zero_takes_the_answer(proxy: FaultProxy, backend: Backend) -> None:
    """With 0 the request arrives and not one byte of its answer does."""
    async with connected(proxy) as peer:
        await peer.echo(b"a")
        fired = proxy.cut_after(0)
        assert await peer.silent()
        assert not fired.is_set()
        await peer.send(b"applied")
        assert await peer.ending() == (b"", "RST")
        assert fired.is_set()
    assert bytes(backend.received) == b"aapplied"


async def test_cut_after_with_a_pause(proxy: FaultProxy, backend: Backend) -> None:
    """In the pause before the cut no byte passes, on no connection."""
    async with connected(proxy) as one, connected(proxy) as two:
        await one.echo(b"a")
        await two.echo(b"b")
        fired = proxy.cut_after(3, pause=0.3)
        start = time.monotonic()
        backend.writers[0].write(b"three and more")
        assert await one.read(3) == b"thr"
        backend.writers[1].write(b"nothing of this")
        with anyio.fail_after(BOUND):
            await fired.wait()
        assert time.monotonic() - start >= 0.3
        assert await one.ending() == (b"", "RST")
        assert await two.ending() == (b"", "RST")


async def test_cut_after_on_a_connection_that_breaks(proxy: FaultProxy, backend: Backend) -> None:
    """If the connection with the last byte breaks itself, the cut comes all the same."""
    async with connected(proxy) as one, connected(proxy) as two:
        await one.echo(b"a")
        await two.echo(b"b")
        fired = proxy.cut_after(3, pause=3600)
        backend.writers[0].write(b"three")
        assert await one.read(3) == b"thr"
        one.reset()
        assert await two.ending() == (b"", "RST")
        assert fired.is_set()
    async with connected(proxy) as peer:
        await peer.echo(b"only once")


async def test_hold_after(proxy: FaultProxy, backend: Backend) -> None:
    """A hold stops all bytes from the server at the count; `heal` lets the rest follow."""
    async with connected(proxy) as one, connected(proxy) as two:
        await one.echo(b"a")
        await two.echo(b"b")
        fired = proxy.hold_after(3)
        backend.writers[0].write(b"three and more")
        with anyio.fail_after(BOUND):
            await fired.wait()
        assert await one.read(3) == b"thr"
        await two.send(b"request")
        await backend.wait_received(9)
        assert await one.silent()
        assert await two.silent()
        await proxy.heal()
        assert await one.read(11) == b"ee and more"
        assert await two.read(7) == b"request"
    assert proxy.cuts == 0


async def test_hold_ends_with_a_cut(proxy: FaultProxy, backend: Backend) -> None:
    """After a hold and a cut new connections are not held."""
    for _ in range(20):
        async with connected(proxy) as peer:
            await peer.echo(b"a")
            fired = proxy.hold_after(3)
            await peer.send(b"three and more")
            assert await peer.read(3) == b"thr"
            proxy.cut()
            assert await peer.ending() == (b"", "RST")
            assert fired.is_set()
    async with connected(proxy) as peer:
        await peer.echo(b"not held")


async def test_cut_after_counts_over_connections(proxy: FaultProxy, backend: Backend) -> None:
    """Two connections share the count, and neither gets a byte too many."""
    async with connected(proxy) as one, connected(proxy) as two:
        await one.echo(b"a")
        await two.echo(b"b")
        proxy.cut_after(150_000)
        for writer in backend.writers:
            writer.write(bytes(120_000))
        (first, _), (second, _) = await one.ending(), await two.ending()
        assert len(first) + len(second) <= 150_000
    assert proxy.bytes_from_server == 2 + 150_000


async def test_cut_after_is_disarmed_by_heal(proxy: FaultProxy) -> None:
    """A cut that has not fired goes away with `heal`."""
    async with connected(proxy) as peer:
        fired = proxy.cut_after(3)
        await proxy.heal()
        await peer.echo(b"more than three")
        assert not fired.is_set()
