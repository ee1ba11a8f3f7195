"""How long before the store drops a lease's keys its owner is told of the loss.

    python benchmarks/lease_lead.py [--sessions N] [--ttl SECONDS] [--rounds N] [--latency SECONDS]

Sessions of one client are begun at random moments, then its connection is cut off in silence
(nothing arrives any more, either way). Each session's lead is the time from the client's signal to
the DELETE event at a client that is not cut off. All of them must be positive. The server looks for
leases to drop every half second, which is most of what is seen here; what is left of the smallest
lead is the renewal's way to the server, and the server's own work.
"""

from __future__ import annotations

import argparse
import random
from contextlib import AsyncExitStack
from statistics import median
from time import monotonic

import anyio

from aioetcd import Client, EventType, Session
from aioetcd.testing import EtcdServer, FaultProxy


async def measure(*, sessions: int, ttl: int, latency: float = 0.0, seed: int = 0) -> list[float]:
    """Cut off so many sessions at once; give the lead of each in seconds, the smallest first.

    Args:
        sessions: How many.
        ttl: Their time to live in seconds.
        latency: How long the way to the server takes, one way, in seconds.
        seed: Decides when each session begins.
    """
    moments = random.Random(seed)
    told: dict[int, float] = {}
    deleted: dict[int, float] = {}
    async with (
        EtcdServer(args=["--heartbeat-interval=50", "--election-timeout=250"]) as server,
        FaultProxy(server.endpoint) as proxy,
        Client(server.endpoint) as oracle,
        Client(proxy.endpoint) as client,
        AsyncExitStack() as stack,
        oracle.watch("session/", prefix=True) as watch,
        anyio.create_task_group() as tasks,
    ):
        proxy.delay(latency)

        async def wait_told(session: Session) -> None:
            await session.wait_lost()
            told[session.lease_id] = monotonic()

        async def begin() -> None:
            await anyio.sleep(moments.uniform(0, ttl))  # their renewals are not in step
            session = client.session(ttl=ttl, on_lost="ignore")
            await stack.enter_async_context(session)
            await client.kv.put(f"session/{session.lease_id}", "", lease=session.lease_id)
            tasks.start_soon(wait_told, session)

        async with anyio.create_task_group() as beginning:
            for _ in range(sessions):
                beginning.start_soon(begin)
        proxy.blackhole()
        with anyio.fail_after(2 * ttl + 10):
            async for event in watch:
                if event.type is EventType.DELETE:
                    deleted[int(event.kv.key.partition(b"/")[2])] = monotonic()
                if len(deleted) == sessions:
                    break
            while len(told) < sessions:
                await anyio.sleep(0.01)
        assert proxy.bytes_swallowed > 0
    return sorted(deleted[lease_id] - told[lease_id] for lease_id in deleted)


async def main(sessions: int, ttl: int, rounds: int, latency: float) -> None:
    worst = []
    for number in range(rounds):
        leads = await measure(sessions=sessions, ttl=ttl, latency=latency, seed=number)
        worst.append(leads[0])
        print(
            f"round {number + 1}: {len(leads)} sessions of {ttl} s; lead in seconds: "
            f"smallest {leads[0]:.3f}, median {median(leads):.3f}, largest {leads[-1]:.3f}"
        )
    print(f"smallest of all: {min(worst):.3f} s")
    if min(worst) <= 0:
        raise SystemExit("a session was told after the store had dropped its key")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sessions", type=int, default=50)
    parser.add_argument("--ttl", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency", type=float, default=0.0)
    arguments = parser.parse_args()
    anyio.run(main, arguments.sessions, arguments.ttl, arguments.rounds, arguments.latency)
