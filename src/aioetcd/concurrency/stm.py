"""Software transactional memory: a function over keys, run until what it saw still holds.

What holds at any moment:

- Nothing of a try is written before its function has returned, and then all of it at one revision,
  or nothing.
- A new try begins only when all before it were surely not applied, and never will be.
- What a level of isolation reads "at one revision" is what the store had at that revision, which it
  had at some moment after the transaction began: also where it is what a failed commit has read.
"""

from __future__ import annotations

import asyncio
import enum
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from time import monotonic
from typing import Generic, NamedTuple, TypeVar

import anyio

from aioetcd._checks import check_int, check_lease
from aioetcd._constructor import NoPublicConstructor, create
from aioetcd._transport.backoff import PASSING, Backoff
from aioetcd.compare import Compare
from aioetcd.concurrency._commit import Commit, Fate, Receipt, Write, keys_of
from aioetcd.concurrency._parts import Parts
from aioetcd.config.timeouts import Default, deadline_in, seconds_left
from aioetcd.errors import (
    CompactedError,
    DeadlineExceededError,
    EtcdError,
    FutureRevisionError,
    StmConflictError,
)
from aioetcd.keys import encode, encode_key
from aioetcd.ops import Op
from aioetcd.types.leases import LeaseLike
from aioetcd.types.store import KeyValue

__all__ = ["Isolation", "Stm", "Transaction"]

_T = TypeVar("_T")

_WHAT_TO_DO = (
    "What this transaction reads and writes does not tell whether it was applied: read the keys "
    "and decide, before you run it again; stm(receipt=key) makes it known."
)


class Isolation(enum.Enum):
    """What a transaction relies on while others write: the levels of the Go client.

    - `SERIALIZABLE_SNAPSHOT`: it reads one revision; what it has read is unchanged when it commits,
      and what it writes was not changed by others since its first read.
    - `SERIALIZABLE`: it reads one revision, and what it has read is unchanged when it commits. What
      it writes without having read it may have been changed meanwhile.
    - `REPEATABLE_READS`: each key is read once, as the member has it, and unchanged when it
      commits; while the function runs, keys may not fit together.
    - `READ_COMMITTED`: each key is read once, as the member has it; nothing is compared.
    """

    SERIALIZABLE_SNAPSHOT = enum.auto()
    SERIALIZABLE = enum.auto()
    REPEATABLE_READS = enum.auto()
    READ_COMMITTED = enum.auto()

    @property
    def _reads_one_revision(self) -> bool:
        return self in (Isolation.SERIALIZABLE_SNAPSHOT, Isolation.SERIALIZABLE)


class _Read(NamedTuple):
    """Keys as they were at a revision, the current one when they were read."""

    revision: int
    kvs: dict[bytes, KeyValue | None]


class Transaction(metaclass=NoPublicConstructor):
    """One try of a transaction: what the function of `Namespace.stm` is given.

    It reads the store, with its own writes on top; writes are kept until the function returns.
    Tasks of the function may share it. When the try is over it may not be used any more.

    Raises:
        RuntimeError: The try is over.

    Example:
        async def visit(tx: Transaction) -> int:
            visits = int(await tx.get("/visits") or 0) + 1
            tx.put("/visits", str(visits))
            return visits

        await client.stm(visit)  # 1
    """

    def __init__(
        self,
        parts: Parts,
        isolation: Isolation,
        *,
        deadline: float | None,
        receipt: bytes | None,
        prefetched: _Read | None,
    ) -> None:
        self._kv = parts.kv
        self._isolation = isolation
        self._deadline = deadline
        self._receipt_key = receipt
        self._prefetched = prefetched
        self._seen: dict[bytes, KeyValue | None] = {}
        self._writes: dict[bytes, Write] = {}
        self._receipt: KeyValue | None = None
        # The revision that all reads are of, once there was one; and the latest that is known.
        self._revision: int | None = None
        self._known = 0
        self._beginning = asyncio.Lock()
        self._compacted: CompactedError | None = None
        self._is_over = False
        if prefetched is not None and receipt is not None:
            self._receipt = prefetched.kvs.get(receipt)

    def __repr__(self) -> str:
        """Show what was done so far."""
        over = ", over" if self._is_over else ""
        return f"<Transaction: {len(self._seen)} read, {len(self._writes)} written{over}>"

    async def get(self, key: str | bytes) -> bytes | None:
        """Give a key's value (RPC ``Range``); None where it is missing, or deleted here.

        Args:
            key: The key.

        Raises:
            ValueError: An empty key, or the receipt's.
            TypeError: A key that is neither str nor bytes.
            CompactedError: The history was compacted meanwhile; there is another try.
            EtcdError: By cause.

        Example:
            async def rename(tx: Transaction) -> bytes | None:
                name = await tx.get("/old")
                tx.delete("/old")
                tx.put("/new", name or "nobody")
                return await tx.get("/old")

            await client.stm(rename)  # None
        """
        (value,) = (await self.get_many([key])).values()
        return value

    async def get_many(self, keys: Iterable[str | bytes]) -> dict[bytes, bytes | None]:
        """Give the values of many keys, 128 at the most, in one round trip (RPC ``Txn``).

        It is also for what is to be read soon: who reads it again asks nobody.

        Args:
            keys: The keys.

        Raises:
            ValueError: An empty key, or the receipt's.
            TypeError: A key that is neither str nor bytes; `keys` is a single one.
            CompactedError: The history was compacted meanwhile; there is another try.
            TooManyOpsError: More keys than the server takes operations in a txn.
            EtcdError: By cause.

        Example:
            async def both(tx: Transaction) -> dict[bytes, bytes | None]:
                tx.put("/a", "1")
                return await tx.get_many(["/a", "/b"])

            await client.stm(both)  # {b"/a": b"1", b"/b": None}
        """
        if isinstance(keys, str | bytes):
            raise TypeError(f"keys must be many, not {type(keys).__name__}: see get")
        names = [self._checked(key) for key in keys]
        self._check_open()
        await self._see([name for name in names if name not in self._writes])
        return {name: self._value(name) for name in names}

    async def revision(self, key: str | bytes) -> int:
        """Give the revision of a key's last change in the store; 0 where it is missing.

        What was written here does not count, and the key counts as read.

        Args:
            key: The key.

        Raises:
            ValueError: An empty key, or the receipt's.
            TypeError: A key that is neither str nor bytes.
            CompactedError: The history was compacted meanwhile; there is another try.
            EtcdError: By cause.

        Example:
            async def is_there(tx: Transaction) -> bool:
                return await tx.revision("/config/a") > 0

            await client.stm(is_there)  # False
        """
        name = self._checked(key)
        self._check_open()
        await self._see([name])
        kv = self._seen[name]
        return 0 if kv is None else kv.mod_revision

    def put(self, key: str | bytes, value: str | bytes, *, lease: LeaseLike | None = None) -> None:
        """Write a key when the transaction is committed; of several writes the last one counts.

        Args:
            key: The key.
            value: The value.
            lease: The lease to attach it to: its id, or a `Lease`, `Session` or `Lock`. Without
                one, it is detached from the lease that it had.

        Raises:
            ValueError: An empty key, the receipt's, or an id that no lease has.
            TypeError: An argument of the wrong type.

        Example:
            async def write(tx: Transaction) -> None:
                tx.put("/config/a", "1")

            await client.stm(write)
        """
        name = self._checked(key)
        data = encode("value", value)
        lease_id = None if lease is None else check_lease("lease", lease, none="no lease")
        self._check_open()
        self._writes[name] = Write(data, lease_id)

    def delete(self, key: str | bytes) -> None:
        """Delete a key when the transaction is committed; of several writes the last one counts.

        Args:
            key: The key.

        Raises:
            ValueError: An empty key, or the receipt's.
            TypeError: A key that is neither str nor bytes.

        Example:
            async def clear(tx: Transaction) -> None:
                tx.delete("/config/a")

            await client.stm(clear)
        """
        name = self._checked(key)
        self._check_open()
        self._writes[name] = Write(None)

    def _checked(self, key: str | bytes) -> bytes:
        name = encode_key(key)
        if name == self._receipt_key:
            raise ValueError(f"the key {name!r} is the receipt of this transaction, and kept by it")
        return name

    def _check_open(self) -> None:
        if self._is_over:
            raise RuntimeError("this try of the transaction is over: there may be another one")

    def _value(self, name: bytes) -> bytes | None:
        if name in self._writes:
            return self._writes[name].value
        kv = self._seen[name]
        return None if kv is None else kv.value

    async def _see(self, names: Sequence[bytes]) -> None:
        """Have the keys been read."""
        if all(name in self._seen for name in names):
            return
        if self._isolation._reads_one_revision and self._revision is None:
            await self._begin(names)
        self._take_prefetched(names)
        left = [name for name in dict.fromkeys(names) if name not in self._seen]
        if left:
            try:
                await self._read(left, self._revision, serializable=True)
            except FutureRevisionError:  # the member is behind the one that was asked at first
                await self._read(left, self._revision, serializable=False)
        self._check_open()

    async def _begin(self, names: Sequence[bytes]) -> None:
        """Read, or take, what decides on the revision that everything is read at."""
        async with self._beginning:  # only one of the tasks does
            if self._revision is None and not self._take_prefetched(names):
                await self._read(names, None, serializable=False)

    def _take_prefetched(self, names: Sequence[bytes]) -> bool:
        """Take what the last try's commit has read; give whether there was any of it."""
        found = self._prefetched
        if found is None or self._revision not in (None, found.revision):
            return False
        taken = {name: found.kvs[name] for name in names if name in found.kvs}
        if taken:
            self._saw(_Read(found.revision, taken))
        return bool(taken)

    async def _read(
        self, names: Sequence[bytes], revision: int | None, *, serializable: bool
    ) -> None:
        keys = [*dict.fromkeys(names)]
        if self._receipt_key is None or self._receipt is not None or revision is not None:
            self._saw(await self._ask(keys, revision, serializable=serializable))
            return

        # Not in one txn: etcd before 3.5.7 dies of one that only reads, and is cancelled.
        found, receipt = await asyncio.gather(
            self._ask(keys, None, serializable=serializable),
            self._ask([self._receipt_key], None, serializable=False),  # not an old one
            return_exceptions=True,  # so that none is left behind
        )
        if isinstance(found, BaseException):
            raise found
        if isinstance(receipt, BaseException):
            raise receipt
        self._receipt = receipt.kvs[self._receipt_key]
        self._saw(found)

    async def _ask(
        self, keys: Sequence[bytes], revision: int | None, *, serializable: bool
    ) -> _Read:
        gets = [Op.get(key, revision=revision, serializable=serializable) for key in keys]
        left = seconds_left(self._deadline)
        try:
            if len(keys) == 1:
                one = await self._kv.get(
                    keys[0], revision=revision, serializable=serializable, timeout=left
                )
                return _Read(one.header.revision, {keys[0]: one.kv})
            many = await self._kv.txn(success=gets, timeout=left)
        except CompactedError as error:
            self._compacted = error
            raise
        kvs = {key: many[get].kv for key, get in zip(keys, gets, strict=True)}
        return _Read(many.header.revision, kvs)

    def _saw(self, read: _Read) -> None:
        if self._isolation._reads_one_revision and self._revision is None:
            self._revision = read.revision
        self._known = max(self._known, read.revision)
        for name, kv in read.kvs.items():
            self._seen.setdefault(name, kv)  # another task may have read it, too

    def _commit(self, receipt: Receipt | None) -> Commit:
        isolation = self._isolation
        is_snapshot = isolation is Isolation.SERIALIZABLE_SNAPSHOT
        return Commit(
            {} if isolation is Isolation.READ_COMMITTED else {**self._seen},
            self._writes,
            since=self._revision if is_snapshot else None,
            known=self._known,
            receipt=receipt,
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
        self._prefetched: _Read | None = None
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
            receipt = Receipt(seen, _fresh())
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
            # Comparisons alone the member would answer from what it has, which may be old.
            success=commit.operations or [Op.get(key) for key in commit.compared[:1]],
            failure=[*looks.values()],
            timeout=left,
        )
        if result.succeeded:
            return None
        now = {key: result[look].kv for key, look in looks.items()}
        self._prefetched = _Read(result.header.revision, now)
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
        value, look = _fresh(), Op.get(key)
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
                keys = [*keys_of(commit)]
                found = await self._kv.get_many(keys, timeout=seconds_left(self._deadline))
                return commit.fate(dict(zip(keys, found.kvs, strict=True)))
        except (EtcdError, TimeoutError) as error:
            raise _explained(doubt) from error
        return Fate.UNKNOWN

    async def _end(self, receipt: Receipt) -> Fate:
        """Change the receipt, so that no copy of the commit can be applied; or see who did."""
        key = receipt.seen.key
        look = Op.get(key)
        result = await self._kv.txn(
            compare=[Compare.unchanged(receipt.seen)],
            success=[Op.put(key, _fresh())],
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


def _fresh() -> bytes:
    """Give a value that nobody else writes."""
    return os.urandom(16).hex().encode()


def _explained(doubt: EtcdError) -> EtcdError:
    doubt.add_note(_WHAT_TO_DO)
    return doubt
