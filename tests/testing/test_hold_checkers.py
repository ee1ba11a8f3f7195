"""The checks of locks, leases and resources: what is right passes, what breaks a rule is found."""

import random
from collections.abc import Iterable
from dataclasses import replace

import pytest

from aioetcd.testing import checkers
from aioetcd.testing.checkers import Violation
from aioetcd.testing.history import GuardedTxn, LeaseSignal, LockHold

SECOND = 10**9


def rules(violations: Iterable[Violation]) -> set[str]:
    """The rules that were broken."""
    return {violation.checker for violation in violations}


# --- locks ----------------------------------------------------------------------------------

FIRST = LockHold("/lock", "one", 10, acquired_ns=100, released_ns=200)


@pytest.mark.parametrize(
    "second",
    [
        LockHold("/lock", "two", 11, acquired_ns=200, released_ns=300),
        LockHold("/lock", "one", 11, acquired_ns=201),
        LockHold("/other", "two", 5, acquired_ns=150, released_ns=160),
        LockHold("/lock", "two", 9, acquired_ns=50, lost_ns=99),
        LockHold("/lock", "two", 9, acquired_ns=50, released_ns=500, lost_ns=100),
    ],
)
def test_locks_held_in_turn(second: LockHold) -> None:
    """Holds one after another pass, in whatever order they were recorded."""
    assert checkers.check_lock_holds([FIRST, second]) == []
    assert checkers.check_lock_holds([second, FIRST]) == []


@pytest.mark.parametrize(
    "second",
    [
        LockHold("/lock", "two", 11, acquired_ns=199, released_ns=300),
        LockHold("/lock", "one", 11, acquired_ns=120, released_ns=130),
        LockHold("/lock", "two", 9, acquired_ns=50),
        LockHold("/lock", "two", 9, acquired_ns=50, lost_ns=101),
    ],
)
def test_lock_held_twice(second: LockHold) -> None:
    """Holds that overlap are found, the same holder's and endless ones too."""
    assert rules(checkers.check_lock_holds([FIRST, second])) == {"lock disjoint"}


def test_lock_held_within_a_long_hold() -> None:
    """An overlap with a hold that is not the one just before is found."""
    long = LockHold("/lock", "long", 1, acquired_ns=0, released_ns=1000)
    inner = [LockHold("/lock", "x", n, 10 * n, 10 * n + 1) for n in range(2, 5)]
    assert len(checkers.check_lock_holds([long, *inner])) == 3


@pytest.mark.parametrize("token", [9, 10])
def test_lock_token_goes_back(token: int) -> None:
    """A later holder whose token is not greater is found."""
    second = LockHold("/lock", "two", token, acquired_ns=300)
    assert rules(checkers.check_lock_holds([FIRST, second])) == {"lock token"}


def test_fencing() -> None:
    """A guarded write by an earlier holder after a later one's is found."""
    good = [
        GuardedTxn("/lock", 12, 30),
        GuardedTxn("/lock", 10, 20),
        GuardedTxn("/lock", 12, 31),
        GuardedTxn("/other", 5, 40),
    ]
    assert checkers.check_fencing(good) == []
    assert rules(checkers.check_fencing([*good, GuardedTxn("/lock", 11, 32)])) == {"fencing"}
    late = [*good, GuardedTxn("/lock", 11, 32), GuardedTxn("/lock", 12, 33)]
    assert len(checkers.check_fencing(late)) == 1


# --- leases ---------------------------------------------------------------------------------


def granted(ttl: float = 10) -> LeaseSignal:
    """A grant sent at second 0."""
    return LeaseSignal(7, "granted", at_ns=SECOND // 10, sent_ns=0, ttl=ttl)


def answered(sent: float, at: float, ttl: float = 10) -> LeaseSignal:
    """A renewal that was answered."""
    return LeaseSignal(7, "answered", int(at * SECOND), sent_ns=int(sent * SECOND), ttl=ttl)


def lost(at: float, reason: str | None = None) -> LeaseSignal:
    """The signal of the loss."""
    return LeaseSignal(7, "lost", int(at * SECOND), reason=reason)


def test_lease_lost_in_time() -> None:
    """A loss told when the TTL of the last answered renewal is over passes, or earlier."""
    sent = LeaseSignal(7, "sent", 8 * SECOND)
    for signals in (
        [granted(), lost(10)],
        [granted(), lost(3, "revoked")],
        [granted(), answered(3, 4), answered(5, 6, ttl=0), lost(6)],
        [granted(), answered(3, 4), sent, lost(13)],
        [lost(13), answered(3, 4), granted()],
    ):
        end = max(signal.at_ns for signal in signals)
        expired = {7: end + 1}
        assert checkers.check_leases(signals, expired_ns=expired, until_ns=20 * SECOND) == []


@pytest.mark.parametrize(
    "signals",
    [
        [granted(), lost(10.5)],
        [granted(), LeaseSignal(7, "sent", 8 * SECOND), lost(18)],
        [granted(), LeaseSignal(7, "sent", 8 * SECOND, 8 * SECOND, ttl=10), lost(18)],
        [granted(), answered(3, 4), lost(14)],
        [granted(), answered(3, 4, ttl=5), lost(10.5)],
        [granted(), answered(9, 11), lost(12)],  # the answer came when it was over
        [granted(), answered(3, 4, ttl=0), lost(4.5, "not found")],  # and said that it is gone
        [granted(), answered(3, 4, ttl=0)],
        [granted()],
        [granted(), answered(9, 11)],
        [granted(), LeaseSignal(7, "revoked", 11 * SECOND)],
    ],
)
def test_lease_lost_late(signals: list[LeaseSignal]) -> None:
    """A loss told later than send time plus TTL, or never, is found."""
    found = checkers.check_leases(signals, until_ns=20 * SECOND)
    assert rules(found) == {"lease in time"}
    assert checkers.check_leases(signals, until_ns=20 * SECOND, tolerance_ns=16 * SECOND) == []


def test_lease_answer_within_the_tolerance() -> None:
    """A renewal written down a little after the deadline still counts, within the tolerance."""
    signals = [granted(), answered(9, 10.2), lost(19)]
    assert rules(checkers.check_leases(signals)) == {"lease in time"}
    assert checkers.check_leases(signals, tolerance_ns=SECOND // 2) == []


@pytest.mark.parametrize(
    "signals",
    [
        [granted(), lost(3, "expired")],
        [granted(), answered(3, 4), lost(12.5, "expired")],
        [granted(), answered(3, 4), answered(6, 7), lost(13, "expired")],
    ],
)
def test_lease_expired_early(signals: list[LeaseSignal]) -> None:
    """Who is told before send time plus TTL that the lease expired is told wrongly."""
    assert rules(checkers.check_leases(signals)) == {"lease too early"}
    assert checkers.check_leases(signals, tolerance_ns=7 * SECOND) == []
    without = replace(signals[-1], reason=None)
    assert rules(checkers.check_leases([*signals[:-1], without])) == {"lease too early"}
    for reason in ("revoked", "not found", "closed"):  # these may come at any time
        told = replace(signals[-1], reason=reason)
        assert checkers.check_leases([*signals[:-1], told]) == []


def test_lease_expired_in_time() -> None:
    """An expiry when the time is over passes; an answer that came too late did not extend it."""
    for signals in (
        [granted(), lost(10, "expired")],
        [granted(), answered(3, 4), lost(13, "expired")],
        [granted(), answered(3, 4, ttl=5), lost(9, "expired")],  # the server gave less time
        [granted(), answered(9, 11), lost(10, "expired")],
        [lost(3, "expired")],  # nobody wrote down when it was to end
    ):
        assert checkers.check_leases(signals) == []


def test_lease_answered_too_late_from_the_start() -> None:
    """A first answer that comes after its own time promises nothing; one in time does."""
    revoked = LeaseSignal(7, "revoked", 15 * SECOND)
    assert checkers.check_leases([answered(1, 3, ttl=1), revoked], until_ns=20 * SECOND) == []
    in_time = [answered(1, 3, ttl=1), answered(4, 5), revoked]
    assert rules(checkers.check_leases(in_time, until_ns=20 * SECOND)) == {"lease in time"}


def test_lease_lost_after_the_store() -> None:
    """A loss told after the store had dropped the lease, or never, is found."""
    check = checkers.check_leases
    late = [granted(), lost(9, "revoked")]
    assert rules(check(late, expired_ns={7: 8 * SECOND})) == {"lease before the store"}
    assert check(late, expired_ns={7: 8 * SECOND}, tolerance_ns=SECOND) == []
    assert rules(check([granted()], expired_ns={7: 8 * SECOND})) == {"lease before the store"}
    assert check([granted()]) == []


def test_lease_lost_twice() -> None:
    """A loss told twice is found."""
    assert rules(checkers.check_leases([granted(), lost(10), lost(9.5, "revoked")])) == {
        "lease once"
    }


def test_lease_revoked_by_its_owner() -> None:
    """Who revokes a lease in time need not be told of its end."""
    signals = [granted(), LeaseSignal(7, "revoked", 5 * SECOND)]
    assert checkers.check_leases(signals, expired_ns={7: 6 * SECOND}, until_ns=20 * SECOND) == []


def test_leases_are_apart() -> None:
    """One lease's renewals do not help another."""
    other = LeaseSignal(8, "granted", 6 * SECOND, sent_ns=5 * SECOND, ttl=100)
    assert checkers.check_leases([granted(), other, lost(10)], until_ns=20 * SECOND) == []
    assert len(checkers.check_leases([granted(), other], until_ns=20 * SECOND)) == 1


# --- resources ------------------------------------------------------------------------------


def test_leaks() -> None:
    """More than before is a leak, unless allowed; less is none."""
    check = checkers.check_no_leak
    assert check({"tasks": 3, "fds": 9}, {"tasks": 3, "fds": 8}) == []
    assert [v.message for v in check({"tasks": 3}, {"tasks": 4})] == ["tasks: 3 before, 4 after"]
    assert rules(check({}, {"watchers": 1})) == {"leak"}
    assert check({"fds": 9}, {"fds": 11}, allowed={"fds": 2}) == []
    assert rules(check({"fds": 9}, {"fds": 12}, allowed={"fds": 2})) == {"leak"}


def test_attempts() -> None:
    """No window of time may have more attempts than allowed, wherever it lies."""
    steady = [n * SECOND // 5 for n in range(50)]
    assert checkers.check_attempts(steady, max_per_second=5) == []
    burst = [*steady, *(5 * SECOND + n for n in range(5))]
    (found,) = checkers.check_attempts(burst, max_per_second=5)
    assert (found.checker, found.message) == ("attempts", "10 in 1 s, at most 5 are allowed")
    assert checkers.check_attempts(burst, max_per_second=9) != []
    assert checkers.check_attempts(burst, max_per_second=10) == []
    (found,) = checkers.check_attempts(burst, max_per_second=5, window=10)
    assert found.message == "55 in 10 s, at most 50 are allowed"
    assert checkers.check_attempts([0, SECOND - 1], max_per_second=0.1) != []
    assert checkers.check_attempts([0, SECOND], max_per_second=0.1) == []
    assert checkers.check_attempts([], max_per_second=5) == []
    assert checkers.check_attempts([1], max_per_second=0.1) == []


def test_jitter() -> None:
    """Pauses that are all alike, or grow by one factor, are found; random ones pass."""
    numbers = random.Random(1)

    def times(pauses: Iterable[float]) -> list[int]:
        at, out = 0.0, [0]
        for pause in pauses:
            at += pause
            out.append(int(at * SECOND))
        return out

    assert rules(checkers.check_jitter(times([0.5] * 10))) == {"jitter"}
    for factor in (1.1, 1.6, 2, 3):
        grown = [0.1 * factor**n for n in range(8)]
        assert rules(checkers.check_jitter(times(grown))) == {"jitter"}
        capped = [*grown, *[grown[-1]] * 6]
        assert rules(checkers.check_jitter(times(capped))) == {"jitter"}
    for _ in range(300):
        pauses = [min(2.0, 0.1 * 1.6**n) * numbers.uniform(0.8, 1.2) for n in range(20)]
        assert checkers.check_jitter(times(pauses)) == []
    assert checkers.check_jitter(times([0.5, 0.0] * 5)) == []  # two of them at once
    assert checkers.check_jitter(times([0.5] * 5)) == []
    assert rules(checkers.check_jitter(times([0.5] * 6))) == {"jitter"}


def test_cpu_share() -> None:
    """A tenth of a processor is too much."""
    assert checkers.check_cpu_share(0.9, 10) == []
    assert rules(checkers.check_cpu_share(1.0, 10)) == {"cpu"}
    assert checkers.check_cpu_share(1.0, 10, limit=0.5) == []
