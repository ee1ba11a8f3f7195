"""Answers are immutable copies of what came over the wire, and absent is None."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

import aioetcd
from aioetcd import (
    TLS,
    Alarm,
    AlarmList,
    AlarmType,
    AuthResponse,
    AuthStatus,
    Batch,
    CallReport,
    CampaignResponse,
    ClientStats,
    CompactResponse,
    DeadJob,
    DeleteManyResponse,
    DeleteResponse,
    DowngradeResponse,
    Event,
    EventType,
    GetManyResponse,
    GetResponse,
    HashKVResponse,
    HashResponse,
    JobCounts,
    KeyValue,
    LeaderKey,
    LeaderResponse,
    Lease,
    LeaseList,
    LeaseRenewal,
    LeaseRevokeResponse,
    LeaseTimeToLive,
    Member,
    MemberAddResponse,
    MemberList,
    Notice,
    NoticeKind,
    OpResponse,
    Permission,
    PermissionType,
    PutManyResponse,
    PutResponse,
    RemoteLockResponse,
    RemoteResponse,
    ResponseHeader,
    Role,
    RoleList,
    SnapshotChunk,
    SortOrder,
    SortTarget,
    Status,
    TxnResponse,
    User,
    UserList,
    _decode,
)
from aioetcd._proto import kv_pb2, rpc_pb2
from aioetcd.types.value import Value

HEADER_MESSAGE = rpc_pb2.ResponseHeader(
    cluster_id=2**64 - 1, member_id=2**63, revision=7, raft_term=3
)
HEADER = ResponseHeader(cluster_id=2**64 - 1, member_id=2**63, revision=7, raft_term=3)
KV_MESSAGE = kv_pb2.KeyValue(
    key=b"k", value=b"v\xff", create_revision=2, mod_revision=5, version=4, lease=2**63 - 1
)
KV = KeyValue(b"k", b"v\xff", 2, 5, 4, 2**63 - 1)
MEMBER = Member(1, "a", ("http://a:2380",), ("http://a:2379",), False)
ALARM = Alarm(1, AlarmType.NOSPACE)
PERMISSION = Permission(PermissionType.READ, b"k", None)
LEADER = LeaderKey(b"/e", b"/e/1", 7, 1)


def put_event(*, create: int, mod: int, prev: kv_pb2.KeyValue | None = None) -> kv_pb2.Event:
    kv = kv_pb2.KeyValue(key=b"k", value=b"v", create_revision=create, mod_revision=mod, version=1)
    return kv_pb2.Event(type=kv_pb2.Event.PUT, kv=kv, prev_kv=prev)


def test_header() -> None:
    """A header has etcd's four facts, the ids unsigned."""
    assert _decode.header(HEADER_MESSAGE) == HEADER


def test_key_value() -> None:
    """A key-value has all six facts, and no lease is None."""
    assert _decode.key_value(KV_MESSAGE) == KV
    assert _decode.key_value(kv_pb2.KeyValue(key=b"k")) == KeyValue(b"k", b"", 0, 0, 0, None)


def test_key_value_is_a_copy() -> None:
    """What becomes of the message later does not show in the value."""
    message = kv_pb2.KeyValue(key=b"k", value=b"v")
    kv = _decode.key_value(message)
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
    (event,) = _decode.events([message], prev_kv=True)
    assert event.type is type_
    assert (event.is_create, event.is_modify) == (is_create, is_modify)
    assert event.kv == _decode.key_value(message.kv)
    assert event.prev_kv == prev_kv


def test_events_keep_their_order() -> None:
    """Events come out in the order they came in, each with its own lease or None."""
    messages = [put_event(create=n, mod=n) for n in (3, 1, 2)]
    messages[1].kv.lease = 9
    events = _decode.events(messages, prev_kv=False)
    assert [event.kv.mod_revision for event in events] == [3, 1, 2]
    assert [event.kv.lease for event in events] == [None, 9, None]
    assert _decode.events([], prev_kv=True) == ()


def test_put_response() -> None:
    """A put's answer has a key before, or None."""
    message = rpc_pb2.PutResponse(header=HEADER_MESSAGE, prev_kv=KV_MESSAGE)
    assert _decode.put_response(message) == PutResponse(HEADER, KV)
    message.ClearField("prev_kv")
    assert _decode.put_response(message) == PutResponse(HEADER, None)


def test_get_response() -> None:
    """`kv` and `value` are the first key's, or None where there is none."""
    other = kv_pb2.KeyValue(key=b"l", value=b"")
    message = rpc_pb2.RangeResponse(
        header=HEADER_MESSAGE, kvs=[KV_MESSAGE, other], count=9, more=True
    )
    got = _decode.get_response(message)
    assert got == GetResponse(HEADER, (KV, _decode.key_value(other)), 9, True)
    assert (got.kv, got.value) == (KV, KV.value)
    nothing = _decode.get_response(rpc_pb2.RangeResponse(header=HEADER_MESSAGE))
    assert (nothing.kvs, nothing.kv, nothing.value) == ((), None, None)
    assert (nothing.count, nothing.more) == (0, False)
    empty = _decode.get_response(rpc_pb2.RangeResponse(kvs=[other], count=1))
    assert empty.value == b""


def test_delete_response() -> None:
    """A delete's answer has the number of keys, and the keys where they came."""
    message = rpc_pb2.DeleteRangeResponse(header=HEADER_MESSAGE, deleted=2, prev_kvs=[KV_MESSAGE])
    assert _decode.delete_response(message) == DeleteResponse(HEADER, 2, (KV,))


def test_numbers_are_etcds() -> None:
    """The enumerations have the numbers of etcd's protocol."""
    assert {t.name: t.value for t in EventType} == dict(kv_pb2.Event.EventType.items())
    assert {t.name: t.value for t in SortOrder} == dict(rpc_pb2.RangeRequest.SortOrder.items())
    assert {t.name: t.value for t in SortTarget} == dict(rpc_pb2.RangeRequest.SortTarget.items())


EVENT_FIELDS = ("type", "kv", "prev_kv", "mod_revision")


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
        CompactResponse(HEADER),
        TxnResponse(HEADER, True, (PutResponse(HEADER, None),)),
        Lease(HEADER, 1, 2),
        LeaseRenewal(HEADER, 1, 2),
        LeaseTimeToLive(HEADER, 1, 2, 3, (b"k",)),
        LeaseList(HEADER, (1,)),
        LeaseRevokeResponse(HEADER),
        Batch((event,), 7),
        ClientStats({"a:1": "READY"}, "a:1", 1, 0, 0, 0, 0, 0, None),
        TLS("ca.pem", b"cert", b"key", "etcd"),
        CallReport("Range", "a:1", 0.1, 0, None),
        Notice(NoticeKind.RETRY, "a:1", "Range", None, None),
        GetManyResponse(HEADER, (KV, None)),
        PutManyResponse({b"k": 7}),
        DeleteManyResponse((b"k",)),
        MEMBER,
        MemberList(HEADER, (MEMBER,)),
        MemberAddResponse(HEADER, MEMBER, (MEMBER,)),
        Status(HEADER, "3.6.0", 2, 1, 9, 5, 5, 3, (), False, "3.6.0", 8, None),
        ALARM,
        AlarmList(HEADER, (ALARM,)),
        HashResponse(HEADER, 5),
        HashKVResponse(HEADER, 5, 1, None),
        DowngradeResponse(HEADER, "3.6.0"),
        SnapshotChunk(b"data", 100, None),
        AuthStatus(HEADER, True, 7),
        AuthResponse(HEADER),
        PERMISSION,
        User(HEADER, "ada", ("reader",)),
        UserList(HEADER, ("ada",)),
        Role(HEADER, "reader", (PERMISSION,)),
        RoleList(HEADER, ("reader",)),
        RemoteLockResponse(HEADER, b"k"),
        LEADER,
        CampaignResponse(HEADER, LEADER),
        LeaderResponse(HEADER, KV),
        RemoteResponse(HEADER),
        JobCounts(1, 2, 3, 4),
        DeadJob(b"id", b"value", 5),
    ]


@pytest.mark.parametrize("value", values(), ids=lambda value: type(value).__name__)
def test_values_are_values(value: Any) -> None:
    """A value cannot be changed, and a copy or a pickled one is equal to it."""
    fields = getattr(value, "_names", getattr(value, "_fields", EVENT_FIELDS))
    for name in fields:
        with pytest.raises(AttributeError):
            setattr(value, name, None)
        with pytest.raises(AttributeError):
            delattr(value, name)
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
    """The values above are all that there are."""
    public = {
        kind
        for kind in vars(aioetcd).values()
        if isinstance(kind, type) and issubclass(kind, Value | tuple | Event)
    }
    assert {type(value) for value in values()} == public - {OpResponse}  # what four have in common


def test_value_takes_its_fields() -> None:
    """A value is made by position, by name, or both; patterns see its fields."""
    made = Batch((), revision=7)
    assert made == Batch((), 7) == Batch(events=(), revision=7)
    match made:
        case Batch(events, revision):
            assert (events, revision) == ((), 7)
    assert repr(made) == "Batch(events=(), revision=7)"
    wrong: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        (((),), {}),
        (((), 7, 8), {}),
        (((),), {"events": ()}),
        ((), {"events": (), "version": 7}),
    ]
    for args, options in wrong:
        with pytest.raises(TypeError, match=r"^Batch takes events, revision$"):
            Batch(*args, **options)


def test_value_with_other_fields() -> None:
    """`copy.replace` (Python 3.13) gives a value like it, and a wrong field is refused."""
    assert Batch((), 7).__replace__(revision=8) == Batch((), 8)
    with pytest.raises(TypeError, match="Batch takes events, revision"):
        Batch((), 7).__replace__(version=8)


def test_values_of_other_types_differ() -> None:
    """Of two types with the same fields no two values are equal."""
    assert Lease(HEADER, 1, 2) != LeaseRenewal(HEADER, 1, 2)
    assert Lease(HEADER, 1, 2) != (HEADER, 1, 2)
    assert Event(EventType.PUT, KV) != (EventType.PUT, KV, None)


def test_event_is_no_tuple() -> None:
    """An event has neither a length nor parts to unpack by accident."""
    event: Any = _decode.events([put_event(create=1, mod=2)], prev_kv=False)[0]
    with pytest.raises(TypeError, match="len"):
        len(event)
    with pytest.raises(TypeError, match="unpack"):
        _, _ = event
    with pytest.raises(TypeError, match="subscriptable"):
        event[0]


def test_decoded_event_is_an_event() -> None:
    """What a watch delivers equals what users make for their own tests, copies and pickles too."""
    (event,) = _decode.events([put_event(create=1, mod=2, prev=KV_MESSAGE)], prev_kv=True)
    made = Event(EventType.PUT, KeyValue(b"k", b"v", 1, 2, 1, None), KV)
    for again in (event, copy.deepcopy(event), pickle.loads(pickle.dumps(event))):
        assert again == made
        assert hash(again) == hash(made)
        assert repr(again) == repr(made)
    assert event != Event(EventType.PUT, made.kv, None)


def test_event_type_prints_as_its_name() -> None:
    """In text a type of event is its name, and still etcd's number."""
    assert f"{EventType.PUT} {EventType.DELETE!s} {EventType.DELETE:>7}" == "PUT DELETE  DELETE"
    assert int(EventType.DELETE) == 1


def test_text() -> None:
    """A value's text is UTF-8; what is not there is None, what is not UTF-8 an error."""
    kv = KeyValue(b"k", "ä".encode(), 1, 1, 1, None)
    assert kv.text == "ä"
    assert GetResponse(HEADER, (kv,), 1, False).text == "ä"
    assert GetResponse(HEADER, (), 0, False).text is None
    with pytest.raises(UnicodeDecodeError):
        GetResponse(HEADER, (KV,), 1, False).text  # noqa: B018


def test_as_dict() -> None:
    """The keys found, with their values, in the order asked for."""
    kvs = tuple(KeyValue(key, key * 2, 1, 1, 1, None) for key in (b"b", b"a"))
    assert list(GetResponse(HEADER, kvs, 2, False).as_dict().items()) == [
        (b"b", b"bb"),
        (b"a", b"aa"),
    ]
