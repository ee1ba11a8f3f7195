"""What must have been in a run, and what is the server's fault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from aioetcd.testing.checkers import Violation
from aioetcd.testing.history import (
    Delivery,
    EventKind,
    EventRecord,
    LeaseSignal,
    Operation,
    StoreRevision,
)
from tests.stress.holding import lease_of
from tests.stress.plan import Fault

# Faults that a server below this version does not survive by its own fault.
SERVER_BUGS = {
    "kill": ((3, 5, 6), "loses or differs in what it acknowledged (etcd #13766, #14370)"),
    "replace": ((3, 5, 6), "differs in what it acknowledged (etcd #13766, #14370)"),
    "pause": ((3, 6, 9), "reads old data and revokes leases by an old clock (#20418, #15247)"),
    "compact": ((3, 5, 18), "loses watch events at a compaction (#17610, #19179)"),
}
TRAFFIC = (
    "ok writes",
    "watch events",
    "sessions",
    "locks",
    "guarded txns",
    "locks on a session",
    "locks without a block",
    "left in another order",
    "cancelled while acquiring",
    "cancelled while leaving",
    "readers",
    "permits",
    "caches",
    "caches compared with the store",
    "registrations",
    "updates",
    "transfers",
    "sums",
    "additions",
    "items",
    "jobs handed out",
    "stints",
    "users of clients that ended",
    "tokens that were over",
)
"""What every run must have had, as it is counted in `Run.counts`."""

MISSING = 0.02
"""The share of events whose key before them may be missing."""

BACKPORTED = {"pause": ((3, 5, 28), (3, 6, 0))}


def server_bugs(version: tuple[int, ...]) -> dict[str, str]:
    """Give the faults to leave out for an etcd, with the reasons."""
    left_out = {}
    for kind, (fixed, reason) in SERVER_BUGS.items():
        low, high = BACKPORTED.get(kind, (fixed, fixed))
        if version < fixed and not low <= version < high:
            left_out[kind] = reason
    return left_out


def lacking(happened: Counter[str]) -> list[str]:
    """Name the traffic that there has not been yet."""
    return [what for what in TRAFFIC if not happened[what]]


def check_harness(
    planned: Iterable[Fault], done: Counter[str], happened: Counter[str]
) -> list[Violation]:
    """Faults and traffic were there: without them all checks pass, and nothing was shown.

    A single fault may meet a moment in which it changes nothing (a leader moved in an election); a
    kind that was planned twice and more may not, nor half of all kinds.

    Args:
        planned: The plan.
        done: How often each kind of fault had an effect.
        happened: What the actors counted.
    """
    missing = [f"no {what}" for what in lacking(happened)]
    kinds = Counter(fault.kind for fault in planned)
    idle = {kind: count for kind, count in sorted(kinds.items()) if not done[kind]}
    missing += [
        f"not one of {count} {kind} had an effect"
        for kind, count in idle.items()
        if count > 1 or 2 * len(idle) > len(kinds)
    ]
    if not kinds:
        missing.append("no fault was planned")
    return [Violation("harness", text) for text in missing]


def check_deadlines(
    operations: Iterable[Operation], timeout: float, late_ns: Callable[[int, int], int]
) -> list[Violation]:
    """No call outlives its deadline by more than a tenth of a second.

    Args:
        operations: The calls.
        timeout: The deadline of each, in seconds.
        late_ns: Gives how late the event loop was between two times.
    """
    latest = int((timeout + 0.1) * 1e9)
    return [
        Violation("deadline", f"a call took {(each.return_ns - each.call_ns) / 1e9:.2f} s", (each,))
        for each in operations
        if each.return_ns - each.call_ns > latest + late_ns(each.call_ns, each.return_ns)
    ]


def leases_gone(revisions: Iterable[StoreRevision]) -> dict[int, int]:
    """Give when the oracle saw the key of each lease go first."""
    gone: dict[int, int] = {}
    for record in revisions:
        for event in record.events:
            lease_id = lease_of(event.kv.key)
            if event.type is EventKind.DELETE and lease_id is not None:
                gone[lease_id] = min(record.at_ns, gone.get(lease_id, record.at_ns))
    return gone


def revoked_early(signals: Iterable[LeaseSignal], gone_ns: Mapping[int, int]) -> set[int]:
    """Leases that the store dropped before the time was over that its own answers had granted.

    A leader that stood still may, before it knows of its successor, revoke what it takes for
    expired, and its successor carries that out although it has renewed the lease meanwhile. The
    owner can only learn it afterwards, as any revocation; no later than at its deadline all the
    same.

    Args:
        signals: Those of all leases.
        gone_ns: When the oracle saw the key of a lease go that nobody revoked.
    """
    return {
        signal.lease_id
        for signal in signals
        if signal.kind == "answered"
        and signal.sent_ns is not None
        and signal.ttl is not None
        and signal.at_ns <= gone_ns.get(signal.lease_id, 0) < signal.sent_ns + signal.ttl * 1e9
    }


def excuse_missing(
    found: Iterable[Violation], deliveries: Iterable[Delivery]
) -> tuple[list[Violation], int]:
    """Leave out events without the key before them; give also how many these were.

    A server that creates a watch begins to send what the watch has missed before it has noted that
    this asks for the keys before. Few events are so early: with many, something else is wrong.
    """
    missing: list[Violation] = []
    others: list[Violation] = []
    for violation in found:
        event = violation.evidence[0] if violation.evidence else None
        is_missing = isinstance(event, EventRecord) and event.prev_kv is None
        early = violation.checker == "watch prev_kv" and is_missing
        (missing if early else others).append(violation)
    if len(missing) > MISSING * sum(len(delivery.events) for delivery in deliveries):
        return [*missing, *others], 0
    return others, len(missing)
