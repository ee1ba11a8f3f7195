"""Clients that hold sessions, locks and leaderships during a stress run, one at a time."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import anyio

from aioetcd import (
    Client,
    EtcdError,
    Leadership,
    LeadershipLostError,
    LeaseLostError,
    Lock,
    LockLostError,
    Op,
    Session,
)
from aioetcd.testing.history import GuardedTxn, LeaseSignal, LockHold
from tests.stress.shared import Party, Run, only_if_closed, tried
from tests.stress.traffic import put, recorded

SESSIONS, GUARDED = b"s/", b"guarded"
"""Where sessions put their keys, and what only holders write."""

ELECTION, WRITTEN = "locks/elected", "locks/written"
"""What is led, and what some read and one writes."""
LOCKS = ("locks/a", "locks/b", ELECTION, WRITTEN)
"""What one at a time holds."""
LONG = 600
"""A time to live, in seconds, that does not end during a run: such a lease has to be revoked."""


Exclusive: TypeAlias = Lock | Leadership


def exclusive(client: Client, name: str, *, timeout: float, **options: Any) -> Exclusive:
    """Make what one at a time holds: a lock, a leadership, or a lock to write under."""
    if name == ELECTION:
        return client.election(name, **options).campaign(timeout=timeout)
    if name == WRITTEN:
        return client.rwlock(name, **options).write(timeout=timeout)
    return client.lock(name, timeout=timeout, **options)


async def holder(run: Run, party: Party, name: str) -> None:
    """Sessions, each with a key by which the store shows that the lease is gone."""
    chance = run.chance(name)
    while not run.stopping:
        client = party.client
        session = client.session(ttl=chance.choice((1, 2, 3)))
        # Without a body nobody uses the lease: whatever becomes of it, nobody must be told.
        unused = LeaseSignal(session.lease_id, "revoked", time.monotonic_ns())
        end: LeaseSignal | None = None
        try:
            async with session:
                try:
                    with run.inside(name, client):
                        with contextlib.suppress(EtcdError):
                            key = _lease_key(session.lease_id)
                            await put(run, client, name, key, session.lease_id)
                        await anyio.sleep(chance.choice((0.5, 5)) * chance.uniform(0.2, 1))
                finally:
                    end = _end(session)
        except LeaseLostError as error:
            if end is not None and end.kind == "lost":
                end = replace(end, reason=error.reason)
            run.counts["sessions lost"] += 1
        except EtcdError as error:
            if end is not None and end.kind == "lost":
                end = replace(end, reason="closed")
            only_if_closed(run, party, client, error)
            run.counts["sessions not granted"] += 1
        else:
            run.counts["sessions"] += 1
        finally:
            run.recorder.add(end or unused)


def _lease_key(lease_id: int) -> bytes:
    return SESSIONS + b"%d" % lease_id


def lease_of(key: bytes) -> int | None:
    """Whose key it is, where it is a session's."""
    return int(key.removeprefix(SESSIONS)) if key.startswith(SESSIONS) else None


def _end(session: Session) -> LeaseSignal:
    """The owner's use of a lease ends now: it was told a loss, or gives it up."""
    kind: Literal["lost", "revoked"] = "lost" if session.is_lost else "revoked"
    return LeaseSignal(session.lease_id, kind, time.monotonic_ns())


class Hold:
    """A lock that is held from now on, until `end`."""

    def __init__(
        self, run: Run, party: Party, client: Client, who: str, name: str, lock: Exclusive
    ) -> None:
        self._acquired_ns = time.monotonic_ns()
        run.owners[lock.lease_id] = f"{who}, which held {name}"
        self._run = run
        self._party = party
        self._client = client
        self._who = who
        self._name = name
        self._lock = lock
        self._ended = False

    def end(self) -> None:
        """Leaving begins now, or the loss was told. Only the first call counts."""
        if self._ended:
            return
        self._ended = True
        now = time.monotonic_ns()
        released_ns, lost_ns = (None, now) if self._lock.is_lost else (now, None)
        token = self._lock.revision
        self._run.counts["locks"] += 1
        self._run.recorder.add(
            LockHold(self._name, self._who, token, self._acquired_ns, released_ns, lost_ns)
        )

    async def wait_lost(self) -> None:
        """End it at the moment at which the loss is told."""
        await self._lock.wait_lost()
        self.end()

    async def section(self, chance: random.Random) -> None:
        """Do twice what only the holder may do."""
        run, party, client = self._run, self._party, self._client
        async with tried(run, party, client, chance):
            await self._guarded()
        await anyio.sleep(chance.choice((0, 0.02, 0.5)) * chance.random())
        async with tried(run, party, client, chance):
            await self._guarded()

    async def _guarded(self) -> None:
        run, lock = self._run, self._lock
        token = lock.revision
        answer = await recorded(run, self._client, self._who).txn(
            compare=[lock.is_owner()], success=[Op.put(GUARDED, run.value())]
        )
        run.saw(answer.header.revision)
        if answer.succeeded:
            run.recorder.add(GuardedTxn(self._name, token, answer.header.revision))
        run.counts["guarded txns" if answer.succeeded else "guarded txns refused"] += 1


@contextmanager
def held(
    run: Run, party: Party, client: Client, who: str, name: str, lock: Exclusive
) -> Iterator[Hold]:
    """A lock is held for the time of this block, which is all that its own block has in it."""
    hold = Hold(run, party, client, who, name, lock)
    with run.inside(who, client):
        try:
            yield hold
        finally:
            hold.end()


@asynccontextmanager
async def failing(run: Run, party: Party, client: Client) -> AsyncIterator[None]:
    """Let a lock or a session not be had, or be lost."""
    try:
        yield
    except (LockLostError, LeadershipLostError):
        run.counts["locks lost"] += 1
    except LeaseLostError:
        run.counts["sessions lost"] += 1
    except EtcdError as error:
        only_if_closed(run, party, client, error)
        run.counts["locks not acquired"] += 1


async def locker(run: Run, party: Party, name: str) -> None:
    """Critical sections of locks and leaderships with a lease of their own."""
    chance = run.chance(name)
    while not run.stopping:
        client = party.client
        lock_name = chance.choice(LOCKS)
        lock = exclusive(client, lock_name, ttl=chance.choice((1, 2, LONG)), timeout=10)
        async with failing(run, party, client):
            if chance.random() < 0.7 or isinstance(lock, Leadership):
                async with lock:
                    with held(run, party, client, name, lock_name, lock) as hold:
                        await hold.section(chance)
            else:
                await lock.acquire()
                try:
                    with held(run, party, client, name, lock_name, lock):
                        with anyio.move_on_after(0.5 * chance.random()):
                            await lock.wait_lost()
                finally:
                    await lock.release()
                run.counts["locks without a block"] += 1
        await anyio.sleep(chance.uniform(0, 0.1))
