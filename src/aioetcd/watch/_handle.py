"""What the user holds of a watch."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from time import monotonic
from types import TracebackType
from typing import Generic, TypeVar

import anyio
from anyio.lowlevel import checkpoint

from aioetcd._constructor import NoPublicConstructor
from aioetcd.errors import ClientClosedError, DeadlineExceededError, EtcdError
from aioetcd.types.store import Batch, Event
from aioetcd.watch._state import Phase, WatchSpec, WatchState
from aioetcd.watch._stream import WatchStream

T = TypeVar("T")


class Watch(metaclass=NoPublicConstructor):
    """A watch on a key or a range; ``client.watch(...)`` makes it.

    ``async for event in watch`` delivers each event once, in order of revision, across reconnects.
    It ends when the watch is closed meanwhile, and raises the error that ended it otherwise; what
    had arrived before is delivered first.

    With ``async with`` the watch exists at the server when the block is entered and is cancelled
    there when it is left; inside, loops may be left and entered again without losing anything. It
    has one block at a time. Without one, the loop itself does both. ``await anext(watch)`` begins a
    watch too, which then lives until it is closed or nobody holds it any more.

    Waiting for the next event may be cancelled, `asyncio.wait_for` included: nothing is lost, and
    the next wait goes on. Several tasks may use one watch; each event goes to one of them, and a
    loop of its own ends a watch only with the last of them.

    A watch that was closed or left does not begin again: using it raises `RuntimeError`. A new one
    from `revision` + 1 goes on where it stood.

    What arrives waits for its consumer up to 20 000 events or 16 MiB; at more, the server is told
    to send no more until half of them are taken.

    Raises:
        CompactedError: The events to go on from are no longer in the server's history: read
            again, and watch from there.
        DeadlineExceededError: It was not created within its timeout.
        NoEndpointError: No endpoint could be reached within it.
        ClientClosedError: The client was closed.
        EtcdError: What else ended it, by cause. A lost connection does not.

    Example:
        async with client.watch("/jobs/", prefix=True) as watch:
            await client.kv.put("/jobs/7", "ready")
            async for event in watch:
                event.kv.key, event.is_create  # (b"/jobs/7", True)
                break
        watch.revision  # the next watch starts with the revision after it
    """

    def __init__(
        self,
        stream: Callable[[], WatchStream],
        spec: WatchSpec,
        *,
        start_revision: int | None,
        timeout: float | None,
    ) -> None:
        # It is on a stream once it has begun.
        self._find_stream = stream
        self._stream: WatchStream
        self._timeout = timeout
        # The state is the stream's for as long as the watch lives, this object only the user's:
        # nothing leads from there to here, so that it is gone when the user drops it.
        self._bell = _Bell()
        self._state = WatchState(spec, start_revision, self._bell.ring)
        self._loop: asyncio.AbstractEventLoop | None = None  # there once it has begun
        self._created_by = 0.0
        self._closed = False
        # What keeps it open: the block, and each loop. And whether it needs nothing of that.
        self._holders = 0
        self._entered = False
        self._keeps_itself = False
        # The rest of the batch that a loop over events is in the middle of.
        self._rest: deque[Event] = deque()
        self._revision = None if start_revision is None else start_revision - 1

    def __repr__(self) -> str:
        """Show the key and where it stands."""
        return f"<Watch {self._state.spec.shown!r} {self._state.phase.value}>"

    def __del__(self) -> None:
        """Cancel a watch that nobody can use any more."""
        if self._loop is not None and not self._closed:
            _end_soon(self._loop, self._stream, self._state)

    @property
    def revision(self) -> int:
        """The revision up to which all events were handed over.

        At first it is the revision before ``start_revision``. Without one it is 0 until the watch
        is created, then the store's revision then; the server may have begun a moment before,
        and deliver an event from in between.
        """
        if self._rest:
            return self._rest[0].mod_revision - 1
        if self._revision is not None:
            return self._revision
        return self._state.created_revision or 0

    @property
    def is_connected(self) -> bool:
        """Whether the watch is open at a server just now, as far as this client knows.

        It is not before its creation, while a lost connection is replaced, while the server sends
        nothing because the events that wait for their consumer are too many, and after its end.
        """
        return self._state.phase is Phase.OPEN

    @property
    def stale_for(self) -> float | None:
        """The seconds since the watch's connection last spoke; None while it is connected.

        So much may be missing from what has arrived: a health check can compare it with what the
        service can bear. What has arrived and waits for its consumer does not count, nor what a
        server that is connected again has still to send. It is infinite before the first creation.
        """
        if self.is_connected:
            return None
        heard_at = self._state.heard_at
        return math.inf if heard_at is None else monotonic() - heard_at

    async def __aenter__(self) -> Watch:
        """Create the watch at the server.

        Raises:
            DeadlineExceededError: No answer within the timeout.
            NoEndpointError: No endpoint could be reached within it.
            EtcdError: The server refused it, by cause.
            RuntimeError: It is entered already, or was closed or left before.
        """
        self._check_usable()
        if self._entered and not self._closed:
            # The inner block would end the outer one, or leave open what was left.
            raise RuntimeError(f"{self!r} is entered already: make another one, client.watch(...)")
        self._holders += 1
        self._entered = True
        try:
            await self._open()
        except BaseException:
            self._entered = False
            self._release()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Cancel the watch, whatever loops there are."""
        self._close()

    def __aiter__(self) -> AsyncIterator[Event]:
        """Iterate over the events."""
        self._check_usable()
        return _Loop(self, self._next_event)

    async def __anext__(self) -> Event:
        """Wait for the next event.

        Raises:
            StopAsyncIteration: The watch was closed meanwhile.
            RuntimeError: It was closed or left before.
            EtcdError: What ended it, by cause.
        """
        self._check_usable()
        self._keeps_itself = True
        return await self._next_event()

    def batches(self) -> AsyncIterator[Batch]:
        """Iterate over batches: all events of one or more whole revisions at a time.

        A batch without events is a bookmark: everything up to its revision was handed over. Others
        have up to 250 events, and what else the last one's revision has.

        Raises:
            RuntimeError: The watch was closed or left before.
            EtcdError: In the loop: what ended the watch, by cause.

        Example:
            async with client.watch("/jobs/", prefix=True) as watch:
                await kv.txn(success=[Op.put("/jobs/1", ""), Op.put("/jobs/2", "")])
                async for batch in watch.batches():
                    [event.kv.key for event in batch.events]  # [b"/jobs/1", b"/jobs/2"]
                    break
        """
        self._check_usable()
        return _Loop(self, self._next_batch)

    async def request_progress(self) -> None:
        """Ask the server for a bookmark, which arrives as a batch without events.

        It returns when the question is on its way. The answer comes when the server has sent
        everything up to it to all watches of the stream that this one shares: usually at once,
        within a second where some of them start beyond the store, and not while one of them lags. A
        watch that itself starts beyond the store is told the revision before its start.

        Raises:
            UnsupportedByServerError: Servers before 3.4.25 and 3.5.8 answer too early.
            EtcdError: The watch was not created within its timeout, or the server's version not
                read within the client's, by cause.
            RuntimeError: The watch was closed or left before.

        Example:
            async with client.watch("/config/", prefix=True) as watch:
                try:
                    await watch.request_progress()
                except UnsupportedByServerError:
                    pass  # progress_notify=True has bookmarks sent on such servers
                else:
                    await anext(watch.batches())  # moves watch.revision on
        """
        self._check_usable()
        self._keeps_itself = True
        await self._open()
        await self._stream.request_progress(self._state)

    async def aclose(self) -> None:
        """End the watch; loops over it end. It may be called from any task, and twice.

        Example:
            put = await kv.put("/config/a", "1")
            watch = client.watch("/config/a", start_revision=put.header.revision)
            await anext(watch)
            await watch.aclose()
        """
        self._close()
        await checkpoint()

    def _check_usable(self) -> None:
        if self._closed and self._state.error is None:
            again = f", start_revision={self.revision + 1}" if self.revision else ""
            raise RuntimeError(
                "this watch was closed, or its loop or block was left: make a new one, "
                f"client.watch({self._state.spec.shown!r}, ...{again}), or stay in one block "
                "(async with) to leave and enter loops"
            )

    def _close(self) -> None:
        self._revision = self.revision  # without the rest, which nobody takes any more
        self._rest.clear()
        self._closed = True
        if self._loop is None:
            self._state.phase = Phase.ENDED
        elif self._state.phase is not Phase.ENDED:
            self._stream.cancel(self._state)

    def _release(self) -> None:
        """Let go of it; the last one closes it."""
        self._holders -= 1
        if self._holders or self._keeps_itself or self._loop is None or self._closed:
            return
        self._revision = self.revision
        self._rest.clear()
        self._closed = True
        _end_soon(self._loop, self._stream, self._state)

    def _fail(self, error: EtcdError) -> EtcdError:
        """End it with an error of our own, which every loop over it raises from now on."""
        self._close()
        self._state.error = error
        return error

    async def _open(self) -> None:
        """Wait until it is created: whoever comes first begins it, whoever comes waits."""
        if self._loop is None and not self._closed:
            self._stream = self._find_stream()
            try:
                self._stream.add(self._state)
            except ClientClosedError as error:
                self._fail(error)
                raise
            self._loop = asyncio.get_running_loop()
            self._created_by = anyio.current_time() + (
                math.inf if self._timeout is None else self._timeout
            )
        state = self._state
        with anyio.CancelScope(deadline=self._created_by):
            while state.created_revision is None and state.phase is not Phase.ENDED:
                await self._bell.wait()
        if state.created_revision is None and state.phase is not Phase.ENDED:
            picker = self._stream.transport.picker
            if picker.current is None:
                raise self._fail(picker.unreachable())
            raise self._fail(
                DeadlineExceededError("the watch was not created", timeout=self._timeout)
            )
        if state.created_revision is None and state.error is not None:
            raise state.error

    async def _next_event(self) -> Event:
        if self._state.created_revision is None:
            await self._open()
        while not self._rest:
            batch = await self._take()
            self._rest.extend(batch.events)
            self._revision = batch.revision
        return self._rest.popleft()

    async def _next_batch(self) -> Batch:
        if self._state.created_revision is None:
            await self._open()
        if self._rest:  # a loop over events was left in the middle
            events = tuple(self._rest)
            self._rest.clear()
            return Batch(events, events[-1].mod_revision)
        batch = await self._take()
        self._revision = batch.revision
        return batch

    async def _take(self) -> Batch:
        """Wait for the next batch. There is no await between taking it and handing it over."""
        state = self._state
        if state.inbox or state.phase is Phase.ENDED:
            await checkpoint()  # a loop that finds some each time lets others run
        if self._loop is None:  # closed before it began: it is on no stream
            raise StopAsyncIteration
        while True:
            batch, has_request = self._stream.rules.take(state)
            if has_request:
                self._stream.shared.poke()
            if batch is not None:
                return batch
            if state.phase is Phase.ENDED:
                if state.error is not None:
                    raise state.error
                raise StopAsyncIteration
            await self._bell.wait()


class _Loop(AsyncIterator[T], Generic[T]):
    """A loop over a watch, which keeps the watch open until it is dropped.

    Not a generator: one that is cancelled while it waits has ended.
    """

    def __init__(self, watch: Watch, take: Callable[[], Awaitable[T]]) -> None:
        self._watch = watch
        self._take = take
        watch._holders += 1

    def __del__(self) -> None:
        self._watch._release()

    async def __anext__(self) -> T:
        try:
            return await self._take()
        finally:
            del self  # the traceback of an exception would keep the loop, and so the watch


class _Bell:
    """Wakes all who wait for something to have changed."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def ring(self) -> None:
        self._changed.set()

    async def wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()


def _end_soon(loop: asyncio.AbstractEventLoop, stream: WatchStream, state: WatchState) -> None:
    """End a watch when an object goes: at any moment and in any thread, so not at once."""
    with suppress(RuntimeError):  # the loop is closed, and so is all that ran in it
        loop.call_soon_threadsafe(stream.cancel, state)
