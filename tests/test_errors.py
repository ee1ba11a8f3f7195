"""Errors are told apart by class, carry their facts, and keep them wherever they are taken."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import traceback
from collections.abc import Iterator

import pytest

import aioetcd
from aioetcd import errors as e
from aioetcd.types.store import KeyValue

HOLDER = KeyValue(b"/lock/1f", b"host-7", 4, 4, 1, 0x1F)
SERVER_FACTS = {
    "code": "UNAVAILABLE",
    "details": "etcdserver: something",
    "maybe_applied": True,
    "endpoint": "127.0.0.1:2379",
}

# What a class needs beside its message, where that is not what a server said.
OWN_FACTS: dict[type[e.EtcdError], dict[str, object]] = {
    e.NoEndpointError: {"reasons": {"a:1": "Connection refused", "b:2": "no answer yet"}},
    e.DeadlineExceededError: {**SERVER_FACTS, "timeout": 1.5},
    e.CompactedError: {**SERVER_FACTS, "compact_revision": 42},
    e.UnsupportedByServerError: {**SERVER_FACTS, "server_version": "3.4.1", "needs": "3.7.0"},
    e.PartialWriteError: {"failed": {}, "maybe_applied": True},
    e.StmConflictError: {"keys": (b"/a",), "tries": 3},
    e.QueueError: {"key": b"/queue/items/1", "value": b"hello", "maybe_applied": True},
    e.LeaseLostError: {"lease_id": 7, "reason": "revoked"},
    e.LeaseExpiredError: {"lease_id": 7},
    e.LockNotAcquiredError: {"holder": HOLDER},
    e.LockTimeoutError: {"timeout": 0.5, "holder": HOLDER},
    e.ElectionTimeoutError: {"timeout": 0.5, "leader": HOLDER},
}


def subclasses(cls: type[e.EtcdError]) -> Iterator[type[e.EtcdError]]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from subclasses(subclass)


ALL: list[type[e.EtcdError]] = [
    e.EtcdError,
    *(cls for cls in dict.fromkeys(subclasses(e.EtcdError)) if cls.__module__ == e.__name__),
]


def make(cls: type[e.EtcdError]) -> e.EtcdError:
    return cls("what happened", **OWN_FACTS.get(cls, SERVER_FACTS))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cls", "bases"),
    [
        (e.UnavailableError, [ConnectionError, OSError]),
        (e.NoEndpointError, [e.UnavailableError, ConnectionError, TimeoutError]),
        (e.NoLeaderError, [e.UnavailableError, ConnectionError]),
        (e.DeadlineExceededError, [TimeoutError]),
        (e.AuthenticationError, [e.AuthError]),
        (e.PermissionDeniedError, [e.AuthError, PermissionError]),
        (e.AuthNotEnabledError, [e.AuthError]),
        (e.InvalidRequestError, [ValueError]),
        (e.RequestTooLargeError, [e.InvalidRequestError, ValueError]),
        (e.TooManyOpsError, [e.InvalidRequestError, ValueError]),
        (e.DuplicateKeyError, [e.InvalidRequestError, ValueError]),
        (e.KeyNotFoundError, [e.InvalidRequestError, ValueError]),
        (e.LeaseNotFoundError, [e.LeaseError]),
        (e.LeaseExistsError, [e.LeaseError]),
        (e.LeaseLostError, [e.LeaseError]),
        (e.LeaseExpiredError, [e.LeaseLostError]),
        (e.LockNotAcquiredError, [e.LockError]),
        (e.LockTimeoutError, [e.LockError, TimeoutError]),
        (e.LockLostError, [e.LockError]),
        (e.ElectionTimeoutError, [e.ElectionError, TimeoutError]),
        (e.LeadershipLostError, [e.ElectionError]),
        (e.JobLostError, [e.WorkQueueError]),
        (e.WorkerLostError, [e.JobLostError, e.WorkQueueError]),
        (e.MemberNotFoundError, [e.MemberError]),
        (e.NotLeaderError, [e.MemberError]),
        (e.LearnerError, [e.MemberError]),
        (e.UnhealthyClusterError, [e.MemberError]),
    ],
)
def test_family(cls: type[e.EtcdError], bases: list[type[Exception]]) -> None:
    """An error is caught by its family and by its twin among the builtins."""
    error = make(cls)
    assert isinstance(error, e.EtcdError)
    for base in bases:
        assert isinstance(error, base)


@pytest.mark.parametrize("builtin", [TimeoutError, ConnectionError, PermissionError, ValueError])
def test_builtin_twins_are_exclusive(builtin: type[Exception]) -> None:
    """Nothing but what is meant is caught by a builtin: a lost lease is no time-out."""
    expected: dict[type[Exception], set[type[e.EtcdError]]] = {
        TimeoutError: {
            e.DeadlineExceededError,
            e.ElectionTimeoutError,
            e.LockTimeoutError,
            e.NoEndpointError,
        },
        ConnectionError: {e.UnavailableError, e.NoEndpointError, e.NoLeaderError},
        PermissionError: {e.PermissionDeniedError},
        ValueError: {
            e.InvalidRequestError,
            e.RequestTooLargeError,
            e.TooManyOpsError,
            e.DuplicateKeyError,
            e.KeyNotFoundError,
        },
    }
    assert {cls for cls in ALL if issubclass(cls, builtin)} == expected[builtin]


@pytest.mark.parametrize("cls", ALL)
def test_facts(cls: type[e.EtcdError]) -> None:
    """Every error carries what it was made with."""
    error = make(cls)
    assert error.args == ("what happened",)
    for name, fact in OWN_FACTS.get(cls, SERVER_FACTS).items():
        assert getattr(error, name) == fact


@pytest.mark.parametrize("cls", ALL)
def test_text_is_made_of_the_facts(cls: type[e.EtcdError]) -> None:
    """Whoever reads an error is told what it knows then, whichever builtin it inherits from."""
    error = make(cls)
    happened = "what happened"
    if isinstance(error, e.DeadlineExceededError):
        happened += " within 1.5 s"
    error.maybe_applied = False
    assert str(error) == happened
    assert repr(error) == f"{cls.__name__}({happened!r})"
    error.maybe_applied = True
    assert str(error).startswith(f"{happened}; it may have been applied all the same")
    assert repr(error) == f"{cls.__name__}({str(error)!r})"
    assert traceback.format_exception_only(error)[-1].endswith(f"{cls.__name__}: {error}\n")
    assert str(copy.copy(error)) == str(pickle.loads(pickle.dumps(error))) == str(error)
    assert error.args == ("what happened",)


@pytest.mark.parametrize("cls", ALL)
def test_common_facts_are_always_there(cls: type[e.EtcdError]) -> None:
    """Where no server spoke, the common facts are None and nothing was applied."""
    own = {k: v for k, v in OWN_FACTS.get(cls, {}).items() if k not in SERVER_FACTS}
    error = cls("what happened", **own)  # type: ignore[arg-type]
    assert (error.code, error.details, error.endpoint) == (None, None, None)
    assert error.maybe_applied is False


def test_optional_facts_are_none() -> None:
    """A fact that is not known is None."""
    assert e.DeadlineExceededError("x").timeout is None
    assert e.CompactedError("x").compact_revision is None
    assert e.LockTimeoutError("x", timeout=1).holder is None
    assert e.ElectionTimeoutError("x", timeout=1).leader is None
    assert e.UnsupportedByServerError("x").server_version is None
    assert e.UnsupportedByServerError("x").needs is None


def test_expired_is_the_reason() -> None:
    """An expired lease is a lost one with the reason that its name says."""
    error = e.LeaseExpiredError("x", lease_id=3)
    assert (error.lease_id, error.reason) == (3, "expired")


def test_reasons_are_a_copy() -> None:
    """An error's reasons do not change with the dictionary that they came from."""
    reasons = {"a:1": "refused"}
    error = e.NoEndpointError("x", reasons=reasons)
    reasons.clear()
    assert error.reasons == {"a:1": "refused"}


@pytest.mark.parametrize("cls", ALL)
def test_survives_pickling(cls: type[e.EtcdError]) -> None:
    """A pickled error comes back with its class, its message, its facts and its notes."""
    error = make(cls)
    error.add_note("seen in the nightly job")
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error, protocol))
        assert type(again) is cls
        assert (str(again), again.args) == (str(error), error.args)
        assert vars(again) == vars(error)


@pytest.mark.parametrize("cls", ALL)
def test_survives_copying(cls: type[e.EtcdError]) -> None:
    """A copy is another object with the same class, message and facts."""
    error = make(cls)
    for again in (copy.copy(error), copy.deepcopy(error)):
        assert again is not error
        assert type(again) is cls
        assert (str(again), vars(again)) == (str(error), vars(error))


def test_crosses_to_another_process() -> None:
    """Another process sees the same error, though it imports nothing but pickle before."""
    blob = pickle.dumps(make(e.NoEndpointError))
    code = (
        "import pickle, sys\n"
        "error = pickle.loads(sys.stdin.buffer.read())\n"
        "assert isinstance(error, ConnectionError), error\n"
        "sys.stdout.write(f'{type(error).__name__}: {error} {error.reasons[\"a:1\"]}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=blob, capture_output=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode() == "NoEndpointError: what happened Connection refused"


@pytest.mark.parametrize("cls", ALL)
def test_is_public(cls: type[e.EtcdError]) -> None:
    """Every error is named by the package, ends in Error, and has no builtin's name."""
    assert getattr(aioetcd, cls.__name__) is cls
    assert cls.__name__ in aioetcd.__all__
    assert cls.__name__.endswith("Error")
    assert cls.__name__ not in vars(__import__("builtins"))
    assert cls.__doc__
