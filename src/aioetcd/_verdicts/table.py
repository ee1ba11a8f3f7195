"""The one error table: what a gRPC failure means, and whether trying again may help.

etcd's message text comes first, because its codes are shared by opposites (RESOURCE_EXHAUSTED is
a full disk, a busy server and a large message), and etcd's grpc-proxy and its services for locks
and elections send every text with UNKNOWN. So a text of etcd's means the same with any code; the
gRPC code decides only where the text is nobody's.

The rows of the table speak of one try. Whoever sends a request a second time has to remember that
the first may have been applied, whatever the second is told.
"""

from __future__ import annotations

import enum
import re

from aioetcd import errors as e


class Blame(enum.Enum):
    """Whom a failure speaks against."""

    NOBODY = enum.auto()
    """Nobody: the request, the caller's own deadline, a cluster that is electing."""
    MEMBER = enum.auto()
    """The member: it stops, or knows no leader. The next call had better ask another one."""
    ROLE = enum.auto()
    """What the member is: not the leader, a learner. This call has to go elsewhere, no other."""
    CONNECTION = enum.auto()
    """The connection, or whoever is in between: it is to be replaced."""
    TOKEN = enum.auto()
    """The token: a fresh one is needed, and the request was not looked at."""


class Verdict:
    """What one kind of failure means.

    Attributes:
        error: The class to raise.
        code: The code to tell, etcd's own for its texts, whatever came over the wire; None takes
            the one that came.
        maybe_applied: Whether a write that fails so may have been applied.
        transient: Whether the same request may succeed a little later, or at another member.
        blame: Whom it speaks against.
    """

    __slots__ = ("blame", "code", "error", "maybe_applied", "transient")

    def __init__(
        self,
        error: type[e.EtcdError],
        code: str | None = None,
        *,
        maybe_applied: bool = False,
        transient: bool = False,
        blame: Blame = Blame.NOBODY,
    ) -> None:
        self.error: type[e.EtcdError] = error
        self.code: str | None = code
        self.maybe_applied: bool = maybe_applied
        self.transient: bool = transient
        self.blame: Blame = blame


def _refused(error: type[e.EtcdError], code: str, blame: Blame = Blame.NOBODY) -> Verdict:
    """Nothing was applied, and the same request would be refused again."""
    return Verdict(error, code, blame=blame)


def _busy(error: type[e.EtcdError], code: str, blame: Blame = Blame.NOBODY) -> Verdict:
    """Nothing was applied, and it is worth another try."""
    return Verdict(error, code, transient=True, blame=blame)


def _unknown(error: type[e.EtcdError], code: str | None, blame: Blame = Blame.NOBODY) -> Verdict:
    """It may have been applied; who may repeat it may try again."""
    return Verdict(error, code, maybe_applied=True, transient=True, blame=blame)


# Every text of etcd's api/v3rpc/rpctypes/error.go, without the "etcdserver: " in front, by who says
# it, and after what.
_ETCDSERVER: dict[str, Verdict] = {
    # The member that was asked, from the request alone: it proposes nothing.
    "key is not provided": _refused(e.InvalidRequestError, "INVALID_ARGUMENT"),
    "value is provided": _refused(e.InvalidRequestError, "INVALID_ARGUMENT"),
    "lease is provided": _refused(e.InvalidRequestError, "INVALID_ARGUMENT"),
    "too many operations in txn request": _refused(e.TooManyOpsError, "INVALID_ARGUMENT"),
    "duplicate key given in txn request": _refused(e.DuplicateKeyError, "INVALID_ARGUMENT"),
    "invalid client api version": _refused(e.InvalidRequestError, "INVALID_ARGUMENT"),
    "invalid sort option": _refused(e.InvalidRequestError, "INVALID_ARGUMENT"),
    "request is too large": _refused(e.RequestTooLargeError, "INVALID_ARGUMENT"),
    "given member URLs are invalid": _refused(e.InvalidRequestError, "INVALID_ARGUMENT"),
    "wrong downgrade target version format": _refused(e.InvalidRequestError, "INVALID_ARGUMENT"),
    "invalid downgrade target version": _refused(e.InvalidRequestError, "INVALID_ARGUMENT"),
    # That member, from what it is or how it is doing: it proposes nothing. (A promotion is the
    # exception: the member may have asked the leader for it before it had "no leader".)
    "too many requests": _busy(e.TooManyRequestsError, "RESOURCE_EXHAUSTED"),
    "no leader": _busy(e.NoLeaderError, "UNAVAILABLE", Blame.MEMBER),
    "not leader": _busy(e.NotLeaderError, "FAILED_PRECONDITION", Blame.ROLE),
    "rpc not supported for learner": _busy(e.LearnerError, "FAILED_PRECONDITION", Blame.ROLE),
    # It does not know its cluster's version: it is older than the others.
    "not capable": _busy(e.UnsupportedByServerError, "FAILED_PRECONDITION", Blame.ROLE),
    # That member, before it proposes a change of the cluster.
    "re-configuration failed due to not enough started members": _refused(
        e.UnhealthyClusterError, "FAILED_PRECONDITION"
    ),
    "unhealthy cluster": _refused(e.UnhealthyClusterError, "UNAVAILABLE"),
    "can only promote a learner member which is in sync with leader": _refused(
        e.LearnerError, "FAILED_PRECONDITION"
    ),
    "bad leader transferee": _refused(e.MemberError, "FAILED_PRECONDITION"),
    "cluster version not found during downgrade": _refused(e.MemberError, "FAILED_PRECONDITION"),
    "cluster has a downgrade job in progress": _refused(e.MemberError, "FAILED_PRECONDITION"),
    "no inflight downgrade job": _refused(e.MemberError, "FAILED_PRECONDITION"),
    "cluster ID mismatch": _refused(e.ClusterMismatchError, "FAILED_PRECONDITION"),
    # A follower asks the leader again when the answer to a promotion was lost: the first may have
    # done it.
    "can only promote a learner member": Verdict(
        e.LearnerError, "FAILED_PRECONDITION", maybe_applied=True
    ),
    # Every member alike, when it applies the entry: before it changes anything, and for a txn
    # before the first of its operations. "lease not found" and "lease already exists" speak of
    # this try alone: whoever has tried before, which etcd's grpc-proxy does by itself with a
    # revocation, may have been the reason.
    "key not found": _refused(e.KeyNotFoundError, "INVALID_ARGUMENT"),
    "mvcc: required revision has been compacted": _refused(e.CompactedError, "OUT_OF_RANGE"),
    "mvcc: required revision is a future revision": _refused(e.FutureRevisionError, "OUT_OF_RANGE"),
    "requested lease not found": _refused(e.LeaseNotFoundError, "NOT_FOUND"),
    "lease already exists": _refused(e.LeaseExistsError, "FAILED_PRECONDITION"),
    "too large lease TTL": _refused(e.InvalidRequestError, "OUT_OF_RANGE"),
    "member ID already exist": _refused(e.MemberError, "FAILED_PRECONDITION"),
    "Peer URLs already exists": _refused(e.MemberError, "FAILED_PRECONDITION"),
    "member not found": _refused(e.MemberNotFoundError, "NOT_FOUND"),
    "too many learner members in cluster": _refused(e.LearnerError, "FAILED_PRECONDITION"),
    # The same, by the auth store; some of it already by the member that was asked.
    "root user does not exist": _refused(e.AuthError, "FAILED_PRECONDITION"),
    "root user does not have root role": _refused(e.AuthError, "FAILED_PRECONDITION"),
    "user name already exists": _refused(e.AuthError, "FAILED_PRECONDITION"),
    "user name is empty": _refused(e.AuthenticationError, "INVALID_ARGUMENT", Blame.TOKEN),
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
    "invalid auth token": _refused(e.AuthenticationError, "UNAUTHENTICATED", Blame.TOKEN),
    "invalid auth management": _refused(e.AuthError, "INVALID_ARGUMENT"),
    "revision of auth store is old": _refused(
        e.AuthenticationError, "INVALID_ARGUMENT", Blame.TOKEN
    ),
    # The member that was asked, where it first compares the size with the quota: not applied. But
    # also every member when it applies a put, a txn or a grant beyond the quota: it does apply it,
    # and says this. The text is the same.
    "mvcc: database space exceeded": Verdict(
        e.NoSpaceError, "RESOURCE_EXHAUSTED", maybe_applied=True
    ),
    # A member that refuses to apply, because its data are not those of the others: then what one
    # has done another may not have.
    "corrupt cluster": Verdict(e.CorruptClusterError, "DATA_LOSS", maybe_applied=True),
    # Only where a linearizable read waits, and for what is left of a lease: nothing was proposed.
    "leader changed": _busy(e.UnavailableError, "UNAVAILABLE"),
    # The member that was asked, while it waits for what it has proposed, or before that.
    "server stopped": _unknown(e.UnavailableError, "UNAVAILABLE", Blame.MEMBER),
    "request timed out": _unknown(e.UnavailableError, "UNAVAILABLE", Blame.MEMBER),
    "request timed out, possibly due to previous leader failure": _unknown(
        e.UnavailableError, "UNAVAILABLE", Blame.MEMBER
    ),
    "request timed out, possibly due to connection lost": _unknown(
        e.UnavailableError, "UNAVAILABLE", Blame.MEMBER
    ),
    "request timed out, waiting for the applied index took too long": _unknown(
        e.UnavailableError, "UNAVAILABLE", Blame.MEMBER
    ),
    "request canceled": _unknown(e.UnavailableError, "CANCELLED"),
    # Its own limit, 7 s by default: it held the request without a quorum.
    "context deadline exceeded": _unknown(
        e.DeadlineExceededError, "DEADLINE_EXCEEDED", Blame.MEMBER
    ),
    # The member or the proxy that serves a stream.
    "watch canceled": _unknown(e.UnavailableError, "CANCELLED", Blame.MEMBER),
    # These two are not in etcd's table, and come with code UNKNOWN; see "request timed out".
    "request cancelled": _unknown(e.UnavailableError, "CANCELLED"),
    "request timed out, leader transfer took too long": _unknown(
        e.UnavailableError, "UNAVAILABLE", Blame.MEMBER
    ),
}

# Texts of etcd without "etcdserver: " that are in no table of its own and come with code UNKNOWN,
# or in a watch's cancel reason.
_PLAIN: dict[str, Verdict] = {
    # The member, and any proxy written in Go, at any time.
    "context deadline exceeded": _ETCDSERVER["context deadline exceeded"],
    "context canceled": _unknown(e.UnavailableError, "CANCELLED", Blame.CONNECTION),
    # raft in this very member: it stopped while it had the entry, or before.
    "raft: stopped": _unknown(e.UnavailableError, "UNAVAILABLE", Blame.MEMBER),
    # raft refused the entry in this very member, before it was appended or sent on.
    "raft proposal dropped": _busy(e.UnavailableError, "UNAVAILABLE"),
    # Only to a renewal.
    "not a primary lessor": _busy(e.UnavailableError, "UNAVAILABLE"),
    # The auth store: it changes nothing when somebody signs in.
    "auth: authentication failed, password was given for no password user": _refused(
        e.AuthenticationError, "INVALID_ARGUMENT"
    ),
    # The same as "etcdserver: revision of auth store is old", by servers up to 3.5.1 that do not
    # translate it: each member refuses it before it would apply it.
    "auth: revision in header is old": _ETCDSERVER["revision of auth store is old"],
    # The same, before what they ask of the database: servers up to 3.5.1 translate none of these.
    "auth: permission denied": _ETCDSERVER["permission denied"],
    "auth: user name is empty": _ETCDSERVER["user name is empty"],
    "auth: invalid auth token": _ETCDSERVER["invalid auth token"],
    "auth: token signing attempted with verify-only key": _refused(e.AuthError, "UNKNOWN"),
    # The service of elections, which only compares then.
    "election: no leader": _refused(e.ElectionError, "UNKNOWN"),
    "election: not leader": _refused(e.LeadershipLostError, "UNKNOWN"),
    # Only a watch.
    "mvcc: watcher range is empty": _refused(e.InvalidRequestError, "INVALID_ARGUMENT"),
    "mvcc: required revision has been compacted": _refused(e.CompactedError, "OUT_OF_RANGE"),
}

# gRPC here, before it has a connection. (Or in a proxy, of its own connection: which has not sent
# the request either.)
_NOT_SENT = _busy(e.UnavailableError, "UNAVAILABLE", Blame.CONNECTION)
_NOT_SENT_TEXTS = ("failed to connect to all addresses", "DNS resolution failed")

# gRPC here, of an answer that is none: a status of HTTP, a reset of this stream alone, a page for
# people. It is a balancer's or a web server's, and passing; gRPC gives it codes such as
# UNAUTHENTICATED (401), PERMISSION_DENIED (403) and UNIMPLEMENTED (404), which mean nothing here.
# A balancer may have passed the request on before: 502 and 504 say so, the others do not deny it.
_NO_ANSWER = _unknown(e.UnavailableError, "UNAVAILABLE", Blame.CONNECTION)
_NO_ANSWER_TEXT = re.compile(
    r"Received http2 header with status: |Received RST_STREAM |Stream removed \(|No status received"
)

# A server of gRPC in Go that has no such RPC; there was nobody to apply anything.
_NO_SUCH_RPC = _refused(e.UnsupportedByServerError, "UNIMPLEMENTED")
_NO_SUCH_RPC_TEXT = re.compile(r"unknown service \S+$|unknown method \S+ for service \S+$")

# gRPC anywhere on the way. Of the request: before it was handled. Of the answer (a proxy that may
# not receive it, a server that may not send it): afterwards, in the same words. The size tells
# them apart, which is the serialized message's.
_TOO_LARGE = Verdict(e.RequestTooLargeError)
_PERHAPS_TOO_LARGE = Verdict(e.RequestTooLargeError, maybe_applied=True)
_TOO_LARGE_TEXT = re.compile(r"message larger than max \((\d+) vs\. \d+\)")
# Only who calls receives an answer, only who is called sends one (as gRPC's C core says it).
_OF_AN_ANSWER = ("CLIENT: Received message", "SERVER: Sent message")

# Whose text it is nobody knows: a newer etcd, a proxy, a balancer that lets gRPC speak. Only the
# code that blames the request, whatever the state of the system, excludes that it was applied;
# every other one may come from somebody who stands between, after a member has done it.
BY_CODE: dict[str, Verdict] = {
    "CANCELLED": _unknown(e.UnavailableError, None, Blame.CONNECTION),
    "UNKNOWN": Verdict(e.EtcdError, maybe_applied=True),
    "INVALID_ARGUMENT": Verdict(e.InvalidRequestError),
    "DEADLINE_EXCEEDED": _unknown(e.DeadlineExceededError, None, Blame.CONNECTION),
    "NOT_FOUND": Verdict(e.EtcdError, maybe_applied=True),
    "ALREADY_EXISTS": Verdict(e.EtcdError, maybe_applied=True),
    "PERMISSION_DENIED": Verdict(e.PermissionDeniedError, maybe_applied=True),
    "RESOURCE_EXHAUSTED": Verdict(e.EtcdError, maybe_applied=True),
    "FAILED_PRECONDITION": Verdict(e.EtcdError, maybe_applied=True),
    "ABORTED": Verdict(e.EtcdError, maybe_applied=True),
    "OUT_OF_RANGE": Verdict(e.InvalidRequestError, maybe_applied=True),
    "UNIMPLEMENTED": Verdict(e.UnsupportedByServerError, maybe_applied=True),
    "INTERNAL": _unknown(e.UnavailableError, None, Blame.CONNECTION),
    "UNAVAILABLE": _unknown(e.UnavailableError, None, Blame.CONNECTION),
    "DATA_LOSS": Verdict(e.EtcdError, maybe_applied=True),
    "UNAUTHENTICATED": Verdict(e.AuthenticationError, maybe_applied=True),
}


def verdict_for(code: str, details: str, *, request_size: int | None = None) -> Verdict:
    """Find what a failure means.

    Args:
        code: The gRPC status name as it came over the wire.
        details: The status message.
        request_size: The bytes of the serialized request, or None where there is no such one
            request: then "too large" may have been said of the answer.
    """
    is_etcds = details.startswith("etcdserver: ")
    verdict = _ETCDSERVER.get(details[12:]) if is_etcds else _PLAIN.get(details)
    if verdict is not None:
        return verdict
    by_code = BY_CODE.get(code, BY_CODE["UNKNOWN"])
    too_large = _TOO_LARGE_TEXT.search(details)
    if too_large is not None:
        if any(text in details for text in _OF_AN_ANSWER):
            return by_code
        if request_size is None:
            return _PERHAPS_TOO_LARGE
        return _TOO_LARGE if int(too_large[1]) == request_size else by_code
    if code == "UNAVAILABLE" and details.startswith(_NOT_SENT_TEXTS):
        return _NOT_SENT
    if _NO_ANSWER_TEXT.match(details):
        return _NO_ANSWER
    if code == "UNIMPLEMENTED" and _NO_SUCH_RPC_TEXT.match(details):
        return _NO_SUCH_RPC
    return by_code
