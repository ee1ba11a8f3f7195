"""The end of a stream is what the server says of it, and another one follows at once."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import pytest

from aioetcd import Client, UnsupportedByServerError
from aioetcd.testing.proxy import FaultProxy
from tests.loops import LOOPS, run_on
from tests.programs import stranger
from tests.waiting import lateness


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("what", ["watch", "keep_alive"])
def test_a_final_refusal_is_told(loop: str, what: str, caplog: pytest.LogCaptureFixture) -> None:
    """A stream that the server has not is no passing fault, also when a write meets its end."""

    async def main() -> None:
        with stranger() as endpoint:
            for _ in range(15):  # in some of which the refusal comes before the first write
                async with Client(endpoint) as client:
                    use: Callable[[], Awaitable[object]] = client.watch("k").__aenter__
                    if what == "keep_alive":
                        use = partial(client.lease.keep_alive_once, 1)
                    with anyio.fail_after(3), pytest.raises(UnsupportedByServerError) as caught:
                        await use()
                    assert caught.value.details == "Method not found!"

    run_on(loop, main())
    # What gRPC says itself of a write that met the end is no reason to try again.
    assert "Method not found!" in caplog.text
    assert "Internal error" not in caplog.text


@pytest.mark.fault("a connection that is cut again and again")
async def test_back_at_once_however_often_it_was_lost(proxy: FaultProxy, direct: Client) -> None:
    """A stream that has answered since its last loss does not wait the longer after the next."""
    async with Client(proxy.endpoint) as client, client.watch("k") as watch, lateness() as late:
        for _ in range(8):
            assert proxy.cut() >= 1
            await direct.kv.put("k", "v")
            began = time.monotonic()
            await anext(watch)
            took = time.monotonic() - began
            assert took < 0.8 + late.seconds  # from the seventh time on it would be 1 s or more
