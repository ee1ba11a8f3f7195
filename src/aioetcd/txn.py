"""The parts of a txn: comparisons and operations, as values.

An `Op` is also what a single call sends: ``kv.get(...)`` is ``Op.get(...)`` by itself, so that
each option is checked and encoded in one place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from aioetcd._proto import rpc_pb2
from aioetcd.ranges import (
    INT64_MAX,
    INT64_MIN,
    check_int,
    check_lease_id,
    encode,
    encode_key,
    key_range,
)
from aioetcd.types import SortOrder, SortTarget

_Message = TypeVar(
    "_Message",
    rpc_pb2.RangeRequest,
    rpc_pb2.PutRequest,
    rpc_pb2.DeleteRangeRequest,
    rpc_pb2.TxnRequest,
)

_ORDERS = frozenset(SortOrder)
_TARGETS = frozenset(SortTarget)


class Op(Generic[_Message]):
    """One operation of a txn; made by `Op.get`, `Op.put`, `Op.delete` and `Op.txn`.

    Attributes:
        request: The protobuf request. Do not change it.
        is_read: Whether it only reads.
    """

    __slots__ = ("is_read", "request")

    # The name of the request's field in etcd's RequestOp.
    _fields: ClassVar[dict[type, str]] = {
        rpc_pb2.RangeRequest: "request_range",
        rpc_pb2.PutRequest: "request_put",
        rpc_pb2.DeleteRangeRequest: "request_delete_range",
        rpc_pb2.TxnRequest: "request_txn",
    }

    request: _Message
    is_read: bool

    def __init__(self, request: _Message, *, is_read: bool) -> None:
        self.request = request
        self.is_read = is_read

    def __eq__(self, other: object) -> bool:
        """Equal where the same request would be sent."""
        return isinstance(other, Op) and self.request == other.request

    __hash__ = None  # type: ignore[assignment]  # a protobuf message has no hash either

    def __repr__(self) -> str:
        """Show the kind and the key."""
        name = type(self.request).__name__.removesuffix("Request")
        if isinstance(self.request, rpc_pb2.TxnRequest):
            return f"<Op {name}>"
        return f"<Op {name} {self.request.key!r}>"

    def to_message(self) -> rpc_pb2.RequestOp:
        """Wrap the request as etcd wants it inside a txn."""
        options: dict[str, Any] = {self._fields[type(self.request)]: self.request}
        return rpc_pb2.RequestOp(**options)

    @staticmethod
    def get(
        key: str | bytes,
        *,
        prefix: bool = False,
        range_end: str | bytes | None = None,
        limit: int | None = None,
        revision: int | None = None,
        sort_order: SortOrder = SortOrder.NONE,
        sort_target: SortTarget = SortTarget.KEY,
        serializable: bool = False,
        keys_only: bool = False,
        count_only: bool = False,
        min_mod_revision: int | None = None,
        max_mod_revision: int | None = None,
        min_create_revision: int | None = None,
        max_create_revision: int | None = None,
    ) -> Op[rpc_pb2.RangeRequest]:
        """Read a key or a range; the options are those of `KV.get`."""
        start, end = key_range(key, prefix, range_end)
        request = rpc_pb2.RangeRequest(key=start)
        if end is not None:
            request.range_end = end
        if limit is not None:
            request.limit = check_int("limit", limit, 1)
        if revision is not None:
            request.revision = check_int("revision", revision, 1)
        if sort_order not in _ORDERS:
            raise ValueError(f"sort_order must be a SortOrder, not {sort_order!r}")
        if sort_target not in _TARGETS:
            raise ValueError(f"sort_target must be a SortTarget, not {sort_target!r}")
        if sort_target != SortTarget.KEY:
            request.sort_target = int(sort_target)  # type: ignore[assignment]
            # Without an order, etcd applies the limit before it sorts and returns wrong keys.
            request.sort_order = int(sort_order or SortOrder.ASCEND)  # type: ignore[assignment]
        elif sort_order == SortOrder.DESCEND:
            # By key and ascending is the server's own order, and asking for it costs a full sort.
            request.sort_order = int(SortOrder.DESCEND)  # type: ignore[assignment]
        if serializable:
            request.serializable = True
        if keys_only:
            request.keys_only = True
        if count_only:
            request.count_only = True
        if min_mod_revision is not None:
            request.min_mod_revision = check_int("min_mod_revision", min_mod_revision, 1)
        if max_mod_revision is not None:
            request.max_mod_revision = check_int("max_mod_revision", max_mod_revision, 1)
        if min_create_revision is not None:
            request.min_create_revision = check_int("min_create_revision", min_create_revision, 1)
        if max_create_revision is not None:
            request.max_create_revision = check_int("max_create_revision", max_create_revision, 1)
        return Op(request, is_read=True)

    @staticmethod
    def put(
        key: str | bytes,
        value: str | bytes | None = None,
        *,
        lease: int | None = None,
        prev_kv: bool = False,
        ignore_value: bool = False,
        ignore_lease: bool = False,
    ) -> Op[rpc_pb2.PutRequest]:
        """Write a key; the options are those of `KV.put`."""
        request = rpc_pb2.PutRequest(key=encode_key(key))
        if ignore_value:
            if value is not None:
                raise ValueError("value must be left out with ignore_value: the old one stays")
            request.ignore_value = True
        elif value is None:
            raise ValueError("value is missing (ignore_value=True keeps the old one)")
        else:
            request.value = encode("value", value)
        if ignore_lease:
            if lease is not None:
                raise ValueError("lease must be left out with ignore_lease: the old one stays")
            request.ignore_lease = True
        elif lease is not None:
            request.lease = check_lease_id("lease", lease)
        if prev_kv:
            request.prev_kv = True
        return Op(request, is_read=False)

    @staticmethod
    def delete(
        key: str | bytes,
        *,
        prefix: bool = False,
        range_end: str | bytes | None = None,
        prev_kv: bool = False,
    ) -> Op[rpc_pb2.DeleteRangeRequest]:
        """Delete a key or a range; the options are those of `KV.delete`."""
        start, end = key_range(key, prefix, range_end)
        request = rpc_pb2.DeleteRangeRequest(key=start, prev_kv=prev_kv)
        if end is not None:
            request.range_end = end
        return Op(request, is_read=False)

    @staticmethod
    def txn(
        *,
        compare: Sequence[Compare] = (),
        success: Sequence[AnyOp] = (),
        failure: Sequence[AnyOp] = (),
    ) -> Op[rpc_pb2.TxnRequest]:
        """Compare, then do one of two branches.

        Args:
            compare: All must hold for `success` to be executed. The comparisons of nested txns
                too are made before any operation of the outer one.
            success: Operations, executed in order.
            failure: Operations for the other case.
        """
        request = rpc_pb2.TxnRequest()
        compare = _checked("compare", Compare, compare)
        success = _checked("success", Op, success)
        failure = _checked("failure", Op, failure)
        request.compare.extend([item.to_message() for item in compare])
        request.success.extend([op.to_message() for op in success])
        request.failure.extend([op.to_message() for op in failure])
        return Op(request, is_read=all(op.is_read for op in (*success, *failure)))


AnyOp = (
    Op[rpc_pb2.RangeRequest]
    | Op[rpc_pb2.PutRequest]
    | Op[rpc_pb2.DeleteRangeRequest]
    | Op[rpc_pb2.TxnRequest]
)

_Item = TypeVar("_Item")


def _checked(name: str, kind: type, items: Sequence[_Item]) -> Sequence[_Item]:
    if not isinstance(items, Iterable):
        raise TypeError(f"{name} must be a sequence of {kind.__name__}, not {type(items).__name__}")
    items = tuple(items)  # it may be a generator, and is gone through more than once
    for item in items:
        if not isinstance(item, kind):
            hint = " (write Compare.version(key) == 1)" if isinstance(item, Target) else ""
            raise TypeError(f"{name} must hold {kind.__name__}, not {type(item).__name__}{hint}")
    return items


class Compare:
    """One comparison of a txn, written ``Compare.version("key") == 1``.

    A key that does not exist compares as if its revisions, version and lease were 0; comparing
    its *value* never holds, not even with ``!=``. Over a range, all keys found must satisfy the
    comparison, and a range without keys is as one that does not exist.
    """

    __slots__ = ("_message",)

    def __init__(self, message: rpc_pb2.Compare) -> None:
        self._message = message

    def to_message(self) -> rpc_pb2.Compare:
        """Give the protobuf message. Do not change it."""
        return self._message

    def __bool__(self) -> bool:
        """Refuse: the server decides, and ``a == b == c`` would be half lost."""
        raise TypeError("a Compare is for kv.txn(compare=[...]); it has no truth value of its own")

    def __repr__(self) -> str:
        """Show what is compared."""
        return f"<Compare {str(self._message).strip()!r}>".replace("\\n", ", ")

    @staticmethod
    def version(
        key: str | bytes, *, prefix: bool = False, range_end: str | bytes | None = None
    ) -> Target:
        """Compare how often the key was put since its creation; 0 means that it is missing."""
        return Target("version", key, prefix, range_end)

    @staticmethod
    def create_revision(
        key: str | bytes, *, prefix: bool = False, range_end: str | bytes | None = None
    ) -> Target:
        """Compare the revision that created the key; 0 means that it is missing."""
        return Target("create_revision", key, prefix, range_end)

    @staticmethod
    def mod_revision(
        key: str | bytes, *, prefix: bool = False, range_end: str | bytes | None = None
    ) -> Target:
        """Compare the revision of the key's last change; 0 means that it is missing."""
        return Target("mod_revision", key, prefix, range_end)

    @staticmethod
    def value(
        key: str | bytes, *, prefix: bool = False, range_end: str | bytes | None = None
    ) -> Target:
        """Compare the value, byte by byte."""
        return Target("value", key, prefix, range_end)

    @staticmethod
    def lease(
        key: str | bytes, *, prefix: bool = False, range_end: str | bytes | None = None
    ) -> Target:
        """Compare the id of the key's lease; 0 means that it has none."""
        return Target("lease", key, prefix, range_end)


class Target:
    """The left side of a comparison; ``==``, ``!=``, ``<`` and ``>`` make it a `Compare`."""

    __slots__ = ("_field", "_key", "_range_end")

    _targets: ClassVar[dict[str, rpc_pb2.Compare.CompareTarget.ValueType]] = {
        "version": rpc_pb2.Compare.VERSION,
        "create_revision": rpc_pb2.Compare.CREATE,
        "mod_revision": rpc_pb2.Compare.MOD,
        "value": rpc_pb2.Compare.VALUE,
        "lease": rpc_pb2.Compare.LEASE,
    }

    def __init__(
        self, field: str, key: str | bytes, prefix: bool, range_end: str | bytes | None
    ) -> None:
        self._field = field
        self._key, self._range_end = key_range(key, prefix, range_end)

    def _compare(self, result: rpc_pb2.Compare.CompareResult.ValueType, operand: object) -> Compare:
        options: dict[str, Any] = {}
        if self._field == "value":
            options["value"] = encode("value", operand)  # type: ignore[arg-type]  # it checks
        else:
            least = INT64_MIN if self._field == "lease" else 0
            options[self._field] = check_int(self._field, operand, least, INT64_MAX)  # type: ignore[arg-type]
        if self._range_end is not None:
            options["range_end"] = self._range_end
        return Compare(
            rpc_pb2.Compare(
                result=result, target=self._targets[self._field], key=self._key, **options
            )
        )

    # Python's own signatures say bool; that these give a Compare is their whole purpose.
    def __eq__(self, operand: object) -> Compare:  # type: ignore[override]
        """Hold where the key's is equal to `operand`."""
        return self._compare(rpc_pb2.Compare.EQUAL, operand)

    def __ne__(self, operand: object) -> Compare:  # type: ignore[override]
        """Hold where the key's differs from `operand`."""
        return self._compare(rpc_pb2.Compare.NOT_EQUAL, operand)

    def __gt__(self, operand: object) -> Compare:
        """Hold where the key's is greater than `operand`."""
        return self._compare(rpc_pb2.Compare.GREATER, operand)

    def __lt__(self, operand: object) -> Compare:
        """Hold where the key's is less than `operand`."""
        return self._compare(rpc_pb2.Compare.LESS, operand)

    __hash__ = None  # type: ignore[assignment]  # equality means something else here
