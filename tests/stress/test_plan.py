"""The plan of a stress run, and a run short enough for every day."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest

from tests.stress.plan import LANES, plan
from tests.stress.run import server_bugs


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
    assert set(server_bugs((3, 5, 1))) == {"kill", "pause", "compact"}
    assert set(server_bugs((3, 5, 28))) == set()
    assert set(server_bugs((3, 6, 0))) == {"pause"}
    assert set(server_bugs((3, 6, 14))) == set()


@pytest.mark.server
@pytest.mark.timeout(180)
def test_a_short_run_finds_nothing() -> None:
    """Ten seconds of faults and traffic, with all checks."""
    command = [sys.executable, "-m", "tests.stress.run", "0.15", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stdout
    assert "all checks passed" in done.stdout
