"""The rules of keeping leases alive, without a loop and without a server: one story each."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from aioetcd._transport.wish import Wish
from aioetcd.errors import (
    ClientClosedError,
    LeaseExpiredError,
    LeaseLostError,
    LeaseNotFoundError,
    PermissionDeniedError,
    UnavailableError,
)
from aioetcd.lease._state import Keeper, LeaseRules
from tests.answers import received
from tests.lease.model import Kept, answer, requests

# The shortest pause between two renewals, as a part of the time to live; and the first one.
SOONEST = 0.9 / 3
SOONEST_FIRST = 0.3 / 3


class Scene:
    """Rules with a stream, for a test that tells one story."""

    def __init__(self) -> None:
        self.rules = LeaseRules()
        self.lane = self.rules.lanes[0]
        self.lane.opened("e", 0.0)

    def granted(self, lease_id: int, ttl: int, at: float = 0.0) -> None:
        self.rules.granted(lease_id, ttl, at, at)

    def keep(self, lease_id: int, at: float, not_before: float = 0.0) -> Kept:
        kept = Kept(lease_id, not_before)
        self.rules.add(kept.keeper, at)
        return kept

    def sent(self, at: float) -> list[int]:
        """Send all that is due, and give the leases."""
        return [request.ID for request in requests(self.lane, at)]

    def send_times(self, until: float, step: float = 0.001) -> list[float]:
        """Give when renewals are sent with nobody answering, in small steps of time."""
        times = []
        for tick in range(int(until / step)):
            times += [tick * step] * len(self.sent(tick * step))
        return times


# The deadline.


def test_deadline_counts_from_the_sending_of_the_grant() -> None:
    """A granted lease lives until the time at which the grant was sent plus its time to live."""
    rules = LeaseRules()
    rules.granted(1, 10, 100.0, 103.0)
    assert rules.deadline(1) == 110.0


def test_deadline_counts_from_the_sending_of_the_answered_renewal() -> None:
    """A renewal moves the deadline to its sending plus the time to live, late answer or not."""
    scene = Scene()
    scene.granted(1, 10)
    kept = scene.keep(1, 2.0)
    assert scene.sent(2.0) == [1]
    received(scene.lane, answer(1, 10), 8.0)
    assert scene.rules.deadline(1) == 12.0
    assert kept.ttls == [10]


def test_a_shorter_time_to_live_brings_the_deadline_nearer() -> None:
    """The last answer counts: somebody may have granted the same id again, for a shorter time."""
    scene = Scene()
    scene.granted(1, 100)
    kept = scene.keep(1, 1.0)
    assert scene.sent(1.0) == [1]
    received(scene.lane, answer(1, 3), 1.1)
    assert scene.rules.deadline(1) == 4.0
    scene.lane.tick(4.0)
    assert [type(error) for error in kept.errors] == [LeaseExpiredError]


def test_deadline_is_unknown_until_a_foreign_lease_answers() -> None:
    """Of a lease that this client did not grant nothing is known before the first answer."""
    scene = Scene()
    scene.keep(1, 5.0)
    assert scene.rules.deadline(1) is None
    assert (len(scene.rules), scene.rules.soonest()) == (1, None)
    assert scene.sent(5.0) == [1]
    received(scene.lane, answer(1, 10), 5.1)
    assert scene.rules.deadline(1) == 15.0
    assert (len(scene.rules), scene.rules.soonest()) == (1, 15.0)


def test_deadline_is_remembered_between_two_keepers() -> None:
    """A lease that nobody keeps any more keeps the deadline that it had."""
    scene = Scene()
    scene.granted(1, 10)
    first = scene.keep(1, 4.0)
    assert scene.sent(4.0) == [1]
    received(scene.lane, answer(1, 10), 4.1)
    scene.rules.remove(first.keeper, 5.0)
    assert not scene.lane.wanted
    assert scene.rules.deadline(1) == 14.0
    second = scene.keep(1, 6.0)
    scene.lane.tick(14.0)
    assert not first.errors
    assert [type(error) for error in second.errors] == [LeaseExpiredError]


def test_an_answer_to_an_earlier_keeper_is_not_taken_for_a_later_one() -> None:
    """An answer belongs to the request that it answers, though its keeper left meanwhile."""
    scene = Scene()
    scene.granted(1, 10)
    first = scene.keep(1, 1.0)
    assert scene.sent(1.0) == [1]
    scene.rules.remove(first.keeper, 2.0)
    scene.keep(1, 8.0)
    assert scene.sent(8.0) == [1]
    received(scene.lane, answer(1, 10), 8.1)
    assert scene.rules.deadline(1) == 11.0
    received(scene.lane, answer(1, 10), 8.2)
    assert scene.rules.deadline(1) == 18.0


# Past the deadline.


def test_lost_at_the_deadline_although_an_answer_is_unread() -> None:
    """At its deadline a lease is lost, and an answer that lay there unread is not believed."""
    scene = Scene()
    scene.granted(1, 10)
    kept = scene.keep(1, 1.0)
    assert scene.sent(1.0) == [1]
    received(scene.lane, answer(1, 10), 10.0)
    assert kept.ttls == []
    (error,) = kept.errors
    assert isinstance(error, LeaseExpiredError)
    assert (error.lease_id, error.reason) == (1, "expired")
    assert not scene.lane.wanted


@pytest.mark.parametrize("how", ["tick", "expire", "next_request"])
def test_lost_at_the_deadline_by_whatever_comes_first(how: str) -> None:
    """The deadline is looked at whenever the rules are asked anything, and told once."""
    scene = Scene()
    scene.granted(1, 10)
    kept = scene.keep(1, 1.0)
    ask = getattr(scene.rules if how == "expire" else scene.lane, how)
    ask(9.999)
    assert not kept.errors
    for _ in range(3):
        ask(10.0)
    assert [type(error) for error in kept.errors] == [LeaseExpiredError]
    assert kept.notifications == 1
    scene.rules.remove(kept.keeper, 11.0)
    assert kept.notifications == 1


def test_a_renewal_that_was_not_taken_is_gone_with_the_lease() -> None:
    """A buffered answer is not handed over after the loss."""
    scene = Scene()
    scene.granted(1, 10)
    keeper = Keeper(1, lambda: None)
    scene.rules.add(keeper, 1.0)
    assert scene.sent(1.0) == [1]
    received(scene.lane, answer(1, 10), 1.1)
    assert keeper.renewal is not None
    scene.rules.expire(11.0)
    assert keeper.renewal is None
    assert isinstance(keeper.error, LeaseExpiredError)


def test_an_answer_that_is_over_already_gives_no_deadline() -> None:
    """A foreign lease's first answer that is older than the time it grants is no answer."""
    scene = Scene()
    kept = scene.keep(1, 0.0)
    assert scene.sent(0.0) == [1]
    received(scene.lane, answer(1, 5), 5.0)
    assert scene.rules.deadline(1) is None
    assert (kept.ttls, kept.errors) == ([], [])


def test_a_lease_whose_known_deadline_has_passed_is_asked_for() -> None:
    """Others may keep alive what this client granted: the server knows, not the old deadline."""
    scene = Scene()
    scene.granted(1, 10)
    kept = scene.keep(1, 50.0)
    assert not kept.errors
    assert scene.rules.deadline(1) is None
    assert scene.sent(50.0) == [1]
    received(scene.lane, answer(1, 10), 50.1)
    assert scene.rules.deadline(1) == 60.0


# Answers that say no.


def test_zero_for_a_lease_that_was_there_is_a_revocation() -> None:
    """TTL 0 before the deadline means that somebody revoked the lease."""
    scene = Scene()
    scene.granted(1, 10)
    kept = scene.keep(1, 1.0)
    assert scene.sent(1.0) == [1]
    received(scene.lane, answer(1, 0), 1.1)
    (error,) = kept.errors
    assert isinstance(error, LeaseLostError)
    assert error.reason == "revoked"
    assert scene.rules.deadline(1) is None


def test_zero_for_a_lease_that_never_answered_is_not_found() -> None:
    """TTL 0 as the first answer for a foreign lease means that there is no such lease."""
    scene = Scene()
    kept = scene.keep(1, 1.0)
    assert scene.sent(1.0) == [1]
    received(scene.lane, answer(1, 0), 1.1)
    assert [type(error) for error in kept.errors] == [LeaseNotFoundError]


def test_an_answer_that_nobody_waits_for_is_ignored() -> None:
    """Answers for unknown leases, and more answers than requests, change nothing."""
    scene = Scene()
    scene.granted(1, 10)
    kept = scene.keep(1, 1.0)
    assert received(scene.lane, answer(2, 10), 1.0) is None
    assert received(scene.lane, answer(1, 0), 1.0) is None
    assert scene.rules.deadline(1) == 10.0
    assert kept.notifications == 0


# When renewals are due.


def test_renewed_at_once_and_then_each_third_of_the_time_to_live() -> None:
    """Renewals go out at a third of the time to live, answered or not."""
    scene = Scene()
    scene.granted(1, 12)
    scene.keep(1, 0.0)
    times = scene.send_times(12.0)
    assert times[0] == 0.0
    pauses = [after - before for before, after in pairwise(times)]
    assert len(times) in (4, 5)
    assert 4 * 0.3 <= pauses[0] <= 4.01
    assert all(4 * 0.9 <= pause <= 4.01 for pause in pauses[1:])


def test_several_in_flight_are_answered_in_order() -> None:
    """With slow answers each one counts from its own request, the oldest first."""
    scene = Scene()
    scene.granted(1, 12)
    scene.keep(1, 0.0)
    for at in (0.0, 4.0, 8.0):
        assert scene.sent(at) == [1]
    for sent_at in (0.0, 4.0, 8.0):
        received(scene.lane, answer(1, 12), 9.0)
        assert scene.rules.deadline(1) == sent_at + 12


def test_a_foreign_lease_is_asked_for_each_second() -> None:
    """Until the time to live is known, a renewal goes out each second."""
    scene = Scene()
    scene.keep(1, 0.0)
    times = scene.send_times(5.0)
    assert 5 <= len(times) <= 6


def test_the_first_answer_sets_the_pace() -> None:
    """With the first answer a foreign lease is renewed at a third of what it says."""
    scene = Scene()
    scene.keep(1, 0.0)
    assert scene.sent(0.0) == [1]
    assert received(scene.lane, answer(1, 60), 0.1) is Wish.LOOK
    assert scene.sent(60 * SOONEST_FIRST - 0.1) == []
    assert scene.sent(20.0) == [1]
    assert received(scene.lane, answer(1, 60), 20.1) is None
    assert scene.sent(20.0 + 60 * SOONEST - 0.1) == []
    assert scene.sent(40.0) == [1]


def test_a_new_pace_counts_from_the_last_request() -> None:
    """An answer with another time to live does not bring two renewals close together."""
    scene = Scene()
    scene.keep(1, 0.0)
    assert scene.sent(0.0) == [1]
    assert scene.sent(1.0) == [1]
    assert received(scene.lane, answer(1, 4), 1.1) is Wish.LOOK
    assert scene.sent(1.0 + 4 * SOONEST_FIRST - 0.01) == []
    assert scene.sent(1.0 + 4 / 3) == [1]


def test_a_shorter_time_to_live_quickens_the_pace() -> None:
    """A server that answers with less than before is asked more often from then on."""
    scene = Scene()
    scene.granted(1, 30)
    scene.keep(1, 0.0)
    assert scene.sent(0.0) == [1]
    received(scene.lane, answer(1, 3), 0.1)
    assert scene.sent(1.0) == [1]


def test_what_is_due_together_goes_out_together() -> None:
    """Leases that were renewed at many times are due at few: they are multiples of 500 ms."""
    scene = Scene()
    for lease_id in range(1, 101):
        scene.granted(lease_id, 30)
        scene.keep(lease_id, lease_id * 0.001)
        assert scene.sent(lease_id * 0.001) == [lease_id]
    times = scene.send_times(13.0)
    assert len(times) >= 100
    assert {round(at % 0.5, 3) for at in times} == {0.0}
    assert min(times) >= 3.0


def test_the_next_tick_is_when_something_is_due() -> None:
    """A tick is wanted for the next renewal or deadline, and not for what is overdue already."""
    scene = Scene()
    assert scene.lane.next_tick() is None
    scene.granted(1, 10)
    scene.keep(1, 1.0)
    assert scene.lane.next_tick() == 1.0
    scene.lane.tick(1.0)
    assert scene.lane.next_tick() == 10.0, "a tick would not help while it cannot be sent"
    assert scene.sent(1.2) == [1]
    tick = scene.lane.next_tick()
    assert tick is not None
    assert 1.2 + 10 * SOONEST_FIRST <= tick <= 1.2 + 10 / 3
    scene.lane.tick(9.99)
    assert scene.lane.next_tick() == 10.0


@pytest.mark.parametrize("ttl", [2, 10, 30, 300])
def test_leases_that_were_renewed_together_drift_apart(ttl: int) -> None:
    """The pauses of a lease differ, so that what began together does not stay together."""
    scene = Scene()
    for lease_id in range(1, 101):
        scene.granted(lease_id, ttl)
        scene.keep(lease_id, 0.0)
    assert len(scene.sent(0.0)) == 100
    times: list[float] = []
    while len(times) < 100:
        at = scene.lane.next_tick()
        assert at is not None
        scene.lane.tick(at)
        times += [at] * len(scene.sent(at))
    most = max(times.count(at) for at in times)
    assert len(set(times)) >= 3
    assert most <= 60


# Lanes.


def test_a_full_stream_is_followed_by_another() -> None:
    """Leases fill one stream after the other, then go where the fewest are."""
    rules = LeaseRules(lanes=3, lane_size=2)
    kept = [Kept(lease_id) for lease_id in range(1, 9)]
    lanes = [rules.add(each.keeper, 0.0) for each in kept]
    first, second, third = rules.lanes
    assert lanes == [first, first, second, second, third, third, first, second]
    rules.remove(kept[2].keeper, 1.0)
    assert rules.add(Kept(9).keeper, 1.0) is second
    assert [len(lane.kept) for lane in rules.lanes] == [3, 3, 2]


def test_a_lease_stays_on_its_stream() -> None:
    """A second keeper is served where the first one is, wherever there is room."""
    rules = LeaseRules(lanes=2, lane_size=1)
    first, second = rules.lanes
    one, other = Kept(1), Kept(2)
    assert rules.add(one.keeper, 0.0) is first
    assert rules.add(other.keeper, 0.0) is second
    rules.remove(one.keeper, 0.0)
    assert rules.add(Kept(2).keeper, 0.0) is second
    assert not first.wanted


def test_an_answer_on_a_stream_that_a_lease_has_left_says_nothing() -> None:
    """An answer counts on the stream that renews the lease now."""
    rules = LeaseRules(lanes=2, lane_size=1)
    first, second = rules.lanes
    for lane in rules.lanes:
        lane.opened("e", 0.0)
    rules.granted(1, 10, 0.0, 0.0)
    left = Kept(1)
    rules.add(left.keeper, 1.0)
    assert [request.ID for request in requests(first, 1.0)] == [1]
    rules.remove(left.keeper, 2.0)
    rules.add(Kept(2).keeper, 2.0)
    kept = Kept(1)
    assert rules.add(kept.keeper, 3.0) is second
    assert received(first, answer(1, 0), 3.1) is None
    assert (kept.ttls, kept.errors, rules.deadline(1)) == ([], [], 10.0)


def test_a_refused_stream_ends_no_lease_of_another() -> None:
    """A stream that is refused for good concerns the leases that it renews; the others stay."""
    rules = LeaseRules(lanes=2, lane_size=1)
    one, other = Kept(1), Kept(2)
    rules.add(one.keeper, 0.0)
    rules.add(other.keeper, 0.0)
    rules.lanes[0].lost(PermissionDeniedError("no"), final=True, now=0.1)
    assert [type(error) for error in one.errors] == [PermissionDeniedError]
    assert not other.errors
    assert len(rules) == 1


# Streams.


def test_a_new_stream_repeats_what_went_unanswered() -> None:
    """After a cut, the renewals without an answer are sent again, and the others are not."""
    scene = Scene()
    for lease_id in (1, 2):
        scene.granted(lease_id, 10)
        scene.keep(lease_id, 0.0)
    assert sorted(scene.sent(0.0)) == [1, 2]
    received(scene.lane, answer(1, 10), 0.1)
    scene.lane.lost(UnavailableError("cut"), final=False, now=0.2)
    scene.lane.opened("e", 0.3)
    assert scene.sent(0.3) == [2]
    # An answer on the new stream counts from the request on the new stream.
    received(scene.lane, answer(2, 10), 0.4)
    assert scene.rules.deadline(2) == 10.3


def test_a_new_stream_renews_the_most_urgent_first() -> None:
    """After a cut the lease with the soonest deadline goes first, an unknown one before all."""
    scene = Scene()
    for lease_id, ttl in ((1, 30), (2, 10), (3, 20)):
        scene.granted(lease_id, ttl)
        scene.keep(lease_id, 0.0)
    scene.keep(4, 0.0)
    assert sorted(scene.sent(0.0)) == [1, 2, 3, 4]
    scene.lane.lost(UnavailableError("cut"), final=False, now=1.0)
    scene.lane.opened("e", 5.0)
    assert scene.sent(5.0) == [4, 2, 3, 1]


def test_a_cut_alone_loses_nothing() -> None:
    """A stream that ends for a reason that passes leaves the leases to their deadlines."""
    scene = Scene()
    scene.granted(1, 10)
    kept = scene.keep(1, 0.0)
    scene.lane.lost(UnavailableError("cut"), final=False, now=1.0)
    assert scene.lane.wanted
    assert kept.notifications == 0


def test_a_refusal_ends_only_what_has_no_deadline() -> None:
    """A refused stream may be one lease's doing: the others try again until their deadlines.

    Each keeper has an error of its own, with the same reason behind it.
    """
    scene = Scene()
    scene.granted(1, 10)
    alive = scene.keep(1, 0.0)
    unknown = [scene.keep(2, 0.0), scene.keep(2, 0.0)]
    refusal = PermissionDeniedError("no")
    refusal.__cause__ = reason = OSError("the reason")
    scene.lane.lost(refusal, final=True, now=1.0)
    errors = [error for each in unknown for error in each.errors]
    assert [type(error) for error in errors] == [PermissionDeniedError] * 2
    assert len({id(error) for error in (*errors, refusal)}) == 3
    assert [error.__cause__ for error in errors] == [reason] * 2
    assert not alive.errors
    scene.lane.opened("e", 2.0)
    assert scene.sent(2.0) == [1]
    scene.lane.tick(10.0)
    (error,) = alive.errors
    assert isinstance(error, LeaseExpiredError)
    assert error.__cause__ is refusal, "it says why it was not renewed"


# Silence: 12 s to live, so that half of it is 6 s; 0.6 of what is left is taken of a silence.


def test_a_loss_does_not_say_what_is_over() -> None:
    """Once another stream has answered, why the one before had ended is no reason any more."""
    scene = Scene()
    scene.granted(1, 10)
    alive = scene.keep(1, 0.0)
    scene.lane.lost(UnavailableError("cut"), final=False, now=0.0)
    scene.lane.opened("e", 1.0)
    assert scene.sent(1.0) == [1]
    received(scene.lane, answer(1, 10), 2.0)
    scene.lane.tick(11.0)
    (error,) = alive.errors
    assert isinstance(error, LeaseExpiredError)
    assert error.__cause__ is None


def silent_at(scene: Scene) -> float:
    """Follow the ticks that the rules want, and give when they say that it is silent for too long.

    Nothing is answered, and nothing is sent any more.
    """
    while (at := scene.lane.next_tick()) is not None:
        if scene.lane.tick(at):
            return at
    raise AssertionError("the lease is lost, and nobody called it silent")


@pytest.mark.parametrize(
    ("ttl", "kept_at", "too_long"),
    [
        pytest.param(12, 0.0, 6.0, id="half of its time"),
        pytest.param(12, 4.0, 4.0 + 0.6 * 8, id="the greater part of what is left"),
        pytest.param(12, 11.0, 11.8, id="what a slow link needs"),
        pytest.param(2, 0.0, 1.0, id="short, half of its time"),
        pytest.param(2, 0.8, 1.6, id="short, what a slow link needs"),
        pytest.param(1, 0.0, 0.5, id="shortest, never more than half"),
    ],
)
def test_a_stream_that_never_answers_is_left(ttl: int, kept_at: float, too_long: float) -> None:
    """The first answer of a stream may be waited for as long as the lease can afford."""
    scene = Scene()
    scene.granted(1, ttl)
    kept = scene.keep(1, kept_at)
    assert scene.sent(kept_at) == [1]
    assert silent_at(scene) == pytest.approx(too_long + 0.05)
    assert not kept.errors


def test_a_stream_that_falls_silent_is_left() -> None:
    """The silence counts from the first renewal that it has not answered."""
    scene = Scene()
    scene.granted(1, 12)
    scene.keep(1, 0.0)
    assert scene.sent(0.0) == [1]
    received(scene.lane, answer(1, 12), 0.1)
    assert not scene.lane.tick(4.0), "nothing is asked, so silence is right"
    assert scene.sent(4.0) == [1]
    assert scene.sent(8.0) == [1], "it is asked again, and as silent as before"
    assert silent_at(scene) == pytest.approx(4 + 0.6 * 8 + 0.05)
    scene.lane.lost(UnavailableError("left"), final=False, now=9.0)
    scene.lane.opened("other", 9.1)
    assert not scene.lane.tick(9.2)
    assert scene.sent(9.2) == [1]
    received(scene.lane, answer(1, 12), 9.3)
    assert scene.rules.deadline(1) == 21.2


def test_each_stream_has_its_own_patience() -> None:
    """What the stream before was silent for is not held against the new one."""
    scene = Scene()
    scene.granted(1, 12)
    scene.keep(1, 0.0)
    at, silences = 0.0, []
    while at < 11:
        assert scene.sent(at) == [1]
        left_at = silent_at(scene)
        silences.append(left_at - at)
        scene.lane.lost(UnavailableError("left"), final=False, now=left_at)
        at = left_at + 0.1
        scene.lane.opened("other", at)
    assert len(silences) == 3
    assert silences == pytest.approx([6.05, 0.6 * 5.85 + 0.05, 0.6 * 2.19 + 0.05])
    assert min(silences) > 0.8


def test_the_most_urgent_lease_decides() -> None:
    """One lease that cannot wait any longer is enough, whoever else could."""
    scene = Scene()
    for lease_id, ttl in ((1, 60), (2, 4), (3, 600)):
        scene.granted(lease_id, ttl)
        scene.keep(lease_id, 1.0)
    assert sorted(scene.sent(1.0)) == [1, 2, 3]
    assert silent_at(scene) == pytest.approx(1 + 0.6 * 3 + 0.05)


def test_what_nobody_keeps_any_more_makes_nobody_impatient() -> None:
    """An unanswered renewal whose keeper has left is no reason to leave the stream."""
    scene = Scene()
    scene.granted(1, 2)
    scene.granted(2, 60)
    left = scene.keep(1, 0.0)
    scene.keep(2, 0.0)
    assert sorted(scene.sent(0.0)) == [1, 2]
    scene.rules.remove(left.keeper, 0.5)
    assert silent_at(scene) == pytest.approx(30.05)


def test_a_lease_of_unknown_deadline_is_asked_for_elsewhere_too() -> None:
    """A foreign lease is taken for one of 3 s until it has answered."""
    scene = Scene()
    scene.keep(1, 0.0)
    assert scene.sent(0.0) == [1]
    assert silent_at(scene) == pytest.approx(1.55)


def test_silence_is_believed_at_the_second_look() -> None:
    """After this process was held up, an answer that lay there unread is still read."""
    scene = Scene()
    scene.granted(1, 12)
    scene.keep(1, 0.0)
    assert scene.sent(0.0) == [1]
    assert not scene.lane.tick(9.0), "far too late, and so the first look"
    assert scene.lane.next_tick() == 9.05
    received(scene.lane, answer(1, 12), 9.01)
    assert not scene.lane.tick(9.05)
    assert scene.sent(9.05) == [1]
    assert not scene.lane.tick(10.0), "it has answered: that look does not count any more"
    assert silent_at(scene) == pytest.approx(9.05 + 0.6 * 2.95 + 0.05)


def test_where_there_is_no_other_endpoint_the_silence_costs_nothing() -> None:
    """A stream that is too silent, and yet not left, wants no tick for that again and again."""
    scene = Scene()
    scene.granted(1, 12)
    scene.keep(1, 0.0)
    assert scene.sent(0.0) == [1]
    at = silent_at(scene)
    times = []
    while (tick := scene.lane.next_tick()) is not None:
        times.append(tick)
        assert (scene.lane.tick(tick) is Wish.ELSEWHERE) == (tick < 12)
        assert len(scene.sent(tick)) <= 1
    assert at < times[0]
    assert times[-1] == 12
    assert len(times) <= 3


def test_slow_answers_are_no_silence() -> None:
    """Answers that take more than a third of the time to live come one after the other."""
    scene = Scene()
    scene.granted(1, 12)
    scene.keep(1, 0.0)
    for at in (0.0, 4.0):
        assert scene.sent(at) == [1]
        assert not scene.lane.tick(at)
    for at in (8.0, 12.0, 16.0, 20.0):
        for tick in (at - 3.1, at - 3.05, at - 3):
            assert not scene.lane.tick(tick)
        received(scene.lane, answer(1, 12), at - 3)
        for tick in (at - 0.1, at - 0.05, at):
            assert not scene.lane.tick(tick)
        assert scene.sent(at) == [1]


def test_closing_ends_all_leases() -> None:
    """Closing the client is told to every keeper."""
    scene = Scene()
    kept = [scene.keep(lease_id, 0.0) for lease_id in (1, 2)]
    scene.rules.close(ClientClosedError("closed"))
    assert [type(each.errors[0]) for each in kept] == [ClientClosedError] * 2
    assert (len(scene.rules), scene.rules.soonest()) == (0, None)


# Keepers.


def test_a_keeper_that_fails_keeps_nobody_from_being_told() -> None:
    """All that a loss concerns is settled before anybody hears of it."""
    scene = Scene()
    scene.granted(1, 10)
    kept = [scene.keep(1, 0.0), scene.keep(1, 0.0)]
    ended: list[bool] = []
    kept[0].keeper.notify = lambda: ended.extend(each.keeper.ended for each in kept)
    scene.rules.expire(10.0)
    assert ended == [True, True]


def test_two_keepers_of_one_lease_share_its_renewals() -> None:
    """Both see each answer; the lease is kept until the last one leaves."""
    scene = Scene()
    scene.granted(1, 9)
    first, second = scene.keep(1, 0.0), scene.keep(1, 0.0)
    assert scene.sent(0.0) == [1]
    received(scene.lane, answer(1, 9), 0.1)
    assert (first.ttls, second.ttls) == ([9], [9])
    scene.rules.remove(first.keeper, 0.2)
    assert scene.lane.wanted
    told = first.notifications
    assert scene.sent(3.0) == [1]
    received(scene.lane, answer(1, 9), 3.1)
    assert (first.ttls, second.ttls) == ([9], [9, 9])
    assert first.notifications == told
    scene.rules.remove(second.keeper, 3.2)
    assert not scene.lane.wanted


def test_a_keeper_can_ask_for_an_answer_of_its_own() -> None:
    """An answer to a request sent before `not_before` is not delivered to that keeper."""
    scene = Scene()
    scene.granted(1, 9)
    first = scene.keep(1, 0.0)
    assert scene.sent(0.0) == [1]
    once = scene.keep(1, 0.5, not_before=0.5)
    assert scene.sent(0.5) == [1]
    received(scene.lane, answer(1, 9), 0.6)
    assert (first.ttls, once.ttls) == ([9], [])
    received(scene.lane, answer(1, 9), 0.7)
    assert (first.ttls, once.ttls) == ([9, 9], [9])


def test_an_answer_on_its_way_does_not_put_off_what_a_new_keeper_asks_for() -> None:
    """It sets another pace, and that begins with the renewal that is due at once."""
    scene = Scene()
    scene.granted(1, 9)
    scene.keep(1, 0.0)
    assert scene.sent(0.0) == [1]
    once = scene.keep(1, 0.5, not_before=0.5)
    received(scene.lane, answer(1, 60), 0.5)
    assert once.ttls == []
    assert scene.sent(0.5) == [1]
    received(scene.lane, answer(1, 60), 0.6)
    assert once.ttls == [60]


@pytest.mark.parametrize(
    "ask",
    [
        lambda scene: len(scene.rules) == 0,
        lambda scene: scene.rules.soonest() is None,
        lambda scene: not scene.lane.wanted,
        lambda scene: scene.sent(4.0) == [],
        lambda scene: not scene.lane.tick(4.0) and scene.lane.next_tick() is None,
        lambda scene: not received(scene.lane, answer(1, 10), 1.0),
    ],
    ids=["len", "soonest", "wanted", "next_request", "tick", "received"],
)
def test_a_keeper_that_was_dropped(ask: Callable[[Scene], bool]) -> None:
    """Nothing changes under anybody's hands; whoever asks next sees that it is gone."""
    scene = Scene()
    scene.granted(1, 10)
    kept = scene.keep(1, 0.0)
    assert scene.sent(0.0) == [1]
    scene.rules.dropped(kept.keeper, 0.5)
    assert not kept.keeper.ended
    assert ask(scene)
    assert kept.keeper.ended
    assert not kept.ttls
    assert not kept.errors
    scene.rules.remove(kept.keeper, 0.6)
    assert kept.notifications == 1
    assert scene.rules.deadline(1) == 10.0


def test_a_keeper_that_was_dropped_and_removed() -> None:
    """Being dropped after it ended, or twice, is nothing."""
    scene = Scene()
    kept = [scene.keep(1, 0.0), scene.keep(1, 0.0)]
    scene.rules.remove(kept[0].keeper, 0.1)
    for _ in range(2):
        scene.rules.dropped(kept[0].keeper, 0.2)
    assert len(scene.rules) == 1
    assert (kept[0].notifications, kept[1].notifications) == (1, 0)


def test_revoked_by_this_client() -> None:
    """A revocation by this client is told at once, and the lease is forgotten."""
    scene = Scene()
    scene.granted(1, 10)
    scene.granted(2, 10)
    kept = scene.keep(1, 0.0)
    scene.rules.revoked(1)
    scene.rules.revoked(2)
    (error,) = kept.errors
    assert isinstance(error, LeaseLostError)
    assert error.reason == "revoked"
    assert scene.rules.deadline(1) is scene.rules.deadline(2) is None


# Memory.


def test_granted_leases_are_forgotten_when_their_time_is_over() -> None:
    """Leases that were granted and left alone do not pile up."""
    rules = LeaseRules()
    for number in range(1, 20_000):
        rules.granted(number, 10, number * 0.1, number * 0.1)
    assert len(rules._known) <= 2 * 100 + 64


@pytest.mark.parametrize("connected", [True, False])
def test_coming_and_going_leaves_nothing_behind(connected: bool) -> None:
    """Keeping the same long lease again and again takes no more memory than keeping it once."""
    scene = Scene()
    scene.granted(1, 1_000_000)
    for number in range(10_000):
        now = number * 0.01
        kept = scene.keep(1, now)
        if connected:
            assert scene.sent(now) == [1]
            received(scene.lane, answer(1, 1_000_000), now)
        scene.rules.remove(kept.keeper, now)
    assert sizes(scene.rules) <= 200


def sizes(rules: LeaseRules) -> int:
    lanes = sum(
        lane._entries + len(lane._times) + len(lane._in_flight) + len(lane.kept)
        for lane in rules.lanes
    )
    return lanes + len(rules._deadlines) + len(rules._kept)
