"""Fixtures of the tests of leases."""

from tests.lease.faults import faulty, quick_server

__all__ = ["faulty", "quick_server"]
