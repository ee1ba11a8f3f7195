"""What a namespace makes of its services: locks, elections, queues, caches."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, AnyStr, TypeVar, overload

from aioetcd._checks import check_int
from aioetcd._constructor import NoPublicConstructor, create
from aioetcd.concurrency._guard import OnLost
from aioetcd.concurrency._parts import Parts
from aioetcd.concurrency._queued import queued_at
from aioetcd.concurrency._transaction import Isolation, Transaction
from aioetcd.concurrency.barrier import Barrier, DoubleBarrier
from aioetcd.concurrency.cache import Cache
from aioetcd.concurrency.counter import Counter
from aioetcd.concurrency.election import Election
from aioetcd.concurrency.group import Group
from aioetcd.concurrency.lock import Lock
from aioetcd.concurrency.partitioner import Partitioner
from aioetcd.concurrency.queue import PriorityQueue, Queue
from aioetcd.concurrency.registration import Registration
from aioetcd.concurrency.rwlock import RWLock
from aioetcd.concurrency.session import Session
from aioetcd.concurrency.stm import Stm
from aioetcd.concurrency.work_queue import WorkQueue
from aioetcd.config.timeouts import DEFAULT, Default
from aioetcd.keys import encode_key
from aioetcd.types.store import KeyValue

_T = TypeVar("_T")


class Recipes(metaclass=NoPublicConstructor):
    """Makes the recipes that are built of the services of a namespace."""

    _parts: Parts

    def _below(self, prefix: bytes) -> Parts:
        """Give the services on the keys below a prefix."""
        raise NotImplementedError

    def session(self, *, ttl: int = 10, on_lost: OnLost = "cancel") -> Session:
        """Make a session: a lease that is kept alive for an ``async with``.

        Nothing is sent before it is entered.

        Args:
            ttl: Seconds that the lease lives without being renewed, from 1 to 9 000 000 000; the
                server may raise it, to 2 at the least by default.
            on_lost: ``"cancel"`` cancels the body when the lease is lost, and the block raises
                `LeaseLostError`; ``"ignore"`` leaves it to `Session.wait_lost`.

        Raises:
            ValueError: `ttl` is out of its limits, or `on_lost` neither of these.
            TypeError: `ttl` is no int.

        Example:
            async with client.session(ttl=10) as session:
                await client.kv.put("/services/a", "10.0.0.7:80", lease=session)
            (await client.kv.get("/services/a")).value  # None
        """
        return create(Session, self._parts.transport, self._parts.leases, ttl=ttl, on_lost=on_lost)

    def lock(
        self,
        name: str | bytes,
        *,
        session: Session | None = None,
        ttl: int | None = None,
        value: str | bytes = b"",
        blocking: bool = True,
        timeout: float | None = None,
        on_lost: OnLost = "cancel",
    ) -> Lock:
        """Make a lock on a name, for an ``async with``.

        It costs a lease, kept alive, or a session's; a txn; a watch on its own key; and while it
        waits, a watch on the key before it. `etcdctl lock` and the Go client's mutex respect it.
        Nothing is sent before it is entered.

        Args:
            name: What to lock; not another lock's name followed by a slash and more.
            session: Whose lease to use; any number of locks may. None gives it one of its own.
            ttl: Seconds after which others may enter when this process is gone, from 1 to
                9 000 000 000, 10 by default; with a `session`, that is its own.
            value: What others see of the holder, for example in `LockNotAcquiredError.holder`.
            blocking: Wait for one's turn; False fails at once instead.
            timeout: Wait so many seconds at the most; None waits without limit.
            on_lost: ``"cancel"`` cancels the body when the lock is lost, and the block raises
                `LockLostError`; ``"ignore"`` leaves it to `Lock.wait_lost`.

        Raises:
            ValueError: An empty name, `ttl` out of its limits or with a `session`, `timeout` with
                ``blocking=False``, a session of another client.
            TypeError: An argument of the wrong type.

        Example:
            async with client.lock("/locks/nightly", value="host-7") as lock:
                mine = lock.is_owner()
                saved = await client.kv.txn(compare=[mine], success=[Op.put("/result", "42")])
                saved.succeeded  # True
        """
        return create(
            Lock,
            self._parts,
            name,
            session=session,
            ttl=ttl,
            value=value,
            blocking=blocking,
            timeout=timeout,
            on_lost=on_lost,
        )

    async def locks(
        self, name: str | bytes, *, timeout: float | Default | None = DEFAULT
    ) -> tuple[KeyValue, ...]:
        """List who holds a lock, and who waits for it (RPC ``Range``), in the order of their turns.

        Args:
            name: The name of a lock, a readers-writer lock, a semaphore.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Returns:
            Their keys, whose ``value`` is what each wrote for onlookers. The first one is a lock's
            holder, the first `permits` are a semaphore's, and those of a readers-writer lock are
            the first one, or all readers before the first writer.

        Raises:
            ValueError: An empty name.
            TypeError: A name that is neither str nor bytes.
            EtcdError: By cause.

        Example:
            async with client.lock("/locks/nightly", value="host-7"):
                [kv.text for kv in await client.locks("/locks/nightly")]  # ["host-7"]
        """
        return await queued_at(self._parts.kv, encode_key(name) + b"/", timeout=timeout)

    def rwlock(
        self, name: str | bytes, *, session: Session | None = None, ttl: int | None = None
    ) -> RWLock:
        """Give a readers-writer lock on a name. Nothing is sent yet.

        Its keys are aioetcd's own: Go's recipe of that name does not understand them.

        Args:
            name: What to lock; not another lock's name, nor that followed by a slash and more.
            session: Whose lease to use: one reader and one writer at a time. None gives each one
                of its own.
            ttl: Seconds after which others may enter when this process is gone, from 1 to
                9 000 000 000, 10 by default; with a `session`, that is its own.

        Raises:
            ValueError: An empty name, `ttl` out of its limits or with a `session`, a session of
                another client.
            TypeError: An argument of the wrong type.

        Example:
            async with client.rwlock("/locks/catalogue").read():
                (await client.kv.get("/catalogue")).value  # None
        """
        return create(RWLock, self._parts, name, session=session, ttl=ttl)

    def semaphore(
        self,
        name: str | bytes,
        permits: int,
        *,
        session: Session | None = None,
        ttl: int | None = None,
        value: str | bytes = b"",
        blocking: bool = True,
        timeout: float | None = None,
        on_lost: OnLost = "cancel",
    ) -> Lock:
        """Make a lock on a name that some may hold at a time, for an ``async with``.

        It is as fair as a lock, and lost as one. Its `Lock.revision` is no fencing token: several
        are inside. `etcdctl lock` on the same name waits for all of them.

        Args:
            name: What to lock; not another lock's name, nor that followed by a slash and more.
            permits: So many may hold it at a time, from 1 on; all who use the name must agree.
            session: Whose lease to use: one at a time. None gives it one of its own.
            ttl: Seconds after which others may enter when this process is gone, from 1 to
                9 000 000 000, 10 by default; with a `session`, that is its own.
            value: What others see of the holder.
            blocking: Wait for one's turn; False fails at once instead.
            timeout: Wait so many seconds at the most; None waits without limit.
            on_lost: ``"cancel"`` cancels the body when the permit is lost, and the block raises
                `LockLostError`; ``"ignore"`` leaves it to `Lock.wait_lost`.

        Raises:
            ValueError: As of `lock`, or `permits` below 1.
            TypeError: An argument of the wrong type.

        Example:
            async with client.semaphore("/limits/api", 2), client.semaphore("/limits/api", 2):
                len(await client.locks("/limits/api"))  # 2
        """
        return create(
            Lock,
            self._parts,
            name,
            session=session,
            ttl=ttl,
            value=value,
            blocking=blocking,
            timeout=timeout,
            on_lost=on_lost,
            permits=check_int("permits", permits, 1),
        )

    def election(
        self, name: str | bytes, *, session: Session | None = None, ttl: int | None = None
    ) -> Election:
        """Give an election: campaign in it, or see who leads.

        `etcdctl elect` and the Go client's elections understand it. Nothing is sent yet.

        Args:
            name: Its name; not another one's name followed by a slash and more.
            session: Whose lease candidates use: one of them at a time stands for election. None
                gives each one of its own.
            ttl: Seconds after which others may lead when this process is gone, from 1 to
                9 000 000 000, 10 by default; with a `session`, that is its own.

        Raises:
            ValueError: An empty name, `ttl` out of its limits or with a `session`, a session of
                another client.
            TypeError: An argument of the wrong type.

        Example:
            async with client.election("/jobs").campaign("host-7") as leadership:
                leadership.is_lost  # False
        """
        return create(Election, self._parts, name, session=session, ttl=ttl)

    def registration(
        self, key: str | bytes, value: str | bytes = b"", *, ttl: int = 10
    ) -> Registration:
        """Make a registration: a key that is there for an ``async with``, and comes back when lost.

        It costs a lease, kept alive, a put, and a watch on its key. Nothing is sent before it is
        entered.

        Args:
            key: The key, one for each who registers.
            value: What others see.
            ttl: Seconds after which it is gone when this process is, from 1 to 9 000 000 000.

        Raises:
            ValueError: An empty key, or `ttl` out of its limits.
            TypeError: An argument of the wrong type.

        Example:
            async with client.registration("/services/a", "10.0.0.7:80"):
                (await client.kv.get("/services/a")).text  # "10.0.0.7:80"
        """
        return create(Registration, self._parts, key, value, ttl=ttl)

    def group(self, name: str | bytes) -> Group:
        """Give a group: join it, or see who is there. Nothing is sent yet.

        Args:
            name: Its name, with or without a slash at the end; not another one's name followed by a
                slash and more.

        Raises:
            ValueError: An empty name.
            TypeError: A name that is neither str nor bytes.

        Example:
            async with client.group("/workers").join("host-7", "10.0.0.7:80"):
                (await client.kv.get("/workers/host-7")).text  # "10.0.0.7:80"
        """
        stem = encode_key(encode_key(name, "name").removesuffix(b"/"), "name")
        return create(Group, self._parts, stem, self._below(stem + b"/"))

    def partitioner(
        self,
        name: str | bytes,
        items: Iterable[AnyStr],
        *,
        value: str | bytes = b"",
        ttl: int = 10,
    ) -> Partitioner[AnyStr]:
        """Make a partitioner: items shared out among those who run it. Nothing is sent yet.

        A member costs a lease, kept alive, two reads, a txn, and a watch, which tells it of each
        item that changes hands; an item costs a txn to have, and one to give back.

        Args:
            name: Its name; not another one's name followed by a slash and more.
            items: What is shared out, at least one; all members must have the same.
            value: What others see of this member.
            ttl: Seconds after which others have its items when this process is gone, from 1 to
                9 000 000 000.

        Raises:
            ValueError: An empty name, no items, an empty one, one that is there twice, or `ttl` out
                of its limits.
            TypeError: An argument of the wrong type.

        Example:
            client.partitioner("/crawl", ["a.example", "b.example"]).held  # frozenset()
        """
        return create(Partitioner, self._parts, name, items, value=value, ttl=ttl)

    def barrier(self, key: str | bytes) -> Barrier:
        """Give a barrier: a key that holds up whoever waits for it. Nothing is sent.

        Args:
            key: The key; the Go client's barriers on it are understood.

        Raises:
            ValueError: It is empty.
            TypeError: It is neither str nor bytes.

        Example:
            barrier = client.barrier("/barriers/migration")
            await barrier.hold()  # True
            await barrier.release()
            await barrier.wait()
        """
        return create(Barrier, self._parts, key)

    def double_barrier(
        self,
        name: str | bytes,
        count: int,
        *,
        ttl: int | None = None,
        timeout: float | None = None,
        on_lost: OnLost = "cancel",
    ) -> DoubleBarrier:
        """Make what so many enter and leave together, for an ``async with``.

        Each party costs a lease, kept alive; a txn, and a read of those who wait; a watch on its
        own key; and a txn of the last one. Nothing is sent before it is entered.

        Args:
            name: Its name; not another one's name followed by a slash and more.
            count: So many enter together, from 1 on; all who use the name must agree. The server
                takes up to 128 by default (``--max-txn-ops``).
            ttl: Seconds after which a party whose process is gone does not count any more, from 1
                to 9 000 000 000, 10 by default.
            timeout: Wait so many seconds at the most for the others to come, and again for them to
                leave; None waits without limit.
            on_lost: ``"cancel"`` cancels the body when the place is lost, and the block raises
                `BarrierLostError`; ``"ignore"`` leaves it to `DoubleBarrier.wait_lost`.

        Raises:
            ValueError: An empty name, `count`, `ttl` or `timeout` out of its limits.
            TypeError: An argument of the wrong type.

        Example:
            async with client.double_barrier("/barriers/step-1", 1) as barrier:
                barrier.is_lost  # False
        """
        return create(
            DoubleBarrier, self._parts, name, count, ttl=ttl, timeout=timeout, on_lost=on_lost
        )

    def queue(self, name: str | bytes) -> Queue:
        """Give a queue, whose items are each taken once, the first one first. Nothing is sent.

        Args:
            name: Its name; not another one's name followed by a slash and more.

        Raises:
            ValueError: It is empty.
            TypeError: It is neither str nor bytes.

        Example:
            queue = client.queue("/queues/mails")
            await queue.put("hello")
            await queue.get()  # b"hello"
        """
        return create(Queue, self._parts, name)

    def priority_queue(self, name: str | bytes) -> PriorityQueue:
        """Give a queue whose most urgent items are taken first. Nothing is sent.

        Args:
            name: Its name, which is no `queue`'s; not another one's followed by a slash and more.

        Raises:
            ValueError: It is empty.
            TypeError: It is neither str nor bytes.

        Example:
            queue = client.priority_queue("/queues/mails")
            await queue.put("newsletter", priority=9)
            await queue.put("password reset", priority=1)
            await queue.get()  # b"password reset"
        """
        return create(PriorityQueue, self._parts, name)

    def work_queue(self, name: str | bytes, *, max_attempts: int | None = None) -> WorkQueue:
        """Give a queue of jobs, which workers are handed out at least once. Nothing is sent yet.

        Args:
            name: Its name; not another one's, or a lock's, followed by a slash and more.
            max_attempts: A job that was handed out so often, from 1 on, is put aside by the next
                worker that would take it: `WorkQueue.dead`. None is no limit. All who use the name
                should agree.

        Raises:
            ValueError: An empty name, or `max_attempts` below 1.
            TypeError: An argument of the wrong type.

        Example:
            queue = client.work_queue("/work/mail")
            await queue.put("a letter")
            async with queue.worker() as worker, await worker.take() as job:
                job.value  # b"a letter"
        """
        return create(WorkQueue, self._parts, name, max_attempts=max_attempts)

    @overload
    def cache(self, key: str | bytes, *, prefix: bool = False) -> Cache[bytes]: ...

    @overload
    def cache(
        self, key: str | bytes, *, prefix: bool = False, decode: Callable[[bytes], _T]
    ) -> Cache[_T]: ...

    def cache(
        self, key: str | bytes, *, prefix: bool = False, decode: Callable[[bytes], Any] = bytes
    ) -> Cache[Any]:
        """Make a mapping that follows a key, or all keys below a prefix, for an ``async with``.

        It costs one watch, and the memory of the keys. Nothing is sent before it is entered.

        Args:
            key: The key, or the prefix.
            prefix: Follow all keys that begin with `key`; with ``""`` all keys.
            decode: Makes of a value what the mapping has: ``bytes.decode``, ``json.loads``.

        Raises:
            ValueError: An empty key without `prefix`.
            TypeError: An argument of the wrong type.

        Example:
            await client.kv.put("/config/a", "1")
            async with client.cache("/config/", prefix=True, decode=int) as cache:
                cache["/config/a"]  # 1
        """
        return create(Cache, self._parts, key, prefix=prefix, decode=decode)

    async def stm(
        self,
        fn: Callable[[Transaction], Awaitable[_T]],
        *,
        isolation: Isolation = Isolation.SERIALIZABLE_SNAPSHOT,
        tries: int | None = 100,
        receipt: str | bytes | None = None,
        timeout: float | Default | None = DEFAULT,
    ) -> _T:
        """Run a function over keys as a transaction (RPCs ``Range``, ``Txn``), until it holds.

        What the function reads is what the store had; what it writes is written when it has
        returned, all of it at one revision, if by then nobody has changed what it relies on.
        Otherwise it runs again. It costs a round trip for each read that is not prefetched, and one
        to commit; who only reads need not commit.

        Where the answer to a commit is lost, the keys are read again. If they are as before, the
        same is sent again, where that cannot be applied twice; if they show that it was not and
        never will be applied, the function runs again. Otherwise it is an error that says so,
        unless there is a receipt.

        To be cancelled writes nothing, or all: when the commit was under way, nobody knows.

        Args:
            fn: Is given the `Transaction`. What it returns is returned; what it raises is raised,
                and nothing is written. It may run several times, and should do nothing else.
            isolation: What it relies on.
            tries: How often it may run, from 1 on; None is no limit.
            receipt: A key of its own kind, to which each commit puts a value that nobody else
                writes: it tells of every commit whether it was applied. Of those who share one only
                one commits at a time; leave it alone otherwise.
            timeout: The deadline in seconds for all of this; None is none. The function itself is
                not cancelled by it.

        Raises:
            ValueError: `tries` below 1, or an empty `receipt`.
            TypeError: An argument is of the wrong type.
            StmConflictError: Others were faster, in each of the tries.
            CompactedError: In the last of them, what was to be read was compacted.
            TooManyOpsError: It reads or writes more than 128 keys, by the server's default.
            DeadlineExceededError: It did not hold until then, or as of any call.
            EtcdError: By cause; `maybe_applied` where nobody can say whether it was written.

        Example:
            async def move(tx: Transaction) -> int:
                money = await tx.get_many(["/accounts/a", "/accounts/b"])
                a, b = [int(each or 0) for each in money.values()]
                tx.put("/accounts/a", str(a - 5))
                tx.put("/accounts/b", str(b + 5))
                return a - 5

            await client.stm(move)  # -5
        """
        stm = Stm(
            self._parts, fn, isolation=isolation, tries=tries, receipt=receipt, timeout=timeout
        )
        return await stm.run()

    def counter(self, key: str | bytes) -> Counter:
        """Give a counter under a key: a number to which each addition is made once.

        Nothing is sent yet. Its tasks should share one; it also has the key ``KEY/receipt``.

        Args:
            key: The key.

        Raises:
            ValueError: An empty key.
            TypeError: A key that is neither str nor bytes.

        Example:
            visits = client.counter("/visits")
            await visits.add()  # 1
            await visits.value()  # 1
        """
        return create(Counter, self._parts, key)
