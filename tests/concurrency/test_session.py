"""Sessions: a lease for a block, and what becomes of the block when the lease is lost."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from time import monotonic, process_time
from typing import Any, Literal

import anyio
import pytest
from anyio.lowlevel import checkpoint

from aioetcd import (
    Client,
    ClientClosedError,
    DeadlineExceededError,
    EtcdError,
    LeaseExpiredError,
    LeaseLostError,
    LeaseNotFoundError,
    NoEndpointError,
    Session,
)
from aioetcd.testing import EtcdServer, FaultProxy
from tests.concurrency.locks import soon
from tests.harness import Faulty, faulty_client
from tests.waiting import lateness, until


async def block(
    session: Session,
    entered: Callable[[], Awaitable[object]] | None = None,
    *,
    seconds: float = 10.0,
) -> None:
    """Enter, do something, then stay in the block for long."""
    async with session:
        if entered is not None:
            await entered()
        await anyio.sleep(seconds)
        pytest.fail("the body was not cancelled")


# The block.


async def test_lease_for_the_block(client: Client) -> None:
    """Inside the block there is a lease; after it, the lease and its keys are gone."""
    async with client.session(ttl=60) as session:
        await client.kv.put("k", "v", lease=session.lease_id)
        assert (await client.lease.leases()).ids == (session.lease_id,)
        assert (await client.lease.time_to_live(session.lease_id)).granted_ttl == 60
        assert 50 < session.expires_in <= 60
        assert not session.is_lost
    assert (await client.kv.get("k")).kv is None
    assert (await client.lease.leases()).ids == ()
    assert not session.is_lost
    assert session.expires_in == 0


@pytest.mark.fault("longer than a lease lives that survives a busy machine")
async def test_lives_on_beyond_its_ttl(faulty: Faulty) -> None:
    """The lease is kept alive for as long as the block takes."""
    async with faulty.client.session(ttl=3) as session:
        await faulty.client.kv.put("k", "v", lease=session.lease_id)
        began = monotonic()
        await until(lambda: monotonic() > began + 3.6)
        assert (await faulty.oracle.kv.get("k")).value == b"v"
        assert not session.is_lost


async def test_default_ttl(client: Client) -> None:
    """A session lives 10 s without renewals unless told otherwise."""
    async with client.session() as session:
        assert (await client.lease.time_to_live(session.lease_id)).granted_ttl == 10


@pytest.mark.own_logic("what the client keeps by itself")
async def test_what_else_keeps_its_lease_alive(client: Client) -> None:
    """Whoever renews the lease of a session that is left is told at once, not when it renews."""
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(client.session(ttl=600))
        async with client.lease.keep_alive(session.lease_id) as renewals:
            await anext(renewals)
            await stack.aclose()
            with anyio.fail_after(10), pytest.raises(LeaseLostError) as caught:
                await anext(renewals)
        assert caught.value.reason == "revoked"


@pytest.mark.own_logic("what the client keeps by itself")
async def test_many_tasks_many_sessions(client: Client) -> None:
    """Sessions of one client are independent of one another."""

    async def one(number: int) -> None:
        async with client.session(ttl=60) as session:
            await client.kv.put(f"k{number}", "v", lease=session.lease_id)
            ids.add(session.lease_id)

    ids: set[int] = set()
    async with anyio.create_task_group() as tasks:
        for number in range(30):
            tasks.start_soon(one, number)
    assert len(ids) == 30
    assert (await client.kv.get("", prefix=True)).count == 0


@pytest.mark.own_logic("what the client keeps by itself")
async def test_z17_entered_once(client: Client) -> None:
    """A session that was entered cannot be entered again, inside the block or after it."""
    async with client.session(ttl=60) as session:
        with pytest.raises(RuntimeError, match="once"):
            await session.__aenter__()
        assert (await client.lease.leases()).ids == (session.lease_id,)
    with pytest.raises(RuntimeError, match="once"):
        await session.__aenter__()


def test_wrong_on_lost() -> None:
    """Only "cancel" and "ignore" say what to do at a loss."""
    wrong: Any = "raise"
    with pytest.raises(ValueError, match="on_lost"):
        Client("127.0.0.1:1").session(on_lost=wrong)


# Losing the lease.


async def test_revoked_from_outside(faulty: Faulty) -> None:
    """The body is cancelled with the next renewal, and the block says why."""
    session = faulty.client.session(ttl=2)
    revoked_at = 0.0

    async def revoke() -> None:
        nonlocal revoked_at
        await faulty.oracle.lease.revoke(session.lease_id)
        revoked_at = monotonic()

    async with lateness() as late:
        with pytest.raises(LeaseLostError) as caught:
            await block(session, revoke)
        took = monotonic() - revoked_at
    assert took < 2 / 3 + 0.5 + late.seconds
    assert (caught.value.lease_id, caught.value.reason) == (session.lease_id, "revoked")
    assert session.is_lost
    assert session.expires_in == 0
    assert await session.wait_lost() is caught.value
    assert await faulty.no_leases()


async def test_revoked_by_the_client_itself(client: Client) -> None:
    """The body is cancelled at once."""
    session = client.session(ttl=600)
    with anyio.fail_after(8), pytest.raises(LeaseLostError) as caught:
        await block(session, lambda: client.lease.revoke(session.lease_id))
    assert caught.value.reason == "revoked"


@pytest.mark.fault("a lease runs out while the client is cut off")
async def test_blackholed(faulty: Faulty) -> None:
    """The body is cancelled before the server deletes the keys, and leaving takes no time."""
    session = faulty.client.session(ttl=3)
    left = began = 0.0

    async def cut_off() -> None:
        nonlocal left, began
        await faulty.client.kv.put("k", "v", lease=session.lease_id)
        # A renewal reaches the server so much later than it was sent, which is what counts.
        faulty.proxy.delay(0.5)
        seen = []
        for _ in range(3):
            seen.append(faulty.client._shared.leases.rules.deadline(session.lease_id))
            await until(
                lambda: faulty.client._shared.leases.rules.deadline(session.lease_id) not in seen
            )
        faulty.proxy.blackhole()
        left, began = session.expires_in, monotonic()

    async with lateness() as late:
        with pytest.raises(LeaseExpiredError) as caught:
            await block(session, cut_off)
        took = monotonic() - began
    assert left - 0.05 < took < left + 0.3 + late.seconds
    assert (await faulty.oracle.kv.get("k")).value == b"v"
    assert caught.value.reason == "expired"
    await until(faulty.no_keys)


async def test_ignoring_the_loss(faulty: Faulty) -> None:
    """With on_lost="ignore" the body goes on and the block ends in silence; `wait_lost` tells."""
    async with faulty.client.session(ttl=2, on_lost="ignore") as session:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(faulty.oracle.lease.revoke, session.lease_id)
            error = await session.wait_lost()
        await checkpoint()
        assert session.is_lost
    assert isinstance(error, LeaseLostError)
    assert error.reason == "revoked"


@pytest.mark.own_logic("what becomes of a body")
async def test_lost_to_many_waiters(client: Client) -> None:
    """Each task that waits for the loss gets the one error that tells it."""
    errors: list[EtcdError] = []

    async def wait(session: Session) -> None:
        errors.append(await session.wait_lost())

    async with (
        anyio.create_task_group() as tasks,
        client.session(ttl=60, on_lost="ignore") as session,
    ):
        for _ in range(5):
            tasks.start_soon(wait, session)
        await anyio.wait_all_tasks_blocked()
        await client.lease.revoke(session.lease_id)
    assert len(errors) == 5
    assert len(set(map(id, errors))) == 1


@pytest.mark.own_logic("what becomes of a body")
async def test_lost_in_a_body_that_never_waits(client: Client) -> None:
    """A loss that finds no place to cancel is raised at the end of the block all the same."""
    session = client.session(ttl=60)

    async def body() -> None:
        async with session:
            client._shared.leases.rules.revoked(session.lease_id)

    with pytest.raises(LeaseLostError):
        await body()
    await client.lease.revoke(session.lease_id)


@pytest.mark.own_logic("what becomes of a body")
async def test_lost_in_a_body_that_catches_its_cancellation(client: Client) -> None:
    """A body that makes an end of its own at the cancellation does not hide the loss."""
    session = client.session(ttl=60)

    async def body() -> None:
        async with session:
            await client.lease.revoke(session.lease_id)
            with contextlib.suppress(asyncio.CancelledError):
                await anyio.sleep(10)

    with pytest.raises(LeaseLostError):
        await body()


@pytest.mark.own_logic("what becomes of a body")
async def test_a_blocked_loop_is_told_at_once(faulty: Faulty) -> None:
    """After the loop was blocked for too long, nothing believes in the lease any more."""
    seen: list[bool] = []

    async def body() -> None:
        async with faulty.client.session(ttl=1) as session:
            time.sleep(1.2)  # noqa: ASYNC251  # what this is about
            seen.append(session.is_lost)
            seen.append(session.expires_in == 0)
            await anyio.sleep(10)
            pytest.fail("the body was not cancelled")

    with pytest.raises(LeaseExpiredError):
        await body()
    assert seen == [True, True]


@pytest.mark.own_logic("what becomes of a body")
@pytest.mark.parametrize("on_lost", ["cancel", "ignore"])
async def test_a_body_that_blocks_the_loop_to_its_end(
    faulty: Faulty, on_lost: Literal["cancel", "ignore"]
) -> None:
    """A block that ends before the loop had a turn after its lease's time is over raises that."""
    async with Client(faulty.server.endpoint) as client:  # a proxy would be blocked as well
        session = client.session(ttl=1, on_lost=on_lost)

        async def hold() -> None:
            async with session:
                time.sleep(1.2)  # noqa: ASYNC251  # what this is about

        if on_lost == "ignore":
            await hold()
        else:
            with pytest.raises(LeaseExpiredError):
                await hold()
        assert session.is_lost
        assert isinstance(await session.wait_lost(), LeaseExpiredError)


@pytest.mark.own_logic("what closing does")
async def test_closing_the_client_inside(server: EtcdServer) -> None:
    """The body is cancelled when its client is closed, and the reason says so."""
    client = Client(server.endpoint)
    session = client.session(ttl=60)
    with pytest.raises(LeaseLostError) as caught:
        await block(session, client.aclose)
    assert caught.value.reason == "closed"
    assert isinstance(caught.value.__cause__, ClientClosedError)
    async with Client(server.endpoint) as other:
        assert session.lease_id not in (await other.lease.leases()).ids


@pytest.mark.own_logic("what closing does")
async def test_client_closed_before(server: EtcdServer) -> None:
    """A session of a closed client cannot be entered, and says so at once."""
    client = Client(server.endpoint)
    await client.kv.get("connect")
    await client.aclose()
    async with lateness() as late:
        before = monotonic()
        with pytest.raises(ClientClosedError):
            await client.session().__aenter__()
        took = monotonic() - before
    assert took < 0.5 + late.seconds


# Leaving the block otherwise.


@pytest.mark.own_logic("what becomes of a body")
@pytest.mark.parametrize(
    "error",
    [KeyError("mine"), LeaseLostError("mine", lease_id=1, reason="mine"), KeyboardInterrupt()],
)
async def test_an_exception_of_the_body_leaves_as_itself(
    client: Client, error: BaseException
) -> None:
    """What the body raises comes out as the same object, and the lease is revoked."""

    async def body() -> None:
        async with client.session(ttl=60) as session:
            await client.kv.put("k", "v", lease=session.lease_id)
            raise error

    with pytest.raises(type(error)) as caught:
        await body()
    assert caught.value is error
    assert (await client.kv.get("k")).kv is None


@pytest.mark.own_logic("what becomes of a body")
async def test_an_exception_of_the_body_outweighs_the_loss(client: Client) -> None:
    """A body that fails because of its cancellation is heard with what it says."""
    error = KeyError("mine")

    async def body() -> None:
        async with client.session(ttl=60) as session:
            try:
                await client.lease.revoke(session.lease_id)
                await anyio.sleep(10)
            finally:
                raise error

    with pytest.raises(KeyError) as caught:
        await body()
    assert caught.value is error


@pytest.mark.own_logic("what becomes of a body")
async def test_a_group_of_the_body_leaves_as_itself(client: Client) -> None:
    """An exception group that the body raises is not unpacked and not wrapped."""
    group = ExceptionGroup("mine", [KeyError()])

    async def body() -> None:
        async with client.session(ttl=60):
            raise group

    with pytest.raises(ExceptionGroup) as caught:
        await body()
    assert caught.value is group


async def fail_after(session: Session) -> None:
    with pytest.raises(TimeoutError), anyio.fail_after(0.1):
        async with session:
            await anyio.sleep(10)


async def move_on_after(session: Session) -> None:
    with anyio.move_on_after(0.1) as scope:
        async with session:
            await anyio.sleep(10)
    assert scope.cancelled_caught


async def asyncio_timeout(session: Session) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1), session:
            await anyio.sleep(10)


async def timeout_inside(session: Session) -> None:
    async with session:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(10), 0.1)


async def task_cancelled(session: Session) -> None:
    entered = anyio.Event()

    async def body() -> None:
        async with session:
            entered.set()
            await anyio.sleep(10)

    task = asyncio.create_task(body())
    await entered.wait()
    task.cancel("why")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def task_group_cancelled(session: Session) -> None:
    async def body() -> None:
        async with session:
            entered.set()
            await anyio.sleep(10)

    entered = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(body)
        await entered.wait()
        tasks.cancel_scope.cancel()


@pytest.mark.own_logic("what becomes of a body")
@pytest.mark.parametrize(
    "leave",
    [
        fail_after,
        move_on_after,
        asyncio_timeout,
        timeout_inside,
        task_cancelled,
        task_group_cancelled,
    ],
)
async def test_cancellation_from_outside_passes(
    client: Client, leave: Callable[[Session], Awaitable[None]]
) -> None:
    """Cancelling the body from outside works as without a session, and revokes the lease."""
    session = client.session(ttl=600)
    with anyio.fail_after(8):
        await leave(session)
    assert (await client.lease.leases()).ids == ()
    assert not session.is_lost
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


@pytest.mark.own_logic("what becomes of a body")
async def test_cancelled_and_lost(client: Client) -> None:
    """A cancellation from outside that comes with the loss is not swallowed."""
    session = client.session(ttl=60)
    with anyio.CancelScope() as scope:
        async with session:
            await client.lease.revoke(session.lease_id)
            scope.cancel()
            await anyio.sleep(10)
    assert scope.cancelled_caught


# Servers that are not there.


@pytest.mark.own_logic("how long the client itself waits")
async def test_entering_without_a_server(quick_server: EtcdServer) -> None:
    """Entering fails at the client's timeout with the reason, and does not wait any longer."""
    async with FaultProxy(quick_server.endpoint) as proxy:
        proxy.refuse()
        async with Client(proxy.endpoint, timeout=0.5) as client, lateness() as late:
            before = monotonic()
            with pytest.raises(NoEndpointError):
                await client.session(ttl=10).__aenter__()
            took = monotonic() - before
        assert took < 0.8 + late.seconds


@pytest.mark.fault("a client that waits for its timeouts")
async def test_entering_without_an_answer(
    quick_server: EtcdServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A grant whose answer never comes is an error in time, and the log says what may be left."""
    await quick_server.clear()  # others' leases may still run out
    async with faulty_client(quick_server, timeout=0.5) as faulty:
        faulty.proxy.blackhole(client_to_server=False)
        async with lateness() as late:
            before = monotonic()
            with pytest.raises(DeadlineExceededError) as caught:
                await faulty.client.session(ttl=600).__aenter__()
            took = monotonic() - before
        assert caught.value.maybe_applied
        assert took < 0.5 + 0.5 + 0.3 + late.seconds
        assert "goes on in the background" in caplog.text
        for lease_id in await faulty.lease_ids():  # unless the revocation has arrived
            assert f"{lease_id:x}" in caplog.text
            await faulty.oracle.lease.revoke(lease_id)


async def entered_patiently(client: Client, ttl: int) -> Session:
    """Enter a session, however often a busy machine takes longer than the client waits."""
    while True:
        session = client.session(ttl=ttl)
        with contextlib.suppress(NoEndpointError, DeadlineExceededError):
            return await session.__aenter__()


@pytest.mark.own_logic("how long the client itself waits")
@pytest.mark.parametrize(("timeout", "ttl", "bound"), [(0.3, 600, 0.3), (10, 1, 1), (None, 1, 1)])
async def test_leaving_without_a_server(
    quick_server: EtcdServer,
    timeout: float | None,
    ttl: int,
    bound: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Leaving while cut off takes the timeout or the time to live at the most, and says so."""
    async with (
        FaultProxy(quick_server.endpoint) as proxy,
        Client(quick_server.endpoint) as oracle,
        Client(proxy.endpoint, timeout=timeout) as client,
    ):
        session = await entered_patiently(client, ttl)
        async with lateness() as late:
            proxy.blackhole()
            before = monotonic()
            await session.__aexit__(None, None, None)
            took = monotonic() - before
        assert took < bound + 0.3 + late.seconds
        assert f"{session.lease_id:x}" in caplog.text
        with contextlib.suppress(LeaseNotFoundError):
            await oracle.lease.revoke(session.lease_id)


async def test_cancelled_while_leaving(quick_server: EtcdServer) -> None:
    """A cancellation by an anyio scope while the lease is being revoked waits for that, bounded."""
    await quick_server.clear()  # others' leases may still run out
    async with faulty_client(quick_server) as faulty:
        with anyio.CancelScope() as scope:
            async with faulty.client.session(ttl=5):
                faulty.proxy.delay(0.2)
                before = monotonic()
                asyncio.get_running_loop().call_later(0.2, scope.cancel)
        assert scope.cancel_called
        assert monotonic() - before > 0.4
        assert await faulty.no_leases()


@pytest.mark.fault("Z1")
async def test_cancelled_while_entering_leaves_no_lease(client: Client) -> None:
    """A session whose entering is cancelled at any moment leaves no lease behind."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201
    chance = random.Random(seed)
    entered = 0

    async def is_tidy() -> bool:
        return (await client.lease.leases()).ids == ()

    for _ in range(50):
        began = monotonic()
        async with client.session(ttl=600):
            took = monotonic() - began  # now: that depends on what else the machine does
        with anyio.move_on_after(chance.uniform(0, 1.5 * took)):
            async with client.session(ttl=600):
                entered += 1
        await soon(is_tidy)
    for yields in range(40):
        task = asyncio.create_task(block(client.session(ttl=600)))
        for _ in range(yields):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await soon(is_tidy)
    assert entered < 50


# Fixtures: set up in one task, taken down in another.


@pytest.fixture
async def session(client: Client) -> AsyncIterator[Session]:
    """A session for a test."""
    async with client.session(ttl=60) as session:
        yield session


@pytest.mark.own_logic("what becomes of a body")
async def test_in_a_fixture(client: Client, session: Session) -> None:
    """A session opened in a fixture is there in the test."""
    await client.kv.put("k", "v", lease=session.lease_id)
    assert not session.is_lost


@pytest.fixture
async def lost_session(client: Client) -> AsyncIterator[Session]:
    """A session that the test loses, which is told when the fixture ends."""
    session = client.session(ttl=60)
    with pytest.raises(LeaseLostError):
        async with session:
            yield session
    assert (await client.lease.leases()).ids == ()


@pytest.mark.own_logic("what becomes of a body")
async def test_lost_in_a_fixture(client: Client, lost_session: Session) -> None:
    """A loss leaves the test alone and does not keep the loop busy; the fixture's end tells it."""
    await client.lease.revoke(lost_session.lease_id)
    assert lost_session.is_lost
    assert isinstance(await lost_session.wait_lost(), LeaseLostError)
    cpu = process_time()
    with anyio.move_on_after(0.3):
        await anyio.sleep_forever()
    assert process_time() - cpu < 0.15


@pytest.mark.own_logic("what becomes of a body")
async def test_entered_and_left_in_different_tasks(client: Client) -> None:
    """A session may be entered in one task and left in another, as fixtures do."""
    session = client.session(ttl=60)
    await asyncio.create_task(session.__aenter__())
    await asyncio.create_task(session.__aexit__(None, None, None))
    assert (await client.lease.leases()).ids == ()
