"""Caches: what they show, what they tell, and what faults do to them."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from aioetcd import (
    Cache,
    CacheChanges,
    Change,
    Client,
    ClientClosedError,
    DeadlineExceededError,
    KeyValue,
    NoEndpointError,
    Op,
    PermissionDeniedError,
    PermissionType,
)
from aioetcd.testing import EtcdServer, FaultProxy
from tests.concurrency.locks import cancel_after, check_told_anew
from tests.waiting import until

PREFIX = "/config/"


async def stored(client: Client) -> dict[bytes, KeyValue]:
    """What the store has."""
    return {kv.key: kv for kv in (await client.kv.get(PREFIX, prefix=True)).kvs}


def shown(cache: Cache[Any]) -> dict[bytes, KeyValue]:
    """What the cache has."""
    return {key: kv for key in cache if (kv := cache.kv(key)) is not None}


class Told:
    """Follows the changes, and applies them."""

    def __init__(self, cache: Cache[bytes]) -> None:
        self.kvs = shown(cache)
        self.changes: list[Change[bytes]] = []
        self._source: CacheChanges[bytes] = cache.changes()

    async def follow(self) -> None:
        """Apply each change; each begins where the one before has left its key."""
        async for change in self._source:
            assert self.kvs.get(change.key) == change.old_kv
            assert change.old_kv != change.new_kv
            if change.new_kv is None:
                del self.kvs[change.key]
            else:
                self.kvs[change.key] = change.new_kv
            self.changes.append(change)


@asynccontextmanager
async def told(cache: Cache[bytes]) -> AsyncIterator[Told]:
    """Follow the changes for a block."""
    follower = Told(cache)
    async with anyio.create_task_group() as group:
        group.start_soon(follower.follow)
        yield follower
        group.cancel_scope.cancel()


async def test_a_mapping(client: Client) -> None:
    """It is what the store has below the prefix, decoded when it is read."""
    await client.kv.put_many({"/config/a": "1", "/config/b": "2", "/other": "3"})
    async with client.cache(PREFIX, prefix=True, decode=json.loads) as cache:
        assert isinstance(cache, Mapping)
        assert cache == {b"/config/a": 1, b"/config/b": 2}
        assert (cache["/config/a"], cache[b"/config/b"], len(cache)) == (1, 2, 2)
        keys: list[Any] = ["/config/a", b"/other", 7]
        assert [key in cache for key in keys] == [True, False, False]
        assert (cache.get("/other"), cache.get("/other", "none")) == (None, "none")
        with pytest.raises(KeyError):
            cache["/other"]
        kv = cache.kv("/config/b")
        assert kv is not None
        assert (kv.text, kv.version) == ("2", 1)
        with pytest.raises(TypeError, match=r"^key must be"):
            cache.kv(7)  # type: ignore[arg-type]
        assert repr(cache) == f"<Cache b'/config/': 2 keys at revision {cache.revision}>"
        assert cache.is_connected
        assert cache.stale_for is None
        await client.kv.put("/config/c", "no json")
        await cache.sync()
        with pytest.raises(json.JSONDecodeError):
            cache["/config/c"]
        await client.kv.put("/config/c", "[3]")
        await cache.sync()
        assert cache["/config/c"] == [3]
    assert cache["/config/c"] == [3]
    assert not cache.is_connected
    calls = client.stats().calls
    with pytest.raises(RuntimeError, match="inside its block"):
        await cache.sync()
    assert client.stats().calls == calls
    with pytest.raises(RuntimeError, match="inside its block"):
        cache.changes()
    with pytest.raises(RuntimeError, match="entered once"):
        await cache.__aenter__()


async def test_a_single_key(client: Client) -> None:
    """It need not be there."""
    async with client.cache("/config/a") as cache:
        assert dict(cache) == {}
        await client.kv.put("/config/ab", "another")
        put = await client.kv.put("/config/a", "1")
        await cache.wait_for(put.header.revision)
        assert dict(cache) == {b"/config/a": b"1"}


async def test_waiting_for_a_revision(client: Client) -> None:
    """Also for one of a write elsewhere, which no event tells."""
    async with client.cache(PREFIX, prefix=True) as cache:
        put = await client.kv.put("/config/a", "1")
        await cache.wait_for(put.header.revision)
        assert cache["/config/a"] == b"1"
        await cache.wait_for(1)
        elsewhere = await client.kv.put("/other", "1")
        await cache.wait_for(elsewhere.header.revision)
        assert cache.revision == elsewhere.header.revision
        with pytest.raises(DeadlineExceededError, match="did not reach") as caught:
            await cache.wait_for(elsewhere.header.revision + 100, timeout=0.3)
        assert caught.value.timeout == 0.3
        with pytest.raises(ValueError, match=r"^revision must"):
            await cache.wait_for(0)


async def test_whole_revisions(client: Client) -> None:
    """Half of a transaction is never shown."""
    async with client.cache(PREFIX, prefix=True) as cache:
        seen = 0

        async def write() -> None:
            for number in range(100):
                await client.kv.txn(
                    success=[Op.put(f"/config/{key}", str(number)) for key in "abcdef"]
                )

        async with anyio.create_task_group() as group:
            group.start_soon(write)
            with anyio.fail_after(30):
                while cache.get("/config/a") != b"99":
                    assert len(set(cache.values())) <= 1
                    seen += 1
                    await anyio.lowlevel.checkpoint()
        assert seen > 1


async def test_changes(client: Client) -> None:
    """Each with what was before; nothing where nothing is another."""
    await client.kv.put("/config/a", "1")
    async with client.cache(PREFIX, prefix=True, decode=int) as cache:
        changes, others = cache.changes(), cache.changes()
        await client.kv.put("/config/a", "2")
        await client.kv.put("/config/b", "3")
        await client.kv.delete("/config/a")
        got: dict[bytes, int | None] = {b"/config/a": 1}
        while got != {b"/config/a": None, b"/config/b": 3}:
            change = await anext(changes)
            assert change.old == got.get(change.key)
            got[change.key] = change.new
        await cache.sync()
        # Who comes late is told the latest of each key, beside what it was at first.
        late = {change.key: change for change in [await anext(others), await anext(others)]}
        assert (late[b"/config/a"].old, late[b"/config/a"].new) == (1, None)
        assert (late[b"/config/b"].old, late[b"/config/b"].new) == (None, 3)
        waiting = asyncio.ensure_future(anext(others))
        await client.kv.put("/config/c", "4")
        change = await waiting
        assert (change.key, change.old, change.new) == (b"/config/c", None, 4)
    with pytest.raises(StopAsyncIteration):
        await anext(others)


async def test_what_comes_and_goes_again_is_no_change(client: Client) -> None:
    """For who is too slow to see it, with what it was, or never was."""
    async with client.cache(PREFIX, prefix=True) as cache:
        changes = cache.changes()
        await client.kv.put("/config/a", "1")
        await client.kv.delete("/config/a")
        await client.kv.put("/config/b", "2")
        await cache.sync()
        assert (await anext(changes)).key == b"/config/b"


@pytest.mark.fault("W1")
async def test_w1_cuts_and_compactions(
    client: Client, server: EtcdServer, rng: random.Random
) -> None:
    """Whatever breaks, the changes applied to the first listing give what the store has."""
    keys = [f"/config/{number}" for number in range(20)]
    await client.kv.put_many(dict.fromkeys(keys, "0"))
    async with (
        FaultProxy(server.endpoint) as proxy,
        Client(proxy.endpoint) as through,
        through.cache(PREFIX, prefix=True) as cache,
        told(cache) as fast,
        told(cache) as second,
    ):
        slow = Told(cache)
        for number in range(400):
            key = rng.choice(keys)
            change = (
                client.kv.delete(key) if rng.random() < 0.3 else client.kv.put(key, f"{number}")
            )
            last = (await change).header.revision
            if rng.random() < 0.03:
                proxy.cut()
            if rng.random() < 0.02:
                proxy.refuse()
                proxy.cut()
                await client.kv.delete(rng.choice(keys))
                last = (await client.kv.put(key, f"{number}!")).header.revision
                await client.kv.compact(last)
                await proxy.accept()
        assert proxy.cuts > 0
        await cache.wait_for(last)
        await cache.sync()
        expected = await stored(client)
        assert shown(cache) == expected
        await until(lambda: fast.kvs == expected and second.kvs == expected)
        async with anyio.create_task_group() as group:
            group.start_soon(slow.follow)
            await until(lambda: slow.kvs == expected)
            group.cancel_scope.cancel()
        assert len(slow.changes) <= len(keys)
        assert len(fast.changes) > len(keys)


async def test_how_old_it_is(client: Client, server: EtcdServer) -> None:
    """While the store is out of reach, it says since when; what it has stays there."""
    await client.kv.put("/config/a", "1")
    async with (
        FaultProxy(server.endpoint) as proxy,
        Client(proxy.endpoint, timeout=1) as through,
        through.cache(PREFIX, prefix=True) as cache,
    ):
        proxy.refuse()
        proxy.cut()
        await until(lambda: not cache.is_connected)
        first = cache.stale_for
        assert first is not None
        assert cache["/config/a"] == b"1"
        await anyio.sleep(0.05)
        now = cache.stale_for
        assert now is not None
        assert first < now < 30
        with pytest.raises(NoEndpointError):
            await cache.sync(timeout=0.2)
        put = await client.kv.put("/config/a", "2")
        await proxy.accept()
        await cache.wait_for(put.header.revision, timeout=10)
        await until(lambda: cache.is_connected)
        assert cache["/config/a"] == b"2"
        assert cache.stale_for is None


async def test_what_cannot_be_read(server: EtcdServer) -> None:
    """Entering fails, by cause, within the client's time."""
    async with Client("127.0.0.1:1", timeout=0.3) as client:
        cache = client.cache(PREFIX, prefix=True)
        with pytest.raises(NoEndpointError):
            await cache.__aenter__()
    async with Client(server.endpoint) as client:
        await client.ping()
    with pytest.raises(ClientClosedError):
        await client.cache(PREFIX, prefix=True).__aenter__()


async def test_a_client_that_closes(server: EtcdServer) -> None:
    """All that waits is told; what was read stays there."""
    async with Client(server.endpoint) as client:
        await client.kv.put("/config/a", "1")
        async with client.cache(PREFIX, prefix=True) as cache:
            waiting = asyncio.ensure_future(cache.wait_for(10**9, timeout=None))
            following = asyncio.ensure_future(anext(cache.changes()))
            await anyio.lowlevel.checkpoint()
            await client.aclose()
            for task in (waiting, following):
                with pytest.raises(ClientClosedError):
                    await task
            assert cache["/config/a"] == b"1"
            assert not cache.is_connected


@pytest.mark.outside("permissions are for keys of the whole store")
async def test_a_permission_that_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    """It is told to all that waits, and logged; the cache says how old it is."""
    auth = ("root", "secret")
    async with (
        EtcdServer(quick=True, args=["--bcrypt-cost=4"], auth=auth) as server,
        Client(server.endpoint, username=auth[0], password=auth[1]) as root,
    ):
        await root.auth.add_user("app", "pw")
        await root.auth.add_role("app")
        await root.auth.grant_role("app", "app")
        await root.auth.grant_permission("app", PermissionType.READ, PREFIX, prefix=True)
        async with (
            FaultProxy(server.endpoint) as proxy,
            Client(proxy.endpoint, username="app", password="pw") as client,
            client.cache(PREFIX, prefix=True) as cache,
        ):
            changes = cache.changes()
            await root.auth.grant_permission("app", PermissionType.READ, PREFIX)
            await root.auth.revoke_permission("app", PREFIX, prefix=True)
            await cache.sync()  # which has nothing counted
            proxy.cut()
            with anyio.fail_after(10), pytest.raises(PermissionDeniedError):
                await anext(changes)
            with pytest.raises(PermissionDeniedError):
                await cache.wait_for(10**9)
            await check_told_anew(cache.sync)
            assert "is kept up no more" in caplog.text
            assert cache.stale_for is not None


async def test_a_loop_that_waits(client: Client) -> None:
    """It goes over what was there when it began."""
    await client.kv.put_many({"/config/a": "1", "/config/b": "2"})
    async with client.cache(PREFIX, prefix=True) as cache:
        seen = {}
        for key, value in cache.items():
            await client.kv.delete(PREFIX, prefix=True)
            await cache.sync()
            seen[key] = value
        assert seen == {b"/config/a": b"1", b"/config/b": b"2"}
        assert dict(cache.items()) == {}
        assert [*cache.values()] == []


async def test_closed_before_it_has_begun(server: EtcdServer) -> None:
    """Whoever enters is told, and waits for nothing."""
    client = Client(server.endpoint)
    await client.ping()
    outcomes = await asyncio.gather(
        client.cache(PREFIX, prefix=True).__aenter__(),
        client.registration("a").__aenter__(),
        client.aclose(),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [ClientClosedError] * 2 + [type(None)]


async def test_below_a_prefix(client: Client) -> None:
    """The keys are those of the namespace."""
    tenant = client.namespace("/tenant-7")
    await tenant.kv.put("/config/a", "1")
    await client.kv.put("/config/b", "outside")
    async with tenant.cache(PREFIX, prefix=True) as cache:
        assert dict(cache) == {b"/config/a": b"1"}
        await client.kv.put("/tenant-7/config/c", "2")
        await cache.sync()
        assert dict(cache) == {b"/config/a": b"1", b"/config/c": b"2"}
    async with tenant.cache("", prefix=True) as cache:
        await tenant.kv.put("d", "3")
        await cache.sync()
        assert [*cache] == [b"/config/a", b"/config/c", b"d"]


async def test_in_another_event_loop(client: Client) -> None:
    """Nobody is told there of what is missing."""
    async with client.cache(PREFIX, prefix=True) as cache:
        for use in (partial(cache.wait_for, 1), cache.sync):
            with pytest.raises(RuntimeError, match="another event loop"):
                await anyio.to_thread.run_sync(asyncio.run, use())
        await cache.sync()


async def test_many_readers_share_one_watch(client: Client) -> None:
    """However many read, wait and follow."""
    async with client.cache(PREFIX, prefix=True) as cache, anyio.create_task_group() as group:
        seen = 0

        async def follow(changes: CacheChanges[bytes]) -> None:
            nonlocal seen
            assert (await anext(changes)).new == b"1"
            seen += 1

        for _ in range(100):
            group.start_soon(follow, cache.changes())
        assert client.stats().watches == 1
        await client.kv.put("/config/a", "1")
        await until(lambda: seen == 100)


@pytest.mark.parametrize("native", [True, False])
async def test_cancelled_while_entering(client: Client, rng: random.Random, native: bool) -> None:
    """Whenever that is, nothing is left of it."""
    await client.kv.put_many({f"/config/{number}": "v" for number in range(500)})

    async def enter() -> None:
        async with client.cache(PREFIX, prefix=True) as cache:
            assert len(cache) == 500

    for _ in range(30):
        await cancel_after(rng.uniform(0, 0.02), enter, native=native)
    await until(lambda: client.stats().watches == 0)
    await enter()


async def test_what_is_wrong(client: Client) -> None:
    """It is told by name before anything is sent."""
    with pytest.raises(ValueError, match=r"^key must not be empty"):
        client.cache("")
    with pytest.raises(TypeError, match=r"^decode must be a function"):
        client.cache("a", decode="utf-8")  # type: ignore[call-overload]
    assert client.stats().calls == 0
