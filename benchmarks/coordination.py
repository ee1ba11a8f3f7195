"""What a lock costs, and how soon the next one has it: beside Go's recipe and clients from PyPI.

    python benchmarks/coordination.py [--rounds 5] [--locks 100] [--hand-overs 20] [--only NAME ...]

README.md beside this file says what is compared, and how to read it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import shutil
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from time import monotonic_ns

import anyio

from aioetcd.testing import EtcdServer

ROOT = Path(__file__).parent.parent
PLAYERS = ROOT / "benchmarks" / "players.py"
PEERS = ("aetcd", "etcd3aio", "etcd-client-py", "etcd3", "etcd-sdk-python", "etcd3gw")
NEVER_WAIT = ("etcd3gw",)
TTL = 2
SETTLED = 0.15  # seconds after which who waits has its watch, and etcd serves it at once


@dataclass
class Candidate:
    """What is measured.

    Attributes:
        name: What the table calls it.
        command: Runs a player; takes the endpoint and the time to live of its locks.
        took: The seconds of each uncontended lock, by rounds.
        hand_overs: The seconds from before a release to after the next one's entering.
        fail_overs: The seconds from the death of a holder to the next one's entering.
        failure: Why it is left out of what follows, or None.
    """

    name: str
    command: Sequence[str]
    took: list[list[float]] = field(default_factory=list)
    hand_overs: list[float] = field(default_factory=list)
    fail_overs: list[float] = field(default_factory=list)
    failure: str | None = None


class Player:
    """A process that does what it is told."""

    def __init__(self, process: Process) -> None:
        self.process = process

    def tell(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n".encode())

    async def answer(self, *, within: float = 60) -> str:
        assert self.process.stdout is not None
        with anyio.fail_after(within):
            line = await self.process.stdout.readline()
        if not line:
            assert self.process.stderr is not None
            *_, last = (await self.process.stderr.read()).decode().splitlines() or ["nothing"]
            raise OSError(f"it ended, and said: {last}")
        return line.decode().strip()

    async def ask(self, command: str) -> str:
        self.tell(command)
        return await self.answer()


@asynccontextmanager
async def playing(candidate: Candidate, endpoint: str, ttl: int) -> AsyncIterator[Player]:
    command = [part.format(endpoint=endpoint, ttl=ttl) for part in candidate.command]
    env = dict(os.environ)
    if command[0] != sys.executable:  # a peer's own environment
        env.pop("PYTHONPATH", None)
    process = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=env, limit=2**22
    )
    try:
        player = Player(process)
        if await player.answer() != "ready":
            raise OSError("it is not ready")
        yield player
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def measure(
    candidate: Candidate, endpoint: str, number: int, locks: int, hand_overs: int
) -> None:
    """Measure one in one round."""
    name = f"{candidate.name.replace(' ', '-')}/{number}"
    async with playing(candidate, endpoint, 60) as one, playing(candidate, endpoint, 60) as other:
        await one.ask(f"uncontended {name}/warm {locks // 10 + 1}")
        answer = await one.ask(f"uncontended {name}/free {locks}")
        candidate.took.append([float(each) for each in answer.split()])
        if candidate.name in NEVER_WAIT:
            return
        await one.ask(f"lock {name}/busy")
        for _ in range(hand_overs):
            other.tell(f"lock {name}/busy")
            await anyio.sleep(SETTLED)
            released = int(await one.ask("unlock"))
            entered = int(await other.answer())
            candidate.hand_overs.append((entered - released) / 1e9)
            one, other = other, one
        await one.ask("unlock")


async def fail_over(candidate: Candidate, endpoint: str, number: int) -> None:
    """Kill a holder while another one waits."""
    name = f"{candidate.name.replace(' ', '-')}/killed/{number}"
    async with playing(candidate, endpoint, TTL) as one, playing(candidate, endpoint, TTL) as other:
        await one.ask(f"lock {name}")
        other.tell(f"lock {name}")
        await anyio.sleep(SETTLED)
        one.process.kill()
        killed = monotonic_ns()
        entered = int(await other.answer(within=30))
        candidate.fail_overs.append((entered - killed) / 1e9)


def candidates(only: Sequence[str]) -> list[Candidate]:
    """Give what can run here."""
    own = [sys.executable, str(PLAYERS)]
    found = [
        Candidate(name, [*own, name, "{endpoint}", "{ttl}"])
        for name in ("aioetcd", "aioetcd, session")
    ]
    if shutil.which("go") is None:
        print("left out: Go's client: there is no go to build it with")
    else:
        program = built("get_go_program.sh", "benchmarks/go")
        found += [
            Candidate("Go, session", [program, "play", "{endpoint}", "{ttl}", "session"]),
            Candidate("Go, a session each", [program, "play", "{endpoint}", "{ttl}", "each"]),
        ]
    for name in PEERS:
        try:
            python = built("get_peer.sh", name)
        except subprocess.CalledProcessError as error:
            print(f"left out: {name} cannot be installed (exit code {error.returncode})")
        else:
            found.append(Candidate(name, [python, str(PLAYERS), name, "{endpoint}", "{ttl}"]))
    return [each for each in found if not only or each.name in only]


def built(script: str, argument: str) -> str:
    command = [str(ROOT / "scripts" / script), argument]
    return subprocess.run(command, stdout=PIPE, check=True).stdout.decode().strip()


def report(found: Sequence[Candidate]) -> None:
    print(f"{'':20}{'acquire and release, nobody waits':>36}{'hand-over':>18}{'fail-over':>18}")
    print(
        f"{'':20}{'p50 ms':>12}{'a second':>12}{'ratio':>12}{'p50 ms':>9}{'p99 ms':>9}"
        f"{'median s':>9}{'worst s':>9}"
    )
    first = [median(each) for each in found[0].took]
    for each in found:
        medians = [median(took) for took in each.took]
        line = f"{each.name:20}"
        if medians:
            ratio = median(one / other for one, other in zip(medians, first, strict=False))
            line += f"{1e3 * median(medians):12.2f}{1 / median(medians):12.0f}{ratio:12.2f}"
        if each.hand_overs:
            percentiles = quantiles(each.hand_overs, n=100, method="inclusive")
            line += f"{1e3 * percentiles[49]:9.2f}{1e3 * percentiles[98]:9.2f}"
        if each.fail_overs:
            line += f"{median(each.fail_overs) - TTL:+9.2f}{max(each.fail_overs) - TTL:+9.2f}"
        print(line)
    for each in found:
        if each.failure is not None:
            print(f"{each.name}: {each.failure}")


async def main(rounds: int, locks: int, hand_overs: int, only: Sequence[str]) -> None:
    found = candidates(only)
    async with EtcdServer(quick=True) as server:

        async def attempt(what: str, each: Candidate, *arguments: int) -> None:
            if each.failure is not None:
                return
            try:
                if what == "locks":
                    await measure(each, server.endpoint, *arguments)
                else:
                    await fail_over(each, server.endpoint, *arguments)
            except (OSError, TimeoutError, ValueError) as error:
                each.failure = (
                    f"no more after round {arguments[0]} of {what}: {str(error) or 'no answer'}"
                )

        for number in range(rounds):
            order = found[number % len(found) :] + found[: number % len(found)]
            for each in order:
                await attempt("locks", each, number, locks, hand_overs)
        for number in range(rounds):  # they only wait: all at once
            async with anyio.create_task_group() as group:
                for each in found:
                    if each.name not in NEVER_WAIT:
                        group.start_soon(attempt, "fail-overs", each, number)
        print(
            f"Python {platform.python_version()}, etcd {server.version}, {os.cpu_count()} cores, "
            f"{datetime.now(UTC):%Y-%m-%d}; {rounds} rounds of {locks} locks and "
            f"{hand_overs} hand-overs"
        )
    report(found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compare locks with other clients'.")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (5)")
    parser.add_argument("--locks", type=int, default=100, help="uncontended locks a round (100)")
    parser.add_argument("--hand-overs", type=int, default=20, help="hand-overs a round (20)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these alone")
    arguments = parser.parse_args()
    anyio.run(main, arguments.rounds, arguments.locks, arguments.hand_overs, arguments.only)
