"""The recorder: what it writes down, and that nothing is lost on the way through a file."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioetcd.testing.history import (
    Comparison,
    Delete,
    Delivery,
    EventKind,
    EventRecord,
    Get,
    GuardedTxn,
    KeyValueRecord,
    LeaseSignal,
    LockHold,
    Operation,
    Put,
    Record,
    Recorder,
    StoreRevision,
    Subscription,
    Txn,
    WatchEnd,
)
from aioetcd.types.store import Event, EventType, KeyValue

KV = KeyValueRecord(b"k\xff\x00", "höhe\n".encode(), 3, 4, 2)
EVENT = EventRecord(EventKind.PUT, KV, KeyValueRecord(b"k", b"", 3, 3, 1), is_create=False)
RECORDS: list[Record] = [
    Operation("c1", Put(b"a", b"1", lease=7), 1, 2, "ok", revision=2),
    Operation("c1", Get(b"a", b"\0", revision=2, limit=1, serializable=True), 3, 4, "ok", 2, (KV,)),
    Operation("c2", Delete(b"a"), 1, 2, "unknown", error="TimeoutError: é"),
    Operation(
        "c2",
        Txn((Comparison(b"a", "value", "==", b"1"),), (Put(b"b", b"2"),), (Get(b"a"),)),
        5,
        6,
        "ok",
        revision=3,
        deleted=0,
        succeeded=True,
        reads=((KV, KV), ()),
    ),
    Operation("c2", Txn((Comparison(b"a", "version", ">", 0),)), 5, 6, "not_applied"),
    Subscription("w", b"a", 1),
    Subscription("w", b"a", 1, b"b", EventKind.DELETE, prev_kv=True),
    Delivery("w", 10, 4, (EVENT,)),
    Delivery("w", 11, 5),
    WatchEnd("w", 12),
    WatchEnd("w", 12, "CompactedError()"),
    LockHold("/lock", "h", 7, 1, 2),
    LockHold("/lock", "h", 8, 1, lost_ns=4),
    GuardedTxn("/lock", 7, 9),
    LeaseSignal(2**62, "granted", 5, sent_ns=4, ttl=10),
    LeaseSignal(2**62, "lost", 5, reason="expired"),
    StoreRevision(4, 12, (EVENT, EventRecord(EventKind.DELETE, KV))),
]


def test_file_round_trip(tmp_path: Path) -> None:
    """Every kind of record comes back from a file as it was, one a line."""
    path = tmp_path / "history.jsonl"
    Recorder(RECORDS).dump(path)
    assert Recorder.load(path).records == RECORDS
    assert len(path.read_text().splitlines()) == len(RECORDS)


def test_files_are_put_together(tmp_path: Path) -> None:
    """The histories of several processes can be read as one."""
    Recorder(RECORDS[:3]).dump(tmp_path / "1")
    Recorder(RECORDS[3:]).dump(tmp_path / "2")
    assert Recorder.load(tmp_path / "1", tmp_path / "2").records == RECORDS


@given(key=st.binary(), value=st.binary(), client=st.text())
def test_any_bytes(
    tmp_path_factory: pytest.TempPathFactory, key: bytes, value: bytes, client: str
) -> None:
    """Any bytes and any text survive the file."""
    path = tmp_path_factory.getbasetemp() / "any-bytes.jsonl"  # the same for each example
    records: list[Record] = [Operation(client, Put(key, value), 0, 1, "ok")]
    Recorder(records).dump(path)
    assert Recorder.load(path).records == records


@pytest.mark.parametrize(
    "line",
    [
        "nothing",
        "7",
        "[]",
        "{}",
        '{"is": "Nothing"}',
        '{"is": "Put", "key": {"bytes": "a"}}',
        '{"is": "Put", "key": {"bytes": "a"}, "value": {"bytes": "a"}}',
        '{"kind": "PUT"}',
    ],
)
def test_broken_file(tmp_path: Path, line: str) -> None:
    """A line that is no record is an error that names file and line."""
    path = tmp_path / "h"
    Recorder(RECORDS[:1]).dump(path)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match="h:2: not a record"):
        Recorder.load(path)


def test_of_kind() -> None:
    """Records can be taken out by kind, in their order."""
    recorder = Recorder()
    for record in RECORDS:
        recorder.add(record)
    assert [hold.token for hold in recorder.of(LockHold)] == [7, 8]
    assert len(recorder.of(Operation)) == 5


def test_call_ok() -> None:
    """A call that returns is recorded with its times and its answer."""
    recorder = Recorder()
    ticks = iter((100, 200))
    with recorder.call("c", Get(b"a"), clock=lambda: next(ticks)) as call:
        call.ok(7, kvs=[KeyValue(b"a", b"1", 2, 3, 2, None)])
    kv = KeyValueRecord(b"a", b"1", 2, 3, 2)
    assert recorder.records == [Operation("c", Get(b"a"), 100, 200, "ok", 7, (kv,))]


class _RefusedError(Exception):
    maybe_applied = False


class _LostError(Exception):
    maybe_applied = True


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (_RefusedError("no"), "not_applied"),
        (_LostError("hm"), "unknown"),
        (OSError("hm"), "unknown"),
        (asyncio.CancelledError(), "unknown"),
    ],
)
def test_call_that_raises(error: BaseException, outcome: str) -> None:
    """Only an error that says so means "not applied"; it goes on to the caller."""
    recorder = Recorder()
    with pytest.raises(type(error)), recorder.call("c", Put(b"a", b"1")):
        raise error
    (operation,) = recorder.of(Operation)
    assert operation.outcome == outcome
    assert operation.call_ns <= operation.return_ns
    assert type(error).__name__ in (operation.error or "")


def test_call_without_an_answer() -> None:
    """A block that forgets to say what was returned is told so."""
    with pytest.raises(RuntimeError, match="ok"), Recorder().call("c", Get(b"a")):
        pass


def test_client_events_are_copied() -> None:
    """The client's own events fit, deletes without what a delete does not have."""
    old = KeyValue(b"a", b"1", 2, 2, 1, None)
    put = Event(EventType.PUT, old, None)
    delete = Event(EventType.DELETE, KeyValue(b"a", b"", 0, 3, 0, None), old)
    recorder = Recorder()
    recorder.delivered("w", 3, [put, delete])
    recorder.delivered("w", 9)
    first, bookmark = recorder.of(Delivery)
    kv = KeyValueRecord(b"a", b"1", 2, 2, 1)
    assert first.events == (
        EventRecord(EventKind.PUT, kv, None, is_create=True),
        EventRecord(EventKind.DELETE, KeyValueRecord(b"a", b"", 0, 3, 0), kv),
    )
    assert (bookmark.revision, bookmark.events) == (9, ())


@dataclass
class _OwnEvent:
    """An event of a test's own, without an `is_create`."""

    type: EventKind
    kv: KeyValueRecord
    prev_kv: KeyValueRecord | None = None


def test_own_events_are_copied() -> None:
    """Without an `is_create` of its own an event's is told by its revisions."""
    created = EventRecord.of(_OwnEvent(EventKind.PUT, KeyValueRecord(b"a", b"", 2, 2, 1)))
    changed = EventRecord.of(_OwnEvent(EventKind.PUT, KeyValueRecord(b"a", b"", 2, 3, 2)))
    assert (created.is_create, changed.is_create) == (True, False)


def test_stored_by_revision() -> None:
    """What the oracle delivers is grouped by revision, in order."""
    recorder = Recorder()
    keys = [KeyValueRecord(key, b"", rev, rev, 1) for key, rev in [(b"b", 2), (b"a", 2), (b"c", 3)]]
    recorder.stored(EventRecord(EventKind.PUT, kv, is_create=True) for kv in keys)
    two, three = recorder.of(StoreRevision)
    assert (two.revision, three.revision) == (2, 3)
    assert [event.kv.key for event in two.events] == [b"b", b"a"]
