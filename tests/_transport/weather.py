"""What the tests of the transport have in common."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from aioetcd import Client
from aioetcd._transport.transport import Transport
from aioetcd.config.client import Config
from aioetcd.config.endpoints import parse_endpoints

# The size of a key or value by which a request or its answer is told from what gRPC still has to
# say about the call before: some ten bytes that may come at any time.
LARGE = 10_000

# What a deadline may be missed by, early or late, on a busy machine.
SLACK = 0.3


def config_of(*endpoints: str, timeout: float | None = 10.0) -> Config:
    """What a client is told that is told nothing but this."""
    return Config(
        endpoints=parse_endpoints(endpoints),
        timeout=timeout,
        keepalive_time=10.0,
        keepalive_timeout=5.0,
        tls=None,
        user=None,
        auto_sync=None,
        observers=(),
    )


@contextlib.asynccontextmanager
async def connected(*endpoints: str, timeout: float = 10.0) -> AsyncIterator[Transport]:
    """A transport as a client makes it."""
    transport = Transport(config_of(*endpoints, timeout=timeout))
    try:
        yield transport
    finally:
        await transport.aclose()


async def exists(client: Client, key: str) -> bool:
    """Whether there is such a key."""
    return (await client.kv.get(key)).kv is not None


def was_refused(transport: Transport) -> bool:
    """Whether an endpoint was tried in vain by now."""
    return all(member.reason is not None for member in transport.picker.members)
