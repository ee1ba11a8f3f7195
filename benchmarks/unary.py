"""What a unary call costs beside the bare grpc.aio stub: CPU and latency, as ratios.

    python benchmarks/unary.py [--rounds N] [--calls N] [--endpoint HOST:PORT | --cluster]

README.md beside this file says what is compared and how to read it.
"""

from __future__ import annotations

import argparse
import gc
import platform
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles
from time import perf_counter, process_time

import anyio
import grpc.aio

from aioetcd import Client
from aioetcd._proto import rpc_pb2, rpc_pb2_grpc
from aioetcd._transport.transport import channel_options
from aioetcd.testing import EtcdCluster, EtcdServer

KEY = b"/aioetcd-benchmark/unary"
VALUE = b"v" * 100
TIMEOUT = 10.0
TASKS = (1, 64)
USER = ("root", "benchmark")

Call = Callable[[], Awaitable[object]]
Metadata = Sequence[tuple[str, str]] | None


def bare_calls(channel: grpc.aio.Channel, metadata: Metadata) -> dict[str, Call]:
    """Calls of the generated stub that do what every user of it has to do.

    They build the request, wait for the answer within a deadline, and read every field that the
    client's answers have; no error is handled.
    """
    stub = rpc_pb2_grpc.KVStub(channel)

    async def get() -> object:
        response = await stub.Range(
            rpc_pb2.RangeRequest(key=KEY), timeout=TIMEOUT, metadata=metadata
        )
        header = response.header
        return (
            (header.cluster_id, header.member_id, header.revision, header.raft_term),
            [
                (kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)
                for kv in response.kvs
            ],
            response.count,
            response.more,
        )

    async def put() -> object:
        response = await stub.Put(
            rpc_pb2.PutRequest(key=KEY, value=VALUE), timeout=TIMEOUT, metadata=metadata
        )
        header = response.header
        return (
            (header.cluster_id, header.member_id, header.revision, header.raft_term),
            response.prev_kv if response.HasField("prev_kv") else None,
        )

    return {"get": get, "put": put}


def client_calls(client: Client) -> dict[str, Call]:
    """The same calls of the client."""
    kv = client.kv
    return {"get": lambda: kv.get(KEY), "put": lambda: kv.put(KEY, VALUE)}


@dataclass(frozen=True, slots=True)
class Sample:
    """What one series of calls cost; all in seconds."""

    cpu: float
    p50: float
    p99: float


async def measure(call: Call, *, tasks: int, calls: int) -> Sample:
    """Make about `calls` calls in `tasks` tasks."""
    latencies: list[float] = []

    async def work() -> None:
        for _ in range(max(1, calls // tasks)):
            started = perf_counter()
            await call()
            latencies.append(perf_counter() - started)

    gc.collect()
    cpu = process_time()
    async with anyio.create_task_group() as group:
        for _ in range(tasks):
            group.start_soon(work)
    cpu = process_time() - cpu
    percentiles = quantiles(latencies, n=100)
    return Sample(cpu / len(latencies), percentiles[49], percentiles[98])


async def compare(bare: Call, ours: Call, *, tasks: int, calls: int, rounds: int) -> str:
    """Measure both in turns, and give the line of the table."""
    pairs: list[tuple[Sample, Sample]] = []
    for number in range(-1, rounds):
        # Who is first changes, so that a drift of the machine favours nobody.
        first, second = (bare, ours) if number % 2 else (ours, bare)
        samples = {}
        for call in (first, second):
            samples[call] = await measure(call, tasks=tasks, calls=calls)
        if number >= 0:  # the one before warms up
            pairs.append((samples[bare], samples[ours]))

    def ratios(of: Callable[[Sample], float]) -> list[float]:
        return [of(client) / of(stub) for stub, client in pairs]

    def column(of: Callable[[Sample], float]) -> str:
        bare_median, ours_median = (median(of(pair[i]) for pair in pairs) for i in (0, 1))
        return f"{bare_median * 1e6:8.0f} {ours_median * 1e6:8.0f} {median(ratios(of)):6.2f}"

    low, _, high = quantiles(ratios(lambda sample: sample.cpu), n=4)
    cpu = column(lambda sample: sample.cpu)
    p50, p99 = column(lambda sample: sample.p50), column(lambda sample: sample.p99)
    return f"{cpu} ({low:.2f}-{high:.2f})  {p50}  {p99}"


async def main(endpoint: str | None, rounds: int, calls: int, *, is_cluster: bool) -> None:
    """Print the table."""
    async with AsyncExitStack() as stack:
        if is_cluster:
            cluster = await stack.enter_async_context(EtcdCluster(3, auth=USER))
            where = f"three members of etcd {cluster.members[0].version} with auth"
            client = Client(
                cluster.direct_endpoints, timeout=TIMEOUT, username=USER[0], password=USER[1]
            )
        elif endpoint is None:
            server = await stack.enter_async_context(EtcdServer())
            where = f"etcd {server.version}"
            client = Client(server.endpoint, timeout=TIMEOUT)
        else:
            where = f"the etcd at {endpoint}"
            client = Client(endpoint, timeout=TIMEOUT)
        await stack.enter_async_context(client)
        await client.kv.put(KEY, VALUE)
        ours = client_calls(client)
        # To the same member, with the same token.
        options = channel_options(keepalive_time=10.0, keepalive_timeout=5.0)
        channel = grpc.aio.insecure_channel(str(client.stats().endpoint), options=options)
        await stack.enter_async_context(channel)
        bare = bare_calls(channel, client._transport.tokens.metadata or None)

        print(f"Python {platform.python_version()}, grpcio {grpc.__version__}, {where}")
        print(f"{rounds} rounds of {calls} calls; microseconds; ratio = aioetcd / bare stub\n")
        print(f"{'':14}{'CPU a call (quartiles)':>36}{'p50':>26}{'p99':>26}")
        column = f"{'bare':>8} {'aioetcd':>8} {'ratio':>6}"
        print(f"{'call':6}{'tasks':>6}  {column}{'':12}  {column}  {column}")
        try:
            for name in bare:
                for tasks in TASKS:
                    line = await compare(
                        bare[name], ours[name], tasks=tasks, calls=calls, rounds=rounds
                    )
                    print(f"{name:6}{tasks:6}  {line}", flush=True)
        finally:
            with anyio.move_on_after(5, shield=True):
                await client.kv.delete(KEY)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compare the client with the bare grpc.aio stub.")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--endpoint", metavar="HOST:PORT", help="not an etcd of its own, but this")
    where.add_argument("--cluster", action="store_true", help="three members, with a user")
    parser.add_argument("--rounds", type=int, default=100, help="rounds (100)")
    parser.add_argument("--calls", type=int, default=300, help="calls of each in a round (300)")
    arguments = parser.parse_args()
    if arguments.rounds < 2 or arguments.calls < 2:
        parser.error("at least 2 rounds and 2 calls")
    anyio.run(
        partial(
            main,
            arguments.endpoint,
            arguments.rounds,
            arguments.calls,
            is_cluster=arguments.cluster,
        )
    )
