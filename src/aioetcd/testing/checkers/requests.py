"""What a recorded request means, asked of a store whose whole history is known."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

from aioetcd.testing.checkers.oracle import Oracle
from aioetcd.testing.records import Comparison, Delete, Get, Operation, Put, Request, Txn

_OPERATORS: dict[str, Callable[[bytes | int, bytes | int], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}


def branch(operation: Operation) -> Sequence[Put | Get | Delete]:
    """The requests that an answered operation executed."""
    request = operation.request
    if isinstance(request, Txn):
        return request.success if operation.succeeded else request.failure
    return (request,)


def all_requests(request: Request) -> Sequence[Put | Get | Delete]:
    """What a request may execute: of a transaction, both branches."""
    return (*request.success, *request.failure) if isinstance(request, Txn) else (request,)


def may_write(request: Request) -> bool:
    """Whether a request may change anything."""
    return any(not isinstance(op, Get) for op in all_requests(request))


def has_changed(operation: Operation) -> bool:
    """Whether an answered operation made a revision of its own."""
    return bool(operation.deleted) or any(isinstance(op, Put) for op in branch(operation))


def is_serializable(request: Request) -> bool:
    """Whether a member may answer from its own state; etcd counts empty transactions in."""
    return all(isinstance(op, Get) and op.serializable for op in all_requests(request))


def all_hold(txn: Txn, oracle: Oracle, revision: int) -> bool:
    """Whether all comparisons of a transaction are true of the store at a revision."""
    return all(_holds(comparison, oracle, revision) for comparison in txn.compare)


def _holds(comparison: Comparison, oracle: Oracle, revision: int) -> bool:
    kv = oracle.get(comparison.key, revision)
    if kv is None:
        if comparison.target == "value":
            return False  # as in etcd, whatever the operator
        actual: bytes | int = 0
    else:
        actual = getattr(kv, comparison.target)
    return _OPERATORS[comparison.operator](actual, comparison.operand)
