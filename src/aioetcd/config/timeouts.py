"""A timeout that was not given, and what is left of one that was."""

from __future__ import annotations

import enum
from time import monotonic
from typing import Final, overload


class Default(enum.Enum):
    """The type of `DEFAULT`."""

    DEFAULT = "the client's timeout"

    def __repr__(self) -> str:
        """Show it as a signature should."""
        return "DEFAULT"


# A ``timeout`` that was not given: None means that there is none.
DEFAULT: Final = Default.DEFAULT


def deadline_in(seconds: float | None) -> float | None:
    """Give when so many seconds from now are over, in `time.monotonic`'s; None is never."""
    return None if seconds is None else monotonic() + seconds


@overload
def seconds_left(deadline: float) -> float: ...


@overload
def seconds_left(deadline: float | None) -> float | None: ...


def seconds_left(deadline: float | None) -> float | None:
    """Give the timeout for what is still to do; where none is left, it runs out at once."""
    return None if deadline is None else max(deadline - monotonic(), 0.001)
