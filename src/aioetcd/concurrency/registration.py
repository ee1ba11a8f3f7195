"""A registration: a key that is there as long as its owner is."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Self

import anyio
from anyio.lowlevel import checkpoint_if_cancelled

from aioetcd._checks import check_int
from aioetcd._constructor import NoPublicConstructor
from aioetcd._transport.backoff import Backoff
from aioetcd._transport.supervisor import PATIENCE
from aioetcd.concurrency._parts import PASSING, Parts
from aioetcd.concurrency._tenure import Tenure
from aioetcd.errors import (
    ClientClosedError,
    CompactedError,
    EtcdError,
    LeaseLostError,
    LeaseNotFoundError,
)
from aioetcd.keys import encode, encode_key
from aioetcd.lease import MAX_TTL
from aioetcd.types.store import EventType

__all__ = ["Registration"]

_logger: logging.Logger = logging.getLogger("aioetcd.concurrency")


class Registration(metaclass=NoPublicConstructor):
    """A key that is there for the time of an ``async with``; ``client.registration(...)`` makes it.

    It hangs on a lease of its own, which is kept alive: when this process is gone, so is the key,
    after the lease's time to live. When the lease is lost, or the key is deleted, it is registered
    again, as soon as that can be: others may have seen it go. Nothing is cancelled by that, so it
    is no lock; what must not be done by two at a time needs one.

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
        self._parts = parts
        self._key = encode_key(key)
        self._value = encode("value", value)
        self._ttl = check_int("ttl", ttl, 1, MAX_TTL)
        self._tenure: Tenure | None = None
        self._is_registered = False
        self._was_registered = False
        self._error: EtcdError | None = None
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        """Show the key."""
        return f"<Registration {self._key!r}>"

    @property
    def is_registered(self) -> bool:
        """Whether it is there just now, as far as this client knows."""
        return self._is_registered

    async def __aenter__(self) -> Self:
        """Register."""
        if self._task is not None:
            raise RuntimeError("a registration can be entered once: make another one")
        transport = self._parts.transport
        transport.check_usable()
        self._task = transport.supervisor.spawn(self._run, f"aioetcd registration of {self._key!r}")
        try:
            while not self._was_registered:
                if self._error is not None:
                    raise self._error
                await self._changed.wait()
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Delete it."""
        await self._leave()
        await checkpoint_if_cancelled()

    async def _leave(self) -> None:
        supervisor = self._parts.transport.supervisor
        if self._task is not None:
            supervisor.stop(self._task)
        self._is_registered = False
        tenure, self._tenure = self._tenure, None
        revocation = None if tenure is None else tenure.end()
        if tenure is not None and revocation is not None:
            await supervisor.wait_tidied(revocation, min(PATIENCE, tenure.bound))

    async def _run(self) -> None:
        backoff = Backoff(0.1, 5.0)
        try:
            while True:
                why = await self._hold()
                _logger.info("the key %r is registered again: %s", self._key, why)
                if self._was_registered:
                    backoff.reset()
                await anyio.sleep(backoff.next_delay())
        except ClientClosedError as error:
            self._error = error
        except EtcdError as error:
            self._error = error
            if self._was_registered:
                _logger.warning("the key %r is registered no more: %s", self._key, error)
        finally:
            self._is_registered = False
            self._changed.set()

    async def _hold(self) -> EtcdError | str:
        """Register, and give why that is over, where it may be done again."""
        tenure = self._tenure = Tenure(self._parts.transport, self._parts.leases, self._ttl)
        lost: list[LeaseLostError] = []
        with anyio.CancelScope() as scope:

            def tell(error: LeaseLostError) -> None:
                lost.append(error)
                scope.cancel()

            tenure.listeners.append(tell)
            try:
                await tenure.begin()
                await self._keep(tenure)
            except (*PASSING, LeaseNotFoundError) as error:
                if not self._was_registered:
                    raise
                return error
            finally:
                self._is_registered = False
                tenure.listeners.remove(tell)
                if self._tenure is tenure:
                    self._tenure = None
                    tenure.end()
        if lost and lost[0].reason == "closed":
            raise ClientClosedError("the client is closed")
        return lost[0] if lost else "its lease was lost"

    async def _keep(self, tenure: Tenure) -> None:
        """Have the key there as long as the lease lives."""
        lease_id = tenure.lease_id
        while True:
            put = await self._parts.kv.put(self._key, self._value, lease=lease_id)
            self._is_registered = self._was_registered = True
            self._changed.set()
            start = put.header.revision + 1
            watch = self._parts.watcher(self._key, start_revision=start, timeout=None)
            try:
                async with watch:
                    async for event in watch:
                        if event.type is EventType.DELETE:
                            break
                        self._is_registered = event.kv.lease == lease_id
            except CompactedError:
                pass  # whatever became of it meanwhile: it is put again
            self._is_registered = False
