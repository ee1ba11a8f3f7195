"""The tiers of the suite: which tests run where.

A test that touches a real etcd is of the tier `contract` by itself: a server's version could change
what it sees, so that it runs on all of them. One of these markers takes it, or a test without a
server, to another tier, and its first argument says why:

    fault       a row of the faults that takes 2 s or more (``@pytest.mark.fault("L7")``)
    alone       runs without neighbours: it counts CPU time, blocks loops, or has narrow margins
    own_logic   touches a server, and no version of it could change the outcome
    packaging   builds wheels and virtual environments, runs type checkers

What is in no tier touches no server. `contract` may be given as well, to a test whose server this
file does not see.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

TIERS = ("contract", "fault", "alone", "own_logic", "packaging")

SLOW = 2.0
"""Seconds from which on a test is of the tier `fault` or `alone`."""

_MACHINES_DIFFER = 2
"""So many times as long may take what this one is slower at."""

_COVERAGE_COSTS = 2
"""So many times as long takes what only computes, while its coverage is measured."""

_WITH_A_REASON = ("fault", "alone", "own_logic")
_FOR_SLOW_ONES = ("fault", "alone", "packaging")

# A test with one of these fixtures, or in a module with one of these names, touches a real etcd.
_SERVER_FIXTURES = {"etcd_server", "quick_server"}
_SERVER_NAMES = {"EtcdServer", "EtcdCluster"}

# A test's row in the fault matrix: of its tier's reason, or of its name.
_ROW = re.compile(r"(?:test_)?([a-z]\d{1,2})(?:_|\b)", re.IGNORECASE)


def pytest_configure(config: pytest.Config) -> None:
    """Make the tiers known to ``--strict-markers``."""
    for tier in TIERS:
        config.addinivalue_line("markers", f"{tier}: a tier of the suite, see tests/tiers.py")
    config.addinivalue_line("markers", "outside(reason): somebody writes who knows no prefix")
    config.addinivalue_line("markers", "unbatched(reason): it is not so where calls go together")


def pytest_xdist_auto_num_workers() -> int:
    """Two for each core, as what ``-n auto`` means: the tests mostly wait."""
    return 2 * (os.cpu_count() or 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test its tier, and what a report of its run says of it."""
    for item in items:
        tier = tier_of(item)
        if tier == "contract":
            item.add_marker("contract")
        item.user_properties.append(("tier", tier or "unit"))
        item.user_properties.extend(("row", row) for row in rows_of(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a test that is slow by itself, not by its neighbours, and of a tier for quick ones."""
    began, stalled = time.monotonic(), _stalled()
    yield
    took = time.monotonic() - began
    if stalled is None or (now := _stalled()) is None or tier_of(item) in _FOR_SLOW_ONES:
        return
    if "AIOETCD_TEST_EXAMPLES" in os.environ:  # as slow as was asked for
        return
    if now - stalled > took / 2:  # with so much of others' in between nobody can tell
        return
    bound = SLOW * _MACHINES_DIFFER * (_COVERAGE_COSTS if _is_traced() else 1)
    if took - (now - stalled) >= bound:
        pytest.fail(f"took {took:.1f} s: from {SLOW:g} s on a test is marked fault or alone")


def tier_of(item: pytest.Item) -> str | None:
    """Give the tier of a test: of its own marker, else of its class's, else of its module's."""
    marked = [(node, mark) for node, mark in item.iter_markers_with_node() if mark.name in TIERS]
    nearest = [mark for node, mark in marked if node is marked[0][0]]
    if not nearest:
        return "contract" if _touches_a_server(item) else None
    if len({mark.name for mark in nearest}) > 1:
        raise pytest.UsageError(f"{item.nodeid} has several tiers: {[m.name for m in nearest]}")
    mark = nearest[0]
    if mark.name in _WITH_A_REASON and not (len(mark.args) == 1 and isinstance(mark.args[0], str)):
        raise pytest.UsageError(f"{item.nodeid} is marked {mark.name} without a reason")
    return mark.name


def rows_of(item: pytest.Item) -> list[str]:
    """Give the rows of the fault matrix that a test is for."""
    reasons = [str(mark.args[0]) for tier in ("fault", "alone") for mark in item.iter_markers(tier)]
    found = [_ROW.match(text) for text in (*reasons, item.name)]
    return list({match[1].upper(): None for match in found if match})


def _is_traced() -> bool:
    coverage = sys.modules.get("coverage")
    return coverage is not None and coverage.Coverage.current() is not None


def _stalled() -> float | None:
    """Give the seconds for which somebody on this machine waited for a core or a disk.

    They count from its start, and twice where both was so at a time.
    """
    try:
        told = [Path(f"/proc/pressure/{what}").read_text() for what in ("cpu", "io")]
    except OSError:  # not Linux
        return None
    return sum(int(text.partition("total=")[2].split()[0]) for text in told) / 1e6


def _touches_a_server(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.Function):
        return False
    touches = _SERVER_FIXTURES.intersection(item.fixturenames)
    return bool(touches or _SERVER_NAMES & vars(item.module).keys())
