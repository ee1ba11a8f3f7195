"""Waiting for what no event tells of."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import monotonic

import anyio
import anyio.lowlevel
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


class Lateness:
    """How late the event loop was, at the worst; `lateness` makes it.

    Attributes:
        seconds: By so much may what the loop does at a time come later than promised.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    async def measure(self) -> None:
        """Look for ever."""
        while True:
            before = monotonic()
            await anyio.sleep(0.02)  # what is measured
            self.seconds = max(self.seconds, monotonic() - before - 0.02)


@asynccontextmanager
async def lateness() -> AsyncIterator[Lateness]:
    """Measure how late the loop is in a block, for bounds that follow the machine."""
    late = Lateness()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(late.measure)
        yield late
        await anyio.lowlevel.checkpoint()  # one that is late just now is seen
        tasks.cancel_scope.cancel()
