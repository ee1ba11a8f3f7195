"""Owners of sessions and locks that are cancelled while they acquire or leave them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Literal, TypeAlias

import anyio

from aioetcd import Client, EtcdError, Session
from aioetcd.testing.checkers import Violation
from tests.stress.holding import LOCKS, LONG, Exclusive, exclusive, failing, held
from tests.stress.shared import Party, Run, Stopwatch

Phase: TypeAlias = Literal["new", "acquiring", "held", "leaving", "over"]

SOON = 1.0
"""So many seconds after its cancellation the owner must have left."""

GONE = 4.0
"""So many seconds after that nothing of it is left, where the servers answer.

One that falls silent while it is asked is noticed after the client's timeout, 3 s.
"""


class AbortedError(Exception):
    """Aborts a task group."""


class Owner:
    """Whoever acquires something, does something, leaves it, and is cancelled meanwhile.

    Attributes:
        phase: How far it is.
        cancel: Cancels it, in the way that was chosen for it.
    """

    def __init__(self, block: Exclusive | Session, body: Callable[[], Awaitable[None]]) -> None:
        self.phase: Phase = "new"
        self.cancel: Callable[[], object] = lambda: None
        self._block = block
        self._body = body
        self._reached: dict[Phase, asyncio.Event] = {
            phase: asyncio.Event() for phase in ("acquiring", "held", "leaving", "over")
        }

    async def live(self) -> None:
        """Acquire it, do something, leave it."""
        try:
            self._reach("acquiring")
            async with self._block:
                self._reach("held")
                try:
                    await self._body()
                finally:
                    self._reach("leaving")
        finally:
            self._reach("over")

    def _reach(self, phase: Phase) -> None:
        self.phase = phase
        self._reached[phase].set()

    async def wait_for(self, phase: Phase) -> None:
        """Wait until it is so far, or does not come so far."""
        waiting = [asyncio.ensure_future(self._reached[each].wait()) for each in (phase, "over")]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()


async def natively(owner: Owner) -> None:
    """To be cancelled by `task.cancel()`."""
    task = asyncio.current_task()
    assert task is not None
    owner.cancel = task.cancel
    await owner.live()


async def by_timeout(owner: Owner) -> None:
    """To be cancelled by `asyncio.timeout`."""
    async with asyncio.timeout(None) as limit:
        owner.cancel = lambda: limit.reschedule(asyncio.get_running_loop().time())
        await owner.live()
    if limit.expired():
        raise AbortedError("a cancellation was swallowed")


async def by_group(owner: Owner) -> None:
    """To be cancelled by the failure of another task of its group."""
    aborted = asyncio.get_running_loop().create_future()
    owner.cancel = lambda: aborted.set_exception(AbortedError())
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(owner.live()).add_done_callback(
            lambda _: None if aborted.done() else aborted.set_result(None)
        )
        await aborted


WAYS: dict[Callable[[Owner], Coroutine[Any, Any, None]], type[BaseException]] = {
    natively: asyncio.CancelledError,
    by_timeout: TimeoutError,
    by_group: AbortedError,
}
"""How an owner is cancelled, and with what its task is to end then."""


async def hasty(run: Run, party: Party, name: str) -> None:
    """Sessions and locks whose owners are cancelled at a random moment."""
    chance = run.chance(name)
    while not run.stopping:
        client = party.client
        given_up = run.counts["deletions given up"]
        async with failing(run, party, client):
            if chance.random() < 0.4:
                async with client.session(ttl=chance.choice((3, LONG))) as session:
                    for _ in range(chance.randrange(1, 8)):
                        await _cancel_one(run, party, client, name, session, chance)
                    await _check_deleted(run, client, name, session, given_up)
            else:
                await _cancel_one(run, party, client, name, None, chance)
        await anyio.sleep(chance.uniform(0, 0.05))


async def _check_deleted(
    run: Run, client: Client, name: str, session: Session, given_up: int
) -> None:
    """The keys of a session's locks go when these are left, and not only with the session.

    Unless a deletion failed since so many had been `given_up`: then it goes on more slowly.
    """
    keys = [exclusive(client, name, session=session, timeout=2).key for name in LOCKS]
    watch = Stopwatch(run.lateness)
    left, is_late = keys, False
    while left and not is_late:
        is_late = watch.seconds >= GONE  # what is read from now on
        found = [await client.kv.get(key, timeout=1) for key in left]
        left = [key for key, answer in zip(left, found, strict=True) if answer.kv is not None]
        await anyio.sleep(0.05)
    run.counts["sessions without keys"] += not left
    if left and run.counts["deletions given up"] == given_up:
        text = f"{name}: {left} stay though their locks were left {GONE:g} s ago"
        run.violations.append(Violation("left behind", text))


async def _cancel_one(
    run: Run,
    party: Party,
    client: Client,
    name: str,
    session: Session | None,
    chance: random.Random,
) -> None:
    lock_name = chance.choice(LOCKS)
    block: Exclusive | Session
    if session is not None:
        block = exclusive(client, lock_name, session=session, timeout=2)
    elif chance.random() < 0.7:
        block = exclusive(client, lock_name, ttl=LONG, timeout=2)
    else:
        block = client.session(ttl=LONG)

    async def body() -> None:
        if not isinstance(block, Session):
            with held(run, party, client, name, lock_name, block):
                await anyio.sleep(chance.choice((0, 0.01)))

    owner = Owner(block, body)
    way = chance.choice(list(WAYS))
    phase: Phase = chance.choice(("acquiring", "leaving"))
    task = asyncio.create_task(way(owner))
    try:
        await owner.wait_for(phase)
        if chance.random() < 0.5:
            for _ in range(chance.randrange(20)):
                await asyncio.sleep(0)
        else:
            await anyio.sleep(0.05 * chance.random() ** 3)
        phase = owner.phase
        run.owners[block.lease_id] = f"{name}, cancelled {phase} {way.__name__}"
        if phase != "over":
            owner.cancel()
        watch = Stopwatch(run.lateness)
        await asyncio.wait({task})
    finally:
        if not task.done():  # the session is lost meanwhile
            task.cancel()
            await asyncio.wait({task})
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
    if phase in ("acquiring", "leaving"):
        run.counts[f"cancelled while {phase}"] += 1
        run.counts[f"cancelled {way.__name__}"] += 1
    if phase != "over" and watch.seconds > SOON:
        text = f"{name}: it took {watch.seconds:.2f} s to leave {block!r}, cancelled {phase}"
        run.violations.append(Violation("leaving", text))
    # A timeout is told by the loop, when the owner may have left just so.
    may_pass = phase == "over" or way is by_timeout
    for each in error.exceptions if isinstance(error, BaseExceptionGroup) else (error,):
        # A failure of its own, in the same moment.
        is_own = isinstance(each, EtcdError) and (phase != "leaving" or block.is_lost)
        if not is_own and not isinstance(each, WAYS[way]) and not (each is None and may_pass):
            text = f"{name}: {block!r}, cancelled {phase} {way.__name__}, ended with {error!r}"
            run.violations.append(Violation("cancelled", text))
    if session is None and phase != "over" and block.lease_id in client._shared.leases.rules._kept:
        text = f"{name}: {block!r} was left, its lease {block.lease_id:x} is renewed"
        run.violations.append(Violation("leaving", text))
