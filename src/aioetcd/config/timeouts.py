"""A timeout that was not given."""

from __future__ import annotations

import enum
from typing import Final


class Default(enum.Enum):
    """The type of `DEFAULT`."""

    DEFAULT = "the client's timeout"

    def __repr__(self) -> str:
        """Show it as a signature should."""
        return "DEFAULT"


# A ``timeout`` that was not given: None means that there is none.
DEFAULT: Final = Default.DEFAULT
