"""What is told of a job is true, and none is lost: answers that are lost, and what comes late."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import nullcontext
from functools import partial
from statistics import median

import anyio
import pytest

from aioetcd import (
    Client,
    EtcdError,
    JobCounts,
    JobLostError,
    NoEndpointError,
    PermissionDeniedError,
    PermissionType,
    RequestTooLargeError,
    WorkerLostError,
    WorkQueue,
)
from aioetcd.testing import EtcdServer, FaultProxy
from tests.concurrency.locks import check_is_as_before, check_told_anew, soon
from tests.concurrency.work import NAME, begun, drain, history, is_count, is_owner, no_keys
from tests.harness import Faulty, lose_answer, until_answer_lost, until_request_lost
from tests.waiting import until

NOBODY = JobCounts(0, 0, 0, 0)


@pytest.fixture
async def queue(faulty: Faulty) -> WorkQueue:
    """The queue, as the client sees it that no fault reaches."""
    await begun(faulty.oracle)
    return faulty.oracle.work_queue(NAME)


@pytest.fixture
def own(faulty: Faulty) -> WorkQueue:
    """The same, behind the proxy."""
    return faulty.client.work_queue(NAME)


async def clean(faulty: Faulty) -> None:
    await faulty.oracle.kv.delete("", prefix=True)


@pytest.mark.fault("K3")
async def test_k3_an_acknowledgement_whose_answer_is_lost(
    faulty: Faulty, queue: WorkQueue, own: WorkQueue
) -> None:
    """It was applied: it is told as done, once the server can be asked."""
    await queue.put("a")
    await queue.put("b")
    async with own.worker(ttl=60) as worker:
        job = await worker.take()
        faulty.proxy.blackhole(client_to_server=False)
        acking = asyncio.create_task(job.ack())
        await lose_answer(faulty.proxy, is_count(queue, 1, 0, 0, 0))
        await acking
        with pytest.raises(RuntimeError, match="acknowledged already"):
            await job.ack()
        async with await worker.take() as other:
            assert other.value == b"b"
    assert await queue.counts() == NOBODY
    assert {*(await history(faulty.oracle)).acknowledged.values()} == {1}
    await clean(faulty)


async def heal_when_swallowed(proxy: FaultProxy) -> None:
    await until_request_lost(proxy)
    await proxy.heal()


@pytest.mark.fault("K3")
async def test_k3_an_acknowledgement_that_is_lost(
    faulty: Faulty, queue: WorkQueue, own: WorkQueue
) -> None:
    """It was not applied: it is sent again."""
    await queue.put("a")
    async with own.worker(ttl=60) as worker, await worker.take():
        faulty.proxy.blackhole(server_to_client=False)
        healing = asyncio.create_task(heal_when_swallowed(faulty.proxy))
    assert await queue.counts() == NOBODY
    await healing
    await clean(faulty)


@pytest.mark.fault("K3")
async def test_k3_an_acknowledgement_that_fails(
    faulty: Faulty, queue: WorkQueue, own: WorkQueue
) -> None:
    """It says that it may have been applied; asked for again, it says that it was."""
    await queue.put("a")
    async with own.worker(ttl=60) as worker:
        job = await worker.take()
        faulty.proxy.blackhole(client_to_server=False)
        with pytest.raises(EtcdError) as caught:
            await job.ack(timeout=0.5)
        assert caught.value.maybe_applied
        await lose_answer(faulty.proxy, is_count(queue, 0, 0, 0, 0))
        await job.ack()
    await clean(faulty)


@pytest.mark.fault("K3")
@pytest.mark.parametrize("other_acks", [True, False])
async def test_k3_an_acknowledgement_of_a_worker_that_died(
    faulty: Faulty, queue: WorkQueue, own: WorkQueue, other_acks: bool
) -> None:
    """Where nobody can say whose it was, it says so; where the job is there, it was not."""
    await queue.put("a")
    with pytest.raises(JobLostError):
        async with own.worker(ttl=60, on_lost="ignore") as worker:
            job = await worker.take()
            faulty.proxy.blackhole(server_to_client=False)
            acking = asyncio.create_task(job.ack(timeout=None))
            await until_request_lost(faulty.proxy)
            await faulty.oracle.lease.revoke(worker)
            async with queue.worker() as other:
                again = await other.take()
                if other_acks:
                    await again.ack()
                await faulty.proxy.heal()
                with pytest.raises(JobLostError) as caught:
                    await acking
                told_before = isinstance(caught.value, WorkerLostError)
                assert caught.value.maybe_applied == (other_acks or told_before)
            raise caught.value
    await clean(faulty)


@pytest.mark.fault("K3")
async def test_k3_a_job_whose_answer_is_lost(
    faulty: Faulty, queue: WorkQueue, own: WorkQueue
) -> None:
    """It was taken: the taker is given it, and it counts as one attempt."""
    async with own.worker(ttl=60) as worker:
        taking = asyncio.create_task(worker.take())
        await asyncio.sleep(0.05)  # it waits
        await queue.put("a")
        # Each event reaches it, and it tries at once: the answer is cut off, or not yet sent.
        await until(is_count(queue, 0, 1, 0, 0))
        job = await taking
        await job.requeue()
        # Before the event of that has come, nothing is taken.
        await until(lambda: worker._mirror.revision >= worker._requeued)
        faulty.proxy.blackhole(client_to_server=False)
        taking = asyncio.create_task(worker.take())
        await lose_answer(faulty.proxy, is_count(queue, 0, 1, 0, 0))
        job = await taking
        assert job.attempt == 2
        assert await is_owner(faulty.oracle, job)
        assert worker._jobs.held == {job.id: job.revision}
        await asyncio.sleep(0.2)  # nobody takes it back
        assert await is_owner(faulty.oracle, job)
        await job.ack()
    assert (await history(faulty.oracle)).handed_out == {job.id: 2}
    assert await queue.counts() == NOBODY
    await clean(faulty)


@pytest.mark.fault("K3")
async def test_k3_a_requeue_whose_answer_is_lost(
    faulty: Faulty, queue: WorkQueue, own: WorkQueue
) -> None:
    """It was applied: it is told as done, though somebody else has the job meanwhile."""
    await queue.put("a")
    async with own.worker(ttl=60) as worker, queue.worker() as other:
        job = await worker.take()
        faulty.proxy.blackhole(client_to_server=False)
        giving_back = asyncio.create_task(job.requeue())
        again = await other.take()
        await until_answer_lost(faulty.proxy, is_count(queue, 0, 1, 0, 0))
        await again.ack()
        await faulty.proxy.heal()
        await giving_back
    await clean(faulty)


@pytest.mark.fault("K3")
async def test_k3_a_put_whose_answer_is_lost(
    faulty: Faulty, queue: WorkQueue, own: WorkQueue
) -> None:
    """It is told as done where the job is there, once; an error says that it may be, where not."""
    faulty.proxy.blackhole(client_to_server=False)
    putting = asyncio.create_task(own.put("a", timeout=30))
    await until_answer_lost(faulty.proxy, is_count(queue, 1, 0, 0, 0))
    faulty.proxy.cut()
    await faulty.proxy.heal()
    id = await putting
    async with queue.worker() as worker, await worker.take() as job:
        assert job.id == id
    faulty.proxy.blackhole(client_to_server=False)
    putting = asyncio.create_task(own.put("b", timeout=30))
    await until_answer_lost(faulty.proxy, is_count(queue, 1, 0, 0, 0))
    assert await drain(queue) == [(b"b", 1)]
    faulty.proxy.cut()
    await faulty.proxy.heal()
    with pytest.raises(EtcdError) as caught:
        await putting
    assert caught.value.maybe_applied
    assert len((await history(faulty.oracle)).puts) == 2
    faulty.proxy.refuse()
    faulty.proxy.cut()
    await until(lambda: not faulty.client._calls.is_connected)
    with pytest.raises(NoEndpointError) as refused:
        await own.put("c", timeout=0.3)
    assert not refused.value.maybe_applied
    await faulty.proxy.accept()
    assert await queue.counts() == NOBODY
    await clean(faulty)


async def test_the_loss_of_another_job(queue: WorkQueue, faulty: Faulty) -> None:
    """A body that is left by another job's loss gives its own back."""
    await queue.put("a")
    await queue.put("b")
    async with queue.worker() as worker, queue.worker() as other:
        lost = await other.take()
        await faulty.oracle.kv.delete(f"{NAME}/claims/", prefix=True)
        with pytest.raises(JobLostError):
            async with await worker.take():
                await lost.ack()

        async def none_is_claimed() -> bool:
            return (await queue.counts()).claimed == 0

        await until(none_is_claimed)
    await clean(faulty)


@pytest.mark.fault("a server of its own")
@pytest.mark.outside("what a user may do")
async def test_an_acknowledgement_that_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    """It is raised at the end of the block, and goes on in the background."""
    async with (
        EtcdServer(auth=("root", "pw")) as server,
        Client(server.endpoint, username="root", password="pw") as root,
    ):
        await root.auth.add_user("worker", "pw")
        await root.auth.add_role("worker")
        grant = partial(root.auth.grant_permission, "worker", PermissionType.READWRITE)
        await grant(NAME, prefix=True)
        await root.auth.grant_role("worker", "worker")
        async with Client(server.endpoint, username="worker", password="pw") as client:
            queue = client.work_queue(NAME)
            await queue.put("a")
            async with queue.worker() as worker:
                with pytest.raises(PermissionDeniedError):
                    async with await worker.take():
                        await root.auth.revoke_permission("worker", NAME, prefix=True)
                assert "cannot be acknowledged yet" in caplog.text
                await grant(NAME, prefix=True)
                await until(is_count(root.work_queue(NAME), 0, 0, 0, 0))
        assert caplog.text.count("cannot be acknowledged yet") == 1


async def test_a_put_that_is_refused_leaves_no_delay(queue: WorkQueue, faulty: Faulty) -> None:
    """Its lease is revoked, as is one of a put that is cancelled before the job is sent."""
    with pytest.raises(RequestTooLargeError):
        await queue.put(b"x" * 1_600_000, delay=60)
    await until(faulty.no_leases)
    faulty.proxy.delay(0.2)
    sent = faulty.proxy.bytes_from_client
    putting = asyncio.create_task(faulty.client.work_queue(NAME).put("a", delay=60))
    # The grant is on its way, whose answer takes a while.
    await faulty.proxy.wait_until(lambda proxy: proxy.bytes_from_client > sent)
    putting.cancel()
    await asyncio.wait({putting})
    await until(faulty.no_leases)
    assert await queue.counts() == NOBODY
    await faulty.proxy.heal()
    await clean(faulty)


@pytest.mark.fault("K3: a job that comes back after an outage")
async def test_giving_back_over_an_outage(
    faulty: Faulty, queue: WorkQueue, own: WorkQueue, caplog: pytest.LogCaptureFixture
) -> None:
    """It is warned of once, and costs one delay."""
    await queue.put("a")
    async with own.worker(ttl=60) as worker:
        for _ in range(2):  # the third attempt has a delay that is long enough to be seen
            await (await worker.take()).requeue()
        with pytest.raises(ValueError, match="no"):
            async with await worker.take():
                faulty.proxy.refuse()
                faulty.proxy.cut()
                raise ValueError("no")
        await asyncio.sleep(1)  # it tries again and again
        await faulty.proxy.accept()
        await until(is_count(queue, 0, 0, 1, 0))
        assert len(await faulty.lease_ids()) == 2
    assert caplog.text.count("cannot be given back yet") <= 1
    await clean(faulty)


@pytest.mark.fault("K4")
@pytest.mark.parametrize("how", ["timeout", "cancelled"])
async def test_k4_a_claim_that_arrives_late(
    faulty: Faulty, queue: WorkQueue, own: WorkQueue, how: str
) -> None:
    """A job that is taken on behalf of nobody is given back, and it counts as no attempt."""
    await queue.put("a")
    async with own.worker(ttl=60) as worker:
        found = worker._jobs._first()
        assert found is not None
        # Long before it is known there that nobody waits for it, the claim arrives.
        faulty.proxy.delay(0.6)
        with anyio.move_on_after(0.5 if how == "cancelled" else None):
            with pytest.raises(TimeoutError):
                await worker.take(timeout=0.5 if how == "timeout" else None)
        await until(partial(has_attempts, faulty.oracle, 2))  # it was taken, and taken back
        assert await queue.counts() == JobCounts(1, 0, 0, 0)
        await faulty.proxy.heal()
        async with await worker.take() as job:
            assert job.attempt == 1
    assert (await history(faulty.oracle)).acknowledged == {job.id: 1}
    await clean(faulty)


async def has_attempts(client: Client, version: int) -> bool:
    found = await client.kv.get(f"{NAME}/attempts/", prefix=True)
    return [kv.version for kv in found.kvs] == [version]


@pytest.mark.fault("L: a lease is lost, or a worker left, while nobody answers")
@pytest.mark.parametrize("how", ["left", "lost"])
async def test_nobody_waits_for_longer_than_the_worker_is_there(
    faulty: Faulty, queue: WorkQueue, own: WorkQueue, how: str
) -> None:
    """Who takes or acknowledges a job while nobody answers is told when that is no use any more."""
    await queue.put("a")
    await queue.put("b")
    with pytest.raises(WorkerLostError) if how == "lost" else nullcontext():
        async with own.worker(ttl=2, on_lost="ignore") as worker:
            job = await worker.take()
            faulty.proxy.blackhole(client_to_server=False)
            waiting = [asyncio.create_task(worker.take()), asyncio.create_task(job.ack())]
            await until(is_count(queue, 0, 1, 0, 0))
            if how == "lost":
                lost = await worker.wait_lost()
                await check_told_anew(worker.take)
                raise lost
    async with asyncio.timeout(1):
        for task, error in zip(waiting, (RuntimeError, JobLostError), strict=True):
            with pytest.raises(WorkerLostError if how == "lost" else error) as caught:
                await task
            if isinstance(caught.value, EtcdError):
                assert caught.value.maybe_applied == (task is waiting[1])
    await faulty.proxy.heal()
    await until(faulty.no_leases)
    assert await drain(queue) == [(b"b", 2)]
    await clean(faulty)


@pytest.mark.fault("W: a compaction while the watch is cut off")
async def test_w_a_compaction_while_it_is_cut_off(
    faulty: Faulty, queue: WorkQueue, own: WorkQueue
) -> None:
    """The worker reads the queue again, and goes on in order."""
    for value in "abcd":
        await queue.put(value)
    async with own.worker(ttl=60) as worker:
        kept = await worker.take()
        faulty.proxy.refuse()
        faulty.proxy.cut()
        async with queue.worker(ttl=60) as other:
            gone = await other.take()  # b
            await gone.ack()
            back = await other.take()  # c
            await back.requeue()
            await queue.put("e")
            now = (await faulty.oracle.kv.put("other", "")).header.revision
            await faulty.oracle.kv.compact(now)
            await faulty.proxy.accept()
            seen = []
            for _ in range(3):
                async with await worker.take(timeout=20) as job:
                    seen.append((job.value, job.attempt))
        assert seen == [(b"c", 2), (b"d", 1), (b"e", 1)]
        await kept.ack()
    assert await queue.counts() == NOBODY
    await clean(faulty)


@pytest.mark.fault("K2")
async def test_k2_the_server_is_killed(own_server: EtcdServer, rng: random.Random) -> None:
    """Again and again while jobs are handled: each is acknowledged once."""
    async with Client(own_server.endpoint, timeout=30) as client:
        await begun(client)
        queue = client.work_queue(NAME)
        for number in range(40):
            await queue.put(f"{number}")
        handled: Counter[bytes] = Counter()

        async def work() -> None:
            async with queue.worker(ttl=60) as worker:
                async for job in worker:
                    async with job:
                        await asyncio.sleep(0.02)  # the work
                    handled[job.value] += 1
                    if len(handled) == 40:
                        tasks.cancel_scope.cancel()

        async def kill() -> None:
            for _ in range(3):
                await asyncio.sleep(rng.uniform(0.1, 0.4))  # at any moment
                await own_server.kill()
                await own_server.start()

        # The killing goes on to its end, whenever the work is done: the server is there then.
        async with anyio.create_task_group() as killing:
            killing.start_soon(kill)
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(work)
        assert await drain(queue) == []
        happened = await history(client)
        assert len(handled) == 40
        assert {*happened.acknowledged.values()} == {1}
        assert len(happened.acknowledged) == 40


@pytest.mark.fault("Z1: 300 tries")
async def test_z1_cancelled_at_any_moment(client: Client, rng: random.Random) -> None:
    """What is cancelled at 300 random moments strands no job, and loses or doubles none."""
    await begun(client)
    queue = client.work_queue(NAME)
    for number in range(150):
        await queue.put(f"{number}")
    done: Counter[bytes] = Counter()
    outcomes: Counter[str] = Counter()
    took, where = 0.0, ""

    async def handle() -> None:
        nonlocal where
        where = "taking"
        job = await worker.take()
        async with job:
            where = "inside"
            await asyncio.sleep(took * rng.uniform(0, 1))
            done[job.id] += 1
            where = "leaving"
        where = "after"

    async with queue.worker(ttl=600) as worker:
        times = []
        for _ in range(5):
            began = anyio.current_time()
            await handle()
            times.append(anyio.current_time() - began)
        took = 2 * median(times)  # which one that was held up does not change
        for _ in range(300):
            pause = took * rng.uniform(0, 2)
            if rng.random() < 0.5:
                task = asyncio.create_task(handle())
                await asyncio.sleep(pause)
                task.cancel()
                await asyncio.wait({task})
            else:
                with anyio.move_on_after(pause):
                    await handle()
            outcomes[where] += 1

        async def none_is_stranded() -> bool:
            counts = await queue.counts()
            return counts.claimed == 0

        await soon(none_is_stranded)
        await until(lambda: not worker._taking_back)
        await check_is_as_before()
        assert set(outcomes) == {"taking", "inside", "leaving", "after"}
    await drain(queue)
    happened = await history(client)
    assert happened.left == 0
    assert len(happened.puts) == 150
    assert happened.acknowledged == dict.fromkeys(happened.puts, 1)
    assert {*done} <= {*happened.acknowledged}
    await until(lambda: no_keys(client))
