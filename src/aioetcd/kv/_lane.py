"""Calls that wait together travel together: concurrent gets, puts and deletes in one txn.

What holds at any moment:

- A call goes at once while few are out. Those that come meanwhile wait, and go together as soon as
  one of these is back: no timer delays a call.
- Of a key, one write is out at a time, and its writes go in the order of the calls: the next one
  when the caller of the one before has its answer, or has given up.
- What waits was surely not applied. What was sent has the fate of the txn that it went with; where
  that was refused, surely not applied, and perhaps because of one call alone, it is sent again in
  two halves, down to single calls.
- A caller that gives up, or whose time is over, changes nothing for the others.
"""

from __future__ import annotations

import asyncio
from collections import deque
from copy import copy
from functools import partial
from math import inf
from time import monotonic
from typing import Any, cast

from aioetcd._proto import rpc_pb2
from aioetcd._transport.backoff import PASSING
from aioetcd._transport.calls import Calls
from aioetcd._transport.group import Group
from aioetcd._transport.methods import (
    DELETE_RANGE,
    PUT,
    RANGE,
    Method,
    Request,
    Response,
)
from aioetcd.config.timeouts import deadline_in, seconds_left
from aioetcd.errors import (
    AuthenticationError,
    ClientClosedError,
    DeadlineExceededError,
    EtcdError,
    KeyNotFoundError,
    LeaseNotFoundError,
    NoSpaceError,
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


class Call:
    """A call that does not go alone.

    Attributes:
        lane: Those that it goes with.
        method: Its RPC.
        request: Its request message.
        key: The key that it writes; None for a read.
        timeout: Its deadline, in seconds from its beginning.
        deadline: The same in `time.monotonic`'s seconds.
        answer: What becomes of it.
        is_sent: Whether it may have been applied.
        has_key: Whether no other write of its key may go before its caller has its answer.
    """

    __slots__ = (
        "answer",
        "deadline",
        "has_key",
        "is_sent",
        "key",
        "lane",
        "method",
        "request",
        "timeout",
    )

    def __init__(
        self,
        lane: Lane,
        method: Method[Any, Any],
        request: Any,
        key: bytes | None,
        timeout: float | None,
        answer: asyncio.Future[Any],
    ) -> None:
        self.lane = lane
        self.method = method
        self.request = request
        self.key = key
        self.timeout = timeout
        self.deadline = deadline_in(timeout) or inf
        self.answer = answer
        self.is_sent = False
        self.has_key = False

    def fail(self, error: EtcdError) -> None:
        """Have it raise a copy of an error: many raise it, each with its own traceback."""
        if not self.answer.done():
            error = copy(error)
            if isinstance(error, DeadlineExceededError):
                error.timeout = self.timeout
            self.answer.set_exception(error)

    def is_over(self, now: float) -> bool:
        """Fail if its time is over; give whether nobody waits for it any more."""
        if now >= self.deadline and not self.is_sent and not self.lane.is_connected:
            self.fail(self.lane.unreachable())
        elif now >= self.deadline:
            self.fail(
                DeadlineExceededError(
                    f"{self.method.name} in a batch: no answer"
                    if self.is_sent
                    else f"{self.method.name} was not sent: those before it were not answered",
                    maybe_applied=self.is_sent and self.key is not None,
                )
            )
        return self.answer.done()


class Keys:
    """Of each key, one write at a time may go: the others wait for it, in order."""

    def __init__(self) -> None:
        self._behind: dict[bytes, deque[Call]] = {}

    def is_taken(self, key: bytes | None) -> bool:
        """Whether a write of the key is under way."""
        return key in self._behind

    def take(self, key: bytes) -> None:
        """Have a key that is not taken."""
        self._behind[key] = deque()

    def wait_for(self, call: Call, key: bytes) -> None:
        """Let a call have its turn when all before it are over."""
        self._behind[key].append(call)

    def release(self, key: bytes) -> None:
        """Let the next one go."""
        behind = self._behind[key]
        while behind:
            call = behind.popleft()
            if not call.answer.done():
                call.has_key = True
                call.lane.add(call)
                return
        del self._behind[key]


class Lane:
    """Reads, or writes: those that wait, and those that are out.

    Args:
        calls: Makes them.
        txn: That in which they go together.
        keys: Which keys are written.
    """

    def __init__(
        self,
        calls: Calls,
        txn: Method[rpc_pb2.TxnRequest, rpc_pb2.TxnResponse],
        keys: Keys,
    ) -> None:
        self._calls = calls
        self._txn = txn
        self._keys = keys
        self._loop: asyncio.AbstractEventLoop | None = None
        # What is out, and since when.
        self._out: dict[object, float] = {}
        self._waiting: deque[Call] = deque()
        self._open: set[Call] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._max_ops = TXN_OPS
        self._max_bytes = TXN_BYTES
        # Whether the server takes deletions alone: then they do not go with puts.
        self._is_full = False

    async def call(
        self, method: Method[Request, Response], request: Request, timeout: float | None
    ) -> Response:
        """Make a call: alone if nothing is in its way, else with others."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop and self._loop is not None:
            return await self._calls.unary(method, request, timeout)  # which says what is wrong
        self._loop = loop
        key: bytes | None = None
        if method.effect.is_write:
            key = cast("rpc_pb2.PutRequest", request).key
        is_free = not self._waiting and not self._keys.is_taken(key)
        if is_free and self._has_room(monotonic()):
            return await self._call_at_once(method, request, key, timeout)
        call = Call(self, method, request, key, timeout, loop.create_future())
        if key is not None and self._keys.is_taken(key):
            self._keys.wait_for(call, key)
        else:
            if key is not None:
                self._keys.take(key)
                call.has_key = True
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
            if key is not None and call.has_key:
                self._keys.release(key)
            if not self._open and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    async def _call_at_once(
        self,
        method: Method[Request, Response],
        request: Request,
        key: bytes | None,
        timeout: float | None,
    ) -> Response:
        self._out[token := object()] = monotonic()
        if key is not None:
            self._keys.take(key)
        try:
            return await self._calls.unary(method, request, timeout)
        finally:
            del self._out[token]
            if key is not None:
                self._keys.release(key)
            self._flush()

    def add(self, call: Call) -> None:
        """Let a call wait that had to wait for its key."""
        self._waiting.append(call)
        self._flush()

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection; without one, few ask for it, and the others wait."""
        return self._calls.is_connected

    def unreachable(self) -> EtcdError:
        """Make the error that says why there is none."""
        return self._calls.unreachable()

    def _has_room(self, now: float) -> bool:
        if len(self._out) < _OUT:
            return True
        return self.is_connected and len(self._quick(now)) < _OUT

    def _quick(self, now: float) -> list[float]:
        """Give since when that is out which others still wait for."""
        return [since for since in self._out.values() if now - since < _SLOW]

    def _flush(self) -> None:
        """Send what waits, as far as there is room."""
        while self._waiting and self._has_room(monotonic()):
            batch = self._gather()
            if not batch:
                break
            token = object()
            try:
                task = self._calls.spawn(partial(self._send, batch), "aioetcd batch")
            except ClientClosedError as error:
                for call in batch:
                    call.fail(error)
                continue
            self._out[token] = monotonic()
            task.add_done_callback(partial(self._ended, token, batch))
        if self._waiting:
            self._look_again(inf)

    def _gather(self) -> list[Call]:
        """Take from those that wait what goes into one txn."""
        batch: list[Call] = []
        size = 0
        now = monotonic()
        waiting = self._waiting
        most = self._max_ops if self.is_connected else 1
        while waiting and len(batch) < most:
            call = waiting[0]
            if call.is_over(now):
                waiting.popleft()
                continue
            size += call.request.ByteSize()
            if batch and (
                size > self._max_bytes or (self._is_full and call.method is not batch[0].method)
            ):
                break
            batch.append(waiting.popleft())
        return batch

    def _ended(self, token: object, batch: list[Call], _: object) -> None:
        for call in batch:  # those that have no answer yet: the task was cancelled
            call.fail(
                ClientClosedError(
                    "the client is closed", maybe_applied=call.is_sent and call.key is not None
                )
            )
        del self._out[token]
        self._flush()

    async def _send(self, batch: list[Call]) -> None:
        now = monotonic()
        batch = [call for call in batch if not call.is_over(now)]
        if len(batch) < 2:
            for call in batch:
                await self._send_alone(call)
            return
        request = rpc_pb2.TxnRequest()
        for call in batch:
            getattr(request.success.add(), _FIELDS[call.method][0]).CopyFrom(call.request)
            call.is_sent = True
        deadline = max(call.deadline for call in batch)
        left = None if deadline == inf else seconds_left(deadline)
        try:
            response = await self._calls.unary(self._txn, request, left)
        except EtcdError as error:
            self._is_full = self._is_full or isinstance(error, NoSpaceError)
            if error.maybe_applied or not self._may_be_of_one(error):
                for call in batch:
                    call.fail(error)
                return
            self._learn(error, batch)
        else:
            self._answer(batch, response)
            return
        for call in batch:
            call.is_sent = False
        middle = len(batch) // 2
        async with Group() as group:
            for half in (batch[:middle], batch[middle:]):
                group.start(self._send(half), "aioetcd half of a batch")

    async def _send_alone(self, call: Call) -> None:
        left = None if call.deadline == inf else seconds_left(call.deadline)
        call.is_sent, call.deadline = True, inf  # from now on it is the call that knows
        try:
            answer = await self._calls.unary(call.method, call.request, left)
        except EtcdError as error:
            call.fail(error)
        else:
            self._is_full = self._is_full and call.method is not PUT
            if not call.answer.done():
                call.answer.set_result(answer)

    def _may_be_of_one(self, error: EtcdError) -> bool:
        """Whether a txn may have been refused because of one of the calls in it."""
        if self._txn.effect.is_write:
            return isinstance(error, _OF_ONE)
        # Reads harm nobody: also their answers together may have been too large.
        return not isinstance(error, (*PASSING, AuthenticationError, ClientClosedError))

    def _learn(self, error: EtcdError, batch: list[Call]) -> None:
        """The server takes less than it does by default."""
        if isinstance(error, TooManyOpsError):
            self._max_ops = min(self._max_ops, len(batch) // 2)
        elif isinstance(error, RequestTooLargeError):
            size = sum(call.request.ByteSize() for call in batch)
            self._max_bytes = min(self._max_bytes, size // 2)

    def _answer(self, batch: list[Call], response: rpc_pb2.TxnResponse) -> None:
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
            deadline = min(deadline, min(self._quick(monotonic()), default=inf) + _SLOW)
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
        still = [call.deadline for call in self._open if not call.is_over(now)]
        self._flush()
        if still:
            self._look_again(min(still))
