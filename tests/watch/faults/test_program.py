"""Watches in a program with errors of its own (P1, P4, P5)."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import threading
import time
import urllib.request

import pytest

from aioetcd import Client, ClientClosedError
from aioetcd.testing import EtcdServer, FaultProxy
from aioetcd.watch import Watch, _state
from tests.waiting import until, until_metric
from tests.watch.faults.scenes import KEEPALIVE, enter, put
from tests.watch.following import (
    WATCHERS,
    Traffic,
    following,
    revisions,
    take,
    takes_at_most,
)


@pytest.mark.alone("P1: blocks the event loop")
@pytest.mark.outside("HTTP")
async def test_p1_a_blocked_loop(direct: Client, server: EtcdServer) -> None:
    """A program that blocks its event loop for long loses neither the watch nor an event."""
    told: list[int] = []

    def write_from_outside() -> None:
        key = base64.b64encode(b"p1").decode()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for _ in range(20):
            request = json.dumps({"key": key, "value": key}).encode()
            with opener.open(f"{server.client_url}/v3/kv/put", request, timeout=5) as answer:
                told.append(int(json.load(answer)["header"]["revision"]))

    async with Client(server.endpoint, **KEEPALIVE) as client, client.watch("p1") as watch:
        writer = threading.Thread(target=write_from_outside)
        writer.start()
        time.sleep(7)  # noqa: ASYNC251 - longer than all of the keepalive together
        writer.join()
        assert revisions(await take(watch, 20)) == told
        last = await put(direct, "p1", "last")
        assert revisions(await take(watch, 1)) == [last]
        assert client.stats().reconnects == 0


FAULTS = [
    "nothing",
    "refused",
    "hanging",
    "answers swallowed",
    "requests swallowed",
    "held in a fragment",
    "paused",
    "killed",
]


@pytest.mark.parametrize("fault", FAULTS)
async def test_p4_closing_the_client_in_a_fault(own_server: EtcdServer, fault: str) -> None:
    """Closing takes no longer than two seconds, and ends every loop with the reason."""
    async with FaultProxy(own_server.endpoint) as proxy:
        client = Client(proxy.endpoint)
        async with following() as followed, Client(own_server.endpoint) as direct:
            value = "v" * 1_000_000
            last = 0
            for number in range(4):
                last = await put(direct, f"p4/{number}", value)
            await followed.add_all_kinds(client, "p4/")
            full = client.watch("p4/", prefix=True, start_revision=1)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(_state, "INBOX_BYTES", 1)
                await full.__aenter__()
                await until(lambda: bool(full._state.inbox))
                await put(direct, "p4/0", "x")
                await until(lambda: client.stats().paused_watches == 1)
            match fault:
                case "refused":
                    proxy.refuse()
                    proxy.cut()
                    await until(lambda: client.stats().reconnects == 1)
                case "hanging":
                    connections = proxy.connections_total
                    proxy.hang()
                    assert proxy.cut() > 0
                    await until(lambda: proxy.connections_total > connections)
                case "answers swallowed":
                    proxy.blackhole(client_to_server=False)
                case "requests swallowed":
                    proxy.blackhole(server_to_client=False)
                case "held in a fragment":
                    held = proxy.hold_after(1_500_000)
                    follower = await followed.add(
                        client, "p4/", name="held", prefix=True, start_revision=1, fragment=True
                    )
                    await held.wait()
                    assert follower.revision < last, "nothing is held"
                case "paused":
                    await own_server.pause()
                case "killed":
                    await own_server.kill()
            coming = asyncio.create_task(enter(client.watch("p4/coming", timeout=None)))
            calling = asyncio.create_task(put(client, "p4/call", "x"))
            await asyncio.sleep(0)
            if "swallowed" in fault:
                await until(lambda: proxy.bytes_swallowed > 0)
            assert own_server.is_paused == (fault == "paused")
            assert own_server.is_running == (fault != "killed")
            with takes_at_most(2):
                await client.aclose()
                for follower in followed.followers:
                    await until(lambda: follower.has_ended)  # noqa: B023
                    assert isinstance(follower.error, ClientClosedError)
                for task in (coming, calling):
                    with pytest.raises(ClientClosedError):
                        await task
            with pytest.raises(ClientClosedError):
                await take(full, 1)
            assert client.stats().watches == 0
            if own_server.is_paused:
                await own_server.resume()
            await proxy.heal()


async def test_p5_an_error_in_a_consumer(
    client: Client, direct: Client, server: EtcdServer
) -> None:
    """A consumer's own error ends its watch, leaves as itself, and disturbs no other watch."""
    async with following() as followed:
        await followed.add_all_kinds(client, "p5/")

        async def fail(watch: Watch) -> None:
            async for event in watch:
                raise ZeroDivisionError(event.kv.key)

        async def fail_in_a_block() -> None:
            async with client.watch("p5/1") as watch:
                await fail(watch)

        bare = asyncio.create_task(fail(client.watch("p5/1")))
        block = asyncio.create_task(fail_in_a_block())
        await until_metric(server, WATCHERS, 7)
        traffic = Traffic(direct, followed.recorder, "p5/", random.Random(5))
        start = await put(direct, "p5/1", "x") + 1
        for task in (bare, block):
            with pytest.raises(ZeroDivisionError, match="p5/1"):
                await task
        await until_metric(server, WATCHERS, 5)
        last = await traffic.last_word()
        await followed.wait_for(last)
        await followed.check(store=direct, start_revision=start - 1, through=last)
        assert client.stats().reconnects == 0
