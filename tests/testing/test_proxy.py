"""The fault proxy's connections: relayed, reset, closed, refused, hung; and its own end."""

import asyncio
import gc
import os
import socket
import sys
import time
import warnings
from collections.abc import AsyncIterator
from unittest.mock import ANY

import anyio
import pytest

from aioetcd.testing.proxy import FaultProxy
from tests.testing.tcp import BOUND, Backend, connected, descriptors, running


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


async def test_relays_and_counts(proxy: FaultProxy, backend: Backend) -> None:
    """Without a fault every byte passes both ways and is counted."""
    data = os.urandom(3_000_000)
    async with connected(proxy) as peer, anyio.create_task_group() as tasks:
        tasks.start_soon(peer.send, data)
        assert await peer.read(len(data)) == data
        assert proxy.connections_open == 1
    await proxy.wait_until(lambda p: p.connections_open == 0)
    assert proxy.connections_total == 1
    assert proxy.bytes_from_client == proxy.bytes_from_server == len(data)
    assert proxy.target == backend.endpoint
    assert "connections=0/1" in repr(proxy)


async def test_half_close_passes(proxy: FaultProxy, backend: Backend) -> None:
    """A client's FIN reaches the server, whose answer and FIN still come back."""
    async with connected(proxy) as peer:
        await peer.send(b"last words")
        peer.transport.write_eof()
        assert await peer.ending() == (b"last words", "FIN")
    await backend.wait_endings(1)
    assert backend.endings == ["FIN"]


async def test_reset_passes(proxy: FaultProxy, backend: Backend) -> None:
    """A client's RST reaches the server as RST."""
    async with connected(proxy) as peer:
        await peer.echo(b"x")
        peer.reset()
        await backend.wait_endings(1)
    assert backend.endings == ["RST"]


async def test_cut_resets_both_sides(proxy: FaultProxy, backend: Backend) -> None:
    """A cut is an RST for the client and for the server, and new connections work."""
    async with connected(proxy) as first, connected(proxy) as second:
        await first.echo(b"a")
        await second.echo(b"b")
        assert proxy.cut() == 2
        assert await first.ending() == (b"", "RST")
        assert await second.ending() == (b"", "RST")
    await backend.wait_endings(2)
    assert backend.endings == ["RST", "RST"]
    assert proxy.cuts == 2
    async with connected(proxy) as third:
        await third.echo(b"c")
    assert proxy.connections_total == 3


async def test_close_connections_is_fin(proxy: FaultProxy, backend: Backend) -> None:
    """An orderly close is a FIN on both sides, and no cut."""
    async with connected(proxy) as peer:
        await peer.echo(b"a")
        assert proxy.close_connections() == 1
        assert await peer.ending() == (b"", "FIN")
        peer.transport.close()
        await backend.wait_endings(1)
    assert backend.endings == ["FIN"]
    assert proxy.cuts == 0


async def test_refuse_and_accept(proxy: FaultProxy) -> None:
    """Refusing spares open connections, keeps the port, and ends with `accept`."""
    endpoint = proxy.endpoint
    async with connected(proxy) as old:
        await old.echo(b"a")
        proxy.refuse()
        proxy.refuse()
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError):
                async with connected(proxy):
                    pass
        await old.echo(b"still open")
        with pytest.raises(OSError, match="in use"), socket.socket() as thief:
            thief.bind(("127.0.0.1", int(endpoint.rpartition(":")[2])))
        await proxy.accept()
        await proxy.accept()
        assert proxy.endpoint == endpoint
        async with connected(proxy) as new:
            await new.echo(b"b")
        proxy.refuse()
        await proxy.heal()
        async with connected(proxy) as new:
            await new.echo(b"c")


async def test_hang_stops_everything_and_loses_nothing(proxy: FaultProxy, backend: Backend) -> None:
    """While hanging, open and new connections are silent; afterwards they go on."""
    async with connected(proxy) as old:
        await old.echo(b"a")
        proxy.hang()
        async with connected(proxy) as new:
            await old.send(b"from the old one")
            await new.send(b"from the new one")
            assert await old.silent()
            assert await new.silent()
            assert len(backend.writers) == 1
            assert bytes(backend.received) == b"a"
            await proxy.heal()
            assert await old.read(16) == b"from the old one"
            assert await new.read(16) == b"from the new one"


async def test_hang_does_not_read(proxy: FaultProxy) -> None:
    """A client that writes to a hanging proxy is stopped by back-pressure."""
    proxy.hang()
    async with connected(proxy) as peer:
        data = bytes(64 * 1024 * 1024)
        with pytest.raises(TimeoutError), anyio.fail_after(0.5):
            await peer.send(data)
        assert proxy.bytes_from_client == 0


async def test_slow_reader_meets_backpressure(proxy: FaultProxy) -> None:
    """Where one side does not read, the proxy stops reading the other."""
    async with connected(proxy) as peer:
        peer.transport.pause_reading()
        with pytest.raises(TimeoutError), anyio.fail_after(0.5):
            await peer.send(bytes(64 * 1024 * 1024))


async def test_retarget_moves_new_connections(proxy: FaultProxy) -> None:
    """New connections reach the new target, open ones keep the old."""
    async with running(Backend(name=b"second")) as other, connected(proxy) as old:
        await old.echo(b"a")
        proxy.retarget(f"http://{other.endpoint}/")
        async with connected(proxy) as new:
            assert await new.read(6) == b"second"
        await old.echo(b"b")


async def test_dead_target_resets_the_client(proxy: FaultProxy) -> None:
    """A target that refuses is seen as a reset, and counted."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        proxy.retarget(f"127.0.0.1:{unused.getsockname()[1]}")
        async with connected(proxy) as peer:
            assert await peer.ending() == (b"", "RST")
    assert proxy.connect_failures == 1


async def test_heal_ends_every_fault(proxy: FaultProxy) -> None:
    """After `heal`, a new connection works whatever was switched on before."""
    proxy.delay(100)
    proxy.rate(1)
    proxy.chunk(1)
    proxy.blackhole()
    proxy.hang()
    proxy.refuse()
    proxy.cut_after(0)
    await proxy.heal()
    async with connected(proxy) as peer:
        start = time.monotonic()
        await peer.echo(b"hello" * 1000)
        assert time.monotonic() - start < 5


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
@pytest.mark.parametrize("fault", ["none", "hang", "blackhole", "delay", "rate", "refuse"])
async def test_leaves_nothing_behind(backend: Backend, fault: str) -> None:
    """Closing the proxy during any fault leaves no descriptor and no task."""
    tasks, before = asyncio.all_tasks(), descriptors()
    proxy = FaultProxy(backend.endpoint)
    await proxy.start()
    async with connected(proxy) as one, connected(proxy) as two:
        await one.echo(b"a")
        if fault == "delay":
            proxy.delay(1000)
        elif fault == "rate":
            proxy.rate(1)
        elif fault != "none":
            getattr(proxy, fault)()
        await one.send(bytes(200_000))
        await two.send(bytes(200_000))
        start = time.monotonic()
        await proxy.aclose()
        assert time.monotonic() - start < 2
        assert proxy.connections_open == 0
        assert await one.ending() == (ANY, "RST")
        await backend.wait_endings(len(backend.writers))
    with anyio.fail_after(BOUND):
        while asyncio.all_tasks() - tasks:  # the backend's own end by themselves
            await asyncio.sleep(0)
    assert not descriptors() - before


async def test_close_is_final(backend: Backend) -> None:
    """A closed proxy refuses connections, may be closed twice, and cannot be opened again."""
    proxy = FaultProxy(backend.endpoint)
    with pytest.raises(RuntimeError, match="no port yet"):
        _ = proxy.endpoint
    await proxy.start()
    await proxy.aclose()
    await proxy.aclose()
    with pytest.raises(ConnectionRefusedError):
        async with connected(proxy):
            pass
    with pytest.raises(RuntimeError, match="closed"):
        await proxy.start()


async def test_listens_where_it_is_told(backend: Backend) -> None:
    """A port may be chosen, and one that is taken is an error."""
    async with FaultProxy(backend.endpoint) as proxy:
        port = int(proxy.endpoint.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"):
            await FaultProxy(backend.endpoint, port=port).start()
    async with FaultProxy(backend.endpoint, port=port) as again:
        assert again.endpoint == f"127.0.0.1:{port}"


@pytest.mark.parametrize(
    "target", ["", "host", "host:", ":2379", "host:http", "http://host", "host:65536"]
)
def test_wrong_target(target: str) -> None:
    """A target that is not host:port is refused where it is given."""
    with pytest.raises(ValueError, match="host:port"):
        FaultProxy(target)


def test_wrong_arguments() -> None:
    """Numbers that mean nothing are refused."""
    proxy = FaultProxy("[::1]:2379")
    assert proxy.target == "[::1]:2379"
    for call in (
        lambda: FaultProxy("a:1", buffer_bytes=0),
        lambda: proxy.delay(-1),
        lambda: proxy.rate(0),
        lambda: proxy.chunk(0),
        lambda: proxy.cut_after(-1),
        lambda: proxy.cut_after(1, pause=-1),
        lambda: proxy.hold_after(-1),
    ):
        with pytest.raises(ValueError, match="must"):
            call()


@pytest.mark.parametrize("end", ["accept", "aclose"])
@pytest.mark.parametrize("turns", range(8))
async def test_refusing_while_a_connection_is_accepted(
    backend: Backend, turns: int, end: str
) -> None:
    """Whenever a connection comes while the proxy begins to refuse, its socket is closed too."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        async with FaultProxy(backend.endpoint) as proxy:
            host, port = proxy.endpoint.split(":")
            with socket.create_connection((host, int(port))):
                for _ in range(turns):
                    await asyncio.sleep(0)
                proxy.refuse()
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection((host, int(port)))
                await getattr(proxy, end)()
            if end == "accept":
                async with connected(proxy) as peer:
                    await peer.echo(b"accepted again")
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


@pytest.mark.parametrize("turns", range(8))
async def test_closing_while_a_connection_is_accepted(backend: Backend, turns: int) -> None:
    """Whenever a connection comes while the proxy closes, its socket is closed too."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        async with FaultProxy(backend.endpoint) as proxy:
            host, port = proxy.endpoint.split(":")
            with socket.create_connection((host, int(port))):
                for _ in range(turns):
                    await asyncio.sleep(0)
                await proxy.aclose()
        gc.collect()
    assert [str(warning.message) for warning in caught] == []
