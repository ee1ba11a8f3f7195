"""Queues: each item is given once, in order, and none is lost in silence."""

from __future__ import annotations

import asyncio
import itertools
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from time import monotonic
from typing import Any

import anyio
import pytest

from aioetcd import (
    Client,
    ClientClosedError,
    DeadlineExceededError,
    NoEndpointError,
    PriorityQueue,
    Queue,
)
from aioetcd.testing import EtcdServer, FaultProxy
from tests.concurrency.locks import watches_created
from tests.concurrency.test_barrier import compact
from tests.programs import PREAMBLE
from tests.waiting import lateness

NAME = "/queues/mails"

Make = Callable[[Client], Queue]


def fifo(client: Client) -> Queue:
    """A plain queue."""
    return client.queue(NAME)


def urgent(client: Client) -> Queue:
    """A queue with priorities, all of which are alike where nobody says so."""
    return client.priority_queue(NAME)


either = pytest.mark.parametrize("make", [fifo, urgent])


async def put_all(queue: Queue, values: range) -> None:
    """Put numbers, one after the other."""
    for value in values:
        await queue.put(str(value))


async def rest(queue: Queue) -> list[int]:
    """Take what is there."""
    values = []
    while (value := await queue.poll()) is not None:
        values.append(int(value))
    return values


async def has(client: Client, size: int) -> bool:
    """Whether so many items are there."""
    return await fifo(client).size() == size


async def left(client: Client) -> list[bytes]:
    """The keys that are left, and the leases."""
    keys = (await client.kv.get("", prefix=True, keys_only=True)).kvs
    leases = (await client.lease.leases()).ids
    return [kv.key for kv in keys] + [b"lease"] * len(leases)


# What they promise.


@either
async def test_first_in_first_out(client: Client, make: Make) -> None:
    """Over several pages, in the order of putting; nothing is left but the receipt."""
    queue = make(client)
    assert await queue.poll() is None
    await put_all(queue, range(100))
    assert await queue.size() == 100
    assert [int(await queue.get()) for _ in range(50)] == [*range(50)]
    await put_all(make(client), range(100, 110))
    assert await rest(queue) == [*range(50, 110)]
    assert await queue.size() == 0
    assert await left(client) == [NAME.encode() + b"/receipt"]


@either
async def test_values(client: Client, make: Make) -> None:
    """Any bytes, empty ones too, come out as they went in."""
    queue = make(client)
    values = [b"", b"\0\xff", "é".encode(), bytes(100_000)]
    for value in values:
        await queue.put(value)
    assert [await queue.get() for _ in values] == values


@either
async def test_getting_waits(client: Client, make: Make) -> None:
    """Until something is put; then the tasks of one object are served in the order of coming."""
    queue = make(client)
    tasks = [asyncio.create_task(queue.get()) for _ in range(5)]
    await watches_created(client, 1)
    await put_all(make(client), range(5))
    async with asyncio.timeout(10):
        assert [int(each) for each in await asyncio.gather(*tasks)] == [*range(5)]
    assert client.stats().watches == 0


@either
@pytest.mark.fault("many tasks")
async def test_each_is_given_once(
    client: Client, server: EtcdServer, rng: random.Random, make: Make
) -> None:
    """Producers and consumers at random, on several clients and objects: each item once.

    Each consumer sees each producer's items in their order.
    """
    producers, each, stop = 5, 60, b"stop"
    seen: list[list[tuple[int, int]]] = []

    async def produce(queue: Queue, producer: int) -> None:
        for number in range(each):
            await queue.put(f"{producer} {number}")
            if rng.random() < 0.1:
                await anyio.sleep(rng.uniform(0, 0.01))

    async def consume(queue: Queue) -> None:
        own: list[tuple[int, int]] = []
        seen.append(own)
        while (value := await queue.get()) != stop:
            producer, number = map(int, value.split())
            own.append((producer, number))
            if rng.random() < 0.1:
                await anyio.sleep(rng.uniform(0, 0.01))

    async with Client(server.endpoint) as other:
        shared = make(client)
        async with asyncio.TaskGroup() as consumers:
            for queue in (shared, shared, shared, make(client), make(other), make(other)):
                consumers.create_task(consume(queue))
            async with asyncio.TaskGroup() as tasks:
                for producer in range(producers):
                    tasks.create_task(produce(make(client), producer))
            for _ in range(6):
                await shared.put(stop)
    assert sorted(itertools.chain(*seen)) == [
        (producer, number) for producer in range(producers) for number in range(each)
    ]
    for own in seen:
        for producer in range(producers):
            numbers = [number for of, number in own if of == producer]
            assert numbers == sorted(numbers)
    assert sum(bool(own) for own in seen) >= 2
    assert await left(client) == [NAME.encode() + b"/receipt"]


@pytest.mark.parametrize("delay", [0.0, 0.05])
async def test_one_page_for_all_tasks(server: EtcdServer, client: Client, delay: float) -> None:
    """Those who get from one object claim different items, at one request each.

    What they claim just now hides nothing from the others, and is not waited for.
    """
    await put_all(fifo(client), range(150))
    async with FaultProxy(server.endpoint) as proxy, Client(proxy.endpoint) as own:
        await own.ping()
        proxy.delay(delay)
        queue = fifo(own)
        before = own.stats().calls
        async with asyncio.timeout(10):
            values = await asyncio.gather(*(queue.get() for _ in range(150)))
        assert sorted(int(value) for value in values) == [*range(150)]
        assert own.stats().calls - before <= 150 + 5  # pages
        assert own.stats().watches == 0


async def test_what_another_has_taken(client: Client) -> None:
    """A page that is out of date costs requests, and nothing else."""
    first, second = client.queue(NAME), client.queue(NAME)
    await put_all(first, range(40))
    assert int(await first.get()) == 0
    assert [int(await second.get()) for _ in range(39)] == [*range(1, 40)]
    await second.put("40")
    assert int(await first.get()) == 40
    await put_all(second, range(5))
    assert int(await first.get()) == 0
    assert await rest(second) == [*range(1, 5)]
    async with asyncio.timeout(10):
        with pytest.raises(DeadlineExceededError):
            await first.get(timeout=0.3)


# Priorities.


async def test_the_most_urgent_first(client: Client, rng: random.Random) -> None:
    """By priority, and of one priority by the time of putting; some priorities fill many pages."""
    queue = client.priority_queue(NAME)
    items = [(rng.choice([0, 3, 3, 3, 10, 99_999]), number) for number in range(200)]
    for priority, number in items:
        await queue.put(str(number), priority=priority)
    assert await rest(queue) == [number for _, number in sorted(items)]


async def test_nobody_is_overtaken(client: Client) -> None:
    """What is more urgent than what was read is given first, also to who has read before."""
    queue = client.priority_queue(NAME)
    for number in range(10):
        await queue.put(str(number), priority=5)
    assert int(await queue.get()) == 0
    await client.priority_queue(NAME).put("17", priority=4)
    await client.priority_queue(NAME).put("18", priority=4)
    await client.priority_queue(NAME).put("19", priority=6)
    before = client.stats().calls
    assert await queue.get() == b"17"
    assert client.stats().calls - before == 3  # it is refused once, and reads again
    assert await rest(queue) == [18, *range(1, 10), 19]


async def test_several_come_while_it_waits(client: Client) -> None:
    """The most urgent of them is given, and each that was waited for."""
    queue = client.priority_queue(NAME)
    tasks = [asyncio.create_task(queue.get()) for _ in range(4)]
    await watches_created(client, 1)
    keys = {f"{NAME}/items/{priority:05}/{priority}": str(priority) for priority in (9, 2, 5, 1)}
    await client.kv.put_many(keys)  # at one revision
    async with asyncio.timeout(10):
        assert [int(value) for value in await asyncio.gather(*tasks)] == [1, 2, 5, 9]


async def test_tasks_that_wait_are_served_by_priority(client: Client) -> None:
    """Tasks of one object waste no request on one another's items."""
    queue = client.priority_queue(NAME)
    for number in range(20):
        await queue.put(str(number), priority=number % 4)
    before = client.stats().calls
    values = [int(value) for value in await asyncio.gather(*(queue.get() for _ in range(20)))]
    assert values == sorted(range(20), key=lambda number: (number % 4, number))
    assert client.stats().calls - before == 20 + 1


# Giving up.


@either
async def test_polling_beside_who_waits(client: Client, make: Make) -> None:
    """Who does not wait for an item does not wait behind those who do."""
    queue = make(client)
    getting = [asyncio.create_task(queue.get()) for _ in range(2)]
    await watches_created(client, 1)
    async with asyncio.timeout(10):  # those who wait do so for longer
        assert await queue.poll() is None
        assert await asyncio.gather(*(queue.poll() for _ in range(3))) == [None] * 3
    await put_all(queue, range(4))
    async with asyncio.timeout(10):
        polled = [await queue.poll() for _ in range(2)]
        assert {*polled, *await asyncio.gather(*getting)} == {b"0", b"1", b"2", b"3"}


async def test_the_time_is_over_as_one_comes(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not taken, and stays the first."""
    queue = client.queue(NAME)
    await put_all(queue, range(2))
    find = queue._next

    async def find_late(*, waits: bool) -> Any:
        seen = await find(waits=waits)
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.1)
        return seen

    monkeypatch.setattr(queue, "_next", find_late)
    with pytest.raises(DeadlineExceededError) as caught:
        await queue.get(timeout=0.05)
    assert caught.value.maybe_applied is False
    monkeypatch.undo()
    assert await rest(queue) == [0, 1]


@either
async def test_nothing_in_time(client: Client, make: Make) -> None:
    """It gives up in time, and leaves nothing; the second one in a row too."""
    queue = make(client)

    async def give_up() -> None:
        async with lateness() as late:
            began = monotonic()
            with pytest.raises(DeadlineExceededError, match=r"nothing.*within 0\.2 s") as caught:
                await queue.get(timeout=0.2)
            took = monotonic() - began
        assert 0.2 <= took < 0.4 + late.seconds
        assert caught.value.maybe_applied is False

    await asyncio.gather(give_up(), give_up())
    assert client.stats().watches == 0
    await queue.put("7")
    assert await queue.get(timeout=5) == b"7"


@pytest.mark.own_logic("no server takes part")
async def test_nobody_can_be_asked() -> None:
    """That is the error then, and not that there is nothing."""
    async with Client("127.0.0.1:1") as nobody:
        for wait in (
            nobody.queue(NAME).get(timeout=0.2),
            nobody.queue(NAME).poll(timeout=0.2),
            nobody.queue(NAME).put("v", timeout=0.2),
            nobody.queue(NAME).size(timeout=0.2),
        ):
            with pytest.raises(NoEndpointError):
                await wait


@either
async def test_the_client_closes(client: Client, server: EtcdServer, make: Make) -> None:
    """Who waits is told, and so is who comes after, though it has read a page before."""
    async with Client(server.endpoint) as other:
        queue = make(other)
        waiting = [asyncio.create_task(queue.get()) for _ in range(3)]
        await watches_created(other, 1)
        await other.aclose()
        for task in waiting:
            with pytest.raises(ClientClosedError):
                await task
    await put_all(make(client), range(3))
    async with Client(server.endpoint) as other:
        queue = make(other)
        assert await queue.get() == b"0"
    with pytest.raises(ClientClosedError):
        await queue.get()
    assert await rest(make(client)) == [1, 2]


@either
async def test_compacted_while_cut_off(client: Client, server: EtcdServer, make: Make) -> None:
    """Who waits looks again."""
    async with FaultProxy(server.endpoint) as proxy, Client(proxy.endpoint) as cut_off:
        waiting = asyncio.create_task(make(cut_off).get())
        await watches_created(cut_off, 1)
        proxy.refuse()
        proxy.cut()
        await make(client).put("7")
        await compact(client)
        await proxy.accept()
        async with asyncio.timeout(10):
            assert await waiting == b"7"


@pytest.mark.fault("Z1")
@pytest.mark.parametrize("native", [True, False])
@either
async def test_z1_cancelled_at_any_moment(
    client: Client, server: EtcdServer, rng: random.Random, make: Make, native: bool
) -> None:
    """300 are cancelled at random moments: each item is given once, and nothing is left."""
    given: list[int] = []
    outcomes: Counter[str] = Counter()
    took = 0.003  # as it is just now

    async def one(queue: Queue) -> None:
        nonlocal took
        outcome = "cancelled"
        try:
            given.append(int(await queue.get()))
            outcome = "given"
        finally:
            outcomes[outcome] += 1
            took *= 0.9 if outcome == "given" else 1.1

    async def cancel(queue: Queue) -> None:
        for _ in range(50):
            delay = took * rng.uniform(0, 2)
            if native:
                task = asyncio.ensure_future(one(queue))
                await asyncio.sleep(delay)
                task.cancel()
                await asyncio.wait([task])
                assert task.cancelled() or task.exception() is None
            else:
                with anyio.move_on_after(delay):
                    await one(queue)

    await put_all(make(client), range(250))
    async with Client(server.endpoint) as own:
        shared = make(own)
        await asyncio.gather(
            *(cancel(queue) for queue in (shared, shared, shared, make(own), make(own), make(own)))
        )
        # What was put back is there when the client is closed.
    assert outcomes.total() == 300
    assert min(outcomes["cancelled"], outcomes["given"]) > 20
    assert sorted(given + await rest(make(client))) == [*range(250)]
    assert await left(client) == [NAME.encode() + b"/receipt"]


@pytest.mark.fault("Z1: fifty clients are closed")
async def test_z1_closed_at_any_moment(
    client: Client, server: EtcdServer, rng: random.Random
) -> None:
    """Whoever is cancelled, and its client closed at once, beside others who go on taking."""
    given: list[int] = []
    await put_all(fifo(client), range(400))
    done = False

    async def take(queue: Queue) -> None:
        while True:
            given.append(int(await queue.get()))

    async def take_slowly(queue: Queue) -> None:
        while not done:
            if (value := await queue.poll()) is not None:
                given.append(int(value))
            await anyio.sleep(0.002)  # or there would be nothing left for the others

    async def one() -> None:
        async with Client(server.endpoint) as own:
            await own.ping()
            queue = fifo(own)
            tasks = [asyncio.create_task(take(queue)) for _ in range(2)]
            await asyncio.sleep(rng.uniform(0, 0.02))
            for task in tasks:
                task.cancel()
            if rng.random() < 0.5:
                await asyncio.wait(tasks)
        await asyncio.wait(tasks)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(take_slowly(fifo(client)))
        for _ in range(50):
            await one()
        done = True
    assert len(given) > 50
    assert sorted(given + await rest(fifo(client))) == [*range(400)]
    assert await left(client) == [NAME.encode() + b"/receipt"]


CONSUMER = """
async def main():
    async with Client(ENDPOINT) as client:
        queue = client.queue(ARGUMENTS[0])
        while True:
            say(int(await queue.get()))

run(main())
"""


@pytest.mark.fault("a process that is killed")
@pytest.mark.outside("another process")
async def test_a_consumer_is_killed(client: Client, server: EtcdServer) -> None:
    """With kill -9: at the most what it was about to take is gone; nothing is given twice."""
    await put_all(fifo(client), range(300))
    program = [sys.executable, "-c", PREAMBLE + CONSUMER, server.endpoint, "asyncio", NAME]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            given = [int(await asyncio.to_thread(process.stdout.readline)) for _ in range(20)]
        finally:
            process.kill()
        given += [int(line) for line in process.stdout]
    given += await rest(fifo(client))
    missing = set(range(300)) - set(given)
    assert len(given) == 300 - len(missing)
    assert len(missing) <= 1
    assert given == sorted(given)


# What is wrong.


@pytest.mark.parametrize("kind", ["queue", "priority_queue"])
def test_what_is_wrong(kind: str) -> None:
    """It is told before anything is sent."""
    client = Client("127.0.0.1:1")
    wrong: Any = 7
    with pytest.raises(ValueError, match="must not be empty"):
        getattr(client, kind)("")
    with pytest.raises(TypeError, match="must be"):
        getattr(client, kind)(wrong)
    queue = getattr(client, kind)(NAME)
    assert isinstance(queue, PriorityQueue if kind == "priority_queue" else Queue)
    assert NAME in repr(queue)


async def test_what_is_wrong_later() -> None:
    """So is what comes with the calls."""
    queue = Client("127.0.0.1:1").priority_queue(NAME)
    wrong: Any = 7
    with pytest.raises(TypeError, match="value must be"):
        await queue.put(wrong)
    for priority in (-1, 100_000):
        with pytest.raises(ValueError, match="priority must be"):
            await queue.put("v", priority=priority)
    with pytest.raises(ValueError, match="timeout must be above 0"):
        await queue.get(timeout=0)
