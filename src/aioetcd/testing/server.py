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
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import anyio

from aioetcd.config.tls import TLS
from aioetcd.testing._args import check_args, flags_of
from aioetcd.testing._binary import (
    EtcdNotFoundError,
    ask,
    ask_now,
    find_binary,
    is_executable,
)
from aioetcd.testing._certificates import Authority, Certificates, unverified
from aioetcd.testing._folder import Folder, sweep
from aioetcd.testing._gateway import Gateway, is_stale
from aioetcd.testing._http import request
from aioetcd.testing._process import HOST, Group, Ports, spawn

__all__ = ["AddressInUseError", "EtcdNotFoundError", "EtcdServer", "EtcdStartError", "find_binary"]

_POLL = 0.02
_START_ATTEMPTS = 5
_LOG_TAIL = 4000
_QUICK = {"heartbeat-interval": "50", "election-timeout": "250"}


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
        tls: Serve clients (not peers) by TLS alone, with throw-away certificates for 127.0.0.1 and
            localhost; ``"mutual"`` wants a certificate of the client as well. `tls` has what a
            client needs.
        auth: A name, which is ``"root"``, and a password: the first start makes this user with the
            role root, and enables auth. A member of a cluster (``--initial-cluster`` in ``args``)
            leaves that to who forms the cluster, and only asks as this user.

    Raises:
        TypeError: ``args`` is a string, not a list of them.
        ValueError: ``args`` has a flag that the server decides by itself, or ``--config-file``;
            ``auth`` names another user than root.
        EtcdNotFoundError: There is no such program.
        ModuleNotFoundError: ``tls`` needs `trustme`, and there is none.

    Example:
        async with EtcdServer(tls=True, auth=("root", "pw")) as server:
            await server.gateway("kv/put", {"key": "YQ=="})
            client = Client(server.endpoint, tls=server.tls, username="root", password="pw")
    """

    def __init__(
        self,
        binary: str | os.PathLike[str] | None = None,
        *,
        args: Iterable[str] = (),
        name: str = "default",
        data_dir: str | os.PathLike[str] | None = None,
        quick: bool = False,
        tls: bool | Literal["mutual"] = False,
        auth: tuple[str, str] | None = None,
    ) -> None:
        self.binary: Path = find_binary() if binary is None else Path(binary).absolute()
        if not is_executable(self.binary):
            raise EtcdNotFoundError(f"{self.binary} is not a program to run")
        self.args: list[str] = check_args(args, tls=bool(tls))
        if tls not in (False, True, "mutual"):
            raise ValueError(f"tls must be True, False or 'mutual', not {tls!r}")
        if auth is not None and auth[0] != "root":
            raise ValueError(f"auth must name the user root, whom etcd wants, not {auth[0]!r}")
        self._tls = tls
        self._authority = Authority() if tls else None
        self._certificates: Certificates | None = None
        self._gateway = Gateway(auth)
        self._signs_in_at: Callable[[], EtcdServer] | None = None  # of a learner: who has a vote
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
        is_tls = self._tls or flags_of(self.args) & {"cert-file", "auto-tls"}
        return f"{'https' if is_tls else 'http'}://{self.endpoint}"

    @property
    def tls(self) -> TLS | None:
        """What a client needs for TLS, as paths in the server's folder; None without ``tls=``.

        There once the server was started, and the same until `aclose`: files that a test replaces
        there stay.

        Raises:
            RuntimeError: It was not started yet.

        Example:
            async with Client(server.endpoint, tls=server.tls) as client: ...
        """
        return self._issued().tls if self._tls else None

    @property
    def peer_url(self) -> str:
        """Where other members connect to."""
        scheme = "https" if flags_of(self.args) & {"peer-cert-file", "peer-auto-tls"} else "http"
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
        check_args(self.args, tls=bool(self._tls))
        self._end()  # of a process that ended by itself, what it had started
        await anyio.to_thread.run_sync(sweep)
        if self._data_dir is None and self._temporary is None:
            self._temporary = Folder()
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        if self._authority is not None and self._certificates is None:
            folder = self.data_dir.with_name(self.data_dir.name + ".tls")
            is_mutual = self._tls == "mutual"
            self._certificates = Certificates(folder, self._authority, is_mutual=is_mutual)
        is_alone = "initial-cluster" not in flags_of(self.args)
        may_move = not self._has_started and is_alone
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
                break
        if is_alone:
            try:
                await self._enable_auth()
            except BaseException:
                await self.kill()
                raise

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
                self._certificates = None
            self._ports.release()

    # -- beside the client ---------------------------------------------------------------------

    async def clear(self) -> None:
        """Revoke every lease and delete every key.

        Needs a server without auth, or with ``auth=``, and without ``--client-cert-auth`` in
        ``args``.
        """
        for lease in (await self.gateway("lease/leases")).get("leases", ()):
            try:
                await self.gateway("lease/revoke", {"ID": lease["ID"]})
            except RuntimeError as error:
                if "lease not found" not in str(error):  # else it has run out meanwhile
                    raise
        await self.gateway("kv/deleterange", {"key": "AA==", "range_end": "AA=="})

    async def gateway(self, path: str, body: Mapping[str, object] | None = None) -> Any:
        """Call etcd's JSON gateway, as curl would: without the client that is tested.

        With ``auth=`` it asks as that user, and signs in again where its token has become void.

        Args:
            path: What follows ``/v3/``, such as ``"kv/put"``.
            body: The request. Bytes are base64, 64-bit numbers may be strings.

        Returns:
            The decoded answer.

        Raises:
            RuntimeError: It was refused; the message has etcd's.
            OSError: There is nobody, or the connection broke.

        Example:
            await server.gateway("kv/put", {"key": "YQ==", "value": "MQ=="})
        """
        try:
            return await self._gateway.ask(self._client_port, path, body)
        except RuntimeError as refused:
            if self._gateway.user is None or not is_stale(refused):
                raise
        await self._sign_in()
        return await self._gateway.ask(self._client_port, path, body)

    async def gateway_stream(
        self, path: str, body: Mapping[str, object]
    ) -> AsyncIterator[dict[str, Any]]:
        """Ask a streaming RPC by etcd's JSON gateway, such as ``watch``, and give its answers.

        Raises:
            OSError: There is nobody, or the connection broke.
            RuntimeError: The user of ``auth=`` may not sign in.
        """
        await self._sign_in()  # of a stream nobody could tell a stale token from another error
        async for answer in self._gateway.stream(self._client_port, path, body):
            yield answer

    def renew_certificate(
        self, *, expired: bool = False, name: str | None = None, other_authority: bool = False
    ) -> TLS:
        """Replace the server's certificate on disk, which etcd uses from the next connection on.

        Connections that are open stay, and `tls` is as before. The kit itself takes any certificate
        and asks on; but one that is expired or another authority's is no client's either, and with
        ``tls="mutual"`` etcd's own gateway shows it when it connects anew (after a restart, and
        from 3.8 on for the first question ever): `gateway` fails then.

        Args:
            expired: It ran out yesterday.
            name: It is for this name or address alone, in place of 127.0.0.1 and localhost.
            other_authority: Somebody else has signed it, whom no client trusts yet.

        Returns:
            What a client needs to trust who has signed it: `tls`, or with another file as its `ca`.

        Raises:
            RuntimeError: The server was made without ``tls=``, or was not started yet.

        Example:
            renewed = server.renew_certificate(other_authority=True)
            shutil.copy(renewed.ca, server.tls.ca)  # whoever reads `server.tls` trusts it now
        """
        return self._issued().renew(expired=expired, name=name, other_authority=other_authority)

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

    def _issued(self) -> Certificates:
        if self._certificates is None:
            why = "has no certificates before its start" if self._tls else "was made without tls="
            raise RuntimeError(f"{self!r} {why}")
        return self._certificates

    async def _sign_in(self) -> None:
        """Get a token where auth is on: of itself, or of another member (they know it as well)."""
        asked = self if self._signs_in_at is None else self._signs_in_at()
        await asked._gateway.sign_in(asked._client_port)
        self._gateway.token = asked._gateway.token

    async def _enable_auth(self) -> None:
        await self._gateway.enable_auth(self._client_port)

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
            **(self._certificates.args if self._certificates is not None else {}),
        }
        if self._control_port == self._metrics_port:
            defaults["listen-metrics-urls"] = f"http://{HOST}:{self._metrics_port}"
        flags = await ask(self.binary, "--help")
        await ask(self.binary, "--version")  # so that `version` does not keep the loop waiting
        if "--unsafe-no-fsync" in flags:
            # Tests kill the process, not the machine: the page cache keeps what was written, and a
            # write costs microseconds instead of a disk's round trip.
            defaults["unsafe-no-fsync"] = "true"
        given = flags_of(self.args)
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
        if self._certificates is not None:
            self._gateway.context = self._certificates.context()
        else:
            self._gateway.context = unverified() if self.client_url.startswith("https") else None
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

    def _holds(self, file: str, *, others: bool) -> bool:
        process = self._process
        return process is not None and process.holds(file, others=others)

    async def _wait_ended(self) -> None:
        while self._process is not None and not self._process.has_ended():
            await anyio.sleep(_POLL)
