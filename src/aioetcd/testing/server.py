"""One real etcd process, for tests.

The process is etcd itself (its pid is the one to signal), listens on loopback only, keeps its data
in a directory of its own and does not outlive the process that started it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio

from aioetcd.testing._binary import (
    EtcdNotFoundError,
    ask,
    ask_now,
    find_binary,
    is_executable,
)
from aioetcd.testing._folder import Folder, sweep
from aioetcd.testing._http import read_lines, request
from aioetcd.testing._process import HOST, Group, Ports, spawn

__all__ = ["AddressInUseError", "EtcdNotFoundError", "EtcdServer", "EtcdStartError", "find_binary"]

_POLL = 0.02
_START_ATTEMPTS = 5
_LOG_TAIL = 4000
_QUICK = {"heartbeat-interval": "50", "election-timeout": "250"}

# What EtcdServer decides by itself. Everything else may be set or overridden by `args`.
_OWN_FLAGS = frozenset({"name", "data-dir", "listen-client-urls", "listen-peer-urls"})


class EtcdStartError(RuntimeError):
    """etcd ended or did not become healthy while it started; carries the tail of its log."""


class AddressInUseError(EtcdStartError):
    """Somebody else has one of the ports that were picked for this server."""


class EtcdServer:
    """One etcd process on loopback, with its own ports and its own data directory.

    ``async with EtcdServer() as server`` starts it, waits until it is healthy, and at the end
    stops it and removes the data. A server is not bound to an event loop: it may be started in one
    and stopped in another, and its synchronous properties need none. Its methods are not meant to
    be called from several tasks at a time.

    `stop`, `kill` and `restart` keep the data and the ports, so that clients find the same server
    again; `aclose` (and leaving the block) removes a data directory that the server made. Until
    then no other server, of this or another process, is given its ports (on Linux).

    On Linux, etcd is killed when the process that started it ends, however that ends. On other
    systems an etcd whose parent is killed by SIGKILL stays. What a killed process left in the
    temporary directory is removed by the next start of any server (and an etcd behind a wrapper
    script with it). To a forked child of the process that started it a server is of no use:
    nothing there ends it or removes its data.

    The program may be a script that runs etcd, by exec or not: signals go to all that it started.

    Args:
        binary: The etcd program; `find_binary` finds one by default.
        args: More arguments for etcd, such as ``["--auth-token-ttl", "3"]``. They replace the
            defaults of the same name. Certificates given here (``--cert-file``, ``--auto-tls``;
            ``--peer-cert-file``, ``--peer-auto-tls``) turn the URLs to https. May be changed
            between two starts.
        name: The member's name.
        data_dir: Where the data is kept. By default a fresh temporary directory.
        quick: A leader within a quarter of a second, where it else may take more than one, and
            leases from 1 s on, as in `EtcdCluster`.

    Raises:
        TypeError: ``args`` is a string, not a list of them.
        ValueError: ``args`` has a flag that the server decides by itself, or ``--config-file``.
        EtcdNotFoundError: There is no such program.
    """

    def __init__(
        self,
        binary: str | os.PathLike[str] | None = None,
        *,
        args: Iterable[str] = (),
        name: str = "default",
        data_dir: str | os.PathLike[str] | None = None,
        quick: bool = False,
    ) -> None:
        self.binary: Path = find_binary() if binary is None else Path(binary).absolute()
        if not is_executable(self.binary):
            raise EtcdNotFoundError(f"{self.binary} is not a program to run")
        self.args: list[str] = check_args(args)
        self.name = name
        self._quick = quick
        self._data_dir = None if data_dir is None else Path(data_dir).absolute()
        self._temporary: Folder | None = None
        self._process: Group | None = None
        self._paused = False
        self._has_started = False
        self._log_start = 0
        self._pick_ports()

    # -- facts, without I/O to the server ------------------------------------------------------

    @property
    def endpoint(self) -> str:
        """Where clients connect to: ``"127.0.0.1:PORT"``."""
        return f"{HOST}:{self._client_port}"

    @property
    def client_url(self) -> str:
        """The endpoint with its scheme."""
        scheme = "https" if _flags(self.args) & {"cert-file", "auto-tls"} else "http"
        return f"{scheme}://{self.endpoint}"

    @property
    def peer_url(self) -> str:
        """Where other members connect to."""
        scheme = "https" if _flags(self.args) & {"peer-cert-file", "peer-auto-tls"} else "http"
        return f"{scheme}://{HOST}:{self._peer_port}"

    @property
    def version(self) -> str:
        """The version that the program says of itself, such as ``"3.5.1"``.

        Known from the first start of a server of this program on; before, it is asked for, and
        the thread waits: 0.1 s or so.
        """
        found = re.search(r"etcd Version: (\S+)", ask_now(self.binary, "--version"))
        if found is None:
            raise EtcdNotFoundError(f"{self.binary} does not say which etcd it is")
        return found[1]

    @property
    def version_info(self) -> tuple[int, ...]:
        """The version as numbers, for comparing: ``server.version_info >= (3, 6)``."""
        return tuple(int(part) for part in re.findall(r"\d+", self.version)[:3])

    @property
    def pid(self) -> int:
        """The pid of the running etcd, or of the script that runs it without exec."""
        return self._running().pid

    @property
    def is_running(self) -> bool:
        """Whether the process lives. A paused one does."""
        return self._process is not None and self._process.is_running

    @property
    def is_paused(self) -> bool:
        """Whether `pause` stopped the process and nothing has continued it since."""
        return self._paused and self.is_running

    @property
    def data_dir(self) -> Path:
        """The data directory; it is there once the server was started."""
        if self._data_dir is not None:
            return self._data_dir
        if self._temporary is None:
            raise RuntimeError("the server has no data directory before its start")
        return self._temporary.path / "data"

    @property
    def log_path(self) -> Path:
        """The file that etcd's output goes to, beside the data directory."""
        return self.data_dir.with_name(self.data_dir.name + ".log")

    def __repr__(self) -> str:
        """Name, endpoint and state."""
        state = "paused" if self.is_paused else "running" if self.is_running else "stopped"
        return f"<EtcdServer {self.name} {self.endpoint} {state}>"

    # -- life ----------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Start, and wait until the server is healthy."""
        try:
            await self.start()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop, and remove the data."""
        await self.aclose()

    async def start(self, *, timeout: float = 30.0) -> None:
        """Start etcd and wait until it is healthy.

        The first start takes other ports and tries again where somebody else has taken the ones
        picked, unless ``args`` names an ``--initial-cluster`` (other members know the ports then).
        Cancelling it kills the process.

        Args:
            timeout: Seconds until it must be healthy. A member of a cluster is healthy only when
                enough others run.

        Raises:
            EtcdStartError: It ended, or was not healthy in time; the message has the log's tail.
            AddressInUseError: One of its ports was taken.
        """
        if self.is_running:
            raise RuntimeError(f"{self!r} was started already")
        check_args(self.args)
        self._end()  # of a process that ended by itself, what it had started
        await anyio.to_thread.run_sync(sweep)
        if self._data_dir is None and self._temporary is None:
            self._temporary = Folder()
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        may_move = not self._has_started and "initial-cluster" not in _flags(self.args)
        for attempt in range(1, _START_ATTEMPTS + 1):
            try:
                await self._start_once(timeout)
            except AddressInUseError:
                if not may_move or attempt == _START_ATTEMPTS:
                    raise
                if self._temporary is not None:  # its own URLs are in there
                    shutil.rmtree(self.data_dir, ignore_errors=True)
                self._pick_ports()
            else:
                self._has_started = True
                return

    async def stop(self, *, timeout: float = 10.0) -> None:
        """End etcd as a service manager would: SIGTERM, and SIGKILL where that was not enough.

        Does nothing where it does not run. A paused process is continued to end. All that it has
        started is waited for as well. Cancelling it kills the process.

        Args:
            timeout: Seconds between the two signals.
        """
        try:
            if self.is_running and self._is_ours:
                self._send(signal.SIGTERM)
                if self._paused:
                    self._send(signal.SIGCONT)
                with anyio.move_on_after(timeout):
                    await self._wait_ended()
        finally:
            self._end()

    async def kill(self) -> None:
        """End etcd by SIGKILL, as a crash would. Does nothing where it does not run."""
        self._end()

    async def restart(self, *, timeout: float = 30.0) -> None:
        """Stop and start again, with the same data and the same ports."""
        await self.stop()
        await self.start(timeout=timeout)

    async def pause(self) -> None:
        """Stop the process where it is (SIGSTOP): connections stay open, nothing answers."""
        self._send(signal.SIGSTOP)
        self._paused = True
        with anyio.fail_after(5):
            while not self._running().are_stopped():
                await anyio.sleep(_POLL)

    async def resume(self) -> None:
        """Let a paused process go on (SIGCONT)."""
        self._send(signal.SIGCONT)
        self._paused = False

    async def aclose(self) -> None:
        """Stop, and remove the data where the directory is a temporary one. May be repeated.

        Cancelling it kills the process, and the data is removed all the same.
        """
        try:
            with anyio.CancelScope(shield=True):
                await self.stop()
        finally:  # nothing here awaits: a native cancellation passes the shield
            if self._temporary is not None:
                self._temporary.remove()
                self._temporary = None
                self._has_started = False
            self._ports.release()

    # -- beside the client ---------------------------------------------------------------------

    async def clear(self) -> None:
        """Revoke every lease and delete every key. Needs a server without TLS and auth."""
        for lease in (await self.gateway("lease/leases")).get("leases", ()):
            try:
                await self.gateway("lease/revoke", {"ID": lease["ID"]})
            except RuntimeError as error:
                if "lease not found" not in str(error):  # else it has run out meanwhile
                    raise
        await self.gateway("kv/deleterange", {"key": "AA==", "range_end": "AA=="})

    async def gateway(self, path: str, body: Mapping[str, object] | None = None) -> Any:
        """Call etcd's JSON gateway, as curl would: without the client that is tested.

        Args:
            path: What follows ``/v3/``, such as ``"kv/put"``.
            body: The request. Bytes are base64, 64-bit numbers may be strings.

        Returns:
            The decoded answer.
        """
        status, answer = await request(
            self._client_port, f"/v3/{path}", json.dumps(body or {}).encode()
        )
        if status != 200:
            raise RuntimeError(f"/v3/{path}: {status} {answer.decode(errors='replace')}")
        try:
            return json.loads(answer)
        except ValueError as exc:  # of a long one the length is not known before
            raise ConnectionResetError(f"/v3/{path}: the answer has no end") from exc

    async def gateway_stream(
        self, path: str, body: Mapping[str, object]
    ) -> AsyncIterator[dict[str, Any]]:
        """Ask a streaming RPC by etcd's JSON gateway, such as ``watch``, and give its answers.

        Raises:
            OSError: There is nobody, or the connection broke.
        """
        encoded = json.dumps(body).encode()
        async for line in read_lines(self._client_port, f"/v3/{path}", encoded):
            yield json.loads(line)

    async def metrics(self) -> dict[str, float]:
        """The server's own counters (``/metrics``), by name with labels."""
        status, answer = await request(self._control_port, "/metrics")
        if status != 200:
            raise RuntimeError(f"/metrics: {status}")
        lines = (line.rpartition(" ") for line in answer.decode().splitlines() if line[:1] != "#")
        return {name: float(value) for name, _, value in lines if name}

    async def is_healthy(self) -> bool:
        """Whether the server says so at once: it has a leader and serves requests."""
        try:
            status, answer = await request(self._control_port, "/health")
        except OSError:
            return False
        try:
            return status == 200 and str(json.loads(answer)["health"]).lower() == "true"
        except (ValueError, KeyError):
            return False

    def log_tail(self) -> str:
        """The end of what etcd has written since its last start."""
        with self.log_path.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, size - _LOG_TAIL))
            return log.read().decode(errors="replace")

    # -- inside --------------------------------------------------------------------------------

    def _pick_ports(self) -> None:
        self._ports = Ports(3)  # those of before are released
        self._client_port, self._peer_port, self._metrics_port = self._ports.numbers

    @property
    def _control_port(self) -> int:
        """The port that answers /health and /metrics without TLS."""
        return self._metrics_port if self.client_url.startswith("https") else self._client_port

    async def _command(self) -> list[str]:
        defaults = {
            "advertise-client-urls": self.client_url,
            "initial-advertise-peer-urls": self.peer_url,
            "initial-cluster": f"{self.name}={self.peer_url}",
            "logger": "zap",
            "log-level": "warn",
            **(_QUICK if self._quick else {}),
        }
        if self._control_port == self._metrics_port:
            defaults["listen-metrics-urls"] = f"http://{HOST}:{self._metrics_port}"
        flags = await ask(self.binary, "--help")
        await ask(self.binary, "--version")  # so that `version` does not keep the loop waiting
        if "--unsafe-no-fsync" in flags:
            # Tests kill the process, not the machine: the page cache keeps what was written, and a
            # write costs microseconds instead of a disk's round trip.
            defaults["unsafe-no-fsync"] = "true"
        given = _flags(self.args)
        return [
            str(self.binary),
            f"--name={self.name}",
            f"--data-dir={self.data_dir}",
            f"--listen-client-urls={self.client_url}",
            f"--listen-peer-urls={self.peer_url}",
            *(f"--{flag}={value}" for flag, value in defaults.items() if flag not in given),
            *self.args,
        ]

    async def _start_once(self, timeout: float) -> None:
        command = await self._command()
        with self.log_path.open("ab") as log:
            self._log_start = log.tell()
            self._process = spawn(command, log.fileno())
        try:
            with anyio.move_on_after(timeout):
                while self.is_running:
                    # Whoever has taken the port meanwhile may be a healthy etcd as well.
                    if self._running().listens(self._client_port) and await self.is_healthy():
                        return
                    await anyio.sleep(_POLL)
            self._raise_start_error(timeout)
        except BaseException:
            await self.kill()
            raise

    def _raise_start_error(self, timeout: float) -> None:
        tail = self.log_tail()
        code = self._process.exit_code() if self._process is not None else None
        if code is None:
            raise EtcdStartError(
                f"etcd {self.name} was not healthy within {timeout:g} s; its log ends with:\n{tail}"
            )
        error = AddressInUseError if "address already in use" in tail else EtcdStartError
        raise error(f"etcd {self.name} ended at its start with {code}; its log ends with:\n{tail}")

    @property
    def _is_ours(self) -> bool:
        """Whether there is a process, and it is not that of a parent who forked us."""
        return self._process is not None and self._process.is_ours

    def _running(self) -> Group:
        if self._process is None or not self._process.is_running:
            raise RuntimeError(f"{self!r} does not run")
        return self._process

    def _send(self, number: signal.Signals) -> None:
        if not self._running().is_ours:
            raise RuntimeError(f"{self!r} belongs to the process that this one was forked from")
        self._running().send(number)

    def _end(self) -> None:
        """Kill what runs and wait for its end, which nothing can cancel."""
        process, self._process = self._process, None
        self._paused = False
        if process is not None and process.is_ours:
            process.kill()

    def _connects(self, local_port: int, remote_port: int, *, others: bool) -> bool:
        process = self._process
        return process is not None and process.connects(local_port, remote_port, others=others)

    async def _wait_ended(self) -> None:
        while self._process is not None and not self._process.has_ended():
            await anyio.sleep(_POLL)


def _flags(args: Iterable[str]) -> set[str]:
    """The names of the flags among the arguments, without dashes."""
    return {arg.lstrip("-").partition("=")[0] for arg in args if arg.startswith("-")}


def check_args(args: Iterable[str]) -> list[str]:
    """Give the arguments as a list.

    Raises:
        TypeError: They are no strings, or one string for all.
        ValueError: There is a flag that the server decides by itself.
    """
    if isinstance(args, str | bytes):
        raise TypeError(f"args must be a list of strings, such as [{args!r}], not {args!r} itself")
    given: list[object] = list(args)
    checked = [arg for arg in given if isinstance(arg, str)]
    if wrong := [arg for arg in given if not isinstance(arg, str)]:
        raise TypeError(f"args must be a list of strings: pass str({wrong[0]!r})")
    flags = _flags(checked)
    if "config-file" in flags:
        raise ValueError(
            "args: with --config-file etcd ignores all other flags, those that EtcdServer sets "
            "too: give what the file says as flags"
        )
    if own := flags & _OWN_FLAGS:
        raise ValueError(f"args: EtcdServer sets {', '.join(sorted(own))} by itself")
    return checked
