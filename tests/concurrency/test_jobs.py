"""Which job of a work queue is the next, by what a worker was told: rules without a server."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aioetcd import KeyValue
from aioetcd.concurrency._jobs import Found, Jobs, Keys
from aioetcd.concurrency._mirror import Step

OURS, THEIRS = 7, 8
KEYS = Keys(b"q")


class Store:
    """What the server has, and what a worker that follows it is told."""

    def __init__(self) -> None:
        self.kvs: dict[bytes, KeyValue] = {}
        self.revision = 1
        self.jobs = Jobs(KEYS, OURS)
        self.told: dict[bytes, KeyValue] = {}
        self.untold: list[list[Step]] = []

    def change(self, *changes: tuple[str, str, int | None] | tuple[str, str]) -> int:
        """Put keys (kind, id, lease), and delete others (kind, id), at one revision."""
        self.revision += 1
        steps = []
        for kind, id, *lease in changes:
            key = KEYS.key(kind, id.encode())
            old = self.kvs.pop(key, None)
            new = None
            if lease:
                created = old.create_revision if old else self.revision
                version = old.version + 1 if old else 1
                value = str(version).encode()
                new = KeyValue(key, value, created, self.revision, version, lease[0])
                self.kvs[key] = new
            steps.append(Step(old, new))
        self.untold.append(steps)
        return self.revision

    def put(self, *ids: str) -> None:
        for id in ids:
            self.change(("items", id, None))

    def claim(self, id: str, lease: int) -> int:
        return self.change(("claims", id, lease), ("attempts", id, None))

    def kinds_of(self, id: str) -> list[str]:
        kinds = ("items", "claims", "delays")
        return [kind for kind in kinds if KEYS.key(kind, id.encode()) in self.kvs]

    def tell(self) -> list[bytes]:
        """Tell the next revision; give the claims that are to be given back."""
        for step in self.untold[0]:
            if step.new is not None:
                self.told[step.new.key] = step.new
            elif step.old is not None:
                del self.told[step.old.key]
        strange = self.jobs.apply(self.untold.pop(0), self.told)
        return [claim.key for claim in strange]

    def tell_all(self) -> list[bytes]:
        return [claim for _ in range(len(self.untold)) for claim in self.tell()]


@pytest.fixture
def store() -> Store:
    return Store()


def take(jobs: Jobs) -> Found:
    found = jobs.take()
    assert found is not None
    return found


def ids(found: Iterable[Found | None]) -> list[bytes | None]:
    return [each and each.id for each in found]


def test_the_earliest_is_the_next(store: Store) -> None:
    """Jobs are taken in the order in which they were put, each once."""
    store.put("b", "a", "c")
    store.tell_all()
    assert ids(store.jobs.take() for _ in range(4)) == [b"b", b"a", b"c", None]


@pytest.mark.parametrize("kind", ["claims", "delays"])
def test_what_is_claimed_or_delayed_is_passed_over(store: Store, kind: str) -> None:
    """And comes back to its old place."""
    store.put("a", "b")
    store.change((kind, "a", THEIRS))
    store.tell_all()
    assert take(store.jobs).id == b"b"
    assert not store.jobs.is_any
    store.put("c")
    store.change((kind, "a"))
    store.tell_all()
    assert ids(store.jobs.take() for _ in range(3)) == [b"a", b"c", None]


def test_what_was_lost_is_passed_over_until_that_is_told(store: Store) -> None:
    """Who lost a race takes nothing before it was told of that: it may be free again by now."""
    store.put("a", "b")
    store.tell_all()
    found = take(store.jobs)
    store.claim("a", THEIRS)
    store.jobs.ended(found, is_known=True)
    assert not store.jobs.is_any
    store.tell_all()
    assert ids(store.jobs.take() for _ in range(2)) == [b"b", None]
    store.change(("claims", "a"))
    store.tell_all()
    again = take(store.jobs)
    assert again.id == b"a"
    assert again.attempts is not None


def test_what_was_won_is_passed_over(store: Store) -> None:
    """Others here take the next one, though what was won was not told yet."""
    store.put("a", "b")
    store.tell_all()
    found = take(store.jobs)
    store.claim("a", OURS)
    store.jobs.ended(found, is_known=True, is_won=True)
    assert ids(store.jobs.take() for _ in range(2)) == [b"b", None]


def test_what_is_read_again_is_news(store: Store) -> None:
    """What was lost meanwhile may be as it was, and nobody tells that: it may be tried."""
    store.put("a", "b")
    store.tell_all()
    store.jobs.ended(take(store.jobs), is_known=True)
    assert not store.jobs.is_any
    store.told = dict(store.told)
    assert store.jobs.apply([], store.told) == []
    assert ids(store.jobs.take() for _ in range(2)) == [b"a", b"b"]


def test_what_was_told_before_the_answer_counts(store: Store) -> None:
    """A race that was lost to somebody who is gone already passes nothing over."""
    store.put("a")
    store.tell_all()
    found = take(store.jobs)
    store.claim("a", THEIRS)
    store.change(("claims", "a"))
    store.tell_all()
    assert store.jobs.take() is None  # one of us is about to
    store.jobs.ended(found, is_known=True)
    assert take(store.jobs).id == b"a"


def test_what_was_given_up_is_the_next_again(store: Store) -> None:
    """Where nobody knows what became of it, it may be taken at once."""
    store.put("a", "b")
    store.tell_all()
    store.jobs.ended(take(store.jobs), is_known=False)
    assert ids(store.jobs.take() for _ in range(2)) == [b"a", b"b"]


def test_k4_a_claim_that_nobody_has_is_given_back(store: Store) -> None:
    """One on this worker's lease that arrives when its taker is gone; no other's, none held."""
    store.put("a", "b", "c")
    store.tell_all()
    store.jobs.ended(take(store.jobs), is_known=False)
    store.claim("a", OURS)
    store.claim("b", THEIRS)
    held = store.claim("c", OURS)
    store.jobs.held[b"c"] = held
    assert store.tell_all() == [KEYS.key("claims", b"a")]
    assert store.jobs.attempt(store.kvs[KEYS.key("claims", b"a")]) == 1


def test_k4_a_claim_that_arrives_while_another_one_tries(store: Store) -> None:
    """It is for who tries to decide; what that does not take is given back at its end."""
    store.put("a")
    store.tell_all()
    store.jobs.ended(take(store.jobs), is_known=False)
    found = take(store.jobs)
    store.claim("a", OURS)
    assert store.tell_all() == []
    strange = store.jobs.ended(found, is_known=False)
    assert strange is not None
    assert strange.key == KEYS.key("claims", b"a")


def test_a_claim_is_forgotten_when_it_is_gone(store: Store) -> None:
    """What is remembered of the jobs that one had is bounded by those that there are."""
    store.put("a")
    store.tell_all()
    found = take(store.jobs)
    store.jobs.held[b"a"] = store.claim("a", OURS)
    store.jobs.ended(found, is_known=True)
    store.change(("claims", "a"), ("items", "a"), ("attempts", "a"))
    store.tell()
    assert store.jobs.held != {}
    store.tell()
    assert store.jobs.held == {}
    assert store.jobs.take() is None


@settings(max_examples=300)
@given(st.data())
def test_any_order(data: st.DataObject) -> None:
    """Whatever happens in whatever order: the first that may be taken, by what is known, is given.

    And in the end, all told and nobody about to take anything, every free job is given.
    """
    store, names = Store(), ["a", "b", "c", "d"]
    taking: list[Found] = []
    behind: set[bytes] = set()
    lost: set[bytes] = set()
    kinds = ["put", "free", "claim", "delay", "ack", "tell", "take", "end"]
    for _ in range(data.draw(st.integers(1, 40))):
        what = data.draw(st.sampled_from(kinds))
        id = data.draw(st.sampled_from(names))
        there = store.kinds_of(id)
        if what == "put" and not there:
            store.put(id)
        elif what == "free" and len(there) > 1:
            store.change((there[1], id))
        elif what == "claim" and there == ["items"]:
            store.claim(id, THEIRS)
        elif what == "delay" and there == ["items"]:
            store.change(("delays", id, 9))
        elif what == "ack" and there == ["items", "claims"]:
            store.change(("items", id), ("claims", id), ("attempts", id))
        elif what == "tell" and store.untold:
            changed = [step.new or step.old for step in store.untold[0]]
            told = {KEYS.parse(kv.key)[1] for kv in changed if kv is not None}
            assert store.tell() == []
            behind, lost = behind - told, lost - told
        elif what == "take":
            taken = {found.id for found in taking}
            free = [f for f in free_ones(store.told) if f.id not in taken | behind]
            free = [] if lost else free
            found = store.jobs.take()
            assert found == min(free, key=lambda f: f.item.create_revision, default=None)
            assert store.jobs.is_any == (len(free) > 1)
            if found is not None:
                taking.append(found)
        elif what == "end" and taking:
            found = taking.pop(data.draw(st.integers(0, len(taking) - 1)))
            is_known = found not in free_ones(store.kvs)
            is_won = is_known and data.draw(st.booleans())
            assert store.jobs.ended(found, is_known=is_known, is_won=is_won) is None
            if is_known and found in free_ones(store.told):
                (behind if is_won else lost).add(found.id)
    for found in taking:
        store.jobs.ended(found, is_known=False)
    assert store.tell_all() == []
    left = sorted(free_ones(store.kvs), key=lambda found: found.item.create_revision)
    assert [store.jobs.take() for _ in range(len(left) + 1)] == [*left, None]


def free_ones(kvs: dict[bytes, KeyValue]) -> list[Found]:
    """Find the jobs that may be taken, the slow way."""
    return [
        Found(id, kv, kvs.get(KEYS.key("attempts", id)))
        for key, kv in kvs.items()
        for kind, id in [KEYS.parse(key)]
        if kind == "items"
        and KEYS.key("claims", id) not in kvs
        and KEYS.key("delays", id) not in kvs
    ]
