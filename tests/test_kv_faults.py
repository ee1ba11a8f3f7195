"""Reads and writes when members die, stop, lose the others, or change their leader (K1-K12)."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

import anyio
import pytest

from aioetcd import Client, Compare, EtcdError, Op
from aioetcd.testing import (
    EtcdCluster,
    EtcdServer,
    FaultProxy,
    RecordedClient,
    Recorder,
    observe,
)
from aioetcd.testing.checkers import assert_clean, check_history
from aioetcd.testing.history import Operation
from tests.harness import first_in_use, writes_through
from tests.waiting import lateness, until


@asynccontextmanager
async def recorded(cluster: EtcdCluster) -> AsyncIterator[Recorder]:
    """Write down what the block does, and check at its end that it was true."""
    recorder = Recorder()
    async with observe(recorder, cluster.members) as oracle:
        yield recorder
        await cluster.wait_healthy()
        async with Client(cluster.direct_endpoints) as control:
            last = await RecordedClient(control, recorder, "control").kv.put("last", "word")
        await oracle.wait_for(last.header.revision)
    assert_clean(check_history(recorder))


async def failure_of(call: Awaitable[object]) -> EtcdError | None:
    """Give the error that a call ends with; None where it is answered."""
    try:
        await call
    except EtcdError as error:
        return error
    return None


@pytest.mark.fault("K2")
async def test_k2_a_server_that_is_killed_again_and_again(
    own_server: EtcdServer, rng: random.Random
) -> None:
    """Whenever it is killed while puts are on their way, each is there once, or not at all."""
    keeps = writes_through(own_server)
    async with Client(own_server.endpoint, timeout=10) as client:
        unknown = 0
        for round_ in range(40):
            if round_ >= 10 and unknown:  # at least so often, and until an answer was lost
                break
            outcomes: dict[str, EtcdError | None] = {}

            async def put(key: str, outcomes: dict[str, EtcdError | None]) -> None:
                outcomes[key] = await failure_of(client.kv.put(key, "v"))

            pid = own_server.pid
            async with anyio.create_task_group() as group:
                for number in range(20):
                    group.start_soon(put, f"{round_}/{number}", outcomes)
                await anyio.sleep(rng.uniform(0, 0.01 + 0.002 * round_))  # a moment by chance
                await own_server.kill()
                await own_server.start()
            assert own_server.pid != pid
            found = await client.kv.get(f"{round_}/", prefix=True)
            assert {kv.version for kv in found.kvs} <= {1}, "never twice"
            there = {kv.key.decode() for kv in found.kvs}
            for key, error in outcomes.items():
                if error is None:
                    assert key in there or not keeps
                else:
                    assert error.maybe_applied, "else it would have been sent again"
                    unknown += 1
        assert unknown > 0, "it was never killed while a put was on its way"


@pytest.mark.unbatched("what the checkers know of a write is one revision, of its own")
@pytest.mark.fault("K4")
async def test_k4_the_leader_stands_still() -> None:
    """Writes on their way to it end in doubt, may come late, and never come twice."""
    # Nobody is elected before the puts have gone, also where this loop is late.
    async with EtcdCluster(quick=False) as cluster, recorded(cluster) as recorder:
        leader = await cluster.leader()
        follower = next(member for member in cluster.members if member is not leader)
        endpoint = cluster.endpoints[cluster.members.index(follower)]
        async with Client(endpoint, timeout=1.5) as client:
            kv = RecordedClient(client, recorder).kv
            await kv.put("k", "0")
            await leader.pause()
            errors: list[EtcdError | None] = []

            async def put(number: int) -> None:
                errors.append(await failure_of(kv.put("k", str(number))))

            async with anyio.create_task_group() as group:
                for number in range(1, 9):
                    group.start_soon(put, number)
            failed = [error for error in errors if error is not None]
            assert failed, "the leader was not needed"
            assert all(error.maybe_applied for error in failed)
            await until(lambda: _is_led(cluster, leader))
            await kv.put("k", "while it stands", timeout=5)
            await leader.resume()
            # One of them may still come after this; what came when is checked at the end.
            await kv.put("k", "afterwards", timeout=5)


async def _is_led(cluster: EtcdCluster, before: EtcdServer) -> bool:
    return await cluster.leader() is not before


@pytest.mark.fault("K5")
async def test_k5_a_counter_in_a_bad_network(
    proxy: FaultProxy, direct: Client, rng: random.Random
) -> None:
    """Compare-and-swap that reads again when in doubt counts each addition once."""
    await direct.kv.put("n", "0")
    added = 0
    doubts: list[EtcdError] = []
    # In time for any number of failed looks in a row; doubts come at once, by the resets.
    async with Client(proxy.endpoint, timeout=30) as client:

        async def add() -> None:
            nonlocal added
            tried = 0
            while tried < 15 or not doubts:  # a network that has lost nothing yet is not bad enough
                tried += 1
                while True:
                    got = await client.kv.get("n")
                    assert got.kv is not None
                    number = int(got.kv.value) + 1
                    try:
                        answer = await client.kv.txn(
                            compare=[Compare.unchanged(got.kv)],
                            success=[Op.put("n", str(number))],
                        )
                    except EtcdError as error:
                        doubts.append(error)
                        break
                    if answer.succeeded:
                        added += 1
                        break

        over = False

        async def disturb() -> None:
            while not over:
                if rng.random() < 0.5:
                    proxy.cut()
                else:
                    proxy.blackhole(client_to_server=False)
                    await anyio.sleep(0.02)  # answers are lost for so long
                    await proxy.heal()
                # Now and then it lasts for as long as a slow machine needs to get anywhere.
                await anyio.sleep(rng.uniform(0, 0.05) if rng.random() < 0.9 else 0.5)

        async with anyio.create_task_group() as faults:
            faults.start_soon(disturb)
            async with anyio.create_task_group() as group:
                for _ in range(4):
                    group.start_soon(add)
            over = True
    got = await direct.kv.get("n")
    assert doubts, "no answer was lost"
    assert all(error.maybe_applied for error in doubts)
    assert added <= int(got.value or 0) <= added + len(doubts)
    assert got.kv is not None
    assert got.kv.version == int(got.kv.value) + 1


@pytest.mark.fault("K7")
async def test_k7_a_member_is_cut_off_from_the_others() -> None:
    """Reads find another one; what need not be the newest is still read from the one cut off."""
    async with EtcdCluster() as cluster, lateness() as late:
        leader = await cluster.leader()
        others = [member.endpoint for member in cluster.members if member is not leader]
        async with Client([leader.endpoint, *others]) as client:
            with first_in_use():
                await client.kv.put("k", "v")
            assert client.stats().endpoint == leader.endpoint
            cut = await cluster.isolate(leader)
            began = time.monotonic()
            async with anyio.create_task_group() as group:
                for _ in range(8):
                    group.start_soon(_reads, client, b"v")
            assert time.monotonic() - began < 3 + late.seconds
            assert client.stats().endpoint in others
            await client.kv.put("k", "w")
            assert cut.bytes_swallowed > 0
        async with Client(leader.endpoint, timeout=5) as old:
            assert (await old.kv.get("k", serializable=True)).value == b"v"
            assert await failure_of(old.kv.get("k", timeout=1)) is not None


async def _reads(client: Client, value: bytes) -> None:
    assert (await client.kv.get("k", timeout=5)).value == value


@pytest.mark.fault("K8")
async def test_k8_no_quorum_for_a_while() -> None:
    """Each call ends by its deadline with a reason; soon after the quorum is back, all work."""
    async with EtcdCluster() as cluster, Client(cluster.endpoints) as client:
        await client.kv.put("k", "v")
        for member in cluster.members[1:]:
            await member.kill()
        async with lateness() as late:
            for _ in range(2):
                for call in (
                    client.kv.get("k", timeout=0.8),
                    client.kv.put("k", "w", timeout=1.2),
                    client.kv.txn(success=[Op.get("k")], timeout=0.8),
                    client.kv.get("k", timeout=2),
                ):
                    began = time.monotonic()
                    error = await failure_of(call)
                    assert error is not None
                    assert time.monotonic() - began < 2 + 0.1 + late.seconds
            assert "quorum" in str(error) or "leader" in str(error), error
        for member in cluster.members[1:]:
            await member.start()
        await cluster.wait_healthy()
        async with lateness() as late:
            began = time.monotonic()
            await client.kv.put("k", "x")
            assert time.monotonic() - began < 2 + late.seconds
        assert (await client.kv.get("k")).value == b"x"


@pytest.mark.unbatched("what the checkers know of a write is one revision, of its own")
@pytest.mark.fault("K9")
async def test_k9_the_leader_moves_again_and_again() -> None:
    """Sixteen writers hardly notice, and no write comes twice."""
    async with (
        EtcdCluster() as cluster,
        recorded(cluster) as recorder,
        Client(cluster.endpoints) as client,
    ):
        kv = RecordedClient(client, recorder).kv
        over = False
        answered = 0
        errors: list[EtcdError] = []

        async def write(name: str) -> None:
            nonlocal answered
            while not over:
                # A put that a leader drops on its way out is told of by nobody.
                error = await failure_of(kv.put(name, str(answered), timeout=2))
                if error is None:
                    answered += 1
                else:
                    errors.append(error)

        async with anyio.create_task_group() as group:
            for number in range(16):
                group.start_soon(write, f"k{number}")
            for _ in range(4):
                enough = answered + 1000
                await until(lambda: answered >= enough, within=20)  # noqa: B023
                index = cluster.members.index(await cluster.leader())
                await cluster.move_leader((index + 1) % 3)
            over = True
        assert len(errors) < 0.01 * answered + 4 * 16 / 2
        assert len(recorder.of(Operation)) == answered + len(errors)


@pytest.mark.fault("K12")
async def test_k12_a_follower_lags() -> None:
    """Linearizable reads at it see each write that was answered; serializable ones may not."""
    async with EtcdCluster() as cluster:
        leader = await cluster.leader()
        follower = next(member for member in cluster.members if member is not leader)
        async with Client(leader.endpoint) as writer, Client(follower.endpoint) as reader:
            await reader.kv.get("k")
            for pair in ((leader, follower), (follower, leader)):
                cluster.peer_proxy(*pair).delay(0.03)
            old = 0
            revision = 0
            for number in range(15):
                put = await writer.kv.put("k", str(number))
                lagging = await reader.kv.get("k", serializable=True)
                old += lagging.value != str(number).encode()
                got = await reader.kv.get("k")
                assert got.value == str(number).encode()
                assert got.header.revision >= max(put.header.revision, revision)
                revision = got.header.revision
            assert old > 0, "it did not lag"
