"""How long leaving and giving up take, whatever the servers do; and what is said of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import AsyncIterator, Callable
from time import monotonic

import anyio
import pytest

from aioetcd import (
    Client,
    DeadlineExceededError,
    EtcdError,
    LeaseNotFoundError,
    LockTimeoutError,
    NoEndpointError,
)
from aioetcd.testing import EtcdServer, FaultProxy
from tests.concurrency.locks import queue, soon, wait_for_queue
from tests.waiting import lateness, until

pytestmark = pytest.mark.own_logic("how long the client itself waits")

# Everything at once, with the server paused.

INTERRUPTED = """
import asyncio, logging, signal, sys
from aioetcd import Client

logging.basicConfig()
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it

async def hold(client, number):
    async with client.lock(f"a/{number}", ttl=60), client.session(ttl=60):
        async with client.lock(f"b/{number}", ttl=60):
            await asyncio.sleep(60)

async def main():
    async with Client(sys.argv[1]) as client:
        async with client.session(ttl=60), client.lock("c", ttl=60), client.session(ttl=60):
            async with asyncio.TaskGroup() as tasks:
                for number in range(4):
                    tasks.create_task(hold(client, number))
                while client.stats().leases < 15:
                    await asyncio.sleep(0.01)
                print("held", flush=True)
                await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.fault("Z9")
async def test_z9_interrupted_with_the_server_paused(own_server: EtcdServer) -> None:
    """Ctrl-C leaves fifteen locks and sessions side by side: within 5 s, with a word of each."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        INTERRUPTED,
        own_server.endpoint,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(20):
            told = await process.stdout.readline()
            assert told == b"held\n", await process.communicate()
        await own_server.pause()
        async with lateness() as late:
            began = monotonic()
            process.send_signal(signal.SIGINT)
            async with asyncio.timeout(15):
                _, told = await process.communicate()
            took = monotonic() - began
        assert took < 5 + late.seconds
    finally:
        await own_server.resume()
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert b"KeyboardInterrupt" in told
    assert told.count(b"could not be revoked") == 15
    assert b"Task was destroyed" not in told


async def test_several_are_left_side_by_side(
    server: EtcdServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Blocks that one task leaves one after the other, cut off, wait as long as one, or so."""
    async with (
        FaultProxy(server.endpoint) as proxy,
        Client(server.endpoint) as oracle,
        Client(proxy.endpoint, timeout=4) as client,
    ):
        async with (
            lateness() as late,
            client.session(ttl=60) as first,
            client.session(ttl=60) as second,
            client.session(ttl=60) as third,
        ):
            proxy.blackhole()
            began = monotonic()
        took = monotonic() - began
        assert took < 1.0 + 2 * 0.1 + 0.5 + late.seconds
        held = (await oracle.lease.leases()).ids
        assert set(held) == {first.lease_id, second.lease_id, third.lease_id}
        await proxy.heal()

        async def are_revoked() -> bool:
            return (await oracle.lease.leases()).ids == ()

        # By those who went on without the leaver.
        await soon(are_revoked, within=4.0)
    assert "could not be revoked" not in caplog.text


@pytest.mark.fault("longer than anybody's patience")
async def test_each_task_has_patience_of_its_own(
    server: EtcdServer, caplog: pytest.LogCaptureFixture
) -> None:
    """What somebody else's task has left, and is stuck with, takes nothing of one's own time."""
    async with FaultProxy(server.endpoint) as proxy, Client(proxy.endpoint) as client:
        await client.kv.get("connect")
        told: list[str] = []

        async def get_stuck() -> asyncio.Task[None]:
            async def wait(_: float) -> None:
                await asyncio.sleep(60)

            return client._transport.supervisor.tidy(wait, "stuck", seconds=60, give_up=told.append)

        stuck = await asyncio.create_task(get_stuck())
        await asyncio.wait({stuck}, timeout=1.1)  # longer than anybody's patience
        assert not stuck.done()
        proxy.delay(0.15)
        async with client.session(ttl=60) as session:
            pass
        assert session.lease_id not in (await client.lease.leases()).ids
        assert "in the background" not in caplog.text
    assert len(told) == 1


# Limits of time.


@contextlib.asynccontextmanager
async def two_clients(
    server: EtcdServer, *, timeout: float = 10.0
) -> AsyncIterator[tuple[FaultProxy, Client, Client]]:
    """A client behind a proxy, and one beside it."""
    async with (
        FaultProxy(server.endpoint) as proxy,
        Client(server.endpoint) as oracle,
        Client(proxy.endpoint, timeout=timeout) as client,
    ):
        await client.kv.get("connect", timeout=10)  # the client's is for a fault
        yield proxy, client, oracle


def refuse(proxy: FaultProxy) -> None:
    proxy.refuse()
    proxy.cut()


def hang(proxy: FaultProxy) -> None:
    proxy.hang()


@pytest.mark.parametrize("fault", [refuse, hang])
async def test_z18_a_locks_limit(server: EtcdServer, fault: Callable[[FaultProxy], None]) -> None:
    """A lock's limit holds, though the servers are gone, and "not free" is not said of that."""
    async with two_clients(server) as (proxy, client, oracle), oracle.lock("L", ttl=60):
        began = monotonic()

        async def wait() -> None:
            async with client.lock("L", ttl=60, timeout=1):
                pytest.fail("the lock was held")

        waiting = asyncio.create_task(wait())
        await wait_for_queue(oracle, 2, "L")
        async with lateness() as late:
            fault(proxy)
            with pytest.raises(NoEndpointError) as caught:
                await waiting
            took = monotonic() - began
        assert 1 <= took < 2 + 0.3 + late.seconds
        assert list(caught.value.reasons) == [proxy.endpoint]
        await proxy.heal()
        await eventually_alone(oracle)


@pytest.mark.parametrize("fault", [refuse, hang])
async def test_z18_somebody_elses_limit(
    server: EtcdServer, fault: Callable[[FaultProxy], None]
) -> None:
    """A waiter that `asyncio.timeout` gives up on returns within a second after that."""
    async with two_clients(server) as (proxy, client, oracle), oracle.lock("L", ttl=60):
        began = monotonic()

        async def wait() -> None:
            async with asyncio.timeout(1), client.lock("L", ttl=60):
                pytest.fail("the lock was held")

        waiting = asyncio.create_task(wait())
        await wait_for_queue(oracle, 2, "L")
        async with lateness() as late:
            fault(proxy)
            with pytest.raises(TimeoutError) as caught:
                await waiting
            took = monotonic() - began
        assert not isinstance(caught.value, EtcdError)
        assert 1 <= took < 2 + 0.3 + late.seconds
        await proxy.heal()
        await eventually_alone(oracle)


async def eventually_alone(oracle: Client) -> None:
    """Wait until the waiter's place in the queue is gone, though nobody waits for that."""

    async def is_alone() -> bool:
        return len(await queue(oracle, "L")) == 1 and len((await oracle.lease.leases()).ids) == 1

    await until(is_alone)


@pytest.mark.parametrize("fault", [refuse, hang])
@pytest.mark.parametrize("what", ["session", "watch"])
async def test_z18_other_limits(
    server: EtcdServer, fault: Callable[[FaultProxy], None], what: str
) -> None:
    """Entering a session or a watch takes the client's limit and at most a second; it says why."""
    async with two_clients(server, timeout=0.5) as (proxy, client, oracle):
        fault(proxy)
        if fault is refuse:
            await until(lambda: not client._transport.is_connected)
        while fault is refuse:  # else the grant may be on its way when the connection breaks
            with pytest.raises(NoEndpointError) as caught:
                await client.kv.get("k", timeout=0.2)
            if "refused" in str(caught.value):
                break
        error = NoEndpointError if fault is refuse else DeadlineExceededError
        async with lateness() as late:
            began = monotonic()
            with pytest.raises(error, match="refused" if fault is refuse else "within 0"):
                async with client.session(ttl=60) if what == "session" else client.watch("k"):
                    pytest.fail("entered")
            took = monotonic() - began
        assert 0.5 <= took < 1.5 + 0.3 + late.seconds
        await proxy.heal()

        async def is_tidy() -> bool:
            return (await oracle.lease.leases()).ids == ()

        await until(is_tidy)


@pytest.mark.usefixtures("patient_look")
async def test_a_lock_that_is_held_names_its_holder(client: Client) -> None:
    """Whoever waited in vain learns who has the lock: the first in the queue, not the last."""
    async with client.lock("L", ttl=60, value="host-7") as lock, anyio.create_task_group() as tasks:

        async def wait() -> None:
            async with client.lock("L", ttl=60, value="host-8"):
                pytest.fail("the lock was held")

        tasks.start_soon(wait)
        await wait_for_queue(client, 2, "L")
        with pytest.raises(LockTimeoutError) as caught:
            await client.lock("L", timeout=0.2).acquire()
        holder = caught.value.holder
        assert holder is not None
        assert (holder.key, holder.value) == (lock.key, b"host-7")
        tasks.cancel_scope.cancel()


@pytest.mark.usefixtures("patient_look")
@pytest.mark.parametrize("last_step", ["_put_own", "take"])
async def test_a_turn_that_comes_with_the_end_of_the_time(client: Client, last_step: str) -> None:
    """Whoever stands first itself when its time is over is not told that it waits for itself."""
    lock = client.lock("L", ttl=60, timeout=0.5)
    step = getattr(lock._turn, last_step)

    async def step_and_dawdle(*args: object, **kwargs: object) -> None:
        await step(*args, **kwargs)
        await asyncio.sleep(60)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(LockTimeoutError) as caught:
        patch.setattr(lock._turn, last_step, step_and_dawdle)
        await lock.acquire()
    assert caught.value.holder is None


@pytest.mark.fault("a server that is away for all of a closing")
async def test_what_could_not_be_revoked_is_logged(
    server: EtcdServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Closing gives what is still being revoked a second more; then each is named in the log."""
    with caplog.at_level(logging.WARNING, "aioetcd.lease"):
        async with FaultProxy(server.endpoint) as proxy, Client(server.endpoint) as oracle:
            async with lateness() as late:
                async with Client(proxy.endpoint) as client, client.session(ttl=60) as session:
                    proxy.blackhole()
                    began = monotonic()
                took = monotonic() - began
            assert took < 1.0 + 1.0 + 0.6 + late.seconds
            assert caplog.text.count("could not be revoked") == 1
            assert f"{session.lease_id:x}" in caplog.text
            await oracle.lease.revoke(session.lease_id)


@pytest.mark.fault("a server that is away for all of a closing")
async def test_the_log_names_the_time_that_was_granted(
    server: EtcdServer, caplog: pytest.LogCaptureFixture
) -> None:
    """What could not be revoked stays for as long as the server has said, not as was asked."""
    async with FaultProxy(server.endpoint) as proxy, Client(server.endpoint) as oracle:
        shortest = await oracle.lease.grant(1)
        assert shortest.ttl > 1
        async with Client(proxy.endpoint) as client, client.session(ttl=1) as session:
            proxy.blackhole()
        assert f"lease {session.lease_id:x} could not be revoked" in caplog.text
        assert f"for up to {shortest.ttl} s" in caplog.text
        for lease_id in (shortest.id, session.lease_id):
            with contextlib.suppress(LeaseNotFoundError):
                await oracle.lease.revoke(lease_id)
