"""A player of `coordination.py`, with one of the clients for Python: does what stdin says.

    python benchmarks/players.py CLIENT ENDPOINT TTL

Each line is a command, and answered by a line:

    lock NAME               waits until it has the lock; then nanoseconds of the monotonic clock
    unlock                  nanoseconds before it begins; then it releases the lock
    uncontended NAME COUNT  acquires and releases so many locks; the seconds that each one took

Only what its own client needs is imported: each one is in an environment of its own.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from importlib import import_module
from time import monotonic_ns, perf_counter
from typing import Any


class Player:
    """Locks with one of the clients; one lock at a time."""

    def __init__(self, endpoint: str, ttl: int) -> None:
        self.endpoint = endpoint
        self.host, _, self.port = endpoint.rpartition(":")
        self.ttl = ttl
        self.stack = AsyncExitStack()
        self.client: Any = None
        self.held: Any = None

    async def connect(self) -> None:
        raise NotImplementedError

    async def lock(self, name: str) -> None:
        raise NotImplementedError

    async def unlock(self) -> None:
        await self.held.release()


class Aioetcd(Player):
    async def connect(self) -> None:
        client = import_module("aioetcd").Client(self.endpoint)
        self.client = await self.stack.enter_async_context(client)

    async def lock(self, name: str) -> None:
        self.held = self.client.lock(name, ttl=self.ttl)
        await self.held.acquire()


class AioetcdOnASession(Aioetcd):
    async def connect(self) -> None:
        await super().connect()
        session = self.client.session(ttl=self.ttl, on_lost="ignore")
        self.session = await self.stack.enter_async_context(session)

    async def lock(self, name: str) -> None:
        self.held = self.client.lock(name, session=self.session)
        await self.held.acquire()


class Aetcd(Player):
    async def connect(self) -> None:
        client = import_module("aetcd").Client(host=self.host, port=int(self.port))
        self.client = await self.stack.enter_async_context(client)

    async def lock(self, name: str) -> None:
        self.held = self.client.lock(name.encode(), ttl=self.ttl)
        assert await self.held.acquire(timeout=60)


class Etcd3aio(Player):
    async def connect(self) -> None:
        client = import_module("etcd3aio").Etcd3Client([self.endpoint])
        self.client = await self.stack.enter_async_context(client)

    async def lock(self, name: str) -> None:
        self.held = self.client.lock(name, ttl=self.ttl)
        await self.held.acquire()


class EtcdClientPy(Player):
    async def connect(self) -> None:
        self.module = import_module("etcd_client")
        self.client = self.module.Client([f"http://{self.endpoint}"])

    async def lock(self, name: str) -> None:
        options = self.module.EtcdLockOption(lock_name=name.encode(), ttl=self.ttl)
        self.held = self.client.with_lock(options)
        await self.held.__aenter__()

    async def unlock(self) -> None:
        await self.held.__aexit__(None, None, None)


class Etcd3(Player):
    """It blocks; and so does the fork that is called pyetcd."""

    name = "etcd3"

    async def connect(self) -> None:
        self.client = import_module(self.name).client(host=self.host, port=int(self.port))

    async def lock(self, name: str) -> None:
        self.held = self.client.lock(name, ttl=self.ttl)
        assert self.held.acquire(timeout=60)

    async def unlock(self) -> None:
        assert self.held.release()


class EtcdSdkPython(Etcd3):
    name = "pyetcd"


class Etcd3gw(Etcd3):
    """It does not wait for a lock."""

    async def connect(self) -> None:
        self.client = import_module("etcd3gw").client(host=self.host, port=int(self.port))

    async def lock(self, name: str) -> None:
        self.held = self.client.lock(name, ttl=self.ttl)
        assert self.held.acquire()


PLAYERS: dict[str, type[Player]] = {
    "aioetcd": Aioetcd,
    "aioetcd, session": AioetcdOnASession,
    "aetcd": Aetcd,
    "etcd3aio": Etcd3aio,
    "etcd-client-py": EtcdClientPy,
    "etcd3": Etcd3,
    "etcd-sdk-python": EtcdSdkPython,
    "etcd3gw": Etcd3gw,
}


async def play(player: Player) -> None:
    await player.connect()
    print("ready", flush=True)
    async with player.stack:
        while line := await asyncio.to_thread(sys.stdin.readline):
            match line.split():
                case "lock", name:
                    await player.lock(name)
                    answer = f"{monotonic_ns()}"
                case ["unlock"]:
                    answer = f"{monotonic_ns()}"
                    await player.unlock()
                case "uncontended", name, count:
                    took = []
                    for number in range(int(count)):
                        began = perf_counter()
                        await player.lock(f"{name}/{number}")
                        await player.unlock()
                        took.append(perf_counter() - began)
                    answer = " ".join(map(str, took))
                case _:
                    raise SystemExit(f"there is no such command: {line}")
            print(answer, flush=True)


if __name__ == "__main__":
    asyncio.run(play(PLAYERS[sys.argv[1]](sys.argv[2], int(sys.argv[3]))))
