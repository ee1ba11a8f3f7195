"""Very many clients in one process, and no descriptor left for another one (R5)."""

from __future__ import annotations

import sys

import pytest

from aioetcd.testing import EtcdServer
from tests.programs import run_program

pytestmark = [
    pytest.mark.own_logic("descriptors of the client's own process"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts them in /proc"),
]

COUNT = """
def files():
    return len(os.listdir("/proc/self/fd"))
"""

MANY = (
    COUNT
    + """
async def main():
    async with Client(ENDPOINT) as first:
        await first.kv.get("k")  # what gRPC keeps for the process is there from now on
    before = files()
    clients = [Client(ENDPOINT) for _ in range(200)]
    await asyncio.gather(*(client.kv.put(f"k{n}", "v") for n, client in enumerate(clients)))
    say(files() >= before + 200)
    await asyncio.gather(*(client.aclose() for client in clients))
    end = time.monotonic() + 5
    while files() > before and time.monotonic() < end:
        await asyncio.sleep(0.01)
    say(files() <= before)

run(main())
"""
)

NONE_LEFT = (
    COUNT
    + """
import resource

async def main():
    async with Client(ENDPOINT) as first:
        await first.kv.put("k", "v")
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files() - 1, most))  # the list was one
        async with Client(ENDPOINT, timeout=1) as second:
            try:
                await second.kv.get("k")
            except aioetcd.NoEndpointError as error:
                say(error)
        say((await first.kv.get("k")).text)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    async with Client(ENDPOINT, timeout=5) as third:
        say((await third.kv.get("k")).text)

run(main())
"""
)


@pytest.mark.fault("R5")
def test_r5_two_hundred_clients(server: EtcdServer) -> None:
    """They work side by side, and leave no descriptor when they are closed."""
    ended = run_program(MANY, server.endpoint, within=40)
    assert (ended.code, ended.out, ended.err) == (0, ["True", "True"], "")


@pytest.mark.fault("R5")
def test_r5_no_descriptor_left(server: EtcdServer) -> None:
    """One more client is told why it gets no connection; those that have one go on."""
    ended = run_program(NONE_LEFT, server.endpoint, within=40)
    assert ended.code == 0, ended.err
    told, *values = ended.out
    assert "Too many open files" in told
    assert values == ["v", "v"]
