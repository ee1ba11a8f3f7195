"""Every error that aioetcd raises, by cause.

An error says what happened, whether a write may have been applied all the same, and which
endpoint said so. Its text is made of these facts when it is read, so that it cannot contradict
what became known later. Those with a twin among Python's builtins inherit it too, so that
``except TimeoutError`` and ``except ConnectionError`` work. Arguments that are wrong in themselves
(a negative limit, a key of type ``int``) are plain ``ValueError`` and ``TypeError``, raised before
anything is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict, Unpack

from aioetcd.types.store import KeyValue

_ADVICE = "; it may have been applied all the same: read before you write again"


class _Facts(TypedDict, total=False):
    """What `EtcdError` takes beside its message."""

    code: str | None
    details: str | None
    maybe_applied: bool
    endpoint: str | None


class EtcdError(Exception):
    """Base of all errors of this package.

    Attributes:
        code: The gRPC status name (``"UNAVAILABLE"``), or None where no server spoke.
        details: The server's own text, or None where no server spoke.
        maybe_applied: False only where the request surely had no effect. A read has none.
        endpoint: The endpoint that answered, or None.
    """

    code: str | None
    details: str | None
    maybe_applied: bool
    endpoint: str | None

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        details: str | None = None,
        maybe_applied: bool = False,
        endpoint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.details = details
        self.maybe_applied = maybe_applied
        self.endpoint = endpoint

    def _happened(self) -> str:
        """Say what happened, without the advice."""
        return str(self.args[0])

    def __str__(self) -> str:
        return self._happened() + (_ADVICE if self.maybe_applied else "")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __reduce__(self) -> tuple[object, ...]:
        # The default would call the class with positional arguments only, and OSError's would
        # look for an errno: an error must survive a trip to another process with its facts.
        return (_restore, (type(self), self.args, self.__dict__))

    def __copy__(self) -> EtcdError:
        error = _restore(type(self), self.args, self.__dict__)
        error.__cause__ = self.__cause__
        return error


def _restore(cls: type[EtcdError], args: tuple[object, ...], state: dict[str, object]) -> EtcdError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class ClientClosedError(EtcdError):
    """The client is closed, and the text says why.

    By ``aclose()``, or by leaving its ``async with``; because its event loop ended, or somebody
    cancelled all tasks; because it was dropped; or this is the child of the process that opened it.
    """


class UnavailableError(EtcdError, ConnectionError):
    """Nobody could be reached, the connection was lost, or the member is stopping."""


class NoEndpointError(UnavailableError, TimeoutError):
    """No endpoint took the request within the deadline; it surely was not applied.

    Attributes:
        reasons: Why each endpoint failed, by endpoint.
    """

    reasons: Mapping[str, str]

    def __init__(self, message: str, *, reasons: Mapping[str, str]) -> None:
        super().__init__(message)
        self.reasons = dict(reasons)


class NoLeaderError(UnavailableError):
    """The member has no leader: it is cut off from the quorum, or an election is on."""


class DeadlineExceededError(EtcdError, TimeoutError):
    """No answer within the deadline, whose seconds follow the message.

    Attributes:
        timeout: The seconds that the call was given, or None where the server gave up by a
            limit of its own.
    """

    timeout: float | None

    def __init__(
        self,
        message: str,
        *,
        timeout: float | None = None,
        **facts: Unpack[_Facts],
    ) -> None:
        super().__init__(message, **facts)
        self.timeout = timeout

    def _happened(self) -> str:
        within = "" if self.timeout is None else f" within {self.timeout:g} s"
        return super()._happened() + within


class AuthError(EtcdError):
    """Who you are, or what you may do, stood in the way."""


class AuthenticationError(AuthError):
    """The user, password or token was not accepted."""


class PermissionDeniedError(AuthError, PermissionError):
    """The user may not do this."""


class AuthNotEnabledError(AuthError):
    """The cluster runs without authentication."""


class InvalidRequestError(EtcdError, ValueError):
    """The request was refused for what it says."""


class RequestTooLargeError(InvalidRequestError):
    """The request is larger than the server takes (``--max-request-bytes``, 1.5 MiB by default).

    A proxy in between may take less.
    """


class TooManyOpsError(InvalidRequestError):
    """A txn has more operations than the server takes (``--max-txn-ops``, 128 by default)."""


class DuplicateKeyError(InvalidRequestError):
    """A txn puts the same key twice, or puts a key that it also deletes."""


class KeyNotFoundError(InvalidRequestError):
    """The key does not exist, and ``ignore_value`` or ``ignore_lease`` needs it."""


class CompactedError(EtcdError):
    """The revision asked for is no longer in the history.

    Attributes:
        compact_revision: The first revision that is still there, where the server tells it
            (watches do, reads do not).
    """

    compact_revision: int | None

    def __init__(
        self,
        message: str,
        *,
        compact_revision: int | None = None,
        **facts: Unpack[_Facts],
    ) -> None:
        super().__init__(message, **facts)
        self.compact_revision = compact_revision


class FutureRevisionError(EtcdError):
    """The revision asked for has not happened yet."""


class PartialWriteError(EtcdError):
    """Of many keys that were to be written, some were not, or nobody knows.

    Attributes:
        failed: By key, why; each error has its own `maybe_applied`. All other keys are written.
    """

    failed: Mapping[bytes, EtcdError]

    def __init__(
        self, message: str, *, failed: Mapping[bytes, EtcdError], **facts: Unpack[_Facts]
    ) -> None:
        super().__init__(message, **facts)
        self.failed = failed


class StmConflictError(EtcdError):
    """A transaction was not committed, because others changed what it relies on, in each try.

    Attributes:
        keys: The keys that they changed in the last one.
        tries: How many there were.
    """

    keys: tuple[bytes, ...]
    tries: int

    def __init__(self, message: str, *, keys: tuple[bytes, ...], tries: int) -> None:
        super().__init__(message)
        self.keys = keys
        self.tries = tries


class LeaseError(EtcdError):
    """About a lease."""


class LeaseNotFoundError(LeaseError):
    """The server knows no such lease: never granted, revoked, or expired."""


class LeaseExistsError(LeaseError):
    """A lease with this id is there already."""


class LeaseLostError(LeaseError):
    """A lease that was held is gone, and with it every key attached to it.

    Attributes:
        lease_id: The lease.
        reason: ``"expired"``, ``"revoked"``, ``"not found"`` or ``"closed"``.
    """

    lease_id: int
    reason: str

    def __init__(self, message: str, *, lease_id: int, reason: str) -> None:
        super().__init__(message)
        self.lease_id = lease_id
        self.reason = reason


class LeaseExpiredError(LeaseLostError):
    """A lease was not renewed within its time to live, as far as this client can know."""

    def __init__(self, message: str, *, lease_id: int) -> None:
        super().__init__(message, lease_id=lease_id, reason="expired")


class NoSpaceError(EtcdError):
    """The server's storage quota is used up: compact, defragment, then disarm the alarm.

    The write that reaches the quota is applied and told so all the same, as are those that were
    under way beside it. `maybe_applied` is therefore true for every write.
    """


class TooManyRequestsError(EtcdError):
    """The server is overloaded and refused the request before doing anything."""


class ClusterMismatchError(EtcdError):
    """Another cluster answers, or the same one with a history that went back."""


class CorruptClusterError(EtcdError):
    """A member's data differs from the others' (``CORRUPT`` alarm)."""


class UnsupportedByServerError(EtcdError):
    """The server is too old for this.

    Attributes:
        server_version: What the server is, where it told.
        needs: The first version that has it.
    """

    server_version: str | None
    needs: str | None

    def __init__(
        self,
        message: str,
        *,
        server_version: str | None = None,
        needs: str | None = None,
        **facts: Unpack[_Facts],
    ) -> None:
        super().__init__(message, **facts)
        self.server_version = server_version
        self.needs = needs


class MemberError(EtcdError):
    """The cluster refused a change of its members, or of its version."""


class MemberNotFoundError(MemberError):
    """There is no such member."""


class LearnerError(MemberError):
    """The member is a learner and does not serve this, or is not ready to be promoted."""


class NotLeaderError(MemberError):
    """Only the leader does this, and this member is not it."""


class UnhealthyClusterError(MemberError):
    """Too few members are healthy to change the membership safely."""


class SnapshotError(EtcdError):
    """A snapshot came damaged, or not to its end."""


class LockError(EtcdError):
    """About a lock."""


class LockNotAcquiredError(LockError):
    """Somebody else holds the lock, and you asked not to wait; or it is no use to wait.

    That is where what is in the way is a key that no lock has put, which may stay for ever.

    Attributes:
        holder: The key in the way, whose ``value`` is what the holder wrote for onlookers.
    """

    holder: KeyValue

    def __init__(self, message: str, *, holder: KeyValue) -> None:
        super().__init__(message)
        self.holder = holder


class LockTimeoutError(LockError, TimeoutError):
    """The lock's turn did not come within the time you gave it.

    Attributes:
        timeout: That time in seconds.
        holder: The key of whoever held the lock when it was last looked at, or None where that is
            not known.
    """

    timeout: float
    holder: KeyValue | None

    def __init__(self, message: str, *, timeout: float, holder: KeyValue | None = None) -> None:
        super().__init__(message)
        self.timeout = timeout
        self.holder = holder


class LockLostError(LockError):
    """The lock, or the place in its queue, is gone: lease lost, or the key was deleted."""


class ElectionError(EtcdError):
    """About an election."""


class ElectionTimeoutError(ElectionError, TimeoutError):
    """The leadership did not come within the time you gave it.

    Attributes:
        timeout: That time in seconds.
        leader: The key of whoever led when it was last looked at, or None where that is not known.
    """

    timeout: float
    leader: KeyValue | None

    def __init__(self, message: str, *, timeout: float, leader: KeyValue | None = None) -> None:
        super().__init__(message)
        self.timeout = timeout
        self.leader = leader


class LeadershipLostError(ElectionError):
    """The leadership, or the candidacy, is gone: lease lost, or the key was deleted."""


class BarrierLostError(EtcdError):
    """The place in a double barrier is gone: lease lost, or the key was deleted."""


class QueueError(EtcdError):
    """Nobody can know any more whether an item of a queue was taken here, or by somebody else.

    Attributes:
        key: The item's key.
        value: Its value, which may be lost.
    """

    key: bytes
    value: bytes

    def __init__(
        self, message: str, *, key: bytes, value: bytes, maybe_applied: bool = False
    ) -> None:
        super().__init__(message, maybe_applied=maybe_applied)
        self.key = key
        self.value = value


class WorkQueueError(EtcdError):
    """About a work queue."""


class JobLostError(WorkQueueError):
    """The job is not this worker's any more: its claim is gone, and it is handed out again.

    Where `maybe_applied` is true, it may have been acknowledged all the same.
    """


class WorkerLostError(JobLostError):
    """The worker's lease is lost, and with it every job that it had: they are handed out again."""
