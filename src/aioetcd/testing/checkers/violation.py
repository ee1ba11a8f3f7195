"""What a checker finds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Violation:
    """One rule broken by one history.

    Attributes:
        checker: The rule, such as ``"unknown write"`` or ``"watch unique"``.
        message: What is wrong, for a reader.
        evidence: The records that show it.
    """

    checker: str
    message: str
    evidence: tuple[object, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.checker}: {self.message}"]
        lines += [f"    {record!r}" for record in self.evidence]
        return "\n".join(lines)


def assert_clean(violations: Iterable[Violation]) -> None:
    """Raise if there is any violation.

    Raises:
        AssertionError: The text has all of them.
    """
    found = list(violations)
    if found:
        listed = "\n".join(map(str, found))
        raise AssertionError(f"{len(found)} violation(s):\n{listed}")
