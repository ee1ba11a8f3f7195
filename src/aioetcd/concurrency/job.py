"""A job that a worker of a work queue was given: acknowledged, or given back."""

from __future__ import annotations

import asyncio
import logging
import math
from functools import partial
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Self

import anyio

from aioetcd._constructor import NoPublicConstructor
from aioetcd._transport.backoff import PASSING, Backoff
from aioetcd._transport.methods import IDEMPOTENT_TXN
from aioetcd._transport.supervisor import PATIENCE
from aioetcd.compare import Compare
from aioetcd.concurrency._delay import Call, Delay
from aioetcd.concurrency._jobs import Claim, Fate
from aioetcd.config.timeouts import DEFAULT, Default, deadline_in, seconds_left
from aioetcd.errors import (
    EtcdError,
    JobLostError,
    LeaseNotFoundError,
    WorkerLostError,
)
from aioetcd.lease import MAX_TTL

if TYPE_CHECKING:
    from aioetcd.concurrency.worker import Worker

__all__ = ["Job", "delay_ttl"]

_logger: logging.Logger = logging.getLogger("aioetcd.concurrency")

# So long, in seconds, a job at the most is left alone after its body failed.
_LONGEST_PAUSE = 60


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
            except JobLostError:
                raise
            except (asyncio.CancelledError, EtcdError):
                await self._end_later("acknowledged", None)
                raise
        else:
            failed = isinstance(exc, Exception)
            await self._end_later("given back", self._pause() if failed else None)

    def _pause(self) -> int | None:
        """Give how long the job is left alone after it failed."""
        limit = self._worker._max_attempts
        if limit is not None and self.attempt >= limit:
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
        pause = None if delay is None else Delay(self._worker._parts, delay)
        try:
            if not self._is_held:
                raise self._lost(maybe_applied="acknowledged" in self._tried)
            with self._worker._while_held() as scope:
                await self._send(how, pause, calls.unary, seconds)
                is_ended = True
            if scope.cancelled_caught:
                raise self._lost(maybe_applied="acknowledged" in self._tried)
        finally:
            self._ended = how if is_ended else None
            if pause is not None:
                pause.end()

    async def _send(self, how: str, pause: Delay | None, call: Call, timeout: float | None) -> None:
        """End the claim, once; say so where it is another's doing."""
        worker, deadline = self._worker, deadline_in(timeout)
        lease_id = None
        if pause is not None:
            await pause.grant(call, timeout)
            lease_id = pause.lease_id
        if how == "acknowledged":
            ending = worker._keys.acknowledge(self._claim, worker._own_key)
        else:
            ending = worker._keys.requeue(self._claim, worker._own_key, lease_id)
        was_tried, tried_else = how in self._tried, bool(self._tried - {how})
        self._tried.add(how)
        if pause is not None:
            pause.may_be_used = True
        try:
            message = await call(IDEMPOTENT_TXN, ending.op._request, seconds_left(deadline))
        except LeaseNotFoundError:  # the delay is over already
            if not was_tried:
                self._tried.discard(how)
            await self._send(how, None, call, seconds_left(deadline))
            return
        except EtcdError as error:
            if not error.maybe_applied and not was_tried:
                self._tried.discard(how)
                if pause is not None:
                    pause.may_be_used = False
            raise
        result = ending.op._response(message)
        fate = ending.fate(result, tried_else=tried_else)
        if result.succeeded and how != "acknowledged":
            worker._requeued = max(worker._requeued, result.header.revision)
        if fate is not Fate.ENDED:
            raise self._lost(maybe_applied=fate is Fate.UNKNOWN)

    async def _end_later(self, how: str, delay: int | None) -> None:
        """End the claim in the background, and wait for that for a moment."""
        worker = self._worker
        if not self._is_held:
            return
        self._ended = how
        pause = None if delay is None else Delay(worker._parts, delay)
        task = worker._supervisor.tidy(
            partial(self._send_at_last, how, pause),
            f"aioetcd end of the claim {self.key!r}",
            seconds=math.inf,
            give_up=self._warn,
        )
        if pause is not None:
            task.add_done_callback(lambda _: pause.end())
        await worker._supervisor.wait_tidied(task, min(PATIENCE, worker._tenure.bound))

    async def _send_at_last(self, how: str, pause: Delay | None, seconds: float) -> None:
        """End the claim, however long that takes, as long as the worker has its lease."""
        worker, deadline = self._worker, monotonic() + seconds
        backoff = Backoff(0.1, 1.0)
        is_first = True
        while worker._tenure.is_held:
            left = min(seconds_left(deadline), worker._tenure.bound)
            try:
                await self._send(how, pause, worker._parts.calls.last_unary, left)
            except JobLostError as error:
                _logger.info("%s", error)
                return
            except EtcdError as error:
                if monotonic() >= deadline:
                    raise
                if is_first:
                    _logger.warning("the job %r cannot be %s yet: %s", self.id, how, error)
                is_first = False
                if pause is not None and not pause.is_granted and not isinstance(error, PASSING):
                    pause = None  # rather too early than not at all
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
