"""Forking: what a child may not do, because gRPC has threads that it does not have."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import threading
import weakref
from time import monotonic, sleep
from typing import Protocol

_FORK_SUPPORT = "GRPC_ENABLE_FORK_SUPPORT"
# How the names of its core's threads begin.
_TASKS = "/proc/self/task"
_CORE = ("grpc", "event_engine", "lifeguard")
# Some milliseconds after a channel was closed they are gone, on a machine that is not busy.
_PATIENCE = 2.0


class _Inherited(Protocol):
    def forked(self) -> None: ...


_open: weakref.WeakSet[_Inherited] = weakref.WeakSet()
_was_opened = False
_closed_at = -math.inf  # the last one
_is_in_use = False
_was_in_use = False


def import_grpc() -> None:
    """Load gRPC without its own handling of forks, unless the user asks for it.

    That starts threads in each child, also in one that has nothing to do with gRPC, and what they
    find there is half of a connection: every third child of a process with an open stream crashes.
    """
    if _FORK_SUPPORT in os.environ:
        return
    os.environ[_FORK_SUPPORT] = "0"
    try:
        import grpc  # noqa: F401
    finally:
        del os.environ[_FORK_SUPPORT]


def opened(transport: _Inherited) -> None:
    """A transport begins to use gRPC.

    Raises:
        RuntimeError: This process was forked while its parent used gRPC.
    """
    global _was_opened  # noqa: PLW0603  # a fact about the process
    if _was_in_use:
        raise RuntimeError(
            "this process was forked while gRPC was in use, which does not survive that: fork "
            "before the first client is opened or after all are closed, or start the process with "
            "multiprocessing's 'spawn' or 'forkserver'"
        )
    _was_opened = True
    _open.add(transport)


def closed(transport: _Inherited) -> None:
    """A transport does not use gRPC any more."""
    global _closed_at  # noqa: PLW0603
    _open.discard(transport)
    _closed_at = monotonic()


def _has_threads() -> bool:
    """Whether there are threads of gRPC: also where somebody else holds a call or a channel."""
    if any("_poll_wrapper" in thread.name for thread in threading.enumerate()):
        return True
    if os.path.isdir(_TASKS):  # on Linux; its core's are not Python's
        for task in os.listdir(_TASKS):
            with contextlib.suppress(OSError), open(f"{_TASKS}/{task}/comm") as name:
                if name.read().startswith(_CORE):
                    return True
    return False


def _before() -> None:
    global _is_in_use  # noqa: PLW0603
    if _was_opened and not _open and _has_threads():
        gc.collect()  # garbage may hold the last call
    while not _open and monotonic() < _closed_at + _PATIENCE and _has_threads():
        sleep(0.001)  # they were told to end, and are about to
    _is_in_use = _was_opened and (bool(_open) or _has_threads())
    if _is_in_use:
        import ctypes  # noqa: F401  # for the child, which had better not load a library


def _after_in_child() -> None:
    global _was_in_use  # noqa: PLW0603
    _was_in_use = _was_in_use or _is_in_use  # its own children are no better off
    if not _open:
        return
    import ctypes

    for transport in _open:
        transport.forked()
        # gRPC would wait for its threads while it frees what the parent has: at the latest when
        # this process ends, and then for ever.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(transport))
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_child=_after_in_child)
