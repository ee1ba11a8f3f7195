"""Forking: what a child may not do, because gRPC has threads that it does not have."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any, Protocol


class _Inherited(Protocol):
    def forked(self) -> None: ...


_open: weakref.WeakSet[_Inherited] = weakref.WeakSet()
# In a child: what the parent had open. gRPC would wait for its threads while it frees them.
_kept: list[Any] = []
_was_in_use = False


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
    global _was_in_use  # noqa: PLW0603  # a fact about the process
    # The thread of grpc.aio is also there while somebody holds a call or a channel of it.
    _was_in_use = bool(_open) or any("_poll_wrapper" in t.name for t in threading.enumerate())


def _after_in_parent() -> None:
    global _was_in_use  # noqa: PLW0603
    _was_in_use = False


def _after_in_child() -> None:
    for transport in _open:
        transport.forked()
        _kept.append(transport)
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
    )
