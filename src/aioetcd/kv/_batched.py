"""Calls that wait together travel together: concurrent gets, puts and deletes in one txn.

What holds at any moment:

- A call goes at once while few are out. Those that come meanwhile wait, and go together as soon as
  one of these is back: no timer delays a call.
- Of a key, one write is out at a time, and its writes go in the order of the calls.
- What waits was surely not applied. What was sent has the fate of the txn that it went with; where
  that was refused, surely not applied, and perhaps because of one call alone, it is sent again in
  two halves, down to single calls.
- A caller that gives up, or whose time is over, changes nothing for the others.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from copy import copy
from functools import partial
from math import inf
from time import monotonic
from typing import Any, cast

from aioetcd._proto import rpc_pb2
from aioetcd._transport.calls import Answers, Calls
from aioetcd._transport.methods import (
    DELETE_RANGE,
    PUT,
    RANGE,
    READ_ONLY_TXN,
    TXN,
    Method,
    Request,
    Response,
)
from aioetcd._transport.supervisor import Spawn
from aioetcd.config.endpoints import Endpoint
from aioetcd.config.timeouts import DEFAULT, Default, deadline_in, seconds_left
from aioetcd.errors import (
    ClientClosedError,
    DeadlineExceededError,
    EtcdError,
    KeyNotFoundError,
    LeaseNotFoundError,
    PermissionDeniedError,
    RequestTooLargeError,
    TooManyOpsError,
)
from aioetcd.kv._many import TXN_BYTES, TXN_OPS

# So many are out before others have to wait: while one is on its way back, the next is at work.
_OUT = 2
# What has been out for so many seconds keeps nobody waiting any more.
_SLOW = 0.25

# What may be said of a txn because of one of the calls in it.
_OF_ONE = (
    KeyNotFoundError,
    LeaseNotFoundError,
    PermissionDeniedError,
    RequestTooLargeError,
    TooManyOpsError,
)

# How each call goes into a txn, and comes out of it.
_FIELDS = {
    RANGE: ("request_range", "response_range"),
    PUT: ("request_put", "response_put"),
    DELETE_RANGE: ("request_delete_range", "response_delete_range"),
}


class _Call:
    """A call that does not go alone.

    Attributes:
        method: Its RPC.
        request: Its request message.
        timeout: Its deadline, in seconds from its beginning.
        deadline: The same in `time.monotonic`'s seconds.
        answer: What becomes of it.
        is_sent: Whether it may have been applied.
    """

    __slots__ = ("answer", "deadline", "is_sent", "method", "request", "timeout")

    def __init__(
        self,
        method: Method[Any, Any],
        request: Any,
        timeout: float | None,
        answer: asyncio.Future[Any],
    ) -> None:
        self.method = method
        self.request = request
        self.timeout = timeout
        self.deadline = deadline_in(timeout) or inf
        self.answer = answer
        self.is_sent = False

    def fail(self, error: EtcdError) -> None:
        """Have it raise a copy of an error: many raise it, each with its own traceback."""
        if not self.answer.done():
            error = copy(error)
            error.maybe_applied = error.maybe_applied and self.is_sent
            self.answer.set_exception(error)

    def is_over(self, now: float) -> bool:
        """Fail if its time is over; give whether nobody waits for it any more."""
        if now >= self.deadline:
            self.fail(
                DeadlineExceededError(
                    f"{self.method.name} in a batch: no answer"
                    if self.is_sent
                    else f"{self.method.name} was not sent: those before it were not answered",
                    timeout=self.timeout,
                    maybe_applied=self.is_sent and self.method.effect.is_write,
                )
            )
        return self.answer.done()


class _Lane:
    """Reads, or writes: those that wait, and those that are out."""

    def __init__(self, calls: Calls, txn: Method[rpc_pb2.TxnRequest, rpc_pb2.TxnResponse]) -> None:
        self._calls = calls
        self._txn = txn
        self._loop: asyncio.AbstractEventLoop | None = None
        # What is out, and since when.
        self._out: dict[object, float] = {}
        self._waiting: deque[_Call] = deque()
        # Keys that are written, or about to be; and the writes that have to wait for that.
        self._keys: dict[bytes, deque[_Call]] = {}
        self._open: set[_Call] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._max_ops = TXN_OPS
        self._max_bytes = TXN_BYTES

    async def call(
        self,
        method: Method[Request, Response],
        request: Request,
        timeout: float | Default | None,
    ) -> Response:
        """Make a call: alone if nothing is in its way, else with others."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            if self._loop is not None:  # the client's is another one, which it says itself
                return await self._calls.unary(method, request, timeout)
            self._loop = loop
        key: bytes | None = None
        if method.effect.is_write:
            key = cast("rpc_pb2.PutRequest", request).key
        if not self._waiting and key not in self._keys and self._has_room():
            self._out[token := object()] = monotonic()
            if key is not None:
                self._keys[key] = deque()
            try:
                return await self._calls.unary(method, request, timeout)
            finally:
                self._back(token, () if key is None else (key,))
        seconds = self._calls.resolve_timeout(timeout)
        call = _Call(method, request, seconds, loop.create_future())
        if key is None:
            self._waiting.append(call)
        elif (behind := self._keys.get(key)) is not None:
            behind.append(call)
        else:
            self._keys[key] = deque()
            self._waiting.append(call)
        self._open.add(call)
        try:
            self._flush()
            self._look_again(call.deadline)
            return cast("Response", await call.answer)
        except asyncio.CancelledError:
            if not call.answer.cancelled():  # it came in the same moment
                call.answer.exception()
            raise
        finally:
            self._open.discard(call)
            if not self._open and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _has_room(self) -> bool:
        if len(self._out) < _OUT:
            return True
        slow = monotonic() - _SLOW
        return sum(since > slow for since in self._out.values()) < _OUT

    def _back(self, token: object, keys: Iterable[bytes]) -> None:
        """What was out is back: others may go."""
        del self._out[token]
        for key in keys:
            self._release(key)
        self._flush()

    def _release(self, key: bytes) -> None:
        """A write is over: let the next one of its key join those that wait."""
        behind = self._keys[key]
        while behind:
            call = behind.popleft()
            if not call.answer.done():
                self._waiting.append(call)
                return
        del self._keys[key]

    def _flush(self) -> None:
        """Send what waits, as far as there is room."""
        while self._waiting and self._has_room():
            batch = self._gather()
            if not batch:
                return
            token = object()
            try:
                task = self._calls.spawn(partial(self._send, batch), "aioetcd batch")
            except ClientClosedError as error:
                for call in batch:
                    call.fail(error)
                self._release_all(batch)
                continue
            self._out[token] = monotonic()
            task.add_done_callback(partial(self._ended, token, batch))

    def _gather(self) -> list[_Call]:
        """Take from those that wait what goes into one txn."""
        batch: list[_Call] = []
        size = 0
        now = monotonic()
        waiting = self._waiting
        while waiting and len(batch) < self._max_ops:
            call = waiting[0]
            if call.is_over(now):
                waiting.popleft()
                self._release_all([call])
                continue
            size += call.request.ByteSize()
            if batch and size > self._max_bytes:
                break
            batch.append(waiting.popleft())
        for call in batch:
            call.is_sent = True
        return batch

    def _release_all(self, calls: Iterable[_Call]) -> None:
        for call in calls:
            if call.method.effect.is_write:
                self._release(call.request.key)

    def _ended(self, token: object, batch: list[_Call], _: object) -> None:
        closed = ClientClosedError("the client is closed", maybe_applied=self._txn.effect.is_write)
        for call in batch:  # those that have no answer yet: the task was cancelled
            call.fail(closed)
        self._release_all(batch)
        del self._out[token]
        self._flush()

    async def _send(self, batch: list[_Call]) -> None:
        now = monotonic()
        batch = [call for call in batch if not call.is_over(now)]
        if len(batch) < 2:
            for call in batch:
                await self._send_alone(call)
            return
        request = rpc_pb2.TxnRequest()
        for call in batch:
            getattr(request.success.add(), _FIELDS[call.method][0]).CopyFrom(call.request)
        deadline = max(call.deadline for call in batch)
        left = None if deadline == inf else seconds_left(deadline)
        try:
            response = await self._calls.unary(self._txn, request, left)
        except EtcdError as error:
            if error.maybe_applied or not isinstance(error, _OF_ONE):
                for call in batch:
                    call.fail(error)
                return
            self._learn(error, batch)
        else:
            self._answer(batch, response)
            return
        middle = len(batch) // 2
        await self._send(batch[:middle])
        await self._send(batch[middle:])

    async def _send_alone(self, call: _Call) -> None:
        left = None if call.deadline == inf else seconds_left(call.deadline)
        try:
            answer = await self._calls.unary(call.method, call.request, left)
        except EtcdError as error:
            call.fail(error)
        else:
            if not call.answer.done():
                call.answer.set_result(answer)

    def _learn(self, error: EtcdError, batch: list[_Call]) -> None:
        """The server takes less than it does by default."""
        if isinstance(error, TooManyOpsError):
            self._max_ops = min(self._max_ops, len(batch) // 2)
        elif isinstance(error, RequestTooLargeError):
            size = sum(call.request.ByteSize() for call in batch)
            self._max_bytes = min(self._max_bytes, size // 2)

    def _answer(self, batch: list[_Call], response: rpc_pb2.TxnResponse) -> None:
        """Give each the answer that it would have been given alone."""
        header = response.header
        if len(response.responses) != len(batch):
            wrong = EtcdError(
                f"the server gave {len(response.responses)} answers to {len(batch)} operations",
                maybe_applied=self._txn.effect.is_write,
            )
            for call in batch:
                call.fail(wrong)
            return
        for call, each in zip(batch, response.responses, strict=True):
            if not call.answer.done():
                answer = getattr(each, _FIELDS[call.method][1])
                answer.header.CopyFrom(header)
                call.answer.set_result(answer)

    def _look_again(self, deadline: float) -> None:
        """See to it that somebody looks when a deadline is over, or what is out is slow."""
        if self._waiting:
            deadline = min(deadline, min(self._out.values(), default=inf) + _SLOW)
        if deadline == inf or self._loop is None:
            return
        if self._timer is not None:
            if self._timer.when() <= deadline:
                return
            self._timer.cancel()
        # The loop's clock is `time.monotonic`, or as far from it now as then.
        self._timer = self._loop.call_later(max(deadline - monotonic(), 0.0), self._look)

    def _look(self) -> None:
        self._timer = None
        now = monotonic()
        still = [call for call in self._open if not call.is_over(now)]
        self._flush()
        if still:
            self._look_again(min(call.deadline for call in still))


class Batched:
    """Makes the RPCs of somebody else, those for single keys in few round trips.

    Args:
        calls: That somebody.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._reads = _Lane(calls, READ_ONLY_TXN)
        self._writes = _Lane(calls, TXN)
        self.spawn: Spawn = calls.spawn

    @property
    def prefix(self) -> bytes:
        """What stands before each key, at the server."""
        return self._calls.prefix

    def resolve_timeout(self, timeout: float | Default | None) -> float | None:
        """Give the deadline in seconds that a call's ``timeout`` means."""
        return self._calls.resolve_timeout(timeout)

    async def unary(
        self,
        method: Method[Request, Response],
        request: Request,
        timeout: float | Default | None = DEFAULT,
        *,
        at: Endpoint | None = None,
    ) -> Response:
        """Call a unary RPC, with others where that may be."""
        if at is not None:
            return await self._calls.unary(method, request, timeout, at=at)
        lane = self._lane(method, request)
        if lane is None:
            return await self._calls.unary(method, request, timeout)
        return await lane.call(method, request, timeout)

    async def last_unary(
        self, method: Method[Request, Response], request: Request, timeout: float
    ) -> Response:
        """Call one in order to tidy up."""
        return await self._calls.last_unary(method, request, timeout)

    def download(
        self,
        method: Method[Request, Response],
        request: Request,
        timeout: float | Default | None = DEFAULT,
        *,
        at: Endpoint | None = None,
    ) -> Answers[Response]:
        """Begin a server stream."""
        return self._calls.download(method, request, timeout, at=at)

    def _lane(self, method: Method[Any, Any], request: Any) -> _Lane | None:
        """Give those that it may go with: calls for a single key as it is now."""
        if method is RANGE:
            alone = request.range_end or request.revision or request.serializable
            return None if alone else self._reads
        if method is PUT:
            return self._writes
        if method is DELETE_RANGE:
            return None if request.range_end else self._writes
        return None
