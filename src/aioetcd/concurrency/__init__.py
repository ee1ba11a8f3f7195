"""Recipes over the services: sessions and locks."""

from aioetcd.concurrency._guard import OnLost
from aioetcd.concurrency.lock import Lock
from aioetcd.concurrency.session import Session

__all__ = ["Lock", "OnLost", "Session"]
