"""The comparisons of a txn, as values."""

from __future__ import annotations

from typing import Any, ClassVar, Generic, TypeVar

from aioetcd._checks import INT64_MIN, check_int
from aioetcd._constructor import NoPublicConstructor, create
from aioetcd._proto import rpc_pb2
from aioetcd.keys import encode, key_range
from aioetcd.types.store import KeyValue
from aioetcd.types.value import short

__all__ = ["Compare", "CompareTarget"]

_Operand_contra = TypeVar("_Operand_contra", contravariant=True)

_TARGETS = {
    "version": rpc_pb2.Compare.VERSION,
    "create_revision": rpc_pb2.Compare.CREATE,
    "mod_revision": rpc_pb2.Compare.MOD,
    "value": rpc_pb2.Compare.VALUE,
    "lease": rpc_pb2.Compare.LEASE,
}
_FIELDS = {target: field for field, target in _TARGETS.items()}
_SIGNS = {
    rpc_pb2.Compare.EQUAL: "==",
    rpc_pb2.Compare.NOT_EQUAL: "!=",
    rpc_pb2.Compare.GREATER: ">",
    rpc_pb2.Compare.LESS: "<",
}


class Compare(metaclass=NoPublicConstructor):
    """One comparison of a txn, written ``Compare.version("key") == 1``.

    A key that does not exist compares as if its revisions, version and lease were 0; comparing
    its *value* never holds, not even with ``!=``. Over a range, all keys found must satisfy the
    comparison, and a range without keys is as one that does not exist.

    Making one sends nothing. It is a value that nobody changes: it may be used again, and shared.

    Example:
        result = await client.kv.txn(
            compare=[Compare.missing("/jobs/7"), Compare.version("/jobs/6") < 2],
            success=[Op.put("/jobs/7", "mine")],
        )
        result.succeeded  # True
    """

    __slots__ = ("_message",)

    def __init__(self, message: rpc_pb2.Compare) -> None:
        self._message = message

    def __bool__(self) -> bool:
        """Refuse: the server decides, and ``a == b == c`` would be half lost."""
        raise TypeError("a Compare is for kv.txn(compare=[...]); it has no truth value of its own")

    def __repr__(self) -> str:
        """Show what is compared."""
        message = self._message
        field = _FIELDS[message.target]
        end = f"..{message.range_end!r}" if message.range_end else ""
        sign = _SIGNS[message.result]
        operand = getattr(message, field)
        shown = short(operand) if isinstance(operand, bytes) else operand
        return f"<Compare {field} of {short(message.key)}{end} {sign} {shown}>"

    @staticmethod
    def missing(
        key: str | bytes, *, prefix: bool = False, range_end: str | bytes | None = None
    ) -> Compare:
        """Hold where the key does not exist; of a range, where it has no key at all.

        The arguments are those of `KV.get`.

        Raises:
            ValueError: An empty key, or both `prefix` and `range_end`.
            TypeError: A key that is neither str nor bytes.

        Example:
            free = Compare.missing("/leader")
            result = await kv.txn(compare=[free], success=[Op.put("/leader", "alice")])
            result.succeeded  # True
        """
        return Compare.create_revision(key, prefix=prefix, range_end=range_end) == 0

    @staticmethod
    def exists(
        key: str | bytes, *, prefix: bool = False, range_end: str | bytes | None = None
    ) -> Compare:
        """Hold where the key exists; of a range, where it has a key.

        The arguments are those of `KV.get`.

        Raises:
            ValueError: An empty key, or both `prefix` and `range_end`.
            TypeError: A key that is neither str nor bytes.

        Example:
            known = Compare.exists("/users/alice")
            result = await kv.txn(compare=[known], success=[Op.put("/orders/1", "alice")])
            result.succeeded  # False
        """
        return Compare.create_revision(key, prefix=prefix, range_end=range_end) != 0

    @staticmethod
    def unchanged(kv: KeyValue) -> Compare:
        """Hold where a key was neither changed nor deleted since it was read.

        Args:
            kv: What a `get` gave.

        Raises:
            TypeError: It is no `KeyValue`: there was no such key, perhaps.

        Example:
            await kv.put("/counter", "1")
            got = await kv.get("/counter")
            if got.kv is not None:
                same, write = Compare.unchanged(got.kv), Op.put("/counter", "2")
                (await kv.txn(compare=[same], success=[write])).succeeded  # True
        """
        if not isinstance(kv, KeyValue):
            hint = " (where there was no key: Compare.missing(key))" if kv is None else ""
            raise TypeError(f"kv must be a KeyValue, not {type(kv).__name__}{hint}")
        if not kv.version:  # of the event of a deletion
            return Compare.missing(kv.key)
        return Compare.mod_revision(kv.key) == kv.mod_revision

    @staticmethod
    def version(
        key: str | bytes, *, prefix: bool = False, range_end: str | bytes | None = None
    ) -> CompareTarget[int]:
        """Compare how often the key was put since its creation; 0 means that it is missing.

        The arguments are those of `KV.get`.

        Raises:
            ValueError: An empty key, or both `prefix` and `range_end`.
            TypeError: A key that is neither str nor bytes.

        Example:
            await kv.put("/config/a", "1")
            once = Compare.version("/config/a") == 1
            result = await kv.txn(compare=[once], success=[Op.put("/config/a", "2")])
            result.succeeded  # True
        """
        return create(CompareTarget, "version", key, prefix, range_end)

    @staticmethod
    def create_revision(
        key: str | bytes, *, prefix: bool = False, range_end: str | bytes | None = None
    ) -> CompareTarget[int]:
        """Compare the revision that created the key; 0 means that it is missing.

        The arguments are those of `KV.get`.

        Raises:
            ValueError: An empty key, or both `prefix` and `range_end`.
            TypeError: A key that is neither str nor bytes.

        Example:
            put = await kv.put("/leader", "alice")
            still = Compare.create_revision("/leader") == put.header.revision
            result = await kv.txn(compare=[still], success=[Op.put("/report", "by alice")])
            result.succeeded  # True
        """
        return create(CompareTarget, "create_revision", key, prefix, range_end)

    @staticmethod
    def mod_revision(
        key: str | bytes, *, prefix: bool = False, range_end: str | bytes | None = None
    ) -> CompareTarget[int]:
        """Compare the revision of the key's last change; 0 means that it is missing.

        The arguments are those of `KV.get`.

        Raises:
            ValueError: An empty key, or both `prefix` and `range_end`.
            TypeError: A key that is neither str nor bytes.

        Example:
            seen = (await kv.put("/config/a", "1")).header.revision
            quiet = Compare.mod_revision("/config/", prefix=True) < seen + 1
            result = await kv.txn(compare=[quiet], success=[Op.put("/checked", "yes")])
            result.succeeded  # True
        """
        return create(CompareTarget, "mod_revision", key, prefix, range_end)

    @staticmethod
    def value(
        key: str | bytes, *, prefix: bool = False, range_end: str | bytes | None = None
    ) -> CompareTarget[str | bytes]:
        """Compare the value, byte by byte.

        A key that does not exist has none: nothing holds for it.

        The arguments are those of `KV.get`.

        Raises:
            ValueError: An empty key, or both `prefix` and `range_end`.
            TypeError: A key that is neither str nor bytes.

        Example:
            await kv.put("/state", "idle")
            idle = Compare.value("/state") == "idle"
            result = await kv.txn(compare=[idle], success=[Op.put("/state", "busy")])
            result.succeeded  # True
        """
        return create(CompareTarget, "value", key, prefix, range_end)

    @staticmethod
    def lease(
        key: str | bytes, *, prefix: bool = False, range_end: str | bytes | None = None
    ) -> CompareTarget[int]:
        """Compare the id of the key's lease; 0 means that it has none.

        The arguments are those of `KV.get`.

        Raises:
            ValueError: An empty key, or both `prefix` and `range_end`.
            TypeError: A key that is neither str nor bytes.

        Example:
            await kv.put("/services/a", "10.0.0.7:80")
            lasting = Compare.lease("/services/a") == 0
            result = await kv.txn(compare=[lasting], success=[Op.delete("/services/a")])
            result.succeeded  # True
        """
        return create(CompareTarget, "lease", key, prefix, range_end)


class CompareTarget(Generic[_Operand_contra], metaclass=NoPublicConstructor):
    """The left side of a comparison; ``==``, ``!=``, ``<`` and ``>`` make it a `Compare`.

    A value is compared with str (UTF-8) or bytes, everything else with an int from 0 on (a lease's
    id may be negative). What does not fit raises `TypeError` or `ValueError`.

    Example:
        target = Compare.version("/config/a")
        repr(target == 1)  # "<Compare version of b'/config/a' == 1>"
    """

    __slots__ = ("_field", "_key", "_range_end")

    def __init__(
        self, field: str, key: str | bytes, prefix: bool, range_end: str | bytes | None
    ) -> None:
        self._field = field
        self._key, self._range_end = key_range(key, prefix, range_end)

    def __repr__(self) -> str:
        """Show what is still to be compared."""
        return f"<CompareTarget {self._field} of {self._key!r}>"

    def _compare(self, result: rpc_pb2.Compare.CompareResult.ValueType, operand: object) -> Compare:
        options: dict[str, Any] = {}
        if self._field == "value":
            options["value"] = encode("value", operand)  # type: ignore[arg-type]  # it checks
        else:
            least = INT64_MIN if self._field == "lease" else 0
            options[self._field] = check_int(self._field, operand, least)  # type: ignore[arg-type]
        if self._range_end:
            options["range_end"] = self._range_end
        target = _TARGETS[self._field]
        message = rpc_pb2.Compare(result=result, target=target, key=self._key, **options)
        return create(Compare, message)

    # Python's own signatures say object and bool: that these take what fits the target, and give a
    # Compare, is their whole purpose.
    def __eq__(self, operand: _Operand_contra) -> Compare:  # type: ignore[override]
        """Hold where the key's is equal to `operand`."""
        return self._compare(rpc_pb2.Compare.EQUAL, operand)

    def __ne__(self, operand: _Operand_contra) -> Compare:  # type: ignore[override]
        """Hold where the key's differs from `operand`."""
        return self._compare(rpc_pb2.Compare.NOT_EQUAL, operand)

    def __gt__(self, operand: _Operand_contra) -> Compare:
        """Hold where the key's is greater than `operand`."""
        return self._compare(rpc_pb2.Compare.GREATER, operand)

    def __lt__(self, operand: _Operand_contra) -> Compare:
        """Hold where the key's is less than `operand`."""
        return self._compare(rpc_pb2.Compare.LESS, operand)

    __hash__: ClassVar[None]  # type: ignore[assignment]  # equality means something else here
