"""From protobuf messages to the values that users hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from aioetcd._proto import kv_pb2, rpc_pb2
from aioetcd.types.answers import DeleteResponse, GetResponse, PutResponse
from aioetcd.types.cluster import Member, MemberList
from aioetcd.types.store import Event, EventType, KeyValue, ResponseHeader

_new_tuple = tuple.__new__  # a named tuple's own __new__ costs twice as much
# Of a get, half of what its answer costs is `Value.__init__`, which takes any fields.
_new_value = object.__new__
_put_header, _put_kvs, _put_count, _put_more = GetResponse._puts


def header(message: rpc_pb2.ResponseHeader) -> ResponseHeader:
    """Copy a header."""
    return _new_tuple(
        ResponseHeader,
        (message.cluster_id, message.member_id, message.revision, message.raft_term),
    )


def key_value(message: kv_pb2.KeyValue) -> KeyValue:
    """Copy a key-value."""
    return _new_tuple(
        KeyValue,
        (
            message.key,
            message.value,
            message.create_revision,
            message.mod_revision,
            message.version,
            message.lease or None,
        ),
    )


class _Event(Event):
    """An event made of the parts of a message, without the detour of a `KeyValue`."""

    __slots__ = ()

    def __init__(
        self,
        type: EventType,
        key: bytes,
        value: bytes,
        create_revision: int,
        mod_revision: int,
        version: int,
        lease: int | None,
        prev_kv: KeyValue | None,
    ) -> None:
        self._type = type
        self._key = key
        self._value = value
        self._create_revision = create_revision
        self._mod_revision = mod_revision
        self._version = version
        self._lease = lease
        self._prev_kv = prev_kv


_Event.__name__ = _Event.__qualname__ = "Event"  # it is no other thing for users

_EVENT_TYPES = (EventType.PUT, EventType.DELETE)


def events(messages: Iterable[kv_pb2.Event], *, prev_kv: bool) -> tuple[Event, ...]:
    """Copy events, in order; `prev_kv` says whether they may have one."""
    event = _Event
    # Written out, and in one expression: a replay of the history spends its time here.
    return tuple(
        [
            event(
                _EVENT_TYPES[message.type],
                (kv := message.kv).key,
                kv.value,
                kv.create_revision,
                kv.mod_revision,
                kv.version,
                kv.lease or None,
                key_value(message.prev_kv) if prev_kv and message.HasField("prev_kv") else None,
            )
            for message in messages
        ]
    )


def put_response(message: rpc_pb2.PutResponse) -> PutResponse:
    """Copy the answer to a put."""
    prev_kv = key_value(message.prev_kv) if message.HasField("prev_kv") else None
    return PutResponse(header(message.header), prev_kv)


def get_response(message: rpc_pb2.RangeResponse) -> GetResponse:
    """Copy the answer to a get."""
    response = _new_value(GetResponse)
    _put_header(response, header(message.header))
    _put_kvs(response, tuple([key_value(kv) for kv in message.kvs]))
    _put_count(response, message.count)
    _put_more(response, message.more)
    return response


def delete_response(message: rpc_pb2.DeleteRangeResponse) -> DeleteResponse:
    """Copy the answer to a delete."""
    prev_kvs = tuple([key_value(kv) for kv in message.prev_kvs])
    return DeleteResponse(header(message.header), message.deleted, prev_kvs)


def member(message: rpc_pb2.Member) -> Member:
    """Copy a member."""
    return Member(
        message.ID,
        message.name,
        tuple(message.peerURLs),
        tuple(message.clientURLs),
        message.isLearner,
    )


class _HasMembers(Protocol):
    @property
    def header(self) -> rpc_pb2.ResponseHeader: ...

    @property
    def members(self) -> Iterable[rpc_pb2.Member]: ...


def member_list(message: _HasMembers) -> MemberList:
    """Copy an answer that is all members."""
    return MemberList(header(message.header), tuple(member(each) for each in message.members))
