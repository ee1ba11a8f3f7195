"""What the user holds of a lease's renewals."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from time import monotonic
from types import TracebackType

import anyio
from anyio.lowlevel import checkpoint

from aioetcd._proto import rpc_pb2
from aioetcd._transport.streams import SharedStream
from aioetcd._transport.transport import Transport
from aioetcd.errors import DeadlineExceededError, EtcdError
from aioetcd.lease._state import Keeper, Lane, LeaseRules
from aioetcd.types import LeaseRenewal, ResponseHeader

logger = logging.getLogger("aioetcd.lease")

_Request = rpc_pb2.LeaseKeepAliveRequest
_Response = rpc_pb2.LeaseKeepAliveResponse


class KeepAlive:
    """Keeps a lease alive in the background; ``client.lease.keep_alive(...)`` makes it.

    ``async for renewal in keep_alive`` gives the answered renewals. The lease is renewed whether
    or not the loop keeps pace; a slow one sees the latest. Leaving the loop, or the block with
    ``async with``, stops the renewing; the lease itself then lives until its time is over.

    The loop ends by raising when the lease is gone: `LeaseExpiredError` when it could not be
    renewed in time, `LeaseLostError` when somebody revoked it, `LeaseNotFoundError` when there
    was no such lease.
    """

    def __init__(
        self,
        transport: Transport,
        streams: Mapping[Lane, SharedStream[_Request, _Response]],
        rules: LeaseRules,
        lease_id: int,
        *,
        timeout: float | None,
        on_lost: Callable[[EtcdError], None] | None = None,
    ) -> None:
        self._transport = transport
        self._streams = streams
        self._rules = rules
        self._timeout = timeout
        self._on_lost = on_lost
        self._keeper = Keeper(lease_id, self._notify)
        self._waiting: anyio.Event | None = None
        self._lane: Lane | None = None
        self._started = False
        self._entered = False

    def __repr__(self) -> str:
        """Show the lease."""
        return f"<KeepAlive {self._keeper.lease_id:x}>"

    async def __aenter__(self) -> KeepAlive:
        """Start renewing."""
        await checkpoint()  # before it: nobody leaves a block that was not entered
        self._start()
        self._entered = True
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop renewing."""
        self._stop()

    def __aiter__(self) -> AsyncIterator[LeaseRenewal]:
        """Iterate over the answered renewals."""
        return self._renewals()

    async def _renewals(self) -> AsyncIterator[LeaseRenewal]:
        try:
            self._start()
            while True:
                renewal = await self._next()
                if renewal is None:
                    return
                yield renewal
        finally:
            if not self._entered:
                self._stop()

    async def aclose(self) -> None:
        """Stop renewing; loops over it end. It may be called from any task, and twice."""
        self._stop()
        await checkpoint()

    async def once(self) -> LeaseRenewal:
        """Wait for the answer to a renewal that is sent now, then stop."""
        self._keeper.not_before = monotonic()
        renewal = None
        try:
            self._start()
            with anyio.move_on_after(self._timeout) as scope:
                renewal = await self._next()
        finally:
            self._stop()
        if scope.cancelled_caught:
            raise self._no_answer()
        assert renewal is not None  # only `aclose` ends it without an error
        return renewal

    @property
    def expires_in(self) -> float | None:
        """The seconds for which the lease surely lives on, were no renewal to succeed any more.

        0 when it is lost. None where that is not known: before the first answer for a lease that
        this client did not grant.
        """
        if self._keeper.error is not None:
            return 0.0
        deadline = self._rules.deadline(self._keeper.lease_id)
        return None if deadline is None else max(0.0, deadline - monotonic())

    def _check(self) -> None:
        """Look at the deadline now: the event loop may have been blocked beyond it."""
        self._rules.expire(monotonic())

    def _notify(self) -> None:
        if self._waiting is not None:
            self._waiting.set()
            self._waiting = None
        if self._keeper.error is not None and self._on_lost is not None:
            try:
                self._on_lost(self._keeper.error)
            except Exception:  # a bug of ours: others are still to be told
                logger.exception("telling the loss of lease %x failed", self._keeper.lease_id)

    def _start(self) -> None:
        """Begin to renew now.

        Raises:
            ClientClosedError: The client was closed.
            RuntimeError: This is not the client's event loop, or there is none.
        """
        if not self._started:
            self._transport.check_usable()
            self._started = True
            if not self._keeper.ended:
                self._lane = self._rules.add(self._keeper, monotonic())
                self._streams[self._lane].poke()

    def _stop(self) -> None:
        """Stop renewing at once; nothing is told any more. It may be called again."""
        self._on_lost = None
        if self._lane is not None:
            self._rules.remove(self._keeper, monotonic())
            self._streams[self._lane].poke()
        self._keeper.ended = True

    async def _next(self) -> LeaseRenewal | None:
        await checkpoint()
        keeper = self._keeper
        while True:
            self._check()  # before a buffered answer is believed
            if (response := keeper.renewal) is not None:
                keeper.renewal = None
                header = ResponseHeader.from_message(response.header)
                return LeaseRenewal(header, response.ID, response.TTL)
            if keeper.error is not None:
                raise keeper.error
            if keeper.ended:
                return None
            # Of a lease that is not ours the deadline is unknown until the first answer.
            unknown = self._rules.deadline(keeper.lease_id) is None
            with anyio.move_on_after(self._timeout if unknown else None) as scope:
                if self._waiting is None:
                    self._waiting = anyio.Event()
                await self._waiting.wait()
            if scope.cancelled_caught:
                self._stop()
                raise self._no_answer()

    def _no_answer(self) -> EtcdError:
        endpoints = self._transport.endpoints
        if endpoints.current is None:
            return endpoints.unreachable()
        return DeadlineExceededError(
            f"no answer to a renewal of lease {self._keeper.lease_id:x} within {self._timeout:g} s",
            timeout=self._timeout,
        )
