"""What `help()` shows of each public method: its limits, its errors, and an example that runs.

An example is the indented block below ``Example:``, the last section of a docstring. It is the body
of an async function that has all names of aioetcd, a `client` and its `kv`; the results that it
states are written and checked as those of the README.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import textwrap
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest

import aioetcd
from aioetcd.types.value import Value
from tests.test_documentation import DEFAULT_ENDPOINT, Checks, Example

if TYPE_CHECKING:
    from aioetcd import Client
    from aioetcd.testing import EtcdServer

_CALLED = {"__call__", "__getitem__"}
"""Methods whose names begin with an underscore, and that are called without it."""


def is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "aioetcd"


def attributes_of(cls: type) -> dict[str, Any]:
    """Give what a class of ours and its bases of ours define, by name, as it stands there."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if is_ours(base):
            found.update(vars(base))
    return found


def methods_of(cls: type) -> dict[str, Callable[..., Any]]:
    """Give the methods that users call, by name."""
    return {
        name: getattr(cls, name)
        for name, attribute in attributes_of(cls).items()
        if isinstance(attribute, staticmethod | classmethod) or inspect.isfunction(attribute)
        if not name.startswith("_") or name in _CALLED
    }


EXPORTED = {name: getattr(aioetcd, name) for name in aioetcd.__all__}
CLASSES = {name: cls for name, cls in EXPORTED.items() if isinstance(cls, type)}
METHODS = {
    f"{name}.{method}": function
    for name, cls in CLASSES.items()
    for method, function in methods_of(cls).items()
}
FUNCTIONS = {name: each for name, each in EXPORTED.items() if inspect.isfunction(each)} | METHODS

# Services, handles and what is more than its fields: everything that has methods.
WITH_EXAMPLE = FUNCTIONS | {
    name: cls for name, cls in CLASSES.items() if methods_of(cls) and not issubclass(cls, Value)
}
DOCUMENTED = (
    EXPORTED
    | {
        f"{name}.{attribute}": each
        for name, cls in CLASSES.items()
        for attribute, each in attributes_of(cls).items()
        if isinstance(each, property) or inspect.isfunction(each)
    }
    | METHODS
)


def docstring(documented: object) -> str:
    """Give a docstring of ours: what Python inherits from elsewhere is none."""
    return inspect.cleandoc(getattr(documented, "__doc__", None) or "")


def section(name: str, text: str) -> str:
    """Give the block below a heading of a docstring, without its indentation."""
    found = re.search(rf"^{name}:\n((?:(?: .*)?\n)+)", f"{text}\n", re.MULTILINE)
    return "" if found is None else textwrap.dedent(found[1])


def entries(name: str, text: str) -> dict[str, str]:
    """Give what a section says, by what it says it of."""
    return dict(re.findall(r"^(\w+): ((?:.*\n)(?: .*\n)*)", section(name, text), re.MULTILINE))


def arguments(text: str) -> dict[str, str]:
    """Give what a docstring says of arguments, itself or by naming the method whose they are."""
    named = re.search(r"\barguments are those of `([\w.]+)`", text)
    return entries("Args", docstring(FUNCTIONS[named[1]]) if named else text)


EXAMPLES = {
    name: Example(0, source)
    for name, documented in DOCUMENTED.items()
    if (source := section("Example", docstring(documented)))
}


def compile_example(
    example: Example, name: str, check: Callable[[int, object], None]
) -> Callable[[Client], Awaitable[None]]:
    """Make an async function of an example."""
    module = ast.parse("async def example(client, kv): ...")
    (function,) = module.body
    assert isinstance(function, ast.AsyncFunctionDef)
    function.body = Checks(set(example.claims)).visit(ast.parse(example.source)).body
    namespace: dict[str, Any] = EXPORTED | {"asyncio": asyncio, "check": check}
    exec(compile(ast.fix_missing_locations(module), f"<{name}>", "exec"), namespace)
    body: Callable[..., Awaitable[None]] = namespace["example"]
    return lambda client: body(client, client.kv)


@pytest.mark.parametrize("name", EXAMPLES)
async def test_example(name: str, server: EtcdServer, client: Client) -> None:
    """An example runs on an empty store, and each result that it states is what it gives."""
    example = Example(0, EXAMPLES[name].source.replace(DEFAULT_ENDPOINT, server.endpoint))
    claims, checked = example.claims, set()

    def check(line: int, result: object) -> None:
        stated = example.source.splitlines()[line - 1]
        assert result == claims[line], stated
        checked.add(line)

    await compile_example(example, name, check)(client)
    await server.clear()  # examples are too short to tidy up what they are not about
    assert checked == set(claims), "a result is stated that no expression gives"


def test_everything_public_has_an_example() -> None:
    """A public method, function or class with methods shows at its end how it is used."""
    assert [name for name in WITH_EXAMPLE if name not in EXAMPLES] == []
    for name in EXAMPLES:
        headings = re.findall(r"^(\w+):$", docstring(DOCUMENTED[name]), re.MULTILINE)
        assert headings.index("Example") == len(headings) - 1, f"{name} goes on below its example"


def test_every_argument_is_described() -> None:
    """No argument is without a description, and durations have their unit."""
    missing, without_unit = [], []
    for name, function in FUNCTIONS.items():
        said = arguments(docstring(function))
        for parameter in set(inspect.signature(function).parameters) - {"self"}:
            if parameter not in said:
                missing.append(f"{name}({parameter})")
            elif parameter in ("ttl", "timeout") and "second" not in said[parameter].lower():
                without_unit.append(f"{name}({parameter})")
    assert missing == []
    assert without_unit == []


def test_every_error_is_named() -> None:
    """What takes arguments or waits for etcd says with which errors, all but closing."""
    silent = [
        name
        for name, function in FUNCTIONS.items()
        if inspect.iscoroutinefunction(function)
        or set(inspect.signature(function).parameters) - {"self"}
        if not name.endswith(".aclose") and not section("Raises", docstring(function))
    ]
    assert silent == []


def test_there_is_one_form_of_examples() -> None:
    """No docstring has an interpreter's prompts, which nothing here would run."""
    assert [name for name, each in DOCUMENTED.items() if ">>>" in docstring(each)] == []


def test_the_tests_find_what_there_is() -> None:
    """The examples of the services are among those that run."""
    for name in ("KV", "KV.get", "Watcher.__call__", "Watch.batches", "Lock.wait_lost"):
        assert name in WITH_EXAMPLE
    assert len(EXAMPLES) >= len(WITH_EXAMPLE)
