"""A server whose answers are no messages has not answered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import pytest

from aioetcd import Client, Compare, Op, UnavailableError
from aioetcd._transport import unary as unary_module
from aioetcd.testing import EtcdServer
from tests._transport.weather import FewPauses
from tests.programs import stranger

pytestmark = pytest.mark.own_logic("the server that babbles is no etcd")


@pytest.mark.parametrize(
    ("call", "is_write", "is_repeated"),
    [
        (lambda client: client.kv.get("k"), False, True),
        (lambda client: client.kv.put("k", "v"), True, False),
        (lambda client: client.kv.delete("k"), True, False),
        (lambda client: client.kv.compact(1), True, False),
        (lambda client: client.kv.txn(compare=[Compare.version("k") == 0]), False, True),
        (lambda client: client.kv.txn(success=[Op.put("k", "v")]), True, False),
        (lambda client: client.lease.leases(), False, True),
    ],
    ids=["get", "put", "delete", "compact", "read_only_txn", "txn", "leases"],
)
async def test_what_cannot_be_read_is_no_answer(
    call: Callable[[Client], Awaitable[object]],
    is_write: bool,
    is_repeated: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It says what came, that a write may have been applied, and only a read is sent again."""
    monkeypatch.setattr(unary_module, "Backoff", FewPauses)
    with stranger("BABBLE") as endpoint:
        async with Client(endpoint, timeout=30) as client:
            with pytest.raises(UnavailableError, match="no message of protobuf's") as caught:
                await call(client)
            assert type(caught.value) is UnavailableError
            assert caught.value.maybe_applied is is_write
            assert (caught.value.code, caught.value.endpoint) == ("INTERNAL", endpoint)
            assert (client.stats().retries > 0) is is_repeated


async def test_a_read_asks_another_endpoint(server: EtcdServer, client: Client) -> None:
    """A read that one endpoint answers with nonsense is answered by another one."""
    await client.kv.put("k", "v")
    with stranger("BABBLE") as endpoint:
        async with Client([endpoint, server.endpoint]) as both:
            assert (await both.kv.get("k")).value == b"v"
            assert both.stats().endpoint == server.endpoint


async def test_streams_go_to_another_endpoint(server: EtcdServer, client: Client) -> None:
    """An endpoint that says nonsense is not used: neither by watches nor by renewals."""
    lease = await client.lease.grant(60)
    with stranger("BABBLE") as endpoint, anyio.fail_after(10):
        async with Client([endpoint, server.endpoint]) as both, both.watch("k") as watch:
            await client.kv.put("k", "v")
            assert (await anext(watch)).kv.value == b"v"
            assert (await both.lease.keep_alive_once(lease.id)).ttl == 60
            assert both.stats().endpoint == server.endpoint
    await client.lease.revoke(lease.id)
