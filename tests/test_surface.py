"""What is public: the names on each exported class, and the types in their signatures.

A name that is added, renamed or lost fails here, and is a decision once it is written down.
"""

from __future__ import annotations

import ast
import builtins
import collections.abc
import enum
import inspect
import os
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterator

import pytest

import aioetcd

CLASSES = {
    name: exported
    for name in aioetcd.__all__
    if isinstance(exported := getattr(aioetcd, name), type)
}

# Of what Python calls by itself, that which users cause on purpose.
PROTOCOLS = {
    "__aenter__",
    "__aiter__",
    "__anext__",
    "__bool__",
    "__call__",
    "__contains__",
    "__enter__",
    "__getitem__",
    "__gt__",
    "__iter__",
    "__len__",
    "__lt__",
}

PUBLIC = {
    "Alarm": "member_id type",
    "AlarmList": "alarms header",
    "AlarmType": "CORRUPT NOSPACE",
    "Auth": (
        "add_role add_user change_password delete_role delete_user disable enable "
        "grant_permission grant_role revoke_permission revoke_role role roles status user users"
    ),
    "AuthResponse": "header",
    "AuthStatus": "enabled header revision",
    "Barrier": "hold release wait",
    "Batch": "events revision",
    "CallReport": "endpoint error method retries seconds",
    "CampaignResponse": "header leader",
    "Cache": (
        "__aenter__ __contains__ __getitem__ __iter__ __len__ changes get is_connected items kv "
        "revision stale_for sync values wait_for wait_until"
    ),
    "CacheChanges": "__aiter__ __anext__",
    "Change": "key new new_kv old old_kv",
    "Client": (
        "__aenter__ aclose auth cluster from_env from_srv from_url maintenance ping remote "
        "set_credentials set_endpoints stats sync_endpoints"
    ),
    "ClientOptions": (
        "auto_sync keepalive_time keepalive_timeout observers password timeout tls username"
    ),
    "ClientStats": (
        "calls connections endpoint leases paused_watches reconnects retries soonest_expiry watches"
    ),
    "Cluster": "add members promote remove update",
    "CompactResponse": "header",
    "CompactedError": "compact_revision",
    "Compare": "__bool__ create_revision exists lease missing mod_revision unchanged value version",
    "CompareTarget": "__gt__ __lt__",
    "Counter": "add value",
    "DeadJob": "attempts id value",
    "DeadlineExceededError": "timeout",
    "Default": "DEFAULT",
    "DeleteManyResponse": "deleted",
    "DeleteResponse": "deleted prev_kvs",
    "DoubleBarrier": ("__aenter__ expires_in is_lost is_owner key lease_id revision wait_lost"),
    "DowngradeResponse": "header version",
    "Election": "campaign candidates leader observe run",
    "ElectionTimeoutError": "leader timeout",
    "EtcdError": "code details endpoint maybe_applied",
    "Event": "is_create is_modify kv mod_revision prev_kv type",
    "EventType": "DELETE PUT",
    "GetManyResponse": "as_dict header kvs",
    "GetResponse": "as_dict count kv kvs more text value",
    "Group": "join members",
    "HasLease": "lease_id",
    "HashKVResponse": "compact_revision hash hash_revision header",
    "HashResponse": "hash header",
    "KV": "batched compact delete delete_many get get_many put put_many scan txn update",
    "Isolation": "READ_COMMITTED REPEATABLE_READS SERIALIZABLE SERIALIZABLE_SNAPSHOT",
    "Job": "__aenter__ ack attempt id is_owner key requeue revision value",
    "JobCounts": "claimed dead delayed waiting",
    "KeepAlive": "__aenter__ __aiter__ __anext__ aclose expires_in",
    "KeyValue": "create_revision key lease mod_revision text value version",
    "LeaderKey": "key lease name revision",
    "LeaderResponse": "header kv",
    "Leaders": "__aiter__ __anext__ aclose",
    "Leadership": (
        "__aenter__ expires_in is_lost is_owner key lease_id proclaim resign revision wait_lost win"
    ),
    "Lease": "header id ttl",
    "LeaseList": "header ids",
    "LeaseLostError": "lease_id reason",
    "LeaseRenewal": "header id ttl",
    "LeaseRevokeResponse": "header",
    "LeaseTimeToLive": "granted_ttl header id keys ttl",
    "Leases": "grant keep_alive keep_alive_once leases revoke time_to_live",
    "Lock": (
        "__aenter__ acquire expires_in is_lost is_owner key lease_id release revision wait_lost"
    ),
    "LockNotAcquiredError": "holder",
    "LockTimeoutError": "holder timeout",
    "QueueError": "key value",
    "Maintenance": (
        "alarms cancel_downgrade defragment disarm enable_downgrade hash hash_kv move_leader "
        "snapshot snapshot_to status statuses validate_downgrade"
    ),
    "Member": "client_urls id is_learner is_started name peer_urls",
    "MemberAddResponse": "header member members",
    "MemberList": "header members",
    "Namespace": (
        "barrier cache counter double_barrier election group kv lease lock locks "
        "namespace partitioner priority_queue queue registration rwlock semaphore "
        "session stm watch work_queue"
    ),
    "NoEndpointError": "reasons",
    "Notice": "endpoint error kind method seconds",
    "NoticeKind": "MEMBER_FOUND MEMBER_LOST RETRY SIGNED_IN STREAM_LOST STREAM_OPENED",
    "Observer": "call_ended metadata noticed",
    "Op": "delete get put txn",
    "OpResponse": "header",
    "PartialWriteError": "failed",
    "Partitioner": "held holders run",
    "Permission": "key range_end type",
    "PermissionType": "READ READWRITE WRITE",
    "PutManyResponse": "revisions",
    "PutResponse": "prev_kv",
    "Queue": "get poll put size",
    "RWLock": "read write",
    "Registration": "__aenter__ is_registered update",
    "Remote": "campaign leader lock observe proclaim resign unlock",
    "RemoteLockResponse": "header key",
    "RemoteResponse": "header",
    "Resolver": "resolve",
    "ResponseHeader": "cluster_id member_id raft_term revision",
    "Role": "header name permissions",
    "RoleList": "header names",
    "Session": "__aenter__ expires_in is_lost lease_id wait_lost",
    "Share": "is_owner item key lease_id revision",
    "SnapshotChunk": "data remaining version",
    "SortOrder": "ASCEND DESCEND NONE",
    "SortTarget": "CREATE KEY MOD VALUE VERSION",
    "Status": (
        "db_size db_size_in_use db_size_quota downgrade_target errors header is_leader "
        "is_learner leader raft_applied_index raft_index raft_term storage_version version"
    ),
    "StmConflictError": "keys tries",
    "TLS": "ca cert key server_name",
    "Transaction": "delete get get_many put revision",
    "TxnResponse": "__getitem__ responses succeeded",
    "UnsupportedByServerError": "needs server_version",
    "User": "header name roles",
    "UserList": "header names",
    "Watch": (
        "__aenter__ __aiter__ __anext__ aclose batches is_connected request_progress revision "
        "stale_for"
    ),
    "Watcher": "__call__",
    "WorkQueue": "counts dead discard put retry worker",
    "Worker": "__aenter__ __aiter__ __anext__ expires_in is_lost lease_id take wait_lost",
}
"""What each exported class adds to those that it inherits from."""


def bases_of_ours(cls: type) -> list[type]:
    """Give a class and what it inherits from, as far as it is ours."""
    return [base for base in cls.__mro__ if base.__module__.partition(".")[0] == "aioetcd"]


def assigned_in(cls: type) -> Iterator[str]:
    """Give the attributes that the methods of a class assign, ``self.name = ...``."""
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(cls)))):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id == "self"
        ):
            yield node.attr


def names_of(cls: type) -> set[str]:
    """Give the public names of a class, those that it inherits from classes of ours included."""
    names: set[str] = set()
    for base in bases_of_ours(cls):
        names.update(vars(base), inspect.get_annotations(base), assigned_in(base))
    return {name for name in names if not name.startswith("_") or name in PROTOCOLS}


def own_names_of(cls: type) -> set[str]:
    """Give those of them that no other exported class has given it."""
    inherited: set[str] = set()
    for base in bases_of_ours(cls)[1:]:
        if base in CLASSES.values():
            inherited |= names_of(base)
    return names_of(cls) - inherited


def is_documented(cls: type, name: str) -> bool:
    """Whether a name has a docstring, or an entry in the ``Attributes:`` of its class."""
    for base in bases_of_ours(cls):
        section = re.search(
            r"^Attributes:\n((?: .*\n|\n)*)",
            f"{inspect.cleandoc(base.__doc__ or '')}\n",
            re.MULTILINE,
        )
        if section and re.search(rf"^    {name}: ", section[1], re.MULTILINE):
            return True
        if isinstance(base, enum.EnumType) and f"`{name}`" in (base.__doc__ or ""):
            return True
        attribute = vars(base).get(name)
        if callable(attribute) or isinstance(attribute, property | staticmethod | classmethod):
            return bool(attribute.__doc__)
    return False


def annotations_of(cls: type) -> Iterator[tuple[str, str]]:
    """Give each annotation of a public name of a class, as it is written, with that name."""
    for base in bases_of_ours(cls):
        for field, annotation in inspect.get_annotations(base).items():
            if not field.startswith("_"):
                yield field, str(getattr(annotation, "__forward_arg__", annotation))
        for name, attribute in vars(base).items():
            if name.startswith("_") and name not in PROTOCOLS:
                continue
            function = attribute.fget if isinstance(attribute, property) else attribute
            function = getattr(function, "__func__", function)  # of a static method
            if inspect.isfunction(function):
                for annotation in inspect.get_annotations(function).values():
                    yield name, annotation


def names_in(annotation: str) -> set[str]:
    """Give the names that an annotation is made of."""
    return {node.id for node in ast.walk(ast.parse(annotation)) if isinstance(node, ast.Name)}


def is_of_python(name: str, cls: type) -> bool:
    """Whether a name in an annotation needs no import of ours."""
    modules = (builtins, typing, collections.abc, types, os)
    variables = (vars(sys.modules[base.__module__]).get(name) for base in bases_of_ours(cls))
    return any(hasattr(module, name) for module in modules) or any(
        isinstance(variable, typing.TypeVar) for variable in variables
    )


def test_exported_names_are_ours_and_documented() -> None:
    """Each name in `__all__` stands there once; a class or function is ours, with a docstring."""
    assert len(set(aioetcd.__all__)) == len(aioetcd.__all__)
    for name in aioetcd.__all__:
        exported = getattr(aioetcd, name)
        if isinstance(exported, type) or inspect.isfunction(exported):
            assert exported.__module__.partition(".")[0] == "aioetcd", name
            assert exported.__doc__, name


@pytest.mark.parametrize("name", CLASSES)
def test_public_names(name: str) -> None:
    """A class has the public names that are listed here, and no others."""
    assert own_names_of(CLASSES[name]) == set(PUBLIC.get(name, "").split())


def test_every_public_name_is_documented() -> None:
    """Each public attribute of each exported class has a docstring, or stands in `Attributes:`."""
    undocumented = [
        f"{name}.{attribute}"
        for name, cls in CLASSES.items()
        for attribute in names_of(cls)
        if not is_documented(cls, attribute)
    ]
    assert undocumented == []


UNMADE = [
    "Auth",
    "Barrier",
    "Cache",
    "CacheChanges",
    "Change",
    "Cluster",
    "Compare",
    "CompareTarget",
    "Counter",
    "DoubleBarrier",
    "KV",
    "Election",
    "Group",
    "Job",
    "KeepAlive",
    "Leaders",
    "Leadership",
    "Leases",
    "Lock",
    "Maintenance",
    "Namespace",
    "Op",
    "Partitioner",
    "PriorityQueue",
    "Queue",
    "RWLock",
    "Registration",
    "Remote",
    "Session",
    "Share",
    "Transaction",
    "Watch",
    "Watcher",
    "WorkQueue",
    "Worker",
]
"""The classes that a client, or a method of theirs, makes."""


@pytest.mark.parametrize("name", UNMADE)
def test_what_is_given_is_not_made(name: str) -> None:
    """Calling such a class says that it is not to be called, and help() shows no internals."""
    cls = CLASSES[name]
    assert str(inspect.signature(cls)) == "(*args: 'object', **kwargs: 'object') -> 'NoReturn'"
    for arguments in ((), (object(),)):
        with pytest.raises(TypeError, match=rf"^{name} has no public constructor: help\(aioetcd"):
            cls(*arguments)


@pytest.mark.parametrize("name", sorted(CLASSES.keys() - UNMADE))
def test_constructors_name_what_is_exported(name: str) -> None:
    """The constructor of every other class takes nothing that users cannot name."""
    cls = CLASSES[name]
    if "__init__" in vars(cls) and typing.Protocol not in cls.__bases__:
        parts = {
            part
            for annotation in inspect.get_annotations(vars(cls)["__init__"]).values()
            for part in names_in(annotation)
            if not typing.is_typeddict(vars(sys.modules[cls.__module__]).get(part))  # keywords
        }
        assert {p for p in parts if p not in aioetcd.__all__ and not is_of_python(p, cls)} == set()


def test_what_annotations_name_is_exported() -> None:
    """Whoever annotates what a public name takes or gives finds the type in `aioetcd`.

    Annotations are read as they are written, so that an alias counts as well.
    """
    private = [
        f"{name}.{method}: {part}"
        for name, cls in CLASSES.items()
        for method, annotation in annotations_of(cls)
        for part in names_in(annotation)
        if part not in aioetcd.__all__ and not is_of_python(part, cls)
    ]
    assert private == []
