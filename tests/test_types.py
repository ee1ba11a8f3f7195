"""Answers are immutable copies of what came over the wire, and absent is None."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest

from aioetcd import types
from aioetcd._proto import kv_pb2, rpc_pb2
from aioetcd.types import (
    DeleteResponse,
    Event,
    EventType,
    GetResponse,
    KeyValue,
    PutResponse,
    ResponseHeader,
    SortOrder,
    SortTarget,
    TxnResponse,
    events_from_messages,
)

HEADER_MESSAGE = rpc_pb2.ResponseHeader(
    cluster_id=2**64 - 1, member_id=2**63, revision=7, raft_term=3
)
HEADER = ResponseHeader(cluster_id=2**64 - 1, member_id=2**63, revision=7, raft_term=3)
KV_MESSAGE = kv_pb2.KeyValue(
    key=b"k", value=b"v\xff", create_revision=2, mod_revision=5, version=4, lease=2**63 - 1
)
KV = KeyValue(b"k", b"v\xff", 2, 5, 4, 2**63 - 1)


def put_event(*, create: int, mod: int, prev: kv_pb2.KeyValue | None = None) -> kv_pb2.Event:
    kv = kv_pb2.KeyValue(key=b"k", value=b"v", create_revision=create, mod_revision=mod, version=1)
    return kv_pb2.Event(type=kv_pb2.Event.PUT, kv=kv, prev_kv=prev)


def test_header() -> None:
    """A header has etcd's four facts, the ids unsigned."""
    assert ResponseHeader.from_message(HEADER_MESSAGE) == HEADER


def test_key_value() -> None:
    """A key-value has all six facts, and no lease is None."""
    assert KeyValue.from_message(KV_MESSAGE) == KV
    assert KeyValue.from_message(kv_pb2.KeyValue(key=b"k")) == KeyValue(b"k", b"", 0, 0, 0, None)


def test_key_value_is_a_copy() -> None:
    """What becomes of the message later does not show in the value."""
    message = kv_pb2.KeyValue(key=b"k", value=b"v")
    kv = KeyValue.from_message(message)
    message.value = b"other"
    assert kv.value == b"v"


def test_repr_is_short() -> None:
    """A large value shows its start and its size, a small one itself."""
    assert repr(KV) == r"<KeyValue b'k'=b'v\xff' mod_revision=5>"
    large = KV._replace(value=b"x" * 1_000_000)
    assert repr(large) == f"<KeyValue b'k'={b'x' * 40!r}...(1000000 bytes) mod_revision=5>"
    assert repr(Event(EventType.PUT, KV, None)) == f"<Event PUT {KV!r}>"


@pytest.mark.parametrize(
    ("message", "type_", "is_create", "is_modify", "prev_kv"),
    [
        (put_event(create=5, mod=5), EventType.PUT, True, False, None),
        (put_event(create=2, mod=5), EventType.PUT, False, True, None),
        (put_event(create=2, mod=5, prev=KV_MESSAGE), EventType.PUT, False, True, KV),
        (
            kv_pb2.Event(type=kv_pb2.Event.DELETE, kv=kv_pb2.KeyValue(key=b"k", mod_revision=5)),
            EventType.DELETE,
            False,
            False,
            None,
        ),
    ],
    ids=["create", "modify", "modify_with_prev_kv", "delete"],
)
def test_event(
    message: kv_pb2.Event,
    type_: EventType,
    is_create: bool,
    is_modify: bool,
    prev_kv: KeyValue | None,
) -> None:
    """An event knows whether it created, modified or deleted the key, and what was before."""
    (event,) = events_from_messages([message], prev_kv=True)
    assert event.type is type_
    assert (event.is_create, event.is_modify) == (is_create, is_modify)
    assert event.kv == KeyValue.from_message(message.kv)
    assert event.prev_kv == prev_kv


def test_events_keep_their_order() -> None:
    """Events come out in the order they came in, each with its own lease or None."""
    messages = [put_event(create=n, mod=n) for n in (3, 1, 2)]
    messages[1].kv.lease = 9
    events = events_from_messages(messages, prev_kv=False)
    assert [event.kv.mod_revision for event in events] == [3, 1, 2]
    assert [event.kv.lease for event in events] == [None, 9, None]
    assert events_from_messages([], prev_kv=True) == []


def test_put_response() -> None:
    """A put's answer has a key before, or None."""
    message = rpc_pb2.PutResponse(header=HEADER_MESSAGE, prev_kv=KV_MESSAGE)
    assert PutResponse.from_message(message) == PutResponse(HEADER, KV)
    message.ClearField("prev_kv")
    assert PutResponse.from_message(message) == PutResponse(HEADER, None)


def test_get_response() -> None:
    """`kv` and `value` are the first key's, or None where there is none."""
    other = kv_pb2.KeyValue(key=b"l", value=b"")
    message = rpc_pb2.RangeResponse(
        header=HEADER_MESSAGE, kvs=[KV_MESSAGE, other], count=9, more=True
    )
    got = GetResponse.from_message(message)
    assert got == GetResponse(HEADER, (KV, KeyValue.from_message(other)), 9, True)
    assert (got.kv, got.value) == (KV, KV.value)
    nothing = GetResponse.from_message(rpc_pb2.RangeResponse(header=HEADER_MESSAGE))
    assert (nothing.kvs, nothing.kv, nothing.value) == ((), None, None)
    assert (nothing.count, nothing.more) == (0, False)
    empty = GetResponse.from_message(rpc_pb2.RangeResponse(kvs=[other], count=1))
    assert empty.value == b""


def test_delete_response() -> None:
    """A delete's answer has the number of keys, and the keys where they came."""
    message = rpc_pb2.DeleteRangeResponse(header=HEADER_MESSAGE, deleted=2, prev_kvs=[KV_MESSAGE])
    assert DeleteResponse.from_message(message) == DeleteResponse(HEADER, 2, (KV,))


def test_txn_response() -> None:
    """Each answer in a txn has the type of the single call, nested ones included."""
    message = rpc_pb2.TxnResponse(
        header=HEADER_MESSAGE,
        succeeded=True,
        responses=[
            rpc_pb2.ResponseOp(response_range=rpc_pb2.RangeResponse(count=1)),
            rpc_pb2.ResponseOp(response_put=rpc_pb2.PutResponse()),
            rpc_pb2.ResponseOp(response_delete_range=rpc_pb2.DeleteRangeResponse(deleted=3)),
            rpc_pb2.ResponseOp(
                response_txn=rpc_pb2.TxnResponse(
                    responses=[rpc_pb2.ResponseOp(response_put=rpc_pb2.PutResponse())]
                )
            ),
        ],
    )
    none = ResponseHeader(0, 0, 0, 0)
    assert TxnResponse.from_message(message) == TxnResponse(
        HEADER,
        True,
        (
            GetResponse(none, (), 1, False),
            PutResponse(none, None),
            DeleteResponse(none, 3, ()),
            TxnResponse(none, False, (PutResponse(none, None),)),
        ),
    )


def test_numbers_are_etcds() -> None:
    """The enumerations have the numbers of etcd's protocol."""
    assert {t.name: t.value for t in EventType} == dict(kv_pb2.Event.EventType.items())
    assert {t.name: t.value for t in SortOrder} == dict(rpc_pb2.RangeRequest.SortOrder.items())
    assert {t.name: t.value for t in SortTarget} == dict(rpc_pb2.RangeRequest.SortTarget.items())


def values() -> list[Any]:
    """One of each kind of value."""
    event = Event(EventType.PUT, KV, KV)
    return [
        HEADER,
        KV,
        event,
        PutResponse(HEADER, KV),
        GetResponse(HEADER, (KV,), 1, False),
        DeleteResponse(HEADER, 1, (KV,)),
        types.CompactResponse(HEADER),
        TxnResponse(HEADER, True, (PutResponse(HEADER, None),)),
        types.Lease(HEADER, 1, 2),
        types.LeaseRenewal(HEADER, 1, 2),
        types.LeaseTimeToLive(HEADER, 1, 2, 3, (b"k",)),
        types.LeaseList(HEADER, (1,)),
        types.LeaseRevokeResponse(HEADER),
        types.Batch((event,), 7),
        types.ClientStats({"a:1": "READY"}, "a:1", 1, 0, 0, 0, 0, 0, None),
    ]


@pytest.mark.parametrize("value", values(), ids=lambda value: type(value).__name__)
def test_values_are_values(value: Any) -> None:
    """A value cannot be changed, and a copy or a pickled one is equal to it."""
    fields = (
        [field.name for field in dataclasses.fields(value)]
        if dataclasses.is_dataclass(value)
        else getattr(value, "_fields", ("type", "kv", "prev_kv", "mod_revision"))
    )
    for name in fields:
        with pytest.raises(AttributeError):
            setattr(value, name, None)
    for again in (copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert again == value
        assert type(again) is type(value)


@pytest.mark.parametrize(
    "value", [HEADER, KV, PutResponse(HEADER, KV), GetResponse(HEADER, (KV,), 1, False)]
)
def test_answers_are_hashable(value: Any) -> None:
    """Equal answers have the same hash."""
    assert len({value, copy.deepcopy(value)}) == 1


def test_every_value_is_tested() -> None:
    """The values above are all that the module has."""
    public = {
        kind
        for kind in vars(types).values()
        if isinstance(kind, type)
        and kind.__module__ == types.__name__
        and (dataclasses.is_dataclass(kind) or issubclass(kind, tuple))
    }
    assert {type(value) for value in values()} == public
