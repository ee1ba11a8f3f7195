"""What every recipe that is held for a block has in common: entering, losing, leaving.

What holds at any moment:

- It is entered once, and left once; whoever leaves again waits with the first.
- It is held from the end of entering to the beginning of leaving, and lost at most once. A loss is
  told from the first moment of entering on, and nothing is a loss once leaving has begun.
- Leaving begins with all that needs no waiting (`_let_go`). What is left to be done then belongs to
  the client's supervisor: to be cancelled ends the waiting for it, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Self

from anyio.lowlevel import checkpoint_if_cancelled

from aioetcd._constructor import NoPublicConstructor
from aioetcd._transport.supervisor import PATIENCE, Supervisor
from aioetcd.concurrency._guard import BodyGuard, OnLost
from aioetcd.concurrency._tenure import Tenure
from aioetcd.errors import EtcdError

logger = logging.getLogger("aioetcd.concurrency")

# Whoever gave up entering is to be told so soon: it waits so long for what is left to be done.
_IMPATIENCE = 0.4


class Hold(metaclass=NoPublicConstructor):
    """Something that is held for a block, on a lease."""

    # What it is, for messages.
    _kind: str

    def __init__(self, supervisor: Supervisor, tenure: Tenure, on_lost: OnLost) -> None:
        self._supervisor = supervisor
        self._tenure = tenure
        self._guard = BodyGuard(on_lost)
        self._entered = False
        self._held = False
        self._left = False
        self._tidying: asyncio.Task[None] | None = None

    async def _take(self) -> None:
        """Take what is held; what a failure leaves behind is for `_let_go`."""
        raise NotImplementedError

    def _let_go(self) -> asyncio.Task[None] | None:
        """Stop what is going on, at once; give the task that does what is left, if anything is."""
        raise NotImplementedError

    @property
    def lease_id(self) -> int:
        """The id of the lease that it stands on."""
        return self._tenure.lease_id

    @property
    def expires_in(self) -> float:
        """The seconds for which it is surely held, were no renewal to succeed any more.

        0 before it is held, and when it is lost or left.
        """
        is_held = self._held and not self._left and not self.is_lost
        return self._tenure.expires_in if is_held else 0.0

    @property
    def is_lost(self) -> bool:
        """Whether it is lost."""
        self._tenure.check()
        return self._guard.error is not None

    async def wait_lost(self) -> EtcdError:
        """Wait until it is lost, and give the error that says why.

        Any number of tasks may wait; to be cancelled ends the waiting alone.

        Raises:
            RuntimeError: It was left, and not lost before.

        Example:
            async with client.session(ttl=10, on_lost="ignore") as session:
                await client.lease.revoke(session)  # somebody else, say
                error = await session.wait_lost()
                isinstance(error, LeaseLostError)  # True
        """
        return await self._guard.wait_lost()

    async def __aenter__(self) -> Self:
        """Enter the block."""
        await self._enter()
        self._guard.enter()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the block."""
        self._tenure.check()  # the body may have blocked the event loop to its very end
        loss = self._guard.exit(exc)
        await self._leave()
        if isinstance(exc, asyncio.CancelledError):
            # An anyio scope that was cancelled in the same moment goes before the loss as well, and
            # is to get its own exception: it knows it by a mark.
            await checkpoint_if_cancelled()
        if loss is not None:
            raise loss

    async def _enter(self) -> None:
        if self._entered:
            raise RuntimeError(f"a {self._kind} can be entered once: make another one")
        self._entered = True
        try:
            try:
                await self._take()
            except EtcdError:
                if self._guard.error is None:
                    raise  # else it is what failed next, and the loss is told
            self._tenure.check()  # the event loop may have been blocked meanwhile
            if self._guard.error is not None:
                raise self._guard.error
        except BaseException:
            await self._leave(_IMPATIENCE)
            raise
        self._held = True

    async def _leave(self, patience: float = PATIENCE) -> None:
        if not self._left:
            self._left = True
            self._guard.end()
            self._tidying = self._let_go()
        if self._tidying is None:
            return
        await self._supervisor.wait_tidied(self._tidying, min(patience, self._tenure.bound))
        if not self._tidying.done():
            logger.warning(
                "a %s on lease %x was left, and what is to be done at the server goes on in the "
                "background: it was not done in time",
                self._kind,
                self.lease_id,
            )
