"""Users, roles and permissions: etcd's Auth service."""

from __future__ import annotations

from aioetcd import _decode
from aioetcd._checks import check_text
from aioetcd._constructor import NoPublicConstructor
from aioetcd._proto import auth_pb2, rpc_pb2
from aioetcd._transport.calls import Calls
from aioetcd._transport.methods import (
    AUTH_DISABLE,
    AUTH_ENABLE,
    AUTH_STATUS,
    ROLE_ADD,
    ROLE_DELETE,
    ROLE_GET,
    ROLE_GRANT_PERMISSION,
    ROLE_LIST,
    ROLE_REVOKE_PERMISSION,
    USER_ADD,
    USER_CHANGE_PASSWORD,
    USER_DELETE,
    USER_GET,
    USER_GRANT_ROLE,
    USER_LIST,
    USER_REVOKE_ROLE,
)
from aioetcd.config.timeouts import DEFAULT, Default
from aioetcd.keys import key_range
from aioetcd.types.auth import (
    AuthResponse,
    AuthStatus,
    Permission,
    PermissionType,
    Role,
    RoleList,
    User,
    UserList,
)

__all__ = ["Auth"]


class Auth(metaclass=NoPublicConstructor):
    """Manages users, roles and permissions; it is ``client.auth``.

    Authentication is switched on when there is a user ``root`` with the role ``root``; from then on
    each call is a user's (``Client(username=..., password=...)``, `Client.set_credentials`), and
    what is here is for those with the role ``root``. Changes are never sent twice.

    Any call may raise, beside the errors that it names, `NoEndpointError` (nobody could be reached
    in time), `UnavailableError` (the connection or the member broke), `DeadlineExceededError` and
    `ClientClosedError`.

    Example:
        await client.auth.add_role("reader")
        await client.auth.grant_permission("reader", PermissionType.READ, "/c/", prefix=True)
        await client.auth.add_user("ada", "secret")
        await client.auth.grant_role("ada", "reader")
        (await client.auth.user("ada")).roles  # ("reader",)
        await client.auth.delete_user("ada")
        await client.auth.delete_role("reader")
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def status(self, *, timeout: float | Default | None = DEFAULT) -> AuthStatus:
        """Ask whether authentication is on (RPC ``AuthStatus``; etcd from 3.5 on).

        Before 3.7 it is for those with the role ``root``, where it is on.

        Args:
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            UnsupportedByServerError: The server is older than 3.5.
            EtcdError: By cause.

        Example:
            (await client.auth.status()).enabled  # False
        """
        response = await self._calls.unary(AUTH_STATUS, rpc_pb2.AuthStatusRequest(), timeout)
        header = _decode.header(response.header)
        return AuthStatus(header, response.enabled, response.authRevision)

    async def enable(self, *, timeout: float | Default | None = DEFAULT) -> AuthResponse:
        """Switch authentication on (RPC ``AuthEnable``).

        This client has no user then, unless it was given one: `Client.set_credentials`.

        Args:
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            AuthError: There is no user ``root``, or he has not the role ``root``.
            EtcdError: By cause; see its `maybe_applied`.

        Example:
            await client.auth.add_user("root", "secret")
            await client.auth.add_role("root")
            await client.auth.grant_role("root", "root")
            await client.auth.enable()
            client.set_credentials("root", "secret")
            await client.auth.disable()
            client.set_credentials(None, None)
            await client.auth.delete_user("root")
            await client.auth.delete_role("root")
        """
        response = await self._calls.unary(AUTH_ENABLE, rpc_pb2.AuthEnableRequest(), timeout)
        return AuthResponse(_decode.header(response.header))

    async def disable(self, *, timeout: float | Default | None = DEFAULT) -> AuthResponse:
        """Switch authentication off (RPC ``AuthDisable``): everybody may do everything.

        Args:
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            EtcdError: By cause; see its `maybe_applied`.

        Example:
            await client.auth.disable()  # also where it is off already
        """
        response = await self._calls.unary(AUTH_DISABLE, rpc_pb2.AuthDisableRequest(), timeout)
        return AuthResponse(_decode.header(response.header))

    async def add_user(
        self, name: str, password: str | None = None, *, timeout: float | Default | None = DEFAULT
    ) -> AuthResponse:
        """Add a user (RPC ``UserAdd``).

        Args:
            name: The user's.
            password: The password; None makes a user who signs in by a TLS certificate alone.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            ValueError: An empty name.
            TypeError: An argument of the wrong type.
            AuthError: There is such a user.
            EtcdError: By cause; see its `maybe_applied`.

        Example:
            await client.auth.add_user("ada", "secret")
            "ada" in (await client.auth.users()).names  # True
            await client.auth.delete_user("ada")
        """
        request = rpc_pb2.AuthUserAddRequest(name=check_text("name", name))
        if password is None:
            request.options.no_password = True
        else:
            request.password = check_text("password", password)
        response = await self._calls.unary(USER_ADD, request, timeout)
        return AuthResponse(_decode.header(response.header))

    async def delete_user(
        self, name: str, *, timeout: float | Default | None = DEFAULT
    ) -> AuthResponse:
        """Delete a user (RPC ``UserDelete``).

        Args:
            name: The user's.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            ValueError: An empty name.
            TypeError: An argument of the wrong type.
            AuthError: There is no such user, or it is ``root`` while authentication is on.
            EtcdError: By cause; see its `maybe_applied`.

        Example:
            await client.auth.add_user("ada", "secret")
            await client.auth.delete_user("ada")
        """
        request = rpc_pb2.AuthUserDeleteRequest(name=check_text("name", name))
        response = await self._calls.unary(USER_DELETE, request, timeout)
        return AuthResponse(_decode.header(response.header))

    async def change_password(
        self, name: str, password: str, *, timeout: float | Default | None = DEFAULT
    ) -> AuthResponse:
        """Give a user another password (RPC ``UserChangePassword``).

        Args:
            name: The user's.
            password: The new one.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            ValueError: An empty name.
            TypeError: An argument of the wrong type.
            AuthError: There is no such user.
            EtcdError: By cause; see its `maybe_applied`.

        Example:
            await client.auth.add_user("ada", "secret")
            await client.auth.change_password("ada", "better")
            await client.auth.delete_user("ada")
        """
        request = rpc_pb2.AuthUserChangePasswordRequest(
            name=check_text("name", name), password=check_text("password", password)
        )
        response = await self._calls.unary(USER_CHANGE_PASSWORD, request, timeout)
        return AuthResponse(_decode.header(response.header))

    async def grant_role(
        self, user: str, role: str, *, timeout: float | Default | None = DEFAULT
    ) -> AuthResponse:
        """Give a user a role (RPC ``UserGrantRole``).

        Args:
            user: The user's name.
            role: The role's name.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            ValueError: An empty name.
            TypeError: An argument of the wrong type.
            AuthError: There is no such user, or no such role.
            EtcdError: By cause; see its `maybe_applied`.

        Example:
            await client.auth.add_user("ada", "secret")
            await client.auth.add_role("reader")
            await client.auth.grant_role("ada", "reader")
            (await client.auth.user("ada")).roles  # ("reader",)
            await client.auth.delete_user("ada")
            await client.auth.delete_role("reader")
        """
        request = rpc_pb2.AuthUserGrantRoleRequest(
            user=check_text("user", user), role=check_text("role", role)
        )
        response = await self._calls.unary(USER_GRANT_ROLE, request, timeout)
        return AuthResponse(_decode.header(response.header))

    async def revoke_role(
        self, user: str, role: str, *, timeout: float | Default | None = DEFAULT
    ) -> AuthResponse:
        """Take a role from a user (RPC ``UserRevokeRole``).

        Args:
            user: The user's name.
            role: The role's name.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            ValueError: An empty name.
            TypeError: An argument of the wrong type.
            AuthError: There is no such user, or he has not the role.
            EtcdError: By cause; see its `maybe_applied`.

        Example:
            await client.auth.add_user("ada", "secret")
            await client.auth.add_role("reader")
            await client.auth.grant_role("ada", "reader")
            await client.auth.revoke_role("ada", "reader")
            (await client.auth.user("ada")).roles  # ()
            await client.auth.delete_user("ada")
            await client.auth.delete_role("reader")
        """
        request = rpc_pb2.AuthUserRevokeRoleRequest(
            name=check_text("user", user), role=check_text("role", role)
        )
        response = await self._calls.unary(USER_REVOKE_ROLE, request, timeout)
        return AuthResponse(_decode.header(response.header))

    async def user(self, name: str, *, timeout: float | Default | None = DEFAULT) -> User:
        """Give a user's roles (RPC ``UserGet``); every user may ask for the own ones.

        Args:
            name: The user's.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            ValueError: An empty name.
            TypeError: An argument of the wrong type.
            AuthError: There is no such user.
            EtcdError: By cause.

        Example:
            await client.auth.add_user("ada", "secret")
            (await client.auth.user("ada")).roles  # ()
            await client.auth.delete_user("ada")
        """
        request = rpc_pb2.AuthUserGetRequest(name=check_text("name", name))
        response = await self._calls.unary(USER_GET, request, timeout)
        return User(_decode.header(response.header), name, tuple(response.roles))

    async def users(self, *, timeout: float | Default | None = DEFAULT) -> UserList:
        """List all users (RPC ``UserList``).

        Args:
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            EtcdError: By cause.

        Example:
            await client.auth.add_user("ada", "secret")
            (await client.auth.users()).names  # ("ada",)
            await client.auth.delete_user("ada")
        """
        response = await self._calls.unary(USER_LIST, rpc_pb2.AuthUserListRequest(), timeout)
        return UserList(_decode.header(response.header), tuple(response.users))

    async def add_role(
        self, name: str, *, timeout: float | Default | None = DEFAULT
    ) -> AuthResponse:
        """Add a role (RPC ``RoleAdd``), which allows nothing yet.

        Args:
            name: The role's.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            ValueError: An empty name.
            TypeError: An argument of the wrong type.
            AuthError: There is such a role.
            EtcdError: By cause; see its `maybe_applied`.

        Example:
            await client.auth.add_role("reader")
            (await client.auth.role("reader")).permissions  # ()
            await client.auth.delete_role("reader")
        """
        request = rpc_pb2.AuthRoleAddRequest(name=check_text("name", name))
        response = await self._calls.unary(ROLE_ADD, request, timeout)
        return AuthResponse(_decode.header(response.header))

    async def delete_role(
        self, name: str, *, timeout: float | Default | None = DEFAULT
    ) -> AuthResponse:
        """Delete a role (RPC ``RoleDelete``), also from all users who have it.

        Args:
            name: The role's.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            ValueError: An empty name.
            TypeError: An argument of the wrong type.
            AuthError: There is no such role, or it is ``root`` while authentication is on.
            EtcdError: By cause; see its `maybe_applied`.

        Example:
            await client.auth.add_role("reader")
            await client.auth.delete_role("reader")
        """
        request = rpc_pb2.AuthRoleDeleteRequest(role=check_text("name", name))
        response = await self._calls.unary(ROLE_DELETE, request, timeout)
        return AuthResponse(_decode.header(response.header))

    async def role(self, name: str, *, timeout: float | Default | None = DEFAULT) -> Role:
        """Give what a role allows (RPC ``RoleGet``); every user may ask for the own ones.

        Args:
            name: The role's.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            ValueError: An empty name.
            TypeError: An argument of the wrong type.
            AuthError: There is no such role.
            EtcdError: By cause.

        Example:
            await client.auth.add_role("reader")
            await client.auth.grant_permission("reader", PermissionType.READ, "/config/a")
            (permission,) = (await client.auth.role("reader")).permissions
            permission.key, permission.range_end  # (b"/config/a", None)
            await client.auth.delete_role("reader")
        """
        request = rpc_pb2.AuthRoleGetRequest(role=check_text("name", name))
        response = await self._calls.unary(ROLE_GET, request, timeout)
        permissions = tuple(
            Permission(PermissionType(each.permType), each.key, each.range_end or None)
            for each in response.perm
        )
        return Role(_decode.header(response.header), name, permissions)

    async def roles(self, *, timeout: float | Default | None = DEFAULT) -> RoleList:
        """List all roles (RPC ``RoleList``).

        Args:
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            EtcdError: By cause.

        Example:
            await client.auth.add_role("reader")
            (await client.auth.roles()).names  # ("reader",)
            await client.auth.delete_role("reader")
        """
        response = await self._calls.unary(ROLE_LIST, rpc_pb2.AuthRoleListRequest(), timeout)
        return RoleList(_decode.header(response.header), tuple(response.roles))

    async def grant_permission(
        self,
        role: str,
        permission: PermissionType,
        key: str | bytes,
        *,
        prefix: bool = False,
        range_end: str | bytes | None = None,
        timeout: float | Default | None = DEFAULT,
    ) -> AuthResponse:
        r"""Have a role allow something on a range (RPC ``RoleGrantPermission``).

        It takes the place of what the role allowed on exactly the same range.

        Args:
            role: The role's name.
            permission: What may be done there.
            key: The key, the prefix, or the first key of the range.
            prefix: All keys that begin with `key`; with ``""`` all keys.
            range_end: The first key after the range; ``"\0"`` means no end.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            ValueError: An empty name, an empty key, or both `prefix` and `range_end`.
            TypeError: An argument of the wrong type.
            AuthError: There is no such role.
            EtcdError: By cause; see its `maybe_applied`.

        Example:
            await client.auth.add_role("reader")
            await client.auth.grant_permission("reader", PermissionType.READ, "/c/", prefix=True)
            (permission,) = (await client.auth.role("reader")).permissions
            permission.key, permission.range_end  # (b"/c/", b"/c0")
            await client.auth.delete_role("reader")
        """
        if not isinstance(permission, PermissionType):
            kind = type(permission).__name__
            raise TypeError(f"permission must be a PermissionType, not {kind}")
        start, end = key_range(key, prefix, range_end)
        perm = auth_pb2.Permission(
            permType=int(permission),  # type: ignore[arg-type]
            key=start,
            range_end=end,
        )
        request = rpc_pb2.AuthRoleGrantPermissionRequest(name=check_text("role", role), perm=perm)
        response = await self._calls.unary(ROLE_GRANT_PERMISSION, request, timeout)
        return AuthResponse(_decode.header(response.header))

    async def revoke_permission(
        self,
        role: str,
        key: str | bytes,
        *,
        prefix: bool = False,
        range_end: str | bytes | None = None,
        timeout: float | Default | None = DEFAULT,
    ) -> AuthResponse:
        r"""Have a role allow nothing on a range any more (RPC ``RoleRevokePermission``).

        It must be exactly the range of a permission.

        Args:
            role: The role's name.
            key: The key, the prefix, or the first key of the range.
            prefix: All keys that begin with `key`; with ``""`` all keys.
            range_end: The first key after the range; ``"\0"`` means no end.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            ValueError: An empty name, an empty key, or both `prefix` and `range_end`.
            TypeError: An argument of the wrong type.
            AuthError: There is no such role, or it has not this permission.
            EtcdError: By cause; see its `maybe_applied`.

        Example:
            await client.auth.add_role("reader")
            await client.auth.grant_permission("reader", PermissionType.READ, "/c/", prefix=True)
            await client.auth.revoke_permission("reader", "/c/", prefix=True)
            (await client.auth.role("reader")).permissions  # ()
            await client.auth.delete_role("reader")
        """
        start, end = key_range(key, prefix, range_end)
        request = rpc_pb2.AuthRoleRevokePermissionRequest(
            role=check_text("role", role), key=start, range_end=end
        )
        response = await self._calls.unary(ROLE_REVOKE_PERMISSION, request, timeout)
        return AuthResponse(_decode.header(response.header))
