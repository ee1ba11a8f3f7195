"""Keys and values: etcd's KV service."""

from __future__ import annotations

from collections.abc import Sequence

from aioetcd import _decode
from aioetcd._checks import check_flag, check_int
from aioetcd._constructor import NoPublicConstructor
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
)
from aioetcd.compare import Compare
from aioetcd.config.timeouts import DEFAULT, Default
from aioetcd.ops import AnyOp, Op, TxnResponse
from aioetcd.types.answers import CompactResponse, DeleteResponse, GetResponse, PutResponse
from aioetcd.types.leases import LeaseLike
from aioetcd.types.store import SortOrder, SortTarget

__all__ = ["KV"]


class KV(metaclass=NoPublicConstructor):
    """Reads and writes keys; it is ``client.kv``, which any number of tasks may use.

    Each call is one RPC. Keys and values are str (sent as UTF-8) or bytes, and come back as bytes.
    A request may have 1.5 MiB (the server's ``--max-request-bytes``), an answer any size.

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
