"""Barriers: who waits is let go when it is released, and answers that are lost deceive nobody."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import anyio
import pytest

from aioetcd import (
    Barrier,
    Client,
    ClientClosedError,
    DeadlineExceededError,
    EtcdError,
    KeyValue,
    LeaseNotFoundError,
    NoEndpointError,
)
from aioetcd.testing import EtcdServer, FaultProxy
from tests.concurrency.locks import watches_created
from tests.harness import Faulty, lose_answer, until_answer_lost, until_request_lost
from tests.waiting import lateness, until

KEY = "/barriers/migration"


async def there(client: Client) -> KeyValue | None:
    """The barrier's key."""
    return (await client.kv.get(KEY)).kv


async def is_there(client: Client) -> bool:
    """Whether the barrier is held."""
    return await there(client) is not None


async def compact(client: Client) -> None:
    """Forget the history."""
    put = await client.kv.put("other", "v")
    await client.kv.compact(put.header.revision, physical=True)
    await client.kv.delete("other")


async def test_it_is_held_once(client: Client) -> None:
    """The first one holds it, and is what others see; releasing lets go, also of nothing."""
    barrier, other = client.barrier(KEY), client.barrier(KEY)
    assert await barrier.hold(value="host-7") is True
    assert await other.hold(value="host-8") is False
    held = await there(client)
    assert held is not None
    assert (held.text, held.version, held.lease) == ("host-7", 1, None)
    await other.release()
    assert not await is_there(client)
    await barrier.release()
    assert await barrier.hold() is True


@pytest.mark.parametrize("go_holds", [True, False])
async def test_gos_barriers(client: Client, go_holds: bool) -> None:
    """A Go client's barrier is its key, with no value: that is waited for, and made here too."""
    if go_holds:  # as recipe.Barrier.Hold does
        await client.kv.put(KEY, "")
    else:
        await client.barrier(KEY).hold()
        found = await client.kv.get("", prefix=True)
        assert [(kv.key, kv.value, kv.lease) for kv in found.kvs] == [(KEY.encode(), b"", None)]
    waiting = asyncio.create_task(client.barrier(KEY).wait())
    await watches_created(client, 1)
    if go_holds:
        await client.barrier(KEY).release()
    else:  # as recipe.Barrier.Release does
        await client.kv.delete(KEY)
    async with asyncio.timeout(10):
        await waiting
    assert not await is_there(client)


async def test_all_are_let_go(client: Client) -> None:
    """Any number may wait on one object, none before the release; afterwards nobody waits."""
    barrier = client.barrier(KEY)
    await barrier.wait()
    await barrier.hold()
    waiting = [asyncio.create_task(barrier.wait()) for _ in range(10)]
    await watches_created(client, 10)
    await client.kv.put(KEY, "changed")
    await client.ping()
    assert not any(task.done() for task in waiting)
    await barrier.release()
    async with asyncio.timeout(10):
        await asyncio.gather(*waiting)
    assert client.stats().watches == 0


async def test_it_falls_with_its_lease(client: Client) -> None:
    """Who waits is let go when the holder is gone."""
    async with client.session(ttl=60) as session:
        await client.barrier(KEY).hold(lease=session)
        waiting = asyncio.create_task(client.barrier(KEY).wait())
        await watches_created(client, 1)
    async with asyncio.timeout(10):
        await waiting
    with pytest.raises(LeaseNotFoundError):
        await client.barrier(KEY).hold(lease=session)


async def test_held_again_at_once(client: Client, server: EtcdServer) -> None:
    """Who waited for one is not held up by the next, though the release itself is history."""
    async with FaultProxy(server.endpoint) as proxy, Client(proxy.endpoint) as cut_off:
        await client.barrier(KEY).hold()
        waiting = asyncio.create_task(cut_off.barrier(KEY).wait())
        await watches_created(cut_off, 1)
        proxy.refuse()
        proxy.cut()
        await client.barrier(KEY).release()
        await client.barrier(KEY).hold()
        await compact(client)
        await proxy.accept()
        async with asyncio.timeout(10):
            await waiting
        assert await is_there(client)


async def test_compacted_while_cut_off(client: Client, server: EtcdServer) -> None:
    """It is looked for again: it goes on waiting as long as the same one holds it."""
    async with FaultProxy(server.endpoint) as proxy, Client(proxy.endpoint) as cut_off:
        await client.barrier(KEY).hold()
        waiting = asyncio.create_task(cut_off.barrier(KEY).wait())
        await watches_created(cut_off, 1)
        proxy.refuse()
        proxy.cut()
        for _ in range(3):
            await compact(client)
        before = (await client.kv.get("k")).header.revision
        await proxy.accept()
        await watches_created(cut_off, 1, after=before)
        assert not waiting.done()
        await client.barrier(KEY).release()
        async with asyncio.timeout(10):
            await waiting


async def test_too_late(client: Client) -> None:
    """The error says for how long, and who holds it."""
    await client.barrier(KEY).hold(value="host-7")
    async with lateness() as late:
        began = asyncio.get_running_loop().time()
        with pytest.raises(DeadlineExceededError, match=r"host-7.*within 1 s$") as caught:
            await client.barrier(KEY).wait(timeout=1)
        took = asyncio.get_running_loop().time() - began
    assert 1 <= took < 1.2 + late.seconds
    assert caught.value.timeout == 1
    assert caught.value.maybe_applied is False
    assert client.stats().watches == 0


@pytest.mark.own_logic("no server takes part")
async def test_nobody_can_be_asked() -> None:
    """Then that is the error, and not that it is held."""
    async with Client("127.0.0.1:1") as nobody:
        with pytest.raises(NoEndpointError):
            await nobody.barrier(KEY).wait(timeout=0.2)
        with pytest.raises(NoEndpointError) as caught:
            await nobody.barrier(KEY).hold(timeout=0.2)
        assert caught.value.maybe_applied is False


async def test_the_client_closes(client: Client, server: EtcdServer) -> None:
    """Who waits is told."""
    await client.barrier(KEY).hold()
    async with Client(server.endpoint) as other:
        waiting = asyncio.create_task(other.barrier(KEY).wait())
        await watches_created(other, 1)
        await other.aclose()
        with pytest.raises(ClientClosedError):
            await waiting


async def test_z1_cancelled_at_any_moment(client: Client, rng: random.Random) -> None:
    """Waiting ends, natively and by a scope, and leaves no watch."""
    await client.barrier(KEY).hold()
    for number in range(100):
        delay = rng.uniform(0, 0.005)
        if number % 2:
            with anyio.move_on_after(delay) as scope:
                await client.barrier(KEY).wait()
            assert scope.cancelled_caught
        else:
            task = asyncio.ensure_future(client.barrier(KEY).wait())
            await asyncio.sleep(delay)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
    # One that was cancelled while the server created it is cancelled there when that is told.
    await until(lambda: client.stats().watches == 0)


# Answers that are lost.


@pytest.mark.parametrize("value", ["", "host-7"])
async def test_k3_held_and_the_answer_lost(faulty: Faulty, value: str) -> None:
    """It is read whether this one holds it; without a value, anybody's key would look like it."""
    faulty.proxy.blackhole(client_to_server=False)
    holding = asyncio.create_task(faulty.client.barrier(KEY).hold(value=value))
    await lose_answer(faulty.proxy, lambda: is_there(faulty.oracle))
    if value:
        assert await holding is True
    else:
        with pytest.raises(EtcdError) as caught:
            await holding
        assert caught.value.maybe_applied is True
    await faulty.oracle.kv.delete("", prefix=True)


@pytest.mark.parametrize("meanwhile", ["released", "another's", "rewritten", "another's lease"])
async def test_k3_held_and_the_answer_lost_and_more(faulty: Faulty, meanwhile: str) -> None:
    """Where it cannot be known, the error says that it may be held."""
    faulty.proxy.blackhole(client_to_server=False)
    holding = asyncio.create_task(faulty.client.barrier(KEY).hold(value="host-7"))
    await until_answer_lost(faulty.proxy, lambda: is_there(faulty.oracle))
    oracle = faulty.oracle.barrier(KEY)
    lease = await faulty.oracle.lease.grant(60)
    if meanwhile == "rewritten":
        await faulty.oracle.kv.put(KEY, "host-7")
    else:
        await oracle.release()
    if meanwhile == "another's":
        await oracle.hold(value="host-8")
    elif meanwhile == "another's lease":
        await oracle.hold(value="host-7", lease=lease)
    await faulty.proxy.heal()
    with pytest.raises(EtcdError) as caught:
        await holding
    assert caught.value.maybe_applied is True
    await faulty.oracle.lease.revoke(lease)
    await faulty.oracle.kv.delete("", prefix=True)


async def test_k3_not_held(faulty: Faulty) -> None:
    """What never arrived is not said to be held."""
    faulty.proxy.blackhole(server_to_client=False)
    holding = asyncio.create_task(faulty.client.barrier(KEY).hold())
    await until_request_lost(faulty.proxy)
    await faulty.proxy.heal()
    with pytest.raises(EtcdError) as caught:
        await holding
    assert caught.value.maybe_applied is True
    assert not await is_there(faulty.oracle)


async def test_k4_released_late(faulty: Faulty) -> None:
    """What was held after it was called is not released by it."""
    oracle, late = faulty.oracle.barrier(KEY), faulty.client.barrier(KEY)
    await oracle.hold(value="first")
    read = faulty.client.kv.get

    async def get_and_lose(*args: Any, **options: Any) -> Any:
        found = await read(*args, **options)
        await oracle.release()
        await oracle.hold(value="second")
        return found

    faulty.client.kv.get = get_and_lose  # type: ignore[method-assign]
    await late.release()
    held = await there(faulty.oracle)
    assert held is not None
    assert held.text == "second"
    await faulty.oracle.kv.delete("", prefix=True)


async def test_k3_released_and_the_answer_lost(faulty: Faulty) -> None:
    """It is released once, and known to be."""
    await faulty.oracle.barrier(KEY).hold()
    for size in range(0, 120, 12):
        faulty.proxy.cut_after(size)
        await faulty.client.barrier(KEY).release()
        assert not await is_there(faulty.oracle)
        await faulty.proxy.heal()
        await faulty.oracle.barrier(KEY).hold()
    assert faulty.proxy.cuts > 3
    await faulty.oracle.kv.delete("", prefix=True)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"key": ""}, ValueError, "key must not be empty"),
        ({"key": 7}, TypeError, "key must be"),
    ],
)
def test_what_is_wrong(arguments: dict[str, Any], error: type[Exception], match: str) -> None:
    """It is told before anything is sent."""
    client = Client("127.0.0.1:1")
    with pytest.raises(error, match=match):
        client.barrier(**arguments)
    assert isinstance(client.barrier(KEY), Barrier)


async def test_what_is_wrong_later() -> None:
    """So is what comes with the calls."""
    barrier = Client("127.0.0.1:1").barrier(KEY)
    wrong: Any = 7
    with pytest.raises(TypeError, match="value must be"):
        await barrier.hold(value=wrong)
    with pytest.raises(ValueError, match="lease must not be 0"):
        await barrier.hold(lease=0)
    with pytest.raises(ValueError, match="timeout must be above 0"):
        await barrier.wait(timeout=0)
    assert repr(barrier) == "<Barrier b'/barriers/migration'>"
