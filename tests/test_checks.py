"""Numbers, flags, leases and durations are taken as etcd takes them, or refused by name."""

from __future__ import annotations

import enum
import math
from typing import Any

import pytest

from aioetcd import Lease, ResponseHeader
from aioetcd._checks import (
    INT64_MAX,
    INT64_MIN,
    check_flag,
    check_int,
    check_lease,
    check_lease_id,
    check_seconds,
)

HEADER = ResponseHeader(1, 2, 3, 4)


class Number(enum.IntEnum):
    SEVEN = 7


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


def test_check_int_says_what_none_means() -> None:
    """Who passes 0 where None means something is told what."""
    with pytest.raises(ValueError, match=r"^limit must be at least 1, not 0 \(None: no limit\)$"):
        check_int("limit", 0, 1, none="no limit")
    with pytest.raises(ValueError, match=r"^limit must be at least 1, not -1$"):
        check_int("limit", -1, 1, none="no limit")


@pytest.mark.parametrize("flag", [True, False])
def test_check_flag(flag: bool) -> None:
    """A flag comes back."""
    assert check_flag("prev_kv", flag) is flag


@pytest.mark.parametrize("flag", [1, 0, None, "yes"])
def test_check_flag_refuses(flag: Any) -> None:
    """What is no bool is refused, naming the argument."""
    with pytest.raises(TypeError, match=f"^prev_kv must be a bool, not {type(flag).__name__}$"):
        check_flag("prev_kv", flag)


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


class OnLease:
    """What stands on a lease, as a session does."""

    def __init__(self, lease_id: object) -> None:
        self.lease_id = lease_id


@pytest.mark.parametrize(
    "lease", [7, Lease(HEADER, 7, 10), OnLease(7)], ids=["id", "lease", "on_lease"]
)
def test_check_lease(lease: Any) -> None:
    """A lease is named by its id, by what was granted, and by what stands on it."""
    assert check_lease("lease", lease) == 7


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (Lease(HEADER, 0, 10), ValueError),
        (OnLease(0), ValueError),
        (OnLease(True), TypeError),
        (OnLease(2**63), ValueError),
    ],
    ids=["granted_0", "on_0", "on_a_bool", "on_too_large_a_one"],
)
def test_check_lease_looks_at_every_id(wrong: Any, error: type[Exception]) -> None:
    """Whatever names it: an id that no lease has would be sent as no lease."""
    with pytest.raises(error, match=r"^lease must "):
        check_lease("lease", wrong)


@pytest.mark.parametrize("wrong", [None, "7", 7.0, OnLease(None), object(), KeyError])
def test_check_lease_refuses(wrong: Any) -> None:
    """What names no lease is refused, with all that would do."""
    text = "^lease must be a lease: its id, or a Lease, Session or Lock, not "
    with pytest.raises(TypeError, match=text):
        check_lease("lease", wrong)


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        (0, ValueError, r"^lease must not be 0, .*: pass the id of one \(None: no lease\)$"),
        (2**63, ValueError, "^lease must be at most"),
        (True, TypeError, "^lease must be an int, not bool$"),
    ],
)
def test_check_lease_refuses_no_id(wrong: int, error: type[Exception], text: str) -> None:
    """What is no lease's id is none here either; for 0 it says what to pass."""
    with pytest.raises(error, match=text):
        check_lease("lease", wrong, none="no lease")


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
