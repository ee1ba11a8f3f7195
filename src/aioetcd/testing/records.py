"""What a history is made of: plain values, without a clock and without a network.

Times are `time.monotonic_ns()`, which on Linux processes of one machine may compare.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

Outcome: TypeAlias = Literal["ok", "not_applied", "unknown"]
"""`ok`: answered. `not_applied`: an error that says it had no effect. `unknown`: any other."""


class _HasName(Protocol):
    @property
    def name(self) -> str: ...


class KeyValueLike(Protocol):
    """A key-value: `aioetcd.KeyValue`, `KeyValueRecord`, or a test's own."""

    @property
    def key(self) -> bytes: ...  # noqa: D102
    @property
    def value(self) -> bytes: ...  # noqa: D102
    @property
    def create_revision(self) -> int: ...  # noqa: D102
    @property
    def mod_revision(self) -> int: ...  # noqa: D102
    @property
    def version(self) -> int: ...  # noqa: D102
    @property
    def lease(self) -> int | None: ...  # noqa: D102


class EventLike(Protocol):
    """An event: `aioetcd.Event`, `EventRecord`, or a test's own, of a type named PUT or DELETE."""

    @property
    def type(self) -> _HasName: ...  # noqa: D102
    @property
    def kv(self) -> KeyValueLike: ...  # noqa: D102
    @property
    def prev_kv(self) -> KeyValueLike | None: ...  # noqa: D102


class EventKind(enum.StrEnum):
    """What happened to a key."""

    PUT = "PUT"
    DELETE = "DELETE"


@dataclass(frozen=True, slots=True)
class KeyValueRecord:
    """A key with its value and revisions, and the lease that it hangs on."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int | None = None

    @classmethod
    def of(cls, kv: KeyValueLike) -> KeyValueRecord:
        """Copy a key-value."""
        return cls(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


@dataclass(frozen=True, slots=True)
class EventRecord:
    """One change of one key; `is_create` is what the client said, not what the store knows."""

    type: EventKind
    kv: KeyValueRecord
    prev_kv: KeyValueRecord | None = None
    is_create: bool = False

    @classmethod
    def of(cls, event: EventLike) -> EventRecord:
        """Copy an event; without an `is_create` of its own it is told by the revisions."""
        kind = EventKind[event.type.name]
        kv = event.kv
        if kind is EventKind.DELETE:
            record = KeyValueRecord(kv.key, b"", 0, kv.mod_revision, 0)
        else:
            record = KeyValueRecord.of(kv)
        is_create = getattr(event, "is_create", None)
        if is_create is None:
            is_create = kind is EventKind.PUT and kv.create_revision == kv.mod_revision
        previous = event.prev_kv
        return cls(
            kind,
            record,
            None if previous is None else KeyValueRecord.of(previous),
            bool(is_create),
        )


# --- operations -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Put:
    """Put a value. Values that occur once in a test let the checkers see the most."""

    key: bytes
    value: bytes
    lease: int | None = None


@dataclass(frozen=True, slots=True)
class Get:
    r"""Read a key, or the range up to `range_end` (exclusive; ``b"\0"``: no end; ``b""``: one key).

    Attributes:
        revision: The revision asked for, None for the newest.
        limit: At most so many keys, the smallest ones.
        serializable: Whether the member answered from its own, maybe older state.
    """

    key: bytes
    range_end: bytes | None = None
    revision: int | None = None
    limit: int | None = None
    serializable: bool = False


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a key or a range."""

    key: bytes
    range_end: bytes | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """One condition of a transaction: `target` of the key, `operator`, `operand`."""

    key: bytes
    target: Literal["value", "version", "create_revision", "mod_revision"]
    operator: Literal["==", "!=", "<", ">"]
    operand: bytes | int


@dataclass(frozen=True, slots=True)
class Txn:
    """A transaction; its branches hold no further transactions."""

    compare: tuple[Comparison, ...] = ()
    success: tuple[Put | Get | Delete, ...] = ()
    failure: tuple[Put | Get | Delete, ...] = ()


Request: TypeAlias = Put | Get | Delete | Txn


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of one client, and what it was told.

    Attributes:
        client: Who asked; calls of one client may overlap.
        request: What was asked.
        call_ns: When the call was made.
        return_ns: When it returned or raised.
        outcome: Whether it was answered, surely had no effect, or nobody knows.
        revision: The answer's header revision.
        kvs: What a `Get` returned.
        reads: What each `Get` of the branch that a `Txn` took returned, in order; None where the
            test did not write it down.
        deleted: How many keys a `Delete`, or all deletes of a `Txn`, removed.
        succeeded: Which branch a `Txn` took.
        error: The exception's text, for whoever reads the history.
    """

    client: str
    request: Request
    call_ns: int
    return_ns: int
    outcome: Outcome
    revision: int | None = None
    kvs: tuple[KeyValueRecord, ...] = ()
    deleted: int | None = None
    succeeded: bool | None = None
    error: str | None = None
    reads: tuple[tuple[KeyValueRecord, ...], ...] | None = None


# --- watches, locks, leases, the store ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Subscription:
    """What a watch asked for.

    Attributes:
        watch: Its name in this history.
        key: The key or the range's first key.
        start_revision: The first revision it must deliver: the one asked for, or the revision after
            that of the `created` answer.
        range_end: The range's end, exclusive.
        only: The kind of event it asked for.
        prev_kv: Whether it asked for the keys before each change.
    """

    watch: str
    key: bytes
    start_revision: int
    range_end: bytes | None = None
    only: EventKind | None = None
    prev_kv: bool = False


@dataclass(frozen=True, slots=True)
class Delivery:
    """One batch that a watch handed over; without events it is a bookmark at `revision`."""

    watch: str
    at_ns: int
    revision: int
    events: tuple[EventRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class WatchEnd:
    """A watch ended, by its user or by itself: what it had not handed over by then, need not come.

    A watch without one is still open, and must have handed over everything.
    """

    watch: str
    at_ns: int
    error: str | None = None


@dataclass(frozen=True, slots=True)
class LockHold:
    """One acquisition of a lock, a leadership, or anything else that only one may hold.

    Attributes:
        name: The lock.
        holder: Who held it.
        token: Its fencing token: the key's create revision.
        acquired_ns: When the acquiring call returned.
        released_ns: When the releasing call was made, None if it never was.
        lost_ns: When the holder was told of the loss, None if it never was.
    """

    name: str
    holder: str
    token: int
    acquired_ns: int
    released_ns: int | None = None
    lost_ns: int | None = None


@dataclass(frozen=True, slots=True)
class GuardedTxn:
    """A transaction that succeeded under the condition that the lock was still owned."""

    name: str
    token: int
    revision: int


@dataclass(frozen=True, slots=True)
class LeaseSignal:
    """Something said by, or to, the owner of a lease.

    Attributes:
        lease_id: The lease.
        kind: `granted`, `sent` (a renewal), `answered` (a renewal), `revoked` (by its owner, when
            the call was made), `lost` (the owner was told).
        at_ns: When.
        sent_ns: For `granted` and `answered`: when the request was sent.
        ttl: For `granted` and `answered`: the seconds that the server gave.
        reason: For `lost`: why, as in `aioetcd.LeaseLostError`; ``"expired"`` is checked for
            coming too early.
    """

    lease_id: int
    kind: Literal["granted", "sent", "answered", "revoked", "lost"]
    at_ns: int
    sent_ns: int | None = None
    ttl: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class StoreRevision:
    """All changes that one revision made, in order, as the oracle saw them, and when it did."""

    revision: int
    at_ns: int
    events: tuple[EventRecord, ...]


Record: TypeAlias = (
    Operation
    | Subscription
    | Delivery
    | WatchEnd
    | LockHold
    | GuardedTxn
    | LeaseSignal
    | StoreRevision
)
