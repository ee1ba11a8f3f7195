"""Locks: exclusion, order, losing, giving up, and etcdctl as another player."""

from __future__ import annotations

import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any

import anyio
import anyio.abc
import pytest
from anyio.lowlevel import checkpoint

from aioetcd import (
    Client,
    ClientClosedError,
    LeaseLostError,
    Lock,
    LockLostError,
    LockNotAcquiredError,
    LockTimeoutError,
    NoEndpointError,
    Op,
)
from aioetcd.testing import EtcdServer, FaultProxy, find_binary
from tests.lease.faults import Faulty, eventually, faulty_client

pytestmark = pytest.mark.server

NAME = "/locks/nightly"


async def queue(client: Client, name: str = NAME) -> list[bytes]:
    """Give the keys of a lock, the holder's first."""
    found = await client.kv.get(name + "/", prefix=True)
    return [kv.key for kv in sorted(found.kvs, key=lambda kv: kv.create_revision)]


async def wait_for_queue(client: Client, length: int, name: str = NAME) -> None:
    """Wait until so many hold the lock or wait for it."""

    async def is_long_enough() -> bool:
        return len(await queue(client, name)) == length

    await eventually(is_long_enough)


async def is_owner(client: Client, lock: Lock) -> bool:
    """Ask the server, as a guarded write would."""
    result = await client.kv.txn(compare=[lock.is_owner()], success=[Op.get("any")])
    return result.succeeded


async def body(lock: Lock, entered: Callable[[], Awaitable[object]] | None = None) -> None:
    """Hold a lock until it is lost."""
    async with lock:
        if entered is not None:
            await entered()
        await anyio.sleep(10)
        pytest.fail("the body was not cancelled")


@dataclass
class Turn:
    """One holder's time."""

    revision: int
    entered: float
    left: float


class Room:
    """What a lock protects: counts who is inside."""

    def __init__(self) -> None:
        self.inside = 0
        self.turns: list[Turn] = []

    @asynccontextmanager
    async def entered(self, lock: Lock) -> AsyncIterator[None]:
        """Be inside, alone."""
        assert self.inside == 0
        self.inside += 1
        entered = monotonic()
        try:
            yield
        finally:
            self.inside -= 1
            self.turns.append(Turn(lock.revision, entered, monotonic()))

    def check(self, turns: int) -> None:
        """So many had their turn, in the order of their revisions, each with one of its own."""
        assert self.inside == 0
        revisions = [turn.revision for turn in self.turns]
        assert len(revisions) == turns
        assert revisions == sorted(set(revisions))


# Exclusion and order.


@pytest.mark.parametrize("clients", [1, 4])
async def test_never_two_inside(client: Client, server: EtcdServer, clients: int) -> None:
    """Of twenty tasks that lock ten times each, all are served, one at a time and in order."""
    room = Room()

    async def worker(own: Client) -> None:
        for _ in range(10):
            async with own.lock(NAME, ttl=60) as lock, room.entered(lock):
                await checkpoint()

    async with AsyncExitStack() as stack:
        others = [Client(server.endpoint) for _ in range(clients - 1)]
        own = [client, *[await stack.enter_async_context(other) for other in others]]
        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(worker, own[number % clients])
    room.check(200)
    assert await queue(client) == []


async def test_served_in_the_order_of_coming(client: Client) -> None:
    """Who comes first is served first."""
    served: list[int] = []

    async def wait(number: int) -> None:
        async with client.lock(NAME, ttl=60):
            served.append(number)

    async with anyio.create_task_group() as tasks, client.lock(NAME, ttl=60):
        for number in range(10):
            tasks.start_soon(wait, number)
            await wait_for_queue(client, number + 2)
        assert served == []
    assert served == list(range(10))


async def test_waiters_that_give_up_do_not_hold_up_the_others(client: Client) -> None:
    """With waiters leaving anywhere in the queue at any moment, the others are served in order."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201
    chance = random.Random(seed)
    room = Room()

    async def wait(patience: float) -> None:
        with anyio.move_on_after(patience):
            async with client.lock(NAME, ttl=60) as lock, room.entered(lock):
                await anyio.sleep(0.002)
        if patience == float("inf"):
            patient.append(patience)

    patient: list[float] = []
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(wait, chance.uniform(0.0, 0.8))
                tasks.start_soon(wait, float("inf"))
    assert len(patient) == 50
    room.check(len(room.turns))
    assert len(room.turns) >= 50


async def test_revisions_are_the_keys_create_revisions(client: Client) -> None:
    """The fencing token is the create revision of the holder's key, and grows."""
    tokens = []
    for _ in range(5):
        async with client.lock(NAME, ttl=60, value="host-7") as lock:
            found = (await client.kv.get(lock.key)).kv
            assert found is not None
            assert found.create_revision == lock.revision
            assert found.value == b"host-7"
            assert found.lease == lock.lease_id
            assert lock.key == f"{NAME}/{lock.lease_id:x}".encode()
            assert repr(lock.key) in repr(lock)
            tokens.append(lock.revision)
    assert tokens == sorted(set(tokens))


async def test_nested_locks(client: Client) -> None:
    """A task may hold several locks; names that only begin alike are different."""
    async with (
        client.lock(NAME, ttl=60) as outer,
        client.lock(NAME + "-2", blocking=False) as inner,
        client.lock(b"/locks/n\xff", blocking=False) as third,
    ):
        for lock in (outer, inner, third):
            assert await is_owner(client, lock)
    assert (await client.kv.get("", prefix=True)).count == 0


async def test_a_holder_cannot_lock_again(client: Client) -> None:
    """The lock is not for a task but for a `Lock`: its holder waits for itself like any other."""
    async with client.lock(NAME, ttl=60) as lock:
        with pytest.raises(LockTimeoutError):
            await client.lock(NAME, timeout=0.1).__aenter__()
        assert await is_owner(client, lock)


async def test_entered_once(client: Client) -> None:
    """A lock that was entered cannot be entered again, inside the block or after it."""
    async with client.lock(NAME, ttl=60) as lock:
        with pytest.raises(RuntimeError, match="once"):
            await lock.__aenter__()
        assert await is_owner(client, lock)
    with pytest.raises(RuntimeError, match="once"):
        await lock.__aenter__()


async def test_is_owner(client: Client) -> None:
    """The comparison holds for the holder and in its time only."""
    lock = client.lock(NAME, ttl=60)
    with pytest.raises(RuntimeError, match="acquired"):
        lock.is_owner()
    async with lock:
        assert await is_owner(client, lock)
        assert not lock.is_lost
        assert 50 < lock.expires_in <= 60
    assert not await is_owner(client, lock)
    async with client.lock(NAME, ttl=60) as other:
        assert await is_owner(client, other)
        assert not await is_owner(client, lock)
    assert not lock.is_lost


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"name": ""}, ValueError, "key"),
        ({"name": 5}, TypeError, "key"),
        ({"value": 5}, TypeError, "value"),
        ({"blocking": False, "timeout": 5}, ValueError, "timeout"),
        ({"timeout": 0}, ValueError, "timeout"),
        ({"timeout": -1}, ValueError, "timeout"),
        ({"timeout": "5"}, TypeError, "timeout"),
        ({"on_lost": "raise"}, ValueError, "on_lost"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], match: str) -> None:
    """What cannot be meant is refused before anything is sent."""
    with pytest.raises(error, match=match):
        Client("127.0.0.1:1").lock(**({"name": "l"} | arguments))


# Not waiting, or not for long.


async def test_not_blocking(client: Client) -> None:
    """Without waiting, the lock is taken or the error tells who has it; nothing is left."""
    async with client.lock(NAME, value="host-7", blocking=False) as lock:
        with pytest.raises(LockNotAcquiredError, match=NAME) as caught:
            await client.lock(NAME, value="host-8", blocking=False).__aenter__()
        assert caught.value.holder.value == b"host-7"
        assert caught.value.holder.key == lock.key
        assert caught.value.holder.create_revision == lock.revision
        assert await queue(client) == [lock.key]
        assert (await client.lease.leases()).ids == (lock.lease_id,)
    async with client.lock(NAME, blocking=False):
        pass


async def test_timeout(client: Client) -> None:
    """Who waits for too long gets an error in time, and leaves the queue."""
    async with client.lock(NAME, ttl=60) as lock:
        before = monotonic()
        with pytest.raises(LockTimeoutError, match=NAME) as caught:
            await client.lock(NAME, timeout=0.3).__aenter__()
        assert 0.3 <= monotonic() - before < 0.7
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.timeout == 0.3
        assert await queue(client) == [lock.key]
        assert (await client.lease.leases()).ids == (lock.lease_id,)
    async with client.lock(NAME, timeout=5):
        pass


async def test_timeout_is_for_the_waiting_only(client: Client) -> None:
    """A lock that was acquired in time is held for as long as the block takes."""
    async with client.lock(NAME, ttl=60, timeout=0.3) as lock:
        began = monotonic()
        await eventually(lambda: monotonic() > began + 0.5)
        assert await is_owner(client, lock)


async def test_cancelled_at_any_moment_leaves_nothing(client: Client) -> None:
    """200 acquisitions cancelled at random moments leave neither a key nor a lease."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201
    chance = random.Random(seed)
    outcomes: dict[str, int] = {}

    async def cancel(name: str, took: float, held_by: bytes | None) -> None:
        for _ in range(20):
            lock = client.lock(name, ttl=600)
            entered = False
            with anyio.move_on_after(chance.uniform(0, took)):
                async with lock:
                    entered = True
                    await anyio.sleep(took)
            try:
                waited = lock.revision > 0
            except RuntimeError:
                waited = False
            outcome = "held" if entered else "queued" if waited else "before"
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
            assert await queue(client, name) == ([] if held_by is None else [held_by])
            assert lock.lease_id not in (await client.lease.leases()).ids

    async with client.lock("/locks/held", ttl=600) as held:
        async with anyio.create_task_group() as tasks:
            for number in range(7):
                tasks.start_soon(cancel, f"/locks/{number}", 0.08, None)
        for _ in range(3):  # behind a holder
            await cancel("/locks/held", 0.03, held.key)
        assert await is_owner(client, held)
        assert (await client.lease.leases()).ids == (held.lease_id,)
    assert sum(outcomes.values()) == 200
    # The moments were spread over all of it.
    assert set(outcomes) == {"before", "queued", "held"}
    assert min(outcomes.values()) >= 5


# Losing.


@pytest.mark.parametrize("how", ["lease revoked", "key deleted", "all keys deleted"])
async def test_taken_away_from_the_holder(client: Client, server: EtcdServer, how: str) -> None:
    """A holder whose lease or key somebody takes away is cancelled at once, and told why."""
    lock = client.lock(NAME, ttl=600)
    async with Client(server.endpoint) as other:

        async def take_away() -> None:
            assert await is_owner(other, lock)
            if how == "lease revoked":
                await other.lease.revoke(lock.lease_id)
            else:
                await other.kv.delete(lock.key if how == "key deleted" else "", prefix=True)

        with anyio.fail_after(2), pytest.raises(LockLostError, match=NAME) as caught:
            await body(lock, take_away)
        assert lock.is_lost
        assert not await is_owner(other, lock)
        assert await lock.wait_lost() is caught.value
        assert (await other.lease.leases()).ids == ()


@pytest.mark.parametrize("how", ["lease revoked", "key deleted"])
async def test_taken_away_from_a_waiter(client: Client, how: str) -> None:
    """A waiter whose lease or key is taken away does not wait any longer."""

    async def take_away(key: bytes) -> None:
        if how == "lease revoked":
            await client.lease.revoke(int(key.rpartition(b"/")[2], 16))
        else:
            await client.kv.delete(key)

    lost = 0.0
    async with client.lock(NAME, ttl=600) as held:

        async def wait() -> None:
            nonlocal lost
            with pytest.raises(LockLostError, match=NAME):
                await client.lock(NAME, ttl=600).__aenter__()
            lost = monotonic()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await wait_for_queue(client, 2)
            taken = monotonic()
            await take_away((await queue(client))[1])
        assert lost - taken < 1
        assert await queue(client) == [held.key]
        assert (await client.lease.leases()).ids == (held.lease_id,)
        assert await is_owner(client, held)


async def test_holder_cut_off(faulty: Faulty) -> None:
    """A holder that is cut off is cancelled before the next one has the lock, and only then."""
    lock = faulty.client.lock(NAME, ttl=1)
    room = Room()

    async def cut_off() -> None:
        # A renewal reaches the server so much later than it was sent, which is what counts.
        faulty.proxy.delay(0.15)
        seen = []
        for _ in range(3):
            seen.append(faulty.client.lease.rules.deadline(lock.lease_id))
            await eventually(lambda: faulty.client.lease.rules.deadline(lock.lease_id) not in seen)
        faulty.proxy.blackhole()

    async def hold() -> None:
        async with lock, room.entered(lock):
            await cut_off()
            await anyio.sleep(10)

    async def wait() -> None:
        async with faulty.oracle.lock(NAME, ttl=60) as second, room.entered(second):
            assert await is_owner(faulty.oracle, second)
            assert not await is_owner(faulty.oracle, lock)

    async def lose() -> None:
        with pytest.raises(LockLostError) as caught:
            await hold()
        assert isinstance(caught.value.__cause__, LeaseLostError)
        assert caught.value.__cause__.reason == "expired"

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lose)
        await wait_for_queue(faulty.oracle, 1)
        tasks.start_soon(wait)
    room.check(2)


async def test_waiter_cut_off(faulty: Faulty) -> None:
    """A waiter whose lease runs out does not wait any longer, and never has the lock."""
    async with faulty.oracle.lock(NAME, ttl=60) as held:
        began = 0.0

        async def cut_off() -> None:
            nonlocal began
            await wait_for_queue(faulty.oracle, 2)
            faulty.proxy.blackhole()
            began = monotonic()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cut_off)
            with pytest.raises(LockLostError):
                await faulty.client.lock(NAME, ttl=1).__aenter__()
        assert monotonic() - began < 1.3
        await wait_for_queue(faulty.oracle, 1)
        assert await is_owner(faulty.oracle, held)


async def test_ignoring_the_loss(client: Client) -> None:
    """With on_lost="ignore" the body goes on; `wait_lost` and `is_lost` tell."""
    async with client.lock(NAME, ttl=600, on_lost="ignore") as lock:
        await client.kv.delete(lock.key)
        with anyio.fail_after(2):
            error = await lock.wait_lost()
        assert isinstance(error, LockLostError)
        assert lock.is_lost
        await checkpoint()
    assert (await client.lease.leases()).ids == ()


async def test_an_exception_of_the_body_leaves_as_itself(client: Client) -> None:
    """What the body raises comes out as the same object, and the lock is free."""
    error = KeyError("mine")

    async def fail() -> None:
        async with client.lock(NAME, ttl=60):
            raise error

    with pytest.raises(KeyError) as caught:
        await fail()
    assert caught.value is error
    async with client.lock(NAME, blocking=False):
        pass


async def test_closing_the_client_inside(server: EtcdServer) -> None:
    """Closing the client loses the lock: the body is cancelled."""
    client = Client(server.endpoint)
    lock = client.lock(NAME, ttl=60)
    with anyio.fail_after(3), pytest.raises(LockLostError) as caught:
        await body(lock, client.aclose)
    assert isinstance(caught.value.__cause__, LeaseLostError)
    assert caught.value.__cause__.reason == "closed"
    async with Client(server.endpoint) as other:
        await other.lease.revoke(lock.lease_id)


async def test_closing_the_client_of_a_waiter(client: Client, server: EtcdServer) -> None:
    """A waiter whose client is closed does not wait any longer."""
    waiting = Client(server.endpoint)
    async with client.lock(NAME, ttl=60):

        async def close() -> None:
            await wait_for_queue(client, 2)
            await waiting.aclose()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(close)
            with anyio.fail_after(3), pytest.raises((LockLostError, ClientClosedError)):
                await waiting.lock(NAME, ttl=60).__aenter__()
        left = (await queue(client))[1]
        await client.lease.revoke(int(left.rpartition(b"/")[2], 16))


async def test_a_failed_watch_is_not_a_lock(client: Client, server: EtcdServer) -> None:
    """With the client closed before, acquiring fails at once."""
    closed = Client(server.endpoint)
    await closed.aclose()
    with anyio.fail_after(1), pytest.raises(ClientClosedError):
        await closed.lock(NAME).__aenter__()


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
            await compact(faulty)
            await cut_watches(faulty)
            await watches_created(faulty.client, 2)
            assert not acquired.is_set()
        with anyio.fail_after(5):
            await acquired.wait()
        leave.set()


async def test_compaction_while_holding(faulty: Faulty) -> None:
    """A holder whose watch falls behind a compaction goes on, and still notices its loss."""
    lock = faulty.client.lock(NAME, ttl=60)

    async def take_away() -> None:
        for _ in range(2):
            await watches_created(faulty.client, 1)
            await compact(faulty)
            await cut_watches(faulty)
            assert await is_owner(faulty.client, lock)
            assert not lock.is_lost
        await faulty.oracle.kv.delete(lock.key)

    with pytest.raises(LockLostError):
        await body(lock, take_away)


async def test_key_deleted_and_compacted_while_cut_off(faulty: Faulty) -> None:
    """A deletion that only the history knew, and the history is gone, is noticed all the same."""
    lock = faulty.client.lock(NAME, ttl=60)

    async def take_away() -> None:
        await watches_created(faulty.client, 1)
        faulty.proxy.refuse()
        faulty.proxy.cut()
        await faulty.oracle.kv.delete(lock.key)
        await compact(faulty)
        assert not lock.is_lost
        await faulty.proxy.heal()

    with pytest.raises(LockLostError):
        await body(lock, take_away)


async def watches_created(client: Client, count: int) -> None:
    """Wait until a client has so many watches, open at the server."""

    def are_created() -> bool:
        rules = [watches.rules for watches in client.watch.streams.values()]
        return sum(len(each._open) for each in rules) == count

    await eventually(are_created)


async def cut_watches(faulty: Faulty) -> None:
    """Cut the connection, and wait until the watches have noticed."""
    (watches,) = faulty.client.watch.streams.values()
    reconnects = watches.shared.reconnects
    faulty.proxy.cut()
    await eventually(lambda: watches.shared.reconnects > reconnects)


async def compact(faulty: Faulty) -> None:
    """Write something, and forget the history up to there."""
    for _ in range(3):
        put = await faulty.oracle.kv.put("other", "v")
    await faulty.oracle.kv.compact(put.header.revision, physical=True)
    await faulty.oracle.kv.delete("other")


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
        assert await queue(faulty.oracle) == []
    assert fired >= 15
    assert await faulty.no_leases()


async def test_not_blocking_through_cuts(faulty: Faulty) -> None:
    """A lost answer is never taken for somebody else's lock."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201
    chance = random.Random(seed)
    for _ in range(20):
        faulty.proxy.cut_after(chance.randrange(300))
        async with faulty.client.lock(NAME, ttl=30, blocking=False) as lock:
            assert await is_owner(faulty.oracle, lock)
        await faulty.proxy.heal()


async def test_leaving_while_cut_off(quick_server: EtcdServer) -> None:
    """Leaving takes the time to live at the most; then the next one has the lock."""
    async with faulty_client(quick_server) as faulty:
        async with faulty.client.lock(NAME, ttl=1):
            faulty.proxy.blackhole()
            before = monotonic()
        assert monotonic() - before < 1.3
        async with faulty.oracle.lock(NAME, ttl=60, timeout=3):
            pass


async def test_entering_without_a_server(quick_server: EtcdServer) -> None:
    """Without a reachable endpoint, acquiring fails at the client's timeout."""
    async with FaultProxy(quick_server.endpoint) as proxy:
        proxy.refuse()
        async with Client(proxy.endpoint, timeout=0.5) as client:
            for blocking in (True, False):
                before = monotonic()
                with pytest.raises(NoEndpointError):
                    await client.lock(NAME, blocking=blocking).__aenter__()
                assert monotonic() - before < 0.8


async def test_timeout_without_a_server(quick_server: EtcdServer) -> None:
    """The lock's own timeout holds when nobody can be reached, too."""
    async with FaultProxy(quick_server.endpoint) as proxy:
        proxy.refuse()
        async with Client(proxy.endpoint, timeout=5) as client:
            before = monotonic()
            with pytest.raises((LockTimeoutError, NoEndpointError)):
                await client.lock(NAME, timeout=0.3).__aenter__()
            assert monotonic() - before < 0.8


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
        with anyio.fail_after(5):
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


async def test_etcdctl_waits_for_us(client: Client, server: EtcdServer) -> None:
    """`etcdctl lock` waits while we hold the lock, and has it when we leave."""
    async with etcdctl_lock(server) as etcdctl:
        async with client.lock(NAME, ttl=60) as lock:
            await etcdctl.start()
            await wait_for_queue(client, 2)
            waiting = (await queue(client))[1]
            assert etcdctl.key is None
            assert await is_owner(client, lock)
        await eventually(lambda: etcdctl.key is not None)
        assert etcdctl.key == waiting
        await etcdctl.release()
        assert await queue(client) == []


async def test_we_wait_for_etcdctl(client: Client, server: EtcdServer) -> None:
    """While `etcdctl lock` holds it we see who has it, wait, and have it when it ends."""
    acquired = anyio.Event()

    async def wait() -> None:
        async with client.lock(NAME, ttl=60) as lock:
            assert await is_owner(client, lock)
            acquired.set()

    async with etcdctl_lock(server) as etcdctl:
        await etcdctl.start()
        await eventually(lambda: etcdctl.key is not None)
        with pytest.raises(LockNotAcquiredError) as caught:
            await client.lock(NAME, blocking=False).__aenter__()
        assert caught.value.holder.key == etcdctl.key
        with pytest.raises(LockTimeoutError):
            await client.lock(NAME, timeout=0.1).__aenter__()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await wait_for_queue(client, 2)
            assert not acquired.is_set()
            await etcdctl.release()
            with anyio.fail_after(5):
                await acquired.wait()
