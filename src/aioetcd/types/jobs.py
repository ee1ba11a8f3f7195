"""What a work queue tells of its jobs."""

from __future__ import annotations

from aioetcd.types.value import Value


class JobCounts(Value):
    """How many jobs a work queue has, all at one revision.

    Attributes:
        waiting: Those that a worker may take now.
        claimed: Those that workers have.
        delayed: Those that wait for the end of their delay.
        dead: Those that were handed out as often as they may be, and are put aside.
    """

    __slots__ = ("claimed", "dead", "delayed", "waiting")

    waiting: int
    claimed: int
    delayed: int
    dead: int


class DeadJob(Value):
    """A job of a work queue that was handed out as often as it may be, and put aside.

    Attributes:
        id: Its id, as `WorkQueue.put` gave it.
        value: What it is.
        attempts: How often it was handed out.
    """

    __slots__ = ("attempts", "id", "value")

    id: bytes
    value: bytes
    attempts: int
