"""The one error table: what a gRPC failure means, and whether trying again may help.

etcd's message text comes first, because its codes are shared by opposites (RESOURCE_EXHAUSTED is
a full disk, a busy server and a large message) and some errors arrive as UNKNOWN; the gRPC code
decides only where the text is nobody's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from aioetcd import errors as e


@dataclass(frozen=True, slots=True)
class Rule:
    """What one kind of failure means.

    Attributes:
        error: The class to raise.
        code: The code that etcd gives this error in its own table, whatever came over the wire;
            None takes the one that came.
        maybe_applied: Whether a write that fails so may have been applied.
        transient: Whether the same request may succeed a little later, or at another member.
        changes_endpoint: Whether this speaks against the endpoint, so that the next call had
            better ask another one.
    """

    error: type[e.EtcdError]
    code: str | None = None
    maybe_applied: bool = False
    transient: bool = False
    changes_endpoint: bool = False


def _refused(error: type[e.EtcdError], code: str) -> Rule:
    """Nothing was applied, and the same request would be refused again."""
    return Rule(error, code)


def _busy(error: type[e.EtcdError], code: str, *, elsewhere: bool = True) -> Rule:
    """Nothing was applied, and it is worth another try."""
    return Rule(error, code, transient=True, changes_endpoint=elsewhere)


def _unknown(error: type[e.EtcdError], code: str | None, *, elsewhere: bool = True) -> Rule:
    """It may have been applied; who may repeat it may try again."""
    return Rule(error, code, maybe_applied=True, transient=True, changes_endpoint=elsewhere)


# Every text of etcd's api/v3rpc/rpctypes/error.go, without the "etcdserver: " in front.
_ETCDSERVER: dict[str, Rule] = {
    "key is not provided": _refused(e.InvalidRequestError, "INVALID_ARGUMENT"),
    "key not found": _refused(e.KeyNotFoundError, "INVALID_ARGUMENT"),
    "value is provided": _refused(e.InvalidRequestError, "INVALID_ARGUMENT"),
    "lease is provided": _refused(e.InvalidRequestError, "INVALID_ARGUMENT"),
    "too many operations in txn request": _refused(e.TooManyOpsError, "INVALID_ARGUMENT"),
    "duplicate key given in txn request": _refused(e.DuplicateKeyError, "INVALID_ARGUMENT"),
    "invalid client api version": _refused(e.InvalidRequestError, "INVALID_ARGUMENT"),
    "invalid sort option": _refused(e.InvalidRequestError, "INVALID_ARGUMENT"),
    "mvcc: required revision has been compacted": _refused(e.CompactedError, "OUT_OF_RANGE"),
    "mvcc: required revision is a future revision": _refused(e.FutureRevisionError, "OUT_OF_RANGE"),
    "mvcc: database space exceeded": _refused(e.NoSpaceError, "RESOURCE_EXHAUSTED"),
    "requested lease not found": _refused(e.LeaseNotFoundError, "NOT_FOUND"),
    "lease already exists": _refused(e.LeaseExistsError, "FAILED_PRECONDITION"),
    "too large lease TTL": _refused(e.InvalidRequestError, "OUT_OF_RANGE"),
    "watch canceled": _unknown(e.UnavailableError, "CANCELLED"),
    "member ID already exist": _refused(e.MemberError, "FAILED_PRECONDITION"),
    "Peer URLs already exists": _refused(e.MemberError, "FAILED_PRECONDITION"),
    "re-configuration failed due to not enough started members": _refused(
        e.UnhealthyClusterError, "FAILED_PRECONDITION"
    ),
    "given member URLs are invalid": _refused(e.InvalidRequestError, "INVALID_ARGUMENT"),
    "member not found": _refused(e.MemberNotFoundError, "NOT_FOUND"),
    "can only promote a learner member": _refused(e.LearnerError, "FAILED_PRECONDITION"),
    "can only promote a learner member which is in sync with leader": _refused(
        e.LearnerError, "FAILED_PRECONDITION"
    ),
    "too many learner members in cluster": _refused(e.LearnerError, "FAILED_PRECONDITION"),
    "cluster ID mismatch": _refused(e.ClusterMismatchError, "FAILED_PRECONDITION"),
    "request is too large": _refused(e.RequestTooLargeError, "INVALID_ARGUMENT"),
    "too many requests": _busy(e.TooManyRequestsError, "RESOURCE_EXHAUSTED", elsewhere=False),
    "root user does not exist": _refused(e.AuthError, "FAILED_PRECONDITION"),
    "root user does not have root role": _refused(e.AuthError, "FAILED_PRECONDITION"),
    "user name already exists": _refused(e.AuthError, "FAILED_PRECONDITION"),
    "user name is empty": _refused(e.AuthenticationError, "INVALID_ARGUMENT"),
    "user name not found": _refused(e.AuthError, "FAILED_PRECONDITION"),
    "role name already exists": _refused(e.AuthError, "FAILED_PRECONDITION"),
    "role name not found": _refused(e.AuthError, "FAILED_PRECONDITION"),
    "role name is empty": _refused(e.AuthError, "INVALID_ARGUMENT"),
    "authentication failed, invalid user ID or password": _refused(
        e.AuthenticationError, "INVALID_ARGUMENT"
    ),
    "permission not given": _refused(e.AuthError, "INVALID_ARGUMENT"),
    "permission denied": _refused(e.PermissionDeniedError, "PERMISSION_DENIED"),
    "role is not granted to the user": _refused(e.AuthError, "FAILED_PRECONDITION"),
    "permission is not granted to the role": _refused(e.AuthError, "FAILED_PRECONDITION"),
    "authentication is not enabled": _refused(e.AuthNotEnabledError, "FAILED_PRECONDITION"),
    "invalid auth token": _refused(e.AuthenticationError, "UNAUTHENTICATED"),
    "invalid auth management": _refused(e.AuthError, "INVALID_ARGUMENT"),
    "revision of auth store is old": _refused(e.AuthenticationError, "INVALID_ARGUMENT"),
    "no leader": _busy(e.NoLeaderError, "UNAVAILABLE"),
    "not leader": _busy(e.NotLeaderError, "FAILED_PRECONDITION"),
    # Only the read paths answer so: nothing was proposed.
    "leader changed": _busy(e.UnavailableError, "UNAVAILABLE", elsewhere=False),
    "not capable": _refused(e.UnsupportedByServerError, "FAILED_PRECONDITION"),
    "server stopped": _unknown(e.UnavailableError, "UNAVAILABLE"),
    "request timed out": _unknown(e.UnavailableError, "UNAVAILABLE"),
    "request timed out, possibly due to previous leader failure": _unknown(
        e.UnavailableError, "UNAVAILABLE"
    ),
    "request timed out, possibly due to connection lost": _unknown(
        e.UnavailableError, "UNAVAILABLE"
    ),
    "request timed out, waiting for the applied index took too long": _unknown(
        e.UnavailableError, "UNAVAILABLE"
    ),
    "unhealthy cluster": _refused(e.UnhealthyClusterError, "UNAVAILABLE"),
    "corrupt cluster": Rule(e.CorruptClusterError, "DATA_LOSS", maybe_applied=True),
    "rpc not supported for learner": _busy(e.LearnerError, "FAILED_PRECONDITION"),
    "bad leader transferee": _refused(e.MemberError, "FAILED_PRECONDITION"),
    "wrong downgrade target version format": _refused(e.InvalidRequestError, "INVALID_ARGUMENT"),
    "invalid downgrade target version": _refused(e.InvalidRequestError, "INVALID_ARGUMENT"),
    "cluster version not found during downgrade": _refused(e.MemberError, "FAILED_PRECONDITION"),
    "cluster has a downgrade job in progress": _refused(e.MemberError, "FAILED_PRECONDITION"),
    "no inflight downgrade job": _refused(e.MemberError, "FAILED_PRECONDITION"),
    "request canceled": _unknown(e.UnavailableError, "CANCELLED", elsewhere=False),
    # The server's own limit, 7 s by default: it held the request without a quorum.
    "context deadline exceeded": _unknown(e.DeadlineExceededError, "DEADLINE_EXCEEDED"),
}

# Texts of etcd that are in no table of its own and come with code UNKNOWN, or in a watch's
# cancel reason.
_PLAIN: dict[str, Rule] = {
    "context deadline exceeded": _ETCDSERVER["context deadline exceeded"],
    # raft refused the entry in this very member, before it was appended or sent on.
    "raft proposal dropped": _busy(e.UnavailableError, "UNAVAILABLE", elsewhere=False),
    "not a primary lessor": _busy(e.UnavailableError, "UNAVAILABLE", elsewhere=False),
    "auth: authentication failed, password was given for no password user": _refused(
        e.AuthenticationError, "INVALID_ARGUMENT"
    ),
    "auth: token signing attempted with verify-only key": _refused(e.AuthError, "UNKNOWN"),
    "mvcc: watcher range is empty": _refused(e.InvalidRequestError, "INVALID_ARGUMENT"),
    "mvcc: required revision has been compacted": _refused(e.CompactedError, "OUT_OF_RANGE"),
}

# What gRPC says before a request has left this process.
NOT_SENT = Rule(e.UnavailableError, "UNAVAILABLE", transient=True, changes_endpoint=True)
_NOT_SENT_TEXTS = ("failed to connect to all addresses", "DNS resolution failed")

_BY_CODE: dict[str, Rule] = {
    "CANCELLED": _unknown(e.UnavailableError, None),
    "UNKNOWN": Rule(e.EtcdError, maybe_applied=True),
    "INVALID_ARGUMENT": Rule(e.InvalidRequestError),
    "DEADLINE_EXCEEDED": _unknown(e.DeadlineExceededError, None),
    "NOT_FOUND": Rule(e.EtcdError),
    "ALREADY_EXISTS": Rule(e.EtcdError),
    "PERMISSION_DENIED": Rule(e.PermissionDeniedError),
    "RESOURCE_EXHAUSTED": Rule(e.EtcdError),
    "FAILED_PRECONDITION": Rule(e.EtcdError),
    "ABORTED": Rule(e.EtcdError, maybe_applied=True),
    "OUT_OF_RANGE": Rule(e.InvalidRequestError),
    "UNIMPLEMENTED": Rule(e.UnsupportedByServerError),
    "INTERNAL": _unknown(e.UnavailableError, None),
    "UNAVAILABLE": _unknown(e.UnavailableError, None),
    "DATA_LOSS": Rule(e.EtcdError, maybe_applied=True),
    "UNAUTHENTICATED": Rule(e.AuthenticationError),
}

_TOO_LARGE = Rule(e.RequestTooLargeError)
_TOO_LARGE_TEXT = re.compile(r"([Rr]eceived|[Ss]ent|trying to send) message larger than max")

# A watch's cancel reason may be a whole gRPC status printed by Go.
_GO_STATUS = re.compile(r"rpc error: code = (\w+) desc = (.*)", re.DOTALL)


def rule_for(code: str, details: str) -> Rule:
    """Find what a failure means.

    Args:
        code: The gRPC status name as it came over the wire.
        details: The status message.
    """
    rule = _ETCDSERVER.get(details.removeprefix("etcdserver: "))
    if rule is not None and details.startswith("etcdserver: "):
        return rule
    rule = _PLAIN.get(details)
    if rule is not None:
        return rule
    if _TOO_LARGE_TEXT.search(details):
        return _TOO_LARGE
    if code == "UNAVAILABLE" and details.startswith(_NOT_SENT_TEXTS):
        return NOT_SENT
    return _BY_CODE[code]


_ADVICE = "; it may have been applied all the same: read before you write again"


def error_from_status(
    rule: Rule,
    *,
    code: str,
    details: str,
    what: str,
    is_write: bool,
    endpoint: str | None,
    timeout: float | None = None,
) -> e.EtcdError:
    """Make the error that the user sees.

    Args:
        rule: What `rule_for` found.
        code: The gRPC status name as it came over the wire.
        details: The status message.
        what: The RPC's name, for the message.
        is_write: Whether the request could change anything.
        endpoint: Who answered.
        timeout: The deadline in seconds, where it was the caller's own that ran out.
    """
    maybe_applied = is_write and rule.maybe_applied
    where = f" at {endpoint}" if endpoint else ""
    said = details or code
    if timeout is not None:
        said = f"no answer within {timeout:g} s"
    message = f"{what}{where}: {said}{_ADVICE if maybe_applied else ''}"
    facts: dict[str, Any] = {
        "code": rule.code or code,
        "details": details,
        "maybe_applied": maybe_applied,
        "endpoint": endpoint,
    }
    if issubclass(rule.error, e.DeadlineExceededError):
        return rule.error(message, timeout=timeout, **facts)
    return rule.error(message, **facts)


def error_from_reason(reason: str, *, what: str, endpoint: str | None) -> e.EtcdError:
    """Make the error for a watch's cancel reason: a bare text, or a status printed by Go."""
    code, details = "FAILED_PRECONDITION", reason
    match = _GO_STATUS.match(reason)
    if match:
        # Go prints PermissionDenied for PERMISSION_DENIED.
        code = (
            re.sub(r"(?<=[a-z])(?=[A-Z])", "_", match[1]).upper().replace("CANCELED", "CANCELLED")
        )
        details = match[2]
    if code not in _BY_CODE:
        code = "UNKNOWN"
    return error_from_status(
        rule_for(code, details),
        code=code,
        details=details,
        what=what,
        is_write=False,
        endpoint=endpoint,
    )


def status_of(error: grpc.aio.AioRpcError) -> tuple[str, str]:
    """Give the code's name and the message of a gRPC error."""
    return error.code().name, error.details() or ""
