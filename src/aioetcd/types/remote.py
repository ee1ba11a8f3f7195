"""What the locks and elections that etcd itself keeps answer."""

from __future__ import annotations

from aioetcd.types.store import KeyValue, ResponseHeader
from aioetcd.types.value import Value


class RemoteLockResponse(Value):
    """The answer to a lock.

    Attributes:
        header: The state of the store.
        key: What stands for the lock: to be unlocked, and for comparisons.
    """

    __slots__ = ("header", "key")

    header: ResponseHeader
    key: bytes


class LeaderKey(Value):
    """What stands for a leadership.

    Attributes:
        name: The election's name.
        key: The leader's key; comparisons of txns that it protects name it.
        revision: The key's create revision.
        lease: The lease that it stands on.
    """

    __slots__ = ("key", "lease", "name", "revision")

    name: bytes
    key: bytes
    revision: int
    lease: int


class CampaignResponse(Value):
    """The answer to a campaign that was won.

    Attributes:
        header: The state of the store.
        leader: What stands for the leadership.
    """

    __slots__ = ("header", "leader")

    header: ResponseHeader
    leader: LeaderKey


class LeaderResponse(Value):
    """Who leads.

    Attributes:
        header: The state of the store.
        kv: The leader's key, and what he proclaims.
    """

    __slots__ = ("header", "kv")

    header: ResponseHeader
    kv: KeyValue


class RemoteResponse(Value):
    """The answer to what has nothing else to tell.

    Attributes:
        header: The state of the store.
    """

    __slots__ = ("header",)

    header: ResponseHeader
