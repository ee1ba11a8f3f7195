"""What users write passes their type checkers, and what would go wrong does not.

All that users would check stands in one folder and is checked by one run of each checker: the
examples of the README and the documentation, of `help()` and of ``examples/``, the right usages of
``data/typing/accepted.py``, and the wrong ones of ``data/typing/refused.py``, whose lines name the
errors expected.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import aioetcd
from tests.test_docstrings import EXAMPLES, EXPORTED
from tests.test_documentation import ROOT, Example, examples

DATA = Path(__file__).parent / "data" / "typing"
REFUSED = DATA / "refused.py"
FILES = [*sorted((ROOT / "examples").glob("*.py")), DATA / "accepted.py", REFUSED]

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(300)]


class Error(NamedTuple):
    """What a checker says of a line; `rule` is what it calls that."""

    file: str
    line: int
    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.rule}: {self.text}"


def run(*arguments: str | Path, cwd: Path) -> str:
    """Run a module; it ends with 1 where it finds errors, and with more where it fails."""
    # ``--verifytypes`` does not follow the .pth file of an editable installation.
    environment = os.environ | {"PYTHONPATH": str(Path(aioetcd.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    # Python itself ends with 1 where there is no such module, and says nothing on stdout.
    assert done.returncode == 0 or (done.returncode == 1 and done.stdout), done.stderr
    return done.stdout


def mypy(folder: Path) -> list[Error]:
    """Give what mypy says of the files of a folder."""
    out = run("mypy", "--strict", "--config-file=", "--output=json", ".", cwd=folder)
    found = [json.loads(line) for line in out.splitlines()]
    return [
        Error(each["file"], each["line"], each["code"], each["message"])
        for each in found
        if each["severity"] == "error"
    ]


def pyright(folder: Path) -> list[Error]:
    """Give what pyright says of the files of a folder."""
    (folder / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    python = ("--pythonpath", sys.executable)
    found = json.loads(run("basedpyright", "--outputjson", *python, cwd=folder))
    assert found["summary"]["filesAnalyzed"] == len(list(folder.glob("*.py")))
    return [
        Error(
            Path(each["file"]).name,
            each["range"]["start"]["line"] + 1,
            each.get("rule", "syntax"),
            each["message"],
        )
        for each in found["generalDiagnostics"]
    ]


Checker = Callable[[Path], list[Error]]


def in_function(*parameters: str, names: set[str]) -> str:
    """Give what stands above the body of an example."""
    imports = f"from aioetcd import {', '.join(sorted(names))}"
    return f"{imports}\nasync def example({', '.join(parameters)}) -> None:\n"


def of_page(example: Example) -> str:
    """Give an example of a page as a file."""
    return written_out(example, in_function("client: Client", names={"Client"}))


def of_help(example: Example) -> str:
    """Give an example of a docstring as a file: it has all that is exported."""
    named = {node.id for node in ast.walk(ast.parse(example.source)) if isinstance(node, ast.Name)}
    names = {"Client", "KV"} | (named & EXPORTED.keys())
    head = in_function("client: Client", "kv: KV", names=names)
    return written_out(example, f"import asyncio; {head}" if "asyncio" in named else head)


def written_out(example: Example, head: str) -> str:
    """Give an example as a file, with the line numbers of where it stands.

    What is the body of a function has a head, and prints the results that it states: an expression
    by itself is refused.
    """
    if example.kind != "body":
        return "\n" * example.line + example.source
    lines = example.source.encode().splitlines()  # the syntax tree counts bytes
    for node in ast.walk(ast.parse(example.source)):
        if isinstance(node, ast.Expr) and node.end_lineno in example.claims:
            first, last = node.lineno - 1, node.end_lineno - 1
            lines[last] = inserted(b")", lines[last], node.end_col_offset)
            lines[first] = inserted(b"print(", lines[first], node.col_offset)
    body = textwrap.indent(b"\n".join(lines).decode(), "    ")
    return "\n" * (example.line - head.count("\n")) + head + body + "\n"


def inserted(text: bytes, line: bytes, at: int | None) -> bytes:
    """Give a line with something inserted."""
    return line[:at] + text + line[at:]


def marks(checker: Checker) -> dict[int, str]:
    """Give the rules that a checker has to name, by the lines of the wrong usages."""
    pattern = re.compile(rf"# {checker.__name__}: ([\w-]+)")
    found = map(pattern.search, REFUSED.read_text().splitlines())
    return {number: match[1] for number, match in enumerate(found, 1) if match}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """All that is to be checked."""
    for kind in ("body", "program", "service", "pytest"):
        for example in examples(kind):
            name = re.sub(r"\W", "_", f"page {example}")
            (tmp_path / f"{name}.py").write_text(of_page(example))
    for name, example in EXAMPLES.items():
        (tmp_path / f"help_{name.replace('.', '_')}.py").write_text(of_help(example))
    for file in FILES:
        (tmp_path / file.name).write_text(file.read_text())
    return tmp_path


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_strict(checker: Checker, folder: Path) -> None:
    """All that is right passes, and each wrong usage is refused as it says."""
    found, expected = checker(folder), marks(checker)
    wrong = {(REFUSED.name, line) for line in expected}
    # More may follow from a wrong usage in its own line, and nothing elsewhere.
    refused = [str(error) for error in found if (error.file, error.line) not in wrong]
    assert not refused, "\n".join(refused)
    said = {(error.line, error.rule) for error in found}
    accepted = [f"{REFUSED.name}:{line}: {rule}" for line, rule in expected.items() - said]
    assert not accepted, "\n".join(accepted)


def test_marks() -> None:
    """Each wrong usage names what both checkers say of it."""
    assert marks(mypy).keys() == marks(pyright).keys()
    assert len(marks(mypy)) >= 70


def test_public_types_are_complete(tmp_path: Path) -> None:
    """Nothing that users can reach has a type that checkers must guess."""
    python = ("--pythonpath", sys.executable)
    asked = ("--verifytypes", "aioetcd", "--ignoreexternal", "--outputjson")
    found = json.loads(run("basedpyright", *asked, *python, cwd=tmp_path))["typeCompleteness"]
    guessed = [
        f"{each['name']}: {said['message']}"
        for each in found["symbols"]
        for said in each["diagnostics"]
        if said["severity"] == "error"
    ]
    assert not guessed, "\n".join(guessed)
    assert found["completenessScore"] == 1
