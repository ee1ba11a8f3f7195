"""aioetcd works with the oldest dependencies that it allows, and with every protobuf since."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from aioetcd.testing import EtcdServer

ROOT = Path(__file__).parent.parent
SMOKE = Path(__file__).parent / "data" / "smoke.py"

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(600)]


def run_time_requirements() -> dict[str, Requirement]:
    """The run-time dependencies of pyproject.toml by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = map(Requirement, project["dependencies"])
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def bound(requirement: Requirement, operator: str) -> Version:
    """The one version that a requirement gives with this operator."""
    (version,) = (
        Version(specifier.version)
        for specifier in requirement.specifier
        if specifier.operator == operator
    )
    return version


def combinations() -> dict[str, list[str]]:
    """What to install: the lowest of everything, then the newest of each later protobuf."""
    requirements = run_time_requirements()
    protobuf = requirements["protobuf"]
    lowest = [f"{name}=={bound(each, '>=')}" for name, each in requirements.items()]
    majors = range(bound(protobuf, ">=").major + 1, bound(protobuf, "<").major)
    return {"lowest": lowest} | {f"protobuf-{n}": [f"protobuf=={n}.*"] for n in majors}


def run(python: str | Path, *arguments: str | Path) -> str:
    """Run an interpreter that sees only what is installed; fail with all that was said."""
    done = subprocess.run(
        [python, "-I", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout as the wheel that users install."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, ROOT)
    (wheel,) = folder.glob("aioetcd-*.whl")
    return wheel


@pytest.fixture
def fresh_python(tmp_path: Path) -> Iterator[Path]:
    """The interpreter of an empty virtual environment, which is too large to be kept."""
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", venv)
    yield venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    shutil.rmtree(venv)


@pytest.mark.parametrize("pins", combinations().values(), ids=combinations().keys())
def test_works_with_versions(
    pins: list[str], wheel: Path, fresh_python: Path, server: EtcdServer
) -> None:
    """The installed package imports, its messages work and a call is made, without a warning."""
    run(fresh_python, "-m", "pip", "install", "--quiet", "--only-binary=:all:", wheel, *pins)

    # protobuf 5's own extension module warns by itself on Python 3.12 and later.
    warnings = ("-W", "error", "-W", "ignore:Type google._upb:DeprecationWarning")
    told = json.loads(run(fresh_python, *warnings, SMOKE, server.endpoint))

    assert Path(told["file"]).is_relative_to(fresh_python.parent.parent)
    for pin in map(Requirement, pins):
        assert told["versions"][pin.name] in pin.specifier


def test_lowest_versions_are_of_protobuf_5() -> None:
    """The combinations are protobuf 5, 6 and 7: another bound in pyproject.toml shows here."""
    assert list(combinations()) == ["lowest", "protobuf-6", "protobuf-7"]
    (protobuf,) = (pin for pin in combinations()["lowest"] if pin.startswith("protobuf=="))
    assert Version(protobuf.partition("==")[2]).major == 5
