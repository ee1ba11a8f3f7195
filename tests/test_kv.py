"""Keys are read and written as asked, with every option, and refusals say what was wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest

from aioetcd import (
    Client,
    CompactedError,
    Compare,
    DeleteResponse,
    DuplicateKeyError,
    EtcdError,
    FutureRevisionError,
    GetResponse,
    InvalidRequestError,
    KeyNotFoundError,
    KeyValue,
    LeaseExistsError,
    LeaseNotFoundError,
    NoSpaceError,
    Op,
    PutResponse,
    RequestTooLargeError,
    SortOrder,
    SortTarget,
    TooManyOpsError,
    TxnResponse,
)
from aioetcd.kv import KV
from aioetcd.testing import EtcdServer


@pytest.fixture
def kv(client: Client) -> KV:
    """Keys of a server without any."""
    return client.kv


@pytest.fixture
async def lease(client: Client) -> AsyncIterator[int]:
    """A lease."""
    lease = await client.lease.grant(60)
    yield lease.id
    await client.lease.revoke(lease.id)


def keys(got: GetResponse) -> list[bytes]:
    return [kv.key for kv in got.kvs]


async def value(kv: KV, key: str) -> bytes | None:
    return (await kv.get(key)).value


# --- get, put, delete -------------------------------------------------------------------------


async def test_put_and_get(kv: KV) -> None:
    """What was put comes back as bytes with its history, and a second put goes on with it."""
    first = await kv.put("ключ", "значение")
    second = await kv.put("ключ".encode(), b"\0\xff")
    assert second.header.revision == first.header.revision + 1
    got = await kv.get("ключ")
    assert got.kv == KeyValue(
        key="ключ".encode(),
        value=b"\0\xff",
        create_revision=first.header.revision,
        mod_revision=second.header.revision,
        version=2,
        lease=None,
    )
    assert (got.value, got.count, got.more) == (b"\0\xff", 1, False)


async def test_missing_key(kv: KV) -> None:
    """A key that is not there is an empty answer with a header; an empty value is not None."""
    before = await kv.put("other", "")
    got = await kv.get("k")
    assert (got.kv, got.value, got.kvs, got.count, got.more) == (None, None, (), 0, False)
    assert got.header == before.header
    await kv.put("k", "")
    assert await value(kv, "k") == b""


async def test_header(kv: KV, server: EtcdServer) -> None:
    """Every answer's header says the cluster, the member, the revision and the term."""
    facts = (await server.gateway("maintenance/status"))["header"]
    put = await kv.put("k", "v")
    for header in (
        put.header,
        (await kv.get("k")).header,
        (await kv.txn()).header,
        (await kv.delete("nothing")).header,
    ):
        assert header.cluster_id == int(facts["cluster_id"])
        assert header.member_id == int(facts["member_id"])
        assert header.raft_term == int(facts["raft_term"])
        assert header.revision == put.header.revision == int(facts["revision"]) + 1


async def test_put_prev_kv(kv: KV) -> None:
    """A put gives the key as it was, if asked and if there was one."""
    assert (await kv.put("k", "1", prev_kv=True)).prev_kv is None
    before = (await kv.get("k")).kv
    assert (await kv.put("k", "2")).prev_kv is None
    again = await kv.put("k", "3", prev_kv=True)
    assert again.prev_kv is not None
    assert before is not None
    assert (again.prev_kv.value, again.prev_kv.version) == (b"2", 2)
    assert again.prev_kv.create_revision == before.create_revision


async def test_put_with_lease(kv: KV, client: Client, lease: int) -> None:
    """A put hangs the key on its lease, and a put without one takes it off."""
    await kv.put("k", "1", lease=lease)
    assert (await kv.get("k")).kvs[0].lease == lease
    assert (await client.lease.time_to_live(lease, keys=True)).keys == (b"k",)
    await kv.put("k", "2")
    assert (await kv.get("k")).kvs[0].lease is None
    assert (await client.lease.time_to_live(lease, keys=True)).keys == ()


async def test_ignore_lease(kv: KV, lease: int) -> None:
    """`ignore_lease` changes the value alone."""
    await kv.put("k", "1", lease=lease)
    await kv.put("k", "2", ignore_lease=True)
    kept = (await kv.get("k")).kvs[0]
    assert (kept.value, kept.lease, kept.version) == (b"2", lease, 2)


async def test_ignore_value(kv: KV, lease: int) -> None:
    """`ignore_value` changes the lease alone, and makes a revision all the same."""
    await kv.put("k", "1")
    put = await kv.put("k", ignore_value=True, lease=lease)
    kept = (await kv.get("k")).kvs[0]
    assert (kept.value, kept.lease, kept.version) == (b"1", lease, 2)
    assert kept.mod_revision == put.header.revision
    await kv.put("k", ignore_value=True)
    assert (await kv.get("k")).kvs[0][1:] == (b"1", *kept[2:3], put.header.revision + 1, 3, None)


async def test_delete(kv: KV) -> None:
    """A delete counts what it deleted and returns it if asked; of nothing it makes no revision."""
    put = await kv.put("k", "v")
    stored = (await kv.get("k")).kvs[0]
    deleted = await kv.delete("k", prev_kv=True)
    assert (deleted.deleted, deleted.prev_kvs) == (1, (stored,))
    assert deleted.header.revision == put.header.revision + 1
    nothing = await kv.delete("k", prev_kv=True)
    assert (nothing.deleted, nothing.prev_kvs) == (0, ())
    assert nothing.header.revision == deleted.header.revision
    await kv.put("k", "again")
    assert (await kv.get("k")).kvs[0].version == 1
    assert (await kv.delete("k")).prev_kvs == ()


# --- ranges -----------------------------------------------------------------------------------

NAMES = [b"a", b"a/1", b"a/2", b"a\xff", b"b", b"\xff", b"\xff\xff"]


@pytest.mark.parametrize(
    ("key", "options", "found"),
    [
        ("a", {}, [b"a"]),
        ("a", {"prefix": True}, [b"a", b"a/1", b"a/2", b"a\xff"]),
        ("a/", {"prefix": True}, [b"a/1", b"a/2"]),
        (b"a\xff", {"prefix": True}, [b"a\xff"]),
        (b"\xff", {"prefix": True}, [b"\xff", b"\xff\xff"]),
        ("", {"prefix": True}, NAMES),
        (b"\0", {"range_end": b"\0"}, NAMES),
        ("a/1", {"range_end": "b"}, [b"a/1", b"a/2", b"a\xff"]),
        ("b", {"range_end": b"\0"}, [b"b", b"\xff", b"\xff\xff"]),
        ("b", {"range_end": "a"}, []),
        ("c", {"prefix": True}, []),
    ],
    ids=str,
)
async def test_range(kv: KV, key: str, options: dict[str, Any], found: list[bytes]) -> None:
    """A key, prefix or range finds the same keys for a get, a delete and a comparison."""
    for name in NAMES:
        await kv.put(name, name)
    got = await kv.get(key, **options)
    assert keys(got) == found
    assert (got.count, got.more) == (len(found), False)
    held = await kv.txn(compare=[Compare.version(key, **options) == 1])
    assert held.succeeded is bool(found)
    deleted = await kv.delete(key, prev_kv=True, **options)
    assert deleted.deleted == len(found)
    assert deleted.prev_kvs == got.kvs
    left = await kv.get("", prefix=True)
    assert keys(left) == [name for name in NAMES if name not in found]


async def test_limit(kv: KV) -> None:
    """A limit cuts the answer and says so; the count does not change."""
    for name in ("a", "b", "c"):
        await kv.put(name, name)
    some = await kv.get("", prefix=True, limit=2)
    assert (keys(some), some.count, some.more) == ([b"a", b"b"], 3, True)
    exact = await kv.get("", prefix=True, limit=3)
    assert (keys(exact), exact.count, exact.more) == ([b"a", b"b", b"c"], 3, False)


async def test_count_only_and_keys_only(kv: KV) -> None:
    """Only the count comes, or only the keys with their history."""
    for name in ("a", "b"):
        await kv.put(name, name)
    counted = await kv.get("", prefix=True, count_only=True)
    assert (counted.kvs, counted.kv, counted.count) == ((), None, 2)
    named = await kv.get("", prefix=True, keys_only=True)
    assert [(kv.key, kv.value, kv.version) for kv in named.kvs] == [(b"a", b"", 1), (b"b", b"", 1)]
    both = await kv.get("", prefix=True, count_only=True, keys_only=True)
    assert (both.kvs, both.count) == ((), 2)


async def test_revision(kv: KV) -> None:
    """The past is read as it was, under the header of today."""
    first = await kv.put("k", "1")
    second = await kv.put("k", "2")
    past = await kv.get("k", revision=first.header.revision)
    assert past.value == b"1"
    assert past.header.revision == second.header.revision
    assert (await kv.get("k", revision=first.header.revision - 1)).kv is None
    assert (await kv.get("k", revision=second.header.revision)).value == b"2"


async def test_serializable(kv: KV) -> None:
    """A serializable get is answered too."""
    await kv.put("k", "v")
    assert (await kv.get("k", serializable=True)).value == b"v"


@pytest.fixture
async def sortable(kv: KV) -> dict[SortTarget, list[bytes]]:
    """Five keys that each target sorts otherwise; their order by target, ascending."""
    for name, content in ((b"e", "1"), (b"b", "5"), (b"d", "2"), (b"a", "4"), (b"c", "3")):
        await kv.put(name, content)  # creates them in this order
    for name, times in ((b"d", 4), (b"a", 3), (b"e", 2), (b"c", 1)):
        for _ in range(times):  # changes them in this order, b never
            await kv.put(name, ((await kv.get(name)).kvs[0]).value)
    return {
        SortTarget.KEY: [b"a", b"b", b"c", b"d", b"e"],
        SortTarget.VERSION: [b"b", b"c", b"e", b"a", b"d"],
        SortTarget.CREATE: [b"e", b"b", b"d", b"a", b"c"],
        SortTarget.MOD: [b"b", b"d", b"a", b"e", b"c"],
        SortTarget.VALUE: [b"e", b"d", b"c", b"a", b"b"],
    }


async def test_sort(kv: KV, sortable: dict[SortTarget, list[bytes]]) -> None:
    """Every target and order gives the right keys, with a limit and without an order too."""
    for target, ascending in sortable.items():
        for order in SortOrder:
            expected = ascending[::-1] if order is SortOrder.DESCEND else ascending
            for limit in (None, 2):
                got = await kv.get(
                    "", prefix=True, sort_target=target, sort_order=order, limit=limit
                )
                assert keys(got) == expected[:limit], (target, order, limit)
                assert got.count == 5


async def test_revision_filters(kv: KV) -> None:
    """Each bound leaves out what is beyond it and is itself within; the count ignores all."""
    start = (await kv.put("a", "1")).header.revision  # created at 0, changed at 3
    await kv.put("b", "1")  # 1, 1
    await kv.put("c", "1")  # 2, 4
    await kv.put("a", "2")
    await kv.put("c", "2")
    for options, expected in (
        ({"min_mod_revision": start + 3}, [b"a", b"c"]),
        ({"max_mod_revision": start + 3}, [b"a", b"b"]),
        ({"min_create_revision": start + 1}, [b"b", b"c"]),
        ({"max_create_revision": start + 1}, [b"a", b"b"]),
        ({"min_mod_revision": start + 2, "max_mod_revision": start + 3}, [b"a"]),
        ({"min_create_revision": start + 9}, []),
    ):
        got = await kv.get("", prefix=True, **options)  # type: ignore[arg-type]
        assert keys(got) == expected, options
        assert got.count == 3


# --- txn --------------------------------------------------------------------------------------


async def test_txn_responses_are_typed(kv: KV) -> None:
    """Each operation answers as its single call would, in order, all at one revision."""
    await kv.put("d", "old")
    result = await kv.txn(
        compare=[Compare.create_revision("k") == 0],
        success=[
            Op.put("k", "v", prev_kv=True),
            Op.get("k"),
            Op.delete("d", prev_kv=True),
            Op.txn(success=[Op.put("n", "nested"), Op.get("n")]),
        ],
        failure=[Op.get("k")],
    )
    assert result.succeeded
    put, got, deleted, nested = result.responses
    assert isinstance(put, PutResponse)
    assert put.prev_kv is None
    assert isinstance(got, GetResponse)
    assert got.value == b"v"
    assert isinstance(deleted, DeleteResponse)
    assert [kv.value for kv in deleted.prev_kvs] == [b"old"]
    assert isinstance(nested, TxnResponse)
    assert nested.succeeded
    assert isinstance(nested.responses[1], GetResponse)
    assert nested.responses[1].value == b"nested"
    revisions = {kv.mod_revision for kv in (await kv.get("", prefix=True)).kvs}
    assert revisions == {result.header.revision}
    assert (await kv.txn(compare=[Compare.version("k") == 0])).succeeded is False


async def test_txn_does_the_other_branch(kv: KV) -> None:
    """Where a comparison does not hold, only the other branch is executed."""
    await kv.put("k", "v")
    result = await kv.txn(
        compare=[Compare.version("k") == 1, Compare.value("k") == "w"],
        success=[Op.delete("k")],
        failure=[Op.get("k"), Op.get("l")],
    )
    assert not result.succeeded
    first, second = result.responses
    assert isinstance(first, GetResponse)
    assert isinstance(second, GetResponse)
    assert (first.value, second.value) == (b"v", None)


async def test_txn_without_parts(kv: KV) -> None:
    """A txn without comparisons succeeds; without operations it has no answers."""
    assert (await kv.txn()).succeeded
    result = await kv.txn(success=[Op.put("k", "v")])
    assert result.succeeded
    assert await value(kv, "k") == b"v"


async def test_compares_see_the_state_before(kv: KV) -> None:
    """Comparisons of nested txns too are made before any operation."""
    result = await kv.txn(
        success=[
            Op.put("k", "v"),
            Op.txn(
                compare=[Compare.version("k") == 0],
                success=[Op.put("seen", "before")],
                failure=[Op.put("seen", "after")],
            ),
        ]
    )
    assert isinstance(result.responses[1], TxnResponse)
    assert result.responses[1].succeeded
    assert await value(kv, "seen") == b"before"


@pytest.mark.parametrize(
    ("make", "low", "exact", "high"),
    [
        (Compare.version, 1, 2, 3),
        (Compare.value, "u", "v", "w"),
        (Compare.value, b"", b"v", b"v\0"),
    ],
)
async def test_compare(
    kv: KV, make: Callable[[str], Any], low: object, exact: object, high: object
) -> None:
    """Each operator compares the key's fact with the operand, and not the other way round."""
    await kv.put("k", "x")
    await kv.put("k", "v")
    for compare, holds in (
        (make("k") == exact, True),
        (make("k") == low, False),
        (make("k") != exact, False),
        (make("k") != high, True),
        (make("k") > low, True),
        (make("k") > exact, False),
        (make("k") < high, True),
        (make("k") < exact, False),
    ):
        assert (await kv.txn(compare=[compare])).succeeded is holds, compare


async def test_compare_revisions_and_lease(kv: KV, lease: int) -> None:
    """A key's two revisions and its lease are compared each by itself."""
    created = (await kv.put("k", "1")).header.revision
    changed = (await kv.put("k", "2", lease=lease)).header.revision
    for compare, holds in (
        (Compare.create_revision("k") == created, True),
        (Compare.create_revision("k") == changed, False),
        (Compare.mod_revision("k") == changed, True),
        (Compare.mod_revision("k") < changed, False),
        (Compare.lease("k") == lease, True),
        (Compare.lease("k") == 0, False),
    ):
        assert (await kv.txn(compare=[compare])).succeeded is holds, compare


async def test_compare_missing_keys(kv: KV) -> None:
    """A missing key compares as 0 in all but its value, which never compares."""
    for prefix in (False, True):
        for make in (Compare.version, Compare.create_revision, Compare.mod_revision, Compare.lease):
            for compare, holds in (
                (make("k", prefix=prefix) == 0, True),
                (make("k", prefix=prefix) != 0, False),
                (make("k", prefix=prefix) > 0, False),
                (make("k", prefix=prefix) < 1, True),
            ):
                assert (await kv.txn(compare=[compare])).succeeded is holds, compare
        for compare in (
            Compare.value("k", prefix=prefix) == "",
            Compare.value("k", prefix=prefix) != "v",
            Compare.value("k", prefix=prefix) > "",
            Compare.value("k", prefix=prefix) < "v",
        ):
            assert not (await kv.txn(compare=[compare])).succeeded, compare


async def test_compare_range(kv: KV) -> None:
    """Over a range all keys must satisfy the comparison."""
    await kv.put("k/1", "v")
    await kv.put("k/2", "v")
    same = Compare.value("k/", prefix=True) == "v"
    assert (await kv.txn(compare=[same])).succeeded
    await kv.put("k/2", "w")
    assert not (await kv.txn(compare=[same])).succeeded
    assert (await kv.txn(compare=[Compare.value("k/1", range_end="k/2") == "v"])).succeeded


# --- refusals ---------------------------------------------------------------------------------


def expect_refusal(
    error: EtcdError, code: str, text: str, server: EtcdServer, *, maybe_applied: bool = False
) -> None:
    """Check that an error carries all that the server said."""
    assert error.code == code
    assert error.details is not None
    assert text in error.details
    assert text in str(error)
    assert error.maybe_applied is maybe_applied
    assert error.endpoint == server.endpoint
    assert isinstance(error.__cause__, Exception)


async def test_key_not_found(kv: KV, server: EtcdServer) -> None:
    """`ignore_value` and `ignore_lease` need a key."""
    with pytest.raises(KeyNotFoundError) as caught:
        await kv.put("k", ignore_value=True)
    expect_refusal(caught.value, "INVALID_ARGUMENT", "etcdserver: key not found", server)
    with pytest.raises(KeyNotFoundError):
        await kv.put("k", "v", ignore_lease=True)
    assert (await kv.get("k")).kv is None


@pytest.mark.parametrize(
    ("size", "code", "text"),
    [
        (1_600_000, "INVALID_ARGUMENT", "etcdserver: request is too large"),
        (3_000_000, "RESOURCE_EXHAUSTED", "message larger than max"),
    ],
)
async def test_r2_too_large(kv: KV, server: EtcdServer, size: int, code: str, text: str) -> None:
    """A request beyond the server's limit is one error, whether etcd refuses it or its gRPC."""
    with pytest.raises(RequestTooLargeError) as caught:
        await kv.put("k", b"x" * size)
    expect_refusal(caught.value, code, text, server)
    assert (await kv.get("k")).kv is None


async def test_large_answer(kv: KV) -> None:
    """An answer may be larger than any request: the client sets no limit to it."""
    for number in range(6):
        await kv.put(f"k{number}", b"x" * 1_000_000)
    got = await kv.get("k", prefix=True)
    assert [len(kv.value) for kv in got.kvs] == [1_000_000] * 6
    assert len((await kv.delete("k", prefix=True, prev_kv=True)).prev_kvs) == 6


@pytest.mark.parametrize(
    "ops",
    [
        [Op.put("k", "1"), Op.put("k", "2")],
        [Op.put("k", "1"), Op.delete("k")],
        [Op.put("k", "1"), Op.txn(success=[Op.put("k", "1")])],
    ],
    ids=["put_put", "put_delete", "nested_put"],
)
async def test_duplicate_key(kv: KV, server: EtcdServer, ops: list[Any]) -> None:
    """A txn that would put a key twice, or put and delete it, is refused as a whole."""
    with pytest.raises(DuplicateKeyError) as caught:
        await kv.txn(success=[Op.put("other", "v"), *ops])
    expect_refusal(caught.value, "INVALID_ARGUMENT", "duplicate key given", server)
    assert (await kv.get("", prefix=True)).count == 0


async def test_r2_too_many_ops(kv: KV, server: EtcdServer) -> None:
    """128 operations are done, 129 are refused as a whole."""
    ops = [Op.put(f"k{number}", "v") for number in range(129)]
    with pytest.raises(TooManyOpsError) as caught:
        await kv.txn(success=ops)
    expect_refusal(caught.value, "INVALID_ARGUMENT", "too many operations in txn", server)
    assert len((await kv.txn(success=ops[:128])).responses) == 128
    assert (await kv.get("k", prefix=True)).count == 128


async def test_future_revision(kv: KV, server: EtcdServer) -> None:
    """What has not happened yet can be neither read nor compacted."""
    now = (await kv.put("k", "v")).header.revision
    with pytest.raises(FutureRevisionError) as caught:
        await kv.get("k", revision=now + 1)
    expect_refusal(caught.value, "OUT_OF_RANGE", "is a future revision", server)
    with pytest.raises(FutureRevisionError):
        await kv.compact(now + 1)
    with pytest.raises(FutureRevisionError):
        await kv.txn(success=[Op.put("l", "v"), Op.get("k", revision=now + 2)])
    assert (await kv.get("l")).kv is None


@pytest.mark.parametrize("physical", [False, True])
async def test_compact(kv: KV, server: EtcdServer, physical: bool) -> None:
    """After a compaction its revision is readable and the one before is gone, for txns too."""
    revision = (await kv.put("k", "1")).header.revision
    await kv.put("k", "2")
    now = (await kv.put("k", "3")).header.revision
    compacted = await kv.compact(revision + 1, physical=physical)
    assert compacted.header.revision == now
    assert (await kv.get("k", revision=revision + 1)).value == b"2"
    with pytest.raises(CompactedError) as caught:
        await kv.get("k", revision=revision)
    expect_refusal(caught.value, "OUT_OF_RANGE", "has been compacted", server)
    assert caught.value.compact_revision is None
    with pytest.raises(CompactedError):
        await kv.compact(revision + 1, physical=physical)
    with pytest.raises(CompactedError):
        await kv.txn(success=[Op.put("l", "v"), Op.get("k", revision=revision)])
    assert (await kv.get("l")).kv is None


@pytest.mark.parametrize(
    ("revision", "error"), [(0, ValueError), (-1, ValueError), ("1", TypeError), (True, TypeError)]
)
async def test_compact_refuses(kv: KV, revision: int, error: type[Exception]) -> None:
    """A revision that cannot be is refused before anything is sent."""
    with pytest.raises(error, match=r"^revision must be") as caught:
        await kv.compact(revision)
    assert not isinstance(caught.value, InvalidRequestError)


async def test_unknown_lease(kv: KV, server: EtcdServer) -> None:
    """A put on a lease that is not there is refused."""
    with pytest.raises(LeaseNotFoundError) as caught:
        await kv.put("k", "v", lease=0x7FFFFFFFFFFFFFFF)
    expect_refusal(caught.value, "NOT_FOUND", "requested lease not found", server)
    assert (await kv.get("k")).kv is None


async def test_lease_exists(client: Client, lease: int, server: EtcdServer) -> None:
    """A lease's id is granted once."""
    with pytest.raises(LeaseExistsError) as caught:
        await client.lease.grant(60, lease_id=lease)
    expect_refusal(caught.value, "FAILED_PRECONDITION", "lease already exists", server)


@pytest.mark.contract
async def test_r1_no_space() -> None:
    """A full server refuses what needs space and does what needs none."""
    args = ["--quota-backend-bytes=5000000"]
    async with EtcdServer(args=args) as server, Client(server.endpoint) as client:

        async def fill() -> None:
            while True:  # the server looks at its size whenever it has written it down
                await client.kv.put("k", b"x" * 1_000_000)

        with anyio.fail_after(20), pytest.raises(NoSpaceError) as caught:
            await fill()
        text = "database space exceeded"
        expect_refusal(caught.value, "RESOURCE_EXHAUSTED", text, server, maybe_applied=True)
        for refused in (
            client.kv.put("l", "v"),
            client.kv.txn(success=[Op.get("k"), Op.put("l", "v")]),
            client.lease.grant(60),
        ):
            with pytest.raises(NoSpaceError):
                await refused
        assert (await client.kv.get("k", count_only=True)).count == 1
        assert (await client.kv.delete("k")).deleted == 1
