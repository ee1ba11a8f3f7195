"""Calls that wait together travel together: concurrent gets, puts or deletes in one txn.

What holds at any moment:

- A call goes at once while few are out. Those that come meanwhile wait, and go together as soon as
  one of these is back: no timer delays a call.
- Of a key, one write is out at a time, and its writes go in the order of the calls: the next one
  when the caller of the one before has its answer, or has given up.
- What waits was surely not applied. What was sent has the fate of the txn that it went with; where
  that was refused, surely not applied, and perhaps because of one call alone, it is sent again in
  two halves, down to single calls.
- A caller that gives up, or whose time is over, changes nothing for the others; a txn for which
  nobody waits any more is cancelled, as a call is whose caller gives up.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextvars import Context
from copy import copy
from functools import partial
from math import inf
from time import monotonic
from typing import Any, Generic, cast

from aioetcd._proto import rpc_pb2
from aioetcd._transport.calls import Calls
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
from aioetcd.config.timeouts import deadline_in, seconds_left
from aioetcd.errors import (
    ClientClosedError,
    DeadlineExceededError,
    EtcdError,
    InvalidRequestError,
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
# Deadlines that are so near to each other are looked at together.
_TOGETHER = 0.01

# What may be said of a txn because of one of the calls in it.
_OF_ONE = (InvalidRequestError, LeaseNotFoundError, PermissionDeniedError)

_TOO_LARGE = "RESOURCE_EXHAUSTED"

# How each call goes into a txn, and comes out of it.
_FIELDS = {
    RANGE: ("request_range", "response_range"),
    PUT: ("request_put", "response_put"),
    DELETE_RANGE: ("request_delete_range", "response_delete_range"),
}


def _is_of_few(error: EtcdError) -> bool:
    """Whether it may be said of a txn because of one of the calls in it, or of so many."""
    # Where somebody on the way takes no answer so large, gRPC says so, and etcd nothing.
    is_too_large = type(error) is EtcdError and error.code == _TOO_LARGE
    return not error.maybe_applied and (is_too_large or isinstance(error, _OF_ONE))


class Call(Generic[Request, Response]):
    """A call that does not go alone.

    Attributes:
        lane: Those that it goes with.
        request: Its request message.
        key: The key that it writes; None for a read.
        timeout: Its deadline, in seconds from its beginning.
        deadline: The same in `time.monotonic`'s seconds.
        limit: When it fails here; never, while the request that it is in ends at that time.
        answer: What becomes of it.
        batch: That with which it was sent, as long as its caller waits.
        is_sent: Whether it may have been applied.
        has_key: Whether no other write of its key may go before its caller has its answer.
    """

    __slots__ = (
        "answer",
        "batch",
        "deadline",
        "has_key",
        "is_sent",
        "key",
        "lane",
        "limit",
        "request",
        "timeout",
    )

    def __init__(
        self,
        lane: Lane[Request, Response],
        request: Request,
        key: bytes | None,
        timeout: float | None,
        answer: asyncio.Future[Response],
    ) -> None:
        self.lane = lane
        self.request = request
        self.key = key
        self.timeout = timeout
        self.deadline = self.limit = deadline_in(timeout) or inf
        self.answer = answer
        self.batch: Batch | None = None
        self.is_sent = False
        self.has_key = False

    def fail(self, error: Exception) -> None:
        """Have it raise a copy of our error: many raise it, each with its own traceback."""
        if not self.answer.done():
            error = copy(error) if isinstance(error, EtcdError) else error
            if isinstance(error, DeadlineExceededError) and error.timeout is not None:
                error.timeout = self.timeout  # of its own, if it is not a limit of the server's
            self.answer.set_exception(error)

    def is_over(self, now: float) -> bool:
        """Fail if its time is over; give whether nobody waits for it any more."""
        if now >= self.limit and not self.is_sent and not self.lane.calls.is_connected:
            self.fail(self.lane.calls.unreachable())
        elif now >= self.limit:
            name = self.lane.method.name
            self.fail(
                DeadlineExceededError(
                    f"{name} in a batch: no answer"
                    if self.is_sent
                    else f"{name} was not sent: those before it were not answered",
                    timeout=self.timeout,
                    maybe_applied=self.is_sent and self.key is not None,
                )
            )
        return self.answer.done()


class Batch:
    """Calls that go together.

    Args:
        calls: They.

    Attributes:
        calls: Those whose fate is its own.
        callers: How many still wait for it.
        task: Sends it.
    """

    __slots__ = ("callers", "calls", "task")

    def __init__(self, calls: list[Call[Any, Any]]) -> None:
        self.calls = calls
        self.callers = len(calls)
        self.task: asyncio.Task[None] | None = None

    def leave(self) -> None:
        """One does not wait for it any more; cancel it if nobody does."""
        self.callers -= 1
        if not self.callers and self.task is not None:
            self.task.cancel()  # which changes nothing once it has its answer


class Keys:
    """Of each key, one write at a time may go: the others wait for it, in order."""

    def __init__(self) -> None:
        self._behind: dict[bytes, OrderedDict[Call[Any, Any], None]] = {}

    def is_taken(self, key: bytes) -> bool:
        """Whether a write of the key is under way."""
        return key in self._behind

    def take(self, key: bytes) -> None:
        """Have a key that is not taken."""
        self._behind[key] = OrderedDict()

    def wait_for(self, call: Call[Any, Any], key: bytes) -> None:
        """Let a call have its turn when all before it are over."""
        self._behind[key][call] = None

    def give_up(self, call: Call[Any, Any], key: bytes) -> None:
        """Forget one that does not wait any more."""
        if (behind := self._behind.get(key)) is not None:
            behind.pop(call, None)

    def release(self, key: bytes) -> None:
        """Let the next one go."""
        behind = self._behind[key]
        while behind:
            call, _ = behind.popitem(last=False)
            if not call.answer.done():
                call.has_key = True
                call.lane.add(call)
                return
        del self._behind[key]


class Lane(Generic[Request, Response]):
    """Calls of one RPC: those that wait, and those that are out.

    Args:
        calls: Makes them.
        method: The RPC.
        keys: Which keys are written.

    Attributes:
        calls: Makes them.
        method: The RPC.
    """

    def __init__(self, calls: Calls, method: Method[Request, Response], keys: Keys) -> None:
        self.calls = calls
        self.method = method
        self._txn = TXN if method.effect.is_write else READ_ONLY_TXN
        self._asked, self._answered = _FIELDS[method]
        self._keys = keys
        self._loop: asyncio.AbstractEventLoop | None = None
        # What is out, and since when.
        self._out: dict[object, float] = {}
        self._waiting: OrderedDict[Call[Request, Response], None] = OrderedDict()
        self._open: set[Call[Request, Response]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._looks_at = inf
        self._max_ops = TXN_OPS
        self._max_bytes = TXN_BYTES

    async def call(self, request: Request, timeout: float | None) -> Response:
        """Make a call: alone if nothing is in its way, else with others."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            if self._out or self._open:
                return await self.calls.unary(self.method, request, timeout)  # says what is wrong
            self._loop = loop
        key: bytes | None = None
        if self.method.effect.is_write:
            key = cast("rpc_pb2.PutRequest", request).key
        is_taken = key is not None and self._keys.is_taken(key)
        if not is_taken and not self._waiting and self._has_room(monotonic()):
            return await self._call_at_once(request, key, timeout)
        call = Call(self, request, key, timeout, loop.create_future())
        self._open.add(call)
        if key is not None and is_taken:
            self._keys.wait_for(call, key)
        else:
            if key is not None:
                self._keys.take(key)
                call.has_key = True
            self._waiting[call] = None
        # Those that wait already have seen to it that somebody looks when what is out is slow.
        if call.limit < self._looks_at or len(self._waiting) == 1:
            self._look_again(call.limit)
        try:
            answer: Response = await call.answer
            return answer
        finally:
            self._over(call)

    async def _call_at_once(
        self, request: Request, key: bytes | None, timeout: float | None
    ) -> Response:
        self._out[token := object()] = monotonic()
        if key is not None:
            self._keys.take(key)
        try:
            return await self.calls.unary(self.method, request, timeout)
        finally:
            del self._out[token]
            if key is not None:
                self._keys.release(key)
            self._flush()

    def _over(self, call: Call[Request, Response]) -> None:
        """Its caller has its answer, or waits no more."""
        self._open.discard(call)
        self._waiting.pop(call, None)
        if not call.answer.done():
            call.answer.cancel()
        elif not call.answer.cancelled():
            call.answer.exception()  # it may have come when its caller was cancelled
        if call.batch is not None:
            call.batch.leave()
            call.batch = None
        if call.key is not None and call.has_key:
            self._keys.release(call.key)
        elif call.key is not None:
            self._keys.give_up(call, call.key)
        if not self._open and self._timer is not None:
            self._timer.cancel()
            self._timer, self._looks_at = None, inf

    def add(self, call: Call[Request, Response]) -> None:
        """Let a call wait that had to wait for its key."""
        self._waiting[call] = None
        self._flush()

    def _has_room(self, now: float) -> bool:
        return len(self._out) < _OUT or len(self._quick(now)) < _OUT

    def _quick(self, now: float) -> list[float]:
        """Give since when that is out which others still wait for."""
        return [since for since in self._out.values() if now - since < _SLOW]

    def _flush(self) -> None:
        """Send what waits, as far as there is room."""
        while self._waiting and self._has_room(monotonic()):
            if batch := self._gather():
                self._start(batch)
        if self._waiting:
            self._look_again(inf)

    def _gather(self) -> list[Call[Request, Response]]:
        """Take from those that wait what goes into one txn."""
        batch: list[Call[Request, Response]] = []
        size = 0
        now = monotonic()
        # Where there is no connection few ask for it: they are told what it is about.
        most = self._max_ops if self.calls.is_connected else 1
        while self._waiting and len(batch) < most:
            call = next(iter(self._waiting))
            if not call.is_over(now):
                size += call.request.ByteSize()
                if batch and size > self._max_bytes:
                    break
                batch.append(call)
            del self._waiting[call]
        return batch

    def _start(self, calls: list[Call[Request, Response]]) -> None:
        """Send some, in the background."""
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        batch = Batch(calls)
        for call in calls:
            call.batch = batch
        # Not the supervisor's, which would cut it off when the client closes: the call itself tells
        # how that ends, and whether it was sent.
        # In nobody's context: an observer is not to add what is one caller's for all of them.
        batch.task = loop.create_task(self._send(batch), name="aioetcd batch", context=Context())
        self._out[batch] = monotonic()
        batch.task.add_done_callback(partial(self._ended, batch))

    def _ended(self, batch: Batch, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            task.exception()  # which ends the loop: asyncio raises it there
        for call in batch.calls:  # those that have no answer yet
            call.fail(
                ClientClosedError(
                    "the batch was cancelled, as all tasks are when the event loop ends",
                    maybe_applied=call.is_sent and call.key is not None,
                )
            )
        del self._out[batch]
        self._flush()

    async def _send(self, batch: Batch) -> None:
        now = monotonic()
        calls = batch.calls = [call for call in batch.calls if not call.is_over(now)]
        if not calls:
            return
        deadline = max(call.deadline for call in calls)
        for call in calls:
            call.is_sent = True
            if call.deadline > deadline - _TOGETHER:
                call.limit = inf  # the request knows better what has become of it
        left = None if deadline == inf else seconds_left(deadline)
        try:
            if len(calls) == 1:
                answers = [await self.calls.unary(self.method, calls[0].request, left)]
            else:
                answers = self._split(await self.calls.unary(self._txn, self._join(calls), left))
        except Exception as error:  # noqa: BLE001  # whatever it is, it is the callers'
            if len(calls) > 1 and isinstance(error, EtcdError) and _is_of_few(error):
                self._learn(error, calls)
                self._take_apart(batch)
            else:
                for call in calls:
                    call.fail(error)
            return
        if len(answers) != len(calls):
            wrong = EtcdError(
                f"the server gave {len(answers)} answers to {len(calls)} operations",
                maybe_applied=self.method.effect.is_write,
            )
            for call in calls:
                call.fail(wrong)
            return
        batch.calls = []
        for call, answer in zip(calls, answers, strict=True):
            if not call.answer.done():
                call.answer.set_result(answer)

    def _join(self, calls: list[Call[Request, Response]]) -> rpc_pb2.TxnRequest:
        request = rpc_pb2.TxnRequest()
        for call in calls:
            getattr(request.success.add(), self._asked).CopyFrom(call.request)
        return request

    def _split(self, response: rpc_pb2.TxnResponse) -> list[Response]:
        """Give each answer as it would have been given alone."""
        header = response.header
        answers = [getattr(each, self._answered) for each in response.responses]
        for answer in answers:
            answer.header.CopyFrom(header)
        return answers

    def _learn(self, error: EtcdError, calls: list[Call[Request, Response]]) -> None:
        """The server takes less than it does by default."""
        if isinstance(error, TooManyOpsError):
            self._max_ops = min(self._max_ops, len(calls) // 2)
        elif isinstance(error, RequestTooLargeError) and self.method.effect.is_write:
            size = sum(call.request.ByteSize() for call in calls)
            self._max_bytes = min(self._max_bytes, size // 2)

    def _take_apart(self, batch: Batch) -> None:
        """Send it again in halves, side by side."""
        calls, batch.calls = [call for call in batch.calls if call.batch is batch], []
        for call in calls:
            call.is_sent = False
            call.limit = call.deadline
        middle = len(calls) // 2
        for half in (calls[:middle], calls[middle:]):
            if half:
                self._start(half)
        self._look_again(min((call.limit for call in calls), default=inf))

    def _look_again(self, deadline: float) -> None:
        """See to it that somebody looks when a deadline is over, or what is out is slow."""
        if self._waiting:
            now = monotonic()
            # What was quick when there was no room may be slow by now: then at once.
            deadline = min(deadline, min(self._quick(now), default=now - _SLOW) + _SLOW)
        if deadline == inf or self._loop is None:
            return
        if self._timer is not None:
            if self._looks_at <= deadline:
                return
            self._timer.cancel()
        self._looks_at = deadline
        # The loop's clock is `time.monotonic`, or as far from it now as then.
        self._timer = self._loop.call_later(max(deadline - monotonic(), 0.0), self._look)

    def _look(self) -> None:
        self._timer, self._looks_at = None, inf
        now = monotonic()
        still = [call.limit for call in self._open if not call.is_over(now)]
        self._flush()
        if still:
            self._look_again(max(min(still), now + _TOGETHER))
