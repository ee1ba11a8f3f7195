"""The rules of keeping leases alive, without I/O.

What holds at any moment, for each lease that is kept alive:

- ``deadline`` is when the server may let it expire at the earliest: the time at which the last
  answered renewal (at first: the grant) was *sent*, plus the time to live that was answered.
- Past its deadline a lease is lost, whatever answers may still be on their way or unread.
- A renewal is due a third of the time to live after the one before, answered or not, so that
  several are in flight when answers are slow; a stream answers in order.
- A kept lease is renewed on one stream only (`Lane`).
- A stream is left for another endpoint, if there is one, when it owes an answer for as long as a
  lease that waits for it can afford: half of its time to live, or the greater part of what was
  left of it when the silence began, so that it can still be renewed elsewhere. Whether the stream
  has answered before does not matter: gRPC itself would take longer to find a member that was
  stopped. Each answer and each new stream begin the silence anew, so that slow answers are none.
  It is never shorter than a slow link needs, so that silent members do not take turns in a hurry.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from copy import copy

from aioetcd._proto import rpc_pb2
from aioetcd._transport.wish import Wish
from aioetcd.errors import EtcdError, LeaseExpiredError, LeaseLostError, LeaseNotFoundError

# A lease whose time to live is not known yet is asked for so often.
_FIRST_INTERVAL = 1.0
# Renewals are due at multiples of so many seconds: what goes out together costs less.
_BURST = 0.5
# grpc.aio reads and writes the messages of one stream one after the other, each with a way through
# its own thread and the event loop. Those of several streams overlap: sixteen take about three
# quarters of the CPU.
_LANES = 16
_LANE_SIZE = 500
# Of what is left of a lease, a silent stream is given so much. The rest is for finding another
# endpoint, perhaps past one that does not answer either.
_SHARE = 0.6
# And at least so long, if that is not more than half of the time to live: the answer may have to
# come over a slow link.
_SLOW_LINK = 0.8
# A silence is believed when it is seen twice, so long apart: this process may have been held up,
# and the answer lie there unread.
_SECOND_LOOK = 0.05

_jitter = random.Random()  # spreads leases that were granted together


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

    __slots__ = ("ended", "error", "lease_id", "not_before", "notify", "renewal")

    def __init__(
        self, lease_id: int, notify: Callable[[], None], *, not_before: float = 0.0
    ) -> None:
        self.lease_id: int = lease_id
        self.notify: Callable[[], None] = notify
        self.not_before: float = not_before
        self.renewal: rpc_pb2.LeaseKeepAliveResponse | None = None
        self.error: EtcdError | None = None
        self.ended: bool = False


class _Kept:
    """A lease that is kept alive."""

    __slots__ = (
        "confirmed",
        "deadline",
        "keepers",
        "lane",
        "last_sent",
        "lease_id",
        "next_renewal",
        "ttl",
    )

    def __init__(
        self,
        lease_id: int,
        lane: Lane,
        ttl: float,
        deadline: float | None,
        *,
        next_renewal: float,
    ) -> None:
        self.lease_id: int = lease_id
        self.lane: Lane = lane
        self.ttl: float = ttl
        self.deadline: float | None = deadline
        self.next_renewal: float = next_renewal
        self.confirmed: bool = deadline is not None
        self.last_sent: float | None = None
        self.keepers: list[Keeper] = []


class LeaseRules:
    """All leases that a client keeps alive. Times are `time.monotonic`'s.

    Args:
        lanes: How many streams there may be.
        lane_size: How many leases a stream has before the next one is begun.

    Attributes:
        lanes: What is said on each stream.
    """

    def __init__(self, *, lanes: int = _LANES, lane_size: int = _LANE_SIZE) -> None:
        self.lanes: tuple[Lane, ...] = tuple(Lane(self) for _ in range(lanes))
        self._lane_size = lane_size
        # Leases that this client granted or kept alive before, so that their deadline is known
        # before the first renewal: time to live and deadline.
        self._known: dict[int, tuple[float, float]] = {}
        self._sweep_at = 64
        self._kept: dict[int, _Kept] = {}
        # Lower bounds of the deadlines: (time, lease id). A kept lease has at least one entry.
        self._deadlines: list[tuple[float, int]] = []
        # The keepers of lost leases who do not know it yet.
        self._untold: deque[Keeper] = deque()
        # Those who are gone without a word.
        self._dropped: deque[tuple[Keeper, float]] = deque()

    def granted(self, lease_id: int, ttl: int, sent_at: float, now: float) -> None:
        """Remember a grant."""
        self._remember(lease_id, ttl, sent_at + ttl, now)

    def add(self, keeper: Keeper, now: float) -> Lane:
        """Keep a lease alive for `keeper`, and renew it at once; give the lane that does it."""
        kept = self._kept.get(keeper.lease_id)
        if kept is None:
            ttl, deadline = self._known.get(keeper.lease_id, (3 * _FIRST_INTERVAL, None))
            if deadline is not None and deadline <= now:
                # Not kept alive by us; whether by others, the server knows.
                ttl, deadline = 3 * _FIRST_INTERVAL, None
            lane = self._lane_with_room()
            kept = _Kept(keeper.lease_id, lane, ttl, deadline, next_renewal=now)
            self._kept[kept.lease_id] = lane.kept[kept.lease_id] = kept
            if deadline is not None:
                self.expire_at(deadline, kept)
        kept.keepers.append(keeper)
        kept.last_sent = None  # no answer to an earlier renewal puts this one off
        kept.lane.renew_at(kept, now)
        return kept.lane

    def remove(self, keeper: Keeper, now: float) -> None:
        """Stop renewing for `keeper`. The lease itself lives on until its time is over."""
        if keeper.ended:
            return
        keeper.ended = True
        kept = self._kept[keeper.lease_id]
        kept.keepers.remove(keeper)
        if not kept.keepers:
            self._drop(kept)
            if kept.deadline is not None:
                self._remember(kept.lease_id, kept.ttl, kept.deadline, now)
        keeper.notify()

    def dropped(self, keeper: Keeper, now: float) -> None:
        """A keeper is gone without a word: `remove` it at the next opportunity.

        The interpreter may find that out in another thread, or in the middle of one of these
        functions, in which nothing may change.
        """
        self._dropped.append((keeper, now))

    def expire(self, now: float) -> None:
        """Lose every lease whose deadline has passed."""
        self.sweep()
        while (kept := self._soonest(now)) is not None:
            error = LeaseExpiredError(
                f"lease {kept.lease_id:x} could not be renewed within its {kept.ttl:g} s: the "
                "server may have deleted its keys",
                lease_id=kept.lease_id,
            )
            error.__cause__ = kept.lane.failure
            self.lose(kept, error)
        self.tell()

    def revoked(self, lease_id: int) -> Lane | None:
        """This client has revoked a lease; give the lane that renewed it."""
        self._known.pop(lease_id, None)
        kept = self._kept.get(lease_id)
        if kept is None:
            return None
        self.lose(kept, _revoked(lease_id))
        self.tell()
        return kept.lane

    def deadline(self, lease_id: int) -> float | None:
        """Give the time up to which a lease surely lives; None where it is not known."""
        kept = self._kept.get(lease_id)
        if kept is not None:
            return kept.deadline
        known = self._known.get(lease_id)
        return None if known is None else known[1]

    def soonest(self, until: float = math.inf) -> float | None:
        """Give the soonest deadline of those that are kept alive; None for none up to `until`."""
        self.sweep()
        kept = self._soonest(until)
        return None if kept is None else kept.deadline

    def close(self, error: EtcdError) -> None:
        """End all renewals."""
        for kept in list(self._kept.values()):
            self.lose(kept, error)
        self.tell()

    def __len__(self) -> int:
        """Give how many leases are kept alive."""
        self.sweep()
        return len(self._kept)

    # For the lanes.

    def sweep(self) -> None:
        """Remove the keepers that were dropped."""
        while self._dropped:
            self.remove(*self._dropped.popleft())

    def expire_at(self, deadline: float, kept: _Kept) -> None:
        """A lease has its first deadline, or one before that which it had."""
        heapq.heappush(self._deadlines, (deadline, kept.lease_id))
        if len(self._deadlines) > 2 * len(self._kept) + 64:  # those of leases let go pile up
            self._deadlines = [
                (each.deadline, each.lease_id)
                for each in self._kept.values()
                if each.deadline is not None
            ]
            heapq.heapify(self._deadlines)

    def lose(self, kept: _Kept, error: EtcdError) -> None:
        """A lease is gone; `tell` must follow, when all is as it will be."""
        self._drop(kept)
        self._known.pop(kept.lease_id, None)
        for keeper in kept.keepers:
            keeper.ended = True
            keeper.renewal = None
            keeper.error = copy(error)
        self._untold += kept.keepers

    def tell(self) -> None:
        """Tell the keepers of lost leases: all of them, also when one of them raises."""
        while self._untold:
            keeper = self._untold.popleft()
            try:
                keeper.notify()
            except BaseException:
                self.tell()
                raise

    def _soonest(self, until: float) -> _Kept | None:
        """Give the lease with the soonest deadline, if that is not later than `until`."""
        while self._deadlines and self._deadlines[0][0] <= until:
            bound, lease_id = self._deadlines[0]
            kept = self._kept.get(lease_id)
            if kept is None or kept.deadline is None:
                heapq.heappop(self._deadlines)
            elif kept.deadline > bound:
                heapq.heapreplace(self._deadlines, (kept.deadline, lease_id))
            else:
                return kept
        return None

    def _drop(self, kept: _Kept) -> None:
        del self._kept[kept.lease_id], kept.lane.kept[kept.lease_id]
        kept.next_renewal = math.inf

    def _lane_with_room(self) -> Lane:
        for lane in self.lanes:
            if len(lane.kept) < self._lane_size:
                return lane
        return min(self.lanes, key=lambda lane: len(lane.kept))

    def _remember(self, lease_id: int, ttl: float, deadline: float, now: float) -> None:
        if len(self._known) >= self._sweep_at:
            self._known = {i: known for i, known in self._known.items() if known[1] > now}
            self._sweep_at = max(64, 2 * len(self._known))
        self._known[lease_id] = (ttl, deadline)


class Lane:
    """The leases that are renewed on one stream (its `StreamRules`).

    Attributes:
        kept: They, by id.
        failure: Why the last stream ended, until another one has answered.
    """

    def __init__(self, rules: LeaseRules) -> None:
        self.kept: dict[int, _Kept] = {}
        self.failure: EtcdError | None = None
        self._rules = rules
        # The renewals that this stream has still to answer, by lease: when each was sent. They
        # outlive their keepers, or an old answer would be taken for one to a later renewal.
        self._in_flight: dict[int, list[float]] = {}
        # The leases to renew at a time, the last one first; one with another `next_renewal` is
        # void there. And these times, as a heap.
        self._due: dict[float, list[_Kept]] = {}
        self._times: list[float] = []
        self._entries = 0
        self._ticked = 0.0
        self._answered_at = -math.inf
        # When the silence was seen to last too long.
        self._doubted_at = math.inf

    @property
    def wanted(self) -> bool:
        """Whether any lease is kept alive here."""
        self._rules.sweep()
        return bool(self.kept)

    def opened(self, endpoint: str, now: float) -> None:
        """A new stream: renew what is overdue or went unanswered, the most urgent first."""
        for kept in self.kept.values():
            if kept.lease_id in self._in_flight or kept.next_renewal < now:
                kept.next_renewal = now
        self._in_flight.clear()
        self._answered_at = -math.inf
        self._doubted_at = math.inf
        self._plan()

    def next_request(self, now: float) -> rpc_pb2.LeaseKeepAliveRequest | None:
        """Give the next renewal that is due."""
        self._rules.expire(now)
        while self._times and (at := self._times[0]) <= now:
            due = self._due[at]
            while due:
                kept = due.pop()
                self._entries -= 1
                if kept.next_renewal == at:
                    first = kept.last_sent is None
                    kept.last_sent = now
                    self._in_flight.setdefault(kept.lease_id, []).append(now)
                    self.renew_at(kept, _next_renewal(now, kept.ttl, first=first))
                    return rpc_pb2.LeaseKeepAliveRequest(ID=kept.lease_id)
            heapq.heappop(self._times)
            del self._due[at]
        return None

    def received(
        self, response: rpc_pb2.LeaseKeepAliveResponse, size: int, now: float
    ) -> Wish | None:
        """An answer came."""
        # Before it is believed: it may have lain here while this process was stopped.
        self._rules.expire(now)
        lease_id, ttl = response.ID, response.TTL
        sent = self._in_flight.get(lease_id)
        if sent is None:
            return None
        sent_at = sent.pop(0)
        if not sent:
            del self._in_flight[lease_id]
        self.failure = None
        self._answered_at = now
        self._doubted_at = math.inf
        kept = self.kept.get(lease_id)
        if kept is None:
            return None  # nobody cares for it any more
        if ttl <= 0:
            error = _revoked(lease_id) if kept.confirmed else _unknown(lease_id)
            self._rules.lose(kept, error)
            self._rules.tell()
            return Wish.LOOK
        if sent_at + ttl <= now:
            # An answer so late that the time it granted is over; the lease had no deadline yet.
            return None
        first = kept.deadline is None
        if kept.deadline is None or sent_at + ttl < kept.deadline:
            self._rules.expire_at(sent_at + ttl, kept)
        kept.deadline = sent_at + ttl
        changed = first or ttl != kept.ttl
        kept.ttl = ttl
        kept.confirmed = True
        if changed and kept.last_sent is not None:
            self.renew_at(kept, max(now, _next_renewal(kept.last_sent, ttl, first=first)))
        for keeper in kept.keepers:
            if sent_at >= keeper.not_before:
                keeper.renewal = response
                keeper.notify()
        return Wish.LOOK if changed else None

    def lost(self, error: EtcdError, *, final: bool, now: float) -> None:
        """The stream ended. Only its deadline ends a lease; where that is unknown, a refusal."""
        self.failure = error
        if final:
            for kept in [kept for kept in self.kept.values() if kept.deadline is None]:
                self._rules.lose(kept, error)
            self._rules.tell()

    def next_tick(self) -> float | None:
        """Give when a renewal is due, a deadline passes, or the silence has lasted too long."""
        # What was due at the last tick needs no other: it goes out as soon as it can be sent.
        due = self._times[0] if self._times else math.inf
        times = (due, self._too_long_at(), self._doubted_at + _SECOND_LOOK)
        at = min((time for time in times if time > self._ticked), default=math.inf)
        at = self._rules.soonest(at) or at
        return None if at == math.inf else at

    def tick(self, now: float) -> Wish | None:
        """Lose what is past its deadline; a stream is silent for too long when seen so twice."""
        self._ticked = now
        self._rules.expire(now)
        if now < self._too_long_at():
            self._doubted_at = math.inf
            return None
        self._doubted_at = min(self._doubted_at, now)
        return Wish.ELSEWHERE if now >= self._doubted_at + _SECOND_LOOK else None

    def _too_long_at(self) -> float:
        """Give when the silence will have lasted too long; never, where no answer is owed."""
        at = math.inf
        for lease_id, sent in self._in_flight.items():
            kept = self.kept.get(lease_id)
            if kept is not None:
                since = max(sent[0], self._answered_at)
                at = min(at, since + _patience(kept, since))
        return at

    def renew_at(self, kept: _Kept, at: float) -> None:
        """Let a lease of this lane be due then."""
        kept.next_renewal = at
        self._enter(kept)
        if self._entries > 2 * len(self.kept) + 64:  # void ones have piled up
            self._plan()

    def _plan(self) -> None:
        """Make the plan anew; of what is due at the same time, the most urgent comes first."""
        self._due.clear()
        self._times.clear()
        self._entries = 0
        for kept in sorted(self.kept.values(), key=_urgency, reverse=True):
            self._enter(kept)

    def _enter(self, kept: _Kept) -> None:
        due = self._due.get(kept.next_renewal)
        if due is None:
            due = self._due[kept.next_renewal] = []
            heapq.heappush(self._times, kept.next_renewal)
        due.append(kept)
        self._entries += 1


def _patience(kept: _Kept, since: float) -> float:
    """Give how long a silence that began then may last, for this lease's sake."""
    half = kept.ttl / 2
    if kept.deadline is None:
        return half
    return min(half, max(_SLOW_LINK, _SHARE * (kept.deadline - since)))


def _urgency(kept: _Kept) -> float:
    return kept.deadline or 0.0


def _next_renewal(sent_at: float, ttl: float, *, first: bool) -> float:
    """Give when to renew after a renewal: 0.9 to 1 times a third of the time to live later.

    The first pause is 0.3 to 1 times as long, so that leases which begin together part.
    """
    third = ttl / 3
    burst = min(_BURST, third / 20)
    at = sent_at + _jitter.uniform((0.3 if first else 0.9) * third + burst, third)
    return at // burst * burst


def _revoked(lease_id: int) -> LeaseLostError:
    return LeaseLostError(f"lease {lease_id:x} was revoked", lease_id=lease_id, reason="revoked")


def _unknown(lease_id: int) -> LeaseNotFoundError:
    return LeaseNotFoundError(f"lease {lease_id:x} is not known to the server")
