"""Taking an item of a queue at most once, and losing none in silence.

One txn deletes the item, if it is as it was seen, and writes the claim's id on the queue's receipt.
What holds at any moment:

- A claim goes on until it is known whether it has taken the item, though nobody waits for it any
  more. What it has taken for nobody is put back, by the same task: another one that is begun when
  the event loop ends might never have its turn.
- Where an answer was lost, the same txn is sent again: only one of both can be applied. Where the
  item is gone then, the receipt of the revision at which it was deleted tells who has it.
- What is put back is put once, however often that is tried, and however late it arrives: on a lease
  that is granted for it, together with a guard that must not be there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic
from typing import NamedTuple

import anyio

from aioetcd._proto import rpc_pb2
from aioetcd._transport.backoff import PASSING, Backoff
from aioetcd._transport.methods import (
    IDEMPOTENT_TXN,
    LEASE_GRANT,
    LEASE_REVOKE,
    RANGE,
    TXN,
)
from aioetcd.compare import Compare
from aioetcd.concurrency._parts import Parts, new_id
from aioetcd.config.timeouts import seconds_left
from aioetcd.errors import EtcdError, LeaseExistsError, LeaseNotFoundError, QueueError
from aioetcd.lease import new_lease_id
from aioetcd.ops import Op
from aioetcd.types.answers import GetResponse
from aioetcd.types.store import KeyValue

_logger: logging.Logger = logging.getLogger("aioetcd.concurrency")

# How long one request is waited for where the client has no limit.
_PATIENCE = 10.0
# So many bytes of a value are told by messages.
_SHOWN = 1000
# For so long an answer may be missing to what puts an item back.
_GUARDED = 600


class Seen(NamedTuple):
    """An item, and a revision at which it was there."""

    kv: KeyValue
    revision: int


class Claim:
    """One try to take an item; whoever makes it says in the end whether it was left for nothing.

    Args:
        parts: Read and write.
        seen: The item.
        receipt: The key of the queue's receipt.
        first: What must hold beside that the item is there.

    Attributes:
        item: The item.
        settled: Done when it is known what became of it, or nobody will ever know.
        is_taken: Whether it was taken here; None as long as nobody knows.
        is_overtaken: Whether it is still there, and `first` did not hold.
        error: What went wrong; with `maybe_applied`, nobody will ever know.
    """

    def __init__(
        self, parts: Parts, seen: Seen, *, receipt: bytes, first: Sequence[Compare]
    ) -> None:
        self.item: KeyValue = seen.kv
        self.settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_taken: bool | None = None
        self.is_overtaken: bool = False
        self.error: EtcdError | None = None
        self._transport, self._calls, *_ = parts
        self._seen_at = seen.revision
        self._receipt = receipt
        self._first = first
        self._id = new_id()
        self._is_sent = False
        self._parts = parts
        self._return: Return | None = None
        # Whether whoever made it has left, and got nothing of it.
        self._is_left = asyncio.Event()
        self._is_abandoned = False
        self._given_up: str | None = None

    def leave(self, *, is_abandoned: bool) -> None:
        """Its maker leaves it; what was taken for one that has abandoned it is put back."""
        self._is_abandoned = is_abandoned
        self._is_left.set()
        if is_abandoned and self._given_up is not None:
            self._log(self._given_up)

    async def run(self, seconds: float) -> None:
        """Bring it to its end; for the supervisor, which may repeat it."""
        deadline = monotonic() + seconds
        backoff = Backoff(0.01, 1.0)
        while self.is_taken is None and self.error is None:
            is_first, self._is_sent = not self._is_sent, True
            try:
                await self._try(is_first, deadline)
            except PASSING:
                if monotonic() >= deadline:
                    raise
                await anyio.sleep(backoff.next_delay())
            except EtcdError as error:
                self._lose_track(str(error))
        self._settle()
        await self._is_left.wait()
        if self._is_abandoned and self.is_taken:
            if self._return is None:  # the same one where this is repeated
                guard = self._receipt + b"/" + self._id
                self._return = Return(self._parts, self.item, guard)
            await self._return.run(deadline - monotonic())
        elif self._is_abandoned:
            self._log("")

    def give_up(self, why: str) -> None:
        """It does not come to its end."""
        if self.is_taken is None and self.error is None:
            self._lose_track(why)
        self._settle()
        self._given_up = why
        if self._is_abandoned:
            self._log(why)

    def _settle(self) -> None:
        if not self.settled.done():
            self.settled.set_result(None)

    def _lose_track(self, why: str) -> None:
        """Nobody will know what became of it."""
        kv = self.item
        self.error = QueueError(
            f"the item {kv.key!r} may have been taken here, or by somebody else, which cannot be "
            f"known any more: its value was {kv.value[:_SHOWN]!r}: {why}",
            key=kv.key,
            value=kv.value,
            maybe_applied=True,
        )

    def _log(self, why: str) -> None:
        """Tell of what was left and may be lost."""
        if self.is_taken and not (self._return is not None and self._return.is_put):
            _logger.error(
                "the item %r was taken for nobody, and could not be put back: %s; its value was %r",
                self.item.key,
                why,
                self.item.value[:_SHOWN],
            )
        elif self.error is not None and self.error.maybe_applied:
            _logger.error("nobody has waited for it any more: %s", self.error)

    async def _try(self, is_first: bool, deadline: float) -> None:
        look, receipt = Op.get(self.item.key, keys_only=True), Op.get(self._receipt)
        claim = Op.txn(
            # Once it may have been applied, one that is must end it.
            compare=[Compare.unchanged(self.item), *(self._first if is_first else ())],
            success=[Op.delete(self.item.key), Op.put(self._receipt, self._id)],
            failure=[look, receipt],
        )
        bound = _bound(self._transport.timeout, deadline)
        try:
            raw = await self._calls.last_unary(TXN, claim._request, bound)
        except EtcdError as error:
            if self._is_only(is_first) and not error.maybe_applied:
                self.error = error
            elif isinstance(error, PASSING):
                raise
            else:
                await self._look(error, is_first, deadline)
            return
        result = claim._response(raw)
        if result.succeeded:
            self.is_taken = True
        elif self._is_only(is_first):
            self.is_taken = False
            self.is_overtaken = result[look].kv is not None
        elif not self._is_item(result[look].kv):
            self.is_taken = await self._was_ours(
                result[receipt].kv, result.header.revision, deadline
            )

    async def _look(self, refusal: EtcdError, is_first: bool, deadline: float) -> None:
        """See whether what the server has refused was done: without space, some of it is.

        By single reads: without space it refuses txns that only read, too.
        """
        found = await self._get(self.item.key, None, deadline)
        revision = found.header.revision
        if not self._is_item(found.kv):
            receipt = (await self._get(self._receipt, revision, deadline)).kv
            self.is_taken = await self._was_ours(receipt, revision, deadline)
        elif self._is_only(is_first):
            refusal.maybe_applied = False
            self.error = refusal
        else:
            raise refusal

    def _is_only(self, is_first: bool) -> bool:
        """Whether it was sent once: where the client closes meanwhile, it may be sent again."""
        return is_first and self._transport.ending.reason is None

    async def _was_ours(self, receipt: KeyValue | None, revision: int, deadline: float) -> bool:
        """Whether the item, which is gone at a revision, was taken here.

        Args:
            receipt: What is on the receipt then.
            revision: That revision.
            deadline: How long that may take.
        """
        if receipt is None or receipt.mod_revision <= self._seen_at:
            return False
        if receipt.value == self._id:
            return True
        there, gone = self._seen_at, revision
        while gone - there > 1:
            middle = (there + gone) // 2
            if self._is_item((await self._get(self.item.key, middle, deadline)).kv):
                there = middle
            else:
                gone = middle
        return (await self._get(self._receipt, gone, deadline)).value == self._id

    def _is_item(self, kv: KeyValue | None) -> bool:
        return kv is not None and kv.mod_revision == self.item.mod_revision

    async def _get(self, key: bytes, revision: int | None, deadline: float) -> GetResponse:
        op = Op.get(key, revision=revision)
        bound = _bound(self._transport.timeout, deadline)
        return op._response(await self._calls.last_unary(RANGE, op._request, bound))


class Return:
    """Puts an item back that was taken for nobody.

    Args:
        parts: Write.
        item: The item.
        guard: A key of its own.

    Attributes:
        is_put: Whether it is known to be back.
    """

    def __init__(self, parts: Parts, item: KeyValue, guard: bytes) -> None:
        self._transport, self._calls, *_ = parts
        self._lease_id = new_lease_id()
        self._put = Op.txn(
            compare=[Compare.missing(guard)],
            success=[
                Op.put(item.key, item.value),
                Op.put(guard, b"", lease=self._lease_id),
            ],
        )
        self._is_granted = False
        self.is_put: bool = False

    async def run(self, seconds: float) -> None:
        """Do it; for the supervisor, which may repeat it."""
        deadline = monotonic() + seconds
        backoff = Backoff(0.01, 1.0)
        while True:
            try:
                await self._try(_bound(self._transport.timeout, deadline))
            except PASSING:
                if monotonic() >= deadline:
                    raise
                await anyio.sleep(backoff.next_delay())
            else:
                return

    async def _try(self, seconds: float) -> None:
        if not self._is_granted:
            grant = rpc_pb2.LeaseGrantRequest(ID=self._lease_id, TTL=_GUARDED)
            with suppress(LeaseExistsError):  # by an earlier try
                await self._calls.last_unary(LEASE_GRANT, grant, seconds)
            self._is_granted = True
        if not self.is_put:
            await self._calls.last_unary(IDEMPOTENT_TXN, self._put._request, seconds)
            self.is_put = True
        revoke = rpc_pb2.LeaseRevokeRequest(ID=self._lease_id)
        with suppress(LeaseNotFoundError):
            await self._calls.last_unary(LEASE_REVOKE, revoke, seconds)


def _bound(timeout: float | None, deadline: float) -> float:
    """Give how long one request may take."""
    return min(seconds_left(deadline), _PATIENCE if timeout is None else timeout)
