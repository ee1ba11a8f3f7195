"""What a cache costs: until it has all keys, their memory, and reading one.

python benchmarks/cache.py [--keys 100000]
"""

from __future__ import annotations

import argparse
import gc
import platform
import resource
from time import perf_counter

import anyio

from aioetcd import Client
from aioetcd.testing import EtcdServer

VALUE = b"v" * 64


def resident() -> int:
    """Give the bytes of memory that this process has."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


async def main(keys: int) -> None:
    """Print the figures."""
    names = [f"/k/{number:08}" for number in range(keys)]
    async with EtcdServer() as server, Client(server.endpoint) as client:
        for start in range(0, keys, 10_000):
            await client.kv.put_many(dict.fromkeys(names[start : start + 10_000], VALUE))
        gc.collect()
        before, began = resident(), perf_counter()
        async with client.cache("/k/", prefix=True) as cache:
            took = perf_counter() - began
            gc.collect()
            each = (resident() - before) / keys
            print(f"Python {platform.python_version()}, etcd {server.version}, {keys} keys")
            print(f"until all are there {took:14.2f} s")
            print(f"memory a key {each:21.0f} bytes")
            for name, source in (("a dict", dict.fromkeys(names, VALUE)), ("the cache", cache)):
                for times in (1, 2):  # the first time decodes
                    began = perf_counter()
                    for key in names:
                        source[key]
                    rate = keys / (perf_counter() - began) / 1e6
                    print(f"reads of {name:10} {times:15}. time {rate:6.2f} million/s")
            began = perf_counter()
            put = await client.kv.put(names[0], b"changed")
            await cache.wait_for(put.header.revision)
            print(f"until a write is there {(perf_counter() - began) * 1e3:11.2f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure a cache.")
    parser.add_argument("--keys", type=int, default=100_000, help="how many (100000)")
    anyio.run(main, parser.parse_args().keys)
