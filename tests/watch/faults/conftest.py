"""The client that is tested is behind a proxy."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from aioetcd import Client
from aioetcd.testing import FaultProxy


@pytest.fixture
async def client(proxy: FaultProxy) -> AsyncIterator[Client]:
    """The client that is tested, behind the proxy."""
    async with Client(proxy.endpoint) as client:
        yield client
