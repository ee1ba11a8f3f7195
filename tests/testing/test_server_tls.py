"""EtcdServer and EtcdCluster with TLS: who has the files gets in, and the kit asks as before."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from aioetcd import TLS, Client
from aioetcd.testing import EtcdCluster, EtcdServer
from aioetcd.testing._http import request

pytestmark = pytest.mark.own_logic("which certificates there are is decided here")


@pytest.fixture
async def tls_server() -> AsyncIterator[EtcdServer]:
    async with EtcdServer(quick=True, tls=True) as server:
        yield server


@pytest.fixture
async def mutual_server() -> AsyncIterator[EtcdServer]:
    async with EtcdServer(quick=True, tls="mutual") as server:
        yield server


def tls_of(server: EtcdServer) -> TLS:
    assert server.tls is not None
    return server.tls


async def shaken(server: EtcdServer, tls: TLS) -> None:
    """Shake hands as a client with these files does, on a connection of its own.

    A server of TLS 1.3 refuses a client's certificate only after the handshake: read on.
    """
    assert isinstance(tls.ca, str)
    context = ssl.create_default_context(cafile=tls.ca)
    if tls.cert is not None:
        assert isinstance(tls.cert, str)
        assert isinstance(tls.key, str)
        context.load_cert_chain(tls.cert, tls.key)

    def shake() -> None:
        host, _, port = server.endpoint.partition(":")
        with (
            socket.create_connection((host, int(port)), timeout=10) as sock,
            context.wrap_socket(sock, server_hostname=host) as wrapped,
        ):
            wrapped.sendall(b"GET /version HTTP/1.0\r\n\r\n")
            assert b"etcdserver" in wrapped.recv(65_536)

    await anyio.to_thread.run_sync(shake)


async def put(client: Client) -> None:
    await client.kv.put("k", "v", timeout=10)


@pytest.mark.contract
@pytest.mark.parametrize("tls", [True, "mutual"])
async def test_a_client_gets_in_with_the_files(tls: bool) -> None:
    """What the server offers as `tls` is what a client needs, and the kit asks as without TLS."""
    async with EtcdServer(quick=True, tls=tls) as server:
        assert server.client_url == f"https://{server.endpoint}"
        async with Client(server.endpoint, tls=server.tls) as client:
            await put(client)
        assert (await server.gateway("kv/range", {"key": "aw=="}))["kvs"][0]["value"] == "dg=="
        assert await server.is_healthy()
        assert (await server.metrics())["etcd_server_has_leader"] == 1
        watched = server.gateway_stream("watch", {"create_request": {"key": "aw=="}})
        assert (await anext(watched))["result"]["created"]
        await watched.aclose()  # type: ignore[attr-defined]
        await server.clear()
        assert "kvs" not in await server.gateway("kv/range", {"key": "aw=="})


async def test_only_tls_is_served(tls_server: EtcdServer) -> None:
    """Who speaks plaintext, or trusts another authority, does not get in."""
    with contextlib.suppress(ConnectionResetError):  # that may come before it is told
        assert (await request(tls_server._client_port, "/version"))[0] == 400
    await shaken(tls_server, tls_of(tls_server))
    async with EtcdServer(quick=True, tls=True) as other:
        with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
            await shaken(tls_server, tls_of(other))


@pytest.mark.contract
async def test_mutual_wants_a_certificate(mutual_server: EtcdServer) -> None:
    """With ``tls="mutual"`` a client without a certificate, or with another's, is refused."""
    await shaken(mutual_server, tls_of(mutual_server))
    ca = tls_of(mutual_server).ca
    with pytest.raises(OSError, match=r"(?i)certificate|reset|eof"):
        await shaken(mutual_server, TLS(ca=ca))
    async with EtcdServer(quick=True, tls="mutual") as other:
        stranger = tls_of(other)
        with pytest.raises(OSError, match=r"(?i)unknown.ca|bad.certificate|reset|eof"):
            await shaken(mutual_server, TLS(ca=ca, cert=stranger.cert, key=stranger.key))


async def test_files_are_the_servers(mutual_server: EtcdServer) -> None:
    """They are in its folder, for its user alone, stay for a restart, and go with it."""
    tls = tls_of(mutual_server)
    files = [Path(str(path)) for path in (tls.ca, tls.cert, tls.key)]
    assert {path.parent.parent for path in files} == {mutual_server.data_dir.parent}
    modes = {stat.S_IMODE(path.stat().st_mode) for path in files[0].parent.iterdir()}
    assert modes == {0o600}
    before = [path.read_bytes() for path in files]
    await mutual_server.restart()
    assert (mutual_server.tls, [path.read_bytes() for path in files]) == (tls, before)
    await shaken(mutual_server, tls)
    await mutual_server.aclose()
    assert not any(path.exists() for path in files)
    with pytest.raises(RuntimeError, match="no certificates before its start"):
        _ = mutual_server.tls


async def test_there_are_none_without(server: EtcdServer) -> None:
    """A server without TLS has nothing to offer and nothing to renew."""
    assert server.tls is None
    with pytest.raises(RuntimeError, match="without tls="):
        server.renew_certificate()
    with pytest.raises(RuntimeError, match="before its start"):
        EtcdServer(tls=True).renew_certificate()


@pytest.mark.contract
@pytest.mark.parametrize("tls", [True, "mutual"])
async def test_an_expired_certificate(tls: bool) -> None:
    """From its renewal on nobody new trusts it; the kit asks on, and the next renewal mends it."""
    async with EtcdServer(quick=True, tls=tls) as server:
        await server.gateway("kv/put", {"key": "aw=="})  # from now on the gateway is connected
        assert server.renew_certificate(expired=True) == server.tls
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            await shaken(server, tls_of(server))
        await server.gateway("kv/put", {"key": "aw=="})
        assert await server.is_healthy()
        server.renew_certificate()
        await shaken(server, tls_of(server))


async def test_a_certificate_for_another_name(tls_server: EtcdServer) -> None:
    """It is good for that name, and for the endpoint's host no longer."""
    tls = tls_of(tls_server)
    tls_server.renew_certificate(name="etcd.example")
    with pytest.raises(ssl.SSLCertVerificationError, match=r"not valid for '127\.0\.0\.1'"):
        await shaken(tls_server, tls)
    async with Client(
        tls_server.endpoint, tls=TLS(ca=tls.ca, server_name="etcd.example")
    ) as client:
        await put(client)


@pytest.mark.parametrize("tls", [True, "mutual"])
async def test_a_certificate_by_another_authority(tls: bool) -> None:
    """Only who is given that authority as well trusts it; a client's own certificate stays good."""
    async with EtcdServer(quick=True, tls=tls) as server:
        before = tls_of(server)
        renewed = server.renew_certificate(other_authority=True)
        assert server.tls == before
        assert renewed.ca != before.ca
        with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
            await shaken(server, before)
        await shaken(server, renewed)
        shutil.copy(str(renewed.ca), str(before.ca))
        await shaken(server, before)


async def test_open_connections_stay(tls_server: EtcdServer) -> None:
    """A renewal is for new connections: a client that is connected does not notice."""
    async with Client(tls_server.endpoint, tls=tls_server.tls) as client:
        await put(client)
        tls_server.renew_certificate(expired=True)
        await put(client)
        assert client.stats().reconnects == 0


async def test_data_of_ones_own(tmp_path: Path) -> None:
    """Beside a data directory that is kept, each server makes its files anew."""
    async with EtcdServer(quick=True, tls=True, data_dir=tmp_path / "etcd") as server:
        tls = tls_of(server)
        before = Path(str(tls.ca)).read_bytes()
        await shaken(server, tls)
    async with EtcdServer(quick=True, tls=True, data_dir=tmp_path / "etcd") as server:
        assert server.tls == tls
        assert Path(str(tls.ca)).read_bytes() != before
        await shaken(server, tls)


@pytest.mark.fault("three members, and their elections")
async def test_a_cluster() -> None:
    """One `tls` is good for every member, through its proxy, and the kit asks them all."""
    async with EtcdCluster(tls="mutual", quick=False) as cluster:
        await cluster.move_leader(1)
        assert await cluster.leader() is cluster.members[1]
        for member, endpoint in zip(cluster.members, cluster.endpoints, strict=True):
            async with Client(endpoint, tls=cluster.tls) as client:
                await put(client)
            async with Client(endpoint, tls=member.tls) as client:
                await put(client)
        listed = (await cluster.members[0].gateway("cluster/member/list"))["members"]
        advertised = {url for entry in listed for url in entry["clientURLs"]}
        assert advertised == {f"https://{endpoint}" for endpoint in cluster.endpoints}
        assert all(url.startswith("http://") for entry in listed for url in entry["peerURLs"])
    assert EtcdCluster().tls is None
    assert EtcdCluster(tls=True).tls != cluster.tls


async def test_arguments_that_exclude_one_another() -> None:
    """Certificates are given or made, not both; and there is no third kind."""
    for kind in (EtcdServer, EtcdCluster):
        with pytest.raises(ValueError, match="with tls= sets auto-tls by itself"):
            kind(tls=True, args=["--auto-tls"])
        with pytest.raises(ValueError, match="tls must be True, False or 'mutual'"):
            kind(tls="both")  # type: ignore[arg-type]


async def test_certificates_of_ones_own() -> None:
    """A server with certificates by `args` answers the kit as well."""
    async with EtcdServer(quick=True, args=["--auto-tls"]) as server:
        await server.gateway("kv/put", {"key": "aw=="})
        assert server.tls is None


def test_without_trustme(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the package is missing, it is said how to get it, and only who wants TLS is told."""
    monkeypatch.setitem(sys.modules, "trustme", None)
    EtcdServer()
    with pytest.raises(ModuleNotFoundError, match=r"needs the package trustme.*aioetcd\[testing\]"):
        EtcdServer(tls=True)
