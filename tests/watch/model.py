"""A server's side of a watch stream, small enough to be right by reading it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from aioetcd._proto import kv_pb2, rpc_pb2

CLUSTER_ID = 7
KEYS = (b"a", b"b", b"c")


@dataclass
class Watcher:
    """A watch as the server knows it: `next_revision` is the first that was not sent."""

    key: bytes | None  # None: all keys
    next_revision: int
    wants_put: bool
    wants_delete: bool


@dataclass
class Store:
    """The history: for each revision its events, as (type, key)."""

    revisions: list[list[tuple[int, bytes]]] = field(default_factory=list)
    compacted: int = 0

    @property
    def revision(self) -> int:
        """The last revision; the first write makes 2, as in etcd."""
        return len(self.revisions) + 1

    def write(self, changes: list[tuple[int, bytes]]) -> None:
        """Apply a txn, each key once."""
        self.revisions.append(list({key: (kind, key) for kind, key in changes}.values()))

    def events(self, revision: int) -> list[tuple[int, bytes]]:
        """Give what happened at a revision."""
        index = revision - 2
        return self.revisions[index] if 0 <= index < len(self.revisions) else []

    def wanted(self, watcher: Watcher, revision: int) -> list[tuple[int, bytes]]:
        """Give what a watch wants of a revision."""
        return [
            (kind, key)
            for kind, key in self.events(revision)
            if watcher.key in (None, key) and (watcher.wants_delete if kind else watcher.wants_put)
        ]


def message(kind: int, key: bytes, revision: int) -> kv_pb2.Event:
    """Make the protobuf event."""
    kv = kv_pb2.KeyValue(key=key, mod_revision=revision)
    if not kind:
        kv.create_revision, kv.version, kv.value = revision, 1, b"%d" % revision
    return kv_pb2.Event(type=kind, kv=kv)  # type: ignore[arg-type]  # 0 and 1 are PUT and DELETE


@dataclass
class ServerStream:
    """One stream: requests go in, in order; answers come out, in order."""

    store: Store
    requests: deque[rpc_pb2.WatchRequest] = field(default_factory=deque)
    answers: deque[rpc_pb2.WatchResponse] = field(default_factory=deque)
    watchers: dict[int, Watcher] = field(default_factory=dict)
    # Ids that newer (-1), older (its own) and buggy (0) servers give a refused creation.
    refusal_id: int | None = -1
    refuse_next: bool = False
    # Newer servers read the revision of `created` a moment after the watch has begun.
    late_created: bool = False

    def header(self, revision: int | None = None) -> rpc_pb2.ResponseHeader:
        """Make a header with the store's revision."""
        return rpc_pb2.ResponseHeader(
            cluster_id=CLUSTER_ID,
            member_id=1,
            revision=self.store.revision if revision is None else revision,
        )

    def serve(self, extra_write: bool) -> None:
        """Handle one request."""
        if not self.requests:
            return
        request = self.requests.popleft()
        match request.WhichOneof("request_union"):
            case "create_request":
                self._create(request.create_request, extra_write)
            case "cancel_request":
                watch_id = request.cancel_request.watch_id
                if self.watchers.pop(watch_id, None) is not None:
                    self.answers.append(
                        rpc_pb2.WatchResponse(
                            header=self.header(), watch_id=watch_id, canceled=True
                        )
                    )
            case _:
                if all(w.next_revision > self.store.revision for w in self.watchers.values()):
                    self.answers.append(rpc_pb2.WatchResponse(header=self.header(), watch_id=-1))

    def _create(self, create: rpc_pb2.WatchCreateRequest, extra_write: bool) -> None:
        if self.refuse_next:
            self.refuse_next = False
            refused = create.watch_id if self.refusal_id is None else self.refusal_id
            self.answers.append(
                rpc_pb2.WatchResponse(
                    header=self.header(),
                    watch_id=refused,
                    created=True,
                    canceled=True,
                    cancel_reason="etcdserver: permission denied",
                )
            )
            return
        assert create.watch_id not in self.watchers, "an id was used twice"
        start = create.start_revision or self.store.revision + 1
        if extra_write and self.late_created:
            self.store.write([(0, KEYS[0])])
        filters = set(create.filters)
        self.watchers[create.watch_id] = Watcher(
            None if create.range_end else create.key,
            start,
            rpc_pb2.WatchCreateRequest.NOPUT not in filters,
            rpc_pb2.WatchCreateRequest.NODELETE not in filters,
        )
        self.answers.append(
            rpc_pb2.WatchResponse(header=self.header(), watch_id=create.watch_id, created=True)
        )

    def send_events(self, which: int, most: int, fragment_size: int) -> None:
        """Send a watch what it lacks, up to `most` revisions, in fragments of so many events."""
        if not self.watchers:
            return
        watch_id = sorted(self.watchers)[which % len(self.watchers)]
        watcher = self.watchers[watch_id]
        if watcher.next_revision < self.store.compacted:
            del self.watchers[watch_id]
            self.answers.append(
                rpc_pb2.WatchResponse(
                    header=self.header(0),
                    watch_id=watch_id,
                    canceled=True,
                    compact_revision=self.store.compacted,
                )
            )
            return
        last = min(self.store.revision, watcher.next_revision + most - 1)
        events = [
            message(kind, key, revision)
            for revision in range(watcher.next_revision, last + 1)
            for kind, key in self.store.wanted(watcher, revision)
        ]
        watcher.next_revision = max(watcher.next_revision, last + 1)
        for at in range(0, len(events), fragment_size):
            self.answers.append(
                rpc_pb2.WatchResponse(
                    header=self.header(),
                    watch_id=watch_id,
                    events=events[at : at + fragment_size],
                    fragment=at + fragment_size < len(events),
                )
            )

    def send_progress(self, which: int) -> None:
        """Send a watch that has everything a periodic notification."""
        if not self.watchers:
            return
        watch_id = sorted(self.watchers)[which % len(self.watchers)]
        if self.watchers[watch_id].next_revision > self.store.revision:
            self.answers.append(rpc_pb2.WatchResponse(header=self.header(), watch_id=watch_id))
