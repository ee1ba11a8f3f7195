"""Recipes over the services: sessions, locks, elections."""

from aioetcd.concurrency._guard import OnLost
from aioetcd.concurrency._parts import Parts
from aioetcd.concurrency._queued import queued_at
from aioetcd.concurrency.cache import Cache, CacheChanges, Change
from aioetcd.concurrency.election import Election, Leaders, Leadership
from aioetcd.concurrency.group import Group
from aioetcd.concurrency.lock import Lock
from aioetcd.concurrency.partitioner import Partitioner, Share
from aioetcd.concurrency.registration import Registration
from aioetcd.concurrency.rwlock import RWLock
from aioetcd.concurrency.session import Session

__all__ = [
    "Cache",
    "CacheChanges",
    "Change",
    "Election",
    "Group",
    "Leaders",
    "Leadership",
    "Lock",
    "OnLost",
    "Partitioner",
    "Parts",
    "RWLock",
    "Registration",
    "Session",
    "Share",
    "queued_at",
]
