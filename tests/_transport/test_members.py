"""Which member is asked, and when another one is looked at: the rules alone."""

from __future__ import annotations

from random import Random

import pytest

from aioetcd._transport.members import HEAD_START, SECOND_CHOICE, Health, Member, Members
from aioetcd._verdicts.table import Blame
from aioetcd.config.endpoints import parse_endpoints

OURS, OTHER = 7, 8


class Scene:
    """Members, and a clock."""

    def __init__(self, count: int = 3) -> None:
        endpoints = parse_endpoints([f"m{number}:1" for number in range(count)])
        self.members = Members(endpoints, Random(1))
        self.now = 100.0

    def __getitem__(self, number: int) -> Member:
        return list(self.members)[number]

    def next_one(self) -> Member | None:
        """Look at whoever is due."""
        member = self.members.due(self.now)
        if member is not None:
            self.members.looking(member, self.now)
            self.members.connected(member)
        return member

    def see(self, member: Member, health: Health, cluster_id: int = OURS) -> None:
        """What was found."""
        why = None if health is Health.WELL else "it is so"
        self.members.seen(member, member.epoch, health, why, self.now, cluster_id=cluster_id)

    def all_seen(self, *healths: Health) -> None:
        """Look at all of them, and find them so, in their own order."""
        for member, health in zip(self.members, healths, strict=True):
            self.members.looking(member, self.now)
            self.members.connected(member)
            self.see(member, health)


def test_each_has_a_head_start() -> None:
    """One after the other is looked at; a failure does not wait for the next one's time."""
    scene = Scene()
    first = scene.next_one()
    assert first is not None
    assert scene.next_one() is None
    assert scene.members.next_due(scene.now) == scene.now + HEAD_START
    scene.see(first, Health.DOWN)
    second = scene.next_one()
    assert second not in (None, first)
    scene.now += HEAD_START
    assert scene.next_one() not in (None, first, second)


def test_chance_decides_who_is_first() -> None:
    """The clients of a fleet do not all go to the first endpoint of the list."""
    endpoints = parse_endpoints(["a:1", "b:1", "c:1"])
    chosen = {
        member.endpoint.name
        for seed in range(30)
        if (member := Members(endpoints, Random(seed)).due(0.0)) is not None
    }
    assert chosen == {"a:1", "b:1", "c:1"}


def test_the_first_who_is_well_is_used() -> None:
    """And nobody is looked at any more."""
    scene = Scene()
    first = scene.next_one()
    assert first is not None
    scene.see(first, Health.WELL)
    assert scene.members.current is first
    assert not scene.members.is_searching


def test_an_odd_one_is_a_second_choice() -> None:
    """It is used when the others do not answer, or are worse; a better one takes over."""
    scene = Scene()
    first = scene.next_one()
    assert first is not None
    scene.see(first, Health.ODD)
    assert scene.members.current is None
    scene.now += SECOND_CHOICE
    scene.members.choose(scene.now)
    assert scene.members.current is first
    assert scene.members.is_searching
    second = scene.next_one()
    assert second is not None
    scene.see(second, Health.WELL)
    assert scene.members.current is second
    scene = Scene()
    scene.all_seen(Health.DOWN, Health.ODD, Health.DOWN)
    assert scene.members.current is scene[1]


@pytest.mark.parametrize("blame", Blame)
def test_who_is_to_blame(blame: Blame) -> None:
    """The member is left for what speaks against it or the way to it, and for nothing else."""
    scene = Scene()
    scene.all_seen(Health.WELL, Health.WELL, Health.WELL)
    used = scene.members.current
    assert used is not None
    moves = scene.members.failed(used, used.epoch, blame, "it broke", scene.now)
    assert moves is (blame in (Blame.MEMBER, Blame.CONNECTION))
    assert scene.members.current is (None if moves else used)


def test_an_old_epoch_blames_nobody() -> None:
    """What comes late from a connection that was replaced changes nothing."""
    scene = Scene(1)
    scene.all_seen(Health.WELL)
    old = scene[0].epoch
    scene.members.connected(scene[0])
    assert not scene.members.failed(scene[0], old, Blame.CONNECTION, "late", scene.now)
    scene.members.seen(scene[0], old, Health.DOWN, "late", scene.now)
    assert scene.members.current is scene[0]
    assert scene[0].health is Health.WELL


def test_the_failed_one_comes_after_the_others() -> None:
    """Another one is looked at first; alone it is looked at at once."""
    scene = Scene(2)
    scene.all_seen(Health.WELL, Health.WELL)
    used, other = scene[0], scene[1]
    scene.members.failed(used, used.epoch, Blame.CONNECTION, "cut", scene.now)
    assert scene.next_one() is other
    alone = Scene(1)
    alone.all_seen(Health.WELL)
    alone.members.failed(alone[0], alone[0].epoch, Blame.CONNECTION, "cut", alone.now)
    assert alone.next_one() is alone[0]


def test_the_pauses_grow_to_a_second() -> None:
    """One that is down is looked at again and again, and not all the time."""
    scene = Scene(1)
    pauses = []
    for _ in range(12):
        assert scene.next_one() is scene[0]
        scene.see(scene[0], Health.DOWN)
        at = scene.members.next_due(scene.now)
        pauses.append(at - scene.now)
        scene.now = at
    assert 0.05 <= pauses[0] <= 0.1
    assert all(0.5 <= pause <= 1 for pause in pauses[5:])


def test_another_cluster_is_not_used() -> None:
    """The first answer decides which cluster it is; when all are another one, it is that."""
    scene = Scene()
    scene.all_seen(Health.WELL, Health.DOWN, Health.DOWN)
    scene.see(scene[1], Health.WELL, OTHER)
    assert scene[1].health is Health.DOWN
    assert scene[1].reason is not None
    assert f"{OTHER:x}" in scene[1].reason
    assert (scene.members.current, scene.members.moves) == (scene[0], 0)
    scene.members.failed(scene[0], scene[0].epoch, Blame.CONNECTION, "cut", scene.now)
    scene.see(scene[0], Health.WELL, OTHER)
    assert scene.members.moves == 0
    scene.see(scene[2], Health.WELL, OTHER)
    assert (scene.members.current, scene.members.moves) == (scene[2], 1)
    assert scene.members.is_ours(OTHER)
    assert not scene.members.is_ours(OURS)


def test_another_list() -> None:
    """Those that stay keep what is known of them; the one in use may be gone."""
    scene = Scene()
    scene.all_seen(Health.WELL, Health.DOWN, Health.WELL)
    used, down, gone = scene.members
    assert scene.members.replace(parse_endpoints("m0:1,m1:1,m9:1"), scene.now) == [gone]
    assert [scene[0], scene[1]] == [used, down]
    assert scene.members.current is used
    assert scene.members.replace(parse_endpoints("m9:1"), scene.now) == [used, down]
    assert scene.members.current is None
    assert scene.next_one() is scene[0]


def test_elsewhere() -> None:
    """A call that the member's role stands against goes to the best other one."""
    scene = Scene()
    scene.all_seen(Health.WELL, Health.DOWN, Health.WELL)
    assert scene.members.other(scene[0]) is scene[2]
    alone = Scene(1)
    assert alone.members.other(alone[0]) is None
