"""Partitioners: who has what, how it goes from one to another, and how they end."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from typing import Any

import anyio
import pytest

from aioetcd import Client, ClientClosedError, Compare, Op, Partitioner, Share, UnavailableError
from aioetcd.testing import EtcdServer
from tests.concurrency.shop import NAME, Shop, check_never_twice, members_of
from tests.concurrency.test_election import until_nothing_is_left
from tests.waiting import until

ITEMS = [f"i{number}" for number in range(9)]


class OopsError(Exception):
    """What a work raises."""


async def test_one_member_has_all(client: Client) -> None:
    """Each item is a task's, with a key on the one lease, and others can see who has it."""
    shop = Shop()
    partitioner = client.partitioner(NAME, ITEMS, value="host-7", ttl=60)
    assert repr(partitioner) == "<Partitioner b'/shop': 9 items>"
    assert partitioner.held == frozenset()
    assert await partitioner.holders() == {}
    running = asyncio.create_task(partitioner.run(shop.work))
    await until(lambda: len(shop.working) == 9)
    assert partitioner.held == set(ITEMS)
    (lease_id,) = (await client.lease.leases()).ids
    holders = await partitioner.holders()
    assert [*holders] == ITEMS
    for item, share in shop.working.items():
        kv = holders[item]
        assert (kv.key, kv.create_revision, kv.lease) == (share.key, share.revision, lease_id)
        assert (kv.text, share.lease_id, share.key) == (
            "host-7",
            lease_id,
            f"/shop/items/{item}".encode(),
        )
        assert repr(share) == f"<Share '{item}' at revision {share.revision}>"
        assert (await client.kv.txn(compare=[share.is_owner()], success=[Op.get("k")])).succeeded
    share = shop.working["i0"]
    member = await client.kv.get(f"/shop/members/{lease_id:x}")
    assert member.text == "host-7"
    with pytest.raises(RuntimeError, match="runs already"):
        await partitioner.run(shop.work)
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    assert shop.working == {}
    assert partitioner.held == frozenset()
    await until_nothing_is_left(client)
    assert not (await client.kv.txn(compare=[share.is_owner()], success=[Op.get("k")])).succeeded
    running = asyncio.create_task(partitioner.run(shop.work))  # and once more
    await until(lambda: len(shop.working) == 9)
    running.cancel()
    await asyncio.wait([running])
    check_never_twice(shop.stints)


async def test_items_of_any_bytes(client: Client) -> None:
    """They come back as they were given."""
    given = [b"\x00", b"\xff/", b"a/b", b"/", b"members/1"]
    seen: set[bytes] = set()

    async def work(share: Share[bytes]) -> None:
        seen.add(share.item)
        if len(seen) == len(given):
            raise OopsError

    with pytest.raises(OopsError):
        await client.partitioner(b"\xfe", given, ttl=60).run(work)
    assert seen == {*given}
    await until_nothing_is_left(client)


async def test_members_come_and_go(server: EtcdServer, client: Client) -> None:
    """Always in balance, no item twice, and as few as possible go elsewhere."""
    shop = Shop()
    async with members_of(server, ITEMS, shop.work) as members:
        first = await members.come()
        await members.until_balanced()
        second = await members.come()
        await members.until_balanced()
        assert sorted(members.counts()) == [4, 5]
        await until(lambda: len(shop.working) == 9)
        assert shop.begun == 9 + 4
        third = await members.come()
        await members.until_balanced()
        assert members.counts() == [3, 3, 3]
        await until(lambda: len(shop.working) == 9)
        assert shop.begun == 9 + 4 + 3
        kept = first.held, third.held
        await members.go(second)
        await members.until_balanced()
        await until(lambda: len(shop.working) == 9)
        assert shop.begun == 9 + 4 + 3 + 3
        assert kept[0] <= first.held
        assert kept[1] <= third.held
    assert shop.working == {}
    check_never_twice(shop.stints)
    await until_nothing_is_left(client)


async def test_what_it_costs(server: EtcdServer, client: Client) -> None:
    """A member two reads, a grant and a txn; an item a txn to have, and one to give back."""
    shop = Shop()
    async with members_of(server, ITEMS, shop.work) as members:
        await members.come()
        await members.until_balanced()
        partitioner = client.partitioner(NAME, ITEMS, ttl=60)
        before = client.stats().calls
        running = asyncio.create_task(partitioner.run(shop.work))
        await until(lambda: len(partitioner.held) == 4)
        await until(lambda: len(shop.working) == 9)
        assert client.stats().calls - before <= 4 + 4
        before = client.stats().calls
        await members.come()
        await until(lambda: len(partitioner.held) == 3)
        await until(lambda: len(shop.working) == 9)
        assert client.stats().calls - before == 1
        before = client.stats().calls
        running.cancel()
        await asyncio.wait([running])
        assert client.stats().calls - before <= 1 + 3


async def test_it_is_kept_until_the_work_has_ended(server: EtcdServer) -> None:
    """Nobody has it before; the other items go from one to the other meanwhile."""
    shop = Shop()
    async with members_of(server, ITEMS, shop.work) as members:
        first = await members.come()
        await members.until_balanced()
        await until(lambda: len(shop.working) == 9)
        shop.slow = {item: asyncio.Event() for item in ITEMS}
        second = await members.come()
        await until(
            lambda: any(t.cancelling() for t in asyncio.all_tasks() if "work on" in t.get_name())
        )
        holders = await first.holders(timeout=10)
        assert {kv.lease for kv in holders.values()} == {shop.working["i0"].lease_id}
        assert second.held == frozenset()
        assert len(first.held) == 9
        slow = [
            item
            for item in ITEMS
            if any(item in t.get_name() and t.cancelling() for t in asyncio.all_tasks())
        ]
        for item in slow[1:]:
            shop.slow[item].set()
        await until(lambda: len(second.held) == 3)
        assert slow[0] in first.held
        assert slow[0] in shop.working
        shop.slow[slow[0]].set()
        await until(lambda: len(second.held) == 4)
        for ended in shop.slow.values():
            ended.set()
    check_never_twice(shop.stints)


async def test_leaving_waits_for_a_slow_work(server: EtcdServer, client: Client) -> None:
    """But not the others' items; and whatever is cancelled meanwhile, no work is left behind."""
    shop = Shop()
    async with members_of(server, ITEMS, shop.work) as members:
        partitioner = client.partitioner(NAME, ITEMS, ttl=60)
        running = asyncio.create_task(partitioner.run(shop.work))
        await until(lambda: len(shop.working) == 9)
        shop.slow["i4"] = asyncio.Event()
        running.cancel()
        other = await members.come()
        await until(lambda: len(other.held) == 8)
        await until(lambda: len(shop.working) == 9)
        for _ in range(3):
            running.cancel()
            await asyncio.sleep(0)
        assert not running.done()
        assert partitioner.held == {"i4"}
        shop.slow.pop("i4").set()
        await asyncio.wait([running])
        assert running.cancelled()
        await members.until_balanced()
        await until(lambda: len(shop.working) == 9)
    check_never_twice(shop.stints)
    await until_nothing_is_left(client)


async def test_a_scope_that_is_cancelled(client: Client) -> None:
    """It gets its own cancellation, after the works' `finally` has awaited."""
    shop = Shop()
    partitioner = client.partitioner(NAME, ITEMS, ttl=60)
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(partitioner.run, shop.work)
            await until(lambda: len(shop.working) == 9)
            scope.cancel()
    assert scope.cancelled_caught
    assert shop.working == {}
    assert len(shop.stints) == 9
    await until_nothing_is_left(client)


@pytest.mark.parametrize("error", [OopsError("7"), UnavailableError("7"), SystemError("7")])
async def test_a_work_that_raises(
    client: Client, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends all, and is raised as it is, when all have ended; others' errors are logged."""
    shop = Shop()

    async def work(share: Share[str]) -> None:
        if share.item == "i5":
            await until(lambda: len(shop.working) == 8)
            raise error
        try:
            await shop.work(share)
        finally:
            if share.item == "i6":
                raise OopsError("in its end")

    with caplog.at_level(logging.ERROR), pytest.raises(type(error)) as caught:
        await client.partitioner(NAME, ITEMS, ttl=60).run(work)
    assert caught.value is error
    assert shop.working == {}
    assert "the work on b'i6' failed too" in caplog.text
    await until_nothing_is_left(client)


async def test_a_work_that_raises_when_it_is_cancelled(server: EtcdServer, client: Client) -> None:
    """It is raised, also where it is this that was cancelled."""
    working: set[str] = set()

    async def work(share: Share[str]) -> None:
        working.add(share.item)
        try:
            await asyncio.Event().wait()
        finally:
            working.remove(share.item)
            raise OopsError(share.item)

    async with members_of(server, ITEMS[:2], Shop().work) as members:
        partitioner = client.partitioner(NAME, ITEMS[:2], ttl=60)
        running = asyncio.create_task(partitioner.run(work))
        await until(lambda: len(working) == 2)
        await members.come()
        with pytest.raises(OopsError):
            await running
        await members.until_balanced()
    running = asyncio.create_task(partitioner.run(work))
    await until(lambda: len(working) == 2)
    running.cancel()
    with pytest.raises(OopsError):
        await running
    await until_nothing_is_left(client)


async def test_a_work_that_returns(server: EtcdServer, client: Client) -> None:
    """Its item is kept, without work, until it goes elsewhere, where it is worked on anew."""
    done: list[str] = []

    async def work(share: Share[str]) -> None:
        done.append(share.item)

    async with members_of(server, ITEMS, work) as members:
        await members.come()
        await until(lambda: sorted(done) == ITEMS)
        await members.until_balanced()
        await client.ping()
        await members.come()
        await members.until_balanced()
        await until(lambda: len(done) == 9 + 4)
        assert len(set(done[9:])) == 4
    await until_nothing_is_left(client)


async def test_a_work_that_somebody_else_cancels(client: Client) -> None:
    """It is not lost in silence."""
    partitioner = client.partitioner(NAME, ITEMS, ttl=60)
    tasks: list[asyncio.Task[Any] | None] = []

    async def work(share: Share[str]) -> None:
        tasks.append(asyncio.current_task())
        await asyncio.Event().wait()

    running = asyncio.create_task(partitioner.run(work))
    await until(lambda: len(tasks) == 9)
    assert tasks[3] is not None
    tasks[3].cancel()
    with pytest.raises(RuntimeError, match="was cancelled by somebody else"):
        await running
    await until_nothing_is_left(client)


async def test_no_coroutine_function(client: Client) -> None:
    """What it raises is raised, as from a coroutine."""

    def work(share: Share[str]) -> Any:
        raise OopsError

    with pytest.raises(OopsError):
        await client.partitioner(NAME, ITEMS, ttl=60).run(work)
    with pytest.raises(TypeError, match=r"^work must be a function"):
        await client.partitioner(NAME, ITEMS).run("work")  # type: ignore[arg-type]


async def test_an_item_that_is_deleted_by_hand(client: Client) -> None:
    """Its work is cancelled, and it is held anew, with a new token."""
    shop = Shop()
    running = asyncio.create_task(client.partitioner(NAME, ITEMS, ttl=60).run(shop.work))
    await until(lambda: len(shop.working) == 9)
    before = shop.working["i3"]
    await client.kv.delete(before.key)
    await until(lambda: shop.working.get("i3", before) is not before)
    assert shop.working["i3"].revision > before.revision
    assert shop.begun == 10
    running.cancel()
    await asyncio.wait([running])
    check_never_twice(shop.stints)


async def test_an_item_that_is_taken_by_hand(client: Client) -> None:
    """By who puts its key anew, without the lease: its work is cancelled, and it is left to him."""
    shop = Shop()
    partitioner = client.partitioner(NAME, ITEMS, ttl=60)
    running = asyncio.create_task(partitioner.run(shop.work))
    await until(lambda: len(shop.working) == 9)
    await client.kv.put(shop.working["i3"].key, "by hand")
    await until(lambda: "i3" not in shop.working)
    assert partitioner.held == {*ITEMS} - {"i3"}
    running.cancel()
    await asyncio.wait([running])

    async def is_his_alone() -> bool:
        return [*await partitioner.holders()] == ["i3"]

    await until(is_his_alone)
    await client.kv.delete(NAME, prefix=True)


async def test_a_member_that_is_deleted_by_hand(server: EtcdServer, client: Client) -> None:
    """It comes back, and its works go on."""
    shop = Shop()
    async with members_of(server, ITEMS, shop.work) as members:
        await members.come()
        await members.come()
        await members.until_balanced()
        await until(lambda: len(shop.working) == 9)
        begun = shop.begun
        there = await client.kv.get(f"{NAME}/members/", prefix=True)
        assert there.count == 2
        await client.kv.delete(f"{NAME}/members/", prefix=True)

        async def are_back() -> bool:
            return (await client.kv.get(f"{NAME}/members/", prefix=True)).count == 2

        await until(are_back)
        await members.come()
        await members.until_balanced()
        await until(lambda: len(shop.working) == 9)
        assert shop.begun == begun + 3
    check_never_twice(shop.stints)


async def test_a_key_that_nobody_has_waited_for(server: EtcdServer, client: Client) -> None:
    """A claim that arrives late is taken on, or given back."""
    begun: list[Share[str]] = []
    working: Counter[str] = Counter()

    # One may begin before another knows that its key was deleted: nobody can have told it in time.
    async def work(share: Share[str]) -> None:
        begun.append(share)
        working[share.item] += 1
        try:
            await asyncio.Event().wait()
        finally:
            working[share.item] -= 1

    def is_each_worked_on() -> bool:
        return working == Counter(ITEMS[:2])

    async with members_of(server, ITEMS[:2], work) as members:
        await members.come()
        await members.come()
        await members.until_balanced()
        await until(is_each_worked_on)
        latest = {share.item: share for share in begun}
        one, other = latest["i0"], latest["i1"]
        for key in (one.key, other.key):  # the one's, as before; and the other's
            is_late = False
            while not is_late:
                await client.kv.delete(key)
                late = Op.put(key, "late", lease=one.lease_id)
                done = await client.kv.txn(compare=[Compare.missing(key)], success=[late])
                is_late = done.succeeded
        await until(lambda: len(begun) >= 4)
        await members.until_balanced()
        await until(is_each_worked_on)
    await until_nothing_is_left(client)


async def test_what_is_none_of_its_keys(server: EtcdServer, client: Client) -> None:
    """It makes no member and no item; an item that was taken by hand is left as it is."""
    shop = Shop()
    strange = ["members/1", "members/abc/def", "items/none", "other", "items/i0"]
    await client.kv.put_many({f"{NAME}/{key}": "" for key in strange})
    async with members_of(server, ITEMS, shop.work) as members:
        partitioner = await members.come()
        await until(lambda: len(shop.working) == 8)
        assert partitioner.held == {*ITEMS[1:]}
        holders = await partitioner.holders(timeout=10)
        assert holders["i0"].lease is None
        await client.kv.delete(f"{NAME}/items/i0")
        await members.until_balanced()
    await client.kv.delete(NAME, prefix=True)


async def test_a_client_that_closes(server: EtcdServer, client: Client) -> None:
    """The works are cancelled, and it says so; the lease is gone with it."""
    shop = Shop()
    async with Client(server.endpoint) as other:
        running = asyncio.create_task(other.partitioner(NAME, ITEMS, ttl=60).run(shop.work))
        await until(lambda: len(shop.working) == 9)
        await other.aclose()
        with pytest.raises(ClientClosedError):
            await running
        assert shop.working == {}
        with pytest.raises(ClientClosedError):
            await other.partitioner(NAME, ITEMS).run(shop.work)
    await until_nothing_is_left(client)


@pytest.mark.fault("Z1")
@pytest.mark.parametrize("native", [True, False])
async def test_z1_cancelled_at_any_moment(
    server: EtcdServer, client: Client, rng: random.Random, native: bool
) -> None:
    """No key, no lease and no task is left, and no item is ever held twice."""
    shop = Shop()
    async with members_of(server, ITEMS, shop.work) as members:
        await members.come()
        await members.until_balanced()
        for _ in range(150):
            delay = rng.uniform(0, 0.06)
            partitioner = client.partitioner(NAME, ITEMS, ttl=60)
            if native:
                running = asyncio.create_task(partitioner.run(shop.work))
                await asyncio.sleep(delay)
                running.cancel()
                if rng.random() < 0.3:
                    await asyncio.sleep(rng.uniform(0, 0.003))
                    running.cancel()
                await asyncio.wait([running])
                assert running.cancelled()
            else:
                with anyio.move_on_after(delay) as scope:
                    await partitioner.run(shop.work)
                assert scope.cancelled_caught
            assert partitioner.held == frozenset()
        await members.until_balanced()

        async def is_alone() -> bool:
            return len((await client.lease.leases()).ids) == 1

        await until(is_alone)
        await until(lambda: len(shop.working) == 9)
    check_never_twice(shop.stints)
    await until_nothing_is_left(client)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"name": ""}, ValueError, "key must not be empty"),
        ({"items": []}, ValueError, "items must not be empty"),
        ({"items": "abc"}, TypeError, "items must be several"),
        ({"items": ["a", ""]}, ValueError, "an item must not be empty"),
        ({"items": ["a", "b", "a"]}, ValueError, "items must be different ones, and 'a'"),
        ({"items": ["a", 7]}, TypeError, "an item must be str or bytes"),
        ({"value": 7}, TypeError, "value must be"),
        ({"ttl": 0}, ValueError, "ttl must be at least 1"),
    ],
)
def test_what_is_wrong(arguments: dict[str, Any], error: type[Exception], match: str) -> None:
    """It is told before anything is sent."""
    client = Client("127.0.0.1:1")
    with pytest.raises(error, match=f"^{match}"):
        client.partitioner(**({"name": NAME, "items": ITEMS} | arguments))
    assert isinstance(client.partitioner(NAME, ITEMS), Partitioner)
