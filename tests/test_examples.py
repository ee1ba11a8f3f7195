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


async def test_bank(server: EtcdServer, client: Client) -> None:
    """However often connections are cut, money is neither made nor lost."""
    lines = (await run("bank.py", "--seconds", "4")).splitlines()
    done = re.match(r"(\d+) transfers, 0 unknown; (\d+) connections were cut", lines[0])
    assert done, lines
    assert int(done[1]) > 10
    assert int(done[2]) > 3
    audited = re.match(r"(\d+) times the sum was right; in the end it is 10000$", lines[1])
    assert audited, lines
    assert int(audited[1]) > 10
    await run("bank.py", "--seconds", "0.2", "--endpoints", server.endpoint)
    found = await client.kv.get("/bank/account", prefix=True)
    assert sum(int(kv.text) for kv in found.kvs) == 10_000
    assert "no endpoint" in await run("bank.py", "--endpoints", NOBODY, code=1)


async def test_settings() -> None:
    """A change is seen, and so is one after etcd was away."""
    assert (await run("settings.py")).splitlines() == [
        "{'greeting': 'hello'}",
        "{'greeting': 'good morning'}",
        "{'greeting': 'good morning', 'colour': 'blue'} after a restart of etcd",
    ]


async def test_registry() -> None:
    """Who becomes busy is seen to be, and who is killed is gone when the lease is over."""
    lines = (await run("registry.py")).splitlines()
    seen = [line.removeprefix("there: ") for line in lines if line.startswith("there: ")]
    begun = seen.index("a well, b well, c well")
    assert seen[begun:] == [
        "a well, b well, c well",
        "a well, b busy, c well",
        "a well, b busy",
    ]
    assert {"a ends", "b ends"} <= {*lines}
    assert "c ends" not in lines


async def test_flags(server: EtcdServer, client: Client) -> None:
    """Changes are applied, what makes no sense is off; without the store all stays as it was."""
    assert (await run("flags.py")).splitlines() == [
        "checkout: True",
        "one that is not there: False",
        'checkout after {"percent": 0}: False',
        "checkout after no flag at all: False",
        'checkout after {"percent": 100}: True',
        "checkout without the store: True",
        "well enough: True",
        "checkout when the store is back: False",
        "up to date: True",
    ]
    command = [sys.executable, str(EXAMPLES / "flags.py"), server.endpoint]
    async with await anyio.open_process(command, stderr=None) as process:
        assert process.stdout is not None
        with anyio.fail_after(20):
            out, number = b"", 0
            while b"\n" not in out:  # it follows what changes after it has begun
                number += 1
                await client.kv.put("/flags/a", f'{{"percent": {number % 100}}}')
                with anyio.move_on_after(0.2):
                    out += await process.stdout.receive()
        assert out.startswith(b"a: ")
        process.terminate()
    await client.kv.delete("/flags/a")
    assert "refused" in await run("flags.py", NOBODY, code=1)


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


async def test_jobs() -> None:
    """Every job is done, though workers are killed; the one that always fails is put aside."""
    lines = (await run("jobs.py")).splitlines()
    done = sorted(f"JOB {number}" for number in range(1, 13))
    assert f"done: {', '.join(done)}" in lines, lines
    assert [line for line in lines if line.startswith("dead")] == ["dead after 2 attempts: bad"]
    assert "JobCounts(waiting=0, claimed=0, delayed=0, dead=1)" in lines
    again = [line for line in lines if re.search(r"has job \d+, attempt 2", line)]
    assert again, lines  # what the killed ones had
    ended = {line for line in lines if line.endswith("ends")}
    assert ended == {"worker 3 ends", "worker 4 ends"}


async def test_jobs_of_a_queue_that_is_there(server: EtcdServer, client: Client) -> None:
    """What was put is counted."""
    where = ("--endpoints", server.endpoint)
    assert await run("jobs.py", *where, "put", "a", "b") == ""
    shown = await run("jobs.py", *where, "show")
    assert shown == "JobCounts(waiting=2, claimed=0, delayed=0, dead=0)\n"
    assert "could be reached" in await run("jobs.py", "--endpoints", NOBODY, "show", code=1)
