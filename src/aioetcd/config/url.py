"""A client described by a URL.

No error shows a user's name or password, which are what stands before the ``@``; nor a host, which
may be a part of them where an ``@`` or a ``%`` was forgotten.
"""

from __future__ import annotations

import re
from typing import Any, cast
from urllib.parse import unquote

from aioetcd.config.client import Described
from aioetcd.config.endpoints import Endpoint
from aioetcd.config.tls import TLS

DEFAULT_PORT = 2379

_DURATIONS = ("timeout", "keepalive_time", "keepalive_timeout", "auto_sync")
_TLS = ("ca", "cert", "key", "server_name")
_KNOWN = ", ".join(sorted(_DURATIONS + _TLS))


def read_url(url: str) -> Described:
    """Read ``etcd(s)://[user:password@]host[:port],.../[?option=value&...]``.

    Raises:
        TypeError: It is not a str.
        ValueError: It is none of these.
    """
    if not isinstance(url, str):
        raise TypeError(f"the URL must be a str, not {type(url).__name__}")
    scheme, _, rest = url.strip().partition("://")
    if scheme.lower() not in ("etcd", "etcds"):
        raise ValueError("the URL must begin with etcd:// (plaintext) or etcds:// (TLS)")
    authority, tail = _split(rest)
    user, at, hosts = authority.rpartition("@")
    if "@" in user or "@" in tail or "#" in tail:
        raise ValueError(
            "the URL has an '@' or a '#' too many: write %40 for an '@', %23 for a '#', %2F for a "
            "'/' and %3F for a '?' in a user's name, a password or an option"
        )
    path, _, query = tail.partition("?")
    if path not in ("", "/"):
        raise ValueError("the URL must not have a path")
    described: dict[str, Any] = {
        "endpoints": [_host(number, text) for number, text in enumerate(hosts.split(","), 1)]
    }
    if at:
        described["username"], described["password"] = _user(user)
    options = _options(query)
    for name in _DURATIONS:
        if name in options:
            described[name] = _number(name, options.pop(name))
    if scheme.lower() == "etcds":
        described["tls"] = TLS(**options)
    elif options:
        raise ValueError(f"{', '.join(options)}: only a URL that begins with etcds:// speaks TLS")
    return cast("Described", described)


def _split(rest: str) -> tuple[str, str]:
    """Split what follows the scheme at the end of the hosts."""
    end = re.search("[/?#]", rest)
    return (rest, "") if end is None else (rest[: end.start()], rest[end.start() :])


def _host(number: int, text: str) -> str:
    if text and (":" not in text or text.endswith("]")):
        text = f"{text}:{DEFAULT_PORT}"
    try:
        Endpoint.parse(f"http://{text}")
    except ValueError:
        raise ValueError(
            f"host {number} of the URL cannot be read: host, host:port or [IPv6]:port, and commas "
            "between several"
        ) from None
    return text


def _user(text: str) -> tuple[str, str]:
    name, _, password = text.partition(":")
    if not (name and password):
        raise ValueError("the URL has a user without a password, or without a name: user:password@")
    return _decoded("the user's name", name), _decoded("the password", password)


def _decoded(what: str, text: str) -> str:
    if re.search("%(?![0-9A-Fa-f]{2})", text):
        raise ValueError(f"{what} in the URL has a '%' that is not written as %25")
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise ValueError(f"{what} in the URL is no UTF-8") from None


def _options(query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for option in query.split("&") if query else ():
        name, _, value = option.partition("=")
        if name not in _DURATIONS + _TLS:
            raise ValueError(f"the URL has an unknown option {name!r}; known are {_KNOWN}")
        if name in options:
            raise ValueError(f"the URL has the option {name} twice; known, once each, are {_KNOWN}")
        if not value:
            raise ValueError(f"the URL has no value for the option {name}")
        options[name] = _decoded(f"the option {name}", value)
    return options


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name} must be a number of seconds, not {text!r}") from None
