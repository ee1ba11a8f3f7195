"""Checks of what a client uses: nothing left behind, and no hurry while nobody answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise

from aioetcd.testing.checkers.violation import Violation


def check_no_leak(
    before: Mapping[str, float],
    after: Mapping[str, float],
    *,
    allowed: Mapping[str, float] | None = None,
) -> list[Violation]:
    """Nothing is more than it was: tasks, descriptors, streams, the server's watchers, leases.

    Args:
        before: Counts by name; one that is missing is 0.
        after: The same counts afterwards.
        allowed: How much more there may be, by name.
    """
    allowed = allowed or {}
    return [
        Violation("leak", f"{name}: {before.get(name, 0):g} before, {count:g} after")
        for name, count in after.items()
        if count > before.get(name, 0) + allowed.get(name, 0)
    ]


def check_attempts(
    attempts_ns: Iterable[int], *, max_per_second: float, window: float = 1.0
) -> list[Violation]:
    """No window of time has more connection attempts than allowed.

    Args:
        attempts_ns: When each was made.
        max_per_second: The mean allowed in a window; one attempt is always allowed.
        window: Its length in seconds.
    """
    times = sorted(attempts_ns)
    limit = max(1, int(max_per_second * window))
    worst, first = 0, 0
    for last, at in enumerate(times):
        while at - times[first] >= window * 1e9:
            first += 1
        worst = max(worst, last - first + 1)
    if worst <= limit:
        return []
    return [Violation("attempts", f"{worst} in {window:g} s, at most {limit} are allowed")]


def check_jitter(attempts_ns: Iterable[int]) -> list[Violation]:
    """Pauses between attempts are random: neither all alike nor all twice the one before.

    At least seven attempts are needed to say anything. Up to half of the pauses may stand in one of
    these ratios (within 2 %) to the one before by chance.
    """
    times = sorted(attempts_ns)
    pauses = [after - before for before, after in pairwise(times)]
    ratios = [after / before for before, after in pairwise(pauses) if before]
    if len(ratios) < 5:
        return []
    regular = sum(
        1 for ratio in ratios if round(ratio) in (1, 2) and abs(ratio - round(ratio)) < 0.02
    )
    if regular <= len(ratios) / 2:
        return []
    return [Violation("jitter", f"{regular} of {len(ratios)} pauses follow from the one before")]


def check_cpu_share(cpu_seconds: float, seconds: float, *, limit: float = 0.10) -> list[Violation]:
    """The client used less than `limit` of a processor over a time, such as an outage."""
    share = cpu_seconds / seconds
    if share < limit:
        return []
    return [Violation("cpu", f"{share:.1%} of {seconds:g} s, less than {limit:.0%} is allowed")]
