"""The store's true history, indexed by revision and by key."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from itertools import pairwise

from aioetcd.testing.checkers.violation import Violation
from aioetcd.testing.records import EventKind, EventRecord, KeyValueRecord, StoreRevision


def in_range(key: bytes, first: bytes, range_end: bytes | None) -> bool:
    r"""Whether a key is in etcd's range: one key without an end, no end where it is ``b"\0"``."""
    if not range_end:
        return key == first
    return first <= key and (range_end == b"\0" or key < range_end)


class Oracle:
    """What the store contained at every revision.

    Args:
        revisions: All of them from the first on, in any order. Where several members were
            watched a revision may occur more than once; the earliest arrival counts.

    Raises:
        ValueError: Two records of one revision differ: the members disagree.
    """

    def __init__(self, revisions: Iterable[StoreRevision]) -> None:
        by_revision: dict[int, StoreRevision] = {}
        for record in revisions:
            known = by_revision.setdefault(record.revision, record)
            if known.events != record.events:
                raise ValueError(f"two different histories of revision {record.revision}")
            if record.at_ns < known.at_ns:
                by_revision[record.revision] = record
        self._by_revision = dict(sorted(by_revision.items()))
        self._revisions = list(self._by_revision)
        self._changes: dict[bytes, tuple[list[int], list[KeyValueRecord | None]]] = {}
        for revision, record in self._by_revision.items():
            for event in record.events:
                at, states = self._changes.setdefault(event.kv.key, ([], []))
                at.append(revision)
                states.append(None if event.type is EventKind.DELETE else event.kv)
        self._keys = sorted(self._changes)

    @property
    def revisions(self) -> list[int]:
        """All revisions, in order."""
        return self._revisions

    @property
    def is_complete(self) -> bool:
        """Whether it begins with the store's first revision: else there is a past unknown to it."""
        return not self._revisions or self._revisions[0] <= 2

    @property
    def last_revision(self) -> int:
        """The newest revision; an empty store is at 1."""
        return self._revisions[-1] if self._revisions else 1

    def events(self, revision: int) -> tuple[EventRecord, ...]:
        """The changes of one revision, in order."""
        record = self._by_revision.get(revision)
        return record.events if record is not None else ()

    def seen_ns(self, revision: int) -> int:
        """When a revision was seen first."""
        return self._by_revision[revision].at_ns

    def between(self, first: int, last: int) -> list[EventRecord]:
        """All changes of the revisions `first` to `last`, both included."""
        low, high = bisect_left(self._revisions, first), bisect_right(self._revisions, last)
        return [
            event
            for revision in self._revisions[low:high]
            for event in self._by_revision[revision].events
        ]

    def knows(self, key: bytes, revision: int) -> bool:
        """Whether it has seen a change of a key up to a revision."""
        at, _ = self._changes.get(key, ((), ()))
        return bisect_right(at, revision) > 0

    def get(self, key: bytes, revision: int) -> KeyValueRecord | None:
        """The key as it was at a revision, None where it did not exist."""
        at, states = self._changes.get(key, ((), ()))
        index = bisect_right(at, revision)
        return states[index - 1] if index else None

    def range(self, key: bytes, range_end: bytes | None, revision: int) -> list[KeyValueRecord]:
        """The keys of a range as they were at a revision, in key order."""
        if not range_end:
            keys: Iterable[bytes] = (key,)
        else:
            low = bisect_left(self._keys, key)
            high = len(self._keys) if range_end == b"\0" else bisect_left(self._keys, range_end)
            keys = self._keys[low:high]
        return [kv for name in keys if (kv := self.get(name, revision)) is not None]


def check_oracle(oracle: Oracle) -> list[Violation]:
    """The store's own history has no gaps, and each change follows from the one before.

    Revisions are consecutive; a put keeps the revision of the key's creation and counts its version
    up, or creates it; what is deleted was there. What was before the history's begin is unknown.
    """
    rule, found = "oracle", []
    for before, revision in pairwise(oracle.revisions):
        if revision != before + 1:
            text = f"after revision {before} comes {revision}"
            found.append(Violation(rule, text, oracle.events(revision)))
    known: set[bytes] = set()
    for revision in oracle.revisions:
        if not oracle.events(revision):
            found.append(Violation(rule, f"revision {revision} changed nothing"))
        for event in oracle.events(revision):
            is_known = event.kv.key in known or oracle.is_complete
            known.add(event.kv.key)
            before_it = oracle.get(event.kv.key, revision - 1)
            if event.kv.mod_revision != revision or (
                is_known and not _follows(event, before_it, revision)
            ):
                text = f"{event.type} at revision {revision} does not follow from {before_it!r}"
                found.append(Violation(rule, text, (event,)))
    return found


def _follows(event: EventRecord, before: KeyValueRecord | None, revision: int) -> bool:
    if event.type is EventKind.DELETE:
        return before is not None
    if before is None:
        return (event.kv.create_revision, event.kv.version) == (revision, 1)
    return (event.kv.create_revision, event.kv.version) == (
        before.create_revision,
        before.version + 1,
    )
