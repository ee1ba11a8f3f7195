"""Registrations: they are there, come back, and leave nothing behind."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from aioetcd import (
    Client,
    ClientClosedError,
    KeyValue,
    NoEndpointError,
    PermissionDeniedError,
    PermissionType,
    Registration,
)
from aioetcd.testing import EtcdServer, FaultProxy
from tests.concurrency.locks import cancel_after
from tests.concurrency.test_election import until_nothing_is_left
from tests.waiting import until

KEY = "/services/a"


async def there(client: Client) -> KeyValue | None:
    """What others see."""
    return (await client.kv.get(KEY)).kv


async def until_it_is_back(client: Client, before: KeyValue | None) -> KeyValue:
    """Wait until it is registered anew."""
    found: KeyValue | None = None

    async def is_back() -> bool:
        nonlocal found
        found = await there(client)
        return found is not None and (before is None or found.mod_revision > before.mod_revision)

    await until(is_back)
    assert found is not None
    return found


async def test_it_is_there_for_the_block(client: Client) -> None:
    """On a lease of its own, which goes with it."""
    registration = client.registration(KEY, "10.0.0.7:80", ttl=60)
    assert not registration.is_registered
    async with registration:
        found = await there(client)
        assert found is not None
        assert found.text == "10.0.0.7:80"
        assert (await client.lease.leases()).ids == (found.lease,)
        assert registration.is_registered
    assert not registration.is_registered
    await until_nothing_is_left(client)
    with pytest.raises(RuntimeError, match="entered once"):
        await registration.__aenter__()


@pytest.mark.parametrize("by_itself", [True, False])
async def test_it_comes_back(
    client: Client, server: EtcdServer, caplog: pytest.LogCaptureFixture, by_itself: bool
) -> None:
    """When its lease is revoked, and when its key is deleted; the block goes on.

    Of a lease that others revoke the deletion of the key tells first.
    """
    caplog.set_level("INFO", "aioetcd.concurrency")
    async with (
        Client(server.endpoint) as other,
        client.registration(KEY, "v", ttl=60) as registration,
    ):
        first = await there(client)
        assert first is not None
        assert first.lease is not None
        await (client if by_itself else other).lease.revoke(first.lease)
        second = await until_it_is_back(client, first)
        assert second.lease != first.lease
        await until(lambda: "is registered again" in caplog.text)
        lost, again = (record.getMessage() for record in caplog.records)
        assert "was lost, and is to be registered again: " in lost
        assert again.endswith(" is registered again")
        assert registration.is_registered
        await client.kv.delete(KEY)
        third = await until_it_is_back(client, second)
        assert third.lease == second.lease
    await until_nothing_is_left(client)


async def test_it_comes_back_beyond_a_compaction(client: Client, server: EtcdServer) -> None:
    """Whatever became of the key meanwhile."""
    async with FaultProxy(server.endpoint) as proxy, Client(proxy.endpoint) as through:
        async with through.registration(KEY, "v", ttl=60) as registration:
            before = await there(client)
            proxy.refuse()
            proxy.cut()
            await client.kv.delete(KEY)
            await client.kv.compact((await client.kv.put("k", "v")).header.revision)
            await proxy.accept()
            await until_it_is_back(client, before)
            await until(lambda: registration.is_registered)
        await client.kv.delete("k")
    await until_nothing_is_left(client)


@pytest.mark.fault("L2")
async def test_l2_cut_off_for_longer_than_it_lives(
    quick_server: EtcdServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Others see it go in time; it is back when it can be."""
    caplog.set_level("INFO", "aioetcd.concurrency")
    async with (
        FaultProxy(quick_server.endpoint) as proxy,
        Client(proxy.endpoint, timeout=1) as cut_off,
        Client(quick_server.endpoint) as client,
        cut_off.registration(KEY, "v", ttl=1) as registration,
    ):
        before = await there(client)
        proxy.refuse()
        proxy.cut()

        async def is_gone() -> bool:
            return await there(client) is None

        await until(is_gone)
        await until(lambda: "was lost" in caplog.text)
        assert not registration.is_registered
        assert "is registered again" not in caplog.text
        await proxy.accept()
        await until_it_is_back(client, before)


async def test_somebody_else_takes_the_key(client: Client) -> None:
    """It says so, and comes back when the other one is gone."""
    async with client.registration(KEY, "first", ttl=60) as first:
        async with client.registration(KEY, "second", ttl=60) as second:
            await until(lambda: not first.is_registered)
            assert second.is_registered
            found = await there(client)
            assert found is not None
            assert found.text == "second"

        async def is_back() -> bool:
            found = await there(client)
            return found is not None and found.text == "first"

        await until(is_back)
        await until(lambda: first.is_registered)


async def test_it_takes_nothing_back(client: Client) -> None:
    """When its own lease is lost while somebody else has the key."""
    async with client.registration(KEY, "first", ttl=60) as first:
        own = await there(client)
        assert own is not None
        assert own.lease is not None
        async with client.registration(KEY, "second", ttl=60) as second:
            await until(lambda: not first.is_registered)
            await client.lease.revoke(own.lease)

            async def has_another_lease() -> bool:
                return len((await client.lease.leases()).ids) == 2

            await until(has_another_lease)
            for _ in range(5):
                await client.ping()
            found = await there(client)
            assert found is not None
            assert found.text == "second"
            assert second.is_registered


async def test_another_value(client: Client) -> None:
    """It is seen at once, also when it comes back, and not where another one has the key."""
    registration = client.registration(KEY, "1", ttl=60)
    with pytest.raises(RuntimeError, match="inside its block"):
        await registration.update("2")
    async with registration:
        before = await there(client)
        await registration.update("2")
        second = await there(client)
        assert before is not None
        assert second is not None
        assert (second.text, second.lease, second.version) == ("2", before.lease, 2)
        assert registration.is_registered
        await client.kv.delete(KEY)
        assert (await until_it_is_back(client, second)).text == "2"
        await until(lambda: registration.is_registered)
        with pytest.raises(TypeError, match=r"^value must be"):
            await registration.update(7)  # type: ignore[arg-type]
        async with client.registration(KEY, "other's", ttl=60):
            await registration.update("3")
            third = await there(client)
            assert third is not None
            assert third.text == "other's"
        assert (await until_it_is_back(client, third)).text == "3"
    with pytest.raises(RuntimeError, match="inside its block"):
        await registration.update("2")
    await until_nothing_is_left(client)


async def test_another_value_while_it_comes_back(client: Client) -> None:
    """The last one is what others see in the end, whenever it was given."""
    async with client.registration(KEY, "0", ttl=60) as registration:
        for number in range(1, 40):
            await client.kv.delete(KEY)
            for _ in range(number % 8):
                await asyncio.sleep(0)
            await registration.update(f"{number}")
            last = None

            async def is_seen(number: int = number) -> bool:
                nonlocal last
                last = await there(client)
                return last is not None and last.text == f"{number}"

            await until(is_seen)


async def test_an_update_that_arrives_late(
    client: Client, server: EtcdServer, caplog: pytest.LogCaptureFixture
) -> None:
    """One that was given up, and is carried out after a later one, does not stay."""
    caplog.set_level("INFO", "aioetcd.concurrency")

    async def comes_late(value: str) -> None:
        found = await there(client)
        assert found is not None
        await client.kv.put(KEY, value, lease=found.lease)

    async def is_latest() -> bool:
        found = await there(client)
        return found is not None and found.text == "2"

    async with (
        FaultProxy(server.endpoint) as proxy,
        Client(proxy.endpoint) as through,
        through.registration(KEY, "1", ttl=60) as registration,
    ):
        await registration.update("2")
        await comes_late("1")
        await until(is_latest)
        # Also where nobody is told of it.
        proxy.refuse()
        proxy.cut()
        await comes_late("1")
        await client.kv.compact((await client.kv.put("k", "v")).header.revision)
        await proxy.accept()
        await until(is_latest)
        await until(lambda: registration.is_registered)
        assert "is registered again" not in caplog.text  # it was there all the time


@pytest.mark.outside("permissions are for keys of the whole store")
async def test_who_may_not_follow_it() -> None:
    """Entering fails: it would not come back."""
    auth = ("root", "secret")
    async with (
        EtcdServer(quick=True, args=["--bcrypt-cost=4"], auth=auth) as server,
        Client(server.endpoint, username=auth[0], password=auth[1]) as root,
    ):
        await root.auth.add_user("app", "pw")
        await root.auth.add_role("app")
        await root.auth.grant_role("app", "app")
        await root.auth.grant_permission("app", PermissionType.WRITE, KEY)
        async with Client(server.endpoint, username="app", password="pw") as client:
            with pytest.raises(PermissionDeniedError):
                await client.registration(KEY).__aenter__()
        await until_nothing_is_left(root)


async def test_entering_fails(server: EtcdServer) -> None:
    """By cause, and leaves nothing."""
    async with Client("127.0.0.1:1", timeout=0.3) as nobody:
        with pytest.raises(NoEndpointError):
            await nobody.registration(KEY).__aenter__()
    async with Client(server.endpoint) as client:
        await client.ping()
    with pytest.raises(ClientClosedError):
        await client.registration(KEY).__aenter__()


async def test_a_client_that_closes(server: EtcdServer, client: Client) -> None:
    """It is gone with it, and the block may go on."""
    async with (
        Client(server.endpoint) as other,
        other.registration(KEY, "v", ttl=60) as registration,
    ):
        await other.aclose()
        await until(lambda: not registration.is_registered)
    await until_nothing_is_left(client)


@pytest.mark.parametrize("native", [True, False])
async def test_cancelled_at_random(client: Client, rng: random.Random, native: bool) -> None:
    """Whenever that is, nothing is left."""

    async def register() -> None:
        async with client.registration(KEY, "v", ttl=60):
            pass

    for _ in range(30):
        await cancel_after(rng.uniform(0, 0.02), register, native=native)
    await until_nothing_is_left(client)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"key": ""}, ValueError, "key must not be empty"),
        ({"value": 7}, TypeError, "value must be"),
        ({"ttl": 0}, ValueError, "ttl must be at least 1"),
    ],
)
def test_what_is_wrong(arguments: dict[str, Any], error: type[Exception], match: str) -> None:
    """It is told before anything is sent."""
    client = Client("127.0.0.1:1")
    with pytest.raises(error, match=match):
        client.registration(**({"key": KEY} | arguments))
    assert isinstance(client.registration(KEY), Registration)
