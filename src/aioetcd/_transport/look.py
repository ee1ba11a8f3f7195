"""Asks a member how it is, as whoever is to trust it must know."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from aioetcd import errors as e
from aioetcd._proto import health_pb2, rpc_pb2
from aioetcd._transport.call import ChannelClosedError, Failure, LeftError
from aioetcd._transport.connection import Connection, Metadata
from aioetcd._transport.members import Health
from aioetcd._transport.methods import HEALTH_CHECK, RANGE
from aioetcd._verdicts.table import Blame, verdict_for

_HOW_ARE_YOU = health_pb2.HealthCheckRequest()
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_IS_THERE_A_QUORUM = rpc_pb2.RangeRequest(key=b"\0", count_only=True)
_HAS_LEADER = ("hasleader", "true")


class Finding(NamedTuple):
    """How a member is.

    Attributes:
        health: That.
        reason: What is wrong with it.
        cluster_id: Its cluster's; 0 where it did not say.
    """

    health: Health
    reason: str | None = None
    cluster_id: int = 0


async def look(
    connection: Connection, metadata: Callable[[], Metadata], *, timeout: float, patience: float
) -> Finding:
    """See whether a member answers, serves, and has a leader and a quorum.

    Args:
        connection: To it.
        metadata: Gives what goes with a call.
        timeout: Seconds that it may take to connect and to answer.
        patience: Seconds that a linearizable read of nothing may take then.
    """
    answer = connection.calls.answer
    finding = None
    try:
        # No names for what leads to gRPC's channel: this frame may live for as long as an error.
        found = await answer(
            connection.unary(HEALTH_CHECK)(_HOW_ARE_YOU, timeout=timeout), may_leave=True
        )
        if found.status == _NOT_SERVING:
            finding = Finding(Health.ODD, "its health check says NOT_SERVING")
    except (ChannelClosedError, LeftError):
        return Finding(Health.DOWN, "nobody waits for its answer any more")
    except Failure as failure:
        finding = _of_check(failure, timeout)
        if finding is not None and finding.health is Health.DOWN:
            return finding
    connection.works()
    if finding is not None:
        return finding
    try:
        sent = (*metadata(), _HAS_LEADER)
        nothing = await answer(
            connection.unary(RANGE)(_IS_THERE_A_QUORUM, timeout=patience, metadata=sent),
            may_leave=True,
        )
    except (ChannelClosedError, LeftError):
        return Finding(Health.DOWN, "nobody waits for its answer any more")
    except Failure as failure:
        return _of_read(failure, patience)
    return Finding(Health.WELL, cluster_id=nothing.header.cluster_id)


def _of_check(failure: Failure, timeout: float) -> Finding | None:
    """Give what a failed health check says; None where there may just be no such service."""
    if failure.is_deadline:
        return Finding(Health.DOWN, f"no answer within {timeout:g} s")
    verdict = verdict_for(failure.code, failure.details)
    if issubclass(verdict.error, e.LearnerError):
        return Finding(Health.ODD, "it is a learner")
    if failure.code in ("UNAVAILABLE", "CANCELLED"):
        return Finding(Health.DOWN, failure.details.rpartition("last error: ")[2] or failure.code)
    return None


def _of_read(failure: Failure, patience: float) -> Finding:
    verdict = verdict_for(failure.code, failure.details)
    if failure.is_deadline:
        return Finding(Health.ODD, f"no quorum has answered it within {patience:g} s")
    if issubclass(verdict.error, e.LearnerError):
        return Finding(Health.ODD, "it is a learner")
    if issubclass(verdict.error, e.UnsupportedByServerError):
        return Finding(Health.ODD, "it is a gRPC server, and no etcd")
    if verdict.blame is Blame.TOKEN or issubclass(
        verdict.error, e.AuthError | e.TooManyRequestsError
    ):
        return Finding(Health.WELL)  # a server asks its quorum before it asks who wants to know
    # The failure tells that the connection broke, and the channel's state is late to; a status of
    # HTTP, or the reset of a stream, came through one that stands.
    is_of_connection = failure.code == "UNAVAILABLE" and verdict.blame is Blame.CONNECTION
    broke = is_of_connection and not failure.details.startswith("Received ")
    return Finding(Health.DOWN if broke else Health.ODD, failure.details or failure.code)
