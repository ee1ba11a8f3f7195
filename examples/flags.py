"""Feature flags that follow the store: typed, applied live, and there when the store is not.

    python examples/flags.py                       for itself, on an etcd of its own
    python examples/flags.py HOST:PORT             follows the flags of an etcd that is there:
                                                   etcdctl put /flags/checkout '{"percent": 25}'

A flag is asked for in memory, at no cost. One that is not there, or that cannot be read, is off,
which is logged once for each such value. While the store cannot be reached the flags stay as they
were; `Flags.stale_for` tells for how long that has been so, for a health check to judge.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from zlib import crc32

from aioetcd import Cache, Client, EtcdError
from aioetcd.testing import EtcdNotFoundError, EtcdServer

PREFIX = "/flags/"
TOO_OLD = 30.0  # seconds without the store after which a health check may say so

logger = logging.getLogger("flags")


@dataclass(frozen=True)
class Flag:
    """For how many of the users something is on."""

    percent: int = 0

    @staticmethod
    def decode(value: bytes) -> Flag:
        """Read one; what makes no sense is off, and is no reason for a request to fail."""
        try:
            flag = Flag(**json.loads(value))
            if not 0 <= flag.percent <= 100:
                raise ValueError(f"percent must be from 0 to 100, not {flag.percent}")
        except (ValueError, TypeError) as error:
            logger.warning("a flag that cannot be read is off: %r: %s", value, error)
            return Flag()
        return flag

    def is_on_for(self, name: str, user: str) -> bool:
        """Whether it is on for a user: always the same ones, and others for another flag."""
        return crc32(f"{name}/{user}".encode()) % 100 < self.percent


class Flags:
    """The flags as this process knows them."""

    def __init__(self, cache: Cache[Flag]) -> None:
        self._cache = cache

    def is_on(self, name: str, user: str) -> bool:
        return self._cache.get(PREFIX + name, Flag()).is_on_for(name, user)

    @property
    def stale_for(self) -> float:
        """Give for how many seconds changes may have been missed, so far."""
        return self._cache.stale_for or 0.0

    async def apply(self) -> AsyncIterator[tuple[str, Flag | None, Flag | None]]:
        """Give what changes, for what is to be done then and not when it is asked for."""
        async for change in self._cache.changes():
            yield change.key.decode().removeprefix(PREFIX), change.old, change.new


async def follow(endpoint: str) -> None:
    async with (
        Client(endpoint) as client,
        client.cache(PREFIX, prefix=True, decode=Flag.decode) as cache,
    ):
        async for name, old, new in Flags(cache).apply():
            print(f"{name}: {old} -> {new}", flush=True)


async def demonstrate() -> None:
    async with EtcdServer() as server, Client(server.endpoint) as client:
        await client.kv.put("/flags/checkout", '{"percent": 100}')
        async with client.cache(PREFIX, prefix=True, decode=Flag.decode) as cache:
            flags = Flags(cache)
            print("checkout:", flags.is_on("checkout", "ada"))
            print("one that is not there:", flags.is_on("search", "ada"))

            for text in ('{"percent": 0}', "no flag at all", '{"percent": 100}'):
                put = await client.kv.put("/flags/checkout", text)
                await cache.wait_for(put.header.revision)
                print(f"checkout after {text}:", flags.is_on("checkout", "ada"))

            await server.stop()
            while not flags.stale_for:
                await asyncio.sleep(0.01)
            print("checkout without the store:", flags.is_on("checkout", "ada"))
            print("well enough:", flags.stale_for < TOO_OLD)

            await server.start()
            put = await client.kv.put("/flags/checkout", '{"percent": 0}')
            await cache.wait_for(put.header.revision)
            print("checkout when the store is back:", flags.is_on("checkout", "ada"))
            while flags.stale_for:
                await asyncio.sleep(0.01)
            print("up to date:", not flags.stale_for)


if __name__ == "__main__":
    try:
        asyncio.run(follow(sys.argv[1]) if len(sys.argv) > 1 else demonstrate())
    except (EtcdNotFoundError, EtcdError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
