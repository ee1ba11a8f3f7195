"""A service registry with health: who serves, where, and how they are.

    python examples/registry.py                    for itself: on an etcd of its own, see below
    python examples/registry.py serve NAME ADDRESS until it is told to end
    python examples/registry.py watch              prints who serves, and whether they are well

A service checks itself, and tells others when its health is another; it is in the list as long as
it lives. One that is killed is in it for as long as its lease lives. The demonstration starts
three, makes one of them busy, kills another one, and watches.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from typing import Literal

from aioetcd import Client, EtcdError
from aioetcd.testing import EtcdNotFoundError, EtcdServer

NAME = "/registry/demo"
TTL = 3  # seconds for which one that was killed is still in the list
CHECK_EVERY = 0.2  # seconds


@dataclass(frozen=True)
class Service:
    """What others know of a service."""

    address: str
    health: Literal["starting", "well", "busy"] = "starting"

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def decode(value: bytes) -> Service:
        return Service(**json.loads(value))


def say(text: str) -> None:
    print(f"{text}\n", end="", flush=True)  # in one piece: several processes write here


async def serve(client: Client, name: str, address: str) -> None:
    """Be in the list until cancelled, and tell how it is."""
    is_busy = asyncio.Event()  # what a real service measures
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, is_busy.set)
    service = Service(address)
    async with client.group(NAME).join(name, service.encode(), ttl=TTL) as membership:
        while True:
            checked = replace(service, health="busy" if is_busy.is_set() else "well")
            if checked != service:
                try:
                    await membership.update(checked.encode())
                except EtcdError as error:  # told at the next check
                    say(f"{name} cannot tell that it is {checked.health}: {error}")
                else:
                    service = checked
            await asyncio.sleep(CHECK_EVERY)


async def services(client: Client) -> AsyncIterator[Mapping[str, Service]]:
    """Give who is there, by name, and again after each change."""
    async with client.group(NAME).members(decode=Service.decode) as members:
        changes = members.changes()
        while True:
            yield {name.decode(): service for name, service in sorted(members.items())}
            await anext(changes)


def shown(there: Mapping[str, Service]) -> str:
    return ", ".join(f"{name} {service.health}" for name, service in there.items()) or "nobody"


async def run_service(endpoints: list[str], name: str, address: str) -> None:
    task = asyncio.current_task()
    assert task is not None  # a coroutine always runs in one
    # Ctrl-C cancels it already; SIGTERM, by which containers end, does not by itself.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with Client(endpoints) as client:
        try:
            await serve(client, name, address)
        except asyncio.CancelledError:
            say(f"{name} ends")


async def watch(endpoints: list[str]) -> None:
    async with Client(endpoints) as client:
        async for there in services(client):
            say(shown(there))


async def demonstrate() -> None:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(EtcdServer())
        client = await stack.enter_async_context(Client(server.endpoint))
        processes: dict[str, subprocess.Popen[bytes]] = {}
        for number, name in enumerate(["a", "b", "c"], start=1):
            command = [sys.executable, __file__, "--endpoints", server.endpoint]
            process = subprocess.Popen([*command, "serve", name, f"10.0.0.{number}:80"])
            processes[name] = process
            stack.callback(process.wait)
            stack.callback(process.terminate)
        step = 0
        async for there in services(client):
            say(f"there: {shown(there)}")
            well = [name for name, service in there.items() if service.health == "well"]
            if step == 0 and well == ["a", "b", "c"]:
                processes["b"].send_signal(signal.SIGUSR1)
                step = 1
            elif step == 1 and well == ["a", "c"]:
                processes["c"].kill()
                step = 2
            elif step == 2 and "c" not in there:
                return


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve, or watch who serves.")
    parser.add_argument(
        "--endpoints",
        metavar="HOST:PORT[,HOST:PORT...]",
        type=lambda text: text.split(","),
        default=["127.0.0.1:2379"],
    )
    commands = parser.add_subparsers(dest="command")
    serving = commands.add_parser("serve", help="be in the list until told to end")
    serving.add_argument("name", metavar="NAME")
    serving.add_argument("address", metavar="ADDRESS")
    commands.add_parser("watch", help="print who serves")
    arguments = parser.parse_args()
    if arguments.command == "serve":
        running = run_service(arguments.endpoints, arguments.name, arguments.address)
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
