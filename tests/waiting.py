"""Waiting for what no event tells of."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable

import anyio
import pytest

from aioetcd.testing import EtcdServer


async def until(condition: Callable[[], bool | Awaitable[bool]], *, within: float = 10.0) -> None:
    """Wait until a condition holds; it is looked at again and again, at least once.

    Args:
        condition: Looks, and awaits what it needs for that.
        within: How long to wait, in seconds. It is what a busy machine may take, and no promise:
            where time is what a test is about, give it.
    """
    with anyio.move_on_after(within):
        while True:
            holds = condition()
            if inspect.isawaitable(holds):
                holds = await holds
            if holds:
                return
            await anyio.sleep(0.005)  # between two looks
    pytest.fail(f"not within {within:g} s: {inspect.getsource(condition).strip()}")


async def until_metric(server: EtcdServer, metric: str, count: int, *, within: float = 10) -> None:
    """Wait until the server counts so many of something."""
    seen = -1.0

    async def is_seen() -> bool:
        nonlocal seen
        seen = (await server.metrics())[metric]
        return seen == count

    await until(is_seen, within=within)
