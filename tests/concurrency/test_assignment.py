"""Who is to have which items: in balance, with as few moves as can be, from any state."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from hypothesis import event, given, settings
from hypothesis import strategies as st

from aioetcd.concurrency._assignment import Plan, plan_for

EXAMPLES = int(os.environ.get("AIOETCD_TEST_EXAMPLES", "300"))

MEMBERS = [*"abcdefg"]
ITEMS = [f"item-{number:02}".encode() for number in range(25)]


def plans(
    members: Collection[str], items: Sequence[bytes], holders: Mapping[bytes, str]
) -> dict[str, Plan]:
    """What each member is to do, where all see the same."""
    return {member: plan_for(member, members, items, holders) for member in members}


def counts(members: Collection[str], holders: Mapping[bytes, str]) -> list[int]:
    """How many items each member has."""
    held = Counter(holders.values())
    return sorted(held[member] for member in members)


@st.composite
def states(draw: st.DrawFn) -> tuple[list[str], list[bytes], dict[bytes, str]]:
    """Members, items, and who has them: anybody, also who is no member any more, or nobody."""
    members = draw(st.lists(st.sampled_from(MEMBERS), min_size=1, unique=True))
    items = ITEMS[: draw(st.integers(1, len(ITEMS)))]
    holder = st.sampled_from([*MEMBERS[:4], None])
    holders = {item: who for item in items if (who := draw(holder)) is not None}
    return members, items, holders


@settings(max_examples=EXAMPLES)
@given(states())
def test_one_step(state: tuple[list[str], list[bytes], dict[bytes, str]]) -> None:
    """Nobody claims what is not free, nor two the same; nobody gives up what is within its quota.

    As few as possible are given up; without them and with the free ones all are in balance.
    """
    members, items, holders = state
    least, extra = divmod(len(items), len(members))
    held = Counter(holders.values())
    decided = plans(members, items, holders)
    claimed = [item for plan in decided.values() for item in plan.claim]
    assert len(claimed) == len(set(claimed))
    assert not set(claimed) & holders.keys()
    for member, plan in decided.items():
        assert all(holders[item] == member for item in plan.release)
        assert not plan.release or not plan.claim
        kept = held[member] - len(plan.release)
        assert not plan.release or least <= kept <= least + 1
    above = sum(held[member] > least for member in members)
    too_many = sum(max(held[member] - least, 0) for member in members)
    assert sum(len(plan.release) for plan in decided.values()) == too_many - min(above, extra)
    of_strangers = sum(who not in members for who in holders.values())
    if not of_strangers:
        free = len(items) - len(holders)
        wanted = sum(
            max(least - held[member] + len(plan.release), 0) for member, plan in decided.items()
        )
        assert len(claimed) >= min(free, wanted)


@settings(max_examples=EXAMPLES)
@given(states())
def test_all_at_once(state: tuple[list[str], list[bytes], dict[bytes, str]]) -> None:
    """Where all see the same, two rounds lead to balance; then nobody does anything."""
    members, items, holders = state
    holders = {item: who for item, who in holders.items() if who in members}
    for _ in range(2):
        decided = plans(members, items, holders)
        for member, plan in decided.items():
            for item in plan.release:
                del holders[item]
            holders |= dict.fromkeys(plan.claim, member)
    assert holders.keys() == set(items)
    assert counts(members, holders)[-1] - counts(members, holders)[0] <= 1
    assert all(plan == ([], []) for plan in plans(members, items, holders).values())


def test_who_is_no_member_does_nothing() -> None:
    """Neither with what it has, nor with what is free."""
    assert plan_for("c", ["a", "b"], ITEMS, {ITEMS[0]: "c"}) == ((), ())


def test_one_more_stays_where_it_is() -> None:
    """A member that comes last by name keeps what it has before the first one gets it."""
    holders = {ITEMS[0]: "b", ITEMS[1]: "b"}
    assert plan_for("b", ["a", "b"], ITEMS[:3], holders) == ([], [])
    assert plan_for("a", ["a", "b"], ITEMS[:3], holders) == ([], [ITEMS[2]])


def test_what_is_given_up_already_goes_first() -> None:
    """Not another one beside it."""
    holders = dict.fromkeys(ITEMS[:4], "a")
    plan = plan_for("a", ["a", "b"], ITEMS[:4], holders, ending={ITEMS[0]})
    assert sorted(plan.release) == [ITEMS[0], ITEMS[3]]


def test_more_members_than_items() -> None:
    """Some have one item, the others none, and nobody gives it up for them."""
    holders = {ITEMS[0]: "c", ITEMS[1]: "b"}
    assert all(plan == ([], []) for plan in plans("abcde", ITEMS[:2], holders).values())


@dataclass
class World:
    """A store, and members that are behind it, each by as much as it happens.

    Attributes:
        history: The members and the holders at each revision.
        seen: The revision that each member sees.
        asked: What each member has asked for, and not seen to be done.
    """

    history: list[tuple[frozenset[str], dict[bytes, str]]]
    seen: dict[str, int]
    asked: dict[str, dict[bytes, str]] = field(default_factory=dict)
    moves: int = 0

    def write(self, members: frozenset[str], holders: dict[bytes, str]) -> None:
        """Make a revision."""
        self.history.append((members, holders))

    def step(self, member: str, items: Sequence[bytes], most: int) -> None:
        """Have a member do some of what it is to do, as it sees things."""
        members, holders = self.history[self.seen[member]]
        asked = self.asked.setdefault(member, {})
        for item, verb in [*asked.items()]:
            if (holders.get(item) == member) == (verb == "claim"):
                del asked[item]
        ending = {item for item, verb in asked.items() if verb == "release"}
        claiming = dict.fromkeys((i for i, verb in asked.items() if verb == "claim"), member)
        plan = plan_for(member, members, items, claiming | holders, ending=ending)
        wanted = [(item, "release") for item in plan.release if item not in asked]
        wanted += [(item, "claim") for item in plan.claim if item not in asked]
        for item, verb in wanted[:most]:
            now_members, now = self.history[-1]
            if verb == "release" and now.get(item) == member:
                self.write(now_members, {k: v for k, v in now.items() if k != item})
            elif verb == "claim" and item not in now:
                self.write(now_members, now | {item: member})
            else:
                continue
            self.moves += 1
            asked[item] = verb


@settings(max_examples=EXAMPLES)
@given(state=states(), data=st.data())
def test_members_that_are_behind(
    state: tuple[list[str], list[bytes], dict[bytes, str]], data: st.DataObject
) -> None:
    """Whatever each sees, and whoever comes and goes: they agree in the end, and it is balanced."""
    start, items, holders = state
    members = frozenset(start)
    holders = {item: who for item, who in holders.items() if who in members}
    world = World([(members, holders)], dict.fromkeys(MEMBERS, 0))
    for _ in range(data.draw(st.integers(0, 30))):
        who = data.draw(st.sampled_from(MEMBERS))
        members, holders = world.history[-1]
        verb = data.draw(st.sampled_from(["look", "look", "act", "act", "come or go"]))
        if verb == "look":
            newest = len(world.history) - 1
            world.seen[who] = data.draw(st.integers(world.seen[who], newest))
        elif verb == "act" and who in members:
            world.step(who, items, data.draw(st.integers(1, 5)))
        elif who not in members:
            world.write(members | {who}, holders)
            world.asked[who] = {}
        elif verb == "come or go" and len(members) > 1:
            left = {item: holder for item, holder in holders.items() if holder != who}
            world.write(members - {who}, left)
    # Nobody comes nor goes any more; they look, and act, one after the other, in any order.
    members, _ = world.history[-1]
    before, rounds = world.moves, 0
    while True:
        done = world.moves
        for who in data.draw(st.permutations(sorted(members))):
            world.seen[who] = data.draw(st.integers(world.seen[who], len(world.history) - 1))
            world.step(who, items, len(items))
        for who in members:
            world.seen[who] = len(world.history) - 1
        rounds += 1
        if world.moves == done and rounds > 1:
            break
        assert rounds < 10, "they do not come to an end"
    event(f"{rounds} rounds")
    holders = world.history[-1][1]
    assert holders.keys() == set(items)
    assert counts(members, holders)[-1] - counts(members, holders)[0] <= 1
    assert world.moves - before <= 4 * len(items)
