"""The counter: each addition is made exactly once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter as Tally
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aioetcd import Client, Counter, DeadlineExceededError, EtcdError
from aioetcd.testing import EtcdCluster, EtcdServer, FaultProxy
from tests.harness import writes_through


async def test_it_counts(client: Client) -> None:
    """The key holds the number for everybody, and the receipt is beside it."""
    counter = client.counter("/visits")
    assert repr(counter) == "<Counter b'/visits'>"
    assert await counter.value() == 0
    assert [await counter.add(n) for n in (1, 10, -20, 0)] == [1, 11, -9, -9]
    assert await counter.value() == -9
    found = await client.kv.get("", prefix=True)
    assert [kv.key for kv in found.kvs] == [b"/visits", b"/visits/receipt"]
    assert found.as_dict()[b"/visits"] == b"-9"
    await client.kv.put("/visits", "100")
    assert await counter.add() == 101
    await client.kv.delete("/visits", prefix=True)
    assert await counter.add(2**62) == 2**62


@pytest.mark.parametrize("value", ["", "x", "1.5", " 1", "1_0", "٣", "+1", "1" * 2000])
async def test_what_is_no_number(client: Client, value: str) -> None:
    """It is an error, and stays as it is."""
    put = await client.kv.put("k", value)
    counter = client.counter("k")
    for use in (counter.add, counter.value):
        with pytest.raises(ValueError, match=r"^the key b'k' holds .*, which is no number$"):
            await use()
    found = await client.kv.get("", prefix=True)
    assert found.header.revision == put.header.revision


async def test_wrong_arguments(client: Client) -> None:
    """They are refused before anything is sent."""
    wrong: Any = 1.5
    before = client.stats().calls
    with pytest.raises(ValueError, match=r"^key must not be empty"):
        client.counter("")
    for n in (wrong, True):
        with pytest.raises(TypeError, match=r"^n must be an int"):
            await client.counter("k").add(n)
    assert client.stats().calls == before


async def test_what_it_costs(client: Client) -> None:
    """Tasks of one counter take turns, and none has to begin anew."""
    counter = client.counter("k")
    await counter.add()
    before = client.stats().calls
    values = await asyncio.gather(*(counter.add() for _ in range(20)))
    assert values == [*range(2, 22)]
    assert client.stats().calls - before == 20 * 3


async def test_waiting_for_others_has_an_end(client: Client, server: EtcdServer) -> None:
    """Who waits for another task of the same counter has a deadline of its own."""
    async with FaultProxy(server.endpoint) as proxy, Client(proxy.endpoint) as through:
        counter = through.counter("k")
        await counter.add()
        proxy.hang()
        first = asyncio.ensure_future(counter.add(timeout=None))
        await asyncio.sleep(0)
        with pytest.raises(DeadlineExceededError, match="other tasks used the counter") as caught:
            await counter.add(timeout=0.1)
        assert caught.value.maybe_applied is False
        await proxy.heal()
        proxy.cut()
        assert await first == 2
        assert await counter.add() == 3


async def test_cancelled_ones_are_not_in_the_way(client: Client, rng: random.Random) -> None:
    """Whoever is cancelled, waiting or not, leaves the counter to the others."""
    counter = client.counter("k")
    tasks = [asyncio.ensure_future(counter.add()) for _ in range(30)]
    for _ in range(10):
        await asyncio.sleep(0.002)
        rng.choice(tasks).cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    values = [each for each in done if isinstance(each, int)]
    assert values == sorted({*values})
    assert 20 <= len(values) <= await counter.value() <= 30


async def test_counters_of_many_clients(client: Client, server: EtcdServer) -> None:
    """None of their additions is lost, and each gets a number of its own."""
    async with Client(server.endpoint) as other:
        counters = [each.counter("k") for each in (client, other) for _ in range(2)]
        values = await asyncio.gather(
            *(counter.add(timeout=30) for counter in counters for _ in range(10))
        )
    assert sorted(values) == [*range(1, 41)]


class Adding:
    """Three tasks that add to one key, each by a counter of its own, until enough has happened.

    Attributes:
        tally: What became of the additions.
    """

    def __init__(self, client: Client, *, timeout: float) -> None:
        self.tally: Tally[str] = Tally()
        self._counters = [client.counter("k") for _ in range(3)]
        self._timeout = timeout
        self._is_over = False

    async def _add(self, counter: Counter) -> None:
        while not self._is_over:
            try:
                await counter.add(timeout=self._timeout)
            except EtcdError as error:
                self.tally["unknown" if error.maybe_applied else "failed"] += 1
            else:
                self.tally["ok"] += 1

    async def over(self, faults: int, fault: Callable[[], Awaitable[None]]) -> int:
        """Add over so many faults, and until some are made; give the number in the end."""
        adding = asyncio.gather(*map(self._add, self._counters))
        while faults > 0 or self.tally["ok"] < 50:
            await fault()
            faults -= 1
        self._is_over = True
        await adding
        print(dict(self.tally))  # noqa: T201
        return await self._counters[0].value()


@pytest.mark.fault("K5")
async def test_k5_answers_are_lost(client: Client, server: EtcdServer, rng: random.Random) -> None:
    """Wherever it is cut, and whatever is swallowed: each addition is made, and once."""
    async with FaultProxy(server.endpoint) as proxy, Client(proxy.endpoint) as through:

        async def fault() -> None:
            match rng.randrange(3):
                case 0:
                    proxy.cut_after(rng.randint(1, 500))
                case 1:
                    proxy.cut()
                case _:
                    proxy.blackhole(client_to_server=rng.random() < 0.5)
                    await asyncio.sleep(rng.uniform(0, 0.05))
                    await proxy.heal()
            # Now and then it is left in peace for as long as a slow machine needs to get anywhere.
            await asyncio.sleep(rng.uniform(0, 0.1) if rng.random() < 0.9 else 0.5)

        adding = Adding(through, timeout=20)
        value = await adding.over(50, fault)
        assert proxy.cuts > 10
    assert {**adding.tally} == {"ok": value}


@pytest.mark.fault("K5")
async def test_k5_a_server_is_killed(own_server: EtcdServer, rng: random.Random) -> None:
    """Requests are stopped at any point, by SIGSTOP and `kill -9`: each is made once (K2)."""

    async def fault() -> None:
        await asyncio.sleep(rng.uniform(0.05, 0.3))
        if writes_through(own_server):
            await own_server.pause()
            await asyncio.sleep(rng.uniform(0, 0.02))
            await own_server.kill()
        else:
            await own_server.stop()
        await own_server.start()

    async with Client(own_server.endpoint) as client:
        adding = Adding(client, timeout=30)
        value = await adding.over(8, fault)
        assert {**adding.tally} == {"ok": value}


@pytest.mark.fault("K5")
async def test_k5_a_leader_is_paused(rng: random.Random) -> None:
    """What a leader does late is not done twice, nor is it denied (K4)."""
    async with EtcdCluster(3) as cluster, Client(cluster.endpoints) as client:

        async def fault() -> None:
            leader = await cluster.leader()
            await asyncio.sleep(rng.uniform(0.05, 0.3))
            await leader.pause()
            await asyncio.sleep(rng.uniform(1.5, 3))
            await leader.resume()

        adding = Adding(client, timeout=6)
        value = await adding.over(3, fault)
        assert adding.tally["ok"] <= value <= adding.tally["ok"] + adding.tally["unknown"]
