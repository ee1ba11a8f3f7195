"""What the tests of faults have in common."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from aioetcd import Batch, Client
from aioetcd.testing import EtcdServer, FaultProxy
from aioetcd.watch import Watch

# Faults last longer: for a run that takes its time.
LONG = os.environ.get("AIOETCD_TEST_LONG") == "1"

# A silent connection is noticed after 6 s.
KEEPALIVE: dict[str, Any] = {"keepalive_time": 5, "keepalive_timeout": 1}


async def now(client: Client) -> int:
    """Give the store's revision."""
    return (await client.kv.get("-")).header.revision


async def put(client: Client, key: str, value: str = "") -> int:
    """Put a key."""
    return (await client.kv.put(key, value)).header.revision


def xfail_before(
    request: pytest.FixtureRequest, server: EtcdServer, version: tuple[int, ...], reason: str
) -> None:
    """Expect that a bug of older servers may show."""
    if server.version_info < version:
        fixed = ".".join(map(str, version))
        request.applymarker(pytest.mark.xfail(strict=False, reason=f"etcd < {fixed}: {reason}"))


def progress_every(interval: str) -> list[str]:
    """Give the flag that has etcd send bookmarks so often."""
    flag = "watch-progress-notify-interval"
    return [f"--{'' if EtcdServer().version_info >= (3, 6) else 'experimental-'}{flag}={interval}"]


def has_reconnected(client: Client, proxy: FaultProxy, connections: int) -> bool:
    """Whether the client made a new connection since there were so many, and has its watches."""
    return proxy.connections_total > connections and all(
        state.phase.value == "created"
        for streams in client._shared.watches._streams.values()
        for stream in streams
        for state in stream.rules._watches
    )


@contextlib.asynccontextmanager
async def unreachable(proxy: FaultProxy) -> AsyncIterator[None]:
    """Cut all connections at the start, and let none be made until the end."""
    await proxy.wait_until(lambda proxy: proxy.connections_open > 0)
    proxy.refuse()
    assert proxy.cut() > 0
    yield
    await proxy.heal()


async def enter(watch: Watch) -> None:
    """Begin a watch."""
    await watch.__aenter__()


async def read_until(watch: Watch, last: int, batches: list[Batch]) -> None:
    """Collect the batches up to a revision."""
    with anyio.fail_after(20):
        async for batch in watch.batches():
            batches.append(batch)
            if batch.revision >= last:
                return
