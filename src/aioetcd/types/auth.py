"""Users, roles and permissions, and what their service answers."""

from __future__ import annotations

import enum

from aioetcd.types.store import ResponseHeader
from aioetcd.types.value import Value


class PermissionType(enum.IntEnum):
    """What a permission allows; it prints as its name.

    Attributes:
        READ: To read and watch.
        WRITE: To write and delete.
        READWRITE: Both.
    """

    READ = 0
    WRITE = 1
    READWRITE = 2

    def __str__(self) -> str:
        """Give the name."""
        return self.name

    __format__ = enum.Enum.__format__


class Permission(Value):
    r"""What a role allows.

    Attributes:
        type: What may be done.
        key: The key, or the first one of the range.
        range_end: The first key after the range; None is the key alone, ``b"\0"`` no end.
    """

    __slots__ = ("key", "range_end", "type")

    type: PermissionType
    key: bytes
    range_end: bytes | None


class AuthStatus(Value):
    """Whether authentication is on.

    Attributes:
        header: The state of the store.
        enabled: Whether it is.
        revision: Counts the changes of users and roles.
    """

    __slots__ = ("enabled", "header", "revision")

    header: ResponseHeader
    enabled: bool
    revision: int


class User(Value):
    """A user.

    Attributes:
        header: The state of the store.
        name: The name.
        roles: The names of the user's roles.
    """

    __slots__ = ("header", "name", "roles")

    header: ResponseHeader
    name: str
    roles: tuple[str, ...]


class Role(Value):
    """A role.

    Attributes:
        header: The state of the store.
        name: The name.
        permissions: What it allows; the role ``root`` everything.
    """

    __slots__ = ("header", "name", "permissions")

    header: ResponseHeader
    name: str
    permissions: tuple[Permission, ...]


class UserList(Value):
    """All users.

    Attributes:
        header: The state of the store.
        names: Their names.
    """

    __slots__ = ("header", "names")

    header: ResponseHeader
    names: tuple[str, ...]


class RoleList(Value):
    """All roles.

    Attributes:
        header: The state of the store.
        names: Their names.
    """

    __slots__ = ("header", "names")

    header: ResponseHeader
    names: tuple[str, ...]


class AuthResponse(Value):
    """The answer to a change of users, roles or permissions.

    Attributes:
        header: The state of the store.
    """

    __slots__ = ("header",)

    header: ResponseHeader
