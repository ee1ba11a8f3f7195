"""Bodies are cancelled as asyncio cancels them, with whatever else cancels in the same moment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import anyio
import pytest

from aioetcd import (
    Client,
    Lease,
    LeaseLostError,
    LeaseNotFoundError,
    LockLostError,
    Session,
)
from aioetcd.testing import EtcdServer
from tests.concurrency.locks import check_is_as_before
from tests.waiting import until

pytestmark = pytest.mark.own_logic("how bodies are cancelled by the client itself")

# What is lost and what else is cancelled, in one callback of the loop: neither has been noticed
# when the other one comes.


def lose(client: Client, *sessions: Session) -> None:
    """Lose sessions, here and now."""
    for session in sessions:
        client._shared.leases.rules.revoked(session.lease_id)


async def revoke(client: Client, session: Session) -> None:
    """Lose a session by the server's own account."""
    await client.lease.revoke(session.lease_id)


def both(first: Callable[[], object], second: Callable[[], object]) -> None:
    """Do both when the running task waits the next time."""

    def now() -> None:
        first()
        second()

    asyncio.get_running_loop().call_soon(now)


Together = Callable[[Callable[[], object], Callable[[], object]], None]


def loss_first(loss: Callable[[], object], other: Callable[[], object]) -> None:
    both(loss, other)


def loss_second(loss: Callable[[], object], other: Callable[[], object]) -> None:
    both(other, loss)


def loss_one_turn_later(loss: Callable[[], object], other: Callable[[], object]) -> None:
    both(other, lambda: asyncio.get_running_loop().call_soon(loss))


together = pytest.mark.parametrize("together", [loss_first, loss_second, loss_one_turn_later])


class MineError(Exception):
    pass


# What is around the block: it has cancelled too, so that it is its turn to say what happened.


async def native(client: Client, session: Session, together: Together) -> None:
    async def body() -> None:
        task = asyncio.current_task()
        assert task is not None
        async with session:
            together(lambda: lose(client, session), lambda: task.cancel("why"))
            await asyncio.sleep(10)

    inner = asyncio.create_task(body())
    await asyncio.wait({inner})
    assert inner.cancelled()


async def asyncio_timeout(client: Client, session: Session, together: Together) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(10) as timeout, session:
            soon = asyncio.get_running_loop().time()
            together(lambda: lose(client, session), lambda: timeout.reschedule(soon))
            await asyncio.sleep(10)


async def task_group(client: Client, session: Session, together: Together) -> None:
    failing = asyncio.get_running_loop().create_future()

    async def fail() -> None:
        await failing

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail())
            await asyncio.sleep(0)
            async with session:
                together(lambda: lose(client, session), lambda: failing.set_exception(MineError()))
                await asyncio.sleep(10)
    assert caught.group_contains(MineError)
    assert not caught.group_contains(asyncio.CancelledError)


async def wait_for(client: Client, session: Session, together: Together) -> None:
    async def body() -> None:
        task = asyncio.current_task()
        assert task is not None
        async with session:
            # `wait_for` cancels so when its time is over.
            together(lambda: lose(client, session), task.cancel)
            await asyncio.sleep(10)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(asyncio.wait_for(body(), 20))


async def anyio_scope(client: Client, session: Session, together: Together) -> None:
    with anyio.CancelScope() as scope:
        async with session:
            together(lambda: lose(client, session), scope.cancel)
            await asyncio.sleep(10)
    assert scope.cancelled_caught


async def anyio_fail_after(client: Client, session: Session, together: Together) -> None:
    with pytest.raises(TimeoutError), anyio.fail_after(10) as scope:
        async with session:

            def expire() -> None:
                scope.deadline = anyio.current_time()

            together(lambda: lose(client, session), expire)
            await asyncio.sleep(10)


async def anyio_task_group(client: Client, session: Session, together: Together) -> None:
    async with anyio.create_task_group() as tasks, session:
        together(lambda: lose(client, session), tasks.cancel_scope.cancel)
        await asyncio.sleep(10)
    assert tasks.cancel_scope.cancelled_caught


@pytest.mark.parametrize(
    "around",
    [
        native,
        asyncio_timeout,
        task_group,
        wait_for,
        anyio_scope,
        anyio_fail_after,
        anyio_task_group,
    ],
)
@together
async def test_cancelled_from_around_in_the_same_moment(
    client: Client,
    around: Callable[[Client, Session, Together], Awaitable[None]],
    together: Together,
) -> None:
    """Whoever is around the block and has cancelled it too, gets what it would get without us."""
    session = client.session(ttl=60)
    await around(client, session, together)
    assert session.is_lost or together is loss_one_turn_later
    await check_is_as_before()
    if not session.is_lost:  # the block was left before the loss came
        assert session.lease_id not in (await client.lease.leases()).ids
    else:
        await client.lease.revoke(session.lease_id)


# What is inside the block: it has ended by the time at which the loss is told.


async def timeout_inside(lost: Callable[[], object], together: Together) -> None:
    async with asyncio.timeout(10) as timeout:
        soon = asyncio.get_running_loop().time()
        together(lost, lambda: timeout.reschedule(soon))
        await asyncio.sleep(10)


async def scope_inside(lost: Callable[[], object], together: Together) -> None:
    with anyio.CancelScope() as scope:
        together(lost, scope.cancel)
        await asyncio.sleep(10)
    await asyncio.sleep(10)


async def task_group_inside(lost: Callable[[], object], together: Together) -> None:
    async with asyncio.TaskGroup() as tasks:
        children = [tasks.create_task(asyncio.sleep(10)) for _ in range(3)]
        together(lost, lambda: None)
        await asyncio.sleep(10)
    pytest.fail(f"{children} ended")


async def anyio_task_group_inside(lost: Callable[[], object], together: Together) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(asyncio.sleep, 10)
        together(lost, lambda: None)


async def finally_that_awaits(lost: Callable[[], object], together: Together) -> None:
    try:
        together(lost, lambda: None)
        await asyncio.sleep(10)
    finally:
        for _ in range(3):
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    "inside",
    [
        timeout_inside,
        scope_inside,
        task_group_inside,
        anyio_task_group_inside,
        finally_that_awaits,
    ],
)
@together
async def test_lost_in_the_middle_of_something(
    client: Client,
    inside: Callable[[Callable[[], object], Together], Awaitable[None]],
    together: Together,
) -> None:
    """What the body is in the middle of ends in its own way, and the block raises the loss."""
    if inside is timeout_inside and together is loss_one_turn_later:
        expected: type[Exception] = TimeoutError  # of the body's own, told before the loss came
    else:
        expected = LeaseLostError
    session = client.session(ttl=60)
    with pytest.raises(expected):
        async with session:
            await inside(lambda: lose(client, session), together)
    await check_is_as_before()
    await until(lambda: session.is_lost or expected is TimeoutError)
    if session.is_lost:
        await client.lease.revoke(session.lease_id)


async def test_a_task_group_in_the_body_keeps_its_errors(client: Client) -> None:
    """When children of the body fail at its cancellation, their errors leave the block."""
    session = client.session(ttl=60)

    async def fail_when_cancelled() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            raise MineError

    with pytest.raises(ExceptionGroup) as caught:
        async with session, asyncio.TaskGroup() as tasks:
            tasks.create_task(fail_when_cancelled())
            await asyncio.sleep(0)
            await client.lease.revoke(session.lease_id)
            await asyncio.sleep(10)
    assert caught.group_contains(MineError)
    assert session.is_lost
    await check_is_as_before()


async def test_cancelled_once(client: Client) -> None:
    """A body that catches its cancellation goes on undisturbed, and may await what it likes."""
    session = client.session(ttl=60)
    cancelled = 0

    with pytest.raises(LeaseLostError):
        async with session:
            await client.lease.revoke(session.lease_id)
            for _ in range(3):
                try:
                    await asyncio.sleep(0.01)
                except asyncio.CancelledError:
                    cancelled += 1
            await client.kv.put("k", "v")
    assert cancelled == 1
    assert (await client.kv.get("k")).value == b"v"
    await check_is_as_before()


async def test_a_body_that_ends_before_it_is_told(client: Client) -> None:
    """A loss in the body's last step cancels nothing that comes after the block."""
    session = client.session(ttl=60)
    with pytest.raises(LeaseLostError):
        async with session:
            lose(client, session)
    await check_is_as_before()
    await client.lease.revoke(session.lease_id)


@pytest.mark.parametrize("reason", ["revoked", "closed"])
async def test_lost_in_a_task_that_was_cancelled_before(server: EtcdServer, reason: str) -> None:
    """What a cancelled task enters while it tidies up is cancelled by the loss, and tells it."""
    async with Client(server.endpoint) as client:

        async def tidy_up() -> None:
            async with client.session(ttl=60) as session:
                if reason == "closed":
                    losing = asyncio.create_task(client.aclose())
                else:
                    losing = asyncio.create_task(revoke(client, session))
                await asyncio.sleep(10)
                pytest.fail(f"{losing} has not cancelled the body")

        async def body() -> int:
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                with pytest.raises(LeaseLostError) as caught:
                    await tidy_up()
                assert caught.value.reason == reason
            task = asyncio.current_task()
            assert task is not None
            return task.cancelling()

        task = asyncio.create_task(body())
        await asyncio.sleep(0)
        task.cancel()
        assert await task == 1


async def test_both_of_two_nested_blocks_lost(client: Client) -> None:
    """With two blocks lost at once, the outer one tells, as of two timeouts."""
    outer, inner = client.session(ttl=60), client.session(ttl=60)
    with pytest.raises(LeaseLostError) as caught:
        async with outer, inner:
            both(lambda: lose(client, outer), lambda: lose(client, inner))
            await asyncio.sleep(10)
    assert caught.value.lease_id == outer.lease_id
    assert inner.is_lost
    await check_is_as_before()
    for session in (outer, inner):
        await client.lease.revoke(session.lease_id)


async def test_the_first_loss_is_the_one(client: Client) -> None:
    """A lock whose lease is revoked has its key deleted too: whichever comes first, is told."""
    async with client.session(ttl=60) as session:
        with pytest.raises(LockLostError) as caught:
            async with client.lock("L", session=session) as lock:
                lock._lost("the first", None)
                lock._lost("the second", None)
                await asyncio.sleep(10)
        assert "the first" in str(caught.value)
        assert await lock.wait_lost() is caught.value


async def test_a_loss_that_is_noticed_after_leaving(client: Client) -> None:
    """What was left is not lost any more, whatever is seen of its key then."""
    async with client.lock("L", ttl=60) as lock:
        pass
    lock._turn._lost("too late", None)
    assert not lock.is_lost
    with pytest.raises(RuntimeError, match="left"):
        await lock.wait_lost()


async def test_lost_while_entering(client: Client) -> None:
    """A loss between the grant and the body is raised by the entering."""
    session = client.session(ttl=60)
    entering = asyncio.create_task(session.__aenter__())
    await until(lambda: len(client._shared.leases.rules) == 1)
    lose(client, session)
    with pytest.raises(LeaseLostError):
        async with asyncio.timeout(10):
            await entering
            await session.__aexit__(None, None, None)
    assert session.is_lost
    await client.lease.revoke(session.lease_id)


async def test_blocked_before_the_first_renewal(quick_server: EtcdServer) -> None:
    """A lease that was gone before anything could be renewed is lost as one that is not there."""
    async with Client(quick_server.endpoint) as client, Client(quick_server.endpoint) as other:
        grant = client.lease.grant

        async def grant_and_block(ttl: int, *, lease_id: int, timeout: float | None) -> Lease:
            lease = await grant(ttl, lease_id=lease_id, timeout=timeout)
            await other.lease.revoke(lease_id)
            time.sleep(1.2)  # noqa: ASYNC251  # what this is about
            return lease

        with pytest.MonkeyPatch.context() as patch, pytest.raises(LeaseLostError) as caught:
            patch.setattr(client.lease, "grant", grant_and_block)
            async with client.session(ttl=1):
                await asyncio.sleep(10)
        assert caught.value.reason == "not found"
        assert isinstance(caught.value.__cause__, LeaseNotFoundError)


async def test_blocked_while_acquiring(quick_server: EtcdServer) -> None:
    """Whoever was held up beyond the life of the lease, after the last answer, has no lock."""
    async with Client(quick_server.endpoint) as client:
        lock = client.lock("L", ttl=1)
        take = lock._turn.take

        async def take_and_block() -> None:
            await take()
            time.sleep(1.2)  # noqa: ASYNC251  # what this is about

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lock._turn, "take", take_and_block)
            with pytest.raises(LockLostError):
                await lock.acquire()
