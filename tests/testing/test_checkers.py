"""The checks of operations: right histories pass, and every rule catches what breaks just it."""

from collections.abc import Iterable
from dataclasses import replace

import pytest

from aioetcd.testing import checkers
from aioetcd.testing.checkers import Oracle, Violation, assert_clean
from aioetcd.testing.history import (
    Comparison,
    Delete,
    EventKind,
    EventRecord,
    Get,
    KeyValueRecord,
    LockHold,
    Operation,
    Put,
    Recorder,
    StoreRevision,
    Subscription,
    Txn,
)
from tests.testing.store import Store, failed, is_absent


def rules(violations: Iterable[Violation]) -> set[str]:
    """The rules that were broken."""
    return {violation.checker for violation in violations}


def broken(operations: list[Operation], oracle: Oracle) -> set[str]:
    """The rules for operations that a history breaks."""
    return rules(
        [
            *checkers.check_writes(operations, oracle),
            *checkers.check_real_time(operations, oracle),
            *checkers.check_reads(operations, oracle),
            *checkers.check_txn_branches(operations, oracle),
            *checkers.check_monotonic_reads(operations),
        ]
    )


def test_assert_clean() -> None:
    """Nothing found passes; otherwise everything found is in the error's text."""
    assert_clean([])
    found = [Violation("one", "first", (Put(b"a", b"1"),)), Violation("two", "second")]
    with pytest.raises(AssertionError) as info:
        assert_clean(found)
    for text in (
        "2 violation(s)",
        "one: first",
        "Put(key=b'a', value=b'1', lease=None)",
        "two: second",
    ):
        assert text in str(info.value)


# --- 1 to 3: writes -------------------------------------------------------------------------


def test_ok_write_is_missing() -> None:
    """An acknowledged write that the store lacks is found."""
    store = Store()
    lost = store.apply(Put(b"a", b"1"))
    oracle = Oracle([replace(store.revisions[0], events=())])
    assert broken([lost], oracle) == {"ok write"}


def test_ok_write_at_another_revision() -> None:
    """An acknowledged write must stand where the client was told."""
    store = Store()
    first, second = store.apply(Put(b"a", b"1")), store.apply(Put(b"a", b"2"))
    swapped = [replace(first, revision=second.revision), replace(second, revision=first.revision)]
    assert "ok write" in broken(swapped, store.oracle)
    assert broken([first, second], store.oracle) == set()


def test_ok_write_twice() -> None:
    """An acknowledged write that stands in the store twice is found: it was retried."""
    store = Store()
    operations = [store.apply(Put(b"a", b"1"))]
    store.apply(Put(b"a", b"1"))
    assert broken(operations, store.oracle) == {"ok write"}


def test_ok_txn_twice() -> None:
    """The puts of an acknowledged transaction are looked for as well."""
    store = Store()
    operations = [store.apply(Txn((), (Put(b"a", b"1"), Put(b"b", b"1"))))]
    store.apply(Put(b"b", b"1"))
    assert broken(operations, store.oracle) == {"ok write"}


def test_two_writes_at_one_revision() -> None:
    """Two writes cannot have made one revision."""
    store = Store()
    both = store.apply(Txn((), (Put(b"a", b"1"), Put(b"b", b"2"))))
    a, b = replace(both, request=Put(b"a", b"1")), replace(both, request=Put(b"b", b"2"))
    assert broken([a, b], store.oracle) == {"ok write"}


def test_write_without_a_revision() -> None:
    """An acknowledged write must have been told its revision."""
    store = Store()
    put = store.apply(Put(b"a", b"1"))
    write = replace(store.apply(Delete(b"a")), revision=None)
    assert broken([put, write], store.oracle) == {"ok write"}


@pytest.mark.parametrize("told", [0, 1, 3])
def test_deleted_count(told: int) -> None:
    """The number of keys deleted must be the store's."""
    store = Store()
    puts = [store.apply(Put(b"a", b"1")), store.apply(Put(b"b", b"2"))]
    delete = store.apply(Delete(b"a", b"c"))
    assert broken([*puts, delete], store.oracle) == set()
    wrong = replace(delete, deleted=told, revision=store.revision - (told == 0))
    assert broken([*puts, wrong], store.oracle) == {"ok write"}


def test_deleted_somewhere_else() -> None:
    """Deletes of other keys, and puts, are not the ones that a client was told of."""
    store = Store()
    others = [store.apply(Put(b"z", b"1")), store.apply(Delete(b"z"))]
    for revision in (2, 3):
        wrong = Operation("c", Delete(b"a"), 900, 2000, "ok", revision, deleted=1)
        assert broken([*others, wrong], store.oracle) == {"ok write"}


def test_not_applied_write_is_there() -> None:
    """A write that surely had no effect must not be in the store."""
    store = Store()
    write = failed(store.apply(Put(b"a", b"1")), "not_applied")
    assert broken([write], store.oracle) == {"not applied"}


def test_other_branch_is_there() -> None:
    """The branch that a transaction did not take must not be in the store."""
    store = Store()
    txn = store.apply(Txn((is_absent(b"a"),), (Put(b"a", b"1"),), (Put(b"a", b"2"),)))
    assert broken([txn], store.oracle) == set()
    store.apply(Put(b"a", b"2"))
    assert broken([txn], store.oracle) == {"not applied"}


@pytest.mark.parametrize("times", [0, 1, 2])
def test_unknown_write(times: int) -> None:
    """A write of unknown outcome may be in the store once, not twice."""
    store = Store()
    write = Operation("c", Put(b"a", b"1"), 0, 10, "unknown")
    for _ in range(times):
        store.apply(Put(b"a", b"1"))
    assert broken([write], store.oracle) == ({"unknown write"} if times == 2 else set())


def test_shared_values_are_counted() -> None:
    """A value that several calls put may stand as often as they can have put it."""
    store = Store()
    sure, maybe = store.apply(Put(b"a", b"1")), store.apply(Put(b"a", b"1"))
    calls = [sure, failed(maybe, "unknown")]
    assert broken(calls, store.oracle) == set()
    store.apply(Put(b"a", b"1"))
    assert broken(calls, store.oracle) == {"ok write"}


# --- 4 and 8: order -------------------------------------------------------------------------


def test_write_against_real_time() -> None:
    """A write called after another had returned must have a greater revision."""
    store = Store()
    first, second = store.apply(Put(b"a", b"1")), store.apply(Put(b"b", b"2"), "other")
    early = replace(second, call_ns=0, return_ns=1)
    assert broken([first, early], store.oracle) == {"real time"}
    overlapping = replace(second, call_ns=first.return_ns - 1)
    assert broken([first, overlapping], store.oracle) == set()


def test_touching_calls_overlap() -> None:
    """Calls in the nanosecond of another's return are not after it."""
    store = Store()
    first, second = store.apply(Put(b"a", b"1")), store.apply(Put(b"b", b"2"))
    early = replace(second, call_ns=0, return_ns=first.call_ns)
    assert broken([first, early], store.oracle) == set()


@pytest.mark.parametrize("stale", range(1, 6))
def test_every_return_counts(stale: int) -> None:
    """A stale answer is found whichever of the calls before it was the newest."""
    store = Store()
    calls = [store.apply(Put(b"a", b"%d" % number)) for number in range(6)]
    oracle = Oracle(store.revisions[:stale])
    read = replace(calls[stale], request=Get(b"a"), revision=stale + 1)
    read = replace(read, kvs=tuple(oracle.range(b"a", None, stale + 1)))
    assert broken([*calls[:stale], read], oracle) == set()
    older = replace(read, revision=stale, kvs=tuple(oracle.range(b"a", None, stale)))
    assert broken([*calls[:stale], older], oracle) == {"real time", "monotonic read"}


def test_stale_read_of_another_client() -> None:
    """A linearizable read must not be older than what another client was told before."""
    store = Store()
    first = store.apply(Put(b"a", b"1"))
    read = store.apply(Get(b"a"), "reader")
    write = store.apply(Put(b"a", b"2"), "writer")
    late = replace(read, call_ns=write.return_ns + 1, return_ns=write.return_ns + 2)
    assert broken([first, write, late], store.oracle) == {"real time"}
    serializable = replace(late, request=Get(b"a", serializable=True))
    assert broken([first, write, serializable], store.oracle) == set()


def test_write_after_a_read() -> None:
    """A write called after a read had returned must be newer than what was read."""
    store = Store()
    write = store.apply(Put(b"a", b"1"), "writer")
    read = store.apply(Get(b"a"), "reader")
    late = replace(write, call_ns=read.return_ns + 1, return_ns=read.return_ns + 2)
    assert broken([read, late], store.oracle) == {"real time"}


def test_unknown_write_before_its_call() -> None:
    """A write of unknown outcome is placed by the store, and not before it was called."""
    store = Store()
    maybe, sure = store.apply(Put(b"a", b"1")), store.apply(Put(b"b", b"2"))
    late = replace(failed(maybe, "unknown"), call_ns=sure.return_ns + 1, return_ns=10**6)
    assert broken([sure, late], store.oracle) == {"real time"}
    assert broken([sure, failed(maybe, "unknown")], store.oracle) == set()


def test_unknown_write_that_comes_late() -> None:
    """A write may be applied after its caller gave up, so nothing need come after it."""
    store = Store()
    first = store.apply(Put(b"a", b"1"), "other")
    late = failed(store.apply(Put(b"b", b"2")), "unknown")
    early = replace(late, call_ns=first.call_ns - 20, return_ns=first.call_ns - 10)
    assert broken([early, first], store.oracle) == set()


def test_unknown_write_that_was_read_before() -> None:
    """A write cannot have made a revision that was returned before its call."""
    store = Store()
    write = failed(store.apply(Put(b"a", b"1")), "unknown")
    read = store.apply(Get(b"a"), "reader")
    late = replace(write, call_ns=read.return_ns + 1, return_ns=read.return_ns + 2)
    assert broken([read, late], store.oracle) == {"real time"}


def test_reads_of_one_client_go_back() -> None:
    """One client's reads do not go back; serializable ones only where that is promised."""
    store = Store()
    store.apply(Put(b"a", b"1"))
    old = store.apply(Get(b"a", serializable=True))
    store.apply(Put(b"a", b"2"))
    new = store.apply(Get(b"a", serializable=True))
    turned = [
        replace(old, call_ns=new.call_ns, return_ns=new.return_ns),
        replace(new, call_ns=old.call_ns, return_ns=old.return_ns),
    ]
    check = checkers.check_monotonic_reads
    assert check(turned) == []
    assert rules(check(turned, include_serializable=True)) == {"monotonic read"}
    assert check([old, new], include_serializable=True) == []
    others = [turned[0], replace(turned[1], client="other")]
    assert check(others, include_serializable=True) == []
    linearizable = [replace(read, request=Get(b"a")) for read in turned]
    assert rules(check(linearizable)) == {"monotonic read"}


# --- 5 and 6: reads and transactions --------------------------------------------------------


def test_wrong_reads() -> None:
    """A read that lacks a key, has one too many, or an old one is found."""
    store = Store()
    puts = [store.apply(put) for put in (Put(b"a", b"1"), Put(b"b", b"2"), Put(b"a", b"3"))]
    read = store.apply(Get(b"a", b"c"))
    old = store.oracle.get(b"a", 2)
    assert old is not None
    assert broken([*puts, read], store.oracle) == set()
    for kvs in (read.kvs[:1], (*read.kvs, old), (old, read.kvs[1]), read.kvs[::-1], ()):
        assert broken([*puts, replace(read, kvs=kvs)], store.oracle) == {"read"}
    assert broken([*puts, replace(read, revision=99)], store.oracle) == {"read"}
    first, second = checkers.check_reads(
        [replace(read, kvs=(old, read.kvs[1])), replace(read, kvs=read.kvs[:1])], store.oracle
    )
    assert f"{read.kvs[0]!r}, not {old!r}" in first.message
    assert "2 key(s), not 1" in second.message
    past = replace(read, request=Get(b"a", revision=2), kvs=(old,))
    assert broken([*puts, past], store.oracle) == set()
    assert broken([*puts, replace(past, request=Get(b"a", revision=4))], store.oracle) == {"read"}


@pytest.mark.parametrize(
    ("comparison", "result"),
    [
        (Comparison(b"a", "value", "==", b"1"), True),
        (Comparison(b"a", "value", ">", b"1"), False),
        (Comparison(b"a", "version", "<", 2), True),
        (Comparison(b"a", "mod_revision", "!=", 2), False),
        (Comparison(b"a", "create_revision", ">", 0), True),
        (Comparison(b"no", "version", "==", 0), True),
        (Comparison(b"no", "value", "!=", b"1"), False),
    ],
)
def test_txn_branch(comparison: Comparison, result: bool) -> None:
    """A transaction that took the wrong branch is found, whether it wrote or only read."""
    store = Store()
    put = store.apply(Put(b"a", b"1"))
    now = store.now + 20
    read = Operation("c", Txn((comparison,), (Get(b"a"),)), now, now, "ok", 2, succeeded=result)
    assert broken([put, read], store.oracle) == set()
    assert broken([put, replace(read, succeeded=not result)], store.oracle) == {"txn branch"}
    store.apply(Put(b"a", b"2"))  # what the transaction itself changes does not count
    both = Txn((comparison,), (Put(b"a", b"2"),), (Put(b"a", b"2"),))
    write = Operation("c", both, store.now - 5, store.now + 5, "ok", 3, succeeded=result)
    assert broken([put, write], store.oracle) == set()
    assert broken([put, replace(write, succeeded=not result)], store.oracle) == {"txn branch"}


def test_txn_that_may_have_deleted() -> None:
    """Without the number of deleted keys either revision's predicate will do."""
    store = Store()
    put = store.apply(Put(b"a", b"1"))
    txn = Txn((is_absent(b"a"),), (Delete(b"a"),), (Delete(b"a"),))
    done = replace(store.apply(txn), deleted=None)
    for succeeded in (True, False):
        assert broken([put, replace(done, succeeded=succeeded)], store.oracle) == set()


# --- the oracle and the whole ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "first", "range_end", "inside"),
    [
        (b"a", b"a", None, True),
        (b"a1", b"a", None, False),
        (b"a", b"a", b"b", True),
        (b"a\xff", b"a", b"b", True),
        (b"b", b"a", b"b", False),
        (b"A", b"a", b"b", False),
        (b"z", b"b", b"\0", True),
        (b"a", b"b", b"\0", False),
    ],
)
def test_in_range(key: bytes, first: bytes, range_end: bytes | None, inside: bool) -> None:
    """A range has its first key, not its end, and no end where that is a zero byte."""
    assert checkers.in_range(key, first, range_end) is inside
    kv = KeyValueRecord(key, b"1", 2, 2, 1)
    oracle = Oracle([StoreRevision(2, 0, (EventRecord(EventKind.PUT, kv),))])
    assert oracle.range(first, range_end, 2) == ([kv] if inside else [])
    assert oracle.range(first, range_end, 1) == []


def test_oracle_of_two_members() -> None:
    """Two members' histories are one if they agree; the earlier arrival counts."""
    kv = KeyValueRecord(b"a", b"1", 2, 2, 1)
    record = StoreRevision(2, 50, (EventRecord(EventKind.PUT, kv, is_create=True),))
    oracle = Oracle([record, replace(record, at_ns=40)])
    assert len(oracle.between(0, 9)) == 1
    assert oracle.last_revision == 2
    assert Oracle([]).last_revision == 1
    with pytest.raises(ValueError, match="revision 2"):
        Oracle([record, replace(record, events=())])


def test_history_runs_all_checks() -> None:
    """The check of a whole history finds what the single ones find."""
    store, recorder = Store(), Recorder()
    recorder.add(failed(store.apply(Put(b"a", b"1")), "not_applied"))
    recorder.add(LockHold("/lock", "one", 1, 0))
    recorder.add(LockHold("/lock", "two", 2, 1))
    recorder.add(Subscription("w", b"a", 1))
    for record in store.revisions:
        recorder.add(record)
    found = checkers.check_history(recorder, watched_through=2)
    assert rules(found) == {"not applied", "lock disjoint", "watch reliable"}


def test_deliveries_without_a_subscription() -> None:
    """What a watch delivered cannot be passed over because nobody wrote down what it asked for."""
    store, recorder = Store(), Recorder()
    recorder.add(store.apply(Put(b"a", b"1")))
    subscription = Subscription("w", b"a", 1)
    for record in store.revisions:
        recorder.add(record)
    for delivery in store.watch(subscription):
        recorder.add(delivery)
    assert rules(checkers.check_history(recorder)) == {"watch subscription"}
    recorder.add(subscription)
    assert checkers.check_history(recorder) == []


def test_count_outcomes() -> None:
    """Outcomes are counted, to prove that a test had traffic."""
    store = Store()
    calls = [store.apply(Put(b"a", b"1")), Operation("c", Get(b"a"), 0, 1, "unknown")]
    assert checkers.count_outcomes(calls) == {"ok": 1, "unknown": 1}
