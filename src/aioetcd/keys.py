"""Keys and ranges of keys as etcd takes them."""

from __future__ import annotations

from aioetcd._checks import check_flag

_FROM_START = b"\0"
_TO_END = b"\0"


def encode(name: str, data: str | bytes) -> bytes:
    """Give `data` as bytes, a str in UTF-8.

    Raises:
        TypeError: It is neither, naming the argument.
        ValueError: It is a str with half a surrogate pair.
    """
    if type(data) is bytes:
        return data
    if isinstance(data, str):
        try:
            return data.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{name} cannot be written in UTF-8: {error}") from None
    if isinstance(data, bytes):
        return bytes(data)
    raise TypeError(f"{name} must be str or bytes, not {type(data).__name__}")


def encode_key(key: str | bytes, name: str = "key") -> bytes:
    """Give a key, or what keys are made with, as bytes; etcd has no empty key."""
    encoded = encode(name, key)
    if not encoded:
        raise ValueError(f"{name} must not be empty")
    return encoded


def prefix_end(prefix: str | bytes) -> bytes:
    r"""Give the end of the range of all keys below a prefix, for ``range_end``.

    It is the prefix with its last byte that is not ``0xff`` raised by one; where all are, the
    range has no end, which etcd writes ``\0``. (The methods' ``prefix=True`` does this by itself.)

    Args:
        prefix: What the keys begin with; ``""`` has no end.

    Raises:
        TypeError: It is neither str nor bytes.
        ValueError: It is a str with half a surrogate pair.

    Example:
        prefix_end("/config/")  # b"/config0"
        await client.kv.get("/config/m", range_end=prefix_end("/config/"))
    """
    stripped = encode("prefix", prefix).rstrip(b"\xff")
    if not stripped:
        return _TO_END
    return stripped[:-1] + bytes([stripped[-1] + 1])


def range_below(prefix: bytes, key: bytes, range_end: bytes) -> tuple[bytes, bytes]:
    r"""Give etcd's ``key`` and ``range_end`` for a range of the keys below a prefix.

    Args:
        prefix: What these keys have before them in the store.
        key: The key, or the first key of the range.
        range_end: The first key after it; ``b"\0"`` means no end, ``b""`` the key alone.
    """
    if range_end == _TO_END:
        return prefix + key, prefix_end(prefix)
    return prefix + key, prefix + range_end if range_end else range_end


def key_range(key: str | bytes, prefix: bool, range_end: str | bytes | None) -> tuple[bytes, bytes]:
    r"""Give etcd's ``key`` and ``range_end`` for a key, a prefix or a range.

    Args:
        key: The key, the prefix, or the first key of the range. Only a prefix may be empty: it
            means all keys.
        prefix: Whether `key` is a prefix.
        range_end: The first key after the range; ``"\0"`` means no end.

    Raises:
        ValueError: An empty key or range end, or both `prefix` and `range_end`.
        TypeError: A key that is neither str nor bytes.
    """
    if check_flag("prefix", prefix):
        if range_end is not None:
            raise ValueError("prefix and range_end exclude each other")
        start = encode("key", key)
        return (start or _FROM_START), prefix_end(start)
    start = encode_key(key)
    if range_end is None:
        return start, b""
    end = encode("range_end", range_end)
    if not end:
        raise ValueError(r"range_end must not be empty (None: one key; '\0': no end)")
    return start, end
