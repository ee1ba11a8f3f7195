"""A client whose calls and watches are written down, for the checkers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Literal

from aioetcd import Batch, Client, EventType, KeyValue, _decode
from aioetcd._constructor import create
from aioetcd._proto import rpc_pb2
from aioetcd._transport.calls import Calls, Relayed
from aioetcd._transport.methods import Method
from aioetcd.config.endpoints import Endpoint
from aioetcd.config.timeouts import DEFAULT, Default
from aioetcd.keys import key_range
from aioetcd.kv import KV
from aioetcd.testing.history import Recorder
from aioetcd.testing.records import (
    Comparison,
    Delete,
    EventKind,
    Get,
    Put,
    Request,
    Subscription,
    Txn,
)

_OPERATORS: dict[int, Literal["==", "!=", "<", ">"]] = {
    rpc_pb2.Compare.EQUAL: "==",
    rpc_pb2.Compare.NOT_EQUAL: "!=",
    rpc_pb2.Compare.LESS: "<",
    rpc_pb2.Compare.GREATER: ">",
}
_TARGETS: dict[int, Literal["value", "version", "create_revision", "mod_revision"]] = {
    rpc_pb2.Compare.VALUE: "value",
    rpc_pb2.Compare.VERSION: "version",
    rpc_pb2.Compare.CREATE: "create_revision",
    rpc_pb2.Compare.MOD: "mod_revision",
}


class RecordedClient:
    """Uses a client, and writes down what it asks and is told.

        recorded = RecordedClient(client, recorder, "writer")
        await recorded.kv.put("a", "1")
        async with recorded.watch("a") as batches:
            async for batch in batches:
                ...

    Made by a test; nothing to close. Tasks may share it: calls of one client may overlap.

    Attributes:
        kv: As `Client.kv`, with the same errors. What the records have no words for is refused with
            ValueError before it is sent: transactions inside of transactions, comparisons of leases
            and ranges, puts that keep a value or a lease. Reads that return less than whole keys
            (`keys_only`, `count_only`, sorted, bounded by revisions) and compactions are made, and
            not written down.
    """

    def __init__(self, client: Client, recorder: Recorder, name: str = "client") -> None:
        self.kv: KV = create(KV, _Recorded(client._calls, recorder, name))
        self._client = client
        self._recorder = recorder
        self._name = name
        self._watches = 0

    @asynccontextmanager
    async def watch(
        self,
        key: str | bytes,
        *,
        prefix: bool = False,
        range_end: str | bytes | None = None,
        start_revision: int | None = None,
        prev_kv: bool = False,
        only: EventType | None = None,
    ) -> AsyncIterator[AsyncIterator[Batch]]:
        """Watch as `Client.watch` does, and write down what is asked for, comes, and ends it.

        The block gets the batches, each of which is written down when it is taken.
        """
        self._watches += 1
        name = f"{self._name}.watch{self._watches}"
        watch = self._client.watch(
            key,
            prefix=prefix,
            range_end=range_end,
            start_revision=start_revision,
            prev_kv=prev_kv,
            only=only,
        )
        try:
            async with watch:
                first, end = key_range(key, prefix=prefix, range_end=range_end)
                start = watch.revision + 1 if start_revision is None else start_revision
                kind = None if only is None else EventKind[only.name]
                self._recorder.add(Subscription(name, first, start, end or None, kind, prev_kv))
                yield self._batches(name, watch.batches())
        except BaseException as error:
            self._recorder.ended(name, error)
            raise
        self._recorder.ended(name)

    async def _batches(self, name: str, batches: AsyncIterator[Batch]) -> AsyncIterator[Batch]:
        async for batch in batches:
            self._recorder.delivered(name, batch.revision, batch.events)
            yield batch


class _Recorded(Relayed):
    """Stands before a client's calls, and writes down the calls that pass."""

    def __init__(self, calls: Calls, recorder: Recorder, name: str) -> None:
        super().__init__(calls)
        self._recorder = recorder
        self._name = name

    async def unary(
        self,
        method: Method[Any, Any],
        message: Any,
        timeout: float | Default | None = DEFAULT,
        *,
        at: Endpoint | None = None,
    ) -> Any:
        request = _request(message)
        if request is None:
            return await super().unary(method, message, timeout, at=at)
        with self._recorder.call(self._name, request) as call:
            answer = await super().unary(method, message, timeout, at=at)
            call.ok(answer.header.revision, **_told(answer))
            return answer


def _told(answer: Any) -> dict[str, Any]:
    """Give what `Call.ok` takes of an answer."""
    if isinstance(answer, rpc_pb2.RangeResponse):
        return {"kvs": _kvs(answer)}
    if isinstance(answer, rpc_pb2.DeleteRangeResponse):
        return {"deleted": answer.deleted}
    if isinstance(answer, rpc_pb2.TxnResponse):
        inner = [
            getattr(each, each.WhichOneof("response") or "response_range")
            for each in answer.responses
        ]
        deletes = [each.deleted for each in inner if isinstance(each, rpc_pb2.DeleteRangeResponse)]
        return {
            "succeeded": answer.succeeded,
            "deleted": sum(deletes) if deletes else None,
            "reads": [_kvs(each) for each in inner if isinstance(each, rpc_pb2.RangeResponse)],
        }
    return {}


def _kvs(answer: rpc_pb2.RangeResponse) -> list[KeyValue]:
    return [_decode.key_value(kv) for kv in answer.kvs]


def _request(message: Any) -> Request | None:
    """Give the record of a request, None where it is not written down.

    Raises:
        ValueError: It is a write, and there is no record for it.
    """
    if isinstance(message, rpc_pb2.TxnRequest):
        return Txn(
            tuple(map(_comparison, message.compare)),
            tuple(_operations(message.success)),
            tuple(_operations(message.failure)),
        )
    return _operation(message)


def _operations(operations: Iterable[rpc_pb2.RequestOp]) -> Iterable[Put | Get | Delete]:
    for operation in operations:
        kind = operation.WhichOneof("request")
        record = None if kind is None else _operation(getattr(operation, kind))
        if record is None:
            raise ValueError(f"{kind} in a transaction cannot be recorded")
        yield record


def _operation(message: Any) -> Put | Get | Delete | None:
    if isinstance(message, rpc_pb2.PutRequest):
        if message.ignore_value or message.ignore_lease:
            raise ValueError("a put with ignore_value or ignore_lease cannot be recorded")
        return Put(message.key, message.value, message.lease or None)
    if isinstance(message, rpc_pb2.DeleteRangeRequest):
        return Delete(message.key, message.range_end or None)
    if isinstance(message, rpc_pb2.RangeRequest):
        plain = rpc_pb2.RangeRequest(
            key=message.key,
            range_end=message.range_end,
            revision=message.revision,
            limit=message.limit,
            serializable=message.serializable,
        )
        if message == plain:
            return Get(
                message.key,
                message.range_end or None,
                message.revision or None,
                message.limit or None,
                message.serializable,
            )
    return None


def _comparison(message: rpc_pb2.Compare) -> Comparison:
    target = _TARGETS.get(message.target)
    if target is None or message.range_end:
        raise ValueError("comparisons of leases and of ranges cannot be recorded")
    operand = getattr(message, message.WhichOneof("target_union") or "version")
    return Comparison(message.key, target, _OPERATORS[message.result], operand)
