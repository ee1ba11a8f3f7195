"""The RPCs, one row each: what the descriptors say of it, and what may be done with it."""

from __future__ import annotations

import enum
from typing import Any, Generic, TypeVar

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from aioetcd._proto import health_pb2, rpc_pb2

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


class Effect(enum.Enum):
    """What a request may do to the store, and so what may be done when its answer is lost."""

    READ = enum.auto()
    """Nothing: it is asked again."""
    IDEMPOTENT = enum.auto()
    """Twice is the same as once: it is sent again."""
    WRITE = enum.auto()
    """Something: it is sent again only where the first surely was not applied."""

    @property
    def is_write(self) -> bool:
        """Whether it may change anything."""
        return self is not Effect.READ

    @property
    def is_repeatable(self) -> bool:
        """Whether a lost answer is a reason to send it again."""
        return self is not Effect.WRITE


class Method(Generic[Request, Response]):
    """One RPC.

    Attributes:
        name: Its name in its service.
        path: Its name on the wire.
        request: What is sent.
        response: What comes back.
        effect: What it may do; of a stream, what its opening does.
    """

    __slots__ = ("effect", "name", "path", "request", "response")

    def __init__(
        self,
        name: str,
        path: str,
        request: type[Request],
        response: type[Response],
        effect: Effect,
    ) -> None:
        self.name: str = name
        self.path: str = path
        self.request: type[Request] = request
        self.response: type[Response] = response
        self.effect: Effect = effect

    def doing(self, effect: Effect) -> Method[Request, Response]:
        """Give the same RPC for requests of which more is known, as of a txn that only reads."""
        return Method(self.name, self.path, self.request, self.response, effect)


def _row(service: str, name: str, effect: Effect, file: FileDescriptor = rpc_pb2.DESCRIPTOR) -> Any:
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
    )


RANGE: Method[rpc_pb2.RangeRequest, rpc_pb2.RangeResponse] = _row("KV", "Range", Effect.READ)
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
LEASE_TIME_TO_LIVE: Method[rpc_pb2.LeaseTimeToLiveRequest, rpc_pb2.LeaseTimeToLiveResponse] = _row(
    "Lease", "LeaseTimeToLive", Effect.READ
)
LEASE_LEASES: Method[rpc_pb2.LeaseLeasesRequest, rpc_pb2.LeaseLeasesResponse] = _row(
    "Lease", "LeaseLeases", Effect.READ
)
LEASE_KEEP_ALIVE: Method[rpc_pb2.LeaseKeepAliveRequest, rpc_pb2.LeaseKeepAliveResponse] = _row(
    "Lease", "LeaseKeepAlive", Effect.IDEMPOTENT
)
WATCH: Method[rpc_pb2.WatchRequest, rpc_pb2.WatchResponse] = _row("Watch", "Watch", Effect.READ)
STATUS: Method[rpc_pb2.StatusRequest, rpc_pb2.StatusResponse] = _row(
    "Maintenance", "Status", Effect.READ
)
MEMBER_LIST: Method[rpc_pb2.MemberListRequest, rpc_pb2.MemberListResponse] = _row(
    "Cluster", "MemberList", Effect.READ
)
AUTHENTICATE: Method[rpc_pb2.AuthenticateRequest, rpc_pb2.AuthenticateResponse] = _row(
    "Auth", "Authenticate", Effect.READ
)
HEALTH_CHECK: Method[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse] = _row(
    "Health", "Check", Effect.READ, health_pb2.DESCRIPTOR
)
