"""Leaving the fault proxy: by an exception or a cancellation, at any moment, and twice."""

import asyncio
import contextlib
import os
import resource
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from aioetcd.testing._process import Ports
from aioetcd.testing._sockets import was_reset
from aioetcd.testing.proxy import FaultProxy
from tests.testing.tcp import Backend, connected, descriptors, running, wired
from tests.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")

FAULTS: dict[str, Callable[[FaultProxy], Any]] = {
    "none": lambda _: None,
    "hang": lambda proxy: proxy.hang(),
    "blackhole": lambda proxy: proxy.blackhole(),
    "delay": lambda proxy: proxy.delay(1000),
    "rate": lambda proxy: proxy.rate(1),
    "chunk": lambda proxy: proxy.chunk(1),
    "refuse": lambda proxy: proxy.refuse(),
    "hold": lambda proxy: proxy.hold_after(3),
    "pause": lambda proxy: proxy.cut_after(3, pause=1000),
    "finish": lambda proxy: proxy.close_connections(),
}
Leave = Callable[[Coroutine[Any, Any, None], int], Coroutine[Any, Any, None]]
MOMENTS = 16
"""Turns of the loop in which the program below comes to its steady state, and some more."""


@pytest.fixture
def held_port() -> Iterator[int]:
    """A port that a proxy may listen on, and that nobody else is given once it does not."""
    ports = Ports(1)
    yield ports.numbers[0]
    ports.release()


def sockets() -> set[str]:
    """The sockets that this process holds."""
    return {name for name in descriptors() if name.startswith("socket:")}


async def use(backend: Backend, fault: str, listens_at: int, proxies: list[FaultProxy]) -> None:
    """Keep a proxy busy for ever: bytes both ways, connections that come, and a fault."""
    async with (
        FaultProxy(backend.endpoint, port=listens_at, seed=1) as proxy,
        AsyncExitStack() as stack,
    ):
        proxies.append(proxy)
        host, _, port = proxy.endpoint.rpartition(":")
        for _ in range(3):  # their handshakes are the kernel's: the proxy meets them bit by bit
            client = stack.enter_context(socket.create_connection((host, int(port))))
            client.setblocking(False)
            client.send(bytes(200_000))
            await anyio.lowlevel.checkpoint()
        FAULTS[fault](proxy)
        if fault == "refuse":
            await anyio.sleep_forever()
        stack.enter_context(socket.create_connection((host, int(port))))
        await anyio.sleep_forever()


async def natively(program: Coroutine[Any, Any, None], moment: int, times: int = 1) -> None:
    """Cancel a task, as asyncio does it, after so many turns of the loop."""
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(program)
        for _ in range(moment):
            await asyncio.sleep(0)
        for _ in range(times):
            task.cancel()
            if times > 1:
                await asyncio.sleep(0)


async def twice(program: Coroutine[Any, Any, None], moment: int) -> None:
    """Cancel a task, and again in the next turn, while it leaves."""
    await natively(program, moment, 2)


async def by_scope(program: Coroutine[Any, Any, None], moment: int) -> None:
    """Cancel a scope, as anyio does it: every await in it is cancelled from then on."""

    async def run() -> None:
        await program

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        for _ in range(moment):
            await asyncio.sleep(0)
        tasks.cancel_scope.cancel()


async def by_error(program: Coroutine[Any, Any, None], moment: int) -> None:
    """Let a sibling raise, as where the body of a block fails."""

    async def run() -> None:
        await program

    async def fail() -> None:
        for _ in range(moment):
            await asyncio.sleep(0)
        raise ValueError("the test failed")

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            tasks.start_soon(fail)
    except* ValueError:
        pass


@pytest.mark.parametrize("leave", [natively, twice, by_scope, by_error])
@pytest.mark.parametrize("fault", FAULTS)
async def test_left_at_any_moment(fault: str, leave: Leave, held_port: int) -> None:
    """Whenever and however the block is left, no socket, task or port stays; clients are reset."""
    for moment in range(MOMENTS):
        await _leave_once(fault, leave, moment, held_port)


async def test_leaving_does_not_wait(held_port: int) -> None:
    """Entering, leaving and healing never suspend: there is no moment to be cancelled in."""
    proxy = FaultProxy("127.0.0.1:1", port=held_port)
    _run_at_once(proxy.__aenter__())
    async with wired(proxy) as wire:
        await wire.client.send(b"x")
        assert await wire.server.read(1) == b"x"
        await wire.client.fill()
        _run_at_once(proxy.accept())
        proxy.refuse()
        _run_at_once(proxy.accept())
        _run_at_once(proxy.heal())
        _run_at_once(proxy.__aexit__(None, None, None))
        assert proxy.connections_open == 0
        await until(lambda: was_reset(wire.client.sock) and was_reset(wire.server.sock))
        _expect_free(proxy.endpoint)


async def test_left_by_a_cancelled_task(held_port: int) -> None:
    """A block in a scope that is cancelled already is entered and left like any other."""
    before = sockets()
    with anyio.CancelScope() as scope:
        scope.cancel()
        async with FaultProxy("127.0.0.1:1", port=held_port) as proxy:
            _expect_taken(proxy.endpoint)
            await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    _expect_free(proxy.endpoint)
    assert not sockets() - before


async def test_a_failed_start_leaves_nothing() -> None:
    """A proxy whose port is taken has no socket, and may be started when the port is free."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        before = sockets()
        proxy = FaultProxy("127.0.0.1:1", port=port)
        with pytest.raises(OSError, match="in use"):
            await proxy.start()
        assert not sockets() - before
    async with proxy:
        assert proxy.endpoint == f"127.0.0.1:{port}"


async def test_left_while_a_name_is_resolved() -> None:
    """A target's address that comes after the end is not dialled."""
    before = sockets()
    with ThreadPoolExecutor(1) as threads:
        asyncio.get_running_loop().set_default_executor(threads)
        async with running(Backend()) as backend:
            port = backend.endpoint.rpartition(":")[2]
            for turns in range(8):
                async with FaultProxy(f"localhost:{port}") as proxy, connected(proxy) as peer:
                    await proxy.wait_for_connections(1)
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    await proxy.aclose()
                    assert await peer.ending() == (b"", "RST")
            await backend.wait_endings(len(backend.writers))
    await until(lambda: not sockets() - before)


async def test_no_descriptor_is_free() -> None:
    """A proxy that cannot accept says so, does not spin, and accepts when a descriptor is free."""
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with running(Backend()) as backend, FaultProxy(backend.endpoint) as proxy:
        host, _, port = proxy.endpoint.rpartition(":")
        with socket.socket() as client:
            client.setblocking(False)
            highest = max(int(name) for name in os.listdir("/proc/self/fd"))
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
            taken: list[int] = []
            try:
                with contextlib.suppress(OSError):  # when none is left
                    while True:
                        taken.append(os.dup(client.fileno()))
                await asyncio.get_running_loop().sock_connect(client, (host, int(port)))
                await until(lambda: len(told) > 0)
                for _ in range(50):
                    await asyncio.sleep(0)
                assert proxy.connections_total == 0
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                for descriptor in taken:
                    os.close(descriptor)
            await proxy.wait_for_connections(1)
            assert len(told) < 10
            assert "cannot accept" in told[0]["message"]


async def _leave_once(fault: str, leave: Leave, moment: int, held_port: int) -> None:
    async with running(Backend()) as backend:
        tasks, before = asyncio.all_tasks(), sockets()
        proxies: list[FaultProxy] = []
        await leave(use(backend, fault, held_port, proxies), moment)
        for proxy in proxies:
            assert proxy.connections_open == 0
            _expect_free(proxy.endpoint)
        # The backend's own connections end because they were closed.
        await until(lambda: not asyncio.all_tasks() - tasks)
        await until(lambda: not sockets() - before)


def _run_at_once(coroutine: Coroutine[Any, Any, Any]) -> None:
    with pytest.raises(StopIteration):
        coroutine.send(None)


def _expect_free(endpoint: str) -> None:
    host, _, port = endpoint.rpartition(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)))
    socket.create_server((host, int(port))).close()


def _expect_taken(endpoint: str) -> None:
    host, _, port = endpoint.rpartition(":")
    socket.create_connection((host, int(port))).close()
