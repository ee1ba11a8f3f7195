"""Watches through etcd's own grpc-proxy, which gives the watches ids of its own."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from aioetcd import Client
from aioetcd.testing import EtcdServer, FaultProxy, find_binary
from aioetcd.testing._process import HOST, Ports, spawn
from tests.watch.following import put_all, short, take


@pytest.fixture
async def grpc_proxy(server: EtcdServer, tmp_path: Path) -> AsyncIterator[str]:
    """A grpc-proxy before the session's etcd, which has no keys at first."""
    await server.clear()
    ports = Ports(1)
    (port,) = ports.numbers
    command = [
        *(str(find_binary()), "grpc-proxy", "start", f"--endpoints={server.endpoint}"),
        *(f"--listen-addr={HOST}:{port}", f"--data-dir={tmp_path / 'proxy'}"),
    ]
    with tempfile.TemporaryFile() as log:
        process = spawn(command, log.fileno())
        try:
            yield f"{HOST}:{port}"
        finally:
            process.terminate()
            await anyio.to_thread.run_sync(process.wait)
            ports.release()


async def test_each_watch_gets_its_own_events(grpc_proxy: str, server: EtcdServer) -> None:
    """Of many watches opened at once none gets what is another's, nor after a reconnect."""
    names = [f"proxied/{number}" for number in range(20)]
    async with (
        FaultProxy(grpc_proxy) as proxy,
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
