"""A work queue whose workers die: every job is done all the same.

    python examples/jobs.py               for itself: on an etcd of its own, see below
    python examples/jobs.py put TEXT...   puts jobs into the queue
    python examples/jobs.py work NAME     handles them until it is told to end
    python examples/jobs.py show          how many there are, and which failed again and again

A worker that ends in order, by SIGTERM or Ctrl-C, gives its job back at once; that of one that is
killed, or whose machine is, is handed out again when its lease has run out. The demonstration puts
some jobs, one of which always fails, starts three workers, kills two with a job in their hands,
starts another one, and waits until all is done.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import subprocess
import sys
from contextlib import AsyncExitStack

from aioetcd import Client, EtcdError, Job, Op, WorkerLostError, WorkQueue
from aioetcd.testing import EtcdNotFoundError, EtcdServer

NAME = "/work/demo"
RESULTS = "/results/demo/"
TTL = 3  # seconds after which the job of one that was killed is handed out again
ATTEMPTS = 2


def say(text: str) -> None:
    print(f"{text}\n", end="", flush=True)  # in one piece: several processes write here


def queue_of(client: Client) -> WorkQueue:
    return client.work_queue(NAME, max_attempts=ATTEMPTS)


async def handle(client: Client, job: Job) -> None:
    """Do a job; what comes of it is written once, by whoever has the job then."""
    text = job.value.decode()
    if text == "bad":
        raise ValueError("nobody can do that")
    await asyncio.sleep(0.3)  # the work
    result = Op.put(f"{RESULTS}{job.id.decode()}", text.upper())
    await client.kv.txn(compare=[job.is_owner()], success=[result])


async def work(endpoints: list[str], name: str) -> None:
    task = asyncio.current_task()
    assert task is not None  # a coroutine always runs in one
    # Ctrl-C cancels it already; SIGTERM, by which containers end, does not by itself.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with Client(endpoints) as client:
        try:
            while True:
                try:
                    async with queue_of(client).worker(ttl=TTL) as worker:
                        async for job in worker:
                            await try_to(client, name, job)
                except WorkerLostError as error:  # cut off for too long: others have its job
                    say(f"{name} begins again: {error}")
        except asyncio.CancelledError:
            say(f"{name} ends")  # what it had was given back


async def try_to(client: Client, name: str, job: Job) -> None:
    say(f"{name} has {job.value.decode()}, attempt {job.attempt}")
    try:
        async with job:  # acknowledges it, or gives it back where this fails
            await handle(client, job)
    except ValueError as error:
        say(f"{name} failed: {error}")


async def put(endpoints: list[str], texts: list[str]) -> None:
    async with Client(endpoints) as client:
        for text in texts:
            await queue_of(client).put(text)


async def show(endpoints: list[str]) -> None:
    async with Client(endpoints) as client:
        queue = queue_of(client)
        say(str(await queue.counts()))
        for job in await queue.dead():
            say(f"dead after {job.attempts} attempts: {job.value.decode()}")


async def demonstrate() -> None:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(EtcdServer())
        client = await stack.enter_async_context(Client(server.endpoint))
        queue = queue_of(client)

        def start(name: str) -> subprocess.Popen[bytes]:
            command = [sys.executable, __file__, "--endpoints", server.endpoint]
            process = subprocess.Popen([*command, "work", name])
            stack.callback(process.wait)
            stack.callback(process.terminate)
            return process

        workers = [start(f"worker {number}") for number in range(1, 4)]
        while (await client.kv.get(f"{NAME}/workers/", prefix=True)).count < len(workers):
            await asyncio.sleep(0.05)
        await put([server.endpoint], ["bad", *(f"job {number}" for number in range(1, 13))])
        async with client.cache(f"{NAME}/claims/", prefix=True) as claims:
            changes = claims.changes()
            for process in workers[:2]:
                while len(claims) < len(workers):
                    await anext(changes)
                process.kill()
                process.wait()
                say("one is killed")
        start("worker 4")
        while (counts := await queue.counts()).waiting + counts.claimed + counts.delayed:
            await asyncio.sleep(0.1)
        results = await client.kv.get(RESULTS, prefix=True)
        say(f"done: {', '.join(sorted(kv.text for kv in results.kvs))}")
        await show([server.endpoint])


def main() -> None:
    parser = argparse.ArgumentParser(description="Put jobs into a queue, or handle them.")
    parser.add_argument(
        "--endpoints",
        metavar="HOST:PORT[,HOST:PORT...]",
        type=lambda text: text.split(","),
        default=["127.0.0.1:2379"],
    )
    commands = parser.add_subparsers(dest="command")
    putting = commands.add_parser("put", help="put jobs into the queue")
    putting.add_argument("texts", metavar="TEXT", nargs="+")
    working = commands.add_parser("work", help="handle jobs until told to end")
    working.add_argument("name", metavar="NAME")
    commands.add_parser("show", help="how many there are, and which failed")
    arguments = parser.parse_args()
    if arguments.command == "put":
        running = put(arguments.endpoints, arguments.texts)
    elif arguments.command == "work":
        running = work(arguments.endpoints, arguments.name)
    elif arguments.command == "show":
        running = show(arguments.endpoints)
    else:
        running = demonstrate()
    try:
        asyncio.run(running)
    except (EtcdNotFoundError, EtcdError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
