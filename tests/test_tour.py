"""The tour runs to its end, on an etcd of its own and on one that is used, and leaves nothing."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import anyio
import pytest

from aioetcd import Client
from aioetcd.testing import EtcdServer

TOUR = Path(__file__).parent.parent / "examples" / "tour.py"

SECTIONS = [
    *("Connect", "Put", "Get", "Delete", "Many keys", "Namespace", "Lease", "Watch"),
    *("Transaction", "Lock", "Cluster"),
]

SEEN = [
    "NoEndpointError: ",
    "before: b'one', version 1",
    "the 3 changed last: [b'vier', b'trois', b'due'], of 4, more: True",
    "3 deleted, they were [b'due', b'trois', b'vier']",
    "put 1000 keys in 8 round trips",
    "scanned 1000 keys, at one revision",
    "got two of them: [b'7', None]",
    "inside: {b'name': b'Ada'}",
    "renewed: 2 s from now",
    "and so the loop ends",
    "modify: 1, delete: 10, create: 9",
    "bob: failed, it is b'alice' since revision ",
    "second: refused at once, b'host-1' is inside",
    "first: body cancelled, LockLostError: ",
    "a write that needs the first's lock: False",
    "a write that needs the third's lock: True",
    " bytes, whole and verified",
]


async def run(*arguments: str) -> str:
    """Run the tour and give what it prints."""
    command = [sys.executable, "-W", "error", str(TOUR), *arguments]
    done = await anyio.run_process(command, check=False)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    assert done.stderr == b""
    return done.stdout.decode()


def check(output: str) -> None:
    headings = [line.strip("= ") for line in output.splitlines() if line.startswith("== ")]
    assert headings == SECTIONS
    assert [text for text in SEEN if text not in output] == []


@pytest.mark.fault("runs two whole programs, and a lock of theirs expires")
async def test_tour(server: EtcdServer, client: Client) -> None:
    """Every section of the tour sees what it should, and all its keys are gone at the end."""
    await client.kv.put("somebody else's", "key")
    own, used = await asyncio.gather(run(), run("--endpoints", server.endpoint))
    assert own.startswith("started etcd ")
    check(own)
    check(used)
    left = await client.kv.get("", prefix=True, keys_only=True)
    assert [kv.key for kv in left.kvs] == [b"somebody else's"]
