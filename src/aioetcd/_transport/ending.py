"""That a client has closed, and why."""

from __future__ import annotations

import asyncio

from aioetcd.errors import ClientClosedError


class Ending:
    """What everybody is told who still calls.

    Attributes:
        reason: What has closed the client; None while it is open.
        told: Is set when nobody is to wait for anything any more.
    """

    def __init__(self) -> None:
        self.reason: ClientClosedError | None = None
        self.told: asyncio.Event = asyncio.Event()

    def begin(self, why: str, cause: BaseException | None = None) -> bool:
        """Take no more calls; False if it was so before."""
        if self.reason is not None:
            return False
        self.reason = ClientClosedError(
            f"the client is closed: {why}" if why else "the client is closed"
        )
        self.reason.__cause__ = cause
        return True

    def error(self, *, maybe_applied: bool = False) -> ClientClosedError:
        """Make an error of its own for each call, with the reason for the closing behind it."""
        reason = self.reason or ClientClosedError("the client is closed")
        error = ClientClosedError(str(reason), maybe_applied=maybe_applied)
        error.__cause__ = reason.__cause__
        return error
