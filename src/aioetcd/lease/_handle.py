"""What the user holds of a lease's renewals."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from time import monotonic
from types import TracebackType

import anyio
from anyio.lowlevel import checkpoint

from aioetcd import _decode
from aioetcd._constructor import NoPublicConstructor
from aioetcd.errors import DeadlineExceededError, EtcdError
from aioetcd.lease._state import Keeper, Lane
from aioetcd.lease._streams import LeaseStreams
from aioetcd.types.leases import LeaseRenewal

logger = logging.getLogger("aioetcd.lease")

_HOW = "with client.lease.keep_alive()"


class KeepAlive(metaclass=NoPublicConstructor):
    """Keeps a lease alive in the background; ``client.lease.keep_alive(...)`` makes it.

    ``async for renewal in keep_alive`` gives the answered renewals, ``await anext(keep_alive)`` the
    next one. The lease is renewed whether or not anybody keeps pace; a slow one sees the latest.
    Waiting may be cancelled, as by `asyncio.wait_for`: the renewal is the next one given then.

    Leaving the block with ``async with`` stops the renewing at once; so does, without a block,
    leaving the last of the loops. What ``anext(keep_alive)`` began lives without either. `aclose`
    stops it, which ends the loops that are running, and so does dropping the object. The lease
    then lives until its time is over. What was stopped is not begun again: make another one.

    The loop ends by raising when the lease is gone: `LeaseExpiredError` when it could not be
    renewed in time, `LeaseLostError` when somebody revoked it, `LeaseNotFoundError` when there
    was no such lease. It is raised again for whoever asks again. Several tasks may use one; each
    renewal goes to one of them.

    Example:
        lease = await client.lease.grant(10)
        async with client.lease.keep_alive(lease) as renewals:
            (await anext(renewals)).ttl  # 10
    """

    def __init__(
        self,
        streams: LeaseStreams,
        lease_id: int,
        *,
        timeout: float | None,
        on_lost: Callable[[EtcdError], None] | None = None,
    ) -> None:
        self._streams = streams
        self._timeout = timeout
        self._on_lost = on_lost
        self._news: anyio.Event | None = None
        self._lane: Lane | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # since it was started
        # What keeps it going: the block, and each loop. And whether it needs nothing of that.
        self._entered = False
        self._loops = 0
        self._keeps_itself = False
        self._stopped = False
        # The rules must not be what keeps this alive: that it is dropped would go unnoticed.
        this = weakref.WeakMethod(self._notify)

        def notify() -> None:
            if (alive := this()) is not None:
                alive()

        self._keeper = Keeper(lease_id, notify)

    def __repr__(self) -> str:
        """Show the lease."""
        return f"<KeepAlive {self._keeper.lease_id:x}>"

    def __del__(self) -> None:
        """Stop renewing."""
        self._drop()

    async def __aenter__(self) -> KeepAlive:
        """Start renewing.

        Raises:
            RuntimeError: It was entered or stopped before.
            EtcdError: It was lost before, with that error.
        """
        await checkpoint()  # before it: nobody leaves a block that was not entered
        if self._entered and not self._stopped:
            raise RuntimeError(f"{self!r} is entered already: make another one, {_HOW}")
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
        """Iterate over the answered renewals; the first one starts renewing.

        Raises:
            RuntimeError: It was stopped before.
        """
        self._check_not_stopped()
        return _Renewals(self)

    async def __anext__(self) -> LeaseRenewal:
        """Wait for the next answered renewal; the first one starts renewing.

        Raises:
            RuntimeError: It was stopped before.
            StopAsyncIteration: It is stopped.
            EtcdError: The lease is lost, by cause; or it is a foreign one that did not answer in
                time, which stops the renewing.
        """
        self._check_not_stopped()
        self._keeps_itself = True
        return await self._next()

    async def aclose(self) -> None:
        """Stop renewing; loops over it end. It may be called from any task, and twice.

        The lease itself lives on for its time: `Leases.revoke` ends it.

        Example:
            lease = await client.lease.grant(10)
            renewals = client.lease.keep_alive(lease)
            await anext(renewals)
            await renewals.aclose()
        """
        self._stop()
        await checkpoint()

    @property
    def expires_in(self) -> float | None:
        """The seconds for which the lease surely lives on, were no renewal to succeed any more.

        0 when it is lost. None where that is not known: before the first answer for a lease that
        this client did not grant.
        """
        if self._keeper.error is not None:
            return 0.0
        deadline = self._streams.rules.deadline(self._keeper.lease_id)
        return None if deadline is None else max(0.0, deadline - monotonic())

    # For the library.

    async def _once(self) -> LeaseRenewal:
        """Wait for the answer to a renewal that is sent now, then stop."""
        self._keeper.not_before = monotonic()
        renewal = None
        try:
            with anyio.move_on_after(self._timeout):
                renewal = await self._next()
        finally:
            self._stop()
        if renewal is None:
            raise self._no_answer()
        return renewal

    def _check(self) -> None:
        """Look at the deadline now: the event loop may have been blocked beyond it."""
        self._streams.rules.expire(monotonic())

    def _start(self) -> None:
        """Begin to renew now.

        Raises:
            ClientClosedError: The client was closed.
            RuntimeError: This is not the client's event loop, or there is none; or the renewing
                was stopped before.
            EtcdError: The lease was lost before, with that error.
        """
        if self._keeper.error is not None:
            raise self._keeper.error
        self._check_not_stopped()
        if self._loop is None:
            self._streams.transport.check_usable()
            self._loop = asyncio.get_running_loop()
            self._lane = self._streams.rules.add(self._keeper, monotonic())
            self._streams.poke(self._lane)

    def _stop(self) -> None:
        """Stop renewing at once; nothing is told any more. It may be called again."""
        self._stopped = True
        self._on_lost = None
        if self._lane is not None:
            self._streams.rules.remove(self._keeper, monotonic())
            self._streams.poke(self._lane)

    def _drop(self) -> None:
        """Stop renewing where nobody is left who could; perhaps in another thread."""
        if self._lane is not None and self._loop is not None and not self._keeper.ended:
            self._stopped = True
            self._on_lost = None
            self._streams.rules.dropped(self._keeper, monotonic())
            with suppress(RuntimeError):  # the loop is closed: nothing is renewed any more
                self._loop.call_soon_threadsafe(self._streams.poke, self._lane)

    def _leave_loop(self) -> None:
        """Let go of it; the last one stops the renewing."""
        self._loops -= 1
        if not (self._loops or self._entered or self._keeps_itself):
            self._drop()

    def _check_not_stopped(self) -> None:
        if self._stopped and self._keeper.error is None:
            raise RuntimeError(f"{self!r} was stopped: make another one, {_HOW}")

    def _notify(self) -> None:
        if self._news is not None:
            self._news.set()
            self._news = None
        if self._keeper.error is not None and self._on_lost is not None:
            try:
                self._on_lost(self._keeper.error)
            except Exception:  # a bug of ours: others are still to be told
                logger.exception("telling the loss of lease %x failed", self._keeper.lease_id)

    async def _next(self) -> LeaseRenewal:
        await checkpoint()  # before it: what is cancelled already starts nothing
        keeper = self._keeper
        while True:
            self._check()  # before a buffered answer is believed
            # Taking it and giving it is one step: a cancellation comes before it, or not at all.
            if (response := keeper.renewal) is not None:
                keeper.renewal = None
                header = _decode.header(response.header)
                return LeaseRenewal(header, response.ID, response.TTL)
            if keeper.error is not None:
                raise keeper.error
            if self._stopped:
                raise StopAsyncIteration
            self._start()
            # Of a lease that is not ours the deadline is unknown until the first answer.
            unknown = self._streams.rules.deadline(keeper.lease_id) is None
            if self._news is None:
                self._news = anyio.Event()
            with anyio.move_on_after(self._timeout if unknown else None) as scope:
                await self._news.wait()
            if scope.cancelled_caught and keeper.renewal is None and keeper.error is None:
                self._stop()
                raise self._no_answer()

    def _no_answer(self) -> EtcdError:
        picker = self._streams.transport.picker
        if picker.current is None:
            return picker.unreachable()
        return DeadlineExceededError(
            f"no answer to a renewal of lease {self._keeper.lease_id:x}", timeout=self._timeout
        )


class _Renewals:
    """A loop over a `KeepAlive`, which makes it.

    A loop that was left is dropped, by whatever it was left. The last one stops the renewing, where
    there is neither a block for it nor somebody who uses `anext`.
    """

    def __init__(self, keep_alive: KeepAlive) -> None:
        self._keep_alive = keep_alive
        keep_alive._loops += 1

    def __aiter__(self) -> _Renewals:
        """Give itself."""
        return self

    def __anext__(self) -> Awaitable[LeaseRenewal]:
        """Wait for the next answered renewal."""
        # No coroutine of its own: its frame would keep this alive for as long as somebody keeps the
        # exception that left the loop, as a task does.
        return self._keep_alive._next()

    def __del__(self) -> None:
        """Stop renewing, if it is the last one."""
        self._keep_alive._leave_loop()
