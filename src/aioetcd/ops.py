"""The operations of a txn, as values, and what they answer.

An `Op` is also what a single call sends: ``kv.get(...)`` is ``Op.get(...)`` by itself, so that
each option is checked and encoded in one place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

from aioetcd import _decode
from aioetcd._checks import check_flag, check_int, check_lease
from aioetcd._constructor import NoPublicConstructor, create
from aioetcd._proto import rpc_pb2
from aioetcd.compare import Compare, CompareTarget
from aioetcd.errors import EtcdError
from aioetcd.keys import encode, encode_key, key_range
from aioetcd.types.answers import DeleteResponse, GetResponse, OpResponse, PutResponse
from aioetcd.types.leases import LeaseLike
from aioetcd.types.store import SortOrder, SortTarget
from aioetcd.types.value import short

__all__ = ["AnyOp", "Op", "TxnResponse"]

# An enumeration gives its members slowly, and each read looks whether it is sorted.
_NONE, _KEY = SortOrder.NONE, SortTarget.KEY

_Response = TypeVar("_Response")
_Response_co = TypeVar("_Response_co", covariant=True)
_Item = TypeVar("_Item")


class Op(Generic[_Response_co], metaclass=NoPublicConstructor):
    """One operation of a txn; made by `Op.get`, `Op.put`, `Op.delete` and `Op.txn`.

    Its type says what it answers: `Op.get` makes an ``Op[GetResponse]``, and ``result[op]`` of the
    txn's `TxnResponse` is that answer. A list of different ones is a ``list[AnyOp]``.

    Making one sends nothing. It is a value that nobody changes: it may be used again, and shared.

    Example:
        read = Op.get("/jobs/7")
        result = await client.kv.txn(success=[Op.put("/jobs/7", "done"), read])
        result[read].value  # b"done"
    """

    __slots__ = ("_request",)

    # The names of the fields in etcd's RequestOp and ResponseOp.
    _request_field: ClassVar[str]
    _response_field: ClassVar[str]

    def __init__(self, request: Any) -> None:
        self._request = request

    @property
    def _is_read(self) -> bool:
        """Whether it only reads."""
        return False

    def __repr__(self) -> str:
        """Show the kind and the key."""
        return f"<Op.{type(self).__name__.lstrip('_').lower()} {short(self._request.key)}>"

    def _wrapped(self) -> rpc_pb2.RequestOp:
        """Wrap the request as etcd wants it inside a txn."""
        options: dict[str, Any] = {self._request_field: self._request}
        return rpc_pb2.RequestOp(**options)

    def _response(self, message: Any) -> _Response_co:
        """Copy the answer out of its message."""
        raise NotImplementedError

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
    ) -> Op[GetResponse]:
        """Read a key or a range; the arguments are those of `KV.get`.

        Raises:
            ValueError: An argument is out of its limits, or excludes another one.
            TypeError: An argument is of the wrong type.

        Example:
            count = Op.get("/jobs/", prefix=True, count_only=True)
            result = await kv.txn(success=[Op.put("/jobs/7", "done"), count])
            result[count].count  # 1
        """
        start, end = key_range(key, prefix, range_end)
        request = rpc_pb2.RangeRequest(key=start)
        if end:
            request.range_end = end
        if limit is not None:
            request.limit = check_int("limit", limit, 1, none="no limit")
        if revision is not None:
            request.revision = check_int("revision", revision, 1, none="the latest")
        if sort_order is not _NONE or sort_target is not _KEY:
            _sort(request, sort_order, sort_target)
        if check_flag("serializable", serializable):
            request.serializable = True
        if check_flag("keys_only", keys_only):
            request.keys_only = True
        if check_flag("count_only", count_only):
            request.count_only = True
        if min_mod_revision is not None:
            request.min_mod_revision = check_int(
                "min_mod_revision", min_mod_revision, 1, none="any"
            )
        if max_mod_revision is not None:
            request.max_mod_revision = check_int(
                "max_mod_revision", max_mod_revision, 1, none="any"
            )
        if min_create_revision is not None:
            request.min_create_revision = check_int(
                "min_create_revision", min_create_revision, 1, none="any"
            )
        if max_create_revision is not None:
            request.max_create_revision = check_int(
                "max_create_revision", max_create_revision, 1, none="any"
            )
        return create(_Get, request)

    @staticmethod
    def put(
        key: str | bytes,
        value: str | bytes | None = None,
        *,
        lease: LeaseLike | None = None,
        prev_kv: bool = False,
        ignore_value: bool = False,
        ignore_lease: bool = False,
    ) -> Op[PutResponse]:
        """Write a key; the arguments are those of `KV.put`.

        Raises:
            ValueError: An empty key, no value, a value with `ignore_value`, a lease with
                `ignore_lease`, or an id that no lease has.
            TypeError: An argument is of the wrong type.

        Example:
            write = Op.put("/jobs/7", "done", prev_kv=True)
            result = await kv.txn(success=[write])
            result[write].prev_kv  # None
        """
        request = rpc_pb2.PutRequest(key=encode_key(key))
        if check_flag("ignore_value", ignore_value):
            if value is not None:
                raise ValueError("value must be left out with ignore_value: the old one stays")
            request.ignore_value = True
        elif value is None:
            raise ValueError("value is missing (ignore_value=True keeps the old one)")
        else:
            request.value = encode("value", value)
        if check_flag("ignore_lease", ignore_lease):
            if lease is not None:
                raise ValueError("lease must be left out with ignore_lease: the old one stays")
            request.ignore_lease = True
        elif lease is not None:
            request.lease = check_lease("lease", lease, none="no lease")
        if check_flag("prev_kv", prev_kv):
            request.prev_kv = True
        return create(_Put, request)

    @staticmethod
    def delete(
        key: str | bytes,
        *,
        prefix: bool = False,
        range_end: str | bytes | None = None,
        prev_kv: bool = False,
    ) -> Op[DeleteResponse]:
        """Delete a key or a range; the arguments are those of `KV.delete`.

        Raises:
            ValueError: An empty key, or both `prefix` and `range_end`.
            TypeError: An argument is of the wrong type.

        Example:
            clear = Op.delete("/jobs/", prefix=True)
            result = await kv.txn(success=[clear])
            result[clear].deleted  # 0
        """
        start, end = key_range(key, prefix, range_end)
        request = rpc_pb2.DeleteRangeRequest(key=start, prev_kv=check_flag("prev_kv", prev_kv))
        if end:
            request.range_end = end
        return create(_Delete, request)

    @staticmethod
    def txn(
        *,
        compare: Sequence[Compare] = (),
        success: Sequence[AnyOp] = (),
        failure: Sequence[AnyOp] = (),
    ) -> Op[TxnResponse]:
        """Compare, then do one of two branches, inside of another txn.

        Args:
            compare: All must hold for `success` to be executed. The comparisons of nested txns
                too are made before any operation of the outer one.
            success: Operations, executed in order. The longest lists of this txn and of those
                around it may have 128 entries together, by the server's default.
            failure: Operations for the other case.

        Raises:
            TypeError: An argument is of the wrong type.

        Example:
            inner = Op.txn(compare=[Compare.missing("/b")], success=[Op.put("/b", "2")])
            result = await kv.txn(success=[Op.put("/a", "1"), inner])
            result[inner].succeeded  # True
        """
        return create(
            _Txn,
            _checked("compare", Compare, compare),
            _checked("success", Op, success),
            _checked("failure", Op, failure),
        )


class _Get(Op[GetResponse]):
    __slots__ = ()
    _request_field = "request_range"
    _response_field = "response_range"

    @property
    def _is_read(self) -> bool:
        return True

    def _response(self, message: rpc_pb2.RangeResponse) -> GetResponse:
        return _decode.get_response(message)


class _Put(Op[PutResponse]):
    __slots__ = ()
    _request_field = "request_put"
    _response_field = "response_put"

    def _response(self, message: rpc_pb2.PutResponse) -> PutResponse:
        return _decode.put_response(message)


class _Delete(Op[DeleteResponse]):
    __slots__ = ()
    _request_field = "request_delete_range"
    _response_field = "response_delete_range"

    def _response(self, message: rpc_pb2.DeleteRangeResponse) -> DeleteResponse:
        return _decode.delete_response(message)


class TxnResponse(OpResponse):
    """The answer to a txn.

    ``result[op]`` is the answer to one of its operations, with that operation's type: the same
    object that was passed to the txn, in whatever nested one it is.

    Attributes:
        header: The one to read: etcd leaves the inner answers' headers empty but for a revision.
        succeeded: Whether the comparisons held, and so which branch was executed.
        responses: One answer for each operation of that branch, in order and typed as from the
            single call.
    """

    __slots__ = ("_op", "responses", "succeeded")

    succeeded: bool
    responses: tuple[OpResponse, ...]

    def __getitem__(self, op: Op[_Response]) -> _Response:
        """Give the answer to an operation.

        Args:
            op: The object that was passed to the txn; an equal one is not it.

        Raises:
            KeyError: It was not executed, or the branch has the same object more than once.
            TypeError: It is no operation.

        Example:
            read = Op.get("/config/a")
            result = await kv.txn(success=[Op.put("/config/a", "1"), read])
            result[read].value  # b"1"
        """
        if not isinstance(op, Op):
            raise TypeError(f"an operation is asked for, not {op!r}: see result.responses")
        txn: _Txn | None = getattr(self, "_op", None)
        if txn is None:
            raise KeyError("a pickled answer knows no operations: see result.responses")
        found = [response for each, response in self._executed(txn) if each is op]
        if len(found) == 1:
            return found[0]  # type: ignore[return-value]  # each answer is of its operation's type
        if found:
            raise KeyError(f"{op!r} was executed {len(found)} times: see result.responses")
        if not any(each is op for each in txn._all()):
            raise KeyError(f"{op!r} itself is none of this txn's operations")
        raise KeyError(f"{op!r} was not executed: it is in the branch that was not taken")

    def _executed(self, txn: _Txn) -> Iterator[tuple[AnyOp, OpResponse]]:
        for op, response in zip(txn._branch(self.succeeded), self.responses, strict=True):
            yield op, response
            if isinstance(op, _Txn) and isinstance(response, TxnResponse):
                yield from response._executed(op)


class _Txn(Op[TxnResponse]):
    __slots__ = ("_failure", "_success")
    _request_field = "request_txn"
    _response_field = "response_txn"

    def __init__(
        self, compare: Iterable[Compare], success: tuple[AnyOp, ...], failure: tuple[AnyOp, ...]
    ) -> None:
        super().__init__(
            rpc_pb2.TxnRequest(
                compare=[each._message for each in compare],
                success=[op._wrapped() for op in success],
                failure=[op._wrapped() for op in failure],
            )
        )
        self._success = success
        self._failure = failure

    @property
    def _is_read(self) -> bool:
        return all(op._is_read for op in (*self._success, *self._failure))

    def __repr__(self) -> str:
        return f"<Op.txn of {len(self._success)} operations, else {len(self._failure)}>"

    def _branch(self, succeeded: bool) -> tuple[AnyOp, ...]:
        return self._success if succeeded else self._failure

    def _all(self) -> Iterator[AnyOp]:
        for op in (*self._success, *self._failure):
            yield op
            if isinstance(op, _Txn):
                yield from op._all()

    def _response(self, message: rpc_pb2.TxnResponse) -> TxnResponse:
        branch = self._branch(message.succeeded)
        kinds = [each.WhichOneof("response") for each in message.responses]
        if kinds != [op._response_field for op in branch]:
            raise EtcdError(
                f"the server answered {kinds} to {list(branch)}: whatever it is, it is no etcd",
                maybe_applied=True,
            )
        responses = tuple(
            [
                op._response(getattr(each, op._response_field))
                for op, each in zip(branch, message.responses, strict=True)
            ]
        )
        response = TxnResponse(_decode.header(message.header), message.succeeded, responses)
        object.__setattr__(response, "_op", self)
        return response


def _sort(request: rpc_pb2.RangeRequest, order: SortOrder, target: SortTarget) -> None:
    if not isinstance(order, SortOrder):
        raise ValueError(f"sort_order must be a SortOrder, not {order!r}")
    if not isinstance(target, SortTarget):
        raise ValueError(f"sort_target must be a SortTarget, not {target!r}")
    if target != SortTarget.KEY:
        request.sort_target = int(target)  # type: ignore[assignment]
        # Without an order, etcd applies the limit before it sorts and returns wrong keys.
        request.sort_order = int(order or SortOrder.ASCEND)  # type: ignore[assignment]
    elif order == SortOrder.DESCEND:
        # By key and ascending is the server's own order, and asking for it costs a full sort.
        request.sort_order = int(SortOrder.DESCEND)  # type: ignore[assignment]


AnyOp: TypeAlias = Op[OpResponse]
"""An operation, whatever it answers."""


def _checked(name: str, kind: type, items: Sequence[_Item]) -> tuple[_Item, ...]:
    if not isinstance(items, Iterable):
        raise TypeError(f"{name} must be a sequence of {kind.__name__}, not {type(items).__name__}")
    checked = tuple(items)  # it may be a generator, and is gone through more than once
    for item in checked:
        if not isinstance(item, kind):
            hint = " (write Compare.version(key) == 1)" if isinstance(item, CompareTarget) else ""
            found = "Op" if isinstance(item, Op) else type(item).__name__
            raise TypeError(f"{name} must hold {kind.__name__}, not {found}{hint}")
    return checked
