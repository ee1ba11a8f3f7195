"""Clients of an etcd whose authentication is on: tokens expire, and users are changed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from aioetcd import (
    TLS,
    AuthenticationError,
    Client,
    EtcdError,
    PermissionDeniedError,
    PermissionType,
    Watch,
)
from aioetcd.testing import EtcdServer, FaultProxy
from tests.waiting import until

# How long a token lives, in seconds: etcd takes whole ones, and looks for old ones once a second.
TTL = 3
PASSWORD = "s3cret"
EXPIRED = 2 * TTL


@asynccontextmanager
async def with_auth(*args: str) -> AsyncIterator[EtcdServer]:
    """Run an etcd whose authentication is on; beside root there is "app", who may use a to b."""
    arguments = ["--bcrypt-cost=4", *args]
    async with EtcdServer(quick=True, args=arguments, auth=("root", PASSWORD)) as server:
        async with client_of(server.endpoint) as root:
            await allow_app(root)
        yield server


async def allow_app(root: Client) -> None:
    """Have a user "app", who may use the keys a to b."""
    await root.auth.add_user("app", PASSWORD)
    await root.auth.add_role("app")
    await root.auth.grant_role("app", "app")
    await root.auth.grant_permission("app", PermissionType.READWRITE, "a", range_end="c")


async def authenticated(server: EtcdServer) -> float:
    """How often anybody has asked for a token, the kit itself included."""
    return sum(
        value
        for name, value in (await server.metrics()).items()
        if name.startswith("grpc_server_started_total") and 'grpc_method="Authenticate"' in name
    )


def client_of(endpoint: str, name: str = "root", password: str = PASSWORD) -> Client:
    """A client of a user's."""
    return Client(endpoint, username=name, password=password, timeout=5)


async def next_value(watch: Watch) -> bytes:
    """The value of the next event, which must come soon."""
    with anyio.fail_after(6):
        return (await anext(aiter(watch))).kv.value


async def every_kind(client: Client, count: int) -> None:
    """So many calls at once, of each kind."""

    async def watch(number: int) -> None:
        async with client.watch(f"a{number}"):
            pass

    async def lease() -> None:
        lease = await client.lease.grant(10)
        await client.lease.revoke(lease)

    await asyncio.gather(
        *(client.kv.put(f"a{number}", "v") for number in range(count)),
        *(client.kv.get(f"a{number}") for number in range(count)),
        *(client.kv.delete(f"b{number}") for number in range(count)),
        *(client.kv.txn(success=[]) for _ in range(count)),
        *(watch(number) for number in range(count)),
        *(lease() for _ in range(count)),
        client.lease.leases(),
    )


async def test_signing_in_is_once() -> None:
    """The first calls wait for one token, and later ones have it."""
    async with with_auth() as server, client_of(server.endpoint) as client:
        before = await authenticated(server)
        await every_kind(client, 8)
        await every_kind(client, 8)
        assert await authenticated(server) == before + 1
        assert client.stats().retries == 0


@pytest.mark.fault("A1")
async def test_a1_a_token_expires() -> None:
    """Whatever is called then, all at once: one token is asked for, and all calls succeed."""
    async with (
        with_auth(f"--auth-token-ttl={TTL}") as server,
        client_of(server.endpoint) as client,
        client.watch("a") as watch,
    ):
        await every_kind(client, 1)
        before = await authenticated(server)
        await anyio.sleep(EXPIRED)  # what is tested: nobody uses the token for so long
        with anyio.fail_after(5):
            await every_kind(client, 8)
        assert await authenticated(server) == before + 1
        await client.kv.put("a", "later")
        assert await next_value(watch) == b"later"
        assert client.stats().retries > 0  # else the token had not expired


@pytest.mark.fault("A1")
async def test_a1_a_token_expires_under_a_lock() -> None:
    """A lock and its lease are kept while nothing else is called, and left in order."""
    async with (
        with_auth(f"--auth-token-ttl={TTL}") as server,
        client_of(server.endpoint) as client,
    ):
        async with client.lock("a/lock", ttl=5) as lock:
            await anyio.sleep(EXPIRED)  # what is tested, and longer than an unrenewed lease lives
            assert not lock.is_lost
        assert (await client.kv.get("a/lock", prefix=True)).count == 0
        assert (await client.lease.leases()).ids == ()


async def test_a2_the_users_change_and_tokens_are_signed(tmp_path: Path) -> None:
    """A signed token is of one state of the users: when that changes, another one is asked for."""
    key = tmp_path / "key"
    key.write_bytes(os.urandom(32))
    auth = f"--auth-token=jwt,priv-key={key},sign-method=HS256,ttl=10m"
    async with with_auth(auth) as server, client_of(server.endpoint) as client:
        await every_kind(client, 1)
        for number in (1, 2):
            await client.auth.add_user(f"new{number}", "pw")
            before, retries = await authenticated(server), client.stats().retries
            with anyio.fail_after(5):
                await every_kind(client, 8)
            assert await authenticated(server) == before + 1
            assert client.stats().retries > retries  # else the token was good


async def test_a2_the_users_change() -> None:
    """A token that etcd remembers is as good afterwards."""
    async with with_auth() as server, client_of(server.endpoint) as client:
        await every_kind(client, 1)
        await client.auth.add_user("new", "pw")
        before = await authenticated(server)
        await every_kind(client, 8)
        assert await authenticated(server) <= before + 1


@pytest.mark.parametrize("how", ["changed", "deleted"])
async def test_a3_the_password_does_not_hold_any_more(how: str) -> None:
    """The calls fail with the reason, and the server is not asked again and again."""
    async with (
        with_auth() as server,
        client_of(server.endpoint) as root,
        client_of(server.endpoint, "app") as client,
    ):
        await client.kv.put("a", "v")
        if how == "changed":
            await root.auth.change_password("app", "new")
        else:
            await root.auth.delete_user("app")
        for _ in range(2):
            before = await authenticated(server)
            with anyio.fail_after(3), pytest.raises(AuthenticationError) as caught:
                await client.kv.put("a", "w")
            assert "invalid user ID or password" in str(caught.value)
            assert caught.value.maybe_applied is False
            assert 1 <= await authenticated(server) - before <= 2
        before = await authenticated(server)
        with anyio.fail_after(3), pytest.raises(AuthenticationError):
            async with client.watch("a"):
                pass
        assert await authenticated(server) - before <= 2
        async with client_of(server.endpoint) as other:
            assert (await other.kv.get("a")).value == b"v"


@pytest.mark.parametrize("name", ["app", "nobody"])
async def test_a3_a_wrong_password(name: str) -> None:
    """It is told by calls and by watches, of whatever is wrong alike."""
    async with with_auth() as server, client_of(server.endpoint, name, "wrong") as client:
        before = await authenticated(server)
        errors = await asyncio.gather(
            *(client.kv.get("a") for _ in range(10)), return_exceptions=True
        )
        assert {type(error) for error in errors} == {AuthenticationError}
        assert await authenticated(server) == before + 1
        with anyio.fail_after(3), pytest.raises(AuthenticationError):
            async with client.watch("a"):
                pass
        assert await authenticated(server) <= before + 3
        assert client.stats().endpoint == server.endpoint  # it is nobody's fault there


@pytest.mark.parametrize("what", ["watch", "keep_alive"])
async def test_a3_nobody_is_signed_in_for_nobody(what: str) -> None:
    """Once all who use a stream are told, it asks for no token any more, and ends."""

    async def use(client: Client) -> None:
        if what == "watch":
            async with client.watch("a"):
                pass
        else:
            async for _ in client.lease.keep_alive(5):
                pass

    def has_ended() -> bool:
        return not any("stream" in task.get_name() for task in asyncio.all_tasks())

    async with with_auth() as server, client_of(server.endpoint, "app", "wrong") as client:
        before = await authenticated(server)
        for _ in range(2):  # the second begins while the stream of the first still lingers
            with anyio.fail_after(3), pytest.raises(AuthenticationError):
                await use(client)
        told = await authenticated(server)
        assert 2 <= told - before <= 4
        await until(has_ended)
        assert await authenticated(server) == told


async def test_a4_authentication_is_turned_on_and_off() -> None:
    """Who has a password goes on; who has none is told, and goes on when it is off again."""
    async with with_auth() as server:
        endpoint = server.endpoint
        async with client_of(endpoint) as client, Client(endpoint, timeout=5) as stranger:
            await client.auth.disable()
            await client.kv.put("a", "0")
            await stranger.kv.put("b", "0")
            async with client.watch("a") as watch:
                await client.auth.enable()
                await client.kv.put("a", "on")
                assert await next_value(watch) == b"on"
                async with client.watch("b") as another:
                    await client.kv.put("b", "on")
                    assert await next_value(another) == b"on"
                with anyio.fail_after(3), pytest.raises(AuthenticationError) as caught:
                    await stranger.kv.put("b", "no")
                assert caught.value.maybe_applied is False
                with anyio.fail_after(3), pytest.raises(EtcdError):
                    async with stranger.watch("b"):
                        pass
                await client.auth.disable()
                await every_kind(client, 2)
                await client.kv.put("a", "off")
                values = [await next_value(watch)]
                while values[-1] != b"off":
                    values.append(await next_value(watch))
                assert (await stranger.kv.get("b")).value == b"on"
                await stranger.kv.put("b", "off")


async def test_a5_a_permission_is_taken_from_a_watch() -> None:
    """An open watch goes on, as the server has it; one that is resumed ends with the refusal."""
    async with (
        with_auth() as server,
        FaultProxy(server.endpoint) as proxy,
        client_of(server.endpoint) as writer,
        client_of(proxy.endpoint, "app") as client,
        client.watch("a") as watch,
    ):
        await writer.kv.put("a", "1")
        assert await next_value(watch) == b"1"
        await writer.auth.revoke_permission("app", "a", range_end="c")
        await writer.kv.put("a", "2")
        assert await next_value(watch) == b"2"
        before = await authenticated(server)
        assert proxy.cut() >= 1
        with pytest.raises(PermissionDeniedError):
            await next_value(watch)
        with anyio.fail_after(3), pytest.raises(PermissionDeniedError):
            await client.kv.get("a")
        assert await authenticated(server) - before <= 5


@pytest.mark.fault("W14")
async def test_w14_a_second_watch_when_the_token_has_expired() -> None:
    """It is created all the same, the first one loses nothing, and both outlive a new stream."""
    async with (
        with_auth(f"--auth-token-ttl={TTL}") as server,
        FaultProxy(server.endpoint) as proxy,
        client_of(server.endpoint) as writer,
        client_of(proxy.endpoint, "app") as client,
        client.watch("a") as first,
    ):
        await writer.kv.put("a", "1")
        assert await next_value(first) == b"1"
        await anyio.sleep(EXPIRED)  # what is tested
        await writer.kv.put("a", "2")
        before = await authenticated(server)
        with anyio.fail_after(5):
            async with client.watch("b") as second:
                assert await authenticated(server) == before + 1
                await writer.kv.put("a", "3")
                await writer.kv.put("b", "3")
                assert [await next_value(first) for _ in range(2)] == [b"2", b"3"]
                assert await next_value(second) == b"3"
                assert proxy.cut() >= 1
                await writer.kv.put("a", "4")
                await writer.kv.put("b", "4")
                assert await next_value(first) == b"4"
                assert await next_value(second) == b"4"


async def test_w14_a_watch_without_permission() -> None:
    """A fresh token does not help: that watch is refused, and the others go on."""
    async with (
        with_auth() as server,
        client_of(server.endpoint) as writer,
        client_of(server.endpoint, "app") as client,
        client.watch("a") as watch,
    ):
        before = await authenticated(server)
        with anyio.fail_after(5), pytest.raises(PermissionDeniedError):
            async with client.watch("z"):
                pass
        assert await authenticated(server) - before <= 5
        await writer.kv.put("a", "1")
        assert await next_value(watch) == b"1"


async def test_credentials_are_not_shown() -> None:
    """Neither the client nor an error shows a password or a token."""
    async with with_auth() as server, client_of(server.endpoint, "app") as client:
        await client.kv.get("a")
        token = dict(client._transport.tokens.metadata)["token"]
        try:
            await client.kv.get("z")
        except EtcdError as error:
            shown = [
                repr(error),
                str(error.__cause__),
                repr(client),
                repr(client._transport.tokens.user),
            ]
    for text in shown:
        assert PASSWORD not in text
        assert token not in text


@pytest.mark.parametrize(
    ("username", "password", "error"),
    [
        ("app", None, TypeError),
        (None, "x", TypeError),
        ("", "x", ValueError),
        ("app", 7, TypeError),
    ],
)
def test_a_user_needs_both(username: str, password: str, error: type[Exception]) -> None:
    """A name without a password is refused, and the other way round."""
    with pytest.raises(error, match=r"username|password"):
        Client("a:1", username=username, password=password)


async def test_another_password() -> None:
    """Who signs in otherwise does so from the next call on."""
    async with with_auth() as server, client_of(server.endpoint, "app", "old") as client:
        with pytest.raises(AuthenticationError):
            await client.kv.get("a")
        client.set_credentials("app", PASSWORD)
        await client.kv.put("a", "v")
        with pytest.raises(PermissionDeniedError):
            await client.kv.get("z")
        client.set_credentials("root", PASSWORD)
        await client.kv.get("z")
        client.set_credentials(None, None)
        with pytest.raises(AuthenticationError, match="user name is empty"):
            await client.kv.get("a")


async def test_the_name_of_a_certificate() -> None:
    """A client without a password is whom its certificate names."""
    async with EtcdServer(
        tls="mutual", quick=True, auth=("root", PASSWORD), args=["--bcrypt-cost=4"]
    ) as server:
        async with Client(
            server.endpoint, tls=server.tls, username="root", password=PASSWORD
        ) as root:
            await allow_app(root)
        assert server.tls is not None
        assert server._authority is not None
        signed = server._authority._signer.issue_cert("app@aioetcd.test", common_name="app")
        pem = signed.private_key_and_cert_chain_pem.bytes()
        tls = TLS(ca=server.tls.ca, cert=pem, key=pem)
        async with Client(server.endpoint, tls=tls) as client, client.watch("a") as watch:
            await client.kv.put("a", "v")
            assert await next_value(watch) == b"v"
            with pytest.raises(PermissionDeniedError):
                await client.kv.put("z", "v")
            assert client._transport.tokens.asked == 0
