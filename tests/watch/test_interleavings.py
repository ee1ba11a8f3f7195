"""Whatever happens to a watch: the rules and a model server, driven by random scripts."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from aioetcd._proto import rpc_pb2
from aioetcd.errors import (
    CompactedError,
    PermissionDeniedError,
    UnavailableError,
)
from aioetcd.watch import _state
from aioetcd.watch._state import Phase, WatchRules, WatchSpec, WatchState
from tests.watch.model import KEYS, ServerStream, Store, Watcher

EXAMPLES = int(os.environ.get("AIOETCD_TEST_EXAMPLES", "1000"))


class Followed:
    """A watch, what its consumer took, and what it should have got."""

    def __init__(self, key: bytes | None, start: int | None, filters: tuple[int, ...]) -> None:
        spec = WatchSpec(
            key or b"\0",
            None if key else b"\0",
            filters=filters,  # type: ignore[arg-type]  # plain ints are what the enum holds
        )
        self.state = WatchState(spec, start, lambda: None)
        self.start = start
        self.wanted = Watcher(
            key,
            0,
            rpc_pb2.WatchCreateRequest.NOPUT not in filters,
            rpc_pb2.WatchCreateRequest.NODELETE not in filters,
        )
        self.taken: list[tuple[int, int, bytes]] = []
        self.bookmark = 0
        self.last_of_batch = 0
        # A watch "from now on" may begin at the earliest here.
        self.begun_after = 0


class World:
    """Client rules and a model server, driven step by step."""

    def __init__(self) -> None:
        self.store = Store()
        self.rules = WatchRules(self.ask)
        self.stream: ServerStream | None = None
        self.followed: list[Followed] = []
        self.now = 0.0
        self.asked = False

    def ask(self) -> None:
        self.asked = True

    def step(self, op: str, a: int, b: int) -> None:
        getattr(self, f"do_{op}")(a, b)
        self.check()

    # The world's doings.

    def do_write(self, a: int, b: int) -> None:
        changes = [((a >> i) & 1, KEYS[(b >> i) % len(KEYS)]) for i in range(1 + a % 5)]
        self.store.write(changes)

    def do_compact(self, a: int, b: int) -> None:
        self.store.compacted = max(self.store.compacted, 1 + a % self.store.revision)

    def do_open(self, a: int, b: int) -> None:
        if self.stream is None:
            self.stream = ServerStream(
                self.store, refusal_id=(-1, 0, None)[a % 3], late_created=b % 2 == 0
            )
            self.rules.opened("here", self.now)
            self.rules.checked_version(trusted=True)

    def do_cut(self, a: int, b: int) -> None:
        if self.stream is not None:
            self.stream = None
            self.rules.lost(UnavailableError("cut"), final=False, now=self.now)

    def do_send(self, a: int, b: int) -> None:
        for _ in range(1 + a % 4):
            if self.stream is None:
                return
            request = self.rules.next_request(self.now)
            if request is None:
                return
            self.stream.requests.append(request)

    def do_serve(self, a: int, b: int) -> None:
        if self.stream is not None:
            for _ in range(1 + a % 3):
                self.stream.serve(extra_write=b % 2 == 0)

    def do_refuse(self, a: int, b: int) -> None:
        if self.stream is not None:
            self.stream.refuse_next = True

    def do_events(self, a: int, b: int) -> None:
        if self.stream is not None:
            self.stream.send_events(a, most=1 + b % 4, fragment_size=1 + (a + b) % 5)

    def do_progress(self, a: int, b: int) -> None:
        if self.stream is not None:
            self.stream.send_progress(a)

    def do_receive(self, a: int, b: int) -> None:
        for _ in range(1 + a % 4):
            if self.stream is None or not self.stream.answers:
                return
            response = self.stream.answers.popleft()
            # Over the wire and back, as it really comes.
            response = rpc_pb2.WatchResponse.FromString(response.SerializeToString())
            self.rules.received(response, self.now)

    def do_tick(self, a: int, b: int) -> None:
        self.now += (a % 10) / 10
        self.rules.tick(self.now)

    def do_ask_progress(self, a: int, b: int) -> None:
        if followed := self._pick(a):
            self.rules.ask_progress(followed.state)

    # The user's doings.

    def _pick(self, a: int) -> Followed | None:
        live = [f for f in self.followed if f.state.phase is not Phase.ENDED]
        return live[a % len(live)] if live else None

    def do_add(self, a: int, b: int) -> None:
        key = (None, *KEYS)[a % 4]
        start = None if b % 3 == 0 else max(1, self.store.revision - 3 + b % 8)
        filters = ((), (), (0,), (1,))[(a + b) % 4]
        followed = Followed(key, start, filters)
        followed.begun_after = self.store.revision
        self.followed.append(followed)
        self.rules.add(followed.state)

    def do_cancel(self, a: int, b: int) -> None:
        if followed := self._pick(a):
            self.take_all(followed)
            self.rules.cancel(followed.state)
            assert self.rules.take(followed.state) == (None, False)

    def do_take(self, a: int, b: int) -> None:
        live = [f for f in self.followed if f.state.inbox]
        if live:
            self.take_one(live[a % len(live)])

    # What must hold.

    def take_all(self, followed: Followed) -> None:
        while self.take_one(followed):
            pass

    def take_one(self, followed: Followed) -> bool:
        batch, _ = self.rules.take(followed.state)
        if batch is None:
            return False
        assert batch.revision >= followed.bookmark, "a bookmark went back"
        if batch.events:
            assert batch.events[0].kv.mod_revision > followed.last_of_batch, "a revision was split"
            assert batch.events[0].kv.mod_revision > followed.bookmark, "an event behind a bookmark"
            followed.last_of_batch = batch.events[-1].kv.mod_revision
            assert batch.revision == followed.last_of_batch
        followed.bookmark = batch.revision
        followed.taken += [
            (event.kv.mod_revision, int(event.type), event.kv.key) for event in batch.events
        ]
        return True

    def check(self) -> None:
        for followed in self.followed:
            state = followed.state
            assert len(state.partial) <= 8
            held = sum(len(batch.events) for batch, _ in state.inbox)
            assert held == state.inbox_events
            assert sum(size for _, size in state.inbox) == state.inbox_bytes
            # One answer more than the limit, and a model's answer holds twenty events at most.
            assert held < _state.INBOX_EVENTS + 20

    def expected(self, followed: Followed, first: int, last: int) -> list[tuple[int, int, bytes]]:
        return [
            (revision, kind, key)
            for revision in range(first, last + 1)
            for kind, key in self.store.wanted(followed.wanted, revision)
        ]

    def check_all_taken(self, followed: Followed) -> None:
        """Nothing lost, nothing twice, nothing from before the start, and in order."""
        self.take_all(followed)
        taken, bookmark = followed.taken, followed.bookmark
        if followed.start is not None:
            assert taken == self.expected(followed, followed.start, bookmark)
        elif taken:
            # Where it began is the server's choice, but not before it was asked for.
            assert taken[0][0] > followed.begun_after
            assert taken == self.expected(followed, taken[0][0], bookmark)

    def settle(self) -> None:
        """Let everything arrive that is to arrive."""
        self.do_open(0, 0)
        stream = self.stream
        assert stream is not None
        for _ in range(500):
            self.now += 0.1
            for followed in self.followed:
                self.take_all(followed)
            self.check()
            while (request := self.rules.next_request(self.now)) is not None:
                stream.requests.append(request)
            idle = not stream.requests and not stream.answers
            while stream.requests:
                stream.serve(extra_write=False)
            for which in range(len(stream.watchers)):
                stream.send_events(which, most=1000, fragment_size=2)
            idle = idle and not stream.answers
            while stream.answers:
                self.do_receive(0, 0)
            if idle:
                return
        raise AssertionError("it does not settle")


WEIGHTS = {
    "write": 4,
    "add": 2,
    "take": 2,
    "cancel": 1,
    "compact": 1,
    "open": 2,
    "cut": 1,
    "send": 3,
    "serve": 3,
    "refuse": 1,
    "events": 4,
    "progress": 1,
    "receive": 5,
    "tick": 1,
    "ask_progress": 1,
}
OPS = [op for op, weight in WEIGHTS.items() for _ in range(weight)]
# Three bytes a step: drawing them one by one takes longer than the steps themselves.
SCRIPTS = st.binary(min_size=90, max_size=450)


def steps_of(script: bytes) -> Iterator[tuple[str, int, int]]:
    """Read a script."""
    for op, a, b in zip(script[::3], script[1::3], script[2::3], strict=False):
        yield OPS[op % len(OPS)], a, b


@pytest.mark.timeout(900)  # AIOETCD_TEST_EXAMPLES may ask for many
@pytest.mark.parametrize("limit", [20_000, 4], ids=["roomy", "tight"])
@settings(max_examples=EXAMPLES, deadline=None, print_blob=True)
@given(script=SCRIPTS)
def test_any_interleaving_delivers_each_event_once(limit: int, script: bytes) -> None:
    """Whatever is cut, refused, compacted, fragmented or not taken: each event once, in order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_state, "INBOX_EVENTS", limit)
        world = World()
        world.do_add(0, 1)
        world.do_open(0, 0)
        for op, a, b in steps_of(script):
            note(f"{op} {a} {b}")
            world.step(op, a, b)
        world.settle()
        for followed in world.followed:
            state = followed.state
            note(f"{state.spec} start={followed.start} {state.phase} {state.error!r}")
            world.check_all_taken(followed)
            if state.phase is Phase.ENDED:
                if isinstance(state.error, CompactedError):
                    # Never a skip: what was not delivered is really gone.
                    assert state.error.compact_revision is not None
                    assert max(followed.bookmark + 1, followed.start or 0) < (
                        state.error.compact_revision
                    )
                else:
                    assert state.error is None or isinstance(state.error, PermissionDeniedError)
                continue
            assert state.phase is Phase.OPEN, "a watch that nobody ended is open in the end"
            # Reliable: all that there is was delivered.
            first = state.next_revision
            assert first is not None
            assert world.expected(followed, first, world.store.revision) == []
        assert world.stream is not None
        live = {f.state.watch_id for f in world.followed if f.state.phase is Phase.OPEN}
        assert set(world.stream.watchers) == live, "the server and the client know the same watches"
