"""TLS: what is verified, why a handshake fails, and certificates that change on disk."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from aioetcd import TLS, Client, EtcdError, NoEndpointError
from aioetcd._transport import handshake
from aioetcd.testing import EtcdServer, FaultProxy
from tests.waiting import until

pytestmark = pytest.mark.own_logic("what the client verifies, and what it says")

# What a call may take to say why there is no connection.
SOON = 3.0


@pytest.fixture
async def secure() -> AsyncIterator[EtcdServer]:
    """A server that speaks TLS."""
    async with EtcdServer(tls=True, quick=True) as server:
        yield server


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the handshake that says why there is no connection take what a busy machine takes."""
    monkeypatch.setattr(handshake, "_PATIENCE", 10.0)


def trusting(server: EtcdServer) -> TLS:
    """What a client needs for a server."""
    assert server.tls is not None
    return server.tls


async def why_not(client: Client) -> str:
    """Say why there is no connection."""
    async with client:
        with pytest.raises(NoEndpointError) as caught:
            await client.kv.get("k", timeout=SOON)
    return str(caught.value)


async def test_tls(secure: EtcdServer) -> None:
    """Calls, watches and renewals go over TLS, by `tls=` or by the endpoint's scheme."""
    tls = trusting(secure)
    as_bytes = TLS(ca=Path(str(tls.ca)).read_bytes())
    for endpoint, used in ((secure.endpoint, tls), (f"https://{secure.endpoint}", as_bytes)):
        async with (
            Client(endpoint, tls=used) as client,
            client.watch("k") as watch,
            client.session(ttl=5),
        ):
            await client.kv.put("k", "v")
            assert (await anext(watch)).kv.value == b"v"


@pytest.mark.fault("T1")
@pytest.mark.usefixtures("patient")
async def test_t1_another_authority(secure: EtcdServer) -> None:
    """A certificate by somebody whom the client does not trust is refused, and said to be."""
    async with EtcdServer(tls=True, quick=True) as another:
        told = await why_not(Client(secure.endpoint, tls=trusting(another)))
    assert "the server's certificate is refused" in told


@pytest.mark.fault("T1")
@pytest.mark.usefixtures("patient")
async def test_t1_another_name(secure: EtcdServer) -> None:
    """A certificate for another name is refused; where that is the one expected, it is not."""
    _ = secure.renew_certificate(name="etcd.example")
    ca = trusting(secure).ca
    assert "127.0.0.1" in await why_not(Client(secure.endpoint, tls=TLS(ca=ca)))
    async with Client(secure.endpoint, tls=TLS(ca=ca, server_name="etcd.example")) as client:
        await client.kv.put("k", "v")


@pytest.mark.fault("T1")
@pytest.mark.usefixtures("patient")
async def test_t1_an_expired_certificate(secure: EtcdServer) -> None:
    """It is told as such."""
    expired = secure.renew_certificate(expired=True)
    assert "expired" in await why_not(Client(secure.endpoint, tls=expired))


@pytest.mark.fault("T1")
@pytest.mark.usefixtures("patient")
async def test_t1_plaintext_and_tls(secure: EtcdServer, server: EtcdServer) -> None:
    """Where one end speaks TLS and the other does not, it says which."""
    assert "it speaks TLS at this port" in await why_not(Client(secure.endpoint))
    told = await why_not(Client(server.endpoint, tls=trusting(secure)))
    assert "it speaks no TLS at this port" in told


@pytest.mark.fault("T1")
@pytest.mark.usefixtures("patient")
async def test_t1_the_clients_certificate() -> None:
    """A server that wants one says so when there is none, or one that has expired."""
    async with EtcdServer(tls="mutual", quick=True) as server:
        tls = trusting(server)
        async with Client(server.endpoint, tls=tls) as client:
            await client.kv.put("k", "v")
        assert "certificate" in await why_not(Client(server.endpoint, tls=TLS(ca=tls.ca)))
        assert server._authority is not None
        expired = server._authority.issue("client@aioetcd.test", expired=True)
        with_expired = TLS(ca=tls.ca, cert=expired, key=expired)
        assert "certificate" in await why_not(Client(server.endpoint, tls=with_expired))


@pytest.mark.fault("T2")
async def test_t2_certificates_are_rotated_under_a_client(secure: EtcdServer) -> None:
    """They are renewed on disk, and etcd comes back with them: no call that has 5 s fails."""
    failures: list[EtcdError] = []
    calls = 0
    over = False
    async with (
        FaultProxy(secure.endpoint) as proxy,
        Client(proxy.endpoint, tls=trusting(secure), timeout=5) as client,
        client.watch("k") as watch,
    ):

        async def read() -> None:
            nonlocal calls
            while not over:
                try:
                    await client.kv.get("k")
                except EtcdError as error:
                    failures.append(error)
                calls += 1

        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(read)
            for number in range(2):
                before = calls
                await until(lambda: calls > before + 50)  # noqa: B023
                connections = proxy.connections_total
                renewed = secure.renew_certificate(other_authority=True)
                shutil.copy(str(renewed.ca), str(trusting(secure).ca))
                await secure.restart()
                await client.kv.put("k", str(number))
                with anyio.fail_after(5):
                    assert (await anext(watch)).kv.value == str(number).encode()
                assert proxy.connections_total > connections, "nobody has seen the new one"
            over = True
    assert failures == []


@pytest.mark.fault("T2")
async def test_t2_the_new_certificate_comes_late(secure: EtcdServer) -> None:
    """Who waits is told why meanwhile, and goes on once the file is there."""
    async with (
        Client(secure.endpoint, tls=trusting(secure), timeout=20) as client,
        client.watch("k") as watch,
    ):
        await client.kv.put("k", "0")
        assert (await anext(watch)).kv.value == b"0"
        renewed = secure.renew_certificate(other_authority=True)
        await secure.restart()
        with pytest.raises(NoEndpointError, match="certificate is refused"):
            await client.kv.get("k", timeout=2)
        shutil.copy(str(renewed.ca), str(trusting(secure).ca))
        await client.kv.put("k", "1", timeout=5)
        with anyio.fail_after(5):
            assert (await anext(watch)).kv.value == b"1"


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"cert": "a.pem"}, ValueError, "cert needs key"),
        ({"key": "a.pem"}, ValueError, "key needs cert"),
        ({"ca": 7}, TypeError, "ca must be a path"),
        ({"server_name": b"x"}, TypeError, "server_name must be a str"),
        ({"ca": "/nowhere/ca.pem"}, ValueError, "ca: '/nowhere/ca.pem' cannot be read"),
        ({"ca": b"nonsense"}, ValueError, "ca holds no certificate"),
        ({"cert": b"no", "key": b"no"}, ValueError, "cert and key do not fit"),
    ],
)
def test_what_cannot_be_is_told_at_once(
    options: dict[str, str], error: type[Exception], text: str
) -> None:
    """A wrong file, or a certificate without its key, is refused when the client is made."""
    with pytest.raises(error, match=text):
        Client("a:1", tls=TLS(**options))


def test_a_key_is_not_shown() -> None:
    """PEM that is given itself does not show."""
    assert repr(TLS(ca="ca.pem", cert=b"c", key=b"k")) == "TLS(ca='ca.pem', cert=<PEM>, key=<PEM>)"
