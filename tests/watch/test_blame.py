"""A stream that ends for good ends the watch that is the cause, and no other."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import anyio
import pytest

from aioetcd import Client, EtcdError, RequestTooLargeError, UnsupportedByServerError
from aioetcd._proto import rpc_pb2
from aioetcd._transport.methods import Effect, Method
from aioetcd.errors import UnavailableError
from aioetcd.watch import Watch, _stream
from aioetcd.watch._rules import WatchRules
from aioetcd.watch._state import Phase, WatchSpec, WatchState
from tests.answers import received
from tests.waiting import until
from tests.watch.following import put_all, revisions, take
from tests.watch.scripted import created, opened, refused, sent, taken

# etcd takes requests of up to 2 MiB, and ends the whole stream for a larger one.
LARGE = b"x" * 3_000_000


# --- the rules --------------------------------------------------------------------------------


def add(rules: WatchRules, *keys: bytes) -> list[WatchState]:
    """Begin watches, and send what can be sent."""
    states = [WatchState(WatchSpec(key), 1, lambda: None) for key in keys]
    for state in states:
        rules.add(state)
    return states


def creations(requests: Iterable[rpc_pb2.WatchRequest]) -> list[bytes]:
    """Give the keys of creations."""
    return [request.create_request.key for request in requests]


def refuse_stream(rules: WatchRules) -> EtcdError:
    """End the stream for good, and open the next one."""
    error = EtcdError("too large")
    rules.lost(error, final=True, now=0)
    rules.opened("again", 0)
    return error


def answer_probe(rules: WatchRules, refusal_id: int | None = -1) -> None:
    """Read the probe, which is all that there is, and answer it."""
    (probe,) = sent(rules)
    assert probe.create_request.key >= probe.create_request.range_end > b""
    own_id = probe.create_request.watch_id
    refusal = refused(own_id if refusal_id is None else refusal_id, "range is empty")
    received(rules, refusal, 0)


def create_all(rules: WatchRules, states: Iterable[WatchState]) -> list[list[bytes]]:
    """Answer all creations of these; give the keys of those that were sent together."""
    together = []
    while requests := sent(rules):
        together.append(creations(requests))
        ids = {request.create_request.watch_id for request in requests}
        for state in states:
            if state.watch_id in ids and state.phase is Phase.CREATING:
                received(rules, created(state), 0)
    return together


@pytest.mark.parametrize("refusal_id", [-1, 0, None])
def test_a_suspect_that_fails_alone_is_the_cause(refusal_id: int | None) -> None:
    """Of several in creation each is tried alone, after all others: one ends, the rest go on."""
    rules, (healthy,) = opened(1)
    received(rules, created(healthy), 0)
    first, guilty, last = add(rules, b"first", b"guilty", b"last")
    assert creations(sent(rules)) == [b"first", b"guilty", b"last"]
    (late,) = add(rules, b"late")
    refuse_stream(rules)
    assert [state.phase for state in (first, guilty, last)] == [Phase.WAITING] * 3
    answer_probe(rules, refusal_id)
    assert create_all(rules, [healthy, late, first]) == [[b"k"], [b"late"], [b"first"], [b"guilty"]]
    error = refuse_stream(rules)
    assert (guilty.phase, str(guilty.error)) == (Phase.ENDED, str(error))
    answer_probe(rules, refusal_id)
    assert create_all(rules, [healthy, first, last, late]) == [
        [b"k"],
        [b"late", b"first"],
        [b"last"],
    ]
    for state in (healthy, first, last, late):
        assert (state.phase, state.error) == (Phase.OPEN, None)


def test_a_large_one_is_a_suspect_from_the_beginning() -> None:
    """It is created alone, and ends with the first stream that ends for it; its siblings go on."""
    rules, (healthy,) = opened(1)
    received(rules, created(healthy), 0)
    (large,) = add(rules, LARGE)
    beside = add(rules, b"a", b"b")
    assert creations(sent(rules)) == [LARGE]
    error = refuse_stream(rules)
    assert (large.phase, str(large.error)) == (Phase.ENDED, str(error))
    answer_probe(rules)
    assert create_all(rules, [healthy, *beside]) == [[b"k"], [b"a", b"b"]]
    assert [state.error for state in (healthy, *beside)] == [None] * 3


def test_a_range_with_a_large_end_is_large_too() -> None:
    """The request is what the server measures: nobody is created beside it."""
    rules, (healthy,) = opened(1)
    received(rules, created(healthy), 0)
    large = WatchState(WatchSpec(b"a", range_end=LARGE), 1, lambda: None)
    rules.add(large)
    (beside,) = add(rules, b"beside")
    assert creations(sent(rules)) == [b"a"]
    refuse_stream(rules)
    assert (large.phase, beside.error, healthy.error) == (Phase.ENDED, None, None)


def test_nobody_is_created_beside_a_suspect() -> None:
    """Who comes while a suspect is tried waits for the answer, and cannot be blamed."""
    rules, (suspect,) = opened(1)
    refuse_stream(rules)
    answer_probe(rules)
    assert creations(sent(rules)) == [b"k"]
    (late,) = add(rules, b"late")
    rules._own_ids = True  # which would be no reason to wait
    assert sent(rules) == []
    received(rules, created(suspect), 0)
    assert creations(sent(rules)) == [b"late"]
    # An answer clears: the next failure is not its own.
    refuse_stream(rules)
    answer_probe(rules)
    assert creations(sent(rules)) == [b"k"]
    rules.lost(EtcdError("too large"), final=True, now=0)
    assert (suspect.phase, late.phase) == (Phase.WAITING, Phase.WAITING)


def test_the_error_keeps_its_cause() -> None:
    """The watch that is ended shows what gRPC said."""
    rules, (guilty,) = opened(1)
    refuse_stream(rules)
    answer_probe(rules)
    assert creations(sent(rules)) == [b"k"]
    error = EtcdError("too large")
    error.__cause__ = reason = OSError("the reason")
    rules.lost(error, final=True, now=0)
    assert guilty.error is not None
    assert guilty.error.__cause__ is reason
    assert not rules.wanted


def test_a_watch_that_was_given_up_ends_nobody() -> None:
    """It is not sent again; who was beside it is tried once more, and who was open goes on."""
    rules, (healthy,) = opened(1)
    received(rules, created(healthy), 0)
    given_up, beside = add(rules, b"large", b"beside")
    assert creations(sent(rules)) == [b"large", b"beside"]
    rules.cancel(given_up)
    refuse_stream(rules)
    assert (given_up.error, beside.error, healthy.error) == (None, None, None)
    assert rules._suspects == {beside}, "nobody waits for the other one any more"
    answer_probe(rules)
    assert create_all(rules, [healthy, beside]) == [[b"k"], [b"beside"]]
    assert healthy.phase is beside.phase is Phase.OPEN


def test_a_suspect_that_is_given_up_on_trial_ends_nobody() -> None:
    """The stream ends for what nobody wants any more."""
    rules, (healthy,) = opened(1)
    received(rules, created(healthy), 0)
    (suspect,) = add(rules, b"large")
    sent(rules)
    refuse_stream(rules)
    answer_probe(rules)
    create_all(rules, [healthy])
    assert suspect.phase is Phase.CREATING
    rules.cancel(suspect)
    assert not rules._suspects, "nothing is kept of who has ended"
    (late,) = add(rules, b"late")
    refuse_stream(rules)
    answer_probe(rules)
    assert create_all(rules, [healthy, late]) == [[b"k"], [b"late"]]
    assert (suspect.error, healthy.error, late.error) == (None, None, None)


def test_an_end_for_good_with_nothing_in_creation_ends_nobody() -> None:
    """However often it comes: between two of them the server answers, and events arrive."""
    rules, (state,) = opened(1)
    received(rules, created(state), 0)
    for _ in range(5):
        refuse_stream(rules)
        answer_probe(rules)
        assert create_all(rules, [state]) == [[b"k"]]
    assert (state.phase, state.error) == (Phase.OPEN, None)


def test_a_probe_that_is_not_answered_ends_everything() -> None:
    """Then it is not what was asked for, but that anything was: new watches learn of it too."""
    rules, states = opened(1, 1)
    states += add(rules, b"late")
    rules.lost(EtcdError("no such RPC"), final=True, now=0)
    # A stream that is lost meanwhile says nothing of that.
    rules.opened("again", 1)
    assert len(sent(rules)) == 1
    rules.lost(UnavailableError("cut"), final=False, now=2)
    states += add(rules, b"later")
    rules.opened("again", 3)
    assert len(sent(rules)) == 1
    assert [state.error for state in states] == [None] * 4
    rules.lost(EtcdError("no such RPC"), final=True, now=4)
    assert [str(state.error) for state in states] == ["no such RPC"] * 4
    assert not rules.wanted


def test_what_was_delivered_stays_when_a_stream_is_refused() -> None:
    """Who goes on does so where it stood, and has what had arrived."""
    rules, (state,) = opened(1)
    received(rules, created(state), 0)
    add(rules, b"large")
    sent(rules)
    refuse_stream(rules)
    answer_probe(rules)
    (request,) = sent(rules)
    assert request.create_request.start_revision == 1
    assert taken(rules, state) == []


# --- a real server ----------------------------------------------------------------------------


async def refused_for_size(client: Client, errors: list[RequestTooLargeError]) -> None:
    with pytest.raises(RequestTooLargeError) as caught:
        await client.watch(LARGE).__aenter__()
    errors.append(caught.value)


async def is_on_its_way(watch: Watch) -> None:
    with anyio.fail_after(5):
        while watch._state.phase is Phase.WAITING:
            await asyncio.sleep(0)
    assert watch._state.phase is Phase.CREATING


async def test_z13_a_watch_too_large_that_is_given_up_early(client: Client) -> None:
    """The stream ends for what nobody waits for any more, and every other watch goes on."""
    async with client.watch("a") as a, client.watch("b") as b:
        for _ in range(3):
            reconnects = client.stats().reconnects
            watch = client.watch(LARGE)
            entering = asyncio.create_task(watch.__aenter__())
            await is_on_its_way(watch)
            entering.cancel()
            with pytest.raises(asyncio.CancelledError):
                await entering
            await until(lambda r=reconnects: client.stats().reconnects > r)  # type: ignore[misc]
            expected = await put_all(client, "a", "b")
            assert revisions(await take(a, 1)) == [expected - 1]
            assert revisions(await take(b, 1)) == [expected]
        assert client.stats().reconnects == 3, "it was sent again"
        assert client.stats().watches == 2


async def test_z13_watches_too_large_beside_others(client: Client) -> None:
    """Each of them hears that it is too large, and nobody else hears anything."""
    errors: list[RequestTooLargeError] = []
    entered: list[Watch] = []

    async def enter(key: str) -> None:
        entered.append(await client.watch(key).__aenter__())

    async with client.watch("before") as before:
        async with anyio.create_task_group() as group:
            for number in range(8):
                if number % 3 == 1:
                    group.start_soon(refused_for_size, client, errors)
                group.start_soon(enter, f"beside/{number}")
        assert len(errors) == 3
        assert client.stats().reconnects == 3, "the stream did not end for each of them, once"
        for error in errors:
            assert not error.maybe_applied
        await put_all(client, "before", *(f"beside/{number}" for number in range(8)))
        for watch in (before, *entered):
            assert len(await take(watch, 1)) == 1
            await watch.aclose()


async def test_z13_an_rpc_that_the_server_does_not_have(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream refused for good ends its watches with that error, through the real stream."""
    await client.kv.get("k")
    elsewhere = Method(
        "None",
        "/etcdserverpb.Watch/None",
        rpc_pb2.WatchRequest,
        rpc_pb2.WatchResponse,
        Effect.READ,
    )
    monkeypatch.setattr(_stream, "WATCH", elsewhere)
    async with anyio.create_task_group() as group:

        async def refused() -> None:
            with pytest.raises(UnsupportedByServerError, match="unknown method"):
                await client.watch("k", timeout=None).__aenter__()

        for _ in range(20):
            group.start_soon(refused)
    assert client.stats().watches == 0
