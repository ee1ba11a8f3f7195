"""A worker of `versus.py`, with one of the clients for Python: does what stdin says.

    python benchmarks/workers.py CLIENT ENDPOINT

Each line is a task, and answered by a line of JSON: how many calls, keys or events it was, the
seconds and the seconds of CPU of this process that it took, and where there are callers what 50 and
99 of a hundred calls took:

    get CALLERS MILLISECONDS    so many callers read keys, for so long
    put CALLERS MILLISECONDS    or write them
    scan                        reads all keys of a prefix
    replay REVISION COUNT       takes so many events from a revision on
    fanout WATCHES COUNT        writes so many keys, which so many watches take each
    many COUNT                  writes so many keys, in few round trips

What a client cannot do is answered by "no", and what it fails at by "no" and why. Only what its own
client needs is imported: each one is in an environment of its own.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from importlib import import_module
from time import perf_counter, process_time
from typing import Any

KEYS = 1000
VALUE = b"v" * 64


def key_of(number: int) -> str:
    return f"/k/{number % KEYS:08}"


class Worker:
    """Works with one of the clients.

    Attributes:
        together: How many keys a get or put is for.
    """

    together = 1

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.host, _, self.port = endpoint.rpartition(":")
        self.stack = AsyncExitStack()
        self.client: Any = None

    async def connect(self) -> None:
        raise NotImplementedError

    async def get(self, key: str) -> object:
        raise NotImplementedError

    async def put(self, key: str) -> object:
        raise NotImplementedError

    async def scan(self) -> int:
        raise NotImplementedError

    def watch(self, revision: int | None, created: asyncio.Event) -> AsyncIterator[int]:
        """Give how many events have come, each time that some have."""
        raise NotImplementedError

    async def put_many(self, count: int) -> object:
        raise NotImplementedError


class Bare(Worker):
    """The stub by itself, with what each user of it has to do: see README.md."""

    async def connect(self) -> None:
        import grpc.aio

        from aioetcd._proto import rpc_pb2, rpc_pb2_grpc
        from aioetcd._transport.transport import channel_options

        self.rpc: Any = rpc_pb2
        options = channel_options(keepalive_time=10.0, keepalive_timeout=5.0)
        channel = grpc.aio.insecure_channel(self.endpoint, options=options)
        await self.stack.enter_async_context(channel)
        self.kv: Any = rpc_pb2_grpc.KVStub(channel)
        self.watches: Any = rpc_pb2_grpc.WatchStub(channel)
        await self.get(key_of(0))

    async def get(self, key: str) -> object:
        request = self.rpc.RangeRequest(key=key.encode())
        got = await self.kv.Range(request, timeout=10)
        return _header(got.header), [_kv(kv) for kv in got.kvs], got.count, got.more

    async def put(self, key: str) -> object:
        request = self.rpc.PutRequest(key=key.encode(), value=VALUE)
        put = await self.kv.Put(request, timeout=10)
        return _header(put.header), _kv(put.prev_kv) if put.HasField("prev_kv") else None

    async def scan(self) -> int:
        key, revision, count = b"/s/", 0, 0
        while True:
            page = await self.kv.Range(
                self.rpc.RangeRequest(key=key, range_end=b"/s0", limit=1000, revision=revision),
                timeout=10,
            )
            revision = revision or page.header.revision
            kvs = [_kv(kv) for kv in page.kvs]
            count += len(kvs)
            if not page.more:
                return count
            key = kvs[-1][0] + b"\0"

    async def watch(self, revision: int | None, created: asyncio.Event) -> AsyncIterator[int]:
        call = self.watches.Watch()
        create = self.rpc.WatchCreateRequest(
            key=b"/w/", range_end=b"/w0", start_revision=revision or 0
        )
        await call.write(self.rpc.WatchRequest(create_request=create))
        try:
            async for answer in call:
                created.set()
                yield len([(event.type, *_kv(event.kv)) for event in answer.events])
        finally:
            call.cancel()

    async def put_many(self, count: int) -> object:
        for first in range(0, count, 128):
            puts = [
                self.rpc.RequestOp(
                    request_put=self.rpc.PutRequest(key=f"/m/{number:08}".encode(), value=VALUE)
                )
                for number in range(first, min(first + 128, count))
            ]
            await self.kv.Txn(self.rpc.TxnRequest(success=puts), timeout=10)
        return None


class BareTxns(Bare):
    """The stub with txns of 128, two at a time: how fast batched calls of 256 could be at best."""

    together = 128
    scan, watch, put_many = Worker.scan, Worker.watch, Worker.put_many

    async def get(self, key: str) -> object:
        first = int(key[3:])
        gets = [
            self.rpc.RequestOp(request_range=self.rpc.RangeRequest(key=key_of(each).encode()))
            for each in range(first, first + self.together)
        ]
        txn = await self.kv.Txn(self.rpc.TxnRequest(success=gets), timeout=10)
        answers = [each.response_range for each in txn.responses]
        return [
            (_header(txn.header), [_kv(kv) for kv in got.kvs], got.count, got.more)
            for got in answers
        ]

    async def put(self, key: str) -> object:
        first = int(key[3:])
        puts = [
            self.rpc.RequestOp(
                request_put=self.rpc.PutRequest(key=key_of(each).encode(), value=VALUE)
            )
            for each in range(first, first + self.together)
        ]
        txn = await self.kv.Txn(self.rpc.TxnRequest(success=puts), timeout=10)
        return [(_header(txn.header), each.response_put) for each in txn.responses]


def _header(header: Any) -> tuple[int, int, int, int]:
    return header.cluster_id, header.member_id, header.revision, header.raft_term


def _kv(kv: Any) -> tuple[Any, ...]:
    return kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease


class Aioetcd(Worker):
    async def connect(self) -> None:
        client = import_module("aioetcd").Client(self.endpoint)
        self.client = await self.stack.enter_async_context(client)
        self.kv = self.client.kv
        await self.get("connects")

    async def get(self, key: str) -> object:
        return await self.kv.get(key)

    async def put(self, key: str) -> object:
        return await self.kv.put(key, VALUE)

    async def scan(self) -> int:
        count = 0
        async for _ in self.kv.scan("/s/", prefix=True):
            count += 1
        return count

    async def watch(self, revision: int | None, created: asyncio.Event) -> AsyncIterator[int]:
        async with self.client.watch("/w/", prefix=True, start_revision=revision) as watch:
            created.set()
            async for batch in watch.batches():
                yield len(batch.events)

    async def put_many(self, count: int) -> object:
        return await self.kv.put_many({f"/m/{number:08}": VALUE for number in range(count)})


class Batched(Aioetcd):
    async def connect(self) -> None:
        await super().connect()
        self.kv = self.client.kv.batched()

    # The others are not batched, and the same: they are left to the view without.
    scan, watch, put_many = Worker.scan, Worker.watch, Worker.put_many


class Aetcd(Worker):
    async def connect(self) -> None:
        client = import_module("aetcd").Client(host=self.host, port=int(self.port))
        self.client = await self.stack.enter_async_context(client)
        await self.get("connects")

    async def get(self, key: str) -> object:
        return await self.client.get(key.encode())

    async def put(self, key: str) -> object:
        return await self.client.put(key.encode(), VALUE)

    async def scan(self) -> int:
        return sum(1 for _ in await self.client.get_prefix(b"/s/"))


class Etcd3aio(Worker):
    async def connect(self) -> None:
        client = import_module("etcd3aio").Etcd3Client([self.endpoint])
        self.client = await self.stack.enter_async_context(client)
        await self.get("connects")

    async def get(self, key: str) -> object:
        return await self.client.kv.get(key)

    async def put(self, key: str) -> object:
        return await self.client.kv.put(key, VALUE)


class EtcdClientPy(Worker):
    async def connect(self) -> None:
        self.client = import_module("etcd_client").Client([f"http://{self.endpoint}"])
        self.communicator = await self.stack.enter_async_context(self.client.connect())
        await self.get("connects")

    async def get(self, key: str) -> object:
        return await self.communicator.get(key.encode())

    async def put(self, key: str) -> object:
        return await self.communicator.put(key.encode(), VALUE)


WORKERS: dict[str, type[Worker]] = {
    "bare stub": Bare,
    "bare txns": BareTxns,
    "aioetcd": Aioetcd,
    "aioetcd, batched": Batched,
    "aetcd": Aetcd,
    "etcd3aio": Etcd3aio,
    "etcd-client-py": EtcdClientPy,
}


async def called(
    call: Callable[[str], Awaitable[object]], together: int, callers: int, milliseconds: int
) -> dict[str, float]:
    """Let so many callers call for so long."""
    if together > 1:
        if callers != 2 * together:
            raise NotImplementedError
        callers = 2
    took: list[float] = []
    stop = perf_counter() + milliseconds / 1000

    async def caller(number: int) -> None:
        while (began := perf_counter()) < stop:
            await call(key_of(number))
            took.append(perf_counter() - began)
            number += callers

    async with asyncio.TaskGroup() as tasks:
        for number in range(callers):
            tasks.create_task(caller(number))
    took.sort()
    return {
        "calls": len(took) * together,
        "p50": took[len(took) // 2],
        "p99": took[len(took) * 99 // 100],
    }


async def watched(worker: Worker, watches: int, revision: int | None, count: int) -> int:
    """Let so many watches take so many events each; without a revision, those that are put now."""
    seen = 0
    created = [asyncio.Event() for _ in range(watches)]

    async def take(mine: asyncio.Event) -> None:
        nonlocal seen
        own = 0
        async for events in worker.watch(revision, mine):
            own += events
            seen += events
            if own >= count:
                return

    if type(worker).watch is Worker.watch:
        raise NotImplementedError
    async with asyncio.TaskGroup() as tasks:
        for each in created:
            tasks.create_task(take(each))
        if revision is None:
            for each in created:
                await each.wait()
            for number in range(count):
                await worker.put(f"/w/{number % 100}")
    return seen


async def do(worker: Worker, task: list[str]) -> dict[str, float]:
    match task:
        case "get", callers, milliseconds:
            return await called(worker.get, worker.together, int(callers), int(milliseconds))
        case "put", callers, milliseconds:
            return await called(worker.put, worker.together, int(callers), int(milliseconds))
        case ["scan"]:
            return {"calls": await worker.scan()}
        case "replay", revision, count:
            return {"calls": await watched(worker, 1, int(revision), int(count))}
        case "fanout", watches, count:
            return {"calls": await watched(worker, int(watches), None, int(count))}
        case "many", count:
            await worker.put_many(int(count))
            return {"calls": int(count)}
    raise SystemExit(f"there is no such task: {task}")


async def work(worker: Worker) -> None:
    await worker.connect()
    print("ready", flush=True)
    async with worker.stack:
        while line := await asyncio.to_thread(sys.stdin.readline):
            began, used = perf_counter(), process_time()
            try:
                done = await do(worker, line.split())
            except NotImplementedError:
                print("no", flush=True)
                continue
            except Exception as error:  # noqa: BLE001
                print(f"no {error!r}".replace("\n", " "), flush=True)
                continue
            done["seconds"], done["cpu"] = perf_counter() - began, process_time() - used
            print(json.dumps(done), flush=True)


if __name__ == "__main__":
    asyncio.run(work(WORKERS[sys.argv[1]](sys.argv[2])))
