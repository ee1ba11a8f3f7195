"""What the rules of a stream want from whoever owns it."""

from __future__ import annotations

import enum


class Wish(enum.Enum):
    """What is to be done now."""

    LOOK = enum.auto()
    """Ask again: there is something to send, or another time to wait for."""
    ELSEWHERE = enum.auto()
    """A stream to another endpoint: this one is silent for too long."""
    FRESH_TOKEN = enum.auto()
    """A stream with another token: this one's does not do."""
