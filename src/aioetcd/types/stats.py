"""What a client says of itself."""

from __future__ import annotations

from collections.abc import Mapping

from aioetcd.types.value import Value


class ClientStats(Value):
    """What a client is doing, at one moment.

    Attributes:
        connections: gRPC's state of the connection to each endpoint: ``"READY"``, ``"IDLE"``,
            ``"CONNECTING"``, ``"TRANSIENT_FAILURE"``, or ``"UNUSED"`` where none was tried.
        endpoint: The endpoint in use, or None while one is searched.
        calls: Calls made, however often each was sent; watches and renewals are none.
        retries: How often one of them was sent again.
        reconnects: How often a stream of watches or leases was lost, and then opened again. Many
            watches, or leases, are on several streams, each of which counts.
        watches: Watches that have not ended.
        paused_watches: Those among them that wait for their consumer.
        leases: Leases kept alive.
        soonest_expiry: Seconds until the first of them would expire, were no renewal to succeed
            any more; None without any.
    """

    __slots__ = (
        "calls",
        "connections",
        "endpoint",
        "leases",
        "paused_watches",
        "reconnects",
        "retries",
        "soonest_expiry",
        "watches",
    )

    connections: Mapping[str, str]
    endpoint: str | None
    calls: int
    retries: int
    reconnects: int
    watches: int
    paused_watches: int
    leases: int
    soonest_expiry: float | None
