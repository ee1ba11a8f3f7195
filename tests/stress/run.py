"""A long run of random faults against a cluster of three, with everything checked at the end.

    python -m tests.stress.run MINUTES [SEED]

The seed decides the plan of faults and what each client does; how the two fall together is up to
the machine. Exit code 1 means that a guarantee was broken: the violations are printed, and the
whole history is kept as JSON lines, which `aioetcd.testing.Recorder.load` reads.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import random
import sys
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import anyio

from aioetcd import Client, CompactedError, EventType
from aioetcd.testing import EtcdCluster, EtcdServer, Recorder
from aioetcd.testing.checkers import (
    Oracle,
    Violation,
    check_history,
    check_leases,
    check_no_leak,
    count_outcomes,
    watch_reliable,
)
from aioetcd.testing.history import (
    Delivery,
    EventKind,
    Get,
    LeaseSignal,
    LockHold,
    Operation,
    Record,
    StoreRevision,
    Subscription,
)
from aioetcd.watch import _state as watch_rules
from tests.lease.signals import LATENESS, LeaseSpy
from tests.stress import traffic
from tests.stress.faults import Faults
from tests.stress.plan import LANES, Fault, plan
from tests.stress.traffic import KEYS, Actor, Run

FOLDER = Path(__file__).parent.parent.parent / ".stress"

# Faults that a server below this version does not survive by its own fault.
SERVER_BUGS = {
    "kill": ((3, 5, 6), "loses or differs in what it acknowledged (etcd #13766, #14370)"),
    "pause": ((3, 6, 9), "reads old data and revokes leases by an old clock (#20418, #15247)"),
    "compact": ((3, 5, 18), "loses watch events at a compaction (#17610, #19179)"),
}
TRAFFIC = ("ok writes", "watch events", "sessions", "locks", "guarded txns")
"""What every run must have had, as it is counted in `Run.counts`."""

EXACT = {"lease too early", "lease before the store"}
"""Rules of leases that are checked with another tolerance than the rest."""

INBOX_EVENTS = 200
"""How many events a watch has before its consumer until it is paused at the server."""

BACKPORTED = {"pause": ((3, 5, 28), (3, 6, 0))}


def server_bugs(version: tuple[int, ...]) -> dict[str, str]:
    """Give the faults to leave out for an etcd, with the reasons."""
    left_out = {}
    for kind, (fixed, reason) in SERVER_BUGS.items():
        low, high = BACKPORTED.get(kind, (fixed, fixed))
        if version < fixed and not low <= version < high:
            left_out[kind] = reason
    return left_out


class Observer:
    """The oracle: a client at each member, past all proxies, that watches from revision 1.

    The members are restarted and paused as well, so no single one is relied on: what one misses
    another has, the checkers compare what several have, and no revision may be missing.
    """

    def __init__(self, cluster: EtcdCluster, recorder: Recorder) -> None:
        self.revision = 1
        self.leases_gone: dict[int, int] = {}
        self._cluster = cluster
        self._recorder = recorder

    async def watch(self, member: EtcdServer) -> None:
        """Write down what one member tells."""
        start = 1
        async with Client(member.endpoint, timeout=None) as client:
            while True:
                try:
                    async with client.watch("", prefix=True, start_revision=start) as watch:
                        async for batch in watch.batches():
                            self._recorder.stored(batch.events)
                            self.revision = max(self.revision, batch.revision)
                            for event in batch.events:
                                lease_id = traffic.lease_of(event.kv.key)
                                if event.type is EventType.DELETE and lease_id is not None:
                                    self.leases_gone.setdefault(lease_id, time.monotonic_ns())
                except CompactedError as error:  # another member had it
                    start = error.compact_revision or start

    async def wait_for(self, revision: int, *, within: float) -> None:
        """Wait until the history is known so far."""
        with anyio.fail_after(within):
            while self.revision < revision:
                await anyio.sleep(0.02)


class Lateness:
    """Knows how late the event loop was, and when: what is told then cannot be told in time.

    It asks for turns of the loop all the time. From a timer to the code of whoever waits for it
    there are some turns, each of which may be late: the timer's callback, the task that it wakes,
    the cancellation of the owner's code.

    Attributes:
        most: The most that one turn was late, in nanoseconds.
    """

    TURNS = 5

    def __init__(self) -> None:
        self.most = 0
        self._ends: list[int] = []
        self._late: list[int] = []

    async def measure(self) -> None:
        """Ask for turns of the loop, and see when they come."""
        while True:
            before = time.monotonic_ns()
            await anyio.sleep(0.005)
            now = time.monotonic_ns()
            self.add(now, now - before - 5_000_000)
            # A collection that looks at all records would itself stop the loop for a long time.
            gc.freeze()

    def add(self, end_ns: int, late_ns: int) -> None:
        """A turn came, so much later than asked for."""
        self._ends.append(end_ns)
        self._late.append(max(0, late_ns))
        self.most = max(self.most, late_ns)

    def in_time(self, told_ns: int) -> int:
        """When something would have been told, had the turns before it not been late."""
        turn = bisect_left(self._ends, told_ns) + 1  # with the one that was under way
        return told_ns - sum(self._late[max(0, turn - self.TURNS) : turn])


async def resources(cluster: EtcdCluster) -> dict[str, float]:
    """Count what a client could leave behind, here and at the servers.

    The proxies between the members live in this process too: their connections do not count.
    """
    gc.unfreeze()
    gc.collect()
    size = range(len(cluster.members))
    proxies = [*cluster.client_proxies, *(cluster.peer_proxy(i, j) for i in size for j in size)]
    relayed = sum(2 * proxy.connections_open for proxy in proxies)
    counts: Counter[str] = Counter(
        tasks=len(_client_tasks()),
        descriptors=len(os.listdir("/proc/self/fd")) - relayed,
    )
    for member in cluster.members:
        metrics = await member.metrics()
        counts["watchers"] += int(metrics["etcd_debugging_mvcc_watcher_total"])
        counts["streams of watches"] += int(metrics["etcd_debugging_mvcc_watch_stream_total"])
    counts["leases"] = len((await cluster.members[0].gateway("lease/leases")).get("leases", ()))
    return dict(counts)


def _client_tasks() -> list[str]:
    """Name the tasks that run the client's code."""
    names = [task.get_name() for task in asyncio.all_tasks()]
    return [n for n in names if n.startswith("aioetcd") and not n.startswith("aioetcd.testing")]


def check_harness(
    planned: Iterable[Fault], done: Counter[str], happened: Counter[str]
) -> list[Violation]:
    """Faults and traffic were there: without them all checks pass, and nothing was shown.

    A single fault may meet a moment in which it changes nothing (a leader moved in an election); a
    kind that was planned twice and more may not, nor half of all kinds.

    Args:
        planned: The plan.
        done: How often each kind of fault had an effect.
        happened: What the actors counted.
    """
    missing = [f"no {what}" for what in TRAFFIC if not happened[what]]
    kinds = Counter(fault.kind for fault in planned)
    idle = {kind: count for kind, count in sorted(kinds.items()) if not done[kind]}
    missing += [
        f"not one of {count} {kind} had an effect"
        for kind, count in idle.items()
        if count > 1 or 2 * len(idle) > len(kinds)
    ]
    if not kinds:
        missing.append("no fault was planned")
    return [Violation("harness", text) for text in missing]


def revoked_early(signals: Iterable[LeaseSignal], gone_ns: Mapping[int, int]) -> set[int]:
    """Leases that the store dropped before the time was over that its own answers had granted.

    A leader that stood still may, before it knows of its successor, revoke what it takes for
    expired, and its successor carries that out although it has renewed the lease meanwhile. The
    owner can only learn it afterwards, as any revocation; no later than at its deadline all the
    same.

    Args:
        signals: Those of all leases.
        gone_ns: When the oracle saw the key of a lease go that nobody revoked.
    """
    return {
        signal.lease_id
        for signal in signals
        if signal.kind == "answered"
        and signal.sent_ns is not None
        and signal.ttl is not None
        and signal.at_ns <= gone_ns.get(signal.lease_id, 0) < signal.sent_ns + signal.ttl * 1e9
    }


ACTORS: list[tuple[Actor, int]] = [
    (traffic.writer, 2),
    (traffic.reader, 1),
    (traffic.watcher, 3),
    (traffic.holder, 3),
    (traffic.locker, 2),
]
"""What each client does, and how often at a time."""


class Stress:
    """One run."""

    def __init__(self, seconds: float, seed: int) -> None:
        self.run = Run(seed)
        self.cluster = EtcdCluster(3, seed=seed)
        self.observer = Observer(self.cluster, self.run.recorder)
        self.lateness = Lateness()
        self.stats: dict[str, str] = {}
        self.violations = self.run.violations
        version = self.cluster.members[0].version_info
        self.left_out = server_bugs(version)
        self.plan = plan(seed, seconds, without=self.left_out)
        self._clients: dict[str, Client] = {}
        self._live: dict[str, int] = {}
        self._began_ns = time.monotonic_ns()

    async def go(self) -> None:
        """Do all of it."""
        # So few that a consumer that waits for a second or two has its watch paused.
        watch_rules.INBOX_EVENTS = INBOX_EVENTS
        async with self.cluster, anyio.create_task_group() as observing:
            for member in self.cluster.members:
                observing.start_soon(self.observer.watch, member)
            observing.start_soon(self.lateness.measure)
            async with Client(self.cluster.direct_endpoints) as control:
                faults = Faults(
                    self.cluster,
                    self.run,
                    control,
                    known=lambda: self.observer.revision,
                    paused=lambda: sum(
                        client.stats().paused_watches for client in self._clients.values()
                    ),
                )
                await self._write(control)
                await self.observer.wait_for(self.run.revision, within=10)
                before = await resources(self.cluster)
                self.lateness.most = 0
                await self._traffic(faults, control)
                most_late = self.lateness.most
                await self._leaves_nothing(before)
                await self._check(faults, control)
                self._check_run(faults)
            observing.cancel_scope.cancel()
        self._report(faults, most_late)

    async def _traffic(self, faults: Faults, control: Client) -> None:
        async with AsyncExitStack() as stack, anyio.create_task_group() as watching:
            for index in range(4):
                ways = self.cluster.endpoints
                # The last one knows a single member, and has to wait for it.
                endpoints = ways[:1] if index == 3 else ways[index:] + ways[:index]
                client = Client(endpoints, timeout=3, keepalive_time=5, keepalive_timeout=2)
                self._clients[f"client{index}"] = await stack.enter_async_context(client)
            locking = Client(self.cluster.endpoints, timeout=3)
            self._clients["locker"] = await stack.enter_async_context(locking)
            for client in list(self._clients.values())[:-1]:
                LeaseSpy(client, self.run.recorder)
            async with anyio.create_task_group() as acting:
                for name, client in self._clients.items():
                    for actor, count in ACTORS:
                        if (actor is traffic.locker) != (name == "locker"):
                            continue
                        group = watching if actor is traffic.watcher else acting
                        for number in range(count * (2 if actor is traffic.locker else 1)):
                            group.start_soon(
                                actor, self.run, client, f"{name}.{actor.__name__}{number}"
                            )
                async with anyio.create_task_group() as failing:
                    for lane in LANES:
                        failing.start_soon(
                            faults.play, [fault for fault in self.plan if fault.lane == lane]
                        )
                self.run.consuming.set()
                await self.cluster.wait_healthy(timeout=30)
                self.run.stopping = True
            await self._recovered()
            for name, client in self._clients.items():
                stats = client.stats()
                self.stats[name] = (
                    f"{stats.calls} calls, {stats.retries} retries, {stats.reconnects} reconnects"
                )
            for client in self._clients.values():
                with anyio.move_on_after(2) as scope:
                    await client.aclose()
                if scope.cancelled_caught:
                    self.violations.append(Violation("close", "a client took longer than 2 s"))

    async def _write(self, client: Client) -> int:
        """Put and delete every key, the first of them last; give the revision of its put."""
        for key in reversed(KEYS):
            await traffic.put(self.run, client, "control", key)
        put_at = self.run.revision
        for key in reversed(KEYS):
            self.run.saw((await client.kv.delete(key, timeout=20)).header.revision)
        return put_at

    async def _recovered(self) -> None:
        """Once all is well again, every client writes and every watch has everything."""
        for name, client in self._clients.items():
            began = time.monotonic()
            try:
                await traffic.put(self.run, client, f"{name}.final", KEYS[1])
            except Exception as error:  # noqa: BLE001  # whatever it is, it is the finding
                self.violations.append(Violation("recovery", f"{name}: {error!r}"))
            self.run.counts["slowest recovery in ms"] = max(
                self.run.counts["slowest recovery in ms"], int((time.monotonic() - began) * 1000)
            )
        put_at = await self._write(next(iter(self._clients.values())))
        await self.observer.wait_for(self.run.revision, within=20)

        def behind() -> dict[str, int]:
            return {
                name: at
                for name, at in self.run.last_seen.items()
                if at < (put_at if self.run.only[name] is EventType.PUT else self.run.revision)
            }

        with anyio.move_on_after(20):
            while behind():
                await anyio.sleep(0.02)
        for name, at in behind().items():
            text = f"{name} is at {at}, the store at {self.run.revision}"
            self.violations.append(Violation("watch stuck", text))
        self._live = dict.fromkeys(self.run.last_seen, self.run.revision)

    async def _leaves_nothing(self, before: dict[str, float]) -> None:
        # What a blackhole swallowed is found dead by the servers, and leases whose revocation was
        # lost run out.
        found: list[Violation] = []
        with anyio.move_on_after(20):
            while True:
                after = await resources(self.cluster)
                found = check_no_leak(before, after)
                if not found:
                    break
                await anyio.sleep(0.2)
        if found:
            print("tasks:", Counter(_client_tasks()))
            print("descriptors:", Counter(map(_target, os.listdir("/proc/self/fd"))))
        self.violations += found

    async def _check(self, faults: Faults, control: Client) -> None:
        last = (await control.kv.get("x", timeout=10)).header.revision
        await self.observer.wait_for(last, within=20)
        recorder = self.run.recorder
        known = {record.revision for record in recorder.of(StoreRevision)}
        if missing := set(range(2, last + 1)) - known:
            text = f"the oracle misses {len(missing)} revisions, such as {min(missing)}"
            self.violations.append(Violation("harness", text))
        signals = recorder.of(LeaseSignal)
        given_up = {signal.lease_id for signal in signals if signal.kind == "revoked"}
        ran_out = {i: at for i, at in self.observer.leases_gone.items() if i not in given_up}
        early = revoked_early(signals, ran_out)
        ran_out = {i: at for i, at in ran_out.items() if i not in early}
        self.run.counts["leases that ran out"] = len(ran_out)
        self.run.counts["leases that the server revoked early"] = len(early)
        # What the owner could not be told before the loop had a turn counts from when it was due;
        # whether it was told too early is asked of the times as they were.
        in_time = Recorder(map(self._told_in_time, recorder.records))
        found = check_history(
            in_time,
            compact_revision=faults.compact_revision,
            expired_ns=ran_out,
            until_ns=time.monotonic_ns(),
            tolerance_ns=LATENESS,
        )
        self.violations += [v for v in found if v.checker not in EXACT]
        for records, rule in ((recorder, "lease too early"), (in_time, "lease before the store")):
            found = check_leases(
                records.of(LeaseSignal),
                expired_ns=ran_out,
                tolerance_ns=LATENESS if rule == "lease too early" else 0,
            )
            self.violations += [v for v in found if v.checker == rule]
        self._check_live(Oracle(recorder.of(StoreRevision)))

    def _told_in_time(self, record: Record) -> Record:
        if isinstance(record, LockHold) and record.lost_ns is not None:
            return replace(record, lost_ns=self.lateness.in_time(record.lost_ns))
        if isinstance(record, LeaseSignal) and record.kind == "lost":
            return replace(record, at_ns=self.lateness.in_time(record.at_ns))
        return record

    def _check_run(self, faults: Faults) -> None:
        writes = [op for op in self.run.recorder.of(Operation) if not isinstance(op.request, Get)]
        happened = Counter(self.run.counts)
        happened["ok writes"] = count_outcomes(writes)["ok"]
        self.violations += check_harness(self.plan, faults.done, happened)

    def _check_live(self, oracle: Oracle) -> None:
        """What was open at the end must have everything up to there."""
        deliveries: dict[str, list[Delivery]] = {}
        for delivery in self.run.recorder.of(Delivery):
            deliveries.setdefault(delivery.watch, []).append(delivery)
        for subscription in self.run.recorder.of(Subscription):
            if (through := self._live.get(subscription.watch)) is not None:
                own = deliveries.get(subscription.watch, [])
                self.violations += watch_reliable(subscription, own, oracle, through=through)

    def _report(self, faults: Faults, most_late: int) -> None:
        recorder = self.run.recorder
        outcomes = count_outcomes(recorder.of(Operation))
        subscriptions = recorder.of(Subscription)
        print(f"faults: {_told(faults.done)}")
        for kind, reason in self.left_out.items():
            print(f"  left out: {kind}: this etcd {reason}")
        print(f"operations: {_told(outcomes)}; revisions: {self.observer.revision}")
        filtered = sum(subscription.only is not None for subscription in subscriptions)
        deletes = sum(subscription.only is EventKind.DELETE for subscription in subscriptions)
        print(f"watches: {len(subscriptions)}, {filtered} filtered ({deletes} for deletes)")
        print(f"seen: {_told(self.run.counts)}")
        for name, stats in self.stats.items():
            print(f"{name}: {stats}")
        print(f"the event loop was late by {most_late / 1e6:.0f} ms at the most")


def _target(descriptor: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}").partition(":[")[0]
    except OSError:
        return "closed"


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()) if count)


def main(minutes: float, seed: int) -> int:
    """Run, report, and give the exit code."""
    logging.getLogger("aioetcd").setLevel(logging.ERROR)  # that connections are lost is the point
    stress = Stress(minutes * 60, seed)
    member = stress.cluster.members[0]
    name = (
        f"{minutes:g} minutes, seed {seed}, etcd {member.version}, Python {sys.version.split()[0]}"
    )
    print(f"stress: {name}; {len(stress.plan)} faults planned", flush=True)
    failure: BaseException | None = None
    try:
        anyio.run(stress.go)
    except Exception as error:  # noqa: BLE001  # the history is worth the more then
        failure = error
        import traceback

        traceback.print_exc()
    for violation in stress.violations[:20]:
        print(f"VIOLATION {str(violation)[:2000]}")
    if stress.violations or failure:
        FOLDER.mkdir(exist_ok=True)
        path = FOLDER / f"history-{seed}-{member.version}.jsonl"
        stress.run.recorder.dump(path)
        print(f"{len(stress.violations)} violation(s); history: {path}")
    print(f"stress: {name}: {'FAILED' if stress.violations or failure else 'all checks passed'}")
    return 1 if stress.violations or failure else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("minutes", type=float)
    parser.add_argument("seed", type=int, nargs="?", default=random.SystemRandom().randrange(10**6))
    arguments = parser.parse_args()
    sys.exit(main(arguments.minutes, arguments.seed))
