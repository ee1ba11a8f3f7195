"""Forking: what a child may not do, because gRPC has threads that it does not have."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from typing import Protocol

_FORK_SUPPORT = "GRPC_ENABLE_FORK_SUPPORT"


class _Inherited(Protocol):
    def forked(self) -> None: ...


_open: weakref.WeakSet[_Inherited] = weakref.WeakSet()
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
    if _was_in_use:
        raise RuntimeError(
            "this process was forked while a client was open, and gRPC does not survive that: fork "
            "before the first client is opened or after all are closed, or start the process with "
            "multiprocessing's 'spawn' or 'forkserver'"
        )
    _open.add(transport)


def closed(transport: _Inherited) -> None:
    """A transport does not use gRPC any more."""
    _open.discard(transport)


def _before() -> None:
    global _is_in_use  # noqa: PLW0603  # a fact about the process
    # The thread of grpc.aio is also there while somebody holds a call or a channel of it.
    _is_in_use = bool(_open) or any("_poll_wrapper" in t.name for t in threading.enumerate())


def _after_in_child() -> None:
    global _was_in_use  # noqa: PLW0603
    _was_in_use = _was_in_use or _is_in_use  # its own children are no better off
    for transport in _open:
        transport.forked()
        # gRPC would wait for its threads while it frees what the parent has: at the latest when
        # this process ends, and then for ever.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(transport))
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_child=_after_in_child)
