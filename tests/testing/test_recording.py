"""A client whose calls and watches are written down."""

from __future__ import annotations

import pytest

from aioetcd import Client, Compare, EventType, FutureRevisionError, Op
from aioetcd.testing import EtcdServer, RecordedClient, Recorder, observe
from aioetcd.testing.checkers import assert_clean, check_history
from aioetcd.testing.history import (
    Comparison,
    Delete,
    Delivery,
    Get,
    Operation,
    Put,
    StoreRevision,
    Subscription,
    Txn,
    WatchEnd,
)

pytestmark = pytest.mark.own_logic("what is written down of a call, whatever the server says")


async def test_calls(client: Client) -> None:
    """Each call is written down as it was made, with what it was told."""
    recorder = Recorder()
    kv = RecordedClient(client, recorder, "c").kv
    lease = await client.lease.grant(60)
    put = await kv.put("a", "1", lease=lease.id)
    got = await kv.get("a", prefix=True, limit=3, serializable=True)
    txn = await kv.txn(
        compare=[Compare.version("a") == 1, Compare.value("a") != "2"],
        success=[Op.get("a"), Op.put("b", "1"), Op.delete("a")],
        failure=[Op.get("a", revision=put.header.revision)],
    )
    deleted = await kv.delete("a", range_end="c")
    await client.lease.revoke(lease.id)
    calls = recorder.of(Operation)
    assert {call.client for call in calls} == {"c"}
    assert {call.outcome for call in calls} == {"ok"}
    assert all(call.call_ns < call.return_ns for call in calls)
    assert [call.request for call in calls] == [
        Put(b"a", b"1", lease.id),
        Get(b"a", b"b", limit=3, serializable=True),
        Txn(
            (Comparison(b"a", "version", "==", 1), Comparison(b"a", "value", "!=", b"2")),
            (Get(b"a"), Put(b"b", b"1"), Delete(b"a")),
            (Get(b"a", revision=put.header.revision),),
        ),
        Delete(b"a", b"c"),
    ]
    headers = [answer.header.revision for answer in (put, got, txn, deleted)]
    assert [call.revision for call in calls] == headers
    assert [kv.value for kv in calls[1].kvs] == [b"1"]
    assert [kv.lease for kv in calls[1].kvs] == [lease.id]
    assert calls[2].succeeded is True
    assert calls[2].deleted == 1
    assert [[kv.key for kv in read] for read in calls[2].reads or ()] == [[b"a"]]
    assert calls[3].deleted == 1


async def test_what_is_not_written_down(client: Client) -> None:
    """Reads of less than whole keys are made all the same, writes without a record are refused."""
    recorder = Recorder()
    kv = RecordedClient(client, recorder).kv
    await client.kv.put("a", "1")
    assert (await kv.get("a", count_only=True)).count == 1
    assert (await kv.get("a", keys_only=True)).kvs[0].value == b""
    before = (await client.kv.get("a")).header.revision
    for refused in (
        kv.put("a", ignore_value=True),
        kv.txn(success=[Op.txn(success=[Op.put("a", "2")])]),
        kv.txn(compare=[Compare.lease("a") == 0], success=[Op.put("a", "2")]),
    ):
        with pytest.raises(ValueError, match="cannot be recorded"):
            await refused
    assert (await client.kv.get("a")).header.revision == before
    assert recorder.of(Operation) == []


async def test_a_call_that_fails(client: Client) -> None:
    """An error is written down with what it says of the outcome, and goes on."""
    recorder = Recorder()
    kv = RecordedClient(client, recorder).kv
    with pytest.raises(FutureRevisionError):
        await kv.get("a", revision=10**9)
    (call,) = recorder.of(Operation)
    assert call.outcome == "not_applied"
    assert "FutureRevisionError" in (call.error or "")


async def test_a_watch(client: Client) -> None:
    """A watch is written down with what it asked for, what came, and its end."""
    recorder = Recorder()
    recorded = RecordedClient(client, recorder, "c")
    revision = (await recorded.kv.put("k/a", "1")).header.revision
    async with recorded.watch("k/", prefix=True, start_revision=revision) as batches:
        first = await anext(batches)
    assert recorder.of(Subscription) == [Subscription("c.watch1", b"k/", revision, b"k0")]
    (delivery,) = recorder.of(Delivery)
    assert (delivery.revision, len(delivery.events)) == (first.revision, 1)
    assert [end.error for end in recorder.of(WatchEnd)] == [None]
    with pytest.raises(KeyError):
        async with recorded.watch("k/", only=EventType.PUT):
            raise KeyError
    assert [end.watch for end in recorder.of(WatchEnd)] == ["c.watch1", "c.watch2"]
    assert "KeyError" in (recorder.of(WatchEnd)[1].error or "")


async def test_the_oracle(own_server: EtcdServer) -> None:
    """What members tell is written down across a crash; with it a recorded history is clean."""
    recorder = Recorder()
    async with (
        observe(recorder, [own_server]) as oracle,
        Client(own_server.endpoint) as client,
    ):
        recorded = RecordedClient(client, recorder)
        async with recorded.watch("", prefix=True) as batches:
            await recorded.kv.put("a", "1")
            await own_server.kill()
            await own_server.start()
            await recorded.kv.get("a")
            await recorded.kv.txn(success=[Op.put("b", "1"), Op.put("c", "1")])
            last = (await recorded.kv.delete("", prefix=True)).header.revision
            await oracle.wait_for(last)
            async for batch in batches:
                if batch.revision >= last:
                    break
            assert_clean(check_history(recorder))
    assert [record.revision for record in recorder.of(StoreRevision)] == [2, 3, 4]
    recorder.records.remove(recorder.of(Operation)[0])
    assert {found.checker for found in check_history(recorder)} == {"unaccounted"}


async def test_the_oracle_begins_after_a_compaction(client: Client, server: EtcdServer) -> None:
    """What was compacted away is missing, and what follows is there."""
    first = (await client.kv.put("a", "1")).header.revision
    await client.kv.put("a", "2")
    last = (await client.kv.put("a", "3")).header.revision
    await client.kv.compact(last)
    recorder = Recorder()
    async with observe(recorder, [server], start_revision=first) as oracle:
        await oracle.wait_for(last)
    assert [record.revision for record in recorder.of(StoreRevision)] == [last]


async def test_a_member_that_comes_later(server: EtcdServer, client: Client) -> None:
    """The oracle tells what a member saw that was added when it had begun."""
    recorder = Recorder()
    first = (await client.kv.put("a", "1")).header.revision
    async with observe(recorder, [], start_revision=first) as oracle:
        oracle.add(server)
        last = (await client.kv.put("b", "1")).header.revision
        await oracle.wait_for(last)
    assert [each.revision for each in recorder.of(StoreRevision)] == [first, last]
