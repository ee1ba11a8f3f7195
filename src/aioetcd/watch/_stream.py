"""Shared watch streams: which one a watch is on, the rules, and the unary calls that they need."""

from __future__ import annotations

import asyncio
import logging
import re

import anyio

from aioetcd._proto import rpc_pb2
from aioetcd._transport.backoff import Backoff
from aioetcd._transport.methods import RANGE, STATUS, WATCH
from aioetcd._transport.streams import SharedStream
from aioetcd._transport.transport import Transport
from aioetcd.errors import ClientClosedError, EtcdError, UnsupportedByServerError
from aioetcd.types.value import Value
from aioetcd.watch._rules import WatchRules
from aioetcd.watch._state import WatchState

logger = logging.getLogger("aioetcd.watch")

# grpc.aio reads the answers of one stream one after the other, each with a way through its thread:
# an event for many watches is there in half the time on four streams (bare ones: in a quarter, at a
# third of the CPU), and no faster on more. One has so many watches before another is opened.
_FULL = 50
_STREAMS = 4


class WatchStats(Value):
    """What the watches are doing."""

    __slots__ = ("open", "paused", "reconnects")

    open: int
    paused: int
    reconnects: int


class WatchStreams:
    """All watches of a client, on few streams: others for those that need no leader."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._streams: dict[bool, list[WatchStream]] = {True: [], False: []}

    def stream(self, *, require_leader: bool) -> WatchStream:
        """Give the stream for a new watch.

        They fill one stream after the other, then go where the fewest are.
        """
        streams = self._streams[require_leader]
        for stream in streams:
            if len(stream.rules) < _FULL:
                return stream
        if len(streams) < _STREAMS:
            streams.append(WatchStream(self._transport, require_leader=require_leader))
            return streams[-1]
        return min(streams, key=lambda stream: len(stream.rules))

    def stats(self) -> WatchStats:
        """Tell what the watches are doing."""
        streams = [stream for each in self._streams.values() for stream in each]
        counts = [stream.rules.counts() for stream in streams]
        return WatchStats(
            open=sum(count for count, _ in counts),
            paused=sum(paused for _, paused in counts),
            reconnects=sum(stream.shared.reconnects for stream in streams),
        )


class WatchStream:
    """Watches of a client that share a stream, and its metadata.

    Attributes:
        rules: What to send and what the answers mean.
        shared: The stream.
        transport: The client's transport.
    """

    def __init__(self, transport: Transport, *, require_leader: bool) -> None:
        self.transport = transport
        self.rules: WatchRules = WatchRules(
            self._ask,
            longest_silence=transport.longest_silence,
            signs_in=lambda: transport.tokens.user is not None,
        )
        self.shared: SharedStream[rpc_pb2.WatchRequest, rpc_pb2.WatchResponse] = SharedStream(
            transport, WATCH, self.rules, require_leader=require_leader, logger=logger
        )
        self._answering: asyncio.Task[None] | None = None
        transport.on_close(self.rules.close)

    def add(self, state: WatchState) -> None:
        """Start a watch."""
        self.transport.check_usable()
        self.rules.add(state)
        self.shared.poke()

    def cancel(self, state: WatchState) -> None:
        """End a watch, here at once and at the server as soon as it can be told."""
        self.rules.cancel(state)
        self.shared.poke()

    async def request_progress(self, state: WatchState) -> None:
        """See `Watch.request_progress`."""
        self.transport.check_usable()
        response = await self.transport.unary(
            STATUS, rpc_pb2.StatusRequest(), connection=self.shared.connection
        )
        if not tells_progress_truly(response.version):
            raise UnsupportedByServerError(
                f"etcd {response.version} may announce progress beyond events that it still has "
                "to send: request_progress needs 3.5.8 (or 3.4.25); progress_notify=True is right "
                "on this server too",
                server_version=response.version,
                needs="3.5.8",
            )
        self.rules.ask_progress(state, response.header.revision)
        self.shared.poke()

    def _ask(self) -> None:
        if self._answering is None or self._answering.done():
            self._answering = self.transport.supervisor.spawn(
                self._answer, "aioetcd watch questions"
            )

    async def _answer(self) -> None:
        """Make the unary calls without which the rules cannot go on."""
        backoff = Backoff(0.05, 1.0)
        try:
            while self.rules.suspicion is not None or self.rules.wants_version:
                # The member that the stream leads to is the one in question.
                connection = self.shared.connection
                try:
                    if (suspicion := self.rules.suspicion) is not None:
                        key = suspicion.state.spec.key
                        request = rpc_pb2.RangeRequest(key=key, count_only=True)
                        read = await self.transport.unary(RANGE, request, connection=connection)
                        self.rules.checked_revision(suspicion, read.header.revision)
                    else:
                        status = await self.transport.unary(
                            STATUS, rpc_pb2.StatusRequest(), connection=connection
                        )
                        if connection is self.shared.connection:
                            self.rules.checked_version(
                                status.header.revision,
                                trusted=tells_progress_truly(status.version),
                            )
                except ClientClosedError:
                    return
                except EtcdError as error:
                    logger.debug("cannot ask about the watch stream yet: %s", error)
                    await anyio.sleep(backoff.next_delay())
        finally:
            self.shared.poke()


def tells_progress_truly(version: str) -> bool:
    """Whether this etcd answers a request for progress only after all events up to it."""
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if match is None:
        return False
    major, minor, patch = map(int, match.groups())
    if (major, minor) == (3, 4):
        return patch >= 25
    return (major, minor, patch) >= (3, 5, 8)
