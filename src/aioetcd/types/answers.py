"""What the KV service answers."""

from __future__ import annotations

from collections.abc import Mapping

from aioetcd.types.store import KeyValue, ResponseHeader
from aioetcd.types.value import Value


class OpResponse(Value):
    """The answer to an operation of a txn: what the single call would have given.

    It is a `GetResponse`, `PutResponse`, `DeleteResponse` or `TxnResponse`.

    Attributes:
        header: Inside a txn it is empty but for the revision, and of a nested txn empty: read
            that of the whole `TxnResponse`.
    """

    __slots__ = ("header",)

    header: ResponseHeader


class PutResponse(OpResponse):
    """The answer to a put.

    Attributes:
        header: Its ``revision`` is the one that the put made.
        prev_kv: The key before, where it was asked for and there was one.
    """

    __slots__ = ("prev_kv",)

    prev_kv: KeyValue | None


class GetResponse(OpResponse):
    """The answer to a get.

    Attributes:
        header: Its ``revision`` is the store's, whatever ``revision`` was asked for.
        kvs: The keys found, in the order asked for.
        count: How many keys are in the range, whatever ``limit`` and the revision filters left.
        more: Whether ``limit`` cut the answer short.
    """

    __slots__ = ("count", "kvs", "more")

    kvs: tuple[KeyValue, ...]
    count: int
    more: bool

    @property
    def kv(self) -> KeyValue | None:
        """The first key found, or None where there is none."""
        return self.kvs[0] if self.kvs else None

    @property
    def value(self) -> bytes | None:
        """The first key's value, or None where there is no key."""
        return self.kvs[0].value if self.kvs else None

    @property
    def text(self) -> str | None:
        """The first key's value as text, or None where there is no key.

        Raises:
            UnicodeDecodeError: It is not UTF-8.
        """
        return self.kvs[0].text if self.kvs else None

    def as_dict(self) -> dict[bytes, bytes]:
        """Give the values by their keys, in the order asked for.

        Example:
            await kv.put("/config/a", "1")
            (await kv.get("/config/", prefix=True)).as_dict()  # {b"/config/a": b"1"}
        """
        return {kv.key: kv.value for kv in self.kvs}


class DeleteResponse(OpResponse):
    """The answer to a delete.

    Attributes:
        header: Its ``revision`` is the one that the delete made; the old one where nothing was
            deleted.
        deleted: How many keys were deleted.
        prev_kvs: These keys as they were, where asked for.
    """

    __slots__ = ("deleted", "prev_kvs")

    deleted: int
    prev_kvs: tuple[KeyValue, ...]


class GetManyResponse(Value):
    """The answer to a read of many keys, all at one revision.

    Attributes:
        header: Its ``revision`` is that one.
        kvs: For each key that was asked for, in that order, what was found; None for nothing.
    """

    __slots__ = ("header", "kvs")

    header: ResponseHeader
    kvs: tuple[KeyValue | None, ...]

    def as_dict(self) -> dict[bytes, bytes]:
        """Give the values of those found by their keys, in the order asked for.

        Example:
            await kv.put("/config/a", "1")
            found = await kv.get_many(["/config/a", "/config/b"])
            found.as_dict()  # {b"/config/a": b"1"}
        """
        return {kv.key: kv.value for kv in self.kvs if kv is not None}


class PutManyResponse(Value):
    """The answer to a put of many keys.

    Attributes:
        revisions: By key, the revision that wrote it.
    """

    __slots__ = ("revisions",)

    revisions: Mapping[bytes, int]


class DeleteManyResponse(Value):
    """The answer to a deletion of many keys.

    Attributes:
        deleted: Those that were there, in the order asked for.
    """

    __slots__ = ("deleted",)

    deleted: tuple[bytes, ...]


class CompactResponse(Value):
    """The answer to a compaction.

    Attributes:
        header: The state of the store.
    """

    __slots__ = ("header",)

    header: ResponseHeader
