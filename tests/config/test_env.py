"""etcdctl's environment makes the client that etcdctl would be, or is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from aioetcd import TLS, Client
from aioetcd.config.env import read_env

HERE = {"endpoints": ["127.0.0.1:2379"]}


@pytest.mark.parametrize(
    ("environ", "described"),
    [
        ({}, {}),
        ({"HOME": "/root", "ENDPOINTS": "a:1"}, {}),
        ({"ETCDCTL_ENDPOINTS": "", "ETCDCTL_USER": "", "ETCDCTL_CACERT": ""}, {}),
        ({"ETCDCTL_ENDPOINTS": "a:1, https://b:2"}, {"endpoints": ["a:1", "https://b:2"]}),
        ({"ETCDCTL_USER": "app:pass:word"}, {"username": "app", "password": "pass:word"}),
        (
            {"ETCDCTL_USER": "app:x", "ETCDCTL_PASSWORD": "word"},
            {"username": "app:x", "password": "word"},
        ),
        ({"ETCDCTL_CACERT": "/ca"}, {"tls": TLS(ca="/ca")}),
        ({"ETCDCTL_CERT": "/c", "ETCDCTL_KEY": "/k"}, {"tls": TLS(cert="/c", key="/k")}),
        ({"ETCDCTL_CACERT": "/ca", "ETCDCTL_INSECURE_TRANSPORT": "true"}, {"tls": TLS(ca="/ca")}),
        ({"ETCDCTL_INSECURE_TRANSPORT": "false"}, {"tls": TLS()}),
        ({"ETCDCTL_INSECURE_TRANSPORT": "1"}, {}),
        ({"ETCDCTL_INSECURE_SKIP_TLS_VERIFY": "F"}, {}),
        (
            {
                "ETCDCTL_COMMAND_TIMEOUT": "1m30s",
                "ETCDCTL_KEEPALIVE_TIME": "5s",
                "ETCDCTL_KEEPALIVE_TIMEOUT": "500ms",
            },
            {"timeout": 90, "keepalive_time": 5, "keepalive_timeout": 0.5},
        ),
        ({"ETCDCTL_COMMAND_TIMEOUT": "+1.5h2m.5s"}, {"timeout": 5520.5}),
        ({"ETCDCTL_COMMAND_TIMEOUT": "250000us"}, {"timeout": 0.25}),
        ({"ETCDCTL_COMMAND_TIMEOUT": "250000µs"}, {"timeout": 0.25}),
        ({"ETCDCTL_WRITE_OUT": "json", "ETCDCTL_HEX": "true", "ETCDCTL_API": "3"}, {}),
    ],
)
def test_environment(environ: dict[str, str], described: dict[str, Any]) -> None:
    """Each variable is an argument; what is not set, or empty, is left to the client."""
    assert read_env(environ) == HERE | described


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({"ENDPOINTS": "a"}, "ETCDCTL_ENDPOINTS: endpoint 'a' has no port"),
        ({"ENDPOINTS": "http://u:hush@a:1"}, "ETCDCTL_ENDPOINTS must not .* use ETCDCTL_USER"),
        ({"USER": "hush"}, "ETCDCTL_USER must be name:password"),
        ({"USER": ":hush"}, "ETCDCTL_USER must be name:password"),
        ({"USER": "hush:"}, "ETCDCTL_USER must be name:password"),
        ({"PASSWORD": "hush"}, "ETCDCTL_USER must be .* a name with ETCDCTL_PASSWORD"),
        ({"CERT": "/c"}, "ETCDCTL_CERT and ETCDCTL_KEY go together"),
        ({"KEY": "/k"}, "ETCDCTL_CERT and ETCDCTL_KEY go together"),
        ({"CACERT": "/nowhere/ca.pem"}, "ca: '/nowhere/ca.pem' cannot be read"),
        ({"INSECURE_TRANSPORT": "yes"}, "ETCDCTL_INSECURE_TRANSPORT must be true or false"),
        ({"INSECURE_SKIP_TLS_VERIFY": "true"}, "ETCDCTL_INSECURE_SKIP_TLS_VERIFY: .* no pretence"),
        ({"INSECURE_SKIP_TLS_VERIFY": "on"}, "ETCDCTL_INSECURE_SKIP_TLS_VERIFY must be true or"),
        ({"DISCOVERY_SRV": "example.com"}, r"ETCDCTL_DISCOVERY_SRV needs DNS: .*from_srv"),
        ({"DISCOVERY_SRV_NAME": "x"}, r"ETCDCTL_DISCOVERY_SRV_NAME needs DNS: .*from_srv"),
        ({"AUTH_JWT_TOKEN": "hush"}, "ETCDCTL_AUTH_JWT_TOKEN is not supported"),
        ({"COMMAND_TIMEOUT": "0"}, "ETCDCTL_COMMAND_TIMEOUT must be above 0"),
        ({"COMMAND_TIMEOUT": "0s"}, "ETCDCTL_COMMAND_TIMEOUT must be above 0"),
        ({"COMMAND_TIMEOUT": "5"}, "ETCDCTL_COMMAND_TIMEOUT must be a duration such as 5s"),
        ({"COMMAND_TIMEOUT": "-5s"}, "ETCDCTL_COMMAND_TIMEOUT must be a duration"),
        ({"COMMAND_TIMEOUT": "5 s"}, "ETCDCTL_COMMAND_TIMEOUT must be a duration"),
        ({"COMMAND_TIMEOUT": "5s "}, "ETCDCTL_COMMAND_TIMEOUT must be a duration"),
        (
            {"COMMAND_TIMEOUT": "\N{ARABIC-INDIC DIGIT FIVE}s"},
            "ETCDCTL_COMMAND_TIMEOUT must be a duration",
        ),
        ({"KEEPALIVE_TIME": "2s"}, "ETCDCTL_KEEPALIVE_TIME must be at least 5 seconds, not 2"),
        ({"KEEPALIVE_TIME": "1000h"}, "ETCDCTL_KEEPALIVE_TIME must be at most"),
        ({"KEEPALIVE_TIMEOUT": "x"}, "ETCDCTL_KEEPALIVE_TIMEOUT must be a duration"),
    ],
)
def test_refused(environ: dict[str, str], text: str) -> None:
    """What cannot be kept is refused by the variable's name, and never shows a secret."""
    with pytest.raises(ValueError, match=text) as caught:
        Client.from_env({f"ETCDCTL_{name}": value for name, value in environ.items()})
    assert "hush" not in str(caught.value)


def test_the_process_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an argument the process's own environment is read."""
    monkeypatch.setenv("ETCDCTL_ENDPOINTS", "a:1,b:2")
    monkeypatch.setenv("ETCDCTL_COMMAND_TIMEOUT", "3s")
    client = Client.from_env()
    assert sorted(client.stats().connections) == ["a:1", "b:2"]
    assert client._transport.timeout == 3
