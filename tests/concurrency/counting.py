"""What a lock protects, in the tests of exclusion; and processes that hold one, and are killed.

    python -m tests.concurrency.counting count ENDPOINT HOLDER SECTIONS FILE
    python -m tests.concurrency.counting hold ENDPOINT TTL

The first counts until it had so many turns and its stdin is closed, and writes what it did to a
file; it says "begun" after its first turn. The second holds one of each kind, says with which
tokens, and stays.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import anyio

from aioetcd import Client, EtcdError, Lock, Op
from aioetcd.testing import EtcdServer, FaultProxy, Recorder
from aioetcd.testing.checkers import assert_clean, check_fencing, check_lock_holds
from aioetcd.testing.history import GuardedTxn, LockHold
from tests.concurrency.locks import EXCLUSIVE, NAME, one_of
from tests.harness import writes_through


class Counter:
    """What a lock protects: a number at the server, and the history of who added to it."""

    def __init__(self) -> None:
        self.recorder = Recorder()
        self.added = 0

    async def add(self, client: Client, lock: Lock, holder: str) -> None:
        """Hold the lock for as long as it takes to add one, surely once."""
        async with lock:
            acquired_ns = time.monotonic_ns()
            try:
                await self._add(client, lock)
            finally:
                now = time.monotonic_ns()
                self.recorder.add(LockHold(NAME, holder, lock.revision, acquired_ns, now))

    async def _add(self, client: Client, lock: Lock) -> None:
        number, _ = await self._read(client)
        while await self._read(client) != (number + 1, lock.revision):
            # While the lock is held a second put of the same changes nothing.
            value = f"{number + 1} {lock.revision}"
            try:
                result = await client.kv.txn(
                    compare=[lock.is_owner()], success=[Op.put("counter", value)]
                )
            except EtcdError:
                continue
            assert result.succeeded
            self.recorder.add(GuardedTxn(NAME, lock.revision, result.header.revision))
        self.added += 1

    async def _read(self, client: Client) -> tuple[int, int]:
        number, _, token = ((await client.kv.get("counter")).value or b"0 0").partition(b" ")
        return int(number), int(token)

    async def check(self, client: Client) -> None:
        """Nobody was in anybody's way, and the number is right."""
        assert (await self._read(client))[0] == self.added
        holds = self.recorder.of(LockHold)
        assert len(holds) == self.added
        assert_clean([*check_lock_holds(holds), *check_fencing(self.recorder.of(GuardedTxn))])


Weather = Callable[[EtcdServer, FaultProxy, random.Random, Callable[[], bool]], Awaitable[int]]


async def calm(
    server: EtcdServer, proxy: FaultProxy, rng: random.Random, over: Callable[[], bool]
) -> int:
    """Nothing happens."""
    return 0


async def cuts(
    server: EtcdServer, proxy: FaultProxy, rng: random.Random, over: Callable[[], bool]
) -> int:
    """All connections are cut, again and again."""
    happened = 0
    while not over() and happened < 8:
        await anyio.sleep(rng.uniform(0.05, 0.25))
        happened += proxy.cut() > 0
    return happened


async def kills(
    server: EtcdServer, proxy: FaultProxy, rng: random.Random, over: Callable[[], bool]
) -> int:
    """The server crashes and comes back with its data, three times."""
    happened = 0
    while not over() and happened < 3:
        await anyio.sleep(rng.uniform(0.1, 0.4))
        pid = server.pid
        await (server.kill() if writes_through(server) else server.stop())
        await server.start()
        happened += server.pid != pid
    return happened


async def _count(endpoint: str, holder: str, sections: int, path: str) -> None:
    counter = Counter()
    async with Client(endpoint) as client:
        is_over = asyncio.ensure_future(asyncio.to_thread(sys.stdin.read))
        while counter.added < sections or not is_over.done():
            await counter.add(client, client.lock(NAME, ttl=60), holder)
            if counter.added == 1:
                _say("begun")
        await is_over
    counter.recorder.dump(path)


async def _hold(endpoint: str, ttl: int) -> None:
    async with Client(endpoint) as client, AsyncExitStack() as stack:
        tokens = {}
        for kind in EXCLUSIVE:
            held = await stack.enter_async_context(one_of(kind, client, f"/{kind}", ttl=ttl))
            tokens[kind] = held.revision
        _say(json.dumps(tokens))
        await anyio.sleep_forever()


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    match sys.argv[1:]:
        case "count", endpoint, holder, sections, path:
            asyncio.run(_count(endpoint, holder, int(sections), path))
        case "hold", endpoint, ttl:
            asyncio.run(_hold(endpoint, int(ttl)))
        case _:
            sys.exit(__doc__)
