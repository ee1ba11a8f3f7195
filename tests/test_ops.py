"""What an operation says is what goes over the wire, and its answer has its type."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from aioetcd import (
    AnyOp,
    Compare,
    DeleteResponse,
    EtcdError,
    GetResponse,
    Op,
    PutResponse,
    ResponseHeader,
    SortOrder,
    SortTarget,
    TxnResponse,
)
from aioetcd._proto import rpc_pb2
from tests.wrong_ranges import WRONG_RANGES

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

RangeRequest = rpc_pb2.RangeRequest


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({}, {}),
        ({"prefix": True}, {"range_end": b"l"}),
        ({"range_end": "z"}, {"range_end": b"z"}),
        ({"range_end": b"\0"}, {"range_end": b"\0"}),
        ({"limit": 1}, {"limit": 1}),
        ({"limit": INT64_MAX}, {"limit": INT64_MAX}),
        ({"revision": 42}, {"revision": 42}),
        ({"serializable": True}, {"serializable": True}),
        ({"keys_only": True}, {"keys_only": True}),
        ({"count_only": True}, {"count_only": True}),
        ({"min_mod_revision": 1}, {"min_mod_revision": 1}),
        ({"max_mod_revision": 2}, {"max_mod_revision": 2}),
        ({"min_create_revision": 3}, {"min_create_revision": 3}),
        ({"max_create_revision": 4}, {"max_create_revision": 4}),
    ],
    ids=str,
)
def test_get(options: dict[str, Any], fields: dict[str, Any]) -> None:
    """Each option of a get sets its field and no other."""
    op = Op.get("k", **options)
    assert op._request == RangeRequest(key=b"k", **fields)
    assert op._is_read


def test_get_all_keys() -> None:
    """The empty prefix is etcd's range of everything."""
    assert Op.get("", prefix=True)._request == RangeRequest(key=b"\0", range_end=b"\0")


@pytest.mark.parametrize("target", SortTarget)
@pytest.mark.parametrize("order", SortOrder)
def test_sort(target: SortTarget, order: SortOrder) -> None:
    """The server's own order is never asked for, and a target never goes without an order."""
    request = Op.get("k", prefix=True, sort_target=target, sort_order=order)._request
    if target is SortTarget.KEY:
        expected = SortOrder.DESCEND if order is SortOrder.DESCEND else SortOrder.NONE
    else:
        expected = order or SortOrder.ASCEND
    assert int(request.sort_target) == target
    assert int(request.sort_order) == expected


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"value": "v"}, {"value": b"v"}),
        ({"value": b"\xff"}, {"value": b"\xff"}),
        ({"value": ""}, {}),
        ({"value": "v", "lease": 7}, {"value": b"v", "lease": 7}),
        ({"value": "v", "lease": INT64_MAX}, {"value": b"v", "lease": INT64_MAX}),
        ({"value": "v", "lease": INT64_MIN}, {"value": b"v", "lease": INT64_MIN}),
        ({"value": "v", "prev_kv": True}, {"value": b"v", "prev_kv": True}),
        ({"ignore_value": True}, {"ignore_value": True}),
        ({"ignore_value": True, "lease": 7}, {"ignore_value": True, "lease": 7}),
        ({"value": "v", "ignore_lease": True}, {"value": b"v", "ignore_lease": True}),
        (
            {"ignore_value": True, "ignore_lease": True, "prev_kv": True},
            {"ignore_value": True, "ignore_lease": True, "prev_kv": True},
        ),
    ],
    ids=str,
)
def test_put(options: dict[str, Any], fields: dict[str, Any]) -> None:
    """Each option of a put sets its field and no other."""
    op = Op.put("k", **options)
    assert op._request == rpc_pb2.PutRequest(key=b"k", **fields)
    assert not op._is_read


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({}, {}),
        ({"prefix": True}, {"range_end": b"l"}),
        ({"range_end": "z"}, {"range_end": b"z"}),
        ({"prev_kv": True}, {"prev_kv": True}),
    ],
    ids=str,
)
def test_delete(options: dict[str, Any], fields: dict[str, Any]) -> None:
    """Each option of a delete sets its field and no other."""
    op = Op.delete("k", **options)
    assert op._request == rpc_pb2.DeleteRangeRequest(key=b"k", **fields)
    assert not op._is_read


def test_delete_all_keys() -> None:
    """The empty prefix is etcd's range of everything."""
    request = Op.delete("", prefix=True)._request
    assert request == rpc_pb2.DeleteRangeRequest(key=b"\0", range_end=b"\0")


@pytest.mark.parametrize(
    ("args", "options", "error", "name"),
    [
        *WRONG_RANGES,
        *(
            (("k",), {name: value}, error, name)
            for name in (
                "limit",
                "revision",
                "min_mod_revision",
                "max_mod_revision",
                "min_create_revision",
                "max_create_revision",
            )
            for value, error in (
                (0, ValueError),
                (-1, ValueError),
                (2**63, ValueError),
                ("1", TypeError),
                (1.0, TypeError),
                (True, TypeError),
            )
        ),
        (("k",), {"sort_order": 3}, ValueError, "sort_order"),
        (("k",), {"sort_order": "ASCEND"}, ValueError, "sort_order"),
        (("k",), {"sort_target": 5}, ValueError, "sort_target"),
        (("k",), {"sort_target": "MOD"}, ValueError, "sort_target"),
        (("k",), {"sort_target": SortTarget.MOD, "sort_order": 3}, ValueError, "sort_order"),
    ],
    ids=str,
)
def test_get_refuses(
    args: tuple[Any, ...], options: dict[str, Any], error: type[Exception], name: str
) -> None:
    """A get with a wrong argument is refused, naming it."""
    with pytest.raises(error, match=rf"\b{name}\b"):
        Op.get(*args, **options)


@pytest.mark.parametrize(
    ("args", "options", "error", "name"),
    [
        (("", "v"), {}, ValueError, "key"),
        ((1, "v"), {}, TypeError, "key"),
        (("k",), {}, ValueError, "value"),
        (("k", None), {}, ValueError, "value"),
        (("k", 1), {}, TypeError, "value"),
        (("k", bytearray(b"v")), {}, TypeError, "value"),
        (("k", "v"), {"ignore_value": True}, ValueError, "value"),
        (("k", ""), {"ignore_value": True}, ValueError, "value"),
        (("k", "v"), {"ignore_lease": True, "lease": 7}, ValueError, "lease"),
        (("k", "v"), {"lease": 0}, ValueError, "lease"),
        (("k", "v"), {"lease": -(2**63) - 1}, ValueError, "lease"),
        (("k", "v"), {"lease": 2**63}, ValueError, "lease"),
        (("k", "v"), {"lease": "7"}, TypeError, "lease"),
        (("k", "v"), {"lease": True}, TypeError, "lease"),
    ],
    ids=str,
)
def test_put_refuses(
    args: tuple[Any, ...], options: dict[str, Any], error: type[Exception], name: str
) -> None:
    """A put with a wrong argument is refused, naming it."""
    with pytest.raises(error, match=rf"\b{name}\b"):
        Op.put(*args, **options)


@pytest.mark.parametrize(("args", "options", "error", "name"), WRONG_RANGES, ids=str)
def test_delete_refuses(
    args: tuple[Any, ...], options: dict[str, Any], error: type[Exception], name: str
) -> None:
    """A delete with a wrong argument is refused, naming it."""
    with pytest.raises(error, match=rf"\b{name}\b"):
        Op.delete(*args, **options)


def test_txn() -> None:
    """A txn carries its comparisons and both branches in order, nested txns included."""
    inner = Op.txn(compare=[Compare.lease("k") == 0], failure=[Op.get("f")])
    op = Op.txn(
        compare=[Compare.version("k") == 0, Compare.value("k") != "v"],
        success=[Op.put("k", "v"), Op.delete("d"), inner],
        failure=(Op.get("k"),),
    )
    request = op._request
    assert [compare.target for compare in request.compare] == [0, 3]
    assert [each.WhichOneof("request") for each in request.success] == [
        "request_put",
        "request_delete_range",
        "request_txn",
    ]
    assert request.success[0].request_put == Op.put("k", "v")._request
    assert request.success[2].request_txn == inner._request
    assert [each.request_range.key for each in request.failure] == [b"k"]
    again = rpc_pb2.TxnRequest.FromString(request.SerializeToString())
    assert again == request


def test_txn_may_be_empty() -> None:
    """All parts of a txn are optional."""
    assert Op.txn()._request == rpc_pb2.TxnRequest()


@pytest.mark.parametrize(
    ("op", "is_read"),
    [
        (Op.txn(), True),
        (Op.txn(compare=[Compare.version("k") == 0]), True),
        (Op.txn(success=[Op.get("k")], failure=[Op.get("l")]), True),
        (Op.txn(success=[Op.txn(success=[Op.get("k")])]), True),
        (Op.txn(success=[Op.put("k", "v")]), False),
        (Op.txn(failure=[Op.delete("k")]), False),
        (Op.txn(success=[Op.get("k")], failure=[Op.txn(failure=[Op.put("k", "v")])]), False),
    ],
)
def test_txn_is_read(op: Op[TxnResponse], is_read: bool) -> None:
    """A txn is a read only if nothing in it, however deep, could write."""
    assert op._is_read is is_read


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({"compare": Compare.version("k") == 1}, "compare must be a sequence of Compare"),
        (
            {"compare": [Compare.version("k")]},
            "Compare, not CompareTarget .*== 1",
        ),
        ({"compare": [True]}, "compare must hold Compare, not bool"),
        ({"compare": [Op.get("k")]}, "compare must hold Compare, not Op"),
        ({"compare": 1}, "compare must be a sequence of Compare"),
        ({"success": Op.get("k")}, "success must be a sequence of Op"),
        ({"success": ["k"]}, "success must hold Op, not str"),
        ({"success": None}, "success must be a sequence of Op"),
        ({"success": "k"}, "success must "),
        ({"failure": Op.get("k")}, "failure must be a sequence of Op"),
        ({"failure": [Op.get("k"), None]}, "failure must hold Op, not NoneType"),
        ({"failure": [Compare.version("k") == 1]}, "failure must hold Op, not Compare"),
    ],
)
def test_txn_refuses(parts: dict[str, Any], text: str) -> None:
    """A txn made of anything else is a TypeError that names the part."""
    with pytest.raises(TypeError, match=text):
        Op.txn(**parts)


def test_txn_takes_generators_whole() -> None:
    """An iterable that can be read only once is not taken for an empty one."""
    compare: Any = (Compare.version(key) == 0 for key in "ab")
    success: Any = (Op.put(key, "v") for key in "ab")
    failure: Any = (Op.get(key) for key in "ab")
    op = Op.txn(compare=compare, success=success, failure=failure)
    request = op._request
    assert (len(request.compare), len(request.success), len(request.failure)) == (2, 2, 2)
    assert not op._is_read


def test_repr() -> None:
    """Operations say what they do to which key, however long it is."""
    assert repr(Op.put("k", "v")) == "<Op.put b'k'>"
    assert repr(Op.get("k")) == "<Op.get b'k'>"
    assert len(repr(Op.get("k" * 1000))) < 80
    assert repr(Op.delete("k")) == "<Op.delete b'k'>"
    assert repr(Op.txn(success=[Op.get("k")])) == "<Op.txn of 1 operations, else 0>"


NONE = ResponseHeader(0, 0, 0, 0)


def answer(op: Op[TxnResponse], message: rpc_pb2.TxnResponse) -> TxnResponse:
    """What a client makes of what comes over the wire."""
    return op._response(rpc_pb2.TxnResponse.FromString(message.SerializeToString()))


def test_each_answer_has_the_type_of_its_operation() -> None:
    """Each answer in a txn is that of the single call, and is found by its operation."""
    get, put, delete, inner_put = Op.get("k"), Op.put("k", "v"), Op.delete("k"), Op.put("l", "w")
    inner = Op.txn(compare=[Compare.missing("l")], failure=[inner_put])
    message = rpc_pb2.TxnResponse(
        header=rpc_pb2.ResponseHeader(revision=7),
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
    result = answer(Op.txn(success=[get, put, delete, inner]), message)
    assert result == TxnResponse(
        ResponseHeader(0, 0, 7, 0),
        True,
        (
            GetResponse(NONE, (), 1, False),
            PutResponse(NONE, None),
            DeleteResponse(NONE, 3, ()),
            TxnResponse(NONE, False, (PutResponse(NONE, None),)),
        ),
    )
    assert result[get] is result.responses[0]
    assert result[put] is result.responses[1]
    assert result[delete] is result.responses[2]
    assert result[inner] is result.responses[3]
    assert result[inner_put] is result[inner].responses[0]
    assert result[inner][inner_put] is result[inner_put]
    assert copy.deepcopy(result)[put] is result[put]
    with pytest.raises(KeyError, match=r"a pickled answer knows no operations"):
        pickle.loads(pickle.dumps(result))[put]


def test_what_has_no_answer_is_told() -> None:
    """An operation not executed, of no txn, or executed twice is a KeyError that says so."""
    done, other = Op.get("k"), Op.get("l")
    inner = Op.txn(success=[other])
    op = Op.txn(compare=[Compare.missing("k")], success=[inner], failure=[done, done, other])
    one = rpc_pb2.ResponseOp(response_range=rpc_pb2.RangeResponse())
    result = answer(op, rpc_pb2.TxnResponse(succeeded=False, responses=[one, one, one]))
    with pytest.raises(KeyError, match="branch that was not taken"):
        result[inner]
    with pytest.raises(KeyError, match="executed 2 times"):
        result[done]
    assert result[other] is result.responses[2]
    with pytest.raises(KeyError, match="none of this txn's operations"):
        result[Op.get("l")]
    with pytest.raises(TypeError, match="an operation is asked for, not 0"):
        result[0]  # type: ignore[index]


@pytest.mark.parametrize(
    "responses",
    [
        [],
        [rpc_pb2.ResponseOp(response_put=rpc_pb2.PutResponse())],
        [rpc_pb2.ResponseOp()],
        [rpc_pb2.ResponseOp(response_range=rpc_pb2.RangeResponse())] * 2,
    ],
    ids=["none", "another", "empty", "too_many"],
)
def test_an_answer_to_something_else_is_none(responses: list[rpc_pb2.ResponseOp]) -> None:
    """A server that answers what was not asked is not believed, and may have written."""
    with pytest.raises(EtcdError, match="the server answered") as caught:
        answer(Op.txn(failure=[Op.get("k")]), rpc_pb2.TxnResponse(responses=responses))
    assert caught.value.maybe_applied


def test_operations_mix() -> None:
    """Operations of all kinds go into one list."""
    operations: list[AnyOp] = [Op.get("k"), Op.put("k", "v"), Op.delete("k"), Op.txn()]
    assert len(Op.txn(success=operations)._request.success) == 4


def test_operations_are_told_apart_by_identity() -> None:
    """An operation may name its answer, or be a key: another one like it is another one."""
    one, other = Op.get("k"), Op.get("k")
    assert one != other
    assert {one: 1, other: 2}[one] == 1


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda wrong: Op.get("k", prefix=wrong), "prefix"),
        (lambda wrong: Op.get("k", serializable=wrong), "serializable"),
        (lambda wrong: Op.get("k", keys_only=wrong), "keys_only"),
        (lambda wrong: Op.get("k", count_only=wrong), "count_only"),
        (lambda wrong: Op.put("k", "v", prev_kv=wrong), "prev_kv"),
        (lambda wrong: Op.put("k", "v", ignore_value=wrong), "ignore_value"),
        (lambda wrong: Op.put("k", "v", ignore_lease=wrong), "ignore_lease"),
        (lambda wrong: Op.delete("k", prefix=wrong), "prefix"),
        (lambda wrong: Op.delete("k", prev_kv=wrong), "prev_kv"),
    ],
    ids=[
        *("get-prefix", "get-serializable", "get-keys_only", "get-count_only"),
        *("put-prev_kv", "put-ignore_value", "put-ignore_lease"),
        *("delete-prefix", "delete-prev_kv"),
    ],
)
def test_flags_are_bools(make: Callable[[Any], object], name: str) -> None:
    """What is no bool is refused by name, rather than taken for true."""
    for wrong in ("no", 1, None):
        with pytest.raises(TypeError, match=f"^{name} must be a bool, not {type(wrong).__name__}"):
            make(wrong)
