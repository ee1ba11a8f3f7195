"""What a comparison says is what goes over the wire; nonsense is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from aioetcd import Compare, CompareTarget, KeyValue
from aioetcd._proto import rpc_pb2
from tests.wrong_ranges import WRONG_RANGES

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


TARGETS: list[tuple[Callable[..., CompareTarget[Any]], str, int, Any, Any]] = [
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
    make: Callable[..., CompareTarget[Any]], field: str, target: int, operand: Any, sent: Any
) -> None:
    """Each target with each operator over each range is what the server is told, 0 and b'' too."""
    for key, options, start, end in RANGES:
        for operator, result in OPERATORS:
            compare = operator(make(key, **options), operand)
            assert isinstance(compare, Compare)
            message = compare._message
            assert (message.result, message.target) == (result, target)
            assert (message.key, message.range_end) == (start, end)
            assert message.WhichOneof("target_union") == field
            assert getattr(message, field) == sent


def test_target_may_be_used_again() -> None:
    """Two comparisons of one target do not know of each other."""
    version = Compare.version("k")
    above, below = version > 1, version < 5
    assert (above._message.version, below._message.version) == (1, 5)
    assert above._message.result == rpc_pb2.Compare.GREATER


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
    make: Callable[..., CompareTarget[Any]], operand: Any, error: type[Exception], name: str
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
    make: Callable[..., CompareTarget[Any]],
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


def test_short_ones() -> None:
    """The usual comparisons have names, and are those that one would write by hand."""
    kv = KeyValue(b"k", b"v", 3, 7, 2, None)
    for short, long in (
        (Compare.missing("k"), Compare.create_revision("k") == 0),
        (Compare.exists("k"), Compare.create_revision("k") != 0),
        (Compare.missing("k", prefix=True), Compare.create_revision("k", prefix=True) == 0),
        (Compare.exists("k", range_end="z"), Compare.create_revision("k", range_end="z") != 0),
        (Compare.unchanged(kv), Compare.mod_revision("k") == 7),
        (Compare.unchanged(kv._replace(version=0)), Compare.create_revision("k") == 0),
    ):
        assert short._message == long._message


@pytest.mark.parametrize(
    ("wrong", "text"),
    [(None, r"not NoneType \(where there was no key: Compare.missing"), (b"k", "not bytes$")],
)
def test_unchanged_refuses(wrong: Any, text: str) -> None:
    """What was not there cannot be unchanged: the error says what to ask instead."""
    with pytest.raises(TypeError, match=f"^kv must be a KeyValue, {text}"):
        Compare.unchanged(wrong)


@pytest.mark.parametrize(
    ("compare", "text"),
    [
        (Compare.version("k") == 3, "<Compare version of b'k' == 3>"),
        (Compare.mod_revision("k") > 0, "<Compare mod_revision of b'k' > 0>"),
        (Compare.value("k", prefix=True) != "v", "<Compare value of b'k'..b'l' != b'v'>"),
        (Compare.lease("k") < 5, "<Compare lease of b'k' < 5>"),
        (Compare.missing("k"), "<Compare create_revision of b'k' == 0>"),
        (Compare.version("k"), "<CompareTarget version of b'k'>"),
    ],
)
def test_repr(compare: object, text: str) -> None:
    """A comparison reads as it was written, and so does what is none yet."""
    assert repr(compare) == text


def test_repr_of_a_large_one_is_short() -> None:
    """A value of kilobytes is not shown whole."""
    assert len(repr(Compare.value("k") == "v" * 10_000)) < 120
