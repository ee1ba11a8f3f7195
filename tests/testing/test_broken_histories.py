"""A right history is broken in one way at a time, and the rule that it breaks is told."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from aioetcd.testing.checkers import check_history
from aioetcd.testing.history import (
    Comparison,
    Delete,
    EventKind,
    EventRecord,
    Get,
    GuardedTxn,
    KeyValueRecord,
    LockHold,
    Operation,
    Put,
    Record,
    Recorder,
    Request,
    StoreRevision,
    Subscription,
    Txn,
    WatchEnd,
)
from tests.testing.store import Store, failed, is_absent

SWAP = Txn(
    (Comparison(b"a", "value", "==", b"1"),),
    (Put(b"a", b"2"), Put(b"b", b"2"), Get(b"a")),
    (Put(b"c", b"2"), Delete(b"a")),
)
"""A transaction that changes two keys and reads one, or puts and deletes."""

UNTAKEN = Txn((is_absent(b"a"),), (Delete(b"a"),), (Delete(b"z"), Get(b"a")))
"""A transaction that deletes nothing."""


class History:
    """What happened, as lists that a test changes before it is checked."""

    def __init__(self) -> None:
        self.store = Store()
        self.operations: list[Operation] = []
        self.others: list[Record] = []
        self.outside: Callable[[EventRecord], bool] | None = None

    def do(self, request: Request, client: str = "c") -> Operation:
        """Apply a request, and write it down."""
        done = self.store.apply(request, client)
        self.operations.append(done)
        return done

    def unseen(self, request: Request) -> Operation:
        """Apply a request of which nobody has written anything down."""
        return self.store.apply(request)

    def turn(self, old: Operation, new: Operation) -> None:
        """Let an operation have been told something else."""
        self.operations[self.operations.index(old)] = new

    def broken(self) -> set[str]:
        """The rules that it breaks."""
        recorder = Recorder([*self.store.revisions, *self.operations, *self.others])
        return {found.checker for found in check_history(recorder, outside=self.outside)}


Break = Callable[[History], None]
BROKEN: dict[str, tuple[str, Break]] = {}


def breaks(rule: str) -> Callable[[Break], Break]:
    """Add a way to break a history, and the rule that finds it."""

    def add(function: Break) -> Break:
        BROKEN[function.__name__] = (rule, function)
        return function

    return add


# --- writes ---------------------------------------------------------------------------------


@breaks("ok write")
def a_put_is_lost(history: History) -> None:
    put = history.do(Put(b"a", b"1"))
    history.do(Put(b"b", b"1"))
    del history.store.revisions[0]
    history.turn(put, replace(put, revision=3, call_ns=put.call_ns))


@breaks("ok write")
def a_put_is_done_twice(history: History) -> None:
    history.do(Put(b"a", b"1"))
    history.unseen(Put(b"a", b"1"))


@breaks("ok write")
def a_put_was_told_another_revision(history: History) -> None:
    history.do(Put(b"a", b"1"))
    put = history.do(Put(b"a", b"2"))
    history.turn(put, replace(put, revision=2))


@breaks("ok write")
def a_put_with_another_value(history: History) -> None:
    put = history.do(Put(b"a", b"1"))
    history.turn(put, replace(put, request=Put(b"a", b"2")))


@breaks("ok write")
def a_put_without_its_lease(history: History) -> None:
    put = history.do(Put(b"a", b"1"))
    history.turn(put, replace(put, request=Put(b"a", b"1", lease=7)))


@breaks("ok write")
def a_write_without_a_revision(history: History) -> None:
    put = history.do(Put(b"a", b"1"))
    history.turn(put, replace(put, revision=None))


@breaks("ok write")
def two_puts_at_one_revision(history: History) -> None:
    put = history.do(Put(b"a", b"1"))
    history.operations.append(replace(put, client="other"))


@breaks("ok write")
def a_foreign_change_in_a_writes_revision(history: History) -> None:
    done = history.do(Txn((), (Put(b"a", b"1"), Put(b"b", b"1"))))
    history.turn(done, replace(done, request=Put(b"a", b"1"), succeeded=None))


@breaks("ok write")
def half_of_a_txn(history: History) -> None:
    done = history.do(Put(b"a", b"1"))
    both = Txn((), (Put(b"a", b"1"), Put(b"b", b"1")))
    history.turn(done, replace(done, request=both, succeeded=True))


@breaks("ok write")
def a_txn_split_over_two_revisions(history: History) -> None:
    done = history.do(Put(b"a", b"1"))
    history.unseen(Put(b"b", b"1"))
    both = Txn((), (Put(b"a", b"1"), Put(b"b", b"1")))
    history.turn(done, replace(done, request=both, succeeded=True))


@breaks("ok write")
def a_txn_is_done_twice(history: History) -> None:
    history.do(Txn((), (Put(b"a", b"1"), Put(b"b", b"1"))))
    history.unseen(Txn((), (Put(b"a", b"1"), Put(b"b", b"1"))))


@breaks("not applied")
def a_refused_put_is_there(history: History) -> None:
    put = history.do(Put(b"a", b"1"))
    history.turn(put, failed(put, "not_applied"))


@breaks("not applied")
def a_refused_txn_is_there(history: History) -> None:
    history.do(Put(b"a", b"1"))
    txn = history.do(SWAP)
    history.turn(txn, failed(txn, "not_applied"))


@breaks("not applied")
def a_txn_told_of_the_branch_that_it_did_not_take(history: History) -> None:
    history.do(Put(b"a", b"1"))
    txn = history.do(SWAP)
    history.turn(txn, replace(txn, succeeded=False, deleted=0))


@breaks("not applied")
def a_txn_sent_again_takes_the_other_branch_too(history: History) -> None:
    history.do(Put(b"a", b"1"))
    history.do(SWAP)
    history.unseen(SWAP)


@breaks("unknown write")
def an_unknown_put_twice(history: History) -> None:
    put = history.do(Put(b"a", b"1"))
    history.turn(put, failed(put, "unknown"))
    history.unseen(Put(b"a", b"1"))


@breaks("unknown write")
def an_unknown_txn_twice(history: History) -> None:
    txn = history.do(Txn((), (Put(b"a", b"1"), Put(b"b", b"1"))))
    history.turn(txn, failed(txn, "unknown"))
    history.unseen(Txn((), (Put(b"a", b"1"), Put(b"b", b"1"))))


@breaks("unknown write")
def an_unknown_txn_applied_half(history: History) -> None:
    done = history.do(Put(b"a", b"1"))
    both = Txn((), (Put(b"a", b"1"), Put(b"b", b"1")))
    history.turn(done, replace(failed(done, "unknown"), request=both))


@breaks("unknown write")
def an_unknown_txn_split(history: History) -> None:
    done = history.do(Put(b"a", b"1"))
    history.unseen(Put(b"b", b"1"))
    both = Txn((), (Put(b"a", b"1"), Put(b"b", b"1")))
    history.turn(done, replace(failed(done, "unknown"), request=both))


@breaks("unknown write")
def an_unknown_txn_in_both_branches(history: History) -> None:
    history.do(Put(b"a", b"1"))
    txn = history.do(SWAP)
    history.turn(txn, failed(txn, "unknown"))
    history.unseen(SWAP)


@breaks("unknown write")
def an_unknown_txn_in_the_wrong_branch(history: History) -> None:
    txn = history.do(Txn((), (Put(b"b", b"2"),)))
    wrong = Txn((is_absent(b"a"),), (Put(b"c", b"2"),), (Put(b"b", b"2"),))
    history.turn(txn, replace(failed(txn, "unknown"), request=wrong))


@breaks("real time")
def an_unknown_put_before_its_call(history: History) -> None:
    put = history.do(Put(b"a", b"1"))
    other = history.do(Put(b"b", b"1"))
    late = replace(failed(put, "unknown"), call_ns=other.return_ns + 1, return_ns=10**6)
    history.turn(put, late)


@breaks("unaccounted")
def a_put_that_nobody_made(history: History) -> None:
    history.do(Put(b"a", b"1"))
    history.unseen(Put(b"b", b"1"))


@breaks("unaccounted")
def a_put_of_somebody_else_than_declared(history: History) -> None:
    history.outside = lambda event: event.kv.key == b"other"
    history.unseen(Put(b"a", b"1"))


# --- deletes --------------------------------------------------------------------------------


@breaks("ok write")
def a_delete_sent_again_is_told_that_nothing_was_there(history: History) -> None:
    history.do(Put(b"a", b"1"))
    delete = history.do(Delete(b"a"))
    history.turn(delete, replace(delete, deleted=0))


@breaks("ok write")
def a_delete_is_done_twice(history: History) -> None:
    history.do(Put(b"a", b"1"))
    history.do(Delete(b"a"))
    history.do(Put(b"a", b"2"))
    history.unseen(Delete(b"a"))


@breaks("ok write")
def a_delete_is_lost(history: History) -> None:
    put = history.do(Put(b"a", b"1"))
    history.operations.append(
        replace(put, request=Delete(b"a"), call_ns=put.return_ns, return_ns=put.return_ns + 9)
    )


@breaks("ok write")
def a_delete_with_a_wrong_count(history: History) -> None:
    history.do(Put(b"a", b"1"))
    history.do(Put(b"b", b"1"))
    delete = history.do(Delete(b"a", b"c"))
    history.turn(delete, replace(delete, deleted=1))


@breaks("ok write")
def a_delete_of_half_a_range(history: History) -> None:
    history.do(Put(b"a", b"1"))
    history.do(Put(b"b", b"1"))
    delete = history.do(Delete(b"a"))
    history.turn(delete, replace(delete, request=Delete(b"a", b"c")))


@breaks("ok write")
def a_range_that_is_one_key_deletes_more(history: History) -> None:
    history.do(Put(b"a", b"1"))
    history.do(Put(b"ab", b"1"))
    delete = history.do(Delete(b"a", b"b"))
    history.turn(delete, replace(delete, request=Delete(b"a", b"")))


@breaks("not applied")
def a_refused_delete_is_done(history: History) -> None:
    history.do(Put(b"a", b"1"))
    delete = history.do(Delete(b"a"))
    history.turn(delete, failed(delete, "not_applied"))


@breaks("not applied")
def a_conditional_delete_sent_again_is_told_the_other_branch(history: History) -> None:
    history.do(Put(b"a", b"1"))
    txn = history.do(Txn((Comparison(b"a", "value", "==", b"1"),), (Delete(b"a"),)))
    history.turn(txn, replace(txn, succeeded=False, deleted=None))


@breaks("unknown write")
def an_unknown_delete_twice(history: History) -> None:
    history.do(Put(b"a", b"1"))
    delete = history.do(Delete(b"a"))
    history.turn(delete, failed(delete, "unknown"))
    history.do(Put(b"a", b"2"))
    history.unseen(Delete(b"a"))


@breaks("unaccounted")
def a_key_vanishes(history: History) -> None:
    history.do(Put(b"a", b"1"))
    history.unseen(Delete(b"a"))


@breaks("unaccounted")
def a_leases_end_takes_a_key_of_another_lease(history: History) -> None:
    history.do(Put(b"a", b"1", lease=1))
    history.do(Put(b"b", b"1", lease=2))
    history.unseen(Delete(b"a", b"c"))


@breaks("unaccounted")
def a_leases_end_leaves_a_key(history: History) -> None:
    history.do(Put(b"a", b"1", lease=1))
    history.do(Put(b"b", b"1", lease=1))
    history.unseen(Delete(b"a"))


@breaks("unaccounted")
def a_lease_goes_on_after_its_end(history: History) -> None:
    history.do(Put(b"a", b"1", lease=1))
    history.unseen(Delete(b"a"))
    history.do(Put(b"a", b"2", lease=1))


@breaks("unaccounted")
def a_key_that_has_left_its_lease_goes_with_it(history: History) -> None:
    history.do(Put(b"a", b"1", lease=1))
    history.do(Put(b"a", b"2"))
    history.unseen(Delete(b"a"))


# --- reads and order ------------------------------------------------------------------------


@breaks("real time")
def a_read_older_than_another_clients_write(history: History) -> None:
    history.do(Put(b"a", b"1"))
    read = history.do(Get(b"a"), "reader")
    write = history.do(Put(b"a", b"2"))
    at = write.return_ns
    history.turn(read, replace(read, call_ns=at + 1, return_ns=at + 2))


@breaks("real time")
def a_read_older_than_the_oracle_had_shown(history: History) -> None:
    history.do(Put(b"a", b"1"))
    read = history.do(Get(b"a"), "reader")
    write = history.do(Put(b"a", b"2"))
    history.turn(write, replace(write, return_ns=10**6))
    history.turn(read, replace(read, call_ns=history.store.now + 1, return_ns=10**6))


@breaks("real time")
def a_read_older_than_a_watch_had_shown(history: History) -> None:
    history.do(Put(b"a", b"1"))
    read = history.do(Get(b"a"), "reader")
    write = history.do(Put(b"a", b"2"))
    late = replace(history.store.revisions[-1], at_ns=10**6)  # the oracle saw it later
    history.store.revisions[-1] = late
    history.turn(write, replace(write, return_ns=10**6))
    subscription = Subscription("w", b"a", 2)
    history.others += [subscription, *history.store.watch(subscription)]
    history.turn(read, replace(read, call_ns=history.store.now + 1, return_ns=10**6))


@breaks("real time")
def a_write_before_what_was_read_before_it(history: History) -> None:
    write = history.do(Put(b"a", b"1"))
    read = history.do(Get(b"a"), "reader")
    history.turn(write, replace(write, call_ns=read.return_ns + 1, return_ns=10**6))


@breaks("monotonic read")
def a_client_reads_back_in_time(history: History) -> None:
    history.do(Put(b"a", b"1"))
    old = history.do(Get(b"a"))
    history.do(Put(b"a", b"2"), "other")
    new = history.do(Get(b"a"))
    history.turn(old, replace(old, call_ns=new.return_ns + 1, return_ns=10**6))


@breaks("read")
def a_read_with_another_value(history: History) -> None:
    history.do(Put(b"a", b"1"))
    read = history.do(Get(b"a"))
    history.turn(read, replace(read, kvs=(replace(read.kvs[0], value=b"2"),)))


@breaks("read")
def a_read_without_a_key(history: History) -> None:
    history.do(Put(b"a", b"1"))
    read = history.do(Get(b"a"))
    history.turn(read, replace(read, kvs=()))


@breaks("read")
def a_read_of_one_key_gives_a_range(history: History) -> None:
    history.do(Put(b"a", b"1"))
    history.do(Put(b"ab", b"1"))
    read = history.do(Get(b"a", b"b"))
    history.turn(read, replace(read, request=Get(b"a", b"")))


@breaks("read")
def a_read_in_a_txn_before_its_own_put(history: History) -> None:
    history.do(Put(b"a", b"1"))
    old = history.store.keys[b"a"]
    txn = history.do(SWAP)
    history.turn(txn, replace(txn, reads=((old,),)))


@breaks("read")
def a_read_in_a_txn_that_changed_nothing(history: History) -> None:
    history.do(Put(b"a", b"1"))
    txn = history.do(UNTAKEN)
    history.turn(txn, replace(txn, reads=((),)))


@breaks("txn branch")
def a_txn_takes_the_wrong_branch(history: History) -> None:
    history.do(Put(b"a", b"1"))
    txn = history.do(Txn((is_absent(b"a"),), (Get(b"a"),), (Get(b"a"),)))
    history.turn(txn, replace(txn, succeeded=True))


# --- the store ------------------------------------------------------------------------------


@breaks("oracle")
def a_revision_is_missing(history: History) -> None:
    for value in (b"1", b"2", b"3"):
        history.do(Put(b"a" + value, value))
    del history.store.revisions[1]


@breaks("oracle")
def a_version_jumps(history: History) -> None:
    history.do(Put(b"a", b"1"))
    history.do(Put(b"a", b"2"))
    record = history.store.revisions[1]
    event = record.events[0]
    event = replace(event, kv=replace(event.kv, version=3))
    history.store.revisions[1] = replace(record, events=(event,))


@breaks("oracle")
def a_key_is_created_twice(history: History) -> None:
    history.do(Put(b"a", b"1"))
    history.do(Put(b"a", b"2"))
    record = history.store.revisions[1]
    event = record.events[0]
    event = replace(event, kv=replace(event.kv, create_revision=3, version=1))
    history.store.revisions[1] = replace(record, events=(event,))


@breaks("oracle")
def what_was_not_there_is_deleted(history: History) -> None:
    gone = EventRecord(EventKind.DELETE, KeyValueRecord(b"a", b"", 0, 2, 0))
    history.store.revisions.append(StoreRevision(2, 1000, (gone,)))


# --- watches --------------------------------------------------------------------------------


def watched(history: History, subscription: Subscription | None = None) -> Subscription:
    """Make some changes, and a watch that has seen them all."""
    for value in (b"1", b"2", b"3"):
        history.do(Put(b"a", value))
    history.do(Delete(b"a"))
    subscription = subscription or Subscription("w", b"a", 2)
    history.others += [subscription, *history.store.watch(subscription)]
    return subscription


@breaks("watch reliable")
def a_watch_is_silent(history: History) -> None:
    watched(history)
    del history.others[1:]


@breaks("watch reliable")
def a_watch_falls_silent(history: History) -> None:
    watched(history)
    del history.others[2:]


@breaks("watch reliable")
def a_watch_with_an_end_has_a_hole(history: History) -> None:
    watched(history)
    del history.others[1]
    history.others.append(WatchEnd("w", history.store.now))


@breaks("watch unique")
def a_watch_delivers_twice(history: History) -> None:
    watched(history)
    history.others.insert(2, history.others[1])


@breaks("watch subscription")
def a_watch_that_nobody_opened(history: History) -> None:
    watched(history)
    del history.others[0]


@breaks("watch filter")
def a_watch_of_one_key_delivers_a_range(history: History) -> None:
    history.do(Put(b"ab", b"1"))
    watched(history, Subscription("w", b"a", 2, b"b"))
    history.others[0] = Subscription("w", b"a", 2, b"")


# --- locks ----------------------------------------------------------------------------------


@breaks("fencing")
def a_token_that_nobody_held(history: History) -> None:
    history.others += [LockHold("l", "one", 5, 100, 200), GuardedTxn("l", 4, 9)]


@breaks("fencing")
def an_earlier_holder_writes_later(history: History) -> None:
    history.others += [LockHold("l", "one", 4, 100, 200), LockHold("l", "two", 5, 300, 400)]
    history.others += [GuardedTxn("l", 5, 8), GuardedTxn("l", 4, 9)]


@breaks("lock disjoint")
def two_are_inside(history: History) -> None:
    history.others += [LockHold("l", "one", 4, 100, 200), LockHold("l", "two", 5, 150, 250)]


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_found(name: str) -> None:
    """Each way to break a history is found by the rule for it."""
    rule, function = BROKEN[name]
    history = History()
    function(history)
    assert rule in history.broken()


# --- what is right --------------------------------------------------------------------------

RIGHT: dict[str, Break] = {}


def right(function: Break) -> Break:
    """Add a history that looks odd, and is right."""
    RIGHT[function.__name__] = function
    return function


@right
def nothing_happened(history: History) -> None:
    pass


@right
def an_unknown_put_comes_late(history: History) -> None:
    first = history.do(Put(b"a", b"1"))
    late = history.do(Put(b"b", b"2"))
    history.turn(
        late, replace(failed(late, "unknown"), call_ns=first.call_ns - 9, return_ns=first.call_ns)
    )


@right
def an_unknown_put_was_lost(history: History) -> None:
    history.operations.append(Operation("c", Put(b"a", b"1"), 0, 1, "unknown"))


@right
def unknown_deletes_of_one_key_change_places(history: History) -> None:
    history.do(Put(b"a", b"1"))
    first = history.do(Delete(b"a"))
    history.do(Put(b"a", b"2"))
    second = history.do(Delete(b"a", b"b"))
    for delete in (second, first):  # the first one may have made either
        history.turn(delete, replace(failed(delete, "unknown"), call_ns=0))


@right
def a_put_is_shared_by_two_calls(history: History) -> None:
    first = history.do(Put(b"a", b"1"))
    second = history.do(Put(b"a", b"1"))
    history.turn(first, failed(first, "unknown"))
    history.operations.append(replace(failed(second, "not_applied"), client="other"))


@right
def an_unknown_txn_takes_either_branch(history: History) -> None:
    for value in (b"0", b"1"):
        history.do(Put(b"a", value))
        txn = history.do(SWAP)
        history.turn(txn, failed(txn, "unknown"))


@right
def a_lease_ends(history: History) -> None:
    history.do(Put(b"a", b"1", lease=1))
    history.do(Put(b"ab", b"1", lease=1))
    history.do(Put(b"b", b"1", lease=2))
    history.unseen(Delete(b"a", b"b"))


@right
def a_lease_ends_of_which_a_key_has_gone_before(history: History) -> None:
    history.do(Put(b"a", b"1", lease=1))
    history.do(Put(b"b", b"1", lease=1))
    history.do(Put(b"a", b"2", lease=2))
    history.unseen(Delete(b"b"))


@right
def a_writer_outside_is_declared(history: History) -> None:
    history.outside = lambda event: event.kv.key.startswith(b"other")
    history.do(Put(b"a", b"1"))
    history.unseen(Put(b"other", b"1"))
    history.unseen(Delete(b"other"))


@right
def a_delete_that_was_not_counted(history: History) -> None:
    history.do(Put(b"a", b"1"))
    for _ in range(2):
        delete = history.do(Delete(b"a"))
        history.turn(delete, replace(delete, deleted=None))


@right
def a_txn_reads_its_own_changes(history: History) -> None:
    history.do(Put(b"a", b"1"))
    old = history.store.keys[b"a"]
    txn = history.do(Txn((), (Get(b"a"), Put(b"a", b"2"), Get(b"a"), Delete(b"b"), Get(b"b"))))
    new = history.store.keys[b"a"]
    history.turn(txn, replace(txn, reads=((old,), (new,), ())))


@right
def a_txn_reads_what_it_deletes(history: History) -> None:
    history.do(Put(b"a", b"1"))
    old = history.store.keys[b"a"]
    txn = history.do(Txn((), (Get(b"a"), Delete(b"a", b"b"), Get(b"a", b"b"))))
    history.turn(txn, replace(txn, reads=((old,), ())))


@right
def a_txn_that_changed_nothing_reads(history: History) -> None:
    history.do(Put(b"a", b"1"))
    txn = history.do(UNTAKEN)
    history.turn(txn, replace(txn, reads=((history.store.keys[b"a"],),)))


@right
def an_oracle_that_began_later(history: History) -> None:
    for value in (b"1", b"2", b"3"):
        history.do(Put(b"a", value))
    history.do(Put(b"b", b"1"))
    del history.operations[:3], history.store.revisions[:3]
    history.do(Get(b"a", b"c"))
    history.do(Get(b"a"))


@right
def a_read_before_the_oracles_begin(history: History) -> None:
    history.do(Put(b"a", b"1"))
    history.do(Get(b"a"))
    history.do(Put(b"b", b"1"))
    history.do(Put(b"b", b"2"))
    del history.operations[0], history.store.revisions[:2]
    del history.operations[1]


@right
def a_watch_that_ended(history: History) -> None:
    watched(history)
    del history.others[2:]
    history.others.append(WatchEnd("w", history.store.now))


@right
def a_watch_of_one_key_by_an_empty_end(history: History) -> None:
    history.do(Put(b"ab", b"1"))
    watched(history, Subscription("w", b"a", 2, b""))


@right
def a_serializable_read_of_the_past(history: History) -> None:
    history.do(Put(b"a", b"1"))
    read = history.do(Get(b"a", serializable=True))
    write = history.do(Put(b"a", b"2"), "other")
    history.turn(read, replace(read, call_ns=write.return_ns + 1, return_ns=10**6))


@right
def a_read_of_an_old_revision(history: History) -> None:
    put = history.do(Put(b"a", b"1"))
    old = history.store.keys[b"a"]
    history.do(Put(b"a", b"2"))
    read = history.do(Get(b"a"))
    history.turn(read, replace(read, request=Get(b"a", revision=put.revision), kvs=(old,)))


@right
def a_holder_writes_twice(history: History) -> None:
    history.others += [LockHold("l", "one", 5, 100, 200)]
    history.others += [GuardedTxn("l", 5, 8), GuardedTxn("l", 5, 9)]


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_not_called_wrong(name: str) -> None:
    """A history that only looks odd breaks no rule."""
    history = History()
    RIGHT[name](history)
    assert history.broken() == set()
