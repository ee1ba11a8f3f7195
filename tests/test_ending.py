"""However a client's event loop, its background tasks or the client itself end, it is told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

import anyio
import pytest

from aioetcd import Client, ClientClosedError, LeaseLostError, Lock, LockLostError, Session
from aioetcd.testing import EtcdServer
from tests.loops import LOOPS, run_on
from tests.programs import run_program
from tests.waiting import until

pytestmark = pytest.mark.own_logic("how the client ends when its loop or its tasks do")

# What each program begins with. How long a client waits for its leases to be revoked is not tested
# here, and on a busy machine that may take longer than a client waits.
PATIENT = """
from aioetcd._transport import supervisor

supervisor._LAST = 10
wait_tidied = supervisor.Supervisor.wait_tidied
supervisor.Supervisor.wait_tidied = lambda self, task, patience=10: wait_tidied(self, task, 10)
"""

# --- the loop ends ------------------------------------------------------------------------------

LOOP_ENDS = """
client = Client(ENDPOINT)
ready = set()

async def hold(name, manager):
    try:
        async with manager:
            try:
                ready.add(name)
                await asyncio.Event().wait()
            finally:  # it ends as it would without a client: what it awaits is not cut short
                await asyncio.sleep(0.1)
                say(name, "told", manager.is_lost)
    except BaseException as error:
        say(name, type(error).__name__)
        raise

async def follow(name):
    try:
        async with client.watch("k") as watch:
            ready.add(name)
            async for _ in watch:
                pass
    except BaseException as error:
        say(name, type(error).__name__)
        raise

async def go_on(name):
    try:
        ready.add(name)
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await asyncio.sleep(0.05)  # the supervisor is told by then
        for call in (client.kv.get("k"), client.kv.put("k", "v"), client.watch("k").__aenter__()):
            try:
                await call
            except aioetcd.ClientClosedError as error:
                say(name, type(error).__name__)
        raise

async def main():
    global tasks
    tasks = [
        *(asyncio.create_task(hold(f"session{n}", client.session(ttl=60))) for n in range(3)),
        *(asyncio.create_task(hold(f"lock{n}", client.lock(f"L{n}", ttl=60))) for n in range(3)),
        asyncio.create_task(follow("watch")),
        asyncio.create_task(go_on("calls")),
    ]
    while len(ready) < len(tasks):
        await asyncio.sleep(0.01)

run(main())
say("cancelled", sum(task.cancelled() for task in tasks))
"""


@pytest.mark.parametrize("loop", LOOPS)
async def test_z2_the_loop_ends_with_everything_open(
    server: EtcdServer, client: Client, loop: str
) -> None:
    """`asyncio.run` ends with nothing closed: each task is told, and no lease stays."""
    ended = await anyio.to_thread.run_sync(
        lambda: run_program(PATIENT + LOOP_ENDS, server.endpoint, loop=loop)
    )

    async def is_empty() -> bool:
        keys = (await client.kv.get("", prefix=True, count_only=True)).count
        return keys == 0 and not (await client.lease.leases()).ids

    await until(is_empty)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.pop() == "cancelled 8"
    holders = [f"{kind}{number}" for kind in ("session", "lock") for number in range(3)]
    assert sorted(ended.out) == sorted(
        [f"{name} told True" for name in holders]
        + [f"{name} CancelledError" for name in (*holders, "watch")]
        + ["calls ClientClosedError"] * 3
    )


# --- all tasks are cancelled, and the program goes on -------------------------------------------


def cancel_all(*spared: asyncio.Task[object]) -> None:
    """The recipe: cancel all tasks but mine."""
    mine = asyncio.current_task()
    for task in asyncio.all_tasks():
        if task is not mine and task not in spared:
            task.cancel()


@asynccontextmanager
async def in_time(seconds: float = 5.0) -> AsyncIterator[None]:
    async with asyncio.timeout(seconds):
        yield


@pytest.mark.parametrize("loop", LOOPS)
def test_z3_all_tasks_but_mine_are_cancelled(server: EtcdServer, loop: str) -> None:
    """Whoever goes on is told at once by all that it has, whatever it asks."""

    async def main() -> None:
        async with (
            in_time(),
            Client(server.endpoint) as client,
            client.session(ttl=60, on_lost="ignore") as session,
            client.lock("L", ttl=60, on_lost="ignore") as lock,
            client.watch("k") as watch,
            client.watch("k") as other,
        ):
            keep_alive = client.lease.keep_alive(session.lease_id)
            cancel_all()
            assert isinstance(await session.wait_lost(), LeaseLostError)
            assert isinstance(await lock.wait_lost(), LockLostError)
            assert (session.is_lost, lock.is_lost) == (True, True)
            assert (session.expires_in, lock.expires_in) == (0, 0)

            async def follow() -> None:
                async for _ in watch:
                    pass

            async def follow_batches() -> None:
                async for _ in other.batches():
                    pass

            async def renew() -> None:
                async for _ in keep_alive:
                    pass

            uses: list[Awaitable[object]] = [
                follow(),
                follow_batches(),
                renew(),
                client.kv.get("k"),
                client.kv.put("k", "v"),
                client.lease.grant(10),
                client.watch("k").__aenter__(),
                client.session().__aenter__(),
                client.lock("M").__aenter__(),
            ]
            for use in uses:
                with pytest.raises(ClientClosedError, match="as all tasks are"):
                    await use
        async with in_time(), Client(server.endpoint) as another:
            await until(lambda: no_leases(another))
            assert (await another.kv.get("L", prefix=True)).count == 0

    run_on(loop, main())


async def no_leases(client: Client) -> bool:
    return not (await client.lease.leases()).ids


@pytest.mark.parametrize("loop", LOOPS)
def test_z3_bodies_are_cancelled(server: EtcdServer, loop: str) -> None:
    """A body that relied on a session or a lock is cancelled, and may await as it ends."""

    async def main() -> None:
        async with in_time():
            client = Client(server.endpoint)
            for number, error in enumerate((LeaseLostError, LockLostError)):
                tidied = False

                async def body(manager: Session | Lock) -> None:
                    nonlocal tidied
                    async with manager:
                        try:
                            cancel_all()
                            await asyncio.Event().wait()
                        finally:
                            await asyncio.sleep(0.01)
                            tidied = True

                with pytest.raises(error):
                    await body(client.lock("L", ttl=60) if number else client.session(ttl=60))
                assert tidied
                task = asyncio.current_task()
                assert task is not None
                assert task.cancelling() == 0
                await client.aclose()
                client = Client(server.endpoint)  # the next one's
            await client.aclose()

    run_on(loop, main())


@pytest.mark.parametrize("loop", LOOPS)
def test_z3_calls_at_any_moment(server: EtcdServer, loop: str, rng: random.Random) -> None:
    """Wherever a call is when all other tasks are cancelled, gRPC's own too, it raises in time."""

    async def work(client: Client) -> str:
        number = 0
        while True:
            number += 1
            try:
                await client.kv.get("k", timeout=None)
                await client.kv.put("k", "v", timeout=None)
            except ClientClosedError as error:
                return str(error)

    async def main() -> None:
        reasons = set()
        for _ in range(60):
            async with in_time(), Client(server.endpoint) as client:
                spares_ours = rng.random() < 0.5
                if spares_ours or rng.random() < 0.8:  # else they wait for the connection
                    await client.kv.get("k")
                workers = [asyncio.create_task(work(client)) for _ in range(5)]
                for _ in range(rng.randrange(12)):
                    await asyncio.sleep(0)
                spared = set(workers)
                while spares_ours:  # and so cancels nothing of the client's but gRPC's tasks
                    tasks = asyncio.all_tasks()
                    spared |= {task for task in tasks if task.get_name().startswith("aioetcd")}
                    if tasks - spared - {asyncio.current_task()}:
                        break
                    await asyncio.sleep(0)
                cancel_all(*spared)
                done, late = await asyncio.wait(workers, timeout=3)
                assert not late
                reasons |= {worker.result() for worker in done}
        assert any("supervisor" in reason for reason in reasons)
        assert any("gRPC's task" in reason for reason in reasons)

    run_on(loop, main())


# --- what ends the process -----------------------------------------------------------------------

FAILS = """
class Own(BaseException):
    pass

async def crash():
    errors = {"exit": SystemExit(3), "interrupt": KeyboardInterrupt(), "own": Own("mine")}
    raise errors[ARGUMENTS[0]]

async def follow(client):
    try:
        async for _ in client.watch("k"):
            pass
    except BaseException as error:
        say("watch", type(error).__name__)
        raise

async def main():
    logging.basicConfig(level="ERROR", format="%(message)s")
    async with Client(ENDPOINT) as client, client.session(on_lost="ignore") as session:
        task = asyncio.create_task(follow(client))
        async with client.watch("k"):
            client._transport.supervisor.spawn(crash, "crash")
            say("session", type(await session.wait_lost()).__name__)
            with contextlib.suppress(aioetcd.ClientClosedError):
                await task

run(main())
"""


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("what", "code"), [("exit", {3}), ("interrupt", {130, -2, 1}), ("own", {0})]
)
async def test_z4_what_ends_the_process(
    server: EtcdServer, client: Client, loop: str, what: str, code: set[int]
) -> None:
    """It does, or it is logged where nobody else has it; all are told, and no lease stays."""
    starting = await anyio.to_thread.run_sync(lambda: run_program("", server.endpoint, loop=loop))
    ended = await anyio.to_thread.run_sync(
        lambda: run_program(PATIENT + FAILS, server.endpoint, what, loop=loop)
    )
    await until(lambda: no_leases(client))
    assert ended.code in code
    assert "the task 'crash' failed; the client closes" in ended.err
    if what == "own":  # asyncio keeps it in its task, so that the program goes on
        assert ended.out == ["session LeaseLostError", "watch ClientClosedError"]
        assert "Own: mine" in ended.err
    else:
        assert ended.out == ["watch CancelledError"]
    # The interpreter, and what it does: nothing waits for as long as it may.
    assert ended.seconds < 2 * starting.seconds + 5
