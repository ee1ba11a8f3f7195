"""What the user's watches are flooded with delays no lock of the same client."""

from __future__ import annotations

import asyncio

from aioetcd import Client
from aioetcd.testing import EtcdServer
from tests.concurrency.locks import NAME, wait_for_queue, watches_created

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
