"""The end of a stream is what the server says of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import pytest

from aioetcd import Client, UnsupportedByServerError
from tests.loops import LOOPS, run_on
from tests.programs import stranger


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
