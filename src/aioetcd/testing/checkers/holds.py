"""Checks of locks, fencing tokens and leases."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping

from aioetcd.testing.checkers.violation import Violation
from aioetcd.testing.records import GuardedTxn, LeaseSignal, LockHold


def check_lock_holds(holds: Iterable[LockHold]) -> list[Violation]:
    """No two hold a lock at once, and each holder's token is greater than the one before.

    A hold lasts from the return of the acquiring call to the releasing call or to the signal of
    the loss, whichever was first; without either it lasts for ever.
    """
    by_name: defaultdict[str, list[LockHold]] = defaultdict(list)
    for hold in holds:
        by_name[hold.name].append(hold)
    found = []
    for name, own in by_name.items():
        longest: LockHold | None = None
        for hold in sorted(own, key=lambda hold: hold.acquired_ns):
            if longest is not None:
                overlap = _end(longest) - hold.acquired_ns
                if overlap > 0:
                    text = f"{name}: {hold.holder} and {longest.holder} held it at once"
                    found.append(Violation("lock disjoint", text, (longest, hold)))
                if hold.token <= longest.token:
                    text = f"{name}: token {hold.token} came after {longest.token}"
                    found.append(Violation("lock token", text, (longest, hold)))
            if longest is None or _end(hold) >= _end(longest):
                longest = hold
    return found


def _end(hold: LockHold) -> float:
    return min(
        math.inf if hold.released_ns is None else hold.released_ns,
        math.inf if hold.lost_ns is None else hold.lost_ns,
    )


def check_fencing(
    transactions: Iterable[GuardedTxn], holds: Iterable[LockHold] | None = None
) -> list[Violation]:
    """Of the guarded transactions that succeeded, no later one has an earlier holder's token.

    Args:
        transactions: All that succeeded.
        holds: All holds of their locks, where they were recorded: each token was somebody's.
    """
    newest: dict[str, GuardedTxn] = {}
    found: list[Violation] = []
    tokens = None if holds is None else {(hold.name, hold.token) for hold in holds}
    for txn in sorted(transactions, key=lambda txn: txn.revision):
        before = newest.setdefault(txn.name, txn)
        if tokens is not None and (txn.name, txn.token) not in tokens:
            text = f"{txn.name}: token {txn.token} wrote, and nobody held it"
            found.append(Violation("fencing", text, (txn,)))
        if txn.token < before.token:
            text = f"{txn.name}: token {txn.token} wrote after {before.token} had"
            found.append(Violation("fencing", text, (before, txn)))
        else:
            newest[txn.name] = txn
    return found


def check_leases(
    signals: Iterable[LeaseSignal],
    *,
    expired_ns: Mapping[int, int] | None = None,
    until_ns: int | None = None,
    tolerance_ns: int = 0,
) -> list[Violation]:
    """The loss of a lease is told once, in time, and before the store shows it.

    In time is: when the TTL is over, counted from the sending of the last renewal that was answered
    before its time was over. A renewal answered later is stale and extends nothing. An answer that
    gave no time means that the lease is gone: it is to be told at once. Otherwise only a reason
    that is not ``"expired"`` may be told earlier: a revocation may be known at any time.

    Args:
        signals: Those of all leases.
        expired_ns: When the oracle saw the keys of a lease that ran out go. Leases that somebody
            revoked do not belong here: their owner can only learn it afterwards.
        until_ns: The end of the test: a lease that was to end before must have been told lost.
        tolerance_ns: How far from in time is still good: the loop's own lateness, with which it
            tells what it knows, and writes down what was sent.
    """
    by_lease: defaultdict[int, list[LeaseSignal]] = defaultdict(list)
    for signal in signals:
        by_lease[signal.lease_id].append(signal)
    found: list[Violation] = []
    for lease_id, own in by_lease.items():
        own.sort(key=lambda signal: signal.at_ns)
        expired = (expired_ns or {}).get(lease_id)
        found += _check_lease(lease_id, own, expired, until_ns, tolerance_ns)
    return found


def _check_lease(
    lease_id: int,
    signals: list[LeaseSignal],
    expired_ns: int | None,
    until_ns: int | None,
    tolerance_ns: int,
) -> Iterable[Violation]:
    name = f"lease {lease_id:x}"
    losses = [signal for signal in signals if signal.kind == "lost"]
    deadline = earliest = math.inf  # when it must be told lost; and may be told expired
    for signal in signals:
        if signal.kind in ("lost", "revoked"):
            break
        if signal.kind == "answered" and signal.ttl is not None and signal.ttl <= 0:
            deadline = min(deadline, signal.at_ns)  # the server has no such lease
            earliest = -math.inf
        elif signal.kind in ("granted", "answered") and signal.ttl is not None:
            sent = signal.at_ns if signal.sent_ns is None else signal.sent_ns
            until = sent + signal.ttl * 1e9
            if deadline == math.inf:
                if signal.at_ns < until:  # what comes after its own time promises nothing
                    deadline = earliest = until
            elif signal.at_ns <= deadline + tolerance_ns:
                deadline = max(deadline, until)
                if signal.at_ns <= earliest - tolerance_ns:  # its owner surely took it for in time
                    earliest = until
    if len(losses) > 1:
        yield Violation("lease once", f"{name}: told lost {len(losses)} times", tuple(losses))
    if losses:
        told: float = losses[0].at_ns
        if told > deadline + tolerance_ns:
            late = (told - deadline) / 1e9
            yield Violation("lease in time", f"{name}: told lost {late:.3f} s late", (losses[0],))
        if losses[0].reason in ("expired", None) and told < earliest - tolerance_ns < math.inf:
            early = (earliest - told) / 1e9
            text = f"{name}: told expired {early:.3f} s before its time was over"
            yield Violation("lease too early", text, (losses[0],))
        if expired_ns is not None and told > expired_ns + tolerance_ns:
            late = (told - expired_ns) / 1e9
            text = f"{name}: the store had dropped it {late:.3f} s before its owner was told"
            yield Violation("lease before the store", text, (losses[0],))
        return
    if any(signal.kind == "revoked" and signal.at_ns <= deadline for signal in signals):
        return
    if expired_ns is not None:
        yield Violation("lease before the store", f"{name}: it ran out, its owner was never told")
    elif until_ns is not None and until_ns > deadline + tolerance_ns:
        yield Violation("lease in time", f"{name}: its time was over, its owner was never told")
