"""What is sent again, for how long, and what is told when it is not."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import pytest

from aioetcd import (
    Client,
    ClientClosedError,
    CompactedError,
    Compare,
    DeadlineExceededError,
    Op,
    TooManyRequestsError,
    UnavailableError,
)
from aioetcd._constructor import create
from aioetcd._transport import unary as unary_module
from aioetcd._transport.transport import Transport
from aioetcd.kv import KV
from aioetcd.testing import FaultProxy
from tests._transport.weather import LARGE, SLACK, FewPauses, connected, exists
from tests.harness import until_answer_lost
from tests.programs import stranger
from tests.waiting import lateness, until

pytestmark = pytest.mark.own_logic("what the client sends again, and what it says then")


class LongPause:
    """A pause before the next try that is longer than any call of these tests."""

    def __init__(self, first: float, most: float) -> None:
        pass

    def next_delay(self) -> float:
        return 5.0


@pytest.fixture
def long_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a call that is to be sent again wait for long."""
    monkeypatch.setattr(unary_module, "Backoff", LongPause)


@pytest.mark.fault("a call of four seconds")
async def test_retries_share_one_deadline(proxy: FaultProxy) -> None:
    """A read that was cut after a part of its time has only the rest for its second try."""
    with stranger("HANG") as silent:
        async with connected(proxy.endpoint, silent) as transport:
            kv = create(KV, transport)
            await kv.put("k", b"v" * LARGE)
            proxy.blackhole(client_to_server=False)
            start = time.monotonic()
            async with lateness() as late, anyio.create_task_group() as group:

                async def read() -> None:
                    with pytest.raises(DeadlineExceededError) as caught:
                        await kv.get("k", timeout=4)
                    assert caught.value.endpoint == silent  # where the second try was

                group.start_soon(read)
                await proxy.wait_until(lambda proxy: proxy.bytes_swallowed > LARGE)
                await anyio.sleep(0.7)  # the part of its time
                proxy.refuse()
                assert proxy.cut() == 1
            assert 3.95 < time.monotonic() - start < 4 + SLACK + late.seconds
            assert transport.monitor.retries == 1


@pytest.mark.parametrize("is_write", [True, False])
async def test_r4_a_server_with_too_much_to_do(
    monkeypatch: pytest.MonkeyPatch, *, is_write: bool
) -> None:
    """What it surely has not done is sent again, ever less often, until the deadline."""
    made: list[FewPauses] = []

    def few_pauses(first: float, most: float) -> FewPauses:
        made.append(FewPauses(first, most))
        return made[-1]

    monkeypatch.setattr(unary_module, "Backoff", few_pauses)
    monkeypatch.setattr(unary_module, "PATIENCE", 60)  # nobody looks what the server is doing
    with stranger("RESOURCE_EXHAUSTED", "etcdserver: too many requests") as endpoint:
        async with connected(endpoint) as transport:
            kv = create(KV, transport)
            assert await transport.wait_connected()
            began = time.monotonic()
            with pytest.raises(TooManyRequestsError) as caught:
                await (kv.put("k", "v", timeout=30) if is_write else kv.get("k", timeout=30))
            took = time.monotonic() - began
            assert caught.value.maybe_applied is False
            (backoff,) = made
            assert transport.monitor.retries == len(backoff.pauses) == FewPauses.NUMBER
            assert backoff.pauses == sorted(backoff.pauses)
            assert took > sum(backoff.pauses) - 0.01  # timers may be early
            assert transport.picker.current is not None, "who has much to do is not sick"


async def test_the_servers_own_deadline() -> None:
    """A deadline that ran out at the server is not told as the caller's, which has time left."""
    with stranger("DEADLINE_EXCEEDED", "context deadline exceeded") as endpoint:
        async with connected(endpoint) as transport:
            with pytest.raises(DeadlineExceededError) as caught:
                await create(KV, transport).put("k", "v", timeout=5)
    assert caught.value.timeout is None
    assert caught.value.details == "context deadline exceeded"
    assert "context deadline exceeded" in str(caught.value)
    assert caught.value.maybe_applied is True


@pytest.mark.usefixtures("long_pause")
async def test_no_time_for_another_try(proxy: FaultProxy) -> None:
    """Where the pause would pass the deadline, what went wrong is told at once."""
    async with connected(proxy.endpoint) as transport:
        kv = create(KV, transport)
        await kv.put("k", b"v" * LARGE)
        proxy.blackhole(client_to_server=False)
        async with anyio.create_task_group() as group:

            async def read() -> None:
                with pytest.raises(UnavailableError) as caught:
                    await kv.get("k", timeout=4)
                assert not isinstance(caught.value, DeadlineExceededError)
                assert time.monotonic() - cut_at < 1

            group.start_soon(read)
            await proxy.wait_until(lambda proxy: proxy.bytes_swallowed > LARGE)
            cut_at = time.monotonic()
            assert proxy.cut() == 1
        assert transport.monitor.retries == 0


@pytest.mark.usefixtures("long_pause")
@pytest.mark.parametrize("is_write", [False, True])
async def test_closed_between_two_tries(proxy: FaultProxy, direct: Client, is_write: bool) -> None:
    """A call in its pause is told, and what its first try may have done is not forgotten."""
    async with connected(proxy.endpoint) as transport:
        kv = create(KV, transport)
        await kv.put("k", b"v" * LARGE)
        proxy.blackhole(client_to_server=False)
        async with anyio.create_task_group() as group:

            async def call() -> None:
                txn = partial(kv.txn, success=[Op.put("written", "v")], idempotent=True)
                use: Callable[..., Awaitable[object]] = txn if is_write else partial(kv.get, "k")
                with pytest.raises(ClientClosedError) as caught:
                    await use(timeout=8)
                assert caught.value.maybe_applied is is_write

            group.start_soon(call)
            if is_write:
                await until_answer_lost(proxy, lambda: exists(direct, "written"))
            else:
                await proxy.wait_until(lambda proxy: proxy.bytes_swallowed > LARGE)
            proxy.cut()
            await until(lambda: transport.monitor.retries == 1)
            start = time.monotonic()
            await transport.aclose()
        assert time.monotonic() - start < 2


def delete(kv: KV) -> Awaitable[object]:
    return kv.delete("k")


def compact(kv: KV) -> Awaitable[object]:
    return kv.compact(2)


def txn(kv: KV) -> Awaitable[object]:
    return kv.txn(compare=[Compare.version("k") == 1], success=[Op.put("k", "w")])


async def deleted(direct: Client) -> bool:
    return (await direct.kv.get("k")).kv is None


async def compacted(direct: Client) -> bool:
    try:
        await direct.kv.get("k", revision=1)
    except CompactedError:
        return True
    return False


async def put(direct: Client) -> bool:
    return (await direct.kv.get("k")).value == b"w"


@pytest.mark.parametrize(
    ("call", "applied"),
    [(delete, deleted), (compact, compacted), (txn, put)],
    ids=["delete", "compact", "txn"],
)
async def test_what_may_not_be_repeated(
    proxy: FaultProxy,
    direct: Client,
    call: Callable[[KV], Awaitable[object]],
    applied: Callable[[Client], Awaitable[bool]],
) -> None:
    """What was applied and then cut raises, with `maybe_applied`, and is not sent again."""
    async with connected(proxy.endpoint) as transport:
        kv = create(KV, transport)
        await kv.put("k", "v")
        await kv.put("other", "v")
        proxy.blackhole(client_to_server=False)
        async with anyio.create_task_group() as group:

            async def expect() -> None:
                with pytest.raises(UnavailableError) as caught:
                    await call(kv)
                assert caught.value.maybe_applied is True

            group.start_soon(expect)
            await until_answer_lost(proxy, lambda: applied(direct))
            assert proxy.cut() == 1
        assert transport.monitor.retries == 0


@pytest.mark.parametrize("physical", [False, True])
async def test_physical_is_sent(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, physical: bool
) -> None:
    """`physical` is in the request, which nothing else shows."""
    sent: list[Any] = []
    unary = Transport.unary

    async def spy(self: Transport, method: Any, request: Any, *rest: Any) -> Any:
        sent.append(request)
        return await unary(self, method, request, *rest)

    monkeypatch.setattr(Transport, "unary", spy)
    async with connected(proxy.endpoint) as transport:
        kv = create(KV, transport)
        revision = (await kv.put("k", "v")).header.revision
        await kv.compact(revision, physical=physical)
    assert sent[-1].physical is physical
