"""Who of a partitioner's members is to have which items: each works it out for itself, without I/O.

What holds for members that see the same:

- What they would claim is free, and no two of them would claim the same.
- Once all that is done, each has the same number of items, or one more; then nobody does anything.
- As few items as possible go from one to another: nobody gives up what is within its quota, and
  the quotas that have one more are of those that have so many already.

Members that see different revisions for a while may claim the same, which the store decides, or too
much, which they give up again; they agree as soon as they see the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence, Set
from itertools import islice
from typing import NamedTuple


class Plan(NamedTuple):
    """What a member is to do.

    Attributes:
        release: Which of its items to give up.
        claim: Which of the free ones to take.
    """

    release: Sequence[bytes]
    claim: Sequence[bytes]


def plan_for(
    me: str,
    members: Collection[str],
    items: Sequence[bytes],
    holders: Mapping[bytes, str],
    *,
    ending: Set[bytes] = frozenset(),
) -> Plan:
    """Work out what a member is to do.

    Args:
        me: The member; one who is none of the members does nothing.
        members: All of them.
        items: What is shared out, in the order of the items.
        holders: Who has an item; perhaps somebody who is no member any more.
        ending: Which of its own items the member is giving up already.
    """
    if me not in members:
        return Plan((), ())
    held = Counter(holders.values())
    least, extra = divmod(len(items), len(members))
    richest_first = sorted(members, key=lambda member: (held[member] <= least, member))
    quotas = {member: least + (place < extra) for place, member in enumerate(richest_first)}
    mine = [item for item in items if holders.get(item) == me]
    mine.sort(key=lambda item: item in ending)
    free = (item for item in items if item not in holders)
    claim: Sequence[bytes] = ()
    for member in sorted(members):
        wanted = [*islice(free, max(quotas[member] - held[member], 0))]
        if member == me:
            claim = wanted
            break
    return Plan(mine[quotas[me] :], claim)
