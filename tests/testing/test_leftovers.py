"""Whatever ends a server or the process that started it: no process, folder or port is left."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import IO

import anyio
import pytest

from aioetcd.testing import EtcdCluster, EtcdNotFoundError, EtcdServer, EtcdStartError, _binary
from aioetcd.testing._folder import Folder, sweep
from aioetcd.testing._process import processes
from tests.waiting import until

pytestmark = [
    pytest.mark.own_logic("how processes, ports and folders are handled"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc"),
]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary directory of this test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def _etcds(folder: Path) -> list[int]:
    """The processes whose data is below a folder."""
    found = []
    for pid in processes():
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            if any(arg.startswith(f"--data-dir={folder}/") for arg in command):
                found.append(pid)
    return found


def _run(program: Path) -> bool:
    """Whether a process has a program's path among its arguments."""
    for pid in processes():
        with contextlib.suppress(OSError):
            if str(program) in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
                return True
    return False


def _folders(temporary: Path) -> list[Path]:
    return list(temporary.glob("aioetcd-*"))


def _swept(temporary: Path) -> bool:
    """Sweep, and tell whether no folder is left."""
    sweep()
    return _folders(temporary) == []


@pytest.fixture
def script(temporary: Path) -> Callable[[str], Path]:
    """Make a program of a shell's lines, which find etcd as $ETCD."""

    def make(lines: str) -> Path:
        path = temporary / "wrapper"
        path.write_text(f"#!/bin/sh\nETCD={_binary.find_binary()}\n{lines}\n")
        path.chmod(0o755)
        return path

    return make


# -- a script that runs etcd -----------------------------------------------------------------


@pytest.mark.parametrize("end", ["stop", "kill", "cancelled"])
async def test_a_script_leaves_no_etcd(
    temporary: Path, script: Callable[[str], Path], end: str
) -> None:
    """An etcd that a script started without exec serves, pauses and ends as if it were ours."""
    server = EtcdServer(script('"$ETCD" "$@"\nexit $?'), quick=True)
    if end == "cancelled":
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.start)
            await until(lambda: len(_etcds(temporary)) >= 2)
            tasks.cancel_scope.cancel()
    else:
        await server.start()
        etcd = [pid for pid in _etcds(temporary) if pid != server.pid]
        assert len(etcd) == 1
        await server.pause()
        assert Path(f"/proc/{etcd[0]}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        await server.resume()
        assert await server.is_healthy()
        await (server.stop() if end == "stop" else server.kill())
    assert _etcds(temporary) == []
    await server.aclose()


async def test_what_a_script_started_is_given_its_time(
    temporary: Path, script: Callable[[str], Path]
) -> None:
    """A stop waits for all that got its signal, where the script itself is gone at once."""
    ended = temporary / "ended"
    lines = f"""(
        trap 'sleep 0.3; touch {ended}; kill $etcd; exit' TERM
        "$ETCD" "$@" & etcd=$!
        wait $etcd; wait
    )
    exit $?"""
    server = EtcdServer(script(lines), quick=True)
    await server.start()
    await server.stop()
    assert ended.exists()
    assert _etcds(temporary) == []
    await server.aclose()


async def test_a_process_that_the_kernel_reaps(temporary: Path) -> None:
    """Where the test process ignores its children's ends, a server ends all the same."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        async with EtcdServer(quick=True) as server:
            os.kill(server.pid, signal.SIGKILL)
            await until(lambda: not server.is_running)
            await server.start()
            assert await server.is_healthy()
        assert _etcds(temporary) == []
    finally:
        signal.signal(signal.SIGCHLD, before)


async def test_what_an_ended_script_started_is_ended(
    temporary: Path, script: Callable[[str], Path]
) -> None:
    """Where the script is gone and its etcd is not, the end of the server is that of etcd."""
    server = EtcdServer(script('"$ETCD" "$@"\nexit $?'), quick=True)
    async with server:
        os.kill(server.pid, signal.SIGKILL)
        await until(lambda: not server.is_running)
        assert len(_etcds(temporary)) == 1
    assert _etcds(temporary) == []


@pytest.mark.fault("three members, and their election")
async def test_members_behind_scripts_form_a_cluster(script: Callable[[str], Path]) -> None:
    """Who dials whom is found out behind a script as well."""
    async with EtcdCluster(3, binary=str(script('"$ETCD" "$@"\nexit $?'))) as cluster:
        assert await cluster.leader() in cluster.members


# -- the question for the version ------------------------------------------------------------


async def test_a_program_that_does_not_answer(
    script: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that hangs when asked for its flags is ended, and the loop goes on meanwhile."""
    monkeypatch.setattr(_binary, "_ANSWER_LIMIT", 1)
    wrapper = script("sleep 600")
    server = EtcdServer(wrapper)
    async with anyio.create_task_group() as tasks:
        seen = False

        async def see() -> None:
            nonlocal seen
            await until(lambda: _run(wrapper))
            seen = True

        tasks.start_soon(see)
        with pytest.raises(EtcdNotFoundError, match="--help has not answered within 1 s"):
            await server.start()
        assert seen, "nobody else had a turn while it was asked"
    assert not _run(wrapper)
    monkeypatch.setattr(_binary, "_ANSWER_LIMIT", 0.1)
    with pytest.raises(EtcdNotFoundError, match="--version has not answered"):
        _ = server.version
    await server.aclose()


# -- arguments -------------------------------------------------------------------------------


def test_one_string_is_no_list_of_arguments() -> None:
    """A string would be taken for many arguments of one letter each."""
    for make in (EtcdServer, EtcdCluster):
        with pytest.raises(TypeError, match=r"list of strings, such as \['--max-txn-ops=3'\]"):
            make(args="--max-txn-ops=3")
        with pytest.raises(TypeError, match=r"pass str\(3\)"):
            make(args=["--max-txn-ops", 3])  # type: ignore[list-item]


async def test_a_configuration_file_is_refused() -> None:
    """With it etcd would ignore the ports and the folder that it is given."""
    for make in (EtcdServer, EtcdCluster):
        with pytest.raises(ValueError, match="--config-file"):
            make(args=["--config-file=x.yml"])
    server = EtcdServer()
    server.args += ["--config-file", "x.yml"]
    with pytest.raises(ValueError, match="--config-file"):
        await server.start()
    await server.aclose()


@pytest.mark.contract
async def test_quick_is_for_one_server_too() -> None:
    """A quick server grants leases of 1 s, as its election timeout is a quarter of one."""
    async with EtcdServer(quick=True) as server:
        granted = await server.gateway("lease/grant", {"TTL": "1"})
    assert granted["TTL"] == "1"
    async with EtcdServer(quick=True, args=["--election-timeout=1000"]) as server:
        granted = await server.gateway("lease/grant", {"TTL": "1"})
    assert granted["TTL"] == "2"  # an argument wins


async def test_a_failed_start_names_the_member() -> None:
    """Of several servers the one that failed is told, with its log."""
    for flag, told in (("--no-such-flag", "etcd third ended"), ("--election-timeout=1", "third")):
        server = EtcdServer(name="third", args=[flag])
        with pytest.raises(EtcdStartError, match=rf"(?s){told}.*log ends with:\n.+"):
            await server.start()
        await server.aclose()


# -- a process that is killed ----------------------------------------------------------------

_PARENT = """
import anyio, contextlib, signal, sys
from aioetcd.testing import EtcdCluster, EtcdServer, FaultProxy

what, how, *binary = sys.argv[1:]
# In the background of a shell it is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

@contextlib.asynccontextmanager
async def proxied():
    async with EtcdServer(quick=True) as server, FaultProxy(server.endpoint) as proxy:
        host, _, port = proxy.endpoint.partition(":")
        async with await anyio.connect_tcp(host, int(port)) as stream:
            await proxy.wait_for_connections(1)
            proxy.blackhole()
            await stream.send(b"GET / HTTP/1.0")
            yield

makers = {"server": lambda: EtcdServer(*binary, quick=True), "cluster": EtcdCluster}

async def main():
    print("begins", flush=True)
    while True:
        async with makers.get(what, proxied)():
            print("runs", flush=True)
            if how == "stays":
                await anyio.sleep_forever()

anyio.run(main)
"""


@contextlib.contextmanager
def _parent(
    temporary: Path, *arguments: str, number: int = signal.SIGKILL, errors: IO[str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A process that has servers, and ends by a signal when the block is left."""
    command = [sys.executable, "-X", "dev", "-c", _PARENT, *arguments]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
    ) as parent:
        try:
            yield parent
        finally:
            parent.send_signal(number)
            parent.communicate(timeout=20)


async def test_the_next_start_sweeps_what_a_killed_process_left(
    temporary: Path, script: Callable[[str], Path]
) -> None:
    """Its folder is removed, with an etcd behind a script; that of one that lives stays."""
    wrapper = str(script('"$ETCD" "$@"\nexit $?'))
    with _parent(temporary, "server", "stays") as living:
        assert living.stdout is not None
        for _ in range(2):
            await anyio.to_thread.run_sync(living.stdout.readline)
        kept = _folders(temporary)
        with _parent(temporary, "server", "stays", wrapper) as parent:
            assert parent.stdout is not None
            for _ in range(2):
                await anyio.to_thread.run_sync(parent.stdout.readline)
            assert len(_folders(temporary)) == 2
        assert len(_folders(temporary)) == 2
        async with EtcdServer(quick=True) as server:
            assert set(_folders(temporary)) == {*kept, server.data_dir.parent}
            assert len(_etcds(temporary)) == 2
    await until(lambda: _etcds(temporary) == [])


def test_a_sweep_spares_what_is_not_ours(temporary: Path) -> None:
    """A folder that is held, one without our mark and a link stay; one nobody filled goes."""
    held = Folder()
    (temporary / "aioetcd-server-strange").mkdir()
    (temporary / "aioetcd-server-strange" / "file").touch()
    (temporary / "aioetcd-server-empty").mkdir()
    (temporary / "elsewhere").mkdir()
    for name in ("owner", "file"):
        (temporary / "elsewhere" / name).touch()
    (temporary / "aioetcd-server-link").symlink_to(temporary / "elsewhere")
    sweep()
    spared = {temporary / f"aioetcd-server-{name}" for name in ("strange", "link")}
    assert set(_folders(temporary)) == {held.path, *spared}
    assert (temporary / "elsewhere" / "file").exists()
    held.remove()
    assert not held.path.exists()


def test_a_forgotten_folder_goes(temporary: Path) -> None:
    """What nobody removed is removed when it is collected."""
    Folder()
    gc.collect()
    assert _folders(temporary) == []


# -- a forked child --------------------------------------------------------------------------

_FORKING = """
import anyio, atexit, gc, os, sys, warnings
from aioetcd.testing import EtcdServer

warnings.simplefilter("ignore")

async def end(server):
    await server.stop()
    await server.kill()
    await server.aclose()

async def main():
    async with EtcdServer(quick=True) as server:
        if (child := os.fork()) == 0:
            failed = 1
            try:
                assert server.is_running and server.pid
                anyio.run(end, server)  # no loop runs here, says asyncio
                del server
                gc.collect()
                atexit._run_exitfuncs()
                failed = 0
            finally:
                os._exit(failed)
        assert os.waitpid(child, 0)[1] == 0
        print(server.is_running, await server.is_healthy(), server.data_dir.is_dir(), flush=True)
        if (child := os.fork()) == 0:
            import time
            time.sleep(600)
        print(child, flush=True)
        if len(sys.argv) > 1:
            os.kill(os.getpid(), 9)
        os.kill(child, 9)
        os.waitpid(child, 0)

anyio.run(main)
"""


@pytest.mark.parametrize("dies", [False, True])
async def test_a_forked_child_ends_nothing(temporary: Path, dies: bool) -> None:
    """Neither its calls nor its end touch its parent's server; nor does it hold its folder."""
    program = [sys.executable, "-c", _FORKING, *(["die"] if dies else [])]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with tempfile.TemporaryFile("w+") as output:  # no pipe: the child that stays would hold it
        done = await anyio.run_process(
            program, stdout=output, stderr=None, env=environment, check=False
        )
        output.seek(0)
        said = output.read().split()
    try:
        assert said[:3] == ["True", "True", "True"]
        assert done.returncode == (-signal.SIGKILL if dies else 0)
        await until(lambda: _etcds(temporary) == [])
        await until(lambda: _swept(temporary))  # the child lets go of the folder as soon as it runs
    finally:
        if dies:
            os.kill(int(said[3]), signal.SIGKILL)


# -- a hundred cancelled starts and stops ----------------------------------------------------


@pytest.fixture
async def nothing_is_left(temporary: Path) -> AsyncIterator[None]:
    """After the test there is no etcd, no folder, no task and no open file of ours."""
    tasks, files = len(asyncio.all_tasks()), _sockets()
    yield
    assert _etcds(temporary) == []
    assert _folders(temporary) == []
    assert len(asyncio.all_tasks()) == tasks
    gc.collect()
    await until(lambda: _sockets() <= files)


def _sockets() -> int:
    names = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            names.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sum(name.startswith("socket:") for name in names)


async def _open_and_close(make: Callable[[], EtcdServer | EtcdCluster]) -> None:
    async with make():
        pass


def _new_server() -> EtcdServer:
    return EtcdServer(quick=True)


def _new_cluster() -> EtcdCluster:
    return EtcdCluster()


@pytest.mark.parametrize(
    ("make", "times", "upto"), [(_new_server, 30, 0.6), (_new_cluster, 10, 1.5)]
)
@pytest.mark.parametrize("how", ["native", "anyio"])
@pytest.mark.fault("starts and stops many servers")
@pytest.mark.usefixtures("nothing_is_left")
async def test_cancelled_at_any_moment(
    how: str,
    make: Callable[[], EtcdServer | EtcdCluster],
    times: int,
    upto: float,
    rng: random.Random,
) -> None:
    """A start or a stop that is cancelled, natively or by anyio, twice or once, leaves nothing."""
    for _ in range(times):
        moment = rng.uniform(0, upto)
        if how == "anyio":
            with anyio.move_on_after(moment):
                await _open_and_close(make)
            continue
        task = asyncio.ensure_future(_open_and_close(make))
        await asyncio.wait([task], timeout=moment)
        task.cancel()
        await asyncio.wait([task], timeout=rng.uniform(0, 0.02))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.mark.parametrize(("what", "times"), [("server", 8), ("cluster", 5), ("proxy", 5)])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.fault("starts and kills many processes")
async def test_ended_by_a_signal_at_any_moment(
    temporary: Path, number: signal.Signals, what: str, times: int, rng: random.Random
) -> None:
    """A process that a signal ends while it starts and stops servers leaves none, and no folder.

    By Ctrl-C it leaves in order, and the rest is the next start's to sweep.
    """
    for _ in range(times):
        with tempfile.TemporaryFile("w+") as errors:
            with _parent(temporary, what, "repeats", number=number, errors=errors) as parent:
                assert parent.stdout is not None
                await anyio.to_thread.run_sync(parent.stdout.readline)
                await anyio.sleep(rng.uniform(0, 1.5))  # the moment
            errors.seek(0)
            told = errors.read()
        assert parent.returncode == -number, told
        assert "Warning" not in told
        assert "destroyed" not in told
        if number == signal.SIGINT:
            assert _folders(temporary) == []
            assert _etcds(temporary) == []
    await until(lambda: _etcds(temporary) == [])
    await until(lambda: _swept(temporary))
