"""A watch says whether it would miss a change now, and for how long it may have missed some."""

from __future__ import annotations

import math

import pytest

from aioetcd import Client
from aioetcd.errors import ClientClosedError, CompactedError, UnavailableError
from aioetcd.testing import EtcdServer, FaultProxy
from aioetcd.watch import _state
from aioetcd.watch._state import Phase
from tests.answers import received
from tests.waiting import until
from tests.watch.following import take
from tests.watch.scripted import created, events, opened


def test_a_lost_stream_was_heard_when_it_last_spoke() -> None:
    """Whatever it spoke of: all of its watches know from then on that they may miss something."""
    rules, (one, other, late) = opened(1, 1, 1)
    received(rules, created(one), 3)
    received(rules, created(other), 4)
    received(rules, events(one, 20), 6)
    assert (one.heard_at, other.heard_at) == (None, None)
    rules.lost(UnavailableError("cut"), final=False, now=9)
    assert (one.heard_at, other.heard_at) == (6, 6)
    assert late.heard_at is None  # it was never there
    rules.lost(UnavailableError("cut"), final=False, now=12)
    assert one.heard_at == 6


def test_a_quiet_stream_was_heard_as_long_as_its_pings_were() -> None:
    """A store in which nothing happens for an hour is no hour old after a cut of a moment."""
    rules, (one,) = opened(1, longest_silence=15)
    received(rules, created(one), 3)
    rules.lost(UnavailableError("cut"), final=False, now=3603)
    assert one.heard_at == 3588


@pytest.mark.parametrize("end", ["cancelled", "refused", "closed", "paused"])
def test_a_watch_that_left_its_stream_was_heard_until_then(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it left: what came before, it had."""
    monkeypatch.setattr(_state, "INBOX_EVENTS", 1)
    rules, (one,) = opened(1)
    received(rules, created(one), 3)
    if end == "cancelled":
        rules.cancel(one)
    elif end == "refused":
        gone = events(one)
        gone.canceled, gone.compact_revision = True, 60
        received(rules, gone, 4)
        assert isinstance(one.error, CompactedError)
    elif end == "closed":
        rules.close(ClientClosedError("closed"))
    else:
        received(rules, events(one, 20), 4)
        received(rules, events(one, 21), 4)
        assert one.phase is Phase.PAUSED
    assert one.heard_at == (4 if end in ("refused", "paused") else 3)


async def test_a_watch_knows_how_old_its_view_may_be(server: EtcdServer) -> None:
    """Connected it is not stale; cut off it is, for longer and longer, until it is back."""
    async with FaultProxy(server.endpoint) as proxy, Client(proxy.endpoint) as client:
        watch = client.watch("k")
        assert (watch.is_connected, watch.stale_for) == (False, math.inf)
        async with watch:
            assert (watch.is_connected, watch.stale_for) == (True, None)
            proxy.refuse()
            proxy.cut()
            await until(lambda: not watch.is_connected)
            first = watch.stale_for
            assert first is not None
            assert 0 < first < math.inf
            await until(lambda: (watch.stale_for or 0) > first)
            await proxy.heal()
            await until(lambda: watch.is_connected)
            assert watch.stale_for is None
            await client.kv.put("k", "v")
            await take(watch, 1)
        assert not watch.is_connected
        assert watch.stale_for is not None
        assert watch.stale_for < math.inf
