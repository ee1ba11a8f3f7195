"""Recipes over the services: sessions, locks, elections."""

from aioetcd.concurrency._guard import OnLost
from aioetcd.concurrency._parts import Parts
from aioetcd.concurrency._queued import queued_at
from aioetcd.concurrency.cache import Cache, CacheChanges, Change
from aioetcd.concurrency.election import Election, Leaders, Leadership
from aioetcd.concurrency.job import Job
from aioetcd.concurrency.lock import Lock
from aioetcd.concurrency.registration import Registration
from aioetcd.concurrency.rwlock import RWLock
from aioetcd.concurrency.session import Session
from aioetcd.concurrency.work_queue import WorkQueue
from aioetcd.concurrency.worker import Worker

__all__ = [
    "Cache",
    "CacheChanges",
    "Change",
    "Election",
    "Job",
    "Leaders",
    "Leadership",
    "Lock",
    "OnLost",
    "Parts",
    "RWLock",
    "Registration",
    "Session",
    "WorkQueue",
    "Worker",
    "queued_at",
]
