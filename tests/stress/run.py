"""A long run of random faults against a cluster of three, with everything checked at the end.

    python -m tests.stress.run MINUTES [SEED] [--batched]

The cluster speaks TLS and wants a user, whose tokens are over after some seconds.

The seed decides the plan of faults and what each client does; how the two fall together is up to
the machine. Exit code 1 means that a guarantee was broken: the violations are printed, and the
whole history is kept as JSON lines, which `aioetcd.testing.Recorder.load` reads.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from aioetcd import Client, EtcdError, EventType
from aioetcd.testing import EtcdCluster, EtcdServer, Observer, Recorder, observe
from aioetcd.testing.checkers import (
    Violation,
    check_history,
    check_leases,
    check_no_leak,
    count_outcomes,
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
from tests.stress.checks import (
    check_deadlines,
    check_harness,
    excuse_missing,
    lacking,
    leases_gone,
    revoked_early,
    server_bugs,
)
from tests.stress.faults import Faults
from tests.stress.hasty import hasty
from tests.stress.holding import GUARDED, SESSIONS, WRITTEN, holder, locker
from tests.stress.observing import (
    Log,
    client_tasks,
    left_behind,
    resources,
    revoke_guards,
    revoke_late_grants,
    target,
)
from tests.stress.plan import LANES, plan
from tests.stress.recipes import (
    check_shares,
    check_updates,
    follower,
    guest,
    registrant,
    updater,
)
from tests.stress.shared import Actor, Party, Run, Stopwatch
from tests.stress.sharing import (
    banker,
    check_sharing,
    counting,
    employee,
    employer,
    open_accounts,
    sharder,
    trader,
)
from tests.stress.together import juggler, sharer
from tests.stress.traffic import KEYS, PREFIX, delete, put, reader, writer
from tests.stress.watching import watcher

FOLDER = Path(__file__).parent.parent.parent / ".stress"

EXACT = {"lease too early", "lease before the store"}
"""Rules of leases that are checked with another tolerance than the rest."""

INBOX_EVENTS = 200
"""How many events a watch has before its consumer until it is paused at the server."""

MORE = 40.0
"""So many seconds after the last fault each kind of traffic must have been.

On a busy machine a short run is over before the rarest of them.
"""

TIMEOUT = 3.0
"""The deadline of all calls of the clients, in seconds."""

RECOVERY = 2.0
"""So many seconds after all is well again everybody writes."""

IN_DOUBT = 20.0
"""For so many seconds a write that everything else needs is repeated where it is in doubt."""

UNASKED = 5
"""At the end, so often may a write be measured again because of an election nobody asked for."""

TOKEN_TTL = 5
"""So many seconds a token lives, used or not."""

USER = ("root", "secret")

LEFT = 2.0
"""So many seconds after the last block was left nothing of it may be left."""

PARTIES: dict[str, dict[Actor, int]] = {
    **{f"client{number}": {writer: 4, reader: 2, watcher: 3, holder: 3} for number in range(4)},
    **{f"locker{number}": {locker: 2, sharer: 1, juggler: 1, hasty: 2} for number in range(2)},
    **{f"locker{number}": {guest: 4, follower: 2, registrant: 2, updater: 2} for number in (2, 3)},
    **{
        f"locker{number}": {
            banker: 2,
            counting: 2,
            trader: 3,
            employer: 2,
            employee: 2,
            sharder: 2,
        }
        for number in (4, 5)
    },
}
"""The clients, what each does, and how often at a time."""


class Stress:
    """One run."""

    def __init__(
        self, seconds: float, seed: int, token_key: Path, *, is_batched: bool = False
    ) -> None:
        self.run = Run(seed, is_batched=is_batched)
        # Signed ones: others live on for as long as they are used.
        token_key.write_bytes(random.Random(seed).randbytes(32))
        signing = f"priv-key={token_key},sign-method=HS256,ttl={TOKEN_TTL}s"
        self.cluster = EtcdCluster(
            3,
            seed=seed,
            tls=True,
            auth=USER,
            args=[f"--auth-token=jwt,{signing}", "--bcrypt-cost=4"],
        )
        self.observer = Observer()
        self.lateness = self.run.lateness
        self.log = Log(self.run)
        self.violations = self.run.violations
        version = self.cluster.members[0].version_info
        self.left_out = server_bugs(version)
        self.plan = plan(seed, seconds, without=self.left_out)
        self.parties: list[Party] = []
        self._settled_at = 0
        self._failed = False

    async def go(self) -> None:
        """Do all of it."""
        # So few that a consumer that waits for a second or two has its watch paused.
        watch_rules.INBOX_EVENTS = INBOX_EVENTS
        async with (
            self.cluster,
            observe(self.run.recorder, self.cluster.members) as self.observer,
            anyio.create_task_group() as observing,
        ):
            observing.start_soon(self.lateness.measure)
            self.parties = [Party(name, partial(self._client, name)) for name in PARTIES]
            async with self._control() as control:
                await self._write(control)
                await _surely(partial(open_accounts, control))
            await self.observer.wait_for(self.run.revision, timeout=10)
            before = await resources(self.cluster)
            self.lateness.most = 0
            async with self._control() as control:
                faults = Faults(
                    self.cluster,
                    self.run,
                    control,
                    known=lambda: self.observer.revision,
                    parties=self.parties,
                    replaced=partial(self._replaced, control),
                )
                async with anyio.create_task_group() as clearing:
                    clearing.start_soon(self.log.clear_up, control)
                    await self._traffic(faults, control)
                    clearing.cancel_scope.cancel()
            most_late = self.lateness.most
            await self._leaves_nothing(before)
            async with self._control() as control:
                await self._check(faults, control)
            self._check_run(faults)
            observing.cancel_scope.cancel()
        self._report(faults, most_late)

    def _control(self) -> Client:
        """Make a client past all proxies."""
        return self._signed_in(self.cluster.direct_endpoints)

    def _signed_in(self, endpoints: list[str], **options: Any) -> Client:
        username, password = USER
        return Client(
            endpoints, tls=self.cluster.tls, username=username, password=password, **options
        )

    def _replaced(self, control: Client, member: EtcdServer) -> None:
        """Let everybody know of a new member who does not ask for it himself."""
        self.observer.add(member)
        control.set_endpoints(self.cluster.direct_endpoints)
        for party in self.parties:
            if not party.name.startswith("locker"):
                party.client.set_endpoints(self._endpoints(party.name))

    def _endpoints(self, name: str) -> list[str]:
        index, ways = int(name[-1]), self.cluster.endpoints
        # The last one knows a single member, and has to wait for it.
        return ways[:1] if index == 3 else ways

    def _client(self, name: str) -> Client:
        """Make a party's client."""
        if name.startswith("locker"):  # whose leases are not checked, but its locks
            return self._signed_in(self.cluster.endpoints, timeout=TIMEOUT, auto_sync=1)
        client = self._signed_in(
            self._endpoints(name), timeout=TIMEOUT, keepalive_time=5, keepalive_timeout=2
        )
        LeaseSpy(client, self.run.recorder)
        return client

    async def _traffic(self, faults: Faults, control: Client) -> None:
        async with anyio.create_task_group() as watching:
            async with anyio.create_task_group() as acting:
                for party in self.parties:
                    for actor, count in PARTIES[party.name].items():
                        group = watching if actor is watcher else acting
                        for number in range(count):
                            group.start_soon(
                                self._act, actor, party, f"{party.name}.{actor.__name__}{number}"
                            )
                async with anyio.create_task_group() as failing:
                    for lane in LANES:
                        failing.start_soon(
                            faults.play, [fault for fault in self.plan if fault.lane == lane]
                        )
                self.run.consuming.set()
                await self.cluster.wait_healthy(timeout=30)
                with anyio.move_on_after(MORE):
                    while lacking(self._happened()):
                        await anyio.sleep(0.1)
                self.run.stopping = True
            await self._all_left(control)
            await self._recovered()
            for party in self.parties:
                with anyio.move_on_after(2) as scope:
                    await party.client.aclose()
                if scope.cancelled_caught:
                    self.violations.append(Violation("close", "a client took longer than 2 s"))

    async def _act(self, actor: Actor, party: Party, name: str) -> None:
        try:
            await actor(self.run, party, name)
        except asyncio.CancelledError:
            # A block's own cancellation that came out of it: nobody else cancels an actor.
            if not self._failed:
                self.violations.append(Violation("cancelled", f"{name} was cancelled"))
            raise
        except BaseException:
            self._failed = True
            raise

    async def _all_left(self, control: Client) -> None:
        """What a block leaves behind goes soon, though its client goes on."""
        left: list[str] = []
        with anyio.move_on_after(LEFT):
            while left := await left_behind(self.run, self.parties, control):
                await anyio.sleep(0.05)
        if left:
            await revoke_guards(self.run, control)
            await revoke_late_grants(self.run, self.parties, control)
            left = await left_behind(self.run, self.parties, control)
        self.violations += [Violation("left behind", each) for each in left]

    async def _write(self, client: Client) -> int:
        """Put and delete every key, the first of them last; give the revision of its put."""
        for key in reversed(KEYS):
            await _surely(partial(put, self.run, client, "control", key))
        put_at = self.run.revision
        for key in reversed(KEYS):
            await _surely(partial(delete, self.run, client, "control", key))
        return put_at

    async def _recovered(self) -> None:
        """Once all is well again, every client writes and every watch has everything."""
        for party in self.parties:
            for _ in range(UNASKED):
                led = await self._led()
                watch = Stopwatch(self.lateness)
                failed: Exception | None = None
                try:
                    await put(self.run, party.client, f"{party.name}.final", KEYS[1])
                except Exception as error:  # noqa: BLE001  # whatever it is, it is the finding
                    failed = error
                took = watch.seconds
                if await self._led() == led:
                    break
                self.run.counts["elections that nobody asked for"] += 1  # so not all was well
                await self.cluster.wait_healthy(timeout=30)
            if failed is not None:
                self.violations.append(Violation("recovery", f"{party.name}: {failed!r}"))
            if took > RECOVERY:
                text = f"{party.name} wrote after {took:.2f} s"
                self.violations.append(Violation("recovery", text))
            self.run.counts["slowest recovery in ms"] = max(
                self.run.counts["slowest recovery in ms"], int(took * 1000)
            )
        put_at = await self._write(self.parties[0].client)
        await self.observer.wait_for(self.run.revision)

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
        self.run.settled = True  # what is open from now on must have everything
        self._settled_at = self.run.revision

    async def _led(self) -> set[tuple[int, int]]:
        """Give who leads and in which term, as the members say, past all proxies."""
        said = set()
        for member in self.cluster.members:
            with contextlib.suppress(OSError, RuntimeError):  # it does not answer
                status = await self.cluster._ask(member)
                said.add((status.leader_id, status.raft_term))
        return said

    async def _leaves_nothing(self, before: dict[str, float]) -> None:
        # What a blackhole swallowed is found dead by the servers, and leases whose revocation was
        # lost run out.
        found = [Violation("harness", "nobody could be asked what is left")]
        with anyio.move_on_after(20):
            while found:
                found = check_no_leak(before, await resources(self.cluster))
                await anyio.sleep(0.2)
        if found:
            print("tasks:", Counter(client_tasks()))
            print("descriptors:", Counter(map(target, os.listdir("/proc/self/fd"))))
        self.violations += found

    async def _check(self, faults: Faults, control: Client) -> None:
        last = (await control.kv.get("x", timeout=10)).header.revision
        await self.observer.wait_for(last)
        recorder = self.run.recorder
        signals = recorder.of(LeaseSignal)
        given_up = {signal.lease_id for signal in signals if signal.kind == "revoked"}
        gone = leases_gone(recorder.of(StoreRevision))
        ran_out = {i: at for i, at in gone.items() if i not in given_up}
        early = revoked_early(signals, ran_out)
        ran_out = {i: at for i, at in ran_out.items() if i not in early}
        self.run.counts["leases that ran out"] = len(ran_out)
        self.run.counts["leases that the server revoked early"] = len(early)
        # What the owner could not be told before the loop had a turn counts from when it was due;
        # whether it was told too early is asked of the times as they were.
        in_time = Recorder(map(self._told_in_time, recorder.records))
        found = check_history(
            in_time,
            outside=lambda event: not event.kv.key.startswith((PREFIX, SESSIONS, GUARDED)),
            watched_through=self._settled_at,
            compact_revision=faults.compact_revision,
            expired_ns=ran_out,
            until_ns=time.monotonic_ns(),
            tolerance_ns=LATENESS,
        )
        shares = [
            replace(each, ended_ns=self.lateness.in_time(each.ended_ns)) if each.is_lost else each
            for each in self.run.shares
        ]
        writers = [hold for hold in in_time.of(LockHold) if hold.name == WRITTEN]
        self.violations += check_shares(shares, writers)
        await check_updates(self.run, control)
        await check_sharing(self.run, control)
        calls = [op for op in recorder.of(Operation) if not op.client.startswith("control")]
        self.violations += check_deadlines(calls, TIMEOUT, self.lateness.between)
        found, excused = excuse_missing(found, recorder.of(Delivery))
        self.run.counts["events sent too early to have the key before"] = excused
        self.violations += [v for v in found if v.checker not in EXACT]
        for records, rule in ((recorder, "lease too early"), (in_time, "lease before the store")):
            found = check_leases(
                records.of(LeaseSignal),
                expired_ns=ran_out,
                tolerance_ns=LATENESS if rule == "lease too early" else 0,
            )
            self.violations += [v for v in found if v.checker == rule]

    def _told_in_time(self, record: Record) -> Record:
        if isinstance(record, LockHold) and record.lost_ns is not None:
            return replace(record, lost_ns=self.lateness.in_time(record.lost_ns))
        if isinstance(record, LeaseSignal) and record.kind == "lost":
            return replace(record, at_ns=self.lateness.in_time(record.at_ns))
        return record

    def _check_run(self, faults: Faults) -> None:
        self.violations += check_harness(self.plan, faults.done, self._happened())

    def _happened(self) -> Counter[str]:
        writes = [op for op in self.run.recorder.of(Operation) if not isinstance(op.request, Get)]
        signed_in = sum(party.client._transport.tokens.asked for party in self.parties)
        return Counter(
            {
                **self.run.counts,
                "ok writes": count_outcomes(writes)["ok"],
                "tokens that were over": max(0, signed_in - len(self.parties)),
            }
        )

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
        print(f"seen: {_told(self._happened())}")
        for party in self.parties:
            stats = [*party.closed, party.client.stats()]
            calls, retries = sum(each.calls for each in stats), sum(each.retries for each in stats)
            print(
                f"{party.name}: {calls} calls, {retries} retries, "
                f"{sum(each.reconnects for each in stats)} reconnects, {len(stats)} clients"
            )
        print(f"the event loop was late by {most_late / 1e6:.0f} ms at the most")


async def _surely(write: Callable[[], Awaitable[None]]) -> None:
    """Write, and again where it is in doubt: what is under way in an election may be lost."""
    give_up_at = time.monotonic() + IN_DOUBT
    while True:
        try:
            return await write()
        except EtcdError as error:
            if not error.maybe_applied or time.monotonic() > give_up_at:
                raise
        await anyio.sleep(0.02)  # between two tries


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()) if count)


def main(minutes: float, seed: int, token_key: Path, *, is_batched: bool) -> int:
    """Run, report, and give the exit code."""
    stress = Stress(minutes * 60, seed, token_key, is_batched=is_batched)
    stress.log.listen()
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
    parser.add_argument("--batched", action="store_true", help="let calls share round trips")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        code = main(
            arguments.minutes,
            arguments.seed,
            Path(folder) / "token.key",
            is_batched=arguments.batched,
        )
    sys.exit(code)
