"""What watches and leases cost: replay, fan-out, opening and closing, renewals, memory.

    python benchmarks/streams.py [--only NAME] [--events N] [--watches N] [--leases N]

README.md beside this file says what is compared and how to read it.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import TypeAlias

import anyio
import grpc.aio
from anyio.abc import TaskStatus

from aioetcd import Client, Op, Watch
from aioetcd._proto import rpc_pb2, rpc_pb2_grpc
from aioetcd._transport.transport import channel_options
from aioetcd.testing import EtcdServer

VALUE = b"v" * 64
OPS = 100
ROUNDS = 5
TTL = 30

_KeepAliveCall: TypeAlias = (
    "grpc.aio.StreamStreamCall[rpc_pb2.LeaseKeepAliveRequest, rpc_pb2.LeaseKeepAliveResponse]"
)


@asynccontextmanager
async def bare_channel(endpoint: str) -> AsyncIterator[grpc.aio.Channel]:
    """A channel with the client's own options."""
    options = channel_options(keepalive_time=10.0, keepalive_timeout=5.0)
    async with grpc.aio.insecure_channel(endpoint, options=options) as channel:
        yield channel


async def in_tasks(jobs: int, work: Callable[[int], Awaitable[object]], tasks: int = 64) -> None:
    """Do jobs number 0 to `jobs` - 1 in so many tasks."""
    numbers = iter(range(jobs))

    async def worker() -> None:
        for number in numbers:
            await work(number)

    async with anyio.create_task_group() as group:
        for _ in range(min(tasks, jobs)):
            group.start_soon(worker)


async def write_history(client: Client, prefix: str, events: int, ops: int) -> int:
    """Write so many events, `ops` in a revision, and give the first revision."""
    first = (await client.kv.get("x")).header.revision + 1
    if ops == 1:
        await in_tasks(events, lambda n: client.kv.put(f"{prefix}{n:08}", VALUE))
    else:
        await in_tasks(
            events // ops,
            lambda n: client.kv.txn(
                success=[Op.put(f"{prefix}{n * ops + i:08}", VALUE) for i in range(ops)]
            ),
        )
    return first


async def replay_bare(endpoint: str, prefix: str, first: int, events: int, fragment: bool) -> float:
    """Read the history with the bare stub, which parses and counts; events a second."""
    async with bare_channel(endpoint) as channel:
        started = perf_counter()
        call = rpc_pb2_grpc.WatchStub(channel).Watch()
        create = rpc_pb2.WatchCreateRequest(
            key=prefix.encode(),
            range_end=prefix[:-1].encode() + b"0",
            start_revision=first,
            fragment=fragment,
        )
        await call.write(rpc_pb2.WatchRequest(create_request=create))
        seen = 0
        while seen < events:
            response = await call.read()
            assert isinstance(response, rpc_pb2.WatchResponse)
            seen += len(response.events)
        seconds = perf_counter() - started
        call.cancel()
    return events / seconds


async def replay_ours(endpoint: str, prefix: str, first: int, events: int, fragment: bool) -> float:
    """Read it through `async for event in client.watch(...)`, the key of each event looked at."""
    async with Client(endpoint) as client:
        started = perf_counter()
        seen = size = 0
        watch = client.watch(prefix, prefix=True, start_revision=first, fragment=fragment)
        async for event in watch:
            seen += 1
            size += len(event.kv.key)
            if seen == events:
                break
        return events / (perf_counter() - started)


async def replay(server: EtcdServer, events: int) -> None:
    """Replay a history beside the bare parsing loop."""
    print(f"replay of {events} events: events a second, and ours / bare (median of {ROUNDS})")
    async with Client(server.endpoint, timeout=60) as client:
        for name, ops in ((f"txns of {OPS}", OPS), ("one by one", 1)):
            prefix = f"replay-{ops}/"
            first = await write_history(client, prefix, events, ops)
            for fragment in (False, True):
                # The server's fragmentation of small events takes it seconds for each answer.
                rounds = 1 if fragment and ops > 1 else ROUNDS
                pairs = []
                for _ in range(rounds):
                    arguments = (server.endpoint, prefix, first, events, fragment)
                    pairs.append((await replay_bare(*arguments), await replay_ours(*arguments)))
                bare, ours = (median(pair[i] for pair in pairs) for i in (0, 1))
                ratio = median(b / a for a, b in pairs)
                print(
                    f"  {name}, fragment={fragment}".ljust(34)
                    + f"bare {bare:10,.0f}   ours {ours:10,.0f}   ratio {ratio:.2f}"
                )


async def follow(
    watch: Watch,
    count: Callable[[], None],
    *,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Count the events of a watch."""
    async with watch:
        task_status.started()
        async for _ in watch:
            count()


async def timed_puts(
    client: Client, puts: int, delivered: Callable[[], Awaitable[object]]
) -> tuple[float, float]:
    """Put a key so many times; give the median time until it is delivered, and the CPU of a put."""
    latencies = []
    cpu = process_time()
    for _ in range(puts):
        started = perf_counter()
        await client.kv.put("fan-out", VALUE)
        await delivered()
        latencies.append(perf_counter() - started)
    return median(latencies), (process_time() - cpu) / puts


async def fan_out(server: EtcdServer, watches: int) -> None:
    """Put one key, and deliver it to many watches."""
    puts = 20
    async with Client(server.endpoint) as client:
        received = 0
        all_there = anyio.Event()

        def count() -> None:
            nonlocal received
            received += 1
            if received % watches == 0:
                all_there.set()

        async def delivered() -> None:
            nonlocal all_there
            await all_there.wait()
            all_there = anyio.Event()

        async with anyio.create_task_group() as group:
            for _ in range(watches):
                await group.start(follow, client.watch("fan-out"), count)
            latency, cpu = await timed_puts(client, puts, delivered)
            group.cancel_scope.cancel()
        bare = [await fan_out_bare(server, client, watches, puts, streams) for streams in (1, 4)]
    told = (f"{at * 1e3:.1f} ms and {used / watches * 1e6:.0f} us" for at, used in bare)
    print(
        f"fan-out of one key to {watches} watches: put to last delivery {latency * 1e3:.1f} ms "
        f"(median of {puts}), CPU {cpu / watches * 1e6:.0f} us a delivery; as many on bare "
        f"streams: {next(told)} on one, {next(told)} on 4"
    )


async def fan_out_bare(
    server: EtcdServer, client: Client, watches: int, puts: int, streams: int
) -> tuple[float, float]:
    """Deliver as many on bare streams, whose answers are only parsed and counted."""
    create = rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=b"fan-out"))
    async with bare_channel(server.endpoint) as channel:
        stub = rpc_pb2_grpc.WatchStub(channel)
        calls = [stub.Watch() for _ in range(streams)]
        share = watches // streams

        async def read(number: int) -> None:
            for _ in range(share):
                await calls[number].read()

        for number, call in enumerate(calls):
            for _ in range(share):
                await call.write(create)
            await read(number)
        return await timed_puts(client, puts, lambda: in_tasks(streams, read))


async def open_and_close(server: EtcdServer, watches: int) -> None:
    """Open and close many watches."""
    async with Client(server.endpoint) as client:
        opened: list[Watch] = []

        async def enter(number: int) -> None:
            opened.append(await client.watch(f"many/{number}").__aenter__())

        started = perf_counter()
        await in_tasks(watches, enter, tasks=watches)
        middle = perf_counter()
        for watch in opened:
            await watch.aclose()
        while (await server.metrics())["etcd_debugging_mvcc_watcher_total"]:
            await anyio.sleep(0.005)
        ended = perf_counter()
    print(
        f"{watches} watches: created in {middle - started:.2f} s, closed (0 left at the server) in "
        f"{ended - middle:.2f} s"
    )


async def slow_sibling(server: EtcdServer, watches: int = 100) -> None:
    """See whether one watch without a consumer delays the others of its stream."""

    async def deliveries(client: Client, *, with_slow: bool) -> float:
        received = 0
        got = anyio.Event()

        def count() -> None:
            nonlocal received
            received += 1
            if received % (watches - 1) == 0:
                got.set()

        latencies = []
        async with anyio.create_task_group() as group:
            slow = client.watch("sibling/", prefix=True)
            if with_slow:
                await slow.__aenter__()
            for n in range(400):  # more than its inbox holds; nobody takes any
                await client.kv.txn(success=[Op.put(f"sibling/{n}/{i}", VALUE) for i in range(OPS)])
            for _ in range(watches - 1):
                await group.start(follow, client.watch("sibling/key"), count)
            for _ in range(100):
                got = anyio.Event()
                started = perf_counter()
                await client.kv.put("sibling/key", VALUE)
                await got.wait()
                latencies.append(perf_counter() - started)
            paused = client.stats().paused_watches
            await slow.aclose()
            group.cancel_scope.cancel()
        assert paused == int(with_slow)
        return median(latencies)

    async with Client(server.endpoint) as client:
        results: dict[bool, list[float]] = {False: [], True: []}
        for with_slow in (False, True, True, False, False, True, True, False):
            results[with_slow].append(await deliveries(client, with_slow=with_slow))
    alone, beside = (median(results[with_slow]) for with_slow in (False, True))
    print(
        f"put to the last of {watches - 1} watches: {alone * 1e3:.1f} ms alone, "
        f"{beside * 1e3:.1f} ms beside a watch that is paused because nobody takes its "
        f"events (ratio {beside / alone:.2f})"
    )


async def renewals(server: EtcdServer, leases: int) -> None:
    """Keep many leases alive, beside bare streams with as many messages."""

    async def renewed() -> float:
        return (await server.metrics())["etcd_debugging_lease_renewed_total"]

    async with Client(server.endpoint, timeout=60) as client:
        ids: list[int] = []

        async def grant(_: int) -> None:
            ids.append((await client.lease.grant(TTL)).id)

        await in_tasks(leases, grant)
        kept = [client.lease.keep_alive(lease_id) for lease_id in ids]
        for keep_alive in kept:
            await keep_alive.__aenter__()
        await anyio.sleep(TTL / 3)  # past the first renewals, which all go out at once
        before = await renewed()
        cpu, started = process_time(), perf_counter()
        await anyio.sleep(4 * TTL / 3)
        cpu, seconds = process_time() - cpu, perf_counter() - started
        count = await renewed() - before
        soonest = client.stats().soonest_expiry
        for keep_alive in kept:
            await keep_alive.aclose()
        assert soonest is not None
        bare = [
            await bare_renewals(server.endpoint, ids[0], count / seconds, seconds / 2, streams)
            for streams in (1, 16, 1, 16)
        ]
    print(
        f"{leases} leases of {TTL} s kept alive: {cpu / seconds:.1%} of one core, "
        f"{count / seconds:.0f} renewals a second, {cpu / count * 1e6:.0f} us each; the soonest "
        f"would have expired in {soonest:.1f} s; as many on bare streams in bursts: "
        f"{(bare[0] + bare[2]) / 2:.1%} on one, {(bare[1] + bare[3]) / 2:.1%} on 16"
    )


async def bare_renewals(
    endpoint: str, lease_id: int, rate: float, seconds: float, streams: int
) -> float:
    """Send `rate` renewals a second on bare streams, in bursts each 0.5 s; the CPU's share."""
    async with bare_channel(endpoint) as channel:
        stub = rpc_pb2_grpc.LeaseStub(channel)
        calls = [stub.LeaseKeepAlive() for _ in range(streams)]
        request = rpc_pb2.LeaseKeepAliveRequest(ID=lease_id)

        async def read(call: _KeepAliveCall) -> None:
            while await call.read():
                pass

        async def write(call: _KeepAliveCall, count: int) -> None:
            for _ in range(count):
                await call.write(request)

        async with anyio.create_task_group() as group:
            for call in calls:
                group.start_soon(read, call)
            cpu, started = process_time(), perf_counter()
            sent = 0
            while (now := perf_counter() - started) < seconds:
                each = round((now * rate - sent) / streams)
                async with anyio.create_task_group() as burst:
                    for call in calls:
                        burst.start_soon(write, call, each)
                sent += each * streams
                await anyio.sleep(0.5)
            share = (process_time() - cpu) / (perf_counter() - started)
            group.cancel_scope.cancel()
    return share


def resident() -> float:
    """This process's memory in MiB (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS in /proc/self/status")


async def memory(server: EtcdServer, events: int) -> None:
    """See what a watch holds whose consumer sleeps, and that it then gets everything."""
    async with Client(server.endpoint, timeout=60) as client:
        first = await write_history(client, "memory/", events, OPS)
        await client.kv.get("x")
        before = resident()
        watch = client.watch("memory/", prefix=True, start_revision=first, fragment=False)
        async with watch:
            while not client.stats().paused_watches:
                await anyio.sleep(0.01)
            asleep = resident()
            seen = 0
            async for _ in watch:
                seen += 1
                if seen == events:
                    break
    print(
        f"memory while a consumer sleeps on {events} events: {before:.0f} MiB before, "
        f"{asleep:.0f} MiB with the watch paused; all {seen} delivered afterwards"
    )


async def main(only: str | None, events: int, watches: int, leases: int) -> None:
    """Run the parts, each on an etcd of its own."""
    parts: dict[str, Callable[[EtcdServer], Awaitable[None]]] = {
        "memory": lambda server: memory(server, 2 * events),
        "replay": lambda server: replay(server, events),
        "fan-out": lambda server: fan_out(server, watches),
        "open": lambda server: open_and_close(server, watches),
        "sibling": slow_sibling,
        "leases": lambda server: renewals(server, leases),
    }
    print(f"Python {platform.python_version()}, grpcio {grpc.__version__}")
    for name, part in parts.items():
        if only in (None, name):
            async with EtcdServer() as server:
                print(f"[etcd {server.version}] ", end="", flush=True)
                await part(server)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="memory, replay, fan-out, open, sibling or leases")
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--watches", type=int, default=1_000)
    parser.add_argument("--leases", type=int, default=10_000)
    options = parser.parse_args()
    anyio.run(main, options.only, options.events, options.watches, options.leases)
