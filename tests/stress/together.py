"""Clients that hold several sessions and locks at once, and leave them in any order."""

from __future__ import annotations

import asyncio
import random
import time

import anyio

from aioetcd import Client, Session
from aioetcd.testing.checkers import Violation
from tests.stress.holding import (
    ELECTION,
    LOCKS,
    LONG,
    WRITTEN,
    Exclusive,
    Hold,
    exclusive,
    failing,
    held,
)
from tests.stress.shared import Party, Run


async def sharer(run: Run, party: Party, name: str) -> None:
    """Several tasks with locks on one session, which exclude one another as well."""
    chance = run.chance(name)
    sessions = 0
    while not run.stopping:
        sessions += 1
        client = party.client
        session = client.session(ttl=chance.choice((2, 3, LONG)))
        until = time.monotonic() + chance.uniform(0.5, 8)
        async with failing(run, party, client):
            async with session, asyncio.TaskGroup() as tasks:
                for number in range(3):
                    who = f"{name}.{sessions}.{number}"
                    tasks.create_task(_share(run, party, client, who, session, until))
            run.counts["sessions with locks"] += 1
        await anyio.sleep(chance.uniform(0, 0.1))


async def _share(
    run: Run, party: Party, client: Client, name: str, session: Session, until: float
) -> None:
    chance = run.chance(name)
    while time.monotonic() < until and not session.is_lost and not run.stopping:
        lock_name = chance.choice(LOCKS)
        lock = exclusive(client, lock_name, session=session, timeout=3)
        if lock_name not in (ELECTION, WRITTEN) and chance.random() < 0.3:
            lock = client.lock(lock_name, session=session, blocking=False)
        async with failing(run, party, client):
            async with lock:
                with held(run, party, client, name, lock_name, lock) as hold:
                    await hold.section(chance)
            run.counts["locks on a session"] += 1
        await anyio.sleep(chance.uniform(0, 0.05))


async def juggler(run: Run, party: Party, name: str) -> None:
    """A session and two locks entered by one task, and left in any order."""
    chance = run.chance(name)
    task = asyncio.current_task()
    assert task is not None
    while not run.stopping:
        client = party.client
        async with failing(run, party, client):
            await _Juggled(run, party, client, name, chance).live()
        if task.cancelling():
            text = f"{name}: {task.cancelling()} cancellations are left after the blocks"
            run.violations.append(Violation("cancelling", text))
            while task.cancelling():
                task.uncancel()
        await anyio.sleep(chance.uniform(0, 0.2))


class _Juggled:
    """A session and two locks, some of them on it."""

    def __init__(
        self, run: Run, party: Party, client: Client, name: str, chance: random.Random
    ) -> None:
        self._run, self._party, self._client = run, party, client
        self._name = name
        self._chance = chance
        self._session = client.session(ttl=chance.choice((2, LONG)))
        self._entered: list[Session | Exclusive] = []
        self._holds: dict[Session | Exclusive, Hold] = {}
        self._told: list[asyncio.Task[None]] = []
        self._on_session: list[Exclusive] = []

    async def live(self) -> None:
        """Enter all, do something, and leave them in another order."""
        error: BaseException | None = None
        try:
            await self._enter()
        except BaseException as raised:  # noqa: BLE001  # as AsyncExitStack does it
            error = raised
        before = list(self._entered)
        self._chance.shuffle(self._entered)
        if len(before) > 2 and self._entered != before[::-1]:
            self._run.counts["left in another order"] += 1
        for block in self._entered:
            self._ends(block)
            try:
                await block.__aexit__(None if error is None else type(error), error, None)
            except BaseException as raised:  # noqa: BLE001
                error = raised
        for told in self._told:
            told.cancel()
        if error is not None:
            raise error

    async def _enter(self) -> None:
        await self._session.__aenter__()
        self._entered.append(self._session)
        # In one order by all, or two could wait for one another.
        for lock_name in sorted(self._chance.sample(LOCKS, 2)):
            if self._chance.random() < 0.5:
                lock = exclusive(self._client, lock_name, session=self._session, timeout=3)
                self._on_session.append(lock)
            else:
                ttl = self._chance.choice((2, LONG))
                lock = exclusive(self._client, lock_name, ttl=ttl, timeout=3)
            await lock.__aenter__()
            self._entered.append(lock)
            hold = Hold(self._run, self._party, self._client, self._name, lock_name, lock)
            self._holds[lock] = hold
            # Being cancelled, this task may be busy with another block.
            self._told.append(asyncio.create_task(hold.wait_lost()))
        with self._run.inside(self._name, self._client):
            for hold in self._holds.values():
                await hold.section(self._chance)

    def _ends(self, block: Session | Exclusive) -> None:
        """What is left now takes what stands on it with it."""
        for each in (block, *(self._on_session if block is self._session else ())):
            if each in self._holds:
                self._holds[each].end()
