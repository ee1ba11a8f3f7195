"""Calls that travel together: each has the outcome that it would have had alone."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable
from contextvars import ContextVar
from time import monotonic
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from aioetcd import (
    CallReport,
    Client,
    ClientClosedError,
    DeadlineExceededError,
    EtcdError,
    GetResponse,
    KeyNotFoundError,
    LeaseNotFoundError,
    NoEndpointError,
    Observer,
    PermissionDeniedError,
    PermissionType,
    PutResponse,
    RequestTooLargeError,
    UnavailableError,
)
from aioetcd._transport import unary as unary_module
from aioetcd._transport.methods import PUT
from aioetcd.kv import KV
from aioetcd.kv._batched import Batched
from aioetcd.kv._lane import Batch, Lane
from aioetcd.testing import EtcdServer, FaultProxy
from tests.harness import first_in_use
from tests.servers import grpc_proxy
from tests.waiting import until


class Asked(Observer):
    """Counts the calls that are made at the server, by RPC."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def call_ended(self, report: CallReport) -> None:
        """Take one."""
        self.calls[report.method] += 1


async def outcomes(*calls: Awaitable[object]) -> list[object]:
    """Make calls at the same time; give what they give, or raise."""
    return await asyncio.gather(*calls, return_exceptions=True)


async def test_one_goes_alone(server: EtcdServer) -> None:
    """Also one after the other: the very call that it is."""
    asked = Asked()
    async with Client(server.endpoint, observers=[asked]) as client:
        kv = client.kv.batched()
        await kv.put("a", "1")
        assert (await kv.get("a")).value == b"1"
        assert (await kv.delete("a")).deleted == 1
    assert asked.calls == {"Put": 1, "Range": 1, "DeleteRange": 1}


async def test_many_go_together(server: EtcdServer) -> None:
    """A thousand callers cost some round trips, and each has the answer to its own call."""
    asked = Asked()
    await server.clear()
    async with Client(server.endpoint, observers=[asked]) as client:  # which is not connected yet
        kv = client.kv.batched()
        keys = [f"/k/{number}" for number in range(1000)]
        puts = await asyncio.gather(*(kv.put(key, key) for key in keys))
        assert sum(asked.calls.values()) < 30
        assert (await client.kv.get("/k/", prefix=True, count_only=True)).count == 1000
        asked.calls.clear()
        gets = await asyncio.gather(*(kv.get(key) for key in keys))
        assert [got.text for got in gets] == keys
        assert asked.calls["Range"] == 2
        assert sum(asked.calls.values()) < 30
        # Those that went together share a revision.
        assert 2 < len({put.header.revision for put in puts}) < 30
        assert [got.mod_revision for got in (g.kvs[0] for g in gets)] == [
            put.header.revision for put in puts
        ]


async def test_each_answer_is_that_of_the_single_call(client: Client) -> None:
    """To the last field: headers, counts, what was before, what is not there."""
    batched = client.kv.batched()
    for number in range(6):
        await client.kv.put(f"/k/{number}", f"{number}")

    def gets(kv: KV) -> list[Awaitable[GetResponse]]:
        return [
            kv.get("/k/0"),
            kv.get("/k/1", keys_only=True),
            kv.get("/k/2", count_only=True),
            kv.get("/k/3"),
            kv.get("/k/none"),
            kv.get("/k/4", min_mod_revision=10**9),
            kv.get("/k/", prefix=True, limit=2),
            kv.get("/k/5", serializable=True),
        ]

    assert await outcomes(*gets(batched)) == await outcomes(*gets(client.kv))
    revision = (await client.kv.get("x")).header.revision

    def writes(kv: KV) -> list[Awaitable[object]]:
        return [
            kv.put("/w/first", "1"),
            kv.put("/w/second", "1"),
            kv.put("/k/0", "new", prev_kv=True),
            kv.put("/k/none", "new", prev_kv=True),
            kv.delete("/k/1", prev_kv=True),
            kv.delete("/k/absent"),
            kv.put("/k/2", ignore_value=True, prev_kv=True),
        ]

    first, second, *rest = await outcomes(*writes(batched))
    assert isinstance(first, PutResponse)
    assert isinstance(second, PutResponse)
    put, created, deleted, absent, kept = rest
    assert len({each.header for each in (put, created, kept)}) == 1  # type: ignore[attr-defined]
    made = [each.header.revision for each in (first, second, put, deleted)]  # type: ignore[attr-defined]
    assert sorted(made) == [revision + 1, revision + 2, revision + 3, revision + 4]
    assert put.header._replace(revision=0) == first.header._replace(revision=0)  # type: ignore[attr-defined]
    assert put.prev_kv.text == "0"  # type: ignore[attr-defined]
    assert created.prev_kv is None  # type: ignore[attr-defined]
    assert (deleted.deleted, deleted.prev_kvs[0].text) == (1, "1")  # type: ignore[attr-defined]
    assert (absent.deleted, absent.prev_kvs) == (0, ())  # type: ignore[attr-defined]
    assert kept.prev_kv.text == "2"  # type: ignore[attr-defined]


async def test_a_key_is_written_in_order(client: Client) -> None:
    """The same key twice goes one after the other, whatever else goes meanwhile."""
    kv = client.kv.batched()
    puts = await asyncio.gather(*(kv.put("k", f"{n}", prev_kv=True) for n in range(20)))
    before = [put.prev_kv and put.prev_kv.text for put in puts]
    assert before == [None, *map(str, range(19))]
    revisions = [put.header.revision for put in puts]
    assert revisions == sorted(set(revisions))
    await asyncio.gather(kv.put("k", "a"), kv.delete("k"), kv.put("k", "b"), kv.delete("k"))
    assert (await kv.get("k")).kv is None


async def test_one_that_is_refused_harms_nobody(client: Client) -> None:
    """Each of those that are refused says why, and the others are made."""
    kv = client.kv.batched()
    bad: dict[int, Awaitable[object]] = {
        50: kv.put("/bad/lease", "v", lease=4711),
        100: kv.put("/bad/absent", ignore_value=True),
        150: kv.put("/bad/size", b"v" * 2_000_000),
    }
    found = await outcomes(*(bad.get(n) or kv.put(f"/k/{n}", "v") for n in range(200)))
    errors = {at: each for at, each in enumerate(found) if isinstance(each, Exception)}
    assert isinstance(errors.pop(50), LeaseNotFoundError)
    assert isinstance(errors.pop(100), KeyNotFoundError)
    assert isinstance(errors.pop(150), RequestTooLargeError)
    assert errors == {}
    assert (await client.kv.get("/k/", prefix=True, count_only=True)).count == 197
    assert (await client.kv.get("/bad/", prefix=True, count_only=True)).count == 0


async def test_a_permission_of_one_is_that_of_one() -> None:
    """Who may read some keys reads them, also beside those that it may not."""
    async with EtcdServer(auth=("root", "pw")) as server:
        user, password = "root", "pw"
        async with Client(server.endpoint, username=user, password=password) as root:
            await root.auth.add_role("reader")
            await root.auth.grant_permission("reader", PermissionType.READ, "/open/", prefix=True)
            await root.auth.add_user("ann", "pw")
            await root.auth.grant_role("ann", "reader")
            await root.kv.put_many({f"/open/{n}": f"{n}" for n in range(50)})
        async with Client(server.endpoint, username="ann", password="pw") as client:
            kv = client.kv.batched()
            keys = [f"/{'closed' if n % 10 == 3 else 'open'}/{n}" for n in range(50)]
            found = await outcomes(*(kv.get(key) for key in keys))
            for key, each in zip(keys, found, strict=True):
                if key.startswith("/closed"):
                    assert isinstance(each, PermissionDeniedError)
                else:
                    assert isinstance(each, GetResponse)
                    assert f"/open/{each.text}" == key


async def test_a_server_that_takes_less() -> None:
    """How many operations a txn may have, and how large it may be, is learned, and kept."""
    asked = Asked()
    async with (
        EtcdServer(args=["--max-txn-ops=10", "--max-request-bytes=100000"]) as server,
        Client(server.endpoint, observers=[asked]) as client,
    ):
        kv = client.kv.batched()
        for size in (10, 20_000):
            for _ in range(2):
                asked.calls.clear()
                await asyncio.gather(*(kv.put(f"/k/{n}", b"v" * size) for n in range(100)))
            assert asked.calls["Put"] <= 2
            assert asked.calls["Txn"] <= (20 if size == 10 else 60)
        await asyncio.gather(*(kv.get(f"/k/{n}") for n in range(100)))
        assert (await client.kv.get("/k/", prefix=True, count_only=True)).count == 100


async def test_answers_that_are_too_large_together(client: Client, server: EtcdServer) -> None:
    """Who stands between may take no such answer: the gets are taken apart, each is answered."""
    for number in range(20):
        await client.kv.put(f"/k/{number}", bytes([number]) * 10_000)
    await client.kv.put("/k/large", bytes(60_000))
    limits = ("--max-recv-bytes=50000", "--max-send-bytes=40000")
    async with grpc_proxy(server, *limits) as proxied, Client(proxied) as limited:
        kv = limited.kv.batched()
        gets = [kv.get(f"/k/{number}", timeout=20) for number in range(20)]
        *found, large = await outcomes(*gets, kv.get("/k/large", timeout=20))
        assert [isinstance(got, GetResponse) and got.value for got in found] == [
            bytes([number]) * 10_000 for number in range(20)
        ]
        assert isinstance(large, EtcdError)
        assert large.code == "RESOURCE_EXHAUSTED"


async def test_a_batch_is_in_nobodys_context(server: EtcdServer) -> None:
    """What an observer adds for whoever calls is not added in the name of a stranger."""
    caller = ContextVar("caller", default="nobody")
    told: list[tuple[str, str]] = []

    class Traced(Observer):
        def metadata(self, method: str) -> list[tuple[str, str]]:
            told.append((method, caller.get()))
            return []

    async with Client(server.endpoint, observers=[Traced()]) as client:
        kv = client.kv.batched()
        await client.kv.get("connected")  # what waits for that goes alone, if it takes long
        told.clear()

        async def put(number: int) -> None:
            caller.set(str(number))
            await kv.put(f"/k/{number}", "v")

        await asyncio.gather(*map(put, range(40)))
    assert {who for method, who in told if method == "Put"} == {"0", "1"}
    assert {who for method, who in told if method == "Txn"} == {"nobody"}


async def test_each_has_its_own_deadline(proxy: FaultProxy) -> None:
    """Who is in a hurry is told so in time, truthfully; the others get what they wait for."""
    async with Client(proxy.endpoint) as client:
        kv = client.kv.batched()
        await kv.get("connected")
        proxy.delay(0.1)
        first = [asyncio.create_task(kv.put(f"/first/{n}", "v", timeout=30)) for n in range(2)]
        await asyncio.sleep(0)
        unsent = asyncio.create_task(kv.put("/unsent", "v", timeout=0.05))
        sent = asyncio.create_task(kv.put("/sent", "v", timeout=1.5))  # it is, in time
        patient = asyncio.create_task(kv.put("/patient", "v", timeout=30))
        with pytest.raises(DeadlineExceededError, match="not sent") as caught:
            await unsent
        assert not caught.value.maybe_applied
        await until_together(kv)
        proxy.hang()
        with pytest.raises(DeadlineExceededError) as caught:
            await sent
        assert caught.value.maybe_applied
        assert caught.value.timeout == 1.5
        await proxy.heal()
        await patient
        await asyncio.gather(*first)
        found = await client.kv.get("/", prefix=True)
        assert [kv.key for kv in found.kvs] == [b"/first/0", b"/first/1", b"/patient", b"/sent"]


async def test_one_that_gives_up_changes_nothing_for_others(proxy: FaultProxy) -> None:
    """What had to wait is not sent; what was sent goes on for the others."""
    async with Client(proxy.endpoint) as client:
        kv = client.kv.batched()
        await kv.get("connected")
        proxy.delay(0.05)
        first = [asyncio.create_task(kv.put(f"/first/{n}", "v")) for n in range(2)]
        await asyncio.sleep(0)
        waits = [asyncio.create_task(kv.put(f"/{name}", "v")) for name in ("a", "b", "c")]
        await asyncio.sleep(0)
        waits[1].cancel()
        await asyncio.wait({waits[1]})
        await until_together(kv)  # a and c are under way
        proxy.hang()
        waits[2].cancel()
        await asyncio.wait({waits[2]})
        await proxy.heal()
        await asyncio.gather(*first)
        await waits[0]
        assert waits[1].cancelled()
        assert waits[2].cancelled()
        found = {kv.key for kv in (await client.kv.get("/", prefix=True)).kvs}
        assert found >= {b"/a", b"/first/0", b"/first/1"}
        assert b"/b" not in found
        # The key of who gave up is free again, as is everything else.
        await asyncio.gather(*(kv.put(f"/{name}", "w", timeout=2) for name in ("a", "b", "c")))
        await until_idle(kv)


async def test_what_hangs_keeps_nobody_waiting(server: EtcdServer) -> None:
    """Calls whose answers do not come are no reason for others not to go."""
    async with FaultProxy(server.endpoint) as proxy, Client(proxy.endpoint) as client:
        kv = client.kv.batched()
        await kv.get("connected")
        proxy.blackhole(client_to_server=False)
        hung = [asyncio.create_task(kv.put(f"/hung/{n}", "v", timeout=60)) for n in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(DeadlineExceededError) as caught:
            await kv.put("/late", "v", timeout=1)
        assert caught.value.maybe_applied, "it was sent"
        for each in hung:
            each.cancel()
        await asyncio.wait(hung)


@pytest.mark.fault("two seconds until a silent member is given up")
async def test_hung_writes_hide_no_other_member(server: EtcdServer) -> None:
    """While two writes wait for a member that is silent, others go to the one that is there."""
    async with (
        FaultProxy(server.endpoint) as silent,
        FaultProxy(server.endpoint) as other,
        Client([silent.endpoint, other.endpoint]) as client,
    ):
        kv = client.kv.batched()
        with first_in_use():
            await kv.get("connected")
        assert client.stats().endpoint == silent.endpoint
        silent.blackhole()
        hung = [asyncio.create_task(kv.put(f"/hung/{n}", "v", timeout=60)) for n in range(2)]
        await until(lambda: not client._calls.is_connected)
        await kv.put("/late", "v", timeout=5)
        for each in hung:
            each.cancel()
        await asyncio.wait(hung)
        await until_idle(kv)


@pytest.mark.parametrize("timeout", [None, 30])
async def test_who_has_given_up_sends_nothing(proxy: FaultProxy, timeout: float | None) -> None:
    """A write that waits for a connection is gone with its caller, as one that goes alone."""
    asked = Asked()
    async with Client(proxy.endpoint, observers=[asked]) as client:
        kv = client.kv.batched()
        await kv.get("connected")
        proxy.refuse()
        proxy.cut()
        await until(lambda: not client._calls.is_connected)
        calls = [asyncio.create_task(kv.put(f"/k/{n}", "v", timeout=timeout)) for n in range(4)]
        lane = kv._calls._lanes[PUT, timeout is None]  # type: ignore[attr-defined]
        await until(lambda: len(lane._out) == 4)
        for each in calls:
            each.cancel()
        await asyncio.wait(calls)
        await until_idle(kv)
        await proxy.accept()
        await kv.put("/last", "v")
        found = await client.kv.get("/", prefix=True)
        assert [each.key for each in found.kvs] == [b"/last"]


async def test_who_has_given_up_is_in_no_half(proxy: FaultProxy) -> None:
    """A txn that is taken apart is sent for those who still wait, and ends when they give up."""
    async with Client(proxy.endpoint) as client:
        kv = client.kv.batched()
        await kv.get("connected")
        proxy.delay(0.05)
        leases = [None, None, None, None, 4711, None, None, None, None, None]
        calls = [
            asyncio.create_task(kv.put(f"/k/{number}", "v", lease=lease))
            for number, lease in enumerate(leases)
        ]
        await until_together(kv)  # but for the first two, which went at once, alone
        proxy.hang()
        (batch,) = batches(kv)
        calls[5].cancel()
        await asyncio.wait({calls[5]})
        await proxy.heal()
        proxy.delay(0.05)
        await until(lambda: not batch.calls)  # it was refused
        assert sorted(half.callers for half in batches(kv) if half is not batch) == [3, 4]
        for each in calls:
            each.cancel()
        await asyncio.wait(calls)
        await until_idle(kv)


async def test_half_of_them_refused(proxy: FaultProxy) -> None:
    """The others are made, and soon: what is taken apart goes side by side."""
    async with Client(proxy.endpoint) as client:
        kv = client.kv.batched()
        await kv.get("connected")
        proxy.delay(0.02)
        began = monotonic()
        found = await outcomes(
            *(kv.put(f"/k/{n}", "v", lease=4711 if n % 2 else None, timeout=20) for n in range(130))
        )
        assert monotonic() - began < 5  # one after the other it would be ten seconds
        assert [isinstance(each, LeaseNotFoundError) for each in found] == [False, True] * 65
        assert sum(isinstance(each, PutResponse) for each in found) == 65


async def test_an_outage(server: EtcdServer) -> None:
    """Each is told what it would be told alone: nobody was there, and nothing was sent."""
    async with FaultProxy(server.endpoint) as proxy, Client(proxy.endpoint) as client:
        kv = client.kv.batched()
        await kv.get("connected")
        proxy.refuse()
        proxy.cut()
        await until(lambda: not client._calls.is_connected)
        found = await outcomes(*(kv.put(f"/k/{n}", "v", timeout=1) for n in range(50)))
        assert [type(each) for each in found] == [NoEndpointError] * 50
        assert not any(each.maybe_applied for each in found if isinstance(each, EtcdError))
        await proxy.accept()
        await asyncio.gather(*(kv.put(f"/k/{n}", "v") for n in range(50)))
        await until_idle(kv)


async def test_a_connection_that_comes_late(proxy: FaultProxy) -> None:
    """While there is none, few ask for it; then all go together."""
    asked = Asked()
    proxy.delay(0.1)
    async with Client(proxy.endpoint, observers=[asked]) as client:
        kv = client.kv.batched()
        began = monotonic()
        await asyncio.gather(*(kv.get(f"/k/{n}") for n in range(300)))
        took = monotonic() - began
        # Two at first, and two more whenever those before are slow; then the rest, 128 in each.
        assert sum(asked.calls.values()) <= 2 * (1 + took / 0.25) + 3
        await until_idle(kv)


async def test_a_hasty_write_frees_its_key(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next write of the key goes when its caller gave up, however patient its companions."""
    monkeypatch.setattr(unary_module, "PATIENCE", 60)  # nobody looks what the member is doing
    async with Client(proxy.endpoint) as client:
        kv = client.kv.batched()
        await kv.get("connected")
        proxy.blackhole(client_to_server=False)
        names = ["/first", "/second", "/hasty", *(f"/patient/{n}" for n in range(3))]
        calls = [
            asyncio.create_task(kv.put(name, "v", timeout=1.2 if name == "/hasty" else 60))
            for name in names
        ]
        with pytest.raises(DeadlineExceededError, match="no answer") as caught:
            await calls[2]
        assert caught.value.maybe_applied
        with pytest.raises(DeadlineExceededError) as caught:
            await kv.put("/hasty", "w", timeout=0.3)
        assert caught.value.maybe_applied, "it was sent"
        for each in calls:
            each.cancel()
        await asyncio.wait(calls)


async def test_slow_ones_cost_nothing(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """While answers are slow, nobody looks again and again for them."""
    looks = 0
    look = Lane._look

    def counted(lane: Lane[Any, Any]) -> None:
        nonlocal looks
        looks += 1
        look(lane)

    monkeypatch.setattr(Lane, "_look", counted)
    async with Client(proxy.endpoint) as client:
        kv = client.kv.batched()
        await kv.get("connected")
        proxy.delay(0.4)
        async with asyncio.TaskGroup() as tasks:
            for number in range(20):  # some of them when those before are slow, and some are not
                tasks.create_task(kv.put(f"/k/{number}", "v"))
                await asyncio.sleep(0.05)
        proxy.delay(0)
    assert looks < 40


async def test_two_batches_begin_at_once(proxy: FaultProxy) -> None:
    """Those that wait behind two slow ones go together as soon as these count no more."""
    async with Client(proxy.endpoint) as client:
        kv = client.kv.batched()
        await kv.get("connected")
        proxy.delay(0.4)
        await asyncio.gather(*(kv.put(f"/k/{n}", "v") for n in range(300)))
        proxy.delay(0)
        await asyncio.gather(*(kv.put(f"/k/{n}", "w", timeout=5) for n in range(300)))
        await until_idle(kv)


def batches(kv: KV) -> list[Batch]:
    """The puts that are out together."""
    assert isinstance(kv._calls, Batched)
    return [each for each in kv._calls._lanes[PUT, False]._out if isinstance(each, Batch)]


async def until_together(kv: KV) -> None:
    """Puts are out together, and were not answered yet where the proxy has a delay."""
    await until(lambda: bool(batches(kv)))


async def until_idle(kv: KV) -> None:
    """Nothing is out any more, and no key is taken."""
    batched = kv._calls
    assert isinstance(batched, Batched)
    for lane in batched._lanes.values():
        await until(lambda: not lane._out)  # noqa: B023
        assert (lane._keys._behind, lane._open) == ({}, set())
        assert not lane._waiting
        assert lane._timer is None


async def test_a_client_that_closes(proxy: FaultProxy) -> None:
    """Whoever waits is told, and whether it was sent."""
    async with Client(proxy.endpoint) as client:
        kv = client.kv.batched()
        await kv.get("connected")
        proxy.delay(1)
        calls = [asyncio.create_task(kv.put(f"/k/{n}", "v")) for n in range(5)]
        await asyncio.sleep(0)
        await client.aclose()
        found = await outcomes(*calls)
        assert all(isinstance(each, ClientClosedError) for each in found)
        assert len({id(each) for each in found}) == 5, "each has a traceback of its own"
        assert [each.maybe_applied for each in found if isinstance(each, EtcdError)] == [
            True,
            True,
            False,
            False,
            False,
        ]
        with pytest.raises(ClientClosedError):
            await kv.get("k")


WRITERS = 64


@pytest.mark.fault("K2, K3: cuts and lost answers among thousands of calls")
async def test_k3_each_outcome_is_true(
    client: Client, server: EtcdServer, rng: random.Random
) -> None:
    """What is said to be written is there once, what is said not to be is not, whatever breaks."""
    ok: set[bytes] = set()
    never: set[bytes] = set()
    perhaps: set[bytes] = set()
    values = iter(range(10**9))
    start = (await client.kv.get("x")).header.revision + 1
    async with FaultProxy(server.endpoint) as proxy, Client(proxy.endpoint, timeout=1) as through:
        kv = through.kv.batched()

        async def write(number: int) -> None:
            while not stopping:
                value = f"{next(values)}".encode()
                kind = rng.random()
                lease = 4711 if kind < 0.01 else None
                timeout = rng.choice((1, 1, 1, 0.05))
                perhaps.add(value)
                try:
                    with anyio.move_on_after(0.001 if 0.01 < kind < 0.03 else None):
                        key = f"/k/{rng.randrange(300)}"
                        await kv.put(key, value, lease=lease, timeout=timeout)
                        ok.add(value)
                except LeaseNotFoundError:
                    assert lease
                    never.add(value)
                except EtcdError as error:
                    if not error.maybe_applied:
                        never.add(value)
                        await anyio.sleep(0.01)

        async def read() -> None:
            while not stopping:
                key = f"/k/{rng.randrange(300)}"
                try:
                    got = await kv.get(key)
                except (UnavailableError, DeadlineExceededError):
                    await anyio.sleep(0.01)
                else:
                    assert all(each.key.decode() == key for each in got.kvs)
                    await anyio.lowlevel.checkpoint()

        stopping = False
        async with asyncio.TaskGroup() as tasks:
            for number in range(WRITERS):
                tasks.create_task(write(number))
            # A txn that only reads, and whose connection breaks just so, ends an older server
            # (etcd #14110, #14891).
            for _ in range(16 if server.version_info >= (3, 5, 7) else 0):
                tasks.create_task(read())
            cuts = 0
            # So often at least, and until there is enough of each; of those that may have been
            # written, as many as there are writers are only on their way.
            while (
                cuts < 12
                or len(ok) <= 1000
                or not never
                or len(perhaps) - len(ok) - len(never) <= WRITERS
            ):
                cuts += 1
                await anyio.sleep(rng.uniform(0.05, 0.2))
                if rng.random() < 0.3:
                    proxy.blackhole(client_to_server=False)
                    await anyio.sleep(0.3)
                    await proxy.heal()
                proxy.cut()
            stopping = True
        await until_idle(kv)
    perhaps -= ok | never
    written: Counter[bytes] = Counter()
    last = (await client.kv.get("x")).header.revision
    async with client.watch("/k/", prefix=True, start_revision=start) as watch:
        async for batch in watch.batches():
            written.update(event.kv.value for event in batch.events)
            if batch.revision >= last:
                break
    assert max(written.values()) == 1
    assert ok <= written.keys()
    assert not never & written.keys()
    assert len(ok) > 1000
    assert perhaps
    assert never


async def test_it_is_nothing_but_a_view(client: Client) -> None:
    """With the methods of `KV`, below a prefix too; calls share what is shared."""
    below = client.namespace("/ns/").kv.batched()
    await asyncio.gather(*(below.put(f"{n}", "v") for n in range(10)))
    assert (await client.kv.get("/ns/", prefix=True, count_only=True)).count == 10
    assert [got.kvs[0].key for got in await asyncio.gather(*map(below.get, "0123"))] == [
        b"0",
        b"1",
        b"2",
        b"3",
    ]
    assert [kv.key async for kv in below.scan("", prefix=True)] == [b"%d" % n for n in range(10)]
    assert (await below.get_many(["1", "2"])).kvs[1] is not None
    assert isinstance(below.batched(), KV)
