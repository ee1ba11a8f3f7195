"""The plan of a stress run, and a run short enough for every day."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest

from aioetcd.testing.checkers import Violation
from aioetcd.testing.history import (
    Delivery,
    EventKind,
    EventRecord,
    KeyValueRecord,
    LeaseSignal,
    LockHold,
    Operation,
    Put,
)
from tests.stress.checks import (
    TRAFFIC,
    check_deadlines,
    check_harness,
    excuse_missing,
    revoked_early,
    server_bugs,
)
from tests.stress.holding import WRITTEN
from tests.stress.plan import LANES, plan
from tests.stress.recipes import PERMITTED, check_shares
from tests.stress.shared import Lateness, Share


def test_a_seed_decides_the_plan() -> None:
    """The same seed gives the same faults at the same times, another one gives others."""
    assert plan(7, 600) == plan(7, 600)
    assert plan(7, 600) != plan(8, 600)
    assert [fault for fault in plan(7, 600) if fault.at < 60] == plan(7, 60)


def test_every_fault_is_planned() -> None:
    """A long run has every kind of fault, one at a time in each lane, and none left out."""
    faults = plan(1, 3600, without=["pause"])
    for lane, kinds in LANES.items():
        own = [fault for fault in faults if fault.lane == lane]
        assert {fault.kind for fault in own} == set(kinds) - {"pause"}
        for before, after in pairwise(own):
            assert before.at + before.seconds < after.at


def test_faults_that_a_server_does_not_survive_are_left_out() -> None:
    """Old servers' bugs are not blamed on the client, and current servers get everything."""
    assert set(server_bugs((3, 5, 1))) == {"kill", "pause", "compact", "replace"}
    assert set(server_bugs((3, 5, 28))) == set()
    assert set(server_bugs((3, 6, 0))) == {"pause"}
    assert set(server_bugs((3, 6, 16))) == set()


EVERYDAY = (0.15, 2380)
"""Minutes and seed: short, but with much in it."""


@pytest.mark.parametrize("version", [(3, 5, 1), (3, 6, 16)])
def test_the_everyday_run_has_much_in_it(version: tuple[int, ...]) -> None:
    """The seed was chosen for what it brings; another plan needs another seed."""
    minutes, seed = EVERYDAY
    kinds = {fault.kind for fault in plan(seed, minutes * 60, without=server_bugs(version))}
    assert kinds >= {"cut", "refuse", "slow_link", "delay", "isolate"}
    assert "kill" in kinds or "kill" in server_bugs(version)


def test_a_run_without_faults_or_traffic_fails() -> None:
    """What was planned must have had an effect, and each kind of traffic must have been."""
    faults = plan(7, 60)
    kinds = Counter(fault.kind for fault in faults)
    done, happened = Counter(kinds.keys()), Counter(TRAFFIC)
    assert check_harness(faults, done, happened) == []
    assert {1, 2} <= set(kinds.values())
    for kind, count in kinds.items():
        without = Counter({**done, kind: 0, f"{kind} (no effect)": 3})
        idle = check_harness(faults, without, happened)
        assert [kind in violation.message for violation in idle] == [True] * (count > 1)
    nothing = check_harness(faults, Counter(), happened)
    assert len(nothing) == len(kinds)
    for what in TRAFFIC:
        (found,) = check_harness(faults, done, Counter({**happened, what: 0}))
        assert what in found.message
    (found,) = check_harness([], done, happened)
    assert "no fault" in found.message


def test_what_the_server_revokes_early_is_told_from_what_ran_out() -> None:
    """A lease whose answered renewal had time left when its key went was revoked by the server."""
    second = 1_000_000_000
    renewed = LeaseSignal(1, "answered", 5 * second, 5 * second - 10, 3.0)
    assert revoked_early([renewed], {1: 7 * second}) == {1}
    assert revoked_early([renewed], {1: 8 * second}) == set()
    assert revoked_early([renewed], {1: 4 * second}) == set(), "it was answered afterwards"
    assert revoked_early([renewed], {2: 7 * second}) == set()


def test_few_events_may_lack_the_key_before() -> None:
    """What the server forgot at the beginning of a watch is excused: not much, and nothing else."""
    before = KeyValueRecord(b"k", b"v", 1, 1, 1)
    put = EventRecord(EventKind.PUT, KeyValueRecord(b"k", b"w", 1, 2, 2))
    missing = Violation("watch prev_kv", "missing", (put,))
    wrong = Violation("watch prev_kv", "wrong", (replace(put, prev_kv=before),))
    other = Violation("watch filter", "other", (put,))
    many = [Delivery("w", 1, 2, (put,) * 100)]
    assert excuse_missing([missing, wrong, other], many) == ([wrong, other], 1)
    assert excuse_missing([missing] * 3, many) == ([missing] * 3, 0)


def test_a_call_that_outlives_its_deadline_is_found() -> None:
    """By more than a tenth of a second, without what the loop was late meanwhile."""
    second = 1_000_000_000
    call = Operation("c", Put(b"k", b"v"), 0, 3 * second, "unknown")
    late = Lateness()
    for took, found in ((3 * second, 0), (31 * second // 10, 0), (31 * second // 10 + 1, 1)):
        calls = [replace(call, return_ns=took)]
        assert len(check_deadlines(calls, 3, late.between)) == found
    late.add(2 * second, second // 2)
    late.add(20 * second, 0)
    for took, found in ((36 * second // 10, 0), (37 * second // 10, 1)):
        calls = [replace(call, return_ns=took)]
        assert len(check_deadlines(calls, 3, late.between)) == found


def test_lateness_counts_only_where_it_was() -> None:
    """What was told just after the loop was late could have been told earlier, all else not."""
    lateness = Lateness()
    for turn in range(1, 101):
        lateness.add(10 * turn, 300 if turn == 50 else 0)
    assert lateness.most == 300
    assert [lateness.in_time(told) for told in (495, 500)] == [195, 200]
    assert lateness.in_time(535) == 235
    assert [lateness.in_time(told) for told in (5, 400, 600, 2000)] == [5, 400, 600, 2000]
    lateness.add(1300, 200)
    lateness.add(1700, 300)
    assert lateness.in_time(1700) == 1200


def test_who_shares_beside_too_many_is_found() -> None:
    """A reader beside a writer, in either order, and a third one beside two permits."""
    reader = Share(WRITTEN, "reader", 10, 20, is_lost=False)
    beside = replace(reader, who="another", acquired_ns=15)
    writer = LockHold(WRITTEN, "writer", 1, 20, 30)
    assert check_shares([reader, beside], [writer]) == []
    assert len(check_shares([reader, beside], [replace(writer, acquired_ns=19)])) == 1
    assert len(check_shares([replace(reader, acquired_ns=25, ended_ns=40)], [writer])) == 1
    first = Share(PERMITTED, "first", 10, 20, is_lost=False)
    second = replace(first, acquired_ns=12, ended_ns=30)
    for begins, found in ((20, 0), (19, 1)):
        third = replace(first, acquired_ns=begins, ended_ns=40)
        assert len(check_shares([first, second, third], [])) == found


@pytest.mark.fault("ten seconds of faults and traffic")
@pytest.mark.timeout(180)
def test_a_short_run_finds_nothing() -> None:
    """Ten seconds of faults and traffic, with all checks."""
    command = [sys.executable, "-m", "tests.stress.run", *map(str, EVERYDAY)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stdout
    assert "all checks passed" in done.stdout
