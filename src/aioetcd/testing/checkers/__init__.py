"""Says whether a history was right: plain functions from records to violations.

Each returns a list of `Violation`, empty when all is well; `assert_clean` turns a list into an
`AssertionError` that shows everything. They are polynomial, most of them linear, so that a history
of 100 000 events takes seconds.

    recorder = Recorder.load("history.jsonl")
    assert_clean(check_history(recorder))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aioetcd.testing.checkers.holds import check_fencing, check_leases, check_lock_holds
from aioetcd.testing.checkers.operations import (
    check_monotonic_reads,
    check_reads,
    check_real_time,
    check_txn_branches,
    count_outcomes,
)
from aioetcd.testing.checkers.oracle import Oracle, check_oracle, in_range
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
from aioetcd.testing.checkers.writes import check_writes
from aioetcd.testing.history import (
    Delivery,
    EventRecord,
    GuardedTxn,
    LeaseSignal,
    LockHold,
    Operation,
    Recorder,
    StoreRevision,
    Subscription,
    WatchEnd,
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
    "check_oracle",
    "check_reads",
    "check_real_time",
    "check_txn_branches",
    "check_watch",
    "check_writes",
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
    outside: Callable[[EventRecord], bool] | None = None,
    watched_through: int | None = None,
    compact_revision: int = 0,
    expired_ns: Mapping[int, int] | None = None,
    until_ns: int | None = None,
    tolerance_ns: int = 0,
) -> list[Violation]:
    """Run every check that a recorded history alone allows.

    Whatever the store shows must have been recorded as somebody's write, or `outside` must say that
    it is not the history's. What a watch delivered that no `Subscription` tells of cannot be
    checked: that is a violation too. A watch without a `WatchEnd` is open, and must have delivered
    everything.

    Args:
        recorder: The history; its `StoreRevision` records must be complete.
        outside: See `check_writes`.
        watched_through: The revision up to which everything must have come to the open watches;
            None is the last one of the store.
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
        *check_oracle(oracle),
        *check_writes(operations, oracle, outside=outside),
        *check_real_time(operations, oracle, recorder.of(Delivery)),
        *check_reads(operations, oracle),
        *check_txn_branches(operations, oracle),
        *check_monotonic_reads(operations),
        *check_lock_holds(recorder.of(LockHold)),
        *check_fencing(recorder.of(GuardedTxn), recorder.of(LockHold)),
        *check_leases(
            recorder.of(LeaseSignal),
            expired_ns=expired_ns,
            until_ns=until_ns,
            tolerance_ns=tolerance_ns,
        ),
    ]
    subscriptions = recorder.of(Subscription)
    ended = {end.watch for end in recorder.of(WatchEnd)}
    for watch in deliveries.keys() - {subscription.watch for subscription in subscriptions}:
        text = f"{watch}: delivered {len(deliveries[watch])} batch(es) without a subscription"
        found.append(Violation("watch subscription", text, tuple(deliveries[watch][:1])))
    everything = oracle.last_revision if watched_through is None else watched_through
    for subscription in subscriptions:
        found += check_watch(
            subscription,
            deliveries.get(subscription.watch, ()),
            oracle,
            through=None if subscription.watch in ended else everything,
            compact_revision=compact_revision,
        )
    return found
