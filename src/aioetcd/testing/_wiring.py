"""The proxies of a cluster: one before each member for clients, and one for each pair of them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import sys
from typing import TypeVar

from aioetcd.testing._process import HOST, other_end
from aioetcd.testing._separation import PeerProxy, Separation
from aioetcd.testing._sockets import Listener, bind, close_with_reset, host_and_port
from aioetcd.testing.proxy import FaultProxy
from aioetcd.testing.server import EtcdServer

_T = TypeVar("_T")


class Wiring:
    """What lies between the members and before them, and who is cut off from whom.

    Made by a cluster and closed with it. A member is told by its index in `members`, which is the
    cluster's own list.

    Args:
        members: The members; whoever is appended is to be connected.
        seed: Seeds the jitter of all proxies.

    Attributes:
        client_proxies: The proxies to clients, in the order of the members.
        pairs: The proxies from one member to another.
    """

    def __init__(self, members: list[EtcdServer], seed: int | None) -> None:
        self.client_proxies: list[FaultProxy] = []
        self.pairs: dict[tuple[int, int], PeerProxy] = {}
        self._members = members
        self._chance = random.Random(seed)
        self._fronts: list[Listener] = []
        # The endpoints of those that were removed: the next member is not to be given one of them.
        self._former: list[socket.socket] = []
        self._isolated: dict[int, Separation] = {}
        self._parted: dict[tuple[int, int], Separation] = {}

    async def connect(self) -> None:
        """Put proxies before the first member that has none, and between it and those before it."""
        index = len(self.client_proxies)
        member = self._members[index]
        proxy = FaultProxy(member.endpoint, seed=self._chance.getrandbits(32))
        self._fronts.append(self._front(member))
        self.client_proxies.append(proxy)
        for other in range(index + 1):
            for source, target in {(index, other), (other, index)}:
                # It never listens: `_front` gives it the connections that are its own.
                way = PeerProxy(self._members[target].peer_url, seed=self._chance.getrandbits(32))
                self.pairs[source, target] = way
        self._sever()  # from those that are isolated
        await proxy.start()
        self._release_former()

    def peer_url(self, index: int) -> str:
        """Where the other members dial a member."""
        scheme = self._members[index].peer_url.partition("://")[0]
        return f"{scheme}://{HOST}:{self._fronts[index].port}"

    async def disconnect(self, index: int) -> None:
        """Forget a member, with all proxies before it."""
        closed = [way for pair, way in self.pairs.items() if index in pair]
        for separation in {*self._isolated.values(), *self._parted.values()}:
            separation.release(closed)
        front, proxy = self._fronts[index], self.client_proxies[index]
        self.arrange([other for other in range(len(self._members)) if other != index])
        front.close()
        for ended in (proxy, *closed):
            await ended.aclose()
        with contextlib.suppress(OSError):  # somebody outside has taken it at once
            self._former.append(bind(*host_and_port(proxy.endpoint)))

    def arrange(self, order: list[int]) -> None:
        """Let the members be those of before in this order, and no others."""
        place = {before: index for index, before in enumerate(order)}
        self._members[:] = [self._members[index] for index in order]
        self.client_proxies[:] = [self.client_proxies[index] for index in order]
        self._fronts = [self._fronts[index] for index in order]
        self._isolated = {
            place[index]: separation
            for index, separation in self._isolated.items()
            if index in place
        }
        self._parted = _moved(self._parted, place)
        moved = _moved(self.pairs, place)
        self.pairs.clear()
        self.pairs.update(moved)

    async def aclose(self) -> None:
        """Close everything; nothing waits."""
        self.close_fronts()
        self._release_former()
        for proxy in (*self.client_proxies, *self.pairs.values()):
            await proxy.aclose()

    def _release_former(self) -> None:
        for former in self._former:
            former.close()
        self._former.clear()

    def close_fronts(self) -> None:
        """Let no member dial another any more."""
        for front in self._fronts:
            front.close()

    # -- who is cut off ------------------------------------------------------------------------

    def isolate(self, index: int) -> Separation:
        """Cut a member off from all others, where it is not yet."""
        if index not in self._isolated:
            others = [other for other in range(len(self._members)) if other != index]
            self._isolated[index] = self._separate([index], others)
            self._sever()
        return self._isolated[index]

    def partition(self, parts: list[list[int]]) -> Separation:
        """Divide the members, in place of the partition before."""
        whole = self._separate(*parts)
        group_of = {index: number for number, part in enumerate(parts) for index in part}
        before, self._parted = self._parted, {}
        for pair in self.pairs:
            if group_of[pair[0]] != group_of[pair[1]]:
                self._parted[pair] = whole
        for pair, separation in before.items():
            separation.release([self.pairs[pair]])
        self._sever()
        return whole

    def rejoin(self, indexes: list[int]) -> None:
        """Let members reach all others again that are not isolated themselves."""
        for index in indexes:
            if (isolation := self._isolated.pop(index, None)) is not None:
                isolation.release(self.pairs.values())
            for pair in [pair for pair in self._parted if index in pair]:
                self._parted.pop(pair).release([self.pairs[pair]])
        self._sever()

    def reached(self, reaching: EtcdServer) -> list[EtcdServer]:
        """The members that one of them reaches by the faults in force, itself included."""
        index = self._members.index(reaching)
        return [
            member
            for other, member in enumerate(self._members)
            if other == index or not self._are_apart(index, other)
        ]

    def _are_apart(self, one: int, other: int) -> bool:
        ways = self.pairs[one, other], self.pairs[other, one]
        return any(way.is_severed for way in ways) or all(way.is_dead for way in ways)

    def _separate(self, *groups: list[int]) -> Separation:
        group_of = {index: number for number, group in enumerate(groups) for index in group}
        return Separation(
            [[self._members[index] for index in group] for group in groups],
            [
                proxy
                for (source, target), proxy in self.pairs.items()
                if group_of[source] != group_of[target]
            ],
        )

    def _sever(self) -> None:
        for pair, proxy in self.pairs.items():
            isolated = pair[0] != pair[1] and not self._isolated.keys().isdisjoint(pair)
            proxy.sever(isolated or pair in self._parted)

    # -- who dials -----------------------------------------------------------------------------

    def _front(self, target: EtcdServer) -> Listener:
        """Listen where a member's peers dial it; each connection goes to its pair's proxy."""

        def on_connection(connection: socket.socket) -> None:
            source = self._who_dials(connection, target)
            if source is None:  # it has ended meanwhile, or is none of ours
                loop.call_soon(close_with_reset, connection)  # first it learns that it is connected
            else:
                self.pairs[source, self._members.index(target)].relay(connection)

        loop = asyncio.get_running_loop()
        return Listener(bind(HOST, 0), on_connection)

    def _who_dials(self, connection: socket.socket, target: EtcdServer) -> int | None:
        if not sys.platform.startswith("linux"):
            return self._members.index(target)  # one proxy for all of them
        if (file := other_end(connection)) is None:  # it has ended
            return None
        for others in (False, True):  # behind a script that does not exec, it is a child's
            for index, member in enumerate(self._members):
                if member._holds(file, others=others):
                    return index
        return None


def _moved(pairs: dict[tuple[int, int], _T], place: dict[int, int]) -> dict[tuple[int, int], _T]:
    """Give the pairs of those that have a place, by their places."""
    return {
        (place[source], place[target]): value
        for (source, target), value in pairs.items()
        if source in place and target in place
    }
