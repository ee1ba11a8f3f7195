"""One channel to one member, for as long as it works: what has failed is replaced, not repaired.

A channel that gRPC connects again by itself would go on with the certificates, and the addresses,
that were right when it was made; and whether a dead one is back cannot be asked through it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grpc
import grpc.aio

# Not `grpc.aio`'s own names: what traces a program's calls puts its functions there, whose channels
# give calls of another kind, which cannot be cancelled one by one. Observers are told of more.
from grpc.aio._channel import insecure_channel, secure_channel

from aioetcd._transport.call import LeftError, OpenCalls
from aioetcd._transport.methods import Method
from aioetcd.config.endpoints import Endpoint

Metadata = Sequence[tuple[str, str]]


class Connection:
    """A channel, opened at the first use.

    Attributes:
        endpoint: Where it leads.
        calls: Those with which gRPC is not done.
        is_left: Whether nothing new is to go this way.
        is_doubted: Whether somebody looks whether it is dead.
        waiting: The calls without an answer, by anything: when each is to raise doubts next, and
            when it was sent.
        heard_at: When that was sent which was answered last (`time.monotonic`'s seconds).
    """

    def __init__(
        self,
        endpoint: Endpoint,
        options: Sequence[tuple[str, Any]],
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self.endpoint: Endpoint = endpoint
        self.calls: OpenCalls = OpenCalls()
        self.is_left: bool = False
        self.is_doubted: bool = False
        self.waiting: dict[int, list[float]] = {}
        self.heard_at: float = 0.0
        self._options = options
        self._credentials = credentials
        self._channel: grpc.aio.Channel | None = None
        self._is_closed = False
        self._has_worked = False
        self._calls: dict[Method[Any, Any], Any] = {}
        self._leavers: set[Callable[[], object]] = set()

    def unary(self, method: Method[Any, Any]) -> Any:
        """Give the multi-callable of a unary RPC.

        Raises:
            LeftError: The connection is closed.
        """
        found = self._calls.get(method)
        if found is None:
            found = self._calls[method] = self._open().unary_unary(
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
        return found

    def bidi(self, method: Method[Any, Any], metadata: Metadata) -> Any:
        """Begin a stream. Its answers are bytes, whose number is what one takes."""
        begin: Callable[..., Any] = self._open().stream_stream(
            method.path, request_serializer=method.request.SerializeToString
        )
        return self.calls.stream(lambda: begin(metadata=metadata))

    def download(self, method: Method[Any, Any], request: Any, metadata: Metadata) -> Any:
        """Begin a server stream. Its answers are bytes, as those of `bidi`."""
        begin: Callable[..., Any] = self._open().unary_stream(
            method.path, request_serializer=method.request.SerializeToString
        )
        return self.calls.stream(lambda: begin(request, metadata=metadata))

    def _open(self) -> grpc.aio.Channel:
        if self._is_closed:
            raise LeftError
        if self._channel is None:
            target = self.endpoint.target
            channel: Any = (  # of the type that `grpc.aio` gives
                insecure_channel(target, options=self._options)
                if self._credentials is None
                else secure_channel(target, self._credentials, options=self._options)
            )
            self._channel = channel
        return self._channel

    @property
    def state(self) -> str:
        """gRPC's name for the channel's state, or ``"UNUSED"``."""
        return "UNUSED" if self._channel is None else self._channel.get_state().name

    def works(self) -> None:
        """Know that something has come this way."""
        self._has_worked = True

    @property
    def is_broken(self) -> bool:
        """Whether it was there and is no more; gRPC would make another one at the next call."""
        channel = self._channel
        return (
            self._has_worked
            and channel is not None
            and channel.get_state() is not grpc.ChannelConnectivity.READY
        )

    def on_leave(self, leaver: Callable[[], object]) -> None:
        """Have `leaver` called when the connection is left: by a stream, which has to move."""
        self._leavers.add(leaver)

    def stay(self, leaver: Callable[[], object]) -> None:
        """Have it not called any more."""
        self._leavers.discard(leaver)

    def leave(self) -> None:
        """Send nothing this way any more: streams move, and reads in flight go elsewhere.

        Writes in flight are waited for: their answers may still come, and nobody else has them.
        """
        self.is_left = True
        for leaver in list(self._leavers):
            leaver()
        self.calls.leave()

    async def aclose(self) -> None:
        """Close the channel; calls still open on it are cancelled.

        Nothing holds it afterwards: gRPC's thread ends with the last one that does.
        """
        self._is_closed = True
        channel, self._channel = self._channel, None
        self._calls.clear()
        if channel is not None:
            await channel.close()
        await self.calls.wait_done()
