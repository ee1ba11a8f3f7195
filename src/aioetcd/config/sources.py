"""What a client is made with, read from a URL or from etcdctl's environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from aioetcd.config.tls import TLS

_PORT = 2379
_FILES = ("ca", "cert", "key", "server_name")
_SECONDS = ("timeout", "keepalive_time", "keepalive_timeout")
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def from_url(url: str) -> dict[str, Any]:
    """Read ``etcd://user:password@host:2379,host2/?timeout=5``; ``etcds`` speaks TLS.

    Gives the arguments of `Client`.

    Raises:
        TypeError: It is no str.
        ValueError: It is no such URL, or has an option that there is not, or one twice. The text
            does not show the user.
    """
    from urllib.parse import parse_qsl, unquote, urlsplit  # it imports much

    if not isinstance(url, str):
        raise TypeError(f"url must be a str, not {type(url).__name__}")
    parts = urlsplit(url)
    if parts.scheme not in ("etcd", "etcds"):
        raise ValueError(f"url must begin with etcd:// or etcds://, not {parts.scheme!r}")
    if parts.path not in ("", "/") or parts.fragment:
        raise ValueError("url must have no path and no fragment: options follow a '?'")
    user, at, hosts = parts.netloc.rpartition("@")
    if not hosts:
        raise ValueError("url has no host")
    scheme = "https" if parts.scheme == "etcds" else "http"
    options: dict[str, Any] = {
        "endpoints": [f"{scheme}://{_with_port(host)}" for host in hosts.split(",") if host]
    }
    if at:
        name, _, password = user.partition(":")
        options["username"], options["password"] = unquote(name), unquote(password)
    files: dict[str, str] = {}
    known = (*_SECONDS, *_FILES)
    for name, text in parse_qsl(
        parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)
    ):
        if name not in known:
            raise ValueError(f"url has no option {name!r}: there are {', '.join(known)}")
        if name in options or name in files:
            raise ValueError(f"url has the option {name!r} twice")
        if name in _FILES:
            files[name] = text
        else:
            options[name] = _number(f"the url's {name}", text)
    if files and parts.scheme == "etcd":
        raise ValueError(f"url has {next(iter(files))!r}, which is for etcds://")
    if parts.scheme == "etcds":
        options["tls"] = TLS(**files)
    return options


def _with_port(host: str) -> str:
    has_port = re.search(r":\d*$", host.rpartition("]")[2] if "]" in host else host)
    return host if has_port else f"{host}:{_PORT}"


def _number(what: str, text: str) -> float | None:
    if text == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{what} must be a number of seconds, or none, not {text!r}") from None


def from_env(environ: Mapping[str, str]) -> dict[str, Any]:
    """Read etcdctl's variables, ``ETCDCTL_ENDPOINTS`` and so on.

    Gives the arguments of `Client`. Those that are about etcdctl's output are left alone.

    Raises:
        ValueError: One cannot be read, or asks for what there is not.
    """
    options: dict[str, Any] = {}
    if endpoints := environ.get("ETCDCTL_ENDPOINTS"):
        options["endpoints"] = endpoints
    if user := environ.get("ETCDCTL_USER"):
        name, colon, password = user.partition(":")
        options["username"] = name
        options["password"] = password if colon else environ.get("ETCDCTL_PASSWORD", "")
        if not options["password"]:
            raise ValueError("ETCDCTL_USER needs a password: name:password, or ETCDCTL_PASSWORD")
    for variable, option in (
        ("ETCDCTL_COMMAND_TIMEOUT", "timeout"),
        ("ETCDCTL_KEEPALIVE_TIME", "keepalive_time"),
        ("ETCDCTL_KEEPALIVE_TIMEOUT", "keepalive_timeout"),
    ):
        if text := environ.get(variable):
            options[option] = _duration(variable, text)
    for variable in ("ETCDCTL_DISCOVERY_SRV", "ETCDCTL_DISCOVERY_SRV_NAME"):
        if environ.get(variable):
            raise ValueError(f"{variable} is not supported: name the endpoints")
    if _is_true(environ, "ETCDCTL_INSECURE_SKIP_TLS_VERIFY"):
        raise ValueError(
            "ETCDCTL_INSECURE_SKIP_TLS_VERIFY is not supported: a server that is not verified may "
            "be anybody; name its authority with ETCDCTL_CACERT"
        )
    files = {
        field: text
        for field, variable in (("ca", "CACERT"), ("cert", "CERT"), ("key", "KEY"))
        if (text := environ.get(f"ETCDCTL_{variable}"))
    }
    if files:
        options["tls"] = TLS(**files)
    return options


def _is_true(environ: Mapping[str, str], variable: str) -> bool:
    return environ.get(variable, "").lower() in ("1", "t", "true")


def _duration(variable: str, text: str) -> float:
    """Read a duration as Go writes it: ``5s``, ``1m30s``, ``500ms``."""
    found = _DURATION.findall(text)
    if not found or "".join(number + unit for number, unit in found) != text:
        raise ValueError(f"{variable} must be a duration such as 5s or 1m30s, not {text!r}")
    return sum(float(number) * _UNITS[unit] for number, unit in found)
