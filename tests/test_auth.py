"""Users: one token for all that a client does, renewed once, and what a wrong password is."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator

import anyio
import pytest

from aioetcd import AuthenticationError, Client, EtcdError, PermissionDeniedError
from aioetcd.testing import EtcdServer

PASSWORD = "s3cret"
TTL = 3


async def allow(server: EtcdServer) -> None:
    """Have a root, an app that may use `app/`, and authentication on."""
    await server.gateway("auth/user/add", {"name": "root", "password": PASSWORD})
    await server.gateway("auth/role/add", {"name": "root"})
    await server.gateway("auth/user/grant", {"user": "root", "role": "root"})
    await server.gateway("auth/user/add", {"name": "app", "password": PASSWORD})
    await server.gateway("auth/role/add", {"name": "app"})
    key, end = (base64.b64encode(text).decode() for text in (b"app/", b"app0"))
    await server.gateway(
        "auth/role/grant",
        {"name": "app", "perm": {"permType": "READWRITE", "key": key, "range_end": end}},
    )
    await server.gateway("auth/user/grant", {"user": "app", "role": "app"})
    await server.gateway("auth/enable", {})


@pytest.fixture
async def guarded() -> AsyncIterator[EtcdServer]:
    """A server whose tokens are over after three seconds without use."""
    async with EtcdServer(args=["--auth-token-ttl", str(TTL)], quick=True) as server:
        await allow(server)
        yield server


def asked(client: Client) -> int:
    """How often the client has signed in."""
    return client._transport.tokens.asked


@pytest.mark.fault("A1")
async def test_a1_a_token_is_renewed_once_for_all(guarded: EtcdServer) -> None:
    """Fifty calls of every kind find the token over: one of them signs in again."""
    async with Client(guarded.endpoint, username="root", password=PASSWORD) as client:
        await client.kv.put("k", "v")
        lease = await client.lease.grant(60)
        assert asked(client) == 1
        await anyio.sleep(2 * TTL)  # which is no synchronisation, but what makes the token old
        async with anyio.create_task_group() as group:

            async def watch(number: int) -> None:
                async with client.watch(f"w{number}"):
                    pass

            for number in range(15):
                group.start_soon(client.kv.put, f"k{number}", "v")
                group.start_soon(client.kv.get, "k")
            for number in range(5):
                group.start_soon(client.kv.delete, f"d{number}")
                group.start_soon(client.lease.grant, 60)
                group.start_soon(watch, number)
            group.start_soon(client.lease.leases)
            group.start_soon(client.lease.keep_alive_once, lease)
        assert asked(client) == 2
        assert client.stats().retries >= 1
        versions = [kv.version for kv in (await client.kv.get("k", prefix=True)).kvs]
        assert versions == [1] * 16, "a write that was refused for its token was applied once"


@pytest.mark.fault("W14")
async def test_w14_a_watch_outlives_the_token(guarded: EtcdServer) -> None:
    """A second watch on a stream whose token is over gets a stream of its own time; both go on."""
    async with Client(guarded.endpoint, username="app", password=PASSWORD) as client:
        async with client.watch("app/1") as first:
            await anyio.sleep(2 * TTL)  # which is no synchronisation, but what makes the token old
            async with client.watch("app/2") as second:
                await client.kv.put("app/1", "v")
                await client.kv.put("app/2", "v")
                assert (await anext(first)).kv.key == b"app/1"
                assert (await anext(second)).kv.key == b"app/2"
        assert asked(client) == 2
        with pytest.raises(PermissionDeniedError):
            async with client.watch("other"):
                pass
        assert asked(client) <= 3


async def test_a3_a_wrong_password_is_final(guarded: EtcdServer) -> None:
    """It is told at once, by calls and by watches, and nobody goes on asking."""
    async with Client(guarded.endpoint, username="app", password="wrong") as client:
        for _ in range(2):
            with pytest.raises(AuthenticationError, match="invalid user ID or password"):
                await client.kv.get("app/1")
        assert asked(client) == 2
        with pytest.raises(AuthenticationError), anyio.fail_after(5):
            async with client.watch("app/1"):
                pass
        assert asked(client) <= 4


async def test_a4_authentication_is_enabled_and_disabled(quick_guarded: EtcdServer) -> None:
    """A client with a user works before, during and after; one without is told."""
    server = quick_guarded
    async with (
        Client(server.endpoint, username="root", password=PASSWORD) as client,
        Client(server.endpoint) as stranger,
    ):
        await client.kv.put("k", "1")
        await stranger.kv.put("k", "2")
        await allow(server)
        await client.kv.put("k", "3")
        with pytest.raises(AuthenticationError, match="user name is empty"):
            await stranger.kv.get("k")
        assert (await client.kv.get("k")).value == b"3"


@pytest.fixture
async def quick_guarded() -> AsyncIterator[EtcdServer]:
    """A server of one's own whose authentication is off."""
    async with EtcdServer(quick=True) as server:
        yield server


async def test_a5_without_permission(guarded: EtcdServer) -> None:
    """What a user may not do is refused by name, and was not done; no other token is tried."""
    async with Client(guarded.endpoint, username="app", password=PASSWORD) as client:
        await client.kv.put("app/1", "v")
        with pytest.raises(PermissionDeniedError) as caught:
            await client.kv.put("other", "v")
        assert caught.value.maybe_applied is False
        assert asked(client) == 1


async def test_credentials_are_not_shown(guarded: EtcdServer) -> None:
    """Neither the client nor an error shows a password or a token."""
    async with Client(guarded.endpoint, username="app", password=PASSWORD) as client:
        await client.kv.get("app/1")
        token = dict(client._transport.tokens.metadata)["token"]
        try:
            await client.kv.get("other")
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


async def test_another_password(guarded: EtcdServer) -> None:
    """Who signs in otherwise does so from the next call on."""
    async with Client(guarded.endpoint, username="app", password="old") as client:
        with pytest.raises(AuthenticationError):
            await client.kv.get("app/1")
        client.set_credentials("app", PASSWORD)
        await client.kv.put("app/1", "v")
        with pytest.raises(PermissionDeniedError):
            await client.kv.get("other")
        client.set_credentials("root", PASSWORD)
        await client.kv.get("other")
        client.set_credentials(None, None)
        with pytest.raises(AuthenticationError, match="user name is empty"):
            await client.kv.get("app/1")
