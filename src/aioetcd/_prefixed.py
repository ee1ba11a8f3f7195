"""Puts a prefix on the keys of what is sent, and takes it off those of what comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic

from google.protobuf.message import Message

from aioetcd._proto import kv_pb2, rpc_pb2
from aioetcd._transport.calls import Answers, Calls, Relayed
from aioetcd._transport.methods import Method, Request, Response
from aioetcd.config.endpoints import Endpoint
from aioetcd.config.timeouts import DEFAULT, Default
from aioetcd.keys import range_below


class _TakenOff(Generic[Response]):
    """Answers, without the prefix."""

    def __init__(
        self, answers: Answers[Response], take_off: Callable[[Response], Response]
    ) -> None:
        self._answers = answers
        self._take_off = take_off
        self.close = answers.close

    def __aiter__(self) -> _TakenOff[Response]:
        return self

    async def __anext__(self) -> Response:
        return self._take_off(await anext(self._answers))


class Prefixed(Relayed):
    """Makes the RPCs of somebody else, all keys of which begin with a prefix.

    Args:
        calls: That somebody; he may have a prefix of his own.
        prefix: What his requests have before each key; not empty.
    """

    def __init__(self, calls: Calls, prefix: bytes) -> None:
        super().__init__(calls)
        self._prefix = prefix

    @property
    def prefix(self) -> bytes:
        """What stands before each key, at the server."""
        return self._calls.prefix + self._prefix

    async def unary(
        self,
        method: Method[Request, Response],
        request: Request,
        timeout: float | Default | None = DEFAULT,
        *,
        at: Endpoint | None = None,
    ) -> Response:
        """Call a unary RPC."""
        response = await self._calls.unary(method, self._put_on(request), timeout, at=at)
        return self._taken_off(response)

    async def last_unary(
        self, method: Method[Request, Response], request: Request, timeout: float
    ) -> Response:
        """Call one in order to tidy up."""
        response = await self._calls.last_unary(method, self._put_on(request), timeout)
        return self._taken_off(response)

    def download(
        self,
        method: Method[Request, Response],
        request: Request,
        timeout: float | Default | None = DEFAULT,
        *,
        at: Endpoint | None = None,
    ) -> Answers[Response]:
        """Begin a server stream."""
        answers = self._calls.download(method, self._put_on(request), timeout, at=at)
        return _TakenOff(answers, self._taken_off)

    def _put_on(self, request: Request) -> Request:
        if type(request) in _WITHOUT_KEYS:
            return request
        put_on = _REQUESTS[type(request)]
        below = type(request)()
        below.CopyFrom(request)  # an operation may be used again
        put_on(below, self._prefix)
        return below

    def _taken_off(self, response: Response) -> Response:
        take_off = _RESPONSES.get(type(response))
        if take_off is not None:
            take_off(response, self._prefix)
        return response


def _range(message: Any, prefix: bytes) -> None:
    message.key, message.range_end = range_below(prefix, message.key, message.range_end)


def _put(message: rpc_pb2.PutRequest, prefix: bytes) -> None:
    message.key = prefix + message.key


def _txn(message: rpc_pb2.TxnRequest, prefix: bytes) -> None:
    for compare in message.compare:
        _range(compare, prefix)
    for op in (*message.success, *message.failure):
        inner = getattr(op, op.WhichOneof("request") or "request_range")
        _REQUESTS[type(inner)](inner, prefix)


_REQUESTS: dict[type[Message], Callable[[Any, bytes], None]] = {
    rpc_pb2.RangeRequest: _range,
    rpc_pb2.PutRequest: _put,
    rpc_pb2.DeleteRangeRequest: _range,
    rpc_pb2.TxnRequest: _txn,
}


_WITHOUT_KEYS = {
    rpc_pb2.CompactionRequest,
    rpc_pb2.LeaseGrantRequest,
    rpc_pb2.LeaseRevokeRequest,
    rpc_pb2.LeaseTimeToLiveRequest,
    rpc_pb2.LeaseLeasesRequest,
}


def _strip(kvs: Iterable[kv_pb2.KeyValue], prefix: bytes) -> None:
    for kv in kvs:
        kv.key = kv.key[len(prefix) :]


def _of_txn(message: rpc_pb2.TxnResponse, prefix: bytes) -> None:
    for response in message.responses:
        inner = getattr(response, response.WhichOneof("response") or "response_range")
        _RESPONSES[type(inner)](inner, prefix)


def _of_lease(message: rpc_pb2.LeaseTimeToLiveResponse, prefix: bytes) -> None:
    # A lease is the whole cluster's, and may have keys anywhere.
    inside = [key[len(prefix) :] for key in message.keys if key.startswith(prefix)]
    message.keys[:] = [key for key in inside if key]


_RESPONSES: dict[type[Message], Callable[[Any, bytes], None]] = {
    rpc_pb2.RangeResponse: lambda message, prefix: _strip(message.kvs, prefix),
    rpc_pb2.RangeStreamResponse: lambda message, prefix: _strip(message.range_response.kvs, prefix),
    rpc_pb2.PutResponse: lambda message, prefix: (
        _strip([message.prev_kv], prefix) if message.HasField("prev_kv") else None
    ),
    rpc_pb2.DeleteRangeResponse: lambda message, prefix: _strip(message.prev_kvs, prefix),
    rpc_pb2.TxnResponse: _of_txn,
    rpc_pb2.LeaseTimeToLiveResponse: _of_lease,
}
