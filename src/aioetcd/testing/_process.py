"""Processes that end with ours, with all that they started, and the ports they listen on."""

from __future__ import annotations

import contextlib
import os
import queue
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

HOST = "127.0.0.1"

# Runs as the child and becomes etcd. Parent-death signals are Linux's only way to end a child even
# when its parent is killed with SIGKILL; they survive execve. The parent may have died before
# prctl was called, hence the check. A preexec_fn would run Python between fork and exec, which may
# deadlock in a process with threads.
_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
try:
    os.execv(sys.argv[2], sys.argv[2:])
except OSError as exc:
    print(f"cannot run {sys.argv[2]}: {exc}", flush=True)
    os._exit(127)
"""


def environment() -> dict[str, str]:
    """Our environment without etcd's settings: etcd reads every flag from ETCD_* as well."""
    kept = "ETCD_UNSUPPORTED_ARCH"
    return {k: v for k, v in os.environ.items() if not k.startswith("ETCD_") or k == kept}


class Group:
    """A process of ours and what it has started: signals and the end reach all of them.

    A wrapper script that does not exec is the process then, and etcd is a child of it. The process
    is not reaped before `kill`, so that its number, which is the group's, is nobody else's.

    Only the process that started it may end it: a forked child of ours has the object as well,
    and `is_ours` is false there.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._owner = os.getpid()
        self.pid = process.pid

    @property
    def is_ours(self) -> bool:
        """Whether this process started it, rather than a parent that forked us."""
        return self._owner == os.getpid()

    @property
    def is_running(self) -> bool:
        """Whether the process itself lives."""
        if self.is_ours:
            return self.exit_code() is None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, 0)
            return True
        return False

    def exit_code(self) -> int | None:
        """Give the code with which it ended, or minus the signal; None while it lives."""
        if not sys.platform.startswith("linux"):
            return self._process.poll()
        if self._process.returncode is not None:
            return self._process.returncode
        try:
            ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # where SIGCHLD is ignored, the kernel reaps
            return self._process.poll()
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def send(self, number: signal.Signals) -> None:
        """Send all of them a signal."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def kill(self) -> None:
        """End all of them by SIGKILL, and wait for that: a matter of milliseconds."""
        self.send(signal.SIGKILL)
        deadline = time.monotonic() + 5
        while self._others_live() and time.monotonic() < deadline:
            time.sleep(0.001)
        self._process.wait()

    def has_ended(self) -> bool:
        """Whether all of them have ended by themselves or by a signal."""
        return self.exit_code() is not None and not self._others_live()

    def are_stopped(self) -> bool:
        """Whether a signal has stopped all of them (where the system tells)."""
        if not sys.platform.startswith("linux"):
            return True
        return all(_is_stopped(pid) for pid in (self.pid, *self._others()))

    def listens(self, port: int) -> bool:
        """Whether it is one of these that listens on the port of 127.0.0.1."""
        if not sys.platform.startswith("linux"):
            return True
        sockets = _sockets(self.pid, port)
        if not sockets:
            return False
        return _holds(self.pid, sockets) or any(_holds(pid, sockets) for pid in self._others())

    def holds(self, file: str, *, others: bool) -> bool:
        """Whether it has a file open (Linux only).

        Args:
            file: What `/proc` calls it, as `other_end` gives it.
            others: Ask what it has started rather than the process itself: that takes a look at
                all processes of the machine.
        """
        asked = self._others() if others else [self.pid]
        return any(_holds(pid, {file}) for pid in asked)

    def _others_live(self) -> bool:
        return any(not is_ended(pid) for pid in self._others())

    def _others(self) -> Iterator[int]:
        """The group's processes but its first (Linux only: elsewhere nobody tells)."""
        for pid in processes():
            if pid != self.pid and _stat(pid)[2:3] == [str(self.pid)]:
                yield pid


def processes() -> Iterator[int]:
    """The pids of all processes (Linux only: elsewhere nobody tells)."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir("/proc"):
            if name.isdecimal():
                yield int(name)


def is_ended(pid: int) -> bool:
    """Whether a process has ended with all its threads, be it reaped or not."""
    # The state is that of the first thread: the others may be about to close what they share.
    state, *fields = _stat(pid)
    return state == "X" or (state == "Z" and int(fields[16]) <= 1)


def _is_stopped(pid: int) -> bool:
    """Whether no thread of a process runs."""
    try:
        threads = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except (FileNotFoundError, ProcessLookupError):  # it ended
        return True
    return all(_stat(thread)[0] in "TZX" for thread in threads)


def _stat(pid: int) -> list[str]:
    """The kernel's line about a process, from its state on; of one that is gone: dead."""
    try:
        # The command's name, in parentheses, may hold anything: the state follows the last one.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["X"]


def _sockets(pid: int, port: int) -> set[str]:
    """What the files of a process are called that listen on a port of 127.0.0.1."""
    address = f"{'0100007F' if sys.byteorder == 'little' else '7F000001'}:{port:04X}"
    try:
        table = Path(f"/proc/{pid}/net/tcp").read_text()
    except (OSError, ProcessLookupError):  # it ended
        return set()
    # Columns: number, local address, remote address, state (0A: listening), …, 9: inode
    rows = (line.split() for line in table.splitlines())
    return {f"socket:[{row[9]}]" for row in rows if row[1] == address and row[3] == "0A"}


# Of the kernel's interface to ask for one socket: sock_diag(7).
_SOCK_DIAG = 4
_REQUEST = struct.Struct("=IHHII BBBBI")
_ADDRESSES = struct.Struct("!HH 4s12x 4s12x")
_ANY_DEVICE_AND_COOKIE = struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
_INODE = struct.Struct("=I")
_INODE_AT = 16 + 68


def other_end(connection: socket.socket) -> str | None:
    """Give what `/proc` calls the file at the other end of an IPv4 connection of this machine.

    One that has ended has none (Linux only: elsewhere nobody tells). To read the kernel's table of
    all connections would take milliseconds, for each that is accepted.
    """
    try:
        (there, its_port), (here, port) = connection.getpeername(), connection.getsockname()
        with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _SOCK_DIAG) as kernel:
            addresses = _ADDRESSES.pack(
                its_port, port, socket.inet_aton(there), socket.inet_aton(here)
            )
            question = addresses + _ANY_DEVICE_AND_COOKIE
            size = _REQUEST.size + len(question)
            about = (socket.AF_INET, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF)
            kernel.send(_REQUEST.pack(size, 20, 1, 1, 0, *about) + question)
            answer = kernel.recv(4096)
    except OSError:
        return None
    if len(answer) < _INODE_AT + _INODE.size:  # an error: there is no such socket
        return None
    (inode,) = _INODE.unpack_from(answer, _INODE_AT)
    return f"socket:[{inode}]"


def _holds(pid: int, files: set[str]) -> bool:
    try:
        fds = f"/proc/{pid}/fd"
        return any(os.readlink(f"{fds}/{fd}") in files for fd in os.listdir(fds))
    except (FileNotFoundError, ProcessLookupError):  # it ended, or closed a file meanwhile
        return False


class Ports:
    """Ports that nobody listens on, and that no other process picks before `release`.

    A socket is bound to each and never listens. A program that listens with `SO_REUSEADDR`, as
    etcd does, may have the port beside it; whoever looks for a free one may not. So a server that
    is down finds its ports free when it comes back, and its clients find no other server there.
    Elsewhere than on Linux such a socket would keep etcd away: there the ports are only picked.

    They are below the range that the kernel takes for outgoing connections where that is known:
    there, a client that tries to reach a killed server could be given that server's own port, and
    the server could not come back.

    Released at the latest when it is collected.

    Args:
        count: How many.

    Attributes:
        numbers: The ports.

    Raises:
        RuntimeError: There were none.
    """

    def __init__(self, count: int) -> None:
        candidates = _candidates()
        sockets: list[socket.socket] = []
        for _ in range(200):
            if len(sockets) == count:
                break
            port = random.choice(candidates) if len(candidates) > 1000 else 0
            if (bound := _bound(port)) is not None:
                sockets.append(bound)
        self.numbers: list[int] = [bound.getsockname()[1] for bound in sockets]
        self.release = weakref.finalize(self, _close, sockets)
        if len(sockets) < count:
            self.release()
            raise RuntimeError("found no free ports")
        if not sys.platform.startswith("linux"):
            self.release()
        for bound in sockets:
            # Only now: two sockets that were bound with it could be given the same port.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)


def free_ports(count: int) -> list[int]:
    """Pick ports that nobody listens on, and that may be somebody else's at once."""
    ports = Ports(count)
    ports.release()
    return ports.numbers


def _candidates() -> range:
    try:
        limits = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
        return range(15000, int(limits[0]))
    except (OSError, ValueError, IndexError):
        return range(0)


def _bound(port: int) -> socket.socket | None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.bind((HOST, port))
    except OSError:
        sock.close()
        return None
    return sock


def _close(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.close()
    sockets.clear()


def spawn(command: list[str], output: int) -> Group:
    """Start a process that ends with ours, in a group of its own.

    Linux sends the parent-death signal when the *thread* that forked ends. The main thread ends
    last; on behalf of any other thread, one that never ends does it.
    """
    if threading.current_thread() is threading.main_thread():
        return Group(_popen(command, output))
    return Group(_Spawner.shared().run(command, output))


def _popen(command: list[str], output: int) -> subprocess.Popen[bytes]:
    if sys.platform.startswith("linux"):
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid())]
        command = launcher + command
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=environment(),
        process_group=0,  # Ctrl-C in a terminal ends the tests, and they end etcd
    )


class _Spawner:
    """A thread that starts processes for other threads, and waits for the end of ours."""

    _lock = threading.Lock()
    _shared: _Spawner | None = None

    def __init__(self) -> None:
        self._requests: queue.SimpleQueue[tuple[list[str], int]] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[subprocess.Popen[bytes] | BaseException] = (
            queue.SimpleQueue()
        )
        self._pid = os.getpid()
        threading.Thread(target=self._serve, name="aioetcd-testing-spawner", daemon=True).start()

    @classmethod
    def shared(cls) -> _Spawner:
        with cls._lock:
            if cls._shared is None or cls._shared._pid != os.getpid():
                cls._shared = cls()
            return cls._shared

    def run(self, command: list[str], output: int) -> subprocess.Popen[bytes]:
        with self._lock:
            self._requests.put((command, output))
            answer = self._answers.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _serve(self) -> None:
        while True:
            command, output = self._requests.get()
            try:
                self._answers.put(_popen(command, output))
            except BaseException as exc:  # noqa: BLE001 - raised by the thread that asked
                self._answers.put(exc)
