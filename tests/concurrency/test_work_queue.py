"""A work queue hands jobs out in order, one worker each, until they are acknowledged."""

from __future__ import annotations

import asyncio
from time import monotonic

import anyio
import pytest

from aioetcd import (
    Client,
    DeadJob,
    DeadlineExceededError,
    Job,
    JobCounts,
    JobLostError,
    LeaseLostError,
    WorkerLostError,
    WorkQueue,
)
from aioetcd.concurrency._mirror import Step
from aioetcd.testing import EtcdServer
from tests.concurrency.locks import check_is_as_before, soon
from tests.concurrency.work import NAME, begun, drain, history, is_count, is_owner, keys, no_keys
from tests.waiting import until


@pytest.fixture
async def queue(client: Client) -> WorkQueue:
    await begun(client)
    return client.work_queue(NAME)


async def put_all(queue: WorkQueue, *values: str) -> list[bytes]:
    return [await queue.put(value) for value in values]


async def test_nothing_is_sent_before(client: Client) -> None:
    """A queue and a worker cost nothing until they are used."""
    queue = client.work_queue(NAME)
    assert client.stats().calls == 0
    assert repr(queue) == "<WorkQueue b'/work/mail'>"
    assert repr(queue.worker()).startswith("<Worker b'/work/mail/', lease ")


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda c: c.work_queue(""), ValueError),
        (lambda c: c.work_queue(7), TypeError),
        (lambda c: c.work_queue("q", max_attempts=0), ValueError),
        (lambda c: c.work_queue("q", max_attempts=1.5), TypeError),
        (lambda c: c.work_queue("q").worker(ttl=0), ValueError),
        (lambda c: c.work_queue("q").worker(on_lost="no"), ValueError),
    ],
)
def test_wrong_arguments(make, error: type[Exception]) -> None:  # type: ignore[no-untyped-def]
    """What is wrong in itself is told when it is made."""
    with pytest.raises(error):
        make(Client("127.0.0.1:1"))


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf"), 9_000_000_001, "1", True, None])
async def test_wrong_delays(queue: WorkQueue, client: Client, delay: float) -> None:
    """A delay is from 0 to what a lease may live; nothing is sent otherwise."""
    await queue.put("a")
    async with queue.worker() as worker:
        job = await worker.take()
        calls = client.stats().calls
        for wrong in (queue.put("b", delay=delay), job.requeue(delay=delay)):
            with pytest.raises((ValueError, TypeError), match="delay must be"):
                await wrong
        assert client.stats().calls == calls
        await job.ack()


async def test_in_the_order_of_their_coming(queue: WorkQueue, client: Client) -> None:
    """The earliest job is handed out first, with what it is, and is gone once acknowledged."""
    ids = await put_all(queue, "a", "b", "c")
    seen = []
    async with queue.worker() as worker:
        async for job in worker:
            async with job:
                seen.append((job.id, job.value, job.attempt))
                assert repr(job) == f"<Job {job.id.decode()}, attempt 1>"
                assert await is_owner(client, job)
                assert job.revision == (await client.kv.get(job.key)).kvs[0].create_revision
            assert not await is_owner(client, job)
            if len(seen) == 3:
                break
        assert await keys(client) == [f"workers/{worker.lease_id:x}"]
    assert seen == [(ids[0], b"a", 1), (ids[1], b"b", 1), (ids[2], b"c", 1)]
    await until(lambda: no_keys(client))


async def test_a_taker_waits_for_a_job(queue: WorkQueue) -> None:
    """A job that comes goes to who waits for one, and to one of them alone."""
    async with queue.worker() as first, queue.worker() as second:
        takers = [asyncio.create_task(each.take()) for each in (first, first, second)]
        await asyncio.sleep(0.05)  # they wait
        await queue.put("a")
        done, waiting = await asyncio.wait(takers, return_when=asyncio.FIRST_COMPLETED)
        (job,) = [task.result() for task in done]
        await asyncio.sleep(0.05)  # nobody else is given it
        assert not any(task.done() for task in waiting)
        await job.ack()
        await put_all(queue, "b", "c")
        jobs = [await task for task in waiting]
        assert {job.value for job in jobs} == {b"b", b"c"}
        assert all(job.attempt == 1 for job in jobs)


async def test_many_tasks_of_one_worker(queue: WorkQueue, client: Client) -> None:
    """Tasks that share a worker are given each job once, and none in advance."""
    values = [f"{number}" for number in range(60)]
    await put_all(queue, *values)
    seen: list[bytes] = []

    async def work() -> None:
        async for job in worker:
            async with job:
                seen.append(job.value)
                assert (await queue.counts()).claimed <= 5
            if len(seen) == len(values):
                tasks.cancel_scope.cancel()

    async with queue.worker() as worker, anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(work)
    assert sorted(seen) == sorted(value.encode() for value in values)
    happened = await history(client, in_order=False)
    assert {*happened.acknowledged.values()} == {1}


async def test_what_is_given_back_comes_to_its_old_place(queue: WorkQueue) -> None:
    """And is handed out before those that were put later, its attempts counted."""
    await put_all(queue, "a", "b")
    async with queue.worker() as worker:
        for attempt in (1, 2, 3):
            job = await worker.take()
            assert (job.value, job.attempt) == (b"a", attempt)
            await job.requeue()
        assert await queue.counts() == JobCounts(2, 0, 0, 0)
        first = await worker.take()
        second = await worker.take()
        assert (first.value, second.value) == (b"a", b"b")
        assert first.revision < second.revision


async def test_what_is_given_back_is_waited_for(
    queue: WorkQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the event of that is late: those behind it are not handed out before it."""
    await put_all(queue, "a", "b")
    gate = asyncio.Event()
    async with queue.worker() as worker:
        following = worker._mirror.next

        async def late() -> list[Step] | None:
            await gate.wait()
            return await following()

        monkeypatch.setattr(worker._mirror, "next", late)
        job = await worker.take()
        await until(lambda: worker._mirror.revision >= job.revision)  # the last that comes
        await job.requeue()
        taking = asyncio.create_task(worker.take())
        await asyncio.sleep(0.05)  # it is not handed out, nor is the one behind it
        assert not taking.done()
        gate.set()
        assert (await taking).value == b"a"


async def test_a_body_that_is_cancelled_gives_it_back_at_once(queue: WorkQueue) -> None:
    """Whoever cancels it."""
    await queue.put("a")
    async with queue.worker() as worker:
        for cancel in ("scope", "task"):
            began = asyncio.Event()

            async def handle(began: asyncio.Event = began) -> None:
                async with await worker.take():
                    began.set()
                    await anyio.sleep_forever()

            if cancel == "scope":
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(handle)
                    await began.wait()
                    tasks.cancel_scope.cancel()
            else:
                task = asyncio.create_task(handle())
                await began.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            await until(is_count(queue, 1, 0, 0, 0))
        job = await worker.take(timeout=10)
        assert job.attempt == 3


@pytest.mark.fault("waits for delays of a second and more")
async def test_a_body_that_fails_gives_it_back_after_a_pause(quick_server: EtcdServer) -> None:
    """Which grows; what it raised is raised, and jobs behind it are handed out meanwhile."""
    await quick_server.clear()
    async with Client(quick_server.endpoint) as client:
        queue = client.work_queue(NAME)
        await queue.put("bad")
        async with queue.worker() as worker:
            for attempt, pause in ((1, 1), (3, 4)):
                if attempt == 3:  # whose pause is long enough to see what there is meanwhile
                    await queue.put("good")
                failed = monotonic()
                with pytest.raises(ValueError, match="no"):
                    async with await worker.take() as job:
                        raise ValueError("no")
                if attempt == 3:
                    await until(is_count(queue, 1, 0, 1, 0))
                    async with await worker.take(timeout=10) as other:
                        assert other.value == b"good"
                again = await worker.take(timeout=20)
                assert monotonic() - failed >= pause
                assert (job.attempt, again.attempt) == (attempt, attempt + 1)
                assert again.id == job.id
                await again.requeue()
            await (await worker.take()).ack()
        await until(lambda: no_keys(client))


@pytest.mark.fault("waits for a delay")
async def test_a_delayed_job(quick_server: EtcdServer) -> None:
    """It is passed over until its time has come, and then comes to its old place."""
    await quick_server.clear()
    async with Client(quick_server.endpoint) as client:
        queue = client.work_queue(NAME)
        await begun(client)
        began = monotonic()
        await queue.put("later", delay=1.2)
        await put_all(queue, "a")
        assert await queue.counts() == JobCounts(1, 0, 1, 0)
        async with queue.worker() as worker:
            job = await worker.take()
            assert job.value == b"a"
            late = await worker.take(timeout=20)
            assert late.value == b"later"
            assert monotonic() - began >= 2  # rounded up
            began = monotonic()
            await late.requeue(delay=3)
            await queue.put("b")
            await job.requeue()
            assert [(await worker.take()).value for _ in range(2)] == [b"a", b"b"]
            again = await worker.take(timeout=20)
            assert (again.value, again.attempt) == (b"later", 2)
            assert monotonic() - began >= 3
        await history(client)


async def test_twice(queue: WorkQueue) -> None:
    """A job is acknowledged or given back once; a block does nothing then."""
    await put_all(queue, "a", "b")
    async with queue.worker() as worker:
        async with await worker.take() as done:
            await done.ack()
        async with await worker.take() as back:
            await back.requeue()
        for job, how in ((done, "acknowledged"), (back, "given back")):
            for again in (job.ack, job.requeue, job.__aenter__):
                with pytest.raises(RuntimeError, match=f"the job was {how} already"):
                    await again()
        with pytest.raises(RuntimeError, match="entered once"):
            await worker.__aenter__()
        assert (await worker.take()).value == b"b"


async def test_leaving_gives_all_back(queue: WorkQueue, client: Client) -> None:
    """At once, and at their old places."""
    await put_all(queue, "a", "b", "c")
    async with queue.worker() as worker:
        jobs = [await worker.take(), await worker.take()]
    await until(is_count(queue, 3, 0, 0, 0))
    for job in jobs:
        assert not await is_owner(client, job)
        for end in (job.ack, job.requeue):
            with pytest.raises(JobLostError) as caught:
                await end()
            assert not caught.value.maybe_applied
    assert await drain(queue) == [(b"a", 2), (b"b", 2), (b"c", 1)]


async def test_taking_outside_of_the_block(queue: WorkQueue) -> None:
    """Is an error; a loop over the jobs ends with the block."""
    worker = queue.worker()
    with pytest.raises(RuntimeError, match="inside its block"):
        await worker.take()

    async def loop() -> int:
        return len([job async for job in worker])

    async def take() -> Job:
        return await worker.take()

    async with worker:
        looping, taking = asyncio.create_task(loop()), asyncio.create_task(take())
        await asyncio.sleep(0.01)  # both wait
    assert await looping == 0
    with pytest.raises(RuntimeError, match="inside its block"):
        await taking


async def test_in_time(queue: WorkQueue) -> None:
    """Who waits for too long is told so, and the next job goes to who still waits."""
    async with queue.worker() as worker:
        with pytest.raises(DeadlineExceededError, match="no job to take") as caught:
            await worker.take(timeout=0.05)
        assert caught.value.timeout == 0.05
        assert not caught.value.maybe_applied
        await queue.put("a")
        assert (await worker.take()).attempt == 1


async def test_a_job_that_fails_again_and_again(client: Client) -> None:
    """It is put aside after so many attempts, and may be put back, or deleted."""
    queue = client.work_queue(NAME, max_attempts=2)
    await begun(client)
    bad, good = await put_all(queue, "bad", "good")
    async with queue.worker() as worker:
        for attempt in (1, 2):
            job = await worker.take()
            assert (job.id, job.attempt) == (bad, attempt)
            await job.requeue()
        assert (await worker.take()).id == good
        assert await queue.counts() == JobCounts(0, 1, 0, 1)
        assert await queue.dead() == (DeadJob(bad, b"bad", 2),)
        await queue.put("new")
        assert await queue.retry(bad)
        assert await queue.dead() == ()
        assert not await queue.retry(bad)
        assert not await queue.discard(bad)
        assert (await worker.take()).value == b"new"
        for attempt in (1, 2):
            job = await worker.take()
            assert (job.id, job.attempt) == (bad, attempt)
            await job.requeue()

        async def is_dead() -> bool:
            with pytest.raises(TimeoutError):
                await worker.take(timeout=0.2)
            return await queue.counts() == JobCounts(0, 2, 0, 1)

        await until(is_dead)  # who takes is who puts it aside
        assert await queue.discard(bad.decode())
        assert await queue.counts() == JobCounts(0, 2, 0, 0)
    assert len(await keys(client, "attempts")) == 2
    happened = await history(client)
    assert happened.buried == {bad: 2}


async def test_the_last_attempt_is_no_delay(client: Client) -> None:
    """What fails for the last time is put aside without a pause."""
    queue = client.work_queue(NAME, max_attempts=1)
    await queue.put("bad")
    async with queue.worker() as worker:
        with pytest.raises(ZeroDivisionError):
            async with await worker.take():
                _ = 1 / 0

        async def is_dead() -> bool:
            with pytest.raises(TimeoutError):
                await worker.take(timeout=0.2)
            return await queue.counts() == JobCounts(0, 0, 0, 1)

        await until(is_dead)  # who takes is who puts it aside


async def test_a_worker_whose_lease_is_revoked(queue: WorkQueue, client: Client) -> None:
    """Its body is cancelled, its jobs are handed out to others, and it cannot acknowledge any."""
    await put_all(queue, "a", "b")
    async with queue.worker() as other:
        with pytest.raises(WorkerLostError) as caught:
            async with queue.worker() as worker:
                job = await worker.take()
                await client.lease.revoke(worker)
                await asyncio.sleep(10)
        await check_is_as_before()
        assert isinstance(caught.value.__cause__, LeaseLostError)
        assert worker.is_lost
        assert not await is_owner(client, job)
        with pytest.raises(WorkerLostError) as lost:
            await job.ack()
        assert not lost.value.maybe_applied
        again = await other.take(timeout=5)
        assert (again.id, again.attempt) == (job.id, 2)
        assert again.revision > job.revision
        await again.ack()


@pytest.mark.parametrize("on_lost", ["cancel", "ignore"])
async def test_a_loss_while_it_waits_for_a_job(
    queue: WorkQueue, client: Client, on_lost: str
) -> None:
    """Every task that takes is told."""
    takers: list[asyncio.Task[Job]] = []
    with pytest.raises(WorkerLostError):
        async with queue.worker(on_lost=on_lost) as worker:  # type: ignore[arg-type]
            takers = [asyncio.create_task(worker.take()) for _ in range(2)]
            await asyncio.sleep(0.01)  # they wait
            revoking = asyncio.create_task(client.lease.revoke(worker))
            async for _ in worker:
                pass
    await revoking
    await check_is_as_before()
    for taker in takers:
        with pytest.raises(WorkerLostError):
            await taker


async def test_a_claim_that_is_deleted_by_hand(queue: WorkQueue, client: Client) -> None:
    """The job is handed out again; who had it cannot acknowledge it, and is told the truth."""
    await queue.put("a")
    async with queue.worker() as worker:
        job = await worker.take()
        await client.kv.delete(job.key)
        again = await worker.take(timeout=5)
        assert (again.id, again.attempt) == (job.id, 2)
        with pytest.raises(JobLostError) as caught:
            async with job:
                pass
        assert not isinstance(caught.value, WorkerLostError)
        assert not caught.value.maybe_applied
        assert await is_owner(client, again)
        await again.ack()
    assert await queue.counts() == JobCounts(0, 0, 0, 0)


@pytest.mark.parametrize("kind", ["items", "claims", "delays", "attempts", None])
async def test_a_job_is_taken_as_it_was_seen(
    queue: WorkQueue, client: Client, kind: str | None
) -> None:
    """Whatever has changed since then: it is not taken."""
    await queue.put("a")
    async with queue.worker() as worker:
        found = worker._jobs.take()
        assert found is not None
        if kind is not None:
            await client.kv.put(f"{NAME}/{kind}/{found.id.decode()}", "b")
        claiming = worker._keys.claim(found, lease=worker.lease_id, seen=1)
        result = await worker._txn(claiming.op, None)
        assert result.succeeded == (kind is None)
        claim = claiming.taken(result, None)
        assert (claim is None) == (kind is not None)
        assert (await client.kv.get(f"{NAME}/claims/", prefix=True)).count == (
            kind in (None, "claims")
        )


async def test_a_worker_whose_key_is_deleted_by_hand(queue: WorkQueue, client: Client) -> None:
    """It goes on."""
    async with queue.worker() as worker:
        taking = asyncio.create_task(worker.take())
        await asyncio.sleep(0.01)  # it waits
        await client.kv.delete(f"{NAME}/workers/{worker.lease_id:x}")
        await queue.put("a")
        await (await taking).ack()
    assert await keys(client) == []


async def test_what_others_put_by_hand(queue: WorkQueue, client: Client) -> None:
    """An item that was put without this client is a job; other keys harm nothing."""
    await client.kv.put(f"{NAME}/items/by-hand", "a")
    for alien in ("", "items", "attempts/by-hand", "claims/none", "x/y/z", "items\xff/a"):
        await client.kv.put(f"{NAME}/{alien}", "alien")
    async with queue.worker() as worker:
        async with await worker.take() as job:
            assert (job.id, job.value, job.attempt) == (b"by-hand", b"a", 1)
        with pytest.raises(TimeoutError):
            await worker.take(timeout=0.05)


async def test_the_client_closes(server: EtcdServer, client: Client, queue: WorkQueue) -> None:
    """The body is cancelled, and the jobs are handed out again."""
    await put_all(queue, "a", "b")
    own = Client(server.endpoint)
    with pytest.raises(WorkerLostError, match="closed"):
        async with own, own.work_queue(NAME).worker(ttl=600) as worker:
            await worker.take()
            async with await worker.take():
                await own.aclose()
                await asyncio.sleep(10)
    await check_is_as_before()

    async def is_back() -> bool:
        return await queue.counts() == JobCounts(2, 0, 0, 0)

    await soon(is_back)


async def test_z5_left_in_any_order(queue: WorkQueue) -> None:
    """Workers and jobs may be left in another order than they were entered, by another task."""
    await put_all(queue, "a", "b", "c")
    first, second = queue.worker(), queue.worker()
    await first.__aenter__()
    await second.__aenter__()
    jobs = [await first.take(), await second.take(), await first.take()]
    for job in jobs:
        await job.__aenter__()
    await jobs[0].__aexit__(None, None, None)
    await asyncio.create_task(first.__aexit__(None, None, None))
    await jobs[1].__aexit__(None, None, None)
    await second.__aexit__(None, None, None)
    with pytest.raises(JobLostError):
        await jobs[2].__aexit__(None, None, None)
    await check_is_as_before()
    await until(is_count(queue, 1, 0, 0, 0))
    assert await drain(queue) == [(b"c", 2)]


async def test_idle_workers_see_what_comes_back(queue: WorkQueue, client: Client) -> None:
    """A worker that waits is handed the job of one that is gone."""
    await queue.put("a")
    async with queue.worker() as other:
        async with queue.worker() as worker:
            await worker.take()
            waiting = asyncio.create_task(other.take())
            await until(lambda: other._jobs._first() is None)
            assert not waiting.done()
        job = await waiting
        assert job.attempt == 2
        await job.ack()
