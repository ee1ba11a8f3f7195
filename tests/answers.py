"""How a test hands an answer to the rules of a stream."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message

from aioetcd._transport.streams import StreamRules
from aioetcd._transport.wish import Wish


def received(rules: StreamRules[Any, Any], response: Message, now: float) -> Wish | None:
    """Hand over an answer, and say how many bytes it takes."""
    return rules.received(response, response.ByteSize(), now)
