"""Checks of what clients asked and were told: the order of calls, reads, and transactions."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aioetcd.testing.checkers.oracle import Oracle
from aioetcd.testing.checkers.requests import all_hold, branch, has_changed, is_serializable
from aioetcd.testing.checkers.violation import Violation
from aioetcd.testing.records import (
    Delete,
    Delivery,
    EventKind,
    Get,
    KeyValueRecord,
    Operation,
    Put,
    Txn,
)

# --- order ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Told:
    """Somebody knew of a revision at a time."""

    at_ns: int
    revision: int
    evidence: object


def _sweep(
    rule: str, told: Iterable[_Told], calls: Iterable[Operation], *, writes: bool
) -> list[Violation]:
    """What was told before a call was made must not be newer than what the call saw or made."""
    found = []
    earlier = sorted(told, key=lambda each: each.at_ns)
    newest: _Told | None = None
    index = 0
    for call in sorted(calls, key=lambda call: call.call_ns):
        while index < len(earlier) and earlier[index].at_ns < call.call_ns:
            if newest is None or earlier[index].revision > newest.revision:
                newest = earlier[index]
            index += 1
        if newest is None or call.revision is None:
            continue
        if call.revision < newest.revision + (writes and has_changed(call)):
            text = f"revision {newest.revision} was told before the call of {call.revision}"
            found.append(Violation(rule, text, (newest.evidence, call)))
    return found


def _answered(operations: Iterable[Operation]) -> list[Operation]:
    return [op for op in operations if op.outcome == "ok" and op.revision is not None]


def _returns(operations: Iterable[Operation]) -> list[_Told]:
    return [_Told(op.return_ns, op.revision or 0, op) for op in operations]


def check_real_time(
    operations: Iterable[Operation],
    oracle: Oracle | None = None,
    deliveries: Iterable[Delivery] = (),
) -> list[Violation]:
    """What was told before a call was made comes before it in the store, for all clients.

    A write must get a greater revision than everything that was told before it, a linearizable
    read's header must not be older. Serializable reads neither tell nor are checked.

    Args:
        operations: The history.
        oracle: What it had seen by a time was told by then.
        deliveries: What watches had handed over by a time was told by then.
    """
    calls = [op for op in _answered(operations) if not is_serializable(op.request)]
    told = [*_returns(calls), *(_Told(each.at_ns, each.revision, each) for each in deliveries)]
    if oracle is not None:
        told += [
            _Told(oracle.seen_ns(revision), revision, oracle.events(revision))
            for revision in oracle.revisions
        ]
    return _sweep("real time", told, calls, writes=True)


def check_monotonic_reads(
    operations: Iterable[Operation], *, include_serializable: bool = False
) -> list[Violation]:
    """A client never reads from an older revision than it was told before, on any member.

    Args:
        operations: The history.
        include_serializable: Check serializable reads too, where the client promises it.
    """
    by_client: defaultdict[str, list[Operation]] = defaultdict(list)
    for operation in _answered(operations):
        if include_serializable or not is_serializable(operation.request):
            by_client[operation.client].append(operation)
    return [
        violation
        for calls in by_client.values()
        for violation in _sweep("monotonic read", _returns(calls), calls, writes=False)
    ]


# --- reads and transactions -----------------------------------------------------------------


def check_reads(operations: Iterable[Operation], oracle: Oracle) -> list[Violation]:
    """A read returned what the store had at the answer's header revision, or the one asked for.

    So did the reads of a transaction, which see what its earlier requests have done. What was in
    the store before an incomplete oracle's begin cannot be checked, and is passed over.
    """
    found = []
    for operation in operations:
        if operation.outcome != "ok":
            continue
        for get, before, got in _reads(operation):
            revision = get.revision or operation.revision
            if revision is None or revision > oracle.last_revision:
                text = f"revision {revision} is not in the oracle's history"
                found.append(Violation("read", text, (operation,)))
                continue
            expected = _expected(get, before, operation, oracle, revision)
            if not oracle.is_complete:
                if get.limit:
                    continue
                got = [kv for kv in got if oracle.knows(kv.key, revision)]
                expected = [kv for kv in expected if oracle.knows(kv.key, revision)]
            if list(got) != expected[: get.limit or None]:
                text = f"at revision {revision} it was {_difference(expected, got)}"
                found.append(Violation("read", text, (operation,)))
    return found


def _reads(
    operation: Operation,
) -> Iterable[tuple[Get, Sequence[Put | Get | Delete], Sequence[KeyValueRecord]]]:
    """Give each read, the requests before it in its transaction, and what it returned."""
    if isinstance(operation.request, Get):
        yield operation.request, (), operation.kvs
    elif operation.reads is not None:
        requests = branch(operation)
        at = [index for index, request in enumerate(requests) if isinstance(request, Get)]
        for index, got in zip(at, operation.reads, strict=True):
            get = requests[index]
            assert isinstance(get, Get)
            yield get, requests[:index], got


def _expected(
    get: Get,
    before: Sequence[Put | Get | Delete],
    operation: Operation,
    oracle: Oracle,
    revision: int,
) -> list[KeyValueRecord]:
    """Give what a read sees; in a transaction, of its own changes only those before it."""
    seen = oracle.range(get.key, get.range_end, revision)
    if get.revision or not isinstance(operation.request, Txn) or not has_changed(operation):
        return seen
    done = {(EventKind.PUT, op.key) for op in before if isinstance(op, Put)}
    for op in before:
        if isinstance(op, Delete):
            gone = oracle.range(op.key, op.range_end, revision - 1)
            done |= {(EventKind.DELETE, kv.key) for kv in gone}
    later = {e.kv.key for e in oracle.events(revision) if (e.type, e.kv.key) not in done}
    old = oracle.range(get.key, get.range_end, revision - 1)
    states = [kv for kv in seen if kv.key not in later] + [kv for kv in old if kv.key in later]
    return sorted(states, key=lambda kv: kv.key)


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
        if has_changed(operation):
            before = [revision - 1]
        elif operation.deleted is None and any(isinstance(o, Delete) for o in branch(operation)):
            before = [revision - 1, revision]  # it cannot be told which
        else:
            before = [revision]
        if operation.succeeded not in {all_hold(request, oracle, at) for at in before}:
            text = f"succeeded={operation.succeeded}, but at revision {before[0]} it was not so"
            found.append(Violation("txn branch", text, (operation,)))
    return found


def count_outcomes(operations: Iterable[Operation]) -> Counter[str]:
    """How many operations ended how: proof that a test had traffic."""
    return Counter(operation.outcome for operation in operations)
