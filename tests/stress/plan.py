"""Which faults happen when: decided by a seed alone, before anything runs."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass

LANES = {
    "members": {
        "kill": 4,
        "pause": 3,
        "isolate": 4,
        "move_leader": 3,
        "compact": 4,
        "replace": 1,
    },
    "network": {
        "cut": 4,
        "cut_after": 4,
        "close": 2,
        "refuse": 2,
        "hang": 2,
        "blackhole": 3,
        "requests_lost": 2,
        "answers_lost": 3,
        "delay": 2,
        "slow_link": 2,
        "slow_consumer": 3,
    },
    "clients": {"cancel_host": 2, "cancel_all_tasks": 2},
}
"""Faults by what they hit, with their weights: one of each lane may be under way at a time."""

PAUSES = {"clients": (2.0, 8.0)}
"""The seconds from one fault to the next of a lane, where they are not 0.5 to 3."""
INSTANT = {"cut", "close", "move_leader", "compact", "replace", *LANES["clients"]}
EVERYWHERE = 3
"""Stands for all members in place of one's index."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        at: Seconds after the start.
        lane: What it hits.
        kind: What it is.
        member: Whom it hits; `EVERYWHERE` (in the network) hits the ways to all of them. So does
            one that would hit a way on which nothing is sent. Which client is hit, `amount` says.
        seconds: How long it lasts.
        amount: How much of it, between 0 and 1, where that has a meaning.
    """

    at: float
    lane: str
    kind: str
    member: int
    seconds: float
    amount: float


def plan(seed: int, seconds: float, *, without: Collection[str] = ()) -> list[Fault]:
    """Decide all faults of a run; the same arguments give the same plan.

    Args:
        seed: Decides everything.
        seconds: No fault begins later.
        without: Kinds to leave out.
    """
    faults = []
    for lane, kinds in LANES.items():
        chance = random.Random(f"{seed} {lane}")
        names = [kind for kind in kinds if kind not in without]
        weights = [kinds[kind] for kind in names]
        at = chance.uniform(1, 3)
        while names and at < seconds:
            (kind,) = chance.choices(names, weights)
            lasts = 0.0 if kind in INSTANT else chance.choice((0.3, 1, 3, 7)) * chance.uniform(1, 2)
            member = chance.randrange(EVERYWHERE)
            if lane == "network" and chance.random() < 0.5:  # clients may have left a member
                member = EVERYWHERE
            faults.append(Fault(at, lane, kind, member, lasts, chance.random()))
            at += lasts + chance.uniform(*PAUSES.get(lane, (0.5, 3.0)))
    return sorted(faults, key=lambda fault: fault.at)
