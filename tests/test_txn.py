"""What an operation or a comparison says is what goes over the wire; nonsense is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from aioetcd import Compare, Op, SortOrder, SortTarget
from aioetcd._proto import rpc_pb2
from aioetcd.txn import Target

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
    assert op.request == RangeRequest(key=b"k", **fields)
    assert op.is_read


def test_get_all_keys() -> None:
    """The empty prefix is etcd's range of everything."""
    assert Op.get("", prefix=True).request == RangeRequest(key=b"\0", range_end=b"\0")


@pytest.mark.parametrize("target", SortTarget)
@pytest.mark.parametrize("order", SortOrder)
def test_sort(target: SortTarget, order: SortOrder) -> None:
    """The server's own order is never asked for, and a target never goes without an order."""
    request = Op.get("k", prefix=True, sort_target=target, sort_order=order).request
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
    assert op.request == rpc_pb2.PutRequest(key=b"k", **fields)
    assert not op.is_read


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
    assert op.request == rpc_pb2.DeleteRangeRequest(key=b"k", **fields)
    assert not op.is_read


def test_delete_all_keys() -> None:
    """The empty prefix is etcd's range of everything."""
    request = Op.delete("", prefix=True).request
    assert request == rpc_pb2.DeleteRangeRequest(key=b"\0", range_end=b"\0")


WRONG_RANGES: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    (("",), {}, ValueError, "key"),
    ((1,), {}, TypeError, "key"),
    ((None,), {}, TypeError, "key"),
    (("k",), {"range_end": ""}, ValueError, "range_end"),
    (("k",), {"range_end": 1}, TypeError, "range_end"),
    (("k",), {"prefix": True, "range_end": "l"}, ValueError, "prefix"),
]


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


TARGETS: list[tuple[Callable[..., Target], str, int, Any, Any]] = [
    (Compare.version, "version", rpc_pb2.Compare.VERSION, 3, 3),
    (Compare.create_revision, "create_revision", rpc_pb2.Compare.CREATE, 0, 0),
    (Compare.mod_revision, "mod_revision", rpc_pb2.Compare.MOD, INT64_MAX, INT64_MAX),
    (Compare.value, "value", rpc_pb2.Compare.VALUE, "v", b"v"),
    (Compare.value, "value", rpc_pb2.Compare.VALUE, b"\xff", b"\xff"),
    (Compare.value, "value", rpc_pb2.Compare.VALUE, b"", b""),
    (Compare.lease, "lease", rpc_pb2.Compare.LEASE, 7, 7),
    (Compare.lease, "lease", rpc_pb2.Compare.LEASE, INT64_MIN, INT64_MIN),
]
OPERATORS: list[tuple[Callable[[Any, Any], Any], int]] = [
    (lambda target, operand: target == operand, rpc_pb2.Compare.EQUAL),
    (lambda target, operand: target != operand, rpc_pb2.Compare.NOT_EQUAL),
    (lambda target, operand: target > operand, rpc_pb2.Compare.GREATER),
    (lambda target, operand: target < operand, rpc_pb2.Compare.LESS),
]
RANGES: list[tuple[str, dict[str, Any], bytes, bytes]] = [
    ("k", {}, b"k", b""),
    ("k", {"prefix": True}, b"k", b"l"),
    ("", {"prefix": True}, b"\0", b"\0"),
    ("k", {"range_end": "z"}, b"k", b"z"),
    ("k", {"range_end": b"\0"}, b"k", b"\0"),
]


@pytest.mark.parametrize(("make", "field", "target", "operand", "sent"), TARGETS)
def test_compare(
    make: Callable[..., Target], field: str, target: int, operand: Any, sent: Any
) -> None:
    """Each target with each operator over each range is what the server is told, 0 and b'' too."""
    for key, options, start, end in RANGES:
        for operator, result in OPERATORS:
            compare = operator(make(key, **options), operand)
            assert isinstance(compare, Compare)
            message = compare.to_message()
            assert (message.result, message.target) == (result, target)
            assert (message.key, message.range_end) == (start, end)
            assert message.WhichOneof("target_union") == field
            assert getattr(message, field) == sent


def test_target_may_be_used_again() -> None:
    """Two comparisons of one target do not know of each other."""
    version = Compare.version("k")
    above, below = version > 1, version < 5
    assert (above.to_message().version, below.to_message().version) == (1, 5)
    assert above.to_message().result == rpc_pb2.Compare.GREATER


@pytest.mark.parametrize(
    ("make", "operand", "error", "name"),
    [
        (Compare.version, -1, ValueError, "version"),
        (Compare.version, 2**63, ValueError, "version"),
        (Compare.version, "1", TypeError, "version"),
        (Compare.version, True, TypeError, "version"),
        (Compare.version, None, TypeError, "version"),
        (Compare.create_revision, 1.0, TypeError, "create_revision"),
        (Compare.mod_revision, b"1", TypeError, "mod_revision"),
        (Compare.lease, None, TypeError, "lease"),
        (Compare.value, 1, TypeError, "value"),
        (Compare.value, None, TypeError, "value"),
    ],
)
def test_compare_refuses(
    make: Callable[..., Target], operand: Any, error: type[Exception], name: str
) -> None:
    """An operand of another type or out of its limits is refused, naming the target."""
    for operator, _ in OPERATORS:
        with pytest.raises(error, match=f"^{name} must be"):
            operator(make("k"), operand)


@pytest.mark.parametrize(("args", "options", "error", "name"), WRONG_RANGES, ids=str)
@pytest.mark.parametrize(
    "make",
    [
        Compare.version,
        Compare.create_revision,
        Compare.mod_revision,
        Compare.value,
        Compare.lease,
    ],
)
def test_target_refuses(
    make: Callable[..., Target],
    args: tuple[Any, ...],
    options: dict[str, Any],
    error: type[Exception],
    name: str,
) -> None:
    """A comparison of a wrong key or range is refused, naming the argument."""
    with pytest.raises(error, match=rf"\b{name}\b"):
        make(*args, **options)


def test_compare_has_no_truth() -> None:
    """A comparison used as a condition is a mistake, and so is a chain of them."""
    with pytest.raises(TypeError, match="no truth value"):
        bool(Compare.version("k") == 1)
    with pytest.raises(TypeError, match="no truth value"):
        assert 1 < Compare.version("k") < 3
    with pytest.raises(TypeError, match="unhashable"):
        hash(Compare.version("k"))


def test_compare_refuses_other_operators() -> None:
    """etcd has no <= and >=."""
    with pytest.raises(TypeError, match="not supported"):
        Compare.version("k") >= 1  # type: ignore[operator]  # noqa: B015
    with pytest.raises(TypeError, match="not supported"):
        Compare.version("k") <= 1  # type: ignore[operator]  # noqa: B015


def test_txn() -> None:
    """A txn carries its comparisons and both branches in order, nested txns included."""
    inner = Op.txn(compare=[Compare.lease("k") == 0], failure=[Op.get("f")])
    op = Op.txn(
        compare=[Compare.version("k") == 0, Compare.value("k") != "v"],
        success=[Op.put("k", "v"), Op.delete("d"), inner],
        failure=(Op.get("k"),),
    )
    request = op.request
    assert [compare.target for compare in request.compare] == [0, 3]
    assert [each.WhichOneof("request") for each in request.success] == [
        "request_put",
        "request_delete_range",
        "request_txn",
    ]
    assert request.success[0].request_put == Op.put("k", "v").request
    assert request.success[2].request_txn == inner.request
    assert [each.request_range.key for each in request.failure] == [b"k"]
    again = rpc_pb2.TxnRequest.FromString(request.SerializeToString())
    assert again == request


def test_txn_may_be_empty() -> None:
    """All parts of a txn are optional."""
    assert Op.txn().request == rpc_pb2.TxnRequest()


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
def test_txn_is_read(op: Op[rpc_pb2.TxnRequest], is_read: bool) -> None:
    """A txn is a read only if nothing in it, however deep, could write."""
    assert op.is_read is is_read


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({"compare": Compare.version("k") == 1}, "compare must be a sequence of Compare"),
        ({"compare": [Compare.version("k")]}, "compare must hold Compare, not Target .*== 1"),
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
    request = op.request
    assert (len(request.compare), len(request.success), len(request.failure)) == (2, 2, 2)
    assert not op.is_read


def test_equality_and_repr() -> None:
    """Operations are equal where the request is, and say what they do to which key."""
    assert Op.put("k", "v") == Op.put(b"k", b"v")
    assert Op.put("k", "v") != Op.put("k", "w")
    assert Op.put("k", "v") != "k"
    assert repr(Op.put("k", "v")) == "<Op Put b'k'>"
    assert repr(Op.get("k")) == "<Op Range b'k'>"
    assert repr(Op.delete("k")) == "<Op DeleteRange b'k'>"
    assert repr(Op.txn(success=[Op.get("k")])) == "<Op Txn>"
    assert "version: 3" in repr(Compare.version("k") == 3)
