"""The one place that waits for the answer of a unary gRPC call."""

from __future__ import annotations

import asyncio
from typing import Any


class ChannelClosedError(Exception):
    """The call was cancelled here, but not by whoever waits for it: its channel closes."""


async def answer(call: Any) -> Any:
    """Wait for the answer to a call of grpc.aio, and cancel the call when we are cancelled.

    Waiting for the call itself would lose the message of the cancellation, and the mark by which
    anyio knows its own.

    Raises:
        grpc.aio.AioRpcError: It failed.
        ChannelClosedError: See there.
    """
    over = asyncio.get_running_loop().create_future()

    def tell(_: object) -> None:
        if not over.done():
            over.set_result(None)

    call.add_done_callback(tell)
    try:
        await over
    except asyncio.CancelledError:
        call.cancel()
        raise
    try:
        return await call  # which is over, so this is no place to be cancelled at
    except asyncio.CancelledError:
        raise ChannelClosedError from None
