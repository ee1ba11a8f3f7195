"""What the tests of the transport have in common."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

import anyio

from aioetcd._transport.transport import Transport
from aioetcd.config import parse_endpoints
from aioetcd.kv import KV
from aioetcd.testing import FaultProxy

# The size of a key or value by which a request or its answer is told from what gRPC still has to
# say about the call before: some ten bytes that may come at any time.
LARGE = 10_000

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


async def until_answer_lost(proxy: FaultProxy, direct: KV, key: str) -> None:
    """Wait until a key was put through a proxy that swallows answers, and it has swallowed some.

    From then on the connection has a hole, so that `FaultProxy.heal` resets it: the answer is lost
    even where it was not the answer yet that was swallowed.
    """
    with anyio.fail_after(5):
        while (await direct.get(key)).kv is None:
            await anyio.sleep(0.005)
    await proxy.wait_until(lambda proxy: proxy.bytes_swallowed > 0)


def was_refused(transport: Transport) -> bool:
    """Whether an endpoint was tried in vain by now."""
    return all(connection.reason is not None for connection in transport.endpoints)
