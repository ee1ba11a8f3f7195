"""Tasks inside a background task."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any

import anyio


class Group:
    """anyio's task group, which leaves nothing behind when it is cancelled.

    Of a task that is cancelled before it begins, anyio leaves a coroutine that nobody has awaited,
    of which Python warns. Of one that is cancelled later it leaves the exception, in a cycle: that
    would keep the call in its frames, and with it gRPC's thread, until garbage is collected.

    Attributes:
        cancel_scope: That of the group.
    """

    def __init__(self) -> None:
        self._group = anyio.create_task_group()
        self._jobs: list[Coroutine[Any, Any, None]] = []
        self.cancel_scope = self._group.cancel_scope

    async def __aenter__(self) -> Group:
        """Begin it."""
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Wait for its tasks."""
        try:
            return await self._group.__aexit__(exc_type, exc, traceback)
        finally:
            for job in self._jobs:
                job.close()
            del exc, traceback  # which have this frame

    def start(self, job: Coroutine[Any, Any, None], name: str) -> None:
        """Run `job` in it."""
        run = self._run(job)
        self._jobs += run, job
        self._group.start_soon(lambda: run, name=name)

    async def _run(self, job: Coroutine[Any, Any, None]) -> None:
        try:
            await job
        except asyncio.CancelledError:
            self.cancel_scope.cancel()  # as anyio does
