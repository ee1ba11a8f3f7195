"""The jobs of a work queue: their keys, their txns, and which one is the next. No I/O.

Below the queue's name and a slash, `<id>` being a job's:

    items/<id>     what the job is; its create revision is its place in the queue
    claims/<id>    on the lease of the worker that has it, and gone with that: the revision up to
                   which that worker knew the queue, in decimal
    attempts/<id>  how often it was handed out, in decimal
    delays/<id>    on a lease of its own, whose time to live is the delay: the server ends it
    dead/<id>      in place of the item, when it was handed out as often as it may be
    workers/<id>   on a worker's lease, `<id>` being that in hexadecimal

What holds at any moment:

- A job may be taken where its item is there, and neither a claim nor a delay. The txn that claims
  it compares all of that, and counts the attempt; so it is claimed once for each count.
- Who has a claim knows its create revision, which no other claim of any job ever has. What ends a
  claim compares it, and so ends nobody else's, however late it arrives.
- The item is deleted by the txn that acknowledges it, by that which puts it aside, and by nothing
  else.
"""

from __future__ import annotations

import enum
import heapq
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from aioetcd.compare import Compare
from aioetcd.concurrency._mirror import Step
from aioetcd.ops import AnyOp, Op, TxnResponse
from aioetcd.types.answers import GetResponse
from aioetcd.types.store import KeyValue


def count_of(attempts: KeyValue | None) -> int:
    """Read how often a job was handed out."""
    return int(attempts.value) if attempts is not None and attempts.value.isdigit() else 0


class Found(NamedTuple):
    """A job that may be taken, as far as a worker knows.

    Attributes:
        id: Its id.
        item: Its item.
        attempts: How often it was handed out; None for never.
    """

    id: bytes
    item: KeyValue
    attempts: KeyValue | None


class Claim(NamedTuple):
    """A job that was taken.

    Attributes:
        id: Its id.
        value: What it is.
        attempt: How often it was handed out by now.
        revision: The claim's create revision.
    """

    id: bytes
    value: bytes
    attempt: int
    revision: int


class Fate(enum.Enum):
    """What became of a claim that was to be ended."""

    ENDED = enum.auto()
    """As it was to be, by this or an earlier try."""
    LOST = enum.auto()
    """Somebody else's doing, or the end of the lease: surely not what was to be done."""
    UNKNOWN = enum.auto()
    """Either of both."""


class Keys:
    """The keys of a queue, and the txns on them.

    Args:
        name: The queue's.
    """

    def __init__(self, name: bytes) -> None:
        self.prefix: bytes = name + b"/"

    def key(self, kind: str, id: bytes = b"") -> bytes:
        """Give a key, or without an id what all of that kind begin with."""
        return self.prefix + kind.encode() + b"/" + id

    def parse(self, key: bytes) -> tuple[str, bytes]:
        """Give the kind of a key, and its id."""
        kind, _, id = key[len(self.prefix) :].partition(b"/")
        return kind.decode(errors="replace"), id

    def is_owner(self, claim: Claim) -> Compare:
        """Make the comparison that holds as long as the claim does."""
        return Compare.create_revision(self.key("claims", claim.id)) == claim.revision

    def put(self, id: bytes, value: bytes, delay: int | None) -> Op[TxnResponse]:
        """Put a job, with a delay's lease perhaps."""
        return Op.txn(
            compare=[Compare.missing(self.key("items", id))],
            success=[Op.put(self.key("items", id), value), *self._delay(id, delay)],
        )

    def claim(self, found: Found, *, lease: int, seen: int) -> _Claiming:
        """Take a job, knowing the queue as it was at the revision `seen`."""
        return _Claiming(self, found, lease, seen)

    def acknowledge(self, claim: Claim, worker: bytes) -> _Ending:
        """End a claim and the job with it."""
        kinds = ("claims", "items", "attempts")
        deletes = [Op.delete(self.key(kind, claim.id)) for kind in kinds]
        return _Ending(self, claim, worker, deletes, item_stays=False)

    def requeue(self, claim: Claim, worker: bytes, delay: int | None) -> _Ending:
        """End a claim, perhaps with a delay's lease, so that the job is handed out again."""
        then = [Op.delete(self.key("claims", claim.id)), *self._delay(claim.id, delay)]
        return _Ending(self, claim, worker, then, item_stays=True)

    def take_back(self, claim: KeyValue, attempt: int) -> Op[TxnResponse]:
        """End a claim that nobody has been given: it counts as no attempt."""
        _, id = self.parse(claim.key)
        return Op.txn(
            compare=[Compare.create_revision(claim.key) == claim.create_revision],
            success=[Op.delete(claim.key), Op.put(self.key("attempts", id), str(attempt - 1))],
        )

    def bury(self, found: Found) -> Op[TxnResponse]:
        """Put a job aside that was handed out as often as it may be."""
        return Op.txn(
            compare=self._is_free(found),
            success=[
                Op.delete(found.item.key),
                Op.put(self.key("dead", found.id), found.item.value),
            ],
        )

    def revive(self, dead: KeyValue) -> Op[TxnResponse]:
        """Put a job that was put aside at the end of the queue, as if it were new."""
        _, id = self.parse(dead.key)
        return Op.txn(
            compare=[Compare.unchanged(dead)],
            success=[
                Op.delete(dead.key),
                Op.delete(self.key("attempts", id)),
                Op.put(self.key("items", id), dead.value),
            ],
        )

    def discard(self, id: bytes) -> Op[TxnResponse]:
        """Delete a job that was put aside."""
        kinds = ("dead", "attempts")
        return Op.txn(
            compare=[Compare.exists(self.key("dead", id))],
            success=[Op.delete(self.key(kind, id)) for kind in kinds],
        )

    def _delay(self, id: bytes, lease: int | None) -> list[AnyOp]:
        return [] if lease is None else [Op.put(self.key("delays", id), b"", lease=lease)]

    def _is_free(self, found: Found) -> list[Compare]:
        """Make what holds as long as a job may be taken that was handed out so often."""
        attempts = self.key("attempts", found.id)
        return [
            Compare.unchanged(found.item),
            Compare.missing(self.key("claims", found.id)),
            Compare.missing(self.key("delays", found.id)),
            Compare.missing(attempts)
            if found.attempts is None
            else Compare.unchanged(found.attempts),
        ]


class _Claiming:
    """The txn that takes a job; twice is the same as once, because it changes what it compares."""

    def __init__(self, keys: Keys, found: Found, lease: int, seen: int) -> None:
        self._found = found
        self._lease = lease
        claim = keys.key("claims", found.id)
        attempts = keys.key("attempts", found.id)
        kinds = ("items", "claims", "attempts")
        self._reads: list[Op[GetResponse]] = [Op.get(keys.key(kind, found.id)) for kind in kinds]
        self.op: Op[TxnResponse] = Op.txn(
            compare=keys._is_free(found),
            success=[
                Op.put(claim, str(seen), lease=lease),
                Op.put(attempts, str(count_of(found.attempts) + 1)),
            ],
            failure=self._reads,
        )

    def taken(self, result: TxnResponse, held: int | None) -> Claim | None:
        """Give the claim, where the txn or an earlier one on this lease has taken the job.

        Args:
            result: The txn's.
            held: The claim of this job that somebody on this lease has, perhaps no longer.
        """
        id, item, attempts = self._found
        if result.succeeded:
            return Claim(id, item.value, count_of(attempts) + 1, result.header.revision)
        now, claim, counted = (result[read].kv for read in self._reads)
        if now is None or claim is None or claim.lease != self._lease:
            return None
        if claim.create_revision == held:
            return None
        return Claim(id, now.value, count_of(counted), claim.create_revision)


class _Ending:
    """The txn that ends a claim; twice is the same as once, because there is no other like it."""

    def __init__(
        self, keys: Keys, claim: Claim, worker: bytes, then: Sequence[AnyOp], *, item_stays: bool
    ) -> None:
        self._item_stays = item_stays
        self._item: Op[GetResponse] = Op.get(keys.key("items", claim.id), keys_only=True)
        self._worker: Op[GetResponse] = Op.get(worker, keys_only=True)
        self.op: Op[TxnResponse] = Op.txn(
            compare=[keys.is_owner(claim)], success=then, failure=[self._item, self._worker]
        )

    def fate(self, result: TxnResponse, *, tried_else: bool) -> Fate:
        """Say what became of the claim.

        Args:
            result: The txn's.
            tried_else: Whether one of the other kind may have been applied before.
        """
        if result.succeeded:
            return Fate.ENDED
        is_there = bool(result[self._item].kvs)
        if not result[self._worker].kvs:  # the lease may have ended the claim
            return Fate.LOST if is_there and not self._item_stays else Fate.UNKNOWN
        # Nobody else ends the claim of a worker that is there.
        if self._item_stays:
            return Fate.UNKNOWN if tried_else and not is_there else Fate.ENDED
        if is_there:
            return Fate.LOST
        return Fate.UNKNOWN if tried_else else Fate.ENDED


class Jobs:
    """The jobs of a queue, as one of its workers knows them.

    Args:
        keys: The queue's.
        lease: The worker's.

    Attributes:
        held: By id, the create revision of this worker's claim, until it is seen to be gone.
        workers: How many workers there are.
    """

    def __init__(self, keys: Keys, lease: int) -> None:
        self.held: dict[bytes, int] = {}
        self.workers: int = 0
        self._keys = keys
        self._lease = lease
        self._kvs: Mapping[bytes, KeyValue] = {}
        # What may be taken, or might be a moment ago, by place; and each id that is in it.
        self._places: list[tuple[int, bytes]] = []
        self._placed: set[bytes] = set()
        # Somebody here is about to take them.
        self._taken: set[bytes] = set()
        # Of these more is known than what was told: they may not be taken until that is told.
        self._behind: set[bytes] = set()
        # Of those, what somebody else was faster with: as it may be free again by now, those behind
        # it are not taken either.
        self._lost: set[bytes] = set()

    @property
    def is_any(self) -> bool:
        """Whether there is one to take."""
        return self._first() is not None

    def apply(self, steps: Iterable[Step], kvs: Mapping[bytes, KeyValue]) -> list[KeyValue]:
        """Learn what has changed; give the claims on this lease that nobody here knows of.

        Args:
            steps: What has changed.
            kvs: All keys of the queue, afterwards.
        """
        if kvs is not self._kvs:  # they were read again, and what is as it was is not told
            news, self._kvs = self._behind, kvs
            self._behind, self._lost = set(), set()
            for id in news:
                self._place(id)
        strange = []
        for old, new in steps:
            kv = new or old
            assert kv is not None
            kind, id = self._keys.parse(kv.key)
            if kind == "workers":
                self.workers += (new is not None) - (old is not None)
            if kind not in ("items", "claims", "attempts", "delays"):
                continue
            self._behind.discard(id)
            self._lost.discard(id)
            if kind == "claims":
                if new is not None and self._is_strange(id, new):
                    strange.append(new)
                if new is None and old is not None and self.held.get(id) == old.create_revision:
                    del self.held[id]
            self._place(id)
        return strange

    def take(self) -> Found | None:
        """Take the first one: nobody else here is given it until that has `ended`."""
        id = self._first()
        if id is None:
            return None
        heapq.heappop(self._places)
        self._placed.discard(id)
        self._taken.add(id)
        return self._look(id)

    def ended(self, found: Found, *, is_known: bool, is_won: bool = False) -> KeyValue | None:
        """It is not about to be taken any more.

        Args:
            found: What `take` gave.
            is_known: Whether the server has said that it may not be taken any more.
            is_won: Whether that is because it was taken here.

        Returns:
            The claim on this lease that is there, and that nobody here knows of.
        """
        id = found.id
        self._taken.discard(id)
        if is_known and self._look(id) == found:
            self._behind.add(id)
            if not is_won:
                self._lost.add(id)
        self._place(id)
        claim = self._kvs.get(self._keys.key("claims", id))
        return claim if claim is not None and self._is_strange(id, claim) else None

    def attempt(self, claim: KeyValue) -> int:
        """Give which attempt a claim is."""
        _, id = self._keys.parse(claim.key)
        return count_of(self._kvs.get(self._keys.key("attempts", id)))

    def _is_strange(self, id: bytes, claim: KeyValue) -> bool:
        is_ours = claim.lease == self._lease and id not in self._taken
        return is_ours and self.held.get(id) != claim.create_revision

    def _look(self, id: bytes) -> Found | None:
        """Give a job that may be taken, as far as was told."""
        key = self._keys.key
        item = self._kvs.get(key("items", id))
        if item is None or key("claims", id) in self._kvs or key("delays", id) in self._kvs:
            return None
        return Found(id, item, self._kvs.get(key("attempts", id)))

    def _may_be_taken(self, id: bytes) -> Found | None:
        return None if id in self._taken or id in self._behind else self._look(id)

    def _place(self, id: bytes) -> None:
        found = None if id in self._placed else self._may_be_taken(id)
        if found is not None:
            self._placed.add(id)
            heapq.heappush(self._places, (found.item.create_revision, id))

    def _first(self) -> bytes | None:
        while self._places and not self._lost:
            place, id = self._places[0]
            found = self._may_be_taken(id)
            if found is not None and found.item.create_revision == place:
                return id
            heapq.heappop(self._places)
            self._placed.discard(id)
            self._place(id)  # it has another place by now, perhaps
        return None
