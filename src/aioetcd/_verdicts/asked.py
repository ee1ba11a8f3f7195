"""What a refused request had asked for: the texts of etcd name neither revision nor lease."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from google.protobuf.message import Message

from aioetcd import errors as e
from aioetcd._proto import rpc_pb2
from aioetcd.types.value import short

_OF_A_REVISION = (rpc_pb2.RangeRequest, rpc_pb2.CompactionRequest)
_OF_A_LEASE = (
    rpc_pb2.LeaseGrantRequest,
    rpc_pb2.LeaseRevokeRequest,
    rpc_pb2.LeaseTimeToLiveRequest,
)


def asked(error: type[e.EtcdError], request: Message) -> str:
    """Say which part of a request explains an error, with the server's limit; perhaps nothing.

    Args:
        error: The class of the error.
        request: What was refused.
    """
    if issubclass(error, e.CompactedError | e.FutureRevisionError):
        revisions = {part.revision for part in _parts(request, *_OF_A_REVISION)}
        return _listed("revision", [str(revision) for revision in sorted(revisions) if revision])
    if issubclass(error, e.LeaseNotFoundError | e.LeaseExistsError):
        leases = {part.ID for part in _parts(request, *_OF_A_LEASE)}
        leases |= {put.lease for put in _parts(request, rpc_pb2.PutRequest)}
        return _listed("lease", [f"{lease:x}" for lease in sorted(leases) if lease])
    if issubclass(error, e.KeyNotFoundError):
        puts = _parts(request, rpc_pb2.PutRequest)
        return _listed(
            "key", [short(put.key) for put in puts if put.ignore_value or put.ignore_lease]
        )
    if issubclass(error, e.RequestTooLargeError):
        return f" ({request.ByteSize()} bytes; etcd takes 1572864 by default)"
    if issubclass(error, e.TooManyOpsError):
        return f" ({_operations(request)}; etcd takes 128 by default)"
    if issubclass(error, e.DuplicateKeyError):
        keys = Counter(put.key for put in _parts(request, rpc_pb2.PutRequest))
        return _listed("key", [short(key) for key, times in keys.items() if times > 1])
    return ""


def _parts(request: Message, *kinds: type[Message]) -> Iterator[Any]:
    """Give what is of some kinds: the request, or where it is a txn what is in it."""
    if isinstance(request, kinds):
        yield request
    if isinstance(request, rpc_pb2.TxnRequest):
        for op in (*request.success, *request.failure):
            kind = op.WhichOneof("request")
            if kind is not None:
                yield from _parts(getattr(op, kind), *kinds)


def _operations(request: Any) -> int:
    """Count as etcd does: the longest list, and that of what is nested in it, the deepest way."""
    nested = [
        _operations(op.request_txn)
        for op in (*request.success, *request.failure)
        if op.HasField("request_txn")
    ]
    longest = max(len(request.compare), len(request.success), len(request.failure))
    return longest + max(nested, default=0)


def _listed(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f" ({what}{'s' if len(names) > 1 else ''} {', '.join(names[:5])}{more})"
