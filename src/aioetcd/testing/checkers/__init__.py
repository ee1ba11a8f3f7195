"""Says whether a history was right: plain functions from records to violations.

Each returns a list of `Violation`, empty when all is well; `assert_clean` turns a list into an
`AssertionError` that shows everything. They are polynomial, most of them linear, so that a history
of 100 000 events takes seconds.

    recorder = Recorder.load("history.jsonl")
    assert_clean(check_history(recorder))
"""

from __future__ import annotations

from collections.abc import Mapping

from aioetcd.testing.checkers.holds import check_fencing, check_leases, check_lock_holds
from aioetcd.testing.checkers.operations import (
    check_monotonic_reads,
    check_not_applied,
    check_ok_writes,
    check_reads,
    check_real_time,
    check_txn_branches,
    check_unknown_writes,
    count_outcomes,
)
from aioetcd.testing.checkers.oracle import Oracle, in_range
from aioetcd.testing.checkers.resources import (
    check_attempts,
    check_cpu_share,
    check_jitter,
    check_no_leak,
)
from aioetcd.testing.checkers.violation import Violation, assert_clean
from aioetcd.testing.checkers.watches import (
    check_watch,
    watch_atomic,
    watch_bookmarkable,
    watch_filter,
    watch_is_create,
    watch_ordered,
    watch_prev_kv,
    watch_reliable,
    watch_resumable,
    watch_unique,
)
from aioetcd.testing.history import (
    Delivery,
    GuardedTxn,
    LeaseSignal,
    LockHold,
    Operation,
    Recorder,
    StoreRevision,
    Subscription,
)

__all__ = [
    "Oracle",
    "Violation",
    "assert_clean",
    "check_attempts",
    "check_cpu_share",
    "check_fencing",
    "check_history",
    "check_jitter",
    "check_leases",
    "check_lock_holds",
    "check_monotonic_reads",
    "check_no_leak",
    "check_not_applied",
    "check_ok_writes",
    "check_reads",
    "check_real_time",
    "check_txn_branches",
    "check_unknown_writes",
    "check_watch",
    "count_outcomes",
    "in_range",
    "watch_atomic",
    "watch_bookmarkable",
    "watch_filter",
    "watch_is_create",
    "watch_ordered",
    "watch_prev_kv",
    "watch_reliable",
    "watch_resumable",
    "watch_unique",
]


def check_history(
    recorder: Recorder,
    *,
    watched_through: int | None = None,
    compact_revision: int = 0,
    expired_ns: Mapping[int, int] | None = None,
    until_ns: int | None = None,
    tolerance_ns: int = 0,
) -> list[Violation]:
    """Run every check that a recorded history alone allows.

    What a watch delivered that no `Subscription` tells of cannot be checked: that is a violation
    too.

    Args:
        recorder: The history; its `StoreRevision` records must be complete.
        watched_through: See `check_watch`, for all watches.
        compact_revision: See `check_watch`.
        expired_ns: See `check_leases`.
        until_ns: See `check_leases`.
        tolerance_ns: See `check_leases`.
    """
    operations = recorder.of(Operation)
    deliveries: dict[str, list[Delivery]] = {}
    for delivery in recorder.of(Delivery):
        deliveries.setdefault(delivery.watch, []).append(delivery)
    oracle = Oracle(recorder.of(StoreRevision))
    found = [
        *check_ok_writes(operations, oracle),
        *check_not_applied(operations, oracle),
        *check_unknown_writes(operations, oracle),
        *check_real_time(operations, oracle),
        *check_reads(operations, oracle),
        *check_txn_branches(operations, oracle),
        *check_monotonic_reads(operations),
        *check_lock_holds(recorder.of(LockHold)),
        *check_fencing(recorder.of(GuardedTxn)),
        *check_leases(
            recorder.of(LeaseSignal),
            expired_ns=expired_ns,
            until_ns=until_ns,
            tolerance_ns=tolerance_ns,
        ),
    ]
    subscriptions = recorder.of(Subscription)
    for watch in deliveries.keys() - {subscription.watch for subscription in subscriptions}:
        text = f"{watch}: delivered {len(deliveries[watch])} batch(es) without a subscription"
        found.append(Violation("watch subscription", text, tuple(deliveries[watch][:1])))
    for subscription in subscriptions:
        found += check_watch(
            subscription,
            deliveries.get(subscription.watch, ()),
            oracle,
            through=watched_through,
            compact_revision=compact_revision,
        )
    return found
