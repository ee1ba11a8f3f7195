"""The tries of a transaction: why there is another one, and when there is none."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aioetcd import (
    Client,
    CompactedError,
    DeadlineExceededError,
    EtcdError,
    Isolation,
    NoEndpointError,
    StmConflictError,
    Transaction,
    UnavailableError,
)
from aioetcd.testing import FaultProxy
from tests.concurrency.transactions import (
    REPEATABLE,
    SERIALIZABLE,
    SNAPSHOT,
    Interfering,
    all_levels,
    get,
    increment,
    levels_of_one_revision,
)


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


async def test_what_was_read_for_a_try_and_is_not_used(direct: Client, proxy: FaultProxy) -> None:
    """A try that begins with another key reads what is current, all of it."""
    await direct.kv.put_many({"a": "1", "b": "1"})
    proxy.delay(0.02)  # so that a pause is less than a round trip
    tries = 0

    async def run(tx: Transaction) -> list[bytes | None]:
        nonlocal tries
        tries += 1
        if tries == 1:
            await tx.get("a")
            await direct.kv.put("a", "2")
            tx.put("k", "mine")
            return []
        await direct.kv.put_many({"a": "3", "b": "3"})
        return [await tx.get("b"), await tx.get("a")]

    async with Client(proxy.endpoint) as client:
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
    with pytest.raises((DeadlineExceededError, UnavailableError)) as caught:
        await client.stm(interfering, tries=None, timeout=0.5)
    error = caught.value
    assert isinstance(error, EtcdError)
    # The last commit may begin so late that nobody learns what became of it; that is said then.
    in_doubt = any("stm(receipt=key)" in note for note in getattr(error, "__notes__", ()))
    assert in_doubt or isinstance(error, DeadlineExceededError | NoEndpointError)
    assert in_doubt or error.maybe_applied is False
    assert (await client.kv.get("k")).value != b"mine"

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
        reading.append(asyncio.ensure_future(get(tx, "b")))
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
            tasks = [group.create_task(get(tx, str(n))) for n in range(9)]
            tasks.append(group.create_task(change_and_read()))
        return [task.result() for task in tasks]

    assert len({*await client.stm(run, isolation=isolation)}) == 1


async def test_a_first_read_that_is_cancelled(client: Client) -> None:
    """Another task's read is then the first."""
    await client.kv.put("a", "1")

    async def run(tx: Transaction) -> bytes | None:
        first, second = (asyncio.ensure_future(get(tx, "a")) for _ in range(2))
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
