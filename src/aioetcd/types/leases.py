"""Leases, and what their service answers."""

from __future__ import annotations

from typing import Protocol, TypeAlias

from aioetcd.types.store import ResponseHeader
from aioetcd.types.value import Value


class Lease(Value):
    """A lease that was granted.

    Attributes:
        header: The state of the store; where an answer was lost and the call repeated, a later one.
        id: The lease's id.
        ttl: Seconds to live as the server granted them, which may be more than were asked for.
    """

    __slots__ = ("header", "id", "ttl")

    header: ResponseHeader
    id: int
    ttl: int


class LeaseRenewal(Value):
    """One answered renewal of a lease.

    Attributes:
        header: The state of the store just before the renewal.
        id: The lease's id.
        ttl: Seconds to live from now on, counted from the renewal's sending.
    """

    __slots__ = ("header", "id", "ttl")

    header: ResponseHeader
    id: int
    ttl: int


class LeaseTimeToLive(Value):
    """What is left of a lease.

    Attributes:
        header: The state of the store.
        id: The lease's id.
        ttl: Seconds left, rounded down.
        granted_ttl: Seconds that it was granted with.
        keys: The keys attached to it, where asked for.
    """

    __slots__ = ("granted_ttl", "header", "id", "keys", "ttl")

    header: ResponseHeader
    id: int
    ttl: int
    granted_ttl: int
    keys: tuple[bytes, ...]


class LeaseList(Value):
    """The leases that the answering member knows.

    Attributes:
        header: The state of the store.
        ids: Their ids.
    """

    __slots__ = ("header", "ids")

    header: ResponseHeader
    ids: tuple[int, ...]


class LeaseRevokeResponse(Value):
    """The answer to a revocation.

    Attributes:
        header: Its ``revision`` is the one that deleted the lease's keys, if there were any; where
            an answer was lost and the call repeated, that of a later answer.
    """

    __slots__ = ("header",)

    header: ResponseHeader


class HasLease(Protocol):
    """What stands on a lease: a `Session`, a `Lock`."""

    @property
    def lease_id(self) -> int:
        """The lease's id."""


LeaseLike: TypeAlias = int | Lease | HasLease
"""What names a lease: its id, the `Lease` as it was granted, or a `Session` or `Lock` on it."""
