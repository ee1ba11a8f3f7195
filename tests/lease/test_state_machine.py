"""The rules of keeping leases alive, against a model server, in any order of what may happen."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import pytest
from hypothesis import register_random, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aioetcd._proto import rpc_pb2
from aioetcd._transport.wish import Wish
from aioetcd.errors import (
    ClientClosedError,
    LeaseExpiredError,
    LeaseLostError,
    LeaseNotFoundError,
    PermissionDeniedError,
    UnavailableError,
)
from aioetcd.lease import _state
from aioetcd.lease._state import Lane, LeaseRules
from tests.answers import received
from tests.lease.model import Kept, LeaseServer, ServerStream, requests

EXAMPLES = int(os.environ.get("AIOETCD_TEST_EXAMPLES", "300"))

# So that a failing example fails again.
register_random(_state._jitter)

# A lease whose time to live is unknown is renewed as if it were so long.
ASSUMED_TTL = 3.0
# The shortest pause between two renewals, as a part of the time to live; and the first one.
SOONEST = 0.9 / 3
SOONEST_FIRST = 0.3 / 3
# How long a stream may owe an answer: a part of what is left of the lease, at least what a slow
# link needs, and at most half of the time to live; and how long a second look takes.
SHARE = 0.6
SLOW_LINK = 0.8
SECOND_LOOK = 0.05
UNKNOWN_ID = 999


@dataclass
class Link:
    """A lane of the rules, and its stream now.

    Attributes:
        lane: The lane.
        stream: The stream; None for none.
        last_sent: When the stream renewed each lease last.
        answered_at: When the stream answered last.
        looked_at: The first tick after which the silence had lasted too long; None before it.
    """

    lane: Lane
    stream: ServerStream | None = None
    last_sent: dict[int, float] = field(default_factory=dict)
    answered_at: float = 0.0
    looked_at: float | None = None


class Machine(RuleBasedStateMachine):
    """Rules, a model server, and all that may happen between them in any order.

    There are two streams, and the second one is begun with the second lease.
    """

    def __init__(self) -> None:
        super().__init__()
        self.leases = LeaseRules(lanes=2, lane_size=1)
        self.server = LeaseServer()
        self.links = [Link(lane) for lane in self.leases.lanes]
        self.now = 1000.0
        self.ids = 0
        self.kept: list[Kept] = []
        self.gone: list[tuple[Kept, int]] = []
        # What an attentive reader of the docstring would know of each lease.
        self.ttls: dict[int, float] = {}
        self.deadlines: dict[int, float] = {}
        self.revoked: dict[int, float] = {}
        # Those whose next pause may be short: with it, leases that begin together part.
        self.fresh: set[int] = set()
        self.lanes: dict[int, Lane] = {}
        self.renewed: dict[int, float] = {}
        self.most_kept = 0
        self.ended = False

    # Who comes and goes.

    def _new_id(self) -> int:
        self.ids += 1
        return self.ids

    @initialize(ttls=st.lists(st.sampled_from([1, 2, 5, 10, 60]), max_size=3))
    def begin(self, ttls: list[int]) -> None:
        """Some leases are kept alive already."""
        for link in self.links:
            self._open(link)
        for ttl in ttls:
            self.grant(ttl, 0.1, 0.1)
            self._keep(self.ids, 0.0)

    @rule(
        ttl=st.sampled_from([1, 2, 3, 5, 10, 60]),
        on_its_way=st.sampled_from([0.0, 0.1, 1.5]),
        back=st.sampled_from([0.0, 0.1, 1.5]),
    )
    def grant(self, ttl: int, on_its_way: float, back: float) -> None:
        """A grant takes its time; meanwhile nothing else happens."""
        lease_id, sent_at = self._new_id(), self.now
        self.server.grant(lease_id, ttl, sent_at + on_its_way)
        self.now += on_its_way + back
        self.leases.granted(lease_id, ttl, sent_at, self.now)
        self.ttls[lease_id] = ttl
        self.deadlines[lease_id] = sent_at + ttl

    @rule(ttl=st.sampled_from([1, 2, 5, 30]))
    def grant_by_another_client(self, ttl: int) -> None:
        """A lease of which the rules know nothing."""
        self.server.grant(self._new_id(), ttl, self.now)

    @precondition(lambda self: self.ids and not self.ended)
    @rule(data=st.data(), fresh=st.booleans())
    def add(self, data: st.DataObject, fresh: bool) -> None:
        """Keep a lease, of whatever state; an id that was never granted too."""
        lease_id = data.draw(st.just(UNKNOWN_ID) | st.integers(1, self.ids), label="lease")
        self._keep(lease_id, self.now if fresh else 0.0)

    def _keep(self, lease_id: int, not_before: float) -> None:
        self.fresh.add(lease_id)
        if lease_id not in self._lease_ids() and self.deadlines.get(lease_id, 0.0) <= self.now:
            self._forget(lease_id)
        kept = Kept(lease_id, not_before)
        lane = self.leases.add(kept.keeper, self.now)
        assert lease_id not in self._lease_ids() or self.lanes[lease_id] is lane
        self.lanes[lease_id] = lane
        self.kept.append(kept)
        self.renewed.pop(lease_id, None)  # one is due at once
        for link in self.links:
            link.last_sent.pop(lease_id, None)

    @precondition(lambda self: self.kept)
    @rule(data=st.data(), dropped=st.booleans())
    def remove(self, data: st.DataObject, dropped: bool) -> None:
        """Stop keeping; the keeper hears of it, and of nothing any more."""
        kept = data.draw(st.sampled_from(self.kept), label="keeper")
        if dropped:
            self.leases.dropped(kept.keeper, self.now)
            self.leases.sweep()
        else:
            self.leases.remove(kept.keeper, self.now)
        self.kept.remove(kept)
        assert kept.keeper.ended
        assert not kept.errors
        self.gone.append((kept, kept.notifications))

    @precondition(lambda self: self.ids)
    @rule(data=st.data(), by_us=st.booleans())
    def revoke(self, data: st.DataObject, by_us: bool) -> None:
        """Revoke a lease, here or elsewhere."""
        lease_id = data.draw(st.integers(1, self.ids), label="lease")
        self.server.revoke(lease_id)
        self.revoked[lease_id] = self.now
        if by_us:
            keepers = [kept for kept in self.kept if kept.keeper.lease_id == lease_id]
            self.leases.revoked(lease_id)
            for kept in keepers:
                assert isinstance(kept.keeper.error, LeaseLostError)
                assert kept.keeper.error.reason == "revoked"
            self._settle()
            self._forget(lease_id)

    @precondition(lambda self: self.ids)
    @rule(data=st.data(), ttl=st.sampled_from([1, 2, 5, 30]))
    def grant_again(self, data: st.DataObject, ttl: int) -> None:
        """Somebody else ends a lease, and grants the same id for another time."""
        lease_id = data.draw(st.integers(1, self.ids), label="lease")
        self.server.revoke(lease_id)
        self.revoked[lease_id] = self.now
        self.server.grant(lease_id, ttl, self.now)

    # The stream.

    def _link(self, data: st.DataObject, *, is_open: bool) -> Link:
        links = [link for link in self.links if (link.stream is not None) == is_open]
        return data.draw(st.sampled_from(links), label="link")

    @precondition(lambda self: any(link.stream is None for link in self.links))
    @rule(data=st.data())
    def open(self, data: st.DataObject) -> None:
        """A stream opens: what is overdue goes out, the most urgent first."""
        self._open(self._link(data, is_open=False))

    def _open(self, link: Link) -> None:
        link.stream = ServerStream(self.server)
        link.answered_at, link.looked_at = 0.0, None
        link.lane.opened("e", self.now)
        link.last_sent.clear()
        sent = self._send(link)
        assert sorted(sent, key=lambda i: self.deadlines.get(i, 0.0)) == sent

    @precondition(lambda self: any(link.stream is not None for link in self.links))
    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        """A writer has its turn."""
        self._send(self._link(data, is_open=True))

    def _send(self, link: Link) -> list[int]:
        assert link.stream is not None
        sent = []
        for request in requests(link.lane, self.now):
            lease_id = request.ID
            assert lease_id in {kept.keeper.lease_id for kept in self.kept}
            assert self.lanes[lease_id] is link.lane
            assert self.deadlines.get(lease_id, self.now + 1) > self.now
            if lease_id in link.last_sent:
                pause = self.now - link.last_sent[lease_id]
                soonest = SOONEST_FIRST if lease_id in self.fresh else SOONEST
                assert pause >= self.ttls.get(lease_id, ASSUMED_TTL) * soonest - 1e-6
                self.fresh.discard(lease_id)
            link.last_sent[lease_id] = self.renewed[lease_id] = self.now
            link.stream.requests.append((lease_id, self.now))
            sent.append(lease_id)
        self._settle()
        return sent

    @precondition(lambda self: any(link.stream is not None for link in self.links))
    @rule(data=st.data(), count=st.integers(1, 3))
    def serve(self, data: st.DataObject, count: int) -> None:
        """The server answers the oldest requests of a stream."""
        self._serve(self._link(data, is_open=True), count)

    def _serve(self, link: Link, count: int) -> None:
        assert link.stream is not None
        for _ in range(min(count, len(link.stream.requests))):
            link.stream.serve(self.now)

    @precondition(lambda self: any(link.stream is not None for link in self.links))
    @rule(data=st.data(), count=st.integers(1, 3))
    def receive(self, data: st.DataObject, count: int) -> None:
        """The oldest answers of a stream arrive."""
        self._take(self._link(data, is_open=True), count)

    def _take(self, link: Link, count: int) -> None:
        assert link.stream is not None
        for _ in range(min(count, len(link.stream.answers))):
            self._receive(link, *link.stream.answers.popleft())

    def _receive(
        self, link: Link, response: rpc_pb2.LeaseKeepAliveResponse, sent_at: float
    ) -> None:
        lease_id, ttl = response.ID, response.TTL
        known = self.deadlines.get(lease_id)
        keepers = [kept for kept in self.kept if kept.keeper.lease_id == lease_id]
        before = [len(kept.ttls) for kept in keepers]
        received(link.lane, response, self.now)
        link.answered_at, link.looked_at = self.now, None
        told = [len(kept.ttls) > count for kept, count in zip(keepers, before, strict=True)]
        if known is not None and known <= self.now:
            assert not any(told)
        elif keepers and self.lanes[lease_id] is not link.lane:
            assert not any(told)
            assert not any(kept.keeper.ended for kept in keepers)
        elif ttl <= 0:
            for kept in keepers:
                if known is None:
                    assert isinstance(kept.keeper.error, LeaseNotFoundError)
                else:
                    assert isinstance(kept.keeper.error, LeaseLostError)
                    assert kept.keeper.error.reason == "revoked"
        elif sent_at + ttl <= self.now:
            assert known is not None or not any(told)
        elif keepers:
            assert told == [sent_at >= kept.keeper.not_before for kept in keepers]
            if known is None:
                self.fresh.add(lease_id)
            self.ttls[lease_id] = ttl
            self.deadlines[lease_id] = sent_at + ttl
            if sent_at > self.revoked.get(lease_id, sent_at):
                del self.revoked[lease_id]  # it was granted again, and this was asked after that
        self._settle()

    @precondition(lambda self: any(link.stream is not None for link in self.links))
    @rule(
        data=st.data(),
        served=st.integers(0, 3),
        back_after=st.sampled_from([None, 0.0, 0.5]),
    )
    def cut(self, data: st.DataObject, served: int, back_after: float | None) -> None:
        """A stream breaks; some requests on their way still reach the server."""
        link = self._link(data, is_open=True)
        self._serve(link, served)
        link.stream = None
        link.lane.lost(UnavailableError("cut"), final=False, now=self.now)
        if back_after is not None:
            self._pass(back_after)
            self._open(link)

    # The time.

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.3, 0.5, 1.0, 2.0, 7.0]))
    def tick(self, seconds: float) -> None:
        """Time passes, and the rules are told."""
        self._pass(seconds)
        self._tick()
        deadlines = [self.deadlines[i] for i in self._lease_ids() if i in self.deadlines]
        for link in self.links:
            at = link.lane.next_tick()
            if deadlines:
                assert at is not None
                assert self.now < at <= min(deadlines)
            assert at is None or at > self.now
            too_long_at = self._too_long_at(link)
            if too_long_at is not None and link.looked_at is not None:
                too_long_at = link.looked_at + SECOND_LOOK
            if too_long_at is not None and too_long_at > self.now:
                assert at is not None
                assert at <= too_long_at

    def _tick(self) -> None:
        """Time has passed; a stream is silent for too long when that is seen twice."""
        for link in self.links:
            too_silent = link.lane.tick(self.now) is Wish.ELSEWHERE
            self._settle()
            too_long_at = self._too_long_at(link)
            if link.stream is None:
                continue
            if too_long_at is None or self.now < too_long_at:
                link.looked_at = None
                assert not too_silent
            elif link.looked_at is None:
                link.looked_at = self.now
                assert not too_silent
            else:
                assert too_silent == (self.now >= link.looked_at + SECOND_LOOK)

    def _too_long_at(self, link: Link) -> float | None:
        """When some lease cannot wait any longer for the answer that a stream owes it."""
        times = []
        owed: dict[int, float] = {}
        if link.stream is not None:
            waiting = [(response.ID, sent_at) for response, sent_at in link.stream.answers]
            for lease_id, sent_at in (*waiting, *link.stream.requests):
                owed.setdefault(lease_id, sent_at)
        for lease_id, sent_at in owed.items():
            if lease_id not in link.lane.kept:
                continue
            since = max(sent_at, link.answered_at)
            half = self.ttls.get(lease_id, ASSUMED_TTL) / 2
            deadline = self.deadlines.get(lease_id)
            if deadline is None:
                times.append(since + half)
            else:
                times.append(since + min(half, max(SLOW_LINK, SHARE * (deadline - since))))
        return min(times, default=None)

    @precondition(lambda self: any(link.stream is not None for link in self.links))
    @rule(ticks=st.integers(1, 6), answering=st.booleans())
    def go_on(self, ticks: int, answering: bool) -> None:
        """The streams' owners do what the rules want, when they want it."""
        links = [link for link in self.links if link.stream is not None]
        for _ in range(ticks):
            ticks_at = [link.lane.next_tick() for link in links if link.lane.wanted]
            times = [at for at in ticks_at if at is not None]
            if not times:
                return
            self._pass(max(0.0, min(times) - self.now))
            self._tick()
            for link in links:
                self._send(link)
                self._assert_all_in_time(link)
                if answering:
                    self._serve(link, 3)
                    self._take(link, 3)

    def _assert_all_in_time(self, link: Link) -> None:
        """Each lease that is kept here was renewed within the last third of its time."""
        for lease_id in link.lane.kept:
            ago = self.now - self.renewed[lease_id]
            assert ago <= self.ttls.get(lease_id, ASSUMED_TTL) / 3 + 1e-6

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0, 100.0]))
    def jump(self, seconds: float) -> None:
        """Time passes while the loop is blocked."""
        self._pass(seconds)

    def _pass(self, seconds: float) -> None:
        self.now += seconds
        self.server.expire(self.now)

    @precondition(lambda self: self.ids > 3 and not self.ended)
    @rule(refused=st.sampled_from([None, 0, 1]))
    def end(self, refused: int | None) -> None:
        """The client closes, or a stream is refused for good: everybody concerned is told.

        A refusal concerns those whose deadline is unknown.
        """
        if refused is None:
            self.ended = True
            concerned = list(self.kept)
            self.leases.close(ClientClosedError("closed"))
        else:
            link = self.links[refused]
            concerned = [
                kept
                for kept in self.kept
                if self._lane_of(kept) is link.lane and kept.keeper.lease_id not in self.deadlines
            ]
            link.stream = None
            link.lane.lost(PermissionDeniedError("no"), final=True, now=self.now)
        told = [kept for kept in self.kept if kept.keeper.error is not None]
        assert told == concerned
        self._settle()

    # What always holds.

    def _lane_of(self, kept: Kept) -> Lane:
        return self.lanes[kept.keeper.lease_id]

    def _lease_ids(self) -> set[int]:
        return {kept.keeper.lease_id for kept in self.kept}

    def _settle(self) -> None:
        """Take away the keepers that have ended, and look at why."""
        lost = set()
        for kept in [kept for kept in self.kept if kept.keeper.ended]:
            self.kept.remove(kept)
            lease_id, error = kept.keeper.lease_id, kept.keeper.error
            assert error is not None
            if isinstance(error, LeaseExpiredError):
                assert self.deadlines[lease_id] <= self.now
            elif isinstance(error, LeaseLostError):
                assert lease_id in self.revoked or lease_id not in self.server.leases
            self.gone.append((kept, kept.notifications))
            lost.add(lease_id)
        for lease_id in lost:
            self._forget(lease_id)

    def _forget(self, lease_id: int) -> None:
        self.deadlines.pop(lease_id, None)
        self.ttls.pop(lease_id, None)

    @invariant()
    def the_deadline_is_never_too_late(self) -> None:
        """The server keeps a lease, unless somebody revokes it, for as long as the rules say."""
        for lease_id in self._lease_ids():
            deadline = self.leases.deadline(lease_id)
            if deadline is None or deadline <= self.now or lease_id in self.revoked:
                continue
            assert deadline <= self.server.leases[lease_id].expires_at

    @invariant()
    def the_deadline_is_what_the_answers_promised(self) -> None:
        """No promise is forgotten while the lease is kept."""
        for lease_id in self._lease_ids():
            assert self.leases.deadline(lease_id) == self.deadlines.get(lease_id)

    @invariant()
    def everybody_is_told_once(self) -> None:
        """A keeper hears of one loss at the most, and of nothing after its end."""
        for kept in self.kept:
            assert not kept.errors
            assert not kept.keeper.ended
        for kept, notifications in self.gone:
            assert kept.notifications == notifications
            assert len(kept.errors) <= 1

    @invariant()
    def a_stream_is_wanted_while_somebody_keeps_a_lease(self) -> None:
        """Nothing kept on a stream means that it is not wanted."""
        for lane in self.leases.lanes:
            assert lane.wanted == (lane in {self._lane_of(kept) for kept in self.kept})
        assert len(self.leases) == len(self._lease_ids())
        deadlines = [self.deadlines[i] for i in self._lease_ids() if i in self.deadlines]
        assert self.leases.soonest() == min(deadlines, default=None)

    @invariant()
    def memory_is_bounded(self) -> None:
        """Nothing grows beyond the number of leases."""
        self.most_kept = max(self.most_kept, len(self._lease_ids()))
        for lane in self.leases.lanes:
            assert sum(map(len, lane._due.values())) == lane._entries <= 64 + 3 * self.most_kept
            assert sorted(lane._due) == sorted(lane._times)
            assert len(lane._times) <= 64 + 3 * self.most_kept
        assert len(self.leases._deadlines) <= 64 + 3 * self.most_kept
        assert len(self.leases._known) <= 64 + self.ids


TestInterleavings = pytest.mark.timeout(600)(Machine.TestCase)  # to find the shortest example
TestInterleavings.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=20, print_blob=True
)
