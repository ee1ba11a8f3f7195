"""The rules of keeping leases alive, without I/O.

What holds at any moment, for each lease that is kept alive:

- ``deadline`` is when the server may let it expire at the earliest: the time at which the last
  answered renewal (at first: the grant) was *sent*, plus the time to live that was answered.
- Past its deadline a lease is lost, whatever answers may still be on their way or unread.
- A renewal is due a third of the time to live after the one before, answered or not, so that
  several are in flight when answers are slow; the stream answers in order.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field

from aioetcd._proto import rpc_pb2
from aioetcd.errors import EtcdError, LeaseExpiredError, LeaseLostError, LeaseNotFoundError
from aioetcd.types import LeaseRenewal, ResponseHeader

# A lease whose time to live is not known yet is asked for so often.
_FIRST_INTERVAL = 1.0
# Renewals that are due within so many seconds go out together.
_TICK = 0.05

_jitter = random.Random()  # spreads leases that were granted together


@dataclass(slots=True, eq=False)
class Keeper:
    """One user of a lease's renewals.

    Attributes:
        lease_id: The lease.
        notify: Called when `renewal` or `error` has changed.
        not_before: Only answers to renewals sent after this time count.
        renewal: The latest answer that was not taken yet.
        error: Why there are no more.
        ended: Whether there are no more.
    """

    lease_id: int
    notify: Callable[[], None]
    not_before: float = 0.0
    renewal: LeaseRenewal | None = None
    error: EtcdError | None = None
    ended: bool = False


@dataclass(slots=True, eq=False)
class _Kept:
    """A lease that is kept alive."""

    lease_id: int
    ttl: float
    deadline: float | None
    next_renewal: float
    confirmed: bool
    last_sent: float = -math.inf
    keepers: list[Keeper] = field(default_factory=list)


class LeaseRules:
    """All leases that a client keeps alive. Times are `time.monotonic`'s."""

    def __init__(self) -> None:
        # Leases that this client granted or kept alive before, so that their deadline is known
        # before the first renewal: time to live and deadline.
        self._known: dict[int, tuple[float, float]] = {}
        self._sweep_at = 64
        self._kept: dict[int, _Kept] = {}
        # The renewals that this stream has still to answer, by lease: when each was sent. They
        # outlive their keepers, or an old answer would be taken for one to a later renewal.
        self._in_flight: dict[int, deque[float]] = {}
        # When to renew: (time, deadline, lease id). An entry that is not the lease's
        # `next_renewal` any more is void.
        self._due: list[tuple[float, float, int]] = []
        # Lower bounds of the deadlines: (time, lease id). A kept lease has at least one entry;
        # deadlines only grow.
        self._deadlines: list[tuple[float, int]] = []
        self._ticked = 0.0

    # What the service and the handles do.

    def granted(self, lease_id: int, ttl: int, sent_at: float, now: float) -> None:
        """Remember a grant."""
        self._remember(lease_id, ttl, sent_at + ttl, now)

    def add(self, keeper: Keeper, now: float) -> None:
        """Keep a lease alive for `keeper`, and renew it at once."""
        kept = self._kept.get(keeper.lease_id)
        if kept is None:
            ttl, deadline = self._known.get(keeper.lease_id, (3 * _FIRST_INTERVAL, None))
            if deadline is not None and deadline <= now:
                # Not kept alive by us; whether by others, the server knows.
                ttl, deadline = 3 * _FIRST_INTERVAL, None
            kept = _Kept(keeper.lease_id, ttl, deadline, now, confirmed=deadline is not None)
            self._kept[keeper.lease_id] = kept
            if deadline is not None:
                self._expire_at(deadline, kept)
        kept.keepers.append(keeper)
        self._renew_at(kept, now)

    def remove(self, keeper: Keeper, now: float) -> None:
        """Stop renewing for `keeper`. The lease itself lives on until its time is over."""
        if keeper.ended:
            return
        keeper.ended = True
        kept = self._kept[keeper.lease_id]
        kept.keepers.remove(keeper)
        if not kept.keepers:
            del self._kept[kept.lease_id]
            if kept.deadline is not None:
                self._remember(kept.lease_id, kept.ttl, kept.deadline, now)
        keeper.notify()

    def expire(self, now: float) -> None:
        """Lose every lease whose deadline has passed."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, lease_id = heapq.heappop(self._deadlines)
            kept = self._kept.get(lease_id)
            if kept is None or kept.deadline is None:
                continue
            if kept.deadline > now:
                heapq.heappush(self._deadlines, (kept.deadline, lease_id))
                continue
            self._lose(
                kept,
                LeaseExpiredError(
                    f"lease {lease_id:x} could not be renewed within its {kept.ttl:g} s: the "
                    "server deletes its keys, or has done so",
                    lease_id=lease_id,
                ),
            )

    def revoked(self, lease_id: int) -> None:
        """This client has revoked a lease."""
        self._known.pop(lease_id, None)
        kept = self._kept.get(lease_id)
        if kept is not None:
            self._lose(kept, _revoked(lease_id))

    def deadline(self, lease_id: int) -> float | None:
        """Give the time up to which a lease surely lives; None where it is not known."""
        kept = self._kept.get(lease_id)
        if kept is not None:
            return kept.deadline
        known = self._known.get(lease_id)
        return None if known is None else known[1]

    def close(self, error: EtcdError) -> None:
        """End all renewals."""
        for kept in list(self._kept.values()):
            self._lose(kept, error)

    def counts(self) -> tuple[int, float | None]:
        """Give how many leases are kept alive, and the soonest of their deadlines."""
        deadlines = [kept.deadline for kept in self._kept.values() if kept.deadline is not None]
        return len(self._kept), min(deadlines, default=None)

    # What the stream's owner does (`StreamRules`).

    @property
    def wanted(self) -> bool:
        """Whether any lease is kept alive."""
        return bool(self._kept)

    def opened(self, endpoint: str, now: float) -> None:
        """A new stream: renew what is overdue or went unanswered, the most urgent first."""
        self._due.clear()
        for kept in self._kept.values():
            if kept.lease_id in self._in_flight or kept.next_renewal < now:
                kept.next_renewal = now
            self._due.append(self._due_entry(kept))
        self._in_flight.clear()
        heapq.heapify(self._due)

    def next_request(self, now: float) -> rpc_pb2.LeaseKeepAliveRequest | None:
        """Give the next renewal that is due."""
        self.expire(now)
        while self._due and self._due[0][0] <= now:
            at, _, lease_id = heapq.heappop(self._due)
            kept = self._kept.get(lease_id)
            if kept is None or kept.next_renewal != at:
                continue
            kept.last_sent = now
            self._in_flight.setdefault(lease_id, deque()).append(now)
            self._renew_at(kept, now + _pause(kept.ttl))
            return rpc_pb2.LeaseKeepAliveRequest(ID=lease_id)
        return None

    def received(self, response: rpc_pb2.LeaseKeepAliveResponse, now: float) -> bool:
        """An answer came."""
        # Before it is believed: it may have lain here while this process was stopped.
        self.expire(now)
        sent = self._in_flight.get(response.ID)
        if sent is None:
            return False
        sent_at = sent.popleft()
        if not sent:
            del self._in_flight[response.ID]
        kept = self._kept.get(response.ID)
        if kept is None:
            return False  # nobody cares for it any more
        ttl = response.TTL
        if ttl <= 0:
            self._lose(kept, _revoked(kept.lease_id) if kept.confirmed else _unknown(kept.lease_id))
            return True
        if sent_at + ttl <= now:
            # An answer so late that the time it granted is over; the lease had no deadline yet.
            return False
        first = kept.deadline is None
        kept.deadline = max(kept.deadline or 0.0, sent_at + ttl)
        if first:
            self._expire_at(kept.deadline, kept)
        changed = first or ttl != kept.ttl
        kept.ttl = ttl
        kept.confirmed = True
        if changed:
            self._renew_at(kept, max(now, kept.last_sent + _pause(ttl)))
        renewal = LeaseRenewal(ResponseHeader.from_message(response.header), kept.lease_id, ttl)
        for keeper in kept.keepers:
            if sent_at >= keeper.not_before:
                keeper.renewal = renewal
                keeper.notify()
        return changed

    def lost(self, error: EtcdError, *, final: bool, now: float) -> None:
        """The stream ended; only deadlines end a lease, or an error that will not pass."""
        if final:
            self.close(error)

    def next_tick(self) -> float | None:
        """Give when the next renewal is due, or the next deadline passes."""
        times = []
        if self._deadlines:
            times.append(self._deadlines[0][0])
        if self._due:
            times.append(max(self._due[0][0], self._ticked + _TICK))
        return min(times, default=None)

    def tick(self, now: float) -> None:
        """Lose what is past its deadline."""
        self._ticked = now
        self.expire(now)

    def _renew_at(self, kept: _Kept, at: float) -> None:
        kept.next_renewal = at
        heapq.heappush(self._due, self._due_entry(kept))
        if len(self._due) > 2 * len(self._kept) + 64:  # void ones have piled up
            self._due = [self._due_entry(each) for each in self._kept.values()]
            heapq.heapify(self._due)

    def _expire_at(self, deadline: float, kept: _Kept) -> None:
        heapq.heappush(self._deadlines, (deadline, kept.lease_id))
        if len(self._deadlines) > 2 * len(self._kept) + 64:  # so have those of leases let go
            self._deadlines = [
                (each.deadline, each.lease_id)
                for each in self._kept.values()
                if each.deadline is not None
            ]
            heapq.heapify(self._deadlines)

    def _due_entry(self, kept: _Kept) -> tuple[float, float, int]:
        return (kept.next_renewal, kept.deadline or 0.0, kept.lease_id)

    def _remember(self, lease_id: int, ttl: float, deadline: float, now: float) -> None:
        if len(self._known) >= self._sweep_at:
            self._known = {i: known for i, known in self._known.items() if known[1] > now}
            self._sweep_at = max(64, 2 * len(self._known))
        self._known[lease_id] = (ttl, deadline)

    def _lose(self, kept: _Kept, error: EtcdError) -> None:
        del self._kept[kept.lease_id]
        self._known.pop(kept.lease_id, None)
        for keeper in kept.keepers:
            keeper.ended = True
            keeper.renewal = None
            keeper.error = copy(error)
            keeper.notify()


def _pause(ttl: float) -> float:
    """Give the seconds between two renewals."""
    return ttl / 3 * _jitter.uniform(0.9, 1.0)


def _revoked(lease_id: int) -> LeaseLostError:
    return LeaseLostError(f"lease {lease_id:x} was revoked", lease_id=lease_id, reason="revoked")


def _unknown(lease_id: int) -> LeaseNotFoundError:
    return LeaseNotFoundError(f"lease {lease_id:x} is not known to the server")
