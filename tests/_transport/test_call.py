"""A call and whoever waits for it: what reaches whom, when both end in the same turn."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from types import SimpleNamespace

import anyio
import pytest

from aioetcd import Client
from aioetcd._transport.call import OpenCalls
from aioetcd.testing import FaultProxy
from tests.waiting import until

pytestmark = pytest.mark.own_logic("what asyncio and anyio ask a future")


def open_calls(client: Client) -> OpenCalls:
    """Those on the connection in use."""
    connection = client._transport.picker.current
    assert connection is not None
    return connection.calls


def when_answered(client: Client, act: Callable[[], object]) -> None:
    """Act when gRPC is done with the only call, and before whoever waits for it is woken."""
    loop = asyncio.get_running_loop()

    def look() -> None:
        if any(task.done() for task in open_calls(client)._unary):
            act()
        else:
            _ = loop.call_soon(look)

    _ = loop.call_soon(look)


@pytest.mark.parametrize("number", range(5))
async def test_a_scope_takes_no_answer_away(client: Client, number: int) -> None:
    """An answer that is there when a scope of anyio's is cancelled is given to the caller."""
    await client.kv.get("k")
    with anyio.CancelScope() as scope:
        when_answered(client, scope.cancel)
        put = await client.kv.put("k", str(number))
        revision = put.header.revision
    assert scope.cancel_called
    assert not scope.cancelled_caught
    kv = (await client.kv.get("k")).kv
    assert kv is not None
    assert kv.mod_revision == revision


@pytest.mark.parametrize("number", range(5))
async def test_a_task_is_cancelled_though_there_is_an_answer(client: Client, number: int) -> None:
    """A task that is cancelled then ends as cancelled, with the message; all others go on."""
    await client.kv.get("k")
    task = asyncio.ensure_future(client.kv.put("k", str(number)))
    when_answered(client, lambda: task.cancel("why"))
    with pytest.raises(asyncio.CancelledError, match="why"):
        await task
    assert len(open_calls(client)) == 0
    assert (await client.kv.get("k")).value == str(number).encode()


async def test_grpcs_task_is_cancelled_with_its_caller(proxy: FaultProxy) -> None:
    """Where all tasks are cancelled at once, whoever waits was cancelled, and not cut off."""
    async with Client(proxy.endpoint) as hung:
        await hung.kv.get("k")
        proxy.hang()
        caller = asyncio.ensure_future(hung.kv.put("k", "v"))
        await until(lambda: len(open_calls(hung)) == 1)
        (task,) = open_calls(hung)._unary
        when_answered(hung, caller.cancel)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller


async def test_a_cancelled_call_leaves_no_cycle(proxy: FaultProxy) -> None:
    """What waited for it is gone with it: nothing has to be collected."""
    async with Client(proxy.endpoint) as hung:
        await hung.kv.get("k")
        proxy.hang()
        gc.disable()
        try:
            caller = asyncio.ensure_future(hung.kv.get("k"))
            await until(lambda: len(open_calls(hung)) == 1)
            waiting = [weakref.ref(each) for _, each, _ in open_calls(hung)._unary.values()]
            caller.cancel()
            await asyncio.wait({caller})
            await until(lambda: len(open_calls(hung)) == 0)
            del caller
            await until(lambda: [each() for each in waiting] == [None])
        finally:
            gc.enable()


async def test_leaving_wakes_nobody_who_was_cancelled(proxy: FaultProxy) -> None:
    """A call that was cancelled is open until gRPC is done with it, and its caller elsewhere."""
    async with Client(proxy.endpoint) as hung:
        await hung.kv.get("k")
        proxy.hang()

        async def use() -> bool:
            try:
                await hung.kv.get("k")
            except asyncio.CancelledError:
                calls = open_calls(hung)
                assert len(calls) == 1
                calls.leave()
                await until(lambda: len(calls) == 0)
                return True
            return False

        caller = asyncio.ensure_future(use())
        await until(lambda: len(open_calls(hung)) == 1)
        caller.cancel()
        assert await caller


async def test_an_error_that_comes_too_late_is_not_told_to_nobody() -> None:
    """gRPC's task fails in the turn in which its caller is cancelled: asyncio has no complaint."""
    loop = asyncio.get_running_loop()
    complaints: list[object] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    task = loop.create_future()
    call = SimpleNamespace(_call_response=task, _cancel=lambda _: None)
    caller = asyncio.ensure_future(OpenCalls().answer(call))
    await asyncio.sleep(0)
    caller.cancel()
    task.set_exception(OSError())
    await asyncio.wait({caller})
    assert caller.cancelled()
    del task, call, caller
    gc.collect()
    assert complaints == []
