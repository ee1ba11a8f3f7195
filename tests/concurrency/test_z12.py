"""What the user's watches are flooded with delays no lock of the same client."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from aioetcd import Client
from aioetcd.testing import EtcdServer
from tests.concurrency.locks import NAME, queue, wait_for_queue, watches_created
from tests.watch.following import fill, put_all, revisions, take, take_revision

STREAMS = "etcd_debugging_mvcc_watch_stream_total"


async def test_z12_locks_watch_on_a_stream_of_their_own() -> None:
    """A holder's and a waiter's watches are on one stream at the server, the user's on another."""
    async with (
        EtcdServer() as server,
        Client(server.endpoint) as client,
        client.watch("a"),
        client.watch("b"),
    ):
        assert (await server.metrics())[STREAMS] == 1
        async with client.lock(NAME, ttl=60):
            waiting = asyncio.create_task(client.lock(NAME, ttl=60).acquire())
            await wait_for_queue(client, 2)
            await watches_created(client, 3)
            assert client.stats().watches == 5
            assert (await server.metrics())[STREAMS] == 2
            waiting.cancel()
            await asyncio.wait({waiting})


@pytest.mark.alone("a flood that fills the server and the client, and a margin against it")
async def test_z12_a_lock_is_handed_over_during_a_flood() -> None:
    """While a flood keeps all of the user's watches waiting, a lock goes to who waits for it."""
    # More than 2 MiB, which etcd splits slowly: it tries the size after each event.
    keys, each = 25_000, 5_000
    async with (
        EtcdServer(args=[f"--max-txn-ops={each}"]) as server,
        Client(server.endpoint) as client,
        Client(server.endpoint) as direct,
    ):
        await fill(direct, keys, each=each, digits=79)
        holder, waiter = direct.lock(NAME, ttl=60), client.lock(NAME, ttl=60)
        async with (
            client.watch("k", prefix=True, fragment=True) as flooded,
            client.watch("other") as other,
        ):
            await holder.acquire()
            waiting = asyncio.create_task(waiter.acquire())
            await watches_created(client, 2)
            assert len(await queue(direct)) == 2
            before = flooded.revision
            deleted = await direct.kv.delete("k", prefix=True)
            put = await put_all(direct, "other")
            stalled = asyncio.create_task(take(other, 1, within=30))
            began = anyio.current_time()
            await holder.release()
            with anyio.fail_after(30):
                await waiting
            took = anyio.current_time() - began
            assert not stalled.done(), "the flood was over before"
            assert flooded.revision == before
            assert took <= 1.0
            assert revisions(await stalled) == [put]
            await take_revision(flooded, deleted.header.revision, keys)
            await waiter.release()
