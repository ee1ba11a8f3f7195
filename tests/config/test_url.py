"""A URL says what a client's arguments say, or is refused without a word of its password."""

from __future__ import annotations

import traceback
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aioetcd import TLS, Client
from aioetcd.config.url import read_url


@pytest.mark.parametrize(
    ("url", "described"),
    [
        ("etcd://a:1", {"endpoints": ["a:1"]}),
        ("  ETCD://a:1/ \n", {"endpoints": ["a:1"]}),
        ("etcd://a", {"endpoints": ["a:2379"]}),
        ("etcd://a,b:2,[::1],[fd00::7]:3/", {"endpoints": "a:2379 b:2 [::1]:2379 [fd00::7]:3"}),
        ("etcds://a", {"endpoints": ["a:2379"], "tls": TLS()}),
        ("etcd://u:p@a", {"endpoints": ["a:2379"], "username": "u", "password": "p"}),
        (
            "etcd://u%3Av%40w:p%2Fq%3F%23%25%20%C3%A9:,+@a",
            {"endpoints": ["a:2379"], "username": "u:v@w", "password": "p/q?#% é:,+"},
        ),
        (
            "etcd://a?timeout=5&keepalive_time=7.5&keepalive_timeout=1e1&auto_sync=60",
            {
                "endpoints": ["a:2379"],
                "timeout": 5,
                "keepalive_time": 7.5,
                "keepalive_timeout": 10,
                "auto_sync": 60,
            },
        ),
        (
            "etcds://u:p@a:1,b:2/?timeout=5&ca=/x/ca.pem&cert=/c++/%41%26.pem&key=k&server_name=e",
            {
                "endpoints": ["a:1", "b:2"],
                "username": "u",
                "password": "p",
                "timeout": 5,
                "tls": TLS(ca="/x/ca.pem", cert="/c++/A&.pem", key="k", server_name="e"),
            },
        ),
    ],
)
def test_url(url: str, described: dict[str, Any]) -> None:
    """Each part of a URL is an argument."""
    if isinstance(described["endpoints"], str):
        described = described | {"endpoints": described["endpoints"].split()}
    assert read_url(url) == described


def test_client() -> None:
    """A client of a URL goes where it says, with the deadline that it says."""
    client = Client.from_url("etcd://app:secret@a:1,b/?timeout=3&auto_sync=inf")
    assert sorted(client.stats().connections) == ["a:1", "b:2379"]
    assert client._transport.timeout == 3
    assert client._transport._config.auto_sync is None
    assert "secret" not in repr(client)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("", "must begin with etcd://"),
        ("a:1", "must begin with etcd://"),
        ("http://a:1", "must begin with etcd:// .* or etcds://"),
        ("etcd://", "host 1 of the URL"),
        ("etcd:///", "host 1 of the URL"),
        ("etcd://a,", "host 2 of the URL"),
        ("etcd://a:", "host 1 of the URL"),
        ("etcd://a:0", "host 1 of the URL"),
        ("etcd://a,b:x", "host 2 of the URL"),
        ("etcd://::1", "host 1 of the URL"),
        ("etcd://a b", "host 1 of the URL"),
        ("etcd://a,a:2379", "names the same one twice"),
        ("etcd://a/v3", "must not have a path"),
        ("etcd://a#x", "%23 for a '#'"),
        ("etcd://a?tiemout=5", "unknown option 'tiemout'; known are auto_sync, ca, cert, keep"),
        ("etcd://a?", None),
        ("etcd://a?timeout=5&timeout=5", "option timeout twice; .*are auto_sync, ca, cert"),
        ("etcd://a?timeout", "no value for the option timeout"),
        ("etcd://a?timeout=", "no value for the option timeout"),
        ("etcd://a?timeout=5s", "timeout must be a number of seconds, not '5s'"),
        ("etcd://a?timeout=0", "timeout must be above 0"),
        ("etcd://a?timeout=nan", "timeout must be above 0"),
        ("etcd://a?keepalive_time=2", "keepalive_time must be at least 5 seconds"),
        ("etcd://a?ca=/x", "ca: only a URL that begins with etcds://"),
        ("etcds://a?cert=/x", "cert needs key"),
        ("etcds://a?ca=%zz", "the option ca in the URL has a '%'"),
        ("etcds://a?ca=%ff", "the option ca in the URL is no UTF-8"),
        ("etcds://a?ca=/nowhere/ca.pem", "ca: '/nowhere/ca.pem' cannot be read"),
    ],
)
def test_refused(url: str, text: str | None) -> None:
    """What is no such URL is a ValueError that says what is wrong, and what would be right."""
    if text is None:
        Client.from_url(url)
        return
    with pytest.raises(ValueError, match=text):
        Client.from_url(url)


def test_other_types_are_refused() -> None:
    """What is no str is a TypeError."""
    url: Any = b"etcd://a"
    with pytest.raises(TypeError, match="the URL must be a str, not bytes"):
        Client.from_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "etcd://app@a",
        "etcd://app:@a",
        "etcd://:hush@a",
        "etcd://@a",
        "etcd://app:hu@sh@a",
        "etcd://app:hu/sh@a",
        "etcd://app:12/hush@a",
        "etcd://app:12?hush@a",
        "etcd://app:12?timeout=hush@a",
        "etcd://app:12#hush@a",
        "etcd://app:hush%@a",
        "etcd://app:hush%ff@a",
        "etcd://app:hush@a:x",
        "etcd://app:hush@",
        "etcd://app:hush@a,app:hush@b",
        "etcd://app:hush@a/x",
        "etcd://app:hush@a?timeout=-1",
        "etcd://app:hush",
        "http://app:hush@a",
        "app:hush@a:1",
    ],
)
def test_no_error_shows_a_password(url: str) -> None:
    """However a URL is wrong, what is said of it has no user's name and no password in it."""
    with pytest.raises(ValueError, match=r"the URL|timeout") as caught:
        Client.from_url(url)
    told = "".join(traceback.format_exception_only(caught.value))
    for part in ("hush", "sh@", "'hu", "'12'", "app"):
        assert part not in told


@given(username=st.text(min_size=1), password=st.text(min_size=1))
@example(username="%41", password="%")
def test_every_password_has_a_url(username: str, password: str) -> None:
    """What is percent-encoded comes out as it was."""
    from urllib.parse import quote

    described = read_url(f"etcd://{quote(username, safe='')}:{quote(password, safe='')}@a")
    assert (described["username"], described["password"]) == (username, password)


@given(password=st.text("abc:/?#@%&=,[]0"))
def test_no_error_shows_what_stands_before_an_at(password: str) -> None:
    """A password that is not encoded is taken as it is, or refused in words without it."""
    told, described = "", None
    try:
        described = read_url(f"etcd://app:SECRET{password}@a")
    except ValueError as error:
        told = str(error)
    assert "SECRET" not in told
    if described is not None:
        assert str(described["password"]).startswith("SECRET")
        assert described["endpoints"] == ["a:2379"]
