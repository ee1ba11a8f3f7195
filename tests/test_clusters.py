"""A cluster whose members come and go, hang, and turn out to be others'."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import anyio
import dns.flags
import dns.message
import dns.rdatatype
import dns.rrset
import pytest

from aioetcd import Client, ClusterMismatchError, EtcdError
from aioetcd.config.endpoints import Endpoint
from aioetcd.testing import EtcdCluster, EtcdServer
from aioetcd.testing._process import HOST, Ports
from tests._transport.weather import Forgetful
from tests.harness import first_in_use
from tests.waiting import lateness, until


def in_use(client: Client, cluster: EtcdCluster) -> EtcdServer:
    """The member that the client uses."""
    return cluster.members[cluster.endpoints.index(str(client.stats().endpoint))]


def known_to(client: Client) -> set[str]:
    """The endpoints that the client knows, as the cluster has them."""
    return {name.removeprefix("http://") for name in client.stats().connections}


@pytest.mark.fault("C1")
async def test_c1_the_member_in_use_is_removed() -> None:
    """One is added and the one in use removed: no call fails, the watch goes on."""
    async with (
        EtcdCluster(3, quick=False) as cluster,
        Client(cluster.endpoints, timeout=10) as client,
        client.watch("k") as watch,
    ):
        await client.kv.put("k", "0")
        await anext(watch)
        await cluster.add()
        client.set_endpoints(cluster.endpoints)
        stop = False
        failures: list[EtcdError] = []

        async def write() -> None:
            number = 0
            while not stop:
                number += 1
                try:
                    await client.kv.put("other", str(number))
                except EtcdError as error:
                    failures.append(error)
                await anyio.sleep(0.02)

        async with anyio.create_task_group() as group:
            group.start_soon(write)
            await cluster.remove(in_use(client, cluster))
            client.set_endpoints(cluster.endpoints)
            await client.kv.put("k", "1")
            with anyio.fail_after(10):
                assert (await anext(watch)).kv.value == b"1"
            stop = True
        assert all(failure.maybe_applied for failure in failures), "else it is sent again"


@pytest.mark.fault("C2")
async def test_c2_all_members_are_restarted() -> None:
    """Reads, a watch and a session outlive a rolling restart."""
    async with (
        EtcdCluster(3) as cluster,
        Client(cluster.endpoints, timeout=15) as client,
        client.watch("k") as watch,
        client.session(ttl=30) as session,
        lateness() as late,
    ):
        await client.kv.put("k", "0", lease=session)
        reads: list[float] = []
        stop = False

        async def read() -> None:
            while not stop:
                began = time.monotonic()
                assert (await client.kv.get("k")).value == b"0"
                reads.append(time.monotonic() - began)
                await anyio.sleep(0.01)

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await cluster.roll()
            stop = True
        assert len(reads) > 3
        assert max(reads) < 4 + late.seconds
        await anext(watch)
        await client.kv.delete("k")
        with anyio.fail_after(10):
            assert (await anext(watch)).kv.key == b"k"
        assert not session.is_lost


@pytest.mark.fault("C2")
async def test_c2_all_members_are_replaced() -> None:
    """A client that asks the cluster for its endpoints outlives each member that it knew."""
    async with (
        EtcdCluster(3) as cluster,
        Client(cluster.endpoints, timeout=15, auto_sync=0.3) as client,
        client.watch("k") as watch,
        client.session(ttl=30) as session,
    ):
        await client.kv.put("k", "0", lease=session)
        assert (await anext(watch)).kv.value == b"0"
        before = set(cluster.endpoints)
        for index in range(3):
            await cluster.replace(index)
            await client.kv.put("k", str(index))
            with anyio.fail_after(10):
                assert (await anext(watch)).kv.value == str(index).encode()
        assert before.isdisjoint(cluster.endpoints)
        await until(lambda: known_to(client) == set(cluster.endpoints))
        assert not session.is_lost


@pytest.mark.fault("C3")
async def test_c3_a_learner_is_in_the_list() -> None:
    """It is not used while another serves, and `sync_endpoints` leaves it out."""
    async with EtcdCluster(1) as cluster:
        learner = await cluster.add(learner=True)
        endpoints = [learner.endpoint, cluster.endpoints[0]]
        async with Client(endpoints) as client:
            for number in range(5):
                await client.kv.put("k", str(number))
                assert (await client.kv.get("k")).value == str(number).encode()
            assert client.stats().endpoint == cluster.endpoints[0]
            await client.sync_endpoints()
            assert known_to(client) == {cluster.endpoints[0]}
            await cluster.promote(learner)
            await client.sync_endpoints()
            assert known_to(client) == set(cluster.endpoints)


@pytest.mark.fault("C4")
async def test_c4_another_cluster_in_the_list(server: EtcdServer, client: Client) -> None:
    """The answers of one cluster are not taken for another's: the second one is not used."""
    await client.kv.put("k", "ours")
    async with (
        EtcdServer(quick=True) as other,
        Client([server.endpoint, other.endpoint]) as both,
    ):
        with first_in_use():
            assert (await both.kv.get("k")).value == b"ours"
        # The first one is gone, as far as this client can see.
        both.set_endpoints([other.endpoint])
        with pytest.raises(ClusterMismatchError):
            await both.kv.get("k", timeout=5)


@pytest.mark.fault("K6")
async def test_k6_no_read_waits_long_for_a_paused_member() -> None:
    """Reads with five seconds do not fail, and none takes as long as two and a half.

    But where it led: then the others elect first, and may have to vote more than once.
    """
    async with (
        EtcdCluster(3, quick=False) as cluster,
        Client(cluster.endpoints) as client,
        lateness() as late,
    ):
        await client.kv.put("k", "v")
        slowest = 0.0
        for leads in (False, True, False):
            paused = in_use(client, cluster)
            other = next(member for member in cluster.members if member is not paused)
            await cluster.move_leader(paused if leads else other)
            await paused.pause()
            try:
                began = time.monotonic()
                assert (await client.kv.get("k", timeout=15 if leads else 5)).value == b"v"
                if not leads:
                    slowest = max(slowest, time.monotonic() - began)
                assert in_use(client, cluster) is not paused
            finally:
                await paused.resume()
            await cluster.wait_healthy()
        assert slowest < 2.5 + late.seconds


class Names(asyncio.DatagramProtocol):
    """A DNS server that knows one name.

    Attributes:
        address: What it says.
        asked: How often it was asked for that.
    """

    def __init__(self) -> None:
        self.address = HOST
        self.asked = 0
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Know where to answer."""
        self._transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        """Answer."""
        query = dns.message.from_wire(data)
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        if query.question[0].rdtype == dns.rdatatype.A:
            self.asked += 1
            name = query.question[0].name
            response.answer.append(dns.rrset.from_text(name, 0, "IN", "A", self.address))
        self._transport.sendto(response.to_wire(), address)


@pytest.mark.fault("C6")
async def test_c6_a_name_means_another_address(server: EtcdServer, client: Client) -> None:
    """A name is resolved again for each connection: the client follows it."""
    loop = asyncio.get_running_loop()
    names = Names()
    transport, _ = await loop.create_datagram_endpoint(lambda: names, local_addr=(HOST, 0))
    dns_port = transport.get_extra_info("sockname")[1]
    ports = Ports(1)
    (port,) = ports.numbers
    name = Endpoint(f"etcd.test:{port}", f"dns://{HOST}:{dns_port}/etcd.test:{port}", tls=None)
    try:
        async with Client(f"{HOST}:{port}", timeout=10) as used:
            used._transport.picker.replace([name])
            first, second = Forgetful(server), Forgetful(server)
            async with first.listening(HOST, port):
                await used.kv.put("k", "v")
                assert (first.connections, names.asked) == (1, 1)
                names.address = "127.0.0.2"
            async with second.listening("127.0.0.2", port):
                assert (await used.kv.get("k")).value == b"v"
                assert second.connections >= 1
                assert names.asked >= 2
    finally:
        transport.close()
        ports.release()
