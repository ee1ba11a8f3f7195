"""What the tests of keep-alive loops share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import monotonic

import pytest

from aioetcd import KeepAlive, LeaseRenewal
from aioetcd.testing import EtcdServer

UNKNOWN = 0x7EAD

MAKE_ANOTHER = r"was stopped: make another one, with client\.lease\.keep_alive\(\)"


async def keep_alive_metrics(server: EtcdServer) -> tuple[float, float, float]:
    """Give how many renewal streams were started and ended, and how many renewals came."""
    started = ended = received = 0.0
    for name, value in (await server.metrics()).items():
        if 'grpc_method="LeaseKeepAlive"' not in name:
            continue
        if name.startswith("grpc_server_started_total"):
            started += value
        elif name.startswith("grpc_server_handled_total"):
            ended += value
        elif name.startswith("grpc_server_msg_received_total"):
            received += value
    return started, ended, received


async def renewed_for(keep_alive: KeepAlive, seconds: float) -> list[LeaseRenewal]:
    """Give the renewals of so long a time, and the first one after it; then leave the loop."""
    end = monotonic() + seconds
    renewals = []
    async for renewal in keep_alive:
        renewals.append(renewal)
        if monotonic() > end:
            return renewals
    pytest.fail("it has ended by itself")


async def follow(
    keep_alive: KeepAlive, then: Callable[[], Awaitable[object]] | None = None
) -> None:
    """Loop until it ends, and do something after each renewal; without it there must be none."""
    async for _ in keep_alive:
        if then is None:
            pytest.fail("it was renewed")
        await then()
