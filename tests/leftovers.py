"""The check that a test leaves nothing behind: no task, thread, process, watcher or lease."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_asyncio import is_async_test

from aioetcd.testing import EtcdServer
from tests.servers import SERVER

# Threads that live as long as a loop or the process, by whoever needed one first.
_SHARED_THREADS = ("_poll_wrapper", "asyncio_", "AnyIO worker thread", "aioetcd-testing-spawner")

_GRACE = 5.0
_BLAMED_WATCHERS = pytest.StashKey[int]()


@pytest.fixture(autouse=True)
def _leaves_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a task, a thread, a process, or state at the server behind."""
    threads = set(threading.enumerate())
    processes = _child_processes()
    if is_async_test(request.node):
        request.getfixturevalue("_leaves_no_task")
    yield
    server = request.config.stash.get(SERVER, None)
    used_server = server is not None and "server" in request.fixturenames
    own = {server.pid} if server is not None and server.is_running else set()
    _expect_none("threads", lambda: _own_threads(set(threading.enumerate()) - threads))
    _expect_none("processes", lambda: _child_processes() - processes - own)
    if server is not None and used_server:
        assert server.is_running, "the test ended the session's server"
        blamed = request.config.stash.get(_BLAMED_WATCHERS, 0)
        try:
            _expect_none("watchers at the server", lambda: range(blamed, _watchers(server)))
            _expect_none("leases at the server", lambda: _leases(server))
        finally:  # not to blame the next test for it
            request.config.stash[_BLAMED_WATCHERS] = _watchers(server)
            for lease in _leases(server):
                _call(server, "/v3/lease/revoke", {"ID": lease})


@pytest.fixture
async def _leaves_no_task() -> AsyncIterator[None]:
    """Fail a test that leaves an asyncio task behind."""
    before = asyncio.all_tasks()
    yield
    deadline = time.monotonic() + _GRACE
    while left := asyncio.all_tasks() - before - {asyncio.current_task()}:
        if time.monotonic() > deadline:
            pytest.fail(f"left over tasks: {left}")
        await asyncio.sleep(0.01)


def _expect_none(what: str, look: Callable[[], Iterable[object]]) -> None:
    """Wait, with a bound, until there is none of it."""
    deadline = time.monotonic() + _GRACE
    while left := list(look()):
        if time.monotonic() > deadline:
            pytest.fail(f"left over {what}: {left}")
        time.sleep(0.01)


def _own_threads(threads: Iterable[threading.Thread]) -> list[threading.Thread]:
    return [t for t in threads if not any(name in t.name for name in _SHARED_THREADS)]


def _child_processes() -> set[int]:
    """The pids of our children (Linux; elsewhere nothing is seen)."""
    parent = str(os.getpid())
    return {
        int(stat.parent.name) for stat in Path("/proc").glob("[0-9]*/stat") if _ppid(stat) == parent
    }


def _ppid(stat: Path) -> str | None:
    try:
        return stat.read_text().rpartition(")")[2].split()[1]
    except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
        return None


def _watchers(server: EtcdServer) -> int:
    metric = "etcd_debugging_mvcc_watcher_total "
    lines = _call(server, "/metrics").splitlines()
    return next(int(float(line[len(metric) :])) for line in lines if line.startswith(metric))


def _leases(server: EtcdServer) -> list[str]:
    answer: Any = json.loads(_call(server, "/v3/lease/leases", {}))
    return [lease["ID"] for lease in answer.get("leases", ())]


def _call(server: EtcdServer, path: str, body: object = None) -> str:
    """Ask the server without the client, and without an event loop."""
    data = None if body is None else json.dumps(body).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{server.client_url}{path}", data, timeout=5) as response:
        text: str = response.read().decode()
        return text
