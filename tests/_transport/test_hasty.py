"""Who waits for what: a hasty caller harms nobody, and a silent connection is found out."""

from __future__ import annotations

import logging
import os
import random
import sys
import time

import anyio
import pytest

from aioetcd import Client, DeadlineExceededError, EtcdError, NoEndpointError
from aioetcd._constructor import create
from aioetcd.kv import KV
from aioetcd.testing import EtcdServer, FaultProxy
from tests._transport.weather import connected
from tests.programs import run_program, stranger
from tests.waiting import lateness, until

pytestmark = pytest.mark.own_logic("what the client makes of silence")


@pytest.mark.fault("Z10")
@pytest.mark.parametrize("other_is_dead", [False, True])
async def test_z10_hasty_callers_move_nobody(
    proxy: FaultProxy,
    client: Client,
    other_is_dead: bool,
    rng: random.Random,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Deadlines of a microsecond to 60 ms, again and again, on a member that is well, but far."""
    await client.kv.put("k", "v")
    endpoints = [proxy.endpoint, *(["127.0.0.1:1"] if other_is_dead else [])]
    async with Client(endpoints) as used:
        await used.kv.get("k")
        proxy.delay(0.02)
        missed = 0
        async with used.watch("k"), anyio.create_task_group() as group:

            async def patient() -> None:
                for _ in range(20):
                    assert (await used.kv.get("k")).value == b"v"

            group.start_soon(patient)
            for _ in range(60):
                try:
                    await used.kv.get("k", timeout=10 ** rng.uniform(-6, -1.2))
                except DeadlineExceededError:
                    missed += 1
        async with used.watch("k") as watch:
            await client.kv.put("k", "w")
            assert (await anext(watch)).kv.value == b"w"
        assert missed > 30
        assert proxy.connections_total == 1
        assert used.stats().endpoint == proxy.endpoint
        assert (used.stats().reconnects, used.stats().retries) == (0, 0)
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


@pytest.mark.alone("the CPU of a client that waits")
async def test_z11_waiters_sleep() -> None:
    """Sixty callers wait for endpoints that refuse: that takes next to no CPU."""
    async with Client(["127.0.0.1:1", "127.0.0.1:2"]) as client, anyio.create_task_group() as group:

        async def wait() -> None:
            with pytest.raises(NoEndpointError):
                await client.kv.get("k", timeout=5)

        for _ in range(60):
            group.start_soon(wait)
        await until(lambda: "refused" in str(client._transport.picker.unreachable()))
        began, used = time.monotonic(), time.process_time()
        await anyio.sleep(3)
        share = (time.process_time() - used) / (time.monotonic() - began)
    assert share < 0.1


@pytest.mark.fault("Z15")
async def test_z15_an_idle_connection_was_dropped(proxy: FaultProxy) -> None:
    """A read that finds its connection silent is rescued in time; the next one is quick."""
    async with connected(proxy.endpoint) as transport, lateness() as late:
        reads = create(KV, transport)
        await reads.put("k", "v")
        lost = proxy.connections_open
        assert lost == 1
        proxy.blackhole()
        began = time.monotonic()
        async with anyio.create_task_group() as group:

            async def read() -> None:
                assert (await reads.get("k")).value == b"v"

            group.start_soon(read)
            await proxy.wait_until(lambda proxy: proxy.bytes_swallowed > 0)
            await until(lambda: transport.picker.current is None)
            await proxy.heal()
        assert time.monotonic() - began < 4 + late.seconds
        assert transport.monitor.retries == 1
        began = time.monotonic()
        await reads.get("k")
        assert time.monotonic() - began < 0.5 + late.seconds


@pytest.mark.fault("Z14")
async def test_z14_what_is_no_etcd_is_used_last(server: EtcdServer, client: Client) -> None:
    """A gRPC server that is no etcd is left for an etcd; alone, the error says what it is."""
    await client.kv.put("k", "v")
    with stranger() as no_etcd:
        async with Client([no_etcd, server.endpoint]) as both:
            for _ in range(5):
                assert (await both.kv.get("k")).value == b"v"
            assert both.stats().endpoint == server.endpoint
            reason = next(m.reason for m in both._transport.picker.members)
            assert reason == "it is a gRPC server, and no etcd"
        async with Client(no_etcd) as alone:
            with pytest.raises(EtcdError, match="Method not found"):
                await alone.kv.get("k", timeout=2)


PROXIED = """
async def main():
    async with Client(ENDPOINT, timeout=5) as client:
        await client.kv.put("proxied", "v")
        say((await client.kv.get("proxied")).text)
        await client.kv.delete("proxied")

run(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the environment is POSIX's")
def test_z16_proxy_variables_are_not_for_etcd(
    server: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that the environment names is not asked."""
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setitem(os.environ, name, "http://127.0.0.1:1")
    ended = run_program(PROXIED, server.endpoint)
    assert (ended.code, ended.out, ended.err) == (0, ["v"], "")
