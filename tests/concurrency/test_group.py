"""Groups: who is there, by name."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from aioetcd import Cache, Client, DeadlineExceededError, Group, NoEndpointError, Registration
from aioetcd.testing import EtcdServer
from tests.concurrency.test_election import until_nothing_is_left
from tests.waiting import until


async def test_members_by_name(client: Client) -> None:
    """They come, change and go, and are known by their own names."""
    group = client.group("/workers")
    assert repr(group) == "<Group b'/workers'>"
    await client.kv.put_many({"/workers": "1", "/workers2/x": "2", "/worker": "3"})
    async with group.members(decode=int) as members:
        assert dict(members) == {}
        async with group.join("a", "7", ttl=60) as membership, group.join(b"b/c", "8", ttl=60):
            assert isinstance(membership, Registration)
            assert (await client.kv.get("/workers/a")).text == "7"
            await members.wait_until(lambda members: len(members) == 2, timeout=10)
            assert dict(members) == {b"a": 7, b"b/c": 8}
            assert members["a"] == 7
            kv = members.kv("a")
            assert kv is not None
            assert kv.key == b"a"
        await members.wait_until(lambda members: not members, timeout=10)
    await client.kv.delete("/worker", prefix=True)
    await until_nothing_is_left(client)


async def test_a_slash_at_the_end(client: Client) -> None:
    """It is the same group with it as without; in a namespace as outside."""
    tenant = client.namespace("/tenant/")
    async with tenant.group("workers/").join("a", "x", ttl=60):
        for name in ("/tenant/workers", "/tenant/workers/"):
            async with client.group(name).members() as members:
                assert dict(members) == {b"a": b"x"}
        async with tenant.group("workers").members() as members:
            assert dict(members) == {b"a": b"x"}


async def test_a_member_that_is_lost_comes_back(client: Client) -> None:
    """As a registration does."""
    group = client.group("/workers")
    async with group.members() as members, group.join("a", "x", ttl=60):
        await members.wait_until(lambda members: b"a" in members, timeout=10)
        before = members.kv("a")
        assert before is not None
        assert before.lease is not None
        await client.lease.revoke(before.lease)
        await members.wait_until(
            lambda members: (now := members.kv("a")) is not None and now.lease != before.lease,
            timeout=10,
        )


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda client: client.group(""), ValueError, "name must not be empty"),
        (lambda client: client.group("/"), ValueError, "name must not be empty"),
        (lambda client: client.group(7), TypeError, "name must be str or bytes"),
        (lambda client: client.group("g").join(""), ValueError, "member must not be empty"),
        (lambda client: client.group("g").join("a", ttl=0), ValueError, "ttl must be at least 1"),
        (lambda client: client.group("g").members(decode="x"), TypeError, "decode must be"),
    ],
)
def test_what_is_wrong(call: Any, error: type[Exception], match: str) -> None:
    """It is told before anything is sent."""
    client = Client("127.0.0.1:1")
    with pytest.raises(error, match=f"^{match}"):
        call(client)
    assert isinstance(client.group("g"), Group)


async def test_nobody_there() -> None:
    """Entering fails, by cause."""
    async with Client("127.0.0.1:1", timeout=0.3) as client:
        with pytest.raises(NoEndpointError):
            await client.group("g").members().__aenter__()


async def test_waiting_until(client: Client, server: EtcdServer) -> None:
    """At once, when it comes to be so, never; and what the question raises."""
    async with Client(server.endpoint) as other, client.group("g").members() as members:
        asked = 0

        def is_there(members: Cache[bytes]) -> bool:
            nonlocal asked
            asked += 1
            return b"a" in members

        async with anyio.create_task_group() as group:
            group.start_soon(lambda: members.wait_until(is_there))
            await until(lambda: asked == 1)
            await client.kv.put("g/b", "")
            await until(lambda: asked == 2)
            await client.kv.put("g/a", "")
        await members.wait_until(lambda members: len(members) == 2, timeout=0.001)
        with pytest.raises(DeadlineExceededError, match="did not show") as caught:
            await members.wait_until(lambda members: len(members) == 3, timeout=0.1)
        assert caught.value.timeout == 0.1
        with pytest.raises(KeyError):
            await members.wait_until(lambda members: members["c"])
        with pytest.raises(ValueError, match=r"^timeout must be above 0"):
            await members.wait_until(bool, timeout=0)
        with pytest.raises(TypeError, match=r"^predicate must be"):
            await members.wait_until(7)  # type: ignore[arg-type]
        await other.kv.delete("g/", prefix=True)
    with pytest.raises(RuntimeError, match="inside its block"):
        await members.wait_until(bool)
