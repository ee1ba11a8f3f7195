"""Fixtures of the tests of leases."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from aioetcd import Client
from tests.harness import faulty, quick_server

__all__ = ["faulty", "quick_server"]


@pytest.fixture
async def lease_id(client: Client) -> AsyncIterator[int]:
    """A lease whose renewals are far apart: what comes in a test was asked for by it."""
    lease = await client.lease.grant(600)
    yield lease.id
    async with Client(next(iter(client.stats().connections))) as other:
        await other.lease.revoke(lease.id)
