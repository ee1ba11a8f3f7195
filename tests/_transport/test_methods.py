"""The rows: each RPC has one, and each says what its requests may do."""

from collections import Counter
from typing import Any

import pytest

from aioetcd import Client, UnsupportedByServerError
from aioetcd._proto import election_pb2, lock_pb2, rpc_pb2
from aioetcd._transport import methods
from aioetcd._transport.methods import AUTH_STATUS, Effect, Method
from aioetcd.testing import EtcdServer

ROWS = [
    row
    for name, row in vars(methods).items()
    if isinstance(row, Method) and name not in ("READ_ONLY_TXN", "IDEMPOTENT_TXN", "HEALTH_CHECK")
]

READS = {
    *("Range", "RangeStream", "LeaseTimeToLive", "LeaseLeases", "Watch", "MemberList", "Status"),
    *("Hash", "HashKV", "Snapshot", "AuthStatus", "Authenticate", "UserGet", "UserList", "RoleGet"),
    *("RoleList", "Leader", "Observe"),
}


def test_every_rpc_has_one_row() -> None:
    """There are 49, in three files."""
    files = (rpc_pb2.DESCRIPTOR, lock_pb2.DESCRIPTOR, election_pb2.DESCRIPTOR)
    paths = [
        f"/{service.full_name.removeprefix('aioetcd.')}/{method.name}"
        for file in files
        for service in file.services_by_name.values()
        for method in service.methods
    ]
    assert Counter(row.path for row in ROWS) == Counter(paths)
    assert len(paths) == 49


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.path)
def test_what_an_rpc_may_do(row: Method[Any, Any]) -> None:
    """What is no read may have been applied; only what names its own lease is sent twice."""
    repeatable = row.name in READS or row.name in ("LeaseGrant", "LeaseRevoke", "LeaseKeepAlive")
    assert (row.effect.is_write, row.effect.is_repeatable) == (row.name not in READS, repeatable)
    assert row.doing(Effect.READ).since == row.since


async def test_an_rpc_that_the_server_lacks(server: EtcdServer, client: Client) -> None:
    """The error names the version that has it."""
    call = client._transport.unary(AUTH_STATUS, rpc_pb2.AuthStatusRequest())
    if not server.version.startswith("3.4."):
        assert (await call).enabled is False
        return
    with pytest.raises(UnsupportedByServerError, match=r"etcd has this from 3\.5 on") as caught:
        await call
    assert (caught.value.needs, caught.value.maybe_applied) == ("3.5", False)
