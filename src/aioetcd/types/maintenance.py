"""What the service of maintenance answers."""

from __future__ import annotations

import enum

from aioetcd.types.store import ResponseHeader
from aioetcd.types.value import Value


class Status(Value):
    """How a member is.

    Attributes:
        header: Its ``member_id`` is the member's.
        version: The version of etcd that it runs.
        db_size: Bytes that its database takes on the disk.
        db_size_in_use: Bytes of these that hold something; the rest is what `defragment` frees.
        leader: The id of the leader, as far as it knows; None where it knows none.
        raft_index: The last entry of raft's log that it knows to be committed.
        raft_applied_index: The last one that it has applied.
        raft_term: The election term.
        errors: What is wrong with it, such as alarms.
        is_learner: Whether it is a learner.
        storage_version: The version of its data's format; None before 3.6, and in a new member's
            first seconds.
        db_size_quota: Bytes that the database may take; None before 3.6.
        downgrade_target: The version that the cluster is being downgraded to; None where it is not.
    """

    __slots__ = (
        "db_size",
        "db_size_in_use",
        "db_size_quota",
        "downgrade_target",
        "errors",
        "header",
        "is_learner",
        "leader",
        "raft_applied_index",
        "raft_index",
        "raft_term",
        "storage_version",
        "version",
    )

    header: ResponseHeader
    version: str
    db_size: int
    db_size_in_use: int
    leader: int | None
    raft_index: int
    raft_applied_index: int
    raft_term: int
    errors: tuple[str, ...]
    is_learner: bool
    storage_version: str | None
    db_size_quota: int | None
    downgrade_target: str | None

    @property
    def is_leader(self) -> bool:
        """Whether it is the leader."""
        return self.leader == self.header.member_id


class AlarmType(enum.IntEnum):
    """What etcd raises alarms for; it prints as its name.

    Attributes:
        NOSPACE: A member's storage quota is used up: writes are refused until it is disarmed.
        CORRUPT: A member's data differs from the others'.
    """

    NOSPACE = 1
    CORRUPT = 2

    def __str__(self) -> str:
        """Give the name."""
        return self.name

    __format__ = enum.Enum.__format__


class Alarm(Value):
    """An alarm.

    Attributes:
        member_id: The member that raised it.
        type: What for; an int for what this version of aioetcd does not know.
    """

    __slots__ = ("member_id", "type")

    member_id: int
    type: AlarmType | int


class AlarmList(Value):
    """Alarms.

    Attributes:
        header: The state of the store.
        alarms: They.
    """

    __slots__ = ("alarms", "header")

    header: ResponseHeader
    alarms: tuple[Alarm, ...]


class HashResponse(Value):
    """The hash of a member's whole database.

    Attributes:
        header: Its ``member_id`` is the member's.
        hash: The hash.
    """

    __slots__ = ("hash", "header")

    header: ResponseHeader
    hash: int


class HashKVResponse(Value):
    """The hash of a member's keys up to a revision.

    Members with the same data have the same hash where their `compact_revision` and `hash_revision`
    are the same.

    Attributes:
        header: Its ``member_id`` is the member's.
        hash: The hash.
        compact_revision: Where the member's history begins.
        hash_revision: The revision of what was hashed; None before 3.6.
    """

    __slots__ = ("compact_revision", "hash", "hash_revision", "header")

    header: ResponseHeader
    hash: int
    compact_revision: int
    hash_revision: int | None


class DowngradeResponse(Value):
    """The answer to a step of a downgrade.

    Attributes:
        header: Who answered.
        version: The cluster's version then.
    """

    __slots__ = ("header", "version")

    header: ResponseHeader
    version: str


class SnapshotChunk(Value):
    """A part of a snapshot.

    Attributes:
        data: Bytes of the file; the last 32 of all are the SHA-256 of those before.
        remaining: The bytes of the database that are still to come.
        version: The version of etcd that wrote it; None before 3.6.
    """

    __slots__ = ("data", "remaining", "version")

    data: bytes
    remaining: int
    version: str | None

    def __repr__(self) -> str:
        """Show how much it is."""
        return f"<SnapshotChunk {len(self.data)} bytes, {self.remaining} remaining>"
