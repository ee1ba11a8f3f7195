"""Members that are cut off from one another, and the proof that it was so."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from aioetcd.testing._link import Direction, Link
from aioetcd.testing.proxy import FaultProxy

if TYPE_CHECKING:
    from aioetcd.testing.server import EtcdServer

_BOTH = frozenset(Direction)
_BUFFER = 16 * 1024 * 1024


class _PeerLink(Link):
    """A link that swallows what its proxy was told to, and everything while it is severed."""

    severed: bool = False
    _by_hand: frozenset[Direction] = frozenset()

    @property
    def swallowed(self) -> frozenset[Direction]:
        """The directions in which nothing passes."""
        return _BOTH if self.severed else self._by_hand

    @swallowed.setter
    def swallowed(self, directions: frozenset[Direction]) -> None:
        self._by_hand = directions


class PeerProxy(FaultProxy):
    """The proxy on the way between two members; what it is told and a separation do not mix.

    `blackhole` and `heal` are about the faults set by hand: neither ends a separation, whose end
    leaves them as they are.
    """

    def __init__(self, target: str, *, seed: int) -> None:
        super().__init__(target, seed=seed)
        self._link: _PeerLink = _PeerLink(random.Random(seed), _BUFFER)

    def sever(self, severed: bool) -> None:
        """Begin or end to swallow everything, whatever else the proxy was told."""
        if severed != self._link.severed:
            self._link.severed = severed
            self._link.reset_holes()
            self._link.faults_changed()

    @property
    def is_severed(self) -> bool:
        """Whether a separation goes through here."""
        return self._link.severed

    @property
    def is_dead(self) -> bool:
        """Whether nothing passes, for whatever reason."""
        return self._link.hanging or self._link.swallowed == _BOTH


class Separation:
    """What `EtcdCluster.isolate` or `EtcdCluster.partition` did, and how much it swallowed.

    Attributes:
        groups: The groups that do not reach one another. Of an isolation they are the isolated
            member and the others.
    """

    def __init__(
        self, groups: Sequence[Sequence[EtcdServer]], proxies: Iterable[PeerProxy]
    ) -> None:
        self.groups = tuple(tuple(group) for group in groups)
        self._began = {proxy: proxy.bytes_swallowed for proxy in proxies}
        self._ended = 0

    @property
    def member(self) -> EtcdServer:
        """The first one: of an isolation, the member that is isolated."""
        return self.groups[0][0]

    @property
    def bytes_swallowed(self) -> int:
        """Bytes between the groups that did not arrive, until now or until its end.

        While it is 0, nobody has missed anything: wait for it, to know that the fault took place.
        """
        return self._ended + sum(
            proxy.bytes_swallowed - began for proxy, began in self._began.items()
        )

    def release(self, proxies: Iterable[PeerProxy]) -> None:
        """Count no longer what these swallow: they are open again."""
        for proxy in proxies:
            if (began := self._began.pop(proxy, None)) is not None:
                self._ended += proxy.bytes_swallowed - began
