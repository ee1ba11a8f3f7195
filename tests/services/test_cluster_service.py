"""`client.cluster`: members are listed, added, promoted, moved and removed."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from aioetcd import (
    Client,
    Compare,
    LearnerError,
    Member,
    MemberError,
    MemberNotFoundError,
    Op,
)
from aioetcd.testing import EtcdCluster, EtcdServer
from tests.waiting import until


async def test_the_only_member(own_server: EtcdServer) -> None:
    """It is told as it is."""
    async with Client(own_server.endpoint) as client:
        found = await client.cluster.members()
        (member,) = found.members
        assert member == Member(
            found.header.member_id,
            own_server.name,
            (own_server.peer_url,),
            (own_server.client_url,),
            False,
        )
        assert (member.is_started, member.is_learner) == (True, False)
        assert await client.cluster.members(linearizable=False) == found
        assert await client.cluster.members(endpoint=own_server.endpoint) == found
        assert client.stats().connections == {own_server.endpoint: "READY"}


async def test_a_member_that_never_starts(own_server: EtcdServer) -> None:
    """A learner is added, refused its vote, and removed; the second time there is none."""
    async with Client(own_server.endpoint) as client:
        added = await client.cluster.add(["http://127.0.0.1:1", "http://127.0.0.1:2"], learner=True)
        member = added.member
        assert (member.is_started, member.is_learner, member.client_urls) == (False, True, ())
        assert set(member.peer_urls) == {"http://127.0.0.1:1", "http://127.0.0.1:2"}
        assert member.id in {each.id for each in added.members}
        with pytest.raises(MemberError, match="already exist") as taken:
            await client.cluster.add("http://127.0.0.1:1", learner=True)
        assert taken.value.maybe_applied is False
        with pytest.raises(LearnerError, match="too many learner"):
            await client.cluster.add("http://127.0.0.1:3", learner=True)
        with pytest.raises(LearnerError, match="in sync"):
            await client.cluster.promote(member)
        await client.cluster.members()
        left = await client.cluster.remove(member.id)
        assert member.id not in {each.id for each in left.members}
        for change in (client.cluster.remove(member), client.cluster.promote(member)):
            with pytest.raises(MemberNotFoundError):
                await change


@pytest.mark.fault("a member is added, promoted, leads, and is removed under traffic")
async def test_a_life_of_a_member_under_traffic() -> None:
    """Through the client alone; meanwhile no call fails that has ten seconds.

    A bare put would: etcd loses what is under way to a leader that steps down, and says so late.
    """
    async with (
        EtcdCluster(3, quick=False) as cluster,  # nobody is elected unasked
        Client(cluster.endpoints, timeout=10) as client,
    ):
        done = 0
        stop = False

        async def traffic(number: int) -> None:
            nonlocal done
            key, revision = f"k{number}", 0
            while not stop:
                put = Op.put(key, str(done))
                written = await client.kv.txn(
                    compare=[Compare.mod_revision(key) == revision], success=[put], idempotent=True
                )
                found = (await client.kv.get(key)).kv
                assert found is not None  # where the comparison fails, an earlier try has put it
                assert not written.succeeded or found.mod_revision == written.header.revision
                revision = found.mod_revision
                done += 1
                await anyio.sleep(0.01)

        async with anyio.create_task_group() as group:
            for number in range(4):
                group.start_soon(traffic, number)
            learner = await cluster.add(learner=True)
            (found,) = [m for m in (await client.cluster.members()).members if m.is_learner]
            assert found.name == learner.name

            async def promoted() -> bool:
                try:
                    await client.cluster.promote(found)
                except LearnerError:
                    return False
                return True

            await until(promoted)
            assert not any(m.is_learner for m in (await client.cluster.members()).members)
            await client.maintenance.move_leader(found)

            async def leads() -> bool:
                return (await client.maintenance.status()).leader == found.id

            await until(leads)
            other = next(m for m in (await client.cluster.members()).members if m != found)
            await client.maintenance.move_leader(other.id)
            before = done
            await until(lambda: done > before + 20)
            left = await client.cluster.remove(found.id)
            assert found.id not in {member.id for member in left.members}
            before = done
            await until(lambda: done > before + 20)
            stop = True


@pytest.mark.parametrize(
    "urls",
    [
        "",
        [],
        "127.0.0.1:2380",
        "http://host",
        "ftp://host:1",
        "http://host:1/path",
        "http://:x",
        [""],
    ],
)
async def test_what_is_no_peers_url(client: Client, urls: Any) -> None:
    """It is refused before it is sent."""
    for call in (client.cluster.add, lambda urls: client.cluster.update(1, urls)):
        with pytest.raises(ValueError, match=r"^peer_urls"):
            await call(urls)


@pytest.mark.parametrize(
    ("member", "error"),
    [(0, ValueError), (-1, ValueError), (2**64, ValueError), ("a", TypeError), (True, TypeError)],
)
async def test_what_is_no_member(client: Client, member: Any, error: type[Exception]) -> None:
    """It is refused by name before it is sent."""
    cluster = client.cluster
    for call in (cluster.promote, cluster.remove, lambda m: cluster.update(m, "http://a:1")):
        with pytest.raises(error, match=r"^member must"):
            await call(member)
    with pytest.raises(error, match=r"^to must"):
        await client.maintenance.move_leader(member)
    with pytest.raises(TypeError, match=r"^peer_urls must"):
        await cluster.add(7)  # type: ignore[arg-type]
