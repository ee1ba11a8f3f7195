"""Locks: order, names and owners, not waiting, leaving."""

from __future__ import annotations

import random
from time import monotonic
from typing import Any

import anyio
import pytest

from aioetcd import (
    Client,
    ClientClosedError,
    GetResponse,
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
from tests.waiting import lateness, until

# Order.


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


async def test_default_ttl(client: Client) -> None:
    """A lock of its own lives 10 s without renewals unless told otherwise."""
    async with client.lock(NAME) as lock:
        assert (await client.lease.time_to_live(lock.lease_id)).granted_ttl == 10


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
            await until(lambda: len(entered) == number + 1)  # noqa: B023
            calls = own._transport.monitor.calls
            turns[number].set()
            if number < 19:
                await until(lambda: len(entered) == number + 2)  # noqa: B023
                # The revocation; the look for who else is before, and the one at the own key.
                assert own._transport.monitor.calls - calls <= 3


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


@pytest.mark.usefixtures("patient_look")
async def test_a_holder_cannot_lock_again(client: Client) -> None:
    """The lock is not for a task but for a `Lock`: its holder waits for itself like any other."""
    async with client.lock(NAME, ttl=60) as lock:
        with pytest.raises(LockTimeoutError):
            await client.lock(NAME, timeout=0.1).__aenter__()
        assert await is_owner(client, lock)


@pytest.mark.own_logic("what the client does by itself")
async def test_z17_entered_once(client: Client) -> None:
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


@pytest.mark.own_logic("what the client does by itself")
@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"name": ""}, ValueError, "name must not be empty"),
        ({"name": 5}, TypeError, "name must be str or bytes"),
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
        with pytest.raises(LockNotAcquiredError, match=rf"'{NAME}' is held with the key") as caught:
            await client.lock(NAME, value="host-8", blocking=False).__aenter__()
        assert caught.value.holder.value == b"host-7"
        assert caught.value.holder.key == lock.key
        assert caught.value.holder.create_revision == lock.revision
        assert await queue(client) == [lock.key]
        assert (await client.lease.leases()).ids == (lock.lease_id,)
    async with client.lock(NAME, blocking=False):
        pass


@pytest.mark.own_logic("what the client does by itself")
async def test_timeout_is_for_the_waiting_only(client: Client) -> None:
    """A lock that was acquired in time is held for as long as the block takes."""
    await client.ping()  # it is connected
    async with client.lock(NAME, ttl=60, timeout=1) as lock:
        began = monotonic()
        await until(lambda: monotonic() > began + 1.2)
        assert await is_owner(client, lock)


# Leaving.


@pytest.mark.own_logic("what the client does by itself")
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


@pytest.mark.own_logic("what closing does")
async def test_closing_the_client_inside(server: EtcdServer) -> None:
    """Closing the client loses the lock: the body is cancelled, and its lease revoked."""
    client = Client(server.endpoint)
    lock = client.lock(NAME, ttl=60)
    with anyio.fail_after(10), pytest.raises(LockLostError) as caught:
        await body(lock, client.aclose)
    assert isinstance(caught.value.__cause__, LeaseLostError)
    assert caught.value.__cause__.reason == "closed"
    async with Client(server.endpoint) as other:
        assert lock.lease_id not in (await other.lease.leases()).ids


@pytest.mark.own_logic("what closing does")
async def test_closing_the_client_of_a_waiter(client: Client, server: EtcdServer) -> None:
    """A waiter whose client is closed does not wait any longer, and leaves the queue."""
    waiting = Client(server.endpoint)
    async with client.lock(NAME, ttl=60):

        async def close() -> None:
            await wait_for_queue(client, 2)
            await waiting.aclose()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(close)
            with anyio.fail_after(10), pytest.raises(LockLostError):
                await waiting.lock(NAME, ttl=60).__aenter__()
        assert len(await queue(client)) == 1


@pytest.mark.own_logic("what closing does")
async def test_closing_the_client_while_it_looks(client: Client, server: EtcdServer) -> None:
    """A waiter is told the loss also where its next step fails before it is told."""
    waiting = Client(server.endpoint)
    lock = waiting.lock(NAME, ttl=60)
    before = lock._turn._before

    async def look_and_close() -> GetResponse:
        found = await before()
        # As `aclose` does, when this task is about to go on.
        assert not waiting._transport._close("").done()
        return found

    async with client.lock(NAME, ttl=60):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(LockLostError) as caught:
            patch.setattr(lock._turn, "_before", look_and_close)
            await lock.acquire()
        assert isinstance(caught.value.__cause__, LeaseLostError)
        assert caught.value.__cause__.reason == "closed"
        await waiting.aclose()
        assert len(await queue(client)) == 1


@pytest.mark.own_logic("what closing does")
async def test_a_closed_client_acquires_no_lock(client: Client, server: EtcdServer) -> None:
    """With the client closed before, acquiring fails at once."""
    closed = Client(server.endpoint)
    await closed.aclose()
    async with lateness() as late:
        before = monotonic()
        with pytest.raises(ClientClosedError):
            await closed.lock(NAME).__aenter__()
        took = monotonic() - before
    assert took < 0.5 + late.seconds
