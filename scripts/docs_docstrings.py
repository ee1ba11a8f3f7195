"""Shows docstrings as Markdown in the documentation; mkdocstrings loads it (see ``mkdocs.yml``).

An example is the indented block below ``Example:``, as `help` shows it; here it becomes a block of
code. A public name between backticks becomes a link to where it is documented.
"""

from __future__ import annotations

import pydoc
import re
import textwrap
from inspect import isfunction
from pathlib import Path
from typing import Any

import griffe

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"
DOCUMENTED = {
    name
    for page in REFERENCE.glob("*.md")
    for name in re.findall(r"^::: ([\w.]+)$", page.read_text("utf-8"), re.MULTILINE)
}
# Where a name is looked for: what stands in the tests' help means that first.
MODULES = ["aioetcd.testing", "aioetcd"]


def example(found: re.Match[str]) -> str:
    code = textwrap.dedent(found[1]).strip()
    return f"**Example**\n\n```python\n{code}\n```\n"


def linked(text: str, path: str) -> str:
    def link(found: re.Match[str]) -> str:
        for module in MODULES:
            name = f"{module}.{found[1]}"
            if path.startswith(module) and name in DOCUMENTED:
                # What is no method is described with its class.
                return f"[{found[0]}][{name}{found[2] if is_method(name, found[2]) else ''}]"
        return found[0]

    return re.sub(r"(?<!`)`(\w+)(\.\w+)?`(?!`)", link, text)


def is_method(name: str, attribute: str | None) -> bool:
    return attribute is not None and isfunction(pydoc.locate(name + attribute))


class Docstrings(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is None:
            return
        text, *rest = re.split(r"^(?=Example:\n)", obj.docstring.value, flags=re.MULTILINE)
        code = re.sub(r"^Example:\n((?:(?: .*)?(?:\n|$))+)", example, "".join(rest))
        obj.docstring.value = linked(text, obj.path) + code
