"""Waits between tries grow, are spread, and start over when something worked."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aioetcd._transport.backoff import Backoff


@given(
    first=st.floats(0.001, 10),
    factor=st.floats(1, 100),
    tries=st.integers(1, 40),
)
def test_delays(first: float, factor: float, tries: int) -> None:
    """Each delay is within the upper half of a ceiling that doubles up to the most."""
    backoff = Backoff(first, first * factor)
    for _ in range(2):
        for number in range(tries):
            ceiling = min(first * 2**number, first * factor)
            assert ceiling / 2 <= backoff.next_delay() <= ceiling
        backoff.reset()


def test_delays_differ() -> None:
    """Two that failed at the same moment do not come back at the same moment."""
    assert len({Backoff(1, 1).next_delay() for _ in range(20)}) > 10
