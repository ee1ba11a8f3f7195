"""The rules of which member is asked, in any order of what may happen."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import register_random, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aioetcd._transport import backoff
from aioetcd._transport.members import HEAD_START, SECOND_CHOICE, Health, Member, Members
from aioetcd._verdicts.table import Blame
from aioetcd.config.endpoints import Endpoint, parse_endpoints

EXAMPLES = int(os.environ.get("AIOETCD_TEST_EXAMPLES", "80"))

# So that a failing example fails again.
register_random(backoff._jitter)

OURS, THEIRS = 0xA, 0xB
# The longest pause between two looks at a member.
LONGEST_PAUSE = 1.0
NEUTRAL = [Blame.NOBODY, Blame.ROLE, Blame.TOKEN]
AGAINST_IT = [Blame.MEMBER, Blame.CONNECTION]
ANSWERING = [Health.ODD, Health.WELL]


def endpoints(count: int, first: int = 0) -> tuple[Endpoint, ...]:
    """Some endpoints, of the names a, b, and so on."""
    return parse_endpoints([f"{chr(ord('a') + n)}:1" for n in range(first, first + count)])


def some(count: int) -> tuple[Members, list[Member]]:
    """Members in the order in which they are to be tried."""
    members = Members(endpoints(count), Random(0))
    return members, sorted(members, key=lambda member: member.rank)


def see(
    members: Members,
    member: Member,
    health: Health,
    now: float,
    *,
    cluster_id: int = OURS,
    took: float = 0.0,
) -> None:
    """Look at a member through a new connection."""
    epoch = members.connected(member)
    members.looking(member, now - took)
    reason = None if health is Health.WELL else "it has a reason"
    members.seen(member, epoch, health, reason, now, cluster_id=cluster_id)


# --- who is used -------------------------------------------------------------------------------


def test_the_order_is_by_chance() -> None:
    """Clients with the same list begin with different members."""
    firsts = {
        member.endpoint
        for seed in range(40)
        if (member := Members(endpoints(3), Random(seed)).due(0.0)) is not None
    }
    assert firsts == set(endpoints(3))


def test_the_first_who_is_well_is_used_and_stays() -> None:
    """One that is well is used at once, and no other one takes its place."""
    members, (a, b, c) = some(3)
    assert members.is_searching
    see(members, b, Health.WELL, 1.0)
    assert members.current is b
    assert not members.is_searching
    see(members, a, Health.WELL, 1.1)
    see(members, c, Health.ODD, 1.2)
    assert members.current is b


def test_one_that_is_well_takes_the_place_of_an_odd_one() -> None:
    """An odd one is used while there is nobody better, and left for one that is well."""
    members, (a, b) = some(2)
    see(members, a, Health.ODD, 1.0)
    see(members, b, Health.DOWN, 1.1)
    assert members.current is a
    assert members.is_searching
    see(members, b, Health.WELL, 2.0)
    assert members.current is b


def test_one_that_becomes_odd_stays_until_there_is_a_better_one() -> None:
    """Who is in use and turns odd is not left for nobody, and a better one is searched."""
    members, (a, b) = some(2)
    see(members, a, Health.WELL, 1.0)
    members.seen(a, a.epoch, Health.ODD, "no quorum", 2.0)
    assert members.current is a
    assert members.is_searching
    assert members.due(2.0) is b


def test_alone_an_odd_one_is_used_at_once() -> None:
    """There is nobody to wait for, and nobody better to search."""
    members, (a,) = some(1)
    see(members, a, Health.ODD, 1.0)
    assert members.current is a
    assert not members.is_searching


def test_an_odd_one_waits_for_those_not_seen_yet() -> None:
    """An odd one is used once all others were seen, in this search."""
    members, (a, b, c) = some(3)
    see(members, a, Health.ODD, 1.0)
    assert members.current is None
    see(members, b, Health.DOWN, 1.1)
    assert members.current is None
    see(members, c, Health.DOWN, 1.2)
    assert members.current is a


def test_what_was_seen_before_the_loss_does_not_count() -> None:
    """When the one in use is lost, an odd one of before is looked at again before it is used."""
    members, (a, b) = some(2)
    see(members, a, Health.ODD, 1.0)
    see(members, b, Health.WELL, 1.1)
    assert members.failed(b, b.epoch, Blame.MEMBER, "gone", 5.0)
    members.choose(20.0)
    assert members.current is None
    assert members.due(5.0) is a
    see(members, a, Health.ODD, 5.1)
    see(members, b, Health.DOWN, 5.4)
    assert members.current is a


def test_an_odd_one_is_used_after_a_second() -> None:
    """Others that do not answer are waited for a second, and whoever searches is woken for it."""
    members, (a, b) = some(2)
    see(members, a, Health.ODD, 1.0)
    members.connected(b)
    members.looking(b, 1.0)
    a.next_look = math.inf  # nothing else is to be done
    assert members.next_due(1.0) == 1.0 + SECOND_CHOICE
    members.choose(0.99 + SECOND_CHOICE)
    assert members.current is None
    members.choose(1.0 + SECOND_CHOICE)
    assert members.current is a


def test_looking_again_at_an_odd_one_puts_nothing_off() -> None:
    """The second begins when it was seen to be odd first, however often it is looked at then."""
    members, (a, b) = some(2)
    members.connected(b)
    members.looking(b, 1.0)  # and never answers
    now = 1.0
    while now < 1.0 + SECOND_CHOICE:
        assert members.current is None
        see(members, a, Health.ODD, now)
        now = max(a.next_look, now + 0.05)
    see(members, a, Health.ODD, now)
    assert members.current is a


# --- what speaks against whom ------------------------------------------------------------------


@pytest.mark.parametrize("blame", AGAINST_IT)
def test_blame_moves(blame: Blame) -> None:
    """A failure of the member or of its connection is the end of its use."""
    members, (a, _) = some(2)
    see(members, a, Health.WELL, 1.0)
    assert members.failed(a, a.epoch, blame, "it broke", 2.0)
    assert members.current is None
    assert (a.health, a.reason) == (Health.DOWN, "it broke")


@pytest.mark.parametrize("blame", NEUTRAL)
def test_other_blame_moves_nobody(blame: Blame) -> None:
    """What is nobody's fault, or the token's, or the member's role alone, moves nobody."""
    members, (a, _) = some(2)
    see(members, a, Health.WELL, 1.0)
    assert not members.failed(a, a.epoch, blame, "it is no leader", 2.0)
    assert members.current is a
    assert (a.health, a.reason) == (Health.WELL, None)


def test_the_failure_of_one_not_in_use_moves_nobody() -> None:
    """It is known to be down, and who is in use stays."""
    members, (a, b) = some(2)
    see(members, a, Health.WELL, 1.0)
    see(members, b, Health.WELL, 1.1)
    assert members.failed(b, b.epoch, Blame.CONNECTION, "it broke", 2.0)
    assert members.current is a
    assert b.health is Health.DOWN


def test_an_old_epoch_says_nothing() -> None:
    """A failure, or a look, of a connection before says nothing about the one now."""
    members, (a, b) = some(2)
    see(members, a, Health.DOWN, 1.0)
    old = a.epoch
    new = members.connected(a)
    members.looking(a, 2.0)
    assert not members.failed(a, old, Blame.MEMBER, "late", 2.1)
    members.seen(a, old, Health.WELL, None, 2.2)
    assert members.current is None
    assert (a.health, a.reason, a.looking_since) == (Health.DOWN, "it has a reason", 2.0)
    assert members.due(2.1) is None  # the look of now goes on, and the next one has to wait
    assert members.due(2.0 + HEAD_START) is b
    members.seen(a, new, Health.WELL, None, 2.3)
    assert members.current is a


def test_another_one_for_one_call() -> None:
    """A call that has to go elsewhere goes to the best known of the others, if there is one."""
    members, (a, b, c) = some(3)
    see(members, a, Health.WELL, 1.0)
    see(members, b, Health.DOWN, 1.1)
    see(members, c, Health.ODD, 1.2)
    assert members.other(a) is c
    assert members.other(c) is a
    assert some(1)[0].other(a) is not a
    alone, (only,) = some(1)
    assert alone.other(only) is None


def test_no_call_goes_to_another_cluster() -> None:
    """One that belongs to another cluster is no other one to ask."""
    members, (a, b) = some(2)
    see(members, a, Health.WELL, 1.0)
    see(members, b, Health.WELL, 1.1, cluster_id=THEIRS)
    assert members.other(a) is None


# --- who is looked at, and when ----------------------------------------------------------------


def test_each_has_a_head_start() -> None:
    """The next one is looked at when the one before has not answered for a moment."""
    members, (a, b, c) = some(3)
    assert members.due(1.0) is a
    members.looking(a, 1.0)
    assert members.due(1.0) is None
    assert members.next_due(1.0) == 1.0 + HEAD_START
    assert members.due(1.0 + HEAD_START) is b
    members.looking(b, 1.0 + HEAD_START)
    assert members.due(1.0 + 1.5 * HEAD_START) is None
    assert members.due(1.0 + 2 * HEAD_START) is c


def test_an_answer_ends_the_head_start() -> None:
    """When the one before has failed, nobody is waited for."""
    members, (a, b) = some(2)
    see(members, a, Health.DOWN, 1.0)
    assert members.due(1.0) is b


def test_pauses_grow_to_a_second() -> None:
    """One that is down is looked at soon again, then about once a second."""
    members, (a,) = some(1)
    pauses = []
    now = 1.0
    for _ in range(12):
        see(members, a, Health.DOWN, now)
        assert members.next_due(now) == a.next_look
        pauses.append(a.next_look - now)
        now = a.next_look
        assert members.due(now) is a
    assert 0 < pauses[0] <= 0.1
    assert all(LONGEST_PAUSE / 2 <= pause <= LONGEST_PAUSE for pause in pauses[-4:])
    see(members, a, Health.WELL, now)
    assert members.failed(a, a.epoch, Blame.MEMBER, "it stops", now)
    assert members.due(now) is a  # alone: at once
    see(members, a, Health.DOWN, now)
    assert a.next_look - now <= 0.1


def test_one_that_failed_comes_after_the_others() -> None:
    """Others are looked at first, also those that were well a while ago."""
    members, (a, b) = some(2)
    see(members, a, Health.WELL, 1.0)
    see(members, b, Health.WELL, 1.0)
    assert members.failed(a, a.epoch, Blame.MEMBER, "it stops", 50.0)
    assert members.due(50.0) is b
    see(members, b, Health.DOWN, 50.0)
    assert members.due(50.0) is None
    assert a.next_look == 50.0 + HEAD_START


# --- other lists, other clusters ---------------------------------------------------------------


def test_replace_keeps_those_that_stay() -> None:
    """A member that is in both lists stays what it is, and in use."""
    members, known = some(3)
    a = next(m for m in known if m.endpoint.name == "a:1")
    b = next(m for m in known if m.endpoint.name == "b:1")
    c = next(m for m in known if m.endpoint.name == "c:1")
    see(members, b, Health.WELL, 1.0)
    epoch = b.epoch
    gone = members.replace(endpoints(3, first=1), 2.0)
    assert gone == [a]
    assert {m.endpoint.name for m in members} == {"b:1", "c:1", "d:1"}
    assert {b, c} < set(members)
    assert members.current is b
    assert (b.health, b.epoch) == (Health.WELL, epoch)
    see(members, a, Health.WELL, 3.0)
    members.replace(endpoints(1, first=3), 4.0)
    assert members.current is None
    assert [m.endpoint.name for m in members] == ["d:1"]
    see(members, b, Health.WELL, 5.0)  # who is gone is not used
    assert members.current is None
    assert members.due(5.0) in members


def test_one_of_another_cluster_is_not_used() -> None:
    """One that answers for another cluster than the first is down, and says why."""
    members, (a, b) = some(2)
    see(members, a, Health.WELL, 1.0)
    assert members.failed(a, a.epoch, Blame.MEMBER, "it stops", 2.0)
    see(members, b, Health.WELL, 2.1, cluster_id=THEIRS)
    assert members.current is None
    assert b.health is Health.DOWN
    assert b.reason is not None
    assert "cluster b" in b.reason
    assert (members.cluster_id, members.moves) == (OURS, 0)


def test_one_of_another_cluster_that_becomes_odd_is_not_used() -> None:
    """An odd answer does not say whose it is: it takes back nothing of what was said before."""
    members, (a, b) = some(2)
    see(members, a, Health.WELL, 1.0)
    see(members, b, Health.WELL, 1.1, cluster_id=THEIRS)
    assert members.failed(a, a.epoch, Blame.MEMBER, "it stops", 2.0)
    see(members, b, Health.ODD, 2.1, cluster_id=0)
    see(members, a, Health.DOWN, 2.4)
    members.choose(2.4 + 10 * SECOND_CHOICE)
    assert members.current is None
    see(members, b, Health.WELL, 20.0)  # of ours again
    assert members.current is b


def test_another_cluster_at_all_endpoints_is_accepted() -> None:
    """When all answer for the same other cluster it has taken the old one's place."""
    members, (a, b) = some(2)
    see(members, a, Health.WELL, 1.0)
    assert members.failed(a, a.epoch, Blame.MEMBER, "it stops", 2.0)
    see(members, b, Health.WELL, 2.1, cluster_id=THEIRS)
    see(members, a, Health.WELL, 2.4, cluster_id=THEIRS)
    assert members.current is a
    assert (members.cluster_id, members.moves) == (THEIRS, 1)
    assert members.is_ours(THEIRS)
    assert not members.is_ours(OURS)
    see(members, b, Health.WELL, 2.5, cluster_id=THEIRS)
    assert b.health is Health.WELL
    assert members.moves == 1


def test_different_other_clusters_are_not_accepted() -> None:
    """Endpoints that do not agree on the other cluster are no cluster."""
    members, (a, b) = some(2)
    see(members, a, Health.WELL, 1.0)
    assert members.failed(a, a.epoch, Blame.MEMBER, "it stops", 2.0)
    see(members, b, Health.WELL, 2.1, cluster_id=THEIRS)
    see(members, a, Health.WELL, 2.4, cluster_id=0xC)
    assert members.current is None
    assert (members.cluster_id, members.moves) == (OURS, 0)


# --- in any order ------------------------------------------------------------------------------


@dataclass(eq=False)
class Way:
    """A connection.

    Attributes:
        member: To whom.
        epoch: Which one of its.
        looked_since: When somebody began to look at the member through it, who has no answer yet.
        is_left: Whether it was given up; what comes then is late.
    """

    member: Member
    epoch: int
    looked_since: float | None = None
    is_left: bool = False


class Machine(RuleBasedStateMachine):
    """Rules, whoever follows them as the picker does, and all that may happen in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.members = Members(endpoints(1), Random(0))
        self.ways: dict[Member, Way] = {}
        self.late: list[Way] = []
        # What an attentive reader would know of each: how it is, and of which cluster.
        self.health: dict[Member, Health] = {}
        self.clusters: dict[Member, int] = {}
        self.moves = 0
        # Since when each is neither in use, nor looked at, while somebody better is searched; and
        # since when each is odd that could be used.
        self.unseen_since: dict[Member, float] = {}
        self.odd_since: dict[Member, float] = {}
        self.cluster_id = 0

    @initialize(count=st.integers(1, 4), seed=st.integers(0, 5))
    def begin(self, count: int, seed: int) -> None:
        """There are some members."""
        self.members = Members(endpoints(count), Random(seed))
        self._note()

    # What the picker does.

    @rule()
    def look_around(self) -> None:
        """Whoever is due is looked at; there is somebody when it was said that there would be."""
        self._look_around()

    def _look_around(self) -> None:
        if not self.members.is_searching:
            return
        for _ in range(len(self.members) + 1):
            member = self.members.due(self.now)
            if member is None:
                break
            assert member in self.members
            assert member.looking_since is None
            way = self._way_to(member)
            assert way.looked_since is None
            way.looked_since = self.now
            self.members.looking(member, self.now)
            self.unseen_since.pop(member, None)
        else:
            raise AssertionError("somebody is looked at again at the same moment")
        self.members.choose(self.now)
        self._note()
        assert self.members.next_due(self.now) > self.now

    def _way_to(self, member: Member) -> Way:
        if member not in self.ways:
            self.ways[member] = Way(member, self.members.connected(member))
        return self.ways[member]

    def _leave(self, way: Way) -> None:
        way.is_left = True
        way.member.looking_since = None
        if self.ways.get(way.member) is way:
            del self.ways[way.member]
        self.late.append(way)

    @rule(seconds=st.sampled_from([0.01, 0.1, 0.3, 1.0, 5.0]))
    def wait(self, seconds: float) -> None:
        """Time passes, and whoever searches wakes when the rules want it."""
        end = self.now + seconds
        for _ in range(200):
            if not self.members.is_searching:
                break
            self._look_around()
            at = self.members.next_due(self.now)
            if at > end:
                break
            self.now = at
        else:
            raise AssertionError("whoever searches does not come to rest")
        self.now = end
        self._look_around()

    @precondition(lambda self: any(w.looked_since is not None for w in self.ways.values()))
    @rule(
        data=st.data(),
        health=st.sampled_from([Health.DOWN, Health.ODD, Health.WELL]),
        cluster_id=st.sampled_from([OURS, OURS, OURS, THEIRS]),
        tells=st.booleans(),
    )
    def answer(self, data: st.DataObject, health: Health, cluster_id: int, tells: bool) -> None:
        """A look comes to its end."""
        ways = [way for way in self.ways.values() if way.looked_since is not None]
        way = data.draw(st.sampled_from(ways), label="way")
        way.looked_since = None
        self._see(way, health, cluster_id if tells or health is Health.WELL else 0)

    @precondition(lambda self: self.members.current is not None)
    @rule(
        health=st.sampled_from([Health.DOWN, Health.ODD, Health.WELL]),
        cluster_id=st.sampled_from([OURS, THEIRS]),
    )
    def doubt(self, health: Health, cluster_id: int) -> None:
        """Somebody looks at the one in use, because a call has waited for long."""
        assert self.members.current is not None
        way = self._way_to(self.members.current)
        way.looked_since = None
        self._see(way, health, cluster_id if health is Health.WELL else 0)

    def _see(self, way: Way, health: Health, cluster_id: int) -> None:
        member, before = way.member, self.members.current
        answers = health in ANSWERING
        if answers and cluster_id:
            self.cluster_id = self.cluster_id or cluster_id
            self.clusters[member] = cluster_id
        theirs = {self.clusters.get(each, 0) for each in self.members}
        moves = answers and cluster_id not in (0, self.cluster_id) and theirs == {cluster_id}
        if moves:
            self.moves += 1
            self.cluster_id = cluster_id
        is_foreign = self.clusters.get(member, 0) not in (0, self.cluster_id)
        self.health[member] = Health.DOWN if answers and is_foreign else health
        reason = None if health is Health.WELL else "a reason"
        self.members.seen(member, way.epoch, health, reason, self.now, cluster_id=cluster_id)
        current = self.members.current
        if self.health[member] is Health.WELL:
            assert member.reason is None
            assert current is not None
            assert self.health[current] is Health.WELL
            if before is not None and before is not member:
                was_well = self.health[before] is Health.WELL
                assert current is (before if was_well else member)
        elif before is not None and before is not member:
            assert current is before
        if self.health[member] is Health.DOWN or current is not member:
            self._leave(way)
        self._lost(before)
        self._note()

    @precondition(lambda self: self.ways)
    @rule(data=st.data(), blame=st.sampled_from(list(Blame)))
    def fail(self, data: st.DataObject, blame: Blame) -> None:
        """A call fails, on any connection."""
        way = data.draw(st.sampled_from(list(self.ways.values())), label="way")
        member, before, was = way.member, self.members.current, way.member.health
        speaks = self.members.failed(member, way.epoch, blame, "a call failed", self.now)
        assert speaks == (blame in AGAINST_IT)
        if speaks:
            self.health[member] = Health.DOWN
            assert self.members.current is (None if before is member else before)
            self._leave(way)
        else:
            assert (self.members.current, member.health) == (before, was)
        self._lost(before)
        self._note()

    def _lost(self, before: Member | None) -> None:
        """What is known of those not asked any more: those that were odd are to be seen again."""
        if before is not None and self.members.current is not before:
            if self.members.current is None:
                self._forget_odd()
            elif before is not None:
                assert self.health[self.members.current] > self.health[before]

    def _forget_odd(self) -> None:
        for member, health in self.health.items():
            if health is Health.ODD:
                self.health[member] = Health.UNKNOWN

    @precondition(lambda self: self.late)
    @rule(
        data=st.data(),
        blame=st.sampled_from(AGAINST_IT),
        health=st.sampled_from([None, Health.DOWN, Health.ODD, Health.WELL]),
        cluster_id=st.sampled_from([0, OURS, THEIRS]),
    )
    def late_news(
        self, data: st.DataObject, blame: Blame, health: Health | None, cluster_id: int
    ) -> None:
        """What comes from a connection before the one of now changes nothing."""
        way = data.draw(st.sampled_from(self.late), label="way")
        if way.epoch == way.member.epoch and way.member in self.members:
            return  # there is no other one yet
        before = self._all()
        if health is None:
            if way.member in self.members:
                assert not self.members.failed(way.member, way.epoch, blame, "late", self.now)
        else:
            self.members.seen(
                way.member, way.epoch, health, "late", self.now, cluster_id=cluster_id
            )
        assert self._all() == before

    def _all(self) -> list[object]:
        members = self.members
        return [
            (members.current, members.cluster_id, members.moves),
            [
                {name: value for name, value in vars(m).items() if name != "backoff"}
                for m in members
            ],
        ]

    @rule(data=st.data())
    def replace(self, data: st.DataObject) -> None:
        """There is another list; who stays is who it was."""
        names = data.draw(st.sets(st.sampled_from("abcdef"), min_size=1, max_size=4), label="names")
        wanted = parse_endpoints([f"{name}:1" for name in sorted(names)])
        before = {m: dict(vars(m)) for m in self.members}
        current = self.members.current
        gone = self.members.replace(wanted, self.now)
        assert {m.endpoint for m in self.members} == set(wanted)
        assert set(gone) == set(before) - set(self.members)
        assert {m.endpoint for m in gone}.isdisjoint(wanted)
        if current in gone:
            assert self.members.current is None
            self._forget_odd()
        else:
            assert self.members.current is current
            for member in set(before) & set(self.members):
                assert vars(member) == before[member]
        for member in gone:
            if member in self.ways:
                self._leave(self.ways[member])
            self.health.pop(member, None)
            self.unseen_since.pop(member, None)
        self._note()

    def _note(self) -> None:
        """Note since when something is to happen."""
        searching = self.members.is_searching
        for member in self.members:
            waits = searching and member.looking_since is None
            if not waits or member is self.members.current:
                self.unseen_since.pop(member, None)
            else:
                self.unseen_since.setdefault(member, self.now)
        odd = {m for m in self.members if self.health.get(m) is Health.ODD}
        self.odd_since = {m: self.odd_since.get(m, self.now) for m in odd}

    # What always holds.

    @invariant()
    def who_is_in_use_may_be(self) -> None:
        """It is in the list, it answers, it is of this cluster, and nobody better is known."""
        current = self.members.current
        if current is None:
            return
        assert current in self.members
        assert self.health[current] in ANSWERING
        assert current.health is self.health[current]
        assert self.clusters.get(current, 0) in (0, self.members.cluster_id)

    @invariant()
    def what_is_known_is_what_was_seen(self) -> None:
        """Nothing but looks and failures changes what is known of a member."""
        for member in self.members:
            assert member.health is self.health.get(member, Health.UNKNOWN)
            assert member.health is not Health.WELL or member.reason is None

    @invariant()
    def moves_are_counted(self) -> None:
        """Another cluster takes the old one's place when all say so, and then once."""
        assert self.members.moves == self.moves
        assert self.members.cluster_id == self.cluster_id

    @invariant()
    def everybody_is_looked_at_again(self) -> None:
        """While somebody better is searched, nobody waits much longer than a second for a look.

        Those whose answers are awaited may each have a head start before it.
        """
        looked_at = sum(m.looking_since is not None for m in self.members)
        longest = LONGEST_PAUSE + HEAD_START * (1 + looked_at)
        for member in self.unseen_since:
            due_at = max(self.unseen_since[member] + longest, member.next_look)
            assert member.next_look <= self.unseen_since[member] + LONGEST_PAUSE
            assert self.members.next_due(self.now) <= due_at + 1e-6

    @invariant()
    def an_odd_one_is_used_when_there_is_no_better_one(self) -> None:
        """Who searches is woken no later than a second after the first odd one was seen."""
        if self.odd_since and self.members.current is None:
            last = min(self.odd_since.values()) + SECOND_CHOICE
            assert self.members.next_due(self.now) <= last + 1e-6

    def teardown(self) -> None:
        """In the end all are well: one of them is in use, after a look at each at the most."""
        for _ in range(2 * len(self.members)):
            if not self.members.is_searching:
                break
            self.wait(LONGEST_PAUSE + HEAD_START * len(self.members))
            for way in [way for way in self.ways.values() if way.looked_since is not None]:
                way.looked_since = None
                self._see(way, Health.WELL, self.cluster_id or OURS)
        current = self.members.current
        assert current is not None
        assert len(self.members) == 1 or current.health is Health.WELL


TestInterleavings = pytest.mark.timeout(600)(Machine.TestCase)  # to find the shortest example
TestInterleavings.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=30, print_blob=True
)
