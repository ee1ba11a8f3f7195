"""Carries out the plan of faults, and proves that each of them happened."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable

import anyio

from aioetcd import Client, EtcdError
from aioetcd.testing import EtcdCluster, FaultProxy
from tests.stress.plan import EVERYWHERE, Fault
from tests.stress.traffic import Run


class Faults:
    """Does what the plan says.

    Args:
        cluster: Whom it happens to.
        run: Slow consumers, and the report.
        control: A client past the proxies.
        known: Gives the revision up to which the oracle has the history, which may be compacted.
    """

    def __init__(
        self, cluster: EtcdCluster, run: Run, control: Client, known: Callable[[], int]
    ) -> None:
        self.done: Counter[str] = Counter()
        self.compact_revision = 0
        self._cluster = cluster
        self._run = run
        self._control = control
        self._known = known

    async def play(self, faults: Iterable[Fault]) -> None:
        """Do all faults of one lane, each at its time or as soon as the one before is over."""
        start = time.monotonic()
        for fault in faults:
            await anyio.sleep(max(0.0, start + fault.at - time.monotonic()))
            action: Callable[[Fault], Awaitable[bool]] = getattr(self, f"_{fault.kind}")
            happened = await action(fault)
            self.done[fault.kind if happened else f"{fault.kind} (no effect)"] += 1

    # Each says whether it had an effect that can be proved.

    async def _kill(self, fault: Fault) -> bool:
        member = self._cluster.members[fault.member]
        pid = member.pid
        await member.kill()
        await anyio.sleep(fault.seconds)
        await member.start(timeout=60)
        return member.pid != pid

    async def _pause(self, fault: Fault) -> bool:
        member = self._cluster.members[fault.member]
        await member.pause()
        stopped = member.is_paused
        try:
            await anyio.sleep(fault.seconds)
        finally:
            await member.resume()
        return stopped

    async def _isolate(self, fault: Fault) -> bool:
        before = self._swallowed_by_peers(fault.member)
        await self._cluster.isolate(fault.member)
        await anyio.sleep(fault.seconds)
        swallowed = self._swallowed_by_peers(fault.member) - before
        await self._cluster.rejoin(fault.member)
        return swallowed > 0

    def _swallowed_by_peers(self, member: int) -> int:
        others = [index for index in range(len(self._cluster.members)) if index != member]
        return sum(
            self._cluster.peer_proxy(*pair).bytes_swallowed
            for other in others
            for pair in ((member, other), (other, member))
        )

    async def _move_leader(self, fault: Fault) -> bool:
        try:
            before = await self._cluster.leader(timeout=20)
            others = [member for member in self._cluster.members if member is not before]
            await self._cluster.move_leader(others[fault.member % 2], timeout=20)
        except TimeoutError:
            return False
        return await self._cluster.leader() is not before

    async def _compact(self, fault: Fault) -> bool:
        known = self._known()
        revision = known - int(fault.amount**2 * (known - self.compact_revision))
        if revision <= self.compact_revision:
            return False
        try:
            await self._control.kv.compact(revision)
        except EtcdError as error:
            if not error.maybe_applied:
                return False
        self.compact_revision = revision
        return True

    def _proxies(self, fault: Fault) -> list[FaultProxy]:
        proxies = self._cluster.client_proxies
        return proxies if fault.member == EVERYWHERE else [proxies[fault.member]]

    async def _cut(self, fault: Fault) -> bool:
        return sum(proxy.cut() for proxy in self._proxies(fault)) > 0

    async def _hole(self, fault: Fault, *, requests: bool, answers: bool) -> bool:
        proxies = self._proxies(fault)
        before = sum(proxy.bytes_swallowed for proxy in proxies)
        for proxy in proxies:
            proxy.blackhole(client_to_server=requests, server_to_client=answers)
        await anyio.sleep(fault.seconds)
        for proxy in proxies:
            await proxy.heal()
        return sum(proxy.bytes_swallowed for proxy in proxies) > before

    async def _blackhole(self, fault: Fault) -> bool:
        return await self._hole(fault, requests=True, answers=True)

    async def _requests_lost(self, fault: Fault) -> bool:
        return await self._hole(fault, requests=True, answers=False)

    async def _answers_lost(self, fault: Fault) -> bool:
        return await self._hole(fault, requests=False, answers=True)

    async def _delay(self, fault: Fault) -> bool:
        proxies = self._proxies(fault)
        before = sum(proxy.bytes_from_server for proxy in proxies)
        for proxy in proxies:
            proxy.delay(0.2 * fault.amount, jitter=0.2 * fault.amount)
        await anyio.sleep(fault.seconds)
        for proxy in proxies:
            await proxy.heal()
        return sum(proxy.bytes_from_server for proxy in proxies) > before

    async def _slow_consumer(self, fault: Fault) -> bool:
        before = self._run.counts["slow consumers"]
        self._run.consuming = anyio.Event()
        await anyio.sleep(fault.seconds)
        self._run.consuming.set()
        return self._run.counts["slow consumers"] > before
