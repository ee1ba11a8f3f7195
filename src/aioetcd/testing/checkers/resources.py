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
    """Pauses between attempts are random: neither all alike nor all a multiple of the one before.

    At least seven attempts are needed to say anything. By chance up to half of the pauses may be
    once or twice the one before (within 2 %), and up to two thirds that or the factor that is usual
    among them, as where pauses grow by 1.6 up to a ceiling.
    """
    times = sorted(attempts_ns)
    pauses = [after - before for before, after in pairwise(times)]
    ratios = [after / before for before, after in pairwise(pauses) if before]
    if len(ratios) < 5:
        return []
    common = sum(any(_is_near(ratio, factor) for factor in (1, 2)) for ratio in ratios)
    usual = max(ratios, key=lambda factor: sum(_is_near(ratio, factor) for ratio in ratios))
    regular = sum(any(_is_near(ratio, factor) for factor in (1, 2, usual)) for ratio in ratios)
    if common <= len(ratios) / 2 and regular <= len(ratios) * 2 / 3:
        return []
    return [Violation("jitter", f"{regular} of {len(ratios)} pauses follow from the one before")]


def _is_near(ratio: float, factor: float) -> bool:
    return abs(ratio - factor) < 0.02 * factor


def check_cpu_share(cpu_seconds: float, seconds: float, *, limit: float = 0.10) -> list[Violation]:
    """The client used less than `limit` of a processor over a time, such as an outage."""
    share = cpu_seconds / seconds
    if share < limit:
        return []
    return [Violation("cpu", f"{share:.1%} of {seconds:g} s, less than {limit:.0%} is allowed")]
