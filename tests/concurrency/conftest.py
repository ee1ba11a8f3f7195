"""Fixtures of the tests of sessions and locks."""

from tests.harness import faulty, quick_server

__all__ = ["faulty", "quick_server"]
