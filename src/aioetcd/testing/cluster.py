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

import contextlib
import sys
from collections.abc import Iterable
from functools import partial
from types import TracebackType
from typing import Literal, Self

import anyio

from aioetcd.config.tls import TLS
from aioetcd.testing import _membership
from aioetcd.testing._args import check_args
from aioetcd.testing._binary import ask
from aioetcd.testing._certificates import Authority
from aioetcd.testing._separation import Separation
from aioetcd.testing._survey import Status, Survey
from aioetcd.testing._wiring import Wiring
from aioetcd.testing.proxy import FaultProxy
from aioetcd.testing.server import AddressInUseError, EtcdServer

__all__ = ["EtcdCluster"]

_POLL = 0.02
_START_ATTEMPTS = 3


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
        args: More arguments for every member, as for `EtcdServer`. With ``--client-cert-auth``
            there, `leader`, `move_leader` and `wait_healthy` do not work.
        quick: Elections within a quarter of a second, and leases from 1 s on. A busy machine may
            see an election that nobody asked for.
        seed: Seeds the jitter of all proxies, so that a run can be repeated.
        tls: Serve clients (not peers) by TLS, as `EtcdServer` does; one authority signs for all.
        auth: The user root and its password, made when the cluster is healthy, as `EtcdServer`
            does.

    Raises:
        ValueError: ``size`` is less than 1, ``args`` has a flag that is decided here, or ``auth``
            names another user than root.
        TypeError: ``args`` is a string, not a list of them.
        EtcdNotFoundError: There is no such program.
        ModuleNotFoundError: ``tls`` needs `trustme`, and there is none.

    Attributes:
        members: The members, in the order of their coming; what an index is about.
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
        tls: bool | Literal["mutual"] = False,
        auth: tuple[str, str] | None = None,
    ) -> None:
        if size < 1:
            raise ValueError("size must be at least 1")
        self._size = size
        self._binary = binary
        self._args = check_args(args, tls=bool(tls))
        self._tls = tls
        self._auth = auth
        self._authority = Authority() if tls else None
        self._changing = anyio.Lock()  # one change of the members at a time
        self._learners: set[EtcdServer] = set()
        self._quick = quick
        self._seed = seed
        self._stack = contextlib.AsyncExitStack()
        self.members: list[EtcdServer] = self._new_members()
        self._wire()

    # -- life ----------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Start all members, and wait until they are healthy and agree on a leader."""
        for attempt in range(1, _START_ATTEMPTS + 1):
            try:
                await self._start()
                await self.wait_healthy()
                await self._enable_auth()
                break
            except AddressInUseError:
                await self._clear()
                if attempt == _START_ATTEMPTS:
                    raise
                self.members[:] = self._new_members()
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

    @property
    def tls(self) -> TLS | None:
        """What a client needs for TLS with every member, not as paths; None without ``tls=``."""
        if self._authority is None:
            return None
        signed = self._authority
        if self._tls == "mutual":
            return TLS(ca=signed.ca, cert=signed.client_cert, key=signed.client_key)
        return TLS(ca=signed.ca)

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

    async def leader(self, *, timeout: float = 20.0) -> EtcdServer:
        """Wait until a majority of all members follows a leader that it reaches, and give that.

        A member that was isolated may still think that it leads, and so may those who followed it:
        it is not the one.

        Raises:
            TimeoutError: There was none in ``timeout`` seconds. It says what each member said, and
                how the logs of those end that did not answer.
        """
        survey = Survey(self.members, self._ask)
        with survey.bounded(timeout, "no leader that a majority follows"):
            while True:
                await survey.ask()
                if (found := self._elected(survey.seen)) is not None:
                    return found.server
                await anyio.sleep(_POLL)

    async def move_leader(self, to: int | EtcdServer, *, timeout: float = 20.0) -> None:
        """Let a member become the leader, and wait until a majority follows it.

        Does nothing where it leads already. Asks again where an election came in between.

        Raises:
            TimeoutError: It did not lead within ``timeout`` seconds.
            RuntimeError: It is cut off from the leader, or from every majority, or a learner.
            IndexError: There is no such member.
            ValueError: The server is no member of this cluster.
        """
        target = self.members[self._index(to)]
        if target in self._learners:
            raise RuntimeError(f"{target.name} is a learner: it cannot lead")
        survey = Survey(self.members, self._ask)
        with survey.bounded(timeout, f"{target.name} does not lead"):
            while True:
                if not self._is_majority(self._wiring.reached(target)):
                    raise RuntimeError(f"{target.name} is cut off from a majority: it cannot lead")
                await survey.ask()
                elected = self._elected(survey.seen)
                if elected is not None and elected.server is target:
                    return
                asked = next((status for status in survey.seen if status.server is target), None)
                if elected is not None and asked is not None:
                    await self._transfer(elected.server, asked)
                await anyio.sleep(_POLL)

    async def wait_healthy(self, *, timeout: float = 20.0) -> None:
        """Wait until every member serves requests and all follow the same leader.

        Raises:
            TimeoutError: That was not so within ``timeout`` seconds. It says what each member said,
                and how the logs of those end that were not healthy.
        """
        survey = Survey(self.members, self._ask)
        with survey.bounded(timeout, "not all members are healthy"):
            while True:
                await survey.ask(healths=True)
                agreed = len({(status.leader_id, status.raft_term) for status in survey.seen}) == 1
                found = self._elected(survey.seen)
                if len(survey.seen) == len(self.members) and agreed and found is not None:
                    whole = len(self._wiring.reached(found.server)) == len(self.members)
                    if whole and all(status.is_healthy for status in survey.seen):
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
        if len(self.members) == 1:
            raise ValueError("the only member has no others to be cut off from")
        return self._wiring.isolate(index)

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
        if len(parts) < 2 or [] in parts or named != list(range(len(self.members))):
            raise ValueError(
                f"each of the members 0 to {len(self.members) - 1} must be in one of at least two "
                f"groups: {parts}"
            )
        return self._wiring.partition(parts)

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
        every = range(len(self.members))
        self._wiring.rejoin(list(every) if member is None else [self._index(member)])

    # -- who is a member -------------------------------------------------------------------------

    async def add(self, *, learner: bool = False, timeout: float = 30.0) -> EtcdServer:
        """Add a member, start it, and wait until it serves what the others have.

        It is the last of `members`, with proxies as the others have them; a partition in force does
        not know it. etcd wants all members to run and to have been connected for five seconds, and
        is asked until it takes the change. Where ``--strict-reconfig-check=false`` lifts that, a
        member that is isolated or paused still keeps the new one waiting at its start.

        Args:
            learner: It gets everything, and has no vote before `promote`.
            timeout: Seconds for all of it.

        Raises:
            TimeoutError: etcd did not take it in time; it says why.
            EtcdStartError: It did not start; the cluster counts it as a member nevertheless.
            RuntimeError: etcd refused it for good, or the cluster is not open.

        Example:
            learner = await cluster.add(learner=True)
            await cluster.promote(learner)
        """
        async with self._changing:
            return await self._add(learner, timeout)

    async def remove(self, member: int | EtcdServer, *, timeout: float = 30.0) -> None:
        """Remove a member by asking another, end its process, and wait for a leader of the rest.

        Its data and its proxies are gone, and the members behind it move up by one.

        Args:
            member: Which; it need not run.
            timeout: Seconds for all of it.

        Raises:
            TimeoutError: etcd did not take it in time; it says why.
            IndexError: There is no such member.
            ValueError: The server is no member of this cluster, or the only one with a vote.
            RuntimeError: etcd refused it for good, or the cluster is not open.

        Example:
            await cluster.remove(await cluster.leader())
        """
        async with self._changing:
            await self._remove(member, timeout)

    async def promote(self, member: int | EtcdServer, *, timeout: float = 30.0) -> None:
        """Give a learner a vote, once it has what the leader has.

        Raises:
            TimeoutError: etcd did not take it in ``timeout`` seconds; it says why.
            IndexError: There is no such member.
            ValueError: The server is no member of this cluster, or no learner.
            RuntimeError: etcd refused it for good.

        Example:
            await cluster.promote(await cluster.add(learner=True))
        """
        async with self._changing:
            learner = self.members[self._index(member)]
            if learner not in self._learners:
                raise ValueError(f"{learner!r} is no learner")
            url = self._wiring.peer_url(self._index(learner))
            await _membership.promote(self._asked, url, timeout=timeout)
            self._learners.discard(learner)
            learner._signs_in_at = None

    async def replace(self, member: int | EtcdServer, *, timeout: float = 60.0) -> EtcdServer:
        """Remove a member, and add a new one without data in its place.

        The new one has another name, other ports and another endpoint; its index is that of before.

        Raises:
            TimeoutError: etcd did not take a step in half of ``timeout`` seconds; it says why.
            IndexError: There is no such member.
            ValueError: The server is no member of this cluster, or the only one with a vote.
            RuntimeError: etcd refused it for good, or the cluster is not open.

        Example:
            await cluster.members[1].kill()
            await cluster.replace(1)
        """
        async with self._changing:
            index = self._index(member)
            await self._remove(index, timeout / 2)
            added = await self._add(False, timeout / 2)
            *before, last = range(len(self.members))
            self._wiring.arrange([*before[:index], last, *before[index:]])
            return added

    async def roll(self, *, timeout: float = 30.0) -> None:
        """Restart all members, one after the other, each once all are healthy again.

        Args:
            timeout: Seconds for each.

        Raises:
            TimeoutError: After a restart not all members were healthy in time.
            EtcdStartError: One did not start.

        Example:
            await cluster.roll()
        """
        async with self._changing:
            for member in list(self.members):
                await member.restart(timeout=timeout)
                await self.wait_healthy(timeout=timeout)

    # -- inside --------------------------------------------------------------------------------

    def _new_members(self) -> list[EtcdServer]:
        self._named = 0
        return [self._new_member() for _ in range(self._size)]

    def _new_member(self) -> EtcdServer:
        member = EtcdServer(
            self._binary,
            name=f"member{self._named}",
            args=self._args,
            quick=self._quick,
            tls=self._tls,
            auth=self._auth,
        )
        member._authority = self._authority  # one for all: a client has one `tls`
        self._named += 1
        return member

    def _wire(self) -> None:
        """Begin without proxies; those of before are closed."""
        self._wiring = Wiring(self.members, self._seed)
        self._pairs = self._wiring.pairs
        self.client_proxies: list[FaultProxy] = self._wiring.client_proxies

    async def _start(self) -> None:
        await ask(self.members[0].binary, "--help")  # once, rather than by each member at a time
        self._stack.push_async_callback(self._wiring.aclose)
        for _ in self.members:
            await self._wiring.connect()
        urls = [self._wiring.peer_url(index) for index in range(self._size)]
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
            for index, member in enumerate(self.members):
                self._join(index, f"--initial-cluster={cluster}")
                member.args.append(f"--initial-cluster-token={urls[0]}")
                tasks.start_soon(start, member)
        if errors:
            raise errors[0]

    async def _enable_auth(self) -> None:
        while True:
            try:
                return await self.members[0]._enable_auth()
            except RuntimeError as refused:
                if not _membership.is_not_yet(refused):  # else there is an election
                    raise
            await anyio.sleep(_POLL)

    def _join(self, index: int, *args: str) -> None:
        """Tell a member its place before its start, and end it with the cluster."""
        member = self.members[index]
        scheme = member.client_url.partition("://")[0]
        member.args += [
            f"--initial-advertise-peer-urls={self._wiring.peer_url(index)}",
            f"--advertise-client-urls={scheme}://{self.client_proxies[index].endpoint}",
            *args,
        ]
        self._stack.push_async_callback(member.aclose)
        self._stack.push_async_callback(member.kill)  # comes first: the data is not kept

    async def _clear(self) -> None:
        with anyio.CancelScope(shield=True):
            self._wiring.close_fronts()
            await self._stack.aclose()
        self._learners.clear()
        self._wire()

    async def _add(self, learner: bool, timeout: float) -> EtcdServer:
        self._need_open()
        deadline = anyio.current_time() + timeout
        member, index = self._new_member(), len(self.members)
        self.members.append(member)
        if learner:
            self._learners.add(member)
            member._signs_in_at = lambda: next(iter(self._voters(but=member)), member)
        try:
            await self._wiring.connect()
            others, url = partial(self._asked, but=member), self._wiring.peer_url(index)
            listed = await _membership.add(others, url, learner=learner, timeout=timeout)
            known = _membership.initial_cluster(listed, url, member.name)
            self._join(index, f"--initial-cluster={known}", "--initial-cluster-state=existing")
            await member.start(timeout=deadline - anyio.current_time())
        except BaseException:
            await self._drop(member)
            raise
        return member

    async def _remove(self, which: int | EtcdServer, timeout: float) -> None:
        self._need_open()
        index = self._index(which)
        member = self.members[index]
        if {*self.members} - self._learners == {member}:
            raise ValueError(f"{member!r} is the only one with a vote: nobody else could remove it")
        deadline = anyio.current_time() + timeout
        others, url = partial(self._asked, but=member), self._wiring.peer_url(index)
        await _membership.remove(others, url, timeout=timeout)
        await self._drop(member)
        await self.leader(timeout=deadline - anyio.current_time())

    async def _drop(self, member: EtcdServer) -> None:
        self._learners.discard(member)
        await self._wiring.disconnect(self._index(member))
        await member.aclose()

    async def _ask(self, member: EtcdServer) -> Status:
        answer = await member.gateway("maintenance/status")
        header = answer["header"]
        return Status(
            server=member,
            member_id=int(header["member_id"]),
            leader_id=int(answer.get("leader", 0)),
            raft_term=int(header["raft_term"]),
        )

    def _voters(self, *, but: EtcdServer | None = None) -> list[EtcdServer]:
        """Those with a vote that may answer."""
        return [
            member
            for member in self.members
            if member.is_running and not member.is_paused
            if member not in self._learners and member is not but
        ]

    async def _asked(self, *, but: EtcdServer | None = None) -> list[EtcdServer]:
        """Whom to ask for a change: first the leader, who is cut off from nobody that matters."""
        survey = Survey(self.members, self._ask)
        await survey.ask()
        leader = self._elected(survey.seen)
        return sorted(self._voters(but=but), key=lambda one: leader is None or one != leader.server)

    def _need_pairs(self) -> None:
        if not sys.platform.startswith("linux"):
            raise NotImplementedError("telling the members apart needs Linux")
        self._need_open()

    def _need_open(self) -> None:
        if not self._pairs:
            raise RuntimeError("the cluster is not open: there is nothing between its members")

    def _index(self, member: int | EtcdServer) -> int:
        if isinstance(member, EtcdServer):
            if member not in self.members:
                raise ValueError(f"{member!r} is no member of this cluster")
            return self.members.index(member)
        if isinstance(member, bool) or not isinstance(member, int):
            raise TypeError(f"a member is an index or an EtcdServer, not {member!r}")
        if not 0 <= member < len(self.members):
            raise IndexError(f"there is no member {member}: they are 0 to {len(self.members) - 1}")
        return member

    def _is_majority(self, members: Iterable[EtcdServer]) -> bool:
        """Whether these are more than half of those who have a vote."""
        voters = [member for member in self.members if member not in self._learners]
        return len(set(members).intersection(voters)) > len(voters) // 2

    def _elected(self, seen: list[Status]) -> Status | None:
        """The member whom a majority of all members follows and reaches, itself included."""
        for status in seen:
            reached = self._wiring.reached(status.server)
            followers = [
                other.server
                for other in seen
                if (other.leader_id, other.raft_term) == (status.member_id, status.raft_term)
                and other.server in reached
            ]
            if status.server in followers and self._is_majority(followers):
                return status
        return None

    async def _transfer(self, leader: EtcdServer, target: Status) -> None:
        if target.server not in self._wiring.reached(leader):
            raise RuntimeError(f"{target.server.name} is cut off from {leader.name}, which leads")
        body = {"targetID": str(target.member_id)}
        with contextlib.suppress(OSError, RuntimeError):  # one is gone, or does not lead any more
            await leader.gateway("maintenance/transfer-leadership", body)
