"""A server's side of leases, small enough to be right by reading it; and a keeper that listens."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from aioetcd._proto import rpc_pb2
from aioetcd.errors import EtcdError
from aioetcd.lease._state import Keeper, Lane


@dataclass
class Granted:
    """A lease as the server knows it."""

    ttl: int
    expires_at: float


@dataclass
class LeaseServer:
    """Leases by id. One that has expired or was revoked is not there any more."""

    leases: dict[int, Granted] = field(default_factory=dict)

    def grant(self, lease_id: int, ttl: int, now: float) -> None:
        """Make a lease."""
        self.leases[lease_id] = Granted(ttl, now + ttl)

    def revoke(self, lease_id: int) -> None:
        """End a lease."""
        self.leases.pop(lease_id, None)

    def renew(self, lease_id: int, now: float) -> int:
        """Give what a renewal answers: the time to live, or 0 where there is no such lease."""
        self.expire(now)
        lease = self.leases.get(lease_id)
        if lease is None:
            return 0
        lease.expires_at = now + lease.ttl
        return lease.ttl

    def expire(self, now: float) -> None:
        """Delete what has expired."""
        for lease_id in [i for i, lease in self.leases.items() if lease.expires_at <= now]:
            del self.leases[lease_id]


@dataclass
class ServerStream:
    """One stream: requests go in, in order; answers come out, in order.

    Attributes:
        server: The leases.
        requests: Renewals on their way to the server: (lease id, when it was sent).
        answers: Answers on their way to the client, each with when its request was sent.
    """

    server: LeaseServer
    requests: deque[tuple[int, float]] = field(default_factory=deque)
    answers: deque[tuple[rpc_pb2.LeaseKeepAliveResponse, float]] = field(default_factory=deque)

    def serve(self, now: float) -> None:
        """Answer the oldest request."""
        lease_id, sent_at = self.requests.popleft()
        ttl = self.server.renew(lease_id, now)
        self.answers.append((answer(lease_id, ttl), sent_at))


def answer(lease_id: int, ttl: int) -> rpc_pb2.LeaseKeepAliveResponse:
    """Make the answer to a renewal."""
    return rpc_pb2.LeaseKeepAliveResponse(ID=lease_id, TTL=ttl)


class Kept:
    """A keeper, and what it was told."""

    def __init__(self, lease_id: int, not_before: float = 0.0) -> None:
        self.keeper = Keeper(lease_id, self.notified, not_before=not_before)
        self.ttls: list[int] = []
        self.errors: list[EtcdError] = []
        self.notifications = 0

    def notified(self) -> None:
        """Take what there is."""
        self.notifications += 1
        if self.keeper.error is not None:
            self.errors.append(self.keeper.error)
        elif self.keeper.renewal is not None:
            self.ttls.append(self.keeper.renewal.TTL)
            self.keeper.renewal = None


def requests(lane: Lane, now: float) -> Iterator[rpc_pb2.LeaseKeepAliveRequest]:
    """Give all that is due."""
    while (request := lane.next_request(now)) is not None:
        yield request
