"""The tiers: which tests are refused, and where one belongs that says nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests import tiers

SERVER = """
import pytest

@pytest.fixture
def etcd_server():
    pass
"""


# Without what costs a nested run its time, and that none of its tests needs.
OPTIONS = (
    *("-p", "tests.tiers", "--strict-markers"),
    *("-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-p", "no:asyncio"),
)


def run(
    pytester: pytest.Pytester,
    test: str,
    *options: str,
    slow: bool = False,
    stalled: Callable[[], float | None] = lambda: 0.0,
) -> pytest.RunResult:
    """Run a module of tests.

    Args:
        pytester: Where.
        test: The module; pytest is imported.
        options: For pytest.
        slow: Whether every test of it takes too long.
        stalled: What the machine says of its stalls.
    """
    pytester.makepyfile(f"import pytest\n{test}")
    with pytest.MonkeyPatch.context() as patch:  # not for the test that calls us
        patch.setattr(tiers, "_stalled", stalled)
        if slow:
            patch.setattr(tiers, "SLOW", 1e-9)
        return pytester.runpytest_inprocess(*OPTIONS, *options)


def collected(pytester: pytest.Pytester, module: str) -> list[pytest.Item]:
    pytester.makepyfile(module)
    items, _ = pytester.inline_genitems(*OPTIONS)
    return items


def told(items: list[pytest.Item], what: str) -> dict[str, list[object]]:
    """Give what a report of each test's run says of it."""
    return {
        item.name: [value for name, value in item.user_properties if name == what] for item in items
    }


# -- slow ones -------------------------------------------------------------------------------


@pytest.mark.parametrize("marker", ["", "@pytest.mark.contract", "@pytest.mark.own_logic('why')"])
def test_a_slow_test_is_refused(pytester: pytest.Pytester, marker: str) -> None:
    """A test that takes too long fails in every tier that is for quick ones, and says why."""
    result = run(pytester, f"{marker}\ndef test_it(): pass", slow=True)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*took 0.0 s: from 1e-09 s on a test is marked fault or alone*"])


@pytest.mark.parametrize("marker", ["fault('L7')", "alone('counts CPU')", "packaging"])
def test_a_slow_test_of_a_tier_for_slow_ones_passes(pytester: pytest.Pytester, marker: str) -> None:
    """A test whose tier is for slow ones may take its time."""
    test = f"@pytest.mark.{marker}\ndef test_it(): pass"
    run(pytester, test, slow=True).assert_outcomes(passed=1)


def test_the_error_of_a_slow_test_is_its_own(pytester: pytest.Pytester) -> None:
    """A test that failed is not said to be slow instead."""
    result = run(pytester, "def test_it(): raise LookupError('its own')", slow=True)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*LookupError: its own*"])
    result.stdout.no_fnmatch_line("*took*")


def test_a_quick_test_passes(pytester: pytest.Pytester) -> None:
    """A test that takes less is of any tier."""
    run(pytester, "def test_it(): pass").assert_outcomes(passed=1)


def test_the_machines_time_is_not_the_tests(pytester: pytest.Pytester) -> None:
    """The time without a core for somebody is taken off, and only what passed in the test."""
    stalls = iter([100.0, 200.0, 200.0, 200.0])
    tests = "def test_first(): pass\ndef test_second(): pass"
    result = run(pytester, tests, "-p", "no:randomly", slow=True, stalled=lambda: next(stalls))
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["FAILED *::test_second - *took*"])


def test_where_nobody_tells_of_stalls_nothing_is_slow(pytester: pytest.Pytester) -> None:
    """A machine that does not say what it was short of is not guessed about."""
    run(pytester, "def test_it(): pass", slow=True, stalled=lambda: None).assert_outcomes(passed=1)


# -- markers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tier", ["fault", "alone", "own_logic"])
@pytest.mark.parametrize("arguments", ["", "()", "(7)", "('L7', 'L8')"])
def test_a_tier_without_a_reason_is_refused(
    pytester: pytest.Pytester, tier: str, arguments: str
) -> None:
    """The tiers that take a test from others say why, in one string; without it nothing runs."""
    result = run(pytester, f"@pytest.mark.{tier}{arguments}\ndef test_it(): pass")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.assert_outcomes()
    result.stderr.fnmatch_lines([f"ERROR: *::test_it is marked {tier} without a reason"])


def test_two_tiers_are_refused(pytester: pytest.Pytester) -> None:
    """A test is of one tier; with two of them nothing runs."""
    markers = "@pytest.mark.fault('L7')\n@pytest.mark.alone('counts CPU')"
    result = run(pytester, f"{markers}\ndef test_it(): pass")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.assert_outcomes()
    result.stderr.fnmatch_lines(["ERROR: *::test_it has several tiers: *"])


def test_the_nearest_marker_counts(pytester: pytest.Pytester) -> None:
    """A test's own marker comes before its class's, and that before its module's."""
    items = collected(
        pytester,
        """
        import pytest

        pytestmark = pytest.mark.own_logic("of the module")

        def test_module(): pass

        @pytest.mark.contract
        def test_own(): pass

        @pytest.mark.fault("of the class")
        class TestIt:
            def test_class(self): pass

            @pytest.mark.alone("its own")
            def test_own_in_class(self): pass
        """,
    )
    assert told(items, "tier") == {
        "test_module": ["own_logic"],
        "test_own": ["contract"],
        "test_class": ["fault"],
        "test_own_in_class": ["alone"],
    }


# -- unmarked ones ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["EtcdServer", "EtcdCluster"])
def test_what_starts_servers_is_contract(pytester: pytest.Pytester, name: str) -> None:
    """An unmarked test in a module that knows how to start a real etcd is of the contract."""
    module = f"from aioetcd.testing import {name}\ndef test_it(): pass"
    (item,) = collected(pytester, module)
    assert told([item], "tier") == {"test_it": ["contract"]}
    assert item.get_closest_marker("contract")


@pytest.mark.parametrize("name", ["etcd_server", "quick_server"])
def test_what_uses_a_server_is_contract(pytester: pytest.Pytester, name: str) -> None:
    """An unmarked test with a server is of the contract, also where another fixture asks for it."""
    items = collected(
        pytester,
        SERVER.replace("etcd_server", name)
        + f"""
@pytest.fixture
def client({name}): pass

def test_server({name}): pass
def test_client(client): pass
def test_nothing(): pass

@pytest.mark.own_logic("whatever the server says")
def test_own_logic(client): pass
""",
    )
    assert told(items, "tier") == {
        "test_server": ["contract"],
        "test_client": ["contract"],
        "test_nothing": ["unit"],
        "test_own_logic": ["own_logic"],
    }
    with_marker = {item.name for item in items if item.get_closest_marker("contract")}
    assert with_marker == {"test_server", "test_client"}


def test_contract_is_selected_where_it_is_not_written(pytester: pytest.Pytester) -> None:
    """`-m contract` runs the unmarked tests with a server, and no others."""
    tests = f"{SERVER}\ndef test_it(etcd_server): pass\ndef test_other(): pass"
    run(pytester, tests, "-m", "contract").assert_outcomes(passed=1, deselected=1)


def test_rows_are_of_reasons_and_of_names(pytester: pytest.Pytester) -> None:
    """A row of the faults is named by a slow test's reason or by a test's name, each one once."""
    items = collected(
        pytester,
        """
        import pytest

        @pytest.mark.fault("L7")
        def test_reason(): pass

        @pytest.mark.alone("w12: counts CPU")
        def test_w12_and_reason(): pass

        def test_r1_no_space(): pass

        @pytest.mark.own_logic("L8 is no row here")
        def test_none(): pass
        """,
    )
    assert told(items, "row") == {
        "test_reason": ["L7"],
        "test_w12_and_reason": ["W12"],
        "test_r1_no_space": ["R1"],
        "test_none": [],
    }
