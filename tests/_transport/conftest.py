"""A client, a server, and a network between them that fails on demand."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from aioetcd.kv import KV
from aioetcd.testing import EtcdServer
from tests._transport.weather import connected


@pytest.fixture
async def direct(server: EtcdServer) -> AsyncIterator[KV]:
    """The session's etcd, past the proxy: what is really there."""
    async with connected(server.endpoint) as transport:
        yield KV(transport)
