"""Each RPC of etcd has a public call, and each field of a request an argument, or a reason."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from google.protobuf.descriptor import MethodDescriptor

import aioetcd
from aioetcd._proto import election_pb2, lock_pb2, rpc_pb2

RPCS: dict[str, MethodDescriptor] = {
    f"{service.name}.{method.name}": method
    for file in (rpc_pb2.DESCRIPTOR, lock_pb2.DESCRIPTOR, election_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
}

CALLS: dict[str, str] = {
    "KV.Range": "KV.get",
    "KV.RangeStream": "KV.scan",
    "KV.Put": "KV.put",
    "KV.DeleteRange": "KV.delete",
    "KV.Txn": "KV.txn",
    "KV.Compact": "KV.compact",
    "Watch.Watch": "Watcher.__call__",
    "Lease.LeaseGrant": "Leases.grant",
    "Lease.LeaseRevoke": "Leases.revoke",
    "Lease.LeaseKeepAlive": "Leases.keep_alive",
    "Lease.LeaseTimeToLive": "Leases.time_to_live",
    "Lease.LeaseLeases": "Leases.leases",
    "Cluster.MemberAdd": "Cluster.add",
    "Cluster.MemberRemove": "Cluster.remove",
    "Cluster.MemberUpdate": "Cluster.update",
    "Cluster.MemberList": "Cluster.members",
    "Cluster.MemberPromote": "Cluster.promote",
    "Maintenance.Alarm": "Maintenance.disarm",
    "Maintenance.Status": "Maintenance.status",
    "Maintenance.Defragment": "Maintenance.defragment",
    "Maintenance.Hash": "Maintenance.hash",
    "Maintenance.HashKV": "Maintenance.hash_kv",
    "Maintenance.Snapshot": "Maintenance.snapshot",
    "Maintenance.MoveLeader": "Maintenance.move_leader",
    "Maintenance.Downgrade": "Maintenance.enable_downgrade",
    "Auth.AuthEnable": "Auth.enable",
    "Auth.AuthDisable": "Auth.disable",
    "Auth.AuthStatus": "Auth.status",
    "Auth.Authenticate": "Client.set_credentials",
    "Auth.UserAdd": "Auth.add_user",
    "Auth.UserGet": "Auth.user",
    "Auth.UserList": "Auth.users",
    "Auth.UserDelete": "Auth.delete_user",
    "Auth.UserChangePassword": "Auth.change_password",
    "Auth.UserGrantRole": "Auth.grant_role",
    "Auth.UserRevokeRole": "Auth.revoke_role",
    "Auth.RoleAdd": "Auth.add_role",
    "Auth.RoleGet": "Auth.role",
    "Auth.RoleList": "Auth.roles",
    "Auth.RoleDelete": "Auth.delete_role",
    "Auth.RoleGrantPermission": "Auth.grant_permission",
    "Auth.RoleRevokePermission": "Auth.revoke_permission",
    "Lock.Lock": "Remote.lock",
    "Lock.Unlock": "Remote.unlock",
    "Election.Campaign": "Remote.campaign",
    "Election.Proclaim": "Remote.proclaim",
    "Election.Leader": "Remote.leader",
    "Election.Observe": "Remote.observe",
    "Election.Resign": "Remote.resign",
}

RENAMED: dict[tuple[str, str], str] = {
    ("Watch.Watch", "create_request"): "key",
    ("Watch.Watch", "cancel_request"): "Watch.aclose",
    ("Watch.Watch", "progress_request"): "Watch.request_progress",
    ("Lease.LeaseGrant", "TTL"): "ttl",
    ("Lease.LeaseGrant", "ID"): "lease_id",
    ("Lease.LeaseRevoke", "ID"): "lease",
    ("Lease.LeaseKeepAlive", "ID"): "lease",
    ("Lease.LeaseTimeToLive", "ID"): "lease",
    ("Cluster.MemberAdd", "peerURLs"): "peer_urls",
    ("Cluster.MemberAdd", "isLearner"): "learner",
    ("Cluster.MemberRemove", "ID"): "member",
    ("Cluster.MemberUpdate", "ID"): "member",
    ("Cluster.MemberUpdate", "peerURLs"): "peer_urls",
    ("Cluster.MemberPromote", "ID"): "member",
    ("Maintenance.Alarm", "action"): "Maintenance.alarms",  # a call for each
    ("Maintenance.Alarm", "memberID"): "alarm",
    ("Maintenance.MoveLeader", "targetID"): "to",
    ("Maintenance.Downgrade", "action"): "Maintenance.validate_downgrade",  # a call for each
    ("Auth.Authenticate", "name"): "username",
    ("Auth.UserAdd", "options"): "password",  # None is no password
    ("Auth.UserRevokeRole", "name"): "user",
    ("Auth.RoleGet", "role"): "name",
    ("Auth.RoleDelete", "role"): "name",
    ("Auth.RoleGrantPermission", "name"): "role",
    ("Auth.RoleGrantPermission", "perm"): "permission",
}
"""The argument, or the other call, by which a field is set whose name is no argument's."""

NOT_OFFERED: dict[tuple[str, str], str] = {
    ("KV.RangeStream", "sort_order"): "the server refuses it; `get` sorts",
    ("KV.RangeStream", "sort_target"): "the server refuses it; `get` sorts",
    ("KV.RangeStream", "serializable"): "its pages would be of several members' revisions",
    ("KV.RangeStream", "count_only"): "`get` counts",
    ("KV.RangeStream", "min_mod_revision"): "the server refuses it; `get` filters",
    ("KV.RangeStream", "max_mod_revision"): "the server refuses it; `get` filters",
    ("KV.RangeStream", "min_create_revision"): "the server refuses it; `get` filters",
    ("KV.RangeStream", "max_create_revision"): "the server refuses it; `get` filters",
    ("Auth.UserAdd", "hashedPassword"): "etcd's servers fill it in among themselves",
    ("Auth.UserChangePassword", "hashedPassword"): "etcd's servers fill it in among themselves",
}
"""Fields that nobody can set, and why."""


def call_of(name: str) -> Any:
    """Give what a name of ``CALLS`` means."""
    service, _, method = name.partition(".")
    return getattr(getattr(aioetcd, service), method)


def test_every_rpc_is_there() -> None:
    """The table names the 49 of the descriptors, each with a call that is public."""
    assert CALLS.keys() == RPCS.keys()
    assert len(CALLS) == 49
    for name in (*CALLS.values(), *(each for each in RENAMED.values() if "." in each)):
        assert callable(call_of(name))
        assert name.partition(".")[0] in aioetcd.__all__


@pytest.mark.parametrize("rpc", RPCS)
def test_every_field_has_an_argument(rpc: str) -> None:
    """By its own name, or by the one that is noted here; nothing is noted in vain."""
    arguments = inspect.signature(call_of(CALLS[rpc])).parameters
    fields = {field.name for field in RPCS[rpc].input_type.fields}
    for field in fields:
        if (rpc, field) in NOT_OFFERED:
            assert field not in arguments
            continue
        argument = RENAMED.get((rpc, field), field)
        if "." not in argument:
            assert argument in arguments, field
        assert (argument == field) == ((rpc, field) not in RENAMED)
    noted = {field for name, field in (*RENAMED, *NOT_OFFERED) if name == rpc}
    assert noted <= fields


def test_every_option_of_a_watch() -> None:
    """The request that creates one has its fields in `Watcher`, too."""
    arguments = inspect.signature(aioetcd.Watcher.__call__).parameters
    fields = {field.name for field in rpc_pb2.WatchCreateRequest.DESCRIPTOR.fields}
    # The id is the client's own; what the server leaves out is said the other way round.
    assert fields - {"watch_id", "filters"} <= arguments.keys()
    assert "only" in arguments
