"""Endpoints are read as users write them, or refused with what is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from aioetcd import Client
from aioetcd.config.endpoints import Endpoint, parse_endpoints
from aioetcd.config.timeouts import DEFAULT


@pytest.mark.parametrize(
    ("text", "target", "tls"),
    [
        ("127.0.0.1:2379", "127.0.0.1:2379", None),
        ("etcd-1.example:2379", "etcd-1.example:2379", None),
        ("localhost:1", "localhost:1", None),
        ("localhost:65535", "localhost:65535", None),
        ("[::1]:2379", "[::1]:2379", None),
        ("http://127.0.0.1:2379", "127.0.0.1:2379", False),
        ("http://127.0.0.1:2379/", "127.0.0.1:2379", False),
        ("http://[fd00::7]:2379", "[fd00::7]:2379", False),
        ("  127.0.0.1:2379\n", "127.0.0.1:2379", None),
        ("unix:/run/etcd.sock", "unix:/run/etcd.sock", None),
        ("unix:///run/etcd.sock", "unix:/run/etcd.sock", None),
        ("unix:etcd.sock", "unix:etcd.sock", None),
        ("https://etcd-1.example:2379", "etcd-1.example:2379", True),
        ("unixs:/run/etcd.sock", "unix:/run/etcd.sock", True),
        ("unixs:///run/etcd.sock", "unix:/run/etcd.sock", True),
    ],
)
def test_endpoint(text: str, target: str, tls: bool | None) -> None:
    """An endpoint keeps the user's words as its name and has gRPC's as its target."""
    assert Endpoint.parse(text) == Endpoint(text.strip(), target, tls)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "no host"),
        (" ", "no host"),
        ("127.0.0.1", "no port"),
        ("127.0.0.1:", "no port"),
        ("127.0.0.1:0", "no port"),
        (":2379", "no host"),
        ("::1:2379", "cannot be parsed"),
        ("[::1]", "no port"),
        ("[::1:2379", "cannot be parsed"),
        ("127.0.0.1:65536", "cannot be parsed"),
        ("127.0.0.1:-1", "cannot be parsed"),
        ("127.0.0.1:http", "cannot be parsed"),
        ("two words:2379", "no host"),
        ("http://", "no host"),
        ("http://127.0.0.1", "no port"),
        ("http://127.0.0.1:2379/v3", "must not have a path"),
        ("http://user:secret@127.0.0.1:2379", "nothing more"),
        ("http://127.0.0.1:2379?a=b", "nothing more"),
        ("http://127.0.0.1:2379#a", "nothing more"),
        ("ftp://127.0.0.1:2379", "unknown scheme 'ftp'"),
        ("unix:", "no path"),
        ("unix://", "no path"),
    ],
)
def test_endpoint_refuses(text: str, what: str) -> None:
    """What is no endpoint is a ValueError that shows it and says what is wrong."""
    with pytest.raises(ValueError, match=what) as caught:
        Endpoint.parse(text)
    assert repr(text.strip()) in str(caught.value)


@pytest.mark.parametrize("wrong", [2379, None, b"127.0.0.1:2379", ("127.0.0.1", 2379)])
def test_endpoint_refuses_other_types(wrong: str) -> None:
    """An endpoint that is no str is a TypeError that says so."""
    with pytest.raises(TypeError, match=f"endpoint must be a str, not {type(wrong).__name__}"):
        Endpoint.parse(wrong)


def test_several_endpoints() -> None:
    """One, several with commas, a sequence or any other iterable mean the same."""
    one, two = Endpoint("a:1", "a:1", None), Endpoint("b:2", "b:2", None)
    assert parse_endpoints("a:1") == (one,)
    assert parse_endpoints(" a:1 , b:2") == (one, two)
    assert parse_endpoints("a:1,b:2, ") == (one, two)
    assert parse_endpoints(["a:1", "b:2"]) == (one, two)
    assert parse_endpoints(text for text in ("a:1", "b:2")) == (one, two)


@pytest.mark.parametrize(
    ("endpoints", "error", "text"),
    [
        ([], ValueError, "endpoints must name at least one"),
        ("", ValueError, "endpoints must name at least one"),
        ("a:1,,", ValueError, "no host"),
        (",a:1", ValueError, "no host"),
        (",", ValueError, "no host"),
        (["a:1", ""], ValueError, "no host"),
        ("a:1,b:2,a:1", ValueError, "endpoints names the same one twice: a:1, b:2, a:1"),
        (["a:1", "http://a:1"], ValueError, "endpoints names the same one twice"),
        (["a:1", 2], TypeError, "endpoint must be a str, not int"),
        (2379, TypeError, "endpoints must be .*, not int"),
        (None, TypeError, "endpoints must be .*, not NoneType"),
        (b"a:1", TypeError, "endpoint must be a str, not int"),
    ],
)
def test_several_endpoints_refuse(endpoints: str, error: type[Exception], text: str) -> None:
    """No endpoint, one twice, or what is none is refused by the parser and by the client alike."""
    with pytest.raises(error, match=text):
        parse_endpoints(endpoints)
    with pytest.raises(error, match=text):
        Client(endpoints)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"timeout": 0}, ValueError, "timeout must be above 0 seconds"),
        ({"timeout": "1"}, TypeError, "timeout must be a number of seconds or None, not str"),
        ({"keepalive_time": 4.9}, ValueError, "keepalive_time must be at least 5 seconds"),
        ({"keepalive_time": 0}, ValueError, "keepalive_time must be"),
        ({"keepalive_time": None}, ValueError, "keepalive_time must be at most"),
        ({"keepalive_time": "9"}, TypeError, "keepalive_time must be a number"),
        ({"keepalive_timeout": -1}, ValueError, "keepalive_timeout must be above 0 seconds"),
        ({"keepalive_timeout": None}, ValueError, "keepalive_timeout must be at most"),
        ({"keepalive_timeout": float("inf")}, ValueError, "keepalive_timeout must be"),
        ({"keepalive_time": float("inf")}, ValueError, "keepalive_time must be"),
    ],
)
def test_client_refuses_durations(
    options: dict[str, Any], error: type[Exception], text: str
) -> None:
    """A duration that the client cannot keep is refused by name when it is made."""
    with pytest.raises(error, match=text):
        Client("127.0.0.1:2379", **options)


def test_default_reads_as_such() -> None:
    """A timeout that was not given shows as DEFAULT in a signature."""
    assert repr(DEFAULT) == "DEFAULT"
