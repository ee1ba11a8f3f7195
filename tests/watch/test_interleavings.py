"""Whatever happens to a watch: the rules and a model server, driven by random scripts."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from aioetcd._proto import rpc_pb2
from aioetcd.errors import (
    ClientClosedError,
    ClusterMismatchError,
    CompactedError,
    EtcdError,
    PermissionDeniedError,
    UnavailableError,
)
from aioetcd.watch import _rules, _state
from aioetcd.watch._rules import Suspicion, WatchRules
from aioetcd.watch._state import Phase
from tests.answers import received
from tests.watch.model import KEYS, POISON, Followed, ServerStream, Store, Version, size_of

EXAMPLES = int(os.environ.get("AIOETCD_TEST_EXAMPLES", "300"))


class World:
    """Client rules and a model server, driven step by step."""

    def __init__(self) -> None:
        self.store = Store()
        self.rules = WatchRules(self.ask)
        self.stream: ServerStream | None = None
        self.followed: list[Followed] = []
        self.by_id: dict[int, Followed] = {}  # by the id asked for
        self.now = 0.0
        # The unary calls that the rules want, and a linearizable read that is under way.
        self.asked = False
        self.read: tuple[Suspicion, int] | None = None
        self.shown = 0  # the highest revision that any answer carried
        self.refused_before = False

    def ask(self) -> None:
        self.asked = True

    def step(self, op: str, a: int, b: int) -> None:
        getattr(self, f"do_{op}")(a, b)
        self.check()

    def check(self) -> None:
        for followed in self.followed:
            followed.check()

    @property
    def live(self) -> list[Followed]:
        return [followed for followed in self.followed if followed.live]

    # The store's doings.

    def do_write(self, a: int, b: int) -> None:
        changes = [((a >> i) & 1, KEYS[(b >> i) % len(KEYS)]) for i in range(1 + a % 5)]
        self.store.write(changes)

    def do_compact(self, a: int, b: int) -> None:
        self.store.compacted = max(self.store.compacted, 1 + a % self.store.revision)

    def do_catch_up(self, a: int, b: int) -> None:
        if self.stream is not None:
            self.stream.lag = max(0, self.stream.lag - 1 - a % 4)

    def do_replace(self, a: int, b: int) -> None:
        """Restore a backup, or lead to another cluster: who watched must hear of it."""
        for followed in self.live:
            if followed.wanted.key == POISON:  # which is another story
                self.cancel(followed)
        if not self.live:
            self.do_add(a % 4, 1)
        live = self.live
        for followed in live:
            self.take_all(followed)
        self.do_cut(0, 0)
        if a % 2:
            self.store = Store(self.store.cluster_id + 1)
            self.do_write(a, b)
            must = may = self.shown > 0
        else:
            self.store = self.store.restored(max(1, self.store.revision - b % 8))
            may = self.shown > self.store.revision
            # The bookmark of a watch that starts beyond the store is beyond it, too.
            must = may and max(followed.position for followed in live) > self.store.revision
        self.do_open(a, 0)
        while self.exchange(b):
            self.check()
            if b & 8 and len(live) > 1 and (suspicion := self.rules.suspicion) is not None:
                # The one that the question is about leaves; the question stays.
                (suspect,) = (followed for followed in live if followed.state is suspicion.state)
                live.remove(suspect)
                suspect.ends.add(type(None))
                self.rules.cancel(suspect.state)
        ended = [followed for followed in live if not followed.live]
        assert ended in ([], live), "some know of it and some do not"
        assert not must or ended, "nobody was told that the history is another one"
        assert may or not ended, "the history goes on"
        for followed in live:
            if ended:
                followed.ends.add(ClusterMismatchError)
                self.shown = self.store.revision
            else:
                followed.store = self.store

    # The stream's doings.

    def do_open(self, a: int, b: int) -> None:
        if self.stream is None:
            self.stream = ServerStream(
                self.store,
                version=list(Version)[a % 3],
                refusal_id=(-1, 0, None)[a // 3 % 3],
                is_proxy=b % 4 == 3,
                lag=b // 16 if b % 3 == 2 else 0,
            )
            self.rules.opened("here", self.now)

    def do_cut(self, a: int, b: int) -> None:
        if self.stream is not None:
            self.stream = None
            self.rules.lost(UnavailableError("cut"), final=False, now=self.now)

    def do_final(self, a: int, b: int) -> None:
        """End the stream in a way that would end the next one too, if the same were said there."""
        if self.stream is None:
            return
        live = self.live
        creating = [followed for followed in live if followed.state.phase is Phase.CREATING]
        self.stream = None
        self.rules.lost(EtcdError("refused"), final=True, now=self.now)
        ended = [followed for followed in live if not followed.live]
        if self.refused_before:
            assert ended == live, "the RPC is refused whatever is asked for: all are to hear of it"
        elif ended:
            assert ended == creating, "it was not alone in being created"
            assert len(ended) == 1, "several ended for what one did"
            assert ended[0].is_suspect, "it was not tried alone before"
        for followed in ended:
            followed.ends.add(EtcdError)
        for followed in creating:
            followed.is_suspect = True
        self.refused_before = True

    def do_idle(self, a: int, b: int) -> None:
        """Take down a stream that nobody wants any more, which is no loss."""
        if a % 4 == 0:
            while self.live:
                self.do_cancel(0, 0)
        if not self.rules.wanted:
            self.stream = None

    def do_send(self, a: int, b: int) -> None:
        for _ in range(1 + a % 6):
            if not self.send():
                return

    def send(self) -> bool:
        """Send a request; False where there is none."""
        if self.stream is None or (request := self.rules.next_request(self.now)) is None:
            return False
        if request.WhichOneof("request_union") == "create_request":
            watch_id = request.create_request.watch_id
            creating = [f for f in self.followed if f.state.phase is Phase.CREATING]
            if self.refused_before:
                assert not creating, "more than a probe, though the RPC may be refused"
            else:
                (followed,) = (f for f in creating if f.state.watch_id == watch_id)
                self.by_id[watch_id] = followed
                followed.creation_sent()
                suspects = [f for f in creating if f.is_suspect]
                assert not suspects or len(creating) == 1, "a suspect that is not alone"
        self.stream.requests.append(request)
        return True

    def do_serve(self, a: int, b: int) -> None:
        if self.stream is not None:
            for _ in range(1 + a % 6):
                self.stream.serve(late_writes=b % 4)
            if self.stream.is_poisoned:
                self.do_final(0, 0)

    def do_refuse(self, a: int, b: int) -> None:
        if self.stream is not None:
            self.stream.refuse_next = True

    def do_events(self, a: int, b: int) -> None:
        if self.stream is not None:
            self.stream.send_events(
                a, most=1 + b % 4, fragment_size=1 + (a + b) % 5, older=b // 4 % 8
            )

    def do_progress(self, a: int, b: int) -> None:
        if self.stream is not None:
            self.stream.send_progress(a)

    def do_receive(self, a: int, b: int) -> None:
        for i in range(1 + a % 4):
            if not self.receive(b >> 2 * i):
                return

    def receive(self, choice: int) -> bool:
        """Receive an answer; False where there is none."""
        if self.stream is None or (response := self.stream.read(choice)) is None:
            return False
        # Over the wire and back, as it really comes.
        response = rpc_pb2.WatchResponse.FromString(response.SerializeToString())
        for watch_id in self.stream.refused:
            if watch_id in self.by_id:  # not a probe
                self.by_id[watch_id].ends.add(PermissionDeniedError)
        watcher = self.stream.created.get(response.watch_id)
        if watcher is not None:
            followed = self.by_id[watcher.asked_id]
            overhead = len(response.events) * _rules._EVENT_OVERHEAD
            followed.bytes_received += response.ByteSize() + overhead
            if response.created and not response.canceled:
                followed.creation_answered(watcher, response.header.revision)
                followed.is_suspect = False
        self.shown = max(self.shown, response.header.revision)
        self.refused_before = False
        received(self.rules, response, self.now)
        return True

    def do_tick(self, a: int, b: int) -> None:
        self.now += (a % 10) / 10
        self.rules.tick(self.now)

    def do_answer(self, a: int, b: int) -> None:
        """Go on with the unary calls that the rules asked for."""
        for _ in range(1 + a % 2):
            if self.asked:
                self.answer()

    def answer(self) -> None:
        if self.read is not None:
            (suspicion, revision), self.read = self.read, None
            self.rules.checked_revision(suspicion, revision)
        elif self.rules.suspicion is not None:
            self.read = self.rules.suspicion, self.store.revision
        elif self.rules.wants_version and self.stream is not None:
            self.rules.checked_version(
                self.stream.revision, trusted=self.stream.version is not Version.OLD
            )
        else:
            self.asked = False

    # The user's doings.

    def _pick(self, a: int) -> Followed | None:
        live = self.live
        return live[a % len(live)] if live else None

    def do_add(self, a: int, b: int) -> None:
        key = POISON if a % 16 == 15 else (None, *KEYS)[a % 4]
        start = None if b % 3 == 0 else max(1, self.store.revision - 3 + b % 8)
        filters = ((), (), (0,), (1,))[(a + b) % 4]
        followed = Followed(self.store, key, start, filters)
        self.followed.append(followed)
        self.rules.add(followed.state)

    def do_cancel(self, a: int, b: int) -> None:
        if followed := self._pick(a):
            self.cancel(followed)

    def cancel(self, followed: Followed) -> None:
        followed.ends.add(type(None))
        self.rules.cancel(followed.state)
        assert self.rules.take(followed.state) == (None, False)

    def do_ask_progress(self, a: int, b: int) -> None:
        if followed := self._pick(a):
            revision = 0 if self.stream is None else self.stream.revision
            self.rules.ask_progress(followed.state, revision)

    def do_take(self, a: int, b: int) -> None:
        full = [f for f in self.followed if f.state.inbox]
        if full:
            self.take_one(full[a % len(full)])

    def take_all(self, followed: Followed) -> None:
        while self.take_one(followed):
            pass

    def take_one(self, followed: Followed) -> bool:
        answer = next(iter(followed.state.inbox), None)
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
        assert answer is not None
        if not answer.left:
            followed.bytes_taken += answer.size
        for event in batch.events:
            followed.bytes_needed += size_of(event)
            followed.taken.append((event.kv.mod_revision, int(event.type), event.kv.key))
        return True

    # How it comes to rest.

    def exchange(self, choice: int) -> bool:
        """Say and answer all that there is; whether that was more than requests for progress."""
        busy = False
        while self.send():
            assert self.stream is not None
            busy |= self.stream.requests[-1].WhichOneof("request_union") != "progress_request"
        while self.stream is not None and self.stream.serve():
            pass
        if self.stream is not None and self.stream.is_poisoned:
            self.do_final(0, 0)
            return True
        while self.receive(choice):
            busy = True
        self.do_answer(0, 0)
        return busy or self.asked

    def settle(self, choice: int) -> None:
        """Let everything arrive that is to arrive."""
        # Or the store stays behind what some wait for.
        while choice & 16 and any((f.start or 0) > self.store.revision for f in self.live):
            self.do_write(4, 1)
        quiet = 0
        for _ in range(500):
            self.do_open(0, choice)
            assert self.stream is not None
            self.stream.lag = 0
            self.now += 0.1
            for followed in self.followed:
                self.take_all(followed)
            self.check()
            for which in range(len(self.stream.watchers)):
                self.stream.send_events(which, most=1000, fragment_size=2)
            quiet = 0 if self.exchange(choice) else quiet + 1
            if quiet * 0.1 > 2 * _rules.PROGRESS_INTERVAL:
                return
        raise AssertionError("it does not settle")

    def check_settled(self) -> None:
        """Nothing lost, nothing twice, nothing from before the start, and in order."""
        stream = self.stream
        assert stream is not None
        known = {self.by_id[w.asked_id]: watch_id for watch_id, w in stream.watchers.items()}
        for followed in self.followed:
            state = followed.state
            note(f"{state.spec} first={followed.first} {state.phase} {state.error!r}")
            self.take_all(followed)
            if followed.live:
                assert state.phase is Phase.OPEN, "a watch that nobody ended is open in the end"
                assert followed.wanted.key != POISON, "it never hears why it is not created"
                assert followed.taken == followed.expected(self.store.revision)
                assert known.pop(followed) == state.watch_id
                if stream.version is not Version.OLD and not stream.is_proxy:
                    assert state not in self.rules._asking, "progress is told in the end"
                continue
            assert followed.taken == followed.expected(followed.bookmark)
            if isinstance(state.error, CompactedError):
                # Never a skip: what was not delivered is really gone.
                assert state.error.compact_revision is not None
                next_revision = max(followed.bookmark + 1, followed.first or 0)
                assert next_revision < state.error.compact_revision
            else:
                assert type(state.error) in followed.ends, "it had no reason to end with that"
        assert not known, "the server and the client know the same watches"

    def close(self) -> None:
        """The client is closed: nothing goes on, and nothing is left to take."""
        live = self.live
        self.rules.close(ClientClosedError("closed"))
        assert not self.rules.wanted
        for followed in live:
            assert isinstance(followed.state.error, ClientClosedError)
            assert self.rules.take(followed.state) == (None, False)


WEIGHTS = {
    "tick": 2,  # what a script shrinks to: `tick 0 0` is nothing
    "write": 8,
    "add": 5,
    "take": 4,
    "cancel": 2,
    "compact": 1,
    "catch_up": 2,
    "replace": 1,
    "open": 6,
    "cut": 2,
    "final": 1,
    "idle": 1,
    "send": 8,
    "serve": 8,
    "refuse": 1,
    "events": 8,
    "progress": 2,
    "receive": 12,
    "answer": 6,
    "ask_progress": 5,
}
OPS = [op for op, weight in WEIGHTS.items() for _ in range(weight)]
# Three bytes a step: drawing them one by one takes longer than the steps themselves.
SCRIPTS = st.binary(min_size=180, max_size=600)


def steps_of(script: bytes) -> Iterator[tuple[str, int, int]]:
    """Read a script."""
    for op, a, b in zip(script[::3], script[1::3], script[2::3], strict=False):
        yield OPS[op % len(OPS)], a, b


@pytest.mark.timeout(900)  # AIOETCD_TEST_EXAMPLES may ask for many
@pytest.mark.parametrize("limit", [20_000, 4], ids=["roomy", "tight"])
@settings(max_examples=EXAMPLES, print_blob=True)
@given(script=SCRIPTS)
def test_any_interleaving_delivers_each_event_once(limit: int, script: bytes) -> None:
    """Whatever is cut, refused, compacted, fragmented or not taken: each event once, in order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_state, "INBOX_EVENTS", limit)
        patch.setattr(_state, "_BATCH_EVENTS", 3)
        world = World()
        world.do_add(0, 1)
        world.do_open(0, 0)
        for op, a, b in steps_of(script):
            note(f"{op} {a} {b}")
            world.step(op, a, b)
        if script[-1] % 8:  # else it is closed in the middle of everything
            world.settle(script[-1])
            world.check_settled()
        world.close()
