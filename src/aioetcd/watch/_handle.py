"""What the user holds of a watch."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from types import TracebackType

import anyio
from anyio.lowlevel import checkpoint

from aioetcd.errors import ClientClosedError, DeadlineExceededError, EtcdError
from aioetcd.types import Batch, Event
from aioetcd.watch._state import Phase, WatchSpec, WatchState
from aioetcd.watch._stream import WatchStream


class Watch:
    """A watch on a key or a range; ``client.watch(...)`` makes it.

    ``async for event in watch`` delivers each event once, in order of revision, across reconnects.
    It ends when the watch is closed, and raises the error that ended it otherwise; what had
    arrived before is delivered first.

    With ``async with`` the watch exists at the server when the block is entered and is cancelled
    there when it is left; inside, loops may be left and entered again without losing anything.
    Without it, the loop itself does both.

    Several tasks may use one watch; each event goes to one of them.
    """

    def __init__(
        self,
        stream: WatchStream,
        spec: WatchSpec,
        *,
        start_revision: int | None,
        timeout: float | None,
    ) -> None:
        self._stream = stream
        self._timeout = timeout
        self._state = WatchState(spec, start_revision, self._notify)
        self._changed = anyio.Event()
        self._started = False
        self._entered = False
        # The rest of the batch that a loop over events is in the middle of.
        self._rest: deque[Event] = deque()
        self._revision = None if start_revision is None else start_revision - 1

    def __repr__(self) -> str:
        """Show the key and where it stands."""
        return f"<Watch {self._state.spec.key!r} {self._state.phase.value}>"

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

    async def __aenter__(self) -> Watch:
        """Create the watch at the server.

        Raises:
            DeadlineExceededError: No answer within the timeout.
            NoEndpointError: No endpoint could be reached within it.
            EtcdError: The server refused it, by cause.
        """
        await self._open()
        self._entered = True
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Cancel the watch."""
        self._close()

    def __aiter__(self) -> AsyncIterator[Event]:
        """Iterate over the events."""
        return self._events()

    async def _events(self) -> AsyncIterator[Event]:
        try:
            await self._open()
            rest = self._rest
            while True:
                while rest:
                    yield rest.popleft()
                batch = await self._next()
                if batch is None:
                    return
                rest.extend(batch.events)
                self._revision = batch.revision
        finally:
            if not self._entered:
                self._close()

    async def batches(self) -> AsyncIterator[Batch]:
        """Iterate over batches: all events of one or more whole revisions at a time.

        A batch without events is a bookmark: everything up to its revision was handed over.
        """
        try:
            await self._open()
            while True:
                if self._rest:  # a loop over events was left in the middle
                    events = tuple(self._rest)
                    self._rest.clear()
                    yield Batch(events, events[-1].mod_revision)
                batch = await self._next()
                if batch is None:
                    return
                self._revision = batch.revision
                yield batch
        finally:
            if not self._entered:
                self._close()

    async def request_progress(self) -> None:
        """Ask the server for a bookmark, which arrives as a batch without events.

        It returns when the question is on its way. The answer comes when the server has sent
        everything up to it to all watches of this client, and not while one of them lags.

        Raises:
            UnsupportedByServerError: Servers before 3.4.25 and 3.5.8 answer too early.
            EtcdError: The server's version could not be read, by cause.
        """
        await self._open()
        await self._stream.request_progress(self._state)

    async def aclose(self) -> None:
        """End the watch; loops over it end. It may be called from any task, and twice."""
        self._close()
        await checkpoint()

    def _notify(self) -> None:
        self._changed.set()

    def _close(self) -> None:
        self._revision = self.revision  # without the rest, which nobody takes any more
        self._rest.clear()
        if self._state.phase is not Phase.ENDED:
            self._stream.cancel(self._state)

    def _fail(self, error: EtcdError) -> EtcdError:
        """End it with an error of our own, which every loop over it raises from now on."""
        self._close()
        self._state.error = error
        return error

    async def _open(self) -> None:
        opens = not self._started
        if opens:
            if self._state.phase is not Phase.ENDED:  # closed before it began
                try:
                    self._stream.add(self._state)
                except ClientClosedError as error:
                    self._fail(error)
                    raise
            self._started = True
        # Those who come meanwhile wait with the one who opens it.
        with anyio.move_on_after(self._timeout if opens else None) as scope:
            try:
                while self._state.created_revision is None:
                    if self._state.phase is Phase.ENDED:
                        break
                    await self._wait()
            except BaseException:
                if opens:
                    self._close()
                raise
        if scope.cancelled_caught:
            endpoints = self._stream.transport.endpoints
            if endpoints.current is None:
                raise self._fail(endpoints.unreachable())
            raise self._fail(
                DeadlineExceededError(
                    f"the watch was not created within {self._timeout:g} s", timeout=self._timeout
                )
            )
        if self._state.created_revision is None and self._state.error is not None:
            raise self._state.error

    async def _next(self) -> Batch | None:
        """Wait for the next batch; None where the watch was closed."""
        await checkpoint()
        while True:
            batch, has_request = self._stream.rules.take(self._state)
            if has_request:
                self._stream.shared.poke()
            if batch is not None:
                return batch
            if self._state.phase is Phase.ENDED:
                if self._state.error is not None:
                    raise self._state.error
                return None
            await self._wait()

    async def _wait(self) -> None:
        if self._changed.is_set():
            self._changed = anyio.Event()
        await self._changed.wait()
