"""A client described by etcdctl's environment variables."""

from __future__ import annotations

import re
from collections.abc import Mapping

from aioetcd._checks import check_seconds
from aioetcd.config.client import SHORTEST_KEEPALIVE_TIME, Described, check_keepalive
from aioetcd.config.endpoints import parse_endpoints
from aioetcd.config.tls import TLS

_PREFIX = "ETCDCTL_"
# As Go's strconv.ParseBool.
_TRUE = {"1", "t", "T", "true", "TRUE", "True"}
_FALSE = {"0", "f", "F", "false", "FALSE", "False"}
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)


def read_env(environ: Mapping[str, str]) -> Described:
    """Read what etcdctl would read of the environment; empty is as good as not there.

    Raises:
        ValueError: A variable cannot be read, or asks for what this client does not do.
    """
    given = {
        name.removeprefix(_PREFIX): value
        for name, value in environ.items()
        if name.startswith(_PREFIX) and value
    }
    _refuse(given)
    described = Described(endpoints=_endpoints(given.get("ENDPOINTS", "127.0.0.1:2379")))
    if "COMMAND_TIMEOUT" in given:
        name, seconds = _duration(given, "COMMAND_TIMEOUT")
        described["timeout"] = check_seconds(name, seconds)
    if "KEEPALIVE_TIME" in given:
        name, seconds = _duration(given, "KEEPALIVE_TIME")
        described["keepalive_time"] = check_keepalive(name, seconds, SHORTEST_KEEPALIVE_TIME)
    if "KEEPALIVE_TIMEOUT" in given:
        name, seconds = _duration(given, "KEEPALIVE_TIMEOUT")
        described["keepalive_timeout"] = check_keepalive(name, seconds)
    tls = _tls(given)
    if tls is not None:
        described["tls"] = tls
    if "USER" in given or "PASSWORD" in given:
        described["username"], described["password"] = _user(given)
    return described


def _refuse(given: Mapping[str, str]) -> None:
    """Refuse what would have another meaning if it were ignored."""
    for name in ("DISCOVERY_SRV", "DISCOVERY_SRV_NAME"):
        if name in given:
            raise ValueError(f"{_PREFIX}{name} needs DNS: use `await Client.from_srv(domain)`")
    if _boolean(given, "INSECURE_SKIP_TLS_VERIFY"):
        raise ValueError(
            f"{_PREFIX}INSECURE_SKIP_TLS_VERIFY: this client always verifies the server's "
            f"certificate, there is no pretence of TLS; name its authority in {_PREFIX}CACERT"
        )
    if "AUTH_JWT_TOKEN" in given:
        raise ValueError(f"{_PREFIX}AUTH_JWT_TOKEN is not supported: use {_PREFIX}USER")


def _endpoints(text: str) -> list[str]:
    if "@" in text:  # not to be shown
        raise ValueError(
            f"{_PREFIX}ENDPOINTS must not hold a user or a password: use {_PREFIX}USER"
        )
    try:
        return [endpoint.name for endpoint in parse_endpoints(text)]
    except ValueError as error:
        raise ValueError(f"{_PREFIX}ENDPOINTS: {error}") from None


def _tls(given: Mapping[str, str]) -> TLS | None:
    """Give what there is for TLS; like etcdctl, without any of it speak plaintext by default."""
    ca, cert, key = (given.get(name) for name in ("CACERT", "CERT", "KEY"))
    if (cert is None) != (key is None):
        raise ValueError(f"{_PREFIX}CERT and {_PREFIX}KEY go together: one of them is missing")
    is_plaintext = _boolean(given, "INSECURE_TRANSPORT", default=True)
    if is_plaintext and ca is None and cert is None:
        return None
    return TLS(ca=ca, cert=cert, key=key)


def _user(given: Mapping[str, str]) -> tuple[str, str]:
    name, password = given.get("USER", ""), given.get("PASSWORD")
    if password is None:
        name, _, password = name.partition(":")
    if not (name and password):
        raise ValueError(
            f"{_PREFIX}USER must be name:password, or a name with {_PREFIX}PASSWORD beside it"
        )
    return name, password


def _boolean(given: Mapping[str, str], name: str, *, default: bool = False) -> bool:
    if name not in given:
        return default
    if given[name] not in _TRUE | _FALSE:
        raise ValueError(f"{_PREFIX}{name} must be true or false, not {given[name]!r}")
    return given[name] in _TRUE


def _duration(given: Mapping[str, str], name: str) -> tuple[str, float]:
    """Give a variable's full name, and the seconds that it means in Go's syntax."""
    text = given[name].removeprefix("+")
    parts = _PART.findall(text)
    if text == "0":
        return _PREFIX + name, 0.0
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(
            f"{_PREFIX}{name} must be a duration such as 5s, 1m30s or 500ms, not {given[name]!r}"
        )
    return _PREFIX + name, sum(float(number) * _UNITS[unit] for number, unit in parts)
