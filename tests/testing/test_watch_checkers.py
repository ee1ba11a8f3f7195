"""The checks of watches: each finds what breaks its guarantee, and no other one does."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from aioetcd.testing.checkers import check_watch, watch_bookmarkable
from aioetcd.testing.history import (
    Delete,
    Delivery,
    EventKind,
    EventRecord,
    KeyValueRecord,
    Put,
    Subscription,
    Txn,
)
from tests.testing.store import Store

WATCH = Subscription("w", b"a", 3, b"b", prev_kv=True)


@pytest.fixture
def store() -> Store:
    """Revisions 2 to 9; 2 is before the watch, 5 outside of its range, 6 has two of its keys."""
    store = Store()
    for request in (
        Put(b"a0", b"before"),  # 2
        Put(b"a1", b"1"),  # 3
        Put(b"a1", b"2"),  # 4
        Put(b"z", b"other"),  # 5
        Txn((), (Put(b"a3", b"3"), Put(b"a2", b"4"), Put(b"z", b"5"))),  # 6
        Delete(b"a1"),  # 7
        Put(b"a1", b"6"),  # 8
        Put(b"a2", b"7"),  # 9
    ):
        store.apply(request)
    return store


def edited(
    deliveries: list[Delivery], batch: int, change: Callable[[list[EventRecord]], object]
) -> list[Delivery]:
    """The same deliveries with one batch's events changed in place."""
    events = list(deliveries[batch].events)
    change(events)
    changed = replace(deliveries[batch], events=tuple(events))
    return [*deliveries[:batch], changed, *deliveries[batch + 1 :]]


def broken(store: Store, deliveries: list[Delivery], watch: Subscription = WATCH) -> set[str]:
    """The guarantees that deliveries break."""
    return {violation.checker for violation in check_watch(watch, deliveries, store.oracle)}


def test_right_watch_passes(store: Store) -> None:
    """A perfect stream breaks nothing, in batches of any size, with and without bookmarks."""
    for per_batch in (1, 2, 3, 99):
        for bookmark in (True, False):
            deliveries = store.watch(WATCH, per_batch=per_batch, bookmark=bookmark)
            assert [len(d.events) for d in deliveries if d.events] != []
            assert broken(store, deliveries) == set()


def test_order_of_revisions(store: Store) -> None:
    """Revisions that come in the wrong order are found."""
    good = store.watch(WATCH, per_batch=99)
    assert broken(store, edited(good, 0, lambda e: e.insert(0, e.pop(1)))) == {"watch ordered"}


def test_order_within_a_revision(store: Store) -> None:
    """The operations of a transaction must come in their order."""
    good = store.watch(WATCH, per_batch=99)
    assert [e.kv.key for e in good[0].events[2:4]] == [b"a3", b"a2"]
    assert broken(store, edited(good, 0, lambda e: e.insert(2, e.pop(3)))) == {"watch ordered"}


def test_event_twice(store: Store) -> None:
    """An event that comes twice is found."""
    good = store.watch(WATCH, per_batch=99)
    assert broken(store, edited(good, 0, lambda e: e.insert(1, e[0]))) == {"watch unique"}


@pytest.mark.parametrize("index", range(6))
def test_event_missing(store: Store, index: int) -> None:
    """An event that never comes is found, first, last and in the middle."""
    good = store.watch(WATCH, per_batch=99)
    assert broken(store, edited(good, 0, lambda e: e.pop(index))) == {"watch reliable"}


def test_end_missing(store: Store) -> None:
    """What is after the last event seen is only missed if it must have come."""
    short = store.watch(WATCH, per_batch=1, bookmark=False)[:-1]
    assert broken(store, short) == set()
    found = check_watch(WATCH, short, store.oracle, through=store.revision)
    assert {violation.checker for violation in found} == {"watch reliable"}
    assert check_watch(WATCH, short, store.oracle, through=8) == []


def test_bookmark_without_its_events(store: Store) -> None:
    """A bookmark says that all before it has come, so what has not is found."""
    assert broken(store, [Delivery("w", 0, 2)]) == set()
    assert broken(store, [Delivery("w", 0, 3)]) == {"watch reliable"}


def test_invented_event(store: Store) -> None:
    """An event that the store never made, or made otherwise, is found."""
    good = store.watch(WATCH, per_batch=99)

    def change(events: list[EventRecord]) -> None:
        events[0] = replace(events[0], kv=replace(events[0].kv, value=b"wrong"))

    def invent(events: list[EventRecord]) -> None:
        kv = KeyValueRecord(b"a9", b"", 9, 9, 1)
        events.append(EventRecord(EventKind.PUT, kv, is_create=True))

    assert broken(store, edited(good, 0, change)) == {"watch reliable"}
    assert broken(store, edited(good, 0, invent)) == {"watch reliable"}


def test_split_revision(store: Store) -> None:
    """A revision that is split over two batches is found: the first of them says it was all."""
    (batch,) = store.watch(WATCH, per_batch=99, bookmark=False)
    first = replace(batch, events=batch.events[:3], revision=6)
    halves = [first, replace(batch, events=batch.events[3:])]
    assert broken(store, halves) == {"watch atomic", "watch bookmarkable"}


def test_event_before_the_start(store: Store) -> None:
    """An event from before the start revision is found."""
    early = store.watch(replace(WATCH, start_revision=2), per_batch=99)
    assert broken(store, early) == {"watch resumable"}


def test_bookmark_before_its_events(store: Store) -> None:
    """An event at or below a bookmark that came before it is found."""
    good = store.watch(WATCH, per_batch=1, bookmark=False)
    early = Delivery("w", 0, good[1].events[0].kv.mod_revision)
    assert broken(store, [good[0], early, *good[1:]]) == {"watch bookmarkable"}
    assert broken(store, [*good[:2], early, *good[2:]]) == set()


def test_bookmark_goes_back(store: Store) -> None:
    """A bookmark below an event or a bookmark before it is found."""
    good = store.watch(WATCH)
    assert broken(store, [*good, Delivery("w", 0, 8)]) == {"watch bookmarkable"}
    assert broken(store, [*good[:-1], Delivery("w", 0, 8)]) == {"watch bookmarkable"}
    assert broken(store, [*good, Delivery("w", 0, 9)]) == set()


def test_batch_without_its_events(store: Store) -> None:
    """A batch's revision says that all before it has come, so what has not is found."""
    (batch,) = store.watch(WATCH, per_batch=99, bookmark=False)
    short = replace(batch, events=batch.events[:-1])
    assert short.revision == 9
    assert broken(store, [short]) == {"watch reliable"}
    assert broken(store, [replace(short, revision=8)]) == set()


def test_batch_before_its_events(store: Store) -> None:
    """A batch that claims what the next one brings is found, as a bookmark would be."""
    good = store.watch(WATCH, per_batch=1, bookmark=False)
    early = replace(good[0], revision=good[1].events[0].kv.mod_revision)
    assert broken(store, [early, *good[1:]]) == {"watch bookmarkable"}
    between = replace(good[1], revision=5)  # that one is of a key that is not watched
    assert broken(store, [good[0], between, *good[2:]]) == set()


def test_batch_goes_back(store: Store) -> None:
    """A batch whose revision is below its own last event is found."""
    good = store.watch(WATCH)
    low = replace(good[1], revision=good[1].revision - 1)
    assert broken(store, [good[0], low, *good[2:]]) == {"watch bookmarkable"}


def test_revision_that_never_was(store: Store) -> None:
    """A batch or bookmark beyond the store's last revision is found."""
    good = store.watch(WATCH, bookmark=False)
    beyond = replace(good[-1], revision=store.revision + 1)
    assert broken(store, [*good[:-1], beyond]) == {"watch bookmarkable"}
    assert broken(store, [*good, Delivery("w", 0, 10)]) == {"watch bookmarkable"}
    assert watch_bookmarkable(WATCH, [*good, Delivery("w", 0, 10)]) == []  # who knows the store


def test_outside_of_the_range(store: Store) -> None:
    """An event of a key that was not watched is found."""
    wide = store.watch(replace(WATCH, range_end=b"\0"))
    assert broken(store, wide) == {"watch filter"}


def test_of_the_other_kind(store: Store) -> None:
    """An event of the kind that was filtered out is found."""
    for kind in EventKind:
        watch = replace(WATCH, only=kind)
        assert broken(store, store.watch(watch), watch) == set()
        assert broken(store, store.watch(WATCH), watch) == {"watch filter"}


def test_prev_kv(store: Store) -> None:
    """A previous key that is wrong or missing is found; it may be missing after a compaction."""
    good = store.watch(WATCH, per_batch=99)
    older = store.oracle.get(b"a1", 3)

    def put(index: int, kv: KeyValueRecord | None) -> list[Delivery]:
        def change(events: list[EventRecord]) -> None:
            events[index] = replace(events[index], prev_kv=kv)

        return edited(good, 0, change)

    assert good[0].events[4].type is EventKind.DELETE
    for wrong in (put(4, older), put(4, None), put(0, older), put(1, None)):
        assert broken(store, wrong) == {"watch prev_kv"}
    without = put(1, None)  # of the event at revision 4
    assert check_watch(WATCH, without, store.oracle, compact_revision=4) == []
    assert len(check_watch(WATCH, without, store.oracle, compact_revision=3)) == 1
    assert broken(store, without, replace(WATCH, prev_kv=False)) == set()


@pytest.mark.parametrize("index", range(6))
def test_is_create(store: Store, index: int) -> None:
    """An `is_create` that is not the store's is found."""
    good = store.watch(WATCH, per_batch=99)

    def change(events: list[EventRecord]) -> None:
        events[index] = replace(events[index], is_create=not events[index].is_create)

    assert broken(store, edited(good, 0, change)) == {"watch is_create"}


def test_watches_are_apart(store: Store) -> None:
    """Deliveries of another watch do not count."""
    others = [replace(delivery, watch="other") for delivery in store.watch(WATCH)]
    assert broken(store, [*others, *store.watch(WATCH)]) == set()
