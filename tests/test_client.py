"""A client lives in one event loop, ends everything it began, and keeps to asyncio's customs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import anyio
import anyio.to_thread
import pytest

from aioetcd import (
    Client,
    ClientClosedError,
    Compare,
    EtcdError,
    Lease,
    LeaseNotFoundError,
    LockLostError,
    Op,
    Watch,
)
from aioetcd.testing import EtcdServer
from aioetcd.testing.proxy import FaultProxy
from tests.waiting import lateness, until

pytestmark = pytest.mark.own_logic("what a client does by itself: closing, loops, cancelling")


@pytest.fixture
async def hung(proxy: FaultProxy) -> AsyncIterator[Client]:
    """A connected client whose server does not say a word any more; what is waiting in it."""
    async with Client(proxy.endpoint, timeout=None) as client:
        await client.kv.put("k", "v")
        proxy.hang()
        yield client


class UsersOwnError(Exception):
    """Something that we know nothing of."""


def in_flight(client: Client) -> int:
    """The unary calls with which gRPC is not done."""
    return sum(len(connection.calls) for connection in client._transport.picker)


# --- closing ----------------------------------------------------------------------------------


def every_use(client: Client) -> dict[str, Callable[[], Awaitable[object]]]:
    """All ways to begin something with a client."""

    async def watch() -> None:
        async for _ in client.watch("k"):
            pass

    async def keep_alive() -> None:
        async for _ in client.lease.keep_alive(1):
            pass

    async def enter(manager: Any) -> None:
        async with manager:
            pass

    return {
        "get": lambda: client.kv.get("k"),
        "put": lambda: client.kv.put("k", "v"),
        "delete": lambda: client.kv.delete("k"),
        "txn": lambda: client.kv.txn(compare=[Compare.version("k") == 0]),
        "compact": lambda: client.kv.compact(1),
        "grant": lambda: client.lease.grant(10),
        "revoke": lambda: client.lease.revoke(1),
        "time_to_live": lambda: client.lease.time_to_live(1),
        "leases": client.lease.leases,
        "keep_alive_once": lambda: client.lease.keep_alive_once(1),
        "keep_alive": keep_alive,
        "watch": watch,
        "enter_watch": lambda: enter(client.watch("k")),
        "session": lambda: enter(client.session()),
        "lock": lambda: enter(client.lock("l")),
        "client": lambda: enter(client),
    }


USES = list(every_use(Client()))


@pytest.mark.parametrize("use", USES)
async def test_used_after_close(server: EtcdServer, use: str) -> None:
    """Whatever is begun with a closed client is a ClientClosedError at once."""
    async with Client(server.endpoint) as client:
        await client.kv.get("k")
    with anyio.fail_after(1), pytest.raises(ClientClosedError) as caught:
        await every_use(client)[use]()
    assert caught.value.maybe_applied is False


async def test_close_twice(server: EtcdServer) -> None:
    """A client may be closed again, by several tasks at a time, and after its block."""
    async with Client(server.endpoint) as client:
        await client.kv.get("k")
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(client.aclose)
        await client.aclose()
    await client.aclose()


async def test_close_unused() -> None:
    """A client that was never used, or only entered, closes without having connected."""
    await Client("127.0.0.1:1").aclose()
    async with Client("127.0.0.1:1"):
        pass
    client = Client("127.0.0.1:1")
    await client.aclose()
    await client.aclose()


async def test_close_when_nobody_could_be_reached(proxy: FaultProxy) -> None:
    """Calls that still wait for a connection end with the client, surely not applied."""
    proxy.refuse()
    client = Client(proxy.endpoint)
    async with anyio.create_task_group() as group:
        for call in (client.kv.put("k", "v", timeout=None), client.kv.get("k", timeout=None)):
            group.start_soon(expect_closed, call, False)
        await until(lambda: client.stats().calls == 2)
        with anyio.fail_after(2):
            await client.aclose()


@pytest.mark.parametrize("steps", range(8))
async def test_close_when_a_call_has_just_begun(proxy: FaultProxy, steps: int) -> None:
    """Wherever a call is on its way to a connection, it ends with the client."""
    proxy.refuse()
    client = Client(proxy.endpoint)
    call = asyncio.create_task(client.kv.put("k", "v", timeout=None))
    for _ in range(steps):
        await asyncio.sleep(0)
    with anyio.fail_after(2):
        await client.aclose()
        await expect_closed(call, False)


async def expect_closed(
    call: Awaitable[object], maybe_applied: bool | None = None, message: str = "closed"
) -> None:
    with pytest.raises(ClientClosedError, match=message) as caught:
        await call
    if maybe_applied is not None:
        assert caught.value.maybe_applied is maybe_applied


async def test_close_ends_everything(proxy: FaultProxy, server: EtcdServer) -> None:
    """All that is open ends with ClientClosedError, quickly, though the server is silent."""
    client = Client(proxy.endpoint, timeout=None)
    leases: list[Lease] = [await client.lease.grant(60) for _ in range(10)]
    watches: list[Watch] = [client.watch("k") for _ in range(10)]
    waiting = 0
    ended = 0

    async def watch(handle: Watch) -> None:
        nonlocal waiting
        async with handle:
            waiting += 1
            async for _ in handle:
                pass

    async def keep_alive(lease: Lease) -> None:
        nonlocal waiting
        async for _ in client.lease.keep_alive(lease.id):
            waiting += 1

    async def expect(call: Coroutine[Any, Any, object], maybe_applied: bool | None = None) -> None:
        nonlocal ended
        await expect_closed(call, maybe_applied)
        ended += 1

    async with anyio.create_task_group() as group:
        for handle in watches:
            group.start_soon(expect, watch(handle))
        for lease in leases:
            group.start_soon(expect, keep_alive(lease))
        await until(lambda: waiting == 20)
        proxy.hang()
        calls = client.stats().calls
        for number in range(50):
            group.start_soon(expect, client.kv.get("k"), False)
            group.start_soon(expect, client.kv.put(f"k{number}", "v"), True)
        await until(lambda: client.stats().calls == calls + 100)
        assert ended == 0
        async with lateness() as late:
            start = time.monotonic()
            await client.aclose()
            await until(lambda: ended == 120)
        assert time.monotonic() - start < 2 + late.seconds
    await proxy.aclose()
    await server.clear()  # the leases, of which nobody else knows


async def test_close_is_not_cancelled_by_halves(hung: Client, proxy: FaultProxy) -> None:
    """A cancelled `aclose` still leaves the client closed and its calls ended."""
    async with anyio.create_task_group() as group:
        group.start_soon(expect_closed, hung.kv.get("k"))
        await until(lambda: hung.stats().calls == 2)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await hung.aclose()
    with pytest.raises(ClientClosedError):
        await hung.kv.get("k")
    await proxy.wait_until(lambda proxy: proxy.connections_open <= 1)


async def test_calls_in_flight_when_the_supervisor_is_cancelled(hung: Client) -> None:
    """They end with the reason, though their server never answers, and nobody closes the client."""
    async with anyio.create_task_group() as group:
        for call in (hung.kv.get("k"), hung.kv.put("k", "w")):
            group.start_soon(expect_closed, call, None, "'aioetcd supervisor' was cancelled")
        await until(lambda: in_flight(hung) == 2)
        (host,) = [t for t in asyncio.all_tasks() if t.get_name() == "aioetcd supervisor"]
        with anyio.fail_after(2):
            host.cancel()
            await until(lambda: in_flight(hung) == 0)


@pytest.mark.parametrize("how", ["native", "timeout", "scope"])
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
async def test_cancelled_closing_goes_on(proxy: FaultProxy, how: str, steps: int) -> None:
    """Whatever cancels the waiting for it, and when, the client is closed in a moment."""
    client = Client(proxy.endpoint)
    await client.watch("k").__aenter__()
    await client.kv.get("k")

    async def close() -> None:
        if how == "native":
            await client.aclose()
        elif how == "timeout":
            async with asyncio.timeout(0):
                await client.aclose()
        else:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await client.aclose()

    task = asyncio.create_task(close())
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    await proxy.wait_until(lambda proxy: proxy.connections_open == 0)
    assert (task.cancelled() or task.exception()) is not None
    with pytest.raises(ClientClosedError):
        await client.kv.get("k")
    await client.aclose()
    assert client._transport.supervisor._background() == set()


async def test_closing_with_the_server_paused(own_server: EtcdServer) -> None:
    """It does not wait for a server that says nothing."""
    client = Client(own_server.endpoint, timeout=None)
    await client.watch("k").__aenter__()
    lease = await client.lease.grant(60)
    await client.lease.keep_alive(lease.id).__aenter__()
    await own_server.pause()
    async with anyio.create_task_group() as group:
        group.start_soon(expect_closed, client.kv.put("k", "v"), True)
        await until(lambda: in_flight(client) == 1)
        async with lateness() as late:
            start = time.monotonic()
            await client.aclose()
        assert time.monotonic() - start < 2 + late.seconds
    await own_server.resume()


async def test_closed_inside_what_stands_on_it(server: EtcdServer, client: Client) -> None:
    """Blocks of a client that is closed inside of them are told, and leave nothing behind."""
    other = Client(server.endpoint)

    async def body() -> None:
        async with other.watch("k") as watch, other.session(on_lost="ignore"), other.lock("L"):
            await other.aclose()
            with pytest.raises(ClientClosedError):
                await anext(aiter(watch))
            await anyio.sleep(5)

    with pytest.raises(LockLostError):
        await body()
    with anyio.fail_after(2):
        while (await client.lease.leases()).ids:
            await anyio.sleep(0.01)


# --- loops ------------------------------------------------------------------------------------


async def in_another_loop(use: Callable[[], Awaitable[object]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(5):  # which ends a shielded wait, too
            await use()

    await anyio.to_thread.run_sync(lambda: asyncio.run(bounded()))


@pytest.mark.parametrize("use", USES)
async def test_p3_used_from_another_loop(client: Client, use: str) -> None:
    """A client used from another loop is a RuntimeError that says so, and no hang."""
    await client.kv.put("k", "v")
    with pytest.raises(RuntimeError, match="another event loop"):
        await in_another_loop(every_use(client)[use])
    assert (await client.kv.get("k")).value == b"v"


async def test_closed_from_another_loop(client: Client) -> None:
    """Only its own loop can close a client."""
    await client.kv.put("k", "v")
    with pytest.raises(RuntimeError, match="another event loop"):
        await in_another_loop(client.aclose)
    assert (await client.kv.get("k")).value == b"v"


def test_used_without_a_loop() -> None:
    """A call that no event loop drives is a RuntimeError that says what is missing."""
    client = Client("127.0.0.1:1")
    for call in (client.kv.get("k"), client.kv.put("k", "v"), client.lease.grant(10)):
        with pytest.raises(RuntimeError, match="running asyncio event loop"):
            call.send(None)


def test_p3_belongs_to_the_loop_of_its_first_use(server: EtcdServer) -> None:
    """A client may be made before any loop, and every loop has a client of its own."""
    clients = [Client(server.endpoint) for _ in range(2)]

    async def use(client: Client) -> bytes | None:
        async with client:
            await client.kv.put("k", "v")
            return (await client.kv.get("k")).value

    for client in clients:
        assert asyncio.run(use(client)) == b"v"


FORGOTTEN = """
import asyncio, gc, sys, warnings
from aioetcd import Client, ClientClosedError

async def use():
    client = Client(sys.argv[1])
    await client.kv.put("k", "v")
    await client.watch("k").__aenter__()
    return client

async def use_again(client):
    await client.kv.get("k")

client = asyncio.run(use())
try:
    asyncio.run(use_again(client))
except ClientClosedError as error:
    sys.stdout.write(str(error))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    del client
    gc.collect()
sys.stdout.write("; ".join(str(each.message) for each in caught))
"""


def test_forgotten_client(server: EtcdServer) -> None:
    """A client whose loop ended is closed, and warns once when it goes; nothing hangs."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORGOTTEN, server.endpoint],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "event loop ends" in done.stdout
    assert done.stdout.count("was not closed") == 1


# --- cancelling -------------------------------------------------------------------------------


async def test_fail_after(hung: Client) -> None:
    """anyio's fail_after raises Python's TimeoutError, which is none of ours."""
    for call in (hung.kv.get("k"), hung.kv.put("k", "v"), hung.lease.leases()):
        with pytest.raises(TimeoutError) as caught, anyio.fail_after(0.05):
            await call
        assert not isinstance(caught.value, EtcdError)


async def test_move_on_after(hung: Client) -> None:
    """anyio's move_on_after moves on, and knows why."""
    with anyio.move_on_after(0.05) as scope:
        await hung.kv.put("k", "v")
    assert scope.cancelled_caught


async def test_scope_cancelled_by_another_task(hung: Client) -> None:
    """A scope's cancellation ends the call in it, and nothing outside of it."""
    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            group.start_soon(wait_then, lambda: hung.stats().calls == 2, scope.cancel)
            await hung.kv.get("k")
        assert scope.cancelled_caught


async def wait_then(condition: Callable[[], bool], action: Callable[[], None]) -> None:
    await until(condition)
    action()


async def test_task_group_cancelled(hung: Client) -> None:
    """A task group with calls under way is cancelled without a word."""
    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(hung.kv.get, "k")
            group.start_soon(hung.kv.put, "k", "v")
        await until(lambda: hung.stats().calls == 41)
        group.cancel_scope.cancel()
    await until(lambda: in_flight(hung) == 0)


async def test_asyncio_timeout(hung: Client) -> None:
    """asyncio's own time-outs raise Python's TimeoutError, which is none of ours."""
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0.05):
            await hung.kv.get("k")
    assert not isinstance(caught.value, EtcdError)
    with pytest.raises(TimeoutError) as caught:
        await asyncio.wait_for(hung.kv.put("k", "v"), 0.05)
    assert not isinstance(caught.value, EtcdError)


async def test_asyncio_cancel(hung: Client) -> None:
    """A cancelled task ends as cancelled, in a call and while it waits for a connection."""
    task = asyncio.create_task(hung.kv.get("k"))
    await until(lambda: hung.stats().calls == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


class Caught:
    """What a task of a user's was cancelled with, which is told only inside of it."""

    args: tuple[object, ...] | None = None

    async def run(self, use: Callable[[], Awaitable[object]]) -> None:
        try:
            await use()
        except asyncio.CancelledError as error:
            self.args = error.args
            raise


async def cancelled_with(
    use: Callable[[], Awaitable[object]], ready: Callable[[], bool]
) -> tuple[object, ...] | None:
    """Cancel `use` with a message once it is `ready`, and give what it was cancelled with."""
    caught = Caught()
    task = asyncio.create_task(caught.run(use))
    await until(ready)
    task.cancel("why")
    await asyncio.wait({task})
    assert task.cancelled()
    return caught.args


@pytest.mark.parametrize("name", ["get", "put", "grant"])
async def test_cancel_message_of_a_call(hung: Client, name: str) -> None:
    """What a call is cancelled with comes out of it."""
    use = every_use(hung)[name]
    assert await cancelled_with(use, lambda: in_flight(hung) == 1) == ("why",)


async def test_cancel_message_without_a_connection(proxy: FaultProxy) -> None:
    """Also where it still waits for a connection."""
    proxy.refuse()
    async with Client(proxy.endpoint, timeout=None) as client:
        args = await cancelled_with(lambda: client.kv.get("k"), lambda: client.stats().calls == 1)
    assert args == ("why",)


@pytest.mark.parametrize("what", ["watch", "batches", "renewals"])
async def test_cancel_message_of_a_loop(client: Client, what: str) -> None:
    """Also out of a loop over a watch, or over renewals."""
    lease = await client.lease.grant(60)
    begun = asyncio.Event()

    async def follow() -> None:
        if what == "renewals":
            async for _ in client.lease.keep_alive(lease.id):
                begun.set()
            return
        async with client.watch("k") as watch:
            begun.set()
            async for _ in watch if what == "watch" else watch.batches():
                pass

    assert await cancelled_with(follow, begun.is_set) == ("why",)
    await client.lease.revoke(lease.id)


@pytest.mark.parametrize("what", ["session", "lock"])
async def test_cancel_message_of_leaving(proxy: FaultProxy, client: Client, what: str) -> None:
    """Also out of what is being left, whose lease is revoked all the same."""
    leaving = asyncio.Event()
    async with Client(proxy.endpoint) as proxied:
        manager: Any = getattr(proxied, what)(*(["L"] if what == "lock" else []), ttl=60)

        async def leave() -> None:
            async with manager:
                proxy.hang()
                leaving.set()

        assert await cancelled_with(leave, leaving.is_set) == ("why",)
        assert (await client.lease.leases()).ids == (manager.lease_id,)
        await proxy.heal()
        with anyio.fail_after(5):
            while (await client.lease.leases()).ids:
                await anyio.sleep(0.01)


async def test_cancel_without_a_connection(proxy: FaultProxy) -> None:
    """Waiting for a connection is cancelled as any call is."""
    proxy.refuse()
    async with Client(proxy.endpoint, timeout=None) as client:
        with pytest.raises(TimeoutError) as caught, anyio.fail_after(0.05):
            await client.kv.put("k", "v")
        assert not isinstance(caught.value, EtcdError)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.kv.put("k", "v"), 0.05)


async def test_asyncio_task_group(hung: Client) -> None:
    """A failure in asyncio's task group cancels the calls in it and comes out alone."""
    mine = UsersOwnError()

    async def block() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(10):
                group.create_task(hung.kv.get("k"))
            await until(lambda: hung.stats().calls == 11)
            raise mine

    with pytest.raises(ExceptionGroup) as caught:
        await block()
    assert caught.value.exceptions == (mine,)


async def test_k11_cancelled_calls_leave_nothing(server: EtcdServer) -> None:
    """Cancelled calls do not go on at the server, and the client works on one connection."""
    await server.clear()
    async with (
        FaultProxy(server.endpoint) as proxy,
        Client(proxy.endpoint, timeout=None) as client,
    ):
        await client.kv.get("k")
        before = await started_and_handled(server)
        proxy.blackhole(client_to_server=False)
        for _ in range(20):
            with anyio.move_on_after(0.01):
                await client.kv.get("k")
            with anyio.move_on_after(0.01):
                await client.kv.put("k", "v")
        # Well before the connection is found to be silent, which would end them all.
        await until(lambda: in_flight(client) == 0, within=3)
        proxy.blackhole(client_to_server=False, server_to_client=False)  # resets what lost bytes
        await client.kv.get("k")
        with anyio.fail_after(5):
            while len(set((await started_and_handled(server)).values())) != 1:
                await anyio.sleep(0.01)
        after = await started_and_handled(server)
        assert after["started"] > before["started"]
        await until(lambda: in_flight(client) == 0)
        assert proxy.connections_total == 2


async def started_and_handled(server: EtcdServer) -> dict[str, float]:
    """The unary RPCs of the KV service that the server began, and those that it ended."""
    metrics = await server.metrics()
    return {
        word: sum(
            value
            for name, value in metrics.items()
            if name.startswith(f"grpc_server_{word}_total")
            and 'grpc_service="etcdserverpb.KV"' in name
            and 'grpc_type="unary"' in name
        )
        for word in ("started", "handled")
    }


# --- time-outs --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timeout", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        (float("nan"), ValueError),
        ("1", TypeError),
        (True, TypeError),
    ],
)
async def test_timeout_refuses(client: Client, timeout: float, error: type[Exception]) -> None:
    """Every call checks its own timeout before anything is sent."""
    kv = client.kv
    for call in (
        kv.get("k", timeout=timeout),
        kv.put("k", "v", timeout=timeout),
        kv.delete("k", timeout=timeout),
        kv.txn(timeout=timeout),
        kv.compact(1, timeout=timeout),
    ):
        with pytest.raises(error, match=r"^timeout must be"):
            await call


@pytest.mark.parametrize("timeout", [None, 1e300, float("inf"), 30])
async def test_timeout_may_be_long(client: Client, timeout: float | None) -> None:
    """No deadline, or one that is as good as none, is no hindrance."""
    await client.kv.put("k", "v", timeout=timeout)
    assert (await client.kv.get("k", timeout=timeout)).value == b"v"


# --- the user's exceptions --------------------------------------------------------------------


async def test_exception_leaves_as_itself(server: EtcdServer) -> None:
    """An exception from the block leaves it as the same object, with calls and watches open."""
    mine = UsersOwnError()

    async def block() -> None:
        async with Client(server.endpoint) as client, client.watch("k"):
            await client.kv.get("k")
            raise mine

    with pytest.raises(UsersOwnError) as caught:
        await block()
    assert caught.value is mine
    assert caught.value.__cause__ is None


@pytest.mark.contract
async def test_error_of_a_call_leaves_as_itself(client: Client) -> None:
    """A call's error in a user's task group is in the user's group alone, once."""

    async def block() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(client.lease.revoke, 1)
            await anyio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        await block()
    (error,) = caught.value.exceptions
    assert type(error) is LeaseNotFoundError


async def test_exception_of_a_users_task_group(hung: Client) -> None:
    """What fails in a user's task group cancels the calls there and leaves in the user's group."""
    mine = UsersOwnError()

    async def fail() -> None:
        await until(lambda: hung.stats().calls == 2)
        raise mine

    async def block() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(hung.kv.get, "k")
            group.start_soon(fail)

    with pytest.raises(ExceptionGroup) as caught:
        await block()
    assert caught.value.exceptions == (mine,)


async def test_shortest_keepalive(server: EtcdServer) -> None:
    """The 5 s that are told as the least for pings are allowed."""
    async with Client(server.endpoint, keepalive_time=5) as client:
        await client.kv.get("k")


# --- fixtures and counters --------------------------------------------------------------------

FIXTURES = """
import asyncio, os
import pytest, pytest_asyncio
from aioetcd import Client

ENDPOINT = os.environ["TEST_ENDPOINT"]

@pytest_asyncio.fixture
async def function_client():
    async with Client(ENDPOINT) as client:
        yield client

@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def session_client():
    async with Client(ENDPOINT) as client, client.watch("k") as watch:
        client.seen = watch
        yield client

@pytest.fixture
def plain_client():
    return Client(ENDPOINT)

async def test_function(function_client):
    await function_client.kv.put("f", "1")
    async with function_client.watch("f"):
        pass

async def test_plain(plain_client):
    async with plain_client as client:
        await client.kv.get("f")

@pytest.mark.parametrize("number", range(3))
@pytest.mark.asyncio(loop_scope="session")
async def test_session(session_client, number):
    await session_client.kv.put("k", str(number))
    async for event in session_client.seen:
        assert event.kv.value == str(number).encode()
        break

@pytest.mark.asyncio(loop_scope="session")
async def test_many_tasks(session_client):
    async with asyncio.TaskGroup() as group:
        for number in range(50):
            group.create_task(session_client.kv.put(f"n{number}", "v"))

async def test_wrong_loop(session_client):
    with pytest.raises(RuntimeError, match="another event loop"):
        await session_client.kv.get("k")

async def test_fails(function_client):
    await function_client.kv.get("f")
    raise ZeroDivisionError
"""


@pytest.mark.fault("runs a pytest of its own")
def test_fixtures(
    pytester: pytest.Pytester, server: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client may be open in a fixture of any scope, without a warning, and break no test."""
    monkeypatch.setenv("TEST_ENDPOINT", server.endpoint)
    pytester.makepyfile(FIXTURES)
    result = pytester.runpytest_subprocess(
        *("-W", "error", "-p", "no:cacheprovider", "-p", "no:aioetcd"),
        *("--asyncio-mode=auto", "-o", "asyncio_default_fixture_loop_scope=function"),
    )
    result.assert_outcomes(passed=7, failed=1)
    result.stdout.fnmatch_lines(["*ZeroDivisionError*"])
    result.stdout.no_fnmatch_line("*ExceptionGroup*")


async def test_stats(client: Client, server: EtcdServer) -> None:
    """A client counts its calls and says where it is connected, from the first use on."""
    fresh = Client(server.endpoint)
    assert fresh.stats().connections == {server.endpoint: "UNUSED"}
    assert fresh.stats().endpoint is None
    await client.kv.put("k", "v")
    await client.kv.txn(success=[Op.get("k")])
    stats = client.stats()
    assert (stats.calls, stats.retries, stats.reconnects) == (2, 0, 0)
    assert stats.endpoint == server.endpoint
    assert stats.connections == {server.endpoint: "READY"}
    assert (stats.watches, stats.leases, stats.soonest_expiry) == (0, 0, None)


async def test_stats_count_retries(proxy: FaultProxy) -> None:
    """A call that was sent again is one call and a retry."""
    async with Client(proxy.endpoint) as client:
        value = b"v" * 100_000
        await client.kv.put("k", value)
        cut = proxy.cut_after(50_000)  # in the midst of the answer
        assert (await client.kv.get("k")).value == value
        assert cut.is_set()
        assert (client.stats().calls, client.stats().retries) == (2, 1)


async def test_repr_says_where_it_stands(hung: Client, proxy: FaultProxy) -> None:
    """A client shows its endpoints, and whether it is connected, lost it, or is closed."""
    name = proxy.endpoint
    assert repr(hung) == f"<Client {name} connected to {name}>"
    proxy.refuse()
    proxy.cut()
    await until(lambda: not hung._transport.is_connected)  # gRPC has noticed
    with pytest.raises(EtcdError):
        await hung.kv.get("k", timeout=0.2)
    assert repr(hung) == f"<Client {name} not connected>"
    await hung.aclose()
    assert repr(hung) == f"<Client {name} closed>"
    several = Client("b:1, http://a:2")
    assert repr(several) == "<Client b:1,http://a:2 unused>"
    await several.aclose()
