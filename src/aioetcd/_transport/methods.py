"""The RPCs, one row each: what the descriptors say of it, and what may be done with it."""

from __future__ import annotations

import enum
from typing import Any, Generic, TypeVar

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from aioetcd._proto import election_pb2, health_pb2, lock_pb2, rpc_pb2

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


class Effect(enum.Enum):
    """What a request may do to the store, and so what may be done when its answer is lost.

    Attributes:
        is_write: Whether it may change anything.
        is_repeatable: Whether a lost answer is a reason to send it again.
    """

    READ = (False, True)
    """Nothing: it is asked again."""
    IDEMPOTENT = (True, True)
    """Twice is the same as once: it is sent again."""
    WRITE = (True, False)
    """Something: it is sent again only where the first surely was not applied."""

    def __init__(self, is_write: bool, is_repeatable: bool) -> None:
        self.is_write = is_write
        self.is_repeatable = is_repeatable


class Method(Generic[Request, Response]):
    """One RPC.

    Attributes:
        name: Its name in its service.
        path: Its name on the wire.
        request: What is sent.
        response: What comes back.
        effect: What it may do; of a stream, what its opening does.
        since: The first version of etcd that has it; None where that is older than 3.4.
        waits: Whether it may be long without an answer because there is nothing to tell.
    """

    __slots__ = ("effect", "name", "path", "request", "response", "since", "waits")

    def __init__(
        self,
        name: str,
        path: str,
        request: type[Request],
        response: type[Response],
        effect: Effect,
        since: str | None = None,
        *,
        waits: bool = False,
    ) -> None:
        self.name: str = name
        self.path: str = path
        self.request: type[Request] = request
        self.response: type[Response] = response
        self.effect: Effect = effect
        self.since: str | None = since
        self.waits: bool = waits

    def doing(self, effect: Effect) -> Method[Request, Response]:
        """Give the same RPC for requests of which more is known, as of a txn that only reads."""
        return Method(
            self.name,
            self.path,
            self.request,
            self.response,
            effect,
            self.since,
            waits=self.waits,
        )


def _row(
    service: str,
    name: str,
    effect: Effect,
    *,
    file: FileDescriptor = rpc_pb2.DESCRIPTOR,
    since: str | None = None,
    waits: bool = False,
) -> Any:
    method = file.services_by_name[service].methods_by_name[name]
    # Our messages live in packages of our own; the services keep etcd's names.
    full_name = method.containing_service.full_name.removeprefix("aioetcd.")
    if file is health_pb2.DESCRIPTOR:
        full_name = f"grpc.{full_name}"
    return Method(
        name,
        f"/{full_name}/{name}",
        GetMessageClass(method.input_type),
        GetMessageClass(method.output_type),
        effect,
        since,
        waits=waits,
    )


RANGE: Method[rpc_pb2.RangeRequest, rpc_pb2.RangeResponse] = _row("KV", "Range", Effect.READ)
RANGE_STREAM: Method[rpc_pb2.RangeRequest, rpc_pb2.RangeStreamResponse] = _row(
    "KV", "RangeStream", Effect.READ, since="3.7"
)
PUT: Method[rpc_pb2.PutRequest, rpc_pb2.PutResponse] = _row("KV", "Put", Effect.WRITE)
DELETE_RANGE: Method[rpc_pb2.DeleteRangeRequest, rpc_pb2.DeleteRangeResponse] = _row(
    "KV", "DeleteRange", Effect.WRITE
)
TXN: Method[rpc_pb2.TxnRequest, rpc_pb2.TxnResponse] = _row("KV", "Txn", Effect.WRITE)
READ_ONLY_TXN: Method[rpc_pb2.TxnRequest, rpc_pb2.TxnResponse] = TXN.doing(Effect.READ)
IDEMPOTENT_TXN: Method[rpc_pb2.TxnRequest, rpc_pb2.TxnResponse] = TXN.doing(Effect.IDEMPOTENT)
COMPACT: Method[rpc_pb2.CompactionRequest, rpc_pb2.CompactionResponse] = _row(
    "KV", "Compact", Effect.WRITE
)

# The id is the client's choice, so a second grant of the same one cannot make a second lease.
LEASE_GRANT: Method[rpc_pb2.LeaseGrantRequest, rpc_pb2.LeaseGrantResponse] = _row(
    "Lease", "LeaseGrant", Effect.IDEMPOTENT
)
LEASE_REVOKE: Method[rpc_pb2.LeaseRevokeRequest, rpc_pb2.LeaseRevokeResponse] = _row(
    "Lease", "LeaseRevoke", Effect.IDEMPOTENT
)
LEASE_KEEP_ALIVE: Method[rpc_pb2.LeaseKeepAliveRequest, rpc_pb2.LeaseKeepAliveResponse] = _row(
    "Lease", "LeaseKeepAlive", Effect.IDEMPOTENT
)
LEASE_TIME_TO_LIVE: Method[rpc_pb2.LeaseTimeToLiveRequest, rpc_pb2.LeaseTimeToLiveResponse] = _row(
    "Lease", "LeaseTimeToLive", Effect.READ
)
LEASE_LEASES: Method[rpc_pb2.LeaseLeasesRequest, rpc_pb2.LeaseLeasesResponse] = _row(
    "Lease", "LeaseLeases", Effect.READ
)

WATCH: Method[rpc_pb2.WatchRequest, rpc_pb2.WatchResponse] = _row("Watch", "Watch", Effect.READ)

MEMBER_ADD: Method[rpc_pb2.MemberAddRequest, rpc_pb2.MemberAddResponse] = _row(
    "Cluster", "MemberAdd", Effect.WRITE
)
MEMBER_REMOVE: Method[rpc_pb2.MemberRemoveRequest, rpc_pb2.MemberRemoveResponse] = _row(
    "Cluster", "MemberRemove", Effect.WRITE
)
MEMBER_UPDATE: Method[rpc_pb2.MemberUpdateRequest, rpc_pb2.MemberUpdateResponse] = _row(
    "Cluster", "MemberUpdate", Effect.WRITE
)
MEMBER_LIST: Method[rpc_pb2.MemberListRequest, rpc_pb2.MemberListResponse] = _row(
    "Cluster", "MemberList", Effect.READ
)
MEMBER_PROMOTE: Method[rpc_pb2.MemberPromoteRequest, rpc_pb2.MemberPromoteResponse] = _row(
    "Cluster", "MemberPromote", Effect.WRITE
)

# To get them is a read; what disarms one, or raises it, may meet another one the second time.
ALARM: Method[rpc_pb2.AlarmRequest, rpc_pb2.AlarmResponse] = _row(
    "Maintenance", "Alarm", Effect.WRITE
)
STATUS: Method[rpc_pb2.StatusRequest, rpc_pb2.StatusResponse] = _row(
    "Maintenance", "Status", Effect.READ
)
DEFRAGMENT: Method[rpc_pb2.DefragmentRequest, rpc_pb2.DefragmentResponse] = _row(
    "Maintenance", "Defragment", Effect.WRITE
)
HASH: Method[rpc_pb2.HashRequest, rpc_pb2.HashResponse] = _row("Maintenance", "Hash", Effect.READ)
HASH_KV: Method[rpc_pb2.HashKVRequest, rpc_pb2.HashKVResponse] = _row(
    "Maintenance", "HashKV", Effect.READ
)
SNAPSHOT: Method[rpc_pb2.SnapshotRequest, rpc_pb2.SnapshotResponse] = _row(
    "Maintenance", "Snapshot", Effect.READ
)
MOVE_LEADER: Method[rpc_pb2.MoveLeaderRequest, rpc_pb2.MoveLeaderResponse] = _row(
    "Maintenance", "MoveLeader", Effect.WRITE
)
DOWNGRADE: Method[rpc_pb2.DowngradeRequest, rpc_pb2.DowngradeResponse] = _row(
    "Maintenance", "Downgrade", Effect.WRITE, since="3.5"
)

AUTH_ENABLE: Method[rpc_pb2.AuthEnableRequest, rpc_pb2.AuthEnableResponse] = _row(
    "Auth", "AuthEnable", Effect.WRITE
)
AUTH_DISABLE: Method[rpc_pb2.AuthDisableRequest, rpc_pb2.AuthDisableResponse] = _row(
    "Auth", "AuthDisable", Effect.WRITE
)
AUTH_STATUS: Method[rpc_pb2.AuthStatusRequest, rpc_pb2.AuthStatusResponse] = _row(
    "Auth", "AuthStatus", Effect.READ, since="3.5"
)
AUTHENTICATE: Method[rpc_pb2.AuthenticateRequest, rpc_pb2.AuthenticateResponse] = _row(
    "Auth", "Authenticate", Effect.READ
)
USER_ADD: Method[rpc_pb2.AuthUserAddRequest, rpc_pb2.AuthUserAddResponse] = _row(
    "Auth", "UserAdd", Effect.WRITE
)
USER_GET: Method[rpc_pb2.AuthUserGetRequest, rpc_pb2.AuthUserGetResponse] = _row(
    "Auth", "UserGet", Effect.READ
)
USER_LIST: Method[rpc_pb2.AuthUserListRequest, rpc_pb2.AuthUserListResponse] = _row(
    "Auth", "UserList", Effect.READ
)
USER_DELETE: Method[rpc_pb2.AuthUserDeleteRequest, rpc_pb2.AuthUserDeleteResponse] = _row(
    "Auth", "UserDelete", Effect.WRITE
)
USER_CHANGE_PASSWORD: Method[
    rpc_pb2.AuthUserChangePasswordRequest, rpc_pb2.AuthUserChangePasswordResponse
] = _row("Auth", "UserChangePassword", Effect.WRITE)
USER_GRANT_ROLE: Method[rpc_pb2.AuthUserGrantRoleRequest, rpc_pb2.AuthUserGrantRoleResponse] = _row(
    "Auth", "UserGrantRole", Effect.WRITE
)
USER_REVOKE_ROLE: Method[rpc_pb2.AuthUserRevokeRoleRequest, rpc_pb2.AuthUserRevokeRoleResponse] = (
    _row("Auth", "UserRevokeRole", Effect.WRITE)
)
ROLE_ADD: Method[rpc_pb2.AuthRoleAddRequest, rpc_pb2.AuthRoleAddResponse] = _row(
    "Auth", "RoleAdd", Effect.WRITE
)
ROLE_GET: Method[rpc_pb2.AuthRoleGetRequest, rpc_pb2.AuthRoleGetResponse] = _row(
    "Auth", "RoleGet", Effect.READ
)
ROLE_LIST: Method[rpc_pb2.AuthRoleListRequest, rpc_pb2.AuthRoleListResponse] = _row(
    "Auth", "RoleList", Effect.READ
)
ROLE_DELETE: Method[rpc_pb2.AuthRoleDeleteRequest, rpc_pb2.AuthRoleDeleteResponse] = _row(
    "Auth", "RoleDelete", Effect.WRITE
)
ROLE_GRANT_PERMISSION: Method[
    rpc_pb2.AuthRoleGrantPermissionRequest, rpc_pb2.AuthRoleGrantPermissionResponse
] = _row("Auth", "RoleGrantPermission", Effect.WRITE)
ROLE_REVOKE_PERMISSION: Method[
    rpc_pb2.AuthRoleRevokePermissionRequest, rpc_pb2.AuthRoleRevokePermissionResponse
] = _row("Auth", "RoleRevokePermission", Effect.WRITE)

LOCK: Method[lock_pb2.LockRequest, lock_pb2.LockResponse] = _row(
    "Lock", "Lock", Effect.WRITE, file=lock_pb2.DESCRIPTOR, waits=True
)
UNLOCK: Method[lock_pb2.UnlockRequest, lock_pb2.UnlockResponse] = _row(
    "Lock", "Unlock", Effect.WRITE, file=lock_pb2.DESCRIPTOR
)

CAMPAIGN: Method[election_pb2.CampaignRequest, election_pb2.CampaignResponse] = _row(
    "Election", "Campaign", Effect.WRITE, file=election_pb2.DESCRIPTOR, waits=True
)
PROCLAIM: Method[election_pb2.ProclaimRequest, election_pb2.ProclaimResponse] = _row(
    "Election", "Proclaim", Effect.WRITE, file=election_pb2.DESCRIPTOR
)
LEADER: Method[election_pb2.LeaderRequest, election_pb2.LeaderResponse] = _row(
    "Election", "Leader", Effect.READ, file=election_pb2.DESCRIPTOR
)
OBSERVE: Method[election_pb2.LeaderRequest, election_pb2.LeaderResponse] = _row(
    "Election", "Observe", Effect.READ, file=election_pb2.DESCRIPTOR, waits=True
)
RESIGN: Method[election_pb2.ResignRequest, election_pb2.ResignResponse] = _row(
    "Election", "Resign", Effect.WRITE, file=election_pb2.DESCRIPTOR
)

HEALTH_CHECK: Method[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse] = _row(
    "Health", "Check", Effect.READ, file=health_pb2.DESCRIPTOR
)
