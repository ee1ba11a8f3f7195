"""What a connection is made with."""

from __future__ import annotations

import asyncio

import pytest

from aioetcd._transport import handshake
from aioetcd._transport.credentials import Credentials
from aioetcd.config.endpoints import Endpoint
from aioetcd.config.tls import TLS
from tests.waiting import until


@pytest.mark.parametrize(
    ("endpoint", "tls", "signs_in", "warns"),
    [
        ("10.0.0.1:2379", None, True, True),
        ("etcd.example:2379", None, True, True),
        ("http://etcd.example:2379", TLS(), True, True),
        ("10.0.0.1:2379", None, False, False),
        ("10.0.0.1:2379", TLS(), True, False),
        ("https://10.0.0.1:2379", None, True, False),
        ("127.0.0.1:2379", None, True, False),
        ("[::1]:2379", None, True, False),
        ("localhost:2379", None, True, False),
        ("unix:/run/etcd.sock", None, True, False),
    ],
)
def test_a_password_in_plaintext_is_warned_of_once(
    endpoint: str, tls: TLS | None, signs_in: bool, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Where it leaves the machine without TLS."""
    credentials = Credentials(tls, (), signs_in=lambda: signs_in)
    for _ in range(2):
        credentials.connect(Endpoint.parse(endpoint))
    assert caplog.text.count("in plaintext") == warns


@pytest.mark.parametrize(
    ("endpoint", "tls", "is_secure"),
    [
        ("a:1", None, False),
        ("a:1", TLS(), True),
        ("http://a:1", TLS(), False),
        ("https://a:1", None, True),
        ("unix:/x", TLS(), True),
        ("unixs:/x", None, True),
    ],
)
def test_where_tls_is_spoken(endpoint: str, tls: TLS | None, is_secure: bool) -> None:
    """An endpoint's scheme decides for itself, whatever the others say; else the client does."""
    assert Credentials(tls, ()).is_secure(Endpoint.parse(endpoint)) is is_secure


async def test_a_port_is_asked_once_whether_it_speaks_tls() -> None:
    """Else each attempt to connect is two. After there was a connection it is asked again."""
    asked = 0

    def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        writer.close()

    async with await asyncio.start_server(close, "127.0.0.1", 0) as server:
        endpoint = Endpoint.parse(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        credentials = Credentials(None, ())
        for _ in range(3):
            assert await credentials.explain(endpoint, "Socket closed") == "Socket closed"
        assert asked == 1
        credentials.answered(endpoint)
        await credentials.explain(endpoint, "Socket closed")
        assert asked == 2


async def test_a_port_that_has_not_said_it_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine it may have been late; and where nobody listened somebody may come."""
    monkeypatch.setattr(handshake, "_PATIENCE", 0.05)
    asked = 0

    def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        writers.append(writer)

    writers: list[asyncio.StreamWriter] = []
    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        endpoint = Endpoint.parse(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        credentials = Credentials(None, ())
        for _ in range(2):
            assert await credentials.explain(endpoint, "Socket closed") == "Socket closed"
        await until(lambda: asked == 2)
        for writer in writers:
            writer.close()
