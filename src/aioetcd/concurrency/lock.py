"""A lock: fair, with a lease behind it, understood by etcdctl and the Go client."""

from __future__ import annotations

import asyncio

import anyio

from aioetcd._checks import check_seconds
from aioetcd._transport.calls import Calls
from aioetcd._transport.transport import Transport
from aioetcd.compare import Compare
from aioetcd.concurrency._guard import OnLost
from aioetcd.concurrency._hold import Hold
from aioetcd.concurrency._tenure import Tenure
from aioetcd.concurrency._turn import Turn
from aioetcd.concurrency.session import Session
from aioetcd.errors import (
    EtcdError,
    LeaseLostError,
    LockLostError,
    LockNotAcquiredError,
    LockTimeoutError,
    NoEndpointError,
)
from aioetcd.keys import encode, encode_key
from aioetcd.kv import KV
from aioetcd.lease import Leases
from aioetcd.types.store import KeyValue
from aioetcd.watch import Watcher

__all__ = ["Lock"]

_DEFAULT_TTL = 10
# When the time is over, one more look at who has the lock may take so long.
_LAST_LOOK = 0.4


class Lock(Hold):
    """A lock on a name for the time of an ``async with``; ``client.lock(...)`` makes it.

    Inside the block the lock is held as far as anybody can know; when the lease is lost or the
    key is deleted, the body is cancelled and the block raises `LockLostError`. A process that is
    stopped for longer than the lease lives cannot be told in time: put ``lock.is_owner()`` among
    the comparisons of each txn that the lock protects, or give ``lock.revision``, which grows from
    holder to holder, to what you write to.

    Leaving waits up to a second until the key is gone from the server. That goes on without whoever
    does not wait for it: whose task is cancelled meanwhile, or whose servers do not answer. When it
    fails for good, a warning is logged, and the next one enters when the lease has ended.

    Who cannot use a block calls `acquire` and `release`; then nothing is cancelled, and `wait_lost`
    tells.

    Every `Lock` is a holder of its own, also among tasks of one client and of one session, and is
    entered once. Holders are served in the order of their coming; of those that share a session one
    at a time stands in the queue, and they take turns among themselves. Do not use a name that is
    another lock's name followed by a slash and more.

    Raises:
        LockLostError: The lock was lost in the block, which was cancelled.
        EtcdError: It was not acquired, by the causes of `acquire`.

    Example:
        async with client.lock("/locks/nightly", value="host-7") as lock:
            lock.key.startswith(b"/locks/nightly/"), lock.is_lost  # (True, False)
            try:
                async with client.lock("/locks/nightly", blocking=False):
                    ...
            except LockNotAcquiredError as error:
                error.holder.value  # b"host-7"
    """

    _kind = "lock"

    def __init__(
        self,
        transport: Transport,
        calls: Calls,
        kv: KV,
        leases: Leases,
        watcher: Watcher,
        name: str | bytes,
        *,
        value: str | bytes,
        session: Session | None,
        ttl: int | None,
        blocking: bool,
        timeout: float | None,
        on_lost: OnLost,
    ) -> None:
        if session is not None and not isinstance(session, Session):
            raise TypeError(f"session must be a Session, not {type(session).__name__}")
        if session is not None and session._supervisor is not transport.supervisor:
            raise ValueError("session is another client's")
        if session is not None and ttl is not None:
            raise ValueError("ttl is the session's: leave it out with session=")
        if not blocking and timeout is not None:
            raise ValueError("timeout is for a lock that waits: leave it out with blocking=False")
        self._owns_lease = session is None
        if session is None:
            tenure = Tenure(transport, leases, _DEFAULT_TTL if ttl is None else ttl)
        else:
            tenure = session._tenure
        super().__init__(transport.supervisor, tenure, on_lost)
        self._name = encode_key(name)
        self._turn = Turn(
            transport,
            calls,
            kv,
            watcher,
            tenure,
            prefix=self._name + b"/",
            value=encode("value", value),
            on_lost=self._lost,
        )
        self._picker = transport.picker
        self._blocking = blocking
        self._timeout = check_seconds("timeout", timeout)
        self._acquiring: anyio.CancelScope | None = None

    def __repr__(self) -> str:
        """Show the key."""
        return f"<Lock {self.key!r}>"

    @property
    def key(self) -> bytes:
        """This holder's key: the name, a slash, and the lease's id in hexadecimal."""
        return self._turn.key

    @property
    def revision(self) -> int:
        """The fencing token: the key's create revision, greater than any holder's before.

        Raises:
            RuntimeError: The lock was not acquired.
        """
        self._check_acquired()
        return self._turn.revision

    def is_owner(self) -> Compare:
        """Make the comparison that holds as long as this holder has the lock.

        Raises:
            RuntimeError: The lock was not acquired.

        Example:
            async with client.lock("/locks/nightly") as lock:
                result = await client.kv.txn(
                    compare=[lock.is_owner()], success=[Op.put("/result", "42")]
                )
                result.succeeded  # True
        """
        self._check_acquired()
        return self._turn.is_owner()

    async def acquire(self) -> None:
        """Acquire the lock without a block: `release` it.

        A failed or cancelled attempt leaves neither key nor lease behind, and takes a second
        longer at the most.

        Raises:
            LockNotAcquiredError: Somebody else has it, with ``blocking=False``; or what has it is
                a key that is no lock's.
            LockTimeoutError: Its turn did not come within the timeout.
            NoEndpointError: No endpoint could be reached within it.
            LockLostError: The lease or the key was lost while waiting.
            RuntimeError: It was entered before, or the session is not open.
            EtcdError: By cause.

        Example:
            lock = client.lock("/locks/nightly", timeout=5)
            await lock.acquire()
            try:
                lock.is_lost  # False
            finally:
                await lock.release()
        """
        await self._enter()

    async def release(self) -> None:
        """Release a lock that was acquired without a block; again, it does nothing.

        It waits, a second at the most, until the key is gone from the server, which goes on in the
        background without whoever is cancelled or does not get an answer.

        Raises:
            RuntimeError: It was not acquired.

        Example:
            lock = client.lock("/locks/nightly")
            await lock.acquire()
            await lock.release()
        """
        self._check_acquired()
        await self._leave()

    def _check_acquired(self) -> None:
        if not self._held:
            raise RuntimeError("the lock was not acquired")

    async def _take(self) -> None:
        self._tenure.listeners.append(self._lease_lost)
        # Two scopes, for two reasons to stop waiting: the time, and the loss of the lease.
        with anyio.move_on_after(self._timeout) as timer:
            with anyio.CancelScope() as self._acquiring:
                if self._owns_lease:
                    await self._tenure.begin()
                else:
                    self._tenure.require()
                await (self._wait_turn() if self._blocking else self._try_once())
            self._acquiring = None
        if timer.cancelled_caught:
            raise await self._too_late()

    async def _wait_turn(self) -> None:
        if (alien := await self._turn.take()) is not None:
            raise self._never_free(alien)

    async def _try_once(self) -> None:
        if (holder := await self._turn.take_if_first()) is None:
            return
        if not self._turn.is_queued(holder):
            raise self._never_free(holder)
        raise LockNotAcquiredError(f"the lock {self._name!r} is held {_by(holder)}", holder=holder)

    def _never_free(self, alien: KeyValue) -> LockNotAcquiredError:
        return LockNotAcquiredError(
            f"the lock {self._name!r} cannot be had while there is the key {alien.key!r}: it is "
            "older, and no lock's, so it may stay for ever",
            holder=alien,
        )

    async def _too_late(self) -> EtcdError:
        """Say why the turn did not come in time: somebody has the lock, or nobody can be asked."""
        assert self._timeout is not None
        current = self._picker.current
        holder: KeyValue | None = None
        if current is not None:
            try:
                with anyio.fail_after(_LAST_LOOK):
                    holder = await self._turn.first()
            except (TimeoutError, EtcdError) as error:
                name, why = current.endpoint.name, str(error) or "no answer"
                unreachable = NoEndpointError(
                    f"the lock {self._name!r} could not be had within {self._timeout:g} s, and "
                    f"nobody says who has it: {name}: {why}",
                    reasons={name: why},
                )
                unreachable.__cause__ = error
                return unreachable
        if current is None:
            return self._picker.unreachable()
        if self._turn.maybe_ours(holder):
            holder = None
        held = "" if holder is None else f": it is held {_by(holder)}"
        return LockTimeoutError(
            f"the lock {self._name!r} was not free within {self._timeout:g} s{held}",
            timeout=self._timeout,
            holder=holder,
        )

    def _lease_lost(self, error: LeaseLostError) -> None:
        self._lost(f"its lease is lost ({error.reason})", error)

    def _lost(self, why: str, cause: EtcdError | None) -> None:
        lost = LockLostError(f"the lock {self._name!r} is lost: {why}")
        lost.__cause__ = cause
        self._guard.lost(lost)
        if self._acquiring is not None:
            self._acquiring.cancel()

    def _let_go(self) -> asyncio.Task[None] | None:
        self._tenure.listeners.remove(self._lease_lost)
        deletion = self._turn.end(delete=not self._owns_lease)
        return self._tenure.end() if self._owns_lease else deletion


def _by(holder: KeyValue) -> str:
    """Say who holds a lock: the key, and what its holder wrote for onlookers."""
    value = f", value {holder.value[:100]!r}" if holder.value else ""
    return f"with the key {holder.key!r}{value}"
