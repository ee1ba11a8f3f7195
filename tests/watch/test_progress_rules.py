"""The rules of bookmarks that are asked for: soon, of every watch, never ahead of an event."""

from __future__ import annotations

import pytest

from aioetcd._proto import rpc_pb2
from aioetcd.errors import CompactedError, UnavailableError
from aioetcd.watch._rules import WatchRules
from aioetcd.watch._state import Phase, WatchSpec, WatchState
from aioetcd.watch._stream import tells_progress_truly
from tests.answers import received
from tests.watch.scripted import created, events, header, opened, progress, sent, taken


def add(rules: WatchRules, start: int | None) -> WatchState:
    """Begin a watch, and send what can be sent."""
    state = WatchState(WatchSpec(b"k"), start, lambda: None)
    rules.add(state)
    return state


def asking(*starts: int | None, revision: int = 10) -> tuple[WatchRules, list[WatchState]]:
    """Open watches of a server that may be asked, and have the first one ask."""
    rules, states = opened(*starts)
    for state in states:
        received(rules, created(state, revision), 0)
    rules.checked_version(revision, trusted=True)
    rules.ask_progress(states[0], revision)
    return rules, states


def kinds(requests: list[rpc_pb2.WatchRequest]) -> list[str]:
    """Give the kinds of requests, and where creations start."""
    return [
        f"create {request.create_request.start_revision}"
        if request.HasField("create_request")
        else str(request.WhichOneof("request_union")).removesuffix("_request")
        for request in requests
    ]


def bookmarks(rules: WatchRules, state: WatchState) -> list[tuple[int, int]]:
    """Give, of each batch, how many events it has, and its revision."""
    batches = []
    while (batch := rules.take(state)[0]) is not None:
        batches.append((len(batch.events), batch.revision))
    return batches


def test_a_watch_that_starts_beyond_the_store_is_created_from_what_there_is() -> None:
    """The server tells no progress beside it: nobody else is touched, and nothing old delivered."""
    rules, (quiet, ahead, now, reached) = asking(3, 11, None, 10)
    assert kinds(sent(rules)) == ["cancel", "create 10", "progress"]
    assert ahead.phase is Phase.CREATING
    received(rules, created(ahead), 0)
    received(rules, events(ahead, 10, header_revision=10), 0)
    received(rules, progress(10), 0)
    for state in (quiet, ahead, now, reached):
        assert state.phase is Phase.OPEN
        assert (taken(rules, state), state.next_revision) == ([], 11)
    received(rules, events(ahead, 11, header_revision=11), 0)
    assert taken(rules, ahead) == [11]


def test_a_watch_far_ahead_that_asks_has_nothing_before_it() -> None:
    """Its bookmark is the revision before its start; it stays there."""
    rules, (ahead,) = asking(100)
    assert kinds(sent(rules)) == ["cancel", "create 10"]
    received(rules, created(ahead), 0)
    assert kinds(sent(rules)) == ["progress"]
    received(rules, events(ahead, 10, header_revision=10), 0)
    received(rules, progress(10), 0)
    assert bookmarks(rules, ahead) == [(0, 99)]
    received(rules, events(ahead, 11, 99, 100, header_revision=100), 0)
    assert taken(rules, ahead) == [100]
    # Who does not ask is not told what it knows already.
    other = add(rules, 200)
    sent(rules)
    received(rules, created(other, 100), 0)
    rules.ask_progress(ahead, 100)
    sent(rules)
    received(rules, created(other, 100), 0)
    sent(rules)
    received(rules, progress(100), 0)
    assert bookmarks(rules, ahead) == [(0, 100)]
    assert bookmarks(rules, other) == []


def test_a_watch_from_now_on_takes_no_bookmark_of_its_own() -> None:
    """Newer servers deliver what is older than `created` says: only they know how far it is."""
    rules, (state,) = asking(None)
    assert kinds(sent(rules)) == ["progress"]
    received(rules, progress(9), 0)  # which no server does
    assert bookmarks(rules, state) == []
    received(rules, events(state, 10, header_revision=10), 0)
    received(rules, progress(10), 0)
    assert bookmarks(rules, state) == [(1, 10), (0, 10)]


def test_who_asked_and_is_gone_asks_no_more() -> None:
    """The next watch is created where it starts, and nothing is asked."""
    rules, (gone, _) = asking(1, 1)
    rules.cancel(gone)
    add(rules, 11)
    assert kinds(sent(rules)) == ["cancel", "create 11"]


def test_a_start_that_was_reached_meanwhile_stands_in_nobodys_way() -> None:
    """The member's own revision decides: such a watch is left as it is."""
    rules, (_, ahead) = opened(1, 11)
    received(rules, created(rules._creating[1]), 0)
    received(rules, created(ahead), 0)
    rules.checked_version(10, trusted=True)
    rules.ask_progress(ahead, 11)
    assert kinds(sent(rules)) == ["progress"]


def test_what_the_status_shows_stands_in_nobodys_way_either() -> None:
    """The answer that tells the server's version tells how far its store is, as any other."""
    rules, (first, ahead) = opened(1, 15)
    received(rules, created(first), 0)
    received(rules, created(ahead), 0)
    rules.ask_progress(first, 10)
    rules.checked_version(20, trusted=True)
    assert kinds(sent(rules)) == ["progress"]


def test_the_version_is_asked_for_when_somebody_wants_to_know_progress() -> None:
    """Once by the first who asks on a stream, and on the next one by whose answer is still due."""
    asked: list[bool] = []
    rules = WatchRules(lambda: asked.append(True))
    state = add(rules, 1)
    rules.opened("here", 0)
    sent(rules)
    received(rules, created(state), 0)
    assert asked == []
    rules.ask_progress(state, 10)
    assert asked == [True]
    rules.checked_version(10, trusted=True)
    rules.ask_progress(state, 10)
    assert asked == [True]
    rules.lost(UnavailableError("cut"), final=False, now=1)
    rules.opened("there", 2)
    sent(rules)
    assert asked == [True]
    received(rules, created(state, 50), 2)
    assert (asked, rules.wants_version) == ([True, True], True)


def test_a_server_that_answers_too_early_is_not_asked() -> None:
    """A resumed stream may lead to an older server: the question waits, and so does the clock."""
    rules, (state, ahead) = opened(1, 11)
    received(rules, created(state), 0)
    received(rules, created(ahead), 0)
    rules.ask_progress(state, 10)
    rules.checked_version(10, trusted=False)
    assert not rules.wants_version, "it is known now"
    assert kinds(sent(rules)) == []
    assert rules.next_tick() is None
    add(rules, 12)
    assert kinds(sent(rules)) == ["create 12"]


def test_what_was_asked_on_the_last_stream_counts_for_nothing_on_the_next() -> None:
    """Neither its answers nor what it left unanswered: the questions are counted anew."""
    for answered in (True, False):
        rules, (state, other) = asking(1, 1)
        assert kinds(sent(rules)) == ["progress"]
        if answered:
            received(rules, progress(10), 0)
            rules.take(state)
            rules.ask_progress(state, 10)
        rules.lost(UnavailableError("cut"), final=False, now=1)
        rules.opened("there", 2)
        for each in (state, other):
            sent(rules)
            received(rules, created(each, 20), 2)
        rules.checked_version(20, trusted=True)
        assert kinds([r for r in [rules.next_request(2)] if r]) == ["progress"]
        late = add(rules, 5)
        sent(rules)
        received(rules, created(late, 20), 2)
        received(rules, progress(20), 2)
        assert bookmarks(rules, state) == [(0, 20)], "its own question was answered"
        assert bookmarks(rules, late) == [], "what was asked before it began"


def test_a_bookmark_from_beyond_the_creation_is_a_watchs_own() -> None:
    """Whenever it was asked for: it was told after the watch began, and so were its events."""
    rules, (state,) = asking(1)
    assert kinds(sent(rules)) == ["progress"]
    late = add(rules, 5)
    sent(rules)
    received(rules, created(late, 20), 0)
    received(rules, progress(21), 0)
    assert bookmarks(rules, state) == [(0, 21)]
    assert bookmarks(rules, late) == [(0, 21)]


@pytest.mark.parametrize("compacted", [11, 12])
def test_a_compaction_of_what_it_does_not_need(compacted: int) -> None:
    """Created from earlier than it needs and compacted up to its start: it lost nothing."""
    rules, (state,) = asking(11)
    assert kinds(sent(rules)) == ["cancel", "create 10"]
    received(rules, created(state, 20), 0)
    cancel = rpc_pb2.WatchResponse(
        header=rpc_pb2.ResponseHeader(cluster_id=7),
        watch_id=state.watch_id,
        canceled=True,
        compact_revision=compacted,
    )
    received(rules, cancel, 0)
    if compacted > 11:
        assert isinstance(state.error, CompactedError)
        return
    assert kinds(sent(rules)) == ["create 11"]
    received(rules, created(state, 20), 0)
    received(rules, events(state, 11, header_revision=20), 0)
    assert kinds(sent(rules)) == ["progress"]
    assert (taken(rules, state), state.error) == ([11], None)


def test_a_compaction_amid_fragments_of_what_it_needs() -> None:
    """What was not whole comes again with the new creation, and is not there twice."""
    rules, (state,) = asking(11)
    sent(rules)
    received(rules, created(state, 20), 0)
    received(rules, events(state, 11, fragment=True, header_revision=20), 0)
    cancel = rpc_pb2.WatchResponse(
        header=rpc_pb2.ResponseHeader(cluster_id=7),
        watch_id=state.watch_id,
        canceled=True,
        compact_revision=11,
    )
    assert received(rules, cancel, 0), "there is a creation to send"
    assert kinds(sent(rules)) == ["create 11"]
    received(rules, created(state, 20), 0)
    received(rules, events(state, 11, 11, header_revision=20), 0)
    assert taken(rules, state) == [11, 11]


def test_who_asked_is_not_forgotten_on_the_next_stream() -> None:
    """Cut before the answer, with the next server asked what it is: again, from what it has."""
    rules, (first, second) = asking(11, 11)
    rules.lost(UnavailableError("cut"), final=False, now=1)
    rules.opened("there", 2)
    assert kinds(sent(rules)) == ["create 11"]
    received(rules, created(first, 8), 2)
    assert rules.wants_version
    rules.checked_version(8, trusted=True)
    assert kinds(sent(rules)) == ["create 8", "cancel", "create 8"]
    received(rules, created(second, 8), 2)
    received(rules, created(first, 8), 2)
    assert kinds(sent(rules)) == ["progress"]
    received(rules, progress(8), 2)
    assert bookmarks(rules, first) == [(0, 10)]


def test_an_answer_to_what_was_asked_before_is_followed_by_the_next_question() -> None:
    """However many questions went unanswered before a watch began, its own bookmark is near."""
    rules, (lagging,) = asking(1)
    for number in range(5):
        assert kinds([r for r in [rules.next_request(number)] if r]) == ["progress"]
    late = add(rules, None)
    assert kinds([r for r in [rules.next_request(4.01)] if r]) == ["create 0"]
    received(rules, created(late, 10), 4.01)
    rules.ask_progress(late, 10)
    for _ in range(5):
        request = rules.next_request(4.02)
        assert request is not None
        assert bookmarks(rules, late) == []
        assert received(rules, progress(10), 4.02)
    assert rules.next_request(4.02) is not None
    assert not received(rules, progress(10), 4.02), "it was told"
    assert bookmarks(rules, late) == [(0, 10)]
    assert rules.next_request(9) is None
    assert lagging.next_revision == 11


def test_a_bookmark_between_two_fragments_is_not_taken() -> None:
    """Half a revision is there, and the bookmark behind it would say that all of it is."""
    rules, (state,) = asking(1)
    sent(rules)
    received(rules, events(state, 8, fragment=True), 0)
    received(rules, progress(20), 0)
    received(rules, rpc_pb2.WatchResponse(header=header(20), watch_id=state.watch_id), 0)
    assert bookmarks(rules, state) == []
    received(rules, events(state, 8, 9), 0)
    assert bookmarks(rules, state) == [(3, 9)]


def test_who_cannot_be_told_yet_does_not_ask_without_pause() -> None:
    """The next question is due after the interval, whoever else was created since the last one."""
    rules, (state,) = asking(1)
    sent(rules)
    late = add(rules, 5)
    sent(rules)
    received(rules, created(late, 20), 0)
    received(rules, events(state, 8, fragment=True, header_revision=20), 0)
    assert not received(rules, progress(20), 0)
    assert bookmarks(rules, state) == bookmarks(rules, late) == []
    assert rules.next_request(0.1) is None
    assert kinds([r for r in [rules.next_request(1)] if r]) == ["progress"]


def test_bookmarks_do_not_pile_up() -> None:
    """Of bookmarks that nobody takes there is only the last; events between stay between."""
    rules, (state,) = opened(1)
    received(rules, created(state), 0)
    for revision in (20, 21, 22):
        received(rules, rpc_pb2.WatchResponse(header=header(revision), watch_id=1), 0)
    assert len(state.inbox) == 1
    received(rules, events(state, 30), 0)
    for revision in (40, 41):
        received(rules, rpc_pb2.WatchResponse(header=header(revision), watch_id=1), 0)
    assert bookmarks(rules, state) == [(0, 22), (1, 30), (0, 41)]


@pytest.mark.parametrize(
    ("version", "truly"),
    [
        ("3.4.24", False),
        ("3.4.25", True),
        ("3.4.38", True),
        ("3.5.0", False),
        ("3.5.7", False),
        ("3.5.8", True),
        ("3.5.10", True),
        ("3.6.0", True),
        ("3.6.0-rc.1", True),
        ("3.10.2", True),
        ("4.0.0", True),
        ("3.3.27", False),
        ("2.5.9", False),
        ("", False),
        ("3.6", False),
        ("etcd 3.6.1", False),
        ("v3.6.1", False),
    ],
)
def test_which_servers_are_right_about_progress(version: str, *, truly: bool) -> None:
    """Those from 3.4.25 and 3.5.8 on; what says nothing of the kind is not."""
    assert tells_progress_truly(version) == truly
