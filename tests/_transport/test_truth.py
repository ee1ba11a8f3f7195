"""What an error says was applied or not is so: at a full server, and behind proxies."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
import anyio.to_thread
import pytest

from aioetcd import (
    AuthError,
    Client,
    EtcdError,
    NoSpaceError,
    RequestTooLargeError,
    UnavailableError,
    UnsupportedByServerError,
)
from aioetcd.testing import EtcdServer
from aioetcd.testing._process import HOST
from tests.servers import grpc_proxy
from tests.waiting import until

# A proxy of etcd's own that takes no large messages.
TIGHT = ("--max-send-bytes=100000", "--max-recv-bytes=300000")

# What a balancer says, and the code that gRPC makes of it: internal, two refusals of
# authentication, unimplemented, unavailable, unknown.
STATUSES = [301, 400, 401, 403, 404, 429, 500, 502, 503, 504]


async def test_r1_no_space_does_not_deny_that_it_was_applied() -> None:
    """Of the writes that a full server refuses it has applied some, and no error denies it."""
    # A write that passes the first look at the quota is applied, whatever the second one says:
    # those of one burst do, because each is committed on its own and they wait for one another.
    # The values alone are more than the quota, however the server lays them out.
    args = ["--quota-backend-bytes=500000", "--backend-batch-limit=1"]
    applied_puts = applied_grants = 0
    for _ in range(10):
        async with EtcdServer(args=args) as server, Client(server.endpoint, timeout=20) as client:
            names = range(1, 201)
            puts = [client.kv.put(f"{name}", b"x" * 4_000) for name in names]
            grants = [client.lease.grant(1000, lease_id=name) for name in names]
            both = [write for pair in zip(puts, grants, strict=True) for write in pair]
            ends = await asyncio.gather(*both, return_exceptions=True)
            keys = (await client.kv.get("", prefix=True, keys_only=True)).kvs
            leases = (await client.lease.leases()).ids
        errors = [end for end in ends if isinstance(end, BaseException)]
        assert {type(error) for error in errors} <= {NoSpaceError}
        assert all(isinstance(error, EtcdError) and error.maybe_applied for error in errors)
        put_refused = {n for n in names if isinstance(ends[2 * n - 2], NoSpaceError)}
        grant_refused = {n for n in names if isinstance(ends[2 * n - 1], NoSpaceError)}
        assert put_refused
        assert grant_refused
        applied_puts += len(put_refused & {int(kv.key) for kv in keys})
        applied_grants += len(grant_refused & set(leases))
        if applied_puts and applied_grants:
            return
    pytest.fail("the fault did not happen: the server has applied nothing that it refused")


async def test_too_large_for_a_proxy(server: EtcdServer, client: Client) -> None:
    """An answer too large for a proxy is not told as a request that was too large."""
    for number in range(5):
        await client.kv.put(f"big/{number}", b"x" * 90_000)
    async with grpc_proxy(server, *TIGHT) as endpoint, Client(endpoint) as proxied:
        with pytest.raises(EtcdError, match="received message larger than max") as caught:
            await proxied.kv.get("big/", prefix=True)
        assert type(caught.value) is EtcdError
        assert not caught.value.maybe_applied
        with pytest.raises(EtcdError, match="received message larger than max") as caught:
            await proxied.kv.delete("big/", prefix=True, prev_kv=True)
        assert (await client.kv.get("big/", prefix=True, count_only=True)).count == 0
        assert type(caught.value) is EtcdError
        assert caught.value.maybe_applied
        # The proxy may not send this one on, and may not even receive that one.
        for size, text in (
            (200_000, "trying to send message larger than max"),
            (5_000_000, "received message larger than max"),
        ):
            with pytest.raises(RequestTooLargeError, match=text) as caught:
                await proxied.kv.put("big/", b"x" * size)
            assert not caught.value.maybe_applied
        assert (await client.kv.get("big/", prefix=True, count_only=True)).count == 0


async def test_a_proxy_loses_the_codes(server: EtcdServer, client: Client) -> None:
    """Behind etcd's own proxy, which sends every text as UNKNOWN, errors are what they are."""
    async with grpc_proxy(server, *TIGHT) as endpoint, Client(endpoint) as proxied:
        with pytest.raises(EtcdError, match="requested lease not found") as caught:
            await proxied.kv.put("k", "v", lease=7)
        assert caught.value.__cause__ is not None
        assert "StatusCode.UNKNOWN" in str(caught.value.__cause__)
        assert (caught.value.code, caught.value.maybe_applied) == ("NOT_FOUND", False)
    assert (await client.kv.get("k", count_only=True)).count == 0


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame of HTTP/2 (RFC 9113, section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header field as it is (RFC 7541, section 6.2.2)."""
    return bytes((0, len(name))) + name + bytes((len(value),)) + value


DATA, HEADERS, SETTINGS, PING = 0, 1, 4, 6
END_STREAM, ACK, END_HEADERS = 1, 1, 4
OK = b"\x88" + literal(b"content-type", b"application/grpc")
SERVING = b"\x00\x00\x00\x00\x02\x08\x01"


class Balancer:
    """Passes connections on, or answers requests itself with a status of HTTP.

    Attributes:
        status: That status; 200: it ends each stream in good order while the client is about
            to write; None: it passes connections on.
        answered: How many requests it has answered so.
    """

    def __init__(self, server: EtcdServer | None, status: int | None) -> None:
        self.status = status
        self.answered = 0
        self._server = server
        self._connections: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Give the endpoint to connect to."""
        server = await asyncio.start_server(self._connected, HOST, 0)
        try:
            yield f"{HOST}:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            self.cut()
            await until(lambda: not self._connections)

    def cut(self) -> None:
        """End all connections."""
        for writer in self._connections:
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            with suppress(OSError, EOFError):
                if self.status is None:
                    await self._pass_on(reader, writer)
                else:
                    await self._answer(reader, writer, self.status)
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._server is not None
        port = self._server.endpoint.rpartition(":")[2]
        far_reader, far_writer = await asyncio.open_connection(HOST, int(port))

        async def pump(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                while chunk := await source.read(65536):
                    to.write(chunk)
            to.close()

        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, status: int
    ) -> None:
        await reader.readexactly(24)
        # A window of 5 bytes lets the question for its health pass, and no whole other one.
        window = struct.pack(">HI", 4, 5) if status == 200 else b""
        writer.write(frame(SETTINGS, 0, 0, window))
        while True:
            head = await reader.readexactly(9)
            payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
            kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
            if kind in (SETTINGS, PING) and not flags & ACK:
                writer.write(frame(kind, ACK, 0, payload if kind == PING else b""))
            elif kind == DATA and stream == 1 and flags & END_STREAM:
                # What a client asks for first is the endpoint's health.
                writer.write(frame(HEADERS, END_HEADERS, 1, OK) + frame(DATA, 0, 1, SERVING))
                end = literal(b"grpc-status", b"0")
                writer.write(frame(HEADERS, END_HEADERS | END_STREAM, 1, end))
            elif kind == HEADERS and status == 200 and stream > 1:
                self.answered += 1
                end = OK + literal(b"grpc-status", b"0")
                writer.write(frame(HEADERS, END_HEADERS | END_STREAM, stream, end))
            elif kind == DATA and payload and status != 200:
                self.answered += 1
                headers = b"\x08\x03%d" % status
                writer.write(frame(HEADERS, END_HEADERS | END_STREAM, stream, headers))


@pytest.mark.own_logic("the balancer answers, and no etcd")
@pytest.mark.parametrize("status", STATUSES)
async def test_z13_a_balancers_answer_is_not_etcds(status: int) -> None:
    """A status of HTTP says nothing of the user's rights nor of the server's version."""
    balancer = Balancer(None, status)
    async with balancer.listening() as endpoint, Client(endpoint) as client:
        with pytest.raises(
            UnavailableError, match=f"http2 header with status: {status};"
        ) as caught:
            await client.kv.put("k", "v")
    assert balancer.answered == 2  # the first time whoever looked whether there is a quorum
    assert type(caught.value) is UnavailableError
    assert not isinstance(caught.value, AuthError | UnsupportedByServerError)
    assert (caught.value.code, caught.value.maybe_applied) == ("UNAVAILABLE", True)


@pytest.mark.alone("the other endpoint has a head start of 0.3 s to answer first")
@pytest.mark.parametrize("status", [401, 403, 404, 500, 503])
async def test_z13_another_endpoint_is_asked(server: EtcdServer, status: int) -> None:
    """An endpoint where a balancer answers with a status of HTTP is not used."""
    await server.clear()
    balancer = Balancer(None, status)
    async with (
        balancer.listening() as endpoint,
        Client([endpoint, server.endpoint]) as client,
    ):
        assert (await client.kv.get("k")).count == 0
        assert client.stats().endpoint == server.endpoint
        assert client.stats().retries == 0
        assert balancer.answered <= 1


@pytest.mark.own_logic("the balancer ends the stream")
@pytest.mark.parametrize("status", [200, 401, 403, 404, 500])
async def test_z13_a_balancers_answer_ends_no_watch(
    server: EtcdServer, client: Client, status: int
) -> None:
    """A watch outlives a balancer that for a while answers by itself."""
    balancer = Balancer(server, None)
    async with (
        balancer.listening() as endpoint,
        Client(endpoint) as watcher,
        watcher.watch("k") as watch,
    ):
        balancer.status = status
        balancer.cut()
        await client.kv.put("k", "v")
        # Whether an end in good order meets a write is chance, each time.
        times = 4 if status == 200 else 1
        await until(lambda: balancer.answered > times)
        balancer.status = None
        balancer.cut()
        with anyio.fail_after(6):
            event = await anext(aiter(watch))
        assert (event.kv.key, event.kv.value) == (b"k", b"v")
