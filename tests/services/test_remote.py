"""`client.remote`: the locks and elections that etcd itself keeps."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import anyio
import pytest

from aioetcd import (
    Client,
    ClientClosedError,
    DeadlineExceededError,
    EtcdError,
    LeaderKey,
    LeaseNotFoundError,
    LockNotAcquiredError,
)
from aioetcd.testing import EtcdServer, FaultProxy
from tests.waiting import until


async def test_a_lock(client: Client) -> None:
    """It excludes others, and `Client.lock`; the same lease has it again at once."""
    remote = client.remote
    async with client.session() as one, client.session() as other:
        lock = await remote.lock("/l", one)
        assert lock.key == f"/l/{one.lease_id:x}".encode()
        assert (await remote.lock("/l", one)).key == lock.key
        with pytest.raises(DeadlineExceededError):
            await remote.lock("/l", other, timeout=0.3)
        with pytest.raises(LockNotAcquiredError):
            await client.lock("/l", blocking=False).acquire()
        async with anyio.create_task_group() as group:
            group.start_soon(remote.unlock, lock.key)
            assert (await remote.lock("/l", other, timeout=5)).key.startswith(b"/l/")
    assert (await client.kv.get("", prefix=True)).kvs == ()


async def test_an_election(client: Client) -> None:
    """One leads, proclaims, is seen, and resigns; then another one does."""
    remote = client.remote
    with pytest.raises(EtcdError, match="election: no leader"):
        await remote.leader("/e")
    async with client.session() as one, client.session() as other:
        won = await remote.campaign("/e", one, "one")
        assert won.leader.name == b"/e"
        assert won.leader.lease == one.lease_id
        seen: list[bytes] = []
        async with aclosing(remote.observe("/e", timeout=5)) as leaders:
            seen.append((await anext(leaders)).kv.value)
            with pytest.raises(DeadlineExceededError):
                await remote.campaign("/e", other, "other", timeout=0.3)
            await remote.proclaim(won.leader, "one!")
            seen.append((await anext(leaders)).kv.value)
            await remote.resign(won.leader)
            await remote.campaign("/e", other, "other")
            seen.append((await anext(leaders)).kv.value)
        assert seen == [b"one", b"one!", b"other"]
        with pytest.raises(EtcdError, match="election: not leader"):
            await remote.proclaim(won.leader, "late")
        led = await remote.leader("/e")
        assert (led.kv.value, led.kv.lease) == (b"other", other.lease_id)


async def test_nobody_to_observe(client: Client) -> None:
    """Waiting for a leader has an end where one was given."""
    await client.ping()  # so that the time is not that of a connection
    async with aclosing(client.remote.observe("/e", timeout=0.3)) as leaders:
        with pytest.raises(DeadlineExceededError):
            await anext(leaders)


async def test_a_cut_ends_observing(server: EtcdServer, client: Client) -> None:
    """With an error: whoever follows begins again."""
    async with client.session() as session, FaultProxy(server.endpoint) as proxy:
        await client.remote.campaign("/e", session, "one")
        async with Client(proxy.endpoint) as through:
            async with aclosing(through.remote.observe("/e")) as leaders:
                await anext(leaders)
                proxy.cut()
                with pytest.raises(EtcdError):
                    await anext(leaders)
            async with aclosing(through.remote.observe("/e")) as leaders:
                assert (await anext(leaders)).kv.value == b"one"


async def test_a_client_that_closes_ends_observing(server: EtcdServer) -> None:
    """Also while there is nobody to be seen."""
    async with Client(server.endpoint) as client:
        leaders = client.remote.observe("/e", timeout=None)
        async with anyio.create_task_group() as group:

            async def close() -> None:
                await until(lambda: client.stats().calls > 0)
                await client.aclose()

            group.start_soon(close)
            with pytest.raises(ClientClosedError):
                await anext(leaders)


async def test_a_lease_that_is_none(client: Client) -> None:
    """It is told by its own error."""
    with pytest.raises(LeaseNotFoundError):
        await client.remote.lock("/l", 4711)
    with pytest.raises(LeaseNotFoundError):
        await client.remote.campaign("/e", 4711)


async def test_wrong_arguments(client: Client) -> None:
    """They are refused by name; above all a lease of 0, of which etcd would make one of its own."""
    remote: Any = client.remote
    for call in (remote.lock("", 1), remote.campaign("", 1), remote.leader("")):
        with pytest.raises(ValueError, match=r"^name must not be empty"):
            await call
    for call in (remote.lock("/l", 0), remote.campaign("/e", 0)):
        with pytest.raises(ValueError, match=r"^lease must not be 0"):
            await call
    for call in (remote.resign(b"k"), remote.proclaim(b"k", "v")):
        with pytest.raises(TypeError, match=r"^leader must be a LeaderKey, not bytes"):
            await call
    with pytest.raises(ValueError, match=r"^key must not be empty"):
        await remote.unlock("")
    gone = LeaderKey(b"/e", b"/e/1", 7, 1)
    await remote.resign(gone)  # what is over is no error
