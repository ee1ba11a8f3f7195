"""The token of a user's calls: fetched with the first of them, and renewed once for all.

What holds at any moment:

- There is one token, with a generation, or none. Whoever was refused names the generation of what
  it had sent: only the newest one is renewed, and while that goes on everybody waits for it.
- To wait for it is each caller's own: one that gives up ends nobody else's waiting.
- An authentication that fails for good (a wrong password) fails all who wait for it, and the next
  one to ask tries again. One that was not answered in time is asked for again, while anybody waits.
- A cluster whose authentication is off gives no token, and needs none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from copy import copy
from functools import partial
from typing import Any

from aioetcd._transport.connection import Metadata
from aioetcd._transport.supervisor import Spawn
from aioetcd.config.user import User
from aioetcd.errors import (
    AuthNotEnabledError,
    ClientClosedError,
    DeadlineExceededError,
    EtcdError,
    NoEndpointError,
)

# A call is sent, and a stream opened, again so often because its token was refused: a fresh one may
# not have come to all members yet (etcd #18437).
REFUSALS = 4


class Tokens:
    """A client's token.

    Args:
        authenticate: Asks for one (RPC ``Authenticate``).
        spawn: Runs a job in the background.

    Attributes:
        user: Whose; None calls without.
        generation: Counts the tokens.
        metadata: What goes with a call.
        asked: How often one was asked for.
        is_missing: Whether one is to be waited for.
    """

    def __init__(
        self,
        user: User | None,
        *,
        authenticate: Callable[[User], Coroutine[Any, Any, str]],
        spawn: Spawn,
    ) -> None:
        self.user: User | None = user
        self.generation: int = 0
        self.metadata: Metadata = ()
        self.asked: int = 0
        self.is_missing: bool = user is not None
        self._authenticate = authenticate
        self._spawn = spawn
        self._renewal: asyncio.Future[None] | None = None

    def change(self, user: User | None) -> None:
        """Call as somebody else from now on, or with another password."""
        self.user = user
        self.metadata = ()
        self.generation += 1
        self.is_missing = user is not None
        self._renewal = None

    def refused(self, generation: int) -> bool:
        """A call with the token of a generation was refused for it; give whether another helps."""
        if self.user is None:
            return False
        if generation == self.generation:
            self.is_missing = True
        return True

    async def wait(self) -> None:
        """Wait until there is a token.

        Raises:
            EtcdError: The authentication failed.
        """
        while self.is_missing:
            if self._renewal is None:
                self._begin()
            assert self._renewal is not None
            try:
                await asyncio.shield(self._renewal)
            except (NoEndpointError, DeadlineExceededError):
                continue  # it was asked for with a deadline that is not this caller's
            except EtcdError as error:
                raise copy(error) from error.__cause__  # each caller has its own

    def _begin(self) -> None:
        self._renewal = renewal = asyncio.get_running_loop().create_future()
        try:
            task = self._spawn(partial(self._renew, renewal), "aioetcd authentication")
        except EtcdError:
            self._renewal = None
            raise
        # One that is cancelled before its first step never comes to what it would do at its end.
        task.add_done_callback(lambda _: self._end(renewal, ClientClosedError("it is closed")))

    async def _renew(self, renewal: asyncio.Future[None]) -> None:
        user = self.user
        failure: EtcdError | None = None
        token = ""
        try:
            if user is not None:
                self.asked += 1
                token = await self._authenticate(user)
        except AuthNotEnabledError:
            pass
        except EtcdError as error:
            failure = error
        if self._renewal is not renewal:
            failure = None  # there is another user: those who wait look again
        elif failure is None:
            self.metadata = (("token", token),) if token else ()
            self.generation += 1
            self.is_missing = False
        self._end(renewal, failure)

    def _end(self, renewal: asyncio.Future[None], failure: EtcdError | None) -> None:
        if self._renewal is renewal:
            self._renewal = None
        if renewal.done():
            return
        if failure is None:
            renewal.set_result(None)
        else:
            renewal.set_exception(failure)
            renewal.exception()  # perhaps nobody waits any more
