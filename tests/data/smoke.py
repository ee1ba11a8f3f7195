"""Uses aioetcd as it is installed; run by test_versions.py in environments of its own."""

import asyncio
import json
import sys
from importlib.metadata import version

import grpc.aio

import aioetcd
from aioetcd._proto import (
    auth_pb2,
    election_pb2,
    election_pb2_grpc,
    health_pb2,
    health_pb2_grpc,
    kv_pb2,
    lock_pb2,
    lock_pb2_grpc,
    rpc_pb2,
    rpc_pb2_grpc,
)


def round_trip() -> None:
    """Messages of every file survive being written and read."""
    event = kv_pb2.Event(
        type=kv_pb2.Event.DELETE, kv=kv_pb2.KeyValue(key=b"\xff\x00", mod_revision=2**63 - 1)
    )
    for message in (
        auth_pb2.Permission(permType=auth_pb2.Permission.READWRITE, key=b"a", range_end=b"b"),
        election_pb2.LeaderResponse(kv=event.kv),
        health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING),
        lock_pb2.LockRequest(name=b"lock", lease=-(2**63)),
        rpc_pb2.WatchResponse(
            header=rpc_pb2.ResponseHeader(cluster_id=2**64 - 1), watch_id=1, events=[event]
        ),
        rpc_pb2.TxnRequest(
            compare=[rpc_pb2.Compare(key=b"a", target=rpc_pb2.Compare.CREATE, create_revision=0)],
            success=[rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=b"a", value=b"b"))],
        ),
    ):
        again = type(message).FromString(message.SerializeToString())
        assert again == message, (again, message)
    response = rpc_pb2.ResponseOp(response_txn=rpc_pb2.TxnResponse(succeeded=True))
    assert response.WhichOneof("response") == "response_txn"


async def make_stubs() -> None:
    """The installed grpc takes the generated stubs; nothing connects."""
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        for stub in (
            election_pb2_grpc.ElectionStub,
            health_pb2_grpc.HealthStub,
            lock_pb2_grpc.LockStub,
            rpc_pb2_grpc.KVStub,
            rpc_pb2_grpc.WatchStub,
        ):
            assert vars(stub(channel))


async def put_and_get(client: aioetcd.Client) -> None:
    """A real server takes a key and gives it back."""
    async with client:
        put = await client.kv.put("smoke", "1")
        got = await client.kv.get("smoke", timeout=5)
        assert got.value == b"1", got
        assert got.kvs[0].mod_revision == put.header.revision, (put, got)
        deleted = await client.kv.delete("smoke", prev_kv=True)
        assert deleted.prev_kvs == got.kvs, (deleted, got)


def main() -> None:
    """Run all checks, with a server where an endpoint is given, then say what was used."""
    round_trip()
    asyncio.run(make_stubs())
    for endpoint in sys.argv[1:]:
        asyncio.run(put_and_get(aioetcd.Client(endpoint)))
    versions = {name: version(name) for name in ("aioetcd", "anyio", "grpcio", "protobuf")}
    sys.stdout.write(json.dumps({"file": aioetcd.__file__, "versions": versions}))


if __name__ == "__main__":
    main()
