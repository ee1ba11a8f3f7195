"""Keys, ranges and numbers as etcd takes them, checked before anything is sent."""

from __future__ import annotations

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

# Thirty years: gRPC takes a deadline beyond the year 2262 for one that has passed.
_FOREVER = 1e9

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


def encode_key(key: str | bytes) -> bytes:
    """Give a key as bytes; etcd has no empty key."""
    encoded = encode("key", key)
    if not encoded:
        raise ValueError("key must not be empty")
    return encoded


def prefix_range_end(prefix: bytes) -> bytes:
    r"""Give the end of the range that holds all keys below `prefix`.

    It is the prefix with its last byte that is not ``0xff`` raised by one; where all are, the
    range has no end, which etcd writes ``\0``.
    """
    stripped = prefix.rstrip(b"\xff")
    if not stripped:
        return _TO_END
    return stripped[:-1] + bytes([stripped[-1] + 1])


def key_range(
    key: str | bytes, prefix: bool, range_end: str | bytes | None
) -> tuple[bytes, bytes | None]:
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
    if prefix:
        if range_end is not None:
            raise ValueError("prefix and range_end exclude each other")
        start = encode("key", key)
        return (start or _FROM_START), prefix_range_end(start)
    start = encode_key(key)
    if range_end is None:
        return start, None
    end = encode("range_end", range_end)
    if not end:
        raise ValueError(r"range_end must not be empty (None: one key; '\0': no end)")
    return start, end


def check_int(name: str, number: int, minimum: int, maximum: int = INT64_MAX) -> int:
    """Give `number` back if it is an int within the limits.

    Raises:
        TypeError: It is not an int (a bool is not one).
        ValueError: It is out of the limits, naming the argument and the limit.
    """
    if type(number) is bool or not isinstance(number, int):
        raise TypeError(f"{name} must be an int, not {type(number).__name__}")
    if number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, not {number}")
    if number > maximum:
        raise ValueError(f"{name} must be at most {maximum}, not {number}")
    return number


def check_lease_id(name: str, lease_id: int) -> int:
    """Give a lease's id back if it may be one; clients may choose negative ones.

    Raises:
        TypeError: It is not an int (a bool is not one).
        ValueError: It is 0, which means no lease, or no int64.
    """
    if check_int(name, lease_id, INT64_MIN) == 0:
        raise ValueError(f"{name} must not be 0, which is no lease: pass the id of one")
    return lease_id


def check_seconds(name: str, seconds: float | None) -> float | None:
    """Give a duration back if it is a number of seconds above 0; None where it is endless.

    Raises:
        TypeError: It is not a number.
        ValueError: It is not above 0, or not a number at all (NaN).
    """
    if seconds is None:
        return None
    if type(seconds) is bool or not isinstance(seconds, int | float):
        raise TypeError(f"{name} must be a number of seconds or None, not {type(seconds).__name__}")
    if not seconds > 0:
        raise ValueError(f"{name} must be above 0 seconds, not {seconds}")
    return None if seconds > _FOREVER else float(seconds)
