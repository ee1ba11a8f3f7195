"""What the tests of the transport have in common."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

import anyio

from aioetcd._transport.transport import Transport
from aioetcd.config import parse_endpoints

# A single member elects itself after one election timeout when it comes back.
QUICK = ("--heartbeat-interval=50", "--election-timeout=250")

# What a deadline may be missed by, early or late, on a busy machine.
SLACK = 0.3


@contextlib.asynccontextmanager
async def connected(*endpoints: str, timeout: float = 10.0) -> AsyncIterator[Transport]:
    """A transport as a client makes it."""
    transport = Transport(
        parse_endpoints(endpoints), timeout=timeout, keepalive_time=10.0, keepalive_timeout=5.0
    )
    try:
        yield transport
    finally:
        await transport.aclose()


async def wait_until(condition: Callable[[], bool], *, within: float = 10.0) -> None:
    with anyio.fail_after(within):
        while not condition():
            await anyio.sleep(0.005)


def was_refused(transport: Transport) -> bool:
    """Whether an endpoint was tried in vain by now."""
    return all(connection.reason is not None for connection in transport.endpoints)
