"""Elections: who leads, who is told, what is lost, and with etcdctl as another candidate."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from time import monotonic
from typing import Any

import anyio
import pytest

from aioetcd import (
    Client,
    ClientClosedError,
    CompactedError,
    Election,
    ElectionError,
    ElectionTimeoutError,
    KeyValue,
    Leadership,
    LeadershipLostError,
    NoEndpointError,
    Op,
)
from aioetcd.concurrency import _queued
from aioetcd.testing import EtcdServer, FaultProxy, find_binary
from tests.concurrency.locks import cancel_after, is_owner
from tests.waiting import lateness, until

NAME = "/jobs"


async def wait_for_candidates(client: Client, count: int) -> None:
    """Wait until so many lead or wait."""

    async def are_there() -> bool:
        return len(await client.election(NAME).candidates()) == count

    await until(are_there)


async def won(election: Election, value: str) -> Leadership:
    """Lead, without a block."""
    leadership = election.campaign(value)
    await leadership.win()
    return leadership


class Followed:
    """What somebody sees who observes an election."""

    def __init__(self) -> None:
        self.leaders: list[KeyValue | None] = []

    @property
    def texts(self) -> list[str | None]:
        """What was proclaimed."""
        return [leader and leader.text for leader in self.leaders]

    async def saw(self, *texts: str | None) -> None:
        """Wait until just this was seen."""
        await until(lambda: len(self.texts) >= len(texts))
        assert self.texts == [*texts]


@asynccontextmanager
async def followed(election: Election) -> AsyncIterator[Followed]:
    """Observe for a block."""
    seen = Followed()

    async def follow() -> None:
        async with aclosing(election.observe()) as leaders:
            async for leader in leaders:
                seen.leaders.append(leader)

    async with anyio.create_task_group() as group:
        group.start_soon(follow)
        await until(lambda: len(seen.leaders) > 0)
        yield seen
        group.cancel_scope.cancel()


async def test_they_lead_in_the_order_of_their_coming(client: Client) -> None:
    """Each until it resigns; everybody sees the same leaders, in the same order."""
    election = client.election(NAME, ttl=60)
    served: list[int] = []
    revisions: list[int] = []

    async def lead(number: int) -> None:
        async with election.campaign(str(number)) as leadership:
            served.append(number)
            revisions.append(leadership.revision)
            assert await is_owner(client, leadership)
            leader = await election.leader()
            assert leader is not None
            assert (leader.key, leader.text) == (leadership.key, str(number))

    async with followed(election) as seen:
        async with anyio.create_task_group() as tasks, election.campaign("first"):
            for number in range(5):
                tasks.start_soon(lead, number)
                await wait_for_candidates(client, number + 2)
            assert served == []
            waiting = await election.candidates()
            assert [kv.text for kv in waiting] == ["first", *"01234"]
        await seen.saw(None, "first", *"01234", None)
    assert served == [*range(5)]
    assert revisions == sorted(set(revisions))
    await until_nothing_is_left(client)
    assert await election.leader() is None


async def test_what_is_proclaimed(client: Client) -> None:
    """Is seen in order, under the same key; a fence made before still holds."""
    election = client.election(NAME)
    async with followed(election) as seen, election.campaign("a") as leadership:
        fence = leadership.is_owner()
        for value in ("b", "c"):
            await leadership.proclaim(value)
        assert (await client.kv.txn(compare=[fence])).succeeded
        await seen.saw(None, "a", "b", "c")
        with pytest.raises(TypeError, match=r"^value must"):
            await leadership.proclaim(7)  # type: ignore[arg-type]
    assert len({leader.create_revision for leader in seen.leaders if leader}) == 1


async def test_without_a_block(client: Client) -> None:
    """It is awaited, and resigned, twice if that must be."""
    election = client.election(NAME)
    leadership = await won(election, "a")
    assert not leadership.is_lost
    with pytest.raises(RuntimeError, match="can be entered once"):
        await leadership.win()
    await leadership.resign()
    await leadership.resign()
    await wait_for_candidates(client, 0)
    never = election.campaign("b")
    with pytest.raises(RuntimeError, match="was not acquired"):
        await never.resign()
    with pytest.raises(RuntimeError, match="was not acquired"):
        await never.proclaim("b")


async def test_on_a_sessions_lease(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """One at a time of those on a session; when it is left, the leadership is lost."""
    monkeypatch.setattr(_queued, "_LAST_LOOK", 10.0)  # whatever the server takes for it
    async with client.session(ttl=60) as session:
        election = client.election(NAME, session=session)
        async with election.campaign("a") as leadership:
            assert leadership.lease_id == session.lease_id
            with pytest.raises(ElectionTimeoutError) as caught:
                await election.campaign("b", timeout=0.2).win()
            assert caught.value.timeout == 0.2
            assert isinstance(caught.value, TimeoutError)
        leadership = await won(election, "c")
    assert isinstance(await leadership.wait_lost(), LeadershipLostError)


async def test_its_turn_does_not_come(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says who leads; and nothing is left behind."""
    monkeypatch.setattr(_queued, "_LAST_LOOK", 10.0)  # whatever the server takes for it
    election = client.election(NAME, ttl=60)
    async with election.campaign("first") as leadership:
        with pytest.raises(ElectionTimeoutError, match="value b'first'") as caught:
            await election.campaign("late", timeout=0.3).win()
        assert caught.value.leader is not None
        assert caught.value.leader.key == leadership.key
        await wait_for_candidates(client, 1)
    nobody = Client("127.0.0.1:1")
    async with nobody:
        with pytest.raises(NoEndpointError):
            await nobody.election(NAME).campaign("a", timeout=0.3).win()


async def test_a_leader_whose_key_is_deleted(client: Client) -> None:
    """Its body is cancelled, and it proclaims nothing more."""
    election = client.election(NAME)
    leadership = election.campaign("a")
    with pytest.raises(LeadershipLostError, match="its key was deleted"):
        async with leadership:
            await client.kv.delete(leadership.key)
            await anyio.sleep(10)
    assert leadership.is_lost
    with pytest.raises(LeadershipLostError):
        await leadership.proclaim("late")
    async with election.campaign("b", on_lost="ignore") as other:
        await client.lease.revoke(other)
        assert isinstance(await other.wait_lost(), LeadershipLostError)


async def test_x12_a_candidate_whose_lease_is_revoked(client: Client) -> None:
    """It is told at once, and never leads."""
    election = client.election(NAME, ttl=60)
    async with election.campaign("a"):
        waiting = election.campaign("b")
        task = asyncio.ensure_future(waiting.win())
        await wait_for_candidates(client, 2)
        await client.lease.revoke(waiting)
        with anyio.fail_after(5), pytest.raises(LeadershipLostError):
            await task
        await wait_for_candidates(client, 1)


async def test_x11_one_in_the_middle_resigns(client: Client) -> None:
    """Who waited for it waits for the one before; nobody leads too early."""
    election = client.election(NAME, ttl=60)
    async with election.campaign("first"):
        middle = asyncio.ensure_future(won(election, "middle"))
        await wait_for_candidates(client, 2)
        last = asyncio.ensure_future(won(election, "last"))
        await wait_for_candidates(client, 3)
        middle.cancel()
        await wait_for_candidates(client, 2)
        for _ in range(5):
            await client.ping()
        assert not last.done()
    with anyio.fail_after(5):
        await (await last).resign()


async def test_what_is_in_the_way_and_no_candidate(client: Client) -> None:
    """It may stay for ever: there is no waiting for it."""
    await client.kv.put(f"{NAME}/note", "not a candidate")
    with pytest.raises(ElectionError, match="no candidate's"):
        await client.election(NAME).campaign("a").win()
    await client.kv.delete(f"{NAME}/note")
    await wait_for_candidates(client, 0)


async def test_x13_observed_across_cuts(
    client: Client, server: EtcdServer, rng: random.Random
) -> None:
    """Every change is seen, once and in order, wherever the connection breaks."""
    election = client.election(NAME)
    expected: list[str | None] = [None]
    async with (
        FaultProxy(server.endpoint) as proxy,
        Client(proxy.endpoint) as through,
        followed(through.election(NAME)) as seen,
    ):
        for number in range(30):
            async with election.campaign(f"{number}") as leadership:
                expected.append(f"{number}")
                if rng.random() < 0.5:
                    await leadership.proclaim(f"{number}!")
                    expected.append(f"{number}!")
                if rng.random() < 0.4:
                    proxy.cut()
            await wait_for_candidates(client, 0)  # else the next one leads without a pause
            expected.append(None)
        assert proxy.cuts > 0
        await seen.saw(*expected)


async def test_x13_observed_beyond_a_compaction(client: Client, server: EtcdServer) -> None:
    """What was missed is gone; what is the case then is told."""
    election = client.election(NAME)
    async with (
        FaultProxy(server.endpoint) as proxy,
        Client(proxy.endpoint) as through,
        followed(through.election(NAME)) as seen,
    ):
        proxy.refuse()
        proxy.cut()
        async with election.campaign("missed"):
            pass
        async with election.campaign("now") as leadership:
            await client.kv.compact((await client.kv.put("k", "v")).header.revision)
            await proxy.accept()
            await until(lambda: seen.texts[-1] == "now")
            assert "missed" not in seen.texts
            await leadership.proclaim("later")
            await seen.saw(None, "now", "later")


async def test_observing_ends_with_the_client(server: EtcdServer) -> None:
    """Whoever waits is told why."""
    async with Client(server.endpoint) as client:
        leaders = client.election(NAME).observe()
        assert await anext(leaders) is None
        task = asyncio.ensure_future(anext(leaders))
        await anyio.lowlevel.checkpoint()
        await client.aclose()
        with pytest.raises(ClientClosedError):
            await task
        with pytest.raises(ClientClosedError):
            await anext(client.election(NAME).observe())


@pytest.mark.parametrize("name", ["aioetcd", "etcdctl"])
@pytest.mark.outside("etcdctl")
async def test_etcdctl_is_a_candidate_too(client: Client, server: EtcdServer, name: str) -> None:
    """`etcdctl elect` waits for us, and we for it; each sees what the other one proclaims."""
    election = client.election(NAME, ttl=60)
    command = [str(find_binary("etcdctl")), f"--endpoints={server.endpoint}", "elect", NAME]

    async def theirs() -> Any:
        return await anyio.open_process([*command, "theirs"], env={"ETCDCTL_API": "3"})

    async def leads(value: str) -> bool:
        leader = await election.leader()
        return leader is not None and leader.text == value

    process = None
    try:
        if name == "etcdctl":
            process = await theirs()
            await until(lambda: leads("theirs"))
            # It prints its key, which it reads before: from then on a signal makes it resign.
            await process.stdout.receive()
            ours = asyncio.ensure_future(won(election, "ours"))
            await wait_for_candidates(client, 2)
            assert not ours.done()
            process.terminate()
            leadership = await ours
        else:
            leadership = await won(election, "ours")
            process = await theirs()
            await wait_for_candidates(client, 2)
        assert await leads("ours")
        await leadership.resign()
        if name == "aioetcd":
            await until(lambda: leads("theirs"))
    finally:
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.aclose()
        await server.clear()  # it leaves its lease


# Working while one leads.


async def test_run_gives_what_the_work_gives(client: Client) -> None:
    """And resigns; what the work raises leaves as itself."""
    election = client.election(NAME)

    async def work(leadership: Leadership) -> bytes:
        await leadership.proclaim("at work")
        return leadership.key

    key = await election.run(work, "waiting")
    assert key.startswith(b"/jobs/")
    await until_nothing_is_left(client)
    assert await election.leader() is None

    async def fails(leadership: Leadership) -> None:
        raise CompactedError("of the work's own")

    with pytest.raises(CompactedError, match="of the work's own"):
        await election.run(fails)
    await until_nothing_is_left(client)
    assert await election.leader() is None


async def test_run_works_again_after_a_loss(client: Client) -> None:
    """The work is cancelled, and done from its beginning by who leads then."""
    begun: list[int] = []
    cancelled = 0

    async def work(leadership: Leadership) -> str:
        nonlocal cancelled
        begun.append(leadership.revision)
        if len(begun) == 3:
            return "done"
        try:
            await client.kv.delete(leadership.key)  # the loss may be told before its answer
            await anyio.sleep(10)
        except asyncio.CancelledError:
            cancelled += 1
            raise
        pytest.fail("the work was not cancelled")

    assert await client.election(NAME).run(work) == "done"
    assert begun == sorted(set(begun))
    assert cancelled == 2


async def test_run_goes_on_where_the_work_finds_the_loss_first(client: Client) -> None:
    """Whether it is cancelled, or told by what it asks for itself."""
    times = 0

    async def work(leadership: Leadership) -> int:
        nonlocal times
        times += 1
        if times <= 5:
            await client.kv.delete(leadership.key)
            await leadership.proclaim("late")
        return times

    assert await client.election(NAME).run(work) == 6


async def test_run_does_nothing_twice_that_is_done(client: Client) -> None:
    """Though the leadership was lost in the same moment."""
    times = 0

    async def work(leadership: Leadership) -> str:
        nonlocal times
        times += 1
        # In one step with its end: a revocation may be told before whoever asked for it goes on.
        leadership._lost("in the same moment", None)
        return "done"

    assert await client.election(NAME).run(work) == "done"
    assert times == 1


async def test_a_wait_for_a_leader_that_is_cancelled(client: Client) -> None:
    """It loses nothing, and goes on; closing ends the loop."""
    election = client.election(NAME)
    leaders = election.observe()
    assert await anext(leaders) is None
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(leaders), 0.02)
    async with election.campaign("a"):
        with anyio.fail_after(5):
            leader = await anext(leaders)
        assert leader is not None
        assert leader.text == "a"
    await leaders.aclose()
    assert [leader async for leader in leaders] == []
    await until(lambda: client.stats().watches == 0)
    dropped = election.observe()
    await anext(dropped)
    del dropped
    await until(lambda: client.stats().watches == 0)


async def test_closing_ends_the_loop_while_the_server_is_away(server: EtcdServer) -> None:
    """Whoever waits is let go at once, connected or not, and in the first read too."""
    async with FaultProxy(server.endpoint) as proxy, Client(proxy.endpoint) as through:
        election = through.election(NAME)
        for away in (False, True):
            leaders = election.observe()
            assert await anext(leaders) is None
            waiting = asyncio.ensure_future(anext(leaders, "ended"))
            await anyio.lowlevel.checkpoint()
            if away:
                proxy.refuse()
                proxy.cut()
            await leaders.aclose()
            with anyio.fail_after(2):
                assert await waiting == "ended"
        beginning = election.observe()
        waiting = asyncio.ensure_future(anext(beginning, "ended"))
        await anyio.lowlevel.checkpoint()
        await beginning.aclose()
        with anyio.fail_after(2):
            assert await waiting == "ended"
        await until(lambda: through.stats().watches == 0)


async def test_run_goes_on_where_a_task_of_the_work_finds_the_loss(client: Client) -> None:
    """Its group of errors is that loss, and nothing else."""
    times = 0

    async def work(leadership: Leadership) -> int:
        nonlocal times
        times += 1
        if times <= 3:
            await client.kv.delete(leadership.key)
            async with asyncio.TaskGroup() as group:
                group.create_task(leadership.proclaim("late"))
        return times

    assert await client.election(NAME).run(work) == 4


async def test_run_waits_for_a_server(client: Client, server: EtcdServer) -> None:
    """While nobody can be reached it tries again; what does not pass by itself is raised."""
    async with FaultProxy(server.endpoint) as proxy:
        async with Client(proxy.endpoint, timeout=0.3) as through:
            proxy.refuse()

            async def work(leadership: Leadership) -> None:
                assert (await client.election(NAME).candidates())[0].key == leadership.key

            task = asyncio.ensure_future(through.election(NAME).run(work))
            await until(lambda: proxy.connect_failures > 0 or not task.done())
            await anyio.sleep(1)  # longer than the timeout of a try
            assert not task.done()
            await proxy.accept()
            with anyio.fail_after(15):
                await task

            async def never(leadership: Leadership) -> None:
                pytest.fail("it leads")

        with pytest.raises(ClientClosedError):
            await through.election(NAME).run(never)


async def test_run_is_cancelled_while_it_works(client: Client) -> None:
    """At once; and the next one leads."""
    election = client.election(NAME)
    works = anyio.Event()
    ended = 0.0

    async def work(leadership: Leadership) -> None:
        nonlocal ended
        works.set()
        try:
            await anyio.sleep(10)
        finally:
            ended = anyio.current_time()  # resigning comes after it

    task = asyncio.ensure_future(election.run(work))
    await works.wait()
    async with lateness() as late:
        began = anyio.current_time()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert 0 <= ended - began < 0.5 + late.seconds
    async with election.campaign("next", timeout=5):
        pass


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"name": ""}, ValueError, "key must not be empty"),
        ({"name": 7}, TypeError, "key must be"),
        ({"ttl": 0}, ValueError, "ttl must be at least 1"),
        ({"ttl": "5"}, TypeError, "ttl must be an int"),
        ({"session": 7}, TypeError, "session must be a Session"),
    ],
)
async def test_what_is_wrong(
    client: Client, arguments: dict[str, Any], error: type[Exception], match: str
) -> None:
    """It is told before anything is sent."""
    with pytest.raises(error, match=match):
        client.election(**({"name": NAME} | arguments))
    with pytest.raises(ValueError, match="on_lost must"):
        client.election(NAME).campaign(on_lost="explode")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="timeout must"):
        client.election(NAME).campaign(timeout=-1)
    assert client.stats().calls == 0


@pytest.mark.fault("X11")
async def test_x11_a_leader_that_is_cut_off(quick_server: EtcdServer) -> None:
    """Its work is cancelled before the next one leads, and those who observe see them in order."""
    spans: list[tuple[float, float]] = []
    async with (
        FaultProxy(quick_server.endpoint) as proxy,
        Client(proxy.endpoint, timeout=2) as cut_off,
        Client(quick_server.endpoint) as client,
        followed(client.election(NAME)) as seen,
    ):
        leads = anyio.Event()

        async def lead_until_it_is_lost() -> None:
            with pytest.raises(LeadershipLostError):
                async with cut_off.election(NAME, ttl=2).campaign("first"):
                    began = monotonic()
                    leads.set()
                    try:
                        await anyio.sleep(30)
                    finally:
                        spans.append((began, monotonic()))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lead_until_it_is_lost)
            await leads.wait()
            proxy.blackhole()
            async with client.election(NAME, ttl=2).campaign("second"):
                spans.append((monotonic(), monotonic()))
        assert proxy.bytes_swallowed > 0
        assert spans[0][1] < spans[1][0]
        await seen.saw(None, "first", "second", None)
        await proxy.heal()


@pytest.mark.fault("X5")
@pytest.mark.parametrize("native", [True, False])
async def test_x5_cancelled_at_random(client: Client, rng: random.Random, native: bool) -> None:
    """Whenever somebody gives up, the others go on, and nothing is left."""
    election = client.election(NAME, ttl=60)
    led = 0
    took = 0.015  # as it is just now

    async def lead() -> None:
        nonlocal led
        async with election.campaign("a") as leadership:
            led += 1
            await leadership.proclaim("b")

    for _ in range(40):
        before = led
        await cancel_after(took * rng.uniform(0, 2), lead, native=native)
        took *= 0.9 if led > before else 1.1
    assert led > 0
    await election.run(lambda leadership: leadership.proclaim("last"))
    await until_nothing_is_left(client)


async def until_nothing_is_left(client: Client) -> None:
    """Wait until there is neither key nor lease."""

    async def is_clear() -> bool:
        leases = (await client.lease.leases()).ids
        return leases == () and (await client.kv.get("", prefix=True, count_only=True)).count == 0

    await until(is_clear)


async def test_a_fence_holds_off_an_earlier_leader(client: Client) -> None:
    """What it writes with its fence after its time is not written."""
    election = client.election(NAME)
    async with election.campaign("old", on_lost="ignore") as old:
        fence = old.is_owner()
        await client.lease.revoke(old)
        async with election.campaign("new") as new:
            assert new.revision > old.revision
            late = await client.kv.txn(compare=[fence], success=[Op.put("result", "late")])
            assert not late.succeeded
