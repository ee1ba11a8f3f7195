"""`client.maintenance`: what it tells of members, and does to them."""

from __future__ import annotations

from typing import Any

import pytest

from aioetcd import (
    Alarm,
    AlarmType,
    Client,
    ClusterMismatchError,
    CompactedError,
    FutureRevisionError,
    InvalidRequestError,
    MemberError,
    NoEndpointError,
    NoSpaceError,
    Status,
    UnavailableError,
    UnsupportedByServerError,
)
from aioetcd.testing import EtcdCluster, EtcdServer
from tests.waiting import until


async def test_status(own_server: EtcdServer) -> None:
    """It is what the server's metrics say."""
    async with Client(own_server.endpoint) as client:
        await client.kv.put("k", "v")
        status = await client.maintenance.status()
        assert status.version == own_server.version
        assert status.is_leader
        assert (status.leader, status.is_learner) == (status.header.member_id, False)

        async def has_the_size_of_the_metrics() -> bool:  # the server commits, and grows, meanwhile
            size = (await client.maintenance.status()).db_size
            return size == (await own_server.metrics())["etcd_mvcc_db_total_size_in_bytes"]

        await until(has_the_size_of_the_metrics)
        assert 0 < status.db_size_in_use <= status.db_size
        assert status.raft_applied_index == status.raft_index > 0
        assert status.raft_term == status.header.raft_term
        is_new = own_server.version_info >= (3, 6)
        assert (status.db_size_quota is not None) == is_new
        assert (status.errors, status.downgrade_target) == ((), None)

        async def has_a_storage_version() -> bool:  # which a new member settles by and by
            return (await client.maintenance.status()).storage_version is not None

        if is_new:
            await until(has_a_storage_version)
        else:
            assert not await has_a_storage_version()


@pytest.mark.fault("a member is killed")
async def test_statuses_of_all() -> None:
    """Each endpoint has its own; one that is down has its error, and one outside can be asked."""
    async with (
        EtcdCluster(3, quick=False) as cluster,
        Client(cluster.endpoints, timeout=5) as client,
    ):
        statuses = await client.maintenance.statuses()
        assert [*statuses] == list(cluster.endpoints)
        found = [status for status in statuses.values() if isinstance(status, Status)]
        assert len({status.header.member_id for status in found}) == 3
        assert sum(status.is_leader for status in found) == 1
        await cluster.members[0].kill()
        statuses = await client.maintenance.statuses(timeout=5)
        down = statuses.pop(cluster.endpoints[0])
        assert isinstance(down, UnavailableError | NoEndpointError)
        assert cluster.endpoints[0] in str(down)
        assert all(isinstance(status, Status) for status in statuses.values())
        async with Client(cluster.endpoints[1]) as narrow:
            outside = await narrow.maintenance.status(cluster.direct_endpoints[2])
            assert outside.header.member_id != (await narrow.kv.get("k")).header.member_id
            assert [*narrow.stats().connections] == [cluster.endpoints[1]]


async def test_another_cluster_decides_nothing(server: EtcdServer, own_server: EtcdServer) -> None:
    """Whoever asks a member of one first finds the own cluster all the same."""
    async with Client(server.endpoint) as client:
        other = await client.maintenance.status(own_server.endpoint)
        got = await client.kv.get("k")
        assert got.header.cluster_id != other.header.cluster_id
        with pytest.raises(ClusterMismatchError):
            await client.maintenance.status(own_server.endpoint)


async def test_a_full_member() -> None:
    """The alarm is listed, stops writes, and is disarmed once there is room."""
    async with (
        EtcdServer(quick=True, args=["--quota-backend-bytes=200000"]) as server,
        Client(server.endpoint) as client,
    ):

        async def is_full() -> bool:
            try:
                await client.kv.put("k", "v" * 100_000)
            except NoSpaceError:
                return True
            return False

        await until(is_full)
        maintenance = client.maintenance
        status = await maintenance.status()
        (alarm,) = (await maintenance.alarms()).alarms
        assert alarm == Alarm(status.header.member_id, AlarmType.NOSPACE)
        assert str(alarm.type) == f"{alarm.type}" == "NOSPACE"
        assert any("NOSPACE" in error for error in status.errors)
        revision = (await client.kv.get("k")).header.revision
        await client.kv.compact(revision, physical=True)
        await maintenance.defragment(server.endpoint, timeout=30)
        after = await maintenance.status()
        assert after.db_size < status.db_size
        assert (await maintenance.disarm(alarm)).alarms == (alarm,)
        assert (await maintenance.alarms()).alarms == ()
        await client.kv.put("k", "v")
        with pytest.raises(TypeError, match=r"^alarm must be an Alarm, not int"):
            await maintenance.disarm(1)  # type: ignore[arg-type]


async def test_hashes(client: Client) -> None:
    """That of the keys follows what was written, and nothing else; it names its revisions."""
    maintenance = client.maintenance
    first = (await client.kv.put("k", "1")).header.revision
    second = (await client.kv.put("k", "2")).header.revision
    before, after = [await maintenance.hash_kv(revision=each) for each in (first, second)]
    assert before.hash != after.hash
    latest = await maintenance.hash_kv()
    assert latest.hash == after.hash
    if latest.hash_revision is not None:
        assert latest.hash_revision == second
    with pytest.raises(FutureRevisionError):
        await maintenance.hash_kv(revision=second + 10)
    await client.kv.compact(second)
    with pytest.raises(CompactedError):
        await maintenance.hash_kv(revision=first)
    assert (await maintenance.hash_kv()).compact_revision == second
    assert (await maintenance.hash()).hash > 0


@pytest.mark.parametrize("revision", [0, -1, "1"])
async def test_what_is_no_revision(client: Client, revision: Any) -> None:
    """It is refused by name."""
    with pytest.raises((ValueError, TypeError), match=r"^revision must"):
        await client.maintenance.hash_kv(revision=revision)


async def test_a_downgrade(own_server: EtcdServer) -> None:
    """It is validated, begun, told by the status, and called off."""
    async with Client(own_server.endpoint) as client:
        maintenance = client.maintenance
        major, minor, _ = own_server.version_info
        target = f"{major}.{minor - 1}.0"
        if (major, minor) < (3, 5):
            for call in (maintenance.validate_downgrade(target), maintenance.cancel_downgrade()):
                with pytest.raises(UnsupportedByServerError, match=r"from 3\.5 on") as caught:
                    await call
                assert caught.value.needs == "3.5"
            return

        async def is_valid() -> bool:
            # The cluster has agreed on its version only a moment after it is there.
            try:
                await maintenance.validate_downgrade(target)
            except MemberError:
                return False
            return True

        await until(is_valid)
        if (major, minor) < (3, 6):
            with pytest.raises(MemberError):
                await maintenance.cancel_downgrade()
        else:
            await maintenance.cancel_downgrade()
        with pytest.raises(InvalidRequestError):
            await maintenance.validate_downgrade("3.1.0")
        with pytest.raises(TypeError, match=r"^version must"):
            await maintenance.validate_downgrade(3.5)  # type: ignore[arg-type]
        if (major, minor) < (3, 6):
            return  # one that has begun there cannot be told by its status
        await maintenance.enable_downgrade(target)
        assert (await maintenance.status()).downgrade_target == target
        await maintenance.cancel_downgrade()
        assert (await maintenance.status()).downgrade_target is None


@pytest.mark.parametrize("endpoint", ["", "host", "host:port", "ftp://host:1"])
async def test_what_is_no_endpoint(client: Client, endpoint: str) -> None:
    """It is refused before anything is sent."""
    maintenance = client.maintenance
    for call in (maintenance.status, maintenance.defragment, maintenance.hash, maintenance.hash_kv):
        with pytest.raises(ValueError, match="endpoint"):
            await call(endpoint)


async def test_ping(client: Client, own_server: EtcdServer) -> None:
    """It takes as long as it says, and fails where nobody answers."""
    assert 0 < await client.ping() < 10
    async with Client(own_server.endpoint) as other:
        await other.ping()
        await own_server.kill()
        await until(lambda: not other._transport.is_connected)  # gRPC has noticed
        with pytest.raises((UnavailableError, NoEndpointError)):
            await other.ping(timeout=0.5)
