"""What goes on in the background for the time of a block, and recovers by itself."""

from __future__ import annotations

import asyncio
from copy import copy
from types import TracebackType
from typing import Self

from anyio.lowlevel import checkpoint

from aioetcd._constructor import NoPublicConstructor
from aioetcd._transport.supervisor import PATIENCE
from aioetcd.concurrency._parts import Parts
from aioetcd.errors import ClientClosedError, EtcdError


class Upkeep(metaclass=NoPublicConstructor):
    """A background task for a block, which is entered as soon as the task is ready.

    Args:
        parts: Own the task.
        kind: What it is, for messages.
        name: Whose it is, for messages.
    """

    def __init__(self, parts: Parts, kind: str, name: bytes) -> None:
        self._parts = parts
        self._kind = kind
        self._label = f"{kind} of {name!r}"
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._is_ready = False
        self._left = False
        # Why it goes on no more.
        self._error: EtcdError | None = None

    async def _run(self) -> None:
        """Go on until cancelled: set `_is_ready` and pulse, or set `_error` and end."""
        raise NotImplementedError

    def _let_go(self) -> asyncio.Task[None] | None:
        """Stop what is going on, at once; give the task that does what is left, if anything is."""
        return None

    async def __aenter__(self) -> Self:
        """Enter the block."""
        if self._task is not None:
            raise RuntimeError(f"a {self._kind} can be entered once: make another one")
        transport = self._parts.transport
        transport.check_usable()
        self._task = transport.supervisor.spawn(self._run, f"aioetcd {self._label}")
        self._task.add_done_callback(self._ended)
        try:
            while not self._is_ready:
                if self._error is not None:
                    raise copy(self._error)  # it is told again and again
                await self._changed.wait()
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the block."""
        await self._leave()
        await checkpoint()

    async def _leave(self) -> None:
        transport = self._parts.transport
        self._left = True
        if self._task is not None:
            transport.supervisor.stop(self._task)
        self._pulse()
        if (tidying := self._let_go()) is not None:
            patience = min(PATIENCE, transport.timeout or PATIENCE)
            await transport.supervisor.wait_tidied(tidying, patience)

    def _ended(self, task: object) -> None:
        # A task that is cancelled before its first step never comes to a `finally` of its own.
        if self._error is None and not self._left:
            self._error = ClientClosedError("the client is closed")
        self._pulse()

    def _pulse(self) -> None:
        """Wake whoever waits for a change."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
