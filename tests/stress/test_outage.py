"""A client during an outage: it keeps trying, at a random pace, and costs next to nothing."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from functools import partial

import anyio
import pytest

from aioetcd import Client
from aioetcd.testing import FaultProxy
from aioetcd.testing.checkers import (
    assert_clean,
    check_attempts,
    check_cpu_share,
    check_jitter,
)

# Enough of them for `check_jitter` to tell a pattern from chance: eight seconds or so.
ATTEMPTS = 12
# gRPC's own pauses between two attempts grow from 0.1 s to 1 s; see `channel_options`.
MAX_PER_SECOND = 8


@pytest.fixture
def dead_target() -> Iterator[str]:
    """An address that is taken, but where nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{unused.getsockname()[1]}"


async def _attempts(proxy: FaultProxy, count: int) -> list[int]:
    """When so many connections were attempted."""
    times: list[int] = []
    before = proxy.connections_total

    def is_enough(proxy: FaultProxy) -> bool:
        """Looked at whenever a counter changes."""
        new = proxy.connections_total - before - len(times)
        times.extend([time.monotonic_ns()] * new)
        return len(times) >= count

    await proxy.wait_until(is_enough, timeout=40)
    return times


@pytest.mark.fault("enough attempts to tell a pattern from chance")
async def test_outage(proxy: FaultProxy, dead_target: str) -> None:
    """While no server answers, attempts are bounded and random, and waiting costs no CPU."""
    target = proxy.target
    async with (
        Client(proxy.endpoint) as client,
        client.session(ttl=60),
        client.watch("k") as watch,
        anyio.create_task_group() as tasks,
    ):
        await client.kv.put("k", "before")
        proxy.retarget(dead_target)
        assert proxy.cut() > 0
        # Only now the client knows: a put that was sent before would be lost and reported.
        await proxy.wait_until(lambda proxy: proxy.connect_failures > 0)
        tasks.start_soon(partial(client.kv.put, "k", "after", timeout=None))
        began, cpu_began = time.monotonic(), time.process_time()
        attempts = await _attempts(proxy, ATTEMPTS)
        seconds = time.monotonic() - began
        cpu_seconds = time.process_time() - cpu_began
        assert proxy.connect_failures >= ATTEMPTS  # all but the last one, which is under way
        assert_clean(
            [
                *check_attempts(attempts, max_per_second=MAX_PER_SECOND),
                *check_jitter(attempts),
                *check_cpu_share(cpu_seconds, seconds),
            ]
        )
        proxy.retarget(target)
        with anyio.fail_after(5):
            values = [(await anext(aiter(watch))).kv.value for _ in range(2)]
        assert values == [b"before", b"after"]
