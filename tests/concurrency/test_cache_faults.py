"""Caches whose server goes away, and whose history does."""

from __future__ import annotations

import random

import pytest

from aioetcd import Client
from aioetcd.testing import EtcdServer, FaultProxy
from tests.concurrency.test_cache import PREFIX, shown, stored, told
from tests.waiting import until


async def test_w6_compacted_while_cut_off(client: Client, server: EtcdServer) -> None:
    """What came, changed and went meanwhile is told as the difference, each key once."""
    for key in ("changed", "deleted", "made anew", "same"):
        await client.kv.put(PREFIX + key, "1")
    async with (
        FaultProxy(server.endpoint) as proxy,
        Client(proxy.endpoint) as through,
        through.cache(PREFIX, prefix=True) as cache,
        told(cache) as follower,
    ):
        proxy.refuse()
        proxy.cut()
        for value in ("2", "3"):
            await client.kv.put(PREFIX + "changed", value)
        await client.kv.put(PREFIX + "came and went", "1")
        for key in ("came and went", "deleted", "made anew"):
            await client.kv.delete(PREFIX + key)
        await client.kv.put(PREFIX + "made anew", "1")
        last = (await client.kv.put(PREFIX + "new", "1")).header.revision
        await client.kv.compact(last)
        await proxy.accept()
        await cache.wait_for(last)
        assert shown(cache) == await stored(client)
        await until(lambda: follower.kvs == shown(cache))
        told_of = {change.key.decode().removeprefix(PREFIX): change for change in follower.changes}
        assert sorted(told_of) == ["changed", "deleted", "made anew", "new"]
        assert len(follower.changes) == 4
        assert (told_of["changed"].old, told_of["changed"].new) == (b"1", b"3")
        assert told_of["deleted"].new_kv is None
        anew = told_of["made anew"]
        assert anew.old_kv is not None
        assert anew.new_kv is not None
        assert anew.old_kv.create_revision < anew.new_kv.create_revision


@pytest.mark.fault("W8: a server that is killed three times")
async def test_w8_the_server_is_killed(rng: random.Random) -> None:
    """It is back with what it had: every key is compared."""
    keys = [f"{PREFIX}{number}" for number in range(20)]
    async with (
        EtcdServer() as server,
        Client(server.endpoint) as client,
        client.cache(PREFIX, prefix=True) as cache,
        told(cache) as follower,
    ):
        for _ in range(3):
            for number in range(50):
                key = rng.choice(keys)
                await (client.kv.delete(key) if number % 3 == 0 else client.kv.put(key, "v"))
            await server.kill()
            await until(lambda: not cache.is_connected)
            await server.start()
            await client.kv.put(rng.choice(keys), "after")
            await cache.sync()
            assert shown(cache) == await stored(client)
            # Where etcd cannot tell how far a watch is, all is listed again, and it connects anew.
            await until(lambda: cache.is_connected)
        await until(lambda: follower.kvs == shown(cache))
        assert len(follower.changes) > len(keys)
