"""The one task of a client that owns all its background tasks, and what outlives it.

What holds at any moment:

- A background task ends by itself, or with the host. One that fails, or that somebody else
  cancels, ends the host.
- However the host ends, `on_end` is called, once and first of all: by `end`; by a task that failed;
  cancelled by whoever cancels all tasks of the loop, as `asyncio.run` does at its end.
- What tidies up after somebody who left does not belong to the host, because it must not depend on
  how that ends. It has an end of its own, and nobody ends it sooner by ceasing to wait for it.
"""

from __future__ import annotations

import asyncio
import logging
import types
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Generator
from time import monotonic
from typing import Any, TypeAlias

import anyio

from aioetcd.errors import ClientClosedError, EtcdError

logger = logging.getLogger("aioetcd.transport")

# Whoever leaves waits so long for what tidies up, counted from the oldest that this task has begun
# and that has not ended: of blocks that it leaves one after the other, the first is waited for so
# long, and each further one for a moment, the shorter the more of them there are.
PATIENCE = 1.0
_MOMENT = 0.1
# So long is left to whatever tidies up when it is cancelled (the loop ends), or the client closes.
_LAST = 1.0

AS_ALL = ", as all tasks are when the event loop ends"


@types.coroutine
def _pause() -> Generator[None, None, None]:
    yield


async def _for_ever() -> None:
    await asyncio.get_running_loop().create_future()


class Tidying:
    """Something that is done to its end, though who asked for it is cancelled, and the host gone.

    Args:
        job: Called with the seconds that it has; called again with fewer when it is cancelled. It
            fails by raising an `EtcdError`.
        seconds: How long it may take.
        give_up: Called with the reason when it was not done.
    """

    def __init__(
        self,
        job: Callable[[float], Awaitable[None]],
        seconds: float,
        give_up: Callable[[str], None],
    ) -> None:
        self._job = job
        self._give_up = give_up
        self.began = monotonic()
        self.asker = asyncio.current_task()
        self._deadline = self.began + seconds

    def hurry(self) -> None:
        """Leave it a last second."""
        self._deadline = min(self._deadline, monotonic() + _LAST)

    async def run(self) -> None:
        """Do it."""
        why = "there was no time left"
        started = False
        while (left := self._deadline - monotonic()) > 0 or not started:
            try:
                if not started:
                    started = True
                    await _pause()
                # A job that keeps to its time is not cut.
                async with asyncio.timeout(left + _MOMENT):
                    await self._job(max(left, 0.001))
            except EtcdError as error:
                why = str(error)
                break
            except TimeoutError:
                why = "there was no answer in time"
                break
            except asyncio.CancelledError:
                why = "it was cancelled before there was an answer"
                self.hurry()
            else:
                return
        self._give_up(why)


Spawn: TypeAlias = Callable[[Callable[[], Coroutine[Any, Any, None]], str], asyncio.Task[None]]
"""Runs a job, which has a name, in the background until it ends or its client does."""


class Supervisor:
    """Owns a client's background tasks.

    A task group opened in the task of whoever happens to use the client first would cancel that
    task, break pytest fixtures, and turn the user's exceptions into groups.

    Args:
        on_end: Called when the host ends: with why, and what caused it.
    """

    def __init__(self, on_end: Callable[[str, BaseException | None], None]) -> None:
        self._on_end = on_end
        self._loop: asyncio.AbstractEventLoop | None = None
        self._host: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped: weakref.WeakSet[asyncio.Task[None]] = weakref.WeakSet()
        self._tidying: dict[asyncio.Task[None], Tidying] = {}
        self._ended = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the host task in `loop`.

        It does nothing but to be there: whoever cancels all tasks, cancels it.
        """
        self._loop = loop
        self._host = self._start(_for_ever(), "aioetcd supervisor")
        # A task that is cancelled before its first step never comes to a `finally` of its own.
        self._host.add_done_callback(self._task_ended)

    def _start(self, job: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        loop = self._loop or asyncio.get_running_loop()
        task = loop.create_task(job, name=name)
        # A loop that is closed without a word to its tasks would have one for each of them, on
        # stderr, beside the warning that the client was not closed.
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        return task

    def spawn(self, job: Callable[[], Coroutine[Any, Any, None]], name: str) -> asyncio.Task[None]:
        """Run `job` until it ends or the host does.

        Raises:
            ClientClosedError: The host has ended.
        """
        if self._loop is None or self._ended:
            raise ClientClosedError("the client is closed")
        task = self._start(job(), name)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)
        return task

    def stop(self, task: asyncio.Task[None]) -> None:
        """Cancel a background task that nobody needs any more."""
        self._stopped.add(task)
        task.cancel()

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() and task in self._stopped:
            return
        if task.cancelled():
            self.end(f"its task {task.get_name()!r} was cancelled{AS_ALL}")
        elif (error := task.exception()) is not None:  # a bug of ours, or what ends the process
            logger.error("the task %r failed; the client closes", task.get_name(), exc_info=error)
            self.end(f"its task {task.get_name()!r} failed: {error!r}", error)

    def end(self, why: str, cause: BaseException | None = None) -> None:
        """Tell the end and cancel every background task. Only the first call counts."""
        if self._ended:
            return
        self._ended = True
        try:
            self._on_end(why, cause)
        finally:
            for task in self._background():
                task.cancel()

    def _background(self) -> set[asyncio.Task[None]]:
        tasks = self._tasks if self._host is None else {self._host, *self._tasks}
        return {task for task in tasks if not task.done()}

    def tidy(
        self,
        job: Callable[[float], Awaitable[None]],
        name: str,
        *,
        seconds: float,
        give_up: Callable[[str], None],
    ) -> asyncio.Task[None]:
        """Start something that is to be done to its end; see `Tidying`."""
        tidying = Tidying(job, seconds, give_up)
        run = tidying.run()
        # Up to its pause: where it is cancelled before its first step, it is in its `try`.
        run.send(None)
        task = self._start(run, name)
        self._tidying[task] = tidying
        task.add_done_callback(self._tidied)
        return task

    def _tidied(self, task: asyncio.Task[None]) -> None:
        del self._tidying[task]
        if task.cancelled():  # in its very last step, by a log handler
            return
        if (error := task.exception()) is not None:  # a bug of ours, or what ends the process
            logger.error("the task %r failed", task.get_name(), exc_info=error)

    async def wait_tidied(self, task: asyncio.Task[None], patience: float = PATIENCE) -> None:
        """Wait for what `tidy` has started, but not for ever. To be cancelled ends only that.

        A cancelled anyio scope does not end it: it would do so at once, each time.
        """
        if task.done():
            return
        asker = self._tidying[task].asker
        began = [each.began for each in self._tidying.values() if each.asker is asker]
        left = min(began) + patience - monotonic()
        with anyio.CancelScope(shield=True):
            await asyncio.wait({task}, timeout=max(left, _MOMENT / len(began)))

    async def aclose(self) -> None:
        """Wait until all tasks are gone, after `end`. What tidies up has a second at the most."""
        deadline = monotonic() + _LAST
        while (tasks := self._background()) and monotonic() < deadline:
            _, left = await asyncio.wait(tasks, timeout=_MOMENT)
            for task in left:  # what runs there is not all ours, and may lose a cancellation
                task.cancel()
        own = asyncio.current_task()
        for _ in range(
            2
        ):  # the first one has it done again, at once, by those that wait for longer
            tidying = {task for task in self._tidying if task is not own}
            for task in tidying:
                self._tidying[task].hurry()
                task.cancel()
            if tidying:
                await asyncio.wait(tidying, timeout=_LAST)
