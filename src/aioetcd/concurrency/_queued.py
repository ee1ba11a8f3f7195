"""What is held by whoever has the turn in a queue of keys: a lock, a permit, a leadership."""

from __future__ import annotations

import asyncio

import anyio

from aioetcd._checks import check_seconds
from aioetcd.compare import Compare
from aioetcd.concurrency._guard import OnLost
from aioetcd.concurrency._hold import Hold
from aioetcd.concurrency._parts import Parts
from aioetcd.concurrency._tenure import Tenure
from aioetcd.concurrency._turn import Turn
from aioetcd.concurrency.session import Session
from aioetcd.config.timeouts import DEFAULT, Default
from aioetcd.errors import EtcdError, LeaseLostError, NoEndpointError
from aioetcd.keys import encode, encode_key
from aioetcd.kv import KV
from aioetcd.types.store import KeyValue, SortOrder, SortTarget

_DEFAULT_TTL = 10
# When the time is over, one more look at whose turn it is may take so long.
_LAST_LOOK = 0.4


class Queued(Hold):
    """Something that one has at a time, or some, in the order of coming, on a lease.

    Args:
        parts: Take it.
        name: What it is about.
        value: What others see.
        session: Whose lease to use; None is one of its own.
        ttl: That one's time to live.
        timeout: Wait so many seconds at the most.
        on_lost: What a loss does to the block.
        queue: Below the name, one's own queue.
        behind: Below the name, whose turn is over first, as `Turn` has it.
        permits: So many have it at a time.
    """

    def __init__(
        self,
        parts: Parts,
        name: str | bytes,
        *,
        value: str | bytes,
        session: Session | None,
        ttl: int | None,
        timeout: float | None,
        on_lost: OnLost,
        queue: bytes = b"",
        behind: tuple[bytes, ...] = (b"",),
        permits: int = 1,
    ) -> None:
        if session is not None and not isinstance(session, Session):
            raise TypeError(f"session must be a Session, not {type(session).__name__}")
        if session is not None and session._supervisor is not parts.transport.supervisor:
            raise ValueError("session is another client's")
        if session is not None and ttl is not None:
            raise ValueError("ttl is the session's: leave it out with session=")
        self._owns_lease = session is None
        if session is None:
            ttl = _DEFAULT_TTL if ttl is None else ttl
            tenure = Tenure(parts.transport, parts.leases, ttl)
        else:
            tenure = session._tenure
        super().__init__(parts.transport.supervisor, tenure, on_lost)
        self._name = encode_key(name, "name")
        self._turn = Turn(
            parts,
            tenure,
            queue=self._name + b"/" + queue,
            behind=tuple(self._name + b"/" + each for each in behind),
            permits=permits,
            value=encode("value", value),
            on_lost=self._lost,
        )
        self._kv = parts.kv
        self._picker = parts.transport.picker
        self._timeout = check_seconds("timeout", timeout)
        self._acquiring: anyio.CancelScope | None = None

    @property
    def key(self) -> bytes:
        """This holder's key: the name, and last the lease's id in hexadecimal."""
        return self._turn.key

    @property
    def revision(self) -> int:
        """The fencing token: the key's create revision, greater than any holder's before.

        Raises:
            RuntimeError: It was not acquired.
        """
        self._check_held()
        return self._turn.revision

    def is_owner(self) -> Compare:
        """Make the comparison that holds as long as this is held.

        Raises:
            RuntimeError: It was not acquired.

        Example:
            async with client.lock("/locks/nightly") as lock:
                result = await client.kv.txn(
                    compare=[lock.is_owner()], success=[Op.put("/result", "42")]
                )
                result.succeeded  # True
        """
        self._check_held()
        return self._turn.is_owner()

    async def _wait_turn(self) -> None:
        """Wait until it is one's turn."""
        raise NotImplementedError

    def _loss(self, why: str) -> EtcdError:
        """Make the error that tells the loss."""
        raise NotImplementedError

    def _late(self, holder: KeyValue | None, seconds: float) -> EtcdError:
        """Make the error that tells that the turn did not come in time."""
        raise NotImplementedError

    def _check_held(self) -> None:
        if not self._held:
            raise RuntimeError(f"the {self._kind} was not acquired")

    async def _take(self) -> None:
        self._tenure.listeners.append(self._lease_lost)
        # Two scopes, for two reasons to stop waiting: the time, and the loss of the lease.
        with anyio.move_on_after(self._timeout) as timer:
            with anyio.CancelScope() as self._acquiring:
                if self._owns_lease:
                    await self._tenure.begin()
                else:
                    self._tenure.require()
                await self._wait_turn()
            self._acquiring = None
        if timer.cancelled_caught:
            raise await self._too_late()

    async def _too_late(self) -> EtcdError:
        """Say why the turn did not come in time: somebody has it, or nobody can be asked."""
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
                    f"the {self._kind} {self._name!r} could not be had within "
                    f"{self._timeout:g} s, and nobody says who has it: {name}: {why}",
                    reasons={name: why},
                )
                unreachable.__cause__ = error
                return unreachable
        if current is None:
            return self._picker.unreachable()
        return self._late(None if self._turn.is_behind(holder) else holder, self._timeout)

    def _lease_lost(self, error: LeaseLostError) -> None:
        self._lost(f"its lease is lost ({error.reason})", error)

    def _lost(self, why: str, cause: EtcdError | None) -> None:
        lost = self._loss(why)
        lost.__cause__ = cause
        self._guard.lost(lost)
        if self._acquiring is not None:
            self._acquiring.cancel()

    def _let_go(self) -> asyncio.Task[None] | None:
        self._tenure.listeners.remove(self._lease_lost)
        deletion = self._turn.end(delete=not self._owns_lease)
        return self._tenure.end() if self._owns_lease else deletion


async def queued_at(
    kv: KV, prefix: bytes, *, limit: int | None = None, timeout: float | Default | None = DEFAULT
) -> tuple[KeyValue, ...]:
    """Read the keys of a queue, in the order of their turns."""
    found = await kv.get(
        prefix,
        prefix=True,
        sort_target=SortTarget.CREATE,
        sort_order=SortOrder.ASCEND,
        limit=limit,
        timeout=timeout,
    )
    return found.kvs


def held_by(holder: KeyValue) -> str:
    """Say who holds it: the key, and what its holder wrote for onlookers."""
    value = f", value {holder.value[:100]!r}" if holder.value else ""
    return f"with the key {holder.key!r}{value}"
