"""Arguments as etcd takes them, checked before anything is sent."""

from __future__ import annotations

from typing import TypeVar

from aioetcd.types.cluster import Member, MemberLike
from aioetcd.types.leases import Lease, LeaseLike

_F = TypeVar("_F")

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
UINT64_MAX = 2**64 - 1

# Thirty years: gRPC takes a deadline beyond the year 2262 for one that has passed.
_FOREVER = 1e9


def check_int(
    name: str, number: int, minimum: int, maximum: int = INT64_MAX, *, none: str | None = None
) -> int:
    """Give `number` back if it is an int within the limits.

    Args:
        name: The argument's, for errors.
        number: The argument.
        minimum: The least that it may be.
        maximum: The most that it may be.
        none: What None means in its place; whoever passes 0 for that is told.

    Raises:
        TypeError: It is not an int (a bool is not one).
        ValueError: It is out of the limits, naming the argument and the limit.
    """
    if type(number) is bool or not isinstance(number, int):
        raise TypeError(f"{name} must be an int, not {type(number).__name__}")
    if number < minimum:
        hint = f" (None: {none})" if none is not None and number == 0 else ""
        raise ValueError(f"{name} must be at least {minimum}, not {number}{hint}")
    if number > maximum:
        raise ValueError(f"{name} must be at most {maximum}, not {number}")
    return number


def check_lease_id(name: str, lease_id: int, *, none: str | None = None) -> int:
    """Give a lease's id back if it may be one; clients may choose negative ones.

    Args:
        name: The argument's, for errors.
        lease_id: The argument.
        none: What None means in its place; whoever passes 0 for that is told.

    Raises:
        TypeError: It is not an int (a bool is not one).
        ValueError: It is 0, which means no lease, or no int64.
    """
    if check_int(name, lease_id, INT64_MIN) == 0:
        hint = "" if none is None else f" (None: {none})"
        raise ValueError(f"{name} must not be 0, which is no lease: pass the id of one{hint}")
    return lease_id


def check_lease(name: str, lease: LeaseLike, *, none: str | None = None) -> int:
    """Give the id of a lease, whatever names it.

    Args:
        name: The argument's, for errors.
        lease: The argument.
        none: What None means in its place; whoever passes 0 for that is told.

    Raises:
        TypeError: It names no lease.
        ValueError: It is an id that no lease has.
    """
    if isinstance(lease, int):
        return check_lease_id(name, lease, none=none)
    lease_id: object = lease.id if isinstance(lease, Lease) else getattr(lease, "lease_id", None)
    if not isinstance(lease_id, int):
        kind = type(lease).__name__
        raise TypeError(f"{name} must be a lease: its id, or a Lease, Session or Lock, not {kind}")
    return check_lease_id(name, lease_id)


def check_member(name: str, member: MemberLike) -> int:
    """Give the id of a member, whatever names it.

    Args:
        name: The argument's, for errors.
        member: The argument.

    Raises:
        TypeError: It names no member.
        ValueError: It is an id that no member has.
    """
    if isinstance(member, Member):
        return member.id
    if type(member) is bool or not isinstance(member, int):
        raise TypeError(f"{name} must be a member's id or a Member, not {type(member).__name__}")
    return check_int(name, member, 1, UINT64_MAX)


def check_text(name: str, text: str) -> str:
    """Give a text back if it is one, and not empty.

    Raises:
        TypeError: It is not a str.
        ValueError: It is empty.
    """
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a str, not {type(text).__name__}")
    if not text:
        raise ValueError(f"{name} must not be empty")
    return text


def check_flag(name: str, flag: bool) -> bool:
    """Give a flag back if it is one.

    Raises:
        TypeError: It is not a bool.
    """
    if type(flag) is not bool:
        raise TypeError(f"{name} must be a bool, not {type(flag).__name__}")
    return flag


def check_callable(name: str, function: _F) -> _F:
    """Give `function` back if it may be called, or is None.

    Args:
        name: The argument's, for errors.
        function: The argument.

    Raises:
        TypeError: It is something else.
    """
    if function is not None and not callable(function):
        raise TypeError(f"{name} must be a function, not {type(function).__name__}")
    return function


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
