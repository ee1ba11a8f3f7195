"""Who speaks plaintext to a port that speaks TLS is told so, and nobody else is."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from aioetcd import Client, NoEndpointError
from aioetcd._transport import handshake
from aioetcd._transport.handshake import speaks_tls
from aioetcd.testing import EtcdServer
from tests.waiting import until

_TOLD = "it speaks TLS at this port"


async def test_a_plaintext_client_at_a_tls_port_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of a call names TLS, rather than a closed socket alone."""
    monkeypatch.setattr(handshake, "_PATIENCE", 10.0)  # on a busy machine it takes a while
    async with EtcdServer(args=["--auto-tls"], quick=True) as server:
        async with Client(server.endpoint) as client, anyio.create_task_group() as group:
            group.start_soon(client.kv.get, "k")  # has it looked at
            await until(lambda: _TOLD in str(client._transport.unreachable()))
            with pytest.raises(NoEndpointError, match=_TOLD) as caught:
                await client.kv.get("k", timeout=0.2)
            assert _TOLD in caught.value.reasons[server.endpoint]
            group.cancel_scope.cancel()
        assert await speaks_tls(server.endpoint)
    assert not await speaks_tls(server.endpoint)


async def test_who_just_closes_speaks_no_tls() -> None:
    """A closed connection is not taken for TLS."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        endpoint = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with Client(endpoint, timeout=0.5) as client:
            with pytest.raises(NoEndpointError) as caught:
                await client.kv.get("k")
        assert _TOLD not in str(caught.value)
        assert not await speaks_tls(endpoint)
    assert not await speaks_tls("unix:/nowhere")


async def test_an_etcd_without_tls(server: EtcdServer) -> None:
    """An etcd that speaks plaintext speaks no TLS."""
    assert not await speaks_tls(server.endpoint)
