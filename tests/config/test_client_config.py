"""What a client is told is checked once, and shown without secrets."""

from __future__ import annotations

from typing import Any

import pytest

from aioetcd import TLS, Client
from aioetcd._proto.rpc_pb2 import Member
from aioetcd._transport.credentials import Credentials
from aioetcd.config.client import Config
from aioetcd.config.endpoints import Endpoint, advertised, parse_endpoints
from aioetcd.config.user import User

OPTIONS: dict[str, Any] = {
    "timeout": 10,
    "keepalive_time": 5,
    "keepalive_timeout": 2.5,
    "tls": None,
    "username": None,
    "password": None,
    "auto_sync": None,
    "observers": (),
}


def test_it_holds_what_was_said() -> None:
    """Each argument is a field, as numbers of seconds and as what endpoints and users are."""
    tls = TLS(server_name="etcd")
    signed = OPTIONS | {"tls": tls, "username": "app", "password": "secret", "auto_sync": 60}
    config = Config.checked("a:1,b:2", **signed)
    assert [endpoint.name for endpoint in config.endpoints] == ["a:1", "b:2"]
    assert (config.timeout, config.keepalive_time, config.keepalive_timeout) == (10, 5, 2.5)
    assert (config.tls, config.user, config.auto_sync) == (tls, User("app", "secret"), 60)


@pytest.mark.parametrize("endless", [None, float("inf")])
def test_what_has_no_end_is_none(endless: float | None) -> None:
    """A timeout that never comes is none, and so is a sync that never comes."""
    config = Config.checked("a:1", **OPTIONS | {"timeout": endless, "auto_sync": endless})
    assert (config.timeout, config.auto_sync) == (None, None)


@pytest.mark.parametrize(
    ("option", "error", "text"),
    [
        ({"auto_sync": 0}, ValueError, "auto_sync must be above 0 seconds"),
        ({"auto_sync": "60"}, TypeError, "auto_sync must be a number of seconds or None, not str"),
        ({"auto_sync": True}, TypeError, "auto_sync must be a number of seconds or None, not bool"),
        ({"timeout": float("nan")}, ValueError, "timeout must be above 0 seconds"),
        ({"keepalive_time": 4.99}, ValueError, "keepalive_time must be at least 5 seconds, not"),
        ({"keepalive_timeout": 2_000_001}, ValueError, "keepalive_timeout must be at most 2000000"),
        ({"tls": True}, TypeError, "tls must be a TLS, not bool"),
        ({"username": "app"}, TypeError, "password must be a str, not None: .* go together"),
        ({"password": "secret"}, TypeError, "username must be a str, not None: .* go together"),
        ({"username": "app", "password": 7}, TypeError, "password must be a str, not int"),
        ({"username": "", "password": "secret"}, ValueError, "username must not be empty"),
        ({"username": "app", "password": ""}, ValueError, "password must not be empty"),
    ],
)
def test_it_refuses(option: dict[str, Any], error: type[Exception], text: str) -> None:
    """What a client cannot keep is refused by name, by the client as by its configuration."""
    for make in (
        lambda: Config.checked("a:1", **OPTIONS | option),
        lambda: Client("a:1", **option),
    ):
        with pytest.raises(error, match=text) as caught:
            make()
        assert "secret" not in str(caught.value)


def test_no_secret_is_shown() -> None:
    """Neither a password nor a key in memory is in what a configuration, or a client, shows."""
    signed = OPTIONS | {"username": "app", "password": "secret"}
    config = Config.checked("a:1", **signed)
    assert "app" in repr(config)
    client = Client("a:1", username="app", password="secret")
    for shown in (config, config.user, client):
        assert "secret" not in f"{shown!r} {shown}"


@pytest.mark.parametrize(
    ("endpoint", "plain", "with_tls"),
    [("a:1", False, True), ("http://a:1", False, False), ("https://a:1", True, True)],
)
def test_where_tls_is_spoken(endpoint: str, plain: bool, with_tls: bool) -> None:
    """An endpoint's own scheme decides, and where it has none, whether there is a `TLS`."""
    (parsed,) = parse_endpoints(endpoint)
    for tls, is_secure in ((None, plain), (TLS(), with_tls)):
        assert Credentials(tls, [], signs_in=lambda: False).is_secure(parsed) is is_secure


def member(*urls: str, name: str = "m", learner: bool = False) -> Member:
    """A member as the RPC gives it."""
    return Member(name=name, clientURLs=urls, isLearner=learner)


def targets(*members: Member, only_tls: bool = False) -> list[str]:
    """Where they say that clients may go."""
    return [endpoint.target for endpoint in advertised(members, only_tls=only_tls)]


def test_where_members_may_be_found() -> None:
    """All addresses of members that have started and are no learners, each once."""
    assert targets(
        member("http://a:1", "https://a:2"),
        member("http://b:1", learner=True),
        member("http://c:1", name=""),
        member(),
        member("http://a:1", "http://d:1"),
    ) == ["a:1", "a:2", "d:1"]
    assert advertised([member("https://a:1")], only_tls=False) == (
        Endpoint("https://a:1", "a:1", True),
    )
    assert targets() == []


def test_what_is_no_address_is_left_out() -> None:
    """What a member says that nobody can connect to does not keep the others from being used."""
    assert targets(member("nonsense", "ftp://a:1", "http://a", "http://a:1")) == ["a:1"]


def test_no_plaintext_beside_tls() -> None:
    """Whoever speaks TLS is not sent to where it is not spoken."""
    members = member("http://a:1", "https://a:2", "unix:/run/etcd.sock")
    assert targets(members, only_tls=True) == ["a:2", "unix:/run/etcd.sock"]
