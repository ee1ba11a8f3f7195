"""Keys and values: etcd's KV service."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from aioetcd import _decode
from aioetcd._checks import check_callable, check_flag, check_int, check_lease
from aioetcd._constructor import NoPublicConstructor, create
from aioetcd._proto import rpc_pb2
from aioetcd._transport.calls import Calls
from aioetcd._transport.methods import (
    COMPACT,
    DELETE_RANGE,
    IDEMPOTENT_TXN,
    PUT,
    RANGE,
    READ_ONLY_TXN,
    TXN,
    Method,
)
from aioetcd.compare import Compare
from aioetcd.config.timeouts import DEFAULT, Default, deadline_in
from aioetcd.errors import (
    AuthError,
    ClientClosedError,
    EtcdError,
    LeaseNotFoundError,
    NoEndpointError,
    PartialWriteError,
)
from aioetcd.keys import encode_key
from aioetcd.kv._batched import Batched
from aioetcd.kv._many import batches, encoded, in_few_tasks
from aioetcd.kv._scan import Scan
from aioetcd.kv._update import Updating
from aioetcd.ops import AnyOp, Op, TxnResponse
from aioetcd.types.answers import (
    CompactResponse,
    DeleteManyResponse,
    DeleteResponse,
    GetManyResponse,
    GetResponse,
    OpResponse,
    PutManyResponse,
    PutResponse,
)
from aioetcd.types.leases import LeaseLike
from aioetcd.types.store import KeyValue, SortOrder, SortTarget

__all__ = ["KV"]

# What one write of many is told of these, all that are left would be told as well.
_HOPELESS = (AuthError, ClientClosedError, LeaseNotFoundError, NoEndpointError)


class KV(metaclass=NoPublicConstructor):
    """Reads and writes keys; it is ``client.kv``, which any number of tasks may use.

    Each call is one RPC, but for `scan` and those of many keys. Keys and values are str (sent as
    UTF-8) or bytes, and come back as bytes. A request may have 1.5 MiB (the server's
    ``--max-request-bytes``), an answer any size.

    Reads are repeated until their deadline when a connection breaks. A write is repeated only
    when it surely was not applied; otherwise it raises, with ``maybe_applied`` set on the error.
    Cancelling a call sends nothing again either: a write may then have been applied.

    Any call may raise, beside the errors that it names, `NoEndpointError` (nobody could be reached
    in time), `UnavailableError` (the connection or the member broke), `DeadlineExceededError` and
    `ClientClosedError`.

    Example:
        kv = client.kv
        await kv.put("greeting", "hello")
        (await kv.get("greeting")).value  # b"hello"
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._lacking: set[Method[Any, Any]] = set()

    def batched(self) -> KV:
        """Give the same methods, whose concurrent calls share round trips (RPC ``Txn``).

        A `get`, `put` or `delete` of a single key goes at once while fewer than two such are out.
        Those that come meanwhile go together as soon as one is back: a lone caller waits no longer
        than with `KV` itself, and hundreds at a time cost a fraction. Each has its own answer,
        error, deadline and cancellation, as if it had gone alone. What is otherwise:

        - Writes that travel together share one revision; a watch gives them in one batch.
        - Of a key, one write is under way at a time, in the order of the calls; but what its caller
          gave up may be applied after the next one.
        - When the answer to a txn is lost, all writes in it may have been applied, and say so.

        Serializable reads, those of a revision or of a range, txns and all other calls go alone.
        Keep the view and share it: calls travel together with those of the same view.

        Example:
            batched = kv.batched()
            puts = [batched.put(f"/jobs/{number}", "ready") for number in range(100)]
            await asyncio.gather(*puts)
            (await kv.get("/jobs/", prefix=True, count_only=True)).count  # 100
        """
        return create(KV, Batched(self._calls))

    async def get(
        self,
        key: str | bytes,
        *,
        prefix: bool = False,
        range_end: str | bytes | None = None,
        limit: int | None = None,
        revision: int | None = None,
        sort_order: SortOrder = SortOrder.NONE,
        sort_target: SortTarget = SortTarget.KEY,
        serializable: bool = False,
        keys_only: bool = False,
        count_only: bool = False,
        min_mod_revision: int | None = None,
        max_mod_revision: int | None = None,
        min_create_revision: int | None = None,
        max_create_revision: int | None = None,
        timeout: float | Default | None = DEFAULT,
    ) -> GetResponse:
        r"""Read a key, a prefix or a range (RPC ``Range``).

        Args:
            key: The key, the prefix, or the first key of the range.
            prefix: Read all keys that begin with `key`; with ``""`` all keys.
            range_end: The first key after the range; ``"\0"`` means no end.
            limit: Return so many keys at the most, from 1 on; None is no limit.
            revision: Read the store as it was at this revision, from 1 on; None reads it as it is.
            sort_order: The order, by `sort_target`.
            sort_target: What to sort by. Anything but the key in ascending order makes the server
                read the whole range first.
            serializable: Let the member answer from what it has, which may be old, instead of
                asking the quorum.
            keys_only: Leave out the values; etcd from 3.7 on leaves out the leases, too.
            count_only: Only count.
            min_mod_revision: Leave out keys last changed before it.
            max_mod_revision: Leave out keys last changed after it.
            min_create_revision: Leave out keys created before it.
            max_create_revision: Leave out keys created after it.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            ValueError: An argument is out of its limits, or excludes another one.
            TypeError: An argument is of the wrong type.
            CompactedError: `revision` is no longer in the history.
            FutureRevisionError: `revision` has not happened yet.
            EtcdError: By cause.

        Example:
            await kv.put("/config/a", "1")
            got = await kv.get("/config/", prefix=True, limit=100)
            got.value, got.count, got.more  # (b"1", 1, False)
        """
        op = Op.get(
            key,
            prefix=prefix,
            range_end=range_end,
            limit=limit,
            revision=revision,
            sort_order=sort_order,
            sort_target=sort_target,
            serializable=serializable,
            keys_only=keys_only,
            count_only=count_only,
            min_mod_revision=min_mod_revision,
            max_mod_revision=max_mod_revision,
            min_create_revision=min_create_revision,
            max_create_revision=max_create_revision,
        )
        return op._response(await self._calls.unary(RANGE, op._request, timeout))

    async def put(
        self,
        key: str | bytes,
        value: str | bytes | None = None,
        *,
        lease: LeaseLike | None = None,
        prev_kv: bool = False,
        ignore_value: bool = False,
        ignore_lease: bool = False,
        timeout: float | Default | None = DEFAULT,
    ) -> PutResponse:
        """Write a key (RPC ``Put``).

        Args:
            key: The key.
            value: The value.
            lease: The lease to attach it to: its id, or a `Lease`, `Session` or `Lock`. Without
                one, a put *detaches* the key from the lease that it had.
            prev_kv: Return the key as it was before.
            ignore_value: Keep the value that it has, and leave out `value`.
            ignore_lease: Keep the lease that it has, and leave out `lease`.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            ValueError: An empty key, no value, a value with `ignore_value`, a lease with
                `ignore_lease`, or an id that no lease has.
            TypeError: An argument is of the wrong type.
            KeyNotFoundError: `ignore_value` or `ignore_lease`, and there is no such key.
            LeaseNotFoundError: There is no such lease.
            RequestTooLargeError: More than the server takes, 1.5 MiB by default.
            NoSpaceError: The server's storage quota is used up.
            EtcdError: By cause; see its `maybe_applied`.

        Example:
            await kv.put("/config/a", "1")
            put = await kv.put("/config/a", "2", prev_kv=True)
            put.prev_kv and put.prev_kv.value  # b"1"
        """
        op = Op.put(
            key,
            value,
            lease=lease,
            prev_kv=prev_kv,
            ignore_value=ignore_value,
            ignore_lease=ignore_lease,
        )
        return op._response(await self._calls.unary(PUT, op._request, timeout))

    async def delete(
        self,
        key: str | bytes,
        *,
        prefix: bool = False,
        range_end: str | bytes | None = None,
        prev_kv: bool = False,
        timeout: float | Default | None = DEFAULT,
    ) -> DeleteResponse:
        r"""Delete a key, a prefix or a range (RPC ``DeleteRange``).

        Args:
            key: The key, the prefix, or the first key of the range.
            prefix: Delete all keys that begin with `key`; with ``""`` all keys.
            range_end: The first key after the range; ``"\0"`` means no end.
            prev_kv: Return the deleted keys as they were.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            ValueError: An empty key, or both `prefix` and `range_end`.
            TypeError: An argument is of the wrong type.
            EtcdError: By cause; see its `maybe_applied`. That there was no such key is no error.

        Example:
            await kv.put("/jobs/1", "done")
            (await kv.delete("/jobs/", prefix=True)).deleted  # 1
        """
        op = Op.delete(key, prefix=prefix, range_end=range_end, prev_kv=prev_kv)
        return op._response(await self._calls.unary(DELETE_RANGE, op._request, timeout))

    async def txn(
        self,
        *,
        compare: Sequence[Compare] = (),
        success: Sequence[AnyOp] = (),
        failure: Sequence[AnyOp] = (),
        idempotent: bool = False,
        timeout: float | Default | None = DEFAULT,
    ) -> TxnResponse:
        """Compare, then do one of two branches, all at one revision (RPC ``Txn``).

        A txn without operations is answered by the member from what it has, which may be old, even
        without a quorum: include a `get` where the comparison alone matters.

        Args:
            compare: All must hold for `success` to be executed; without any, it is.
            success: Operations, executed in order. By default a server takes 128 of them, as many
                for `failure`, and as many comparisons.
            failure: Operations for the other case.
            idempotent: You know that doing this txn twice is the same as once, because the
                comparison fails once it was applied: it is then repeated when an answer is lost. A
                txn that only reads is repeated in any case.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            TypeError: An argument is of the wrong type.
            TooManyOpsError: More operations than the server takes, 128 by default.
            DuplicateKeyError: The same key is put twice, or put and deleted.
            KeyNotFoundError: A put with `ignore_value` or `ignore_lease`, and there is no such key.
            LeaseNotFoundError: A put names a lease that is not there.
            RequestTooLargeError: More than the server takes, 1.5 MiB by default.
            NoSpaceError: The server's storage quota is used up, and something is put.
            CompactedError: A `get` inside asks for a revision that is no longer in the history.
            FutureRevisionError: Or for one that has not happened yet.
            EtcdError: By cause; see its `maybe_applied`.

        Example:
            lead, read = Op.put("/leader", "alice"), Op.get("/leader")
            result = await kv.txn(
                compare=[Compare.missing("/leader")], success=[lead], failure=[read]
            )
            "alice" if result.succeeded else result[read].text  # "alice"
        """
        op = Op.txn(compare=compare, success=success, failure=failure)
        method = READ_ONLY_TXN if op._is_read else IDEMPOTENT_TXN if idempotent else TXN
        return op._response(await self._calls.unary(method, op._request, timeout))

    async def scan(
        self,
        key: str | bytes,
        *,
        prefix: bool = False,
        range_end: str | bytes | None = None,
        limit: int | None = None,
        page_size: int | None = None,
        revision: int | None = None,
        keys_only: bool = False,
        progress: Callable[[int, int], object] | None = None,
        timeout: float | Default | None = DEFAULT,
    ) -> AsyncGenerator[KeyValue, None]:
        r"""Read any number of keys, in order and at one revision, in bounded memory.

        The first keys are read as `get` reads them; a server from 3.7 on sends the others by
        itself (RPC ``RangeStream``), an older one is asked for page after page (RPC ``Range``),
        each of about a megabyte. Where a connection breaks, it goes on behind the last key. A loop
        that may be left early is best put into `contextlib.aclosing`.

        Args:
            key: The key, the prefix, or the first key of the range.
            prefix: Read all keys that begin with `key`; with ``""`` all keys.
            range_end: The first key after the range; ``"\0"`` means no end.
            limit: Give so many keys at the most, from 1 on; None is no limit.
            page_size: Ask for so many keys at a time, from 1 on, with any server.
            revision: Read the store as it was at this revision, from 1 on; None reads it as it is
                when the first keys are read.
            keys_only: Leave out the values.
            progress: Called after each answer with the keys that have come, and those in all.
            timeout: Seconds that each answer may take, waiting for a connection and retries
                included; None is none.

        Raises:
            ValueError: An argument is out of its limits, or excludes another one.
            TypeError: An argument is of the wrong type.
            CompactedError: The revision is no longer in the history: also in the middle, when
                somebody compacts.
            FutureRevisionError: `revision` has not happened yet.
            EtcdError: By cause.

        Example:
            for number in range(30):
                await kv.put(f"/jobs/{number:03}", "ready")
            async for job in kv.scan("/jobs/", prefix=True):
                job.text  # "ready"
        """
        request = Op.get(
            key, prefix=prefix, range_end=range_end, revision=revision, keys_only=keys_only
        )._request
        scan = Scan(
            self._calls,
            self._lacking,
            request,
            page_size=None if page_size is None else check_int("page_size", page_size, 1),
            limit=None if limit is None else check_int("limit", limit, 1, none="no limit"),
            progress=check_callable("progress", progress),
            timeout=self._calls.resolve_timeout(timeout),
        )
        async with aclosing(scan.read()) as kvs:
            async for kv in kvs:
                yield kv

    async def get_many(
        self, keys: Iterable[str | bytes], *, timeout: float | Default | None = DEFAULT
    ) -> GetManyResponse:
        """Read many keys at one revision (RPC ``Txn``), 128 in a round trip.

        Args:
            keys: The keys; one that is there twice is read twice.
            timeout: The deadline in seconds of each txn, waiting for a connection and retries
                included; None is none.

        Raises:
            ValueError: An empty key, or none at all.
            TypeError: A key that is neither str nor bytes; `keys` is a single one.
            CompactedError: The history was compacted between two of the txns.
            TooManyOpsError: The server takes less than 128 operations in a txn.
            EtcdError: By cause.

        Example:
            await kv.put_many({"/config/a": "1", "/config/b": "2"})
            found = await kv.get_many(["/config/b", "/config/c"])
            [kv and kv.text for kv in found.kvs]  # ["2", None]
        """
        wanted = encoded(keys)
        seconds = self._calls.resolve_timeout(timeout)
        first, *others = batches(wanted, len)
        answer = await self._read(first, None, seconds)
        revision = answer.header.revision
        outcomes = await in_few_tasks(
            others, lambda batch: self._read(batch, revision, seconds), goes_on=lambda _: False
        )
        for outcome in outcomes:
            if isinstance(outcome, EtcdError):
                raise outcome
        answers = [answer, *(each for each in outcomes if isinstance(each, TxnResponse))]
        return GetManyResponse(answer.header, tuple(each.kv for each in _reads(answers)))

    async def _read(
        self, keys: list[bytes], revision: int | None, timeout: float | None
    ) -> TxnResponse:
        return await self.txn(
            success=[Op.get(key, revision=revision) for key in keys], timeout=timeout
        )

    async def put_many(
        self,
        items: Mapping[str, str | bytes] | Mapping[bytes, str | bytes],
        *,
        lease: LeaseLike | None = None,
        timeout: float | Default | None = DEFAULT,
    ) -> PutManyResponse:
        """Write many keys (RPC ``Txn``), up to 128 in a round trip and some txns at a time.

        It is not one write: others may see some keys and not yet others. Nothing is sent twice.

        Args:
            items: The values by their keys.
            lease: The lease to attach all of them to: its id, or a `Lease`, `Session` or `Lock`.
            timeout: The deadline in seconds of each txn, waiting for a connection and retries
                included; None is none.

        Raises:
            ValueError: An empty key, one that is there twice (as str and as bytes), no key at all,
                or an id that no lease has.
            TypeError: An argument is of the wrong type.
            PartialWriteError: Some are not written, or nobody knows: its `failed` tells, by key.

        Example:
            put = await kv.put_many({"/config/a": "1", "/config/b": "2"})
            [*put.revisions]  # [b"/config/a", b"/config/b"]
        """
        if not isinstance(items, Mapping):
            raise TypeError(f"items must be a mapping, not {type(items).__name__}")
        wanted = encoded(items, "items", unique=True)
        puts = {
            key: Op.put(key, value, lease=lease)
            for key, value in zip(wanted, items.values(), strict=True)
        }
        answers = await self._write(puts, timeout)
        return PutManyResponse({key: revision for key, (revision, _) in answers.items()})

    async def delete_many(
        self, keys: Iterable[str | bytes], *, timeout: float | Default | None = DEFAULT
    ) -> DeleteManyResponse:
        """Delete many keys (RPC ``Txn``), up to 128 in a round trip and some txns at a time.

        It is not one write: others may see some keys gone and not yet others. Nothing is sent
        twice.

        Args:
            keys: The keys.
            timeout: The deadline in seconds of each txn, waiting for a connection and retries
                included; None is none.

        Raises:
            ValueError: An empty key, one that is there twice, or none at all.
            TypeError: A key that is neither str nor bytes; `keys` is a single one.
            PartialWriteError: Some are not deleted, or nobody knows: its `failed` tells, by key.

        Example:
            await kv.put_many({"/jobs/1": "done", "/jobs/2": "done"})
            (await kv.delete_many(["/jobs/1", "/jobs/3"])).deleted  # (b"/jobs/1",)
        """
        answers = await self._write(
            {key: Op.delete(key) for key in encoded(keys, unique=True)}, timeout
        )
        return DeleteManyResponse(
            tuple(
                key
                for key, (_, answer) in answers.items()
                if isinstance(answer, DeleteResponse) and answer.deleted
            )
        )

    async def _write(
        self, writes: Mapping[bytes, AnyOp], timeout: float | Default | None
    ) -> dict[bytes, tuple[int, OpResponse]]:
        """Make writes, each of its own key; give the revisions and the answers."""
        seconds = self._calls.resolve_timeout(timeout)
        pieces = [*batches(writes, lambda key: writes[key]._request.ByteSize())]
        outcomes = await in_few_tasks(
            pieces,
            lambda keys: self.txn(success=[writes[key] for key in keys], timeout=seconds),
            goes_on=lambda error: not isinstance(error, _HOPELESS),
        )
        answers: dict[bytes, tuple[int, OpResponse]] = {}
        failed: dict[bytes, EtcdError] = {}
        why = next((each for each in outcomes if isinstance(each, EtcdError)), None)
        for keys, outcome in zip(pieces, outcomes, strict=True):
            if isinstance(outcome, TxnResponse):
                revision = outcome.header.revision
                answers |= {
                    key: (revision, each) for key, each in zip(keys, outcome.responses, strict=True)
                }
            else:
                failed |= dict.fromkeys(keys, outcome or EtcdError(f"it was not tried: {why}"))
        if failed:
            raise PartialWriteError(
                f"{len(failed)} of {len(writes)} keys were not written, or nobody knows: {why}",
                failed=failed,
                maybe_applied=bool(answers) or any(e.maybe_applied for e in failed.values()),
            ) from why
        return answers

    async def update(
        self,
        key: str | bytes,
        change: Callable[[KeyValue | None], str | bytes | None],
        *,
        lease: LeaseLike | None = None,
        timeout: float | Default | None = DEFAULT,
    ) -> KeyValue | None:
        """Change a key by what it is (RPCs ``Range``, ``Txn``), again and again until it holds.

        Where an answer is lost, the key is read again. If it is there as before, the same attempt
        is sent again, which cannot be applied twice. If its next version has just the value that
        was to be written, it counts as written; whoever counts must be able to tell one's own from
        another's. What cannot be known so is an error, as of a key that was not there and is not.

        Args:
            key: The key.
            change: Is given the key as it is, or None, and gives the new value; None deletes it. It
                is called again when somebody else was faster. Where it gives what is there, nothing
                is written.
            lease: The lease to attach the key to; None leaves it where it is.
            timeout: The deadline in seconds for all of this; None is none.

        Returns:
            The key as it is then; None where it was deleted.

        Raises:
            ValueError: An empty key, or an id that no lease has.
            TypeError: An argument, or what `change` gives, is of the wrong type.
            LeaseNotFoundError: There is no such lease.
            DeadlineExceededError: Others were faster until then, or as of any call.
            EtcdError: By cause; `maybe_applied` where nobody can say whether it was written.

        Example:
            def increment(counter: KeyValue | None) -> str:
                return str(int(counter.text) + 1 if counter else 1)

            await kv.update("/counter", increment)
            counter = await kv.update("/counter", increment)
            counter and counter.text  # "2"
        """
        name = encode_key(key)
        if not callable(change):
            raise TypeError(f"change must be a function, not {type(change).__name__}")
        none = "leave it where it is"
        lease_id = None if lease is None else check_lease("lease", lease, none=none)
        updating = Updating(self.get, self.txn, key=name, change=change, lease=lease_id)
        return await updating.run(deadline_in(self._calls.resolve_timeout(timeout)))

    async def compact(
        self,
        revision: int,
        *,
        physical: bool = False,
        timeout: float | Default | None = DEFAULT,
    ) -> CompactResponse:
        """Forget the history before a revision (RPC ``Compact``); `revision` itself stays readable.

        Args:
            revision: The first revision to keep, from 1 on.
            physical: Return only when the member that answers has removed it from its storage.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            ValueError: `revision` is below 1.
            CompactedError: It is compacted already.
            FutureRevisionError: `revision` has not happened yet.
            EtcdError: By cause; see its `maybe_applied`.

        Example:
            await kv.put("/config/a", "1")
            now = (await kv.put("/config/a", "2")).header.revision
            await kv.compact(now)
            (await kv.get("/config/a", revision=now)).value  # b"2"
        """
        request = rpc_pb2.CompactionRequest(
            revision=check_int("revision", revision, 1), physical=check_flag("physical", physical)
        )
        response = await self._calls.unary(COMPACT, request, timeout)
        return CompactResponse(_decode.header(response.header))


def _reads(answers: Iterable[TxnResponse]) -> Iterator[GetResponse]:
    for answer in answers:
        for each in answer.responses:
            if isinstance(each, GetResponse):
                yield each
