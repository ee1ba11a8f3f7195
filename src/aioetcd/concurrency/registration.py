"""A registration: a key that is there as long as its owner is."""

from __future__ import annotations

import asyncio
import logging

import anyio

from aioetcd._checks import check_int
from aioetcd._transport.backoff import Backoff
from aioetcd.compare import Compare
from aioetcd.concurrency._parts import Parts
from aioetcd.concurrency._tenure import Tenure
from aioetcd.concurrency._upkeep import Upkeep
from aioetcd.config.timeouts import DEFAULT, Default
from aioetcd.errors import (
    ClientClosedError,
    CompactedError,
    EtcdError,
    LeaseLostError,
    LeaseNotFoundError,
)
from aioetcd.keys import encode, encode_key
from aioetcd.lease import MAX_TTL
from aioetcd.ops import Op
from aioetcd.types.answers import GetResponse
from aioetcd.types.store import EventType, KeyValue

__all__ = ["Registration"]

_logger: logging.Logger = logging.getLogger("aioetcd.concurrency")


class Registration(Upkeep):
    """A key that is there for the time of an ``async with``; ``client.registration(...)`` makes it.

    It hangs on a lease of its own, which is kept alive: when this process is gone, so is the key,
    after the lease's time to live. When the lease is lost, or the key is deleted, it is registered
    again, as soon as that can be: others may have seen it go. What fails then is logged, and tried
    again with growing pauses. Nothing is cancelled by that, so it is no lock; what must not be done
    by two at a time needs one.

    Who registers the same key elsewhere takes it over: this one then waits until that is gone.

    Leaving deletes the key, and waits for that up to a second, as a session does. It is entered
    once, and may be used by many tasks.

    Raises:
        RuntimeError: It is entered a second time.
        EtcdError: It could not be registered at first, by cause.

    Example:
        async with client.registration("/services/a", "10.0.0.7:80") as registration:
            (await client.kv.get("/services/a")).text  # "10.0.0.7:80"
            registration.is_registered  # True
        (await client.kv.get("/services/a")).kv  # None
    """

    def __init__(self, parts: Parts, key: str | bytes, value: str | bytes, *, ttl: int) -> None:
        self._key = encode_key(key)
        super().__init__(parts, "registration", self._key)
        self._value = encode("value", value)
        self._ttl = check_int("ttl", ttl, 1, MAX_TTL)
        self._tenure: Tenure | None = None
        self._is_registered = False
        self._had_it = False

    def __repr__(self) -> str:
        """Show the key."""
        return f"<Registration {self._key!r}>"

    @property
    def is_registered(self) -> bool:
        """Whether it is there just now, as far as this client knows."""
        return self._is_registered

    async def update(
        self, value: str | bytes, *, timeout: float | Default | None = DEFAULT
    ) -> None:
        """Have others see another value (RPC ``Txn``).

        Where it is not registered just now, they do as soon as it is again.

        Args:
            value: What they see.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            TypeError: A value that is neither str nor bytes.
            RuntimeError: Outside of the block.
            EtcdError: By cause; then they see it when it is registered the next time, or before.

        Example:
            async with client.registration("/services/a", "starting") as registration:
                await registration.update("ready")
                (await client.kv.get("/services/a")).text  # "ready"
        """
        encoded = encode("value", value)
        if not self._is_ready or self._left:
            raise RuntimeError("a registration is updated inside its block")
        self._value = encoded
        if self._is_registered and self._tenure is not None:
            lease_id = self._tenure.lease_id
            await self._parts.kv.txn(
                compare=[Compare.lease(self._key) == lease_id],
                success=[Op.put(self._key, self._value, lease=lease_id)],
                timeout=timeout,
            )

    def _let_go(self) -> asyncio.Task[None] | None:
        self._is_registered = False
        tenure, self._tenure = self._tenure, None
        return None if tenure is None else tenure.end()

    async def _run(self) -> None:
        backoff = Backoff(0.1, 5.0)
        while True:
            self._had_it = False
            try:
                why = await self._hold()
            except EtcdError as error:
                if isinstance(error, ClientClosedError) or not self._is_ready:
                    self._error = error
                    return
                _logger.warning("the key %r is not registered: %s", self._key, error)
            else:
                _logger.info(
                    "the key %r was lost, and is to be registered again: %s", self._key, why
                )
            if self._had_it:
                backoff.reset()
            await anyio.sleep(backoff.next_delay())

    async def _hold(self) -> EtcdError | None:
        """Register, and give why that is over, where it is by the loss of the lease."""
        tenure = self._tenure = Tenure(self._parts.transport, self._parts.leases, self._ttl)
        lost: list[LeaseLostError] = []
        with anyio.CancelScope() as scope:

            def tell(error: LeaseLostError) -> None:
                lost.append(error)
                scope.cancel()

            tenure.listeners.append(tell)
            try:
                await tenure.begin()
                while True:
                    await self._keep(tenure.lease_id)
            except LeaseNotFoundError as gone:
                if not self._had_it:
                    raise
                return gone  # the key's deletion has told of it first
            finally:
                self._is_registered = False
                tenure.listeners.remove(tell)
                if self._tenure is tenure:
                    self._tenure = None
                    tenure.end()
        (error,) = lost[:1] or (None,)
        if error is not None and error.reason == "closed":
            raise ClientClosedError("the client is closed")
        return error

    async def _keep(self, lease_id: int) -> None:
        """Have the key there, or let another one have it, until it is deleted."""
        seen_at = await self._put(lease_id)
        watch = self._parts.watcher(
            self._key, start_revision=seen_at + 1, timeout=None if self._is_ready else DEFAULT
        )
        try:
            async with watch:
                if self._is_registered:
                    self._registered()
                async for event in watch:
                    if event.type is EventType.DELETE:
                        break
                    await self._see(event.kv, lease_id)
        except CompactedError:
            pass  # whatever became of it meanwhile is seen now
        self._is_registered = False

    def _registered(self) -> None:
        """It is there, and followed."""
        if self._is_ready and not self._had_it:
            _logger.info("the key %r is registered again", self._key)
        self._is_ready = self._had_it = True
        self._pulse()

    async def _put(self, lease_id: int) -> int:
        """Register, at first whoever has the key, then where nobody has; give the revision."""
        if not self._is_ready:
            put = await self._parts.kv.put(self._key, self._value, lease=lease_id)
            self._is_registered = True
            return put.header.revision
        look: Op[GetResponse] = Op.get(self._key)
        result = await self._parts.kv.txn(
            compare=[Compare.missing(self._key)],
            success=[Op.put(self._key, self._value, lease=lease_id), look],
            failure=[look],
            idempotent=True,
        )
        if (kv := result[look].kv) is not None:
            await self._see(kv, lease_id)
        return result.header.revision

    async def _see(self, kv: KeyValue, lease_id: int) -> None:
        """See whose the key is, and have it show our value if it is ours.

        It has another one where it was updated while it came back, or where an update that was
        given up has arrived after a later one.
        """
        self._is_registered = kv.lease == lease_id
        if self._is_registered and kv.value != self._value:
            await self._parts.kv.txn(
                compare=[Compare.mod_revision(self._key) == kv.mod_revision],
                success=[Op.put(self._key, self._value, lease=lease_id)],
                idempotent=True,
                timeout=None,
            )
