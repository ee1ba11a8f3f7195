"""The rules of watching, without I/O: answers and the time go in, requests and batches come out.

What holds at any moment, for the watches of a stream:

- Each creation takes a new id, so that late answers to an old one cannot be mistaken.
- The first creation on a stream goes alone, and shows whether the ids are ours to choose: etcd's
  grpc-proxy gives its own. There each creation waits for the answer to the one before.
- The answer to a request for progress is no watch's own: it may overtake the events of a watch that
  was created after the request. Such a watch does not take it for a bookmark.
- A server answers no such request while a watch of the stream starts beyond its store. While
  somebody asks, such a watch is created from a revision that the server has shown; what that
  brings from below the watch's floor is dropped.

A stream that ends for good (another one would, if the same were said on it) ends the watch that is
the cause, and no other:

- Whoever was being created then is a suspect, until an answer to its creation clears it. So is one
  that is large, from the beginning: servers end the stream for what is larger than they take.
  Suspects are created after all others, with no other creation in flight: when the stream ends for
  good then, the one is the cause, and ends with the error.
- The next stream begins with a probe: a creation of nobody's, which every server answers, and at
  once. Nothing else is sent before. If that stream ends for good without an answer, what was asked
  for is not the cause: the RPC itself is refused, and every watch ends with the error.
- A watch that was given up is not sent again. Until it is answered it keeps its place among those
  being created, so that its failure makes them suspects at the most.
- Any other such end (nothing was being created, or nobody who is left) ends nobody.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from copy import copy

from aioetcd._proto import kv_pb2, rpc_pb2
from aioetcd._transport.wish import Wish
from aioetcd._verdicts.raised import error_from_status, status_of_reason
from aioetcd._verdicts.table import Blame, verdict_for
from aioetcd.errors import (
    ClusterMismatchError,
    CompactedError,
    EtcdError,
    PermissionDeniedError,
)
from aioetcd.types.store import Batch
from aioetcd.watch._state import Answer, Phase, WatchSpec, WatchState

# What an event takes in memory beside its bytes in the answer.
_EVENT_OVERHEAD = 128
# A request for progress goes unanswered while a watch of the stream lags: so it is repeated. One
# that was just created from the past takes the server up to 0.1 s.
PROGRESS_INTERVAL = 0.25
# So many streams in a row may refuse a watch for their token: a fresh one may not have come to all
# members yet (etcd #18437).
_STALE_TOKENS = 4
# Servers take requests of 2 MiB, unless they are told to take more.
_LARGE = 2**20
# An empty range: servers and proxies refuse it, with an answer, whoever asks.
_PROBE = WatchSpec(b"b", range_end=b"a")


class Suspicion:
    """A server is behind what another one has shown.

    Attributes:
        state: A watch that it is about.
        revision: The highest revision shown before.
    """

    __slots__ = ("revision", "state")

    def __init__(self, state: WatchState, revision: int) -> None:
        self.state: WatchState = state
        self.revision: int = revision


class WatchRules:
    """All watches of one stream.

    Args:
        ask: Called when only a unary call can tell how to go on; see `suspicion` and
            `wants_version`.
        longest_silence: Seconds after which gRPC itself finds a dead connection.
        signs_in: Whether there is somebody to sign in as.

    Attributes:
        highest_revision: The highest revision that any server has shown.
        suspicion: Either the stream's member lags, or the history went back: a linearizable read
            decides, see `checked_revision`.
        progress_trusted: Whether this stream's server answers requests for progress truly; None
            until `checked_version` tells.
    """

    def __init__(
        self,
        ask: Callable[[], None],
        *,
        longest_silence: float = math.inf,
        signs_in: Callable[[], bool] = lambda: False,
    ) -> None:
        self.highest_revision: int = 0
        self.suspicion: Suspicion | None = None
        self.progress_trusted: bool | None = None
        self._ask = ask
        self._signs_in = signs_in
        # Whether a watch was refused for the stream's token: it waits for a stream with another
        # one, and so do those that are not created yet.
        self._wants_token = False
        # How many streams in a row have refused a watch for their token.
        self._stale_tokens = 0
        self._longest_silence = longest_silence
        self._cluster_id = 0
        self._fresh = True
        # Whether the stream lets us choose the ids; None until its first creation tells.
        self._own_ids: bool | None = None
        # Whether the last stream ended for good, and nothing was answered since.
        self._refused_before = False
        # Those of whom one may have been the reason.
        self._suspects: set[WatchState] = set()
        # The highest revision that this stream's server has shown.
        self._shown = 0
        # Those whose consumers wait for a bookmark.
        self._asking: set[WatchState] = set()
        # The requests for progress on this stream, and the answers to them: at most one each.
        self._asked = 0
        self._told = 0
        self._last_id = 0
        self._watches: set[WatchState] = set()
        # By id on the stream: answers are matched by it. A watch that was given up keeps its place
        # among those being created until it is answered, perhaps by a refusal without an id.
        self._creating: dict[int, WatchState] = {}
        self._open: dict[int, WatchState] = {}
        # Refusals that name no watch, until every other creation in flight is answered.
        self._refusals: list[rpc_pb2.WatchResponse] = []
        self._to_create: dict[WatchState, None] = {}  # in this order
        self._to_cancel: deque[int] = deque()
        self._progress_at = 0.0
        self._ticked = 0.0
        self._heard_at = 0.0

    # What the handles do.

    def add(self, state: WatchState) -> None:
        """Take a new watch."""
        state.floor = state.next_revision or 0
        self._watches.add(state)
        self._to_create[state] = None
        if len(state.spec.key) + len(state.spec.range_end) > _LARGE:
            # Alone as well because grpc.aio hides why the stream ended when a write fails with it.
            self._suspects.add(state)

    def cancel(self, state: WatchState) -> None:
        """End a watch because the user did."""
        state.inbox.clear()
        self._end(state, None)

    def take(self, state: WatchState) -> tuple[Batch | None, bool]:
        """Give a watch's next batch, and whether that made something to send."""
        if not state.inbox:
            return None, False
        answer = state.inbox[0]
        batch = answer.take(state.spec)
        state.inbox_events -= len(batch.events)
        if not answer.left:
            state.inbox.popleft()
            state.inbox_bytes -= answer.size
        if state.phase is Phase.PAUSED and state.is_drained:
            state.phase = Phase.WAITING
            self._to_create[state] = None
            return batch, True
        return batch, False

    def ask_progress(self, state: WatchState, revision: int) -> None:
        """Ask the server, whose store is at `revision`, how far a watch is, until it answers."""
        if state.phase is Phase.ENDED:
            return  # meanwhile
        self._asking.add(state)
        self._shown = max(self._shown, revision)
        self._progress_at = 0.0
        if self.progress_trusted is None:
            self._ask()

    @property
    def wants_version(self) -> bool:
        """Whether somebody asked for progress and the server's version is not known."""
        return self.progress_trusted is None and self._progress_wanted

    @property
    def _progress_wanted(self) -> bool:
        return any(state.phase is Phase.OPEN for state in self._asking)

    def checked_version(self, revision: int, *, trusted: bool) -> None:
        """The server's version is known, and the revision of its store."""
        self.progress_trusted = trusted
        self._shown = max(self._shown, revision)

    def checked_revision(self, suspicion: Suspicion, revision: int) -> None:
        """A linearizable read has told the store's revision."""
        if self.suspicion is not suspicion:
            return  # the stream leads elsewhere by now
        self.suspicion = None
        if revision < suspicion.revision:
            self.highest_revision = revision
            self._end_all(
                ClusterMismatchError(
                    f"the store is at revision {revision}, but was at {suspicion.revision} "
                    "before: its history went back (restored from a backup?); read everything "
                    "again, then watch from there"
                )
            )

    def close(self, error: EtcdError) -> None:
        """End everything at once, what is in the inboxes included."""
        for state in list(self._watches):
            state.inbox.clear()
        self._end_all(error)

    def __len__(self) -> int:
        """Give how many watches there are."""
        return len(self._watches)

    def counts(self) -> tuple[int, int]:
        """Give how many watches there are, and how many of them are paused."""
        paused = sum(state.phase is Phase.PAUSED for state in self._watches)
        return len(self._watches), paused

    # What the stream's owner does (`StreamRules`).

    @property
    def wanted(self) -> bool:
        """Whether there is any watch."""
        return bool(self._watches)

    def opened(self, endpoint: str, now: float) -> None:
        """A new stream: everything is created again on it."""
        self._leave_stream()  # one that nobody wanted any more was not lost
        self._wants_token = False
        self.progress_trusted = None
        self.suspicion = None
        self._fresh = True
        self._own_ids = None
        self._asked = self._told = 0
        self._shown = 0

    def next_request(self, now: float) -> rpc_pb2.WatchRequest | None:
        """Give what to send next."""
        if self._to_cancel:
            cancel = rpc_pb2.WatchCancelRequest(watch_id=self._to_cancel.popleft())
            return rpc_pb2.WatchRequest(cancel_request=cancel)
        if self._refused_before:
            if self._creating:
                return None
            return self._create(WatchState(_PROBE, None, lambda: None, phase=Phase.ENDED))
        state = next(iter(self._to_create), None)
        if state is not None and self._may_create(state):
            del self._to_create[state]
            state.phase = Phase.CREATING
            return self._create(state)
        if self.progress_trusted and now >= self._progress_at and self._progress_wanted:
            if self._rewind():
                return self.next_request(now)
            self._progress_at = now + PROGRESS_INTERVAL
            self._asked += 1
            return rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest())
        return None

    def _may_create(self, state: WatchState) -> bool:
        if self._wants_token:
            return False
        if self._refusals:
            # They may belong to any of several, and further ones would keep them from ever being
            # settled.
            return False
        if not self._creating:
            return True
        on_trial = next(iter(self._creating.values())) in self._suspects
        return bool(self._own_ids) and not on_trial and state not in self._suspects

    def _create(self, state: WatchState) -> rpc_pb2.WatchRequest:
        self._last_id += 1
        state.watch_id = self._last_id
        start = state.next_revision
        if start is not None:
            # A member that lags behind a resumed watch may send what is older (etcd before
            # 3.4.38, 3.5.22 and 3.6.2), and any does when it starts earlier than it needs.
            state.floor = start
            if self.progress_trusted and self._asking:
                start = min(start, self._shown)
        state.start_revision = start or 0
        state.asked_before = self._asked
        self._creating[state.watch_id] = state
        return state.spec.to_message(state.watch_id, start)

    def _rewind(self) -> bool:
        """Have those created again that keep the server from telling progress, if there are any."""
        ahead = [state for state in self._open.values() if state.start_revision > self._shown]
        for state in ahead:
            self._leave(state, Phase.WAITING)
            self._to_create[state] = None
        return bool(ahead)

    def received(self, response: rpc_pb2.WatchResponse, size: int, now: float) -> Wish | None:
        """An answer came."""
        self._heard_at = now
        self._refused_before = False
        self._shown = max(self._shown, response.header.revision)
        cluster_id = response.header.cluster_id
        if cluster_id and cluster_id != self._cluster_id:
            if self._cluster_id:
                self.highest_revision = 0
                self._end_all(
                    ClusterMismatchError(
                        f"cluster {cluster_id:x} answers where {self._cluster_id:x} did before: "
                        "its revisions mean nothing here; read everything again, then watch from "
                        "there"
                    )
                )
            self._cluster_id = cluster_id
        if response.created:
            if response.canceled:
                self._refused(response)
            else:
                self._created(response)
            self.highest_revision = max(self.highest_revision, response.header.revision)
            return Wish.FRESH_TOKEN if self._wants_token else Wish.LOOK
        self.highest_revision = max(self.highest_revision, response.header.revision)
        if response.watch_id == -1:
            self._told += 1
            revision = response.header.revision
            again = False
            for state in self._open.values():
                if self._told > state.asked_before or revision > state.opened_revision:
                    self._progress(state, revision)
                else:
                    again |= state in self._asking
            if again:  # the server answers, and this may be what was asked for before it began
                self._progress_at = 0.0
            return Wish.LOOK if again else None
        watching = self._open.get(response.watch_id)
        if watching is None:
            return None  # it was cancelled, and this was on its way
        if response.canceled:
            self._canceled(watching, response)
            return Wish.LOOK
        if response.events:
            return self._events(watching, response, size)
        self._progress(watching, response.header.revision)
        return None

    def lost(self, error: EtcdError, *, final: bool, now: float) -> None:
        """The stream ended: all that was on it waits for the next one."""
        if final:
            self._blame(error)
            self._refused_before = True
        # However little there was to say, the pings of a connection were answered until then.
        self._heard_at = max(self._heard_at, now - self._longest_silence)
        self._leave_stream()

    def _blame(self, error: EtcdError) -> None:
        """End whoever is the reason that the stream ended for good."""
        if self._refused_before:
            self._end_all(error)
            return
        creating = [state for state in self._creating.values() if state in self._watches]
        if self._suspects.issuperset(creating):  # one, which is alone, or nobody
            for state in creating:
                self._end(state, error)
        else:
            self._suspects.update(creating)

    def _leave_stream(self) -> None:
        on_stream = [*self._open.values(), *self._creating.values()]
        waiting = [state for state in on_stream if state in self._watches]
        for state in waiting:
            self._close(state, Phase.WAITING)
        # The oldest first, before those that were never sent; suspects last.
        order = sorted([*waiting, *self._to_create], key=self._suspects.__contains__)
        self._to_create = dict.fromkeys(order)
        self._creating.clear()
        self._open.clear()
        self._refusals.clear()
        self._to_cancel.clear()

    def next_tick(self) -> float | None:
        """Wake up to repeat a request for progress."""
        if not self.progress_trusted or not self._progress_wanted:
            return None
        # Not in the past: while the stream takes no requests, one that is due stays due.
        return max(self._progress_at, self._ticked + PROGRESS_INTERVAL)

    def tick(self, now: float) -> Wish | None:
        """Time has passed: `next_request` may have something. An idle stream is silent."""
        self._ticked = now
        return None

    # What answers mean.

    def _created(self, response: rpc_pb2.WatchResponse) -> None:
        state = self._creating.pop(response.watch_id, None)
        if self._own_ids is None:
            self._own_ids = state is not None
        if not self._own_ids and self._creating:
            _, state = self._creating.popitem()  # the only one in flight
        if state is None or state.phase is Phase.ENDED:
            self._to_cancel.append(response.watch_id)
            self._settle_refusals()
            return
        self._suspects.discard(state)
        self._stale_tokens = 0
        state.was_denied = False
        state.watch_id = response.watch_id
        state.phase = Phase.OPEN
        self._open[state.watch_id] = state
        revision = state.opened_revision = response.header.revision
        if state.next_revision is None:
            # Not the floor: newer servers read this revision a moment after the watch began, and
            # deliver events from between the two.
            state.next_revision = revision + 1
        if state.created_revision is None:
            state.created_revision = revision
        # Once a stream: the store of one member does not go back while it runs, but the answers
        # to one creation and the events of another watch may overtake each other.
        if self._fresh and revision < self.highest_revision:
            self.suspicion = Suspicion(state, self.highest_revision)
            self._ask()
        self._fresh = False
        if state in self._asking and self.progress_trusted is None:
            self._ask()
        state.notify()
        self._settle_refusals()

    def _refused(self, response: rpc_pb2.WatchResponse) -> None:
        """A creation failed. Its id is ours, or (newer servers) -1, or (by a bug) 0."""
        state = self._creating.pop(response.watch_id, None)
        if state is not None:
            self._end_refused(state, response)
        else:
            self._refusals.append(response)
        self._settle_refusals()

    def _settle_refusals(self) -> None:
        """Give refusals that name nobody to those that are left when all others are answered."""
        if not self._refusals or len(self._refusals) < len(self._creating):
            return
        # The server answers in order; only a proxy does not, and then at worst the reasons of
        # refused watches are swapped.
        for response, state in zip(self._refusals, list(self._creating.values()), strict=False):
            del self._creating[state.watch_id]
            self._end_refused(state, response)
        self._refusals.clear()

    def _end_refused(self, state: WatchState, response: rpc_pb2.WatchResponse) -> None:
        error, blame = _refusal(response.cancel_reason)
        if isinstance(error, PermissionDeniedError):
            # Older servers say this also of a token that is over: once, a fresh one is tried.
            may_pass, state.was_denied = not state.was_denied, True
        else:
            may_pass = blame is Blame.TOKEN and self._stale_tokens < _STALE_TOKENS
        if may_pass and self._signs_in() and state in self._watches:
            self._stale_tokens += not self._wants_token
            self._wants_token = True
            state.phase = Phase.WAITING
            self._to_create[state] = None
        else:
            self._end(state, error)

    def _canceled(self, state: WatchState, response: rpc_pb2.WatchResponse) -> None:
        del self._open[state.watch_id]
        if 0 < response.compact_revision <= (state.next_revision or 0):
            # It was created from earlier than it needs, and what it needs is there.
            self._close(state, Phase.WAITING)
            self._to_create[state] = None
            return
        if response.compact_revision:
            error: EtcdError = CompactedError(
                f"the history from revision {state.next_revision} on was compacted up to "
                f"{response.compact_revision}: read everything again, then watch from there",
                compact_revision=response.compact_revision,
                code="OUT_OF_RANGE",
                details="etcdserver: mvcc: required revision has been compacted",
            )
        else:
            error, _ = _refusal(response.cancel_reason)
        self._end(state, error)

    def _events(self, state: WatchState, response: rpc_pb2.WatchResponse, size: int) -> Wish | None:
        if state.is_full:
            self._leave(state, Phase.PAUSED)
            return Wish.LOOK
        events: Sequence[kv_pb2.Event] = response.events
        size += state.partial_bytes + len(events) * _EVENT_OVERHEAD
        if state.partial:
            events = [*state.partial, *events]
            state.drop_partial()
        if response.fragment:
            # The last revision may go on in the next fragment; those before it are whole.
            last = events[-1].kv.mod_revision
            first = len(events)
            while first and events[first - 1].kv.mod_revision == last:
                first -= 1
            state.partial = list(events[first:])
            events = events[:first]
        if events and events[0].kv.mod_revision < state.floor:
            # A server that went back in time (etcd before 3.4.25 and 3.5.8) sends them again.
            events = [event for event in events if event.kv.mod_revision >= state.floor]
        if events:
            revision = events[-1].kv.mod_revision
            state.next_revision = state.floor = revision + 1
            self.highest_revision = max(self.highest_revision, revision)
            state.inbox.append(Answer(events, revision, size))
            state.inbox_events += len(events)
            state.inbox_bytes += size
            state.notify()
        elif state.partial:
            state.partial_bytes = size
        return None

    def _leave(self, state: WatchState, phase: Phase) -> None:
        """Cancel a watch at the server, to create it again later."""
        del self._open[state.watch_id]
        self._to_cancel.append(state.watch_id)
        self._close(state, phase)

    def _close(self, state: WatchState, phase: Phase) -> None:
        """It is not at the server any more: until when it was, and what was not whole."""
        if state.phase is Phase.OPEN:
            state.heard_at = self._heard_at
        state.phase = phase
        state.drop_partial()

    def _progress(self, state: WatchState, revision: int) -> None:
        if state in self._asking:  # a watch that starts beyond that has nothing before it
            revision = max(revision, state.floor - 1)
        if state.partial or state.next_revision is None or revision < state.next_revision - 1:
            return
        state.next_revision = state.floor = revision + 1
        self._asking.discard(state)
        # One bookmark says all that the ones before it said.
        if state.inbox and not state.inbox[-1].events:
            state.inbox.pop()
        state.inbox.append(Answer((), revision, 0))
        state.notify()

    def _end(self, state: WatchState, error: EtcdError | None) -> None:
        if state.phase is Phase.ENDED:
            return
        if self._open.get(state.watch_id) is state:  # a proxy's ids begin anew with each stream
            del self._open[state.watch_id]
            self._to_cancel.append(state.watch_id)
        self._watches.discard(state)
        self._suspects.discard(state)
        self._asking.discard(state)
        self._to_create.pop(state, None)
        if self.suspicion is not None and self.suspicion.state is state:
            # The question is about the server: any other may ask it.
            other = next(iter(self._watches), None)
            self.suspicion = None if other is None else Suspicion(other, self.suspicion.revision)
        self._close(state, Phase.ENDED)
        state.error = error
        state.notify()

    def _end_all(self, error: EtcdError) -> None:
        for state in list(self._watches):
            self._end(state, copy(error))


def _refusal(reason: str) -> tuple[EtcdError, Blame]:
    """Make the error for a watch's cancel reason, and say whom that speaks against."""
    code, details = status_of_reason(reason or "cancelled without a reason")
    verdict = verdict_for(code, details)
    error = error_from_status(
        verdict, code=code, details=details, what="Watch", is_write=False, endpoint=None
    )
    return error, verdict.blame
