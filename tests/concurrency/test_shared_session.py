"""Locks on a session's lease."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any

import pytest
from anyio.lowlevel import checkpoint

from aioetcd import (
    Client,
    DeadlineExceededError,
    LeaseLostError,
    LockLostError,
    LockNotAcquiredError,
    LockTimeoutError,
    NoEndpointError,
    Session,
)
from aioetcd.testing import EtcdServer, FaultProxy
from tests.concurrency.locks import NAME, Room, check_told_anew, is_owner, queue, wait_for_queue
from tests.harness import faulty_client, lose_answer
from tests.waiting import until


async def test_on_a_sessions_lease(client: Client) -> None:
    """A lock on a session needs no lease of its own; leaving deletes its key and nothing else."""
    async with client.session(ttl=60) as session:
        await client.kv.put("mine", "v", lease=session.lease_id)
        async with client.lock(NAME, session=session, value="host-7") as lock:
            assert lock.lease_id == session.lease_id
            assert lock.key == f"{NAME}/{session.lease_id:x}".encode()
            assert (await client.kv.get(lock.key)).value == b"host-7"
            assert await is_owner(client, lock)
            assert 50 < lock.expires_in <= 60
            assert (await client.lease.leases()).ids == (session.lease_id,)
        assert await queue(client) == []
        assert not await is_owner(client, lock)
        assert (await client.kv.get("mine")).value == b"v"
        assert not session.is_lost


@pytest.mark.own_logic("how a client shares a lease among its locks")
async def test_many_locks_on_one_session(client: Client) -> None:
    """Any number of locks of different names stand on one session, and are left in any order."""
    async with client.session(ttl=60) as session:
        locks = [client.lock(f"/many/{number}", session=session) for number in range(20)]
        async with asyncio.TaskGroup() as tasks:
            for lock in locks:
                tasks.create_task(lock.acquire())
        for lock in locks:
            assert await is_owner(client, lock)
        random.Random(1).shuffle(locks)
        for lock in locks:
            await lock.release()
        assert (await client.kv.get("/many/", prefix=True)).count == 0
        assert session._tenure._seats == {}


@pytest.mark.own_logic("how a client shares a lease among its locks")
@pytest.mark.parametrize("sessions", [1, 2])
async def test_tasks_with_the_same_session_exclude_one_another(
    client: Client, sessions: int
) -> None:
    """Twenty tasks that lock one name ten times each, on few sessions, are served one at a time."""
    room = Room()

    async def worker(session: Session) -> None:
        for _ in range(10):
            async with client.lock(NAME, session=session) as lock, room.entered(lock):
                assert await is_owner(client, lock)
                await checkpoint()

    async with client.session(ttl=60) as first, client.session(ttl=60) as second:
        async with asyncio.TaskGroup() as tasks:
            for number in range(20):
                tasks.create_task(worker((first, second)[number % sessions]))
        room.check(200)
        assert await queue(client) == []


@pytest.mark.usefixtures("patient_look")
@pytest.mark.own_logic("how a client shares a lease among its locks")
async def test_a_local_waiter_gives_up(client: Client) -> None:
    """Whoever waits for another holder on the same session learns who it is, and leaves nothing."""
    async with client.session(ttl=60) as session, client.lock(NAME, session=session) as lock:
        with pytest.raises(LockTimeoutError) as timed_out:
            await client.lock(NAME, session=session, timeout=0.1).acquire()
        with pytest.raises(LockNotAcquiredError) as refused:
            await client.lock(NAME, session=session, blocking=False).acquire()
        assert refused.value.holder.key == lock.key
        assert timed_out.value.holder is not None
        assert timed_out.value.holder.key == lock.key
        assert await is_owner(client, lock)
        assert not lock.is_lost
        await lock.release()
        async with asyncio.timeout(10), client.lock(NAME, session=session, blocking=False):
            pass  # nobody waits for who has given up
    assert await queue(client) == []


@pytest.mark.own_logic("how a client shares a lease among its locks")
async def test_a_refusal_costs_one_request(client: Client, server: EtcdServer) -> None:
    """Whoever does not wait for somebody else's lock asks once, and has nothing to tidy up."""
    async with (
        Client(server.endpoint) as own,
        own.session(ttl=60) as session,
        client.lock(NAME, ttl=60),
    ):
        calls = own.stats().calls
        with pytest.raises(LockNotAcquiredError):
            await own.lock(NAME, session=session, blocking=False).acquire()
        assert own.stats().calls == calls + 1
        assert session._tenure._seats == {}


@pytest.mark.own_logic("how a client shares a lease among its locks")
async def test_not_blocking_against_a_task_of_the_same_session(client: Client) -> None:
    """Of two that come at once and do not wait, one has the lock and the other is told so."""
    async with client.session(ttl=60) as session:
        for number in range(30):
            locks = [
                client.lock(f"/both/{number}", session=session, blocking=False) for _ in range(3)
            ]
            async with asyncio.timeout(10):
                results = await asyncio.gather(
                    *(lock.acquire() for lock in locks), return_exceptions=True
                )
            held = [lock for lock, result in zip(locks, results, strict=True) if result is None]
            assert len(held) == 1
            for result in results:
                if isinstance(result, LockNotAcquiredError):
                    assert result.holder.key == held[0].key
                else:
                    assert result is None
            await held[0].release()


async def test_a_cancelled_waiter_leaves_the_queue(client: Client) -> None:
    """At any moment of acquiring on a session: its key is deleted, though the lease lives on."""
    async with client.session(ttl=60) as other, client.session(ttl=60) as session:
        for steps in range(0, 60, 2):
            task = asyncio.create_task(client.lock(NAME, session=session).acquire())
            for _ in range(steps):
                await checkpoint()
            held = task.done()
            task.cancel()
            await asyncio.wait({task})
            if held:
                key = f"{NAME}/{session.lease_id:x}"
                assert [key.encode()] == await queue(client)
                await client.kv.delete(key)
                break
            assert await queue(client) == []
            async with client.lock(NAME, session=other, blocking=False):
                pass


@pytest.mark.own_logic("how a client shares a lease among its locks")
async def test_the_session_is_lost(client: Client) -> None:
    """All that stands on a session's lease is told of its loss: a body, a waiter, and others."""
    session = client.session(ttl=60, on_lost="ignore")
    await session.__aenter__()
    async with client.lock("waited for", ttl=60):
        without_a_block = client.lock("a", session=session)
        await without_a_block.acquire()
        waiter = asyncio.create_task(client.lock("waited for", session=session).acquire())
        await wait_for_queue(client, 2, "waited for")

        async def hold() -> None:
            async with client.lock("b", session=session):
                client._shared.leases.rules.revoked(session.lease_id)  # before the keys are deleted
                await asyncio.sleep(10)

        for losing in (hold(), waiter):
            with pytest.raises(LockLostError) as caught:
                await losing
            assert isinstance(caught.value.__cause__, LeaseLostError)
            assert caught.value.__cause__.reason == "revoked"
        assert isinstance(await without_a_block.wait_lost(), LockLostError)
        assert without_a_block.is_lost
        await without_a_block.release()
        await client.lease.revoke(session.lease_id)
    await session.__aexit__(None, None, None)


@pytest.mark.own_logic("how a client shares a lease among its locks")
async def test_the_session_is_left_first(client: Client) -> None:
    """A lock whose session is left is lost at that moment, because its lease is revoked."""
    session = client.session(ttl=60)
    await session.__aenter__()
    lock = client.lock(NAME, session=session)
    await lock.acquire()
    await session.__aexit__(None, None, None)
    assert lock.is_lost
    assert "session was left" in str((await lock.wait_lost()).__cause__)
    assert await queue(client) == []
    await lock.release()


@pytest.mark.own_logic("how a client shares a lease among its locks")
async def test_a_session_that_is_not_open(client: Client) -> None:
    """A lock needs its session open, and says so before anything is sent."""
    session = client.session(ttl=60)
    with pytest.raises(RuntimeError, match="not open"):
        await client.lock(NAME, session=session).acquire()
    async with session:
        pass
    with pytest.raises(RuntimeError, match="not open"):
        await client.lock(NAME, session=session).acquire()
    async with client.session(ttl=60, on_lost="ignore") as lost:
        await client.lease.revoke(lost.lease_id)
        with pytest.raises(LeaseLostError):
            await client.lock(NAME, session=lost).acquire()
        await check_told_anew(lambda: client.lock(NAME, session=lost).acquire())
    assert await queue(client) == []


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"session": "s"}, TypeError, "session must be a Session"),
        ({"session": 7}, TypeError, "session must be a Session"),
    ],
)
def test_wrong_sessions(arguments: dict[str, Any], error: type[Exception], match: str) -> None:
    """What cannot be meant is refused before anything is sent."""
    with pytest.raises(error, match=match):
        Client("127.0.0.1:1").lock("L", **arguments)


def test_the_ttl_is_the_sessions() -> None:
    """A lock on a session has no time to live of its own."""
    client = Client("127.0.0.1:1")
    with pytest.raises(ValueError, match="ttl"):
        client.lock("L", session=client.session(), ttl=5)


def test_a_session_of_another_client() -> None:
    """A session of another client is refused: nobody would renew it after that one is closed."""
    session = Client("127.0.0.1:1").session()
    with pytest.raises(ValueError, match="another client"):
        Client("127.0.0.1:1").lock("L", session=session)


@pytest.mark.parametrize("blocking", [True, False])
async def test_an_acquisition_whose_answer_is_lost(etcd_server: EtcdServer, blocking: bool) -> None:
    """The token of a key whose txn was answered late is its create revision, not the repeat's."""
    async with faulty_client(etcd_server) as faulty:
        async with faulty.client.session(ttl=60) as session:
            lock = faulty.client.lock(NAME, session=session, blocking=blocking)
            faulty.proxy.blackhole(client_to_server=False)
            acquiring = asyncio.create_task(lock.acquire())

            async def is_put() -> bool:
                return len(await queue(faulty.oracle)) == 1

            await until(is_put)
            await faulty.oracle.kv.put("another", "write")
            await lose_answer(faulty.proxy, is_put)
            await acquiring
            found = (await faulty.oracle.kv.get(lock.key)).kv
            assert found is not None
            assert lock.revision == found.create_revision
            assert await is_owner(faulty.oracle, lock)
            await lock.release()
        await faulty.oracle.kv.delete("another")


async def test_an_acquisition_that_nobody_answered(server: EtcdServer) -> None:
    """A key that was put, though its txn has failed without an answer, does not stay."""
    async with (
        faulty_client(server) as faulty,
        faulty.client.session(ttl=60, on_lost="ignore") as session,
    ):
        lock = faulty.client.lock(NAME, session=session)
        faulty.client._transport.timeout = 0.5  # from now on: the session had time to be entered
        faulty.proxy.blackhole(client_to_server=False)
        with pytest.raises(DeadlineExceededError) as caught:
            await lock.acquire()
        assert caught.value.maybe_applied
        assert await queue(faulty.oracle) == [lock.key]
        await faulty.proxy.heal()
        faulty.client._transport.timeout = 10.0

        async def is_deleted() -> bool:
            return await queue(faulty.oracle) == []

        await until(is_deleted)
        # It might arrive once more, as long as there is the lease.
        await until(lambda: list(session._tenure.late) == [lock._turn._place])
        assert not session.is_lost
        await faulty.client.lease.revoke(session.lease_id)
        await until(lambda: session._tenure.late == {})
        await until(lambda: faulty.client.stats().watches == 0)


@pytest.mark.fault("a client that waits for its timeouts, one after the other")
async def test_a_deletion_that_nobody_answered(
    server: EtcdServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A key is deleted however long that takes, and is not the next holder's meanwhile."""
    async with (
        FaultProxy(server.endpoint) as proxy,
        Client(server.endpoint) as oracle,
        Client(proxy.endpoint) as client,
        client.session(ttl=60) as session,
    ):
        with caplog.at_level(logging.WARNING, "aioetcd.concurrency"):
            async with client.lock(NAME, session=session) as before:
                client._transport.timeout = 0.5  # from now on: it had time to be acquired
                proxy.blackhole()
            await until(lambda: "could not be deleted" in caplog.text)
            calls = client.stats().calls
            await until(lambda: client.stats().calls > calls + 1)  # it tries again and again
            assert caplog.text.count("could not be deleted") == 1
        assert await queue(oracle) == [before.key]
        waiting = client.lock(NAME, session=session, timeout=0.2)
        with pytest.raises(NoEndpointError):  # though nobody else on this lease has it
            await waiting.acquire()
        await proxy.heal()
        client._transport.timeout = 10.0
        async with client.lock(NAME, session=session, timeout=10) as after:
            assert after.revision > before.revision
            assert await is_owner(oracle, after)
            assert not await is_owner(oracle, before)
