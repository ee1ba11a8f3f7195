"""Checks of what a watch delivered against etcd's guarantees.

The names are those of etcd's "KV API guarantees": ordered, unique, reliable, atomic, resumable,
bookmarkable. One subscription's deliveries are checked as one stream, whatever reconnects it took.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

from aioetcd.testing.checkers.oracle import Oracle, in_range
from aioetcd.testing.checkers.violation import Violation
from aioetcd.testing.records import Delivery, EventKind, EventRecord, Subscription


def check_watch(
    subscription: Subscription,
    deliveries: Iterable[Delivery],
    oracle: Oracle,
    *,
    through: int | None = None,
    compact_revision: int = 0,
) -> list[Violation]:
    """Run all checks of one watch.

    Args:
        subscription: What it asked for.
        deliveries: What it handed over, in order; those of other watches are passed over.
        oracle: The store's whole history.
        through: The revision up to which everything must have come; None is the last one seen.
        compact_revision: The last compaction: below it `prev_kv` may be absent.
    """
    batches = [delivery for delivery in deliveries if delivery.watch == subscription.watch]
    return [
        *watch_ordered(subscription, batches, oracle),
        *watch_unique(subscription, batches),
        *watch_reliable(subscription, batches, oracle, through=through),
        *watch_atomic(subscription, batches),
        *watch_resumable(subscription, batches),
        *watch_bookmarkable(subscription, batches, oracle),
        *watch_filter(subscription, batches),
        *watch_prev_kv(subscription, batches, oracle, compact_revision=compact_revision),
        *watch_is_create(subscription, batches, oracle),
    ]


def _events(deliveries: Iterable[Delivery]) -> list[EventRecord]:
    return [event for delivery in deliveries for event in delivery.events]


def _wanted(subscription: Subscription, event: EventRecord) -> bool:
    return in_range(event.kv.key, subscription.key, subscription.range_end) and (
        subscription.only is None or subscription.only is event.type
    )


def _short(event: EventRecord) -> str:
    return f"{event.type} {event.kv.key!r} at {event.kv.mod_revision}"


def watch_ordered(
    subscription: Subscription, deliveries: Iterable[Delivery], oracle: Oracle
) -> list[Violation]:
    """Events come by revision, and in the operations' order inside of one."""
    rule, found, events = "watch ordered", [], _events(deliveries)
    for before, event in pairwise(events):
        if event.kv.mod_revision < before.kv.mod_revision:
            text = f"{subscription.watch}: {_short(event)} came after {_short(before)}"
            found.append(Violation(rule, text, (before, event)))
    keys: defaultdict[int, list[bytes]] = defaultdict(list)
    for event in events:
        if event.kv.key not in keys[event.kv.mod_revision]:
            keys[event.kv.mod_revision].append(event.kv.key)
    for revision, got in keys.items():
        if len(got) > 1:
            place = {event.kv.key: i for i, event in enumerate(oracle.events(revision))}
            places = [place[key] for key in got if key in place]
            if places != sorted(places):
                text = f"{subscription.watch}: {got} came out of order within {revision}"
                found.append(Violation(rule, text))
    return found


def watch_unique(subscription: Subscription, deliveries: Iterable[Delivery]) -> list[Violation]:
    """No event comes twice."""
    found, seen = [], set()
    for event in _events(deliveries):
        identity = (event.kv.mod_revision, event.kv.key)
        if identity in seen:
            text = f"{subscription.watch}: {_short(event)} came again"
            found.append(Violation("watch unique", text, (event,)))
        seen.add(identity)
    return found


def watch_reliable(
    subscription: Subscription,
    deliveries: Sequence[Delivery],
    oracle: Oracle,
    *,
    through: int | None = None,
) -> list[Violation]:
    """Every event up to the last one seen has come, as the store made it, and no other.

    The last one seen is the last event, the greatest revision of a batch or bookmark, or
    `through`, whichever is greatest.
    """
    rule, found, events = "watch reliable", [], _events(deliveries)
    told = [delivery.revision for delivery in deliveries]
    last = max([through or 0, *told, *(event.kv.mod_revision for event in events)])
    got = {(event.kv.mod_revision, event.kv.key): event for event in events}
    expected = {
        (event.kv.mod_revision, event.kv.key): event
        for event in oracle.between(subscription.start_revision, last)
        if _wanted(subscription, event)
    }
    for identity, event in expected.items():
        if identity not in got:
            text = f"{subscription.watch}: {_short(event)} never came, but revision {last} did"
            found.append(Violation(rule, text, (event,)))
    for event in events:
        made = [real for real in oracle.events(event.kv.mod_revision) if real.kv == event.kv]
        if not any(real.type is event.type for real in made):
            text = f"{subscription.watch}: the store never made {_short(event)}"
            found.append(Violation(rule, text, (event,)))
    return found


def watch_atomic(subscription: Subscription, deliveries: Iterable[Delivery]) -> list[Violation]:
    """A revision is never split over two batches."""
    found = []
    batches = [delivery for delivery in deliveries if delivery.events]
    for before, batch in pairwise(batches):
        revision = batch.events[0].kv.mod_revision
        if revision == before.events[-1].kv.mod_revision:
            text = f"{subscription.watch}: revision {revision} was split over two batches"
            found.append(Violation("watch atomic", text, (before, batch)))
    return found


def watch_resumable(subscription: Subscription, deliveries: Iterable[Delivery]) -> list[Violation]:
    """Nothing comes from before the start; that all after it does is for `watch_reliable`."""
    return [
        Violation(
            "watch resumable",
            f"{subscription.watch}: {_short(event)} is before {subscription.start_revision}",
            (event,),
        )
        for event in _events(deliveries)
        if event.kv.mod_revision < subscription.start_revision
    ]


def watch_bookmarkable(
    subscription: Subscription,
    deliveries: Iterable[Delivery],
    oracle: Oracle | None = None,
) -> list[Violation]:
    """The revision of a batch or bookmark fits to what comes before and after it.

    It says that all events up to it have come. So it is not below an event or revision before it,
    nor below its own last event; nor at or above an event that comes later.

    Args:
        subscription: What the watch asked for.
        deliveries: What it handed over, in order.
        oracle: The store's whole history: no revision that was told is beyond its last one.
    """
    rule, found, told, last_event = "watch bookmarkable", [], 0, 0
    for delivery in deliveries:
        for event in delivery.events:
            if event.kv.mod_revision <= told:
                text = f"{subscription.watch}: {_short(event)} came after bookmark {told}"
                found.append(Violation(rule, text, (event,)))
            last_event = max(last_event, event.kv.mod_revision)
        if delivery.revision < max(last_event, told):
            what = "a batch of" if delivery.events else "bookmark"
            text = (
                f"{subscription.watch}: {what} revision {delivery.revision} came after"
                f" event {last_event} and bookmark {told}"
            )
            found.append(Violation(rule, text, (delivery,)))
        if oracle is not None and delivery.revision > oracle.last_revision:
            text = (
                f"{subscription.watch}: told revision {delivery.revision}, the store never"
                f" was beyond {oracle.last_revision}"
            )
            found.append(Violation(rule, text, (delivery,)))
        told = max(told, delivery.revision)
    return found


def watch_filter(subscription: Subscription, deliveries: Iterable[Delivery]) -> list[Violation]:
    """Only events of the range and kind asked for come."""
    return [
        Violation("watch filter", f"{subscription.watch}: {_short(event)}", (subscription, event))
        for event in _events(deliveries)
        if not _wanted(subscription, event)
    ]


def watch_prev_kv(
    subscription: Subscription,
    deliveries: Iterable[Delivery],
    oracle: Oracle,
    *,
    compact_revision: int = 0,
) -> list[Violation]:
    """`prev_kv` is the key just before the event; it is there if asked for and not compacted."""
    found = []
    for event in _events(deliveries):
        before = event.kv.mod_revision - 1
        expected = oracle.get(event.kv.key, before)
        if event.prev_kv is None and (not subscription.prev_kv or before < compact_revision):
            continue
        if event.prev_kv != expected:
            text = f"{subscription.watch}: {_short(event)}: prev_kv should be {expected}"
            found.append(Violation("watch prev_kv", text, (event,)))
    return found


def watch_is_create(
    subscription: Subscription, deliveries: Iterable[Delivery], oracle: Oracle
) -> list[Violation]:
    """`is_create` is true for just those puts before which the key did not exist."""
    found = []
    for event in _events(deliveries):
        absent = oracle.get(event.kv.key, event.kv.mod_revision - 1) is None
        if event.is_create != (event.type is EventKind.PUT and absent):
            text = f"{subscription.watch}: {_short(event)}: is_create={event.is_create}"
            found.append(Violation("watch is_create", text, (event,)))
    return found
