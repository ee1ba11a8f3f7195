"""A worker of a work queue: it takes jobs, on its lease."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Self

import anyio

from aioetcd._checks import check_seconds
from aioetcd._constructor import create
from aioetcd._transport.backoff import Backoff
from aioetcd._transport.methods import IDEMPOTENT_TXN
from aioetcd.concurrency._guard import OnLost
from aioetcd.concurrency._hold import Hold
from aioetcd.concurrency._jobs import Claim, Found, Jobs, Keys, count_of
from aioetcd.concurrency._mirror import Mirror
from aioetcd.concurrency._parts import Parts
from aioetcd.concurrency._tenure import Tenure
from aioetcd.concurrency.job import Job
from aioetcd.config.timeouts import DEFAULT, Default
from aioetcd.errors import (
    ClientClosedError,
    DeadlineExceededError,
    EtcdError,
    LeaseLostError,
    LeaseNotFoundError,
    WorkerLostError,
)
from aioetcd.ops import Op, TxnResponse
from aioetcd.types.store import KeyValue

__all__ = ["Worker"]

_logger: logging.Logger = logging.getLogger("aioetcd.concurrency")

# Tries to take the same job are spread over so many seconds for each other worker.
_SPREAD = 0.001

_chance = random.Random()  # not for secrets


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
        as no attempt, as long as the worker stays.

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
            raise copy(self._guard.error)
        if self._error is not None and not self._left:
            raise copy(self._error)
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
