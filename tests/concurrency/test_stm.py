"""Transactions: what each level of isolation promises, and what it costs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aioetcd import (
    Client,
    EtcdError,
    Isolation,
    KeyValue,
    LeaseNotFoundError,
    TooManyOpsError,
    Transaction,
)
from aioetcd.testing import EtcdCluster
from tests.concurrency.transactions import (
    COMMITTED,
    REPEATABLE,
    SERIALIZABLE,
    SNAPSHOT,
    Interfering,
    all_levels,
    calls_of,
    get,
    increment,
)


@all_levels
async def test_it_is_committed_at_once(client: Client, isolation: Isolation) -> None:
    """What it writes is there at one revision, and what it returns is returned."""
    lease = await client.lease.grant(60)
    await client.kv.put_many({"a": "1", "gone": "x"})

    async def run(tx: Transaction) -> list[object]:
        seen: list[object] = [await tx.get("a"), await tx.get(b"missing")]
        tx.put("b", "old")
        tx.put("b", b"new", lease=lease)
        tx.delete("gone")
        tx.delete("never there")
        return seen

    before = (await client.kv.get("a")).header.revision
    assert await client.stm(run, isolation=isolation) == [b"1", None]
    found = await client.kv.get("", prefix=True)
    assert found.as_dict() == {b"a": b"1", b"b": b"new"}
    assert found.header.revision == before + 1
    (written,) = [kv for kv in found.kvs if kv.key == b"b"]
    assert written.lease == lease.id
    await client.lease.revoke(lease)


@all_levels
async def test_own_writes_are_seen(client: Client, isolation: Isolation) -> None:
    """A try reads its own writes; their revision is that of the store."""
    put = await client.kv.put("a", "1")

    async def run(tx: Transaction) -> None:
        tx.put("a", "2")
        tx.put("new", "3")
        assert await tx.get("a") == b"2"
        assert await tx.get_many(["a", "new", "none", "a"]) == {
            b"a": b"2",
            b"new": b"3",
            b"none": None,
        }
        assert await tx.revision("a") == put.header.revision
        assert await tx.revision("new") == await tx.revision("none") == 0
        tx.delete("a")
        assert await tx.get("a") is None
        tx.put("a", "4")

    await client.stm(run, isolation=isolation)
    assert (await client.kv.get("a")).value == b"4"


@all_levels
async def test_many_at_once(client: Client, isolation: Isolation) -> None:
    """Each sees what the one before has written; where nothing is compared, some are lost."""
    await client.kv.put("k", "0")
    returned = await asyncio.gather(
        *(client.stm(increment, isolation=isolation, timeout=30) for _ in range(10))
    )
    if isolation is COMMITTED:
        assert len({*returned}) < 10
    else:
        assert sorted(returned) == [*range(1, 11)]
        assert (await client.kv.get("k")).value == b"10"


@all_levels
async def test_write_skew(client: Client, isolation: Isolation) -> None:
    """Each leaves the duty because the other one is on it; then nobody is, by the last level."""
    await client.kv.put_many({"a": "on", "b": "on"})
    both_have_read = asyncio.Barrier(2)
    first = [True, True]

    def leave(who: int) -> Callable[[Transaction], Awaitable[bool]]:
        async def run(tx: Transaction) -> bool:
            on_duty = await tx.get_many(["a", "b"])
            if first[who]:
                first[who] = False
                await both_have_read.wait()
            if [*on_duty.values()].count(b"on") < 2:
                return False
            tx.put("ab"[who], "off")
            return True

        return run

    left = await asyncio.gather(*(client.stm(leave(who), isolation=isolation) for who in (0, 1)))
    assert sorted(left) == ([True, True] if isolation is COMMITTED else [False, True])


@all_levels
async def test_what_is_written_unread(client: Client, isolation: Isolation) -> None:
    """Only a snapshot minds that it was changed after the first read; as in Go."""

    async def run(tx: Transaction) -> None:
        await tx.get("a")
        tx.put("k", "mine")

    interfering = Interfering(client, run, put="k")
    await client.stm(interfering, isolation=isolation)
    assert interfering.tries == (2 if isolation is SNAPSHOT else 1)
    assert (await client.kv.get("k")).value == b"mine"


@all_levels
async def test_what_is_read_changes(client: Client, isolation: Isolation) -> None:
    """There is another try, which sees it; unless nothing is compared."""

    async def run(tx: Transaction) -> None:
        tx.put("k", await tx.get("a") or "nothing")

    interfering = Interfering(client, run, put="a")
    await client.stm(interfering, isolation=isolation)
    assert interfering.tries == (1 if isolation is COMMITTED else 2)
    expected = b"nothing" if isolation is COMMITTED else b"another's 1"
    assert (await client.kv.get("k")).value == expected


@all_levels
async def test_what_is_written_blindly(client: Client, isolation: Isolation) -> None:
    """Without any read nothing is compared, and it costs one call."""

    async def run(tx: Transaction) -> None:
        tx.put("k", "mine")

    interfering = Interfering(client, run, put="k")
    assert await calls_of(client, client.stm(interfering, isolation=isolation)) == 2
    assert interfering.tries == 1
    assert (await client.kv.get("k")).value == b"mine"


@all_levels
async def test_reads_of_one_revision(client: Client, isolation: Isolation) -> None:
    """Keys fit together while the function runs, where the level says so, and when it returns."""
    await client.kv.put_many({"a": "1", "b": "1"})
    seen: list[tuple[bytes | None, ...]] = []

    async def run(tx: Transaction) -> tuple[bytes | None, ...]:
        a = await tx.get("a")
        if not seen:
            await client.kv.put_many({"a": "2", "b": "2"})
        seen.append((a, await tx.get("b")))
        assert await tx.get("a") == a  # each is read once
        return seen[-1]

    got = await client.stm(run, isolation=isolation)
    if isolation in (SNAPSHOT, SERIALIZABLE):
        assert seen == [(b"1", b"1")]
    else:
        assert seen[0] == (b"1", b"2")
        assert got == ((b"2", b"2") if isolation is REPEATABLE else seen[0])


@all_levels
async def test_what_reading_costs(client: Client, isolation: Isolation) -> None:
    """A read is a call, or many are one; only repeatable reads must be committed."""
    committed = isolation is REPEATABLE

    async def run(tx: Transaction) -> None:
        for _ in range(3):
            await tx.get("a")
            await tx.get("b")
            await tx.revision("a")

    async def run_prefetched(tx: Transaction) -> None:
        assert len(await tx.get_many([f"k{n}" for n in range(128)])) == 128
        for n in range(128):
            await tx.get(f"k{n}")

    async def run_idle(tx: Transaction) -> None:
        assert await tx.get_many([]) == {}

    assert await calls_of(client, client.stm(run, isolation=isolation)) == 2 + committed
    cost = await calls_of(client, client.stm(run_prefetched, isolation=isolation))
    assert cost == 1 + committed
    assert await calls_of(client, client.stm(run_idle, isolation=isolation)) == 0
    assert await calls_of(client, client.stm(increment, isolation=isolation)) == 2


async def test_refused(client: Client) -> None:
    """What the server refuses is an error of its kind; nothing is written."""

    async def too_many(tx: Transaction) -> None:
        for n in range(129):
            tx.put(f"k{n}", "v")

    async def no_lease(tx: Transaction) -> None:
        tx.put("k", "v", lease=12345)

    with pytest.raises(TooManyOpsError):
        await client.stm(too_many)
    with pytest.raises(LeaseNotFoundError):
        await client.stm(no_lease)
    assert (await client.kv.get("", prefix=True, count_only=True)).count == 0


async def test_wrong_arguments(client: Client) -> None:
    """They are refused before anything is sent."""
    wrong: Any = 7
    before = client.stats().calls
    with pytest.raises(TypeError, match=r"^fn must be a function"):
        await client.stm(wrong)
    with pytest.raises(TypeError, match=r"^isolation must be an Isolation"):
        await client.stm(increment, isolation=wrong)
    with pytest.raises(ValueError, match=r"^tries must be at least 1, not 0 \(None: no limit\)"):
        await client.stm(increment, tries=0)
    with pytest.raises(ValueError, match=r"^receipt must not be empty"):
        await client.stm(increment, receipt="")

    async def run(tx: Transaction) -> None:
        for wrong_key in ("", "receipt"):
            with pytest.raises(ValueError, match=r"must not be empty|is the receipt of this"):
                await tx.get(wrong_key)
            with pytest.raises(ValueError, match=r"must not be empty|is the receipt of this"):
                tx.put(wrong_key, "x")
            with pytest.raises(ValueError, match=r"must not be empty|is the receipt of this"):
                tx.delete(wrong_key)
        with pytest.raises(TypeError, match=r"^value must be"):
            tx.put("k", wrong)
        with pytest.raises(ValueError, match=r"^lease must not be 0"):
            tx.put("k", "v", lease=0)
        with pytest.raises(TypeError, match=r"^keys must be many"):
            await tx.get_many("ab")

    await client.stm(run, receipt="receipt")
    assert client.stats().calls == before


async def test_below_a_prefix(client: Client) -> None:
    """The keys are those of the namespace, the receipt's too."""
    tenant = client.namespace("/tenant-7/")
    await client.kv.put("/tenant-7/k", "6")
    assert await tenant.stm(increment, receipt="receipt") == 7
    keys = [kv.key for kv in (await client.kv.get("", prefix=True)).kvs]
    assert keys == [b"/tenant-7/k", b"/tenant-7/receipt"]


@all_levels
async def test_a_receipt(client: Client, isolation: Isolation) -> None:
    """Each commit changes it; it is read beside the first key, and put where it is missing."""

    async def receipt() -> KeyValue:
        kv = (await client.kv.get("receipt")).kv
        assert kv is not None
        return kv

    async def blind(tx: Transaction) -> None:
        tx.put("k", "0")

    async def run(function: Callable[[Transaction], Awaitable[object]]) -> int:
        return await calls_of(client, client.stm(function, isolation=isolation, receipt="receipt"))

    assert await run(increment) == 4
    first = await receipt()
    assert first.version == 2
    assert await run(increment) == 3
    assert await run(blind) == 2
    last = await receipt()
    assert last.version == 4
    assert last.value != first.value
    await client.kv.put("receipt", "somebody's")
    assert await run(increment) == 3
    assert await calls_of(client, client.kv.delete("receipt")) == 1
    assert await run(increment) == 4


@pytest.mark.fault("K12")
async def test_k12_members_that_are_behind() -> None:
    """A member without a quorum cannot make what it has be believed; one behind is not asked."""
    async with EtcdCluster(3) as cluster:
        leader = await cluster.leader()
        behind = next(each for each in cluster.members if each is not leader)
        async with Client(leader.endpoint) as client, Client(behind.endpoint) as isolated:
            await client.kv.put_many({"a": "1", "b": "1"})

            async def read_on(tx: Transaction) -> bytes | None:
                await tx.get("a")
                await cluster.isolate(behind)
                return await tx.get("b")  # of the same revision any member may tell

            assert await isolated.stm(read_on, timeout=3) == b"1"
            await cluster.rejoin(behind)
            await cluster.wait_healthy()
            await isolated.ping()
            assert (await isolated.kv.get("b")).value == b"1"
            await cluster.isolate(behind)
            await client.kv.put_many({"a": "2", "b": "2"})

            async def read(tx: Transaction) -> list[bytes | None]:
                return [await tx.get("a"), await tx.get("b")]

            for level in (SNAPSHOT, SERIALIZABLE, REPEATABLE):
                with pytest.raises((EtcdError, TimeoutError)):
                    await isolated.stm(read, isolation=level, timeout=1)
            assert await isolated.stm(read, isolation=COMMITTED, timeout=1) == [b"1", b"1"]

            async def read_here_and_there(tx: Transaction) -> list[bytes | None]:
                a = await tx.get("a")
                client.set_endpoints([behind.endpoint])
                reading = asyncio.ensure_future(get(tx, "b"))
                await asyncio.sleep(0)
                await cluster.rejoin(behind)
                return [a, await reading]

            assert await client.stm(read_here_and_there, timeout=20) == [b"2", b"2"]
