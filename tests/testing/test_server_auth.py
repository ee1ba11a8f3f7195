"""EtcdServer and EtcdCluster with auth: nobody else gets in, and the kit asks as root."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from aioetcd import Client, EtcdError
from aioetcd.testing import EtcdCluster, EtcdServer, Recorder, observe
from aioetcd.testing._http import request
from tests.waiting import until

AUTH = ("root", "pw")


@pytest.fixture
async def auth_server() -> AsyncIterator[EtcdServer]:
    async with EtcdServer(quick=True, auth=AUTH) as server:
        yield server


async def bare(server: EtcdServer) -> tuple[int, bytes]:
    """Read a key as one who has no token."""
    return await request(server._client_port, "/v3/kv/range", b'{"key": "aw=="}')


def client_of(endpoint: str) -> Client:
    return Client(endpoint, username=AUTH[0], password=AUTH[1])


async def test_nobody_gets_in_without_the_password(auth_server: EtcdServer) -> None:
    """Who does not sign in, or with another password, is refused; root reads and writes."""
    status, told = await bare(auth_server)
    assert status != 200
    assert b"user name is empty" in told
    async with Client(auth_server.endpoint, username="root", password="other") as client:
        with pytest.raises(EtcdError, match="authentication failed"):
            await client.kv.put("k", "v")
    async with client_of(auth_server.endpoint) as client:
        await client.kv.put("k", "v")
    assert (await auth_server.gateway("kv/range", {"key": "aw=="}))["kvs"][0]["value"] == "dg=="


async def test_the_kit_asks_as_root(auth_server: EtcdServer) -> None:
    """What only root may, the kit's questions may; health and metrics need nobody."""
    assert (await auth_server.gateway("auth/user/list"))["users"] == ["root"]
    found = await auth_server.gateway("auth/user/get", {"name": "root"})
    assert found["roles"] == ["root"]
    await auth_server.gateway("kv/put", {"key": "aw=="})
    await auth_server.clear()
    assert "kvs" not in await auth_server.gateway("kv/range", {"key": "aw=="})
    assert await auth_server.is_healthy()
    assert (await auth_server.metrics())["etcd_server_has_leader"] == 1


async def test_a_void_token_is_renewed(auth_server: EtcdServer) -> None:
    """When its token is void, the kit signs in again; what is refused otherwise stays refused."""
    auth_server._gateway.token = "void.1"
    assert (await auth_server.gateway("auth/user/list"))["users"] == ["root"]
    assert auth_server._gateway.token != "void.1"
    with pytest.raises(RuntimeError, match="user name not found"):
        await auth_server.gateway("auth/user/get", {"name": "nobody"})


async def test_a_restart_keeps_auth(auth_server: EtcdServer) -> None:
    """Auth is of the data: it is on after a crash, and the kit signs in again."""
    await auth_server.kill()
    await auth_server.start()
    assert (await bare(auth_server))[0] != 200
    assert (await auth_server.gateway("auth/user/list"))["users"] == ["root"]


async def test_auth_that_a_test_changes(auth_server: EtcdServer) -> None:
    """A test may turn it off and on again, and the kit asks all the while."""
    await auth_server.gateway("auth/disable")
    assert (await bare(auth_server))[0] == 200
    await auth_server.gateway("kv/put", {"key": "aw=="})
    await auth_server.gateway("auth/enable")
    assert (await bare(auth_server))[0] != 200
    await auth_server.gateway("kv/put", {"key": "aw=="})


async def test_a_stream_signs_in(auth_server: EtcdServer) -> None:
    """The oracle watches a store with auth."""
    recorder = Recorder()
    async with observe(recorder, [auth_server]) as oracle:
        put = await auth_server.gateway("kv/put", {"key": "aw=="})
        await oracle.wait_for(int(put["header"]["revision"]))


async def test_with_tls() -> None:
    """Both go together, with a client's certificate as well."""
    async with EtcdServer(quick=True, auth=AUTH, tls="mutual") as server:
        assert (await server.gateway("auth/user/list"))["users"] == ["root"]
        username, password = AUTH
        async with Client(
            server.endpoint, tls=server.tls, username=username, password=password
        ) as client:
            await client.kv.put("k", "v")
        async with Client(server.endpoint, tls=server.tls) as client:
            with pytest.raises(EtcdError):
                await client.kv.put("k", "v")


@pytest.mark.fault("three members, and their elections")
async def test_a_cluster() -> None:
    """Every member wants the password, and the kit still finds the leader and moves it."""
    async with EtcdCluster(auth=AUTH, quick=False) as cluster:
        await cluster.move_leader(2)
        assert await cluster.leader() is cluster.members[2]
        for member, endpoint in zip(cluster.members, cluster.endpoints, strict=True):

            async def is_refused(member: EtcdServer = member) -> bool:
                return (await bare(member))[0] != 200

            await until(is_refused)
            async with client_of(endpoint) as client:
                await client.kv.put("k", "v")
        await cluster.members[0].restart()
        await cluster.wait_healthy()


@pytest.mark.own_logic("what is refused before anything starts")
async def test_only_root() -> None:
    """etcd enables auth only where root may come in, so that nobody else can be named."""
    for kind in (EtcdServer, EtcdCluster):
        with pytest.raises(ValueError, match="the user root, whom etcd wants, not 'app'"):
            kind(auth=("app", "pw"))
