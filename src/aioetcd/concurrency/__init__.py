"""Recipes over the services: sessions, locks, elections."""

from aioetcd.concurrency._guard import OnLost
from aioetcd.concurrency._parts import Parts
from aioetcd.concurrency._queued import queued_at
from aioetcd.concurrency.barrier import Barrier, DoubleBarrier
from aioetcd.concurrency.cache import Cache, CacheChanges, Change
from aioetcd.concurrency.election import Election, Leaders, Leadership
from aioetcd.concurrency.lock import Lock
from aioetcd.concurrency.queue import PriorityQueue, Queue
from aioetcd.concurrency.registration import Registration
from aioetcd.concurrency.rwlock import RWLock
from aioetcd.concurrency.session import Session

__all__ = [
    "Barrier",
    "Cache",
    "CacheChanges",
    "Change",
    "DoubleBarrier",
    "Election",
    "Leaders",
    "Leadership",
    "Lock",
    "OnLost",
    "Parts",
    "PriorityQueue",
    "Queue",
    "RWLock",
    "Registration",
    "Session",
    "queued_at",
]
