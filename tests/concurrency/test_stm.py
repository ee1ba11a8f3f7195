"""Transactions: what each level of isolation promises, and what it costs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aioetcd import (
    Client,
    CompactedError,
    DeadlineExceededError,
    EtcdError,
    Isolation,
    KeyValue,
    LeaseNotFoundError,
    NoEndpointError,
    StmConflictError,
    TooManyOpsError,
    Transaction,
)
from aioetcd.testing import EtcdCluster, FaultProxy

SNAPSHOT, SERIALIZABLE = Isolation.SERIALIZABLE_SNAPSHOT, Isolation.SERIALIZABLE
REPEATABLE, COMMITTED = Isolation.REPEATABLE_READS, Isolation.READ_COMMITTED

all_levels = pytest.mark.parametrize("isolation", Isolation, ids=lambda each: each.name)
levels_of_one_revision = pytest.mark.parametrize(
    "isolation", [SNAPSHOT, SERIALIZABLE], ids=lambda each: each.name
)


async def number(tx: Transaction, key: str) -> int:
    """Read a number, 0 where there is none."""
    return int(await tx.get(key) or 0)


async def increment(tx: Transaction) -> int:
    """Count."""
    count = await number(tx, "k") + 1
    tx.put("k", str(count))
    return count


class Interfering:
    """Does something between a try's reads and its commit, in the first tries.

    Attributes:
        tries: How many there were.
    """

    def __init__(
        self,
        client: Client,
        function: Callable[[Transaction], Awaitable[object]],
        *,
        put: str,
        times: int = 1,
    ) -> None:
        self.tries = 0
        self._client = client
        self._function = function
        self._put = put
        self._times = times

    async def __call__(self, tx: Transaction) -> object:
        self.tries += 1
        result = await self._function(tx)
        if self.tries <= self._times:
            await self._client.kv.put(self._put, f"another's {self.tries}")
        return result


async def calls_of(client: Client, transaction: Awaitable[object]) -> int:
    """Give how many calls something makes."""
    before = client.stats().calls
    await transaction
    return client.stats().calls - before


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


@pytest.mark.parametrize("isolation", [SNAPSHOT, SERIALIZABLE, REPEATABLE])
async def test_another_try_is_one_call(
    direct: Client, proxy: FaultProxy, isolation: Isolation
) -> None:
    """A failed commit has read for the next try, which may then read more at that revision."""
    await direct.kv.put_many({"a": "1", "b": "1"})
    proxy.delay(0.02)  # so that a pause is less than a round trip
    tries = 0

    async def run(tx: Transaction) -> list[bytes | None]:
        nonlocal tries
        tries += 1
        seen = [await tx.get("a"), await tx.get("b")]
        if tries == 1:
            await direct.kv.put_many({"a": "2", "b": "2"})
            tx.put("k", "mine")
            return []
        if isolation is not REPEATABLE:
            await direct.kv.put_many({"a": "3", "c": "3"})
        return [*seen, await tx.get("c")]

    async with Client(proxy.endpoint) as client:
        assert await client.stm(run, isolation=isolation) == [b"2", b"2", None]
        # Two reads and a commit; then a read, and of repeatable ones the commit.
        assert client.stats().calls == 4 + (isolation is REPEATABLE)
    assert tries == 2


async def test_nobody_starves(client: Client) -> None:
    """After a pause a try reads anew: what was read before it would be old."""

    async def run(tx: Transaction) -> None:
        await tx.get("busy")
        tx.put("k", "mine")

    async def be_busy() -> None:
        while True:
            await client.kv.put("busy", "x")
            await asyncio.sleep(0.015)

    interfering = Interfering(client, run, put="busy", times=6)
    busy = asyncio.ensure_future(be_busy())
    await client.stm(interfering)
    assert interfering.tries < 40
    busy.cancel()


async def test_what_was_read_for_a_try_and_is_not_used(client: Client) -> None:
    """A try that begins with another key reads what is current, all of it."""
    await client.kv.put_many({"a": "1", "b": "1"})
    tries = 0

    async def run(tx: Transaction) -> list[bytes | None]:
        nonlocal tries
        tries += 1
        if tries == 1:
            await tx.get("a")
            await client.kv.put("a", "2")
            tx.put("k", "mine")
            return []
        await client.kv.put_many({"a": "3", "b": "3"})
        return [await tx.get("b"), await tx.get("a")]

    assert await client.stm(run) == [b"3", b"3"]


async def test_conflicts_have_an_end(client: Client) -> None:
    """The error says what was in the way, how often, and that nothing was written."""

    async def run(tx: Transaction) -> None:
        await tx.get_many(["a", "quiet"])
        tx.put("k", "mine")

    interfering = Interfering(client, run, put="a", times=9)
    with pytest.raises(StmConflictError, match=r"in 3 tries: others changed b'a'$") as caught:
        await client.stm(interfering, tries=3)
    assert interfering.tries == caught.value.tries == 3
    assert caught.value.keys == (b"a",)
    assert caught.value.maybe_applied is False
    assert (await client.kv.get("k")).kv is None

    interfering = Interfering(client, run, put="k", times=9)
    with pytest.raises(StmConflictError, match=r"in one try: others changed b'k'$"):
        await client.stm(interfering, tries=1)
    assert interfering.tries == 1
    interfering = Interfering(client, run, put="a", times=5)
    await client.stm(interfering, tries=None, timeout=None)
    assert interfering.tries == 6


async def test_a_deadline_is_for_all_of_it(client: Client) -> None:
    """However many tries are left, there is an end; and nothing is sent after it."""

    async def blind(tx: Transaction) -> None:
        await tx.get("k")
        tx.put("k", "mine")

    interfering = Interfering(client, blind, put="k", times=10**9)
    with pytest.raises((DeadlineExceededError, NoEndpointError)) as caught:
        await client.stm(interfering, tries=None, timeout=0.5)
    assert isinstance(caught.value, EtcdError)
    assert caught.value.maybe_applied is False

    async def dawdle(tx: Transaction) -> None:
        tx.put("late", "x")
        await asyncio.sleep(0.05)

    late = r"^the transaction was not committed in one try within 0\.02 s$"
    with pytest.raises(DeadlineExceededError, match=late) as caught:
        await client.stm(dawdle, timeout=0.02)
    assert caught.value.maybe_applied is False
    assert (await client.kv.get("late")).kv is None
    async with Client("127.0.0.1:1") as nobody:
        with pytest.raises(NoEndpointError):
            await nobody.stm(increment, timeout=0.2)


@all_levels
async def test_what_the_function_raises(client: Client, isolation: Isolation) -> None:
    """It leaves as itself, after one try, and nothing is written."""
    tries = 0

    async def run(tx: Transaction) -> None:
        nonlocal tries
        tries += 1
        tx.put("k", await tx.get("a") or "x")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await client.stm(run, isolation=isolation)
    assert tries == 1
    assert (await client.kv.get("k")).kv is None


async def test_a_try_that_is_over(client: Client) -> None:
    """Its handle is of no use any more, also where a read was under way."""
    kept: list[Transaction] = []
    reading: list[asyncio.Task[Any]] = []

    async def run(tx: Transaction) -> None:
        kept.append(tx)
        await tx.get("a")
        reading.append(asyncio.ensure_future(_get(tx, "b")))
        await asyncio.sleep(0)
        tx.put("k", "1")

    await client.stm(run)
    (tx,) = kept
    assert repr(tx).endswith(" read, 1 written, over>")
    with pytest.raises(RuntimeError, match="this try of the transaction is over"):
        tx.put("k", "2")
    with pytest.raises(RuntimeError, match="this try of the transaction is over"):
        tx.delete("k")
    for awaited in (tx.get("a"), tx.get_many(["a"]), tx.revision("a"), reading[0]):
        with pytest.raises(RuntimeError, match="this try of the transaction is over"):
            await awaited
    assert (await client.kv.get("k")).value == b"1"


@levels_of_one_revision
async def test_tasks_share_a_try(client: Client, isolation: Isolation) -> None:
    """They all read the revision of whoever is first."""
    await client.kv.put_many({str(n): "0" for n in range(10)})

    async def run(tx: Transaction) -> list[bytes | None]:
        async def change_and_read() -> bytes | None:
            await client.kv.put_many({str(n): "1" for n in range(10)})
            return await tx.get("9")

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_get(tx, str(n))) for n in range(9)]
            tasks.append(group.create_task(change_and_read()))
        return [task.result() for task in tasks]

    assert len({*await client.stm(run, isolation=isolation)}) == 1


async def _get(tx: Transaction, key: str) -> bytes | None:
    return await tx.get(key)


async def test_a_first_read_that_is_cancelled(client: Client) -> None:
    """Another task's read is then the first."""
    await client.kv.put("a", "1")

    async def run(tx: Transaction) -> bytes | None:
        first, second = (asyncio.ensure_future(_get(tx, "a")) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        return await second

    assert await client.stm(run) == b"1"


@pytest.mark.parametrize("swallows", [True, False])
async def test_compaction_during_a_try(client: Client, swallows: bool) -> None:
    """What was pinned is gone: there is another try, whatever the function makes of that."""
    tries: list[Transaction] = []

    async def run(tx: Transaction) -> bytes | None:
        tries.append(tx)
        await tx.get("a")
        if len(tries) == 1:
            now = (await client.kv.put("a", "2")).header.revision
            await client.kv.compact(now)
        if not swallows:
            async with asyncio.TaskGroup() as group:
                task = group.create_task(tx.get("b"))
            return task.result()
        try:
            await tx.get("b")
        except CompactedError:
            return b"swallowed"
        return b"read"

    assert await client.stm(run) == (b"read" if swallows else None)
    assert len(tries) == 2
    tries.clear()
    with pytest.raises(CompactedError):
        await client.stm(run, tries=1)


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


async def test_who_shares_a_receipt(client: Client) -> None:
    """They are in one another's way; the error names it."""
    interfering = Interfering(client, increment, put="receipt", times=1)
    await client.stm(interfering, receipt="receipt", tries=1)  # it was not there yet
    interfering = Interfering(client, increment, put="receipt", times=1)
    with pytest.raises(StmConflictError, match="others changed b'receipt'"):
        await client.stm(interfering, receipt="receipt", tries=1)
    interfering = Interfering(client, increment, put="receipt", times=3)
    assert await client.stm(interfering, receipt="receipt") == 2
    assert interfering.tries == 4


@pytest.mark.fault("K12")
async def test_k12_members_that_are_behind() -> None:
    """A member without a quorum cannot make what it has be believed; one behind is not asked."""
    async with EtcdCluster(3) as cluster:
        leader = await cluster.leader()
        behind = next(each for each in cluster.members if each is not leader)
        async with Client(leader.endpoint) as client, Client(behind.endpoint) as isolated:
            await client.kv.put_many({"a": "1", "b": "1"})
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
                reading = asyncio.ensure_future(_get(tx, "b"))
                await asyncio.sleep(0)
                await cluster.rejoin(behind)
                return [a, await reading]

            assert await client.stm(read_here_and_there, timeout=20) == [b"2", b"2"]
