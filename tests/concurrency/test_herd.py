"""What many locks and many waiters cost: each release wakes who is next, and nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias

import pytest

from aioetcd import Client, Leadership, Lock, LockNotAcquiredError
from aioetcd.testing import EtcdServer
from tests.concurrency.locks import NAME, is_owner, queue
from tests.waiting import until

Held: TypeAlias = Lock | Leadership
Make: TypeAlias = Callable[[Client], Held]

KINDS: dict[str, Make] = {
    "lock": lambda client: client.lock(NAME, ttl=600),
    "election": lambda client: client.election(NAME, ttl=600).campaign("a"),
    "rwlock": lambda client: client.rwlock(NAME, ttl=600).write(),
}


async def test_x14_a_hundred_names_on_one_session(client: Client, server: EtcdServer) -> None:
    """All are held at once on one lease, each for itself, and go with the session."""
    names = [f"/locks/{number}" for number in range(100)]
    async with Client(server.endpoint) as other:
        async with client.session(ttl=600) as session, AsyncExitStack() as stack:
            locks = [client.lock(name, session=session) for name in names]
            await asyncio.gather(*map(stack.enter_async_context, locks))
            assert (await other.lease.leases()).ids == (session.lease_id,)
            assert len({lock.key for lock in locks}) == len({lock.revision for lock in locks}) == 100
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


def metric(method: str, service: str = "") -> str:
    """Give the name under which a server counts the calls of a method that it has answered."""
    service = service or ("Lease" if method.startswith("Lease") else "KV")
    return (
        f'grpc_server_handled_total{{grpc_code="OK",grpc_method="{method}",'
        f'grpc_service="etcdserverpb.{service}",grpc_type="unary"}}'
    )


@dataclass(frozen=True)
class Counted:
    """What a server was asked so far: calls, and messages on the streams of watches."""

    calls: dict[str, int]
    watch_messages: int

    def since(self, before: Counted) -> Counted:
        """Give what came after an earlier look."""
        calls = {name: count - before.calls[name] for name, count in self.calls.items()}
        return Counted(calls, self.watch_messages - before.watch_messages)


async def counted(server: EtcdServer) -> Counted:
    """Look at what a server was asked."""
    metrics = await server.metrics()
    calls = {
        name: int(sum(metrics.get(metric(name, f"{name_of}"), 0) for name_of in ("KV", "Lease")))
        for name in ("Range", "Put", "DeleteRange", "Txn", "LeaseGrant", "LeaseRevoke")
    }
    messages = (
        'grpc_server_msg_received_total{grpc_method="Watch",'
        'grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream"}'
    )
    return Counted(calls, int(metrics[messages]))


class Line:
    """Waiters in the order of their coming; each one that enters says so, and is told to leave."""

    def __init__(self) -> None:
        self.entered: list[int] = []
        self.may_leave: dict[int, asyncio.Event] = {}

    async def wait(self, number: int, held: Held) -> None:
        """Wait for one's turn, and leave when told."""
        leave = self.may_leave[number] = asyncio.Event()
        async with held:
            self.entered.append(number)
            await leave.wait()


@asynccontextmanager
async def line_of(
    clients: Sequence[Client], make: Make, count: int, inside: int
) -> AsyncIterator[Line]:
    """Have so many hold it or wait for it, spread over some clients, for a block."""
    line = Line()
    async with asyncio.TaskGroup() as tasks:
        for number in range(count):
            client = clients[number % len(clients)]
            tasks.create_task(line.wait(number, make(client)))
            if number == 0:
                await until(lambda: line.entered == [0])
        await until(lambda: len(line.may_leave) == count)

        async def all_wait() -> bool:
            return len(await queue(clients[0])) == count

        await until(all_wait, within=30)
        # Two watches each, but for those inside: they have their own key's alone.
        await until(
            lambda: sum(client.stats().watches for client in clients) == 2 * count - inside,
            within=30,
        )
        yield line
