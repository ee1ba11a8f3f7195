"""Transactions whose answers are lost, that are cancelled, and many of both at a time."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any, cast

import anyio
import pytest

from aioetcd import (
    KV,
    Client,
    EtcdError,
    Isolation,
    PermissionDeniedError,
    Transaction,
    UnavailableError,
)
from aioetcd._constructor import create
from aioetcd._transport.calls import Calls
from aioetcd._transport.methods import RANGE, TXN, Method
from aioetcd.concurrency.stm import Stm
from aioetcd.testing import EtcdServer, FaultProxy
from tests.harness import Faulty, until_answer_lost, until_request_lost, writes_through

SECONDS = float(os.environ.get("AIOETCD_TEST_BANK", "4"))
"""How long money is moved."""

Move = Callable[[Transaction], Awaitable[Any]]


async def increment(tx: Transaction) -> int:
    """Count."""
    count = int(await tx.get("k") or 0) + 1
    tx.put("k", str(count))
    return count


async def blind(tx: Transaction) -> str:
    """Write what nobody else writes, without looking."""
    tx.put("k", "blind")
    return "written"


async def unread(tx: Transaction) -> str:
    """Write a key after a look at another one."""
    await tx.get("other")
    return await blind(tx)


class Losing:
    """Loses what a function's commit sends, in its first try: the answer, or the request.

    Args:
        faulty: The client, and its proxy.
        function: The function.
        applied: Whether the request arrives.

    Attributes:
        tries: How many there were.
    """

    def __init__(self, faulty: Faulty, function: Move, *, applied: bool) -> None:
        self.tries = 0
        self._faulty = faulty
        self._function = function
        self._applied = applied
        self._before: int | None = None

    async def __call__(self, tx: Transaction) -> Any:
        self.tries += 1
        result = await self._function(tx)
        if self.tries == 1:
            self._before = (await self._faulty.oracle.kv.get("k")).header.revision
            self._faulty.proxy.blackhole(
                client_to_server=not self._applied, server_to_client=self._applied
            )
        return result

    async def lost(self) -> None:
        """Wait until it is."""
        if not self._applied:
            await until_request_lost(self._faulty.proxy)
            return

        async def is_applied() -> bool:
            kv = (await self._faulty.oracle.kv.get("k")).kv
            return kv is not None and self._before is not None and kv.mod_revision > self._before

        await until_answer_lost(self._faulty.proxy, is_applied)

    async def go_on(self) -> None:
        """Let the client find out."""
        await self._faulty.proxy.heal()
        self._faulty.proxy.cut()


@asynccontextmanager
async def losing(
    faulty: Faulty, function: Move, *, applied: bool, **options: Any
) -> AsyncIterator[asyncio.Task[Any]]:
    """Run a transaction; the block is for what others do before the client knows of the loss."""
    if "receipt" in options:  # or what is lost is its creation
        await faulty.oracle.kv.put("receipt", "somebody's")
    lost = Losing(faulty, function, applied=applied)
    running = asyncio.ensure_future(faulty.client.stm(lost, **options))
    await lost.lost()
    try:
        yield running
    finally:
        await lost.go_on()
        await asyncio.wait([running])
        await faulty.oracle.kv.delete("", prefix=True)


async def value(faulty: Faulty) -> bytes | None:
    """Read what is there in the end."""
    return (await faulty.oracle.kv.get("k")).value


async def test_k3_a_request_is_lost(faulty: Faulty) -> None:
    """The keys are as they were: the same is sent again."""
    await faulty.oracle.kv.put("k", "6")
    lost = Losing(faulty, increment, applied=False)
    running = asyncio.ensure_future(faulty.client.stm(lost))
    await lost.lost()
    await lost.go_on()
    assert await running == 7
    assert lost.tries == 1
    assert await value(faulty) == b"7"
    await faulty.oracle.kv.delete("", prefix=True)


async def test_k3_a_request_is_lost_and_others_were_faster(faulty: Faulty) -> None:
    """It never will be applied: there is another try."""
    await faulty.oracle.kv.put_many({"k": "6", "other": "x"})

    async def run(tx: Transaction) -> Any:
        await tx.get("other")
        return await increment(tx)

    async with losing(faulty, run, applied=False) as running:
        await faulty.oracle.kv.put("other", "y")
        await faulty.proxy.heal()
        faulty.proxy.cut()
        assert await running == 7
        assert await value(faulty) == b"7"


@pytest.mark.parametrize("others_write", [True, False])
async def test_k3_an_answer_is_lost(faulty: Faulty, others_write: bool) -> None:
    """Without a receipt it cannot be told, for others may have written the same."""
    await faulty.oracle.kv.put("k", "6")
    async with losing(faulty, increment, applied=True) as running:
        if others_write:
            await faulty.oracle.kv.put("k", "70")
        await faulty.proxy.heal()
        faulty.proxy.cut()
        with pytest.raises(EtcdError) as caught:
            await running
        assert caught.value.maybe_applied is True
        assert any("stm(receipt=key)" in note for note in caught.value.__notes__)
        assert await value(faulty) == (b"70" if others_write else b"7")


@pytest.mark.parametrize("function", [increment, blind])
@pytest.mark.parametrize("applied", [True, False])
async def test_k3_creating_cannot_be_told(faulty: Faulty, function: Move, applied: bool) -> None:
    """Of a key that was missing, or not read: it may have been created, and deleted since."""
    async with losing(faulty, function, applied=applied) as running:
        await faulty.proxy.heal()
        faulty.proxy.cut()
        with pytest.raises(EtcdError) as caught:
            await running
        assert caught.value.maybe_applied is True


@pytest.mark.parametrize("isolation", Isolation, ids=lambda each: each.name)
@pytest.mark.parametrize("function", [increment, unread])
@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("others", ["nobody", "key", "receipt", "both", "delete"])
async def test_k3_with_a_receipt(
    faulty: Faulty, function: Move, applied: bool, isolation: Isolation, others: str
) -> None:
    """Whatever was lost, and whatever others do: it is known, and made once."""
    result: Any = 1 if function is increment else "written"
    tries = 0

    async def run(tx: Transaction) -> Any:
        nonlocal tries
        tries += 1
        return await function(tx)

    options = {"receipt": "receipt", "isolation": isolation}
    async with losing(faulty, run, applied=applied, **options) as running:
        kv = faulty.oracle.kv
        if others in ("key", "both"):
            await kv.put("k", "100")
        if others in ("receipt", "both"):
            await kv.put("receipt", "x")
            await kv.put("receipt", "y")
        if others == "delete":
            await kv.delete("receipt")
        await faulty.proxy.heal()
        faulty.proxy.cut()
        changed = others in ("key", "both")
        if function is increment and changed and not applied:
            result = 101
        assert await running == result
        assert tries == (1 if applied else 2)
        expected = b"100" if changed and applied else b"blind" if function is unread else None
        assert await value(faulty) == (expected or str(result).encode())


async def test_k3_a_receipt_whose_history_is_gone(faulty: Faulty) -> None:
    """Then nobody can tell, and the error says so."""
    async with losing(faulty, increment, applied=True, receipt="receipt") as running:
        for _ in range(2):
            put = await faulty.oracle.kv.put("receipt", "x")
        await faulty.oracle.kv.compact(put.header.revision)
        await faulty.proxy.heal()
        faulty.proxy.cut()
        with pytest.raises(EtcdError) as caught:
            await running
        assert caught.value.maybe_applied is True
        assert caught.value.__cause__ is not None


@pytest.mark.fault("K3")
async def test_k3_there_is_time_to_find_out(faulty: Faulty) -> None:
    """An answer that does not come takes half of the time; then another endpoint is asked."""
    endpoints = [faulty.proxy.endpoint, faulty.server.endpoint]
    async with Client(endpoints) as client:
        await client.kv.put("receipt", "somebody's")
        tries = 0

        async def run(tx: Transaction) -> int:
            nonlocal tries
            tries += 1
            count = await increment(tx)
            faulty.proxy.blackhole(client_to_server=False)
            return count

        assert await client.stm(run, receipt="receipt", timeout=4) == 1
    assert tries == 1
    assert await value(faulty) == b"1"
    await faulty.oracle.kv.delete("", prefix=True)


async def test_k3_surely_not_applied(faulty: Faulty) -> None:
    """Where there is to be no other try, the error says that nothing was written."""
    options = {"receipt": "receipt", "tries": 1}
    async with losing(faulty, increment, applied=False, **options) as running:
        await faulty.proxy.heal()
        faulty.proxy.cut()
        with pytest.raises(EtcdError) as caught:
            await running
        assert caught.value.maybe_applied is False
        assert await value(faulty) is None


class Late:
    """Stands before a client's calls, and keeps the first txn that writes under way.

    Args:
        calls: They.
        refused: What becomes of the next ones; None where they are made.

    Attributes:
        request: That txn.
    """

    def __init__(self, calls: Calls, refused: EtcdError | None = None) -> None:
        self._calls = calls
        self._refused = refused
        self.prefix = calls.prefix
        self.request: Any = None

    async def unary(self, method: Method[Any, Any], request: Any, timeout: Any = None) -> Any:
        if method is TXN and self.request is None:
            self.request = request
            raise UnavailableError("the answer was lost", maybe_applied=True)
        if method is TXN and self._refused is not None:
            raise self._refused
        return await self._calls.unary(method, request, timeout)

    async def arrive(self) -> bool:
        """Have it arrive; give whether it is applied."""
        response = await self._calls.unary(TXN, self.request)
        return bool(response.succeeded)


async def with_late(
    client: Client,
    function: Move,
    receipt: str | None,
    refused: EtcdError | None = None,
    make: type[Late] = Late,
) -> tuple[Any, Late]:
    """Run a transaction whose first commit is late; give what it returns."""
    late = make(client._calls, refused)
    parts = client._parts._replace(kv=create(KV, cast("Calls", late)))
    stm = Stm(
        parts,
        function,
        isolation=Isolation.SERIALIZABLE_SNAPSHOT,
        tries=None,
        receipt=receipt,
        timeout=10,
    )
    return await stm.run(), late


@pytest.mark.parametrize("receipt", [None, "receipt"])
async def test_k4_a_late_commit(client: Client, receipt: str | None) -> None:
    """One that arrives when all is done already is not applied a second time."""
    await client.kv.put("k", "6")
    result, late = await with_late(client, increment, receipt)
    assert result == 7
    assert await late.arrive() is False
    assert (await client.kv.get("k")).value == b"7"


async def test_k4_what_is_refused_the_second_time(client: Client) -> None:
    """That the second copy was not applied says nothing of the first."""
    await client.kv.put("k", "6")
    with pytest.raises(UnavailableError) as caught:
        await with_late(client, increment, None, refused=PermissionDeniedError("no longer"))
    assert caught.value.maybe_applied is True


async def test_k4_it_arrives_while_one_looks(client: Client) -> None:
    """What is looked at is of one revision, or one would see half of a commit."""

    class Arriving(Late):
        async def unary(self, method: Method[Any, Any], request: Any, timeout: Any = None) -> Any:
            answer = await super().unary(method, request, timeout)
            if method is RANGE and self.request is not None and not self.arrived:
                self.arrived = True
                assert await self.arrive()
            return answer

        arrived = False

    async def move(tx: Transaction) -> None:
        a, b = int(await tx.get("a") or 0), int(await tx.get("b") or 0)
        tx.put("a", str(a - 1))
        tx.put("b", str(b + 1))

    await client.kv.put_many({"a": "5", "b": "5"})
    with pytest.raises(UnavailableError) as caught:
        await with_late(client, move, None, make=Arriving)
    assert caught.value.maybe_applied is True
    assert (await client.kv.get("", prefix=True)).as_dict() == {b"a": b"4", b"b": b"6"}


@pytest.mark.parametrize("others", ["nobody", "create"])
async def test_k4_what_was_given_up_is_never_applied(client: Client, others: str) -> None:
    """Also where the next try wants nothing, and what it compares is as it was again."""
    tries = 0

    async def run(tx: Transaction) -> str:
        nonlocal tries
        tries += 1
        await tx.get("k")
        if tries == 1:
            tx.put("k", "mine")
            if others == "create":
                await client.kv.put("k", "another's")
        return f"after {tries}"

    result, late = await with_late(client, run, "receipt")
    assert result == "after 2"
    await client.kv.delete("k")
    assert await late.arrive() is False
    assert (await client.kv.get("k")).kv is None


Cancel = Callable[[asyncio.Task[Any], anyio.CancelScope], object]
CANCELS: dict[str, Cancel] = {
    "natively": lambda task, scope: task.cancel(),
    "by a scope": lambda task, scope: scope.cancel(),
}


async def test_a_scope_of_its_caller_has_its_own_cancellation(
    client: Client, rng: random.Random
) -> None:
    """At whatever moment its time is over, the block ends, and whoever is around goes on."""
    ended = 0

    async def move(tx: Transaction) -> None:
        tx.put("a", str(int(await tx.get("a") or 0) + 1))

    async def run() -> None:
        nonlocal ended
        for _ in range(40):
            with anyio.move_on_after(rng.uniform(0, 0.01)):
                await client.stm(move, receipt="receipt")
        ended += 1

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(run)
    assert ended == 5


@pytest.mark.fault("X5")
@pytest.mark.parametrize("how", CANCELS)
@pytest.mark.parametrize("receipt", [None, "receipt"])
async def test_x5_cancelled_at_any_moment(
    client: Client, rng: random.Random, how: str, receipt: str | None
) -> None:
    """340 transactions cancelled at any moment: all of it is written, or nothing."""

    async def move(tx: Transaction) -> None:
        a, b = int(await tx.get("a") or 0), int(await tx.get("b") or 0)
        tx.put("a", str(a - 1))
        tx.put("b", str(b + 1))

    async def cancellable(scope: anyio.CancelScope) -> None:
        with scope:
            await client.stm(move, receipt=receipt)
            outcomes["done"] += 1

    outcomes: Counter[str] = Counter()
    took = 0.0
    for _ in range(5):
        began = monotonic()
        await client.stm(move, receipt=receipt)
        took = max(took, monotonic() - began)
    moved = 5
    for number in range(340):
        scope = anyio.CancelScope()
        task = asyncio.ensure_future(cancellable(scope))
        if number < 40:  # before each step that it makes by itself
            for _ in range(number):
                await asyncio.sleep(0)
        else:
            await asyncio.sleep(rng.uniform(0, took))
        CANCELS[how](task, scope)
        await asyncio.wait([task])
        # A request that was cancelled is at the server before the next one, or never.
        found = (await client.kv.get_many(["a", "b"])).as_dict()
        assert int(found[b"a"]) + int(found[b"b"]) == 0
        outcomes["moved"] += int(found[b"b"]) - moved
        moved = int(found[b"b"])
    assert 0 < outcomes["done"] <= outcomes["moved"] < 340


@pytest.mark.parametrize("how", CANCELS)
async def test_cancelled_while_it_finds_out(faulty: Faulty, how: str) -> None:
    """It ends at once, wherever it is."""
    await faulty.oracle.kv.put("receipt", "somebody's")  # or what is lost is its creation
    scope = anyio.CancelScope()
    lost = Losing(faulty, increment, applied=True)

    async def run() -> None:
        with scope:
            await faulty.client.stm(lost, receipt="receipt", timeout=None)

    running = asyncio.ensure_future(run())
    await lost.lost()
    faulty.proxy.hang()
    faulty.proxy.cut()
    await asyncio.sleep(0.05)
    CANCELS[how](running, scope)
    async with asyncio.timeout(5):
        await asyncio.wait([running])
    assert running.cancelled() is (how == "natively")
    await faulty.proxy.heal()
    await faulty.oracle.kv.delete("", prefix=True)


async def test_a_closed_client(client: Client, server: EtcdServer) -> None:
    """The transaction ends with the client."""
    is_reading = asyncio.Event()

    async def run(tx: Transaction) -> None:
        await tx.get("a")
        is_reading.set()
        await asyncio.Event().wait()

    async with Client(server.endpoint) as other:

        async def use(tx: Transaction) -> None:
            await other.aclose()
            await tx.get("a")

        with pytest.raises(EtcdError, match="closed"):
            await other.stm(use)
    running = asyncio.ensure_future(client.stm(run))
    await is_reading.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


ACCOUNTS = [f"/accounts/{number}" for number in range(10)]
EACH = 1000


class Bank:
    """Tasks that move money between accounts, by way of a client each few share.

    Attributes:
        outcomes: What became of the transfers.
        sums: How often all accounts were read.
    """

    def __init__(self, clients: list[Client], rng: random.Random) -> None:
        self.outcomes: Counter[str] = Counter()
        self.sums = 0
        self._clients = clients
        self._rng = rng
        self._is_over = False

    async def move(self, number: int) -> None:
        """Move money, again and again."""
        client = self._clients[number % len(self._clients)]
        # Every other task has a receipt of its own.
        receipt = f"/receipts/{number}" if number % 2 else None
        while not self._is_over:
            source, target = self._rng.sample(ACCOUNTS, 2)

            async def transfer(tx: Transaction, source: str = source, target: str = target) -> bool:
                self.outcomes["tries"] += 1
                there, here = int(await tx.get(source) or 0), int(await tx.get(target) or 0)
                if there < 10:
                    return False
                tx.put(source, str(there - 10))
                tx.put(target, str(here + 10))
                return True

            try:
                await client.stm(transfer, receipt=receipt, timeout=5)
            except EtcdError as error:
                kind = "unknown" if error.maybe_applied else "failed"
                self.outcomes[kind] += 1
                self.outcomes[f"{kind} with a receipt"] += receipt is not None
            else:
                self.outcomes["done"] += 1

    async def audit(self, client: Client) -> None:
        """Read all accounts in a transaction, again and again."""

        async def add(tx: Transaction) -> int:
            # Not `get_many`: etcd before 3.5.7 dies of one that is cut off.
            return sum([int(await tx.get(key) or 0) for key in ACCOUNTS])

        while not self._is_over:
            try:
                total = await client.stm(add, timeout=5)
            except EtcdError as error:
                self.outcomes["unknown" if error.maybe_applied else "failed audits"] += 1
            else:
                assert total == EACH * len(ACCOUNTS)
                self.sums += 1

    def end(self) -> None:
        """Let each task end after its transfer."""
        self._is_over = True


@pytest.mark.fault("K5")
async def test_k5_bank(client: Client, server: EtcdServer, rng: random.Random) -> None:
    """Money moved by 20 tasks is neither made nor lost, in each sum of it, while links break."""
    await client.kv.put_many(dict.fromkeys(ACCOUNTS, str(EACH)))
    async with (
        FaultProxy(server.endpoint) as first,
        FaultProxy(server.endpoint) as second,
        Client(first.endpoint) as one,
        Client(second.endpoint) as other,
    ):
        bank = Bank([one, other], rng)
        until_then = monotonic() + SECONDS
        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(bank.move(number))
            for auditor in (client, one):
                group.create_task(bank.audit(auditor))
            while monotonic() < until_then:
                proxy = rng.choice([first, second])
                fault = rng.choice(["cut", "cut after", "blackhole"])
                if fault == "cut":
                    proxy.cut()
                elif fault == "cut after":
                    proxy.cut_after(rng.randint(1, 2000))
                else:
                    proxy.blackhole(client_to_server=rng.random() < 0.5)
                    await asyncio.sleep(rng.uniform(0, 0.1))
                    await proxy.heal()
                await asyncio.sleep(rng.uniform(0.05, 0.4))
            bank.end()
            await first.heal()
            await second.heal()
    print(dict(bank.outcomes), bank.sums, f"{bank.outcomes['done'] / SECONDS:.0f}/s")  # noqa: T201
    found = (await client.kv.get_many(ACCOUNTS)).as_dict()
    assert sum(map(int, found.values())) == EACH * len(ACCOUNTS)
    assert bank.outcomes["done"] > 20
    assert bank.sums > 20
    assert bank.outcomes["unknown with a receipt"] <= bank.outcomes["done"] / 20


@pytest.mark.fault("K2")
async def test_k2_a_killed_server(own_server: EtcdServer, rng: random.Random) -> None:
    """With a receipt it is known of each transaction whether it was made, over `kill -9`."""
    async with Client(own_server.endpoint, timeout=20) as client:
        for number in range(1, 6):
            running = asyncio.ensure_future(client.stm(increment, receipt="receipt"))
            await asyncio.sleep(rng.uniform(0, 0.01))
            if writes_through(own_server):
                await own_server.pause()
                await asyncio.sleep(0.01)
                await own_server.kill()
            else:
                await own_server.stop()
            await own_server.start()
            assert await running == number
        assert (await client.kv.get("k")).text == "5"
