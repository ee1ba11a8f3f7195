"""A server, a client behind a proxy, and one that no fault reaches."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from aioetcd import Client
from aioetcd.testing import EtcdServer, FaultProxy


@pytest.fixture
async def client(proxy: FaultProxy) -> AsyncIterator[Client]:
    """The client that is tested, behind the proxy."""
    async with Client(proxy.endpoint) as client:
        yield client


@pytest.fixture
async def direct(server: EtcdServer) -> AsyncIterator[Client]:
    """A client that no fault reaches, of a server without keys."""
    await server.clear()
    async with Client(server.endpoint) as client:
        yield client
