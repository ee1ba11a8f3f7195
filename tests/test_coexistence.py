"""Another etcd client may be loaded in the same process."""

import subprocess
import sys

import pytest

IMPORTS = {
    "aioetcd": """
import aioetcd
from aioetcd._proto import election_pb2, health_pb2, kv_pb2, lock_pb2, rpc_pb2, rpc_pb2_grpc
""",
    # Its generated modules register "kv.proto", "rpc.proto" and the packages mvccpb, etcdserverpb.
    "aetcd": """
import aetcd
import aetcd.rpc
""",
}

USE_BOTH = """
ours = rpc_pb2.RangeResponse(kvs=[kv_pb2.KeyValue(key=b"ours", mod_revision=7)], count=1)
theirs = aetcd.rpc.RangeResponse(kvs=[aetcd.rpc.KeyValue(key=b"theirs", mod_revision=8)], count=1)
assert type(ours) is not type(theirs)
assert ours.DESCRIPTOR.full_name == "aioetcd.etcdserverpb.RangeResponse"
assert theirs.DESCRIPTOR.full_name == "etcdserverpb.RangeResponse"

assert rpc_pb2.RangeResponse.FromString(ours.SerializeToString()) == ours
assert aetcd.rpc.RangeResponse.FromString(theirs.SerializeToString()) == theirs

# They are one and the same on the wire.
assert rpc_pb2.RangeResponse.FromString(theirs.SerializeToString()).kvs[0].key == b"theirs"
assert aetcd.rpc.RangeResponse.FromString(ours.SerializeToString()).kvs[0].mod_revision == 7
"""


@pytest.mark.parametrize(
    ("first", "second"),
    [("aioetcd", "aetcd"), ("aetcd", "aioetcd")],
    ids=["before_aetcd", "after_aetcd"],
)
def test_loads_beside_aetcd(first: str, second: str) -> None:
    """Both clients' messages load and work in one process, whichever is imported first."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS[first] + IMPORTS[second] + USE_BOTH],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
