"""Every failure becomes the one class that says what it is, and whether it may have been applied.

The table is etcd's own, api/v3rpc/rpctypes/error.go: each text with the code that etcd gives it.
"""

from __future__ import annotations

from typing import NamedTuple

import grpc
import grpc.aio
import pytest

from aioetcd import errors as e
from aioetcd._transport.call import Failure
from aioetcd._verdicts.raised import error_from_status, status_of_reason
from aioetcd._verdicts.table import Blame, verdict_for


class Row(NamedTuple):
    """One failure, and what becomes of it when it is a write's."""

    text: str
    code: str
    error: type[e.EtcdError]
    maybe_applied: bool = False
    transient: bool = False


TABLE = [
    Row("key is not provided", "INVALID_ARGUMENT", e.InvalidRequestError),
    Row("key not found", "INVALID_ARGUMENT", e.KeyNotFoundError),
    Row("value is provided", "INVALID_ARGUMENT", e.InvalidRequestError),
    Row("lease is provided", "INVALID_ARGUMENT", e.InvalidRequestError),
    Row("too many operations in txn request", "INVALID_ARGUMENT", e.TooManyOpsError),
    Row("duplicate key given in txn request", "INVALID_ARGUMENT", e.DuplicateKeyError),
    Row("invalid client api version", "INVALID_ARGUMENT", e.InvalidRequestError),
    Row("invalid sort option", "INVALID_ARGUMENT", e.InvalidRequestError),
    Row("mvcc: required revision has been compacted", "OUT_OF_RANGE", e.CompactedError),
    Row("mvcc: required revision is a future revision", "OUT_OF_RANGE", e.FutureRevisionError),
    Row("mvcc: database space exceeded", "RESOURCE_EXHAUSTED", e.NoSpaceError, True),
    Row("requested lease not found", "NOT_FOUND", e.LeaseNotFoundError),
    Row("lease already exists", "FAILED_PRECONDITION", e.LeaseExistsError),
    Row("too large lease TTL", "OUT_OF_RANGE", e.InvalidRequestError),
    Row("watch canceled", "CANCELLED", e.UnavailableError, True, True),
    Row("member ID already exist", "FAILED_PRECONDITION", e.MemberError),
    Row("Peer URLs already exists", "FAILED_PRECONDITION", e.MemberError),
    Row(
        "re-configuration failed due to not enough started members",
        "FAILED_PRECONDITION",
        e.UnhealthyClusterError,
    ),
    Row("given member URLs are invalid", "INVALID_ARGUMENT", e.InvalidRequestError),
    Row("member not found", "NOT_FOUND", e.MemberNotFoundError),
    Row("can only promote a learner member", "FAILED_PRECONDITION", e.LearnerError, True),
    Row(
        "can only promote a learner member which is in sync with leader",
        "FAILED_PRECONDITION",
        e.LearnerError,
    ),
    Row("too many learner members in cluster", "FAILED_PRECONDITION", e.LearnerError),
    Row("cluster ID mismatch", "FAILED_PRECONDITION", e.ClusterMismatchError),
    Row("request is too large", "INVALID_ARGUMENT", e.RequestTooLargeError),
    Row("too many requests", "RESOURCE_EXHAUSTED", e.TooManyRequestsError, False, True),
    Row("root user does not exist", "FAILED_PRECONDITION", e.AuthError),
    Row("root user does not have root role", "FAILED_PRECONDITION", e.AuthError),
    Row("user name already exists", "FAILED_PRECONDITION", e.AuthError),
    Row("user name is empty", "INVALID_ARGUMENT", e.AuthenticationError),
    Row("user name not found", "FAILED_PRECONDITION", e.AuthError),
    Row("role name already exists", "FAILED_PRECONDITION", e.AuthError),
    Row("role name not found", "FAILED_PRECONDITION", e.AuthError),
    Row("role name is empty", "INVALID_ARGUMENT", e.AuthError),
    Row(
        "authentication failed, invalid user ID or password",
        "INVALID_ARGUMENT",
        e.AuthenticationError,
    ),
    Row("permission not given", "INVALID_ARGUMENT", e.AuthError),
    Row("permission denied", "PERMISSION_DENIED", e.PermissionDeniedError),
    Row("role is not granted to the user", "FAILED_PRECONDITION", e.AuthError),
    Row("permission is not granted to the role", "FAILED_PRECONDITION", e.AuthError),
    Row("authentication is not enabled", "FAILED_PRECONDITION", e.AuthNotEnabledError),
    Row("invalid auth token", "UNAUTHENTICATED", e.AuthenticationError),
    Row("invalid auth management", "INVALID_ARGUMENT", e.AuthError),
    Row("revision of auth store is old", "INVALID_ARGUMENT", e.AuthenticationError),
    Row("no leader", "UNAVAILABLE", e.NoLeaderError, False, True),
    Row("not leader", "FAILED_PRECONDITION", e.NotLeaderError, False, True),
    Row("leader changed", "UNAVAILABLE", e.UnavailableError, False, True),
    Row("not capable", "FAILED_PRECONDITION", e.UnsupportedByServerError, False, True),
    Row("server stopped", "UNAVAILABLE", e.UnavailableError, True, True),
    Row("request timed out", "UNAVAILABLE", e.UnavailableError, True, True),
    Row(
        "request timed out, possibly due to previous leader failure",
        "UNAVAILABLE",
        e.UnavailableError,
        True,
        True,
    ),
    Row(
        "request timed out, possibly due to connection lost",
        "UNAVAILABLE",
        e.UnavailableError,
        True,
        True,
    ),
    Row(
        "request timed out, waiting for the applied index took too long",
        "UNAVAILABLE",
        e.UnavailableError,
        True,
        True,
    ),
    Row("unhealthy cluster", "UNAVAILABLE", e.UnhealthyClusterError),
    Row("corrupt cluster", "DATA_LOSS", e.CorruptClusterError, True),
    Row("rpc not supported for learner", "FAILED_PRECONDITION", e.LearnerError, False, True),
    Row("bad leader transferee", "FAILED_PRECONDITION", e.MemberError),
    Row("wrong downgrade target version format", "INVALID_ARGUMENT", e.InvalidRequestError),
    Row("invalid downgrade target version", "INVALID_ARGUMENT", e.InvalidRequestError),
    Row("cluster version not found during downgrade", "FAILED_PRECONDITION", e.MemberError),
    Row("cluster has a downgrade job in progress", "FAILED_PRECONDITION", e.MemberError),
    Row("no inflight downgrade job", "FAILED_PRECONDITION", e.MemberError),
    Row("request canceled", "CANCELLED", e.UnavailableError, True, True),
    Row("context deadline exceeded", "DEADLINE_EXCEEDED", e.DeadlineExceededError, True, True),
]
# Whom a failure speaks against, where it is somebody.
BLAMED = {
    "no leader": Blame.MEMBER,
    "not leader": Blame.ROLE,
    "rpc not supported for learner": Blame.ROLE,
    "not capable": Blame.ROLE,
    "server stopped": Blame.MEMBER,
    "request timed out": Blame.MEMBER,
    "request timed out, possibly due to previous leader failure": Blame.MEMBER,
    "request timed out, possibly due to connection lost": Blame.MEMBER,
    "request timed out, waiting for the applied index took too long": Blame.MEMBER,
    "context deadline exceeded": Blame.MEMBER,
    "watch canceled": Blame.MEMBER,
    "user name is empty": Blame.TOKEN,
    "invalid auth token": Blame.TOKEN,
    "revision of auth store is old": Blame.TOKEN,
}
CODES = [code.name for code in grpc.StatusCode if code is not grpc.StatusCode.OK]

# What is in none of etcd's tables: code and text on the wire, code and class for the user.
UNLISTED: list[tuple[str, str, str, type[e.EtcdError], bool, bool]] = [
    (
        "UNKNOWN",
        "context deadline exceeded",
        "DEADLINE_EXCEEDED",
        e.DeadlineExceededError,
        True,
        True,
    ),
    ("UNKNOWN", "context canceled", "CANCELLED", e.UnavailableError, True, True),
    ("UNKNOWN", "raft: stopped", "UNAVAILABLE", e.UnavailableError, True, True),
    ("UNKNOWN", "etcdserver: request cancelled", "CANCELLED", e.UnavailableError, True, True),
    (
        "UNKNOWN",
        "etcdserver: request timed out, leader transfer took too long",
        "UNAVAILABLE",
        e.UnavailableError,
        True,
        True,
    ),
    ("UNKNOWN", "raft proposal dropped", "UNAVAILABLE", e.UnavailableError, False, True),
    ("UNKNOWN", "not a primary lessor", "UNAVAILABLE", e.UnavailableError, False, True),
    (
        "UNKNOWN",
        "auth: authentication failed, password was given for no password user",
        "INVALID_ARGUMENT",
        e.AuthenticationError,
        False,
        False,
    ),
    (
        "UNKNOWN",
        "auth: revision in header is old",
        "INVALID_ARGUMENT",
        e.AuthenticationError,
        False,
        False,
    ),
    (
        "UNKNOWN",
        "auth: permission denied",
        "PERMISSION_DENIED",
        e.PermissionDeniedError,
        False,
        False,
    ),
    (
        "UNKNOWN",
        "auth: user name is empty",
        "INVALID_ARGUMENT",
        e.AuthenticationError,
        False,
        False,
    ),
    (
        "UNKNOWN",
        "auth: invalid auth token",
        "UNAUTHENTICATED",
        e.AuthenticationError,
        False,
        False,
    ),
    (
        "UNKNOWN",
        "auth: token signing attempted with verify-only key",
        "UNKNOWN",
        e.AuthError,
        False,
        False,
    ),
    ("UNKNOWN", "election: no leader", "UNKNOWN", e.ElectionError, False, False),
    ("UNKNOWN", "election: not leader", "UNKNOWN", e.LeadershipLostError, False, False),
    (
        "UNKNOWN",
        "mvcc: watcher range is empty",
        "INVALID_ARGUMENT",
        e.InvalidRequestError,
        False,
        False,
    ),
    (
        "UNKNOWN",
        "mvcc: required revision has been compacted",
        "OUT_OF_RANGE",
        e.CompactedError,
        False,
        False,
    ),
    # Without "etcdserver: " in front nothing else is etcd's word.
    ("UNKNOWN", "no leader", "UNKNOWN", e.EtcdError, True, False),
    ("UNAVAILABLE", "etcdserver: no leader at all", "UNAVAILABLE", e.UnavailableError, True, True),
]

UNLISTED_BLAMED = {
    "auth: revision in header is old": Blame.TOKEN,
    "auth: user name is empty": Blame.TOKEN,
    "auth: invalid auth token": Blame.TOKEN,
    "context deadline exceeded": Blame.MEMBER,
    "context canceled": Blame.CONNECTION,
    "raft: stopped": Blame.MEMBER,
    "etcdserver: request timed out, leader transfer took too long": Blame.MEMBER,
    "etcdserver: no leader at all": Blame.CONNECTION,
}

# gRPC's own words, as grpcio and etcd's servers say them.
GRPC: list[tuple[str, str, type[e.EtcdError], bool, bool]] = [
    (
        "UNAVAILABLE",
        (
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:2379: "
            "Failed to connect to remote host: connect: Connection refused (111)"
        ),
        e.UnavailableError,
        False,
        True,
    ),
    (
        "UNAVAILABLE",
        "DNS resolution failed for nobody.invalid:2379: C-ares status is not ARES_SUCCESS",
        e.UnavailableError,
        False,
        True,
    ),
    (
        "UNAVAILABLE",
        "Stream removed (recvmsg:Connection reset by peer)",
        e.UnavailableError,
        True,
        True,
    ),
    ("UNAVAILABLE", "Socket closed", e.UnavailableError, True, True),
    ("UNAVAILABLE", "ping timeout", e.UnavailableError, True, True),
    (
        "UNAVAILABLE",
        "GOAWAY received; Error code: 11; Debug Text: too_many_pings",
        e.UnavailableError,
        True,
        True,
    ),
    ("DEADLINE_EXCEEDED", "Deadline Exceeded", e.DeadlineExceededError, True, True),
    ("CANCELLED", "Locally cancelled by application!", e.UnavailableError, True, True),
    ("INTERNAL", "stream terminated by RST_STREAM", e.UnavailableError, True, True),
    ("UNIMPLEMENTED", "unknown service v3lockpb.Lock", e.UnsupportedByServerError, False, False),
    (
        "UNIMPLEMENTED",
        "unknown method RangeStream for service etcdserverpb.KV",
        e.UnsupportedByServerError,
        False,
        False,
    ),
    # Somebody else's way to say it: who knows what was done before.
    ("UNIMPLEMENTED", "Method not found!", e.UnsupportedByServerError, True, False),
    (
        "INVALID_ARGUMENT",
        "etcdserver: request is too large",
        e.RequestTooLargeError,
        False,
        False,
    ),
]


# What gRPC makes of an answer that is none.
NO_ANSWER = [
    ("UNAUTHENTICATED", "Received http2 header with status: 401"),
    ("PERMISSION_DENIED", "Received http2 header with status: 403"),
    ("UNIMPLEMENTED", "Received http2 header with status: 404"),
    ("INTERNAL", "Received http2 header with status: 400"),
    ("UNKNOWN", "Received http2 header with status: 500"),
    ("UNAVAILABLE", "Received http2 header with status: 502"),
    ("DEADLINE_EXCEEDED", "Received http2 header with status: 504"),
    ("UNKNOWN", "No status received"),
    ("UNKNOWN", "Stream removed (Data frame with END_STREAM flag received)"),
    ("CANCELLED", "Received RST_STREAM with error code 8"),
    ("INTERNAL", "Stream removed (RST_STREAM (Received RST_STREAM with error code 2))"),
    ("RESOURCE_EXHAUSTED", "Stream removed (RST_STREAM (Received RST_STREAM with error code 11))"),
    ("PERMISSION_DENIED", "Stream removed (RST_STREAM (Received RST_STREAM with error code 12))"),
]

# Who may say of a request that it is too large, in the words of gRPC for Go and of its C core.
TOO_LARGE = [
    "grpc: received message larger than max ({} vs. 2097152)",
    "trying to send message larger than max ({} vs. 2097152)",
    "SERVER: Received message larger than max ({} vs. 2097152)",
    "CLIENT: Sent message larger than max ({} vs. 2097152)",
]
ANSWER_TOO_LARGE = [
    "CLIENT: Received message larger than max ({} vs. 2097152)",
    "Stream removed (CLIENT: Received message larger than max ({} vs. 2097152))",
    "SERVER: Sent message larger than max ({} vs. 2097152)",
]


def made(
    code: str,
    details: str,
    *,
    is_write: bool = True,
    timeout: float | None = None,
    request_size: int | None = None,
) -> e.EtcdError:
    return error_from_status(
        verdict_for(code, details, request_size=request_size),
        code=code,
        details=details,
        what="Put",
        is_write=is_write,
        endpoint="a:1",
        timeout=timeout,
    )


def test_table_is_whole() -> None:
    """All 63 texts are here, each once."""
    assert len(TABLE) == 63
    assert len({row.text for row in TABLE}) == 63


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.text)
def test_text_decides(row: Row) -> None:
    """Whatever code comes with etcd's text, class, code and consequences are the table's."""
    details = f"etcdserver: {row.text}"
    for code in CODES:
        verdict = verdict_for(code, details)
        assert (verdict.error, verdict.maybe_applied, verdict.transient) == row[2:]
        assert verdict.blame is BLAMED.get(row.text, Blame.NOBODY)
        error = made(code, details)
        assert type(error) is row.error
        assert (error.code, error.details, error.endpoint) == (row.code, details, "a:1")
        assert error.maybe_applied is row.maybe_applied
        assert details in str(error)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.text)
def test_a_read_is_never_applied(row: Row) -> None:
    """No failure of a read says that something may have been applied."""
    error = made(row.code, f"etcdserver: {row.text}", is_write=False)
    assert error.maybe_applied is False
    assert str(error) == f"Put at a:1: etcdserver: {row.text}"


@pytest.mark.parametrize(
    ("wire", "text", "code", "cls", "maybe_applied", "transient"),
    UNLISTED,
    ids=[row[1] for row in UNLISTED],
)
def test_texts_without_a_table(
    wire: str, text: str, code: str, cls: type[e.EtcdError], maybe_applied: bool, transient: bool
) -> None:
    """What etcd says outside of its table is told by its text as well."""
    error = made(wire, text)
    assert type(error) is cls
    assert (error.code, error.maybe_applied) == (code, maybe_applied)
    verdict = verdict_for(wire, text)
    assert verdict.transient is transient
    assert verdict.blame is UNLISTED_BLAMED.get(text, Blame.NOBODY)


@pytest.mark.parametrize(
    ("code", "text", "cls", "maybe_applied", "transient"), GRPC, ids=[row[1][:40] for row in GRPC]
)
def test_grpcs_own_words(
    code: str, text: str, cls: type[e.EtcdError], maybe_applied: bool, transient: bool
) -> None:
    """What gRPC says by itself is told apart: never sent, sent and lost, or too large."""
    error = made(code, text)
    assert type(error) is cls
    assert (error.code, error.details) == (code, text)
    assert error.maybe_applied is maybe_applied
    verdict = verdict_for(code, text)
    # Whatever of gRPC's passes has to do with the connection.
    assert verdict.transient is transient
    assert verdict.blame is (Blame.CONNECTION if transient else Blame.NOBODY)


@pytest.mark.parametrize(("code", "text"), NO_ANSWER)
def test_z13_no_answer_is_passing(code: str, text: str) -> None:
    """What is no answer of etcd's speaks against the connection alone, and leaves all open."""
    verdict = verdict_for(code, text)
    assert (verdict.transient, verdict.blame) == (True, Blame.CONNECTION)
    error = made(code, text)
    assert type(error) is e.UnavailableError
    assert (error.code, error.details, error.maybe_applied) == ("UNAVAILABLE", text, True)


@pytest.mark.parametrize("text", TOO_LARGE)
def test_too_large_request(text: str) -> None:
    """It is the request that was too large, and was not applied, where its own size is named."""
    error = made("RESOURCE_EXHAUSTED", text.format(3000010), request_size=3000010)
    assert type(error) is e.RequestTooLargeError
    assert error.maybe_applied is False
    other = made("RESOURCE_EXHAUSTED", text.format(3000010), request_size=301)
    assert type(other) is e.EtcdError
    assert other.maybe_applied is True
    nobody_knows = made("RESOURCE_EXHAUSTED", text.format(3000010))
    assert type(nobody_knows) is e.RequestTooLargeError
    assert nobody_knows.maybe_applied is True


@pytest.mark.parametrize("text", ANSWER_TOO_LARGE)
@pytest.mark.parametrize("request_size", [3000010, 301, None])
def test_too_large_answer(text: str, request_size: int | None) -> None:
    """Where it can only be the answer that was too large, the request may have been applied."""
    error = made("RESOURCE_EXHAUSTED", text.format(3000010), request_size=request_size)
    assert type(error) is e.EtcdError
    assert error.maybe_applied is True
    assert not verdict_for("RESOURCE_EXHAUSTED", text.format(3000010)).transient


@pytest.mark.parametrize(
    ("code", "cls", "maybe_applied"),
    [
        ("CANCELLED", e.UnavailableError, True),
        ("UNKNOWN", e.EtcdError, True),
        ("INVALID_ARGUMENT", e.InvalidRequestError, False),
        ("DEADLINE_EXCEEDED", e.DeadlineExceededError, True),
        ("NOT_FOUND", e.EtcdError, True),
        ("ALREADY_EXISTS", e.EtcdError, True),
        ("PERMISSION_DENIED", e.PermissionDeniedError, True),
        ("RESOURCE_EXHAUSTED", e.EtcdError, True),
        ("FAILED_PRECONDITION", e.EtcdError, True),
        ("ABORTED", e.EtcdError, True),
        ("OUT_OF_RANGE", e.InvalidRequestError, True),
        ("UNIMPLEMENTED", e.UnsupportedByServerError, True),
        ("INTERNAL", e.UnavailableError, True),
        ("UNAVAILABLE", e.UnavailableError, True),
        ("DATA_LOSS", e.EtcdError, True),
        ("UNAUTHENTICATED", e.AuthenticationError, True),
    ],
)
@pytest.mark.parametrize("text", ["etcdserver: something of the year 2031", "", "whatever"])
def test_unknown_texts_go_by_code(
    code: str, cls: type[e.EtcdError], maybe_applied: bool, text: str
) -> None:
    """A text that nobody knows is told by its code, and keeps both."""
    error = made(code, text)
    assert type(error) is cls
    assert (error.code, error.details, error.maybe_applied) == (code, text, maybe_applied)
    assert (text or code) in str(error)
    verdict = verdict_for(code, text)
    passes = code in ("CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE")
    assert verdict.transient is passes
    assert verdict.blame is (Blame.CONNECTION if passes else Blame.NOBODY)


def test_every_code_has_a_rule() -> None:
    """There is no code of gRPC's that is not told."""
    for code in CODES:
        assert issubclass(verdict_for(code, "whatever").error, e.EtcdError)
    assert verdict_for("OF_THE_YEAR_2031", "whatever") == verdict_for("UNKNOWN", "whatever")


def test_own_deadline() -> None:
    """A deadline of the caller's has its seconds and says them; one of the server's has none."""
    own = made("DEADLINE_EXCEEDED", "Deadline Exceeded", timeout=1.5)
    assert isinstance(own, e.DeadlineExceededError)
    assert own.timeout == 1.5
    assert str(own).startswith("Put at a:1: no answer within 1.5 s;")
    for code, text in (
        ("UNKNOWN", "context deadline exceeded"),
        ("DEADLINE_EXCEEDED", "etcdserver: context deadline exceeded"),
    ):
        servers = made(code, text)
        assert isinstance(servers, e.DeadlineExceededError)
        assert servers.timeout is None
        assert str(servers).startswith(f"Put at a:1: {text};")


def test_message_says_what_where_and_what_to_do() -> None:
    """The message names the RPC and the endpoint, and warns where it may have been applied."""
    lost = str(made("UNAVAILABLE", "Socket closed"))
    assert lost.startswith("Put at a:1: Socket closed")
    assert "may have been applied" in lost
    assert str(made("UNAVAILABLE", "etcdserver: no leader")) == "Put at a:1: etcdserver: no leader"


def test_text_follows_what_became_known() -> None:
    """An error that a later try raises warns of what an earlier one may have done."""
    error = made("UNAVAILABLE", "etcdserver: no leader")
    error.maybe_applied = True
    assert str(error).startswith("Put at a:1: etcdserver: no leader; it may have been applied")


@pytest.mark.parametrize(
    ("reason", "cls", "code", "details"),
    [
        (
            "rpc error: code = PermissionDenied desc = etcdserver: permission denied",
            e.PermissionDeniedError,
            "PERMISSION_DENIED",
            "etcdserver: permission denied",
        ),
        (
            "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token",
            e.AuthenticationError,
            "UNAUTHENTICATED",
            "etcdserver: invalid auth token",
        ),
        (
            (
                "rpc error: code = OutOfRange desc = etcdserver: mvcc: required revision has been "
                "compacted"
            ),
            e.CompactedError,
            "OUT_OF_RANGE",
            "etcdserver: mvcc: required revision has been compacted",
        ),
        (
            "rpc error: code = Canceled desc = context canceled",
            e.UnavailableError,
            "CANCELLED",
            "context canceled",
        ),
        (
            "rpc error: code = DeadlineExceeded desc = context deadline exceeded",
            e.DeadlineExceededError,
            "DEADLINE_EXCEEDED",
            "context deadline exceeded",
        ),
        (
            "rpc error: code = FailedPrecondition desc = something\nin two lines",
            e.EtcdError,
            "FAILED_PRECONDITION",
            "something\nin two lines",
        ),
        ("rpc error: code = Novelty desc = etc", e.EtcdError, "UNKNOWN", "etc"),
        ("etcdserver: no leader", e.NoLeaderError, "UNAVAILABLE", "etcdserver: no leader"),
        (
            "etcdserver: permission denied",
            e.PermissionDeniedError,
            "PERMISSION_DENIED",
            "etcdserver: permission denied",
        ),
        (
            "mvcc: watcher range is empty",
            e.InvalidRequestError,
            "INVALID_ARGUMENT",
            "mvcc: watcher range is empty",
        ),
        (
            "mvcc: required revision has been compacted",
            e.CompactedError,
            "OUT_OF_RANGE",
            "mvcc: required revision has been compacted",
        ),
        ("the moon is full", e.EtcdError, "FAILED_PRECONDITION", "the moon is full"),
        ("", e.EtcdError, "FAILED_PRECONDITION", ""),
    ],
)
def test_cancel_reason(reason: str, cls: type[e.EtcdError], code: str, details: str) -> None:
    """A watch's cancel reason is told alike, whether bare or a status as Go prints it."""
    error = made(*status_of_reason(reason), is_write=False)
    assert type(error) is cls
    assert (error.code, error.details) == (code, details)
    assert error.maybe_applied is False


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code.value[0]])
def test_go_spells_every_code(code: grpc.StatusCode) -> None:
    """Each code is recognised as Go spells it."""
    spelled = "".join(word.capitalize() for word in code.name.split("_"))
    spelled = {"Cancelled": "Canceled"}.get(spelled, spelled)
    reason = f"rpc error: code = {spelled} desc = the moon is full"
    assert status_of_reason(reason) == (code.name, "the moon is full")


def test_a_reset_at_the_deadline_is_the_deadline() -> None:
    """A server whose timer was first resets the call: which may be its deadline."""
    reset = "Stream removed (RST_STREAM (Received RST_STREAM with error code 8))"
    assert Failure("CANCELLED", reset).is_deadline
    assert Failure("DEADLINE_EXCEEDED", "Deadline Exceeded").is_deadline
    assert not Failure("UNAVAILABLE", "Socket closed").is_deadline
