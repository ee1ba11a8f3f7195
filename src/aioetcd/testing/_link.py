"""The link that a proxy's connections share: the faults in force, and the counters."""

from __future__ import annotations

import asyncio
import enum
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Protocol

import anyio

_UNDELAYED_BUFFER = 65_536
_RATE_PIECE = 0.02
_RATE_CATCH_UP = 0.05


class Direction(enum.Enum):
    """Which way bytes travel."""

    FROM_CLIENT = "from_client"
    FROM_SERVER = "from_server"

    @property
    def opposite(self) -> Direction:
        """The other way."""
        if self is Direction.FROM_CLIENT:
            return Direction.FROM_SERVER
        return Direction.FROM_CLIENT


@dataclass(slots=True, eq=False)
class CutBudget:
    """How many more bytes from the server pass before the link is cut, or held.

    Attributes:
        left: Bytes that are still to pass.
        fired: Set when they have passed and the cut was made, or the hold began.
        pause: Seconds between the last byte and the cut; None to hold instead of cutting.
        claimed: Whether some connection has written the last byte: nothing may follow.
    """

    left: int
    fired: anyio.Event
    pause: float | None = 0.0
    claimed: bool = False


@dataclass(slots=True, eq=False)
class Slot:
    """The right to write some bytes from a time on, while the rate is what it was.

    Attributes:
        left: Bytes that may still be written.
        opens_at: The monotonic time from which on.
        pace: The rate that it was given out for.
    """

    left: int
    opens_at: float
    pace: Pace


@dataclass(slots=True, eq=False)
class Pace:
    """A rate as it was set once; all connections take turns in it.

    Setting a rate makes a new one, so that what was promised at the old rate binds nobody.
    """

    rate: float
    _free_at: dict[Direction, float] = field(
        default_factory=lambda: dict.fromkeys(Direction, monotonic())
    )

    def slot(self, direction: Direction, size: int) -> Slot:
        """Take the next turn, for at most `size` bytes; it opens when the link has carried them."""
        size = min(size, max(1, int(self.rate * _RATE_PIECE)))
        # A late timer may be made up for, or the rate would be lower than asked.
        start = max(monotonic() - _RATE_CATCH_UP, self._free_at[direction])
        self._free_at[direction] = start + size / self.rate
        return Slot(size, self._free_at[direction], self)


class Connection(Protocol):
    """One of the connections that share a link, as far as a fault of the link concerns it."""

    holes: set[Direction]
    """The directions in which it lost bytes."""

    def reset(self) -> None:
        """Send RST both ways; whatever is still queued is lost."""

    def finish(self) -> None:
        """Send FIN both ways; whatever is still queued is lost."""

    def resume(self) -> None:
        """Go by the faults that are in force now."""


@dataclass(slots=True, eq=False)
class Link:
    """The faults in force and the counters; made by the proxy, shared by its connections.

    What changes it is synchronous, so a change made by one task is seen by all connections before
    the next byte is written. Who changes a fault calls `faults_changed`.
    """

    random: random.Random
    delayed_buffer: int
    hanging: bool = False
    swallowed: frozenset[Direction] = frozenset()
    delay: float = 0.0
    jitter: float = 0.0
    pace: Pace | None = None
    chunk: int | None = None
    budget: CutBudget | None = None
    # In the order in which they came: a fault meets them in the same order in each run.
    relays: dict[Connection, None] = field(default_factory=dict)
    connections_total: int = 0
    connect_failures: int = 0
    cuts: int = 0
    bytes_swallowed: int = 0
    bytes_passed: dict[Direction, int] = field(default_factory=lambda: dict.fromkeys(Direction, 0))
    writes: dict[Direction, int] = field(default_factory=lambda: dict.fromkeys(Direction, 0))
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _waiting: int = 0

    @property
    def buffer_limit(self) -> int:
        """Bytes one direction of one connection may hold: a pipeline as long as the delay."""
        return self.delayed_buffer if self.delay or self.jitter else _UNDELAYED_BUFFER

    def changed(self) -> None:
        """Wake everybody in `wait_until`."""
        if self._waiting:
            self._changed.set()
            self._changed = asyncio.Event()

    def faults_changed(self) -> None:
        """Let every connection go by the faults that are in force now, and wake who waits."""
        for relay in list(self.relays):
            relay.resume()
        self.changed()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition over this link's state; cancelling it changes nothing."""
        while not condition():
            self._waiting += 1
            try:
                await self._changed.wait()
            finally:
                self._waiting -= 1

    def due(self) -> float:
        """The monotonic time at which a byte that arrives now may go on."""
        extra = self.random.uniform(0, self.jitter) if self.jitter else 0.0
        return monotonic() + self.delay + extra

    def count(self, direction: Direction, size: int) -> None:
        """Account for one write."""
        self.bytes_passed[direction] += size
        self.writes[direction] += 1
        self.changed()

    def cut(self) -> int:
        """Reset every connection and return how many there were; a hold under way ends."""
        fired = None
        if self.budget is not None and self.budget.claimed:
            fired, self.budget = self.budget.fired, None
        relays = list(self.relays)
        for relay in relays:
            relay.reset()
        self.cuts += len(relays)
        if fired is not None:
            fired.set()
        self.changed()
        return len(relays)

    def reset_holes(self) -> None:
        """Reset the connections that lost bytes in a direction that is open again."""
        for relay in list(self.relays):
            if relay.holes - self.swallowed:
                relay.reset()

    def spend(self, budget: CutBudget) -> None:
        """Cut or hold, the last byte having left, unless it was disarmed meanwhile."""
        if self.budget is not budget:
            return
        if budget.pause is None:
            budget.fired.set()
        else:
            self.cut()
