"""Locks through faults, and with etcdctl as another player."""

from __future__ import annotations

import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

import anyio
import anyio.abc
import pytest

from aioetcd import Client, LockLostError, LockNotAcquiredError, LockTimeoutError, NoEndpointError
from aioetcd.testing import EtcdServer, FaultProxy, find_binary
from tests.concurrency.locks import (
    NAME,
    Locks,
    body,
    is_owner,
    locks_of,
    on_either_lease,
    queue,
    wait_for_queue,
    watches_created,
)
from tests.harness import Faulty, faulty_client
from tests.waiting import lateness, until

# Faults that a lock lives through.


async def test_compaction_while_waiting(faulty: Faulty) -> None:
    """A waiter whose watch falls behind a compaction looks again and goes on waiting."""
    acquired = anyio.Event()
    leave = anyio.Event()

    async def wait() -> None:
        async with faulty.client.lock(NAME, ttl=60) as lock:
            acquired.set()
            await leave.wait()
            assert await is_owner(faulty.client, lock)

    async with anyio.create_task_group() as tasks:
        async with faulty.oracle.lock(NAME, ttl=60):
            tasks.start_soon(wait)
            await wait_for_queue(faulty.oracle, 2)
            await watches_created(faulty.client, 2)
            compacted = await compact(faulty)
            await cut_watches(faulty)
            await watches_created(faulty.client, 2, after=compacted)
            assert not acquired.is_set()
        with anyio.fail_after(10):
            await acquired.wait()
        leave.set()


async def test_compaction_while_holding(faulty: Faulty) -> None:
    """A holder whose watch falls behind a compaction goes on, and still notices its loss."""
    lock = faulty.client.lock(NAME, ttl=60)

    async def take_away() -> None:
        compacted = 0
        for _ in range(2):
            await watches_created(faulty.client, 1, after=compacted)
            compacted = await compact(faulty)
            await cut_watches(faulty)
            assert await is_owner(faulty.client, lock)
            assert not lock.is_lost
        await watches_created(faulty.client, 1, after=compacted)
        await faulty.oracle.kv.delete(lock.key)

    with pytest.raises(LockLostError):
        await body(lock, take_away)


@pytest.mark.parametrize("made_again", [False, True])
async def test_key_deleted_and_compacted_while_cut_off(faulty: Faulty, made_again: bool) -> None:
    """A deletion that only the history knew, and the history is gone, is noticed all the same."""
    lock = faulty.client.lock(NAME, ttl=60)

    async def take_away() -> None:
        await watches_created(faulty.client, 1)
        faulty.proxy.refuse()
        faulty.proxy.cut()
        await faulty.oracle.kv.delete(lock.key)
        if made_again:  # a key of that name is there, and it is another one
            await faulty.oracle.kv.put(lock.key, "", lease=lock.lease_id)
        await compact(faulty)
        assert not lock.is_lost
        await faulty.proxy.heal()

    with pytest.raises(LockLostError):
        await body(lock, take_away)


async def cut_watches(faulty: Faulty) -> None:
    """Cut the connection, and wait until the watches have noticed."""
    (watches,) = faulty.client._shared.turns._streams[True]
    reconnects = watches.shared.reconnects
    faulty.proxy.cut()
    await until(lambda: watches.shared.reconnects > reconnects)


async def compact(faulty: Faulty) -> int:
    """Write something, forget the history before it, and give the revision that is left."""
    for _ in range(3):
        put = await faulty.oracle.kv.put("other", "v")
    await faulty.oracle.kv.compact(put.header.revision, physical=True)
    await faulty.oracle.kv.delete("other")
    return put.header.revision


@pytest.mark.fault("thirty broken connections")
async def test_acquired_through_cuts(faulty: Faulty) -> None:
    """Connections that break at any byte of the acquisition change nothing: one key, one lease."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201
    chance = random.Random(seed)
    fired = 0
    for _ in range(30):
        cut = faulty.proxy.cut_after(chance.randrange(400))
        async with faulty.client.lock(NAME, ttl=30) as lock:
            assert await queue(faulty.oracle) == [lock.key]
            assert await faulty.lease_ids() == (lock.lease_id,)
            assert await is_owner(faulty.oracle, lock)
        fired += cut.is_set()
        await faulty.proxy.heal()
        await wait_for_queue(faulty.oracle, 0)
    assert fired >= 15
    await until(faulty.no_leases)


@pytest.mark.fault("thirty broken connections")
async def test_not_blocking_through_cuts(faulty: Faulty) -> None:
    """A lost answer is never taken for somebody else's lock."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201
    chance = random.Random(seed)
    fired = 0
    for _ in range(30):
        cut = faulty.proxy.cut_after(chance.randrange(300))
        async with faulty.client.lock(NAME, ttl=30, blocking=False) as lock:
            assert await is_owner(faulty.oracle, lock)
            fired += cut.is_set()
        await faulty.proxy.heal()
        await wait_for_queue(faulty.oracle, 0)
    assert fired >= 15


@pytest.mark.fault("X10")
@on_either_lease
async def test_x10_released_while_cut_off(
    quick_server: EtcdServer, caplog: pytest.LogCaptureFixture, shared: bool
) -> None:
    """Releasing takes the time to live at the most, and says so; then the next one has the lock."""
    await quick_server.clear()
    async with (
        faulty_client(quick_server) as faulty,
        locks_of(faulty.client, shared, ttl=1) as make,
    ):
        lock = make(NAME)
        await lock.acquire()
        faulty.proxy.blackhole()
        assert await queue(faulty.oracle) == [lock.key]
        before = monotonic()
        async with lateness() as late:
            await lock.release()
            took = monotonic() - before
            assert faulty.proxy.bytes_swallowed > 0
            assert f"{lock.lease_id:x}" in caplog.text
            async with faulty.oracle.lock(NAME, ttl=60, timeout=10):
                next_one = monotonic() - before
        assert took < 1.3 + late.seconds
        assert next_one < 3 + late.seconds


@on_either_lease
async def test_x10_released_while_cut_off_for_a_while(
    quick_server: EtcdServer, shared: bool
) -> None:
    """When the server is back the next one has the lock, long before the end of the lease."""
    await quick_server.clear()
    async with (
        faulty_client(quick_server) as faulty,
        locks_of(faulty.client, shared, ttl=60) as make,
    ):
        lock = make(NAME)
        await lock.acquire()
        faulty.client._transport.timeout = 0.5  # from now on: it had time to be acquired
        faulty.proxy.blackhole()
        async with lateness() as late:
            before = monotonic()
            await lock.release()
            took = monotonic() - before
        # Longer than the client tries anything else.
        assert 0.4 < took < 1 + late.seconds
        assert faulty.proxy.bytes_swallowed > 0
        assert await queue(faulty.oracle) == [lock.key]
        await faulty.proxy.heal()
        faulty.client._transport.timeout = 10.0
        async with faulty.oracle.lock(NAME, ttl=60, timeout=4):
            pass
        async with make(NAME, timeout=10) as again:
            assert again.revision > lock.revision


@pytest.mark.own_logic("how long the client itself waits")
async def test_entering_without_a_server(quick_server: EtcdServer) -> None:
    """Without a reachable endpoint, acquiring fails at the client's timeout."""
    async with FaultProxy(quick_server.endpoint) as proxy:
        proxy.refuse()
        async with Client(proxy.endpoint, timeout=0.5) as client:
            for blocking in (True, False):
                async with lateness() as late:
                    before = monotonic()
                    with pytest.raises(NoEndpointError):
                        await client.lock(NAME, blocking=blocking).__aenter__()
                    took = monotonic() - before
                assert took < 0.8 + late.seconds


@pytest.mark.own_logic("how long the client itself waits")
async def test_timeout_without_a_server(quick_server: EtcdServer) -> None:
    """The lock's own timeout holds when nobody can be reached, too."""
    async with FaultProxy(quick_server.endpoint) as proxy:
        proxy.refuse()
        async with Client(proxy.endpoint, timeout=5) as client, lateness() as late:
            before = monotonic()
            with pytest.raises(NoEndpointError):
                await client.lock(NAME, timeout=0.3).__aenter__()
            took = monotonic() - before
        assert took < 0.8 + late.seconds


# Another implementation.


class Etcdctl:
    """``etcdctl lock``, to be started."""

    def __init__(self, server: EtcdServer, tasks: anyio.abc.TaskGroup) -> None:
        program = str(find_binary("etcdctl"))
        self._command = [program, f"--endpoints={server.endpoint}", "lock", "--ttl=60", NAME]
        self._tasks = tasks
        self._process: anyio.abc.Process | None = None
        self._output = b""

    @property
    def key(self) -> bytes | None:
        """The key that it prints when it has the lock."""
        line, newline, _ = self._output.partition(b"\n")
        return line if newline else None

    async def start(self) -> None:
        """Run it."""
        self._process = await anyio.open_process(self._command, env={"ETCDCTL_API": "3"})
        self._tasks.start_soon(self._read, self._process)

    async def _read(self, process: anyio.abc.Process) -> None:
        assert process.stdout is not None
        async for data in process.stdout:
            self._output += data

    async def release(self) -> None:
        """End it as Ctrl-C does."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        with anyio.fail_after(10):
            await self._process.wait()

    async def aclose(self) -> None:
        """Kill it if it still runs."""
        if self._process is not None:
            if self._process.returncode is None:
                self._process.kill()
            await self._process.aclose()


@asynccontextmanager
async def etcdctl_lock(server: EtcdServer) -> AsyncIterator[Etcdctl]:
    """Make one that does not outlive the block."""
    async with anyio.create_task_group() as tasks:
        etcdctl = Etcdctl(server, tasks)
        try:
            yield etcdctl
        finally:
            with anyio.CancelScope(shield=True):
                await etcdctl.aclose()
                await server.clear()  # it deletes its key and leaves its lease
            tasks.cancel_scope.cancel()


@on_either_lease
@pytest.mark.outside("etcdctl")
async def test_etcdctl_waits_for_us(client: Client, server: EtcdServer, shared: bool) -> None:
    """`etcdctl lock` waits while we hold the lock, and has it when we leave."""
    async with etcdctl_lock(server) as etcdctl, locks_of(client, shared) as make:
        async with make(NAME) as lock:
            await etcdctl.start()
            await wait_for_queue(client, 2)
            waiting = (await queue(client))[1]
            assert etcdctl.key is None
            assert await is_owner(client, lock)
        await until(lambda: etcdctl.key is not None)
        assert etcdctl.key == waiting
        await etcdctl.release()
        assert await queue(client) == []


@pytest.mark.usefixtures("patient_look")
@on_either_lease
@pytest.mark.outside("etcdctl")
async def test_we_wait_for_etcdctl(client: Client, server: EtcdServer, shared: bool) -> None:
    """While `etcdctl lock` holds it we see who has it, wait, and have it when it ends."""
    acquired = anyio.Event()

    async def wait(make: Locks) -> None:
        async with make(NAME) as lock:
            assert await is_owner(client, lock)
            acquired.set()

    async with etcdctl_lock(server) as etcdctl, locks_of(client, shared) as make:
        await etcdctl.start()
        await until(lambda: etcdctl.key is not None)
        with pytest.raises(LockNotAcquiredError) as caught:
            await make(NAME, blocking=False).acquire()
        assert caught.value.holder.key == etcdctl.key
        with pytest.raises(LockTimeoutError):
            await make(NAME, timeout=0.1).acquire()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait, make)
            await wait_for_queue(client, 2)
            assert not acquired.is_set()
            await etcdctl.release()
            with anyio.fail_after(10):
                await acquired.wait()
