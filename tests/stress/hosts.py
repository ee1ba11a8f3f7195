"""Ends the supervisor of a client, as whoever cancels all tasks of a loop does."""

from __future__ import annotations

import asyncio

import anyio

from aioetcd.testing.checkers import Violation
from tests.stress.shared import Party, Run, Stopwatch

TOLD = 1.0
"""So many seconds after the end everybody must be out of what they were in."""
CLOSED = 2.5
"""So long closing may take, with servers that do not answer: two last seconds, and some time."""


async def end_host(run: Run, party: Party, *, all_tasks: bool, at_once: bool) -> bool:
    """End a client under its users; a fresh one takes its place. Give whether it has ended.

    Args:
        run: The run.
        party: Whose client.
        all_tasks: Cancel every task of the client, and not only its host.
        at_once: Close it at once, and not when everybody has been told.
    """
    supervisor = party.client._transport.supervisor
    if supervisor._host is None:
        return False
    old = party.replace()
    users = run.users(old)
    watch = Stopwatch(run.lateness)
    for task in supervisor._background() | set(supervisor._tidying if all_tasks else ()):
        if all_tasks or task is supervisor._host:
            task.cancel()
    for _ in range(5):  # the tasks end, and their callbacks are called
        await asyncio.sleep(0)
    if not supervisor._ended:
        text = f"the supervisor of {party.name} was cancelled, and its client goes on"
        run.violations.append(Violation("told", text))

    async def close() -> None:
        closing = Stopwatch(run.lateness)
        await old.aclose()
        if closing.seconds > CLOSED:
            text = f"{party.name} took {closing.seconds:.2f} s after its end"
            run.violations.append(Violation("close", text))

    async with anyio.create_task_group() as tasks:
        if at_once:
            tasks.start_soon(close)
        while (still := users.keys() & run.users(old)) and watch.seconds < TOLD:
            await anyio.sleep(0.01)
        for key in still:
            text = f"{users[key]} goes on {TOLD:g} s after the end of its client {party.name}"
            run.violations.append(Violation("told", text))
        if not at_once:
            tasks.start_soon(close)
    run.counts["users of clients that ended"] += len(users)
    return supervisor._ended
