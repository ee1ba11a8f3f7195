"""`kv.update`: a key is changed by what it is, and nothing is changed twice."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import anyio
import pytest

from aioetcd import (
    Client,
    DeadlineExceededError,
    EtcdError,
    KeyValue,
    LeaseNotFoundError,
    NoEndpointError,
)
from aioetcd.kv._update import Attempt, Fate
from aioetcd.testing import EtcdServer, FaultProxy


def increment(counter: KeyValue | None) -> str:
    return str(int(counter.text) + 1 if counter else 1)


async def test_it_is_changed(client: Client) -> None:
    """What it gives is what the store has, whether it was there or not."""
    for value in ("1", "2", "3"):
        changed = await client.kv.update("k", increment)
        assert changed == (await client.kv.get("k")).kv
        assert changed is not None
        assert changed.text == value
    assert await client.kv.update("k", lambda _: None) is None
    assert (await client.kv.get("k")).kv is None
    before = (await client.kv.get("k")).header.revision
    assert await client.kv.update("k", lambda _: None) is None
    assert (await client.kv.get("k")).header.revision == before


async def test_nothing_is_written_where_nothing_changes(client: Client) -> None:
    """It gives the key as it is."""
    put = await client.kv.put("k", "v")
    found = await client.kv.update("k", lambda kv: kv and kv.value)
    assert found == (await client.kv.get("k")).kv
    assert (await client.kv.get("k")).header.revision == put.header.revision


async def test_its_lease_stays(client: Client) -> None:
    """Unless another one is given."""
    first, second = await client.lease.grant(60), await client.lease.grant(60)
    await client.kv.put("k", "1", lease=first)
    for lease, expected in ((None, first), (second, second), (None, second)):
        changed = await client.kv.update("k", increment, lease=lease)
        assert changed == (await client.kv.get("k")).kv
        assert changed is not None
        assert changed.lease == expected.id
    await client.lease.revoke(first)
    with pytest.raises(LeaseNotFoundError):
        await client.kv.update("k", increment, lease=first)
    await client.lease.revoke(second)


async def test_many_at_once(client: Client) -> None:
    """Each change is made once, on top of another one."""
    seen: list[str] = []

    async def count() -> None:
        for _ in range(10):
            changed = await client.kv.update("k", increment, timeout=30)
            assert changed is not None
            seen.append(changed.text)

    await asyncio.gather(*(count() for _ in range(10)))
    assert sorted(seen, key=int) == [str(number) for number in range(1, 101)]


async def test_below_a_prefix(client: Client) -> None:
    """The key is that of the namespace, in what is given as in what is made."""
    tenant = client.namespace("/tenant-7/")
    changed = await tenant.kv.update("k", increment)
    assert changed is not None
    assert changed.key == b"k"
    assert (await client.kv.get("/tenant-7/k")).text == "1"


async def test_others_are_always_faster(client: Client) -> None:
    """It gives up at its deadline."""

    async def disturb() -> None:
        while True:
            await client.kv.put("k", "0")

    async def update() -> None:
        while True:  # now and then it is fast enough
            await client.kv.update("k", increment, timeout=0.02)

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(disturb)
        with pytest.raises((DeadlineExceededError, NoEndpointError)):
            await update()
        group.cancel_scope.cancel()


async def test_what_the_change_raises(client: Client) -> None:
    """It leaves as itself, and nothing is written; so does what is no value."""
    before = await client.kv.put("k", "v")
    with pytest.raises(ZeroDivisionError):
        await client.kv.update("k", lambda _: str(1 // 0))
    wrong: Any = 7
    with pytest.raises(TypeError, match="the value of change must be"):
        await client.kv.update("k", lambda _: wrong)
    with pytest.raises(TypeError, match=r"^change must be a function"):
        await client.kv.update("k", wrong)
    with pytest.raises(ValueError, match=r"^key must not be empty"):
        await client.kv.update("", increment)
    with pytest.raises(ValueError, match=r"^lease must not be 0"):
        await client.kv.update("k", increment, lease=0)
    assert (await client.kv.get("k")).header.revision == before.header.revision
    async with Client("127.0.0.1:1") as nobody:
        with pytest.raises(NoEndpointError):
            await nobody.kv.update("k", increment, timeout=0.2)


@pytest.mark.fault("K1")
async def test_k1_answers_are_lost(client: Client, server: EtcdServer, rng: random.Random) -> None:
    """Wherever it is cut, each change that one alone makes is made once, and known to be."""
    await client.kv.put("k", "0")
    async with FaultProxy(server.endpoint) as proxy, Client(proxy.endpoint) as through:
        for number in range(1, 101):
            if rng.random() < 0.5:
                proxy.cut_after(rng.randint(1, 250))
            changed = await through.kv.update("k", increment)
            assert changed == (await client.kv.get("k")).kv
            assert changed is not None
            assert changed.text == str(number)
        assert proxy.cuts > 10


@pytest.mark.fault("K1")
async def test_k1_what_cannot_be_known(client: Client, server: EtcdServer) -> None:
    """Where others have changed it as well since then, it is an error that says so."""
    await client.kv.put("k", "1")
    async with FaultProxy(server.endpoint) as proxy, Client(proxy.endpoint) as through:
        await through.ping()

        def change(kv: KeyValue | None) -> str:
            proxy.blackhole(client_to_server=False)
            return increment(kv)

        updating = asyncio.ensure_future(through.kv.update("k", change))
        while (await client.kv.get("k")).text != "2":
            await asyncio.sleep(0.005)
        await client.kv.put("k", "another's")
        await proxy.heal()
        proxy.cut()
        with pytest.raises(EtcdError) as caught:
            await updating
        assert caught.value.maybe_applied is True


def kv(value: str, version: int, *, created: int = 10) -> KeyValue:
    """A key of that version; each change has a revision of its own."""
    return KeyValue(b"k", value.encode(), created, created + version - 1, version, None)


@pytest.mark.parametrize(
    ("seen", "value", "now", "fate"),
    [
        (None, b"new", None, Fate.UNKNOWN),
        (kv("old", 3), b"new", kv("old", 3), Fate.OPEN),
        (kv("old", 3), None, kv("old", 3), Fate.OPEN),
        (None, b"new", kv("new", 1), Fate.DONE),
        (kv("old", 3), b"new", kv("new", 4), Fate.DONE),
        (kv("old", 3), None, None, Fate.DONE),
        (kv("old", 3), b"new", kv("another", 4), Fate.LOST),
        (None, b"new", kv("another", 1), Fate.UNKNOWN),
        (None, b"new", kv("new", 2), Fate.UNKNOWN),
        (kv("old", 3), b"new", kv("new", 5), Fate.UNKNOWN),
        (kv("old", 3), b"new", kv("new", 4, created=20), Fate.UNKNOWN),
        (kv("old", 3), b"new", None, Fate.UNKNOWN),
        (kv("old", 3), None, kv("another", 4), Fate.LOST),
        (kv("old", 3), None, kv("another", 9), Fate.LOST),
        (kv("old", 3), None, kv("again", 1, created=20), Fate.UNKNOWN),
    ],
)
def test_fate(seen: KeyValue | None, value: bytes | None, now: KeyValue | None, fate: Fate) -> None:
    """What became of an attempt follows from what is there now, where that says it."""
    assert Attempt(seen, value).fate(now) is fate


def test_fate_with_a_lease() -> None:
    """What hangs on another lease was written by somebody else."""
    on_lease = kv("new", 4)._replace(lease=7)
    assert Attempt(kv("old", 3), b"new", 7).fate(on_lease) is Fate.DONE
    assert Attempt(kv("old", 3), b"new", 8).fate(on_lease) is Fate.LOST
    assert Attempt(None, b"new", 8).fate(kv("new", 1)) is Fate.UNKNOWN


async def test_a_lease_alone(client: Client) -> None:
    """It is attached where the value stays; where both are so already, nothing is written."""
    lease = await client.lease.grant(60)
    await client.kv.put("k", "v")
    changed = await client.kv.update("k", lambda kv: kv and kv.value, lease=lease)
    assert changed is not None
    assert changed.lease == lease.id
    assert changed == (await client.kv.get("k")).kv
    assert await client.kv.update("k", lambda kv: kv and kv.value, lease=lease) == changed
    assert (await client.kv.get("k")).kv == changed
    await client.lease.revoke(lease)
