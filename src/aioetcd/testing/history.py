"""What happened in a test, written down so that it can be checked afterwards.

A `Recorder` collects records in memory and writes them as JSON lines, one record a line: what each
client asked and was told (`Operation`), what each watch delivered (`Subscription`, `Delivery`), who
held which lock and when (`LockHold`, `GuardedTxn`), what was said about each lease
(`LeaseSignal`), and what the store really did (`StoreRevision`, from a control client that is
not part of the faults). `aioetcd.testing.checkers` says whether it was right.

Times are `time.monotonic_ns()`, which on Linux processes of one machine may compare.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from aioetcd.testing.records import (
    Comparison,
    Delete,
    Delivery,
    EventKind,
    EventLike,
    EventRecord,
    Get,
    GuardedTxn,
    KeyValueLike,
    KeyValueRecord,
    LeaseSignal,
    LockHold,
    Operation,
    Outcome,
    Put,
    Record,
    Request,
    StoreRevision,
    Subscription,
    Txn,
    WatchEnd,
)

__all__ = [
    "Call",
    "Comparison",
    "Delete",
    "Delivery",
    "EventKind",
    "EventLike",
    "EventRecord",
    "Get",
    "GuardedTxn",
    "KeyValueLike",
    "KeyValueRecord",
    "LeaseSignal",
    "LockHold",
    "Operation",
    "Outcome",
    "Put",
    "Record",
    "Recorder",
    "Request",
    "StoreRevision",
    "Subscription",
    "Txn",
    "WatchEnd",
]


@dataclass(slots=True, eq=False)
class Call:
    """A call under way, made by `Recorder.call`; `ok` tells what it returned."""

    answered: dict[str, Any] | None = None

    def ok(
        self,
        revision: int,
        *,
        kvs: Iterable[KeyValueLike] = (),
        deleted: int | None = None,
        succeeded: bool | None = None,
        reads: Iterable[Iterable[KeyValueLike]] | None = None,
    ) -> None:
        """The call returned: `revision` is its header's, the others as in `Operation`."""
        self.answered = {
            "revision": revision,
            "kvs": _records(kvs),
            "deleted": deleted,
            "succeeded": succeeded,
            "reads": None if reads is None else tuple(map(_records, reads)),
        }


def _records(kvs: Iterable[KeyValueLike]) -> tuple[KeyValueRecord, ...]:
    return tuple(map(KeyValueRecord.of, kvs))


_R = TypeVar("_R", bound=Record)


class Recorder:
    """Collects records, in memory, in the order they are added.

    Made by a test; nothing to close. All tasks of the process may share it. Records of other
    processes are added by `load`.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.records: list[Record] = list(records)

    def add(self, record: Record) -> None:
        """Add a record."""
        self.records.append(record)

    @contextmanager
    def call(
        self, client: str, request: Request, *, clock: Callable[[], int] = time.monotonic_ns
    ) -> Iterator[Call]:
        """Record one operation around the block that makes the call.

        The block calls `ok` on what it is given. If it raises, cancellation included, the
        outcome is `not_applied` where the exception's `maybe_applied` is False, else `unknown`,
        and the exception goes on.

        Raises:
            RuntimeError: The block ended without `ok` and without an exception.
        """
        call, begin = Call(), clock()
        try:
            yield call
        except BaseException as exc:
            applied = getattr(exc, "maybe_applied", True)
            outcome: Outcome = "not_applied" if applied is False else "unknown"
            text = f"{type(exc).__name__}: {exc}"
            self.add(Operation(client, request, begin, clock(), outcome, error=text))
            raise
        if call.answered is None:
            raise RuntimeError("the block must call ok() with what was returned")
        self.add(Operation(client, request, begin, clock(), "ok", **call.answered))

    def delivered(self, watch: str, revision: int, events: Iterable[EventLike] = ()) -> None:
        """Record a batch of a watch, at the time of this call."""
        batch = tuple(map(EventRecord.of, events))
        self.add(Delivery(watch, time.monotonic_ns(), revision, batch))

    def ended(self, watch: str, error: BaseException | None = None) -> None:
        """Record that a watch ended, at the time of this call."""
        self.add(WatchEnd(watch, time.monotonic_ns(), None if error is None else repr(error)))

    def stored(self, events: Iterable[EventLike]) -> None:
        """Record what the oracle's watch delivered: whole revisions, at the time of this call."""
        now = time.monotonic_ns()
        by_revision: dict[int, list[EventRecord]] = {}
        for event in map(EventRecord.of, events):
            by_revision.setdefault(event.kv.mod_revision, []).append(event)
        for revision, changes in by_revision.items():
            self.add(StoreRevision(revision, now, tuple(changes)))

    def of(self, kind: type[_R]) -> list[_R]:
        """The records of one kind, in order."""
        return [record for record in self.records if isinstance(record, kind)]

    def dump(self, path: str | os.PathLike[str]) -> None:
        """Write all records as JSON lines, replacing the file."""
        with open(path, "w", encoding="ascii") as file:
            file.writelines(json.dumps(record, default=_encoded) + "\n" for record in self.records)

    @classmethod
    def load(cls, *paths: str | os.PathLike[str]) -> Recorder:
        """Read the records of one or more files, one file after another.

        Raises:
            ValueError: A line is not a record.
        """
        recorder = cls()
        for path in paths:
            with open(path, encoding="ascii") as file:
                for number, line in enumerate(file, 1):
                    try:
                        record = json.loads(line, object_hook=_decoded)
                    except (KeyError, TypeError, ValueError) as exc:
                        raise ValueError(f"{os.fspath(path)}:{number}: not a record") from exc
                    if not isinstance(record, Record):
                        raise ValueError(f"{os.fspath(path)}:{number}: not a record")
                    recorder.add(record)
        return recorder


_CLASSES: tuple[type[Any], ...] = (
    *(KeyValueRecord, EventRecord, Put, Get, Delete, Comparison, Txn),
    *(
        Operation,
        Subscription,
        Delivery,
        WatchEnd,
        LockHold,
        GuardedTxn,
        LeaseSignal,
        StoreRevision,
    ),
)
_BY_NAME = {cls.__name__: cls for cls in _CLASSES}
_FIELDS = {cls: tuple(field.name for field in dataclasses.fields(cls)) for cls in _CLASSES}


def _encoded(value: Any) -> dict[str, Any]:
    """Dataclasses as objects that name their class, bytes as text in which nothing is lost."""
    if isinstance(value, bytes):
        return {"bytes": value.decode("utf-8", "surrogateescape")}
    cls = type(value)
    encoded = {"is": cls.__name__}
    for name in _FIELDS[cls]:
        content = getattr(value, name)
        if content is not None:
            encoded[name] = content
    return encoded


def _as_tuples(content: list[Any]) -> tuple[Any, ...]:
    return tuple(_as_tuples(each) if type(each) is list else each for each in content)


def _decoded(value: dict[str, Any]) -> Any:
    if "bytes" in value:
        return value["bytes"].encode("utf-8", "surrogateescape")
    for name, content in value.items():
        if type(content) is list:
            value[name] = _as_tuples(content)
    cls = _BY_NAME[value.pop("is")]
    if cls is EventRecord:
        value["type"] = EventKind(value["type"])
    elif cls is Subscription and "only" in value:
        value["only"] = EventKind(value["only"])
    return cls(**value)
