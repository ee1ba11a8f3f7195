"""One try of a transaction: what it has seen, and what it is to write.

What holds at any moment:

- Each key is read once; what a level of isolation reads "at one revision" is what the store had at
  that revision, which it had at some moment after the transaction began: also where it is what a
  failed commit has read.
- Nothing is written. When the try is over, nothing is added to what is to be.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from aioetcd._checks import check_lease
from aioetcd._constructor import NoPublicConstructor
from aioetcd._transport.group import Group
from aioetcd.concurrency._commit import Commit, Receipt, Write
from aioetcd.concurrency._parts import Parts
from aioetcd.config.timeouts import seconds_left
from aioetcd.errors import CompactedError, EtcdError, FutureRevisionError
from aioetcd.keys import encode, encode_key
from aioetcd.ops import Op
from aioetcd.types.leases import LeaseLike
from aioetcd.types.store import KeyValue

__all__ = ["Isolation", "Read", "Transaction"]


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


class Read(NamedTuple):
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
        prefetched: Read | None,
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
            self._saw(Read(found.revision, taken))
        return bool(taken)

    async def _read(
        self, names: Sequence[bytes], revision: int | None, *, serializable: bool
    ) -> None:
        keys = [*dict.fromkeys(names)]
        if self._receipt_key is None or self._receipt is not None or revision is not None:
            self._saw(await self._ask(keys, revision, serializable=serializable))
            return

        # Not in one txn: etcd before 3.5.7 dies of one that only reads, and is cancelled.
        found: list[Read | EtcdError] = []
        receipts: list[Read | EtcdError] = []

        async def ask(answers: list[Read | EtcdError], keys: Sequence[bytes], old: bool) -> None:
            try:
                answers.append(await self._ask(keys, None, serializable=old))
            except EtcdError as error:
                answers.append(error)

        # Tasks of anyio's: they know of the scopes that may cancel whoever waits for them.
        async with Group() as group:
            group.start(ask(found, keys, serializable), "aioetcd read of a transaction")
            group.start(ask(receipts, [self._receipt_key], False), "aioetcd read of a receipt")
        read = _given(*found)
        self._receipt = _given(*receipts).kvs[self._receipt_key]
        self._saw(read)

    async def _ask(
        self, keys: Sequence[bytes], revision: int | None, *, serializable: bool
    ) -> Read:
        gets = [Op.get(key, revision=revision, serializable=serializable) for key in keys]
        left = seconds_left(self._deadline)
        try:
            if len(keys) == 1:
                one = await self._kv.get(
                    keys[0], revision=revision, serializable=serializable, timeout=left
                )
                return Read(one.header.revision, {keys[0]: one.kv})
            many = await self._kv.txn(success=gets, timeout=left)
        except CompactedError as error:
            self._compacted = error
            raise
        kvs = {key: many[get].kv for key, get in zip(keys, gets, strict=True)}
        return Read(many.header.revision, kvs)

    def _saw(self, read: Read) -> None:
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


def _given(answer: Read | EtcdError) -> Read:
    if isinstance(answer, EtcdError):
        raise answer
    return answer
