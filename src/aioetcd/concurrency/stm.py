"""Software transactional memory: a function over keys, run until what it saw still holds.

What holds at any moment:

- Nothing of a try is written before its function has returned, and then all of it at one revision,
  or nothing.
- A new try begins only when all before it were surely not applied, and never will be.
- A commit whose answer was lost is sent again only where `Commit.fate` says that it may be. Where
  there is a receipt it is never sent again: the receipt is changed, if nobody did, which ends it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Generic, TypeVar

import anyio

from aioetcd._checks import check_int
from aioetcd._constructor import create
from aioetcd._transport.backoff import PASSING, Backoff
from aioetcd.compare import Compare
from aioetcd.concurrency._commit import Commit, Fate, Receipt, keys_of
from aioetcd.concurrency._parts import Parts, new_id
from aioetcd.concurrency._transaction import Isolation, Read, Transaction
from aioetcd.config.timeouts import Default, deadline_in, seconds_left
from aioetcd.errors import DeadlineExceededError, EtcdError, StmConflictError
from aioetcd.keys import encode_key
from aioetcd.ops import Op
from aioetcd.types.store import KeyValue

__all__ = ["Stm"]

_T = TypeVar("_T")

_WHAT_TO_DO = (
    "What this transaction reads and writes does not tell whether it was applied: read the keys "
    "and decide, before you run it again; stm(receipt=key) makes it known."
)


class Stm(Generic[_T]):
    """Runs a transaction until it holds.

    Args:
        parts: Reads and writes.
        function: What is run for each try.
        isolation: What it relies on.
        tries: How many there are at the most; None is no limit.
        receipt: A key that tells whether a commit was applied.
        timeout: The deadline in seconds for all of it.
    """

    def __init__(
        self,
        parts: Parts,
        function: Callable[[Transaction], Awaitable[_T]],
        *,
        isolation: Isolation,
        tries: int | None,
        receipt: str | bytes | None,
        timeout: float | Default | None,
    ) -> None:
        if not callable(function):
            raise TypeError(f"fn must be a function, not {type(function).__name__}")
        if not isinstance(isolation, Isolation):
            raise TypeError(f"isolation must be an Isolation, not {type(isolation).__name__}")
        self._parts = parts
        self._kv = parts.kv
        self._function = function
        self._isolation = isolation
        self._tries = None if tries is None else check_int("tries", tries, 1, none="no limit")
        self._receipt = None if receipt is None else encode_key(receipt, "receipt")
        self._seconds = parts.calls.resolve_timeout(timeout)
        self._deadline: float | None = None
        self._number = 0
        # What the last failed commit has read, and the seconds that it took.
        self._prefetched: Read | None = None
        self._took = 0.0

    async def run(self) -> _T:
        """Give what the function returned in the try that holds."""
        self._deadline = deadline_in(self._seconds)
        backoff = Backoff(0.002, 0.05)
        while True:
            self._number += 1
            why, results = await self._try()
            if why is None:
                return results[0]
            if self._number == self._tries:
                raise why
            delay = backoff.next_delay()
            if self._deadline is not None and monotonic() + delay >= self._deadline:
                raise self._late() from why
            if delay > self._took:  # then it is older than what a read would give
                self._prefetched = None
            await anyio.sleep(delay)

    async def _try(self) -> tuple[EtcdError | None, list[_T]]:
        """Make a try; give why it was not applied, and what the function returned."""
        tx = create(
            Transaction,
            self._parts,
            self._isolation,
            deadline=self._deadline,
            receipt=self._receipt,
            prefetched=self._prefetched,
        )
        self._prefetched = None
        results: list[_T] = []
        try:
            results.append(await self._function(tx))
        except Exception:
            # Whatever the function makes of a compaction, it could not read what it asked for.
            if tx._compacted is None:
                raise
        finally:
            tx._is_over = True
        return tx._compacted or await self._commit(tx), results

    @property
    def _tries_made(self) -> str:
        return "one try" if self._number == 1 else f"{self._number} tries"

    def _late(self) -> DeadlineExceededError:
        return DeadlineExceededError(
            f"the transaction was not committed in {self._tries_made}", timeout=self._seconds
        )

    async def _commit(self, tx: Transaction) -> EtcdError | None:
        """Commit a try; give why it was not applied, and there may be another one."""
        if not tx._writes:
            is_checked = self._isolation is Isolation.REPEATABLE_READS and tx._seen
            return await self._send(tx._commit(None)) if is_checked else None
        receipt = None
        if self._receipt is not None:
            seen = tx._receipt or await self._begin_receipt(self._receipt)
            receipt = Receipt(seen, new_id())
        commit = tx._commit(receipt)
        doubt: EtcdError | None = None
        backoff = Backoff(0.01, 1.0)
        while True:
            try:
                why = await self._send(commit)
            except EtcdError as error:
                if doubt is None and not error.maybe_applied:
                    raise
                doubt, last = doubt or error, error
            else:
                if why is None or doubt is None:
                    return why
                last = why
            fate = await self._settle(commit, doubt)
            if fate is Fate.APPLIED:
                return None
            if fate is Fate.NEVER:
                self._prefetched = None
                doubt.maybe_applied = False
                return doubt
            delay = backoff.next_delay()
            is_late = self._deadline is not None and monotonic() + delay >= self._deadline
            if fate is Fate.UNKNOWN or is_late or not isinstance(last, PASSING):
                raise _explained(doubt)
            await anyio.sleep(delay)

    async def _send(self, commit: Commit) -> EtcdError | None:
        """Send a commit; give what stands in its way."""
        left = None if self._deadline is None else self._deadline - monotonic()
        if left is not None and left <= 0:
            raise self._late()
        if left is not None and commit.writes and commit.can_be_judged:
            left /= 2  # what is left then is for finding out what became of it
        looks = {key: Op.get(key) for key in commit.compared}
        if commit.receipt is not None:
            looks[commit.receipt.seen.key] = Op.get(commit.receipt.seen.key)
        sent_at = monotonic()
        result = await self._kv.txn(
            compare=commit.comparisons,
            success=commit.operations,
            # Without these, comparisons alone are answered from what the member has: an old state.
            failure=[*looks.values()],
            timeout=left,
        )
        if result.succeeded:
            return None
        now = {key: result[look].kv for key, look in looks.items()}
        self._prefetched = Read(result.header.revision, now)
        self._took = monotonic() - sent_at
        keys = commit.changed(now)
        return StmConflictError(
            f"the transaction was not committed in {self._tries_made}: others changed "
            f"{', '.join(map(repr, keys))}",
            keys=keys,
            tries=self._number,
        )

    async def _begin_receipt(self, key: bytes) -> KeyValue:
        """Read the receipt, and put it where it is missing: what is missing ends no commit."""
        value, look = new_id(), Op.get(key)
        try:
            result = await self._kv.txn(
                compare=[Compare.missing(key)],
                success=[Op.put(key, value)],
                failure=[look],
                idempotent=True,
                timeout=seconds_left(self._deadline),
            )
        except EtcdError as error:
            error.maybe_applied = False  # of the transaction, nothing was sent yet
            raise
        revision = result.header.revision
        kv = None if result.succeeded else result[look].kv
        return kv or KeyValue(key, value, revision, revision, 1, None)

    async def _settle(self, commit: Commit, doubt: EtcdError) -> Fate:
        """Find out what became of a commit whose answer was lost."""
        try:
            if commit.receipt is not None:
                return await self._end(commit.receipt)
            if commit.can_be_judged:
                return commit.fate(await self._read_again(commit))
        except (EtcdError, TimeoutError) as error:
            raise _explained(doubt) from error
        return Fate.UNKNOWN

    async def _read_again(self, commit: Commit) -> dict[bytes, KeyValue | None]:
        """Read all keys of a commit, at one revision."""
        # Not in one txn: etcd before 3.5.7 dies of one that only reads, and is cut off.
        now: dict[bytes, KeyValue | None] = {}
        revision: int | None = None
        for key in keys_of(commit):
            left = seconds_left(self._deadline)
            found = await self._kv.get(key, revision=revision, timeout=left)
            revision = revision or found.header.revision
            now[key] = found.kv
        return now

    async def _end(self, receipt: Receipt) -> Fate:
        """Change the receipt, so that no copy of the commit can be applied; or see who did."""
        key = receipt.seen.key
        look = Op.get(key)
        result = await self._kv.txn(
            compare=[Compare.unchanged(receipt.seen)],
            success=[Op.put(key, new_id())],
            failure=[look],
            idempotent=True,
            timeout=seconds_left(self._deadline),
        )
        if result.succeeded:
            return Fate.NEVER
        fate = receipt.fate(result[look].kv)
        return await self._read_history(receipt) if fate is Fate.UNKNOWN else fate

    async def _read_history(self, receipt: Receipt) -> Fate:
        """Judge by the first change to the receipt; there is one."""
        watch = self._parts.watcher(
            receipt.seen.key,
            start_revision=receipt.seen.mod_revision + 1,
            timeout=seconds_left(self._deadline),
        )
        with anyio.fail_after(seconds_left(self._deadline)):
            async with watch:
                event = await anext(watch)
        return receipt.fate_by_history(event.kv)


def _explained(doubt: EtcdError) -> EtcdError:
    doubt.add_note(_WHAT_TO_DO)
    return doubt
