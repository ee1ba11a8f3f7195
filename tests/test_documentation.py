"""Every Python example of the README and of the documentation runs, and gives what it says.

Four kinds of examples are told apart: a whole program has ``asyncio.run(``, one that runs until
SIGTERM names that, a pytest file has ``def test_``, and all others are the body of an async
function that has a `client`. A comment that is a Python literal, at the end of an expression or of
a print, is a result that is checked.
"""

from __future__ import annotations

import ast
import builtins
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import aioetcd
import aioetcd.testing
from aioetcd import Client
from aioetcd.testing import EtcdServer

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

# Where the examples expect an etcd.
DEFAULT_ENDPOINT = "127.0.0.1:2379"


@dataclass(frozen=True)
class Example:
    """A fenced block of a page; `line` is the number of the page's line before its first."""

    line: int
    source: str
    page: Path = Path()

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def at(self, endpoint: str) -> Example:
        """Give the example with the server's endpoint in place of the default one."""
        return replace(self, source=self.source.replace(DEFAULT_ENDPOINT, endpoint))

    @property
    def kind(self) -> str:
        if "asyncio.run(" in self.source:
            return "service" if "SIGTERM" in self.source else "program"
        return "pytest" if "def test_" in self.source else "body"

    @property
    def claims(self) -> dict[int, object]:
        """The results that are stated, by the number of their line in the block."""
        claims = {}
        for token in tokenize.generate_tokens(io.StringIO(self.source).readline):
            if token.type == tokenize.COMMENT:
                text = token.string.lstrip("# ")
                try:
                    claims[token.start[0]] = ast.literal_eval(text)
                except (ValueError, SyntaxError):  # a comment in words
                    behind = token.line[: token.start[1]].strip()
                    begins = re.match(r"""(True|False|None)\b|[bru]?["'(\[{\d]""", text)
                    assert not (behind and begins), f"{self}: {text!r} is no result, and looks so"
        return claims


def examples(kind: str) -> list[Example]:
    found = [
        Example(text.count("\n", 0, match.start(1)), match[1], page)
        for page in PAGES
        for text in [page.read_text("utf-8")]
        for match in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        if not match[1].startswith("--8<--")  # a whole file, see test_examples
    ]
    return [example for example in found if example.kind == kind]


class Checks(ast.NodeTransformer):
    """Makes each expression whose line states a result a call of ``check(line, result)``."""

    def __init__(self, lines: set[int]) -> None:
        self._lines = lines

    def visit_Expr(self, node: ast.Expr) -> ast.Expr:
        if node.end_lineno in self._lines:
            function = ast.Name("check", ast.Load())
            call = ast.Call(function, [ast.Constant(node.end_lineno), node.value], [])
            node.value = ast.copy_location(call, node.value)
        return node


def compile_body(
    example: Example, check: Callable[[int, object], None]
) -> Callable[[Client], Awaitable[None]]:
    """Make an async function of an example, with the page's line numbers."""
    module = ast.parse("async def example(client): ...")
    (function,) = module.body
    assert isinstance(function, ast.AsyncFunctionDef)
    function.body = Checks(set(example.claims)).visit(ast.parse(example.source)).body
    ast.increment_lineno(ast.fix_missing_locations(module), example.line)
    namespace: dict[str, Any] = {"check": check}
    exec(compile(module, example.page, "exec"), namespace)
    body: Callable[[Client], Awaitable[None]] = namespace["example"]
    return body


@pytest.mark.parametrize("example", examples("body"), ids=str)
async def test_example(example: Example, server: EtcdServer, client: Client) -> None:
    """An example runs where `client` is open, and each result that it states is what it gives."""
    example = example.at(server.endpoint)
    claims = example.claims
    checked = set()

    def check(line: int, result: object) -> None:
        assert result == claims[line], f"{example.page}:{example.line + line}"
        checked.add(line)

    await compile_body(example, check)(client)
    assert checked == set(claims), "a result is stated that no expression gives"


@pytest.mark.fault("runs whole programs")
@pytest.mark.parametrize("example", examples("program"), ids=str)
def test_program(example: Example, server: EtcdServer, tmp_path: Path) -> None:
    """A program prints the results that it states, and nothing else."""
    program = tmp_path / "program.py"
    program.write_text(example.at(server.endpoint).source)
    done = subprocess.run(
        [sys.executable, "-W", "error", program],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.splitlines() == [str(result) for result in example.claims.values()]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
@pytest.mark.parametrize("example", examples("service"), ids=str)
async def test_service(
    example: Example, server: EtcdServer, client: Client, tmp_path: Path
) -> None:
    """A service that is told to end does so in order, and says so."""
    program = tmp_path / "program.py"
    program.write_text(example.at(server.endpoint).source)
    first, *rest = [f"{result}\n" for result in example.claims.values()]
    with subprocess.Popen(
        [sys.executable, "-u", "-W", "error", program],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == first
        assert (await client.lease.leases()).ids
        process.terminate()
        out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (0, "".join(rest), "")
    assert not (await client.lease.leases()).ids


@pytest.mark.fault("runs a pytest and an etcd of its own")
@pytest.mark.parametrize("example", examples("pytest"), ids=str)
def test_pytest_file(example: Example, pytester: pytest.Pytester) -> None:
    """A test file passes with nothing but the installed plugins."""
    pytester.makepyfile(example.source)
    result = pytester.runpytest_subprocess(
        "-W", "error", "-o", "asyncio_default_fixture_loop_scope=function"
    )
    result.assert_outcomes(passed=example.source.count("def test_"))


def test_kinds() -> None:
    """There are examples of each kind, so that none of the tests above runs on nothing."""
    assert len(examples("body")) >= 30
    assert len(examples("program")) == 4
    assert len(examples("service")) == 1
    assert len(examples("pytest")) == 3


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_errors(page: Path) -> None:
    """Every error that a page names is there."""
    names = set(re.findall(r"\b\w+Error\b", page.read_text("utf-8")))
    known = {*dir(aioetcd), *dir(aioetcd.testing), *dir(builtins)}
    assert names - known == {"CancelledError"} & names  # asyncio's


def test_links() -> None:
    """Every file that the README links to, and every script that it names, is there."""
    text = PAGES[0].read_text("utf-8")
    paths = re.findall(r"\]\(([\w./]+)\)", text) + re.findall(r"^scripts/\S+", text, re.MULTILINE)
    assert len(paths) >= 6
    assert [path for path in paths if not (ROOT / path).is_file()] == []


def test_everything_public_is_in_the_reference() -> None:
    """Each name that aioetcd exports has its place there, and only one."""
    reference = "".join(page.read_text("utf-8") for page in PAGES if "reference" in page.parts)
    names = re.findall(r"^::: aioetcd\.(\w+)$", reference, re.MULTILINE)
    assert sorted(names) == sorted(set(aioetcd.__all__) - {"__version__"})


def test_every_page_is_in_the_navigation() -> None:
    """No page of the documentation is without a way to it."""
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8")
    pages = [str(page.relative_to(ROOT / "docs")) for page in PAGES[1:]]
    pages = [page for page in pages if not page.startswith("tables/")]
    assert sorted(re.findall(r": ([\w/]+\.md)$", navigation, re.MULTILINE)) == sorted(pages)
