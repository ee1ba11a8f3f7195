"""What a transaction commits, and what became of a commit whose answer was lost. No I/O.

What holds at any moment:

- A commit is applied as a whole, at one revision, and only while its comparisons hold. A copy of it
  that is still under way may be applied at any later time, as long as they hold, or hold *again*:
  those with a key that was missing do so once that key is deleted. Only a comparison with a key
  that was there (`mod_revision` equal to the one seen) never holds again when it has failed once.
- So the same commit is sent again only where applying it ends such a comparison for good: of all
  its copies at most one is applied.
- That it was not applied, and never will be, is believed where such a comparison has failed, and a
  key shows that it was not written. That it *was* applied is never believed for equal values, which
  others may have written; only for a receipt, whose value nobody else writes.
- A receipt is always compared with, and is always there before a commit: the first change to it
  ends every copy. If that is the commit's own, it was applied; if it is another one, it was not.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from aioetcd.compare import Compare
from aioetcd.ops import AnyOp, Op
from aioetcd.types.store import KeyValue


class Fate(enum.Enum):
    """What became of a commit whose answer was lost."""

    OPEN = enum.auto()
    """It is not applied yet; it may be sent again, because only one of both can be applied."""
    APPLIED = enum.auto()
    """It was applied."""
    NEVER = enum.auto()
    """It was not applied, and never will be."""
    UNKNOWN = enum.auto()
    """The keys do not tell."""


class Write(NamedTuple):
    """What a key is to be: a value and its lease; without a value, deleted."""

    value: bytes | None
    lease: int | None = None

    def operation(self, key: bytes) -> AnyOp:
        """Give what does it."""
        if self.value is None:
            return Op.delete(key)
        return Op.put(key, self.value, lease=self.lease)


class Receipt(NamedTuple):
    """A key that tells whether a commit was applied.

    Attributes:
        seen: What it was before.
        value: What the commit, and nobody else, puts there.
    """

    seen: KeyValue
    value: bytes

    def fate(self, now: KeyValue | None) -> Fate:
        """Judge by what is there after it has changed.

        Args:
            now: The key, read after the commit was sent, and no longer as it was seen.
        """
        if now is None:
            return Fate.UNKNOWN
        if now.value == self.value:
            return Fate.APPLIED
        is_first_change = (now.create_revision, now.version) == (
            self.seen.create_revision,
            self.seen.version + 1,
        )
        return Fate.NEVER if is_first_change else Fate.UNKNOWN

    def fate_by_history(self, first: KeyValue) -> Fate:
        """Judge by the first change after it was seen."""
        return Fate.APPLIED if first.value == self.value else Fate.NEVER


class Commit(NamedTuple):
    """What is to be written, if what was seen is still so.

    Attributes:
        seen: Keys that must be as they were: None for one that was missing.
        writes: What is written.
        since: The keys that are written and not in `seen` must not have changed after this
            revision; None where they may.
        known: A revision that the store had before this was sent.
        receipt: What tells whether it was applied.
    """

    seen: Mapping[bytes, KeyValue | None]
    writes: Mapping[bytes, Write]
    since: int | None
    known: int
    receipt: Receipt | None = None

    @property
    def compared(self) -> list[bytes]:
        """The keys that decide whether it is applied, without the receipt."""
        unseen = () if self.since is None else (key for key in self.writes if key not in self.seen)
        return [*self.seen, *unseen]

    @property
    def comparisons(self) -> list[Compare]:
        """What must hold for it to be applied."""
        comparisons = [
            Compare.missing(key) if kv is None else Compare.unchanged(kv)
            for key, kv in self.seen.items()
        ]
        if self.since is not None:
            comparisons += [
                Compare.mod_revision(key) < self.since + 1
                for key in self.writes
                if key not in self.seen
            ]
        if self.receipt is not None:
            comparisons.append(Compare.unchanged(self.receipt.seen))
        return comparisons

    @property
    def operations(self) -> list[AnyOp]:
        """What it does."""
        operations = [write.operation(key) for key, write in self.writes.items()]
        if self.receipt is not None:
            operations.append(Op.put(self.receipt.seen.key, self.receipt.value))
        return operations

    @property
    def can_be_judged(self) -> bool:
        """Whether `fate`, or the receipt, may ever tell anything."""
        return self.receipt is not None or any(kv is not None for kv in self.seen.values())

    def changed(self, now: Mapping[bytes, KeyValue | None]) -> tuple[bytes, ...]:
        """Give the keys that stand in its way.

        Args:
            now: The keys that are compared, and the receipt.
        """
        changed = [key for key in self.compared if not self._holds(key, now[key])]
        if self.receipt is not None:
            seen = self.receipt.seen
            if _revision(now[seen.key]) != seen.mod_revision:
                changed.append(seen.key)
        return tuple(changed)

    def fate(self, now: Mapping[bytes, KeyValue | None]) -> Fate:
        """Judge one without a receipt by what is there now.

        Args:
            now: The keys that it compares and writes, read at one revision after it was sent.
        """
        changed = [key for key in self.compared if not self._holds(key, now[key])]
        if any(self.seen.get(key) is not None for key in changed):  # it can never be applied now
            unwritten = any(
                self._is_unwritten(key, write, now[key]) for key, write in self.writes.items()
            )
            return Fate.NEVER if unwritten else Fate.UNKNOWN
        ends_itself = any(self.seen.get(key) is not None for key in self.writes)
        return Fate.OPEN if ends_itself and not changed else Fate.UNKNOWN

    def _holds(self, key: bytes, now: KeyValue | None) -> bool:
        if key in self.seen:
            return _revision(now) == _revision(self.seen[key])
        return self.since is None or _revision(now) <= self.since

    def _is_unwritten(self, key: bytes, write: Write, now: KeyValue | None) -> bool:
        """Whether a key shows that the commit was not applied."""
        if now is None:  # it may have been written, and deleted since
            return False
        if write.value is None:  # it was never deleted since then
            return now.create_revision <= self.known
        if now.mod_revision <= self.known:
            return True
        seen = self.seen.get(key)
        is_first_change = seen is not None and (now.create_revision, now.version) == (
            seen.create_revision,
            seen.version + 1,
        )
        return is_first_change and (now.value, now.lease) != (write.value, write.lease)


def keys_of(commit: Commit) -> Iterable[bytes]:
    """Give all keys that `Commit.fate` asks for."""
    return dict.fromkeys((*commit.compared, *commit.writes))


def _revision(kv: KeyValue | None) -> int:
    return 0 if kv is None else kv.mod_revision
