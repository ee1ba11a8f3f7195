"""The fault proxy to the byte: what passes before a fault or an end, and what does not after it.

Both ends are bare sockets, so that a full buffer stays full until the test reads.
"""

import asyncio
import socket
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import anyio
import pytest

from aioetcd.testing._sockets import was_reset
from aioetcd.testing.proxy import FaultProxy
from tests.testing.tcp import End, connected, pattern, wired
from tests.waiting import until

both_ways = pytest.mark.parametrize("way", ["up", "down"])
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux's kernel")

LOOKS = 0.75
"""Longer than the proxy looks several times after a peer that it does not read from."""

SLOW_LOOKS = "looks take their time"


@pytest.fixture
async def proxy() -> AsyncIterator[FaultProxy]:
    """A proxy, which `wired` gives its target."""
    async with FaultProxy("127.0.0.1:1", seed=1) as proxy:
        yield proxy


@pytest.fixture
async def threads() -> AsyncIterator[Executor]:
    """Threads for the loop, which end with the test."""
    with ThreadPoolExecutor(1) as threads:
        asyncio.get_running_loop().set_default_executor(threads)
        yield threads


def passed(proxy: FaultProxy, way: str) -> int:
    """The proxy's own count of what it gave to the kernel."""
    return proxy.bytes_from_client if way == "up" else proxy.bytes_from_server


def in_kernel(receiver: End) -> int:
    """The bytes that the kernel holds for a receiver that has read nothing, of both sockets."""
    here, there = receiver.sock.getsockname(), receiver.sock.getpeername()
    return _queues(here[1], there[1])[1] + _queues(there[1], here[1])[0]


def _queues(local: int, remote: int) -> tuple[int, int]:
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        ports = [int(fields[index].rpartition(":")[2], 16) for index in (1, 2)]
        if ports == [local, remote]:
            sending, _, receiving = fields[4].partition(":")
            return int(sending, 16), int(receiving, 16)
    raise AssertionError("no such connection")


# --- nothing more after a fault -------------------------------------------------------------


@needs_linux
@both_ways
async def test_hang_lets_no_byte_leave(proxy: FaultProxy, way: str) -> None:
    """After `hang` a slow receiver gets what the kernel had by then, and all of it after `heal`."""
    async with wired(proxy) as wire:
        sender, receiver = wire.ends(way)
        sent = await sender.fill()
        await until(lambda: in_kernel(receiver) == passed(proxy, way))
        proxy.hang()
        before = passed(proxy, way)
        data = await receiver.read_until_silent()
        assert len(data) == passed(proxy, way) == before < sent
        await proxy.heal()
        assert data + await receiver.read(sent - before) == pattern(0, sent)
        assert passed(proxy, way) == sent


@needs_linux
@both_ways
async def test_blackhole_lets_no_byte_leave(proxy: FaultProxy, way: str) -> None:
    """After `blackhole` a slow receiver gets what the kernel had; every other byte is swallowed."""
    async with wired(proxy) as wire:
        sender, receiver = wire.ends(way)
        sent = await sender.fill()
        await until(lambda: in_kernel(receiver) == passed(proxy, way))
        proxy.blackhole()
        before = passed(proxy, way)
        await proxy.wait_until(lambda p: p.bytes_swallowed == sent - before > 0)
        assert await receiver.read_until_silent() == pattern(0, before)
        assert passed(proxy, way) == before
        await sender.send(b"and so is this")
        await proxy.wait_until(lambda p: p.bytes_swallowed == sent - before + 14)
        assert passed(proxy, way) == before


@pytest.mark.parametrize("fault", ["hang", "blackhole"])
@both_ways
async def test_a_fault_in_full_traffic(proxy: FaultProxy, way: str, fault: str) -> None:
    """Whenever the fault comes into a stream, not a byte is counted or comes after it."""
    async with wired(proxy) as wire, anyio.create_task_group() as tasks:
        sender, receiver = wire.ends(way)
        tasks.start_soon(sender.send, pattern(0, 50_000_000))
        data = await receiver.read(3_000_000)
        getattr(proxy, fault)()
        before = passed(proxy, way)
        data += await receiver.read_until_silent()
        assert data == pattern(0, before)
        assert passed(proxy, way) == before
        tasks.cancel_scope.cancel()


# --- ends in their order --------------------------------------------------------------------


@pytest.mark.parametrize("end", ["finish", "reset"])
@pytest.mark.parametrize("fault", ["none", "delay", "jitter", "rate", "chunk"])
@both_ways
async def test_an_end_comes_after_the_bytes(
    proxy: FaultProxy, way: str, fault: str, end: str
) -> None:
    """A FIN or a RST arrives behind all that was sent before it, and as late as they."""
    if fault == "delay":
        proxy.delay(0.3)
    elif fault == "jitter":
        proxy.delay(0.0, jitter=0.1)
    elif fault == "rate":
        proxy.rate(100_000)
    elif fault == "chunk":
        proxy.chunk(100)
    async with wired(proxy) as wire:
        sender, receiver = wire.ends(way)
        start = time.monotonic()
        await sender.send(pattern(0, 40_000))
        await getattr(sender, end)()
        how = "RST" if end == "reset" else "FIN"
        assert await receiver.ending() == (pattern(0, 40_000), how)
        if fault in ("delay", "rate"):
            assert time.monotonic() - start >= 0.3
        assert passed(proxy, way) == 40_000


@both_ways
async def test_an_end_alone_is_delayed(proxy: FaultProxy, way: str) -> None:
    """Where no byte is under way, a RST takes the link's delay all the same."""
    proxy.delay(0.3)
    async with wired(proxy) as wire:
        sender, receiver = wire.ends(way)
        start = time.monotonic()
        await sender.reset()
        assert await receiver.ending() == (b"", "RST")
        assert time.monotonic() - start >= 0.3


@both_ways
async def test_a_reset_after_a_write_to_it(proxy: FaultProxy, way: str) -> None:
    """A reset that a write meets first comes behind the bytes as well, though it is delayed."""
    proxy.delay(0.3)
    async with wired(proxy) as wire:
        sender, receiver = wire.ends(way)
        await receiver.send(b"on its way to a peer that leaves")
        await sender.send(pattern(0, 10_000))
        await sender.reset()
        assert await receiver.ending() == (pattern(0, 10_000), "RST")


@both_ways
@pytest.mark.parametrize("stuck", ["one way", "both ways"])
async def test_a_reset_does_not_wait_for_a_stuck_peer(
    proxy: FaultProxy, way: str, stuck: str
) -> None:
    """A RST is passed on although its peer reads nothing, so that all buffers there are full."""
    async with wired(proxy) as wire:
        sender, receiver = wire.ends(way)
        await sender.fill()
        if stuck == "both ways":
            await receiver.fill()
        sender.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sender.sock.close()
        await until(lambda: was_reset(receiver.sock))
        assert proxy.connections_open == 0


@both_ways
async def test_a_stuck_peer_resets(proxy: FaultProxy, way: str) -> None:
    """A RST of the peer that does not read arrives at the one that writes to it in vain."""
    async with wired(proxy) as wire:
        sender, receiver = wire.ends(way)
        await sender.fill()
        receiver.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        receiver.sock.close()
        await until(lambda: was_reset(sender.sock))


@both_ways
async def test_a_reset_after_a_fin(proxy: FaultProxy, way: str) -> None:
    """A peer that has closed its way in order and then resets is not waited for."""
    async with wired(proxy) as wire:
        sender, receiver = wire.ends(way)
        await sender.send(b"last words")
        await sender.finish()
        assert await receiver.ending() == (b"last words", "FIN")
        await sender.reset()
        await until(lambda: was_reset(receiver.sock))


@both_ways
async def test_a_slow_reader_keeps_what_came_before_a_reset(proxy: FaultProxy, way: str) -> None:
    """As long as the peer takes bytes, a RST waits behind the ones that the proxy holds."""
    proxy.delay(0.2)
    async with wired(proxy) as wire:
        sender, receiver = wire.ends(way)
        size = 12_000_000  # more than the kernel's buffers
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sender.send, pattern(0, size))
            data = await receiver.read(100_000)
        await sender.reset()
        while len(data) < size:
            data += await receiver.read(min(1_000_000, size - len(data)))
            await anyio.sleep(0.02)  # it is slow
        assert data == pattern(0, size)
        assert await receiver.ending() == (b"", "RST")


@pytest.mark.parametrize(
    "fault", [pytest.param("hang", marks=pytest.mark.fault(SLOW_LOOKS)), "blackhole"]
)
@both_ways
async def test_a_fault_keeps_a_reset_back(proxy: FaultProxy, way: str, fault: str) -> None:
    """Nor does a RST pass a hang or a blackhole, with full buffers and while the proxy looks."""
    async with wired(proxy) as wire:
        sender, receiver = wire.ends(way)
        await sender.fill()
        getattr(proxy, fault)()
        sender.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sender.sock.close()
        with anyio.move_on_after(LOOKS):
            await until(lambda: was_reset(receiver.sock))
            pytest.fail("the reset passed")
        assert proxy.connections_open == 1
        await proxy.heal()
        await until(lambda: was_reset(receiver.sock))
        assert proxy.cuts == 0


@pytest.mark.fault(SLOW_LOOKS)
@both_ways
async def test_a_delay_keeps_a_reset_back(proxy: FaultProxy, way: str) -> None:
    """A stuck peer does not hear of a RST before its time: looking does not shorten a delay."""
    async with wired(proxy) as wire:
        sender, receiver = wire.ends(way)
        await sender.fill()
        proxy.delay(0.75)
        start = time.monotonic()
        sender.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sender.sock.close()
        await until(lambda: was_reset(receiver.sock))
        assert time.monotonic() - start >= 0.75


# --- the rate -------------------------------------------------------------------------------


@both_ways
async def test_rate_is_never_exceeded(proxy: FaultProxy, way: str) -> None:
    """At no time have more bytes arrived than the rate allows, over two connections together."""
    rate, arrived = 100_000, 0
    async with wired(proxy) as one, wired(proxy) as two, anyio.create_task_group() as tasks:
        start = time.monotonic()
        proxy.rate(rate)

        async def receive(end: End) -> None:
            nonlocal arrived
            while arrived < 50_000:
                data = await end.read_some()  # meanwhile the other one counts, too
                arrived += len(data)
                assert arrived <= rate * (time.monotonic() - start)

        for wire in (one, two):
            sender, receiver = wire.ends(way)
            await sender.send(bytes(60_000))
            tasks.start_soon(receive, receiver)


@pytest.mark.parametrize("how", ["heal", "another rate", "heal and another rate"])
@both_ways
async def test_rate_ends_at_once(proxy: FaultProxy, way: str, how: str) -> None:
    """What waits for its turn at a rate of 100 s a byte leaves as soon as the rate is over."""
    async with wired(proxy) as wire:
        sender, receiver = wire.ends(way)
        proxy.rate(0.01)
        await sender.send(pattern(0, 10_000))
        assert await receiver.read_until_silent() == b""
        if "heal" in how:
            await proxy.heal()
        if "another" in how:
            proxy.rate(1_000_000)
        assert await receiver.read(10_000) == pattern(0, 10_000)


# --- refusing, and where a connection leads -------------------------------------------------


@pytest.mark.parametrize("end", ["accept", "heal"])
async def test_refuse_before_the_start(end: str) -> None:
    """A proxy that was told to refuse before it starts does so from its start on."""
    proxy = FaultProxy("127.0.0.1:1")
    proxy.refuse()
    async with proxy:
        host, _, port = proxy.endpoint.rpartition(":")
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((host, int(port)))
        await proxy.start()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)))
        await getattr(proxy, end)()
        assert proxy.endpoint == f"{host}:{port}"
        async with wired(proxy) as wire:
            await wire.client.send(b"accepted")
            assert await wire.server.read(8) == b"accepted"


@pytest.mark.parametrize("end", ["accept", "heal"])
async def test_accept_before_the_start(end: str) -> None:
    """What ends `refuse` before the start ends it, and starts nothing."""
    proxy = FaultProxy("127.0.0.1:1")
    proxy.refuse()
    await getattr(proxy, end)()
    with pytest.raises(RuntimeError, match="no port yet"):
        _ = proxy.endpoint
    async with proxy, wired(proxy) as wire:
        await wire.client.send(b"accepted")
        assert await wire.server.read(8) == b"accepted"


async def test_a_name_is_resolved(proxy: FaultProxy, threads: Executor) -> None:
    """A target may have a name, and one that has no address is a dead one."""
    async with wired(proxy):
        port = proxy.target.rpartition(":")[2]
        proxy.retarget(f"localhost:{port}")
        async with connected(proxy) as peer:
            await peer.send(b"x")
            await proxy.wait_until(lambda p: p.bytes_from_client == 1)
    proxy.retarget("no..name:1")
    async with connected(proxy) as peer:
        assert await peer.ending() == (b"", "RST")
    assert proxy.connect_failures == 1
