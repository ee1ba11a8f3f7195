"""The asyncio-native etcd v3 client."""

import logging

from aioetcd.client import Client
from aioetcd.compare import Compare, CompareTarget
from aioetcd.concurrency import Lock, OnLost, Session
from aioetcd.config.client import ClientOptions
from aioetcd.config.srv import Resolver
from aioetcd.config.timeouts import DEFAULT, Default
from aioetcd.config.tls import PEM, TLS
from aioetcd.errors import (
    AuthenticationError,
    AuthError,
    AuthNotEnabledError,
    ClientClosedError,
    ClusterMismatchError,
    CompactedError,
    CorruptClusterError,
    DeadlineExceededError,
    DuplicateKeyError,
    EtcdError,
    FutureRevisionError,
    InvalidRequestError,
    KeyNotFoundError,
    LearnerError,
    LeaseError,
    LeaseExistsError,
    LeaseExpiredError,
    LeaseLostError,
    LeaseNotFoundError,
    LockError,
    LockLostError,
    LockNotAcquiredError,
    LockTimeoutError,
    MemberError,
    MemberNotFoundError,
    NoEndpointError,
    NoLeaderError,
    NoSpaceError,
    NotLeaderError,
    PermissionDeniedError,
    RequestTooLargeError,
    TooManyOpsError,
    TooManyRequestsError,
    UnavailableError,
    UnhealthyClusterError,
    UnsupportedByServerError,
)
from aioetcd.keys import prefix_end
from aioetcd.kv import KV
from aioetcd.lease import KeepAlive, Leases
from aioetcd.namespace import Namespace
from aioetcd.observe import CallReport, Notice, NoticeKind, Observer
from aioetcd.ops import AnyOp, Op, TxnResponse
from aioetcd.types.answers import (
    CompactResponse,
    DeleteResponse,
    GetResponse,
    OpResponse,
    PutResponse,
)
from aioetcd.types.leases import (
    HasLease,
    Lease,
    LeaseLike,
    LeaseList,
    LeaseRenewal,
    LeaseRevokeResponse,
    LeaseTimeToLive,
)
from aioetcd.types.stats import ClientStats
from aioetcd.types.store import (
    Batch,
    Event,
    EventType,
    KeyValue,
    ResponseHeader,
    SortOrder,
    SortTarget,
)
from aioetcd.watch import Watch, Watcher

__version__ = "0.2.0"

# Whoever does not configure logging is not written to on stderr.
logging.getLogger("aioetcd").addHandler(logging.NullHandler())

__all__ = [
    "DEFAULT",
    "KV",
    "PEM",
    "TLS",
    "AnyOp",
    "AuthError",
    "AuthNotEnabledError",
    "AuthenticationError",
    "Batch",
    "CallReport",
    "Client",
    "ClientClosedError",
    "ClientOptions",
    "ClientStats",
    "ClusterMismatchError",
    "CompactResponse",
    "CompactedError",
    "Compare",
    "CompareTarget",
    "CorruptClusterError",
    "DeadlineExceededError",
    "Default",
    "DeleteResponse",
    "DuplicateKeyError",
    "EtcdError",
    "Event",
    "EventType",
    "FutureRevisionError",
    "GetResponse",
    "HasLease",
    "InvalidRequestError",
    "KeepAlive",
    "KeyNotFoundError",
    "KeyValue",
    "LearnerError",
    "Lease",
    "LeaseError",
    "LeaseExistsError",
    "LeaseExpiredError",
    "LeaseLike",
    "LeaseList",
    "LeaseLostError",
    "LeaseNotFoundError",
    "LeaseRenewal",
    "LeaseRevokeResponse",
    "LeaseTimeToLive",
    "Leases",
    "Lock",
    "LockError",
    "LockLostError",
    "LockNotAcquiredError",
    "LockTimeoutError",
    "MemberError",
    "MemberNotFoundError",
    "Namespace",
    "NoEndpointError",
    "NoLeaderError",
    "NoSpaceError",
    "NotLeaderError",
    "Notice",
    "NoticeKind",
    "Observer",
    "OnLost",
    "Op",
    "OpResponse",
    "PermissionDeniedError",
    "PutResponse",
    "RequestTooLargeError",
    "Resolver",
    "ResponseHeader",
    "Session",
    "SortOrder",
    "SortTarget",
    "TooManyOpsError",
    "TooManyRequestsError",
    "TxnResponse",
    "UnavailableError",
    "UnhealthyClusterError",
    "UnsupportedByServerError",
    "Watch",
    "Watcher",
    "__version__",
    "prefix_end",
]
