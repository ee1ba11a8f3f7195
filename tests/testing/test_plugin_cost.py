"""Where a suite uses nothing of the pytest plugin, it costs nothing."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Loaded by the plugin and by what it imports, beside what pytest itself has loaded.
LOADED = """
import sys
import pytest
before = set(sys.modules)
import aioetcd_pytest
print(*sorted(set(sys.modules) - before))
"""


@pytest.mark.parametrize("options", [(), ("-p", "no:asyncio")], ids=["asyncio", "plain"])
def test_unused_plugin_imports_neither_aioetcd_nor_grpc(
    pytester: pytest.Pytester, options: tuple[str, ...]
) -> None:
    """A run without our fixtures loads the plugin, and at its end neither aioetcd nor gRPC."""
    pytester.makeconftest(
        """
        import sys

        def pytest_unconfigure():
            names = {name.partition(".")[0] for name in sys.modules}
            print("LOADED", *sorted(names & {"aioetcd", "aioetcd_pytest", "google", "grpc"}))
        """
    )
    pytester.makepyfile("def test_it(tmp_path): pass")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", *options)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["LOADED aioetcd_pytest"])


def test_plugin_imports_nothing_that_pytest_has_not(pytester: pytest.Pytester) -> None:
    """Beside pytest, the plugin is one module: what is heavy is imported by its fixtures."""
    result = pytester.runpython_c(LOADED)
    assert result.outlines == ["aioetcd_pytest"]


@pytest.mark.packaging
def test_plugin_is_in_the_wheel(tmp_path: Path) -> None:
    """The wheel has the plugin beside the package, and names it to pytest."""
    from hatchling.builders.wheel import WheelBuilder

    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert {"aioetcd_pytest/__init__.py", "aioetcd/__init__.py"} <= set(names)
        (entries,) = (name for name in names if name.endswith("entry_points.txt"))
        assert "aioetcd = aioetcd_pytest" in archive.read(entries).decode()
