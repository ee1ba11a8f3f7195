"""Keys, ranges, numbers and durations are taken as etcd takes them, or refused by name."""

from __future__ import annotations

import enum
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aioetcd.ranges import (
    INT64_MAX,
    INT64_MIN,
    check_int,
    check_lease_id,
    check_seconds,
    encode,
    encode_key,
    key_range,
    prefix_range_end,
)

# Few different bytes, so that keys and prefixes have much in common; 0xff is what carries over.
BYTES = st.lists(st.sampled_from([0, 1, 0x61, 0xFE, 0xFF]), max_size=5).map(bytes)


class Name(str):
    """A str that is not exactly one."""


class Blob(bytes):
    """Bytes that are not exactly that."""


class Number(enum.IntEnum):
    SEVEN = 7


def holds(key: bytes, start: bytes, end: bytes) -> bool:
    """Whether etcd finds the key in a range."""
    return start <= key and (end == b"\0" or key < end)


@given(prefix=BYTES, key=BYTES.filter(len))
@example(prefix=b"", key=b"\0")
@example(prefix=b"", key=b"\xff\xff")
@example(prefix=b"\xff", key=b"\xff")
@example(prefix=b"a\xff", key=b"b")
@example(prefix=b"a\xff\xff", key=b"a\xff\xff\0")
def test_prefix_is_a_range(prefix: bytes, key: bytes) -> None:
    """A key is in a prefix's range if, and only if, it begins with the prefix."""
    start, end = key_range(prefix, True, None)
    assert end == prefix_range_end(prefix)
    assert holds(key, start, end) == key.startswith(prefix)


@given(prefix=BYTES, rest=BYTES)
def test_every_key_below_a_prefix_is_in_its_range(prefix: bytes, rest: bytes) -> None:
    """Whatever follows the prefix, the key is found; the range's end itself is not."""
    start, end = key_range(prefix, True, None)
    assert end is not None
    assert not prefix + rest or holds(prefix + rest, start, end)
    assert end == b"\0" or not end.startswith(prefix)


@pytest.mark.parametrize(
    ("prefix", "end"),
    [
        (b"a", b"b"),
        (b"/prefix/", b"/prefix0"),
        (b"a\xff", b"b"),
        (b"a\xff\xff", b"b"),
        (b"\0", b"\1"),
        (b"a\0", b"a\1"),
        (b"\xfe\xff", b"\xff"),
        (b"\xff", b"\0"),
        (b"\xff\xff", b"\0"),
        (b"", b"\0"),
    ],
)
def test_prefix_range_end(prefix: bytes, end: bytes) -> None:
    """The last byte that can be raised is, and where none can the range has no end."""
    assert prefix_range_end(prefix) == end


def test_key_range() -> None:
    """A key, a prefix, all keys, a range and a range without an end have etcd's own form."""
    assert key_range("ä", False, None) == ("ä".encode(), None)
    assert key_range(b"\xff", False, None) == (b"\xff", None)
    assert key_range("a", True, None) == (b"a", b"b")
    assert key_range("", True, None) == (b"\0", b"\0")
    assert key_range(b"", True, None) == (b"\0", b"\0")
    assert key_range("a", False, "c") == (b"a", b"c")
    assert key_range("a", False, b"\0") == (b"a", b"\0")
    assert key_range("c", False, "a") == (b"c", b"a")


@pytest.mark.parametrize(
    ("key", "prefix", "range_end", "error", "text"),
    [
        ("", False, None, ValueError, "key must not be empty"),
        (b"", False, "a", ValueError, "key must not be empty"),
        ("a", False, "", ValueError, "range_end must not be empty"),
        ("a", True, "b", ValueError, "prefix and range_end exclude each other"),
        ("", True, b"\0", ValueError, "prefix and range_end exclude each other"),
        (1, False, None, TypeError, "key must be str or bytes, not int"),
        (None, False, None, TypeError, "key must be str or bytes, not NoneType"),
        (None, True, None, TypeError, "key must be str or bytes, not NoneType"),
        ("a", False, 1, TypeError, "range_end must be str or bytes, not int"),
        ("\ud800", False, None, ValueError, "key "),
    ],
)
def test_key_range_refuses(
    key: str, prefix: bool, range_end: str | None, error: type[Exception], text: str
) -> None:
    """A key or range that etcd would misunderstand is refused, naming the argument."""
    with pytest.raises(error, match=text):
        key_range(key, prefix, range_end)


def test_encode() -> None:
    """A str goes out in UTF-8, bytes as they are, subclasses as what they are."""
    assert encode("value", "ä€") == b"\xc3\xa4\xe2\x82\xac"
    assert encode("value", b"\0\xff") == b"\0\xff"
    assert encode("value", "") == b""
    assert encode("value", Name("a")) == b"a"
    assert type(encode("value", Blob(b"a"))) is bytes
    assert encode_key(Name("a")) == b"a"


@pytest.mark.parametrize("wrong", [1, None, bytearray(b"a"), memoryview(b"a"), ["a"], True])
def test_encode_refuses(wrong: str) -> None:
    """What is neither str nor bytes is a TypeError that names the argument and the type."""
    kind = type(wrong).__name__
    with pytest.raises(TypeError, match=f"^value must be str or bytes, not {kind}$"):
        encode("value", wrong)


def test_encode_refuses_half_a_character() -> None:
    """A str that has no UTF-8 is a ValueError that names the argument."""
    with pytest.raises(ValueError, match=r"^value .*UTF-8"):
        encode("value", "a\ud800")


def test_check_int() -> None:
    """An int within the limits, both included, comes back."""
    assert check_int("limit", 1, 1) == 1
    assert check_int("limit", INT64_MAX, 1) == INT64_MAX
    assert check_int("limit", 5, 1, 5) == 5
    assert check_int("limit", Number.SEVEN, 1) == 7


@pytest.mark.parametrize(
    ("number", "error", "text"),
    [
        (0, ValueError, "limit must be at least 1, not 0"),
        (-1, ValueError, "limit must be at least 1, not -1"),
        (2**63, ValueError, f"limit must be at most {2**63 - 1}, not {2**63}"),
        (True, TypeError, "limit must be an int, not bool"),
        (1.0, TypeError, "limit must be an int, not float"),
        ("1", TypeError, "limit must be an int, not str"),
        (None, TypeError, "limit must be an int, not NoneType"),
    ],
)
def test_check_int_refuses(number: int, error: type[Exception], text: str) -> None:
    """A number out of its limits, or no int, is refused with the argument and the limit."""
    with pytest.raises(error, match=f"^{text}$"):
        check_int("limit", number, 1)


@pytest.mark.parametrize("lease_id", [INT64_MIN, -1, 1, INT64_MAX])
def test_check_lease_id(lease_id: int) -> None:
    """A lease may have any id that etcd's numbers allow, a negative one too."""
    assert check_lease_id("lease_id", lease_id) == lease_id


@pytest.mark.parametrize(
    ("lease_id", "error", "text"),
    [
        (0, ValueError, "lease_id must not be 0, which is no lease: pass the id of one"),
        (-(2**63) - 1, ValueError, f"lease_id must be at least {-(2**63)}, not {-(2**63) - 1}"),
        (2**63, ValueError, f"lease_id must be at most {2**63 - 1}, not {2**63}"),
        (True, TypeError, "lease_id must be an int, not bool"),
        (None, TypeError, "lease_id must be an int, not NoneType"),
    ],
)
def test_check_lease_id_refuses(lease_id: int, error: type[Exception], text: str) -> None:
    """What is no lease's id is refused, naming the argument; for 0 it says what to pass."""
    with pytest.raises(error, match=f"^{text}$"):
        check_lease_id("lease_id", lease_id)


def test_check_seconds() -> None:
    """A duration comes back as a float; None and infinity are no limit."""
    assert check_seconds("timeout", 2) == 2.0
    assert type(check_seconds("timeout", 2)) is float
    assert check_seconds("timeout", 0.001) == 0.001
    assert check_seconds("timeout", None) is None
    assert check_seconds("timeout", math.inf) is None
    assert check_seconds("timeout", 1e300) is None


@pytest.mark.parametrize(
    ("seconds", "error", "text"),
    [
        (0, ValueError, "timeout must be above 0 seconds, not 0"),
        (-0.5, ValueError, "timeout must be above 0 seconds, not -0.5"),
        (-math.inf, ValueError, "timeout must be above 0 seconds, not -inf"),
        (math.nan, ValueError, "timeout must be above 0 seconds, not nan"),
        (True, TypeError, "timeout must be a number of seconds or None, not bool"),
        ("1", TypeError, "timeout must be a number of seconds or None, not str"),
    ],
)
def test_check_seconds_refuses(seconds: float, error: type[Exception], text: str) -> None:
    """What is no duration is refused, naming the argument."""
    with pytest.raises(error, match=f"^{text}$"):
        check_seconds("timeout", seconds)
