"""`scan`, `get_many`, `put_many`, `delete_many`: any number of keys."""

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
    CallReport,
    Client,
    ClientClosedError,
    CompactedError,
    DeadlineExceededError,
    FutureRevisionError,
    KeyValue,
    LeaseNotFoundError,
    Observer,
    Op,
    PartialWriteError,
    PutManyResponse,
    RequestTooLargeError,
)
from aioetcd._transport.methods import RANGE_STREAM
from aioetcd.kv._many import batches
from aioetcd.testing import EtcdCluster, EtcdServer, FaultProxy
from tests.waiting import lateness, until


async def fill(client: Client, count: int, size: int = 10) -> list[bytes]:
    """Write so many keys, in order."""
    keys = [f"/k/{number:06}".encode() for number in range(count)]
    await client.kv.put_many(dict.fromkeys(keys, b"v" * size))
    return keys


async def scanned(client: Client, *args: Any, **options: Any) -> list[KeyValue]:
    """Take all of a scan."""
    return [kv async for kv in client.kv.scan(*args, **options)]


@pytest.mark.parametrize("streams", [True, False])
async def test_scan_is_a_get(client: Client, rng: random.Random, streams: bool) -> None:
    """Whatever the range, the limit and the pages, it gives what one large get gives."""
    if not streams:
        client.kv._lacking.add(RANGE_STREAM)
    keys = await fill(client, 500, rng.choice([0, 10, 3000]))
    past = (await client.kv.get("k")).header.revision
    await client.kv.delete_many(rng.sample(keys, 100))
    told: list[tuple[int, int]] = []

    def note(given: int, total: int) -> None:
        told.append((given, total))

    for _ in range(60):
        first = rng.choice([b"/k/", b"/k/0001", rng.choice(keys)])
        options: dict[str, Any] = rng.choice(
            [
                {"prefix": True},
                {"range_end": rng.choice(keys)},
                {"range_end": b"\0"},
                {},
            ]
        )
        options |= rng.choice([{}, {"revision": past}])
        options |= rng.choice([{}, {"keys_only": True}])
        options |= rng.choice([{}, {"limit": rng.randint(1, 600)}])
        pages = rng.choice([{}, {"page_size": rng.randint(1, 200)}])
        expected = await client.kv.get(first, **options)
        told.clear()
        found = await scanned(client, first, **options, **pages, progress=note)
        assert tuple(found) == expected.kvs
        if expected.kvs:
            total = len(expected.kvs)
            assert told == sorted(told)
            assert told[-1] == (total, total)
            assert {all_ for _, all_ in told} == {total}


async def test_scan_has_one_revision(client: Client) -> None:
    """What is written meanwhile is not seen."""
    keys = await fill(client, 400)
    before = (await client.kv.get("/k/", prefix=True)).kvs
    for page_size in (None, 7):
        found: list[KeyValue] = []
        async for kv in client.kv.scan("/k/", prefix=True, page_size=page_size):
            found.append(kv)
            if len(found) == 5:
                await client.kv.put_many(dict.fromkeys(keys, "new"))
                await client.kv.put("/k/1", "another")
        assert tuple(found) == before
        before = (await client.kv.get("/k/", prefix=True)).kvs


async def test_scan_of_little_is_one_call(client: Client) -> None:
    """As is one of nothing."""
    await fill(client, 9)
    for key, count in (("/k/", 9), ("/none/", 0)):
        calls = client.stats().calls
        assert len(await scanned(client, key, prefix=True)) == count
        assert client.stats().calls == calls + 1


async def test_scan_in_a_namespace(client: Client) -> None:
    """It gives the keys without the prefix, and none outside."""
    await fill(client, 300)
    await client.kv.put("/l", "outside")
    for page_size in (None, 20):
        below = client.namespace("/k/").kv.scan("", prefix=True, page_size=page_size)
        assert [kv.key for kv in [kv async for kv in below]] == [
            f"{number:06}".encode() for number in range(300)
        ]


async def test_compacted_in_the_middle(client: Client) -> None:
    """Whoever compacts ends it, with an error."""
    await fill(client, 100)
    scan = client.kv.scan("/k/", prefix=True, page_size=10)
    await anext(scan)
    now = (await client.kv.put("k", "v")).header.revision
    await client.kv.compact(now)
    with pytest.raises(CompactedError):
        await scan_rest(scan)
    with pytest.raises(FutureRevisionError):
        await scanned(client, "/k/", prefix=True, revision=now + 100)


async def scan_rest(scan: Any) -> None:
    """Take what is left."""
    async for _ in scan:
        pass


@pytest.mark.parametrize("page_size", [None, 50])
@pytest.mark.parametrize("cut", [1, 30_000, 400_000, 1_200_000])
async def test_scan_goes_on_where_it_was_cut(
    server: EtcdServer, client: Client, cut: int, page_size: int | None
) -> None:
    """Behind the last key, each of which comes once."""
    keys = await fill(client, 300, 10_000)
    async with FaultProxy(server.endpoint) as proxy, Client(proxy.endpoint) as through:
        await through.ping()
        is_cut = proxy.cut_after(cut)
        found = await scanned(through, "/k/", prefix=True, page_size=page_size)
        assert [kv.key for kv in found] == keys
        assert is_cut.is_set()


@pytest.mark.parametrize("cut", range(960_000, 1_060_000, 20_000))
async def test_scan_is_cut_at_its_limit(server: EtcdServer, client: Client, cut: int) -> None:
    """It gives no more keys than were asked for, wherever the connection breaks."""
    keys = await fill(client, 200, 10_000)
    async with FaultProxy(server.endpoint) as proxy, Client(proxy.endpoint) as through:
        await through.ping()
        proxy.cut_after(cut)
        found = await scanned(through, "/k/", prefix=True, limit=100)
        assert [kv.key for kv in found] == keys[:100]


@pytest.mark.parametrize("page_size", [None, 50])
async def test_scan_has_a_deadline(
    server: EtcdServer, client: Client, page_size: int | None
) -> None:
    """For each answer: one that does not come is told."""
    await fill(client, 300, 10_000)
    async with FaultProxy(server.endpoint) as proxy, Client(proxy.endpoint) as through:
        await through.ping()
        proxy.hold_after(500_000)
        with pytest.raises(DeadlineExceededError):
            await scanned(through, "/k/", prefix=True, page_size=page_size, timeout=0.5)


async def test_scan_is_left(client: Client, server: EtcdServer) -> None:
    """A loop that is left, or cancelled, leaves no stream behind."""
    await fill(client, 3000, 1000)
    async with aclosing(client.kv.scan("/k/", prefix=True)) as scan:
        async for kv in scan:
            if kv.key == b"/k/000020":
                break
    with anyio.move_on_after(0.02):
        while True:
            await scanned(client, "/k/", prefix=True)
    assert len(await scanned(client, "/k/", prefix=True)) == 3000


@pytest.mark.parametrize("page_size", [None, 20])
async def test_scan_of_a_client_that_closes(
    server: EtcdServer, client: Client, page_size: int | None
) -> None:
    """It ends as everything does, wherever it stands."""
    await fill(client, 3000, 1000)
    async with Client(server.endpoint) as other:
        scan = other.kv.scan("/k/", prefix=True, page_size=page_size)
        await anext(scan)
        await other.aclose()
        with pytest.raises(ClientClosedError):
            await scan_rest(scan)


async def test_scan_whose_progress_fails(client: Client) -> None:
    """Its error is the scan's; what is no function is refused."""
    await fill(client, 100)
    with pytest.raises(ZeroDivisionError):
        await scanned(client, "/k/", prefix=True, progress=lambda given, total: given // 0)
    with pytest.raises(TypeError, match=r"^progress must be a function, not int"):
        await scanned(client, "/k/", prefix=True, progress=7)


async def test_scan_two_namespaces_below(client: Client) -> None:
    """Each takes its own part of a key."""
    await fill(client, 300)
    below = client.namespace("/k").namespace("/000").kv
    for page_size in (None, 20):
        keys = [kv.key async for kv in below.scan("", prefix=True, page_size=page_size)]
        assert keys == [f"{number:03}".encode() for number in range(300)]


@pytest.mark.parametrize("page_size", [None, 20])
async def test_scan_outlives_its_token(page_size: int | None) -> None:
    """A member that has forgotten it, as all do that are restarted, is given another one."""
    auth = ("root", "secret")
    async with (
        EtcdServer(quick=True, args=["--bcrypt-cost=4"], auth=auth) as server,
        Client(server.endpoint, username=auth[0], password=auth[1]) as client,
    ):
        keys = await fill(client, 3000, 1000)
        found = []
        async for kv in client.kv.scan("/k/", prefix=True, page_size=page_size):
            found.append(kv.key)
            if len(found) == 20:
                await server.restart()
        assert found == keys


@pytest.mark.parametrize("option", ["limit", "page_size", "revision"])
@pytest.mark.parametrize("wrong", [0, -1, "1", True])
async def test_wrong_numbers(client: Client, option: str, wrong: Any) -> None:
    """They are refused by name."""
    with pytest.raises((ValueError, TypeError), match=rf"^{option} must"):
        await scanned(client, "k", **{option: wrong})


async def test_many(client: Client) -> None:
    """They are written, read at one revision, and deleted; each key tells its own."""
    items = {f"/m/{number}": str(number) for number in range(300)}
    put = await client.kv.put_many(items)
    assert [*put.revisions] == [key.encode() for key in items]
    stored = (await client.kv.get("/m/", prefix=True)).kvs
    assert {kv.key: kv.mod_revision for kv in stored} == put.revisions
    assert len(set(put.revisions.values())) == 3
    asked = ["/m/299", "/m/none", *items]
    got = await client.kv.get_many(asked)
    assert [kv and kv.text for kv in got.kvs] == ["299", None, *items.values()]
    assert got.as_dict() == {k.encode(): v.encode() for k, v in items.items()}
    deleted = await client.kv.delete_many(["/m/1", "/m/none", *list(items)[2:]])
    assert deleted.deleted == tuple(key.encode() for key in items if key != "/m/0")
    assert (await client.kv.get("/m/", prefix=True)).count == 1


async def test_get_many_has_one_revision(client: Client) -> None:
    """Also where somebody writes meanwhile."""
    keys = await fill(client, 1000)
    stop = False

    async def write() -> None:
        number = 0
        while not stop:
            number += 1
            both = [Op.put(key, str(number)) for key in (keys[0], keys[-1])]
            await client.kv.txn(success=both)

    async with anyio.create_task_group() as group:
        group.start_soon(write)
        for _ in range(30):
            got = await client.kv.get_many(keys)
            first, last = got.kvs[0], got.kvs[-1]
            assert first is not None
            assert last is not None
            assert first.value == last.value
            assert len(got.kvs) == 1000
        stop = True


async def test_get_many_that_is_compacted_meanwhile(server: EtcdServer, client: Client) -> None:
    """There is no answer of two revisions: it is an error."""
    keys = await fill(client, 300)
    first = anyio.Event()

    class First(Observer):
        def call_ended(self, call: CallReport) -> None:
            if call.method == "Txn" and not first.is_set():
                proxy.hang()
                first.set()

    async def compact() -> None:
        await first.wait()
        await client.kv.compact((await client.kv.put("k", "v")).header.revision)
        await proxy.heal()

    async with (
        FaultProxy(server.endpoint) as proxy,
        Client(proxy.endpoint, observers=[First()]) as through,
        anyio.create_task_group() as group,
    ):
        group.start_soon(compact)
        with pytest.raises(CompactedError):
            await through.kv.get_many(keys)


@asynccontextmanager
async def writing_without_answers(
    server: EtcdServer, client: Client, items: dict[str, bytes]
) -> AsyncIterator[tuple[Client, asyncio.Task[PutManyResponse]]]:
    """Write many keys, the first of which are written, through a proxy that keeps the answers."""

    async def some_are_written() -> bool:
        return bool((await client.kv.get("/m/", prefix=True, limit=1)).kvs)

    async with FaultProxy(server.endpoint) as proxy, Client(proxy.endpoint) as through:
        await through.ping()
        proxy.blackhole(client_to_server=False)
        writing = asyncio.ensure_future(through.kv.put_many(items))
        await until(some_are_written)
        yield through, writing


async def test_put_many_is_cancelled(server: EtcdServer, client: Client) -> None:
    """At once, whatever is under way; of the rest nothing is sent."""
    items = {f"/m/{number:04}": b"v" for number in range(128 * 20)}
    async with writing_without_answers(server, client, items) as (_, writing):
        writing.cancel()
        with anyio.fail_after(1), pytest.raises(asyncio.CancelledError):
            await writing
    written = (await client.kv.get("/m/", prefix=True)).count
    assert written % 128 == 0
    assert written <= 8 * 128


async def test_put_many_of_a_client_that_closes(server: EtcdServer, client: Client) -> None:
    """Each key has its error, and those under way may have been written."""
    items = {f"/m/{number:04}": b"v" for number in range(128 * 20)}
    async with writing_without_answers(server, client, items) as (through, writing):
        await through.aclose()
        with anyio.fail_after(1), pytest.raises(PartialWriteError) as caught:
            await writing
    error = caught.value
    assert error.maybe_applied is True
    assert isinstance(error.__cause__, ClientClosedError)
    assert len(error.failed) == len(items)
    written = {kv.key for kv in (await client.kv.get("/m/", prefix=True)).kvs}
    assert written <= {key for key, each in error.failed.items() if each.maybe_applied}


@pytest.mark.parametrize(("timeout", "error"), [(-1, ValueError), ("5", TypeError)])
async def test_a_timeout_that_is_none(client: Client, timeout: Any, error: Any) -> None:
    """It is the same error as of a single call."""
    many = [f"/m/{number}" for number in range(300)]
    for call in (
        lambda: client.kv.get_many(many, timeout=timeout),
        lambda: client.kv.put_many(dict.fromkeys(many, "v"), timeout=timeout),
        lambda: client.kv.delete_many(many, timeout=timeout),
    ):
        with pytest.raises(error, match=r"^timeout must"):
            await call()


async def test_what_is_hopeless_is_not_tried(client: Client) -> None:
    """After a failure that all others would have, what is left is named, and not sent."""
    items = {f"/m/{number}": "v" for number in range(128 * 30)}
    lease = await client.lease.grant(60)
    await client.lease.revoke(lease)
    calls = client.stats().calls
    with pytest.raises(PartialWriteError) as caught:
        await client.kv.put_many(items, lease=lease)
    assert client.stats().calls - calls <= 16
    assert len(caught.value.failed) == len(items)
    assert caught.value.maybe_applied is False
    assert sum("not tried" in str(error) for error in caught.value.failed.values()) > 1000


async def test_with_a_lease(client: Client) -> None:
    """All hang on it; where it is none, none is written, and each says why."""
    lease = await client.lease.grant(60)
    await client.kv.put_many({"/m/1": "1", "/m/2": "2"}, lease=lease)
    left = await client.lease.time_to_live(lease, keys=True)
    assert sorted(left.keys) == [b"/m/1", b"/m/2"]
    await client.lease.revoke(lease)
    with pytest.raises(PartialWriteError, match=r"^2 of 2 keys") as caught:
        await client.kv.put_many({"/m/1": "1", "/m/2": "2"}, lease=lease)
    assert [*caught.value.failed] == [b"/m/1", b"/m/2"]
    assert caught.value.maybe_applied is False
    assert isinstance(caught.value.__cause__, LeaseNotFoundError)


async def test_one_that_is_too_large(client: Client) -> None:
    """The others are written, and those are named that are not."""
    items = {f"/m/{number:03}": b"v" * 20_000 for number in range(200)}
    items["/m/100"] = b"v" * 2_000_000
    with pytest.raises(PartialWriteError) as caught:
        await client.kv.put_many(items)
    failed = caught.value.failed
    assert b"/m/100" in failed
    assert all(isinstance(error, RequestTooLargeError) for error in failed.values())
    assert len(failed) == 1
    assert caught.value.maybe_applied is True  # the others are
    assert (await client.kv.get("/m/", prefix=True)).count == 199


async def test_in_doubt(server: EtcdServer, client: Client) -> None:
    """What was under way when the connection broke may have been applied, and is named."""
    async with FaultProxy(server.endpoint) as proxy, Client(proxy.endpoint, timeout=2) as through:
        await through.ping()
        items = {f"/m/{number:03}": b"v" for number in range(300)}
        proxy.blackhole(client_to_server=False)
        with pytest.raises(PartialWriteError) as caught:
            await through.kv.put_many(items, timeout=1.5)  # etcd has applied it by then
        assert caught.value.maybe_applied is True
        in_doubt = {key for key, error in caught.value.failed.items() if error.maybe_applied}
        written = {kv.key for kv in (await client.kv.get("/m/", prefix=True)).kvs}
        assert written
        assert written <= in_doubt


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        ([], ValueError),
        ("key", TypeError),
        (b"key", TypeError),
        ([""], ValueError),
        ([1], TypeError),
    ],
)
async def test_wrong_keys(client: Client, keys: Any, error: type[Exception]) -> None:
    """They are refused before anything is sent."""
    calls = client.stats().calls
    for call in (client.kv.get_many, client.kv.delete_many):
        with pytest.raises(error, match=r"^keys? must"):
            await call(keys)
    with pytest.raises(ValueError, match=r"b'a' is there twice"):
        await client.kv.delete_many(["a", b"a"])
    with pytest.raises(ValueError, match=r"b'a' is there twice"):
        await client.kv.put_many({"a": "1", b"a": "2"})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^items must be a mapping, not list"):
        await client.kv.put_many([("a", "1")])  # type: ignore[arg-type]
    assert client.stats().calls == calls


def test_batches(rng: random.Random) -> None:
    """None is empty, none is larger than a txn may be but for one item alone, none is lost."""
    for _ in range(200):
        sizes = [rng.choice([1, 1000, 500_000, 3_000_000]) for _ in range(rng.randint(0, 400))]
        cut = [*batches(sizes, lambda size: size)]
        assert [size for batch in cut for size in batch] == sizes
        for batch in cut:
            assert 1 <= len(batch) <= 128
            assert len(batch) == 1 or sum(batch) <= 2**20


@pytest.mark.fault("a member is paused")
@pytest.mark.parametrize("page_size", [None, 50])
async def test_scan_leaves_a_member_that_hangs(page_size: int | None) -> None:
    """It goes on at another one, without waiting for its own time to be over."""
    async with EtcdCluster(3) as cluster, Client(cluster.endpoints) as client:
        keys = await fill(client, 300, 10_000)
        found: list[bytes] = []
        async with (
            lateness() as late,
            aclosing(client.kv.scan("/k/", prefix=True, page_size=page_size, timeout=30)) as scan,
        ):
            async for kv in scan:
                found.append(kv.key)
                if len(found) == 20:
                    endpoint = client.stats().endpoint
                    assert endpoint is not None
                    paused = cluster.members[cluster.endpoints.index(endpoint)]
                    await paused.pause()
                    began = monotonic()
        assert found == keys
        assert monotonic() - began < 10 + late.seconds
        await paused.resume()
