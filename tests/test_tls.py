"""TLS: what is verified, why a handshake fails, and certificates that change on disk."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aioetcd import TLS, Client, NoEndpointError
from aioetcd.testing import EtcdServer

pytestmark = pytest.mark.own_logic("what the client verifies, and what it says")

# What a call may take to say why there is no connection.
SOON = 3.0


def certificate(server: EtcdServer) -> Path:
    """The certificate that etcd has made for itself, which is its own authority."""
    return server.data_dir / "fixtures" / "client" / "cert.pem"


@pytest.fixture
async def secure() -> AsyncIterator[EtcdServer]:
    """A server that speaks TLS with a certificate of its own, which is its own authority."""
    async with EtcdServer(args=["--auto-tls"], quick=True) as server:
        if server.version_info > (3, 5, 1):
            pytest.skip("the certificate that a newer etcd makes for itself is no authority")
        yield server


async def why_not(client: Client) -> str:
    """Say why there is no connection."""
    async with client:
        with pytest.raises(NoEndpointError) as caught:
            await client.kv.get("k", timeout=SOON)
    return str(caught.value)


async def test_tls(secure: EtcdServer) -> None:
    """Calls, watches and renewals go over TLS, by `tls=` or by the endpoint's scheme."""
    tls = TLS(ca=certificate(secure))
    as_bytes = TLS(ca=certificate(secure).read_bytes())
    for endpoint, used in ((secure.endpoint, tls), (f"https://{secure.endpoint}", as_bytes)):
        async with (
            Client(endpoint, tls=used) as client,
            client.watch("k") as watch,
            client.session(ttl=5),
        ):
            await client.kv.put("k", "v")
            assert (await anext(watch)).kv.value == b"v"


@pytest.mark.fault("T1")
async def test_t1_why_a_handshake_fails(secure: EtcdServer, server: EtcdServer) -> None:
    """The error of a call names the cause, rather than a closed socket."""
    async with EtcdServer(args=["--auto-tls"], quick=True) as another:
        other = TLS(ca=certificate(another))
        assert "the server's certificate is refused" in await why_not(
            Client(secure.endpoint, tls=other)
        )
    wrong_name = TLS(ca=certificate(secure), server_name="etcd.example")
    assert "etcd.example" in await why_not(Client(secure.endpoint, tls=wrong_name))
    assert "it speaks TLS at this port" in await why_not(Client(secure.endpoint))
    plaintext = Client(server.endpoint, tls=TLS(ca=certificate(secure)))
    assert "it speaks no TLS at this port" in await why_not(plaintext)


@pytest.mark.fault("T2")
async def test_t2_certificates_that_change(secure: EtcdServer) -> None:
    """A server that comes back with another certificate is reached once that is on disk."""
    async with Client(secure.endpoint, tls=TLS(ca=certificate(secure)), timeout=20) as client:
        await client.kv.put("k", "v")
        before = certificate(secure).read_bytes()
        await secure.stop()
        for path in certificate(secure).parent.iterdir():
            path.unlink()
        await secure.start()
        assert certificate(secure).read_bytes() != before
        assert (await client.kv.get("k")).value == b"v"


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
