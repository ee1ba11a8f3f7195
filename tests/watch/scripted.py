"""What tests of the rules say to them, and read from them."""

from __future__ import annotations

import math

from aioetcd._proto import rpc_pb2
from aioetcd.watch._rules import WatchRules
from aioetcd.watch._state import WatchSpec, WatchState
from tests.watch.model import message


def opened(
    *starts: int | None, longest_silence: float = math.inf
) -> tuple[WatchRules, list[WatchState]]:
    """Make rules with a stream that lets us choose the ids, and a watch being created a start."""
    rules = WatchRules(lambda: None, longest_silence=longest_silence)
    states = [WatchState(WatchSpec(b"k"), start, lambda: None) for start in starts]
    for state in states:
        rules.add(state)
    rules.opened("here", 0)
    rules._own_ids = True  # as the answer to an earlier creation would have shown
    while rules.next_request(0) is not None:
        pass
    return rules, states


def sent(rules: WatchRules) -> list[rpc_pb2.WatchRequest]:
    """Give all that is to be sent."""
    requests = []
    while (request := rules.next_request(0)) is not None:
        requests.append(request)
    return requests


def header(revision: int, cluster_id: int = 7) -> rpc_pb2.ResponseHeader:
    """What all answers have."""
    return rpc_pb2.ResponseHeader(cluster_id=cluster_id, revision=revision)


def created(state: WatchState, revision: int = 10) -> rpc_pb2.WatchResponse:
    """Answer a creation."""
    return rpc_pb2.WatchResponse(header=header(revision), watch_id=state.watch_id, created=True)


def refused(watch_id: int, reason: str = "etcdserver: permission denied") -> rpc_pb2.WatchResponse:
    """Refuse a creation."""
    return rpc_pb2.WatchResponse(
        header=header(10), watch_id=watch_id, created=True, canceled=True, cancel_reason=reason
    )


def events(
    state: WatchState, *revisions: int, fragment: bool = False, header_revision: int = 50
) -> rpc_pb2.WatchResponse:
    """Tell a watch of puts."""
    return rpc_pb2.WatchResponse(
        header=header(header_revision),
        watch_id=state.watch_id,
        events=[message(0, b"k", revision) for revision in revisions],
        fragment=fragment,
    )


def taken(rules: WatchRules, state: WatchState) -> list[int]:
    """Take all that there is."""
    revisions = []
    while (batch := rules.take(state)[0]) is not None:
        revisions += [event.kv.mod_revision for event in batch.events]
    return revisions


def progress(revision: int) -> rpc_pb2.WatchResponse:
    """Answer a request for progress."""
    return rpc_pb2.WatchResponse(header=header(revision), watch_id=-1)
