"""Watches through etcd's own grpc-proxy, which gives the watches ids of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest

from aioetcd import Client
from aioetcd.testing import EtcdServer, FaultProxy
from tests.servers import grpc_proxy
from tests.watch.following import put_all, short, take


@pytest.fixture
async def proxied(server: EtcdServer) -> AsyncIterator[str]:
    """A grpc-proxy before the session's etcd, which has no keys at first."""
    await server.clear()
    async with grpc_proxy(server) as endpoint:
        yield endpoint


async def test_each_watch_gets_its_own_events(proxied: str, server: EtcdServer) -> None:
    """Of many watches opened at once none gets what is another's, nor after a reconnect."""
    names = [f"proxied/{number}" for number in range(20)]
    async with (
        FaultProxy(proxied) as proxy,
        Client(proxy.endpoint) as client,
        Client(server.endpoint) as direct,
    ):
        await client.kv.get("is it there")
        watches = [client.watch(name) for name in names]
        async with anyio.create_task_group() as group:
            for watch in watches:
                group.start_soon(watch.__aenter__)
        for _ in range(2):
            await put_all(direct, *names)
            for name, watch in zip(names, watches, strict=True):
                events = await take(watch, 1)
                assert short(events) == [("PUT", name.encode(), name.encode())]
            assert proxy.cut() > 0
        for watch in watches:
            await watch.aclose()
