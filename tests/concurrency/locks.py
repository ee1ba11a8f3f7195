"""What the tests of locks share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial, wraps
from time import monotonic
from typing import Any, TypeAlias

import anyio
import pytest

from aioetcd import Client, EtcdError, Leadership, Lock, Op, Session
from tests.waiting import lateness, until

NAME = "/locks/nightly"

Locks: TypeAlias = Callable[..., Lock]

Held: TypeAlias = Lock | Leadership

EXCLUSIVE = ("lock", "election", "writer", "semaphore")
"""The kinds of what one holds at a time."""


def one_of(
    kind: str,
    client: Client,
    name: str = NAME,
    *,
    ttl: int | None = None,
    session: Session | None = None,
    **more: Any,
) -> Held:
    """Make one of a kind: of `EXCLUSIVE`, or a reader, which waits for a writer alone."""
    match kind:
        case "lock":
            return client.lock(name, ttl=ttl, session=session, **more)
        case "election":
            return client.election(name, ttl=ttl, session=session).campaign("a", **more)
        case "semaphore":
            return client.semaphore(name, 1, ttl=ttl, session=session, **more)
        case "writer":
            return client.rwlock(name, ttl=ttl, session=session).write(**more)
        case "reader":
            return client.rwlock(name, ttl=ttl, session=session).read(**more)
    raise ValueError(kind)


on_either_lease = pytest.mark.parametrize("shared", [False, True], ids=["own-lease", "session"])
"""For tests of what is true with a lease of its own as on a session's."""


@asynccontextmanager
async def locks_of(client: Client, shared: bool, *, ttl: int = 60) -> AsyncIterator[Locks]:
    """Give what makes locks: each with a lease of its own, or all on one session's.

    A loss of the session is for its locks to tell.
    """
    if not shared:
        yield partial(client.lock, ttl=ttl)
        return
    async with client.session(ttl=ttl, on_lost="ignore") as session:
        yield partial(client.lock, session=session)


async def queue(client: Client, name: str = NAME) -> list[bytes]:
    """Give the keys of a lock, the holder's first."""
    found = await client.kv.get(name + "/", prefix=True)
    return [kv.key for kv in sorted(found.kvs, key=lambda kv: kv.create_revision)]


async def wait_for_queue(client: Client, length: int, name: str = NAME) -> None:
    """Wait until so many hold the lock or wait for it."""

    async def is_long_enough() -> bool:
        return len(await queue(client, name)) == length

    await until(is_long_enough)


async def soon(condition: Callable[[], Awaitable[bool]], *, within: float = 1.0) -> None:
    """See that a condition comes to hold within a time that is the client's promise.

    A server that is late by itself, as the slowest look shows, has that much longer.
    """
    slowest = 0.0

    @wraps(condition)
    async def look() -> bool:
        nonlocal slowest
        before = monotonic()
        holds = await condition()
        slowest = max(slowest, monotonic() - before)
        return holds

    async with lateness() as late:
        began = monotonic()
        await until(look)
        took = monotonic() - began
    assert took < within + slowest + late.seconds


async def until_run_out(client: Client, lease_ids: Set[int | None]) -> None:
    """Wait until no such lease is there any more: when that is, is the server's affair."""

    async def have_run_out() -> bool:
        return lease_ids.isdisjoint((await client.lease.leases()).ids)

    await until(have_run_out)


async def cancel_after(
    delay: float, work: Callable[[], Coroutine[Any, Any, object]], *, native: bool
) -> None:
    """Cancel what runs after a delay, natively or by a scope; it may have ended well before."""
    if native:
        task = asyncio.ensure_future(work())
        await asyncio.sleep(delay)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() or task.exception() is None
    else:
        with anyio.move_on_after(delay):
            await work()


async def check_told_anew(use: Callable[[], Awaitable[object]]) -> None:
    """Each time it raises an error of its own: the traceback of one would grow for ever."""
    told: list[EtcdError] = []
    for _ in range(2):
        with pytest.raises(EtcdError) as caught:
            await use()
        told.append(caught.value)
    first, second = told
    assert first is not second
    assert (type(first), str(first)) == (type(second), str(second))
    assert first.__cause__ is second.__cause__


async def check_is_as_before() -> None:
    """Nothing is left of any cancellation: this task is not to be cancelled, now or later."""
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    for _ in range(3):
        await asyncio.sleep(0)


async def is_owner(client: Client, lock: Held) -> bool:
    """Ask the server, as a guarded write would."""
    result = await client.kv.txn(compare=[lock.is_owner()], success=[Op.get("any")])
    return result.succeeded


async def body(lock: Lock, entered: Callable[[], Awaitable[object]] | None = None) -> None:
    """Hold a lock until it is lost."""
    async with lock:
        if entered is not None:
            await entered()
        await anyio.sleep(10)
        pytest.fail("the body was not cancelled")


@dataclass
class Turn:
    """One holder's time."""

    revision: int
    entered: float
    left: float


class Room:
    """What a lock protects: counts who is inside."""

    def __init__(self) -> None:
        self.inside = 0
        self.turns: list[Turn] = []

    @asynccontextmanager
    async def entered(self, lock: Lock) -> AsyncIterator[None]:
        """Be inside, alone."""
        assert self.inside == 0
        self.inside += 1
        entered = monotonic()
        try:
            yield
        finally:
            self.inside -= 1
            self.turns.append(Turn(lock.revision, entered, monotonic()))

    def check(self, turns: int) -> None:
        """So many had their turn, in the order of their revisions, each with one of its own."""
        assert self.inside == 0
        revisions = [turn.revision for turn in self.turns]
        assert len(revisions) == turns
        assert revisions == sorted(set(revisions))


async def watches_created(client: Client, count: int, *, after: int = 0) -> None:
    """Wait until a client has so many watches open at the server, from beyond a revision."""

    def are_created() -> bool:
        rules = [watches.rules for watches in client._shared.turns._streams[True]]
        states = [state for each in rules for state in each._open.values()]
        return len(states) == count and all((s.next_revision or 0) > after for s in states)

    await until(are_created)
