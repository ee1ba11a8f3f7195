"""Help for tests against a real etcd: processes, and faults.

Importing it needs neither pytest nor a running etcd. With pytest, the fixtures of
`aioetcd_pytest` are there by themselves.
"""

from aioetcd.testing import checkers
from aioetcd.testing.cluster import EtcdCluster
from aioetcd.testing.history import Recorder
from aioetcd.testing.observer import Observer, observe
from aioetcd.testing.proxy import FaultProxy
from aioetcd.testing.recording import RecordedClient
from aioetcd.testing.server import (
    AddressInUseError,
    EtcdNotFoundError,
    EtcdServer,
    EtcdStartError,
    find_binary,
)

__all__ = [
    "AddressInUseError",
    "EtcdCluster",
    "EtcdNotFoundError",
    "EtcdServer",
    "EtcdStartError",
    "FaultProxy",
    "Observer",
    "RecordedClient",
    "Recorder",
    "checkers",
    "find_binary",
    "observe",
]
