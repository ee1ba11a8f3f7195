"""One watch, without I/O: what it watches, and where it stands.

What holds at any moment:

- All its events below ``floor`` went into its inbox, each once and in order of revision; none
  from ``floor`` on did. A batch in the inbox holds whole revisions.
- ``next_revision`` is where it starts when it is created (again) at a server: ``floor``, once
  anything was received; before that what the user asked for, or None for "from now on". The
  server may be asked to start earlier: what then comes from below ``floor`` is dropped.
- It has an id on the stream only while it is being created or open there.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from aioetcd import _decode
from aioetcd._proto import kv_pb2, rpc_pb2
from aioetcd.errors import EtcdError
from aioetcd.types.store import Batch

# A watch whose consumer has so much before it is paused at the server.
INBOX_EVENTS = 20_000
INBOX_BYTES = 16 * 2**20
# A batch has so many events, and what else its last revision has. One answer of the server may have
# hundreds of thousands: copied at once, they would take the event loop away from everybody else.
_BATCH_EVENTS = 250


class WatchSpec:
    """What to watch.

    Attributes:
        key: The key, or the first one of the range.
        range_end: The first key after the range; ``b""`` for the key alone.
        prev_kv: Whether events carry the key as it was before.
        progress_notify: Whether the server sends bookmarks.
        fragment: Whether it splits large answers.
        filters: What it leaves out.
        prefix: What users do not see of the keys.
    """

    __slots__ = ("filters", "fragment", "key", "prefix", "prev_kv", "progress_notify", "range_end")

    def __init__(
        self,
        key: bytes,
        range_end: bytes = b"",
        prev_kv: bool = False,
        progress_notify: bool = False,
        fragment: bool = False,
        filters: tuple[rpc_pb2.WatchCreateRequest.FilterType.ValueType, ...] = (),
        prefix: bytes = b"",
    ) -> None:
        self.key: bytes = key
        self.range_end: bytes = range_end
        self.prev_kv: bool = prev_kv
        self.progress_notify: bool = progress_notify
        self.fragment: bool = fragment
        self.filters: tuple[rpc_pb2.WatchCreateRequest.FilterType.ValueType, ...] = filters
        self.prefix: bytes = prefix

    @property
    def shown(self) -> bytes:
        """The key as the user knows it."""
        return self.key[len(self.prefix) :]

    def to_message(self, watch_id: int, start_revision: int | None) -> rpc_pb2.WatchRequest:
        """Give the request that creates it."""
        create = rpc_pb2.WatchCreateRequest(
            key=self.key,
            range_end=self.range_end,
            watch_id=watch_id,
            fragment=self.fragment,
            prev_kv=self.prev_kv,
            progress_notify=self.progress_notify,
            filters=self.filters,
        )
        if start_revision is not None:
            create.start_revision = start_revision
        return rpc_pb2.WatchRequest(create_request=create)


class Phase(enum.Enum):
    """Where a watch stands."""

    WAITING = "to be created"
    CREATING = "creation sent"
    OPEN = "created"
    PAUSED = "cancelled at the server until the consumer catches up"
    ENDED = "ended"


class Answer:
    """Whole revisions for the consumer, as the server sent them.

    Attributes:
        events: Their events; none in a bookmark.
        revision: All events up to it are in this answer or came before.
        size: The bytes that it takes.
        taken: How many of the events the consumer has.
    """

    __slots__ = ("events", "revision", "size", "taken")

    def __init__(self, events: Sequence[kv_pb2.Event], revision: int, size: int) -> None:
        self.events = events
        self.revision = revision
        self.size = size
        self.taken = 0

    @property
    def left(self) -> int:
        """How many of the events are to be taken."""
        return len(self.events) - self.taken

    def take(self, spec: WatchSpec) -> Batch:
        """Copy the next batch out of the messages."""
        start, end = self.taken, len(self.events)
        stop = min(start + _BATCH_EVENTS, end)
        if stop < end:
            last = self.events[stop - 1].kv.mod_revision
            while stop < end and self.events[stop].kv.mod_revision == last:
                stop += 1
        self.taken = stop
        taken = self.events[start:stop]
        if spec.prefix:
            _strip(taken, len(spec.prefix))
        events = _decode.events(taken, prev_kv=spec.prev_kv)
        return Batch(events, self.revision if stop == end else events[-1].mod_revision)


def _strip(events: Iterable[kv_pb2.Event], prefix: int) -> None:
    for event in events:
        event.kv.key = event.kv.key[prefix:]
        if event.HasField("prev_kv"):
            event.prev_kv.key = event.prev_kv.key[prefix:]


class WatchState:
    """One watch.

    Attributes:
        spec: What it watches.
        next_revision: Where it starts when it is created; None for "from now on".
        notify: Called when there is something for the consumer to see.
        phase: Where it stands.
        floor: Everything below it is in the inbox, or was.
        created_revision: The store's revision when it was first created, or None before that.
        heard_at: When the stream spoke last before the watch was open no more; None before that.
        error: Why it ended; None where the user ended it.
        watch_id: Its id on the stream.
        start_revision: What the server was asked to start with; 0 for "from now on".
        opened_revision: The store's revision when it was last created.
        asked_before: The requests for progress that the stream had seen by then.
        partial: Events of a revision that may have more to come.
        partial_bytes: The bytes in them.
        inbox: What the consumer has still to take.
        inbox_events: The events in it.
        inbox_bytes: The bytes in it.
        was_denied: Whether permission was denied, and no other token was tried since.
    """

    __slots__ = (
        "asked_before",
        "created_revision",
        "error",
        "floor",
        "heard_at",
        "inbox",
        "inbox_bytes",
        "inbox_events",
        "next_revision",
        "notify",
        "opened_revision",
        "partial",
        "partial_bytes",
        "phase",
        "spec",
        "start_revision",
        "was_denied",
        "watch_id",
    )

    def __init__(
        self,
        spec: WatchSpec,
        next_revision: int | None,
        notify: Callable[[], None],
        *,
        phase: Phase = Phase.WAITING,
    ) -> None:
        self.spec: WatchSpec = spec
        self.next_revision: int | None = next_revision
        self.notify: Callable[[], None] = notify
        self.phase: Phase = phase
        self.floor: int = 0
        self.created_revision: int | None = None
        self.heard_at: float | None = None
        self.error: EtcdError | None = None
        self.watch_id: int = 0
        self.start_revision: int = 0
        self.opened_revision: int = 0
        self.asked_before: int = 0
        self.partial: list[kv_pb2.Event] = []
        self.partial_bytes: int = 0
        self.inbox: deque[Answer] = deque()
        self.inbox_events: int = 0
        self.inbox_bytes: int = 0
        self.was_denied: bool = False

    @property
    def is_full(self) -> bool:
        """Whether the consumer has enough before it."""
        return self.inbox_events >= INBOX_EVENTS or self.inbox_bytes >= INBOX_BYTES

    @property
    def is_drained(self) -> bool:
        """Whether a paused watch may go on."""
        return self.inbox_events <= INBOX_EVENTS // 2 and self.inbox_bytes <= INBOX_BYTES // 2

    def drop_partial(self) -> None:
        """Forget what was not whole: it comes again."""
        self.partial.clear()
        self.partial_bytes = 0
