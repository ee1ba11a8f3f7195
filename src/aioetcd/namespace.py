"""The services and the recipes of a client, on the keys below a prefix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, overload

from aioetcd._checks import check_int
from aioetcd._constructor import NoPublicConstructor, create
from aioetcd._prefixed import Prefixed
from aioetcd._transport.calls import Calls
from aioetcd._transport.transport import Transport
from aioetcd.concurrency import (
    Cache,
    Election,
    Lock,
    OnLost,
    Parts,
    Registration,
    RWLock,
    Session,
    WorkQueue,
    queued_at,
)
from aioetcd.config.timeouts import DEFAULT, Default
from aioetcd.keys import encode_key
from aioetcd.kv import KV
from aioetcd.lease import Leases, LeaseStreams
from aioetcd.types.store import KeyValue
from aioetcd.watch import Watcher, WatchStreams

__all__ = ["Namespace", "Shared"]

_T = TypeVar("_T")


class Shared:
    """What a client and its namespaces have in common: connections, streams, background tasks.

    Attributes:
        transport: Makes the calls.
        leases: The renewals.
        watches: The users' watches.
        turns: The recipes' watches, on a stream of their own: a large answer to one of the users'
            delays no lock.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport: Transport = transport
        self.leases: LeaseStreams = LeaseStreams(transport)
        self.watches: WatchStreams = WatchStreams(transport)
        self.turns: WatchStreams = WatchStreams(transport)


class Namespace(metaclass=NoPublicConstructor):
    """The store below a prefix; ``client.namespace(...)`` makes it. A `Client` is one without.

    Keys go in and come out without the prefix: in txns and their comparisons, in events, and in
    the names of locks. What is outside can neither be read, nor written, nor watched: a range
    without end, or the prefix ``""``, means all keys of the namespace. A key that *is* the prefix
    is outside. Leases belong to the whole cluster: of their keys those inside are shown, and who
    revokes one deletes all of them. So does the history: `KV.compact` forgets everybody's.

    It costs nothing to have one: connections, streams and background tasks are the client's, with
    which it ends.

    Attributes:
        kv: Reads and writes keys.
        lease: Grants leases and keeps them alive.
        watch: Call it to watch keys: ``namespace.watch("key")``.

    Example:
        tenant = client.namespace("/tenant-7/")
        await tenant.kv.put("name", "Ada")
        (await client.kv.get("/tenant-7/name")).value  # b"Ada"
    """

    def __init__(self, shared: Shared, calls: Calls) -> None:
        self._shared = shared
        self._calls = calls
        self.kv: KV = create(KV, calls)
        self.lease: Leases = create(Leases, calls, shared.leases)
        self.watch: Watcher = create(Watcher, calls, shared.watches)
        turns = create(Watcher, calls, shared.turns)
        self._parts = Parts(shared.transport, calls, self.kv, self.lease, turns)

    def __repr__(self) -> str:
        """Show the prefix."""
        return f"<Namespace {self._calls.prefix!r}>"

    def namespace(self, prefix: str | bytes) -> Namespace:
        """Give the same API on the keys below a prefix, which is itself below this one's.

        Args:
            prefix: What all keys begin with; end it with a separator, or it has the neighbour's
                keys too, as ``"/tenant-7"`` those of ``"/tenant-77"``.

        Raises:
            ValueError: It is empty.
            TypeError: It is neither str nor bytes.

        Example:
            jobs = client.namespace("/tenant-7/").namespace("jobs/")
            await jobs.kv.put("1", "ready")
            (await client.kv.get("/tenant-7/jobs/1")).value  # b"ready"
        """
        return create(Namespace, self._shared, Prefixed(self._calls, encode_key(prefix, "prefix")))

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
        return create(Session, self._shared.transport, self.lease, ttl=ttl, on_lost=on_lost)

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
        return await queued_at(self.kv, encode_key(name) + b"/", timeout=timeout)

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
