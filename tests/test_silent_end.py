"""Silence at the end: what was closed leaves nothing, and what was not says so once."""

from __future__ import annotations

import sys

import anyio
import pytest

from aioetcd import Client
from aioetcd.testing import EtcdServer
from tests.loops import LOOPS
from tests.programs import run_program, stranger

pytestmark = pytest.mark.own_logic("what the client leaves behind")

# --- silence at the end --------------------------------------------------------------------------

MANY_RUNS = """
def threads_and_files():
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

kept = []

async def keep(call):
    try:
        await call
    except (aioetcd.EtcdError, asyncio.CancelledError) as error:
        kept.append(error)

async def begun(call):
    task = asyncio.create_task(call)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task

async def be_late(client):
    while True:  # on a busy machine the answer may come before gRPC's timer
        try:
            await client.kv.get("k", timeout=0.000001)
        except aioetcd.DeadlineExceededError as error:
            kept.append(error)
            return
        except aioetcd.NoEndpointError:
            pass
        await client.kv.get("k")

async def fail(client, other):
    async with Client("127.0.0.1:1", timeout=0.02) as lonely:
        await keep(lonely.kv.get("k"))
    await be_late(client)
    await keep(client.lease.revoke(5))
    await keep(other.watch("k").__aenter__())  # its stream fails for good
    task = await begun(client.kv.get("k"))
    task.cancel()
    await keep(task)
    task = await begun(client.kv.get("k"))
    await client.aclose()
    await keep(task)

async def main():
    async with (
        Client(ENDPOINT) as client,
        Client(ARGUMENTS[0]) as other,
        client.watch("a") as watch,
        client.lock("L") as lock,
        client.session() as session,
    ):
        keep_alive = client.lease.keep_alive(session.lease_id)
        async for _ in keep_alive:
            break
        await client.kv.put("a", "1")
        async for event in watch:
            assert event.kv.value == b"1"
            break
    async with Client(ENDPOINT) as client, Client(ARGUMENTS[0]) as other:
        await client.kv.get("k")
        await fail(client, other)

run(asyncio.sleep(0))  # what the loop itself imports
gc.disable()  # which would tidy up what should not need it
before = threads_and_files()
for _ in range(20):
    run(main())
    for _ in range(200):  # threads that were told to end take a moment
        if threads_and_files() == before:
            break
        time.sleep(0.005)
    say(threads_and_files() == before)
say(*sorted({type(error).__name__ for error in kept}))
"""


@pytest.mark.fault("Z8")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it looks into /proc")
@pytest.mark.parametrize("loop", LOOPS)
def test_z8_twenty_runs_are_silent(server: EtcdServer, loop: str) -> None:
    """No thread, no descriptor and no line is left of any of them, whatever error is kept."""
    with stranger() as no_etcd:  # which refuses each stream for good
        ended = run_program(MANY_RUNS, server.endpoint, no_etcd, loop=loop, options=("-W", "error"))
    assert (ended.code, ended.err) == (0, "")
    *counts, kept = ended.out
    assert counts == ["True"] * 20
    assert kept == (
        "CancelledError ClientClosedError DeadlineExceededError LeaseNotFoundError NoEndpointError "
        "UnsupportedByServerError"
    )


BESIDE = """
import threading
ready, stop = threading.Event(), threading.Event()

async def go_on():
    # Its client keeps gRPC's thread, which would come too late to the loops that have ended.
    async with Client(ENDPOINT) as client:
        await client.kv.get("k")
        ready.set()
        while not stop.is_set():
            await client.kv.get("k")

async def main(watches):
    async with Client(ENDPOINT) as client:
        await client.kv.get("k")
        calls = [asyncio.create_task(client.kv.get("k")) for _ in range(10)]
        if watches:
            await client.watch("k").__aenter__()
        calls += [asyncio.create_task(client.kv.get("k")) for _ in range(10)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        calls[-1].cancel()
        await client.aclose()
        say(len(asyncio.all_tasks() - {asyncio.current_task(), *calls}))
        await asyncio.gather(*calls, return_exceptions=True)

thread = threading.Thread(target=run, args=(go_on(),))
thread.start()
ready.wait()
for number in range(60):
    run(main(number % 2))
stop.set()
thread.join()
"""


@pytest.mark.parametrize("loop", LOOPS)
def test_z8_beside_another_loop(server: EtcdServer, loop: str) -> None:
    """Closing leaves no task of gRPC's, and nothing that comes when the loop is gone."""
    ended = run_program(BESIDE, server.endpoint, loop=loop)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == ["0"] * 60


# --- nobody closes it ----------------------------------------------------------------------------

UNCLOSED = """
async def open_all():
    client = Client(ENDPOINT)
    await client.kv.put("k", "v")
    watch = client.watch("k")
    await watch.__aenter__()
    lease = await client.lease.grant(60)
    async for _ in client.lease.keep_alive(lease.id):
        break
    await client.lease.keep_alive(lease.id).__aenter__()
    return client

async def wait_for(condition):
    for _ in range(400):
        if condition():
            return True
        await asyncio.sleep(0.01)
    return False

async def dropped_in_its_loop():
    client = await open_all()
    seen = weakref.ref(client._transport)
    del client
    # Its streams and their tasks end with it.
    say("tasks", await wait_for(lambda: len(asyncio.all_tasks()) == 1))
    say("collected", await wait_for(lambda: (gc.collect(), seen())[1] is None))

async def service_kept():
    kv = (await open_all()).kv
    await asyncio.sleep(0)
    try:
        await kv.get("k")
    except aioetcd.ClientClosedError as error:
        say(error)
    say("tasks", await wait_for(lambda: len(asyncio.all_tasks()) == 1))

async def service_of_nobody():
    kv = Client(ENDPOINT).kv
    try:
        await kv.get("k")
    except aioetcd.ClientClosedError as error:
        say(error)

async def kept():
    global client
    client = await open_all()

def loop_closed(main):
    global client
    loop = new_loop()
    client = loop.run_until_complete(main)
    loop.close()

async def used():
    client = Client(ENDPOINT)
    await client.kv.put("k", "v")
    return client

if ARGUMENTS[0] == "loop closed":
    loop_closed(open_all())
elif ARGUMENTS[0] == "loop closed on little":
    loop_closed(used())
elif ARGUMENTS[0] == "closed too late":
    loop_closed(open_all())
    run(client.aclose())
    try:
        run(client.kv.get("k"))
    except aioetcd.ClientClosedError as error:
        say(error)
elif ARGUMENTS[0] == "unused":
    Client(ENDPOINT).watch("k")
else:
    run({
        "dropped in its loop": dropped_in_its_loop,
        "service kept": service_kept,
        "service of nobody": service_of_nobody,
        "loop ended": kept,
    }[ARGUMENTS[0]]())
client = None
gc.collect()
"""

NOBODY = "the client is closed: nobody held it any more"


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("how", "warnings", "out"),
    [
        ("dropped in its loop", 1, ["tasks True", "collected True"]),
        ("service kept", 1, [NOBODY, "tasks True"]),
        ("service of nobody", 0, [NOBODY]),
        ("loop ended", 1, []),
        ("loop closed", 1, []),
        ("loop closed on little", 1, []),
        ("closed too late", 0, ["the client is closed"]),
        ("unused", 0, []),
    ],
)
async def test_p2_a_client_that_nobody_closes(
    server: EtcdServer, loop: str, how: str, warnings: int, out: list[str]
) -> None:
    """It warns once if it was used, ends all that it has, and says nothing else."""
    options = ("-W", "default::ResourceWarning")
    ended = await anyio.to_thread.run_sync(
        lambda: run_program(UNCLOSED, server.endpoint, how, loop=loop, options=options)
    )
    async with Client(server.endpoint) as client:  # of whose lease nobody else knows
        for lease_id in (await client.lease.leases()).ids:
            await client.lease.revoke(lease_id)
    assert (ended.code, ended.out) == (0, out)
    lines = [line for line in ended.err.splitlines() if "ResourceWarning" in line]
    assert len(lines) == warnings
    assert ended.err.count("a client was not closed") == warnings
    assert "Traceback" not in ended.err
    assert "destroyed" not in ended.err
