"""Each example runs by itself, on an etcd of its own, and on one that is there."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import anyio
import pytest

from aioetcd import Client
from aioetcd.testing import EtcdServer, FaultProxy

EXAMPLES = Path(__file__).parent.parent / "examples"
NOBODY = "127.0.0.1:1"  # nothing listens there

pytestmark = pytest.mark.fault("runs whole programs, with etcds of their own")


async def run(name: str, *arguments: str, code: int = 0, given: str = "") -> str:
    """Run an example; give what it writes to stdout, or where it fails to stderr, too."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
    with anyio.fail_after(30):
        done = await anyio.run_process(command, input=given.encode(), check=False)
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == code, out + err
    assert "Traceback" not in err
    return out + err if code else out


async def test_status() -> None:
    """A cluster of three has one leader and two that follow."""
    lines = (await run("status.py")).splitlines()
    assert lines[0].split()[:4] == ["endpoint", "name", "version", "role"]
    assert len(lines) == 4
    assert sorted(line.split()[3] for line in lines[1:]) == ["follower", "follower", "leader"]
    assert len({line.split()[1] for line in lines}) == 4


async def test_status_of_one_that_is_not_there(server: EtcdServer) -> None:
    """Who answers is shown; who does not is named, and the exit status says so."""
    out = await run("status.py", "--endpoints", f"{NOBODY},{server.endpoint}", code=1)
    assert re.search(rf"^{server.endpoint} .* leader ", out, re.MULTILINE)
    assert re.search(rf"^{NOBODY}: .*refused", out, re.MULTILINE)
    out = await run("status.py", "--endpoints", NOBODY, code=1)
    assert "there is no leader" in out


async def test_snapshot(server: EtcdServer, client: Client, tmp_path: Path) -> None:
    """The file is there, whole; where it fails, it is not, and the reason is told."""
    assert re.search(r"etcd\.db: \d+ bytes, verified", (await run("snapshot.py")).replace("\n", ""))
    path = tmp_path / "saved.db"
    out = await run("snapshot.py", str(path), "--endpoint", server.endpoint)
    assert f"{path.stat().st_size} bytes, verified" in out.replace("\n", " ")
    before = path.read_bytes()
    out = await run("snapshot.py", str(tmp_path / "none" / "a"), code=1)
    assert "No such file" in out
    await client.kv.put_many({f"k{number}": b"v" * 10_000 for number in range(300)})
    async with FaultProxy(server.endpoint) as proxy, anyio.create_task_group() as group:
        is_held = proxy.hold_after(1_000_000)

        async def cut() -> None:
            await is_held.wait()
            proxy.refuse()  # nor does it come when it is asked for again
            proxy.cut()

        group.start_soon(cut)
        out = await run("snapshot.py", str(path), "--endpoint", proxy.endpoint, code=1)
    assert "verified" not in out
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["saved.db"]


async def test_transfer(server: EtcdServer, client: Client) -> None:
    """What was exported is there again, also where it is no text."""
    assert (await run("transfer.py")).splitlines()[-1] == "the same: True"
    where = ("--endpoints", server.endpoint)
    there = {b"a": b"1", b"b/\xff": b"\x00\xfe", b"c": b""}
    await client.namespace("/old/").kv.put_many(there)
    await client.kv.put("/older", "no part of it")
    lines = await run("transfer.py", "export", "/old/", *where)
    assert json.loads(lines.splitlines()[0]) == {"key": "a", "value": "1"}
    assert await run("transfer.py", "import", "/new/", *where, given=lines) == ""
    found = await client.kv.get("/", prefix=True)
    assert found.as_dict() == {
        **{prefix + key: value for prefix in (b"/old/", b"/new/") for key, value in there.items()},
        b"/older": b"no part of it",
    }


async def test_settings() -> None:
    """A change is seen, and so is one after etcd was away."""
    assert (await run("settings.py")).splitlines() == [
        "{'greeting': 'hello'}",
        "{'greeting': 'good morning'}",
        "{'greeting': 'good morning', 'colour': 'blue'} after a restart of etcd",
    ]


async def test_discovery() -> None:
    """SIGTERM is seen at once, ``kill -9`` when the lease is over, and a lost lease is replaced."""
    lines = (await run("discovery.py")).splitlines()
    seen = [line.removeprefix("there: ") for line in lines if line.startswith("there: ")]
    assert "ended, killed, revoked" in seen, lines
    begun = seen.index("ended, killed, revoked")
    assert seen[begun : begun + 3] == ["ended, killed, revoked", "killed, revoked", "revoked"]
    assert seen[begun + 3 :] in (["nobody", "revoked"], ["revoked"])  # it may be back at once
    assert "ended ends" in lines
    assert "killed ends" not in lines


async def test_leader() -> None:
    """Another one goes on where the leader is killed, and each job is done once."""
    lines = (await run("leader.py")).splitlines()
    led = [line.removesuffix(" leads") for line in lines if line.endswith(" leads")]
    killed = led[0]
    assert lines[0] == f"{killed} leads"
    assert lines[1] == f"{killed} is killed"
    assert sorted(led) == ["ada", "ben", "cleo"]  # the last one finds that all is done
    ended = [line.removesuffix(" ends") for line in lines if line.endswith(" ends")]
    assert sorted([killed, *ended]) == ["ada", "ben", "cleo"]
    assert lines[-1] == "20 of 20 jobs were done once, by 2 leaders"
