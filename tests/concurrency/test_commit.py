"""What is believed of a commit whose answer was lost is true, whatever others do."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aioetcd import Compare, KeyValue
from aioetcd._proto import rpc_pb2
from aioetcd.concurrency._commit import Commit, Fate, Receipt, Write, keys_of
from aioetcd.ops import AnyOp

EXAMPLES = int(os.environ.get("AIOETCD_TEST_EXAMPLES", "200"))

A, B, C, RECEIPT = b"a", b"b", b"c", b"receipt"


@dataclass
class Store:
    """A store, as far as transactions see of it."""

    revision: int = 1
    kvs: dict[bytes, KeyValue] = field(default_factory=dict)
    history: list[tuple[bytes, KeyValue | None]] = field(default_factory=list)

    def write(self, writes: dict[bytes, Write]) -> None:
        """Make writes at one revision, or none where nothing changes."""
        changes = {k: w for k, w in writes.items() if w.value is not None or k in self.kvs}
        self.revision += bool(changes)
        for key, (value, lease) in changes.items():
            old, now = self.kvs.pop(key, None), None
            if value is not None:
                created, version = (old.create_revision, old.version) if old else (0, 0)
                created = created or self.revision
                now = KeyValue(key, value, created, self.revision, version + 1, lease)
                self.kvs[key] = now
            self.history.append((key, now))

    def holds(self, compare: Compare) -> bool:
        """Compare as etcd does."""
        message = compare._message
        kv = self.kvs.get(message.key)
        if message.target == rpc_pb2.Compare.CREATE:
            assert (message.result, message.create_revision) == (rpc_pb2.Compare.EQUAL, 0)
            return kv is None
        assert message.target == rpc_pb2.Compare.MOD
        revision = kv.mod_revision if kv else 0
        if message.result == rpc_pb2.Compare.LESS:
            return revision < message.mod_revision
        assert message.result == rpc_pb2.Compare.EQUAL
        return revision == message.mod_revision

    def arrives(self, commit: Commit) -> bool:
        """Have a copy of a commit arrive; give whether it is applied."""
        if not all(map(self.holds, commit.comparisons)):
            return False
        self.write({key: _write(op) for op in commit.operations for key in [op._request.key]})
        return True

    def now(self, commit: Commit) -> dict[bytes, KeyValue | None]:
        """Read what a commit is judged by."""
        return {key: self.kvs.get(key) for key in keys_of(commit)}


def _write(op: AnyOp) -> Write:
    request: Any = op._request
    if isinstance(request, rpc_pb2.PutRequest):
        return Write(request.value, request.lease or None)
    return Write(None)


VALUES = st.sampled_from([b"1", b"2"])
WRITES = st.dictionaries(
    st.sampled_from([A, B, C]), (st.none() | VALUES).map(Write), min_size=1, max_size=3
)
OTHERS = st.lists(WRITES, max_size=4)
# What happens one after the other: somebody else writes, or a copy of the commit arrives.
EVENTS = st.lists(WRITES | st.just("arrives"), max_size=6)


@st.composite
def begun(draw: st.DrawFn) -> tuple[Store, Commit]:
    """Give a store, and a commit that was built on what was seen of it, and then sent."""
    store = Store()
    for writes in draw(OTHERS):
        store.write(writes)
    names = draw(st.sets(st.sampled_from([A, B, C])))
    seen, first = {name: store.kvs.get(name) for name in names}, store.revision
    since = first if draw(st.booleans()) and names else None
    for writes in draw(OTHERS):  # meanwhile
        store.write(writes)
    commit = Commit(seen, draw(WRITES), since, known=first)
    return store, commit


def happen(store: Store, commit: Commit, events: list[Any]) -> int:
    """Let things happen; give how often the commit was applied."""
    applied = 0
    for event in events:
        if event == "arrives":
            applied += store.arrives(commit)
        else:
            store.write(event)
    return applied


@pytest.mark.timeout(600)
@settings(max_examples=EXAMPLES, print_blob=True)
@given(begun(), EVENTS, EVENTS)
def test_what_is_believed(given: tuple[Store, Commit], before: list[Any], after: list[Any]) -> None:
    """Never applied, or open: and then of all copies one at the most."""
    store, commit = given
    applied = happen(store, commit, before)
    fate = commit.fate(store.now(commit))
    assert fate is not Fate.APPLIED
    if fate is Fate.UNKNOWN:
        return
    assert commit.can_be_judged
    assert applied == 0
    assert happen(store, commit, after) <= (fate is Fate.OPEN)


@pytest.mark.timeout(600)
@settings(max_examples=EXAMPLES, print_blob=True)
@given(begun(), EVENTS, EVENTS, st.lists(st.sampled_from(["put", "delete", None]), max_size=4))
def test_what_a_receipt_tells(
    given: tuple[Store, Commit], before: list[Any], after: list[Any], others: list[str | None]
) -> None:
    """It is always known, also where others use the receipt or delete it; nothing comes twice."""
    store, commit = given
    store.write({RECEIPT: Write(b"somebody's")})
    commit = commit._replace(receipt=Receipt(store.kvs[RECEIPT], b"ours"))
    assert commit.receipt is not None
    written = len(store.history)
    applied = happen(store, commit, before)
    for other in others:
        if other is not None:
            store.write({RECEIPT: Write(b"another's" if other == "put" else None)})
    if store.holds(Compare.unchanged(commit.receipt.seen)):
        store.write({RECEIPT: Write(b"the end")})
        fate = Fate.NEVER
    else:
        fate = commit.receipt.fate(store.kvs.get(RECEIPT))
    if fate is Fate.UNKNOWN:
        first = next(kv for key, kv in store.history[written:] if key == RECEIPT)
        deleted = KeyValue(RECEIPT, b"", 0, 0, 0, None)
        fate = commit.receipt.fate_by_history(first or deleted)
    assert fate is (Fate.APPLIED if applied else Fate.NEVER)
    assert applied + happen(store, commit, after) == applied <= 1


def kv(value: str, version: int, *, created: int = 10) -> KeyValue:
    """A key of that version; each change has a revision of its own."""
    return KeyValue(A, value.encode(), created, created + version - 1, version, None)


OLD = kv("old", 3)
OTHER = kv("other", 1)._replace(key=B)
CHANGED = OTHER._replace(mod_revision=30, version=2)


@pytest.mark.parametrize(
    ("seen", "write", "now", "fate"),
    [
        # Both are as they were: only what ends itself may be sent again.
        ({A: OLD, B: OTHER}, b"new", {A: OLD, B: OTHER}, Fate.OPEN),
        ({A: OLD, B: OTHER}, None, {A: OLD, B: OTHER}, Fate.OPEN),
        ({A: None, B: OTHER}, b"new", {A: None, B: OTHER}, Fate.UNKNOWN),
        ({B: OTHER}, b"new", {A: OLD, B: OTHER}, Fate.UNKNOWN),
        # What has changed would be as it was once it is deleted.
        ({A: OLD, B: None}, b"new", {A: OLD, B: OTHER}, Fate.UNKNOWN),
        # Others have changed what was seen, and what was to be written tells.
        ({A: OLD, B: OTHER}, b"new", {A: OLD, B: CHANGED}, Fate.NEVER),
        ({A: OLD, B: OTHER}, b"new", {A: OLD, B: None}, Fate.NEVER),
        ({B: OTHER}, b"new", {A: OLD, B: CHANGED}, Fate.NEVER),
        ({A: OLD}, b"new", {A: kv("other", 4)._replace(mod_revision=30)}, Fate.NEVER),
        ({A: OLD, B: OTHER}, None, {A: kv("other", 9), B: CHANGED}, Fate.NEVER),
        # Or does not.
        ({A: OLD}, b"new", {A: kv("new", 4)._replace(mod_revision=30)}, Fate.UNKNOWN),
        ({A: OLD}, b"new", {A: kv("other", 5)._replace(mod_revision=30)}, Fate.UNKNOWN),
        ({A: OLD}, b"new", {A: None}, Fate.UNKNOWN),
        ({A: OLD}, b"new", {A: kv("other", 4, created=30)}, Fate.UNKNOWN),
        ({A: OLD}, None, {A: None}, Fate.UNKNOWN),
        ({A: OLD}, None, {A: kv("again", 1, created=30)}, Fate.UNKNOWN),
        ({A: None, B: OTHER}, b"new", {A: kv("other", 1, created=30), B: CHANGED}, Fate.UNKNOWN),
    ],
)
def test_fate(
    seen: dict[bytes, KeyValue | None],
    write: bytes | None,
    now: dict[bytes, KeyValue | None],
    fate: Fate,
) -> None:
    """What became of a commit follows from what is there now, where that says it."""
    assert Commit(seen, {A: Write(write)}, None, known=20).fate(now) is fate


def test_fate_with_a_lease() -> None:
    """What hangs on another lease was written by somebody else."""
    now = kv("new", 4)._replace(mod_revision=30, lease=7)
    for lease, fate in ((7, Fate.UNKNOWN), (8, Fate.NEVER), (None, Fate.NEVER)):
        assert Commit({A: OLD}, {A: Write(b"new", lease)}, None, known=20).fate({A: now}) is fate


def test_what_stands_in_the_way() -> None:
    """It is what was seen and is another, what was written since, and the receipt."""
    receipt = Receipt(kv("x", 1)._replace(key=RECEIPT), b"ours")
    writes = {C: Write(b"new"), A: Write(b"new")}
    commit = Commit({A: OLD, B: None}, writes, since=20, known=20, receipt=receipt)
    quiet = {A: OLD, B: None, C: None, RECEIPT: receipt.seen}
    assert commit.compared == [A, B, C]
    assert commit.changed(quiet) == ()
    other = kv("y", 9, created=20)
    assert commit.changed({**quiet, A: None, C: other}) == (A, C)
    assert commit.changed({**quiet, B: other, RECEIPT: None}) == (B, RECEIPT)
    assert commit._replace(since=None).compared == [A, B]
    assert Commit({A: None}, writes, since=20, known=20).can_be_judged is False
