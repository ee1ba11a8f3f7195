"""What the store holds, and what changes in it."""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

from aioetcd.types.value import Value, short

_new_tuple = tuple.__new__  # a named tuple's own __new__ costs twice as much


class EventType(enum.IntEnum):
    """What happened to a key; it prints as its name.

    Attributes:
        PUT: It was written.
        DELETE: It was deleted, perhaps because its lease ended.
    """

    PUT = 0
    DELETE = 1

    def __str__(self) -> str:
        """Give the name."""
        return self.name

    __format__ = enum.Enum.__format__  # else f"{event.type}" would be the number


class SortOrder(enum.IntEnum):
    """The order of a sorted `get`.

    Attributes:
        NONE: The server's own: by key, ascending; by another target, ascending too.
        ASCEND: From the least on.
        DESCEND: From the greatest on.
    """

    NONE = 0
    ASCEND = 1
    DESCEND = 2


class SortTarget(enum.IntEnum):
    """What a `get` sorts by.

    Attributes:
        KEY: The key, byte by byte.
        VERSION: How often it was put since it was created.
        CREATE: The revision that created it.
        MOD: The revision that last changed it.
        VALUE: The value, byte by byte.
    """

    KEY = 0
    VERSION = 1
    CREATE = 2
    MOD = 3
    VALUE = 4


class ResponseHeader(NamedTuple):
    """What etcd says about itself with each answer.

    Attributes:
        cluster_id: The cluster that answered.
        member_id: The member that answered.
        revision: The store's revision when it answered, which is not the revision of the data.
        raft_term: The election term.
    """

    cluster_id: int
    member_id: int
    revision: int
    raft_term: int


class KeyValue(NamedTuple):
    """A key with its value and history.

    Attributes:
        key: The key.
        value: The value; empty in a ``keys_only`` answer and in a DELETE event.
        create_revision: The revision that created the key.
        mod_revision: The revision that last changed it.
        version: How often it was put since it was created; the first put makes it 1.
        lease: The id of the lease that it hangs on, or None. Servers from 3.7 on leave it out of
            ``keys_only`` answers.
    """

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int | None

    @property
    def text(self) -> str:
        """The value as text.

        Raises:
            UnicodeDecodeError: It is not UTF-8.
        """
        return self.value.decode()

    def __repr__(self) -> str:
        """Show the key, the start of the value, and the last change."""
        change = f"mod_revision={self.mod_revision}"
        return f"<KeyValue {short(self.key)}={short(self.value)} {change}>"


class Event:
    """One change of one key, as a watch delivers it.

    Attributes:
        type: PUT or DELETE.
        kv: The key after the change. A DELETE's has only ``key`` and ``mod_revision``.
        prev_kv: The key before the change: None unless the watch asked with ``prev_kv=True``,
            where the change created the key, and where the old revision is compacted already.
    """

    __match_args__ = ("type", "kv", "prev_kv")

    # Flat: `kv` is made when it is asked for, which halves the objects of a large replay, and the
    # time that the garbage collector spends on them.
    __slots__ = (
        "_create_revision",
        "_key",
        "_lease",
        "_mod_revision",
        "_prev_kv",
        "_type",
        "_value",
        "_version",
    )

    def __init__(self, type: EventType, kv: KeyValue, prev_kv: KeyValue | None = None) -> None:
        self._type = type
        (
            self._key,
            self._value,
            self._create_revision,
            self._mod_revision,
            self._version,
            self._lease,
        ) = kv
        self._prev_kv = prev_kv

    @property
    def type(self) -> EventType:
        """PUT or DELETE."""
        return self._type

    @property
    def kv(self) -> KeyValue:
        """The key after the change. A DELETE's has only ``key`` and ``mod_revision``."""
        return _new_tuple(
            KeyValue,
            (
                self._key,
                self._value,
                self._create_revision,
                self._mod_revision,
                self._version,
                self._lease,
            ),
        )

    @property
    def prev_kv(self) -> KeyValue | None:
        """The key before the change, where it was asked for and is known."""
        return self._prev_kv

    @property
    def mod_revision(self) -> int:
        """The revision of the change, as in ``kv.mod_revision``.

        A revision may have more events: a txn that puts five keys makes five. So it is not where to
        resume a watch that was left after this event, which would skip the others; that is
        `Watch.revision` + 1.
        """
        return self._mod_revision

    @property
    def is_create(self) -> bool:
        """Whether this put made a key that was not there."""
        return self._type == EventType.PUT and self._create_revision == self._mod_revision

    @property
    def is_modify(self) -> bool:
        """Whether this put changed a key that was there."""
        return self._type == EventType.PUT and self._create_revision != self._mod_revision

    def __repr__(self) -> str:
        """Show the type and the key."""
        return f"<Event {self._type.name} {self.kv!r}>"

    def __eq__(self, other: object) -> bool:
        """Equal where type, key and previous key are."""
        if not isinstance(other, Event):
            return NotImplemented
        return self._parts() == other._parts()

    def __hash__(self) -> int:
        """Hash all parts."""
        return hash(self._parts())

    def __reduce__(self) -> tuple[Any, ...]:
        """Give what makes it again, for copies and pickles."""
        return Event, self._parts()

    def _parts(self) -> tuple[EventType, KeyValue, KeyValue | None]:
        return self._type, self.kv, self._prev_kv


class Batch(Value):
    """What a watch got at once: all events of one or more whole revisions.

    Attributes:
        events: In order. Empty in a progress bookmark.
        revision: Everything up to this revision is handed over with this batch.
    """

    __slots__ = ("events", "revision")

    events: tuple[Event, ...]
    revision: int
