"""A client behind a proxy that breaks its connection, and one beside it that sees what is there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import anyio
import pytest

from aioetcd import Client
from aioetcd._transport import members
from aioetcd.testing import EtcdServer, FaultProxy
from tests.waiting import until

# More bytes than HTTP/2 has to say by itself: 17 a ping, 13 a window. The shortest request has 78.
_CHATTER = 60


@pytest.fixture(scope="session")
def quick_server() -> Iterator[EtcdServer]:
    """An etcd whose leases may be as short as 1 s. Do not stop, kill or pause it."""
    server = EtcdServer(quick=True)
    with ThreadPoolExecutor(1) as pool:  # this thread may have a loop already
        pool.submit(lambda: anyio.run(server.start)).result()
        try:
            yield server
        finally:
            pool.submit(lambda: anyio.run(server.aclose)).result()


@dataclass
class Faulty:
    """A client behind a proxy that breaks its connection, and one beside it.

    Attributes:
        server: The server that both lead to; its shortest lease is 1 s.
        proxy: What the client goes through.
        client: The client under test.
        oracle: Sees the server whatever the proxy does.
    """

    server: EtcdServer
    proxy: FaultProxy
    client: Client
    oracle: Client

    async def lease_ids(self) -> tuple[int, ...]:
        """The leases at the server."""
        return (await self.oracle.lease.leases()).ids

    async def has_leases(self) -> bool:
        """Whether the server has a lease."""
        return not await self.no_leases()

    async def no_leases(self) -> bool:
        """Whether the server has no lease."""
        return await self.lease_ids() == ()

    async def no_keys(self) -> bool:
        """Whether the server has no key."""
        return (await self.oracle.kv.get("", prefix=True, count_only=True)).count == 0


@asynccontextmanager
async def faulty_client(server: EtcdServer, *, timeout: float = 10.0) -> AsyncIterator[Faulty]:
    """Connect a client through a proxy."""
    async with (
        FaultProxy(server.endpoint) as proxy,
        Client(server.endpoint) as oracle,
        Client(proxy.endpoint, timeout=timeout) as client,
    ):
        await client.kv.get("connect", timeout=10)  # the client's may be for a fault
        yield Faulty(server, proxy, client, oracle)


@pytest.fixture
async def faulty(quick_server: EtcdServer) -> AsyncIterator[Faulty]:
    """A client behind a proxy; its server is empty at first, and again at the end."""
    await quick_server.clear()
    async with faulty_client(quick_server) as faulty:
        yield faulty
        await faulty.proxy.heal()
        # Of what a blackhole swallowed, the server gets rid by itself.
        await until(faulty.no_leases)
        await until(faulty.no_keys)


async def until_answer_lost(proxy: FaultProxy, done: Callable[[], Awaitable[bool]]) -> None:
    """Wait until a request was carried out whose answer a proxy swallows, as it does by now.

    Once anything was swallowed the connection has a hole, so that `FaultProxy.heal` resets it: the
    answer is lost even where it was not the answer yet that was swallowed.
    """
    await until(done)
    await proxy.wait_until(lambda proxy: proxy.bytes_swallowed > 0)


async def until_request_lost(proxy: FaultProxy) -> None:
    """Wait until a request is swallowed of those that go through a proxy, as they are by now.

    It is none yet where only what HTTP/2 says by itself was: a ping, its acknowledgement, windows.
    """
    await proxy.wait_until(lambda proxy: proxy.bytes_swallowed > _CHATTER)


async def lose_answer(proxy: FaultProxy, done: Callable[[], Awaitable[bool]]) -> None:
    """With answers swallowed already: lose the answer of a request that was carried out."""
    await until_answer_lost(proxy, done)
    await proxy.heal()


@contextmanager
def first_in_use() -> Iterator[None]:
    """Have who connects in the block use the first endpoint, also where this machine is slow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(members, "HEAD_START", 5.0)
        yield


def writes_through(server: EtcdServer) -> bool:
    """Whether what a single member has acknowledged is safe from ``kill -9``.

    From 3.5.0 to 3.5.4 the last write may be told before it is (etcd #14370): stop these instead.
    """
    return not (3, 5, 0) <= server.version_info < (3, 5, 5)


async def refused_calls(server: EtcdServer, method: str, code: str) -> float:
    """Give how many calls of a method the server has answered with a code."""
    return sum(
        value
        for name, value in (await server.metrics()).items()
        if name.startswith("grpc_server_handled_total")
        and f'grpc_code="{code}"' in name
        and f'grpc_method="{method}"' in name
    )
