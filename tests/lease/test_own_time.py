"""Leases and the client's own time: a loop that is blocked, a process that is stopped, clocks.

Each test proves that its fault happened. The ids in the names are for finding a case again.
"""

from __future__ import annotations

import functools
import json
import signal
import sys
import time
from pathlib import Path
from subprocess import PIPE

import anyio
import pytest
from anyio.abc import Process
from anyio.streams.text import TextReceiveStream

from aioetcd import (
    Client,
    EtcdError,
    LeaseExpiredError,
    Lock,
    Session,
)
from tests.harness import Faulty
from tests.lease.signals import SECOND, kept_lease, wait_renewed_for, witnessed
from tests.waiting import until

PAUSED_CLIENT = Path(__file__).parent.parent / "data" / "paused_client.py"


@pytest.mark.fault("L4")
@pytest.mark.parametrize("asks", [True, False], ids=["asked", "not asked"])
async def test_l4_blocked_loop(faulty: Faulty, *, asks: bool) -> None:
    """After a loop was blocked beyond the deadline, the loss comes before all else, and once.

    Before a renewal's answer that came meanwhile, which would have prolonged the lease; before
    anything begins that the renewals allow; and at once where `is_lost` is asked.
    """
    ttl = 3
    acted: list[int] = []
    sent_ns = woke_ns = 0
    async with (
        Client(faulty.server.endpoint) as client,  # a proxy would be blocked as well
        witnessed(client, faulty.oracle) as witness,
    ):
        session = client.session(ttl=ttl)
        lease_id = session.lease_id
        # There is no turn of the loop to tell it in; and the store drops it later, being asked to.
        witness.excused.add(lease_id)

        async def act() -> None:
            keep_alive = witness.keep(lease_id)
            try:
                async for _ in keep_alive:
                    acted.append(time.monotonic_ns())  # noqa: PERF401  # one by one
            except LeaseExpiredError:
                return
            pytest.fail("the loop has ended")

        async def block() -> tuple[int, int]:
            for _ in range(3):
                await witness.wait_answered(lease_id, since_ns=time.monotonic_ns())
            with anyio.fail_after(ttl):
                while (sent_ns := witness.spy.unanswered_ns(lease_id)) is None:
                    await anyio.lowlevel.checkpoint()
            deadline = client._shared.leases.rules.deadline(lease_id)
            assert deadline is not None
            time.sleep(deadline - time.monotonic() + 0.1)  # noqa: ASYNC251  # the fault
            return sent_ns, time.monotonic_ns()

        async def use() -> None:
            nonlocal sent_ns, woke_ns
            async with session:
                tasks.start_soon(act)
                sent_ns, woke_ns = await block()
                if asks:
                    assert session.is_lost
                    assert session.expires_in == 0
                    assert lease_id in witness.errors
                    await anyio.lowlevel.checkpoint()
                    pytest.fail("the body was not cancelled at once")
                await anyio.sleep_forever()

        async with anyio.create_task_group() as tasks:
            with anyio.fail_after(20), pytest.raises(LeaseExpiredError):
                await use()
        assert time.monotonic_ns() < woke_ns + SECOND
        assert acted
        assert max(acted) < woke_ns
        # The answer was there, and was still good.
        await until(lambda: witness.spy.unanswered_ns(lease_id) is None)
        assert witness.signals(lease_id, "answered")[-1].sent_ns == sent_ns
        assert sent_ns + ttl * SECOND > woke_ns
        await until(faulty.no_leases)
        assert len(witness.signals(lease_id, "lost")) == 1


@pytest.mark.fault("P1")
async def test_p1_blocked_loop_with_much_in_use(faulty: Faulty) -> None:
    """A loop blocked for three times the leases' time loses each of them once, and no watch."""
    ttl = 2
    told: list[tuple[int, EtcdError]] = []
    raised: list[EtcdError] = []
    held: list[Session | Lock] = []

    async def hold(what: Session | Lock) -> None:
        try:
            async with what:
                held.append(what)
                await anyio.sleep_forever()
        except EtcdError as error:
            raised.append(error)

    async with (
        Client(faulty.server.endpoint) as client,  # a proxy would be blocked as well
        client.watch("seen/", prefix=True) as watch,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(hold, client.session(ttl=ttl))
        tasks.start_soon(hold, client.lock("p1", ttl=ttl))
        keep_alives = {}
        for _ in range(20):
            lease = await client.lease.grant(ttl)
            keep_alive = client.lease._keep(
                lease.id, functools.partial(lambda i, error: told.append((i, error)), lease.id)
            )
            await keep_alive.__aenter__()
            keep_alives[lease.id] = keep_alive
        for keep_alive in keep_alives.values():
            async for _ in keep_alive:
                break
        await until(lambda: len(held) == 2)
        await client.kv.put("seen/1", "before")
        assert (told, raised) == ([], [])
        time.sleep(3 * ttl)  # noqa: ASYNC251  # a body that blocks the loop is the fault
        assert [keep_alive.expires_in for keep_alive in keep_alives.values()] == [0] * 20
        assert [what.is_lost for what in held] == [True, True]
        await until(lambda: len(told) == 20 and len(raised) == 2)
        await client.kv.put("seen/2", "after")
        events = []
        async for event in watch:
            events.append(event.kv.value)
            if len(events) == 2:
                break
        assert events == [b"before", b"after"]
        assert client.stats().reconnects == 0
        for keep_alive in keep_alives.values():
            await keep_alive.aclose()
        await client.kv.delete("seen/", prefix=True)
    assert sorted(lease_id for lease_id, _ in told) == sorted(keep_alives)
    assert all(isinstance(error, LeaseExpiredError) for _, error in told)
    assert sorted(type(error).__name__ for error in raised) == [
        "LeaseExpiredError",
        "LockLostError",
    ]


class PausedClient:
    """A client in a process of its own, and what it has said."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.said: list[dict[str, object]] = []
        assert process.stdout is not None
        self._output = TextReceiveStream(process.stdout)
        self._rest = ""

    async def wait_for(self, what: str) -> dict[str, object]:
        """Read on until it has said something."""
        with anyio.fail_after(20):
            while not (found := [line for line in self.said if line["what"] == what]):
                await self._read()
        return found[0]

    async def read_all(self) -> None:
        """Read until it has ended."""
        with anyio.fail_after(20):
            try:
                while True:
                    await self._read()
            except anyio.EndOfStream:
                return

    async def _read(self) -> None:
        *lines, self._rest = (self._rest + await self._output.receive()).split("\n")
        self.said += map(json.loads, lines)


@pytest.mark.outside("a program of its own")
@pytest.mark.fault("L5")
async def test_l5_paused_client_process(faulty: Faulty) -> None:
    """A process that was stopped for longer than its lease lives knows it before it acts again."""
    ttl = 2
    async with witnessed(faulty.client, faulty.oracle) as witness:
        command = [sys.executable, str(PAUSED_CLIENT), faulty.server.endpoint, str(ttl)]
        async with await anyio.open_process(command, stdout=PIPE, stderr=None) as process:
            client = PausedClient(process)
            held = await client.wait_for("held")
            lease_id = int(str(held["lease_id"]))
            await client.wait_for("acted")
            process.send_signal(signal.SIGSTOP)
            stat = Path(f"/proc/{process.pid}/stat")
            await until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")
            deleted_ns = await witness.wait_deleted(lease_id)
            resumed_ns = time.monotonic_ns()
            process.send_signal(signal.SIGCONT)
            await client.read_all()
            assert await process.wait() == 0
        lost = [line for line in client.said if line["what"] == "lost"]
        assert [line["error"] for line in lost] == ["LeaseExpiredError"]
        assert resumed_ns <= int(str(lost[0]["at_ns"])) <= resumed_ns + 10 * SECOND
        acted = [int(str(line["at_ns"])) for line in client.said if line["what"] == "acted"]
        assert acted
        assert max(acted) < deleted_ns
        witness.excused.add(lease_id)  # its owner could not be told while it was stopped


@pytest.mark.fault("L6")
@pytest.mark.parametrize("jump", [3600.0, -3600.0])
async def test_l6_wall_clock_jump(
    faulty: Faulty, jump: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wall clock that is set an hour forth or back changes nothing."""
    real = time.time
    async with (
        witnessed(faulty.client, faulty.oracle) as witness,
        kept_lease(witness, faulty.client, 2) as (lease_id, _),
    ):
        await witness.wait_answered(lease_id, since_ns=0)
        with monkeypatch.context() as patch:  # not for calls with a deadline: grpc's core sees none
            patch.setattr(time, "time", lambda: real() + jump)
            assert abs(time.time() - real()) > 3000
            await wait_renewed_for(witness, lease_id, 2.2)
        assert witness.nothing_lost
