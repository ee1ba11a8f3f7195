"""Clients that watch during a stress run, with everything that can be asked for."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Sequence

from aioetcd import ClientClosedError, CompactedError, Event, EventType, Watch
from aioetcd.testing.checkers import Violation
from aioetcd.testing.history import EventKind, Subscription
from tests.stress.shared import Party, Run, only_if_closed
from tests.stress.traffic import KEYS, PREFIX, PREFIX_END

MOMENT = 10
"""So many revisions a server may make between the begin of a watch and the reading of its start."""


async def _events(watch: Watch) -> AsyncGenerator[tuple[int, Sequence[Event]], None]:
    """Loop over single events, and give those of one revision together."""
    gathered: list[Event] = []
    async for event in watch:
        gathered.append(event)
        # Its revision is handed over when this event was the last of it.
        if watch.revision >= event.kv.mod_revision:
            yield event.kv.mod_revision, gathered
            gathered = []


async def _batches(watch: Watch) -> AsyncGenerator[tuple[int, Sequence[Event]], None]:
    async for batch in watch.batches():
        yield batch.revision, batch.events


async def watcher(run: Run, party: Party, name: str) -> None:
    """Watches with everything that can be asked for, closed and resumed now and then."""
    chance = run.chance(name)
    start, number = None, 0
    while not run.stopping:
        number += 1
        watch_name = f"{name}.{number}"
        only = chance.choice((None, None, EventType.PUT, EventType.DELETE))
        key, range_end = chance.choice(
            ((PREFIX, PREFIX_END), (PREFIX, PREFIX_END), (KEYS[0], None))
        )
        previous = chance.random() < 0.5
        kind = None if only is None else EventKind[only.name]
        client = party.client
        watch = client.watch(
            key,
            range_end=range_end,
            start_revision=start,
            only=only,
            prev_kv=previous,
            progress_notify=chance.random() < 0.5,
            timeout=None,
        )
        is_slow = chance.random() < 0.5
        until = time.monotonic() + chance.choice((3, 10, 40)) * chance.uniform(0.5, 1)
        deliver = _batches if chance.random() < 0.5 else _events
        try:
            async with watch:
                first = watch.revision + 1
                subscribed = start is not None
                if start is not None:
                    run.recorder.add(
                        Subscription(watch_name, key, start, range_end, kind, previous)
                    )
                run.last_seen[watch_name] = watch.revision
                run.only[watch_name] = only
                stream = deliver(watch)
                # A slow one sees the end when it looks.
                inside = contextlib.nullcontext() if is_slow else run.inside(watch_name, client)
                with inside:
                    async with contextlib.aclosing(stream):
                        async for revision, events in stream:
                            if not subscribed:
                                if events:
                                    # One that begins "now" may begin a moment before it knows.
                                    earliest = events[0].kv.mod_revision
                                    if first - MOMENT <= earliest < first:
                                        first = earliest
                                subscribed = True
                                run.recorder.add(
                                    Subscription(watch_name, key, first, range_end, kind, previous)
                                )
                            run.recorder.delivered(watch_name, revision, events)
                            run.counts["watch events"] += len(events)
                            run.last_seen[watch_name] = revision
                            if is_slow:
                                run.counts["slow consumers"] += not run.consuming.is_set()
                                await run.consuming.wait()
                            if time.monotonic() > until and not run.stopping:
                                break
                start = watch.revision + 1 if chance.random() < 0.8 else None
                run.counts["watches closed"] += 1
        except CompactedError as error:
            run.counts["watches compacted"] += 1
            if (error.compact_revision or 0) <= watch.revision + 1:
                text = f"{watch_name} at {watch.revision}: {error}"
                run.violations.append(Violation("watch compacted", text))
            start = None
        except ClientClosedError as error:
            only_if_closed(run, party, client, error)
            run.counts["watches closed with their client"] += 1
            if watch_name in run.last_seen:
                start = watch.revision + 1
        finally:
            run.last_seen.pop(watch_name, None)
            if not run.settled:
                run.recorder.ended(watch_name)
