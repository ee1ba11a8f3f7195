"""An error names the numbers of its request that explain it, and the server's limit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from aioetcd import (
    KV,
    Client,
    CompactedError,
    Compare,
    DuplicateKeyError,
    EtcdError,
    FutureRevisionError,
    KeyNotFoundError,
    LeaseExistsError,
    LeaseNotFoundError,
    Op,
    RequestTooLargeError,
    TooManyOpsError,
)

MANY = [Op.put(str(number), "v") for number in range(129)]

CASES: list[tuple[Callable[[KV], Awaitable[object]], type[EtcdError], str]] = [
    (lambda kv: kv.get("k", revision=1), CompactedError, "(revision 1)"),
    (lambda kv: kv.get("k", revision=10**9), FutureRevisionError, "(revision 1000000000)"),
    (lambda kv: kv.compact(1), CompactedError, "(revision 1)"),
    (lambda kv: kv.compact(10**9), FutureRevisionError, "(revision 1000000000)"),
    (
        lambda kv: kv.txn(
            success=[Op.get("k", revision=1), Op.txn(failure=[Op.get("l", revision=2)])],
            failure=[Op.get("k")],
        ),
        CompactedError,
        "(revisions 1, 2)",
    ),
    (lambda kv: kv.put("k", "v", lease=0xABC), LeaseNotFoundError, "(lease abc)"),
    (
        # What is only compared is not what was not found.
        lambda kv: kv.txn(
            compare=[Compare.lease("k") == 5], failure=[Op.put("k", "v", lease=-2), Op.put("l", "")]
        ),
        LeaseNotFoundError,
        "(lease -2)",
    ),
    (lambda kv: kv.put("none", ignore_value=True), KeyNotFoundError, "(key b'none')"),
    (
        lambda kv: kv.txn(success=[Op.put("k", "v"), Op.put("none", "v", ignore_lease=True)]),
        KeyNotFoundError,
        "(key b'none')",
    ),
    (
        lambda kv: kv.put("k", b"x" * 1_600_000),
        RequestTooLargeError,
        "(1600007 bytes; etcd takes 1572864 by default)",
    ),
    (lambda kv: kv.txn(success=MANY), TooManyOpsError, "(129; etcd takes 128 by default)"),
    (
        lambda kv: kv.txn(success=[*MANY[:89], Op.txn(failure=MANY[90:]), Op.txn()]),
        TooManyOpsError,
        "(130; etcd takes 128 by default)",
    ),
    (
        lambda kv: kv.txn(success=[Op.put("k", "v"), Op.put("l", "v"), Op.put("k", "w")]),
        DuplicateKeyError,
        "(key b'k')",
    ),
    (
        lambda kv: kv.txn(compare=[Compare.missing("k")] * 200),
        TooManyOpsError,
        "(200; etcd takes 128 by default)",
    ),
]


@pytest.mark.parametrize(("call", "error", "text"), CASES, ids=[case[2] for case in CASES])
async def test_what_was_asked_is_told(
    client: Client, call: Callable[[KV], Awaitable[object]], error: type[EtcdError], text: str
) -> None:
    """The message has it behind etcd's own text, which stays what it was in `details`."""
    await client.kv.put("k", "v")
    await client.kv.compact((await client.kv.put("k", "w")).header.revision)
    with pytest.raises(error) as caught:
        await call(client.kv)
    assert text in str(caught.value)
    assert text not in (caught.value.details or "")


async def test_a_lease_that_exists_is_named(client: Client) -> None:
    """A second grant of an id names it."""
    await client.lease.grant(10, lease_id=0xFACE)
    with pytest.raises(LeaseExistsError, match=r"\(lease face\)"):
        await client.lease.grant(10, lease_id=0xFACE)
    await client.lease.revoke(0xFACE)
    with pytest.raises(LeaseNotFoundError, match=r"\(lease face\)"):
        await client.lease.revoke(0xFACE)


async def test_many_are_not_all_named(client: Client) -> None:
    """Of many keys the first ones are named, of long ones the beginning."""
    puts = [Op.put(f"{number}" * 100, ignore_value=True) for number in range(7)]
    with pytest.raises(KeyNotFoundError, match=r"\(keys b'0.* and 2 more\)$") as caught:
        await client.kv.txn(success=puts)
    assert len(str(caught.value)) < 600


async def test_nothing_is_made_up(client: Client) -> None:
    """Where nothing in the request explains it, etcd's text stands alone."""
    with pytest.raises(DuplicateKeyError) as caught:
        await client.kv.txn(success=[Op.put("k", "v"), Op.delete("k")])
    assert str(caught.value).endswith("duplicate key given in txn request")
