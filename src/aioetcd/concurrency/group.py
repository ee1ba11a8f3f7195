"""A group: members that are there as long as they live, and that everybody can see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, overload

from aioetcd._constructor import NoPublicConstructor, create
from aioetcd.concurrency._parts import Parts
from aioetcd.concurrency.cache import Cache
from aioetcd.concurrency.registration import Registration
from aioetcd.keys import encode_key

__all__ = ["Group"]

_T = TypeVar("_T")


class Group(metaclass=NoPublicConstructor):
    """Members that come and go; ``client.group(name)`` makes it, which sends nothing.

    A member is a key, the group's name and a slash before its own, on a lease of its own.

    Example:
        group = client.group("/workers")
        async with group.join("host-7", "10.0.0.7:80"), group.members() as members:
            dict(members)  # {b"host-7": b"10.0.0.7:80"}
    """

    def __init__(self, parts: Parts, name: bytes, below: Parts) -> None:
        self._parts = parts
        self._name = name
        self._below = below

    def __repr__(self) -> str:
        """Show the name."""
        return f"<Group {self._name!r}>"

    def join(self, member: str | bytes, value: str | bytes = b"", *, ttl: int = 10) -> Registration:
        """Make a membership, for an ``async with``: a registration, which comes back when lost.

        It costs a lease, kept alive, a put, and a watch on its key. Nothing is sent before it is
        entered.

        Args:
            member: The member's name; who joins with another's takes its place.
            value: What others see.
            ttl: Seconds after which it is gone when this process is, from 1 to 9 000 000 000.

        Raises:
            ValueError: An empty name, or `ttl` out of its limits.
            TypeError: An argument of the wrong type.

        Example:
            async with client.group("/workers").join("host-7", "10.0.0.7:80") as membership:
                membership.is_registered  # True
        """
        key = self._name + b"/" + encode_key(member, "member")
        return create(Registration, self._parts, key, value, ttl=ttl)

    @overload
    def members(self) -> Cache[bytes]: ...

    @overload
    def members(self, *, decode: Callable[[bytes], _T]) -> Cache[_T]: ...

    def members(self, *, decode: Callable[[bytes], Any] = bytes) -> Cache[Any]:
        """Make a mapping of who is there, by name, for an ``async with``; it follows the group.

        It costs one watch. Nothing is sent before it is entered.

        Args:
            decode: Makes of a value what the mapping has: ``bytes.decode``, ``json.loads``.

        Raises:
            TypeError: `decode` is no function.

        Example:
            group = client.group("/workers")
            async with group.members(decode=bytes.decode) as members:
                async with group.join("host-7", "ready"):
                    await members.wait_until(lambda members: len(members) >= 1)
                    members["host-7"]  # "ready"
        """
        return create(Cache, self._below, b"", prefix=True, decode=decode)
