"""Registration and discovery: who serves, and where.

    python examples/discovery.py                       for itself: on an etcd of its own, see below
    python examples/discovery.py register NAME ADDRESS until it is told to end
    python examples/discovery.py watch                 prints who comes and goes

An instance that ends in order, by SIGTERM or Ctrl-C, is gone from the list at once; one that is
killed, or whose machine is, after the time to live of its lease. One that was cut off for longer
than that registers again. The demonstration starts three, ends one by SIGTERM, kills one, revokes
the third's lease, and watches.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from aioetcd import Client, EtcdError
from aioetcd.testing import EtcdNotFoundError, EtcdServer

PREFIX = "/services/demo/"
TTL = 3  # seconds for which one that was killed is still in the list


def say(text: str) -> None:
    print(f"{text}\n", end="", flush=True)  # in one piece: several processes write here


async def register(client: Client, name: str, address: str) -> None:
    """Be in the list until cancelled."""
    async with client.registration(f"{PREFIX}{name}", address, ttl=TTL):
        say(f"{name} is registered")
        await asyncio.Event().wait()


async def instances(client: Client) -> AsyncIterator[dict[str, str]]:
    """Give who is there, by name, and again after each change."""
    async with client.cache(PREFIX, prefix=True, decode=bytes.decode) as cache:
        changes = cache.changes()
        while True:
            yield {key.decode().removeprefix(PREFIX): address for key, address in cache.items()}
            await anext(changes)


async def serve(endpoints: list[str], name: str, address: str) -> None:
    task = asyncio.current_task()
    assert task is not None  # a coroutine always runs in one
    # Ctrl-C cancels it already; SIGTERM, by which containers end, does not by itself.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with Client(endpoints) as client:
        try:
            await register(client, name, address)
        except asyncio.CancelledError:
            say(f"{name} ends")  # its session has revoked the lease


async def watch(endpoints: list[str]) -> None:
    async with Client(endpoints) as client:
        async for there in instances(client):
            say(str(there))


async def lease_of(client: Client, name: str) -> int | None:
    kv = (await client.kv.get(f"{PREFIX}{name}")).kv
    return None if kv is None else kv.lease


async def demonstrate() -> None:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(EtcdServer())
        client = await stack.enter_async_context(Client(server.endpoint))
        processes: dict[str, subprocess.Popen[bytes]] = {}
        for number, name in enumerate(["ended", "killed", "revoked"], start=1):
            command = [sys.executable, __file__, "--endpoints", server.endpoint]
            process = subprocess.Popen([*command, "register", name, f"10.0.0.{number}:80"])
            processes[name] = process
            stack.callback(process.wait)
            stack.callback(process.terminate)
        step, lease = 0, None
        async for there in instances(client):
            say(f"there: {', '.join(sorted(there)) or 'nobody'}")
            if step == 0 and len(there) == 3:
                processes["ended"].terminate()
                step = 1
            elif step == 1 and "ended" not in there:
                processes["killed"].kill()
                step = 2
            elif step == 2 and "killed" not in there:
                lease = await lease_of(client, "revoked")
                if lease is not None:
                    await client.lease.revoke(lease)
                step = 3
            elif (
                step == 3
                and "revoked" in there
                and await lease_of(client, "revoked") not in (None, lease)
            ):
                return  # it is back


def main() -> None:
    parser = argparse.ArgumentParser(description="Register an instance, or watch who is there.")
    parser.add_argument(
        "--endpoints",
        metavar="HOST:PORT[,HOST:PORT...]",
        type=lambda text: text.split(","),
        default=["127.0.0.1:2379"],
    )
    commands = parser.add_subparsers(dest="command")
    registering = commands.add_parser("register", help="be in the list until told to end")
    registering.add_argument("name", metavar="NAME")
    registering.add_argument("address", metavar="ADDRESS")
    commands.add_parser("watch", help="print who comes and goes")
    arguments = parser.parse_args()
    if arguments.command == "register":
        running = serve(arguments.endpoints, arguments.name, arguments.address)
    elif arguments.command == "watch":
        running = watch(arguments.endpoints)
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
