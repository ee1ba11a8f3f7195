"""The values that answers are made of: immutable, comparable, cheap.

`KeyValue`, `Event` and `ResponseHeader` are tuples, because a watch hands over hundreds of
thousands a second; the answers of single calls are frozen dataclasses. All are copied out of the
protobuf message, which would otherwise keep a whole answer in memory for one key.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from aioetcd._proto import kv_pb2, rpc_pb2

_new_tuple = tuple.__new__  # a named tuple's own __new__ costs twice as much


def _short(data: bytes) -> str:
    return repr(data) if len(data) <= 48 else f"{data[:40]!r}...({len(data)} bytes)"


class EventType(enum.IntEnum):
    """What happened to a key."""

    PUT = 0
    DELETE = 1


class SortOrder(enum.IntEnum):
    """The order of a sorted `get`. NONE is the server's own: by key, ascending."""

    NONE = 0
    ASCEND = 1
    DESCEND = 2


class SortTarget(enum.IntEnum):
    """What a `get` sorts by."""

    KEY = 0
    VERSION = 1
    CREATE = 2
    MOD = 3
    VALUE = 4


class ResponseHeader(NamedTuple):
    """What etcd says about itself with each answer.

    Attributes:
        cluster_id: The cluster that answered.
        member_id: The member that answered.
        revision: The store's revision when it answered, which is not the revision of the data.
        raft_term: The election term.
    """

    cluster_id: int
    member_id: int
    revision: int
    raft_term: int

    @classmethod
    def from_message(cls, message: rpc_pb2.ResponseHeader) -> ResponseHeader:
        """Copy a protobuf header."""
        return _new_tuple(
            cls, (message.cluster_id, message.member_id, message.revision, message.raft_term)
        )


class KeyValue(NamedTuple):
    """A key with its value and history.

    Attributes:
        key: The key.
        value: The value; empty in a ``keys_only`` answer and in a DELETE event.
        create_revision: The revision that created the key.
        mod_revision: The revision that last changed it.
        version: How often it was put since it was created; the first put makes it 1.
        lease: The id of the lease that it hangs on, or None. Servers from 3.7 on leave it out of
            ``keys_only`` answers.
    """

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int | None

    @classmethod
    def from_message(cls, message: kv_pb2.KeyValue) -> KeyValue:
        """Copy a protobuf key-value."""
        return _new_tuple(
            cls,
            (
                message.key,
                message.value,
                message.create_revision,
                message.mod_revision,
                message.version,
                message.lease or None,
            ),
        )

    def __repr__(self) -> str:
        """Show the key, the start of the value, and the last change."""
        change = f"mod_revision={self.mod_revision}"
        return f"<KeyValue {_short(self.key)}={_short(self.value)} {change}>"


class Event(tuple[EventType, bytes, bytes, int, int, int, int | None, KeyValue | None]):
    """One change of one key, as a watch delivers it.

    It is one flat tuple: `kv` is made when it is asked for, which halves the objects of a large
    replay, and the time that the garbage collector spends on them.

    Attributes:
        type: PUT or DELETE.
        kv: The key after the change. A DELETE's has only ``key`` and ``mod_revision``.
        prev_kv: The key before the change: None unless the watch asked with ``prev_kv=True``,
            where the change created the key, and where the old revision is compacted already.
    """

    __slots__ = ()

    def __new__(cls, type: EventType, kv: KeyValue, prev_kv: KeyValue | None) -> Event:
        """Make an event from its parts."""
        return _new_tuple(cls, (type, *kv, prev_kv))

    def __getnewargs__(self) -> tuple[EventType, KeyValue, KeyValue | None]:
        """Give what `__new__` takes, for copies and pickles."""
        return (self.type, self.kv, self.prev_kv)

    @property
    def type(self) -> EventType:
        """PUT or DELETE."""
        return self[0]

    @property
    def kv(self) -> KeyValue:
        """The key after the change."""
        return _new_tuple(KeyValue, self[1:7])

    @property
    def prev_kv(self) -> KeyValue | None:
        """The key before the change, where it was asked for and is known."""
        return self[7]

    @property
    def mod_revision(self) -> int:
        """The revision of the change, as in ``kv.mod_revision``."""
        return self[4]

    @property
    def is_create(self) -> bool:
        """Whether this put made a key that was not there."""
        return self[0] == EventType.PUT and self[3] == self[4]

    @property
    def is_modify(self) -> bool:
        """Whether this put changed a key that was there."""
        return self[0] == EventType.PUT and self[3] != self[4]

    def __repr__(self) -> str:
        """Show the type and the key."""
        return f"<Event {self.type.name} {self.kv!r}>"


_EVENT_TYPES = (EventType.PUT, EventType.DELETE)


def events_from_messages(messages: Iterable[kv_pb2.Event], *, prev_kv: bool) -> list[Event]:
    """Copy protobuf events, in order; `prev_kv` says whether they may have one."""
    new, event_type = _new_tuple, Event
    # Written out, and in one expression: a replay of the history spends its time here.
    return [
        new(
            event_type,
            (
                _EVENT_TYPES[message.type],
                (kv := message.kv).key,
                kv.value,
                kv.create_revision,
                kv.mod_revision,
                kv.version,
                kv.lease or None,
                KeyValue.from_message(message.prev_kv)
                if prev_kv and message.HasField("prev_kv")
                else None,
            ),
        )
        for message in messages
    ]


@dataclass(frozen=True, slots=True)
class PutResponse:
    """The answer to a put.

    Attributes:
        header: Its ``revision`` is the one that the put made.
        prev_kv: The key before, where it was asked for and there was one.
    """

    header: ResponseHeader
    prev_kv: KeyValue | None

    @classmethod
    def from_message(cls, message: rpc_pb2.PutResponse) -> PutResponse:
        """Copy a protobuf answer."""
        return cls(
            ResponseHeader.from_message(message.header),
            KeyValue.from_message(message.prev_kv) if message.HasField("prev_kv") else None,
        )


@dataclass(frozen=True, slots=True)
class GetResponse:
    """The answer to a get.

    Attributes:
        header: Its ``revision`` is the store's, whatever ``revision`` was asked for.
        kvs: The keys found, in the order asked for.
        count: How many keys are in the range, whatever ``limit`` and the revision filters left.
        more: Whether ``limit`` cut the answer short.
    """

    header: ResponseHeader
    kvs: tuple[KeyValue, ...]
    count: int
    more: bool

    @classmethod
    def from_message(cls, message: rpc_pb2.RangeResponse) -> GetResponse:
        """Copy a protobuf answer."""
        return cls(
            ResponseHeader.from_message(message.header),
            tuple([KeyValue.from_message(kv) for kv in message.kvs]),
            message.count,
            message.more,
        )

    @property
    def kv(self) -> KeyValue | None:
        """The first key found, or None where there is none."""
        return self.kvs[0] if self.kvs else None

    @property
    def value(self) -> bytes | None:
        """The first key's value, or None where there is no key."""
        return self.kvs[0].value if self.kvs else None


@dataclass(frozen=True, slots=True)
class DeleteResponse:
    """The answer to a delete.

    Attributes:
        header: Its ``revision`` is the one that the delete made; the old one where nothing was
            deleted.
        deleted: How many keys were deleted.
        prev_kvs: These keys as they were, where asked for.
    """

    header: ResponseHeader
    deleted: int
    prev_kvs: tuple[KeyValue, ...]

    @classmethod
    def from_message(cls, message: rpc_pb2.DeleteRangeResponse) -> DeleteResponse:
        """Copy a protobuf answer."""
        return cls(
            ResponseHeader.from_message(message.header),
            message.deleted,
            tuple([KeyValue.from_message(kv) for kv in message.prev_kvs]),
        )


@dataclass(frozen=True, slots=True)
class CompactResponse:
    """The answer to a compaction.

    Attributes:
        header: The state of the store.
    """

    header: ResponseHeader


@dataclass(frozen=True, slots=True)
class TxnResponse:
    """The answer to a txn.

    Attributes:
        header: The one to read: etcd leaves the inner answers' headers empty but for a revision.
        succeeded: Whether the comparisons held, and so which branch was executed.
        responses: One answer for each operation of that branch, in order and typed as from the
            single call.
    """

    header: ResponseHeader
    succeeded: bool
    responses: tuple[OpResponse, ...]

    @classmethod
    def from_message(cls, message: rpc_pb2.TxnResponse) -> TxnResponse:
        """Copy a protobuf answer, nested ones included."""
        return cls(
            ResponseHeader.from_message(message.header),
            message.succeeded,
            tuple([_op_response(response) for response in message.responses]),
        )


OpResponse: TypeAlias = GetResponse | PutResponse | DeleteResponse | TxnResponse


def _op_response(message: rpc_pb2.ResponseOp) -> OpResponse:
    match message.WhichOneof("response"):
        case "response_range":
            return GetResponse.from_message(message.response_range)
        case "response_put":
            return PutResponse.from_message(message.response_put)
        case "response_delete_range":
            return DeleteResponse.from_message(message.response_delete_range)
        case _:
            return TxnResponse.from_message(message.response_txn)


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that was granted.

    Attributes:
        header: The state of the store.
        id: The lease's id.
        ttl: Seconds to live as the server granted them, which may be more than were asked for.
    """

    header: ResponseHeader
    id: int
    ttl: int


@dataclass(frozen=True, slots=True)
class LeaseRenewal:
    """One answered renewal of a lease.

    Attributes:
        header: The state of the store just before the renewal.
        id: The lease's id.
        ttl: Seconds to live from now on, counted from the renewal's sending.
    """

    header: ResponseHeader
    id: int
    ttl: int


@dataclass(frozen=True, slots=True)
class LeaseTimeToLive:
    """What is left of a lease.

    Attributes:
        header: The state of the store.
        id: The lease's id.
        ttl: Seconds left, rounded down.
        granted_ttl: Seconds that it was granted with.
        keys: The keys attached to it, where asked for.
    """

    header: ResponseHeader
    id: int
    ttl: int
    granted_ttl: int
    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class LeaseList:
    """The leases that the answering member knows.

    Attributes:
        header: The state of the store.
        ids: Their ids.
    """

    header: ResponseHeader
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LeaseRevokeResponse:
    """The answer to a revocation.

    Attributes:
        header: Its ``revision`` is the one that deleted the lease's keys, if there were any.
    """

    header: ResponseHeader


@dataclass(frozen=True, slots=True)
class ClientStats:
    """What a client is doing, at one moment.

    Attributes:
        connections: gRPC's state of the connection to each endpoint: ``"READY"``, ``"IDLE"``,
            ``"CONNECTING"``, ``"TRANSIENT_FAILURE"``, or ``"UNUSED"`` where none was tried.
        endpoint: The endpoint in use, or None while one is searched.
        calls: Unary calls made, however often each was sent.
        retries: How often one of them was sent again.
        reconnects: How often a stream of watches or leases was lost, and then opened again.
        watches: Watches that have not ended.
        paused_watches: Those among them that wait for their consumer.
        leases: Leases kept alive.
        soonest_expiry: Seconds until the first of them would expire, were no renewal to succeed
            any more; None without any.
    """

    connections: Mapping[str, str]
    endpoint: str | None
    calls: int
    retries: int
    reconnects: int
    watches: int
    paused_watches: int
    leases: int
    soonest_expiry: float | None


@dataclass(frozen=True, slots=True)
class Batch:
    """What a watch got at once: all events of one or more whole revisions.

    Attributes:
        events: In order. Empty in a progress bookmark.
        revision: Everything up to this revision is handed over with this batch.
    """

    events: tuple[Event, ...]
    revision: int
