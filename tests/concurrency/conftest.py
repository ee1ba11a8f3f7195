"""Fixtures of the tests of sessions and locks."""

from __future__ import annotations

import pytest

from tests.harness import faulty, quick_server

__all__ = ["faulty", "quick_server"]


@pytest.fixture
def patient_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever was not served in time learns who was, however long the server takes to tell.

    For tests of what is told then. How long that may take is for others.
    """
    monkeypatch.setattr("aioetcd.concurrency._queued._LAST_LOOK", 10.0)
