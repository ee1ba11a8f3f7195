"""One of several processes works at a time, and another one goes on where it is killed.

    python examples/leader.py              for itself: on an etcd of its own, see below
    python examples/leader.py work NAME    campaigns, and works while it leads, until all is done

The work is a list of jobs, each of which is written down when it is done, in a transaction that
compares whether one still leads: who was stopped for longer than the lease lives, and does not know
yet that another one leads, writes nothing. The demonstration starts three processes, kills the
leader by ``kill -9`` in the middle, and looks at who has done what.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from contextlib import AsyncExitStack

from aioetcd import Client, Compare, EtcdError, Leadership, Op
from aioetcd.testing import EtcdNotFoundError, EtcdServer

ELECTION = "/demo/leader"
DONE = "/demo/done/"
JOBS = 20
TTL = 3  # seconds until another one leads where the leader is killed


def say(text: str) -> None:
    print(f"{text}\n", end="", flush=True)  # in one piece: several processes write here


async def jobs_done(client: Client) -> int:
    return (await client.kv.get(DONE, prefix=True, count_only=True)).count


async def work(client: Client, name: str, leadership: Leadership) -> None:
    """Do what is left to be done; is cancelled when another one may lead."""
    say(f"{name} leads")
    while (number := await jobs_done(client)) < JOBS:
        await asyncio.sleep(0.1)  # the job
        key = f"{DONE}{number:03}"
        # It may be sent again where an answer is lost: a job that is written down stays as it is.
        await client.kv.txn(
            compare=[leadership.is_owner(), Compare.missing(key)],
            success=[Op.put(key, name)],
            idempotent=True,
        )


async def campaign(endpoints: list[str], name: str) -> None:
    async with Client(endpoints) as client:
        election = client.election(ELECTION, ttl=TTL)
        await election.run(lambda leadership: work(client, name, leadership), name)
    say(f"{name} ends")


async def demonstrate() -> None:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(EtcdServer())
        client = await stack.enter_async_context(Client(server.endpoint))
        processes: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("ada", "ben", "cleo"):
            command = [sys.executable, __file__, "--endpoints", server.endpoint, "work", name]
            process = processes[name] = subprocess.Popen(command)
            stack.callback(process.wait)
            stack.callback(process.kill)
        async for _ in client.watch(DONE, prefix=True):
            if await jobs_done(client) >= JOBS // 4:
                break
        leader = await client.election(ELECTION).leader()
        if leader is not None:
            processes.pop(leader.text).kill()
            say(f"{leader.text} is killed")
        for process in processes.values():
            await asyncio.to_thread(process.wait)
        jobs = (await client.kv.get(DONE, prefix=True)).kvs
        once = sum(job.version == 1 for job in jobs)
        say(f"{once} of {JOBS} jobs were done once, by {len({job.text for job in jobs})} leaders")


def main() -> None:
    parser = argparse.ArgumentParser(description="Work while one leads.")
    parser.add_argument(
        "--endpoints",
        metavar="HOST:PORT[,HOST:PORT...]",
        type=lambda text: text.split(","),
        default=["127.0.0.1:2379"],
    )
    commands = parser.add_subparsers(dest="command")
    working = commands.add_parser("work", help="campaign, and work until all is done")
    working.add_argument("name", metavar="NAME")
    arguments = parser.parse_args()
    if arguments.command == "work":
        running = campaign(arguments.endpoints, arguments.name)
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
