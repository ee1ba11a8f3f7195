"""The rules of keeping leases alive, against a model server, in any order of what may happen."""

from __future__ import annotations

import os

import pytest
from hypothesis import register_random, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aioetcd._proto import rpc_pb2
from aioetcd.errors import (
    ClientClosedError,
    LeaseExpiredError,
    LeaseLostError,
    LeaseNotFoundError,
    PermissionDeniedError,
    UnavailableError,
)
from aioetcd.lease import _state
from aioetcd.lease._state import LeaseRules
from tests.lease.model import Kept, LeaseServer, ServerStream, requests

EXAMPLES = int(os.environ.get("AIOETCD_TEST_EXAMPLES", "2000"))

# So that a failing example fails again.
register_random(_state._jitter)

# A lease whose time to live is unknown is renewed as if it were so long.
ASSUMED_TTL = 3.0
# The shortest pause between two renewals, as a part of the time to live.
SOONEST = 0.9 / 3
UNKNOWN_ID = 999


class Machine(RuleBasedStateMachine):
    """Rules, a model server, and all that may happen between them in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.leases = LeaseRules()
        self.server = LeaseServer()
        self.stream: ServerStream | None = None
        self.now = 1000.0
        self.ids = 0
        self.kept: list[Kept] = []
        self.gone: list[tuple[Kept, int]] = []
        # What an attentive reader of the docstring would know of each lease.
        self.ttls: dict[int, float] = {}
        self.deadlines: dict[int, float] = {}
        self.revoked: set[int] = set()
        self.last_sent: dict[int, float] = {}
        self.most_kept = 0
        self.ended = False

    # Who comes and goes.

    def _new_id(self) -> int:
        self.ids += 1
        return self.ids

    @initialize(ttls=st.lists(st.sampled_from([1, 2, 5, 10, 60]), max_size=3))
    def begin(self, ttls: list[int]) -> None:
        """Some leases are kept alive already."""
        self.stream = ServerStream(self.server)
        self.leases.opened("e", self.now)
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
        if lease_id not in self._lease_ids() and self.deadlines.get(lease_id, 0.0) <= self.now:
            self._forget(lease_id)
        kept = Kept(lease_id, not_before)
        self.leases.add(kept.keeper, self.now)
        self.kept.append(kept)
        self.last_sent.pop(lease_id, None)

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        """Stop keeping; the keeper hears of it, and of nothing any more."""
        kept = data.draw(st.sampled_from(self.kept), label="keeper")
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
        self.revoked.add(lease_id)
        if by_us:
            keepers = [kept for kept in self.kept if kept.keeper.lease_id == lease_id]
            self.leases.revoked(lease_id)
            for kept in keepers:
                assert isinstance(kept.keeper.error, LeaseLostError)
                assert kept.keeper.error.reason == "revoked"
            self._settle()
            self._forget(lease_id)

    # The stream.

    @precondition(lambda self: self.stream is None)
    @rule()
    def open(self) -> None:
        """A stream opens: what is overdue goes out, the most urgent first."""
        self.stream = ServerStream(self.server)
        self.leases.opened("e", self.now)
        self.last_sent.clear()
        sent = self._send()
        assert sorted(sent, key=lambda i: self.deadlines.get(i, 0.0)) == sent

    @precondition(lambda self: self.stream is not None)
    @rule()
    def send(self) -> None:
        """The writer has its turn."""
        self._send()

    def _send(self) -> list[int]:
        assert self.stream is not None
        sent = []
        for request in requests(self.leases, self.now):
            lease_id = request.ID
            assert lease_id in {kept.keeper.lease_id for kept in self.kept}
            assert self.deadlines.get(lease_id, self.now + 1) > self.now
            if lease_id in self.last_sent:
                pause = self.now - self.last_sent[lease_id]
                assert pause >= self.ttls.get(lease_id, ASSUMED_TTL) * SOONEST - 1e-6
            self.last_sent[lease_id] = self.now
            self.stream.requests.append((lease_id, self.now))
            sent.append(lease_id)
        self._settle()
        return sent

    @precondition(lambda self: self.stream is not None and self.stream.requests)
    @rule(count=st.integers(1, 3))
    def serve(self, count: int) -> None:
        """The server answers the oldest requests."""
        assert self.stream is not None
        for _ in range(min(count, len(self.stream.requests))):
            self.stream.serve(self.now)

    @precondition(lambda self: self.stream is not None and self.stream.answers)
    @rule(count=st.integers(1, 3))
    def receive(self, count: int) -> None:
        """The oldest answers arrive."""
        assert self.stream is not None
        for _ in range(min(count, len(self.stream.answers))):
            self._receive(*self.stream.answers.popleft())

    def _receive(self, response: rpc_pb2.LeaseKeepAliveResponse, sent_at: float) -> None:
        lease_id, ttl = response.ID, response.TTL
        known = self.deadlines.get(lease_id)
        keepers = [kept for kept in self.kept if kept.keeper.lease_id == lease_id]
        before = [len(kept.ttls) for kept in keepers]
        self.leases.received(response, self.now)
        told = [len(kept.ttls) > count for kept, count in zip(keepers, before, strict=True)]
        if known is not None and known <= self.now:
            assert not any(told)
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
            self.ttls[lease_id] = ttl
            self.deadlines[lease_id] = max(known or 0.0, sent_at + ttl)
        self._settle()

    @precondition(lambda self: self.stream is not None)
    @rule(served=st.integers(0, 3), back_after=st.sampled_from([None, 0.0, 0.5]))
    def cut(self, served: int, back_after: float | None) -> None:
        """The stream breaks; some requests on their way still reach the server."""
        assert self.stream is not None
        for _ in range(min(served, len(self.stream.requests))):
            self.stream.serve(self.now)
        self.stream = None
        self.leases.lost(UnavailableError("cut"), final=False, now=self.now)
        if back_after is not None:
            self._pass(back_after)
            self.open()

    # The time.

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.3, 0.5, 1.0, 2.0, 7.0]))
    def tick(self, seconds: float) -> None:
        """Time passes, and the rules are told."""
        self._pass(seconds)
        self.leases.tick(self.now)
        self._settle()
        at = self.leases.next_tick()
        deadlines = [self.deadlines[i] for i in self._lease_ids() if i in self.deadlines]
        if deadlines:
            assert at is not None
            assert self.now < at <= min(deadlines)
        assert at is None or at > self.now

    @precondition(lambda self: self.stream is not None)
    @rule(ticks=st.integers(1, 6), answering=st.booleans())
    def go_on(self, ticks: int, answering: bool) -> None:
        """The stream's owner does what the rules want, when they want it."""
        assert self.stream is not None
        for _ in range(ticks):
            at = self.leases.next_tick()
            if not self.kept or at is None:
                return
            self._pass(max(0.0, at - self.now))
            self.leases.tick(self.now)
            self._settle()
            self._send()
            if answering:
                self.serve(3)
                self.receive(3)

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0, 100.0]))
    def jump(self, seconds: float) -> None:
        """Time passes while the loop is blocked."""
        self._pass(seconds)

    def _pass(self, seconds: float) -> None:
        self.now += seconds
        self.server.expire(self.now)

    @precondition(lambda self: self.ids > 3 and not self.ended)
    @rule(final=st.booleans())
    def end(self, final: bool) -> None:
        """The client closes, or the stream is refused for good: everybody is told."""
        keepers = list(self.kept)
        if final:
            self.stream = None
            self.leases.lost(PermissionDeniedError("no"), final=True, now=self.now)
        else:
            self.ended = True
            self.leases.close(ClientClosedError("closed"))
        assert all(kept.keeper.error is not None for kept in keepers)
        assert not self.leases.wanted
        self._settle()

    # What always holds.

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
        """Nothing kept means that no stream is wanted."""
        assert self.leases.wanted == bool(self.kept)
        count, soonest = self.leases.counts()
        assert count == len(self._lease_ids())
        deadlines = [self.deadlines[i] for i in self._lease_ids() if i in self.deadlines]
        assert soonest == min(deadlines, default=None)

    @invariant()
    def memory_is_bounded(self) -> None:
        """Nothing grows beyond the number of leases."""
        self.most_kept = max(self.most_kept, len(self._lease_ids()))
        assert len(self.leases._due) <= 64 + 3 * self.most_kept
        assert len(self.leases._deadlines) <= 64 + 3 * self.most_kept
        assert len(self.leases._known) <= 64 + self.ids


TestInterleavings = pytest.mark.timeout(600)(Machine.TestCase)  # to find the shortest example
TestInterleavings.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=20, deadline=None, print_blob=True
)
