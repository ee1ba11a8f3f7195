"""Every recipe, as a block that somebody is in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeAlias

from aioetcd import Client, Share

Recipe: TypeAlias = Callable[[Client, str, int], AbstractAsyncContextManager[Any]]
"""Makes a block below a name, whose lease lives so many seconds."""


@asynccontextmanager
async def _going_on(
    work: Callable[[], Awaitable[object]], begun: asyncio.Event | None = None
) -> AsyncIterator[None]:
    """Have a task do something for the block, which begins when that is `begun`."""

    async def run() -> None:
        await work()

    task = asyncio.create_task(run())
    waiting = asyncio.create_task(asyncio.Event().wait() if begun is None else begun.wait())
    try:
        if begun is not None:
            await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        yield
    finally:
        waiting.cancel()
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # it has told whoever is in the block


def _partitioner(client: Client, name: str, ttl: int) -> AbstractAsyncContextManager[None]:
    begun = asyncio.Event()

    async def work(share: Share[str]) -> None:
        begun.set()
        await asyncio.Event().wait()

    partitioner = client.partitioner(name, ["a", "b"], ttl=ttl)
    return _going_on(lambda: partitioner.run(work), begun)


RECIPES: dict[str, Recipe] = {
    "session": lambda client, _, ttl: client.session(ttl=ttl),
    "lock": lambda client, name, ttl: client.lock(name, ttl=ttl),
    "reader": lambda client, name, ttl: client.rwlock(name, ttl=ttl).read(),
    "writer": lambda client, name, ttl: client.rwlock(name, ttl=ttl).write(),
    "semaphore": lambda client, name, ttl: client.semaphore(name, 2, ttl=ttl),
    "leadership": lambda client, name, ttl: client.election(name, ttl=ttl).campaign(),
    "registration": lambda client, name, ttl: client.registration(name, ttl=ttl),
    "member": lambda client, name, ttl: client.group(name).join("me", ttl=ttl),
    "cache": lambda client, name, _: client.cache(name, prefix=True),
    "double barrier": lambda client, name, ttl: client.double_barrier(name, 1, ttl=ttl),
    "worker": lambda client, name, ttl: client.work_queue(name).worker(ttl=ttl),
    "queue": lambda client, name, _: _going_on(lambda: client.queue(name).get()),
    "partitioner": _partitioner,
}
