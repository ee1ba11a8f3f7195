"""The owner of background tasks: its end is told, and tidying up is done in spite of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from aioetcd import ClientClosedError, UnavailableError
from aioetcd._transport.supervisor import Supervisor


class Owner:
    """A supervisor, and what it has told.

    Attributes:
        supervisor: It.
        ends: Why it ended, each time that it told so.
        given_up: Why something was not tidied up.
    """

    def __init__(self) -> None:
        self.supervisor = Supervisor(self._end)
        self.ends: list[tuple[str, BaseException | None]] = []
        self.given_up: list[str] = []
        self.fails = False

    def _end(self, why: str, cause: BaseException | None) -> None:
        self.ends.append((why, cause))
        if self.fails:
            raise ZeroDivisionError

    def tidy(
        self, job: Callable[[float], Awaitable[None]], seconds: float = 5.0
    ) -> asyncio.Task[None]:
        return self.supervisor.tidy(job, "tidying", seconds=seconds, give_up=self.given_up.append)


@pytest.fixture
async def owner() -> AsyncIterator[Owner]:
    """A supervisor that has started."""
    owner = Owner()
    owner.supervisor.start(asyncio.get_running_loop())
    yield owner
    owner.fails = False
    owner.supervisor.end("")
    await owner.supervisor.aclose()


async def for_ever() -> None:
    await asyncio.Event().wait()


# --- its end -------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 5])
async def test_a_cancelled_host(owner: Owner, steps: int) -> None:
    """It ends all tasks and is told once, also where it had not begun yet."""
    task = owner.supervisor.spawn(for_ever, "a task")
    for _ in range(steps):
        await asyncio.sleep(0)
    assert owner.supervisor._host is not None
    owner.supervisor._host.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    ((why, cause),) = owner.ends
    assert "'aioetcd supervisor' was cancelled" in why
    assert cause is None
    owner.supervisor.end("again")
    assert len(owner.ends) == 1
    with pytest.raises(ClientClosedError):
        _ = owner.supervisor.spawn(for_ever, "another")


async def test_a_stopped_task_is_no_end(owner: Owner) -> None:
    """A task that its owner stops ends alone."""
    task = owner.supervisor.spawn(for_ever, "a task")
    owner.supervisor.stop(task)
    await asyncio.wait({task})
    assert owner.ends == []
    assert owner.supervisor._tasks == set()


async def test_whoever_is_told_may_fail(owner: Owner) -> None:
    """Then all tasks end all the same."""
    owner.fails = True
    task = owner.supervisor.spawn(for_ever, "a task")
    with pytest.raises(ZeroDivisionError):
        owner.supervisor.end("why")
    await asyncio.wait({task})
    assert task.cancelled()


async def test_a_task_that_loses_a_cancellation(owner: Owner) -> None:
    """Closing asks it again, and has an end though the task has none."""
    lost = 0

    async def lose() -> None:
        nonlocal lost
        while lost < 3:
            try:
                await for_ever()
            except asyncio.CancelledError:
                lost += 1

    task = owner.supervisor.spawn(lose, "a task")
    await asyncio.sleep(0)
    owner.supervisor.end("")
    began = time.monotonic()
    await owner.supervisor.aclose()
    assert task.done()
    assert lost == 3
    assert time.monotonic() - began < 2


# --- tidying up ----------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", [0, 1, 2, 3])
async def test_tidying_is_done_though_it_is_cancelled(owner: Owner, moment: int) -> None:
    """It begins again with a last second, also where it was cancelled before its first step."""
    times: list[float] = []

    async def job(seconds: float) -> None:
        times.append(seconds)
        for _ in range(4):
            await asyncio.sleep(0)

    task = owner.tidy(job, 30)
    for _ in range(moment):
        await asyncio.sleep(0)
    assert not task.done()
    task.cancel()
    await asyncio.wait({task})
    assert not task.cancelled()
    assert owner.given_up == []
    assert len(times) == (1 if moment == 0 else 2)
    assert times[-1] <= 1


async def test_tidying_that_is_cancelled_again_and_again(owner: Owner) -> None:
    """It gives up a second after the first time, and says so once."""
    task = owner.tidy(lambda _: for_ever(), 30)
    began = time.monotonic()
    while not task.done():
        task.cancel()
        await asyncio.sleep(0.01)
    assert 0.9 < time.monotonic() - began < 2
    assert owner.given_up == ["it was cancelled before there was an answer"]


async def test_tidying_that_fails(owner: Owner) -> None:
    """Its reason is given, once."""

    async def job(_: float) -> None:
        raise UnavailableError("nobody there")

    await owner.supervisor.wait_tidied(owner.tidy(job))
    assert owner.given_up == ["nobody there"]


async def test_tidying_that_does_not_keep_to_its_time(owner: Owner) -> None:
    """It is cut."""
    began = time.monotonic()
    task = owner.tidy(lambda _: for_ever(), 0.1)
    await asyncio.wait({task})
    assert time.monotonic() - began < 1
    assert owner.given_up == ["there was no answer in time"]


async def test_a_bug_in_tidying(owner: Owner, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and ends nothing else."""

    async def job(_: float) -> None:
        raise ZeroDivisionError

    task = owner.tidy(job)
    await asyncio.wait({task})
    assert "the task 'tidying' failed" in caplog.text
    assert isinstance(task.exception(), ZeroDivisionError)
    assert (owner.ends, owner.given_up) == ([], [])


async def test_waiting_for_what_tidies(owner: Owner) -> None:
    """It is bounded, for several in a row together; and to be cancelled ends the waiting alone."""
    done = asyncio.Event()

    async def job(_: float) -> None:
        await done.wait()

    tasks = [owner.tidy(job) for _ in range(3)]
    began = time.monotonic()
    for task in tasks:
        await owner.supervisor.wait_tidied(task, 0.5)
    assert 0.5 <= time.monotonic() - began < 1.5
    waiter = asyncio.create_task(owner.supervisor.wait_tidied(tasks[0], 30))
    await asyncio.sleep(0)
    waiter.cancel("why")
    await asyncio.wait({waiter})
    assert waiter.cancelled()
    assert not any(task.done() for task in tasks)
    done.set()
    await asyncio.wait(tasks)
    assert owner.given_up == []


async def test_closing_leaves_what_tidies_a_last_second(owner: Owner) -> None:
    """Closing waits for it, and what takes longer is told to hurry."""
    calls: list[float] = []

    async def job(seconds: float) -> None:
        calls.append(seconds)
        await asyncio.Event().wait()

    task = owner.tidy(job, 30)
    await asyncio.sleep(0)
    owner.supervisor.end("")
    began = time.monotonic()
    await owner.supervisor.aclose()
    assert time.monotonic() - began < 3
    await asyncio.wait({task}, timeout=3)
    assert task.done()
    assert len(owner.given_up) == 1
    assert calls[0] > 20
