"""What a client writes to its loggers."""

from __future__ import annotations

import logging

import pytest

from aioetcd import Client
from aioetcd.testing import EtcdServer, FaultProxy
from tests.programs import run_program
from tests.waiting import until
from tests.watch.following import take

pytestmark = pytest.mark.own_logic("what the client says of itself")


def lines(caplog: pytest.LogCaptureFixture, layer: str) -> list[tuple[int, str]]:
    """Give the levels and texts of what a layer has written."""
    return [
        (record.levelno, record.getMessage())
        for record in caplog.records
        if record.name == f"aioetcd.{layer}"
    ]


@pytest.mark.fault("L1, W1: pauses between tries")
async def test_one_line_when_it_is_lost_and_one_when_it_is_back(
    proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    """Each layer says once what it lost and why, and once where it is back and after how long."""
    caplog.set_level(logging.INFO, "aioetcd")
    async with (
        Client(proxy.endpoint) as client,
        client.session(ttl=10) as session,
        client.watch("k") as watch,
    ):
        async for _ in client.lease.keep_alive(session.lease_id):
            break  # its stream has answered
        for number in range(100):
            await client.kv.put("k", str(number))
        assert len(await take(watch, 100)) == 100
        assert caplog.records == [], "nothing is written for an event"
        proxy.refuse()
        assert proxy.cut() == 1
        await until(lambda: client.stats().reconnects == 2)
        await proxy.accept()
        for layer, lost, back in (
            ("transport", "endpoint {} is lost: ", "endpoint {} is in use after "),
            ("watch", "Watch stream to {} is lost: ", "Watch stream is back at {} after "),
            ("lease", "LeaseKeepAlive stream to {} is lost: ", "LeaseKeepAlive stream is back at"),
        ):
            await until(lambda: len(lines(caplog, layer)) == 2)  # noqa: B023
            (lost_level, lost_text), (back_level, back_text) = lines(caplog, layer)
            assert (lost_level, back_level) == (logging.WARNING, logging.INFO)
            assert lost_text.startswith(lost.format(proxy.endpoint))
            # A stream may be told by who saw it first: then why is the transport's to say.
            reasons = ("UNAVAILABLE", "reset", "Reset", "was lost", "its connection is left")
            assert any(reason in lost_text for reason in reasons)
            assert back_text.startswith(back.format(proxy.endpoint))
            assert back_text.endswith(" s")


UNCONFIGURED = """
from aioetcd.testing import FaultProxy

async def main():
    async with FaultProxy(ENDPOINT) as proxy, Client(proxy.endpoint) as client:
        async with client.watch("k") as watch:
            proxy.cut()
            await client.kv.get("k")  # which is sent again where it meets the cut
            await client.kv.put("k", "v")
            async for event in watch:
                say(client.stats().reconnects, event.kv.value.decode())
                break

run(main())
"""


def test_nothing_is_written_where_nobody_asked(server: EtcdServer) -> None:
    """A program that does not configure logging has nothing on stderr when an endpoint is lost."""
    ended = run_program(UNCONFIGURED, server.endpoint)
    assert (ended.code, ended.out, ended.err) == (0, ["1 v"], "")
