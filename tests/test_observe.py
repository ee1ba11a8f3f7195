"""Observers are told of every call and of what happens beside them, and harm nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import aclosing

import anyio
import pytest

from aioetcd import (
    CallReport,
    Client,
    InvalidRequestError,
    LeaseNotFoundError,
    Notice,
    NoticeKind,
    Observer,
)
from aioetcd.testing import EtcdServer, FaultProxy
from tests.waiting import until


class Witness(Observer):
    """Remembers all that it is told."""

    def __init__(self) -> None:
        self.calls: list[CallReport] = []
        self.notices: list[Notice] = []
        self.asked: list[str] = []

    def call_ended(self, call: CallReport) -> None:
        """Remember it."""
        self.calls.append(call)

    def noticed(self, notice: Notice) -> None:
        """Remember it."""
        self.notices.append(notice)

    def metadata(self, method: str) -> Iterable[tuple[str, str]]:
        """Remember that it was asked for."""
        self.asked.append(method)
        return [("x-request-id", "7")]


class Broken(Observer):
    """Fails whatever it is told."""

    def call_ended(self, call: CallReport) -> None:
        """Fail."""
        raise ValueError("broken")

    noticed = call_ended  # type: ignore[assignment]

    def metadata(self, method: str) -> Iterable[tuple[str, str]]:
        """Fail."""
        raise ValueError("broken")


async def test_one_report_a_call(server: EtcdServer) -> None:
    """Each call is reported once, with who answered, how long it took and why it failed."""
    witness = Witness()
    async with Client(server.endpoint, observers=[witness]) as client:
        await client.kv.get("k")
        with pytest.raises(LeaseNotFoundError) as caught:
            await client.lease.revoke(5)
        with pytest.raises(InvalidRequestError):
            await client.kv.put(b"k" * 2_000_000, "v")
    first, second, third = witness.calls
    assert (first.method, first.endpoint, first.retries) == ("Range", server.endpoint, 0)
    assert first.error is None
    assert 0 < first.seconds < 5
    assert (second.method, second.error) == ("LeaseRevoke", caught.value)
    assert third.method == "Put"
    assert witness.asked == ["Range", "LeaseRevoke", "Put"]


async def test_a_download_is_one_call(server: EtcdServer) -> None:
    """However many answers it has; one that is left early has ended, too."""
    witness = Witness()
    async with Client(server.endpoint, observers=[witness]) as client:
        async for _ in client.maintenance.snapshot():
            pass
        await until(lambda: len(witness.calls) == 1)
        (call,) = witness.calls
        assert (call.method, call.endpoint, call.error) == ("Snapshot", server.endpoint, None)
        async with aclosing(client.maintenance.snapshot(server.endpoint)) as chunks:
            await anext(chunks)
        await until(lambda: len(witness.calls) == 2)
        _ = await client.maintenance.status(server.endpoint)
    assert [call.method for call in witness.calls] == ["Snapshot", "Snapshot", "Status"]
    assert witness.asked == ["Snapshot", "Snapshot", "Status"]


async def test_a_cancelled_call_is_reported(proxy: FaultProxy) -> None:
    """A call that nobody waits for any more has ended too."""
    witness = Witness()
    async with Client(proxy.endpoint, observers=[witness]) as client:
        await client.kv.get("k")
        proxy.hang()
        with anyio.move_on_after(0.05):
            await client.kv.get("k")
    assert isinstance(witness.calls[-1].error, asyncio.CancelledError)


async def test_losses_are_noticed(proxy: FaultProxy, client: Client) -> None:
    """A lost member and a lost stream are told, with why, and so is that they are back."""
    witness = Witness()
    async with Client(proxy.endpoint, observers=[witness]) as used, used.watch("k") as watch:
        proxy.cut()
        await client.kv.put("k", "v")
        await anext(watch)
        kinds = [notice.kind for notice in witness.notices]
        assert kinds.count(NoticeKind.MEMBER_FOUND) == 2
        assert kinds.count(NoticeKind.STREAM_OPENED) == 2
        (lost,) = [n for n in witness.notices if n.kind is NoticeKind.STREAM_LOST]
        assert (lost.method, lost.endpoint) == ("Watch", proxy.endpoint)
        assert lost.error is not None
        (gone,) = [n for n in witness.notices if n.kind is NoticeKind.MEMBER_LOST]
        assert gone.endpoint == proxy.endpoint


async def test_what_an_observer_raises_harms_nobody(
    server: EtcdServer, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and the others are told all the same."""
    witness = Witness()
    async with Client(server.endpoint, observers=[Broken(), witness]) as client:
        await client.kv.put("k", "v")
        async with client.watch("k"):
            pass
    await until(lambda: len(witness.calls) == 1)
    assert "an observer has failed" in caplog.text
    assert NoticeKind.STREAM_OPENED in [notice.kind for notice in witness.notices]
