"""Running a test's coroutine on the event loop that is asked for, whatever the suite runs on."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

LOOPS = [
    "asyncio",
    pytest.param(
        "uvloop",
        marks=pytest.mark.skipif("sys.platform == 'win32'", reason="uvloop is not for Windows"),
    ),
]


def run_on(loop: str, main: Coroutine[Any, Any, None]) -> None:
    """Run `main` in a new event loop."""
    factory = None
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)
