"""Recipes over the services: sessions, locks, elections, transactions."""

from aioetcd.concurrency._guard import OnLost
from aioetcd.concurrency._parts import Parts
from aioetcd.concurrency._recipes import Recipes
from aioetcd.concurrency._transaction import Isolation, Transaction
from aioetcd.concurrency.barrier import Barrier, DoubleBarrier
from aioetcd.concurrency.cache import Cache, CacheChanges, Change
from aioetcd.concurrency.counter import Counter
from aioetcd.concurrency.election import Election, Leaders, Leadership
from aioetcd.concurrency.group import Group
from aioetcd.concurrency.lock import Lock
from aioetcd.concurrency.partitioner import Partitioner, Share
from aioetcd.concurrency.queue import PriorityQueue, Queue
from aioetcd.concurrency.registration import Registration
from aioetcd.concurrency.rwlock import RWLock
from aioetcd.concurrency.session import Session
from aioetcd.concurrency.work_queue import WorkQueue
from aioetcd.concurrency.worker import Job, Worker

__all__ = [
    "Barrier",
    "Cache",
    "CacheChanges",
    "Change",
    "Counter",
    "DoubleBarrier",
    "Election",
    "Group",
    "Isolation",
    "Job",
    "Leaders",
    "Leadership",
    "Lock",
    "OnLost",
    "Partitioner",
    "Parts",
    "PriorityQueue",
    "Queue",
    "RWLock",
    "Recipes",
    "Registration",
    "Session",
    "Share",
    "Transaction",
    "WorkQueue",
    "Worker",
]
