"""The endpoints, and the user, may be others while a client runs: nothing is lost with the old."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import anyio
import pytest

from aioetcd import (
    AuthenticationError,
    AuthError,
    Client,
    ClientClosedError,
    NoEndpointError,
)
from aioetcd._transport import sync
from aioetcd.testing import EtcdCluster, EtcdServer, FaultProxy
from tests._transport.weather import was_refused
from tests.waiting import until


def endpoints_of(client: Client) -> list[str]:
    """Where a client goes, by name."""
    return sorted(client.stats().connections)


@pytest.fixture
async def other(server: EtcdServer) -> AsyncIterator[FaultProxy]:
    """Another way to the session's etcd."""
    async with FaultProxy(server.endpoint) as proxy:
        yield proxy


# --- set_endpoints -----------------------------------------------------------------------------


async def test_calls_move(proxy: FaultProxy, other: FaultProxy) -> None:
    """The next call goes to the new endpoint, and the connection to the old one is closed."""
    async with Client(proxy.endpoint) as client:
        await client.kv.put("k", "1")
        client.set_endpoints([other.endpoint])
        assert endpoints_of(client) == [other.endpoint]
        await client.kv.put("k", "2")
        assert other.connections_open == 1
        await until(lambda: proxy.connections_open == 0)


async def test_who_stays_keeps_the_connection(proxy: FaultProxy, other: FaultProxy) -> None:
    """An endpoint that is in both lists keeps its connection, however it is written."""
    async with Client(proxy.endpoint) as client:
        await client.kv.get("k")
        client.set_endpoints([other.endpoint, f"http://{proxy.endpoint}"])
        await client.kv.get("k")
        assert client.stats().endpoint == proxy.endpoint
        assert (proxy.connections_total, other.connections_total) == (1, 0)


async def test_no_call_sees_no_endpoint(proxy: FaultProxy, other: FaultProxy) -> None:
    """While the list changes again and again, every write is answered, and is there once."""
    done = False

    async with Client(proxy.endpoint) as client, anyio.create_task_group() as group:

        async def write(name: str) -> None:
            number = 0
            while not done:
                number += 1
                await client.kv.put(name, str(number))
            answer = await client.kv.get(name)
            assert answer.kv is not None
            assert (answer.kv.value, answer.kv.version) == (str(number).encode(), number)

        async def made(calls: int) -> None:
            await until(lambda: client.stats().calls >= calls)

        for task in range(4):
            group.start_soon(write, f"k{task}")
        for number in range(1, 21):
            await made(client.stats().calls + 3)
            client.set_endpoints((other if number % 2 else proxy).endpoint)
        done = True


async def test_whoever_waits_uses_the_new_list(proxy: FaultProxy, other: FaultProxy) -> None:
    """A call that waits because nobody can be reached is answered by who is new in the list."""
    proxy.refuse()
    async with Client(proxy.endpoint) as client, anyio.create_task_group() as group:
        group.start_soon(client.kv.put, "k", "v")
        await until(lambda: was_refused(client._transport))
        client.set_endpoints(other.endpoint)
    assert other.connections_total == 1


async def test_watches_move_without_loss(
    proxy: FaultProxy, other: FaultProxy, direct: Client
) -> None:
    """A watch is at the new endpoint soon, and tells of every event once."""
    async with Client(proxy.endpoint) as client, client.watch("k") as watch:
        await direct.kv.put("k", "1")
        assert (await anext(watch)).kv.value == b"1"
        client.set_endpoints(other.endpoint)
        await direct.kv.put("k", "2")
        await direct.kv.put("k", "3")
        assert [(await anext(watch)).kv.value for _ in range(2)] == [b"2", b"3"]
        await until(lambda: proxy.connections_open == 0)


async def test_nothing_is_warned_of(
    proxy: FaultProxy, other: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    """To leave an endpoint on purpose is told as what it is, and as no loss."""
    caplog.set_level(logging.INFO, "aioetcd.transport")
    async with Client(proxy.endpoint) as client:
        await client.kv.get("k")
        client.set_endpoints(other.endpoint)
        await client.kv.get("k")
        client.set_endpoints(other.endpoint)
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert told[0] == ("INFO", f"the endpoints are {other.endpoint} from now on")
    assert told[1][1].startswith(f"endpoint {other.endpoint} is in use after")
    assert len(told) == 2


async def test_another_way_to_speak_is_another_endpoint(server: EtcdServer) -> None:
    """Where TLS is asked for, nothing goes over a connection without it any more."""
    async with Client(server.endpoint) as client:
        await client.kv.get("k")
        client.set_endpoints(f"https://{server.endpoint}")
        with pytest.raises(NoEndpointError):
            await client.kv.get("k", timeout=0.5)


async def test_set_endpoints_refuses(server: EtcdServer) -> None:
    """An empty list, or what is no endpoint, changes nothing; a closed client says so."""
    async with Client(server.endpoint) as client:
        for wrong in ("", [], "a", [server.endpoint] * 2):
            with pytest.raises(ValueError, match="endpoint"):
                client.set_endpoints(wrong)
        assert endpoints_of(client) == [server.endpoint]
    with pytest.raises(ClientClosedError):
        client.set_endpoints(server.endpoint)
    with pytest.raises(ClientClosedError):
        client.set_credentials(None, None)


async def test_what_is_tidied_up_last_goes_there_too(server: EtcdServer) -> None:
    """What a client has to do after its end, it does at its last endpoints as its last user."""
    async with Client("127.0.0.1:9", username="app", password="old") as client:
        client.set_endpoints(server.endpoint)
        client.set_credentials("app", "new")
        config = client._transport._another()._config
        assert [endpoint.name for endpoint in config.endpoints] == [server.endpoint]
        assert config.user is not None
        assert config.user.password == "new"


# --- sync_endpoints ----------------------------------------------------------------------------


@pytest.mark.fault("a member of a cluster is killed")
async def test_sync_finds_the_members() -> None:
    """A client that knows one member knows all of them afterwards, and outlives the one."""
    async with EtcdCluster() as cluster, Client(cluster.endpoints[0]) as client:
        await client.sync_endpoints()
        names = {cluster.endpoints[0], *(f"http://{each}" for each in cluster.endpoints[1:])}
        assert set(endpoints_of(client)) == names
        assert client.stats().endpoint == cluster.endpoints[0]
        assert cluster.client_proxies[0].connections_total == 1
        await cluster.members[0].kill()
        await client.kv.get("k", timeout=20)
        assert client.stats().endpoint != cluster.endpoints[0]


async def test_sync_leaves_out_who_does_not_serve(own_server: EtcdServer) -> None:
    """A learner that has not started yet is a member, and no endpoint."""
    await own_server.gateway(
        "cluster/member/add", {"peerURLs": ["http://127.0.0.1:9"], "isLearner": True}
    )
    assert len((await own_server.gateway("cluster/member/list"))["members"]) == 2
    async with Client(own_server.endpoint) as client:
        await client.sync_endpoints()
        assert endpoints_of(client) == [own_server.endpoint]
        await client.kv.put("k", "v")


async def test_sync_takes_no_plaintext_beside_tls() -> None:
    """Members that advertise plaintext leave a client that speaks TLS where it is."""
    args = ["--advertise-client-urls=http://127.0.0.1:9"]
    async with (
        EtcdServer(args=args, tls=True) as server,
        Client(server.endpoint, tls=server.tls) as client,
    ):
        await client.sync_endpoints()
        assert endpoints_of(client) == [server.endpoint]
        await client.kv.put("k", "v")


async def test_the_users_word_is_the_last(proxy: FaultProxy, other: FaultProxy) -> None:
    """What the cluster says does not undo what the user has said since it was asked."""
    async with Client(proxy.endpoint) as client:
        await client.kv.get("k")
        proxy.hang()
        calls = client.stats().calls
        async with anyio.create_task_group() as group:
            group.start_soon(client.sync_endpoints)
            await until(lambda: client.stats().calls == calls + 1)
            client.set_endpoints(other.endpoint)
        assert endpoints_of(client) == [other.endpoint]


async def test_sync_has_a_deadline(proxy: FaultProxy) -> None:
    """A sync that nobody answers ends at its deadline, and changes nothing."""
    proxy.refuse()
    async with Client(proxy.endpoint) as client:
        with anyio.fail_after(5), pytest.raises(NoEndpointError):
            await client.sync_endpoints(timeout=0.2)
        assert endpoints_of(client) == [proxy.endpoint]


# --- auto_sync ---------------------------------------------------------------------------------


@pytest.mark.fault("a cluster starts for it")
async def test_auto_sync_follows_the_cluster() -> None:
    """Once it is in use, a client finds the members by itself."""
    async with (
        EtcdCluster() as cluster,
        Client(cluster.endpoints[0], auto_sync=0.05) as client,
    ):
        await until(lambda: len(endpoints_of(client)) == 3)
        await client.kv.put("k", "v")


async def test_auto_sync_fails_quietly(
    proxy: FaultProxy, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync that fails is a line at INFO; the next one comes all the same, and so do calls."""
    monkeypatch.setattr(sync, "_TIMEOUT", 0.1)
    caplog.set_level(logging.INFO, "aioetcd.transport")
    proxy.refuse()
    async with Client(proxy.endpoint, auto_sync=0.01) as client:
        await until(lambda: caplog.text.count("the endpoints stay as they are") > 1)
        assert "WARNING" not in caplog.text
        await proxy.accept()
        await until(lambda: "the endpoints are" in caplog.text)  # the server's own
        assert proxy.endpoint not in endpoints_of(client)
        await client.kv.put("k", "v")


async def test_auto_sync_keeps_no_client_alive(server: EtcdServer) -> None:
    """A client that nobody holds any more is warned of, also where it syncs."""
    holder = [Client(server.endpoint, auto_sync=0.01)]
    await holder[0].kv.get("k")
    transport = holder[0]._transport
    with pytest.warns(ResourceWarning, match="a client was not closed"):
        holder.clear()
    await transport.aclose()


async def test_unused_it_asks_nobody(proxy: FaultProxy) -> None:
    """A client that is not in use yet has no task."""
    client = Client(proxy.endpoint, auto_sync=0.001)
    assert client._transport.supervisor._tasks == set()
    await client.aclose()
    assert proxy.connections_total == 0


# --- set_credentials ---------------------------------------------------------------------------


@pytest.fixture
async def guarded() -> AsyncIterator[EtcdServer]:
    """An etcd that lets nobody in but root, whose password is ``pw``."""
    args = ["--bcrypt-cost=4"]
    async with EtcdServer(args=args, quick=True, auth=("root", "pw")) as server:
        yield server


async def test_another_user(guarded: EtcdServer) -> None:
    """The next call is the other user's: signed in, with a wrong password, signed out."""
    async with Client(guarded.endpoint) as client:
        with pytest.raises(AuthError):
            await client.kv.get("k")
        client.set_credentials("root", "pw")
        await client.kv.put("k", "v")
        await client.sync_endpoints()
        client.set_credentials("root", "wrong")
        with pytest.raises(AuthenticationError):
            await client.kv.get("k")
        client.set_credentials("root", "pw")
        assert (await client.kv.get("k")).value == b"v"
        client.set_credentials(None, None)
        with pytest.raises(AuthError):
            await client.kv.get("k")


async def test_half_a_user_is_refused(server: EtcdServer) -> None:
    """A name without a password changes nothing."""
    async with Client(server.endpoint) as client:
        before = client._transport.tokens.generation
        with pytest.raises(TypeError, match="go together"):
            client.set_credentials("root", None)
        with pytest.raises(ValueError, match="username must not be empty"):
            client.set_credentials("", "pw")
        assert client._transport.tokens.generation == before


async def test_a_url_is_as_good_as_arguments(guarded: EtcdServer) -> None:
    """A client of a URL signs in with what stands there."""
    async with Client.from_url(f"etcd://root:%70w@{guarded.endpoint}/?timeout=5") as client:
        await client.kv.put("k", "v")
