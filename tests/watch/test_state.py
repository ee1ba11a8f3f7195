"""The rules of watching, without a loop and without a server."""

from __future__ import annotations

import pytest

from aioetcd._proto import rpc_pb2
from aioetcd.errors import (
    ClientClosedError,
    ClusterMismatchError,
    CompactedError,
    InvalidRequestError,
    PermissionDeniedError,
    UnavailableError,
)
from aioetcd.watch import _state
from aioetcd.watch._rules import PROGRESS_INTERVAL, Suspicion, WatchRules
from aioetcd.watch._state import Phase, WatchSpec, WatchState
from tests.answers import received
from tests.watch.scripted import created, events, header, opened, refused, sent, taken


def test_ids_are_ours_and_from_1() -> None:
    """Server ids begin at 0, which refusals of old servers carry too: ours begin at 1."""
    _, states = opened(None, None, None)
    assert [state.watch_id for state in states] == [1, 2, 3]


def test_the_first_creation_on_a_stream_goes_alone() -> None:
    """Its answer shows whether the ids are ours; then the others go all at once."""
    rules, states = opened(1, 1, 1)
    rules.lost(UnavailableError("cut"), final=False, now=1)
    rules.opened("there", 2)
    assert len(sent(rules)) == 1
    received(rules, created(states[0]), 2)
    assert len(sent(rules)) == 2


def test_a_proxy_that_gives_ids_of_its_own() -> None:
    """etcd's grpc-proxy numbers the watches itself, from 0: each gets its own events."""
    rules = WatchRules(lambda: None)
    states = [WatchState(WatchSpec(b"k%d" % n), 1, lambda: None) for n in range(3)]
    for state in states:
        rules.add(state)
    rules.opened("proxy", 0)
    for proxy_id in range(3):
        (request,) = sent(rules)
        assert request.create_request.key == b"k%d" % proxy_id
        received(
            rules, rpc_pb2.WatchResponse(header=header(10), watch_id=proxy_id, created=True), 0
        )
    assert [state.watch_id for state in states] == [0, 1, 2]
    for revision, state in enumerate(states, start=20):
        received(rules, events(state, revision), 0)
    assert [taken(rules, state) for state in states] == [[20], [21], [22]]
    rules.cancel(states[1])
    assert [request.cancel_request.watch_id for request in sent(rules)] == [1]


def test_cancels_of_a_stream_are_not_sent_on_the_next_one() -> None:
    """A proxy's ids begin anew with each stream: an old cancel would hit who has that id now."""
    rules = WatchRules(lambda: None)
    states = [WatchState(WatchSpec(b"k"), 1, lambda: None) for _ in range(2)]
    for state in states:
        rules.add(state)

    def begin() -> None:
        rules.opened("proxy", 0)
        for proxy_id in range(2):
            assert len(sent(rules)) == (proxy_id < len(rules._watches))
            response = rpc_pb2.WatchResponse(header=header(10), watch_id=proxy_id, created=True)
            if rules._creating:
                received(rules, response, 0)

    begin()
    rules.cancel(states[0])  # its id was 0
    rules.lost(UnavailableError("cut"), final=False, now=1)
    begin()
    assert (states[1].phase, states[1].watch_id) == (Phase.OPEN, 0)
    assert sent(rules) == []


def test_a_paused_watch_that_is_given_up_ends_nobody_who_has_its_old_id_now() -> None:
    """A proxy's ids begin anew with each stream: that of a paused watch may be another's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_state, "INBOX_EVENTS", 1)
        rules = WatchRules(lambda: None)
        paused, other = states = [WatchState(WatchSpec(b"k"), 1, lambda: None) for _ in range(2)]
        for state in states:
            rules.add(state)
        rules.opened("proxy", 0)
        answer = rpc_pb2.WatchResponse(header=header(10), watch_id=0, created=True)
        assert len(sent(rules)) == 1
        received(rules, answer, 0)
        received(rules, events(paused, 2), 0)
        received(rules, events(paused, 3), 0)
        assert (paused.phase, paused.watch_id) == (Phase.PAUSED, 0)
        rules.lost(UnavailableError("cut"), final=False, now=1)
        rules.opened("proxy", 2)
        assert len(sent(rules)) == 1
        received(rules, answer, 2)
        assert (other.phase, other.watch_id) == (Phase.OPEN, 0)
        rules.cancel(paused)
        assert sent(rules) == []
        received(rules, events(other, 4), 2)
        assert taken(rules, other) == [4]


def test_what_an_idle_stream_left_unanswered_is_no_burden_to_the_next() -> None:
    """A stream that nobody wanted any more is not lost; what it had not answered never comes."""
    rules, (given_up, refusal) = opened(1, 1)
    received(rules, refused(-1), 0)
    rules.cancel(given_up)
    rules.cancel(refusal)
    late = WatchState(WatchSpec(b"k"), 1, lambda: None)
    rules.add(late)
    assert sent(rules) == []
    rules.opened("again", 1)
    assert len(sent(rules)) == 1
    received(rules, created(late), 1)
    assert late.phase is Phase.OPEN


@pytest.mark.parametrize("refusal_id", [-1, 0])
def test_an_anonymous_refusal_waits_for_the_other_answers(refusal_id: int) -> None:
    """A refusal that names no watch hits the one that nobody else answers for."""
    rules, (first, second, third) = opened(None, None, None)
    received(rules, refused(refusal_id), 0)
    assert [s.phase for s in (first, second, third)] == [Phase.CREATING] * 3
    # A proxy may hand on the others in any order.
    received(rules, created(third), 0)
    received(rules, created(first), 0)
    assert second.phase is Phase.ENDED
    assert isinstance(second.error, PermissionDeniedError)
    assert first.phase is third.phase is Phase.OPEN


def test_several_anonymous_refusals_are_told_in_the_order_of_the_creations() -> None:
    """The server answers in order: each hears its own reason."""
    rules, (first, second) = opened(None, None)
    received(rules, refused(-1), 0)
    received(rules, refused(-1, "mvcc: watcher range is empty"), 0)
    assert isinstance(first.error, PermissionDeniedError)
    assert isinstance(second.error, InvalidRequestError)


def test_no_creation_is_sent_while_a_refusal_is_unsettled() -> None:
    """New creations would keep a refusal from ever being settled."""
    rules, (first, second) = opened(None, None)
    received(rules, refused(-1), 0)
    late = WatchState(WatchSpec(b"k"), None, lambda: None)
    rules.add(late)
    assert rules.next_request(0) is None
    received(rules, created(second), 0)
    assert first.phase is Phase.ENDED
    assert rules.next_request(0) is not None


def test_a_refusal_with_our_id_is_that_watch() -> None:
    """Old servers refuse with the id that was asked for."""
    rules, (first, second) = opened(None, None)
    received(rules, refused(second.watch_id, "mvcc: watcher range is empty"), 0)
    assert isinstance(second.error, InvalidRequestError)
    assert first.phase is Phase.CREATING


def test_from_now_on_resumes_after_the_created_revision() -> None:
    """Cut before any event, a watch without a start revision goes on behind its creation."""
    rules, (state,) = opened(None)
    received(rules, created(state, 10), 0)
    rules.lost(UnavailableError("cut"), final=False, now=1)
    rules.opened("there", 2)
    request = rules.next_request(2)
    assert request is not None
    assert request.create_request.start_revision == 11
    assert request.create_request.watch_id == 2, "each creation has a new id"


def test_events_up_to_the_created_revision_are_delivered() -> None:
    """Newer servers tell a revision read after the watch began: nothing is dropped for it."""
    rules, (state,) = opened(None)
    received(rules, created(state, 10), 0)
    received(rules, events(state, 9, 10), 0)
    rules.lost(UnavailableError("cut"), final=False, now=1)
    rules.opened("there", 2)
    request = rules.next_request(2)
    assert request is not None
    assert request.create_request.start_revision == 11
    assert taken(rules, state) == [9, 10]


def test_a_cut_before_created_resumes_at_the_requested_revision() -> None:
    """The revision in `created` is not where a watch with a start revision stands."""
    rules, (state,) = opened(3)
    received(rules, created(state, 100), 0)
    rules.lost(UnavailableError("cut"), final=False, now=1)
    rules.opened("there", 2)
    request = rules.next_request(2)
    assert request is not None
    assert request.create_request.start_revision == 3


def test_whole_revisions_of_a_fragment_are_delivered_and_the_rest_is_dropped_on_a_cut() -> None:
    """Only the last revision of a fragment may be incomplete."""
    rules, (state,) = opened(1)
    received(rules, created(state), 0)
    received(rules, events(state, 2, 3, 3, fragment=True), 0)
    assert taken(rules, state) == [2]
    rules.lost(UnavailableError("cut"), final=False, now=1)
    rules.opened("there", 2)
    request = rules.next_request(2)
    assert request is not None
    assert request.create_request.start_revision == 3
    received(rules, created(state), 2)
    received(rules, events(state, 3, 3, 3), 2)
    assert taken(rules, state) == [3, 3, 3]


def test_what_was_delivered_is_dropped_when_it_comes_again() -> None:
    """A server that goes back in time delivers whole revisions again, which are dropped whole."""
    rules, (state,) = opened(1)
    received(rules, created(state), 0)
    received(rules, events(state, 2, 3), 0)
    received(rules, events(state, 2, 3, 3, 4), 0)
    assert taken(rules, state) == [2, 3, 4]


def test_a_member_that_lags_sends_nothing_older_than_a_resumed_watch_needs() -> None:
    """What is older than a watch from now on is dropped too, though none of it was delivered."""
    rules, (state,) = opened(None)
    received(rules, created(state, 10), 0)
    rules.lost(UnavailableError("cut"), final=False, now=1)
    rules.opened("behind", 2)
    (request,) = sent(rules)
    assert request.create_request.start_revision == 11
    received(rules, created(state, 8), 2)
    received(rules, events(state, 9, 10, header_revision=10), 2)
    assert taken(rules, state) == []
    received(rules, events(state, 10, 11, header_revision=11), 2)
    assert taken(rules, state) == [11]


def test_progress_behind_the_start_does_not_move_it_back() -> None:
    """A server may announce a revision below a start in the future."""
    rules, (state,) = opened(100)
    received(rules, created(state), 0)
    received(rules, rpc_pb2.WatchResponse(header=header(20), watch_id=-1), 0)
    assert state.next_revision == 100
    assert not state.inbox


def test_compaction_is_told_once_and_after_what_had_arrived() -> None:
    """What is in the inbox is still handed over, then the error."""
    rules, (state,) = opened(1)
    received(rules, created(state), 0)
    received(rules, events(state, 2), 0)
    received(
        rules,
        rpc_pb2.WatchResponse(
            header=rpc_pb2.ResponseHeader(cluster_id=7),
            watch_id=state.watch_id,
            canceled=True,
            compact_revision=9,
        ),
        0,
    )
    assert taken(rules, state) == [2]
    assert isinstance(state.error, CompactedError)
    assert state.error.compact_revision == 9
    assert not rules.wanted


def test_another_cluster_ends_everything() -> None:
    """Revisions of another cluster mean nothing here."""
    rules, (first, second) = opened(1, None)
    received(rules, created(first), 0)
    received(rules, created(second), 0)
    rules.lost(UnavailableError("cut"), final=False, now=1)
    rules.opened("there", 2)
    rules.next_request(2)
    received(
        rules, rpc_pb2.WatchResponse(header=header(3, cluster_id=8), watch_id=3, created=True), 2
    )
    assert isinstance(first.error, ClusterMismatchError)
    assert isinstance(second.error, ClusterMismatchError)
    assert first.error is not second.error
    # Who reads again and watches from there may do so with the same client.
    again = WatchState(WatchSpec(b"k"), 4, lambda: None)
    rules.add(again)
    sent(rules)
    received(
        rules,
        rpc_pb2.WatchResponse(
            header=header(3, cluster_id=8), watch_id=again.watch_id, created=True
        ),
        2,
    )
    assert (again.phase, rules.suspicion) == (Phase.OPEN, None)


def test_an_answer_that_names_no_cluster_says_nothing_about_it() -> None:
    """Proxies leave the header out of some answers: what comes next is measured as before."""
    rules, (state,) = opened(1)
    received(rules, created(state), 0)
    anonymous = rpc_pb2.WatchResponse(watch_id=state.watch_id, events=events(state, 11).events)
    received(rules, anonymous, 0)
    assert rules.highest_revision == 11, "events show a revision too"
    received(rules, events(state, 12), 0)
    assert (taken(rules, state), state.error) == ([11, 12], None)
    foreign = rpc_pb2.WatchResponse(header=header(13, cluster_id=8), watch_id=state.watch_id)
    received(rules, foreign, 0)
    assert isinstance(state.error, ClusterMismatchError)


@pytest.mark.parametrize(("read", "ends"), [(50, False), (49, True)])
def test_a_server_behind_is_asked_whether_it_lags(read: int, *, ends: bool) -> None:
    """A lagging member is fine; a history that went back is not."""
    asked: list[bool] = []
    rules = WatchRules(lambda: asked.append(True))
    state = WatchState(WatchSpec(b"k"), 1, lambda: None)
    rules.add(state)
    rules.opened("here", 0)
    rules.next_request(0)
    received(rules, created(state), 0)
    received(rules, events(state, 2, header_revision=50), 0)
    rules.lost(UnavailableError("cut"), final=False, now=1)
    rules.opened("there", 2)
    rules.next_request(2)
    assert not asked
    received(rules, created(state, 20), 2)
    assert asked
    assert rules.suspicion is not None
    rules.checked_revision(rules.suspicion, read)
    assert isinstance(state.error, ClusterMismatchError) == ends
    assert rules.suspicion is None


def suspected() -> tuple[WatchRules, list[WatchState], Suspicion]:
    """Two watches that stood at revision 50, on the stream of a server at 20."""
    rules, states = opened(1, 1)
    for state in states:
        received(rules, created(state), 0)
    received(rules, events(states[0], 2, header_revision=50), 0)
    rules.lost(UnavailableError("cut"), final=False, now=1)
    rules.opened("there", 2)
    for state in states:
        sent(rules)
        received(rules, created(state, 20), 2)
    assert rules.suspicion is not None
    return rules, states, rules.suspicion


def test_events_newer_than_the_deciding_read_do_not_condemn_the_server() -> None:
    """A lagging member catches up while it is asked: its events may overtake its answer."""
    rules, states, suspicion = suspected()
    received(rules, events(states[0], 51, 60, header_revision=70), 2)
    rules.checked_revision(suspicion, 55)
    assert [state.error for state in states] == [None, None]


def test_the_end_of_the_suspect_does_not_end_the_question() -> None:
    """The server is as suspect to the watches that are left."""
    rules, (first, second), suspicion = suspected()
    rules.cancel(first)
    rules.checked_revision(suspicion, 49)
    assert second.error is None, "it was asked with a key that nobody watches any more"
    assert rules.suspicion is not None
    assert rules.suspicion.state is second
    rules.checked_revision(rules.suspicion, 49)
    assert isinstance(second.error, ClusterMismatchError)


def test_an_answer_about_another_stream_says_nothing() -> None:
    """A read that was asked because of one member does not decide about the next one."""
    rules, states, suspicion = suspected()
    rules.lost(UnavailableError("cut"), final=False, now=3)
    rules.opened("elsewhere", 4)
    sent(rules)
    received(rules, created(states[0], 60), 4)
    rules.checked_revision(suspicion, 20)
    assert [state.error for state in states] == [None, None]


def test_after_a_history_that_went_back_new_watches_work() -> None:
    """Who reads again and watches from there is not measured by the old history."""
    rules, _, suspicion = suspected()
    rules.checked_revision(suspicion, 20)
    assert not rules.wanted
    again = WatchState(WatchSpec(b"k"), 21, lambda: None)
    rules.add(again)
    rules.opened("there", 5)
    sent(rules)
    received(rules, created(again, 22), 5)
    assert (again.phase, rules.suspicion) == (Phase.OPEN, None)


def test_w14_a_refusal_with_watch_id_0_does_not_end_a_healthy_watch() -> None:
    """etcd before 3.4.22 and 3.5.6 refuses with id 0: it ends the watch being created, no other."""
    rules, (healthy,) = opened(1)
    received(rules, created(healthy), 0)
    second = WatchState(WatchSpec(b"other"), None, lambda: None)
    rules.add(second)
    assert rules.next_request(0) is not None
    received(rules, refused(0), 0)
    assert isinstance(second.error, PermissionDeniedError)
    received(rules, events(healthy, 11), 0)
    assert taken(rules, healthy) == [11]
    assert (healthy.phase, healthy.error) == (Phase.OPEN, None)


def test_a_full_inbox_pauses_that_watch_alone() -> None:
    """It is cancelled at the server, and created again where it stood once half is taken."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_state, "INBOX_EVENTS", 4)
        rules, (slow, fast) = opened(1, 1)
        for state in (slow, fast):
            received(rules, created(state), 0)
        for revision in range(2, 10):
            received(rules, events(slow, revision), 0)
            received(rules, events(fast, revision), 0)
            assert taken(rules, fast) == [revision]
        assert slow.phase is Phase.PAUSED
        assert rules.counts() == (2, 1)
        request = rules.next_request(0)
        assert request is not None
        assert request.cancel_request.watch_id == 1
        assert rules.next_request(0) is None
        assert [rules.take(slow)[1] for _ in range(2)] == [False, True]
        request = rules.next_request(0)
        assert request is not None
        assert request.create_request.start_revision == 6
        assert fast.phase is Phase.OPEN


def test_a_pause_is_told_to_the_server_at_once() -> None:
    """The stream's writer learns that there is something to send: it would sleep otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_state, "INBOX_EVENTS", 1)
        rules, (state,) = opened(1)
        assert received(rules, created(state), 0), "others may be waiting for that"
        assert not received(rules, events(state, 2), 0)
        assert received(rules, events(state, 3), 0)
        assert [request.cancel_request.watch_id for request in sent(rules)] == [state.watch_id]


def test_only_paused_watches_count_as_paused() -> None:
    """One that waits for its creation, or for the next stream, is held up by no consumer."""
    rules, (state,) = opened(1)
    assert rules.counts() == (1, 0)
    received(rules, created(state), 0)
    rules.lost(UnavailableError("cut"), final=False, now=1)
    assert (state.phase, rules.counts()) == (Phase.WAITING, (1, 0))


def test_large_values_fill_an_inbox_too() -> None:
    """The inbox is bounded by bytes as well as by events."""
    rules, (state,) = opened(1)
    received(rules, created(state), 0)
    response = events(state, 2)
    response.events[0].kv.value = bytes(_state.INBOX_BYTES)
    received(rules, response, 0)
    received(rules, events(state, 3), 0)
    assert state.phase is Phase.PAUSED
    assert len(state.inbox) == 1


def test_a_watch_paused_by_bytes_goes_on_at_half_of_them() -> None:
    """Not before, and not only when all are taken, whatever the number of its events is."""
    rules, (state,) = opened(1)
    received(rules, created(state), 0)
    for revision in range(2, 7):
        response = events(state, revision)
        response.events[0].kv.value = bytes(_state.INBOX_BYTES // 4)
        received(rules, response, 0)
    assert rules.counts() == (1, 1)
    goes_on = []
    while state.inbox:
        held = len(state.inbox)
        goes_on += [held] if rules.take(state)[1] else []
    # Each takes a little more than a quarter: with one left, it is half or less.
    assert goes_on == [2]
    assert state.phase is Phase.WAITING


def test_the_fragments_of_one_revision_count_together() -> None:
    """However many answers a revision is spread over, all of its bytes are in the inbox."""
    rules, (state,) = opened(1)
    received(rules, created(state), 0)
    size = 0
    for number in range(5):
        response = events(state, 2, fragment=number < 4)
        response.events[0].kv.value = bytes(100_000)
        size += response.ByteSize()
        received(rules, response, 0)
    assert size <= state.inbox_bytes <= size + 5 * 1000
    rules.take(state)
    assert (state.inbox_bytes, state.partial_bytes) == (0, 0)


def test_a_large_answer_is_taken_in_batches_of_whole_revisions() -> None:
    """Its bytes count until its last event is taken, because it stays in memory for so long."""
    rules, (state,) = opened(1)
    received(rules, created(state), 0)
    per_batch = _state._BATCH_EVENTS
    received(rules, events(state, *[2] * (per_batch - 1), *[3] * per_batch, 4, 4), 0)
    size, held = state.inbox_bytes, []
    batches = []
    while (batch := rules.take(state)[0]) is not None:
        batches.append((len(batch.events), batch.revision))
        held.append((state.inbox_events, state.inbox_bytes))
    assert batches == [(2 * per_batch - 1, 3), (2, 4)]
    assert held == [(2, size), (0, 0)]


def test_closing_ends_everything_at_once() -> None:
    """What is in the inboxes is not delivered any more."""
    rules, (state,) = opened(1)
    received(rules, created(state), 0)
    received(rules, events(state, 2), 0)
    rules.close(ClientClosedError("closed"))
    assert rules.take(state) == (None, False)
    assert isinstance(state.error, ClientClosedError)


def test_the_consumer_is_woken_by_all_that_it_waits_for() -> None:
    """The creation, events, a bookmark and the end: who sleeps through one sleeps for ever."""
    woken: list[str] = []
    rules, (state,) = opened(1)
    state.notify = lambda: woken.append(state.phase.value)
    received(rules, created(state), 0)
    assert woken == ["created"]
    received(rules, events(state, 2), 0)
    assert woken == ["created"] * 2
    received(rules, rpc_pb2.WatchResponse(header=header(60), watch_id=state.watch_id), 0)
    assert woken == ["created"] * 3
    rules.close(ClientClosedError("closed"))
    assert woken == ["created"] * 3 + ["ended"]


def test_what_ends_before_it_was_sent_is_not_sent() -> None:
    """A watch that waits for its creation and is given up leaves nothing at the server."""
    rules, (first,) = opened(1)
    received(rules, created(first), 0)
    second = WatchState(WatchSpec(b"k"), None, lambda: None)
    rules.add(second)
    rules.cancel(second)
    assert sent(rules) == []


def test_the_creation_says_all_that_was_asked_for() -> None:
    """Each option reaches the server, and none that nobody asked for does."""
    nodelete = rpc_pb2.WatchCreateRequest.NODELETE
    full = WatchSpec(b"k", b"l", True, True, True, (nodelete,)).to_message(7, 3).create_request
    assert (full.key, full.range_end, full.watch_id, full.start_revision) == (b"k", b"l", 7, 3)
    assert (full.prev_kv, full.progress_notify, full.fragment) == (True, True, True)
    assert list(full.filters) == [nodelete]
    bare = WatchSpec(b"k").to_message(7, None).create_request
    assert bare == rpc_pb2.WatchCreateRequest(key=b"k", watch_id=7)


def test_a_paused_watch_forgets_what_was_not_whole() -> None:
    """Its first fragment comes again when it goes on: it is not counted, or delivered, twice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_state, "INBOX_EVENTS", 1)
        rules, (state,) = opened(1)
        received(rules, created(state), 0)
        received(rules, events(state, 2, 3, fragment=True), 0)
        received(rules, events(state, 3, 3), 0)
        assert (state.phase, state.partial, state.partial_bytes) == (Phase.PAUSED, [], 0)
        assert taken(rules, state) == [2]
        cancel, create = sent(rules)
        assert cancel.cancel_request.watch_id == 1
        assert create.create_request.start_revision == 3
        received(rules, created(state), 0)
        received(rules, events(state, 3, 3, 3), 0)
        assert taken(rules, state) == [3, 3, 3]


def test_a_creation_given_up_settles_the_refusal_that_waits_for_it() -> None:
    """Answered, it is not the refused one: the other is."""
    rules, (given_up, other) = opened(None, None)
    rules.cancel(given_up)
    received(rules, refused(-1), 0)
    assert other.phase is Phase.CREATING
    received(rules, created(given_up), 0)
    assert isinstance(other.error, PermissionDeniedError)


def test_the_created_revision_is_that_of_the_first_creation() -> None:
    """A resumed watch still says where it began."""
    rules, (state,) = opened(None)
    received(rules, created(state, 10), 0)
    rules.lost(UnavailableError("cut"), final=False, now=1)
    rules.opened("there", 2)
    sent(rules)
    received(rules, created(state, 30), 2)
    assert (state.created_revision, state.opened_revision) == (10, 30)


def test_a_server_that_is_level_is_not_suspected() -> None:
    """Only one behind what was shown is asked about; one that creation shows counts as shown."""
    rules, (state,) = opened(1)
    received(rules, created(state, 30), 0)
    for revision, suspected in ((30, False), (29, True)):
        rules.lost(UnavailableError("cut"), final=False, now=1)
        rules.opened("there", 2)
        sent(rules)
        received(rules, created(state, revision), 2)
        assert (rules.suspicion is not None) == suspected


def test_a_server_that_refuses_a_watch_is_not_asked_to_cancel_it() -> None:
    """It ended there: a proxy might give its id to another watch by now."""
    rules, (state,) = opened(1)
    received(rules, created(state), 0)
    gone = rpc_pb2.WatchResponse(
        header=header(20), watch_id=state.watch_id, canceled=True, cancel_reason="no leader"
    )
    assert received(rules, gone, 0)
    assert not isinstance(state.error, CompactedError)
    assert state.error is not None
    assert sent(rules) == []


def test_what_a_user_ends_delivers_nothing_more() -> None:
    """What had arrived goes with it, and so does the memory that it took."""
    rules, (state,) = opened(1)
    received(rules, created(state), 0)
    received(rules, events(state, 2, 3, fragment=True), 0)
    rules.cancel(state)
    assert rules.take(state) == (None, False)
    assert (state.phase, state.error) == (Phase.ENDED, None)
    assert (len(state.inbox), len(state.partial), state.partial_bytes) == (0, 0, 0)


def test_a_bookmark_that_was_asked_for_before_a_watch_began_is_not_its_own() -> None:
    """The answer may overtake the old events of a watch that was created after the question."""
    rules, (asking,) = opened(1)
    received(rules, created(asking), 0)
    rules.checked_version(10, trusted=True)
    rules.ask_progress(asking, 10)
    assert len(sent(rules)) == 1
    late = WatchState(WatchSpec(b"k"), 5, lambda: None)
    rules.add(late)
    sent(rules)
    received(rules, created(late, 20), 0)
    received(rules, rpc_pb2.WatchResponse(header=header(20), watch_id=-1), 0)
    assert asking.next_revision == 21
    assert late.next_revision == 5
    received(rules, events(late, 6, 20, header_revision=20), 0)
    assert taken(rules, late) == [6, 20]
    # One that was asked for later is, and one from beyond the creation too.
    rules.ask_progress(asking, 10)
    assert rules.next_request(9) is not None
    received(rules, rpc_pb2.WatchResponse(header=header(20), watch_id=-1), 9)
    assert late.next_revision == 21


def test_a_request_for_progress_is_repeated_until_it_is_answered() -> None:
    """Servers leave it unanswered while any watch of the stream lags."""
    rules, (state,) = opened(1)
    received(rules, created(state), 0)
    rules.ask_progress(state, 10)
    assert rules.wants_version
    assert rules.next_request(0) is None, "not before the server is known to answer truly"
    rules.checked_version(10, trusted=True)
    request = rules.next_request(0)
    assert request is not None
    assert request.WhichOneof("request_union") == "progress_request"
    assert rules.next_request(0.1) is None
    assert rules.next_tick() == PROGRESS_INTERVAL
    assert not rules.tick(9), "a watch stream may be silent for as long as nothing happens"
    assert rules.next_tick() == 9 + PROGRESS_INTERVAL, "no busy loop while nothing is sent"
    assert rules.next_request(PROGRESS_INTERVAL) is not None
    received(rules, rpc_pb2.WatchResponse(header=header(20), watch_id=-1), 1)
    assert rules.next_request(2) is None
    assert rules.next_tick() is None
    batch, _ = rules.take(state)
    assert batch is not None
    assert (batch.events, batch.revision) == ((), 20)
    assert state.next_revision == 21


def test_a_watch_given_up_while_it_is_created_is_cancelled_at_the_server() -> None:
    """Its creation cannot be taken back, so it is followed by its end."""
    rules, (state,) = opened(None)
    rules.cancel(state)
    received(rules, created(state), 0)
    request = rules.next_request(0)
    assert request is not None
    assert request.cancel_request.watch_id == state.watch_id


def test_a_watch_given_up_is_still_the_one_that_a_refusal_may_mean() -> None:
    """The refusal of a creation that nobody waits for any more hits nobody else."""
    rules, (given_up, other) = opened(None, None)
    rules.cancel(given_up)
    received(rules, refused(-1), 0)
    received(rules, created(other), 0)
    assert other.phase is Phase.OPEN
    assert given_up.error is None
