"""What clients do during a stress run, all of it written down."""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Literal

import anyio

from aioetcd import (
    Client,
    ClientClosedError,
    CompactedError,
    Compare,
    DeleteResponse,
    EtcdError,
    Event,
    EventType,
    LeaseLostError,
    LockLostError,
    LockTimeoutError,
    Op,
    Session,
    Watch,
)
from aioetcd.testing.checkers import Violation
from aioetcd.testing.history import (
    Comparison,
    Delete,
    EventKind,
    Get,
    GuardedTxn,
    LeaseSignal,
    LockHold,
    Put,
    Recorder,
    Subscription,
    Txn,
)

KEYS = [f"k/{number}".encode() for number in range(12)]
PREFIX, PREFIX_END = b"k/", b"k0"
MOMENT = 10
"""So many revisions a server may make between the begin of a watch and the reading of its start."""


class Run:
    """What all actors of a run share.

    Attributes:
        recorder: The history.
        seed: Decides what the actors do, but not when.
        stopping: Set when no actor shall begin anything new.
        consuming: Slow consumers wait for it; cleared while that fault lasts.
        counts: What happened, for the report.
        violations: What an actor itself saw going wrong.
        last_seen: Up to which revision each watch that is open has handed over.
        only: The events that each watch that is open asked for.
        revision: The greatest revision that anybody was told.
    """

    def __init__(self, seed: int) -> None:
        self.recorder = Recorder()
        self.seed = seed
        self.stopping = False
        self.consuming = anyio.Event()
        self.consuming.set()
        self.counts: Counter[str] = Counter()
        self.violations: list[Violation] = []
        self.last_seen: dict[str, int] = {}
        self.only: dict[str, EventType | None] = {}
        self.revision = 1
        self._values = 0

    def chance(self, actor: str) -> random.Random:
        """Give an actor's own dice."""
        return random.Random(f"{self.seed} {actor}")

    def value(self) -> bytes:
        """Give a value that nobody else puts."""
        self._values += 1
        return f"v{self._values}".encode()

    def saw(self, revision: int) -> int:
        """Remember a revision that somebody was told."""
        self.revision = max(self.revision, revision)
        return revision


Actor = Callable[[Run, Client, str], Coroutine[Any, Any, None]]


@asynccontextmanager
async def _tried(run: Run, chance: random.Random) -> AsyncIterator[None]:
    """Let a call fail, and cancel some of them at a random moment."""
    patience = chance.uniform(0, 0.02) if chance.random() < 0.03 else None
    with anyio.move_on_after(patience) as scope:
        try:
            yield
        except ClientClosedError:
            raise
        except EtcdError as error:
            run.counts[f"error {type(error).__name__}"] += 1
            await anyio.sleep(0.02)
    run.counts["cancelled calls"] += scope.cancelled_caught


# -- writing and reading ---------------------------------------------------------------------


async def put(run: Run, client: Client, name: str, key: bytes, lease: int | None = None) -> None:
    """Put a new value."""
    value = run.value()
    with run.recorder.call(name, Put(key, value)) as call:
        answer = await client.kv.put(key, value, lease=lease)
        call.ok(run.saw(answer.header.revision))


async def _delete(run: Run, client: Client, name: str, key: bytes) -> None:
    with run.recorder.call(name, Delete(key)) as call:
        answer = await client.kv.delete(key)
        call.ok(run.saw(answer.header.revision), deleted=answer.deleted)


async def _swap(run: Run, client: Client, name: str, chance: random.Random) -> None:
    """Change two keys if one is as it was read; else delete or put another one."""
    key, other = chance.sample(KEYS, 2)
    kv = (await client.kv.get(key)).kv
    revision = 0 if kv is None else kv.mod_revision
    one, two, three = run.value(), run.value(), run.value()
    fallback = Delete(other) if chance.random() < 0.5 else Put(other, three)
    request = Txn(
        (Comparison(key, "mod_revision", "==", revision),),
        (Put(key, one), Put(other, two)),
        (fallback,),
    )
    with run.recorder.call(name, request) as call:
        answer = await client.kv.txn(
            compare=[Compare.mod_revision(key) == revision],
            success=[Op.put(key, one), Op.put(other, two)],
            failure=[Op.delete(other) if isinstance(fallback, Delete) else Op.put(other, three)],
        )
        deletes = [r.deleted for r in answer.responses if isinstance(r, DeleteResponse)]
        call.ok(
            run.saw(answer.header.revision),
            succeeded=answer.succeeded,
            deleted=sum(deletes) if deletes else None,
        )


async def writer(run: Run, client: Client, name: str) -> None:
    """Puts, deletes and transactions."""
    chance = run.chance(name)
    while not run.stopping:
        async with _tried(run, chance):
            match chance.choices(("put", "delete", "swap"), (6, 1, 2))[0]:
                case "put":
                    await put(run, client, name, chance.choice(KEYS))
                case "delete":
                    await _delete(run, client, name, chance.choice(KEYS))
                case _:
                    await _swap(run, client, name, chance)
        await anyio.sleep(chance.uniform(0, 0.04))


async def reader(run: Run, client: Client, name: str) -> None:
    """Linearizable, serializable and historical reads of keys and ranges."""
    chance = run.chance(name)
    while not run.stopping:
        is_single = chance.random() < 0.5
        request = Get(
            chance.choice(KEYS) if is_single else PREFIX,
            None if is_single else PREFIX_END,
            revision=max(1, run.revision - chance.randrange(50)) if chance.random() < 0.2 else None,
            limit=chance.choice((None, None, 3)),
            serializable=chance.random() < 0.4,
        )
        async with _tried(run, chance):
            with run.recorder.call(name, request) as call:
                answer = await client.kv.get(
                    request.key,
                    range_end=request.range_end,
                    revision=request.revision,
                    limit=request.limit,
                    serializable=request.serializable,
                )
                call.ok(run.saw(answer.header.revision), kvs=answer.kvs)
        await anyio.sleep(chance.uniform(0, 0.06))


# -- watching --------------------------------------------------------------------------------


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


async def watcher(run: Run, client: Client, name: str) -> None:
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
                subscribed = False
                run.last_seen[watch_name] = watch.revision
                run.only[watch_name] = only
                stream = deliver(watch)
                async with contextlib.aclosing(stream):
                    async for revision, events in stream:
                        if not subscribed:
                            if start is None and events:
                                # One that begins "now" may begin a moment before it knows.
                                earliest = events[0].kv.mod_revision
                                if first - MOMENT <= earliest < first:
                                    first = earliest
                            subscribed = True
                            kind = None if only is None else EventKind[only.name]
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
        except ClientClosedError:
            return
        finally:
            run.last_seen.pop(watch_name, None)


# -- leases and locks ------------------------------------------------------------------------


async def holder(run: Run, client: Client, name: str) -> None:
    """Sessions, each with a key by which the store shows that the lease is gone."""
    chance = run.chance(name)
    while not run.stopping:
        session = client.session(ttl=chance.choice((1, 2, 3)))
        end: LeaseSignal | None = None
        try:
            async with session:
                try:
                    with contextlib.suppress(EtcdError):
                        await put(run, client, name, _lease_key(session.lease_id), session.lease_id)
                    await anyio.sleep(chance.choice((0.5, 5)) * chance.uniform(0.2, 1))
                finally:
                    end = _end(session)
        except LeaseLostError as error:
            if end is not None and end.kind == "lost":
                end = replace(end, reason=error.reason)
            run.counts["sessions lost"] += 1
        except ClientClosedError:
            return
        except EtcdError:
            run.counts["sessions not granted"] += 1
        else:
            run.counts["sessions"] += 1
        finally:
            # Without a body nobody used the lease: whatever becomes of it, nobody must be told.
            unused = LeaseSignal(session.lease_id, "revoked", time.monotonic_ns())
            run.recorder.add(end or unused)


def _lease_key(lease_id: int) -> bytes:
    return f"s/{lease_id}".encode()


def lease_of(key: bytes) -> int | None:
    """Whose key it is, where it is a session's."""
    return int(key.removeprefix(b"s/")) if key.startswith(b"s/") else None


def _end(session: Session) -> LeaseSignal:
    """The owner's use of a lease ends now: it was told a loss, or gives it up."""
    kind: Literal["lost", "revoked"] = "lost" if session.is_lost else "revoked"
    return LeaseSignal(session.lease_id, kind, time.monotonic_ns())


async def locker(run: Run, client: Client, name: str) -> None:
    """Critical sections of one lock, and a transaction in each that only its holder may do."""
    chance = run.chance(name)
    while not run.stopping:
        lock = client.lock("lock", ttl=chance.choice((1, 2)), timeout=10)
        acquired_ns = released_ns = lost_ns = None
        try:
            async with lock:
                acquired_ns = time.monotonic_ns()
                try:
                    async with _tried(run, chance):
                        await _guarded(run, client, name, lock.key, lock.revision, lock.is_owner())
                    await anyio.sleep(chance.choice((0, 0.02, 0.5)) * chance.random())
                    async with _tried(run, chance):
                        await _guarded(run, client, name, lock.key, lock.revision, lock.is_owner())
                finally:
                    now = time.monotonic_ns()
                    released_ns, lost_ns = (None, now) if lock.is_lost else (now, None)
        except LockLostError:
            run.counts["locks lost"] += 1
        except LockTimeoutError:
            run.counts["locks not acquired"] += 1
        except ClientClosedError:
            return
        except EtcdError:
            run.counts["locks not acquired"] += 1
        if acquired_ns is not None:
            run.counts["locks"] += 1
            run.recorder.add(
                LockHold("lock", name, lock.revision, acquired_ns, released_ns, lost_ns)
            )
        await anyio.sleep(chance.uniform(0, 0.1))


async def _guarded(
    run: Run, client: Client, name: str, key: bytes, token: int, is_owner: Compare
) -> None:
    value = run.value()
    request = Txn((Comparison(key, "create_revision", "==", token),), (Put(b"guarded", value),))
    with run.recorder.call(name, request) as call:
        answer = await client.kv.txn(compare=[is_owner], success=[Op.put("guarded", value)])
        call.ok(run.saw(answer.header.revision), succeeded=answer.succeeded)
    if answer.succeeded:
        run.recorder.add(GuardedTxn("lock", token, answer.header.revision))
    run.counts["guarded txns" if answer.succeeded else "guarded txns refused"] += 1
