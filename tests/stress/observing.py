"""What looks on during a run: the log, and the counting of what is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable

import anyio

from aioetcd import Client, EtcdError, LeaseNotFoundError
from aioetcd.testing import EtcdCluster
from aioetcd.testing.checkers import Violation
from tests.stress.shared import Party, Run

LATE_GRANTS = 5
"""So many leases may be granted in a run when nobody waits for that any more."""


async def resources(cluster: EtcdCluster) -> dict[str, float]:
    """Count what a client could leave behind, here and at the servers.

    The proxies between the members live in this process too: their connections do not count.
    """
    gc.unfreeze()
    gc.collect()
    await cluster.wait_healthy()  # for so long the proxies between the members stood still
    size = range(len(cluster.members))
    proxies = [*cluster.client_proxies, *(cluster.peer_proxy(i, j) for i in size for j in size)]
    relayed = sum(2 * proxy.connections_open for proxy in proxies)
    counts: Counter[str] = Counter(
        tasks=len(client_tasks()),
        descriptors=len(os.listdir("/proc/self/fd")) - relayed,
    )
    for member in cluster.members:
        metrics = await member.metrics()
        counts["watchers"] += int(metrics["etcd_debugging_mvcc_watcher_total"])
        counts["streams of watches"] += int(metrics["etcd_debugging_mvcc_watch_stream_total"])
    counts["leases"] = len((await cluster.members[0].gateway("lease/leases")).get("leases", ()))
    return dict(counts)


def client_tasks() -> list[str]:
    """Name the tasks that run the client's code."""
    names = [task.get_name() for task in asyncio.all_tasks()]
    return [n for n in names if n.startswith("aioetcd") and not n.startswith("aioetcd.testing")]


def target(descriptor: str) -> str:
    """Say what a descriptor of this process is."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}").partition(":[")[0]
    except OSError:
        return "closed"


class Log(logging.Handler):
    """Reads what the clients log: leases that they could not revoke, and their own failures.

    That a lease could not be revoked is said, always. It is revoked here then, so that whatever is
    left at the end was forgotten.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run
        self._given_up: set[int] = set()

    def listen(self) -> None:
        """Take what is of interest; that connections are lost is the point of it all."""
        root = logging.getLogger("aioetcd")
        root.setLevel(logging.ERROR)
        root.addHandler(self)
        for name in ("aioetcd.lease", "aioetcd.concurrency"):
            logging.getLogger(name).setLevel(logging.WARNING)
        root.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        """Take one."""
        if "nobody has waited for it" in record.msg or "taken for nobody" in record.msg:
            self._run.counts["items given up"] += 1
        elif record.levelno >= logging.ERROR:
            text = logging.Formatter().format(record)
            print(text, file=sys.stderr)
            self._run.violations.append(Violation("logged", text))
        elif "could not be revoked" in record.getMessage():
            lease_id = record.args[0] if isinstance(record.args, tuple) else None
            assert isinstance(lease_id, int)
            self._given_up.add(lease_id)
            self._run.counts["revocations given up"] += 1
        elif "could not be deleted" in record.getMessage():
            self._run.counts["deletions given up"] += 1
        elif "nobody can be cancelled" in record.getMessage():
            self._run.violations.append(Violation("logged", record.getMessage()))

    async def clear_up(self, control: Client) -> None:
        """Revoke what was given up: also where its grant, long on its way, arrives after that."""
        while True:
            with contextlib.suppress(EtcdError):
                for lease_id in self._given_up.intersection((await control.lease.leases()).ids):
                    await control.lease.revoke(lease_id)
            await anyio.sleep(0.1)


async def left_behind(run: Run, parties: Iterable[Party], control: Client) -> list[str]:
    """Name what blocks have left behind that nobody is in any more."""
    left = [
        f"the key {kv.key!r}"
        for prefix in ("locks/", "registrations/", "s/")
        for kv in (await control.kv.get(prefix, prefix=True)).kvs
    ]
    left += [
        f"the lease {lease_id:x} of {run.owners.get(lease_id, 'a short while')}"
        for lease_id in (await control.lease.leases()).ids
    ]
    for party in parties:
        if renewed := list(party.client._shared.leases.rules._kept):
            left.append(f"{party.name} renews {', '.join(f'{each:x}' for each in renewed)}")
    kinds = ("revoke", "delete", "watch of", "cache of", "registration of")
    tidying = tuple(f"aioetcd {kind} " for kind in kinds)
    return left + [f"the task {name!r}" for name in client_tasks() if name.startswith(tidying)]


async def revoke_guards(run: Run, control: Client) -> None:
    """Revoke what guards an item that a queue has put back, and was ended before it took it away.

    Such a lease runs out by itself, in minutes, and blocks nobody.
    """
    for guard in (await control.kv.get("queue/receipt/", prefix=True)).kvs:
        run.counts["guards left"] += 1
        with contextlib.suppress(LeaseNotFoundError):
            if guard.lease is not None:
                await control.lease.revoke(guard.lease)


async def revoke_late_grants(run: Run, parties: Iterable[Party], control: Client) -> None:
    """Revoke leases that were granted when nobody waited for that any more.

    A member that is cut off may carry a grant out when it is back: after another one has answered
    to the revocation. Such a lease has no key and blocks nobody, and there are few.
    """
    renewed = {
        lease_id for party in parties for lease_id in party.client._shared.leases.rules._kept
    }
    late = []
    for lease_id in {*(await control.lease.leases()).ids} - renewed:
        with contextlib.suppress(LeaseNotFoundError):
            if not (await control.lease.time_to_live(lease_id, keys=True)).keys:
                late.append(lease_id)
    if len(late) <= LATE_GRANTS:
        run.counts["leases granted late"] = len(late)
        for lease_id in late:
            with contextlib.suppress(LeaseNotFoundError):
                await control.lease.revoke(lease_id)
