"""Each RPC, called on a real etcd: it works, or the error names the version that has it.

What came of it is compared with the table of the documentation, whose column for a server is
written by ``pytest tests/services/test_each_rpc.py --write-tables``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path

import pytest

from aioetcd import (
    CallReport,
    Client,
    InvalidRequestError,
    LearnerError,
    MemberError,
    Notice,
    NoticeKind,
    Observer,
    PermissionType,
    UnsupportedByServerError,
)
from aioetcd.testing import EtcdServer
from tests.services.test_whole_api import CALLS
from tests.waiting import until

TABLE = Path(__file__).parents[2] / "docs" / "tables" / "rpcs.md"
WORKS = "works"
# What a member says that does its part: there is nobody to promote (`test_cluster_service` promotes
# some), or nothing to take back.
EXPECTED = {"MemberPromote": LearnerError, "Downgrade": MemberError}
STREAMS = {"Observe"}


class Seen(Observer):
    """Notes what came of each RPC."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}

    def call_ended(self, call: CallReport) -> None:
        """Note a call."""
        if isinstance(call.error, UnsupportedByServerError):
            self.outcomes[call.method] = f"from {call.error.needs}"
        elif call.error is None or isinstance(call.error, EXPECTED.get(call.method, ())):
            self.outcomes[call.method] = WORKS
        elif call.method in STREAMS and isinstance(call.error, asyncio.CancelledError):
            self.outcomes[call.method] = WORKS  # it was left

    def noticed(self, notice: Notice) -> None:
        """Note a stream, or a token."""
        if notice.kind is NoticeKind.STREAM_OPENED:
            assert notice.method is not None
            self.outcomes[notice.method] = WORKS
        elif notice.kind is NoticeKind.SIGNED_IN:
            self.outcomes["Authenticate"] = WORKS


@asynccontextmanager
async def learner(client: Client) -> AsyncIterator[int]:
    added = await client.cluster.add("http://127.0.0.1:1", learner=True)
    yield added.member.id
    await client.cluster.members()  # or the server may drop the next change
    await client.cluster.remove(added.member)
    await client.cluster.members()


@asynccontextmanager
async def user_and_role(client: Client) -> AsyncIterator[None]:
    await client.auth.add_user("ada", "pw")
    await client.auth.add_role("reader")
    await client.auth.grant_role("ada", "reader")
    yield
    await client.auth.revoke_role("ada", "reader")
    await client.auth.delete_user("ada")
    await client.auth.delete_role("reader")


async def compact(client: Client) -> None:
    await client.kv.compact((await client.kv.put("k", "v")).header.revision)


async def scan(client: Client) -> None:
    await client.kv.put_many({f"k{n:02}": "v" for n in range(30)})  # more than a first page
    assert len([kv async for kv in client.kv.scan("k", prefix=True)]) == 30


async def watch(client: Client) -> None:
    async with client.watch("k") as events:
        await client.kv.put("k", "v")
        assert (await anext(events)).kv.value == b"v"


async def leases(client: Client) -> None:
    lease = await client.lease.grant(60)
    async for renewal in client.lease.keep_alive(lease):
        assert renewal.ttl == 60
        break
    assert (await client.lease.time_to_live(lease)).granted_ttl == 60
    assert lease.id in (await client.lease.leases()).ids
    await client.lease.revoke(lease)


async def members(client: Client) -> None:
    async with learner(client) as member:
        await client.cluster.update(member, "http://127.0.0.1:2")
        await client.cluster.members()
        with suppress(LearnerError):  # it never ran; promoted are some in test_cluster_service
            await client.cluster.promote(member)


async def alarm(client: Client) -> None:
    assert (await client.maintenance.alarms()).alarms == ()


async def move_leader(client: Client) -> None:
    status = await client.maintenance.status()
    assert status.leader is not None
    await client.maintenance.move_leader(status.leader)


async def defragment(client: Client) -> None:
    (endpoint,) = client.stats().connections
    await client.maintenance.defragment(endpoint)


async def downgrade(client: Client) -> None:
    async def has_a_version() -> bool:  # the cluster agrees on one a moment after it is there
        try:
            await client.maintenance.validate_downgrade("3.1.0")
        except MemberError:
            return False
        except InvalidRequestError:  # no version to go down to
            pass
        return True

    await until(has_a_version)
    with suppress(MemberError):  # a server from 3.6 on takes back what was not begun, too
        await client.maintenance.cancel_downgrade()


async def snapshot(client: Client) -> None:
    assert sum([len(chunk.data) async for chunk in client.maintenance.snapshot()]) > 0


async def users_and_roles(client: Client) -> None:
    auth = client.auth
    async with user_and_role(client):
        assert (await auth.user("ada")).roles == ("reader",)
        assert (await auth.users()).names == ("ada",)
        assert (await auth.roles()).names == ("reader",)
        await auth.change_password("ada", "other")
        await auth.grant_permission("reader", PermissionType.READ, "k")
        assert len((await auth.role("reader")).permissions) == 1
        await auth.revoke_permission("reader", "k")


async def authentication(client: Client) -> None:
    auth = client.auth
    await auth.add_user("root", "pw")
    await auth.add_role("root")
    await auth.grant_role("root", "root")
    await auth.enable()
    client.set_credentials("root", "pw")
    await client.kv.put("k", "v")
    await auth.disable()


async def lock(client: Client) -> None:
    lease = await client.lease.grant(60)
    await client.remote.unlock((await client.remote.lock("l", lease)).key)


async def election(client: Client) -> None:
    lease = await client.lease.grant(60)
    won = await client.remote.campaign("e", lease, "me")
    await client.remote.proclaim(won.leader, "still me")
    assert (await client.remote.leader("e")).kv.value == b"still me"
    async with aclosing(client.remote.observe("e")) as leaders:
        await anext(leaders)
    await client.remote.resign(won.leader)


STORIES: dict[Callable[[Client], Awaitable[object]], tuple[str, ...]] = {
    lambda client: client.kv.get("k"): ("KV.Range",),
    scan: ("KV.RangeStream",),
    lambda client: client.kv.put("k", "v"): ("KV.Put",),
    lambda client: client.kv.delete("k"): ("KV.DeleteRange",),
    lambda client: client.kv.txn(): ("KV.Txn",),
    compact: ("KV.Compact",),
    watch: ("Watch.Watch",),
    leases: (
        *("Lease.LeaseGrant", "Lease.LeaseKeepAlive", "Lease.LeaseTimeToLive"),
        *("Lease.LeaseLeases", "Lease.LeaseRevoke"),
    ),
    members: (
        *("Cluster.MemberAdd", "Cluster.MemberUpdate", "Cluster.MemberPromote"),
        *("Cluster.MemberList", "Cluster.MemberRemove"),
    ),
    alarm: ("Maintenance.Alarm",),
    lambda client: client.maintenance.status(): ("Maintenance.Status",),
    defragment: ("Maintenance.Defragment",),
    lambda client: client.maintenance.hash(): ("Maintenance.Hash",),
    lambda client: client.maintenance.hash_kv(): ("Maintenance.HashKV",),
    snapshot: ("Maintenance.Snapshot",),
    move_leader: ("Maintenance.MoveLeader",),
    downgrade: ("Maintenance.Downgrade",),
    lambda client: client.auth.status(): ("Auth.AuthStatus",),
    users_and_roles: tuple(
        rpc for rpc in CALLS if rpc.startswith(("Auth.User", "Auth.Role"))
    ),
    authentication: ("Auth.AuthEnable", "Auth.Authenticate", "Auth.AuthDisable"),
    lock: ("Lock.Lock", "Lock.Unlock"),
    election: tuple(rpc for rpc in CALLS if rpc.startswith("Election.")),
}  # fmt: skip
"""What makes calls, and the RPCs that it makes."""


def read_table() -> dict[str, dict[str, str]]:
    """Give what the documentation says, by RPC and version."""
    head, _, *lines = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in TABLE.read_text("utf-8").splitlines()
    )
    return {rpc: dict(zip(head[1:], cells, strict=True)) for rpc, *cells in lines}


def write_table(table: dict[str, dict[str, str]]) -> None:
    """Write what the documentation says."""
    (versions, *_) = {tuple(row) for row in table.values()}
    lines = [["RPC", *versions], ["---"] * (len(versions) + 1)]
    lines += [[rpc, *row.values()] for rpc, row in table.items()]
    TABLE.write_text("".join(f"| {' | '.join(line)} |\n" for line in lines), "utf-8")


@pytest.fixture(scope="module")
def outcomes(pytestconfig: pytest.Config) -> Iterator[dict[str, str]]:
    """What came of each RPC; at the end it is the table's column, where that is asked for."""
    found: dict[str, str] = {}
    yield found
    if pytestconfig.getoption("--write-tables"):
        version = EtcdServer().version
        write_table({rpc: row | {version: found[rpc]} for rpc, row in read_table().items()})


@pytest.mark.parametrize("story", STORIES, ids=lambda story: STORIES[story][0])
async def test_works_or_says_who_has_it(
    story: Callable[[Client], Awaitable[object]],
    own_server: EtcdServer,
    outcomes: dict[str, str],
    pytestconfig: pytest.Config,
) -> None:
    """As the table says of this server, where it has a column for it."""
    seen = Seen()
    async with Client(own_server.endpoint, observers=[seen]) as client:
        with suppress(UnsupportedByServerError):
            await story(client)
    for rpc in STORIES[story]:
        outcomes[rpc] = seen.outcomes[rpc.partition(".")[2]]
        if not pytestconfig.getoption("--write-tables"):
            row = read_table()[rpc]
            assert row.get(own_server.version, outcomes[rpc]) == outcomes[rpc]


def test_the_table_is_whole() -> None:
    """It has all of etcd's RPCs, each is in one story, and none of its cells is empty."""
    table = read_table()
    assert table.keys() == CALLS.keys()
    assert sorted(rpc for rpcs in STORIES.values() for rpc in rpcs) == sorted(CALLS)
    assert all(cell for row in table.values() for cell in row.values())
