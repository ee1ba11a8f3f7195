"""Several etcd members on one machine, with proxies wherever a network would be.

    async with EtcdCluster() as cluster:
        async with Client(cluster.endpoints) as client:
            await (await cluster.leader()).kill()       # a member crashes
            cluster.client_proxies[0].blackhole()       # the network to clients breaks
            cut = await cluster.isolate("leader")        # the network between members breaks
            await cluster.rejoin(cut.member)

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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

import anyio

from aioetcd.testing._binary import ask
from aioetcd.testing._process import HOST
from aioetcd.testing._separation import PeerProxy, Separation
from aioetcd.testing._sockets import Listener, bind, close_with_reset
from aioetcd.testing.proxy import FaultProxy
from aioetcd.testing.server import AddressInUseError, EtcdServer, check_args

__all__ = ["EtcdCluster"]

_POLL = 0.02
_START_ATTEMPTS = 3

# One member's answer: a hung one must not keep the others' from being looked at. It is doubled
# whenever one did not come in time: on a busy machine members are late without being hung.
_ANSWER_LIMIT = 1.0
_LOG_TAIL = 1000


@dataclass(slots=True)
class _Status:
    """What one member says of the cluster; 0 is no leader. Its health may not be known."""

    server: EtcdServer
    member_id: int
    leader_id: int
    raft_term: int
    is_healthy: bool | None = None


class EtcdCluster:
    """An etcd cluster on loopback: real processes, and a proxy on every path between them.

    Made by a test and opened by `async with`, which starts all members and waits until they are
    healthy; leaving it kills them and removes their data. It belongs to the event loop it was
    opened in, whose tasks may share it. A member is killed, paused and restarted by its own
    methods (`EtcdServer`), and keeps its place and its proxies.

    Telling the members apart as they connect to one another needs Linux; elsewhere everything but
    `isolate`, `partition`, `rejoin` and `peer_proxy` works.

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
        TypeError: ``args`` is a string, not a list of them.
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
        self._args = check_args(args)
        self._quick = quick
        self._seed = seed
        self._stack = contextlib.AsyncExitStack()
        self._fronts: list[Listener] = []
        self._pairs: dict[tuple[int, int], PeerProxy] = {}
        self._isolated: dict[int, Separation] = {}
        self._parted: dict[tuple[int, int], Separation] = {}
        self.client_proxies: list[FaultProxy] = []
        self.members: list[EtcdServer] = self._new_members()

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
        What it is told is kept by `isolate`, `partition` and `rejoin`; its `heal` ends none of
        these.

        Raises:
            IndexError: There is no such member.
            ValueError: The server is no member of this cluster.
            RuntimeError: The cluster is not open.
        """
        self._need_pairs()
        return self._pairs[self._index(source), self._index(target)]

    async def leader(self, *, timeout: float = 10.0) -> EtcdServer:
        """Wait until a majority of all members follows a leader that it reaches, and give that.

        A member that was isolated may still think that it leads, and so may those who followed it:
        it is not the one.

        Raises:
            TimeoutError: There was none in ``timeout`` seconds. It says what each member said, and
                how the logs of those end that did not answer.
        """
        seen: list[_Status] = []
        limit = _ANSWER_LIMIT
        with self._bounded(timeout, "no leader that a majority follows", seen):
            while True:
                limit = await self._ask_all(seen, limit)
                if (found := self._elected(seen)) is not None:
                    return found.server
                await anyio.sleep(_POLL)

    async def move_leader(self, to: int | EtcdServer, *, timeout: float = 10.0) -> None:
        """Let a member become the leader, and wait until a majority follows it.

        Does nothing where it leads already. Asks again where an election came in between.

        Raises:
            TimeoutError: It did not lead within ``timeout`` seconds.
            RuntimeError: It is cut off from the leader, or from every majority.
            IndexError: There is no such member.
            ValueError: The server is no member of this cluster.
        """
        index = self._index(to)
        target = self.members[index]
        seen: list[_Status] = []
        limit = _ANSWER_LIMIT
        with self._bounded(timeout, f"{target.name} does not lead", seen):
            while True:
                if len(self._reached(index)) <= self._size // 2:
                    raise RuntimeError(f"{target.name} is cut off from a majority: it cannot lead")
                limit = await self._ask_all(seen, limit)
                elected = self._elected(seen)
                if elected is not None and elected.server is target:
                    return
                asked = next((status for status in seen if status.server is target), None)
                if elected is not None and asked is not None:
                    await self._transfer(elected.server, asked)
                await anyio.sleep(_POLL)

    async def wait_healthy(self, *, timeout: float = 20.0) -> None:
        """Wait until every member serves requests and all follow the same leader.

        Raises:
            TimeoutError: That was not so within ``timeout`` seconds. It says what each member said,
                and how the logs of those end that were not healthy.
        """
        seen: list[_Status] = []
        limit = _ANSWER_LIMIT
        with self._bounded(timeout, "not all members are healthy", seen):
            while True:
                limit = await self._ask_all(seen, limit, healths=True)
                agreed = len({(status.leader_id, status.raft_term) for status in seen}) == 1
                found = self._elected(seen)
                if len(seen) == self._size and agreed and found is not None:
                    index = self._index(found.server)
                    whole = len(self._reached(index)) == self._size
                    if whole and all(status.is_healthy for status in seen):
                        return
                await anyio.sleep(_POLL)

    # -- faults between members ------------------------------------------------------------------

    async def isolate(self, member: int | EtcdServer | Literal["leader"]) -> Separation:
        """Cut a member off from all others: both ways, nothing arrives. Clients still reach it.

        Takes effect at once and lasts until `rejoin`. Connections stay open and are silent, as
        behind a broken switch, so that the members find out by their own time-outs.

        Args:
            member: Which; ``"leader"`` is whom a majority follows now (see `leader`).

        Returns:
            What was done: which member it was, and how much has been swallowed since.

        Raises:
            IndexError: There is no such member.
            ValueError: The server is no member of this cluster, or the only one.
            TimeoutError: There is no leader.
        """
        self._need_pairs()
        found = await self.leader() if member == "leader" else member
        index = self._index(found)
        if self._size == 1:
            raise ValueError("the only member has no others to be cut off from")
        if index not in self._isolated:
            others = [other for other in range(self._size) if other != index]
            self._isolated[index] = self._separate([index], others)
            self._sever()
        return self._isolated[index]

    async def partition(self, *groups: Iterable[int | EtcdServer]) -> Separation:
        """Divide the members into groups that do not reach one another, as `isolate` does.

            await cluster.partition([0, 1], [2])

        It takes the place of the partition before it; members that are isolated stay isolated.

        Raises:
            IndexError: There is no such member.
            ValueError: A member is in no group, or in two; or there is but one group.
        """
        self._need_pairs()
        parts = [[self._index(member) for member in group] for group in groups]
        named = sorted(index for part in parts for index in part)
        if len(parts) < 2 or [] in parts or named != list(range(self._size)):
            raise ValueError(
                f"each of the members 0 to {self._size - 1} must be in one of at least two groups: "
                f"{parts}"
            )
        whole = self._separate(*parts)
        group_of = {index: number for number, part in enumerate(parts) for index in part}
        before, self._parted = self._parted, {}
        for pair in self._pairs:
            if group_of[pair[0]] != group_of[pair[1]]:
                self._parted[pair] = whole
        for pair, separation in before.items():
            separation.release([self._pairs[pair]])
        self._sever()
        return whole

    async def rejoin(self, member: int | EtcdServer | None = None) -> None:
        """Let a member reach all others again that are not isolated themselves.

        Connections that lost bytes are reset, and the members dial again. Faults that a peer's
        proxy was told by hand stay.

        Args:
            member: Which; by default all of them: every `isolate` and `partition` ends.

        Raises:
            IndexError: There is no such member.
            ValueError: The server is no member of this cluster.
        """
        self._need_pairs()
        for index in range(self._size) if member is None else [self._index(member)]:
            if (isolation := self._isolated.pop(index, None)) is not None:
                isolation.release(self._pairs.values())
            for pair in [pair for pair in self._parted if index in pair]:
                self._parted.pop(pair).release([self._pairs[pair]])
        self._sever()

    # -- inside --------------------------------------------------------------------------------

    def _new_members(self) -> list[EtcdServer]:
        return [
            EtcdServer(self._binary, name=f"member{index}", args=self._args, quick=self._quick)
            for index in range(self._size)
        ]

    async def _start(self) -> None:
        await ask(self.members[0].binary, "--help")  # once, rather than by each member at a time
        chance = random.Random(self._seed)
        for target, member in enumerate(self.members):
            to_clients = FaultProxy(member.endpoint, seed=chance.getrandbits(32))
            self.client_proxies.append(await self._stack.enter_async_context(to_clients))
            for source in range(self._size):
                # It never listens: `_front` gives it the connections that are its own.
                way = PeerProxy(member.peer_url, seed=chance.getrandbits(32))
                self._pairs[source, target] = way
                self._stack.push_async_callback(way.aclose)
            self._fronts.append(self._front(target))
        urls = [
            f"{member.peer_url.partition('://')[0]}://{HOST}:{front.port}"
            for member, front in zip(self.members, self._fronts, strict=True)
        ]
        cluster = ",".join(
            f"{member.name}={url}" for member, url in zip(self.members, urls, strict=True)
        )
        errors: list[Exception] = []

        async def start(member: EtcdServer) -> None:
            try:
                await member.start()
            except Exception as exc:  # noqa: BLE001 - raised below, as it is
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
        self._isolated = {}
        self._parted = {}
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
        for others in (False, True):  # behind a script that does not exec, it is a child's
            for index, member in enumerate(self.members):
                if member._connects(local, remote, others=others):
                    return index
        return None

    def _separate(self, *groups: list[int]) -> Separation:
        group_of = {index: number for number, group in enumerate(groups) for index in group}
        return Separation(
            [[self.members[index] for index in group] for group in groups],
            [
                proxy
                for (source, target), proxy in self._pairs.items()
                if group_of[source] != group_of[target]
            ],
        )

    def _sever(self) -> None:
        for pair, proxy in self._pairs.items():
            isolated = pair[0] != pair[1] and not self._isolated.keys().isdisjoint(pair)
            proxy.sever(isolated or pair in self._parted)

    def _reached(self, index: int) -> list[EtcdServer]:
        """The members that one of them reaches by the faults in force, itself included."""
        return [
            member
            for other, member in enumerate(self.members)
            if other == index or not self._are_apart(index, other)
        ]

    def _are_apart(self, one: int, other: int) -> bool:
        ways = self._pairs[one, other], self._pairs[other, one]
        return any(way.is_severed for way in ways) or all(way.is_dead for way in ways)

    def _need_pairs(self) -> None:
        if not sys.platform.startswith("linux"):
            raise NotImplementedError("telling the members apart needs Linux")
        if not self._pairs:
            raise RuntimeError("the cluster is not open: there is nothing between its members")

    def _index(self, member: int | EtcdServer) -> int:
        if isinstance(member, EtcdServer):
            if member not in self.members:
                raise ValueError(f"{member!r} is no member of this cluster")
            return self.members.index(member)
        if isinstance(member, bool) or not isinstance(member, int):
            raise TypeError(f"a member is an index or an EtcdServer, not {member!r}")
        if not 0 <= member < self._size:
            raise IndexError(f"there is no member {member}: they are 0 to {self._size - 1}")
        return member

    def _elected(self, seen: list[_Status]) -> _Status | None:
        """The member whom a majority of all members follows and reaches, itself included."""
        for status in seen:
            reached = self._reached(self._index(status.server))
            followers = [
                other
                for other in seen
                if (other.leader_id, other.raft_term) == (status.member_id, status.raft_term)
                and other.server in reached
            ]
            if status in followers and len(followers) > self._size // 2:
                return status
        return None

    async def _transfer(self, leader: EtcdServer, target: _Status) -> None:
        if target.server not in self._reached(self._index(leader)):
            raise RuntimeError(f"{target.server.name} is cut off from {leader.name}, which leads")
        body = {"targetID": str(target.member_id)}
        with contextlib.suppress(OSError, RuntimeError):  # one is gone, or does not lead any more
            await leader.gateway("maintenance/transfer-leadership", body)

    async def _ask_all(self, seen: list[_Status], limit: float, *, healths: bool = False) -> float:
        """Ask all members side by side, and put what they say into `seen`, in place of before.

        Returns:
            The limit for the next time.
        """
        answers: list[_Status] = []
        late = False

        async def ask_one(member: EtcdServer) -> None:
            nonlocal late
            with (
                contextlib.suppress(OSError, RuntimeError),  # it does not answer
                anyio.move_on_after(limit) as scope,  # its health stays unknown then
            ):
                answers.append(status := await self._ask(member))
                if healths:
                    status.is_healthy = await member.is_healthy()
            late = late or scope.cancelled_caught

        async with anyio.create_task_group() as tasks:
            for member in self.members:
                if member.is_running and not member.is_paused:
                    tasks.start_soon(ask_one, member)
        seen[:] = answers
        return limit * 2 if late else limit

    async def _ask(self, member: EtcdServer) -> _Status:
        answer = await member.gateway("maintenance/status")
        header = answer["header"]
        return _Status(
            server=member,
            member_id=int(header["member_id"]),
            leader_id=int(answer.get("leader", 0)),
            raft_term=int(header["raft_term"]),
        )

    @contextlib.contextmanager
    def _bounded(self, timeout: float, missed: str, seen: list[_Status]) -> Iterator[None]:
        """Bound a wait; its error tells what the members said last."""
        try:
            with anyio.fail_after(timeout):
                yield
        except TimeoutError:
            told = "\n".join(self._told(seen))
            raise TimeoutError(f"{missed} within {timeout:g} s:\n{told}") from None

    def _told(self, seen: list[_Status]) -> Iterator[str]:
        names = {status.member_id: status.server.name for status in seen}
        said = {status.server.name: status for status in seen}
        for member in self.members:
            status = said.get(member.name)
            if status is None:
                yield f"{member!r} does not answer; its log ends with:\n{_tail(member)}"
                continue
            leader = names.get(status.leader_id, f"{status.leader_id:x}")
            follows = f"follows {leader}" if status.leader_id else "has no leader"
            line = f"{member!r} {follows} in term {status.raft_term}"
            if status.is_healthy is not False and status.leader_id:
                yield line
            else:
                yield f"{line} and is not healthy; its log ends with:\n{_tail(member)}"


def _tail(member: EtcdServer) -> str:
    try:
        return member.log_tail()[-_LOG_TAIL:]
    except (OSError, RuntimeError):  # it was never started
        return ""
