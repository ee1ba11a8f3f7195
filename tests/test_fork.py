"""A process that forks: what the child can do, and that the parent goes on unharmed."""

from __future__ import annotations

import sys

import anyio
import anyio.to_thread
import pytest

from aioetcd import Client
from aioetcd.testing import EtcdServer
from tests.loops import LOOPS
from tests.programs import Ended, run_program
from tests.waiting import until

pytestmark = [
    pytest.mark.own_logic("what forking makes of the client"),
    pytest.mark.skipif(not hasattr(sys.modules["os"], "fork"), reason="there is no fork"),
]

# Python itself warns where gRPC's threads are there, from 3.12 on.
QUIET = ("-W", "ignore:This process:DeprecationWarning")

HELPERS = """
import multiprocessing, signal
from concurrent.futures import ProcessPoolExecutor
from aioetcd._transport.methods import LEASE_REVOKE

FORK = multiprocessing.get_context("fork")

async def use(key):
    async with Client(ENDPOINT, timeout=5) as client, client.watch(key) as watch:
        await client.kv.put(key, "v")
        async for event in watch:
            return event.kv.value.decode()

def child_use():
    say("child", run(use("child")))

def use_in_pool(key):
    return run(use(key))

def refused():
    # What the child is told by a client of its own, and by the parent's.
    try:
        run(use("child"))
    except RuntimeError as error:
        say("new", str(error).partition(',')[0])
    async def inherited():
        try:
            await client.kv.put("child", "v")
        except aioetcd.ClientClosedError as error:
            say("inherited", error)
        try:
            await client._transport.last_unary(LEASE_REVOKE, None, 1)
        except aioetcd.ClientClosedError as error:
            say("revoking", error)
        await client.aclose()
    run(inherited())

def wait_for(pid):
    status = None
    for _ in range(1000):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "hung"
"""


def fork(program: str, server: EtcdServer, *arguments: str, loop: str) -> Ended:
    return run_program(HELPERS + program, server.endpoint, *arguments, loop=loop, options=QUIET)


AFTER_CLOSING = """
def os_fork():
    pid = os.fork()
    if pid == 0:
        child_use()
        if ARGUMENTS[0] == "in a loop":  # in whose copy nobody may go on, not even to its end
            os._exit(0)
        sys.exit(0)
    say("exit", wait_for(pid))

def process():
    process = FORK.Process(target=child_use)
    process.start()
    process.join(10)
    say("exit", process.exitcode)

def pool():
    with ProcessPoolExecutor(2, mp_context=FORK) as pool:
        for value in pool.map(use_in_pool, ["a", "b", "c"], timeout=10):
            say("child", value)

how = {"os": os_fork, "process": process, "pool": pool}[ARGUMENTS[1]]
if ARGUMENTS[0] == "used":
    say("parent", run(use("parent")))
if ARGUMENTS[0] == "in a loop":
    async def main():
        say("parent", await use("parent"))
        how()
        say("parent", await use("parent"))
    run(main())
else:
    how()
    say("parent", run(use("parent")))
"""


@pytest.mark.parametrize("how", ["os", "process", "pool"])
@pytest.mark.parametrize(
    ("when", "loop"),
    [  # uvloop has one running loop for the child too
        ("unused", "asyncio"),
        ("used", "asyncio"),
        ("used", "uvloop"),
        ("in a loop", "asyncio"),
    ],
)
def test_z7_before_opening_and_after_closing(
    server: EtcdServer, when: str, how: str, loop: str
) -> None:
    """Where no client is open, a child has clients of its own, however it was forked."""
    ended = fork(AFTER_CLOSING, server, when, how, loop=loop)
    assert (ended.code, ended.err) == (0, "")
    child = ["child v"] * 3 if how == "pool" else ["child v", "exit 0"]
    before = [] if when == "unused" else ["parent v"]
    assert ended.out == [*before, *child, "parent v"]


WHILE_OPEN = """
async def open_all():
    global client, others
    client = Client(ENDPOINT)
    await client.kv.put("parent", "1")
    others = contextlib.AsyncExitStack()
    await others.enter_async_context(client.watch("parent"))
    session = await others.enter_async_context(client.session(ttl=60))
    await others.enter_async_context(client.lock("L", ttl=60))
    await client.kv.put("held", "v", lease=session.lease_id)

async def close_all():
    await client.kv.put("parent", "2")
    say("parent", (await client.kv.get("held")).value.decode())
    await others.aclose()
    await client.aclose()

def leave():
    how = ARGUMENTS[1]
    if how == "_exit":
        os._exit(7)
    if how == "exit":
        sys.exit(7)

loop = new_loop()
if ARGUMENTS[0] == "in a loop":
    async def main():
        await open_all()
        pid = os.fork()
        if pid == 0:
            if LOOP == "asyncio":  # a running uvloop is one for the child too
                refused()
            os._exit(7)  # nobody may go on in the copy of a loop
        say("exit", wait_for(pid))
        await close_all()
    run(main())
else:
    loop.run_until_complete(open_all())
    task = loop.create_task(client.kv.put("on its way", "v"))
    loop.run_until_complete(asyncio.sleep(0))
    pid = os.fork()
    if pid == 0:
        refused()
        grandchild = os.fork()
        if grandchild == 0:
            refused()
            os._exit(0)
        say("exit", wait_for(grandchild))
        leave()
    else:
        say("exit", wait_for(pid))
        loop.run_until_complete(task)
        loop.run_until_complete(close_all())
        loop.close()
"""


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("where", "leave"),
    [
        ("in a loop", "_exit"),
        ("beside it", "_exit"),
        ("beside it", "exit"),
        ("beside it", "falls off"),
    ],
)
async def test_z7_while_open(
    server: EtcdServer, client: Client, where: str, leave: str, loop: str
) -> None:
    """The child is told so by any client, and ends in peace; the parent keeps all that it has."""
    ended = await anyio.to_thread.run_sync(
        lambda: fork(WHILE_OPEN, server, where, leave, loop=loop)
    )
    assert (ended.code, ended.err) == (0, "")
    why = "it was opened by the parent process: open one in this process"
    told = [
        "new this process was forked while gRPC was in use",
        f"inherited the client is closed: {why}",
        f"revoking the client is closed: {why}",
    ]
    if where == "beside it":
        told += [*told, "exit 0"]
    elif loop == "uvloop":
        told = []
    assert ended.out == [*told, f"exit {0 if leave == 'falls off' else 7}", "parent v"]

    async def is_left() -> bool:
        return not (await client.lease.leases()).ids

    await until(is_left)
    assert (await client.kv.get("child")).kv is None


FOLLOWING = """
async def open_all():
    global client, cache
    client = Client(ENDPOINT)
    cache = client.cache("k")
    await cache.__aenter__()
    await client.kv.put("k", "v")
    await cache.sync()

loop = new_loop()
loop.run_until_complete(open_all())
pid = os.fork()
if pid == 0:
    before = cache.stale_for
    time.sleep(0.01)
    say(cache["k"].decode(), cache.is_connected, 0 <= before < before + 0.01 <= cache.stale_for)
    for use in (lambda: cache.wait_for(1), cache.sync):
        try:
            run(use())
        except aioetcd.ClientClosedError as error:
            say(error)
    os._exit(7)
say("exit", wait_for(pid))
loop.run_until_complete(cache.sync())
say(cache.is_connected, cache.stale_for)
loop.run_until_complete(client.aclose())
loop.close()
"""


@pytest.mark.parametrize("loop", LOOPS)
def test_z7_what_follows_the_store(server: EtcdServer, loop: str) -> None:
    """A cache says in the child that it does so no more."""
    ended = fork(FOLLOWING, server, loop=loop)
    assert (ended.code, ended.err) == (0, "")
    why = "the client is closed: it was opened by the parent process: open one in this process"
    assert ended.out == ["v False True", why, why, "exit 7", "True None"]


AT_ONCE = """
loop = new_loop()
for _ in range(15):
    loop.run_until_complete(use("parent"))
    pid = os.fork()
    if pid == 0:
        child_use()
        os._exit(0)
    say("exit", wait_for(pid))
loop.close()
"""


@pytest.mark.parametrize("loop", LOOPS)
def test_z7_at_once(server: EtcdServer, loop: str) -> None:
    """A child may be forked in the moment after closing, when gRPC's threads are still about."""
    ended = fork(AT_ONCE, server, loop=loop)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == ["child v", "exit 0"] * 15


DROPPED = """
async def open_one():
    client = Client(ENDPOINT)
    await client.kv.put("k", "v")
    return client

loop = new_loop()
client = loop.run_until_complete(open_one())
pid = os.fork()
if pid == 0:
    del client, loop
    gc.collect()
    sys.exit(7)
say("exit", wait_for(pid))
loop.run_until_complete(client.aclose())
loop.close()
"""


@pytest.mark.parametrize("loop", LOOPS)
def test_z7_what_the_child_drops(server: EtcdServer, loop: str) -> None:
    """A child that lets go of the parent's client does not wait for gRPC's threads for ever."""
    ended = fork(DROPPED, server, loop=loop)
    assert (ended.code, ended.out, ended.err) == (0, ["exit 7"], "")


IDLE = """
async def main():
    codes = []
    async with Client(ENDPOINT) as client, client.watch("k"):
        for _ in range(20):
            pid = os.fork()
            if pid == 0:
                time.sleep(0.05)  # in which threads of gRPC's would do their work
                os._exit(0)
            codes.append(wait_for(pid))
            await client.kv.get("k")
    say(*codes)

run(main())
"""


@pytest.mark.parametrize("loop", LOOPS)
def test_z7_idle_children(server: EtcdServer, loop: str) -> None:
    """A child that has nothing to do with gRPC lives, though the parent has a stream open."""
    ended = fork(IDLE, server, loop=loop)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == [" ".join(["0"] * 20)]
