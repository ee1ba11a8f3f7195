"""Queues through faults: who has an item is known where it can be, and told where it cannot."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from time import monotonic

import anyio
import pytest

from aioetcd import (
    Client,
    DeadlineExceededError,
    EtcdError,
    KeyValue,
    NoEndpointError,
    NoSpaceError,
    PermissionDeniedError,
    PermissionType,
    Queue,
    QueueError,
)
from aioetcd.concurrency._claim import Return
from aioetcd.concurrency._parts import new_id
from aioetcd.testing import EtcdServer, FaultProxy
from tests.concurrency.test_barrier import compact
from tests.concurrency.test_queue import NAME, either, fifo, left, put_all, rest, urgent
from tests.concurrency.test_queue import Make as Make  # noqa: PLC0414
from tests.harness import Faulty, faulty_client, until_answer_lost, until_request_lost
from tests.programs import run_program
from tests.waiting import lateness, until


@pytest.fixture
async def torn(faulty: Faulty) -> AsyncIterator[Faulty]:
    """A client whose connection is about to break; what is left of the queue is swept up."""
    yield faulty
    await faulty.proxy.heal()
    await faulty.oracle.kv.delete(NAME + "/", prefix=True)


async def begin(faulty: Faulty, make: Make, number: int = 10) -> Queue:
    """Put items, and give the queue of the client that is about to be cut off; it has a page."""
    await put_all(make(faulty.oracle), range(number))
    queue = make(faulty.client)
    assert await queue.get() == b"0"
    return queue


async def until_taken(faulty: Faulty, size: int) -> None:
    """Wait until an item was taken, and the answer is lost."""

    async def is_taken() -> bool:
        return await fifo(faulty.oracle).size() == size

    await until_answer_lost(faulty.proxy, is_taken)


@either
@pytest.mark.parametrize("others", [0, 1, 5])
async def test_k3_taken_and_the_answer_lost(torn: Faulty, make: Make, others: int) -> None:
    """It is given all the same, also where others have taken items since then."""
    queue = await begin(torn, make)
    torn.proxy.blackhole(client_to_server=False)
    getting = asyncio.create_task(queue.get())
    await until_taken(torn, 8)
    assert [int(await make(torn.oracle).get()) for _ in range(others)] == [*range(2, 2 + others)]
    await torn.proxy.heal()
    async with asyncio.timeout(10):
        assert await getting == b"1"
    assert await rest(queue) == [*range(2 + others, 10)]


@either
@pytest.mark.parametrize("others", [1, 5])
async def test_k3_taken_by_others(torn: Faulty, make: Make, others: int) -> None:
    """A claim that never arrived takes nothing, and what others have taken is not given."""
    queue = await begin(torn, make)
    torn.proxy.blackhole(server_to_client=False)
    getting = asyncio.create_task(queue.get())
    await until_request_lost(torn.proxy)
    assert [int(await make(torn.oracle).get()) for _ in range(others)] == [*range(1, 1 + others)]
    await torn.proxy.heal()
    async with asyncio.timeout(10):
        assert int(await getting) == 1 + others
    assert await rest(queue) == [*range(2 + others, 10)]


@either
async def test_k3_never_arrived(torn: Faulty, make: Make) -> None:
    """The same item is claimed again."""
    queue = await begin(torn, make)
    torn.proxy.blackhole(server_to_client=False)
    getting = asyncio.create_task(queue.get())
    await until_request_lost(torn.proxy)
    await torn.proxy.heal()
    async with asyncio.timeout(10):
        assert await getting == b"1"
    assert await rest(queue) == [*range(2, 10)]


async def test_k3_overtaken_meanwhile(torn: Faulty) -> None:
    """What may be under way is seen to its end, though something more urgent has come."""
    queue = await begin(torn, urgent)
    await rest(queue)
    late = torn.client.priority_queue(NAME)
    for number in range(2):
        await late.put(str(number), priority=5)
    assert await late.get() == b"0"
    torn.proxy.blackhole(server_to_client=False)
    getting = asyncio.create_task(late.get())
    await until_request_lost(torn.proxy)
    await torn.oracle.priority_queue(NAME).put("7", priority=0)
    await torn.proxy.heal()
    async with asyncio.timeout(10):
        assert await getting == b"1"
        assert await late.get() == b"7"


@either
async def test_k3_others_wait_for_what_is_in_doubt(torn: Faulty, make: Make) -> None:
    """One that nobody waits for any more is in the way of those beside it, and then no more."""
    queue = await begin(torn, make, 2)
    torn.proxy.blackhole(client_to_server=False)
    getting = asyncio.create_task(queue.get())
    await until_taken(torn, 0)
    getting.cancel()
    others = [asyncio.create_task(queue.get()) for _ in range(2)]
    before = torn.client.stats().calls
    await make(torn.oracle).put("2")
    await torn.proxy.heal()
    async with asyncio.timeout(10):
        assert sorted(await asyncio.gather(*others)) == [b"1", b"2"]
    assert torn.client.stats().calls - before < 30


@pytest.mark.fault("K3: a claim that waits before it tries again")
async def test_k3_held_up(quick_server: EtcdServer) -> None:
    """Who waits for what is in doubt goes on when somebody else turns out to have taken it."""
    await quick_server.clear()
    async with faulty_client(quick_server) as faulty:
        transport = faulty.client._shared.transport
        oracle = faulty.oracle.priority_queue(NAME)
        for number in range(3):
            await oracle.put(str(number), priority=number)
        queue = faulty.client.priority_queue(NAME)
        assert await queue.get() == b"0"
        transport.timeout = 0.3  # while nobody answers: its tries end soon
        faulty.proxy.blackhole()
        with pytest.raises(DeadlineExceededError):
            await queue.get()
        await anyio.sleep(4)  # so that the pauses between its tries have grown
        transport.timeout = 10.0
        await faulty.proxy.heal()
        before = faulty.client.stats().calls
        async with asyncio.timeout(10):
            getting = asyncio.create_task(_persist(queue))
            await until(lambda: queue._is_held_up or getting.done())
            if getting.done():  # it was quick this time, and has put it back, or is about to
                assert await getting in (b"1", b"2")
            else:
                # The claim in doubt may be tried just now, and be the first.
                assert {await oracle.get(), await getting} == {b"1", b"2"}
        assert faulty.client.stats().calls - before < 30
        await faulty.oracle.kv.delete(NAME + "/", prefix=True)


async def _persist(queue: Queue) -> bytes:
    """Get one over any outage."""
    while True:
        try:
            return await queue.get()
        except EtcdError as error:
            assert not error.maybe_applied  # noqa: PT017


async def test_what_cannot_be_known(torn: Faulty) -> None:
    """Where the history is gone that says who has it, the error names the item."""
    queue = await begin(torn, fifo)
    page = (await torn.oracle.kv.get(f"{NAME}/items/", prefix=True)).kvs
    torn.proxy.blackhole(client_to_server=False)
    getting = asyncio.create_task(queue.get())
    await until_taken(torn, 8)
    assert await fifo(torn.oracle).get() == b"2"
    await compact(torn.oracle)
    await torn.proxy.heal()
    with pytest.raises(EtcdError, match=rf"{NAME}/items/\w+' may have been taken.*b'1'") as caught:
        await getting
    error = caught.value
    assert isinstance(error, QueueError)
    (item,) = [kv for kv in page if kv.value == b"1"]
    assert (error.maybe_applied, error.key, error.value) == (True, item.key, b"1")


async def test_what_cannot_be_known_and_nobody_waits_for(
    torn: Faulty, caplog: pytest.LogCaptureFixture
) -> None:
    """Then it is logged."""
    queue = await begin(torn, fifo)
    torn.proxy.blackhole(client_to_server=False)
    getting = asyncio.create_task(queue.get())
    await until_taken(torn, 8)
    getting.cancel()
    assert await fifo(torn.oracle).get() == b"2"
    await compact(torn.oracle)
    await torn.proxy.heal()
    await until(lambda: "its value was b'1'" in caplog.text)
    assert [r.levelno for r in caplog.records if "may have been taken" in r.message] == [
        logging.ERROR
    ]


@either
@pytest.mark.parametrize("how", ["cancelled", "timeout"])
async def test_taken_for_nobody(torn: Faulty, make: Make, how: str) -> None:
    """What is found to be taken when nobody waits any more is put back at the end, once."""
    queue = await begin(torn, make, 3)
    torn.proxy.blackhole(client_to_server=False)
    began = monotonic()
    getting = asyncio.create_task(queue.get(timeout=0.3 if how == "timeout" else None))
    async with lateness() as late:
        await until_taken(torn, 1)
        if how == "cancelled":
            getting.cancel()
            await asyncio.wait({getting})
            assert getting.cancelled()
        else:
            with pytest.raises(DeadlineExceededError, match="will be put back") as caught:
                await getting
            assert caught.value.maybe_applied is True
            assert 0.3 <= monotonic() - began < 1.4 + late.seconds
    await torn.proxy.heal()

    async def is_back() -> bool:
        return await fifo(torn.oracle).size() == 2

    await until(is_back)
    await until(torn.no_leases)
    assert await rest(make(torn.oracle)) == [2, 1]
    assert await left(torn.oracle) == [NAME.encode() + b"/receipt"]


async def test_k3_put_back_and_the_answer_lost(torn: Faulty) -> None:
    """It is put back once, though somebody else has taken it before that is known."""
    item, oracle = await taken(torn), fifo(torn.oracle)
    torn.proxy.delay(0.1)
    back = Return(torn.client._parts, item, new_id())
    returning = asyncio.create_task(back.run(10))

    async def is_back() -> bool:
        return await oracle.size() == 1

    await until(is_back)
    torn.proxy.blackhole(client_to_server=False)  # the answer is on its way
    await torn.proxy.wait_until(lambda proxy: proxy.bytes_swallowed > 0)
    assert await oracle.get() == b"7"
    await torn.proxy.heal()
    async with asyncio.timeout(10):
        await returning
    assert await oracle.size() == 0


async def test_put_back_again(torn: Faulty) -> None:
    """Nor is it when the supervisor begins anew, wherever it was."""
    item, oracle = await taken(torn), fifo(torn.oracle)
    back = Return(torn.client._parts, item, new_id())
    await back.run(10)
    assert await oracle.get() == b"7"
    await back.run(10)
    assert await oracle.size() == 0


async def taken(faulty: Faulty) -> KeyValue:
    """Give an item that was taken."""
    await fifo(faulty.oracle).put("7")
    (item,) = (await faulty.oracle.kv.get(f"{NAME}/items/", prefix=True)).kvs
    assert await fifo(faulty.oracle).get() == b"7"
    return item


async def test_k3_put_back_through_cuts(torn: Faulty, rng: random.Random) -> None:
    """However often that is cut off, it is put back once."""
    taken: list[int] = []
    await put_all(fifo(torn.oracle), range(20))
    queue = fifo(torn.client)
    for _ in range(40):
        getting = asyncio.create_task(queue.get())
        await asyncio.sleep(rng.uniform(0, 0.004))
        torn.proxy.cut_after(rng.randrange(200))
        getting.cancel()
        await asyncio.wait({getting})
        if not getting.cancelled():
            taken.append(int(getting.result()))
        if rng.random() < 0.3 and (value := await fifo(torn.oracle).poll()) is not None:
            taken.append(int(value))
        await anyio.sleep(rng.uniform(0, 0.01))
    await torn.proxy.heal()

    async def is_settled() -> bool:
        return not torn.client._shared.transport.supervisor._tidying

    await until(is_settled)
    assert sorted(taken + await rest(fifo(torn.oracle))) == [*range(20)]
    assert await torn.no_leases()


async def test_what_cannot_be_put_back(
    quick_server: EtcdServer, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, with its value."""
    await quick_server.clear()
    async with FaultProxy(quick_server.endpoint) as proxy, Client(quick_server.endpoint) as oracle:
        async with Client(proxy.endpoint) as client:
            await fifo(oracle).put("first")
            queue = fifo(client)
            await fifo(oracle).put("second")
            assert await queue.get() == b"first"
            getting = asyncio.create_task(queue.get())
            proxy.blackhole(client_to_server=False)

            async def is_taken() -> bool:
                return await fifo(oracle).size() == 0

            await until(is_taken)
            getting.cancel()
        assert "its value was b'second'" in caplog.text
        await oracle.kv.delete(NAME + "/", prefix=True)


GETTER = """
logging.basicConfig()

async def main():
    client = Client(ENDPOINT)
    queue = client.queue(ARGUMENTS[0])
    assert await queue.get() == b"0"
    getting = asyncio.create_task(queue.get())
    await asyncio.sleep(0.005)  # its answer is on the way
    say("ends", getting.done())

run(main())
"""


@pytest.mark.fault("another process, whose event loop ends")
@pytest.mark.outside("another process")
async def test_the_loop_ends_while_an_item_is_taken(quick_server: EtcdServer) -> None:
    """Though nobody has closed the client, what was taken for nobody is put back, or logged."""
    await quick_server.clear()
    async with FaultProxy(quick_server.endpoint) as proxy, Client(quick_server.endpoint) as client:
        await put_all(fifo(client), range(2))
        proxy.delay(0.005)
        ended = await asyncio.to_thread(run_program, GETTER, proxy.endpoint, NAME)
        assert ended.out == ["ends False"]
        assert await rest(fifo(client)) == [1] or "its value was b'1'" in ended.err
    await quick_server.clear()


@either
async def test_nobody_says_whether_there_is_one(torn: Faulty, make: Make) -> None:
    """Who does not wait for an item is told that nobody has answered."""
    torn.proxy.blackhole()
    with pytest.raises(DeadlineExceededError, match="nobody has answered whether"):
        await make(torn.client).poll(timeout=0.1)


@either
@pytest.mark.fault("two hundred broken connections")
async def test_k3_cut_anywhere(torn: Faulty, rng: random.Random, make: Make) -> None:
    """Wherever it is cut, with another one beside: each item once, in order for each."""
    total = 200
    await put_all(make(torn.oracle), range(total))
    mine: list[int] = []
    others: list[int] = []
    is_over = False

    def is_its_turn() -> bool:  # however long connecting takes, it leaves enough to be cut off
        return is_over or len(others) <= 2 * len(mine) + 5

    async def take_beside() -> None:
        queue = make(torn.oracle)
        while (value := await queue.poll()) is not None:
            others.append(int(value))
            await anyio.sleep(rng.uniform(0, 0.02))
            await until(is_its_turn, within=60)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(take_beside())
        queue = make(torn.client)
        while True:
            torn.proxy.cut_after(rng.randrange(300))
            if (value := await queue.poll()) is None:
                break
            mine.append(int(value))
        is_over = True
    assert sorted(mine + others) == [*range(total)]
    assert mine == sorted(mine)
    assert torn.proxy.cuts > 20
    assert mine
    assert others


# Putting.


async def test_k3_put_and_the_answer_lost(torn: Faulty) -> None:
    """It is read whether it is there: it is put once."""
    torn.proxy.blackhole(client_to_server=False)
    putting = asyncio.create_task(fifo(torn.client).put("7"))
    await until_taken(torn, 1)
    await torn.proxy.heal()
    await putting
    assert await rest(fifo(torn.oracle)) == [7]


@pytest.mark.parametrize("arrives", [True, False])
async def test_k3_put_and_not_there(torn: Faulty, arrives: bool) -> None:
    """Whether it was taken already, or never came, cannot be known, and is told so."""
    torn.proxy.blackhole(client_to_server=not arrives, server_to_client=arrives)
    putting = asyncio.create_task(fifo(torn.client).put("7"))
    if arrives:
        await until_taken(torn, 1)
        assert await fifo(torn.oracle).get() == b"7"
    else:
        await until_request_lost(torn.proxy)
    await torn.proxy.heal()
    with pytest.raises(EtcdError) as caught:
        await putting
    assert caught.value.maybe_applied is True
    assert await fifo(torn.oracle).size() == 0


async def test_no_connection(torn: Faulty) -> None:
    """Whoever gives up without one has taken nothing: it is given to the next one, in its place."""
    queue = await begin(torn, fifo, 3)
    torn.proxy.refuse()
    torn.proxy.cut()
    await until(lambda: not torn.client._calls.is_connected)
    with pytest.raises(NoEndpointError) as caught:
        await queue.get(timeout=0.2)
    assert caught.value.maybe_applied is False
    with anyio.move_on_after(0.1):
        await queue.get()
    await torn.proxy.heal()
    assert await rest(queue) == [1, 2]


@pytest.mark.fault("a server of its own")
@pytest.mark.outside("what a user may do")
async def test_refused() -> None:
    """What is surely not taken is given to the next one, in its place, also to who waits."""
    async with (
        EtcdServer(auth=("root", "pw")) as server,
        Client(server.endpoint, username="root", password="pw") as root,
    ):
        await root.auth.add_user("worker", "pw")
        await root.auth.add_role("worker")
        await root.auth.grant_permission("worker", PermissionType.READ, NAME, prefix=True)
        await root.auth.grant_role("worker", "worker")
        await put_all(fifo(root), range(3))
        async with Client(server.endpoint, username="worker", password="pw") as worker:
            queue = fifo(worker)
            tasks = [asyncio.create_task(queue.get()) for _ in range(7)]
            async with asyncio.timeout(10):
                done = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(each) for each in done] == [PermissionDeniedError] * 7
            await root.auth.grant_permission("worker", PermissionType.READWRITE, NAME, prefix=True)
            assert await rest(queue) == [0, 1, 2]


@pytest.mark.fault("R1: five servers that are filled")
async def test_r1_no_space() -> None:
    """A full server refuses claims, of which it applies some: what they took is given."""
    args = ["--quota-backend-bytes=2000000", "--backend-batch-limit=1"]
    refused = 0
    for _ in range(5):
        async with EtcdServer(args=args) as server, Client(server.endpoint, timeout=20) as client:
            await asyncio.gather(*(fifo(client).put(str(number)) for number in range(100)))
            junk = [client.kv.put(f"{name}", b"x" * 20_000) for name in range(200)]
            queue = fifo(client)
            first = await queue.get()  # which reads a page
            both = [each for put in junk for each in (put, queue.poll())]
            ends = [first, *(await asyncio.gather(*both, return_exceptions=True))[1::2]]
            there = (await client.kv.get(f"{NAME}/items/", prefix=True)).kvs
        given = [int(end) for end in ends if isinstance(end, bytes)]
        errors = [end for end in ends if isinstance(end, BaseException)]
        assert {type(error) for error in errors} <= {NoSpaceError}
        assert not any(isinstance(error, EtcdError) and error.maybe_applied for error in errors)
        assert sorted(given + [int(kv.value) for kv in there]) == [*range(100)]
        refused += len(errors)
    assert refused
