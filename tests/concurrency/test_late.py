"""Locks on a session, and requests that arrive when nobody waits for them any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from aioetcd import (
    Client,
    LeaseExpiredError,
    Lock,
    LockLostError,
    LockNotAcquiredError,
    Session,
)
from aioetcd.testing import EtcdServer, FaultProxy
from tests.concurrency.locks import is_owner, soon
from tests.waiting import until

NAMES = [f"late/{number}" for number in range(30)]
# What the member receives it handles so many seconds later: when the client has long left it. A
# connection that hangs would be closed with what was sent on it.
LATE = 6.0


class Late:
    """A member that is late when told to, one beside it, and a session of a client of both."""

    def __init__(self, server: EtcdServer, proxy: FaultProxy, client: Client, oracle: Client):
        self.server = server
        self.proxy = proxy
        self.client = client
        self.oracle = oracle

    async def revision(self) -> int:
        return (await self.oracle.kv.get("any")).header.revision

    async def txns(self) -> float:
        """Give how many txns have reached the server."""
        return sum(
            value
            for name, value in (await self.server.metrics()).items()
            if name.startswith("grpc_server_started_total") and 'grpc_method="Txn"' in name
        )

    async def acquire(self, locks: list[Lock]) -> list[asyncio.Task[None]]:
        """Begin to acquire, with the member late; return when all were sent."""
        calls = self.client.stats().calls
        self.proxy.delay(LATE)
        tasks = [asyncio.create_task(lock.acquire()) for lock in locks]
        await until(lambda: self.client.stats().calls == calls + len(locks))
        return tasks

    async def has_moved(self) -> None:
        """Wait until the other member is in use."""
        await until(lambda: self.client.stats().endpoint == self.server.endpoint)

    async def goes_on(self) -> None:
        """The member goes on; wait until txns that it had received have reached the server."""
        before = await self.txns()
        await self.proxy.heal()

        async def have_arrived() -> bool:
            return await self.txns() > before

        await until(have_arrived)

    async def check_nothing_stays(self) -> bool:
        """The member goes on: what it had received leaves no key. Give whether anything came."""
        before = await self.revision()
        received = self.proxy.bytes_from_client
        await self.proxy.heal()
        await self.proxy.wait_until(lambda proxy: proxy.bytes_from_client > received)
        for _ in range(3):  # the last ones arrive a moment after the first
            revision = await self.revision()
            await asyncio.sleep(0.1)

            async def is_nothing_there() -> bool:
                return (await self.oracle.kv.get("late/", prefix=True)).count == 0

            await until(is_nothing_there)
        return revision > before


@asynccontextmanager
async def hung_member(server: EtcdServer) -> AsyncIterator[Late]:
    async with (
        FaultProxy(server.endpoint) as proxy,
        Client([proxy.endpoint, server.endpoint]) as client,
        Client(server.endpoint) as oracle,
    ):
        await client.kv.get("connect")
        yield Late(server, proxy, client, oracle)


@pytest.mark.fault("a member hangs until the client has left it")
async def test_a_put_that_arrives_late_is_deleted(server: EtcdServer) -> None:
    """Acquisitions that were given up leave no key, though their txns are carried out later."""
    for _ in range(10):  # until one of them was
        async with hung_member(server) as late, late.client.session(ttl=3) as session:
            tasks = await late.acquire([late.client.lock(n, session=session) for n in NAMES])
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await late.has_moved()
            await until(lambda: len(session._tenure.late) == len(NAMES))
            came = await late.check_nothing_stays()
            async with late.oracle.lock(NAMES[0], blocking=False):
                pass
        if came:
            return
    pytest.fail("nothing arrived late")


@pytest.mark.fault("a member hangs until the client has left it")
async def test_a_put_that_was_sent_twice(server: EtcdServer) -> None:
    """What a member did not answer, and another one has done, is not done again for nobody."""
    for _ in range(10):
        async with hung_member(server) as late:
            async with late.client.session(ttl=3) as session:
                locks = [late.client.lock(name, session=session) for name in NAMES]
                await asyncio.gather(*await late.acquire(locks))
                await late.has_moved()
                for lock in locks:
                    await lock.release()
                assert len(session._tenure.late) == len(NAMES)
                came = await late.check_nothing_stays()
            # Nobody looks for them any longer than the session lives.
            await until(lambda: session._tenure.late == {})
            await until(lambda: late.client.stats().watches == 0)
        if came:
            return
    pytest.fail("nothing arrived late")


@pytest.mark.fault("a member hangs until the client has left it")
async def test_a_refused_attempt_that_was_sent_twice(server: EtcdServer) -> None:
    """What another member has refused leaves no key, though it is carried out when all is free."""
    for _ in range(10):
        async with hung_member(server) as late, late.client.session(ttl=3) as session:
            async with late.oracle.session(ttl=60) as holder:
                held = [late.oracle.lock(name, session=holder) for name in NAMES]
                await asyncio.gather(*(lock.acquire() for lock in held))
                attempts = [late.client.lock(n, session=session, blocking=False) for n in NAMES]
                for task in await late.acquire(attempts):
                    with pytest.raises(LockNotAcquiredError):
                        await task
                await late.has_moved()
            await until(lambda: len(session._tenure.late) == len(NAMES))
            came = await late.check_nothing_stays()
        if came:
            return
    pytest.fail("nothing arrived late")


@pytest.mark.fault("a member hangs until the client has left it")
async def test_the_next_holder_keeps_its_key(server: EtcdServer) -> None:
    """What was given up, and what undoes it, arrive late: the next holder's key stays its own."""
    async with hung_member(server) as late, late.client.session(ttl=3) as session:
        tasks = await late.acquire([late.client.lock(n, session=session) for n in NAMES])
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await late.has_moved()
        locks = [late.client.lock(name, session=session) for name in NAMES]
        await asyncio.gather(*(lock.acquire() for lock in locks))
        await late.goes_on()
        for lock in locks:
            assert await is_owner(late.oracle, lock)
            assert not lock.is_lost
            await lock.release()

        async def is_nothing_there() -> bool:
            return (await late.oracle.kv.get("late/", prefix=True)).count == 0

        await until(is_nothing_there)


@pytest.mark.fault("a member hangs until the client has left it")
async def test_a_deletion_that_arrives_late(server: EtcdServer) -> None:
    """A deletion that a member has not answered, and another one has done, deletes nothing else."""
    async with hung_member(server) as late, late.client.session(ttl=3) as session:
        before = [late.client.lock(name, session=session) for name in NAMES]
        await asyncio.gather(*(lock.acquire() for lock in before))
        calls = late.client.stats().calls
        late.proxy.delay(LATE)
        leaving = [asyncio.create_task(lock.release()) for lock in before]
        await until(lambda: late.client.stats().calls == calls + len(NAMES))
        await asyncio.wait(leaving)
        after = [late.client.lock(name, session=session) for name in NAMES]
        await asyncio.gather(*(lock.acquire() for lock in after))
        await late.goes_on()
        await asyncio.sleep(0.2)  # the last ones arrive a moment after the first
        for lock in after:
            assert await is_owner(late.oracle, lock)
            assert not lock.is_lost
            await lock.release()


@pytest.mark.fault("a lease runs out while the server is away")
async def test_a_lease_that_ran_out_is_revoked_when_the_server_is_back() -> None:
    """A server that was away extends its leases: what was lost and left is revoked all the same."""
    async with EtcdServer(quick=True) as server, Client(server.endpoint) as client:
        lock = client.lock("L", ttl=5)
        with pytest.raises(LockLostError) as caught:
            async with lock:
                await server.kill()
                await asyncio.sleep(20)
        assert isinstance(caught.value.__cause__, LeaseExpiredError)
        await server.start()

        async def is_revoked() -> bool:
            return (await client.lease.leases()).ids == ()

        await soon(is_revoked, within=3)


async def put_late(oracle: Client, session: Session, name: str, value: str = "") -> None:
    """What a member that had been stopped does with an attempt that was given up."""
    await oracle.kv.put(f"{name}/{session.lease_id:x}", value, lease=session)


@pytest.mark.parametrize("kind", ["lock", "reader"])
async def test_a_late_key_behind_the_holder_lets_nobody_in(client: Client, kind: str) -> None:
    """Who does not wait finds its own key there, and somebody before it: it is not its turn."""
    name = "late/name"
    async with client.session(ttl=60) as session:
        if kind == "lock":
            queue, holder = name, client.lock(name, ttl=60)
            attempt = client.lock(name, session=session, blocking=False)
        else:
            queue, holder = f"{name}/read", client.rwlock(name, ttl=60).write()
            attempt = client.rwlock(name, session=session).read(blocking=False)
        async with holder:
            await put_late(client, session, queue)
            with pytest.raises(LockNotAcquiredError) as caught:
                await attempt.acquire()
            assert caught.value.holder.key == holder.key
            assert [kv.key for kv in await client.locks(name)] == [holder.key]


@pytest.mark.parametrize("blocking", [True, False])
async def test_a_late_key_is_taken_over(client: Client, blocking: bool) -> None:
    """With the value of who has it now."""
    async with client.session(ttl=60) as session:
        await put_late(client, session, "late/name", "an earlier one's")
        lock = client.lock("late/name", session=session, blocking=blocking, value="mine")
        async with lock:
            assert [kv.text for kv in await client.locks("late/name")] == ["mine"]
            assert await is_owner(client, lock)
            assert not lock.is_lost
        assert await client.locks("late/name") == ()
