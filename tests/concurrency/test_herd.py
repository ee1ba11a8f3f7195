"""What many locks and many waiters cost: each release wakes who is next, and nobody else."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest

from aioetcd import Client, LockNotAcquiredError
from aioetcd.testing import EtcdServer
from tests.concurrency.locks import NAME, Held, is_owner, one_of, queue
from tests.waiting import until, until_metric


async def test_x14_a_hundred_names_on_one_session(client: Client, server: EtcdServer) -> None:
    """All are held at once on one lease, each for itself, and go with the session."""
    names = [f"/locks/{number}" for number in range(100)]
    async with Client(server.endpoint) as other:
        async with client.session(ttl=600) as session, AsyncExitStack() as stack:
            locks = [client.lock(name, session=session) for name in names]
            await asyncio.gather(*map(stack.enter_async_context, locks))
            assert (await other.lease.leases()).ids == (session.lease_id,)
            assert (
                len({lock.key for lock in locks}) == len({lock.revision for lock in locks}) == 100
            )
            for lock, name in zip(locks, names, strict=True):
                for who, of in ((client, session), (other, None)):  # nor does it have it twice
                    with pytest.raises(LockNotAcquiredError) as caught:
                        await who.lock(name, session=of, blocking=False).acquire()
                    assert caught.value.holder.key == lock.key
            for lock, name in zip(locks[:50], names, strict=False):
                await lock.release()
                async with other.lock(name, blocking=False) as theirs:
                    assert theirs.revision > lock.revision
            assert all([await is_owner(other, lock) for lock in locks[50:]])
            before = (await server.metrics())[metric("LeaseRevoke")]
            await stack.pop_all().aclose()
        assert (await server.metrics())[metric("LeaseRevoke")] == before + 1
        assert (await other.lease.leases()).ids == ()
        assert (await other.kv.get("", prefix=True, count_only=True)).count == 0


# What the server counts.


def metric(method: str, what: str = "handled") -> str:
    """Give the name under which a server counts the calls, or a stream's messages, of a method."""
    service = {"LeaseGrant": "Lease", "LeaseRevoke": "Lease", "Watch": "Watch"}.get(method, "KV")
    code = 'grpc_code="OK",' if what == "handled" else ""
    kind = "bidi_stream" if method == "Watch" else "unary"
    return (
        f'grpc_server_{what}_total{{{code}grpc_method="{method}",'
        f'grpc_service="etcdserverpb.{service}",grpc_type="{kind}"}}'
    )


@dataclass(frozen=True)
class Traffic:
    """What a server was asked, and what it has told watches."""

    calls: dict[str, int]
    watch_requests: int
    watch_answers: int

    def since(self, before: Traffic) -> Traffic:
        """Give what came after an earlier look."""
        return Traffic(
            {name: self.calls[name] - before.calls[name] for name in self.calls},
            self.watch_requests - before.watch_requests,
            self.watch_answers - before.watch_answers,
        )


async def traffic(server: EtcdServer) -> Traffic:
    """Look at what the server counts."""
    metrics = await server.metrics()
    methods = ("Range", "Put", "DeleteRange", "Txn", "LeaseGrant", "LeaseRevoke")
    return Traffic(
        {method: int(metrics[metric(method)]) for method in methods},
        int(metrics[metric("Watch", "msg_received")]),
        int(metrics[metric("Watch", "msg_sent")]),
    )


class Line:
    """Some who wait, and enter; each leaves when it is told to.

    Attributes:
        entered: The keys of those who entered, in that order.
    """

    def __init__(self) -> None:
        self.entered: list[bytes] = []
        self._may_leave: defaultdict[bytes, asyncio.Event] = defaultdict(asyncio.Event)

    async def wait(self, held: Held) -> None:
        """Wait for one's turn, and leave when told."""
        async with held:
            self.entered.append(held.key)
            await self._may_leave[held.key].wait()

    def leave(self, key: bytes) -> None:
        """Tell one to leave."""
        self._may_leave[key].set()


@asynccontextmanager
async def in_line(
    server: EtcdServer, make: Callable[[Client], Held], count: int
) -> AsyncIterator[Line]:
    """Have so many hold it or wait for it, for a block that all of them leave."""
    line = Line()
    async with (
        Client(server.endpoint) as one,
        Client(server.endpoint) as other,
        asyncio.TaskGroup() as tasks,
    ):
        for number in range(count):
            tasks.create_task(line.wait(make(other if number % 2 else one)))

        async def all_are_there() -> bool:
            return len(await queue(one)) == count

        await until(all_are_there, within=30)
        yield line


async def hand_over_all(server: EtcdServer, client: Client, line: Line, inside: int) -> Traffic:
    """Have each leave when the next one has nobody but it to wait for; give what that cost."""
    order = await queue(client)
    await until(lambda: len(line.entered) == inside)
    # Each watches its own key, and who waits what it waits for.
    watches = 2 * len(order) - inside
    await until_metric(server, "etcd_debugging_mvcc_watcher_total", watches, within=30)
    before = await traffic(server)
    for number, key in enumerate(order[:-inside], start=1):
        line.leave(key)
        await until(lambda: len(line.entered) >= inside + number)  # noqa: B023
    after = await traffic(server)
    assert line.entered[inside:] == order[inside:]
    for key in order[-inside:]:
        line.leave(key)
    return after.since(before)


@pytest.mark.fault("X14")
@pytest.mark.parametrize(("kind", "count"), [("lock", 500), ("election", 100), ("writer", 100)])
async def test_x14_five_hundred_wait(
    client: Client, server: EtcdServer, kind: str, count: int
) -> None:
    """Each release wakes the next one alone, and costs three calls: one of its own, two of that."""
    async with in_line(server, lambda client: one_of(kind, client, ttl=600), count) as line:
        spent = await hand_over_all(server, client, line, 1)
    hand_overs = count - 1
    # Whose turn it is, and its own key; a member that is slow to answer is probed by one more.
    assert 2 * hand_overs <= spent.calls.pop("Range") < 2.2 * hand_overs
    assert spent.calls.pop("LeaseRevoke") <= hand_overs
    assert set(spent.calls.values()) == {0}
    # The two watches that have done their work are closed; of these, one was told something. And
    # how far they all are is asked for at times.
    assert spent.watch_requests < 2.2 * hand_overs
    assert spent.watch_answers < 3.2 * hand_overs


@pytest.mark.fault("X14")
async def test_x14_many_wait_for_a_semaphore(client: Client, server: EtcdServer) -> None:
    """A release makes at most as many look as there are permits, one of whom enters."""
    permits, count = 5, 100
    async with in_line(
        server, lambda client: client.semaphore(NAME, permits, ttl=600), count
    ) as line:
        spent = await hand_over_all(server, client, line, permits)
    hand_overs = count - permits
    assert sum(spent.calls.values()) < (permits + 2.2) * hand_overs
    assert spent.calls["Range"] >= 2 * hand_overs
