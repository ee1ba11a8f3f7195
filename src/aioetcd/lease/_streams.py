"""All renewals of a client: the rules, and the streams that they share."""

from __future__ import annotations

import logging
from time import monotonic

from aioetcd._proto import rpc_pb2
from aioetcd._transport.methods import LEASE_KEEP_ALIVE
from aioetcd._transport.streams import SharedStream
from aioetcd._transport.transport import Transport
from aioetcd.lease._state import Lane, LeaseRules
from aioetcd.types.value import Value

logger = logging.getLogger("aioetcd.lease")


class LeaseStats(Value):
    """What the renewals are doing."""

    __slots__ = ("kept", "reconnects", "soonest_expiry")

    kept: int
    reconnects: int
    soonest_expiry: float | None


class LeaseStreams:
    """All renewals of a client.

    Attributes:
        transport: The client's.
        rules: What to send, and what the answers mean.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport: Transport = transport
        self.rules: LeaseRules = LeaseRules()
        self._streams: dict[
            Lane, SharedStream[rpc_pb2.LeaseKeepAliveRequest, rpc_pb2.LeaseKeepAliveResponse]
        ] = {
            lane: SharedStream(
                transport, LEASE_KEEP_ALIVE, lane, require_leader=True, logger=logger
            )
            for lane in self.rules.lanes
        }
        transport.on_close(self.rules.close)

    def poke(self, lane: Lane) -> None:
        """Have a stream look at what its lane has to send."""
        self._streams[lane].poke()

    def revoked(self, lease_id: int) -> None:
        """A lease is gone: tell whoever keeps it alive."""
        lane = self.rules.revoked(lease_id)
        if lane is not None:
            self.poke(lane)

    def stats(self) -> LeaseStats:
        """Tell what the renewals are doing."""
        deadline = self.rules.soonest()
        return LeaseStats(
            kept=len(self.rules),
            reconnects=sum(stream.reconnects for stream in self._streams.values()),
            soonest_expiry=None if deadline is None else max(0.0, deadline - monotonic()),
        )
