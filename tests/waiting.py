"""Waiting for what no event tells of."""

from __future__ import annotations

import inspect
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from time import monotonic

import anyio
import pytest
from anyio.abc import TaskStatus

from aioetcd.testing import EtcdCluster, EtcdServer


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
    what = condition.func if isinstance(condition, partial) else condition
    pytest.fail(f"not within {within:g} s: {inspect.getsource(what).strip()}")


async def until_metric(server: EtcdServer, metric: str, count: int, *, within: float = 10) -> None:
    """Wait until the server counts so many of something."""
    seen = -1.0

    async def is_seen() -> bool:
        nonlocal seen
        seen = (await server.metrics())[metric]
        return seen == count

    await until(is_seen, within=within)


async def until_elected(
    cluster: EtcdCluster, members: list[EtcdServer], *, within: float = 20
) -> None:
    """Wait until these members follow one of them; only they are asked."""

    async def elected() -> bool:
        try:
            seen = [await cluster._ask(member) for member in members]
        except (OSError, RuntimeError):  # one does not answer
            return False
        said = {(status.leader_id, status.raft_term) for status in seen}
        return len(said) == 1 and seen[0].leader_id in {status.member_id for status in seen}

    await until(elected, within=within)


class Lateness:
    """How late the event loop was, all in all; `lateness` makes it."""

    PERIOD = 0.01
    """How often it looks, in seconds."""

    USUAL = 0.005
    """By so much a timer is late on any machine: it would add up to something, and is left out."""

    def __init__(self) -> None:
        self._before = 0.0
        self._due = math.inf  # the end of the sleep under way

    @property
    def seconds(self) -> float:
        """By so much may what the loop does meanwhile come later than promised.

        It counts a delay that is not over yet, as whoever asks may have met it just now.
        """
        late = monotonic() - self._due
        return self._before + (late if late > self.USUAL else 0.0)

    async def measure(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Look until it is cancelled."""
        try:
            self._due = monotonic() + self.PERIOD
            task_status.started()
            while True:
                await anyio.sleep(self._due - monotonic())  # what is measured
                self._before, self._due = self.seconds, monotonic() + self.PERIOD
        finally:
            self._before, self._due = self.seconds, math.inf


@asynccontextmanager
async def lateness() -> AsyncIterator[Lateness]:
    """Measure how late the loop is in a block, for bounds that follow the machine."""
    late = Lateness()
    async with anyio.create_task_group() as tasks:
        await tasks.start(late.measure)
        yield late
        tasks.cancel_scope.cancel()
