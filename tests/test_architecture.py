"""The shape of the code: what may be where. What imports what is import-linter's to check."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import aioetcd

SOURCE = Path(aioetcd.__file__).parent
MODULES = sorted(
    path.relative_to(SOURCE) for path in SOURCE.rglob("*.py") if "_proto" not in path.parts
)


def calls(tree: ast.AST) -> Iterator[str]:
    """Give the last part of the name of everything that is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            match node.func:
                case ast.Attribute(attr=name) | ast.Name(id=name):
                    yield name


def imports(tree: ast.AST) -> Iterator[str]:
    """Give the full name of everything that is imported, whole modules and names of them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def owners_of(name: str) -> Iterator[str]:
    """Give the packages in which alone a name may be imported: those of its private parts."""
    parts = name.split(".")
    for index, part in enumerate(parts):
        if part.startswith("_") and not part.startswith("__"):
            yield ".".join(parts[:index])


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_no_module_is_too_long(module: Path) -> None:
    """A module of more than 600 lines holds more than one idea."""
    assert len((SOURCE / module).read_text().splitlines()) <= 600


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_only_the_supervisor_starts_tasks(module: Path) -> None:
    """A task that nobody owns loses its errors: the supervisor owns all but two kinds.

    A partitioner's works are the user's, and `Partitioner.run` does not end before them. The errors
    of a batch are its callers', who alone wait for it; the supervisor, which cancels when the
    client closes, would cut it off before it can say whether it was sent.
    """
    started = {"create_task", "ensure_future", "run_coroutine_threadsafe"}
    found = started.intersection(calls(ast.parse((SOURCE / module).read_text())))
    owners = ("_transport/supervisor.py", "concurrency/_membership.py", "kv/_lane.py")
    assert not found or module.as_posix() in owners


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_only_the_transport_imports_grpc(module: Path) -> None:
    """What knows grpc is in one room."""
    for node in ast.walk(ast.parse((SOURCE / module).read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        if any(name.partition(".")[0] == "grpc" for name in names):
            assert module.parts[0] == "_transport"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_what_is_private_is_imported_in_its_package_alone(module: Path) -> None:
    """Of `a.b._c`, a module or a name, nobody outside of `a.b` knows."""
    package = ".".join(["aioetcd", *module.parts[:-1]])
    for name in imports(ast.parse((SOURCE / module).read_text())):
        if name.split(".")[0] == "aioetcd":
            for owner in owners_of(name):
                assert f"{package}.".startswith(f"{owner}."), f"{name} is of {owner} alone"
