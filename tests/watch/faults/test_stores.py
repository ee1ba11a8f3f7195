"""Watches of a store that is another one (W18), and what they promise of txns (W19)."""

from __future__ import annotations

import random
import shutil

import anyio
import pytest

from aioetcd import Client, ClusterMismatchError, Op
from aioetcd.testing import EtcdServer, FaultProxy
from tests.waiting import until
from tests.watch.faults.scenes import now, put
from tests.watch.following import following, revisions, take


async def test_w18_the_history_went_back(own_server: EtcdServer) -> None:
    """A server that was restored from a backup ends the watches loudly; new ones work."""
    async with (
        FaultProxy(own_server.endpoint) as proxy,
        Client(proxy.endpoint) as client,
        Client(own_server.endpoint) as direct,
        following() as followed,
    ):
        for number in range(10):
            await put(direct, "w18/k", str(number))
        await own_server.stop()
        backup = own_server.data_dir.with_name("backup")
        shutil.copytree(own_server.data_dir, backup)
        await own_server.start()
        await followed.add_all_kinds(client, "w18/")
        for number in range(20):
            last = await put(direct, "w18/0", str(number))
        await followed.followers[0].wait_for(last)
        await own_server.kill()
        shutil.rmtree(own_server.data_dir)
        backup.rename(own_server.data_dir)
        await own_server.start()
        assert await now(direct) < last
        for follower in followed.followers:
            await until(lambda: follower.has_ended)  # noqa: B023
            assert isinstance(follower.error, ClusterMismatchError)
            assert "went back" in str(follower.error)
        assert client.stats().watches == 0
        await expect_new_watches(client, direct, proxy)


@pytest.mark.fault("W18")
async def test_w18_another_cluster(
    proxy: FaultProxy, client: Client, direct: Client, own_server: EtcdServer
) -> None:
    """An endpoint that leads to another cluster now ends the watches loudly; new ones work."""
    async with following() as followed:
        await followed.add_all_kinds(client, "w18/")
        last = await put(direct, "w18/0", "here")
        await followed.followers[0].wait_for(last)
        async with Client(own_server.endpoint) as other:
            while await put(other, "w18/0", "there") <= last + 10:
                pass
        proxy.retarget(own_server.endpoint)
        assert proxy.cut() > 0
        for follower in followed.followers:
            await until(lambda: follower.has_ended)  # noqa: B023
            assert isinstance(follower.error, ClusterMismatchError)
            assert "cluster" in str(follower.error)
        assert followed.followers[0].revision == last, "nothing of the other one was delivered"
        assert client.stats().watches == 0
        async with Client(own_server.endpoint) as other:
            await expect_new_watches(client, other, proxy)


async def expect_new_watches(client: Client, direct: Client, proxy: FaultProxy) -> None:
    """A watch from now on and one from the past begin, and resume, in the store as it is now."""
    past = [await put(direct, "w18/0", str(number)) for number in range(3)]
    async with (
        client.watch("w18/0") as fresh,
        client.watch("w18/0", start_revision=past[0]) as replayed,
    ):
        assert revisions(await take(replayed, 3)) == past
        for number in range(2):
            connections = proxy.connections_total
            assert proxy.cut() > 0
            last = await put(direct, "w18/0", f"after {number}")
            for watch in (fresh, replayed):
                assert revisions(await take(watch, 1)) == [last]
            assert proxy.connections_total > connections


async def test_w19_txns_in_cuts(
    proxy: FaultProxy, client: Client, direct: Client, rng: random.Random
) -> None:
    """Each txn of a hundred keys is one batch, in the order of its operations, cut or not."""
    orders: dict[int, list[bytes]] = {}
    async with client.watch("w19/", prefix=True) as watch, anyio.create_task_group() as group:

        async def write() -> None:
            for _ in range(100):
                keys = [b"w19/%d" % n for n in range(100)]
                rng.shuffle(keys)
                done = await direct.kv.txn(success=[Op.put(key, bytes(100)) for key in keys])
                orders[done.header.revision] = keys

        async def cut() -> None:
            for _ in range(8):  # the 100 txns are some 1.5 MB
                await proxy.cut_after(rng.randrange(150_000)).wait()

        group.start_soon(cut)
        group.start_soon(write)
        got: dict[int, list[bytes]] = {}
        with anyio.fail_after(20):
            async for batch in watch.batches():
                whole: dict[int, list[bytes]] = {}
                for event in batch.events:
                    whole.setdefault(event.mod_revision, []).append(event.kv.key)
                assert not whole.keys() & got.keys()
                assert {len(keys) for keys in whole.values()} == {100}
                got |= whole
                if len(got) == 100:
                    break
        group.cancel_scope.cancel()
    assert got == orders
    assert proxy.cuts > 3
