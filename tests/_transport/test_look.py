"""A look at a member says how it is: of real servers, and of whoever listens there instead."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import anyio
import grpc
import grpc.aio
import pytest

from aioetcd import Client
from aioetcd._proto import health_pb2, rpc_pb2
from aioetcd._transport.call import Failure
from aioetcd._transport.connection import Connection, Metadata
from aioetcd._transport.look import Finding, _of_read, look
from aioetcd._transport.members import Health
from aioetcd._transport.methods import HEALTH_CHECK, PUT, RANGE
from aioetcd._transport.transport import channel_options
from aioetcd.config.endpoints import Endpoint
from aioetcd.testing import EtcdCluster, EtcdServer, FaultProxy
from aioetcd.testing._process import HOST
from tests.programs import stranger
from tests.waiting import lateness, until

# A busy machine's; what a test is about is shorter.
PATIENT = 5.0


@asynccontextmanager
async def connection_to(endpoint: str) -> AsyncIterator[Connection]:
    """A connection as the picker makes it."""
    connection = Connection(Endpoint.parse(endpoint), channel_options(10.0, 5.0))
    try:
        yield connection
    finally:
        await connection.aclose()


async def look_at(
    endpoint: str,
    *,
    timeout: float = PATIENT,
    patience: float = PATIENT,
    metadata: Metadata = (),
) -> Finding:
    """Look at a member once, through a connection of its own."""
    async with connection_to(endpoint) as connection:
        return await look(connection, lambda: metadata, timeout=timeout, patience=patience)


async def test_a_member_that_is_well(server: EtcdServer, client: Client) -> None:
    """It says of which cluster it is, as its answers do."""
    header = (await client.kv.get("k")).header
    assert await look_at(server.endpoint) == Finding(Health.WELL, None, header.cluster_id)


async def test_a_look_changes_nothing(server: EtcdServer, client: Client) -> None:
    """It writes nothing, and what it reads is nothing."""
    await client.kv.put("\0", "v")  # the key that it asks for, where somebody has it
    before = (await client.kv.get("k")).header.revision
    finding = await look_at(server.endpoint)
    assert finding.health is Health.WELL
    assert (await client.kv.get("k")).header.revision == before


@pytest.mark.parametrize("token", ["", "no-token.7"])
async def test_a_token_that_is_refused_is_not_the_members_fault(token: str) -> None:
    """With authentication on, one who may not read sees all the same that it is well."""
    async with EtcdServer(quick=True, auth=("root", "pw")) as server:
        metadata = (("token", token),) if token else ()
        finding = await look_at(server.endpoint, metadata=metadata)
        assert (finding.health, finding.reason) == (Health.WELL, None)


@pytest.mark.own_logic("nobody listens")
async def test_nobody_there(proxy: FaultProxy) -> None:
    """A port where nobody listens is down at once, with gRPC's last reason."""
    proxy.refuse()
    began = monotonic()
    async with lateness() as late:
        finding = await look_at(proxy.endpoint)
    assert finding.health is Health.DOWN
    assert finding.reason is not None
    assert "refused" in finding.reason.lower()
    assert "last error" not in finding.reason
    assert monotonic() - began < 1 + late.seconds


@pytest.mark.own_logic("nobody answers")
@pytest.mark.parametrize("how", ["hangs", "swallows the answers"])
async def test_a_member_that_hangs(proxy: FaultProxy, how: str) -> None:
    """One that accepts and does not answer is down after the time that it may take."""
    if how == "hangs":
        proxy.hang()
    else:
        proxy.blackhole(client_to_server=False)
    began = monotonic()
    async with lateness() as late:
        finding = await look_at(proxy.endpoint, timeout=0.5)
    assert finding == Finding(Health.DOWN, "no answer within 0.5 s")
    assert 0.45 < monotonic() - began < 1 + late.seconds


@pytest.mark.own_logic("the client gives up")
async def test_a_connection_that_is_left(proxy: FaultProxy) -> None:
    """Whoever looks gives up when the connection is left, and says nothing of the member."""
    proxy.hang()
    findings = []
    async with connection_to(proxy.endpoint) as connection:
        async with anyio.create_task_group() as group:

            async def one() -> None:
                findings.append(
                    await look(connection, lambda: (), timeout=PATIENT, patience=PATIENT)
                )

            group.start_soon(one)
            await until(lambda: len(connection.calls) == 1)
            connection.leave()
        await connection.aclose()
        findings.append(await look(connection, lambda: (), timeout=PATIENT, patience=PATIENT))
    assert {finding.health for finding in findings} == {Health.DOWN}


async def test_another_server_of_grpc() -> None:
    """One that has none of etcd's services is odd, and what it is is said."""
    with stranger() as endpoint:
        finding = await look_at(endpoint)
    assert finding.health is Health.ODD
    assert finding.reason is not None
    assert "no etcd" in finding.reason


class Answering(grpc.GenericRpcHandler):
    """A server of cluster 7 whose keys are 77, and which takes any write.

    Args:
        status: What its health check says.
        hangs: It does not answer to the question for keys.

    Attributes:
        asked: How often it was asked for keys.
        cluster_id: Of the cluster behind it.
    """

    def __init__(self, status: str, *, hangs: bool = False) -> None:
        self.asked = 0
        self.cluster_id = 7
        self._hangs = hangs
        self._status = status

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Give the endpoint to connect to."""
        server = grpc.aio.server()
        server.add_generic_rpc_handlers([self])
        port = server.add_insecure_port(f"{HOST}:0")
        await server.start()
        try:
            yield f"{HOST}:{port}"
        finally:
            await server.stop(None)

    def service(self, call: grpc.HandlerCallDetails) -> Any:
        """Give who answers a method; None for nobody."""
        answers = {HEALTH_CHECK.path: self._check, RANGE.path: self._range, PUT.path: self._put}
        found = answers.get(call.method)
        return None if found is None else grpc.unary_unary_rpc_method_handler(found)

    async def _check(self, request: bytes, context: object) -> bytes:
        status = health_pb2.HealthCheckResponse.ServingStatus.Value(self._status)
        return health_pb2.HealthCheckResponse(status=status).SerializeToString()

    async def _range(self, request: bytes, context: object) -> bytes:
        self.asked += 1
        if self._hangs:
            await anyio.sleep_forever()
        header = rpc_pb2.ResponseHeader(cluster_id=self.cluster_id)
        return rpc_pb2.RangeResponse(header=header, count=77).SerializeToString()

    async def _put(self, request: bytes, context: object) -> bytes:
        header = rpc_pb2.ResponseHeader(cluster_id=self.cluster_id)
        return rpc_pb2.PutResponse(header=header).SerializeToString()


@pytest.mark.parametrize("code", ["UNKNOWN", "DEADLINE_EXCEEDED", "UNAVAILABLE"])
def test_its_own_deadline_is_told_first(code: str) -> None:
    """A server's timer for the read that runs out with ours means the same, by any code."""
    finding = _of_read(Failure(code, "context deadline exceeded"), 1.0)
    assert finding == Finding(Health.ODD, "no quorum has answered it within 1 s")


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (Failure("UNAVAILABLE", "recvmsg:Connection reset by peer"), Health.DOWN),
        (Failure("UNAVAILABLE", "Socket closed"), Health.DOWN),
        (Failure("UNAVAILABLE", "Received http2 header with status: 502"), Health.ODD),
        (Failure("UNAVAILABLE", "Received RST_STREAM with error code 7"), Health.ODD),
        (Failure("UNAVAILABLE", "etcdserver: server stopped"), Health.ODD),
        (Failure("INTERNAL", "the answer is no message of protobuf's"), Health.ODD),
    ],
)
def test_the_failure_tells_whether_the_connection_broke(failure: Failure, expected: Health) -> None:
    """Whatever gRPC says of the channel's state by then."""
    assert _of_read(failure, 1.0) == Finding(expected, failure.details)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("NOT_SERVING", Finding(Health.ODD, "its health check says NOT_SERVING")),
        ("SERVING", Finding(Health.WELL, None, 7)),
        ("SERVICE_UNKNOWN", Finding(Health.WELL, None, 7)),
    ],
)
async def test_what_its_health_check_says(status: str, expected: Finding) -> None:
    """One that says it does not serve is odd, and asked nothing more."""
    answering = Answering(status)
    async with answering.listening() as endpoint:
        assert await look_at(endpoint) == expected
    assert answering.asked == (0 if status == "NOT_SERVING" else 1)


async def test_a_connection_that_breaks_meanwhile() -> None:
    """A member that answers the health check and is gone then is down, and not only odd."""
    answering = Answering("SERVING", hangs=True)
    async with answering.listening() as endpoint, FaultProxy(endpoint) as proxy:
        findings = []

        async def one() -> None:
            findings.append(await look_at(proxy.endpoint))

        async with anyio.create_task_group() as group:
            group.start_soon(one)
            await until(lambda: answering.asked == 1)
            assert proxy.cut() == 1
    assert [finding.health for finding in findings] == [Health.DOWN]


@pytest.mark.fault("Z14: elections, and time-outs of members")
async def test_z14_a_member_cut_off_from_the_others() -> None:
    """It answers, and has no quorum: which is seen also by one that does not know it yet."""
    async with EtcdCluster() as cluster:
        leader = await cluster.leader()
        others = [member for member in cluster.members if member is not leader]
        cut = await cluster.isolate(leader)
        assert cut.member is leader
        finding = await look_at(leader.endpoint, patience=1.0)
        assert finding.health is Health.ODD
        assert finding.reason is not None
        assert "no quorum" in finding.reason or "no leader" in finding.reason

        async def are_well(*members: EtcdServer) -> bool:
            findings = [await look_at(member.endpoint) for member in members]
            return all(finding.health is Health.WELL for finding in findings)

        await until(lambda: are_well(*others))
        # By now the old leader knows that it is none.
        found: list[Finding] = []

        async def knows() -> bool:
            found.append(await look_at(leader.endpoint, patience=1.0))
            assert found[-1].health is Health.ODD
            return "no leader" in (found[-1].reason or "")

        await until(knows)
        await cluster.rejoin()
        await until(lambda: are_well(leader))


@pytest.mark.fault("Z14: a member joins")
async def test_z14_a_learner() -> None:
    """One that does not vote yet is odd, and says so; a client uses the one that votes."""
    async with EtcdCluster(1) as cluster:
        (server,) = cluster.members
        endpoint = (await cluster.add(learner=True)).endpoint
        finding = Finding(Health.UNKNOWN)

        async def is_odd() -> bool:
            nonlocal finding
            finding = await look_at(endpoint)
            return finding.reason == "it is a learner"

        await until(is_odd, within=20)
        assert finding.health is Health.ODD
        async with Client([endpoint, server.endpoint]) as client:
            for _ in range(5):
                await client.kv.put("k", "v")
            assert client.stats().endpoint == server.endpoint
