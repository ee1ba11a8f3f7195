"""What is worth another try, and how long to wait before it."""

from __future__ import annotations

import random

from aioetcd.errors import DeadlineExceededError, TooManyRequestsError, UnavailableError

PASSING = (UnavailableError, DeadlineExceededError, TooManyRequestsError)
"""What ends by itself some day: who goes on for ever tries again."""

_jitter = random.Random()  # not for secrets: spreads clients that failed at the same moment


class Backoff:
    """Doubling delays with jitter: the first up to `first` seconds, none above `most`."""

    def __init__(self, first: float, most: float) -> None:
        self._first = first
        self._most = most
        self._ceiling = first

    def reset(self) -> None:
        """Start over: something worked."""
        self._ceiling = self._first

    def next_delay(self) -> float:
        """Give the seconds to wait now; the next ones are longer."""
        delay = _jitter.uniform(self._ceiling / 2, self._ceiling)
        self._ceiling = min(self._ceiling * 2, self._most)
        return delay
