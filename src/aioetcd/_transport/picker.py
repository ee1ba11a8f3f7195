"""Gives the connection to use: looks at members, waits for one, and leaves the one that failed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from random import Random
from time import monotonic
from typing import Any

import anyio

from aioetcd._transport.connection import Connection, Metadata
from aioetcd._transport.credentials import Credentials
from aioetcd._transport.group import Group
from aioetcd._transport.look import Finding, look
from aioetcd._transport.members import Health, Member, Members
from aioetcd._transport.monitor import Monitor
from aioetcd._transport.supervisor import Supervisor
from aioetcd._verdicts.table import Blame
from aioetcd.config.endpoints import Endpoint
from aioetcd.errors import (
    ClientClosedError,
    ClusterMismatchError,
    EtcdError,
    NoEndpointError,
    UnavailableError,
)

# How long a member may take to connect and to say how it is.
CONNECT_TIMEOUT = 3.0
# How long one to which there is a connection may take to say it, when a call hangs.
_DOUBT_TIMEOUT = 0.8
# How often it is seen whether a call has waited for long, and when the same call is doubted again.
_TICK = 0.1
_AGAIN = 1.0
# A call that has waited for so long is suspicious also where others are answered: by a member that
# is cut off from the others.
_SUSPICIOUS = 0.9
# How long a linearizable read of nothing may take where the member has answered.
_QUORUM_TIMEOUT = 1.0
# While one is in use that is not well, the others are looked at for so long after the last call.
_INTEREST = 5.0

_chance = Random()  # not for secrets: spreads the clients of a fleet over the members


class Picker:
    """Picks the connection to use.

    Args:
        endpoints: Where the members are.
        credentials: Make a connection to one of them.
        metadata: Gives what goes with a call.
        monitor: Is told of members lost and found.
        supervisor: For what goes on in the background.

    Attributes:
        current: The connection in use, or None while one is searched.
        is_watching: Whether somebody looks for calls that have waited for long.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        credentials: Credentials,
        metadata: Callable[[], Metadata],
        monitor: Monitor,
        supervisor: Supervisor,
    ) -> None:
        self.current: Connection | None = None
        self.is_watching: bool = False
        self.members: Members = Members(endpoints, _chance)
        self._credentials = credentials
        self._supervisor = supervisor
        self._metadata = metadata
        self._monitor = monitor
        self._connections: dict[Member, Connection] = {}
        # Those that are not left: to which member, and in which of its epochs.
        self._at: dict[Connection, tuple[Member, int]] = {}
        # Those that are, and those apart, until the last call on them is over.
        self._retiring: set[Connection] = set()
        # What ends when it is known how those in doubt are.
        self._doubts: dict[Connection, asyncio.Event] = {}
        self._waiting = 0
        self._asked_at = 0.0
        self._closed = False
        self._found = asyncio.Event()
        self._changed = asyncio.Event()
        self._search_task: asyncio.Task[None] | None = None

    def __iter__(self) -> Iterator[Connection]:
        """Iterate over all connections that are open."""
        return iter([*self._at, *self._retiring])

    # --- for calls ----------------------------------------------------------------------------

    def in_use(self) -> Connection | None:
        """Give the connection in use; None where there is none, or it has just broken."""
        connection = self.current
        if connection is not None and connection.is_broken:
            why = UnavailableError(f"the connection to {connection.endpoint.name} was lost")
            self.failed(connection, Blame.CONNECTION, why)
        return self.current

    async def wait(self, deadline: float | None, *, sure: bool = False) -> Connection:
        """Wait until there is a member to ask.

        Args:
            deadline: Until then, in `time.monotonic`'s seconds.
            sure: Wait also for what a look brings at the one in use, where one is under way: what
                is sent only once had better not be sent to somebody who is dead.

        Raises:
            NoEndpointError: There was none by `deadline`.
            ClusterMismatchError: Another cluster answers at all endpoints meanwhile.
            ClientClosedError: The client closes.
        """
        self._waiting += 1
        moves = self.members.moves
        try:
            with anyio.move_on_after(None if deadline is None else deadline - monotonic()):
                while not self._closed:
                    connection = self.in_use()
                    if moves != self.members.moves:
                        raise self._moved()
                    if connection is None:
                        self._search()
                        await self._found.wait()
                    elif sure and connection.is_doubted:
                        await self._doubts[connection].wait()
                    else:
                        return connection
        finally:
            self._waiting -= 1
        if self._closed:
            raise ClientClosedError("the client is closed")
        raise self.unreachable()

    def elsewhere(self, connection: Connection) -> Connection | None:
        """Give a connection to another member, for one call; None where there is no other."""
        other = self.members.other(self._at[connection][0]) if connection in self._at else None
        return None if other is None else self._connection_to(other)

    def apart(self, endpoint: Endpoint) -> Connection:
        """Connect to a member that is meant, whichever is used else; `release` it."""
        connection = self._credentials.connect(endpoint)
        self._retiring.add(connection)
        return connection

    def release(self, connection: Connection) -> None:
        """Close it, when the last call on it is over."""
        if not self._closed:
            _ = self._supervisor.spawn(
                partial(self._retire, connection), f"aioetcd end of {connection.endpoint.name}"
            )

    def failed(self, connection: Connection, blame: Blame, error: EtcdError) -> None:
        """A call on a connection has failed: what that means for those to come."""
        if connection in self._at and self.members.failed(
            *self._at[connection], blame, error.details or str(error), monotonic()
        ):
            self._leave(connection)
            self._follow(error)
            self._changed.set()

    def doubt(self, connection: Connection, since: float) -> None:
        """A call has waited without an answer: see whether its member, or the connection, is dead.

        Its failure to answer this moves everybody. The call's own deadline would say nothing.

        Args:
            connection: Where it was sent.
            since: When.
        """
        now = self._asked_at = monotonic()
        if self._closed or connection.is_left or connection.is_doubted:
            return
        if connection.heard_at > since and now < since + _SUSPICIOUS:
            return  # it lives: the call was in a hurry
        connection.is_doubted = True
        self._doubts[connection] = asyncio.Event()
        _ = self._spawn(partial(self._look_again, connection), connection)

    def _moved(self) -> ClusterMismatchError:
        return ClusterMismatchError(
            f"cluster {self.members.cluster_id:x} answers where another one did before: what was "
            "read there means nothing here"
        )

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look, again and again, for calls that have waited for long, as long as any waits at all.

        A timer of its own for each call would cost a tenth of the call.
        """
        now = monotonic()
        self.is_watching = False
        for connection in list(self._at):
            if connection.waiting:
                self.is_watching = True
            for wait in connection.waiting.values():
                if wait[0] <= now:
                    wait[0] = now + _AGAIN
                    self.doubt(connection, wait[1])
        if self.is_watching and not self._closed:
            loop.call_later(_TICK, self.watch, loop)

    def known(self, connection: Connection) -> str | None:
        """Give what is wrong with the member at the other end, where it is used all the same."""
        return self._at[connection][0].reason if connection in self._at else None

    def unreachable(self) -> NoEndpointError:
        """Make the error that says why each endpoint failed."""
        doubted = {c.endpoint.name: "calls wait there for an answer" for c in self._doubts}
        reasons = {
            m.endpoint.name: m.reason or doubted.get(m.endpoint.name, "no answer yet")
            for m in self.members
        }
        told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        return NoEndpointError(f"no endpoint could be reached in time: {told}", reasons=reasons)

    def states(self) -> dict[str, str]:
        """Give gRPC's name for the state of each endpoint's connection, or ``"UNUSED"``."""
        return {
            member.endpoint.name: self._connections[member].state
            if member in self._connections
            else "UNUSED"
            for member in self.members
        }

    def replace(self, endpoints: Sequence[Endpoint]) -> None:
        """Take another list. Those that stay in it keep their connections."""
        is_secure = self._credentials.is_secure
        known = {(m.endpoint.target, is_secure(m.endpoint)) for m in self.members}
        now = monotonic()
        # A member that is to be spoken to in another way is another one.
        stay = [each for each in endpoints if (each.target, is_secure(each)) in known]
        gone = self.members.replace(stay, now)
        self.members.replace(endpoints, now)
        if not gone and len(stay) == len(endpoints):
            return
        leaves = self.current is not None and self.members.current is None
        self._monitor.endpoints_changed((m.endpoint.name for m in self.members), leaves=leaves)
        for member in gone:
            connection = self._connections.get(member)
            if connection is not None:
                self._leave(connection)
        self._follow()
        self._changed.set()

    # --- looking ------------------------------------------------------------------------------

    def _search(self) -> None:
        self._asked_at = monotonic()
        if self._search_task is None or self._search_task.done():
            self._search_task = self._supervisor.spawn(self._look_around, "aioetcd endpoint search")

    def _is_wanted(self) -> bool:
        """Whether somebody has an interest in a better member than the one in use."""
        if self._waiting:
            return self.members.is_searching
        is_of_interest = monotonic() < self._asked_at + _INTEREST
        return self.current is not None and self.members.is_searching and is_of_interest

    async def _look_around(self) -> None:
        while self._is_wanted():
            self._changed.clear()
            now = monotonic()
            while (member := self.members.due(now)) is not None:
                connection = self._connection_to(member)
                self.members.looking(member, now)
                _ = self._spawn(partial(self._look_at, connection), connection)
            self.members.choose(now)
            self._follow()
            left = self.members.next_due(now) - monotonic()
            with anyio.move_on_after(min(max(left, 0.0), _INTEREST)):
                await self._changed.wait()

    def _spawn(
        self, job: Callable[[], Coroutine[Any, Any, None]], connection: Connection
    ) -> asyncio.Task[None]:
        return self._supervisor.spawn(job, f"aioetcd look at {connection.endpoint.name}")

    async def _look_at(self, connection: Connection) -> None:
        finding = await look(
            connection, self._metadata, timeout=CONNECT_TIMEOUT, patience=_QUORUM_TIMEOUT
        )
        if finding.health is Health.DOWN and finding.reason is not None:
            reason = await self._credentials.explain(connection.endpoint, finding.reason)
            finding = finding._replace(reason=reason)
        self._saw(connection, finding)

    async def _look_again(self, connection: Connection) -> None:
        try:
            finding = await look(
                connection, self._metadata, timeout=_DOUBT_TIMEOUT, patience=_DOUBT_TIMEOUT
            )
            self._saw(connection, finding)
        finally:
            connection.is_doubted = False
            self._doubts.pop(connection).set()
        if self.members.is_searching and not self._closed:
            self._search()

    def _saw(self, connection: Connection, finding: Finding) -> None:
        if connection not in self._at:
            return
        member, epoch = self._at[connection]
        health, reason, cluster_id = finding
        if health > Health.DOWN:
            self._credentials.answered(connection.endpoint)
        self.members.seen(member, epoch, health, reason, monotonic(), cluster_id=cluster_id)
        if member.health is Health.DOWN or member is not self.members.current:
            self._leave(connection)  # the next look is through another one
        self._follow()
        self._changed.set()

    # --- connections --------------------------------------------------------------------------

    def _connection_to(self, member: Member) -> Connection:
        """Give the connection to a member, a new one where there is none."""
        connection = self._connections.get(member)
        if connection is None:
            connection = self._credentials.connect(member.endpoint)
            self._connections[member] = connection
            self._at[connection] = member, self.members.connected(member)
        return connection

    def _follow(self, error: EtcdError | None = None) -> None:
        """Use the member that the rules have chosen."""
        member = self.members.current
        connection = None if member is None else self._connection_to(member)
        if connection is self.current:
            return
        old, self.current = self.current, connection
        if connection is None:
            self._found.clear()
            if old is not None:
                self._monitor.member_lost(old.endpoint.name, error)
            return
        self._monitor.member_found(connection.endpoint.name)
        self._found.set()
        if member is not None and member.health is Health.WELL:
            for other in [each for each in self._at if each is not connection]:
                self._leave(other)

    def _leave(self, connection: Connection) -> None:
        member, _ = self._at.pop(connection)
        if self._connections.get(member) is connection:
            del self._connections[member]
        member.looking_since = None
        connection.leave()
        self._retiring.add(connection)
        self.release(connection)

    async def _retire(self, connection: Connection) -> None:
        await connection.calls.wait_idle()
        await connection.aclose()
        self._retiring.discard(connection)

    # --- the end ------------------------------------------------------------------------------

    def close(self) -> None:
        """Let nobody wait for a connection any more."""
        self._closed = True
        self.current = None
        for doubt in self._doubts.values():
            doubt.set()
        self._found.set()
        self._changed.set()

    async def aclose(self) -> None:
        """Close every channel."""
        async with Group() as group:
            for connection in self:
                group.start(connection.aclose(), f"aioetcd end of {connection.endpoint.name}")
