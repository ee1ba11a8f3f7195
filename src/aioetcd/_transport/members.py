"""Which member is asked: the rules, without I/O. What was seen and the time go in.

What holds at any moment:

- One member at most is in use. It is the best one known: one that is well before one that is odd,
  which answers and is not as it should be (no leader, no quorum, a learner, not serving). One that
  does not answer, or belongs to another cluster, is not used.
- Who is in use and well is asked nothing but the users' calls. While nobody who is well is in use,
  every member is looked at: each a moment after the one before, then again and again, with pauses
  that grow to a second.
- What is seen on a connection counts for that connection alone: each new one begins an epoch, and
  what comes late from an old one speaks against nobody.
- A member that answers for another cluster than the others is not used. When all do, they are that
  cluster by now: whoever waits is told.
- A member that is odd is used when all others were looked at, or did not answer for a second.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Iterator, Sequence
from random import Random

from aioetcd._transport.backoff import Backoff
from aioetcd._verdicts.table import Blame
from aioetcd.config.endpoints import Endpoint

# The next member is looked at when the one before has not answered for so long.
HEAD_START = 0.3
# One that is odd is used when nobody better has answered for so long.
SECOND_CHOICE = 1.0
# The pauses before another look at a member.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 1.0


class Health(enum.IntEnum):
    """How a member is; the better, the greater."""

    UNKNOWN = 0
    DOWN = 1
    ODD = 2
    WELL = 3


class Member:
    """One endpoint, for as long as it is in the list.

    Attributes:
        endpoint: Where it is.
        rank: Of several that could be next, the one with the lowest is.
        health: How it was when somebody last knew.
        reason: What is wrong with it; None where nothing is known to be.
        epoch: Counts its connections.
    """

    def __init__(self, endpoint: Endpoint, rank: float) -> None:
        self.endpoint: Endpoint = endpoint
        self.rank: float = rank
        self.health: Health = Health.UNKNOWN
        self.reason: str | None = None
        self.epoch: int = 0
        self.backoff: Backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        # Where it answers for another cluster: that one's id.
        self.foreign: int = 0
        # Since when somebody looks at it; when it was looked at last, and is to be next.
        self.looking_since: float | None = None
        self.seen_at: float = -math.inf
        # Where it is odd: when that was seen first.
        self.odd_since: float = -math.inf
        self.next_look: float = -math.inf

    def __repr__(self) -> str:
        return f"<Member {self.endpoint.name} {self.health.name} {self.reason}>"


class Members:
    """The members of one cluster.

    Args:
        endpoints: Where they are.
        chance: Decides the order in which they are tried: else all clients of a fleet would go to
            the first one in the list.

    Attributes:
        current: The one in use.
        cluster_id: Of the cluster that has answered first; 0 before.
        moves: How often another cluster has taken its place, at all endpoints.
    """

    def __init__(self, endpoints: Iterable[Endpoint], chance: Random) -> None:
        self.current: Member | None = None
        self.cluster_id: int = 0
        self.moves: int = 0
        self._chance = chance
        self._members = [Member(endpoint, chance.random()) for endpoint in endpoints]
        self._searching_since = 0.0

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    @property
    def is_searching(self) -> bool:
        """Whether a better one than who is in use, if anybody is, may be found by looking."""
        current = self.current
        return current is None or (current.health is not Health.WELL and len(self._members) > 1)

    def due(self, now: float) -> Member | None:
        """Give who is to be looked at now; `looking` must follow."""
        waiting = self._waiting()
        if not waiting or self._is_head_start(now):
            return None
        first = min(waiting, key=lambda member: (member.next_look, member.rank))
        return first if first.next_look <= now else None

    def next_due(self, now: float) -> float:
        """Give when to ask `due` and `choose` again, unless something happens before."""
        times = [member.next_look for member in self._waiting()]
        at = min(times, default=math.inf)
        if times and self._is_head_start(now):
            at = max(at, self._last_start() + HEAD_START)
        odd = [m.odd_since for m in self._members if m.health is Health.ODD]
        if self.current is None and odd:
            at = min(at, min(odd) + SECOND_CHOICE)
        return at

    def _waiting(self) -> list[Member]:
        return [member for member in self._members if member.looking_since is None]

    def _last_start(self) -> float:
        return max(
            (m.looking_since for m in self._members if m.looking_since is not None),
            default=-math.inf,
        )

    def _is_head_start(self, now: float) -> bool:
        return now < self._last_start() + HEAD_START

    def looking(self, member: Member, now: float) -> None:
        """Somebody looks at a member now."""
        member.looking_since = now

    def connected(self, member: Member) -> int:
        """A member gets a new connection; give its epoch."""
        member.epoch += 1
        return member.epoch

    def seen(
        self,
        member: Member,
        epoch: int,
        health: Health,
        reason: str | None,
        now: float,
        *,
        cluster_id: int = 0,
    ) -> None:
        """Somebody has looked at a member, on its connection of that epoch."""
        if member not in self._members or epoch != member.epoch:
            return
        member.looking_since = None
        if health > Health.DOWN:
            if cluster_id:  # who is odd does not say it, and is of the one that it was of
                member.foreign = 0 if self.is_ours(cluster_id) else cluster_id
            if member.foreign and {m.foreign for m in self._members} == {cluster_id}:
                self._move(cluster_id)
            elif member.foreign:
                health = Health.DOWN
                reason = (
                    f"it is of cluster {member.foreign:x}, and others are of {self.cluster_id:x}"
                )
        if health is Health.ODD and member.health is not Health.ODD:
            member.odd_since = now
        member.health, member.reason, member.seen_at = health, reason, now
        if health is Health.WELL:
            member.backoff.reset()
            if self.current is None or self.current.health < health:
                self.current = member
        else:
            member.next_look = now + member.backoff.next_delay()
            if member is self.current and health is Health.DOWN:
                self._lose(now)
        self.choose(now)

    def is_ours(self, cluster_id: int, *, decides: bool = True) -> bool:
        """Whether an answer is of this cluster, which the first that may decides."""
        if cluster_id and not self.cluster_id and decides:
            self.cluster_id = cluster_id
        return not cluster_id or self.cluster_id in (0, cluster_id)

    def _move(self, cluster_id: int) -> None:
        """All of them answer for another cluster by now: it has taken the place of the old one."""
        self.moves += 1
        self.cluster_id = cluster_id
        for member in self._members:
            member.foreign = 0

    def choose(self, now: float) -> None:
        """Take one that is odd, where there is nobody better to be expected."""
        if self.current is not None:
            return
        odd = [m for m in self._members if m.health is Health.ODD]
        if not odd:
            return
        all_seen = all(m.seen_at >= self._searching_since for m in self._members)
        if all_seen or now >= min(m.odd_since for m in odd) + SECOND_CHOICE:
            self.current = min(odd, key=lambda member: member.seen_at)

    def failed(self, member: Member, epoch: int, blame: Blame, reason: str, now: float) -> bool:
        """A call has failed; give whether that speaks against the member or its connection."""
        if epoch != member.epoch or blame not in (Blame.MEMBER, Blame.CONNECTION):
            return False
        member.health, member.reason = Health.DOWN, reason
        # At once where nobody else is there, after the others where somebody is.
        member.next_look = now + (HEAD_START if len(self._members) > 1 else 0)
        if member is self.current:
            self._lose(now)
        return True

    def _lose(self, now: float) -> None:
        self.current = None
        self._searching_since = now
        for member in self._members:
            if member.health is Health.ODD:
                member.health = Health.UNKNOWN  # how it is now is to be seen
                member.next_look = min(member.next_look, now)
            elif member.health is Health.WELL:
                member.next_look = now

    def other(self, avoid: Member) -> Member | None:
        """Give another one than `avoid`, the best known, for one call that has to go elsewhere."""
        others = [m for m in self._members if m is not avoid and not m.foreign]
        return max(others, key=lambda member: member.health, default=None)

    def replace(self, endpoints: Sequence[Endpoint], now: float) -> list[Member]:
        """Take another list; give those who are not in it any more."""
        listed = {endpoint.target for endpoint in endpoints}
        known = {m.endpoint.target for m in self._members}
        gone = [m for m in self._members if m.endpoint.target not in listed]
        new = [
            Member(endpoint, self._chance.random())
            for endpoint in endpoints
            if endpoint.target not in known
        ]
        self._members = [m for m in self._members if m not in gone] + new
        if self.current in gone:
            self._lose(now)
        return gone
