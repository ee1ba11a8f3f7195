"""A namespace is a store of its own: its calls do what they do on an empty one, and no more."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioetcd import (
    AnyOp,
    Client,
    Compare,
    DeleteResponse,
    GetResponse,
    KeyValue,
    LockLostError,
    LockNotAcquiredError,
    Namespace,
    Op,
    PutResponse,
    SortOrder,
    SortTarget,
    TxnResponse,
    Watch,
)
from aioetcd.keys import key_range, prefix_end, range_below
from aioetcd.testing import EtcdServer
from tests.waiting import until_metric

PREFIXES = [b"/t/", b"a", b"a\xff", b"\xff", b"\xff\xff", b"\0"]
KEYS = [b"\0", b"a", b"a\0", b"a\xff", b"b", b"\xff", b"\xff\xff"]


def is_below(prefix: bytes, key: bytes) -> bool:
    """Whether a namespace has a key."""
    return key.startswith(prefix) and key != prefix


def outsiders(prefix: bytes) -> list[bytes]:
    """Keys that are just not below a prefix."""
    around = [prefix, prefix[:-1], prefix_end(prefix), b"A", b"\xfe", b"\xff\xff\xff"]
    around += [prefix[:-1] + bytes([prefix[-1] - 1]) + b"\xff"] if prefix[-1] else []
    return sorted({key for key in around if key and not is_below(prefix, key)})


@pytest.mark.parametrize(
    ("prefix", "key", "end", "expected"),
    [
        (b"pfx/", b"a", b"", (b"pfx/a", b"")),
        (b"pfx/", b"abc", b"def", (b"pfx/abc", b"pfx/def")),
        (b"pfx/", b"abc", b"\0", (b"pfx/abc", b"pfx0")),
        (b"a\xff", b"abc", b"\0", (b"a\xffabc", b"b")),
        (b"\xff\xff", b"abc", b"\0", (b"\xff\xffabc", b"\0")),
        (b"", b"abc", b"\0", (b"abc", b"\0")),
    ],
)
def test_range_below(prefix: bytes, key: bytes, end: bytes, expected: tuple[bytes, bytes]) -> None:
    """A range without end ends with the namespace, and takes no neighbour along."""
    assert range_below(prefix, key, end) == expected


@given(
    prefix=st.binary(min_size=1, max_size=3),
    key=st.binary(max_size=2),
    end=st.one_of(st.none(), st.binary(min_size=1, max_size=2)),
    is_prefix=st.booleans(),
    candidate=st.binary(min_size=1, max_size=5),
)
def test_a_range_is_that_below(
    prefix: bytes, key: bytes, end: bytes | None, is_prefix: bool, candidate: bytes
) -> None:
    """A key is in the range below exactly if it is below, and its rest in the range."""
    if is_prefix:
        end = None
    elif not key:
        return

    def has(bounds: tuple[bytes, bytes], candidate: bytes) -> bool:
        first, last = bounds
        if not last:
            return candidate == first
        return first <= candidate and (last == b"\0" or candidate < last)

    bounds = key_range(key, is_prefix, end)
    below = is_below(prefix, candidate) and has(bounds, candidate.removeprefix(prefix))
    assert has(range_below(prefix, *bounds), candidate) == below


class Twin:
    """One and the same program on an empty store and below a prefix of a full one."""

    def __init__(self, rng: random.Random, alone: Client, below: Namespace) -> None:
        self.rng = rng
        self.alone = alone
        self.below = below
        self.offset = 0

    async def begin(self, outside: Client) -> int:
        """See how far apart the revisions are; give the empty store's next one."""
        last = (await self.alone.kv.get("a")).header.revision
        self.offset = (await outside.kv.get("a")).header.revision - last
        return last + 1

    async def both(self, call: Callable[[Any], Awaitable[Any]]) -> None:
        """Do the same to both, which are to give the same."""
        alone, below = await call(self.alone), await call(self.below)
        assert self.shown(below, self.offset) == self.shown(alone, 0)

    def shown(self, answer: object, offset: int) -> object:
        """Give what an answer says, its revisions as the empty store would count them."""

        def kv(found: KeyValue | None) -> object:
            if found is None:
                return None
            created, modified = (
                revision and revision - offset
                for revision in (found.create_revision, found.mod_revision)
            )
            return found._replace(create_revision=created, mod_revision=modified)

        def kvs(found: Sequence[KeyValue]) -> list[object]:
            return [kv(each) for each in found]

        match answer:
            case GetResponse():
                return "get", kvs(answer.kvs), answer.count, answer.more
            case PutResponse():
                return "put", kv(answer.prev_kv)
            case DeleteResponse():
                return "delete", answer.deleted, kvs(answer.prev_kvs)
            case TxnResponse():
                inner = [self.shown(each, offset) for each in answer.responses]
                return "txn", answer.succeeded, inner
        raise AssertionError(answer)

    def range(self) -> dict[str, Any]:
        """Give the arguments of some range."""
        key = self.rng.choice(KEYS)
        return self.rng.choice(
            [
                {"key": key},
                {"key": key, "prefix": True},
                {"key": b"", "prefix": True},
                {"key": key, "range_end": self.rng.choice(KEYS)},
                {"key": key, "range_end": b"\0"},
            ]
        )

    def get(self) -> dict[str, Any]:
        """Give the arguments of some read."""
        return self.range() | self.rng.choice(
            [
                {},
                {"limit": self.rng.randint(1, 3)},
                {"keys_only": True},
                {"count_only": True},
                {
                    "sort_target": self.rng.choice(list(SortTarget)),
                    "sort_order": self.rng.choice(list(SortOrder)),
                },
            ]
        )

    def put(self) -> dict[str, Any]:
        """Give the arguments of some write."""
        value = str(self.rng.randrange(100))
        return {"key": self.rng.choice(KEYS), "value": value, "prev_kv": self.rng.random() < 0.5}

    def delete(self) -> dict[str, Any]:
        """Give the arguments of some deletion."""
        return self.range() | {"prev_kv": self.rng.random() < 0.5}

    def compare(self) -> Compare:
        """Give some comparison."""
        where = self.range()
        return self.rng.choice(
            [
                Compare.version(**where) == self.rng.randint(0, 1),
                Compare.value(**where) > "5",
                Compare.version(**where) > 0,
            ]
        )

    def branch(self, depth: int) -> list[AnyOp]:
        """Give some operations that no txn refuses together: at most one of them writes."""
        ops: list[AnyOp] = [Op.get(**self.get()) for _ in range(self.rng.randint(0, 2))]
        writes: list[Callable[[], AnyOp]] = [
            lambda: Op.put(**self.put()),
            lambda: Op.delete(**self.delete()),
        ]
        if depth:
            writes.append(lambda: self.txn(depth - 1))
        return [*ops, self.rng.choice(writes)()]

    def txn(self, depth: int) -> Op[TxnResponse]:
        """Give some txn."""
        return Op.txn(
            compare=[self.compare() for _ in range(self.rng.randint(0, 2))],
            success=self.branch(depth),
            failure=self.branch(depth),
        )

    async def step(self) -> None:
        """Do something."""
        kind = self.rng.choice(("get", "put", "put", "delete", "txn"))
        if kind == "txn":
            op = self.txn(2)
            await self.both(lambda at: at.kv.txn(success=[op]))
        else:
            arguments = getattr(self, kind)()
            await self.both(lambda at: getattr(at.kv, kind)(**arguments))


async def everything(client: Client) -> dict[bytes, KeyValue]:
    """Read the whole store."""
    return {kv.key: kv for kv in (await client.kv.get("", prefix=True)).kvs}


async def until_end(watch: Watch, offset: int) -> list[object]:
    """Take what a watch sees up to the last write, its revisions less an offset."""
    seen: list[object] = []
    async with watch:
        async for event in watch:
            kv, prev = event.kv, event.prev_kv
            before = None if prev is None else (prev.key, prev.value, prev.version)
            seen.append((event.type, kv.key, kv.value, event.mod_revision - offset, before))
            if kv.value == b"end":
                return seen
    raise AssertionError("it ended")


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_it_is_a_store_of_its_own(
    prefix: bytes, client: Client, own_server: EtcdServer, rng: random.Random
) -> None:
    """Random programs give what they give on an empty store, and touch no key outside."""
    async with Client(own_server.endpoint) as alone:
        for key in outsiders(prefix):
            await client.kv.put(key, "outside")
        before = await everything(client)
        cut = rng.randint(1, len(prefix))
        below = client.namespace(prefix[:cut])
        if prefix[cut:]:
            below = below.namespace(prefix[cut:])
        twin = Twin(rng, alone, below)
        first = await twin.begin(client)
        for _ in range(60):
            await twin.step()
        for watched in (
            {"key": b"", "prefix": True},
            {"key": b"a", "prefix": True},
            {"key": b"a", "range_end": b"b"},
            {"key": b"a", "range_end": b"\0"},
            {"key": b"a"},
        ):
            await twin.both(lambda at: at.kv.put("a", "end"))
            offset = twin.offset
            mine = below.watch(**watched, start_revision=first + offset, prev_kv=True)
            theirs = alone.watch(**watched, start_revision=first, prev_kv=True)
            assert await until_end(mine, offset) == await until_end(theirs, 0)
        after = await everything(client)
        assert {key: kv for key, kv in after.items() if not is_below(prefix, key)} == before


async def test_keys_of_a_lease(client: Client) -> None:
    """Of those that hang on a lease, the ones inside are shown."""
    below = client.namespace("/t/")
    lease = await client.lease.grant(60)
    for key in ("/t", "/t/", "/t/a", "/t/b", "/u"):
        await client.kv.put(key, "v", lease=lease)
    left = await below.lease.time_to_live(lease, keys=True)
    assert sorted(left.keys) == [b"a", b"b"]
    assert len((await client.lease.time_to_live(lease, keys=True)).keys) == 5
    await below.lease.revoke(lease)
    assert await everything(client) == {}


async def test_a_lock_below(client: Client) -> None:
    """It excludes those of the same namespace, however that is named, and nobody outside."""
    below = client.namespace("/t/").namespace("u/")
    async with below.lock("nightly", value="one") as lock:
        assert lock.key == f"nightly/{lock.lease_id:x}".encode()
        assert [*await everything(client)] == [b"/t/u/" + lock.key]
        with pytest.raises(LockNotAcquiredError) as caught:
            await client.namespace("/t/u/").lock("nightly", blocking=False).acquire()
        assert caught.value.holder is not None
        assert caught.value.holder.key == lock.key
        with pytest.raises(LockNotAcquiredError):
            await client.lock("/t/u/nightly", blocking=False).acquire()
        async with client.lock("nightly", blocking=False), below.lock("weekly", blocking=False):
            pass
        mine = await below.kv.txn(compare=[lock.is_owner()], success=[Op.put("result", "42")])
        assert mine.succeeded
    lock = below.lock("nightly")
    await lock.acquire()
    await client.kv.delete(b"/t/u/" + lock.key)
    assert isinstance(await lock.wait_lost(), LockLostError)
    await lock.release()


async def test_one_session_in_two_namespaces(client: Client) -> None:
    """Locks of one name below two prefixes are two, though one lease holds both."""
    one, other = client.namespace("/1/"), client.namespace("/2/")
    async with (
        client.session() as session,
        one.lock("x", session=session),
        other.lock("x", session=session, blocking=False),
    ):
        assert len(await everything(client)) == 2
        same = client.namespace("/1/").lock("x", session=session, timeout=0.2)
        with pytest.raises(TimeoutError):
            await same.acquire()
    assert await everything(client) == {}


async def test_it_costs_nothing(client: Client, server: EtcdServer) -> None:
    """Any number of them share the client's streams."""
    streams = "etcd_debugging_mvcc_watch_stream_total"
    async with client.watch("k"):
        await until_metric(server, streams, 1)  # those of earlier tests may still end
        below = [client.namespace(f"/{number}/") for number in range(20)]
        watches = [each.watch("k") for each in below]
        for watch in watches:
            await watch.__aenter__()
        assert (await server.metrics())[streams] == 1
        assert client.stats().watches == 21
        for watch in watches:
            await watch.aclose()


@pytest.mark.parametrize(
    ("prefix", "error"), [("", ValueError), (b"", ValueError), (7, TypeError), (None, TypeError)]
)
async def test_what_is_no_prefix(client: Client, prefix: Any, error: type[Exception]) -> None:
    """It is refused by name."""
    for at in (client, client.namespace("/t/")):
        with pytest.raises(error, match=r"^prefix must"):
            at.namespace(prefix)


async def test_how_it_is_shown(client: Client) -> None:
    """By its whole prefix; a watch shows the key that its user knows."""
    below = client.namespace("/t/").namespace(b"u/")
    assert repr(below) == "<Namespace b'/t/u/'>"
    assert repr(below.watch("k")).startswith("<Watch b'k' ")


async def test_an_operation_may_be_used_again(client: Client) -> None:
    """In any namespace: it is not changed."""
    put = Op.put("k", "v")
    for at in (client, client.namespace("/1/"), client.namespace("/1/"), client.namespace("/2/")):
        await at.kv.txn(success=[put])
    assert [*await everything(client)] == [b"/1/k", b"/2/k", b"k"]
