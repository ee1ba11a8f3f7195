"""Checks of what clients asked and were told: writes, reads, transactions, and their order."""

from __future__ import annotations

import operator
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from aioetcd.testing.checkers.oracle import Oracle, in_range
from aioetcd.testing.checkers.violation import Violation
from aioetcd.testing.records import (
    Comparison,
    Delete,
    EventKind,
    Get,
    KeyValueRecord,
    Operation,
    Put,
    Txn,
)

_OPERATORS: dict[str, Callable[[bytes | int, bytes | int], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}

# --- writes ---------------------------------------------------------------------------------


class _Writes:
    """Who put which value, and at which revisions the store has it."""

    def __init__(self, operations: Iterable[Operation], oracle: Oracle) -> None:
        self.told: defaultdict[Put, list[Operation]] = defaultdict(list)
        self.maybe: defaultdict[Put, list[Operation]] = defaultdict(list)
        self.never: defaultdict[Put, list[Operation]] = defaultdict(list)
        for operation in operations:
            done, other = _puts(operation)
            where = {"ok": self.told, "unknown": self.maybe, "not_applied": self.never}
            for put in done:
                where[operation.outcome][put].append(operation)
            for put in other:
                self.never[put].append(operation)
        self.found: defaultdict[Put, list[int]] = defaultdict(list)
        for event in oracle.between(0, oracle.last_revision):
            if event.type is EventKind.PUT:
                self.found[Put(event.kv.key, event.kv.value)].append(event.kv.mod_revision)

    def unclaimed(self, put: Put) -> list[int]:
        """Where the value is found without having been acknowledged there."""
        claimed = {operation.revision for operation in self.told.get(put, ())}
        return [revision for revision in self.found.get(put, ()) if revision not in claimed]


def _puts(operation: Operation) -> tuple[set[Put], set[Put]]:
    """The puts that an operation made or may have made, and those that it surely did not."""
    request = operation.request
    if isinstance(request, Put):
        return {request}, set()
    if not isinstance(request, Txn):
        return set(), set()
    success = {op for op in request.success if isinstance(op, Put)}
    failure = {op for op in request.failure if isinstance(op, Put)}
    if operation.outcome != "ok":
        return success | failure, set()
    done, other = (success, failure) if operation.succeeded else (failure, success)
    return done, other - done


def _branch(operation: Operation) -> Sequence[Put | Get | Delete]:
    """The requests that were executed."""
    request = operation.request
    if isinstance(request, Txn):
        return request.success if operation.succeeded else request.failure
    return (request,)


def _changed(operation: Operation) -> bool:
    """Whether an answered operation made a revision of its own."""
    return bool(operation.deleted) or any(isinstance(op, Put) for op in _branch(operation))


def check_ok_writes(operations: Iterable[Operation], oracle: Oracle) -> list[Violation]:
    """An acknowledged write is in the store once, at the revision that was told, alone there.

    Puts are found by key and value. A value that several operations put may be found as often as
    it was acknowledged, and once more for each unknown outcome.
    """
    rule, found = "ok write", []
    operations = list(operations)
    writes = _Writes(operations, oracle)
    for put, told in writes.told.items():
        for operation in told:
            if operation.revision not in writes.found.get(put, ()):
                text = f"acknowledged at revision {operation.revision}, but the store has it at"
                at = writes.found.get(put) or "none"
                found.append(Violation(rule, f"{put}: {text} {at}", (operation,)))
        rest = writes.unclaimed(put)
        if len(rest) > len(writes.maybe.get(put, ())):
            text = f"acknowledged {len(told)} time(s), but also at revision(s) {rest}"
            found.append(Violation(rule, f"{put}: {text}", tuple(told)))
    makers: dict[int, Operation] = {}
    for operation in operations:
        if operation.outcome != "ok" or not _changed(operation):
            continue
        if operation.revision is None:
            found.append(Violation(rule, "answered without a revision", (operation,)))
            continue
        first = makers.setdefault(operation.revision, operation)
        if first is not operation:
            text = f"two writes were told revision {operation.revision}"
            found.append(Violation(rule, text, (first, operation)))
    for operation in operations:
        found += _deleted_as_told(operation, oracle)
    return found


def _deleted_as_told(operation: Operation, oracle: Oracle) -> Iterable[Violation]:
    revision, told = operation.revision, operation.deleted
    if operation.outcome != "ok" or told is None or revision is None:
        return
    deletes = [op for op in _branch(operation) if isinstance(op, Delete)]
    if told == 0:
        kept = [kv for op in deletes for kv in oracle.range(op.key, op.range_end, revision)]
        if kept and not _changed(operation):
            text = f"told that nothing was there to delete at {revision}, but {kept[0].key!r} was"
            yield Violation("ok write", text, (operation,))
        return
    gone = [
        event.kv.key
        for event in oracle.events(revision)
        if event.type is EventKind.DELETE
        and any(in_range(event.kv.key, op.key, op.range_end) for op in deletes)
    ]
    if len(gone) != told:
        text = (
            f"told that {told} key(s) were deleted at {revision}, but the store dropped {len(gone)}"
        )
        yield Violation("ok write", text, (operation,))


def check_not_applied(operations: Iterable[Operation], oracle: Oracle) -> list[Violation]:
    """What a client was told had no effect is not in the store.

    This holds for a transaction's other branch too. Values that another operation may have put
    cannot be told apart and are passed over.
    """
    writes = _Writes(operations, oracle)
    return [
        Violation("not applied", f"{put}: in the store at {writes.found[put]}", tuple(never))
        for put, never in writes.never.items()
        if put in writes.found and put not in writes.told and put not in writes.maybe
    ]


def check_unknown_writes(operations: Iterable[Operation], oracle: Oracle) -> list[Violation]:
    """A write of unknown outcome is in the store once or never: twice means it was retried."""
    writes = _Writes(operations, oracle)
    found = []
    for put, maybe in writes.maybe.items():
        revisions = writes.found.get(put, ())
        if put not in writes.told and len(revisions) > len(maybe):
            text = f"{put}: sent by {len(maybe)} call(s), in the store at {revisions}"
            found.append(Violation("unknown write", text, tuple(maybe)))
    return found


# --- order ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Point:
    operation: Operation
    revision: int
    is_write: bool
    returned: bool = True


def _sweep(rule: str, points: list[_Point]) -> list[Violation]:
    """What returned before a call was made must not be newer than what the call saw or made."""
    found = []
    returns = sorted(
        (point for point in points if point.returned), key=lambda point: point.operation.return_ns
    )
    newest: _Point | None = None
    index = 0
    for point in sorted(points, key=lambda point: point.operation.call_ns):
        call_ns = point.operation.call_ns
        while index < len(returns) and returns[index].operation.return_ns < call_ns:
            if newest is None or returns[index].revision > newest.revision:
                newest = returns[index]
            index += 1
        if newest is None:
            continue
        if point.revision < newest.revision or (
            point.is_write and point.revision == newest.revision
        ):
            text = f"revision {newest.revision} was returned before the call of {point.revision}"
            found.append(Violation(rule, text, (newest.operation, point.operation)))
    return found


def _is_serializable(operation: Operation) -> bool:
    """Whether a member may answer from its own state; etcd counts empty transactions in."""
    request = operation.request
    if isinstance(request, Txn):
        both = (*request.success, *request.failure)
        return all(isinstance(op, Get) and op.serializable for op in both)
    return isinstance(request, Get) and request.serializable


def check_real_time(operations: Iterable[Operation], oracle: Oracle) -> list[Violation]:
    """What returned before a call was made comes before it in the store, for all clients.

    A write must get a greater revision than everything that returned before it, a linearizable
    read's header must not be older. Writes of unknown outcome are placed where the store has them.
    """
    operations = list(operations)
    writes = _Writes(operations, oracle)
    points = []
    for operation in operations:
        if operation.outcome == "ok":
            if operation.revision is not None and not _is_serializable(operation):
                points.append(_Point(operation, operation.revision, _changed(operation)))
        elif operation.outcome == "unknown":
            for put in _puts(operation)[0]:
                revisions = writes.found.get(put, ())
                if len(revisions) == 1 and put not in writes.told and len(writes.maybe[put]) == 1:
                    points.append(_Point(operation, revisions[0], True, returned=False))
    return _sweep("real time", points)


def check_monotonic_reads(
    operations: Iterable[Operation], *, include_serializable: bool = False
) -> list[Violation]:
    """A client never reads from an older revision than it was told before, on any member.

    Args:
        operations: The history.
        include_serializable: Check serializable reads too, where the client promises it.
    """
    by_client: defaultdict[str, list[_Point]] = defaultdict(list)
    for operation in operations:
        if operation.outcome == "ok" and operation.revision is not None:
            if _is_serializable(operation) and not include_serializable:
                continue
            by_client[operation.client].append(_Point(operation, operation.revision, False))
    return [
        violation for points in by_client.values() for violation in _sweep("monotonic read", points)
    ]


# --- reads and transactions -----------------------------------------------------------------


def check_reads(operations: Iterable[Operation], oracle: Oracle) -> list[Violation]:
    """A read returned what the store had at the answer's header revision, or the one asked for."""
    found = []
    for operation in operations:
        request = operation.request
        if operation.outcome != "ok" or not isinstance(request, Get):
            continue
        revision = request.revision or operation.revision
        if revision is None or revision > oracle.last_revision:
            text = f"revision {revision} is not in the oracle's history"
            found.append(Violation("read", text, (operation,)))
            continue
        expected = oracle.range(request.key, request.range_end, revision)[: request.limit or None]
        if list(operation.kvs) != expected:
            text = f"at revision {revision} it was {_difference(expected, operation.kvs)}"
            found.append(Violation("read", text, (operation,)))
    return found


def _difference(expected: Sequence[KeyValueRecord], got: Sequence[KeyValueRecord]) -> str:
    for one, other in zip(expected, got, strict=False):
        if one != other:
            return f"{one!r}, not {other!r}"
    return f"{len(expected)} key(s), not {len(got)}"


def check_txn_branches(operations: Iterable[Operation], oracle: Oracle) -> list[Violation]:
    """A transaction took the branch that its comparisons named just before its revision."""
    found = []
    for operation in operations:
        request, revision = operation.request, operation.revision
        if operation.outcome != "ok" or not isinstance(request, Txn) or revision is None:
            continue
        if _changed(operation):
            before = [revision - 1]
        elif operation.deleted is None and any(isinstance(o, Delete) for o in _branch(operation)):
            before = [revision - 1, revision]  # it cannot be told which
        else:
            before = [revision]
        results = {all(_holds(c, oracle, at) for c in request.compare) for at in before}
        if operation.succeeded not in results:
            text = f"succeeded={operation.succeeded}, but at revision {before[0]} it was not so"
            found.append(Violation("txn branch", text, (operation,)))
    return found


def _holds(comparison: Comparison, oracle: Oracle, revision: int) -> bool:
    kv = oracle.get(comparison.key, revision)
    if kv is None:
        if comparison.target == "value":
            return False  # as in etcd, whatever the operator
        actual: bytes | int = 0
    else:
        actual = getattr(kv, comparison.target)
    return _OPERATORS[comparison.operator](actual, comparison.operand)


def count_outcomes(operations: Iterable[Operation]) -> Counter[str]:
    """How many operations ended how: proof that a test had traffic."""
    return Counter(operation.outcome for operation in operations)
