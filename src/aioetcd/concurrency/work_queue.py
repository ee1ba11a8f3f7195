"""A work queue: jobs that are handed out at least once, and acknowledged once."""

from __future__ import annotations

from aioetcd._checks import check_int
from aioetcd._constructor import NoPublicConstructor, create
from aioetcd._transport.methods import TXN
from aioetcd.concurrency._delay import Delay
from aioetcd.concurrency._guard import OnLost
from aioetcd.concurrency._jobs import Keys, count_of
from aioetcd.concurrency._parts import Parts, new_id
from aioetcd.concurrency.job import delay_ttl
from aioetcd.concurrency.worker import Worker
from aioetcd.config.timeouts import DEFAULT, Default, deadline_in, seconds_left
from aioetcd.errors import EtcdError, LeaseNotFoundError
from aioetcd.keys import encode, encode_key
from aioetcd.ops import Op, TxnResponse
from aioetcd.types.answers import GetResponse
from aioetcd.types.jobs import DeadJob, JobCounts
from aioetcd.types.store import SortOrder, SortTarget

__all__ = ["WorkQueue"]


class WorkQueue(metaclass=NoPublicConstructor):
    """A queue of jobs; ``client.work_queue(name)`` makes it, which sends nothing.

    A job is handed out to one worker at a time, the earliest first, and at least once: until it is
    acknowledged it stays in the queue, whichever workers die. One that comes back, because its
    worker gave it back or is gone, comes to its old place. Any number of tasks may use it.

    Example:
        queue = client.work_queue("/work/mail", max_attempts=5)
        await queue.put("a letter")
        async with queue.worker() as worker:
            async with await worker.take() as job:
                job.value  # b"a letter"
        await queue.counts()  # JobCounts(waiting=0, claimed=0, delayed=0, dead=0)
    """

    def __init__(self, parts: Parts, name: str | bytes, *, max_attempts: int | None) -> None:
        self._parts = parts
        self._name = encode_key(name, "name")
        self._keys = Keys(self._name)
        self._max_attempts = (
            None if max_attempts is None else check_int("max_attempts", max_attempts, 1)
        )

    def __repr__(self) -> str:
        """Show the name."""
        return f"<WorkQueue {self._name!r}>"

    async def put(
        self,
        value: str | bytes,
        *,
        delay: float = 0,
        timeout: float | Default | None = DEFAULT,
    ) -> bytes:
        """Put a job at the end of the queue (RPC ``Txn``).

        It is sent once. Where the answer is lost, the queue is read: a job that is there was put.

        Args:
            value: What the job is.
            delay: It is handed out after so many seconds, rounded up; the server may make it more.
                That costs a lease (RPC ``LeaseGrant``), by which the server lets it pass.
            timeout: The deadline in seconds for all of it; None is none.

        Returns:
            The job's id, a random one.

        Raises:
            ValueError: `delay` is out of its limits.
            TypeError: An argument of the wrong type.
            RequestTooLargeError: More than the server takes, 1.5 MiB by default.
            EtcdError: By cause; where `maybe_applied` is true, it may be put yet, or was put and is
                done already.

        Example:
            queue = client.work_queue("/work/mail")
            await queue.put("a letter")
            await queue.put("a reminder", delay=1)
            await queue.counts()  # JobCounts(waiting=1, claimed=0, delayed=1, dead=0)
        """
        data, ttl = encode("value", value), delay_ttl(delay)
        id = new_id()
        deadline = deadline_in(self._parts.calls.resolve_timeout(timeout))
        pause = None if ttl is None else Delay(self._parts, ttl)
        try:
            await self._put(id, data, pause, deadline)
        except EtcdError as error:
            if not error.maybe_applied or not await self._is_there(id, seconds_left(deadline)):
                raise
        finally:
            if pause is not None:
                pause.end()
        return id

    def worker(self, *, ttl: int = 10, on_lost: OnLost = "cancel") -> Worker:
        """Make a worker, for an ``async with``: it takes jobs.

        It costs a lease, kept alive; a key; one watch on the queue, and the memory of its jobs.
        Nothing is sent before it is entered.

        Args:
            ttl: Seconds after which its jobs are handed out again when this process is gone, from 1
                to 9 000 000 000; the server may raise it, to 2 at the least by default.
            on_lost: ``"cancel"`` cancels the body when the lease is lost, and the block raises
                `WorkerLostError`; ``"ignore"`` leaves it to `Worker.wait_lost`.

        Raises:
            ValueError: `ttl` is out of its limits, or `on_lost` neither of these.
            TypeError: `ttl` is no int.

        Example:
            queue = client.work_queue("/work/mail")
            await queue.put("a letter")
            async with queue.worker() as worker, await worker.take() as job:
                job.value  # b"a letter"
        """
        return create(
            Worker,
            self._parts,
            self._keys,
            max_attempts=self._max_attempts,
            ttl=ttl,
            on_lost=on_lost,
        )

    async def counts(self, *, timeout: float | Default | None = DEFAULT) -> JobCounts:
        """Count the jobs, at one revision (RPC ``Txn``); their values are not sent.

        Args:
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            EtcdError: By cause.

        Example:
            queue = client.work_queue("/work/mail")
            await queue.put("a letter")
            async with queue.worker() as worker, await worker.take():
                await queue.counts()  # JobCounts(waiting=0, claimed=1, delayed=0, dead=0)
        """
        reads = [
            Op.get(self._keys.key(kind), prefix=True, count_only=True)
            for kind in ("items", "claims", "delays", "dead")
        ]
        result = await self._parts.kv.txn(success=reads, timeout=timeout)
        items, claimed, delayed, dead = (result[read].count for read in reads)
        return JobCounts(max(items - claimed - delayed, 0), claimed, delayed, dead)

    async def dead(self, *, timeout: float | Default | None = DEFAULT) -> tuple[DeadJob, ...]:
        """List the jobs that were put aside, the earliest first (RPC ``Txn``).

        Those are the ones that were handed out `max_attempts` times without being acknowledged.

        Args:
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            EtcdError: By cause.

        Example:
            await client.work_queue("/work/mail").dead()  # ()
        """
        dead = Op.get(
            self._keys.key("dead"),
            prefix=True,
            sort_target=SortTarget.CREATE,
            sort_order=SortOrder.ASCEND,
        )
        attempts: Op[GetResponse] = Op.get(self._keys.key("attempts"), prefix=True)
        result = await self._parts.kv.txn(success=[dead, attempts], timeout=timeout)
        counted = {self._keys.parse(kv.key)[1]: kv for kv in result[attempts].kvs}
        ids = [self._keys.parse(kv.key)[1] for kv in result[dead].kvs]
        return tuple(
            DeadJob(id, kv.value, count_of(counted.get(id)))
            for id, kv in zip(ids, result[dead].kvs, strict=True)
        )

    async def retry(self, id: str | bytes, *, timeout: float | Default | None = DEFAULT) -> bool:
        """Put a dead job back to the end of the queue, as a new one (RPCs ``Range``, ``Txn``).

        Args:
            id: The job's, as `dead` tells it.
            timeout: The deadline in seconds for all of it; None is none.

        Returns:
            False where no such job is dead.

        Raises:
            ValueError: An empty id.
            TypeError: It is neither str nor bytes.
            EtcdError: By cause; see its `maybe_applied`.

        Example:
            await client.work_queue("/work/mail").retry("none")  # False
        """
        key = self._keys.key("dead", encode_key(id, "id"))
        deadline = deadline_in(self._parts.calls.resolve_timeout(timeout))
        found = (await self._parts.kv.get(key, timeout=seconds_left(deadline))).kv
        if found is None:
            return False
        return (await self._txn(self._keys.revive(found), seconds_left(deadline))).succeeded

    async def discard(self, id: str | bytes, *, timeout: float | Default | None = DEFAULT) -> bool:
        """Delete a dead job (RPC ``Txn``).

        Args:
            id: The job's, as `dead` tells it.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Returns:
            False where no such job is dead.

        Raises:
            ValueError: An empty id.
            TypeError: It is neither str nor bytes.
            EtcdError: By cause; see its `maybe_applied`.

        Example:
            await client.work_queue("/work/mail").discard("none")  # False
        """
        return (await self._txn(self._keys.discard(encode_key(id, "id")), timeout)).succeeded

    async def _put(
        self, id: bytes, data: bytes, pause: Delay | None, deadline: float | None
    ) -> None:
        if pause is not None:
            await pause.grant(self._parts.calls.unary, seconds_left(deadline))
            pause.may_be_used = True
            try:
                await self._txn(self._keys.put(id, data, pause.lease_id), seconds_left(deadline))
            except LeaseNotFoundError:
                pass  # the delay is over already
            except EtcdError as error:
                pause.may_be_used = error.maybe_applied
                raise
            else:
                return
        await self._txn(self._keys.put(id, data, None), seconds_left(deadline))

    async def _txn(self, op: Op[TxnResponse], timeout: float | Default | None) -> TxnResponse:
        """Make a txn that may not be made twice."""
        request = op._request
        return op._response(await self._parts.calls.unary(TXN, request, timeout))

    async def _is_there(self, id: bytes, timeout: float | None) -> bool:
        """Whether a job is known to have been put."""
        reads = [Op.get(self._keys.key(kind, id), keys_only=True) for kind in ("items", "dead")]
        try:
            result = await self._parts.kv.txn(success=reads, timeout=timeout)
        except EtcdError:
            return False
        return any(result[read].kvs for read in reads)
