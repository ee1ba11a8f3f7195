"""The RPCs that the services use, and what may be done with each."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from aioetcd._proto import rpc_pb2, rpc_pb2_grpc

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


class Unary(Generic[Request, Response]):
    """A unary RPC.

    Attributes:
        stub: The generated stub class of its service.
        name: Its name there.
        is_write: Whether it may change anything.
        repeatable: Whether doing it twice is the same as once, so that a lost answer is a reason
            to ask again.
    """

    __slots__ = ("is_write", "name", "repeatable", "stub")

    def __init__(self, stub: type, name: str, *, is_write: bool, repeatable: bool) -> None:
        self.stub: type = stub
        self.name: str = name
        self.is_write: bool = is_write
        self.repeatable: bool = repeatable


class Bidi(Generic[Request, Response]):
    """A bidirectional stream. It is read as bytes: their number is what an answer takes.

    Attributes:
        service: The name of its service on the wire, which is not that of our protos.
        name: Its name there.
        request: What is sent.
        response: What the bytes of an answer are.
    """

    __slots__ = ("name", "request", "response", "service")

    def __init__(
        self, service: str, name: str, request: type[Request], response: type[Response]
    ) -> None:
        self.service: str = service
        self.name: str = name
        self.request: type[Request] = request
        self.response: type[Response] = response


def _read(stub: type, name: str) -> Unary[Any, Any]:
    return Unary(stub, name, is_write=False, repeatable=True)


def _write(stub: type, name: str, *, repeatable: bool = False) -> Unary[Any, Any]:
    return Unary(stub, name, is_write=True, repeatable=repeatable)


RANGE: Unary[rpc_pb2.RangeRequest, rpc_pb2.RangeResponse] = _read(rpc_pb2_grpc.KVStub, "Range")
PUT: Unary[rpc_pb2.PutRequest, rpc_pb2.PutResponse] = _write(rpc_pb2_grpc.KVStub, "Put")
DELETE_RANGE: Unary[rpc_pb2.DeleteRangeRequest, rpc_pb2.DeleteRangeResponse] = _write(
    rpc_pb2_grpc.KVStub, "DeleteRange"
)
TXN: Unary[rpc_pb2.TxnRequest, rpc_pb2.TxnResponse] = _write(rpc_pb2_grpc.KVStub, "Txn")
READ_ONLY_TXN: Unary[rpc_pb2.TxnRequest, rpc_pb2.TxnResponse] = _read(rpc_pb2_grpc.KVStub, "Txn")
IDEMPOTENT_TXN: Unary[rpc_pb2.TxnRequest, rpc_pb2.TxnResponse] = _write(
    rpc_pb2_grpc.KVStub, "Txn", repeatable=True
)
COMPACT: Unary[rpc_pb2.CompactionRequest, rpc_pb2.CompactionResponse] = _write(
    rpc_pb2_grpc.KVStub, "Compact"
)
# The id is the client's choice, so a second grant of the same one cannot make a second lease.
LEASE_GRANT: Unary[rpc_pb2.LeaseGrantRequest, rpc_pb2.LeaseGrantResponse] = _write(
    rpc_pb2_grpc.LeaseStub, "LeaseGrant", repeatable=True
)
LEASE_REVOKE: Unary[rpc_pb2.LeaseRevokeRequest, rpc_pb2.LeaseRevokeResponse] = _write(
    rpc_pb2_grpc.LeaseStub, "LeaseRevoke", repeatable=True
)
LEASE_TIME_TO_LIVE: Unary[rpc_pb2.LeaseTimeToLiveRequest, rpc_pb2.LeaseTimeToLiveResponse] = _read(
    rpc_pb2_grpc.LeaseStub, "LeaseTimeToLive"
)
LEASE_LEASES: Unary[rpc_pb2.LeaseLeasesRequest, rpc_pb2.LeaseLeasesResponse] = _read(
    rpc_pb2_grpc.LeaseStub, "LeaseLeases"
)
STATUS: Unary[rpc_pb2.StatusRequest, rpc_pb2.StatusResponse] = _read(
    rpc_pb2_grpc.MaintenanceStub, "Status"
)

LEASE_KEEP_ALIVE = Bidi(
    "etcdserverpb.Lease",
    "LeaseKeepAlive",
    rpc_pb2.LeaseKeepAliveRequest,
    rpc_pb2.LeaseKeepAliveResponse,
)
WATCH = Bidi("etcdserverpb.Watch", "Watch", rpc_pb2.WatchRequest, rpc_pb2.WatchResponse)
