"""All that a client is told at the start, in one value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypedDict

from aioetcd._checks import check_seconds
from aioetcd.config.endpoints import Endpoint, parse_endpoints
from aioetcd.config.tls import TLS
from aioetcd.config.user import User
from aioetcd.observe import Observer
from aioetcd.types.value import Value

# etcd closes a connection that pings more often.
SHORTEST_KEEPALIVE_TIME = 5
# gRPC counts it in milliseconds, as a C int.
_LONGEST_KEEPALIVE = 2_000_000


class ClientOptions(TypedDict, total=False):
    """The keyword arguments of `Client`, which says more of each.

    Attributes:
        timeout: The default deadline of a call in seconds.
        keepalive_time: Seconds after which a silent connection is pinged.
        keepalive_timeout: Seconds in which the ping is to be answered.
        tls: Speak TLS.
        username: Sign in as this user.
        password: The user's.
        auto_sync: Seconds between two `Client.sync_endpoints`.
        observers: Are told of each call.
    """

    timeout: float | None
    keepalive_time: float
    keepalive_timeout: float
    tls: TLS | None
    username: str | None
    password: str | None
    auto_sync: float | None
    observers: Sequence[Observer]


class Described(ClientOptions):
    """All arguments of `Client`, as a text that describes one gives them."""

    endpoints: list[str]


def check_keepalive(name: str, seconds: float, shortest: int = 0) -> float:
    """Give a duration back if gRPC, and etcd, can do with it.

    Args:
        name: The argument's, for errors.
        seconds: The argument.
        shortest: The least that it may be, in seconds.

    Raises:
        TypeError: It is no number.
        ValueError: It is out of the limits.
    """
    checked = check_seconds(name, seconds)
    if checked is None or checked > _LONGEST_KEEPALIVE:
        raise ValueError(f"{name} must be at most {_LONGEST_KEEPALIVE} seconds")
    if checked < shortest:
        raise ValueError(f"{name} must be at least {shortest} seconds, not {seconds}")
    return checked


class Config(Value):
    """What a client is told at the start: `checked` makes one of what users write.

    Attributes:
        endpoints: Where the members listen.
        timeout: The default deadline of a call in seconds; None is none.
        keepalive_time: Seconds after which a silent connection is pinged.
        keepalive_timeout: Seconds in which the ping is to be answered.
        tls: What it needs for TLS.
        user: Who calls; None is nobody.
        auto_sync: Ask the cluster for its endpoints every so many seconds; None is never.
        observers: Who is told of each call, and of what happens beside them.
    """

    __slots__ = (
        "auto_sync",
        "endpoints",
        "keepalive_time",
        "keepalive_timeout",
        "observers",
        "timeout",
        "tls",
        "user",
    )

    endpoints: tuple[Endpoint, ...]
    timeout: float | None
    keepalive_time: float
    keepalive_timeout: float
    tls: TLS | None
    user: User | None
    auto_sync: float | None
    observers: tuple[Observer, ...]

    @classmethod
    def checked(
        cls,
        endpoints: str | Iterable[str],
        *,
        timeout: float | None,
        keepalive_time: float,
        keepalive_timeout: float,
        tls: TLS | None,
        username: str | None,
        password: str | None,
        auto_sync: float | None,
        observers: Sequence[Observer],
    ) -> Config:
        """Read what users write; the arguments are those of `Client`.

        Raises:
            ValueError: One of them is out of its limits, or cannot be read.
            TypeError: One of them is of the wrong type.
        """
        if tls is not None and not isinstance(tls, TLS):
            raise TypeError(f"tls must be a TLS, not {type(tls).__name__}")
        return cls(
            endpoints=parse_endpoints(endpoints),
            timeout=check_seconds("timeout", timeout),
            keepalive_time=check_keepalive(
                "keepalive_time", keepalive_time, SHORTEST_KEEPALIVE_TIME
            ),
            keepalive_timeout=check_keepalive("keepalive_timeout", keepalive_timeout),
            tls=tls,
            user=User.checked(username, password),
            auto_sync=check_seconds("auto_sync", auto_sync),
            observers=tuple(observers),
        )
