"""Right histories: whatever a right store makes breaks no rule."""

from dataclasses import replace
from random import Random

import pytest

from aioetcd.testing import checkers
from aioetcd.testing.history import (
    Comparison,
    Delete,
    EventKind,
    Get,
    Operation,
    Outcome,
    Put,
    Recorder,
    Request,
    Subscription,
    Txn,
)
from tests.testing.store import Store, failed, is_absent

KEYS = [b"a", b"a1", b"a2", b"b"]
RANGES = [(b"a", b"b"), (b"a", b"\0"), (b"\0", b"\0"), (b"a1", None), (b"z", b"\0")]
KINDS = ["put", "put", "put", "get", "get", "delete", "cas", "absent", "old", "empty"]


def request_of(kind: str, key: bytes, range_: tuple[bytes, bytes | None], number: int) -> Request:
    """One random request; every put has a value of its own."""
    value = str(number).encode()
    if kind == "put":
        return Put(key, value)
    if kind == "get":
        return Get(*range_, limit=number % 3 or None)
    if kind == "delete":
        return Delete(*range_)
    if kind == "cas":
        previous = str(number - 1).encode()
        compare = Comparison(key, "value", "==", previous)
        return Txn((compare,), (Put(key, value),), (Get(key),))
    if kind == "absent":
        return Txn((is_absent(key),), (Put(key, value),), (Delete(key), Put(b"other", value)))
    if kind == "old":
        return Txn((is_absent(key),), (Delete(*range_),), (Delete(*range_),))
    return Txn()


@pytest.mark.parametrize("seed", range(30))
def test_right_histories_pass(seed: int) -> None:
    """What a right store with overlapping calls and lost answers makes breaks no rule."""
    random, store, recorder = Random(seed), Store(), Recorder()
    for number in range(200):
        kind, key, range_ = random.choice(KINDS), random.choice(KEYS), random.choice(RANGES)
        request = request_of(kind, key, range_, number)
        if random.random() < 0.1:  # lost on the way there
            outcome: Outcome = "unknown" if random.random() < 0.5 else "not_applied"
            recorder.add(Operation("c0", request, store.now, store.now + 9, outcome))
            continue
        done = store.apply(request, f"c{random.randrange(3)}")
        done = replace(
            done,
            call_ns=done.call_ns - random.randrange(100),
            return_ns=done.return_ns + random.randrange(100),
        )
        recorder.add(failed(done, "unknown") if random.random() < 0.1 else done)
    start, per_batch = random.randrange(1, 40), random.randrange(1, 6)
    for number, (key, end) in enumerate([(b"a", None), (b"a", b"b"), (b"\0", b"\0")]):
        only = random.choice([None, *EventKind])
        subscription = Subscription(f"w{number}", key, start, end, only, prev_kv=True)
        recorder.add(subscription)
        for delivery in store.watch(subscription, per_batch=per_batch):
            recorder.add(delivery)
    for record in store.revisions:
        recorder.add(record)
    assert checkers.check_history(recorder, watched_through=store.revision) == []
