"""Who made each revision of the store: every one is accounted for, and none twice.

A revision was made by the write that was told it, by a write of unknown outcome, by the end of a
lease, or by somebody whom the history does not know and the test declares. A write makes one
revision at most, and all of its changes are in it, alone. Which of several unknown writes made
which of several revisions nobody knows; that each can have one of its own is a matching.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from aioetcd.testing.checkers.oracle import Oracle, in_range
from aioetcd.testing.checkers.requests import (
    all_hold,
    all_requests,
    branch,
    is_serializable,
    may_write,
)
from aioetcd.testing.checkers.violation import Violation
from aioetcd.testing.records import Delete, EventKind, EventRecord, Get, Operation, Put, Txn

_Change: TypeAlias = tuple[EventKind, bytes, bytes, int | None]


def check_writes(
    operations: Iterable[Operation],
    oracle: Oracle,
    *,
    outside: Callable[[EventRecord], bool] | None = None,
) -> list[Violation]:
    """Every change of the store is accounted for, and every acknowledged write is in it, once.

    The rules that may be broken:

    - ``ok write``: an acknowledged write is not in the store at the revision that it was told, as a
      whole and alone there; or is at another one as well; or the number of deleted keys is wrong.
    - ``not applied``: what surely had no effect is in the store, or the branch that was not taken.
    - ``unknown write``: writes of unknown outcome are in the store more often than they were made.
    - ``real time``: the only write of unknown outcome that can have made a revision was made later.
    - ``unaccounted``: nobody made a revision.

    Args:
        operations: The history.
        oracle: The store's whole history.
        outside: Says which changes are those of writers that the history does not know.
    """
    operations = list(operations)
    books = _Books(operations, oracle, outside)
    return [*books.acknowledged(), *books.others()]


class _Books:
    """Which revisions have a maker, and who that may be."""

    def __init__(
        self,
        operations: list[Operation],
        oracle: Oracle,
        outside: Callable[[EventRecord], bool] | None,
    ) -> None:
        self._operations = [op for op in operations if may_write(op.request)]
        self._oracle = oracle
        self._outside = outside
        self._makers: dict[int, Operation] = {}
        self._leases = _Leases(oracle)
        self._floors = _Floors(operations)

    def acknowledged(self) -> Iterable[Violation]:
        """Find each acknowledged write at its revision."""
        for operation in self._operations:
            if operation.outcome != "ok":
                continue
            if operation.revision is None:
                yield Violation("ok write", "answered without a revision", (operation,))
                continue
            yield from self._at_its_revision(operation, operation.revision)

    def _at_its_revision(self, operation: Operation, revision: int) -> Iterable[Violation]:
        wanted = branch(operation)
        made = _effect(wanted, self._oracle, revision)
        is_there = bool(made) and self._has(revision, made)
        told = operation.deleted
        if not any(isinstance(op, Put) for op in wanted) and (
            told == 0 or (told is None and (not is_there or revision in self._makers))
        ):
            # It changed nothing, and was told the revision that the store then had.
            for _, key, *_ in _effect(wanted, self._oracle, revision + 1)[:1]:
                text = f"told that nothing was there to delete at {revision}, but {key!r} was"
                yield Violation("ok write", text, (operation,))
            return
        first = self._makers.setdefault(revision, operation)
        deleted = sum(kind is EventKind.DELETE for kind, *_ in made)
        if first is not operation:
            text = f"two writes were told revision {revision}"
            yield Violation("ok write", text, (first, operation))
        elif not is_there:
            events = self._oracle.events(revision)
            text = f"acknowledged at revision {revision}, where the store has {_short(events)}"
            yield Violation("ok write", text, (operation,))
            if not set(made) & set(map(_change, events)):
                del self._makers[revision]  # it is somebody else's
        elif told is not None and told != deleted:
            text = f"told that {told} key(s) were deleted at {revision}, not {deleted}"
            yield Violation("ok write", text, (operation,))

    def _has(self, revision: int, expected: list[_Change]) -> bool:
        """Whether a revision has these changes and no others; their order is for the watches."""
        return Counter(map(_change, self._oracle.events(revision))) == Counter(expected)

    def others(self) -> Iterable[Violation]:
        """Give each revision that nobody was told a maker of its own."""
        open_ = [
            revision
            for revision in self._oracle.revisions
            if revision not in self._makers
            and self._oracle.events(revision)
            and not self._is_explained(revision)
        ]
        unknown = [op for op in self._operations if op.outcome == "unknown"]
        makers = _Makers(unknown)
        candidates = {
            revision: [
                op
                for op in makers.of(self._oracle.events(revision))
                if self._could_make(op, revision) and self._could_be_in_time(op, revision)
            ]
            for revision in open_
        }
        for revision in _without_a_maker(candidates):
            yield self._nobodys(revision, unknown)

    def _is_explained(self, revision: int) -> bool:
        events = self._oracle.events(revision)
        if self._outside is not None and all(map(self._outside, events)):
            return True
        return self._leases.end_explains(revision)

    def _could_make(self, operation: Operation, revision: int) -> bool:
        """Whether a write, sent now, would make just this revision of the store before it."""
        return self._has(revision, self._effect_of(operation, revision))

    def _could_be_in_time(self, operation: Operation, revision: int) -> bool:
        """Whether a revision may have been made after the call."""
        seen_ns = self._oracle.seen_ns(revision)
        return operation.call_ns <= seen_ns and self._floors.before(operation) < revision

    def _effect_of(self, operation: Operation, revision: int) -> list[_Change]:
        request = operation.request
        if not isinstance(request, Txn):
            return _effect((request,), self._oracle, revision)
        holds = all_hold(request, self._oracle, revision - 1)
        taken = request.success if holds else request.failure
        return _effect(taken, self._oracle, revision)

    def _nobodys(self, revision: int, unknown: list[Operation]) -> Violation:
        """Say whose a revision might be that has no maker."""
        events = self._oracle.events(revision)
        what = f"revision {revision}, {_short(events)},"
        made = set(map(_change, events))
        seen_ns = self._oracle.seen_ns(revision)
        near = sorted(self._operations, key=lambda op: abs(seen_ns - op.return_ns))
        for op in near:
            if made.intersection(_effect(_branch_not_taken(op), self._oracle, revision)):
                return Violation("not applied", f"{what} is of a branch that was not taken", (op,))
            if op.outcome == "ok" and made.intersection(self._effect_of(op, revision)):
                text = f"{what} was made by a write that was told revision {op.revision}"
                return Violation("ok write", text, (op,))
        again = [op for op in unknown if self._could_make(op, revision)]
        if again:
            if all(not self._could_be_in_time(op, revision) for op in again):
                text = f"{what} was there before the call that can have made it"
                return Violation("real time", text, tuple(again))
            text = (
                f"{what} is there more often than by the {len(again)} call(s) that may have made it"
            )
            return Violation("unknown write", text, tuple(again))
        for op in near:
            if op.outcome == "not_applied" and self._could_make(op, revision):
                return Violation("not applied", f"{what} is in the store", (op,))
            if op.outcome == "unknown" and made.intersection(
                _effect(all_requests(op.request), self._oracle, revision)
            ):
                return Violation("unknown write", f"{what} is not what its call makes", (op,))
        return Violation("unaccounted", f"{what} was made by nobody", events)


def _change(event: EventRecord) -> _Change:
    return (event.type, event.kv.key, event.kv.value, event.kv.lease)


def _short(events: Sequence[EventRecord]) -> str:
    shown = ", ".join(f"{event.type} {event.kv.key!r}" for event in events[:3]) or "nothing"
    return shown + (f" and {len(events) - 3} more" if len(events) > 3 else "")


def _effect(ops: Iterable[Put | Get | Delete], oracle: Oracle, revision: int) -> list[_Change]:
    """Give the changes that requests make as this revision, from the store just before it."""
    changes: list[_Change] = []
    for op in ops:
        if isinstance(op, Put):
            changes.append((EventKind.PUT, op.key, op.value, op.lease))
        elif isinstance(op, Delete):
            there = oracle.range(op.key, op.range_end, revision - 1)
            changes += [(EventKind.DELETE, kv.key, b"", None) for kv in there]
    return changes


def _branch_not_taken(operation: Operation) -> Sequence[Put | Get | Delete]:
    request = operation.request
    if not isinstance(request, Txn) or operation.outcome != "ok":
        return ()
    return request.failure if operation.succeeded else request.success


class _Makers:
    """Finds the writes that can have made a change, without asking each."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        self._puts: defaultdict[tuple[bytes, bytes], list[Operation]] = defaultdict(list)
        self._keys: defaultdict[bytes, list[Operation]] = defaultdict(list)
        self._ranges: list[tuple[Delete, Operation]] = []
        for operation in operations:
            for op in all_requests(operation.request):
                if isinstance(op, Put):
                    self._puts[op.key, op.value].append(operation)
                elif isinstance(op, Delete) and not op.range_end:
                    self._keys[op.key].append(operation)
                elif isinstance(op, Delete):
                    self._ranges.append((op, operation))

    def of(self, events: Sequence[EventRecord]) -> list[Operation]:
        """Give those that can have made the first of some changes, each once."""
        kv = events[0].kv
        if events[0].type is EventKind.PUT:
            found = self._puts.get((kv.key, kv.value), [])
        else:
            covering = [o for op, o in self._ranges if in_range(kv.key, op.key, op.range_end)]
            found = [*self._keys.get(kv.key, ()), *covering]
        return list({id(operation): operation for operation in found}.values())


def _without_a_maker(candidates: dict[int, list[Operation]]) -> list[int]:
    """Give each revision a maker of its own, as many as can be, and return those without."""
    taken: dict[int, int] = {}  # by the id of an operation: the revision that it made

    def find(revision: int) -> bool:
        """Search a free maker, by way of those that can change theirs (without recursion)."""
        came_from: dict[int, tuple[int, int | None]] = {}
        queue: list[tuple[int, int | None]] = [(revision, None)]
        for place, through in queue:
            for op in candidates[place]:
                if id(op) in came_from:
                    continue
                came_from[id(op)] = (place, through)
                if id(op) in taken:
                    queue.append((taken[id(op)], id(op)))
                    continue
                step: int | None = id(op)
                while step is not None:
                    owner, step_before = came_from[step]
                    taken[step] = owner
                    step = step_before
                return True
        return False

    return [revision for revision in candidates if not find(revision)]


class _Floors:
    """What was returned before a call was made."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        returned = sorted(
            (op.return_ns, op.revision)
            for op in operations
            if op.outcome == "ok" and op.revision is not None and not is_serializable(op.request)
        )
        self._times = [at for at, _ in returned]
        self._greatest: list[int] = []
        for _, revision in returned:
            self._greatest.append(max(revision, self._greatest[-1] if self._greatest else 0))

    def before(self, operation: Operation) -> int:
        """Give the greatest revision that anybody was told before the call."""
        index = bisect_left(self._times, operation.call_ns)
        return self._greatest[index - 1] if index else 0


class _Leases:
    """Which keys hang on which lease, as the events say."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self._last_put: dict[int, int] = {}
        self._keys: defaultdict[int, set[bytes]] = defaultdict(set)
        for event in oracle.between(0, oracle.last_revision):
            if event.kv.lease is not None:
                self._last_put[event.kv.lease] = event.kv.mod_revision
                self._keys[event.kv.lease].add(event.kv.key)

    def end_explains(self, revision: int) -> bool:
        """Whether a revision is the end of one lease: all of its keys go, and none comes again."""
        events = self._oracle.events(revision)
        if any(event.type is not EventKind.DELETE for event in events):
            return False
        gone = {event.kv.key for event in events}
        before = self._oracle.get(events[0].kv.key, revision - 1)
        lease = None if before is None else before.lease
        if lease is None or self._last_put[lease] > revision:
            return False
        states = [self._oracle.get(key, revision - 1) for key in self._keys[lease]]
        return gone == {kv.key for kv in states if kv is not None and kv.lease == lease}
