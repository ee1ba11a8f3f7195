"""Carries out the plan of faults, and proves that each of them happened."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence

import anyio

from aioetcd import Client, EtcdError
from aioetcd.testing import EtcdCluster, EtcdServer, FaultProxy
from aioetcd.testing._certificates import unverified
from tests.stress.hosts import end_host
from tests.stress.plan import EVERYWHERE, Fault
from tests.stress.shared import Party, Run

BUSY = 1000
"""Bytes in a fifth of a second, which one client's reads and writes exceed and pings do not."""


class Faults:
    """Does what the plan says.

    Args:
        cluster: Whom it happens to.
        run: Slow consumers, and the report.
        control: A client past the proxies.
        known: Gives the revision up to which the oracle has the history, which may be compacted.
        parties: The clients.
        replaced: Is told of a member that has come in the place of another.

    Attributes:
        done: How often each kind of fault had an effect, and how often none.
        compact_revision: The newest compaction.
    """

    def __init__(
        self,
        cluster: EtcdCluster,
        run: Run,
        control: Client,
        *,
        known: Callable[[], int],
        parties: Sequence[Party],
        replaced: Callable[[EtcdServer], None],
    ) -> None:
        self.done: Counter[str] = Counter()
        self.compact_revision = 0
        self._cluster = cluster
        self._run = run
        self._control = control
        self._known = known
        self._parties = parties
        self._replaced = replaced

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
            return await self._cluster.leader() is not before
        except TimeoutError:
            return False

    async def _compact(self, fault: Fault) -> bool:
        known = self._known()
        if known <= self.compact_revision:
            return False
        revision = known - int(fault.amount**2 * (known - self.compact_revision - 1))
        try:
            await self._control.kv.compact(revision)
        except EtcdError as error:
            if not error.maybe_applied:
                return False
        self.compact_revision = revision
        return True

    async def _replace(self, fault: Fault) -> bool:
        before = set(self._cluster.endpoints)
        self._replaced(await self._cluster.replace(fault.member))
        await self._cluster.wait_healthy(timeout=60)
        return set(self._cluster.endpoints) != before

    async def _proxies(self, fault: Fault) -> list[FaultProxy]:
        proxies = list(self._cluster.client_proxies)
        if fault.member == EVERYWHERE:
            return proxies
        own = proxies[fault.member % len(proxies)]  # one may just be replaced
        before = own.bytes_from_server
        await anyio.sleep(0.2)
        # Where next to nothing is sent nothing can be broken: perhaps all clients have left it.
        return [own] if own.bytes_from_server > before + BUSY else proxies

    async def _cut(self, fault: Fault) -> bool:
        return sum(proxy.cut() for proxy in await self._proxies(fault)) > 0

    async def _cut_after(self, fault: Fault) -> bool:
        proxies = await self._proxies(fault)
        cuts = [proxy.cut_after(int(20_000 * fault.amount**2)) for proxy in proxies]
        await _shows(lambda: all(cut.is_set() for cut in cuts), within=fault.seconds)
        happened = await _shows(lambda: any(cut.is_set() for cut in cuts), within=10)
        await _heal(proxies)
        return happened

    async def _close(self, fault: Fault) -> bool:
        return sum(proxy.close_connections() for proxy in await self._proxies(fault)) > 0

    async def _refuse(self, fault: Fault) -> bool:
        proxies = await self._proxies(fault)
        for proxy in proxies:
            proxy.refuse()
            proxy.cut()
        refused = await _is_refused(proxies[0])
        await anyio.sleep(fault.seconds)
        await _heal(proxies)
        return refused

    async def _hang(self, fault: Fault) -> bool:
        proxies = await self._proxies(fault)
        for proxy in proxies:
            proxy.hang()
        before, _ = _passed(proxies)
        answered = await _answered_in(proxies[0], within=fault.seconds)
        passed, _ = _passed(proxies)
        await _heal(proxies)
        return answered is None and passed == before

    async def _hole(self, fault: Fault, *, requests: bool, answers: bool) -> bool:
        proxies = await self._proxies(fault)
        before = _swallowed(proxies)
        for proxy in proxies:
            proxy.blackhole(client_to_server=requests, server_to_client=answers)
        await anyio.sleep(fault.seconds)
        happened = await _shows(lambda: _swallowed(proxies) > before)
        await _heal(proxies)
        return happened

    async def _blackhole(self, fault: Fault) -> bool:
        return await self._hole(fault, requests=True, answers=True)

    async def _requests_lost(self, fault: Fault) -> bool:
        return await self._hole(fault, requests=True, answers=False)

    async def _answers_lost(self, fault: Fault) -> bool:
        return await self._hole(fault, requests=False, answers=True)

    async def _delay(self, fault: Fault) -> bool:
        proxies = await self._proxies(fault)
        seconds = 0.05 + 0.15 * fault.amount
        for proxy in proxies:
            proxy.delay(seconds, jitter=0.2 * fault.amount)
        until = time.monotonic() + fault.seconds
        happened = False
        for proxy in proxies:  # the first member may be down
            answered = await _answered_in(proxy, within=3)
            if answered is not None:
                happened = answered >= 2 * seconds
                break
        await anyio.sleep(max(0.0, until - time.monotonic()))
        await _heal(proxies)
        return happened

    async def _slow_link(self, fault: Fault) -> bool:
        proxies = await self._proxies(fault)
        rate, chunk = 4_000 + 16_000 * fault.amount, 7
        size_before, writes_before = _passed(proxies)
        began = time.monotonic()
        for proxy in proxies:
            proxy.rate(rate)
            proxy.chunk(chunk)
        await anyio.sleep(fault.seconds)
        moved = await _shows(lambda: _passed(proxies)[0] > size_before)
        size, writes = _passed(proxies)
        size, writes = size - size_before, writes - writes_before
        most = 2 * len(proxies) * rate * (time.monotonic() - began + 0.1)
        await _heal(proxies)
        return moved and size <= min(most, writes * chunk)

    async def _slow_consumer(self, fault: Fault) -> bool:
        self._run.consuming = anyio.Event()
        try:
            await anyio.sleep(fault.seconds)
            return await _shows(
                lambda: any(party.client.stats().paused_watches for party in self._parties),
                within=15,
            )
        finally:
            self._run.consuming.set()

    async def _cancel_host(self, fault: Fault) -> bool:
        return await self._end_host(fault, all_tasks=False)

    async def _cancel_all_tasks(self, fault: Fault) -> bool:
        return await self._end_host(fault, all_tasks=True)

    async def _end_host(self, fault: Fault, *, all_tasks: bool) -> bool:
        place = fault.amount * len(self._parties)
        party = self._parties[int(place)]
        return await end_host(self._run, party, all_tasks=all_tasks, at_once=place % 1 < 0.5)


async def _heal(proxies: Iterable[FaultProxy]) -> None:
    for proxy in proxies:
        await proxy.heal()


def _swallowed(proxies: Iterable[FaultProxy]) -> int:
    return sum(proxy.bytes_swallowed for proxy in proxies)


def _passed(proxies: Sequence[FaultProxy]) -> tuple[int, int]:
    """How many bytes have passed both ways, and in how many writes."""
    return (
        sum(proxy.bytes_from_client + proxy.bytes_from_server for proxy in proxies),
        sum(proxy.writes_from_client + proxy.writes_from_server for proxy in proxies),
    )


async def _shows(effect: Callable[[], bool], *, within: float = 5) -> bool:
    """Let a fault go on until its effect shows, but not for ever."""
    with anyio.move_on_after(within):
        while not effect():
            await anyio.sleep(0.01)
    return effect()


async def _answered_in(proxy: FaultProxy, *, within: float) -> float | None:
    """The seconds that a question through a proxy takes; None without an answer."""
    host, _, port = proxy.endpoint.rpartition(":")
    began = time.monotonic()
    with anyio.move_on_after(within):
        try:
            async with await anyio.connect_tcp(
                host,
                int(port),
                tls=True,
                ssl_context=unverified(),
                tls_standard_compatible=False,
            ) as stream:
                await stream.send(b"GET /version HTTP/1.0\r\n\r\n")
                await stream.receive()
                return time.monotonic() - began
        except (OSError, anyio.EndOfStream, anyio.BrokenResourceError):
            pass
    return None


async def _is_refused(proxy: FaultProxy) -> bool:
    host, _, port = proxy.endpoint.rpartition(":")
    try:
        stream = await anyio.connect_tcp(host, int(port))
    except OSError as error:
        return isinstance(error.__cause__ or error, ConnectionRefusedError)
    await stream.aclose()
    return False
