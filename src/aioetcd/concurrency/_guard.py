"""Cancelling a block of code when what it relies on is lost, as `asyncio.timeout` does it."""

from __future__ import annotations

import asyncio
import logging
from typing import Literal, TypeAlias

from aioetcd.errors import EtcdError, LeaseLostError

OnLost: TypeAlias = Literal["cancel", "ignore"]
"""What the loss of a lock or session does to its block."""

logger = logging.getLogger("aioetcd.concurrency")


class BodyGuard:
    """Cancels the body of an ``async with`` when it is told of a loss: its task, and once.

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
        self._happened = asyncio.Event()
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0  # the requests to cancel the task that were there before the body
        self._soon: asyncio.Handle | None = None
        self._has_cancelled = False

    def enter(self) -> None:
        """Begin the body, in the task that runs it; nothing was lost up to here."""
        task = asyncio.current_task()
        if self._cancels and task is not None:
            self._task = task
            self._cancelling = task.cancelling()

    def lost(self, error: EtcdError) -> None:
        """Tell the loss. Only the first counts."""
        if self.error is not None:
            return
        self.error = error
        self._happened.set()
        if self._task is not None:
            self._cancel_soon(self._task)

    def _cancel_soon(self, task: asyncio.Task[object]) -> None:
        # By the loop, when the task waits for something: a running task that cancels itself would
        # be cancelled wherever it waits next, and that may be after the block.
        self._soon = task.get_loop().call_soon(self._cancel, task)

    def _cancel(self, task: asyncio.Task[object]) -> None:
        if self._is_told_already(task):
            return
        if task.cancel():
            self._has_cancelled = True
        else:
            logger.warning(
                "nobody can be cancelled, because the task that entered the block has ended: %s",
                self.error,
            )

    def _is_told_already(self, task: asyncio.Task[object]) -> bool:
        """Whether the body ends anyhow, by whoever ends everything: its `finally` may await."""
        loss: BaseException | None = self.error
        if loss is not None and not isinstance(loss, LeaseLostError):
            loss = loss.__cause__  # of a lock's
        is_closing = isinstance(loss, LeaseLostError) and loss.reason == "closed"
        return is_closing and task.cancelling() > self._cancelling

    def exit(self, error: BaseException | None) -> EtcdError | None:
        """End the body, which raised `error`; give the loss if that is to be raised instead.

        An exception of the body's own goes before the loss, and so does a cancellation that
        somebody else has asked for too.
        """
        task, self._task = self._task, None
        if self._soon is not None:
            self._soon.cancel()
        ours = False
        if self._has_cancelled and task is not None:
            ours = task.uncancel() <= self._cancelling and isinstance(error, asyncio.CancelledError)
        return self.error if self._cancels and (ours or error is None) else None

    def end(self) -> None:
        """There is nothing to lose any more."""
        self._happened.set()

    async def wait_lost(self) -> EtcdError:
        """Wait for the loss, and give the error that tells it.

        Raises:
            RuntimeError: There was none up to the end.
        """
        await self._happened.wait()
        if self.error is None:
            raise RuntimeError("it was left, and not lost before")
        return self.error
