"""Temporary folders that go with the process that made them, however that ends.

A folder's owner holds a lock on a file in it, which the kernel ends with the process. Who finds a
folder without a lock removes it. (A pid would say nothing to a process in another container that
has the same temporary directory.)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import stat
import tempfile
import time
import weakref
from pathlib import Path

from aioetcd.testing._process import is_ended, processes

_PREFIX = "aioetcd-server-"
_LOCK = "owner"


class Folder:
    """A temporary folder of ours. It is removed by `remove`, at the latest at our regular end.

    A forked child of ours has the object as well, and removes nothing.

    Attributes:
        path: The folder.
    """

    def __init__(self) -> None:
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
            # Between two of these steps somebody may sweep it, for nobody holds it yet.
            try:
                lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                continue
            if _take(self.path, lock):
                break
            os.close(lock)
        _locks.add(lock)
        self.remove = weakref.finalize(self, _remove_own, self.path, lock, os.getpid())


def sweep() -> None:
    """Remove what processes that were killed have left, and end what is left of their servers."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if not _is_ours(path):
            continue
        try:
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:  # its owner was killed, or is just between two steps
            with contextlib.suppress(OSError):
                path.rmdir()
            continue
        except OSError:  # it is going
            continue
        try:
            if _take(path, lock):
                _end_servers(path)
                _remove(path)
        finally:
            os.close(lock)


def _is_ours(path: Path) -> bool:
    """Whether it is a folder of our user's, rather than a link that leads to one elsewhere."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def _take(path: Path, lock: int) -> bool:
    """Lock a folder, where nobody else has it or has removed it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(lock), os.stat(path / _LOCK))
    except OSError:
        return False


def _end_servers(path: Path) -> None:
    """Kill the etcds whose data is here: behind a script they do not end with our process."""
    argument = f"--data-dir={path}/".encode()
    found = [pid for pid in processes() if any(a.startswith(argument) for a in _command(pid))]
    for pid in found:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while not all(map(is_ended, found)) and time.monotonic() < deadline:
        time.sleep(0.001)


def _command(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:  # it ended
        return []


def _remove(path: Path) -> None:
    """Remove a folder; what cannot be removed is left, with its lock, for the next sweep."""
    # The last threads of a process that was killed may still make files.
    deadline = time.monotonic() + 1
    while not _is_removed(path) and time.monotonic() < deadline:
        time.sleep(0.005)


def _is_removed(path: Path) -> bool:
    """Remove what there is, the lock at last."""
    for entry in list(path.iterdir()):
        if entry.name == _LOCK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                entry.unlink()
    if any(entry.name != _LOCK for entry in path.iterdir()):
        return False
    shutil.rmtree(path, ignore_errors=True)
    return not path.exists()


# Those of this process. A forked child that kept them open would hold the folders of its parent.
_locks: set[int] = set()


def _remove_own(path: Path, lock: int, owner: int) -> None:
    if os.getpid() != owner:
        return
    if path.exists():
        _remove(path)
    _locks.discard(lock)
    os.close(lock)


def _forget_locks() -> None:
    for lock in _locks:
        os.close(lock)
    _locks.clear()


os.register_at_fork(after_in_child=_forget_locks)
