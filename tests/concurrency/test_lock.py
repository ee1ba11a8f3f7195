"""Locks: exclusion, order, losing, giving up."""

from __future__ import annotations

import random
import time
from contextlib import AsyncExitStack
from time import monotonic
from typing import Any, Literal

import anyio
import pytest
from anyio.lowlevel import checkpoint

from aioetcd import (
    Client,
    ClientClosedError,
    LeaseExpiredError,
    LeaseLostError,
    Lock,
    LockLostError,
    LockNotAcquiredError,
    LockTimeoutError,
)
from aioetcd.testing import EtcdServer
from tests.concurrency.locks import (
    NAME,
    Room,
    body,
    is_owner,
    queue,
    wait_for_queue,
    watches_created,
)
from tests.lease.faults import Faulty, eventually

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


async def test_a_release_wakes_one_waiter(client: Client, server: EtcdServer) -> None:
    """However many wait, a hand-over costs the same few requests: only the next one looks."""
    turns: list[anyio.Event] = []
    entered: list[Lock] = []

    async def wait(own: Client) -> None:
        async with own.lock(NAME, ttl=60) as lock:
            entered.append(lock)
            turns.append(anyio.Event())
            await turns[-1].wait()

    async with Client(server.endpoint) as own, anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(wait, own)
        await wait_for_queue(client, 20)
        await watches_created(own, 20 + 19)
        for number in range(20):
            await eventually(lambda: len(entered) == number + 1)  # noqa: B023
            calls = own._transport.calls
            turns[number].set()
            if number < 19:
                await eventually(lambda: len(entered) == number + 2)  # noqa: B023
                # The revocation; the look for who else is before, and the one at the own key.
                assert own._transport.calls - calls <= 3


async def test_the_whole_queue_swept_away(client: Client) -> None:
    """When all keys are deleted at once, a waiter never takes it for its turn."""
    for _ in range(10):

        async def wait() -> None:
            with pytest.raises(LockLostError):
                await client.lock(NAME, ttl=60).__aenter__()

        async with anyio.create_task_group() as tasks:
            with pytest.raises(LockLostError):
                async with client.lock(NAME, ttl=60):
                    for _ in range(3):
                        tasks.start_soon(wait)
                    await wait_for_queue(client, 4)
                    await client.kv.delete(NAME + "/", prefix=True)
                    await anyio.sleep(10)


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
    took = 0.0

    async def measure(name: str) -> None:
        nonlocal took
        for _ in range(5):
            began = monotonic()
            async with client.lock(name, ttl=600):
                took = max(took, monotonic() - began)

    async def cancel(name: str, held_by: bytes | None) -> None:
        for _ in range(20):
            lock = client.lock(name, ttl=600)
            entered = False
            # How long each step takes depends on the machine.
            with anyio.move_on_after(took * 10 ** chance.uniform(-2, 0.7)):
                async with lock:
                    entered = True
                    await anyio.sleep_forever()
            queued = lock._turn._revision is not None
            outcome = "held" if entered else "queued" if queued else "before"
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
            assert await queue(client, name) == ([] if held_by is None else [held_by])
            assert lock.lease_id not in (await client.lease.leases()).ids

    async with client.lock("/locks/held", ttl=600) as held:
        for what, arguments in ((measure, ()), (cancel, (None,))):
            async with anyio.create_task_group() as tasks:
                for number in range(7):
                    tasks.start_soon(what, f"/locks/{number}", *arguments)
        for _ in range(3):  # behind a holder
            await cancel("/locks/held", held.key)
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


@pytest.mark.parametrize("on_lost", ["cancel", "ignore"])
async def test_a_body_that_blocks_the_loop_to_its_end(
    faulty: Faulty, on_lost: Literal["cancel", "ignore"]
) -> None:
    """A block that ends before the loop had a turn after the lock's time is over raises the loss.

    And what the lock guards at the server does not happen, though nobody asked.
    """
    async with Client(faulty.server.endpoint) as client:  # a proxy would be blocked as well
        lock = client.lock(NAME, ttl=1, on_lost=on_lost)

        async def hold() -> None:
            async with lock:
                seen = client.lease.rules.deadline(lock.lease_id)
                await eventually(
                    lambda: client.lease.rules.deadline(lock.lease_id) not in (None, seen)
                )
                time.sleep(2.5)  # noqa: ASYNC251  # its time, and the server's half a second

        if on_lost == "ignore":
            await hold()
        else:
            with pytest.raises(LockLostError) as caught:
                await hold()
            assert isinstance(caught.value.__cause__, LeaseExpiredError)
        assert lock.is_lost
        assert not await is_owner(client, lock)
        async with client.lock(NAME, blocking=False):
            pass


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
    """Closing the client loses the lock: the body is cancelled, and its lease revoked."""
    client = Client(server.endpoint)
    lock = client.lock(NAME, ttl=60)
    with anyio.fail_after(3), pytest.raises(LockLostError) as caught:
        await body(lock, client.aclose)
    assert isinstance(caught.value.__cause__, LeaseLostError)
    assert caught.value.__cause__.reason == "closed"
    async with Client(server.endpoint) as other:
        assert lock.lease_id not in (await other.lease.leases()).ids


async def test_closing_the_client_of_a_waiter(client: Client, server: EtcdServer) -> None:
    """A waiter whose client is closed does not wait any longer, and leaves the queue."""
    waiting = Client(server.endpoint)
    async with client.lock(NAME, ttl=60):

        async def close() -> None:
            await wait_for_queue(client, 2)
            await waiting.aclose()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(close)
            with anyio.fail_after(3), pytest.raises((LockLostError, ClientClosedError)):
                await waiting.lock(NAME, ttl=60).__aenter__()
        assert len(await queue(client)) == 1


async def test_a_failed_watch_is_not_a_lock(client: Client, server: EtcdServer) -> None:
    """With the client closed before, acquiring fails at once."""
    closed = Client(server.endpoint)
    await closed.aclose()
    with anyio.fail_after(1), pytest.raises(ClientClosedError):
        await closed.lock(NAME).__aenter__()
