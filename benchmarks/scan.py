"""How fast a scan is, and what it holds: beside a bare stub and beside Go's client, in turns.

    python benchmarks/scan.py [--keys 200000] [--rounds 5]

The stub and Go's client read by pages of 1000 (Go's where there is a ``go`` to build it with). The
keys change while they are read.
"""

from __future__ import annotations

import argparse
import gc
import platform
import resource
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import anyio
import grpc.aio

from aioetcd import Client
from aioetcd._proto import rpc_pb2, rpc_pb2_grpc
from aioetcd._transport.transport import channel_options
from aioetcd.testing import EtcdServer

PAGE = 1000
VALUE = b"v" * 64


async def bare(stub: rpc_pb2_grpc.KVStub, count: int) -> None:
    """Read page after page, as a program would that uses the stub by itself."""
    key, end, revision, read = b"/k/", b"/k0", 0, 0
    while True:
        request = rpc_pb2.RangeRequest(key=key, range_end=end, limit=PAGE, revision=revision)
        page = await stub.Range(request, timeout=10)
        revision = revision or page.header.revision
        kvs = [
            (kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)
            for kv in page.kvs
        ]
        read += len(kvs)
        if not page.more:
            break
        key = kvs[-1][0] + b"\0"
    assert read == count


async def scan(client: Client, count: int, page_size: int | None = None) -> None:
    """Read the same."""
    read = 0
    async for _ in client.kv.scan("/k/", prefix=True, page_size=page_size):
        read += 1
    assert read == count


async def go(program: str, endpoint: str, count: int) -> float:
    """Read the same with Go's client; gives the seconds that it took without starting."""
    done = await anyio.run_process([program, "scan", endpoint, "/k/", str(PAGE)])
    read, seconds = done.stdout.split()
    assert int(read) == count
    return float(seconds)


def go_program() -> str | None:
    """Build the program of Go's; None where that cannot be."""
    if shutil.which("go") is None:
        return None
    script = Path(__file__).parent.parent / "scripts" / "get_go_program.sh"
    command = [str(script), "benchmarks/go"]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.decode().strip()


def resident() -> int:
    """Give the bytes of memory that this process has."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


async def main(keys: int, rounds: int) -> None:
    """Print the table."""
    async with EtcdServer() as server, Client(server.endpoint) as client:
        names = [f"/k/{number:08}" for number in range(keys)]
        for start in range(0, keys, 10_000):
            await client.kv.put_many(dict.fromkeys(names[start : start + 10_000], VALUE))
        options = channel_options(keepalive_time=10.0, keepalive_timeout=5.0)
        async with grpc.aio.insecure_channel(server.endpoint, options=options) as channel:
            stub = rpc_pb2_grpc.KVStub(channel)
            ways: dict[str, Callable[[], Awaitable[float | None]]] = {
                "bare stub, pages of 1000": partial(bare, stub, keys),
                "scan": partial(scan, client, keys),
                "scan, pages of 1000": partial(scan, client, keys, PAGE),
            }
            if (program := go_program()) is not None:
                ways["Go's client, pages of 1000"] = partial(go, program, server.endpoint, keys)
            stop = False

            async def change() -> None:
                number = 0
                while not stop:
                    number = (number + 7919) % keys
                    await client.kv.put(names[number], b"changed")
                    await anyio.sleep(0.01)

            took: dict[str, list[float]] = {name: [] for name in ways}
            grew: dict[str, int] = dict.fromkeys(ways, 0)
            async with anyio.create_task_group() as group:
                group.start_soon(change)
                for number in range(-1, rounds):
                    for name, read in ways.items():
                        gc.collect()
                        before = highest = resident()
                        is_done = anyio.Event()

                        async def look() -> None:
                            nonlocal highest
                            while not is_done.is_set():  # noqa: B023
                                highest = max(highest, resident())
                                await anyio.sleep(0.02)

                        group.start_soon(look)
                        began = perf_counter()
                        seconds = await read()
                        if number >= 0:  # the one before warms up
                            took[name].append(seconds or perf_counter() - began)
                            grew[name] = max(grew[name], highest - before)
                        is_done.set()
                stop = True
    print(
        f"Python {platform.python_version()}, etcd {server.version}, {keys} keys, {rounds} rounds"
    )
    first = median(took["bare stub, pages of 1000"])
    for name, times in took.items():
        rate = keys / median(times)
        ratio = first / median(times)
        more = "" if name.startswith("Go") else f"{grew[name] / 2**20:9.1f} MiB more"
        print(f"{name:27}{rate:10.0f} keys/s {ratio:6.2f} x bare{more}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compare a scan with a bare stub that pages.")
    parser.add_argument("--keys", type=int, default=200_000, help="how many (200000)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (5)")
    arguments = parser.parse_args()
    anyio.run(main, arguments.keys, arguments.rounds)
