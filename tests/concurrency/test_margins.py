"""Whoever is cut off leaves before the next one enters: by how much, for all that excludes."""

from __future__ import annotations

from collections import defaultdict
from time import monotonic

import anyio
import pytest

from aioetcd import Client, LeadershipLostError, LockLostError
from aioetcd.testing import EtcdServer, FaultProxy
from tests.concurrency.locks import EXCLUSIVE, one_of
from tests.waiting import until

NUMBER = 50  # of each kind
TTL = 3


@pytest.mark.fault("X2")
async def test_x2_margins(quick_server: EtcdServer) -> None:
    """Each of two hundred holders is cancelled before the one behind it enters."""
    left: dict[str, float] = {}
    entered: dict[str, float] = {}
    held = 0
    await quick_server.clear()

    async def hold(client: Client, kind: str, name: str) -> None:
        nonlocal held
        await anyio.sleep(TTL / 3 * int(name.rpartition("/")[2]) / NUMBER)  # not renewed in step
        with pytest.raises((LockLostError, LeadershipLostError)):
            async with one_of(kind, client, name, ttl=TTL):
                held += 1
                try:
                    await anyio.sleep_forever()
                finally:
                    left[name] = monotonic()

    async def wait(client: Client, kind: str, name: str) -> None:
        async with one_of(kind, client, name, ttl=60):
            entered[name] = monotonic()

    async with (
        FaultProxy(quick_server.endpoint) as proxy,
        Client(proxy.endpoint) as cut_off,
        Client(quick_server.endpoint) as client,
    ):

        async def all_wait() -> bool:
            found = await client.kv.get("/", prefix=True, count_only=True)
            return found.count >= 2 * (len(names) - len(left))

        names = {f"/{kind}/{number}": kind for kind in EXCLUSIVE for number in range(NUMBER)}
        proxy.delay(0.05)  # a renewal arrives so much later than it was sent
        async with anyio.create_task_group() as tasks:
            for name, kind in names.items():
                tasks.start_soon(hold, cut_off, kind, name)
            await until(lambda: held == len(names), within=20)
            for name, kind in names.items():
                tasks.start_soon(wait, client, kind, name)
            await until(all_wait, within=20)
            proxy.blackhole()
            # A busy machine may have lost some before.
            cut = [name for name in names if name not in left]
        assert proxy.bytes_swallowed > 0
        await proxy.heal()
    margins = defaultdict(list)
    for name in cut:
        margins[names[name]].append(entered[name] - left[name])
    print({kind: round(min(each), 3) for kind, each in margins.items()})  # noqa: T201
    assert min(len(margins[kind]) for kind in EXCLUSIVE) > NUMBER / 2
    assert min(min(each) for each in margins.values()) > 0
