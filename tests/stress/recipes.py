"""Clients that use the recipes which more than one may hold, or which follow the store."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import anyio

from aioetcd import Cache, Client, CompactedError, EtcdError, KeyValue, Lock
from aioetcd.testing.checkers import Violation
from aioetcd.testing.history import LockHold
from tests.stress.holding import WRITTEN, failing
from tests.stress.shared import Party, Run, Share, only_if_closed
from tests.stress.traffic import PREFIX

PERMITTED, PERMITS = "locks/permitted", 2
"""What so many may hold at a time."""
REGISTRATIONS = "registrations/"
UPDATED = "counters/updated"
"""A number, and whose it is: whoever's answer was lost can tell it from another's."""
AGREES = 5.0
"""So many seconds after its last change a cache's reader has what the cache has."""


async def guest(run: Run, party: Party, name: str) -> None:
    """Readers beside one another, and holders of one permit of some."""
    chance = run.chance(name)
    while not run.stopping:
        client = party.client
        ttl = chance.choice((1, 2, 600))
        if chance.random() < 0.5:
            what, lock = WRITTEN, client.rwlock(WRITTEN, ttl=ttl).read(timeout=10)
        else:
            what = PERMITTED
            lock = client.semaphore(what, PERMITS, ttl=ttl, timeout=10)
        async with failing(run, party, client), lock:
            with _shared(run, client, what, name, lock):
                await anyio.sleep(chance.choice((0, 0.02, 0.5)) * chance.random())
        await anyio.sleep(chance.uniform(0, 0.1))


@contextmanager
def _shared(run: Run, client: Client, what: str, who: str, lock: Lock) -> Iterator[None]:
    acquired_ns = time.monotonic_ns()
    run.owners[lock.lease_id] = f"{who}, which shared {what}"
    with run.inside(who, client):
        try:
            yield
        finally:
            now = time.monotonic_ns()
            run.shares.append(Share(what, who, acquired_ns, now, lock.is_lost))
            run.counts["readers" if what == WRITTEN else "permits"] += 1


_Holds: TypeAlias = list[Share | LockHold]


def check_shares(shares: Iterable[Share], writers: Iterable[LockHold]) -> list[Violation]:
    """Nobody reads beside a writer, and nobody holds a permit beside so many others.

    Args:
        shares: Readers and holders of permits.
        writers: Those who wrote where the readers read.
    """
    inside: dict[str, _Holds] = {WRITTEN: [], PERMITTED: []}
    everybody: _Holds = [*shares, *writers]
    found = []
    for each in sorted(everybody, key=lambda each: each.acquired_ns):
        others = [other for other in inside[each.name] if _ended_ns(other) > each.acquired_ns]
        if each.name == PERMITTED:
            too_many = others if len(others) >= PERMITS else []
        else:  # writers among themselves are checked as all locks are
            too_many = [other for other in others if type(other) is not type(each)]
        if too_many:
            found.append(Violation("shared", f"{each} was inside beside {too_many}"))
        inside[each.name] = [*others, each]
    return found


def _ended_ns(held: Share | LockHold) -> int:
    if isinstance(held, Share):
        return held.ended_ns
    return held.released_ns or held.lost_ns or 2**63


async def follower(run: Run, party: Party, name: str) -> None:
    """Caches, each with a reader of its changes."""
    chance = run.chance(name)
    while not run.stopping:
        client = party.client
        try:
            async with client.cache(PREFIX, prefix=True) as cache:
                with run.inside(name, client):
                    await _follow(
                        run, client, name, cache, chance.choice((1, 10)) * chance.random()
                    )
        except EtcdError as error:
            only_if_closed(run, party, client, error)
            run.counts["caches that failed"] += 1
            await anyio.sleep(0.05)


async def _follow(run: Run, client: Client, name: str, cache: Cache[bytes], seconds: float) -> None:
    changes = cache.changes()
    copy = {key: cache.kv(key) for key in cache}

    def agree() -> bool:
        return copy == {key: cache.kv(key) for key in cache}

    last = cache.revision
    for patience, is_last in ((seconds, False), (AGREES, True)):
        with anyio.move_on_after(patience):
            while not (is_last and agree()):
                change = await anext(changes)
                if change.old_kv != copy.get(change.key):
                    text = f"{name}: {change!r} changes {copy.get(change.key)!r}"
                    run.violations.append(Violation("cache", text))
                copy[change.key] = change.new_kv
                if change.new_kv is None:
                    del copy[change.key]
                if cache.revision < last:
                    text = f"{name}: {cache!r} was at {last} before"
                    run.violations.append(Violation("cache", text))
                last = cache.revision
    if not agree():
        run.violations.append(Violation("cache", f"{name}: its changes do not lead to {cache!r}"))
    run.counts["caches"] += 1
    await cache.sync()
    has, revision = sorted(map(repr, map(cache.kv, cache))), cache.revision
    run.saw(revision)
    try:
        found = await client.kv.get(PREFIX, prefix=True, revision=revision)
    except CompactedError:
        return
    if has != sorted(map(repr, found.kvs)):
        run.violations.append(Violation("cache", f"{name}: {cache!r} is not the store: {has}"))
    run.counts["caches compared with the store"] += 1


async def registrant(run: Run, party: Party, name: str) -> None:
    """Registrations, which come back by themselves."""
    chance = run.chance(name)
    while not run.stopping:
        client = party.client
        registration = client.registration(REGISTRATIONS + name, ttl=chance.choice((1, 3)))
        try:
            async with registration:
                run.counts["registrations"] += 1
                with anyio.move_on_after(chance.choice((1, 20)) * chance.random()):
                    while registration.is_registered or not run.stopping:
                        before = registration.is_registered
                        await anyio.sleep(0.05)
                        if registration.is_registered and not before:
                            run.counts["registered again"] += 1
        except EtcdError as error:
            only_if_closed(run, party, client, error)
            await anyio.sleep(0.05)


async def updater(run: Run, party: Party, name: str) -> None:
    """Counts in a key, each time with a mark of one's own."""
    chance = run.chance(name)
    while not run.stopping:
        client = party.client
        mark = run.value().decode()

        def more(found: KeyValue | None, mark: str = mark) -> str:
            return f"{number(found) + 1} {mark}"

        is_known = False
        try:
            with anyio.move_on_after(0.02 * chance.random() if chance.random() < 0.1 else None):
                await client.kv.update(UPDATED, more)
                is_known = True
                run.counts["updates"] += 1
        except EtcdError as error:
            only_if_closed(run, party, client, error)
            is_known = not error.maybe_applied
        run.counts["updates in doubt"] += not is_known
        await anyio.sleep(chance.uniform(0, 0.1))


def number(found: KeyValue | None) -> int:
    """What has been counted."""
    return int(found.text.split()[0]) if found else 0


async def check_updates(run: Run, control: Client) -> None:
    """Each that was told to be made was made once, and of the others some."""
    made = number((await control.kv.get(UPDATED)).kv)
    surely, perhaps = run.counts["updates"], run.counts["updates in doubt"]
    if not surely <= made <= surely + perhaps:
        text = f"{surely} updates were made, {perhaps} perhaps, and {made} are counted"
        run.violations.append(Violation("updates", text))
