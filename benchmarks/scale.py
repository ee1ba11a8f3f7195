"""How what it costs grows: with callers, keys in a scan, watches, leases.

    python benchmarks/scale.py [--only NAME ...] [--most N] [--write docs/benchmarks]

README.md beside this file says what is measured. ``--write`` makes the plots of a folder, by
matplotlib.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import anyio
from plots import draw

from aioetcd import Client, Watch
from aioetcd.testing import EtcdServer

ROUNDS = 3
VALUE = b"v" * 64
SECONDS = 1.0
"""How long callers call."""
TTL = 12
"""Seconds; leases are renewed each third of it."""

Figures = dict[str, float]
"""By what is drawn where, "pane|line": what was measured."""


def memory() -> float:
    """The most memory that this process had (Linux), in KiB."""
    # Not `getrusage`, whose figure begins with what the parent had.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return float(line.split()[1])
    raise RuntimeError("no VmHWM in /proc/self/status")


async def callers(client: Client, number: int) -> Figures:
    """So many callers read keys, call after call."""
    figures: Figures = {}
    views = {"plain": client.kv, "batched": client.kv.batched()}
    for seconds in (SECONDS / 5, SECONDS):  # the first ones warm up
        for name, kv in views.items():
            done = 0
            cpu, began = process_time(), perf_counter()

            async def calls(caller: int) -> None:
                nonlocal done
                while perf_counter() - began < seconds:  # noqa: B023
                    await kv.get(f"/k/{(caller + done) % 1000:08}")  # noqa: B023
                    done += 1

            await asyncio.gather(*map(calls, range(number)))
            figures[f"gets a second|{name}"] = done / (perf_counter() - began)
            figures[f"CPU a get, microseconds|{name}"] = (process_time() - cpu) / done * 1e6
    return figures


async def keys(client: Client, number: int) -> Figures:
    """A scan reads so many keys."""
    # Those of a larger scan stand behind those of this one.
    first, end = "/s/", f"/s/{number:08}"
    before, count = memory(), 0
    cpu, began = process_time(), perf_counter()
    async for _ in client.kv.scan(first, range_end=end):
        count += 1
    seconds, cpu = perf_counter() - began, process_time() - cpu
    assert count == number
    return {
        "a key, microseconds|time": seconds / number * 1e6,
        "a key, microseconds|CPU": cpu / number * 1e6,
        "memory more than before, MiB|at the most": (memory() - before) / 1024,
    }


async def watches(client: Client, number: int) -> Figures:
    """So many watches on one client: each on a key of its own, then as many on a shared one."""

    async def enter(each: list[Watch]) -> None:
        await asyncio.gather(*(watch.__aenter__() for watch in each))

    own = [client.watch(f"/w/{one:08}") for one in range(number)]
    before, opening = memory(), process_time()
    await enter(own)
    opening, used = process_time() - opening, memory() - before
    # An event for one of them, beside puts that nobody watches.
    puts, one, alone = 600, 0.0, 0.0
    for put in range(puts):
        at = put * 7919 % number
        began = process_time()
        await client.kv.put(f"/w/{at:08}", VALUE)
        await anext(own[at])
        middle = process_time()
        await client.kv.put(f"/x/{at:08}", VALUE)
        one, alone = one + middle - began, alone + process_time() - middle
    # An event for all of them.
    shared = [client.watch("/w") for _ in range(number)]
    await enter(shared)
    all_puts = max(3, min(200, 20_000 // number))
    each = process_time()
    for _ in range(all_puts):
        await client.kv.put("/w", VALUE)
        for watch in shared:
            await anext(watch)
    each = process_time() - each - alone * all_puts / puts
    for watch in own + shared:
        await watch.aclose()
    return {
        "CPU, microseconds|to open a watch": opening / number * 1e6,
        "CPU, microseconds|an event for one of them": (one - alone) / puts * 1e6,
        "CPU, microseconds|an event for all of them, each": each / all_puts / number * 1e6,
        "memory a watch, KiB|": used / number,
    }


async def leases(client: Client, number: int) -> Figures:
    """So many leases on one client, kept alive."""

    async def of_all(make: Callable[[int], Awaitable[object]]) -> None:
        for first in range(0, number, 200):
            await asyncio.gather(*map(make, range(first, min(first + 200, number))))

    ids: list[int] = []

    async def grant(_: int) -> None:
        ids.append((await client.lease.grant(TTL)).id)

    await of_all(grant)
    before = memory()
    kept = [client.lease.keep_alive(lease_id) for lease_id in ids]
    for keep_alive in kept:
        await keep_alive.__aenter__()
    used = memory() - before
    await anyio.sleep(TTL / 3)  # past the first renewals, which all go out at once
    cpu, began = process_time(), perf_counter()
    await anyio.sleep(TTL)
    cpu, seconds = process_time() - cpu, perf_counter() - began
    soonest = client.stats().soonest_expiry
    assert soonest is not None
    assert soonest > TTL / 3, "they are not renewed in time"
    for keep_alive in kept:
        await keep_alive.aclose()
    await of_all(lambda at: client.lease.revoke(ids[at]))
    return {
        "CPU a second, milliseconds|": cpu / seconds * 1e3,
        "CPU a lease in a third of its time, microseconds|": cpu / seconds * TTL / 3 / number * 1e6,
        "memory a lease, KiB|": used / number,
    }


PARTS: dict[str, tuple[Callable[[Client, int], Awaitable[Figures]], tuple[int, ...], str]] = {
    "callers": (callers, (1, 4, 16, 64, 256, 1000, 2000), "callers at a time"),
    "keys": (keys, (10, 100, 1000, 10_000, 100_000, 1_000_000), "keys in the scan"),
    "watches": (watches, (1, 10, 100, 1000, 10_000), "watches of the client"),
    "leases": (leases, (1, 10, 100, 1000, 10_000), "leases kept alive"),
}


async def fill(server: EtcdServer, most: int) -> None:
    """Write what is read."""
    async with Client(server.endpoint, timeout=60) as client:
        await client.kv.put_many({f"/k/{number:08}": VALUE for number in range(1000)})
        for first in range(0, most, 100_000):
            numbers = range(first, min(first + 100_000, most))
            await client.kv.put_many({f"/s/{number:08}": VALUE for number in numbers})


async def work(name: str, size: int, endpoint: str) -> None:
    """Measure once, in a process of its own, and print it as JSON."""
    async with Client(endpoint, timeout=60) as client:
        await client.kv.get("x")
        print(json.dumps(await PARTS[name][0](client, size)))


async def measure(name: str, most: int) -> tuple[str, dict[int, Figures]]:
    """Do a part, on an etcd of its own, in turns of all sizes."""
    sizes = [size for size in PARTS[name][1] if size <= most]
    async with EtcdServer(args=["--quota-backend-bytes=4294967296"]) as server:
        await fill(server, sizes[-1] if name == "keys" else 0)
        rounds: dict[int, list[Figures]] = {size: [] for size in sizes}
        for _ in range(ROUNDS):
            for size in sizes:
                command = [sys.executable, __file__, "--work", name, str(size), server.endpoint]
                done = await anyio.run_process(command, stderr=None)
                rounds[size].append(json.loads(done.stdout))
        what = (
            f"Python {platform.python_version()}, etcd {server.version}, {os.cpu_count()} cores, "
            f"{datetime.now(UTC):%Y-%m-%d}; median of {ROUNDS} rounds"
        )
    medians = {
        size: {name: median(each[name] for each in done) for name in done[0]}
        for size, done in rounds.items()
    }
    return what, medians


def report(name: str, what: str, medians: dict[int, Figures]) -> None:
    """Print a table."""
    print(f"{name}: {what}")
    for figure in next(iter(medians.values())):
        shown = "".join(f"{each[figure]:12,.1f}" for each in medians.values())
        print(f"  {figure.replace('|', ': ').removesuffix(': '):58}{shown}")
    print(f"  {PARTS[name][2]:58}" + "".join(f"{size:12,}" for size in medians))


def plot(name: str, what: str, medians: dict[int, Figures], folder: Path) -> None:
    """Draw a part."""
    panes: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for figure in next(iter(medians.values())):
        label, _, line = figure.partition("|")
        # What is too small to be told is left out.
        points = [(float(size), each[figure]) for size, each in medians.items() if each[figure] > 0]
        panes.setdefault(label, {})[line] = points
    draw(folder / f"scale-{name}.svg", f"{name}: {what}", PARTS[name][2], panes)


async def main(arguments: argparse.Namespace) -> None:
    """Measure, print, draw."""
    if arguments.work is not None:
        name, size, endpoint = arguments.work
        await work(name, int(size), endpoint)
        return
    for name in arguments.only or PARTS:
        what, medians = await measure(name, arguments.most)
        report(name, what, medians)
        if arguments.write is not None:
            plot(name, what, medians, arguments.write)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="See how costs grow.")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[], help="these alone")
    parser.add_argument("--most", type=int, default=10**6, help="sizes up to this one, from 10 on")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="draw plots there")
    anyio.run(main, parser.parse_args())
