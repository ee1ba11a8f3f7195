"""`client.auth`: users, roles and permissions, and that they bind."""

from __future__ import annotations

from typing import Any

import pytest

from aioetcd import (
    AuthError,
    AuthNotEnabledError,
    Client,
    EtcdError,
    Permission,
    PermissionDeniedError,
    PermissionType,
)
from aioetcd.testing import EtcdServer
from tests.waiting import until

READ, WRITE, READWRITE = PermissionType.READ, PermissionType.WRITE, PermissionType.READWRITE


async def clear(client: Client) -> None:
    """Delete all users and roles."""
    for user in (await client.auth.users()).names:
        await client.auth.delete_user(user)
    for role in (await client.auth.roles()).names:
        await client.auth.delete_role(role)


async def test_users_and_roles(client: Client) -> None:
    """They are added, listed, put together and taken apart; each refusal says why."""
    auth = client.auth
    await clear(client)
    for name in ("ada", "bob"):
        await auth.add_user(name, "pw")
    for name in ("reader", "writer"):
        await auth.add_role(name)
        await auth.grant_role("ada", name)
    assert (await auth.users()).names == ("ada", "bob")
    assert (await auth.roles()).names == ("reader", "writer")
    assert (await auth.user("ada")).roles == ("reader", "writer")
    assert (await auth.user("bob")).roles == ()
    await auth.revoke_role("ada", "writer")
    assert (await auth.user("ada")).roles == ("reader",)
    await auth.delete_role("reader")
    assert (await auth.user("ada")).roles == ()
    for call in (
        auth.add_user("ada", "pw"),
        auth.add_role("writer"),
        auth.user("eve"),
        auth.role("reader"),
        auth.delete_user("eve"),
        auth.delete_role("reader"),
        auth.grant_role("ada", "reader"),
        auth.grant_role("eve", "writer"),
        auth.revoke_role("ada", "writer"),
        auth.change_password("eve", "pw"),
        auth.revoke_permission("writer", "k"),
        auth.enable(),
    ):
        with pytest.raises(AuthError) as caught:
            await call
        assert caught.value.maybe_applied is False
    await clear(client)


async def test_permissions(client: Client) -> None:
    """By key, prefix, range, from a key on, and for all keys; the same range has one."""
    auth = client.auth
    await clear(client)
    await auth.add_role("r")
    await auth.grant_permission("r", READ, "k")
    await auth.grant_permission("r", WRITE, "p/", prefix=True)
    await auth.grant_permission("r", READWRITE, "a", range_end="c")
    await auth.grant_permission("r", READ, "z", range_end="\0")
    await auth.grant_permission("r", READ, "", prefix=True)
    await auth.grant_permission("r", WRITE, "k")
    assert set((await auth.role("r")).permissions) == {
        Permission(WRITE, b"k", None),
        Permission(WRITE, b"p/", b"p0"),
        Permission(READWRITE, b"a", b"c"),
        Permission(READ, b"z", b"\0"),
        Permission(READ, b"\0", b"\0"),
    }
    assert f"{READWRITE}" == str(READWRITE) == "READWRITE"
    await auth.revoke_permission("r", "p/", prefix=True)
    await auth.revoke_permission("r", "z", range_end="\0")
    await auth.revoke_permission("r", "k")
    assert {each.key for each in (await auth.role("r")).permissions} == {b"a", b"\0"}
    await clear(client)


async def test_they_bind(own_server: EtcdServer) -> None:
    """A user reads and writes what the roles allow; a lost permission is lost at once."""
    async with Client(own_server.endpoint) as client:
        auth = client.auth
        await auth.add_user("root", "secret")
        await auth.add_role("root")
        with pytest.raises(AuthError):
            await auth.enable()
        await auth.grant_role("root", "root")
        await auth.add_user("ada", "pw")
        await auth.add_role("app")
        await auth.grant_role("ada", "app")
        await auth.grant_permission("app", READ, "/config/", prefix=True)
        await auth.grant_permission("app", READWRITE, "/own/", prefix=True)
        await auth.enable()
        with pytest.raises(EtcdError):
            await auth.users()
        client.set_credentials("root", "secret")
        if own_server.version_info >= (3, 5):
            status = await auth.status()
            assert (status.enabled, status.revision > 1) == (True, True)
        await client.kv.put("/config/a", "1")
        async with Client(own_server.endpoint, username="ada", password="pw") as ada:
            assert (await ada.kv.get("/config/", prefix=True)).value == b"1"
            await ada.namespace("/own/").kv.put("k", "v")
            assert (await ada.auth.user("ada")).roles == ("app",)
            assert (await ada.auth.role("app")).permissions
            assert await ada.ping() > 0
            for call in (
                lambda: ada.kv.put("/config/a", "2"),
                lambda: ada.kv.get("/own"),
                lambda: ada.kv.get("/", prefix=True),
                ada.auth.users,
                lambda: ada.auth.add_user("eve", "pw"),
                lambda: ada.maintenance.defragment(own_server.endpoint),
            ):
                with pytest.raises(PermissionDeniedError):
                    await call()
            await auth.revoke_permission("app", "/own/", prefix=True)

            async def is_denied() -> bool:
                try:
                    await ada.kv.put("/own/k", "v")
                except PermissionDeniedError:
                    return True
                return False

            await until(is_denied)
            await auth.change_password("ada", "better")
            await auth.delete_user("ada")
            with pytest.raises(EtcdError):
                await ada.kv.get("/config/a")
        await auth.disable()
        client.set_credentials(None, None)
        assert (await client.kv.get("/own/k")).value == b"v"


async def test_a_user_without_a_password(client: Client) -> None:
    """He cannot sign in with one."""
    await clear(client)
    await client.auth.add_user("cert")
    assert (await client.auth.users()).names == ("cert",)
    await clear(client)


@pytest.mark.parametrize(("wrong", "error"), [("", ValueError), (7, TypeError), (None, TypeError)])
async def test_what_is_no_name(client: Client, wrong: Any, error: type[Exception]) -> None:
    """It is refused by name before anything is sent."""
    auth = client.auth
    calls = client.stats().calls
    for call, argument in (
        (auth.add_user(wrong, "pw"), "name"),
        (auth.delete_user(wrong), "name"),
        (auth.user(wrong), "name"),
        (auth.add_role(wrong), "name"),
        (auth.delete_role(wrong), "name"),
        (auth.role(wrong), "name"),
        (auth.change_password("a", wrong), "password"),
        (auth.grant_role(wrong, "r"), "user"),
        (auth.grant_role("a", wrong), "role"),
        (auth.revoke_role("a", wrong), "role"),
        (auth.grant_permission(wrong, READ, "k"), "role"),
        (auth.revoke_permission(wrong, "k"), "role"),
    ):
        with pytest.raises(error, match=rf"^{argument} must"):
            await call
    with pytest.raises(TypeError, match=r"^permission must be a PermissionType, not str"):
        await auth.grant_permission("r", "READ", "k")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^key must not be empty"):
        await auth.grant_permission("r", READ, "")
    assert client.stats().calls == calls


async def test_a_token_where_none_is_needed(client: Client) -> None:
    """Signing in where authentication is off is no error of a call's."""
    client.set_credentials("ada", "pw")
    await client.kv.put("k", "v")
    with pytest.raises(AuthNotEnabledError):
        await client._transport._authenticate(client._transport.tokens.user)  # type: ignore[arg-type]
