"""Clients from URLs and from etcdctl's environment."""

from __future__ import annotations

from typing import Any

import pytest

from aioetcd import TLS, Client
from aioetcd.config.sources import from_env, from_url


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("etcd://a", {"endpoints": ["http://a:2379"]}),
        (
            "etcd://a:1,[::1],[::2]:3/",
            {"endpoints": ["http://a:1", "http://[::1]:2379", "http://[::2]:3"]},
        ),
        (
            "etcd://u%40x:p%3Aw@a/?timeout=5&keepalive_time=7.5",
            {
                "endpoints": ["http://a:2379"],
                "username": "u@x",
                "password": "p:w",
                "timeout": 5.0,
                "keepalive_time": 7.5,
            },
        ),
        ("etcd://a?timeout=none", {"endpoints": ["http://a:2379"], "timeout": None}),
        (
            "etcds://a/?ca=/x/ca.pem&server_name=etcd",
            {"endpoints": ["https://a:2379"], "tls": TLS(ca="/x/ca.pem", server_name="etcd")},
        ),
    ],
)
def test_url(url: str, options: dict[str, Any]) -> None:
    """A URL says what `Client` takes."""
    assert from_url(url) == options


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("http://a", "etcd:// or etcds://"),
        ("etcd://", "no host"),
        ("etcd://a/path", "no path"),
        ("etcd://a#x", "no path and no fragment"),
        ("etcd://u:s3cret@a/?user=x", "no option 'user': there are timeout"),
        ("etcd://a/?timeout=1&timeout=2", "'timeout' twice"),
        ("etcd://a/?timeout=soon", "timeout must be a number"),
        ("etcd://a/?ca=x", "'ca', which is for etcds"),
        ("etcds://a/?cert=x", "cert needs key"),
        ("etcd://u:s3cret@a:99999", "cannot be parsed"),
    ],
)
def test_url_refuses(url: str, text: str) -> None:
    """What is no such URL says what is wrong, and shows no password."""
    with pytest.raises(ValueError, match=text) as caught:
        Client.from_url(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("environ", "options"),
    [
        ({}, {}),
        ({"ETCDCTL_ENDPOINTS": "a:1,b:2", "ETCDCTL_WRITE_OUT": "json"}, {"endpoints": "a:1,b:2"}),
        ({"ETCDCTL_USER": "u:p:w"}, {"username": "u", "password": "p:w"}),
        ({"ETCDCTL_USER": "u", "ETCDCTL_PASSWORD": "p"}, {"username": "u", "password": "p"}),
        ({"ETCDCTL_COMMAND_TIMEOUT": "1m30.5s"}, {"timeout": 90.5}),
        ({"ETCDCTL_KEEPALIVE_TIME": "7500ms"}, {"keepalive_time": 7.5}),
        (
            {"ETCDCTL_CACERT": "ca", "ETCDCTL_CERT": "c", "ETCDCTL_KEY": "k"},
            {"tls": TLS("ca", "c", "k")},
        ),
        ({"ETCDCTL_INSECURE_SKIP_TLS_VERIFY": "false"}, {}),
    ],
)
def test_environment(environ: dict[str, str], options: dict[str, Any]) -> None:
    """etcdctl's variables say what `Client` takes."""
    assert from_env(environ) == options


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({"ETCDCTL_USER": "u"}, "ETCDCTL_USER needs a password"),
        ({"ETCDCTL_COMMAND_TIMEOUT": "5"}, "ETCDCTL_COMMAND_TIMEOUT must be a duration"),
        ({"ETCDCTL_COMMAND_TIMEOUT": "5s5"}, "ETCDCTL_COMMAND_TIMEOUT must be a duration"),
        (
            {"ETCDCTL_INSECURE_SKIP_TLS_VERIFY": "true"},
            "a server that is not verified",
        ),
        ({"ETCDCTL_DISCOVERY_SRV": "example.com"}, "name the endpoints"),
        ({"ETCDCTL_KEEPALIVE_TIME": "2s"}, "keepalive_time must be at least 5"),
        ({"ETCDCTL_CERT": "c"}, "cert needs key"),
    ],
)
def test_environment_refuses(environ: dict[str, str], text: str) -> None:
    """What cannot be read, or is not there, is refused by name."""
    with pytest.raises(ValueError, match=text):
        Client.from_env(environ)
