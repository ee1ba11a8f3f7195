"""Go's recipes of locks and elections beside ours, each waiting for the other again and again."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic_ns

import anyio
import pytest

from aioetcd import Client, KeyValue, Leadership, Lock, LockNotAcquiredError, Op
from aioetcd.testing import EtcdServer, Recorder
from aioetcd.testing.checkers import assert_clean, check_fencing, check_lock_holds
from aioetcd.testing.history import GuardedTxn, LockHold
from tests.concurrency.locks import NAME, is_owner, locks_of, on_either_lease, wait_for_queue
from tests.waiting import until

ROOT = Path(__file__).parents[2]
HAND_OVERS = 200  # each way

pytestmark = [
    pytest.mark.skipif(shutil.which("go") is None, reason="there is no go to build Go's side with"),
    pytest.mark.outside("Go's client"),
    pytest.mark.timeout(300),  # it may have to be built first
]


@pytest.fixture(scope="session")
def go_program() -> str:
    """The program that plays Go's side."""
    command = [str(ROOT / "scripts/get_go_program.sh"), "tests/interop/go"]
    return subprocess.run(command, stdout=PIPE, check=True).stdout.decode().strip()


class Go:
    """Go's side: does what it is told, and says what came of it."""

    def __init__(self, process: Process) -> None:
        self.observed: list[tuple[bytes, str]] = []
        self._process = process
        self._answers: list[list[str]] = []

    async def read(self) -> None:
        """Take its answers for ever."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            kind, *words = line.decode().split()
            if kind == "observed":
                key, _, value = words
                self.observed.append((key.encode(), value))
            else:
                self._answers.append([kind, *words])

    @property
    def is_waiting(self) -> bool:
        """Whether it has not answered yet."""
        return not self._answers

    def tell(self, *words: str) -> None:
        """Give it a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{' '.join(words)}\n".encode())

    async def answer(self) -> list[str]:
        """Wait for what it says to the command that it was given."""
        await until(lambda: not self.is_waiting)
        kind, *words = self._answers.pop(0)
        assert kind != "error", words
        return words

    async def ask(self, *words: str) -> list[str]:
        """Give it a command, and wait for the answer."""
        self.tell(*words)
        return await self.answer()


@asynccontextmanager
async def playing(program: str, server: EtcdServer) -> AsyncIterator[Go]:
    """Have Go play its side for a block, on a session of its own."""
    process = await asyncio.create_subprocess_exec(
        program, server.endpoint, stdin=PIPE, stdout=PIPE
    )
    try:
        async with anyio.create_task_group() as tasks:
            side = Go(process)
            tasks.start_soon(side.read)
            assert await side.answer() == []
            yield side
            assert process.stdin is not None
            process.stdin.close()  # it revokes its lease
            with anyio.fail_after(10):
                assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


class Book:
    """Writes down who held it, and what was done under it."""

    def __init__(self, go: Go, client: Client) -> None:
        self.go = go
        self.client = client
        self._recorder = Recorder()

    async def go_guards(self, token: str) -> None:
        """Have Go put something that only the owner may."""
        succeeded, revision = await self.go.ask("guarded", "guarded", f"go-{token}")
        assert succeeded == "true"
        self._recorder.add(GuardedTxn(NAME, int(token), int(revision)))

    async def we_guard(self, held: Lock | Leadership) -> None:
        """Put something that only the owner may."""
        put = Op.put("guarded", f"ours {held.revision}")
        result = await self.client.kv.txn(compare=[held.is_owner()], success=[put])
        assert result.succeeded
        self._recorder.add(GuardedTxn(NAME, held.revision, result.header.revision))

    def held(self, holder: str, token: int, acquired_ns: int, released_ns: int) -> None:
        """Somebody has held it."""
        self._recorder.add(LockHold(NAME, holder, token, acquired_ns, released_ns))

    def check(self, holds: int) -> None:
        """So many held it, one at a time, with ever greater tokens, and nobody wrote late."""
        held = self._recorder.of(LockHold)
        assert len(held) == holds
        guarded = self._recorder.of(GuardedTxn)
        assert guarded
        assert_clean([*check_lock_holds(held), *check_fencing(guarded, held)])


@pytest.mark.fault("X1: hundreds of hand-overs, and etcd serves Go's watch after up to 0.1 s")
async def test_x1_a_lock_goes_to_and_fro(
    go_program: str, client: Client, server: EtcdServer
) -> None:
    """Whoever waits has it when the other one leaves, and not before; each with a newer token."""
    async with playing(go_program, server) as go, client.session(ttl=60) as session:
        book = Book(go, client)
        key, token, since = await go.ask("lock", NAME)
        for number in range(HAND_OVERS):
            ours = client.lock(NAME, session=session if number % 2 else None)
            waiting = asyncio.create_task(ours.acquire())
            await wait_for_queue(client, 2)
            await book.go_guards(token)
            assert not waiting.done()
            (until_ns,) = await go.ask("unlock")
            book.held(key, int(token), int(since), int(until_ns))
            await waiting
            acquired_ns = monotonic_ns()
            go.tell("lock", NAME)
            await wait_for_queue(client, 2)
            await book.we_guard(ours)
            assert go.is_waiting
            book.held("ours", ours.revision, acquired_ns, monotonic_ns())
            await ours.release()
            key, token, since = await go.answer()
        await go.ask("unlock")
        book.check(2 * HAND_OVERS)


@on_either_lease
async def test_who_does_not_wait(
    go_program: str, client: Client, server: EtcdServer, shared: bool
) -> None:
    """Each is refused at once while the other one has the lock, and told by whom."""
    async with playing(go_program, server) as go, locks_of(client, shared) as make:
        key, *_ = await go.ask("lock", NAME)
        with pytest.raises(LockNotAcquiredError) as caught:
            await make(NAME, blocking=False).acquire()
        assert caught.value.holder.key == key.encode()
        assert key == f"{NAME}/{caught.value.holder.lease:x}"
        await go.ask("unlock")
        async with make(NAME, blocking=False) as ours:
            assert ours.key.decode() == f"{NAME}/{ours.lease_id:x}"
            assert await go.ask("trylock", NAME) == ["false"]
            assert await is_owner(client, ours)
        assert await go.ask("trylock", NAME) == ["true"]
        with pytest.raises(LockNotAcquiredError):
            await make(NAME, blocking=False).acquire()
        await go.ask("unlock")


class Seen:
    """What both sides see of an election, which is to be the same."""

    def __init__(self, go: Go, client: Client) -> None:
        self._go = go
        self._election = client.election(NAME)
        self.ours: list[tuple[bytes, str]] = []

    async def follow(self) -> None:
        """Observe for ever."""
        async for leader in self._election.observe():
            if leader is not None:  # Go does not tell when nobody leads
                self.ours.append((leader.key, leader.text))

    async def agree(self, value: str) -> KeyValue:
        """Both sides see who leads, with this value; those who observe it, too."""
        leader = await self._election.leader()
        assert leader is not None
        assert leader.text == value
        theirs = await self._go.ask("leader", NAME)
        assert theirs == [leader.key.decode(), str(leader.create_revision), value]
        last = (leader.key, value)
        await until(lambda: self.ours[-1:] == [last] == self._go.observed[-1:])
        return leader


@asynccontextmanager
async def seen_by_both(go: Go, client: Client) -> AsyncIterator[Seen]:
    """Have both sides observe the election for a block."""
    seen = Seen(go, client)
    async with anyio.create_task_group() as tasks:
        await go.ask("observe", NAME)
        tasks.start_soon(seen.follow)
        yield seen
        tasks.cancel_scope.cancel()


@pytest.mark.fault("X11: hundreds of hand-overs, and etcd serves Go's watch after up to 0.1 s")
async def test_x11_a_leadership_goes_to_and_fro(
    go_program: str, client: Client, server: EtcdServer
) -> None:
    """One leads at a time, and both sides see the same leaders and values, in the same order."""
    async with (
        playing(go_program, server) as go,
        client.session(ttl=60) as session,
        seen_by_both(go, client) as seen,
    ):
        book = Book(go, client)
        elections = [client.election(NAME), client.election(NAME, session=session)]
        key, token, since = await go.ask("campaign", NAME, "go-0")
        for number in range(HAND_OVERS):
            ours = elections[number % 2].campaign(f"ours-{number}")
            waiting = asyncio.create_task(ours.win())
            await wait_for_queue(client, 2)
            await go.ask("proclaim", f"go-{number}!")
            assert (await seen.agree(f"go-{number}!")).key == key.encode()
            assert not waiting.done()
            (until_ns,) = await go.ask("resign")
            book.held(key, int(token), int(since), int(until_ns))
            await waiting
            acquired_ns = monotonic_ns()
            assert (await seen.agree(f"ours-{number}")).key == ours.key
            go.tell("campaign", NAME, f"go-{number + 1}")
            await wait_for_queue(client, 2)
            await book.we_guard(ours)
            assert go.is_waiting
            book.held("ours", ours.revision, acquired_ns, monotonic_ns())
            await ours.resign()
            key, token, since = await go.answer()
            await seen.agree(f"go-{number + 1}")
        await go.ask("resign")
        assert seen.ours == go.observed
        assert len(seen.ours) >= 3 * HAND_OVERS
        assert await elections[0].leader() is None
        assert await go.ask("leader", NAME) == []
        book.check(2 * HAND_OVERS)
