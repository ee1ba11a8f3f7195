"""Clients that share numbers, jobs and items during a stress run."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import anyio

from aioetcd import Client, EtcdError, Job, JobLostError, Share, Transaction
from aioetcd.testing.checkers import Violation
from aioetcd.testing.history import LockHold
from tests.stress.shared import Party, Run, only_if_closed, tried

ACCOUNTS, OPENED_WITH = [f"bank/{number}" for number in range(10)], 100
COUNTER, QUEUE, JOBS = "counters/exact", "queue", "jobs"
SHARDS, ITEMS = "shards", [f"{number}" for number in range(12)]


async def open_accounts(client: Client) -> None:
    """Put what is moved to and fro."""
    await client.kv.put_many(dict.fromkeys(ACCOUNTS, str(OPENED_WITH)))


async def banker(run: Run, party: Party, name: str) -> None:
    """Transactions that move money, and others that add it up."""
    chance = run.chance(name)
    while not run.stopping:
        client = party.client
        source, target = chance.sample(ACCOUNTS, 2)
        amount = chance.randrange(1, 5)

        async def move(
            tx: Transaction, source: str = source, target: str = target, amount: int = amount
        ) -> None:
            tx.put(source, str(int(await tx.get(source) or 0) - amount))
            tx.put(target, str(int(await tx.get(target) or 0) + amount))

        async def add_up(tx: Transaction) -> int:
            return sum(int(value or 0) for value in (await tx.get_many(ACCOUNTS)).values())

        async with tried(run, party, client, chance):
            if chance.random() < 0.8:
                await client.stm(move, receipt="bank receipt" if chance.random() < 0.5 else None)
                run.counts["transfers"] += 1
            else:
                check_sum(run, name, await client.stm(add_up))
        await anyio.sleep(chance.uniform(0, 0.05))


def check_sum(run: Run, who: str, total: int) -> None:
    """No money comes or goes."""
    run.counts["sums"] += 1
    if total != len(ACCOUNTS) * OPENED_WITH:
        run.violations.append(Violation("bank", f"{who} sees {total}"))


async def counting(run: Run, party: Party, name: str) -> None:
    """Additions, each of which is made once."""
    chance = run.chance(name)
    while not run.stopping:
        client = party.client
        is_known = False
        try:
            with anyio.move_on_after(0.02 * chance.random() if chance.random() < 0.05 else None):
                await client.counter(COUNTER).add()
                is_known = True
                run.counts["additions"] += 1
        except EtcdError as error:
            only_if_closed(run, party, client, error)
            is_known = not error.maybe_applied
        run.counts["additions in doubt"] += not is_known
        await anyio.sleep(chance.uniform(0, 0.1))


async def trader(run: Run, party: Party, name: str) -> None:
    """Values that are put into a queue, and taken out of it."""
    chance = run.chance(name)
    while not run.stopping:
        client = party.client
        queue = client.queue(QUEUE)
        try:
            if chance.random() < 0.5:
                value = run.value()
                run.traded[value] = "in doubt"
                await queue.put(value)
                run.traded[value] = "put"
            else:
                taken = await queue.get(timeout=1)
                run.taken[taken] += 1
                run.counts["items"] += 1
        except EtcdError as error:
            only_if_closed(run, party, client, error)
            if error.maybe_applied:
                run.counts["items in doubt"] += 1
            await anyio.sleep(0.02)
        await anyio.sleep(chance.uniform(0, 0.1))


async def employer(run: Run, party: Party, name: str) -> None:
    """Jobs, each with a number of its own."""
    chance = run.chance(name)
    while not run.stopping:
        client = party.client
        value = run.value()
        async with tried(run, party, client, chance):
            await client.work_queue(JOBS).put(value, delay=2 if chance.random() < 0.1 else 0)
            run.jobs.add(value)
        await anyio.sleep(chance.uniform(0.02, 0.15))


async def employee(run: Run, party: Party, name: str) -> None:
    """Workers, which do jobs, give some back, and are left now and then."""
    chance = run.chance(name)
    while not run.stopping:
        client = party.client
        until = time.monotonic() + chance.choice((1, 10)) * chance.random()
        try:
            async with client.work_queue(JOBS).worker(ttl=chance.choice((1, 3, 600))) as worker:
                with run.inside(name, client):
                    while time.monotonic() < until and not run.stopping:
                        job = await worker.take(timeout=1)
                        run.counts["jobs handed out"] += 1
                        if chance.random() < 0.1:
                            await job.requeue()
                            continue
                        await anyio.sleep(0.02 * chance.random())
                        if chance.random() < 0.1:
                            continue  # forgotten: it comes back when this worker is left
                        await _acknowledge(run, job)
        except EtcdError as error:
            only_if_closed(run, party, client, error)
            await anyio.sleep(0.02)


async def _acknowledge(run: Run, job: Job) -> None:
    try:
        await job.ack()
    except EtcdError as error:
        run.perhaps_done[job.value] += error.maybe_applied
        if not isinstance(error, JobLostError):
            raise
    except BaseException:  # the worker is lost meanwhile
        run.perhaps_done[job.value] += 1
        raise
    else:
        run.done[job.value] += 1


async def sharder(run: Run, party: Party, name: str) -> None:
    """Members among whom items are shared out, each worked on by one at a time."""
    chance = run.chance(name)
    while not run.stopping:
        client = party.client

        async def work(share: Share[str], client: Client = client) -> None:
            run.owners[share.lease_id] = f"{name}, among whom items are shared out"
            began_ns = time.monotonic_ns()
            try:
                with run.inside(name, client):
                    await asyncio.Event().wait()
            finally:
                run.counts["stints"] += 1
                run.recorder.add(
                    LockHold(
                        f"{SHARDS}/{share.item}",
                        name,
                        share.revision,
                        began_ns,
                        lost_ns=time.monotonic_ns(),
                    )
                )

        try:
            with anyio.move_on_after(chance.choice((2, 15)) * chance.random()):
                await client.partitioner(SHARDS, ITEMS, ttl=chance.choice((1, 3))).run(work)
        except EtcdError as error:
            only_if_closed(run, party, client, error)
        await anyio.sleep(chance.uniform(0, 0.5))


async def check_sharing(run: Run, control: Client) -> None:
    """What was counted, put and done is there, or was taken, as often as it should."""
    violations = run.violations
    total = sum(int(kv.text) for kv in (await control.kv.get("bank/", prefix=True)).kvs)
    check_sum(run, "whoever looks at the end", total)
    counted = await control.counter(COUNTER).value()
    surely, perhaps = run.counts["additions"], run.counts["additions in doubt"]
    if not surely <= counted <= surely + perhaps:
        text = f"{surely} additions were made, {perhaps} perhaps, and {counted} are counted"
        violations.append(Violation("counter", text))
    # What is still in the queue, or was put back.
    queue = control.queue(QUEUE)
    while (value := await queue.poll()) is not None:
        run.taken[value] += 1
    twice = [value for value, times in run.taken.items() if times > 1]
    if twice:
        violations.append(Violation("queue", f"taken twice: {twice}"))
    never = [
        value for value, state in run.traded.items() if state == "put" and not run.taken[value]
    ]
    if len(never) > run.counts["items in doubt"] + run.counts["items given up"]:
        violations.append(Violation("queue", f"put and never taken: {never}"))
    await _check_jobs(run, control)


async def _check_jobs(run: Run, control: Client) -> None:
    queue = control.work_queue(JOBS)
    async with queue.worker(ttl=60) as worker:
        while any(await _left(control)):
            job = await worker.take(timeout=20)
            await job.ack()
            run.done[job.value] += 1
    done: Counter[bytes] = run.done
    twice = [value for value, times in done.items() if times > 1]
    lost = [value for value in run.jobs if not done[value] and not run.perhaps_done[value]]
    if twice:
        run.violations.append(Violation("jobs", f"acknowledged twice: {twice}"))
    if lost:
        run.violations.append(Violation("jobs", f"put and never done: {lost}"))
    run.counts["jobs done"] = done.total()


async def _left(control: Client) -> tuple[int, int, int]:
    counts = await control.work_queue(JOBS).counts()
    return counts.waiting, counts.claimed, counts.delayed
