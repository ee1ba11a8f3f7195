"""A client, a server, and a network between them that fails on demand."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from aioetcd.kv import KV
from aioetcd.testing import EtcdServer
from tests._transport.weather import QUICK, connected


@pytest.fixture
async def own_server() -> AsyncIterator[EtcdServer]:
    """An etcd that a test may kill."""
    async with EtcdServer(args=QUICK) as server:
        yield server


@pytest.fixture
async def direct(server: EtcdServer) -> AsyncIterator[KV]:
    """The session's etcd, past the proxy: what is really there."""
    async with connected(server.endpoint) as transport:
        yield KV(transport)
