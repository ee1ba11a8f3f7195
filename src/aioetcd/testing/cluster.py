"""Several etcd members on one machine, with proxies wherever a network would be.

    async with EtcdCluster() as cluster:
        async with Client(cluster.endpoints) as client:
            await (await cluster.leader()).kill()       # a member crashes
            cluster.client_proxies[0].blackhole()       # the network to clients breaks
            await cluster.isolate(1)                    # the network between members breaks

Every member has one advertised peer URL that all others dial, so that a proxy there sees only who
is dialled. Who dials is found out from the kernel's tables, and each ordered pair of members gets
a `FaultProxy` of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import anyio

from aioetcd.testing._process import HOST, connects
from aioetcd.testing._sockets import Listener, bind, close_with_reset
from aioetcd.testing.proxy import FaultProxy
from aioetcd.testing.server import AddressInUseError, EtcdServer, EtcdStartError

__all__ = ["EtcdCluster"]

_POLL = 0.02
_START_ATTEMPTS = 3
_QUICK = ("--heartbeat-interval=50", "--election-timeout=250")


@dataclass(frozen=True, slots=True)
class _Status:
    """What one member says of the cluster; 0 is no leader."""

    server: EtcdServer
    member_id: int
    leader_id: int
    raft_term: int


class EtcdCluster:
    """An etcd cluster on loopback: real processes, and a proxy on every path between them.

    Made by a test and opened by `async with`, which starts all members and waits until they are
    healthy; leaving it kills them and removes their data. It belongs to the event loop it was
    opened in, whose tasks may share it. A member is killed, paused and restarted by its own
    methods (`EtcdServer`), and keeps its place and its proxies.

    Telling the members apart as they connect to one another needs Linux; elsewhere everything but
    `isolate`, `rejoin` and `peer_proxy` works.

    Args:
        size: How many members.
        binary: The etcd program; `find_binary` finds one by default.
        args: More arguments for every member, as for `EtcdServer`. With TLS for clients (or auth)
            `leader`, `move_leader` and `wait_healthy` do not work.
        quick: Elections within a quarter of a second, and leases from 1 s on. A busy machine may
            see an election that nobody asked for.
        seed: Seeds the jitter of all proxies, so that a run can be repeated.

    Raises:
        ValueError: ``size`` is less than 1, or ``args`` has a flag that is decided here.
        EtcdNotFoundError: There is no such program.

    Attributes:
        members: The members, in a fixed order.
        client_proxies: The proxies in front of them that `endpoints` names, in the same order.
    """

    def __init__(
        self,
        size: int = 3,
        *,
        binary: str | None = None,
        args: Iterable[str] = (),
        quick: bool = True,
        seed: int | None = None,
    ) -> None:
        if size < 1:
            raise ValueError("size must be at least 1")
        self._size = size
        self._binary = binary
        self._args = [*(_QUICK if quick else ()), *args]
        self._seed = seed
        self._stack = contextlib.AsyncExitStack()
        self._fronts: list[Listener] = []
        self._pairs: dict[tuple[int, int], FaultProxy] = {}
        self._isolated: set[int] = set()
        self.client_proxies: list[FaultProxy] = []
        self.members = self._new_members()

    # -- life ----------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Start all members, and wait until they are healthy and agree on a leader."""
        for attempt in range(1, _START_ATTEMPTS + 1):
            try:
                await self._start()
                await self.wait_healthy()
                break
            except AddressInUseError:
                await self._clear()
                if attempt == _START_ATTEMPTS:
                    raise
                self.members = self._new_members()
            except BaseException:
                await self._clear()
                raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Kill the members, remove their data and close the proxies."""
        await self._clear()

    # -- facts ---------------------------------------------------------------------------------

    @property
    def endpoints(self) -> list[str]:
        """Where clients connect to, through `client_proxies`. The members advertise these."""
        return [proxy.endpoint for proxy in self.client_proxies]

    @property
    def direct_endpoints(self) -> list[str]:
        """Where the members listen themselves: no fault of a proxy is seen there."""
        return [member.endpoint for member in self.members]

    def peer_proxy(self, source: int | EtcdServer, target: int | EtcdServer) -> FaultProxy:
        """The proxy on the way from one member to another.

        Raft's messages to the target travel on connections that the target makes (streams, where
        they are what the *server* sends) and on ones that the source makes (the rest): a fault of
        one direction of raft is a fault in both proxies of the pair. `refuse` has no effect here.
        """
        return self._pairs[self._index(source), self._index(target)]

    async def leader(self, *, timeout: float = 10.0) -> EtcdServer:
        """Wait until a majority of all members follows a leader, and give that leader.

        A member that was isolated may still think that it leads; it is not the one.

        Raises:
            TimeoutError: There was none in ``timeout`` seconds.
        """
        with anyio.fail_after(timeout):
            while True:
                if (found := self._elected(await self._ask_all())) is not None:
                    return found.server
                await anyio.sleep(_POLL)

    async def move_leader(self, to: int | EtcdServer, *, timeout: float = 10.0) -> None:
        """Let a member become the leader, and wait until a majority follows it.

        Does nothing where it leads already. Asks again where an election came in between.

        Raises:
            TimeoutError: It did not lead within ``timeout`` seconds.
        """
        target = self.members[self._index(to)]
        with anyio.fail_after(timeout):
            while (leader := await self.leader(timeout=timeout)) is not target:
                try:
                    member_id = (await self._ask(target)).member_id
                    await leader.gateway(
                        "maintenance/transfer-leadership", {"targetID": str(member_id)}
                    )
                except (OSError, RuntimeError):  # one of them is gone, or does not lead any more
                    await anyio.sleep(_POLL)

    async def wait_healthy(self, *, timeout: float = 20.0) -> None:
        """Wait until every member serves requests and all follow the same leader.

        Raises:
            TimeoutError: That was not so within ``timeout`` seconds.
        """
        with anyio.fail_after(timeout):
            while True:
                seen = await self._ask_all()
                agreed = len({(status.leader_id, status.raft_term) for status in seen}) == 1
                if len(seen) == self._size and agreed and self._elected(seen) is not None:
                    healthy = [await member.is_healthy() for member in self.members]
                    if all(healthy):
                        return
                await anyio.sleep(_POLL)

    # -- faults between members ------------------------------------------------------------------

    async def isolate(self, member: int | EtcdServer) -> None:
        """Cut a member off from all others: both ways, nothing arrives. Clients still reach it.

        Takes effect at once and lasts until `rejoin`. Connections stay open and are silent, as
        behind a broken switch, so that the members find out by their own time-outs.
        """
        self._need_pairs()
        self._isolated.add(self._index(member))
        self._apply_isolation()

    async def rejoin(self, member: int | EtcdServer) -> None:
        """End `isolate`. Connections that lost bytes are reset, and the members dial again."""
        self._need_pairs()
        self._isolated.discard(self._index(member))
        self._apply_isolation()

    # -- inside --------------------------------------------------------------------------------

    def _new_members(self) -> list[EtcdServer]:
        return [
            EtcdServer(self._binary, name=f"member{index}", args=self._args)
            for index in range(self._size)
        ]

    async def _start(self) -> None:
        chance = random.Random(self._seed)
        for target, member in enumerate(self.members):
            to_clients = FaultProxy(member.endpoint, seed=chance.getrandbits(32))
            self.client_proxies.append(await self._stack.enter_async_context(to_clients))
            for source in range(self._size):
                # It never listens: `_front` gives it the connections that are its own.
                proxy = FaultProxy(member.peer_url, seed=chance.getrandbits(32))
                self._pairs[source, target] = proxy
                self._stack.push_async_callback(proxy.aclose)
            self._fronts.append(self._front(target))
        urls = [
            f"{member.peer_url.partition('://')[0]}://{HOST}:{front.port}"
            for member, front in zip(self.members, self._fronts, strict=True)
        ]
        cluster = ",".join(
            f"{member.name}={url}" for member, url in zip(self.members, urls, strict=True)
        )
        errors: list[EtcdStartError] = []

        async def start(member: EtcdServer) -> None:
            try:
                await member.start()
            except EtcdStartError as exc:
                errors.append(exc)
                tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for member, url, proxy in zip(self.members, urls, self.client_proxies, strict=True):
                scheme = member.client_url.partition("://")[0]
                member.args += [
                    f"--initial-advertise-peer-urls={url}",
                    f"--initial-cluster={cluster}",
                    f"--initial-cluster-token={urls[0]}",
                    f"--advertise-client-urls={scheme}://{proxy.endpoint}",
                ]
                self._stack.push_async_callback(member.aclose)
                self._stack.push_async_callback(member.kill)  # comes first: the data is not kept
                tasks.start_soon(start, member)
        if errors:
            raise errors[0]

    async def _clear(self) -> None:
        with anyio.CancelScope(shield=True):
            for front in self._fronts:
                front.close()
            await self._stack.aclose()
        self._fronts = []
        self._pairs = {}
        self._isolated = set()
        self.client_proxies = []

    def _front(self, target: int) -> Listener:
        """Listen where a member's peers dial it; each connection goes to its pair's proxy."""

        def on_connection(connection: socket.socket) -> None:
            source = self._who_dials(connection, target)
            if source is None:  # it has ended meanwhile, or is none of ours
                loop.call_soon(close_with_reset, connection)  # first it learns that it is connected
            else:
                self._pairs[source, target].relay(connection)

        loop = asyncio.get_running_loop()
        return Listener(bind(HOST, 0), on_connection)

    def _who_dials(self, connection: socket.socket, target: int) -> int | None:
        if not sys.platform.startswith("linux"):
            return target  # one proxy for all of them
        try:
            local: int = connection.getpeername()[1]
        except OSError:  # it has ended
            return None
        remote: int = connection.getsockname()[1]
        for index, member in enumerate(self.members):
            if member.is_running and connects(member.pid, local, remote):
                return index
        return None

    def _apply_isolation(self) -> None:
        for pair, proxy in self._pairs.items():
            cut = not self._isolated.isdisjoint(pair) and pair[0] != pair[1]
            proxy.blackhole(client_to_server=cut, server_to_client=cut)

    def _need_pairs(self) -> None:
        if not sys.platform.startswith("linux"):
            raise NotImplementedError("telling the members apart needs Linux")

    def _index(self, member: int | EtcdServer) -> int:
        return member if isinstance(member, int) else self.members.index(member)

    def _elected(self, seen: list[_Status]) -> _Status | None:
        """The member whom a majority of all members follows, itself included."""
        for status in seen:
            followers = [
                other
                for other in seen
                if (other.leader_id, other.raft_term) == (status.member_id, status.raft_term)
            ]
            if status in followers and len(followers) > self._size // 2:
                return status
        return None

    async def _ask_all(self) -> list[_Status]:
        seen: list[_Status] = []

        async def ask(member: EtcdServer) -> None:
            with contextlib.suppress(OSError, RuntimeError):  # it does not answer
                seen.append(await self._ask(member))

        async with anyio.create_task_group() as tasks:
            for member in self.members:
                if member.is_running and not member.is_paused:
                    tasks.start_soon(ask, member)
        return seen

    async def _ask(self, member: EtcdServer) -> _Status:
        answer = await member.gateway("maintenance/status")
        header = answer["header"]
        return _Status(
            server=member,
            member_id=int(header["member_id"]),
            leader_id=int(answer.get("leader", 0)),
            raft_term=int(header["raft_term"]),
        )
