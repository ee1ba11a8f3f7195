"""Cancelling a block of code when what it relies on is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Literal, TypeAlias

import anyio

from aioetcd.errors import EtcdError

OnLost: TypeAlias = Literal["cancel", "ignore"]


class BodyGuard:
    """Cancels the body of an ``async with`` when it is told of a loss.

    Args:
        on_lost: ``"ignore"`` leaves the body alone.

    Attributes:
        error: What was lost, or None.
    """

    def __init__(self, on_lost: OnLost) -> None:
        if on_lost not in ("cancel", "ignore"):
            raise ValueError(f"on_lost must be 'cancel' or 'ignore', not {on_lost!r}")
        self.error: EtcdError | None = None
        self._cancels = on_lost == "cancel"
        self._happened = anyio.Event()
        self._scope: anyio.CancelScope | None = None
        self._task: asyncio.Task[object] | None = None

    def enter(self) -> None:
        """Begin the body, in the task that runs it."""
        self._task = asyncio.current_task()
        if self._cancels:
            self._scope = anyio.CancelScope()
            self._scope.__enter__()
            if self.error is not None:
                self._scope.cancel()

    def lost(self, error: EtcdError) -> None:
        """Tell the loss. Only the first counts."""
        if self.error is not None:
            return
        self.error = error
        self._happened.set()
        # A fixture's body is not in the task that entered it, which is over by then.
        if self._scope is not None and self._task is not None and not self._task.done():
            self._scope.cancel()

    async def exit(
        self,
        release: Callable[[], Awaitable[None]],
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        """End the body, release what it relied on, then raise the loss if there was one.

        An exception of the body's own goes before the loss.
        """
        swallowed = False  # True where the body's exception was our own cancellation
        try:
            if self._scope is not None and asyncio.current_task() is self._task:
                swallowed = bool(self._scope.__exit__(exc_type, exc, traceback))
        finally:  # a scope that is left in the wrong order raises
            await release()
        if self.error is not None and self._cancels and (swallowed or exc is None):
            raise self.error
        return swallowed

    async def wait_lost(self) -> EtcdError:
        """Wait for the loss, and give the error that tells it."""
        await self._happened.wait()
        assert self.error is not None
        return self.error
