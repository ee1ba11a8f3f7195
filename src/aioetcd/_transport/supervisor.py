"""The one task of a client that owns all its background tasks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import anyio
import anyio.abc

logger = logging.getLogger("aioetcd.transport")


class Supervisor:
    """Runs a client's background tasks in a task group of its own task.

    A task group opened in the task of whoever happens to use the client first would cancel that
    task, break pytest fixtures, and turn the user's exceptions into groups.

    Args:
        on_crash: Called when a background task fails by a bug, so that nobody waits for it.
    """

    def __init__(self, on_crash: Callable[[BaseException], None]) -> None:
        self._on_crash = on_crash
        self._host: asyncio.Task[None] | None = None
        self._group: anyio.abc.TaskGroup | None = None
        self._queued: list[tuple[Callable[[], Awaitable[None]], str]] = []
        self._scope: anyio.CancelScope | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the host task in `loop`."""
        self._scope = anyio.CancelScope()  # not before: a client may be made without a loop
        self._host = loop.create_task(self._run(self._scope), name="aioetcd supervisor")

    async def _run(self, scope: anyio.CancelScope) -> None:
        with scope:
            async with anyio.create_task_group() as self._group:
                for task, name in self._queued:
                    self._group.start_soon(self._watched, task, name=name)
                self._queued.clear()
                await anyio.sleep_forever()

    def spawn(self, task: Callable[[], Awaitable[None]], name: str) -> None:
        """Run `task` until it ends or the client closes."""
        if self._group is None:
            self._queued.append((task, name))
        else:
            self._group.start_soon(self._watched, task, name=name)

    async def _watched(self, task: Callable[[], Awaitable[None]]) -> None:
        try:
            await task()
        except Exception as error:  # a bug of ours: say so, and let nobody wait for ever
            logger.exception("a background task failed; the client closes")
            self._on_crash(error)

    async def aclose(self) -> None:
        """Cancel every task and wait until they are gone."""
        host = self._host
        if host is None or self._scope is None:
            return
        self._scope.cancel()
        # The host ends by its own scope; a cancelled host (a loop that shuts down) is as good.
        await asyncio.wait([host])
        if not host.cancelled() and (error := host.exception()) is not None:
            raise error
