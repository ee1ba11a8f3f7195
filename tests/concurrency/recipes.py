"""Every recipe, as a block that somebody is in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

from aioetcd import Client

Recipe: TypeAlias = Callable[[Client, str, int], AbstractAsyncContextManager[Any]]
"""Makes a block below a name, whose lease lives so many seconds."""

RECIPES: dict[str, Recipe] = {
    "session": lambda client, _, ttl: client.session(ttl=ttl),
    "lock": lambda client, name, ttl: client.lock(name, ttl=ttl),
    "reader": lambda client, name, ttl: client.rwlock(name, ttl=ttl).read(),
    "writer": lambda client, name, ttl: client.rwlock(name, ttl=ttl).write(),
    "semaphore": lambda client, name, ttl: client.semaphore(name, 2, ttl=ttl),
    "leadership": lambda client, name, ttl: client.election(name, ttl=ttl).campaign(),
    "registration": lambda client, name, ttl: client.registration(name, ttl=ttl),
    "cache": lambda client, name, _: client.cache(name, prefix=True),
}
