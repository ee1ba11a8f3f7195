"""A server's side of a watch stream, and what a watch should get: small enough to be read."""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field

from aioetcd._proto import kv_pb2, rpc_pb2
from aioetcd.errors import EtcdError
from aioetcd.types.store import Event
from aioetcd.watch import _rules, _state
from aioetcd.watch._state import Phase, WatchSpec, WatchState

KEYS = (b"a", b"b", b"c")
# A watch of it has the server end the whole stream for good.
POISON = b"poison"


@dataclass(frozen=True)
class Wanted:
    """What a watch is to be told."""

    key: bytes | None  # None: all keys
    puts: bool
    deletes: bool


@dataclass
class Store:
    """The history: for each revision its events, as (type, key)."""

    cluster_id: int = 7
    revisions: list[list[tuple[int, bytes]]] = field(default_factory=list)
    compacted: int = 0

    @property
    def revision(self) -> int:
        """The last revision; the first write makes 2, as in etcd."""
        return len(self.revisions) + 1

    def write(self, changes: list[tuple[int, bytes]]) -> None:
        """Apply a txn, each key once."""
        self.revisions.append(list({key: (kind, key) for kind, key in changes}.values()))

    def restored(self, revision: int) -> Store:
        """Give what a backup from a revision is restored to."""
        return Store(self.cluster_id, self.revisions[: revision - 1], min(self.compacted, revision))

    def events(self, wanted: Wanted, first: int, last: int) -> list[tuple[int, int, bytes]]:
        """Give what a watch is to be told of some revisions, as (revision, type, key)."""
        return [
            (revision, kind, key)
            for revision in range(max(first, 2), min(last, self.revision) + 1)
            for kind, key in self.revisions[revision - 2]
            if wanted.key in (None, key) and (wanted.deletes if kind else wanted.puts)
        ]


def message(kind: int, key: bytes, revision: int) -> kv_pb2.Event:
    """Make the protobuf event; its value is most of its size."""
    kv = kv_pb2.KeyValue(key=key, mod_revision=revision)
    if not kind:
        kv.create_revision, kv.version, kv.value = revision, 1, b"%0200d" % revision
    return kv_pb2.Event(type=kind, kv=kv)  # type: ignore[arg-type]  # 0 and 1 are PUT and DELETE


def size_of(event: Event | kv_pb2.Event) -> int:
    """Give what an event takes in memory, at least."""
    return len(event.kv.key) + len(event.kv.value) + _rules._EVENT_OVERHEAD


class Version(enum.Enum):
    """Which etcd it is: see "server-version traps"."""

    NEW = "reads the revision of `created` a moment after the watch has begun"
    MIDDLE = "before 3.4.38, 3.5.22, 3.6.2: may send a watch what is older than its start"
    OLD = "before 3.4.25, 3.5.8: also announces progress beyond events that it has yet to send"


@dataclass
class Watcher:
    """A watch as the server knows it.

    Attributes:
        wanted: What it is to be told.
        asked_id: The id that the client asked for.
        start_revision: Where the client wanted it to begin; 0 for "from now on".
        first: The revision where it did begin.
        next_revision: The first that was not sent. It is synced when that is in the future.
    """

    wanted: Wanted
    asked_id: int
    start_revision: int
    first: int
    next_revision: int


@dataclass
class ServerStream:
    """One stream: requests are handled in order, the answers come by two ways.

    Answers to creations and cancellations go one way, all else the other, and what is sent next is
    taken from either. What a watch is told waits until the answer to its creation was sent.

    Attributes:
        version: Which etcd it is.
        is_proxy: etcd's grpc-proxy is between: it gives ids of its own, from 0, answers creations
            in any order and requests for progress never.
        lag: How many revisions the member is behind.
        refusal_id: The id in the answer to a refused creation: newer servers give -1, older ones
            its own (None), some, by a bug, 0.
        watchers: Those there are, by their ids.
        created: All that ever were.
        refused: The ids that were asked for by those it refused.
        is_poisoned: It ends the stream for good, and does nothing more.
    """

    store: Store
    version: Version = Version.NEW
    is_proxy: bool = False
    lag: int = 0
    refusal_id: int | None = -1
    refuse_next: bool = False
    requests: deque[rpc_pb2.WatchRequest] = field(default_factory=deque)
    watchers: dict[int, Watcher] = field(default_factory=dict)
    created: dict[int, Watcher] = field(default_factory=dict)
    refused: list[int] = field(default_factory=list)
    is_poisoned: bool = False
    _control: list[rpc_pb2.WatchResponse] = field(default_factory=list)
    _data: deque[list[rpc_pb2.WatchResponse]] = field(default_factory=deque)
    _announced: set[int] = field(default_factory=set)
    _pending: dict[int, list[rpc_pb2.WatchResponse]] = field(default_factory=dict)
    _wire: deque[rpc_pb2.WatchResponse] = field(default_factory=deque)

    @property
    def revision(self) -> int:
        """The revision that the member has come to."""
        return max(1, self.store.revision - self.lag)

    def _response(
        self, watch_id: int, *, revision: int | None = None, **fields: object
    ) -> rpc_pb2.WatchResponse:
        header = rpc_pb2.ResponseHeader(
            cluster_id=self.store.cluster_id,
            member_id=1,
            revision=self.revision if revision is None else revision,
        )
        return rpc_pb2.WatchResponse(header=header, watch_id=watch_id, **fields)  # type: ignore[arg-type]  # as the callers below have it

    # What comes in.

    def serve(self, *, late_writes: int = 0) -> bool:
        """Handle one request; False where there is none."""
        if not self.requests or self.is_poisoned:
            return False
        request = self.requests.popleft()
        match request.WhichOneof("request_union"):
            case "create_request":
                self._create(request.create_request, late_writes)
            case "cancel_request":
                watch_id = request.cancel_request.watch_id
                if self.watchers.pop(watch_id, None) is not None:
                    self._control.append(self._response(watch_id, canceled=True))
            case _:
                if self.tells_progress:
                    self._data.append([self._response(-1)])
        return True

    def _create(self, create: rpc_pb2.WatchCreateRequest, late_writes: int) -> None:
        if create.key == POISON:
            self.is_poisoned = True
            return
        is_empty = create.range_end not in (b"", b"\0") and create.key >= create.range_end
        if is_empty or self.refuse_next:
            self.refuse_next &= is_empty
            self.refused.append(create.watch_id)
            refusal_id = create.watch_id if self.refusal_id is None else self.refusal_id
            self._control.append(
                self._response(
                    -1 if self.is_proxy else refusal_id,
                    created=True,
                    canceled=True,
                    cancel_reason="etcdserver: permission denied",
                )
            )
            return
        watch_id = len(self.created) if self.is_proxy else create.watch_id
        assert watch_id not in self.created, "an id was used twice"
        first = create.start_revision or self.revision + 1
        if self.version is Version.NEW:
            for _ in range(late_writes):
                self.store.write([(0, KEYS[0])])
        wanted = Wanted(
            None if create.range_end else create.key,
            rpc_pb2.WatchCreateRequest.NOPUT not in create.filters,
            rpc_pb2.WatchCreateRequest.NODELETE not in create.filters,
        )
        watcher = Watcher(wanted, create.watch_id, create.start_revision, first, first)
        self.watchers[watch_id] = self.created[watch_id] = watcher
        self._control.append(self._response(watch_id, created=True))

    @property
    def tells_progress(self) -> bool:
        """Whether it answers a request for progress now."""
        told = self.version is Version.OLD or all(map(self._is_synced, self.watchers.values()))
        return bool(self.watchers) and told and not self.is_proxy

    def _is_synced(self, watcher: Watcher) -> bool:
        if self.version is Version.NEW and watcher.start_revision > self.revision:
            return False
        return watcher.next_revision > self.revision

    # What it sends of itself. `which` chooses a watch.

    def send_events(self, which: int, *, most: int, fragment_size: int, older: int = 0) -> None:
        """Send a watch what it lacks, up to `most` revisions, in fragments of so many events.

        A server that is not new begins so many revisions before that.
        """
        if not self.watchers:
            return
        watch_id = sorted(self.watchers)[which % len(self.watchers)]
        watcher = self.watchers[watch_id]
        if watcher.next_revision < self.store.compacted <= self.revision:
            del self.watchers[watch_id]
            self._data.append(
                [
                    self._response(
                        watch_id,
                        revision=0,
                        canceled=True,
                        compact_revision=self.store.compacted,
                    )
                ]
            )
            return
        first = watcher.next_revision
        last = min(self.revision, watcher.next_revision + most - 1)
        if older and self.version is not Version.NEW:
            first = min(first, self.revision + 1) - older
            if not watcher.start_revision:
                first = max(first, watcher.first)
        watcher.next_revision = max(watcher.next_revision, last + 1)
        events = [
            message(kind, key, revision)
            for revision, kind, key in self.store.events(watcher.wanted, first, last)
        ]
        if events:
            self._data.append(
                [
                    self._response(
                        watch_id,
                        events=events[at : at + fragment_size],
                        fragment=at + fragment_size < len(events),
                    )
                    for at in range(0, len(events), fragment_size)
                ]
            )

    def send_progress(self, which: int) -> None:
        """Send a watch a periodic notification, if it has everything."""
        if not self.watchers:
            return
        watch_id = sorted(self.watchers)[which % len(self.watchers)]
        if self._is_synced(self.watchers[watch_id]):
            self._data.append([self._response(watch_id)])

    # What goes out.

    def read(self, choice: int) -> rpc_pb2.WatchResponse | None:
        """Give the next answer; `choice` decides what is taken first."""
        while not self._wire:
            if self._data and (choice & 1 or not self._control):
                fragments = self._data.popleft()
                watch_id = fragments[0].watch_id
                if watch_id == -1 or watch_id in self._announced:
                    self._wire += fragments
                else:
                    self._pending.setdefault(watch_id, []).extend(fragments)
            elif self._control:
                answer = self._control.pop((choice >> 1) % len(self._control) * self.is_proxy)
                self._wire.append(answer)
                if answer.canceled:
                    self._announced.discard(answer.watch_id)
                    self._pending.pop(answer.watch_id, None)
                else:
                    self._announced.add(answer.watch_id)
                    self._wire += self._pending.pop(answer.watch_id, [])
            else:
                return None
        return self._wire.popleft()


class Followed:
    """A watch, what its consumer took, and what it should have got."""

    def __init__(
        self, store: Store, key: bytes | None, start: int | None, filters: tuple[int, ...]
    ) -> None:
        spec = WatchSpec(
            key or b"\0",
            b"" if key else b"\0",
            filters=filters,  # type: ignore[arg-type]  # plain ints are what the enum holds
        )
        self.state = WatchState(spec, start, lambda: None)
        self.store = store
        self.start = start
        self.wanted = Wanted(
            key,
            rpc_pb2.WatchCreateRequest.NOPUT not in filters,
            rpc_pb2.WatchCreateRequest.NODELETE not in filters,
        )
        # The first revision that is to be delivered: "from now on" is what the server made of it.
        self.first = start
        self.created_at: int | None = None
        self.taken: list[tuple[int, int, bytes]] = []
        self.bookmark = 0
        self.last_of_batch = 0
        # Bytes in answers with its events; in batches that it took; and at least in those events.
        self.bytes_received = self.bytes_taken = self.bytes_needed = 0
        # Whether the stream ended for good while it was being created, and nothing answered since.
        self.is_suspect = False
        # The types of what it may end with (besides a compaction), and what it did end with.
        self.ends: set[type] = set()
        self.end: tuple[EtcdError | None, int] | None = None

    @property
    def live(self) -> bool:
        return self.state.phase is not Phase.ENDED

    @property
    def position(self) -> int:
        """The last revision that it would not be told any more."""
        return max(self.bookmark, self.created_at or 0 if self.start is None else 0)

    def creation_sent(self) -> None:
        if self.start is None and self.created_at and not self.bookmark and not self.state.inbox:
            # Where it began is forgotten: nobody but the server knew whether that was a moment
            # before the revision that it told.
            self.first = self.created_at + 1

    def creation_answered(self, watcher: Watcher, revision: int) -> None:
        if self.created_at is None:
            self.created_at = revision
            if self.start is None:
                self.first = watcher.first

    def expected(self, last: int) -> list[tuple[int, int, bytes]]:
        return [] if self.first is None else self.store.events(self.wanted, self.first, last)

    def check(self) -> None:
        """Check what holds at any time."""
        state = self.state
        sizes = sum(answer.size for answer in state.inbox)
        if not self.live:
            if self.end is None:
                self.end = state.error, len(state.inbox)
            assert self.end[0] is state.error, "it ended twice"
            assert self.end[1] >= len(state.inbox), "a batch after the end"
            return
        assert len(state.partial) <= 8
        held = sum(answer.left for answer in state.inbox)
        assert held == state.inbox_events
        # One answer more than the limit, and a model's answer holds twenty events at most.
        assert held < _state.INBOX_EVENTS + 20
        assert sizes == state.inbox_bytes
        needed = self.bytes_needed + sum(
            size_of(event) for answer in state.inbox for event in answer.events[answer.taken :]
        )
        assert needed <= self.bytes_taken + sizes <= self.bytes_received, "bytes are miscounted"
