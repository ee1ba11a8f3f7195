"""Many keys in few round trips: as many in a txn as the server's defaults allow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import anyio

from aioetcd.errors import EtcdError
from aioetcd.keys import encode_key

_T = TypeVar("_T")
_R = TypeVar("_R")

# The server's defaults allow 128 operations and 1.5 MiB.
TXN_OPS = 128
TXN_BYTES = 2**20
# So many txns are under way at a time.
_AT_A_TIME = 8


def encoded(
    keys: Iterable[str | bytes], name: str = "keys", *, unique: bool = False
) -> list[bytes]:
    """Give keys as bytes, if there is any, and where it matters each of them once."""
    if isinstance(keys, str | bytes) or not isinstance(keys, Iterable):
        raise TypeError(f"{name} must be an iterable of keys, not {type(keys).__name__}")
    found = [encode_key(key) for key in keys]
    if not found:
        raise ValueError(f"{name} must name at least one key")
    if unique and len(set(found)) != len(found):
        ((twice, _),) = Counter(found).most_common(1)
        raise ValueError(f"{name} must have different keys, and {twice!r} is there twice")
    return found


def batches(items: Iterable[_T], size_of: Callable[[_T], int]) -> Iterator[list[_T]]:
    """Cut items into pieces, each of which a txn takes; what is too large alone is one alone."""
    batch: list[_T] = []
    size = 0
    for item in items:
        added = size_of(item)
        if batch and (len(batch) == TXN_OPS or size + added > TXN_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += added
    if batch:
        yield batch


async def in_few_tasks(
    pieces: Sequence[_T],
    do: Callable[[_T], Awaitable[_R]],
    *,
    goes_on: Callable[[EtcdError], bool],
) -> list[_R | EtcdError | None]:
    """Do something with each piece, some at a time; give what became of it, in order.

    Args:
        pieces: They.
        do: Does it; it fails with an `EtcdError`.
        goes_on: Whether the pieces are worth trying that are left after an error; else they are
            None in the end.
    """
    outcomes: list[_R | EtcdError | None] = [None] * len(pieces)
    left = iter(enumerate(pieces))
    is_hopeless = False

    async def work() -> None:
        nonlocal is_hopeless
        for index, piece in left:
            try:
                outcomes[index] = await do(piece)
            except EtcdError as error:
                outcomes[index] = error
                is_hopeless = is_hopeless or not goes_on(error)
            if is_hopeless:
                return

    async with anyio.create_task_group() as group:
        for _ in range(min(_AT_A_TIME, len(pieces))):
            group.start_soon(work)
    return outcomes
