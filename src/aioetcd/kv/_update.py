"""Changing a key by what it is: read, compare and put, until it holds; what is known of that."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import NamedTuple

import anyio

from aioetcd._transport.backoff import PASSING, Backoff
from aioetcd.compare import Compare
from aioetcd.config.timeouts import seconds_left
from aioetcd.errors import DeadlineExceededError, EtcdError
from aioetcd.keys import encode
from aioetcd.ops import AnyOp, Op, TxnResponse
from aioetcd.types.answers import GetResponse
from aioetcd.types.store import KeyValue


class Fate(enum.Enum):
    """What became of an attempt whose answer was lost."""

    OPEN = enum.auto()
    """Nothing yet. It may still arrive: the same attempt, with the same comparison, may be sent
    again, because only one of both can be applied."""
    DONE = enum.auto()
    """The next version has the very value that it was to write."""
    LOST = enum.auto()
    """Somebody else was faster: it will never be applied."""
    UNKNOWN = enum.auto()
    """The key has changed more than once since then."""


class Attempt(NamedTuple):
    """One try to change a key.

    Attributes:
        seen: What was there, and must still be for it to be applied; None for no key.
        value: What is to be there; None for no key.
        lease: The lease that it is to hang on then.
    """

    seen: KeyValue | None
    value: bytes | None
    lease: int | None = None

    def fate(self, now: KeyValue | None) -> Fate:
        """Judge by what is there now.

        Args:
            now: The key, read after the attempt.
        """
        seen = self.seen
        if now is None:
            # That it is not there says nothing: it may have been written, and deleted since.
            return Fate.DONE if self.value is None else Fate.UNKNOWN
        is_ours = (now.value, now.lease) == (self.value, self.lease)
        if seen is None:
            return Fate.DONE if now.version == 1 and is_ours else Fate.UNKNOWN
        if now.mod_revision == seen.mod_revision:
            return Fate.OPEN
        if now.create_revision != seen.create_revision:
            return Fate.UNKNOWN
        if self.value is None:  # a deletion would have ended what is still there
            return Fate.LOST
        if now.version != seen.version + 1:
            return Fate.UNKNOWN
        return Fate.DONE if is_ours else Fate.LOST


class Updating:
    """Changes a key until a change holds.

    Args:
        get: Reads the key, as `KV.get`.
        txn: Compares and writes it, as `KV.txn`.
        key: The key.
        change: Makes of what is there what is to be there.
        lease: What to attach it to; None leaves it where it is.
    """

    def __init__(
        self,
        get: Callable[..., Awaitable[GetResponse]],
        txn: Callable[..., Awaitable[TxnResponse]],
        *,
        key: bytes,
        change: Callable[[KeyValue | None], str | bytes | None],
        lease: int | None,
    ) -> None:
        self._get = get
        self._txn = txn
        self._key = key
        self._change = change
        self._lease = lease

    async def run(self, deadline: float | None) -> KeyValue | None:
        """Give what the key is in the end."""
        backoff = Backoff(0.002, 0.2)
        now = await self._read(deadline)
        while True:
            changed = self._change(now)
            value = None if changed is None else encode("the value of change", changed)
            lease = self._lease or (None if now is None else now.lease)
            if (value, lease) == ((None, None) if now is None else (now.value, now.lease)):
                return now
            attempt = Attempt(now, value, lease)
            is_done, now = await self._try(attempt, deadline)
            if is_done:
                return now
            delay = backoff.next_delay()  # somebody else was faster
            if deadline is not None and monotonic() + delay >= deadline:
                raise DeadlineExceededError(
                    f"the key {self._key!r} was changed by others again and again"
                )
            await anyio.sleep(delay)

    async def _try(self, attempt: Attempt, deadline: float | None) -> tuple[bool, KeyValue | None]:
        """Make an attempt; give whether it holds, and what the key is now."""
        doubt: EtcdError | None = None
        backoff = Backoff(0.01, 1.0)
        look: Op[GetResponse] = Op.get(self._key)
        while True:
            try:
                holds = (
                    Compare.missing(self._key)
                    if attempt.seen is None
                    else Compare.unchanged(attempt.seen)
                )
                result = await self._txn(
                    compare=[holds],
                    success=[self._operation(attempt)],
                    failure=[look],
                    timeout=seconds_left(deadline),
                )
                if result.succeeded:
                    return True, self._made(attempt, result)
                now = result[look].kv
            except EtcdError as error:
                if not error.maybe_applied:
                    if doubt is not None:
                        error.maybe_applied = True
                    raise
                doubt = error
                try:
                    now = await self._read(deadline)
                except EtcdError:
                    raise doubt from None
            if doubt is None:
                return False, now
            fate = attempt.fate(now)
            if fate is Fate.UNKNOWN or (fate is Fate.OPEN and not isinstance(doubt, PASSING)):
                raise doubt
            if fate is not Fate.OPEN:
                return fate is Fate.DONE, now
            delay = backoff.next_delay()
            if deadline is not None and monotonic() + delay >= deadline:
                raise doubt
            await anyio.sleep(delay)

    async def _read(self, deadline: float | None) -> KeyValue | None:
        return (await self._get(self._key, timeout=seconds_left(deadline))).kv

    def _operation(self, attempt: Attempt) -> AnyOp:
        if attempt.value is None:
            return Op.delete(self._key)
        keeps = self._lease is None and attempt.seen is not None
        return Op.put(self._key, attempt.value, lease=self._lease, ignore_lease=keeps)

    def _made(self, attempt: Attempt, result: TxnResponse) -> KeyValue | None:
        seen, value, lease = attempt
        if value is None:
            return None
        revision = result.header.revision
        if seen is None:
            return KeyValue(self._key, value, revision, revision, 1, lease)
        return KeyValue(self._key, value, seen.create_revision, revision, seen.version + 1, lease)
