"""Writes the table of what ran where from the reports of `scripts/full.sh`.

    python scripts/full_table.py FOLDER COLUMN...

A row is a row of faults (W7, L2, …), or the other tests of a file. A column is a folder of FOLDER
with JUnit reports. A cell counts the tests that passed; what is known to fail, or was skipped, has
a number below the table, with the reason.
"""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict
from pathlib import Path
from xml.etree import ElementTree as ET


class Table:
    """Collects results, and prints them."""

    def __init__(self) -> None:
        self.cells: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self.notes: dict[str, int] = {}

    def add(self, column: str, case: ET.Element) -> None:
        """Count one test."""
        rows = [p.get("value", "") for p in case.iter("property") if p.get("name") == "row"]
        for row in rows or [case.get("classname", "").removeprefix("tests.")]:
            self.cells[row, column][self.outcome(case)] += 1

    def outcome(self, case: ET.Element) -> str:
        """Say how a test went, in the words of a cell."""
        if case.find("failure") is not None or case.find("error") is not None:
            return "FAILED"
        skipped = case.find("skipped")
        if skipped is None:
            return "passed"
        reason = skipped.get("message", "").replace("|", "/")
        return f"not [{self.notes.setdefault(reason, len(self.notes) + 1)}]"

    def lines(self, columns: list[str]) -> list[str]:
        """Give the table as Markdown."""
        rows = sorted({row for row, _ in self.cells}, key=order)
        heads = [c if c[0].isalpha() else f"etcd {c}" for c in columns]
        body = [[row, *(cell(self.cells.get((row, column))) for column in columns)] for row in rows]
        lines = ["| " + " | ".join(line) + " |" for line in ([" ", *heads], *body)]
        lines.insert(1, "| --- " * (len(columns) + 1) + "|")
        return [*lines, "", *(f"[{n}] {reason}  " for reason, n in self.notes.items())]


def cell(counts: Counter[str] | None) -> str:
    """Write one cell."""
    if counts is None:
        return "not run"
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))


def order(row: str) -> tuple[object, ...]:
    """Sort W9 before W10, and files behind the rows of faults."""
    found = re.fullmatch(r"([A-Z])(\d+)", row)
    return (0, found[1], int(found[2])) if found else (1, row, 0)


def main(folder: Path, columns: list[str]) -> None:
    """Print the table."""
    table = Table()
    for column in columns:
        for report in sorted((folder / column).glob("*.xml")):
            for case in ET.parse(report).iter("testcase"):
                table.add(column, case)
    print("\n".join(table.lines(columns)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
