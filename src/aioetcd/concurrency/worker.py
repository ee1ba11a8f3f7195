"""A worker of a work queue, and the jobs that it is given."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from time import monotonic
from types import TracebackType
from typing import Any, Self

import anyio

from aioetcd._checks import check_seconds
from aioetcd._constructor import NoPublicConstructor, create
from aioetcd._proto import rpc_pb2
from aioetcd._transport.backoff import Backoff
from aioetcd._transport.methods import IDEMPOTENT_TXN, LEASE_GRANT
from aioetcd._transport.supervisor import PATIENCE
from aioetcd.compare import Compare
from aioetcd.concurrency._guard import OnLost
from aioetcd.concurrency._hold import Hold
from aioetcd.concurrency._jobs import Claim, Fate, Found, Jobs, Keys, count_of
from aioetcd.concurrency._mirror import Mirror
from aioetcd.concurrency._parts import Parts
from aioetcd.concurrency._tenure import Tenure
from aioetcd.config.timeouts import DEFAULT, Default, deadline_in, seconds_left
from aioetcd.errors import (
    ClientClosedError,
    DeadlineExceededError,
    EtcdError,
    JobLostError,
    LeaseExistsError,
    LeaseLostError,
    LeaseNotFoundError,
    WorkerLostError,
)
from aioetcd.lease import MAX_TTL, new_lease_id
from aioetcd.ops import Op, TxnResponse
from aioetcd.types.store import KeyValue

__all__ = ["Job", "Worker"]

_logger: logging.Logger = logging.getLogger("aioetcd.concurrency")

# So long, in seconds, a job at the most is left alone after its body failed.
_LONGEST_PAUSE = 60

# By so many seconds for each other worker tries to take the same job are spread.
_SPREAD = 0.001

_chance = random.Random()  # not for secrets

_Call = Callable[[Any, Any, Any], Awaitable[Any]]


def delay_ttl(delay: float) -> int | None:
    """Give the time to live of the lease that is a delay; None for no delay.

    Raises:
        TypeError: It is not a number.
        ValueError: It is below 0, not a number at all (NaN), or longer than a lease lives.
    """
    if type(delay) is bool or not isinstance(delay, int | float):
        raise TypeError(f"delay must be a number of seconds, not {type(delay).__name__}")
    if not 0 <= delay <= MAX_TTL:
        raise ValueError(f"delay must be from 0 to {MAX_TTL} seconds, not {delay}")
    return math.ceil(delay) or None


class Worker(Hold):
    """Takes jobs of a work queue for the time of a block; `WorkQueue.worker` makes it.

    It has a lease, and each job that it takes hangs on that: when it is lost, the body is
    cancelled, the block raises `WorkerLostError`, and its jobs are handed out again, to others. So
    are those that were not acknowledged when the block is left. It is entered once, and any number
    of tasks may take jobs from it.

    Raises:
        WorkerLostError: The lease was lost in the block, which was cancelled.
        RuntimeError: It is entered a second time.
        EtcdError: It could not begin, by cause.

    Example:
        queue = client.work_queue("/work/mail")
        await queue.put("a letter")
        async with queue.worker() as worker:
            async for job in worker:
                async with job:  # acknowledges it at the end
                    job.value  # b"a letter"
                break
    """

    _kind = "worker"

    def __init__(
        self, parts: Parts, keys: Keys, *, max_attempts: int | None, ttl: int, on_lost: OnLost
    ) -> None:
        tenure = Tenure(parts.transport, parts.leases, ttl)
        super().__init__(parts.transport.supervisor, tenure, on_lost)
        self._parts = parts
        self._keys = keys
        self._max_attempts = max_attempts
        self._own_key = keys.key("workers", f"{tenure.lease_id:x}".encode())
        self._mirror = Mirror(parts, keys.prefix, prefix=True)
        self._jobs = Jobs(keys, tenure.lease_id)
        self._error: EtcdError | None = None
        self._changed = asyncio.Event()
        self._listed = asyncio.Event()
        # What waits for an answer, and not for longer than this is held.
        self._scopes: set[anyio.CancelScope] = set()
        # When a job was given back here at last: it is not overtaken by those behind it.
        self._requeued = 0
        self._following: asyncio.Task[None] | None = None
        self._taking_back: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        """Show the queue's keys."""
        return f"<Worker {self._keys.prefix!r}, lease {self.lease_id:x}>"

    async def take(self, *, timeout: float | None = None) -> Job:
        """Take the first job that there is, or wait for one (RPC ``Txn``).

        It is handed out to nobody else until it is given back, or this worker is gone. To be
        cancelled strands none: what is taken on behalf of nobody is given back at once, and counts
        as no attempt.

        Args:
            timeout: Seconds to wait at the most; None is without limit.

        Raises:
            ValueError: `timeout` is not above 0.
            TypeError: It is no number.
            DeadlineExceededError: None came in time.
            NoEndpointError: Nobody could be reached in time.
            WorkerLostError: The worker's lease is lost.
            RuntimeError: Outside of the block.
            EtcdError: By cause.

        Example:
            queue = client.work_queue("/work/mail")
            await queue.put("a letter")
            async with queue.worker() as worker:
                job = await worker.take(timeout=5)
                job.value, job.attempt  # (b"a letter", 1)
                await job.ack()
        """
        seconds = check_seconds("timeout", timeout)
        with anyio.move_on_after(seconds):
            if (job := await self._take_job()) is None:
                raise RuntimeError("a worker takes jobs inside its block")
            return job
        picker = self._parts.transport.picker
        if picker.current is None:
            raise picker.unreachable()
        raise DeadlineExceededError(
            f"there was no job to take in {self._keys.prefix!r}", timeout=seconds
        )

    def __aiter__(self) -> Self:
        """Iterate over the jobs that this worker takes."""
        return self

    async def __anext__(self) -> Job:
        """Take the next job; the loop ends with the block.

        Raises:
            WorkerLostError: The worker's lease is lost.
            EtcdError: By cause.
        """
        if (job := await self._take_job()) is None:
            raise StopAsyncIteration
        return job

    # Taking jobs.

    async def _take_job(self) -> Job | None:
        """Take a job; None where this is not held, or not any more."""
        backoff = Backoff(0.001, 0.05)
        with self._while_held():
            while self._is_usable():
                found = None if self._mirror.revision < self._requeued else self._jobs.take()
                if found is None:
                    await self._changed.wait()
                    # Others were told of it too, and do not all try at the same moment.
                    pause = _chance.uniform(0, _SPREAD * max(self._jobs.workers - 1, 0))
                else:
                    claim = await self._take_found(found)
                    if claim is not None:
                        return create(Job, self, claim)
                    pause = backoff.next_delay()
                await anyio.sleep(pause)
        self._is_usable()  # which raises what was lost
        return None

    async def _take_found(self, found: Found) -> Claim | None:
        """Try to take a job; None where it is not to be had."""
        is_known, claim = False, None
        try:
            attempts = count_of(found.attempts)
            if self._max_attempts is not None and attempts >= self._max_attempts:
                await self._txn(self._keys.bury(found), None)
            else:
                claiming = self._keys.claim(found, lease=self.lease_id, seen=self._mirror.revision)
                result = await self._txn(claiming.op, None)
                claim = claiming.taken(result, self._jobs.held.get(found.id))
            is_known = True
            if claim is not None:
                self._jobs.held[claim.id] = claim.revision
        except LeaseNotFoundError as error:
            if not self._left:
                self._lost("its lease is lost (not found)", error)
        finally:
            is_won = claim is not None
            strange = self._jobs.ended(found, is_known=is_known, is_won=is_won)
            if strange is not None:
                self._take_back(strange)
            self._wake()
        return claim

    async def _txn(self, op: Op[TxnResponse], timeout: float | Default | None) -> TxnResponse:
        request = op._request
        return op._response(await self._parts.calls.unary(IDEMPOTENT_TXN, request, timeout))

    def _is_usable(self) -> bool:
        """Whether this is held, and not left."""
        self._tenure.check()  # the event loop may have been blocked
        if self._guard.error is not None:
            raise self._guard.error
        if self._error is not None and not self._left:
            raise self._error
        return self._held and not self._left

    @contextmanager
    def _while_held(self) -> Iterator[anyio.CancelScope]:
        """Wait in the block for no longer than this is held."""
        with anyio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                yield scope
            finally:
                self._scopes.discard(scope)

    # Following the queue.

    async def _follow(self) -> None:
        try:
            while (steps := await self._mirror.next()) is not None:
                for claim in self._jobs.apply(steps, self._mirror.kvs):
                    self._take_back(claim)
                self._listed.set()
                self._wake()
        except EtcdError as error:
            self._error = error
            if not isinstance(error, ClientClosedError):
                _logger.warning("the queue %r is followed no more: %s", self._keys.prefix, error)
        finally:
            await self._mirror.aclose()

    def _followed(self, task: object) -> None:
        # A task that is cancelled before its first step never comes to a `finally` of its own.
        if self._error is None:
            self._error = ClientClosedError("the client is closed")
        self._listed.set()
        self._pulse()

    def _wake(self) -> None:
        """Tell who waits for a job that there is one."""
        if self._mirror.revision >= self._requeued and self._jobs.is_any:
            self._pulse()

    def _pulse(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _take_back(self, claim: KeyValue) -> None:
        """Give a job back that nobody has: whoever was to be given it was cancelled."""
        op = self._keys.take_back(claim, self._jobs.attempt(claim))

        async def take_back() -> None:
            backoff = Backoff(0.1, 5.0)
            while True:
                try:
                    await self._txn(op, None)
                except ClientClosedError:
                    return  # the lease is revoked
                except EtcdError as error:
                    _logger.warning("the claim %r cannot be given back: %s", claim.key, error)
                    await anyio.sleep(backoff.next_delay())
                else:
                    return

        try:
            task = self._supervisor.spawn(take_back, f"aioetcd take back {claim.key!r}")
        except ClientClosedError:
            return  # the lease is revoked
        self._taking_back.add(task)
        task.add_done_callback(self._taking_back.discard)

    # Beginning and ending.

    async def _take(self) -> None:
        self._tenure.listeners.append(self._lease_lost)
        await self._tenure.begin()
        with self._while_held():
            # Where it is there, nobody else can have ended a claim on this lease.
            await self._txn(
                Op.txn(success=[Op.put(self._own_key, b"", lease=self.lease_id)]), DEFAULT
            )
            self._following = self._supervisor.spawn(
                self._follow, f"aioetcd worker of {self._keys.prefix!r}"
            )
            self._following.add_done_callback(self._followed)
            await self._listed.wait()
        if self._error is not None:
            raise self._error

    def _lease_lost(self, error: LeaseLostError) -> None:
        self._lost(f"its lease is lost ({error.reason})", error)

    def _lost(self, why: str, cause: EtcdError) -> None:
        lost = WorkerLostError(f"the worker of {self._keys.prefix!r} is lost: {why}")
        lost.__cause__ = cause
        self._guard.lost(lost)
        self._stop_waiting()

    def _stop_waiting(self) -> None:
        for scope in self._scopes:
            scope.cancel()

    def _let_go(self) -> asyncio.Task[None] | None:
        self._tenure.listeners.remove(self._lease_lost)
        self._stop_waiting()
        tasks: Iterable[asyncio.Task[None] | None] = (self._following, *self._taking_back)
        for task in tasks:
            if task is not None:
                self._supervisor.stop(task)
        return self._tenure.end()


class Job(metaclass=NoPublicConstructor):
    """A job that a worker was given; `Worker.take` gives it.

    It is this worker's until it is acknowledged or given back, or the worker is left or lost; then
    others are handed it. Use it as a block: at its end the job is acknowledged. A body that fails
    gives it back, to be handed out again after a pause that grows with each attempt from a second
    to a minute; one that is cancelled gives it back at once. What is done at the end of a block
    goes on without whoever is cancelled while it waits for that.

    A job may be handed out again though it was done: where its worker dies before it is
    acknowledged. What must not happen twice compares `is_owner` in the same txn.

    Attributes:
        id: Its id, as `WorkQueue.put` gave it.
        value: What it is.
        attempt: How often it was handed out, 1 for the first time.

    Example:
        queue = client.work_queue("/work/mail")
        await queue.put("a letter")
        async with queue.worker() as worker:
            async with await worker.take() as job:
                sent = Op.put(f"/sent/{job.id.decode()}", job.value)
                (await client.kv.txn(compare=[job.is_owner()], success=[sent])).succeeded  # True
    """

    def __init__(self, worker: Worker, claim: Claim) -> None:
        self.id: bytes = claim.id
        self.value: bytes = claim.value
        self.attempt: int = claim.attempt
        self._worker = worker
        self._claim = claim
        # What became of it, in words, as far as this client has brought it about.
        self._ended: str | None = None
        # What was tried, and may have been applied.
        self._tried: set[str] = set()

    def __repr__(self) -> str:
        """Show the id and the attempt."""
        return f"<Job {self.id.decode(errors='replace')}, attempt {self.attempt}>"

    @property
    def key(self) -> bytes:
        """The key of the claim, which is there as long as the job is this worker's."""
        return self._worker._keys.key("claims", self.id)

    @property
    def revision(self) -> int:
        """The fencing token: the claim's create revision, greater than any before of this job."""
        return self._claim.revision

    def is_owner(self) -> Compare:
        """Make the comparison that holds as long as the job is this worker's.

        Example:
            queue = client.work_queue("/work/mail")
            await queue.put("a letter")
            async with queue.worker() as worker, await worker.take() as job:
                done = Op.put("/sent", job.value)
                (await client.kv.txn(compare=[job.is_owner()], success=[done])).succeeded  # True
        """
        return self._worker._keys.is_owner(self._claim)

    async def ack(self, *, timeout: float | Default | None = DEFAULT) -> None:
        """Acknowledge the job: it is done, and handed out to nobody any more (RPC ``Txn``).

        It is repeated until there is an answer, and applied once. Where it was cancelled, or failed
        with `maybe_applied`, it may be called again.

        Args:
            timeout: The deadline in seconds for all of it; None is none.

        Raises:
            JobLostError: The job is not this worker's any more; see its `maybe_applied`.
            RuntimeError: It was acknowledged or given back already.
            EtcdError: By cause; see its `maybe_applied`.

        Example:
            queue = client.work_queue("/work/mail")
            await queue.put("a letter")
            async with queue.worker() as worker:
                job = await worker.take()
                await job.ack()
        """
        await self._end("acknowledged", None, timeout)

    async def requeue(self, *, delay: float = 0, timeout: float | Default | None = DEFAULT) -> None:
        """Give the job back: it is handed out again, at its old place (RPC ``Txn``).

        With a delay it costs a lease (RPC ``LeaseGrant``), by which the server lets it pass. It is
        repeated as `ack` is.

        Args:
            delay: Not before so many seconds have passed, rounded up; the server may make it more.
            timeout: The deadline in seconds for all of it; None is none.

        Raises:
            ValueError: `delay` is out of its limits.
            TypeError: It is no number.
            JobLostError: The job is not this worker's any more; see its `maybe_applied`.
            RuntimeError: It was acknowledged or given back already.
            EtcdError: By cause; see its `maybe_applied`.

        Example:
            queue = client.work_queue("/work/mail")
            await queue.put("a letter")
            async with queue.worker() as worker:
                job = await worker.take()
                await job.requeue()
                (await worker.take()).attempt  # 2
        """
        await self._end("given back", delay_ttl(delay), timeout)

    async def __aenter__(self) -> Self:
        """Begin to handle it."""
        self._check_open()
        return self  # waiting for nothing: whoever was cancelled here would have it, and not leave

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Acknowledge it, or give it back."""
        if self._ended is not None:
            return
        if exc is None:
            try:
                await self.ack(timeout=None)
            except asyncio.CancelledError:
                await self._end_later("acknowledged", None)
                raise
        elif not isinstance(exc, JobLostError):
            failed = isinstance(exc, Exception)
            await self._end_later("given back", self._pause() if failed else None)

    def _pause(self) -> int | None:
        """Give how long the job is left alone after it failed."""
        if self.attempt == self._worker._max_attempts:
            return None  # it is put aside
        return int(min(2 ** min(self.attempt - 1, 30), _LONGEST_PAUSE))

    def _check_open(self) -> None:
        if self._ended is not None:
            raise RuntimeError(f"the job was {self._ended} already")

    @property
    def _is_held(self) -> bool:
        worker = self._worker
        return worker._held and not worker._left and not worker.is_lost

    def _lost(self, *, maybe_applied: bool) -> JobLostError:
        loss = self._worker._guard.error
        kind = JobLostError if loss is None else WorkerLostError
        lost = kind(
            f"the job {self.id!r} is not this worker's any more", maybe_applied=maybe_applied
        )
        lost.__cause__ = loss
        return lost

    async def _end(self, how: str, delay: int | None, timeout: float | Default | None) -> None:
        self._check_open()
        calls = self._worker._parts.calls
        seconds = calls.resolve_timeout(timeout)
        self._ended = f"{how}, or is about to be,"  # by nobody else meanwhile
        is_ended = False
        try:
            if not self._is_held:
                raise self._lost(maybe_applied="acknowledged" in self._tried)
            with self._worker._while_held() as scope:
                await self._send(how, delay, calls.unary, seconds)
                is_ended = True
            if scope.cancelled_caught:
                raise self._lost(maybe_applied="acknowledged" in self._tried)
        finally:
            self._ended = how if is_ended else None

    async def _send(self, how: str, delay: int | None, call: _Call, timeout: float | None) -> None:
        """End the claim, once; say so where it is another's doing."""
        worker, deadline = self._worker, deadline_in(timeout)
        lease_id = None if delay is None else await _grant(delay, call, timeout)
        if how == "acknowledged":
            ending = worker._keys.acknowledge(self._claim, worker._own_key)
        else:
            ending = worker._keys.requeue(self._claim, worker._own_key, lease_id)
        tried_else = bool(self._tried - {how})
        self._tried.add(how)
        try:
            message = await call(IDEMPOTENT_TXN, ending.op._request, seconds_left(deadline))
        except LeaseNotFoundError:  # the delay is over already
            await self._send(how, None, call, seconds_left(deadline))
            return
        except EtcdError as error:
            if not error.maybe_applied:
                self._tried.discard(how)
            raise
        result = ending.op._response(message)
        fate = ending.fate(result, tried_else=tried_else)
        if result.succeeded and how != "acknowledged":
            worker._requeued = result.header.revision
        if fate is not Fate.ENDED:
            raise self._lost(maybe_applied=fate is Fate.UNKNOWN)

    async def _end_later(self, how: str, delay: int | None) -> None:
        """End the claim in the background, and wait for that for a moment."""
        worker = self._worker
        if not self._is_held:
            return
        self._ended = how
        task = worker._supervisor.tidy(
            partial(self._send_at_last, how, delay),
            f"aioetcd end of the claim {self.key!r}",
            seconds=math.inf,
            give_up=self._warn,
        )
        await worker._supervisor.wait_tidied(task, min(PATIENCE, worker._tenure.bound))

    async def _send_at_last(self, how: str, delay: int | None, seconds: float) -> None:
        """End the claim, however long that takes, as long as the worker has its lease."""
        worker, deadline = self._worker, monotonic() + seconds
        backoff = Backoff(0.1, 1.0)
        while worker._tenure.is_held:
            left = min(seconds_left(deadline), worker._tenure.bound)
            try:
                await self._send(how, delay, worker._parts.calls.last_unary, left)
            except JobLostError as error:
                _logger.info("%s", error)
                return
            except EtcdError:
                if monotonic() >= deadline:
                    raise
                await anyio.sleep(backoff.next_delay())
            else:
                return

    def _warn(self, why: str) -> None:
        _logger.warning(
            "the job %r was not %s, and is handed out again when its worker is gone: %s",
            self.id,
            self._ended,
            why,
        )


async def _grant(ttl: int, call: _Call, timeout: float | None) -> int:
    """Grant the lease that is a delay."""
    lease_id = new_lease_id()
    try:
        await call(LEASE_GRANT, rpc_pb2.LeaseGrantRequest(TTL=ttl, ID=lease_id), timeout)
    except LeaseExistsError as error:
        if not error.maybe_applied:  # else an earlier try, whose answer was lost, has made it
            raise
    return lease_id
