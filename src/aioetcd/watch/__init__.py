"""Watching keys: etcd's Watch service."""

from __future__ import annotations

from functools import partial

from aioetcd._checks import check_flag, check_int
from aioetcd._constructor import NoPublicConstructor, create
from aioetcd._proto import rpc_pb2
from aioetcd._transport.calls import Calls
from aioetcd.config.timeouts import DEFAULT, Default
from aioetcd.keys import key_range, range_below
from aioetcd.types.store import EventType
from aioetcd.watch._handle import Watch
from aioetcd.watch._state import WatchSpec
from aioetcd.watch._stream import WatchStreams

__all__ = ["Watch", "WatchStreams", "Watcher"]

_FILTERS = {
    None: (),
    EventType.PUT: (rpc_pb2.WatchCreateRequest.NODELETE,),
    EventType.DELETE: (rpc_pb2.WatchCreateRequest.NOPUT,),
}


class Watcher(metaclass=NoPublicConstructor):
    """Makes watches; it is ``client.watch``, which many tasks may call.

    Fifty of its watches share one stream, more of them up to four (and those without
    ``require_leader`` others).

    Example:
        got = await client.kv.get("/config/", prefix=True)
        start = got.header.revision + 1  # what comes after this get: nothing is missed
        async with client.watch("/config/", prefix=True, start_revision=start) as watch:
            await client.kv.put("/config/a", "1")
            event = await anext(watch)
            event.kv.value  # b"1"
    """

    def __init__(self, calls: Calls, streams: WatchStreams) -> None:
        self._calls = calls
        self._streams = streams

    def __call__(
        self,
        key: str | bytes,
        *,
        prefix: bool = False,
        range_end: str | bytes | None = None,
        start_revision: int | None = None,
        prev_kv: bool = False,
        only: EventType | None = None,
        progress_notify: bool = False,
        fragment: bool = False,
        require_leader: bool = True,
        timeout: float | Default | None = DEFAULT,
    ) -> Watch:
        r"""Watch a key, a prefix or a range (RPC ``Watch``). Nothing is sent yet.

        Args:
            key: The key, the prefix, or the first key of the range.
            prefix: Watch all keys that begin with `key`; with ``""`` all keys.
            range_end: The first key after the range; ``"\0"`` means no end.
            start_revision: The first revision to deliver, from 1 on. Without it the watch begins
                with its creation. After a `get`, pass its ``header.revision + 1``: nothing is
                missed.
            prev_kv: Have each event carry the key as it was before, unless that is compacted.
            only: Have the server leave out the other type of event.
            progress_notify: Have the server send a bookmark now and then (every 10 minutes by
                default) while there are no events; `Watch.batches` shows it.
            fragment: Have the server split answers that are larger than about 2 MiB, which bounds
                the memory that one takes: without it a history comes in answers of up to 1000
                revisions. What it had found before it announced the watch it does not split, in
                any version. The server's own time for that grows with the square of the events in
                such an answer, and meanwhile it sends nothing to any other watch of the stream: a
                txn that deletes 100 000 keys takes a minute. So it is for large values, not for
                many events.
            require_leader: Move to another endpoint when the member has lost its leader. Without
                it the watch of a member that is cut off from the others is silent for as long.
            timeout: Seconds until the watch must have been created; None is no limit. Later
                interruptions have none: the watch resumes.

        Raises:
            ValueError: An empty key, both `prefix` and `range_end`, a revision below 1.
            TypeError: An argument of the wrong type.

        Example:
            put = await client.kv.put("/config/a", "1")
            async for event in client.watch("/config/a", start_revision=put.header.revision):
                event.kv.value, event.is_create  # (b"1", True)
                break  # ends the watch
        """
        start, end = range_below(self._calls.prefix, *key_range(key, prefix, range_end))
        # protobuf would refuse them in the stream's task, for all.
        check_flag("prev_kv", prev_kv)
        check_flag("progress_notify", progress_notify)
        check_flag("fragment", fragment)
        check_flag("require_leader", require_leader)
        if only is not None and not isinstance(only, EventType):
            raise TypeError(f"only must be an EventType or None, not {type(only).__name__}")
        filters = _FILTERS[only]
        spec = WatchSpec(
            start, end, prev_kv, progress_notify, fragment, filters, prefix=self._calls.prefix
        )
        if start_revision is not None:
            check_int("start_revision", start_revision, 1, none="from now on")
        return create(
            Watch,
            partial(self._streams.stream, require_leader=require_leader),
            spec,
            start_revision=start_revision,
            timeout=self._calls.resolve_timeout(timeout),
        )
