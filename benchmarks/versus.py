"""How fast calls are, many or few at a time: beside a bare stub, Go's client and others from PyPI.

    python benchmarks/versus.py [--rounds 5] [--milliseconds 1000] [--write docs/benchmarks]

Each client works in a process of its own, all on one etcd, in turns. README.md beside this file
says what is compared, and how to read it. ``--write`` makes the plots of a folder, by matplotlib.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from asyncio.subprocess import PIPE, Process, create_subprocess_exec
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import NamedTuple

import anyio
from plots import draw

from aioetcd import Client
from aioetcd.testing import EtcdServer

ROOT = Path(__file__).parent.parent
WORKERS = ROOT / "benchmarks" / "workers.py"
OWN = ("aioetcd", "aioetcd, batched", "bare stub", "bare txns")
PEERS = ("aetcd", "etcd3aio", "etcd-client-py")
CALLERS = (1, 64, 256, 1000)
SCANNED, REPLAYED, WRITTEN = 100_000, 100_000, 20_000
WATCHES, WATCHED = 100, 500
VALUE = b"v" * 64


class Done(NamedTuple):
    """What a worker did: calls, keys or events; seconds."""

    calls: int
    seconds: float
    cpu: float
    p50: float = 0.0
    p99: float = 0.0


Results = dict[tuple[str, str], list[Done]]
"""By task and client, one of each round."""


class Worker:
    """A process that does what it is told."""

    def __init__(self, name: str, process: Process) -> None:
        self.name = name
        self._process = process
        self._cannot: set[str] = set()

    async def line(self, *, within: float = 120) -> str:
        """Read a line of it."""
        assert self._process.stdout is not None
        with anyio.fail_after(within):
            return (await self._process.stdout.readline()).decode().strip()

    async def do(self, task: str) -> Done | None:
        """Let it do a task; None where it cannot."""
        kind = what_of(task)
        if kind in self._cannot:
            return None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{task}\n".encode())
            answer = await self.line()
        except TimeoutError:
            self._process.kill()
            answer = "no end of it"
        if not answer.startswith("{"):
            self._cannot.add(kind)
            if answer != "no":
                print(f"{self.name} fails at {task!r}: {answer.removeprefix('no ') or 'it ended'}")
            return None
        return Done(**json.loads(answer))


@asynccontextmanager
async def working(name: str, command: Sequence[str]) -> AsyncIterator[Worker]:
    """Start a worker."""
    env = dict(os.environ)
    if command[0] != sys.executable:  # a peer's own environment
        env.pop("PYTHONPATH", None)
    process = await create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, env=env)
    try:
        worker = Worker(name, process)
        if await worker.line() != "ready":
            raise OSError(f"{name} cannot work")
        yield worker
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def commands(endpoint: str, only: Sequence[str]) -> dict[str, list[str]]:
    """Give what can run here."""
    found = {name: [sys.executable, str(WORKERS), name, endpoint] for name in OWN}
    if shutil.which("go") is None:
        print("left out: Go's client: there is no go to build it with")
    elif not only or "Go" in only:
        found["Go"] = [built("get_go_program.sh", "benchmarks/go"), "work", endpoint]
    for name in PEERS if not only else (name for name in PEERS if name in only):
        try:
            found[name] = [built("get_peer.sh", name), str(WORKERS), name, endpoint]
        except subprocess.CalledProcessError as error:
            print(f"left out: {name} cannot be installed (exit code {error.returncode})")
    return {name: command for name, command in found.items() if not only or name in only}


def built(script: str, argument: str) -> str:
    """Run a script that makes something, and give where that is."""
    command = [str(ROOT / "scripts" / script), argument]
    return subprocess.run(command, stdout=PIPE, check=True).stdout.decode().strip()


async def fill(client: Client) -> int:
    """Write what is read; give the first revision of what is replayed."""
    for number in range(1000):
        await client.kv.put(f"/k/{number:08}", VALUE)
    await client.kv.put_many({f"/s/{number:08}": VALUE for number in range(SCANNED)})
    put = await client.kv.put_many({f"/w/{number:08}": VALUE for number in range(REPLAYED)})
    return min(put.revisions.values())


async def measure(rounds: int, milliseconds: int, only: Sequence[str]) -> tuple[str, Results]:
    """Let all work, in turns; give what was measured on what."""
    results: Results = defaultdict(list)
    async with EtcdServer() as server:
        async with Client(server.endpoint) as client:
            revision = await fill(client)
        tasks = [
            *(f"{what} {callers} {milliseconds}" for callers in CALLERS for what in ("get", "put")),
            "scan",
            f"replay {revision} {REPLAYED}",
            f"fanout {WATCHES} {WATCHED}",
            f"many {WRITTEN}",
        ]
        async with AsyncExitStack() as stack:
            workers: list[Worker] = []
            for name, command in commands(server.endpoint, only).items():
                try:
                    workers.append(await stack.enter_async_context(working(name, command)))
                except (OSError, TimeoutError) as error:
                    print(f"left out: {name}: {error}")
            for number in range(-1, rounds):
                for task in tasks:
                    first = number % len(workers)
                    for worker in workers[first:] + workers[:first]:
                        done = await worker.do(task)
                        if done is not None and number >= 0:  # the round before warms up
                            results[what_of(task), worker.name].append(done)
        what = (
            f"Python {platform.python_version()}, etcd {server.version}, {os.cpu_count()} cores, "
            f"{datetime.now(UTC):%Y-%m-%d}; {rounds} rounds of {milliseconds} ms"
        )
    return what, results


def what_of(task: str) -> str:
    """Name a task for the table."""
    kind, *numbers = task.split()
    return f"{kind} {numbers[0]}" if kind in ("get", "put") else kind


def rate(done: Done) -> float:
    """Give calls a second."""
    return done.calls / done.seconds


def cost(done: Done) -> float:
    """Give microseconds of CPU a call."""
    return done.cpu / done.calls * 1e6


def report(results: Results) -> None:
    """Print the table."""
    print(
        f"{'':12}{'':18}{'a second':>10}{'/ Go':>7}{'/ bare':>8}"
        f"{'CPU us':>9}{'/ Go':>7}{'p50 ms':>9}{'p99 ms':>9}"
    )
    for what in dict.fromkeys(what for what, _ in results):
        for name in [name for each, name in results if each == what]:
            own = results[what, name]
            line = f"{what:12}{name:18}{median(map(rate, own)):10.0f}"
            line += f"{ratio(own, results.get((what, 'Go')), rate):>7}"
            line += f"{ratio(own, results.get((what, 'bare stub')), rate):>8}"
            line += f"{median(map(cost, own)):9.1f}"
            line += f"{ratio(own, results.get((what, 'Go')), cost):>7}"
            if own[0].p50:
                line += f"{1e3 * median(each.p50 for each in own):9.2f}"
                line += f"{1e3 * median(each.p99 for each in own):9.2f}"
            print(line)
        print()


def ratio(own: Sequence[Done], others: Sequence[Done] | None, of: Callable[[Done], float]) -> str:
    """Give the median of the rounds' ratios."""
    if not others:
        return ""
    return f"{median(of(one) / of(other) for one, other in zip(own, others, strict=False)):.2f}"


def plot(what: str, results: Results, folder: Path) -> None:
    """Draw calls a second, and their CPU, over callers."""
    for kind in ("get", "put"):
        names = dict.fromkeys(name for each, name in results if each.startswith(kind))
        panes = {
            label: {
                name: [
                    (callers, median(map(of, results[f"{kind} {callers}", name])))
                    for callers in CALLERS
                    if results.get((f"{kind} {callers}", name))
                ]
                for name in names
            }
            for label, of in (("calls a second", rate), ("CPU a call, microseconds", cost))
        }
        path = folder / f"versus-{kind}.svg"
        draw(path, f"{kind}: {what}", "callers at a time", panes, solid="aioetcd")


async def main(arguments: argparse.Namespace) -> None:
    """Measure, print, draw."""
    what, results = await measure(arguments.rounds, arguments.milliseconds, arguments.only)
    print(what)
    report(results)
    if arguments.write is not None:
        plot(what, results, arguments.write)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compare calls with other clients'.")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (5)")
    parser.add_argument("--milliseconds", type=int, default=1000, help="of each measure (1000)")
    names = (*OWN, "Go", *PEERS)
    parser.add_argument(
        "--only", nargs="+", default=[], choices=names, metavar="NAME", help="these alone"
    )
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="draw plots there")
    anyio.run(main, parser.parse_args())
