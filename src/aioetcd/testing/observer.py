"""The oracle: writes down what a store really did, as its members themselves tell it.

It does not rest on the client under test: it reads etcd's own JSON gateway, one connection to each
member, past all proxies.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio

from aioetcd.testing.history import Recorder
from aioetcd.testing.records import EventKind, EventRecord, KeyValueRecord
from aioetcd.testing.server import EtcdServer

_POLL = 0.02


@dataclass(slots=True)
class Observer:
    """What `observe` has seen so far.

    Attributes:
        revision: Everything up to here is recorded.
    """

    revision: int = 0
    _reached: anyio.Event = field(default_factory=anyio.Event)
    _watch: Callable[[EtcdServer], None] = field(default=lambda member: None)

    def add(self, member: EtcdServer) -> None:
        """Watch another member too, as one that has come to the cluster.

        Example:
            async with observe(recorder, cluster.members) as oracle:
                oracle.add(await cluster.replace(0))
        """
        self._watch(member)

    async def wait_for(self, revision: int, *, timeout: float = 20.0) -> None:
        """Wait until everything up to a revision is recorded.

        Raises:
            TimeoutError: It was not within `timeout` seconds.
        """
        with anyio.fail_after(timeout):
            while self.revision < revision:
                await self._reached.wait()

    def reached(self, revision: int) -> None:
        """A member has told everything up to a revision."""
        if revision > self.revision:
            self.revision = revision
            self._reached.set()
            self._reached = anyio.Event()


@asynccontextmanager
async def observe(
    recorder: Recorder, members: Iterable[EtcdServer], *, start_revision: int = 1
) -> AsyncIterator[Observer]:
    """Record every revision of a store while the block runs, as `StoreRevision`.

    Several members of a cluster may be watched: they may be stopped, killed, paused and started
    again, and what one misses another has. Where two tell different histories, `checkers.Oracle`
    refuses them.

        async with observe(recorder, cluster.members) as oracle:
            ...  # faults, and clients whose calls are recorded
            await oracle.wait_for(last_revision)
        assert_clean(check_history(recorder))

    Args:
        recorder: Where to.
        members: Whom to watch.
        start_revision: From where on; what was compacted away before it is seen is missing.
    """
    async with anyio.create_task_group() as tasks:

        def watch(member: EtcdServer) -> None:
            tasks.start_soon(_watch, member, recorder, observer, start_revision)

        observer = Observer(_watch=watch)
        for member in members:
            watch(member)
        yield observer
        tasks.cancel_scope.cancel()


async def _watch(
    member: EtcdServer, recorder: Recorder, observer: Observer, start_revision: int
) -> None:
    """Follow one member for ever, from where it broke off."""
    next_revision = start_revision
    while True:
        body = {
            "create_request": {
                "key": "AA==",
                "range_end": "AA==",
                "start_revision": str(next_revision),
            }
        }
        try:
            async for line in member.gateway_stream("watch", body):
                answer = line.get("result")
                if answer is None:
                    break  # an error of the gateway's: the member is on its way out
                if "canceled" in answer:
                    next_revision = int(answer.get("compact_revision", next_revision))
                    break
                events = [_event(event) for event in answer.get("events", ())]
                recorder.stored(events)
                if events:
                    next_revision = events[-1].kv.mod_revision + 1
                    observer.reached(events[-1].kv.mod_revision)
        except (OSError, RuntimeError):
            pass  # it was stopped, is not there yet, or has no leader who would let it sign in
        await anyio.sleep(_POLL)


def _event(event: dict[str, Any]) -> EventRecord:
    kind, kv = EventKind[event.get("type", "PUT")], _kv(event["kv"])
    is_create = kind is EventKind.PUT and kv.create_revision == kv.mod_revision
    return EventRecord(kind, kv, is_create=is_create)


def _kv(kv: dict[str, str]) -> KeyValueRecord:
    return KeyValueRecord(
        base64.b64decode(kv.get("key", "")),
        base64.b64decode(kv.get("value", "")),
        int(kv.get("create_revision", 0)),
        int(kv.get("mod_revision", 0)),
        int(kv.get("version", 0)),
        int(kv.get("lease", 0)) or None,
    )
