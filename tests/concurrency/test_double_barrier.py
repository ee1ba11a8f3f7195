"""Double barriers: so many enter at one revision and leave together, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from time import monotonic
from typing import Any

import anyio
import pytest

from aioetcd import (
    BarrierLostError,
    Client,
    ClientClosedError,
    Compare,
    DeadlineExceededError,
    DoubleBarrier,
    KeyValue,
    Op,
    TooManyOpsError,
)
from aioetcd.testing import EtcdServer, FaultProxy
from tests.concurrency.locks import queue, wait_for_queue, watches_created
from tests.concurrency.test_barrier import compact
from tests.concurrency.test_election import until_nothing_is_left
from tests.waiting import until

NAME = "/barriers/step"


async def parties(client: Client) -> list[KeyValue]:
    """The keys of all parties, in the order of their coming."""
    found = (await client.kv.get(NAME + "/", prefix=True)).kvs
    return sorted(found, key=lambda kv: kv.create_revision)


class Rooms:
    """Who is inside, by the revision at which it entered."""

    def __init__(self) -> None:
        self.inside: Counter[int] = Counter()
        self.entered: Counter[int] = Counter()
        self.begun_to_leave: set[int] = set()

    async def visit(
        self,
        client: Client,
        count: int,
        *,
        leave: asyncio.Event | None = None,
        leave_within: float | None = None,
        **options: Any,
    ) -> int:
        """Enter, wait, and leave; see that all leave together.

        Args:
            client: Whose party it is.
            count: So many enter.
            leave: What is waited for inside.
            leave_within: A timeout for leaving alone, in seconds.
            **options: The barrier's.
        """
        async with client.double_barrier(NAME, count, **options) as barrier:
            if leave_within is not None:
                barrier._timeout = leave_within
            revision = barrier.revision
            self.inside[revision] += 1
            self.entered[revision] += 1
            await (asyncio.sleep(0) if leave is None else leave.wait())
            self.inside[revision] -= 1
        assert self.inside[revision] == 0
        assert self.entered[revision] == count
        return revision


async def by_hand(client: Client, number: int) -> list[int]:
    """Have so many parties wait that will never do anything: their leases."""
    leases = [(await client.lease.grant(600)).id for _ in range(number)]
    for lease in leases:
        await client.kv.put(f"{NAME}/{lease:x}", "", lease=lease)
    return leases


async def test_enter_and_leave_together(client: Client) -> None:
    """Nobody is inside before the last one comes, nobody is through before the last one leaves."""
    rooms, leave = Rooms(), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        visits = [tasks.create_task(rooms.visit(client, 3, leave=leave)) for _ in range(2)]
        await wait_for_queue(client, 2, NAME)
        await client.ping()
        assert not rooms.inside
        visits.append(tasks.create_task(rooms.visit(client, 3, leave=leave)))
        await until(lambda: rooms.inside.total() == 3)
        leave.set()
    (revision,) = {visit.result() for visit in visits}
    assert rooms.entered == {revision: 3}
    await until_nothing_is_left(client)


async def test_leaving_waits_for_each(client: Client) -> None:
    """The first to leave comes through when the last one has left; its own key is gone by then."""
    rooms, early, late = Rooms(), asyncio.Event(), asyncio.Event()
    early.set()
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(rooms.visit(client, 3, leave=early))
        second = tasks.create_task(rooms.visit(client, 3, leave=early))
        last = tasks.create_task(rooms.visit(client, 3, leave=late))
        await wait_for_queue(client, 1, NAME)
        await client.ping()
        assert not first.done()
        assert not second.done()
        late.set()
    assert first.result() == second.result() == last.result()


async def test_one_party_waits_for_nobody(client: Client) -> None:
    """And enters its own rounds, one after the other."""
    rooms = Rooms()
    revisions = [await rooms.visit(client, 1) for _ in range(3)]
    assert revisions == sorted(set(revisions))
    await until_nothing_is_left(client)


@pytest.mark.fault("many rounds")
async def test_rounds(client: Client, server: EtcdServer) -> None:
    """Who enters again at once belongs to the next round, with several tasks of a client."""
    rooms = Rooms()

    async def party(client: Client) -> list[int]:
        return [await rooms.visit(client, 6) for _ in range(15)]

    async with Client(server.endpoint) as other:
        rounds = await asyncio.gather(*(party(each) for each in [client, other] * 3))
    assert len(rooms.entered) == 15
    assert rounds == [sorted(rooms.entered)] * 6
    await until_nothing_is_left(client)


@pytest.mark.fault("many parties")
async def test_many_come_at_once(client: Client, server: EtcdServer) -> None:
    """They enter in groups of `count`, in whichever order; those left over wait for more."""
    rooms = Rooms()
    async with Client(server.endpoint) as other, asyncio.TaskGroup() as tasks:
        for number in range(38):
            tasks.create_task(rooms.visit((client, other)[number % 2], 4))
        await until(lambda: rooms.entered.total() == 36)
        await wait_for_queue(client, 2, NAME)
        for _ in range(2):
            tasks.create_task(rooms.visit(client, 4))
    assert sorted(rooms.entered.values()) == [4] * 10
    await until_nothing_is_left(client)


async def test_the_next_do_not_wait(client: Client) -> None:
    """The next `count` enter while those before are still inside, and leave before them."""
    rooms, late = Rooms(), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        before = [tasks.create_task(rooms.visit(client, 2, leave=late)) for _ in range(2)]
        await until(lambda: rooms.inside.total() == 2)
        first, second = await asyncio.gather(*(rooms.visit(client, 2) for _ in range(2)))
        assert first == second
        assert not any(task.done() for task in before)
        late.set()


async def test_a_party_gone_does_not_count(client: Client) -> None:
    """Who went away while it waited is waited for no more, and another one takes its place."""
    rooms = Rooms()
    (lease,) = await by_hand(client, 1)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(rooms.visit(client, 3))
        await wait_for_queue(client, 2, NAME)
        await client.lease.revoke(lease)
        tasks.create_task(rooms.visit(client, 3))
        await wait_for_queue(client, 2, NAME)
        await client.ping()
        assert not rooms.entered
        tasks.create_task(rooms.visit(client, 3))
    assert list(rooms.entered.values()) == [3]


async def test_the_last_one_is_stuck(client: Client) -> None:
    """Where it is there and does nothing, the next one lets them enter, and waits itself."""
    leases = await by_hand(client, 3)
    rooms = Rooms()
    async with asyncio.TaskGroup() as tasks:
        visit = tasks.create_task(rooms.visit(client, 3))
        await watches_created(client, 2)

        async def is_opened() -> bool:
            return [kv.version for kv in await parties(client)] == [2, 2, 2, 1]

        await until(is_opened)
        assert len({kv.mod_revision for kv in (await parties(client))[:3]}) == 1
        assert not visit.done()
        for _ in range(2):
            tasks.create_task(rooms.visit(client, 3))
    assert list(rooms.entered.values()) == [3]
    assert [kv.lease for kv in await parties(client)] == leases
    for lease in leases:
        await client.lease.revoke(lease)


@pytest.mark.usefixtures("patient_look")
async def test_keys_that_are_no_partys(client: Client) -> None:
    """What has no lease, or another's name, does not count."""
    async with client.session(ttl=60) as session:
        await client.kv.put(f"{NAME}/7b", "")
        await client.kv.put(f"{NAME}/{session.lease_id + 1:x}", "", lease=session)
        for count in (2, 3):
            with pytest.raises(DeadlineExceededError):
                await Rooms().visit(client, count, timeout=0.2)
        assert [kv.version for kv in await parties(client)] == [1, 1]


@pytest.mark.usefixtures("patient_look")
async def test_too_few_come(client: Client) -> None:
    """It gives up in time, and nothing is left of it."""
    before = monotonic()
    with pytest.raises(DeadlineExceededError, match=r"fewer than 2 to enter.* within 0\.3 s$"):
        await Rooms().visit(client, 2, timeout=0.3)
    assert monotonic() - before >= 0.3
    await until_nothing_is_left(client)


async def test_some_do_not_leave(client: Client) -> None:
    """Leaving gives up in time, and says how many are missing; one has left by then."""
    rooms, early, late = Rooms(), asyncio.Event(), asyncio.Event()
    early.set()
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(_gives_up(rooms, client, early))
        for _ in range(2):
            tasks.create_task(rooms.visit(client, 3, leave=late))
        assert "2 of the 3 who entered" in str(await first)
        assert len(await queue(client, NAME)) == 2
        late.set()


async def _gives_up(rooms: Rooms, client: Client, leave: asyncio.Event) -> DeadlineExceededError:
    with pytest.raises(DeadlineExceededError) as caught:
        await rooms.visit(client, 3, leave=leave, leave_within=1)
    return caught.value


async def test_a_body_that_fails_waits_for_nobody(client: Client) -> None:
    """Its exception leaves at once, as itself; the others do not wait for it."""
    rooms, late = Rooms(), asyncio.Event()

    async def fail() -> None:
        async with client.double_barrier(NAME, 2):
            raise ZeroDivisionError

    async with asyncio.TaskGroup() as tasks:
        other = tasks.create_task(_enters(rooms, client, late))
        async with asyncio.timeout(10):
            with pytest.raises(ZeroDivisionError):
                await fail()
        assert not other.done()
        late.set()


async def _enters(rooms: Rooms, client: Client, leave: asyncio.Event) -> None:
    async with client.double_barrier(NAME, 2):
        rooms.inside[0] += 1
        await leave.wait()


@pytest.mark.parametrize("native", [True, False])
async def test_cancelled_while_others_are_waited_for(client: Client, native: bool) -> None:
    """That ends the waiting alone: it has left, and the others leave without it."""
    rooms, late = Rooms(), asyncio.Event()

    async def visit(scope: anyio.CancelScope) -> None:
        with scope:
            async with client.double_barrier(NAME, 2):
                pass

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_enters(rooms, client, late))
        scope = anyio.CancelScope()
        visiting = asyncio.create_task(visit(scope))
        await until(lambda: rooms.inside.total() == 1)
        await wait_for_queue(client, 1, NAME)
        if native:
            visiting.cancel()
        else:
            scope.cancel()
        await asyncio.wait({visiting}, timeout=10)
        assert visiting.cancelled() is native
        assert scope.cancelled_caught is not native
        assert len(await queue(client, NAME)) == 1
        late.set()
    await until_nothing_is_left(client)


async def test_z5_left_in_any_order(client: Client, rng: random.Random) -> None:
    """Blocks inside one another may be left in any order."""
    barriers = [client.double_barrier(f"{NAME}-{number}", 1) for number in range(4)]
    for barrier in barriers:
        await barrier.__aenter__()
    rng.shuffle(barriers)
    for barrier in barriers:
        await barrier.__aexit__(None, None, None)
    await until_nothing_is_left(client)


# What is lost.


async def test_x9_the_key_is_deleted(client: Client) -> None:
    """The body is cancelled, and the block raises; the other one leaves without it."""
    async with asyncio.TaskGroup() as tasks:
        leave = asyncio.Event()
        tasks.create_task(_enters(Rooms(), client, leave))
        with pytest.raises(BarrierLostError, match="its key was deleted"):
            async with client.double_barrier(NAME, 2) as barrier:
                await client.kv.delete(barrier.key)
                await asyncio.sleep(10)
                pytest.fail("the body was not cancelled")
        leave.set()
    await until_nothing_is_left(client)


async def test_x9_ignored(client: Client) -> None:
    """The body goes on, may ask, and its writes can be refused."""
    async with client.double_barrier(NAME, 1, on_lost="ignore") as barrier:
        mine = barrier.is_owner()
        assert (await client.kv.txn(compare=[mine], success=[Op.put("k", "v")])).succeeded
        assert (await client.kv.txn(compare=[Compare.version(barrier.key) == 2])).succeeded
        await client.kv.delete("", prefix=True)
        assert isinstance(await barrier.wait_lost(), BarrierLostError)
        assert barrier.is_lost
        assert barrier.expires_in == 0
        assert not (await client.kv.txn(compare=[mine], success=[Op.put("k", "v")])).succeeded


async def test_x4_lost_while_it_waits(client: Client) -> None:
    """It is told at once, not when the others come."""

    async def visit() -> None:
        with pytest.raises(BarrierLostError, match="lost"):
            await Rooms().visit(client, 2)

    for revokes in (True, False):
        visiting = asyncio.create_task(visit())
        await wait_for_queue(client, 1, NAME)
        (kv,) = await parties(client)
        assert kv.lease is not None
        if revokes:
            await client.lease.revoke(kv.lease)
        else:
            await client.kv.delete(kv.key)
        async with asyncio.timeout(10):
            await visiting
        await until_nothing_is_left(client)


@pytest.mark.parametrize("made_again", [False, True])
async def test_x9_lost_while_cut_off(client: Client, server: EtcdServer, made_again: bool) -> None:
    """Also where the history that says so is gone, and another key of that name is there."""
    async with FaultProxy(server.endpoint) as proxy, Client(proxy.endpoint) as cut_off:
        visiting = asyncio.create_task(Rooms().visit(cut_off, 2))
        await watches_created(cut_off, 2)
        (kv,) = await parties(client)
        proxy.refuse()
        proxy.cut()
        await client.kv.delete(kv.key)
        if made_again:
            for _ in range(2):
                await client.kv.put(kv.key, "", lease=kv.lease)
        await compact(client)
        await proxy.accept()
        with pytest.raises(BarrierLostError, match="its key was deleted"):
            async with asyncio.timeout(10):
                await visiting
    await until_nothing_is_left(client)


async def test_the_client_closes(client: Client, server: EtcdServer) -> None:
    """Whoever waits to enter or to leave is told, and nothing is left."""

    async def wait_to_enter(other: Client) -> None:
        with pytest.raises(BarrierLostError, match="closed"):
            await Rooms().visit(other, 3)

    async with Client(server.endpoint) as other:
        waiting = asyncio.create_task(wait_to_enter(other))
        await wait_for_queue(client, 1, NAME)
        await other.aclose()
        await waiting
    await until_nothing_is_left(client)

    async def wait_to_leave(other: Client) -> None:
        with pytest.raises(ClientClosedError):
            async with other.double_barrier(NAME, 2):
                pass

    leave = asyncio.Event()
    async with Client(server.endpoint) as other, asyncio.TaskGroup() as tasks:
        staying = tasks.create_task(_enters(Rooms(), client, leave))
        await wait_for_queue(client, 1, NAME)
        waiting = tasks.create_task(wait_to_leave(other))

        async def has_left() -> bool:
            return [kv.version for kv in await parties(client)] == [2]

        await until(has_left)
        await watches_created(other, 1)
        await other.aclose()
        await waiting
        assert not staying.done()
        leave.set()
    await until_nothing_is_left(client)


# What is wrong.


@pytest.mark.fault("a server of its own")
async def test_more_than_the_server_takes() -> None:
    """The last one is told what is wrong, and leaves nothing behind."""
    async with EtcdServer(args=["--max-txn-ops=3"]) as server, Client(server.endpoint) as client:
        rooms = Rooms()
        await asyncio.gather(*(rooms.visit(client, 3) for _ in range(3)))
        leases = await by_hand(client, 3)
        with pytest.raises(TooManyOpsError):
            await rooms.visit(client, 4)

        async def are_left() -> bool:
            return [kv.lease for kv in await parties(client)] == leases

        await until(are_left)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"name": ""}, ValueError, "must not be empty"),
        ({"count": 0}, ValueError, "count must be at least 1"),
        ({"count": "2"}, TypeError, "count must be"),
        ({"ttl": 0}, ValueError, "ttl must be at least 1"),
        ({"timeout": 0}, ValueError, "timeout must be above 0"),
        ({"on_lost": "shout"}, ValueError, "on_lost must be"),
    ],
)
def test_what_is_wrong(arguments: dict[str, Any], error: type[Exception], match: str) -> None:
    """It is told before anything is sent."""
    client = Client("127.0.0.1:1")
    right: dict[str, Any] = {"name": NAME, "count": 2}
    with pytest.raises(error, match=match):
        client.double_barrier(**(right | arguments))
    assert isinstance(client.double_barrier(**right), DoubleBarrier)


async def test_entered_once(client: Client) -> None:
    """It is refused a second time, and has no revision before the first."""
    barrier = client.double_barrier(NAME, 1)
    with pytest.raises(RuntimeError, match="was not acquired"):
        _ = barrier.revision
    async with barrier:
        assert repr(barrier) == f"<DoubleBarrier {barrier.key!r}>"
    with pytest.raises(RuntimeError, match="entered once"):
        await barrier.__aenter__()
