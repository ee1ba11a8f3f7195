"""Keys and ranges are taken as etcd takes them, or refused by name."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aioetcd.keys import encode, encode_key, key_range, prefix_end

# Few different bytes, so that keys and prefixes have much in common; 0xff is what carries over.
BYTES = st.lists(st.sampled_from([0, 1, 0x61, 0xFE, 0xFF]), max_size=5).map(bytes)


class Name(str):
    """A str that is not exactly one."""


class Blob(bytes):
    """Bytes that are not exactly that."""


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
    assert end is not None
    assert end == prefix_end(prefix)
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
def test_prefix_end(prefix: bytes, end: bytes) -> None:
    """The last byte that can be raised is, and where none can the range has no end."""
    assert prefix_end(prefix) == end


def test_prefix_end_takes_text() -> None:
    """Text is taken as UTF-8, and what is neither text nor bytes is refused by name."""
    assert prefix_end("/ä") == b"/\xc3\xa5"
    with pytest.raises(TypeError, match=r"^prefix must be str or bytes, not int$"):
        prefix_end(1)  # type: ignore[arg-type]


def test_key_range() -> None:
    """A key, a prefix, all keys, a range and a range without an end have etcd's own form."""
    assert key_range("ä", False, None) == ("ä".encode(), b"")
    assert key_range(b"\xff", False, None) == (b"\xff", b"")
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
