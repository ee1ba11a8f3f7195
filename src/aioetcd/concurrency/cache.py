"""A cache: keys that follow the store, read as a dict."""

from __future__ import annotations

import logging
from abc import ABCMeta
from collections.abc import Callable, ItemsView, Iterator, Mapping, ValuesView
from contextlib import suppress
from copy import copy
from typing import Any, Generic, Self, TypeVar, overload
from weakref import WeakSet

import anyio

from aioetcd._checks import check_callable, check_int, check_seconds
from aioetcd._constructor import NoPublicConstructor, create
from aioetcd._transport.backoff import PASSING, Backoff
from aioetcd.concurrency._mirror import Mirror, Step
from aioetcd.concurrency._parts import Parts
from aioetcd.concurrency._upkeep import Upkeep
from aioetcd.config.timeouts import DEFAULT, Default, deadline_in, seconds_left
from aioetcd.errors import (
    ClientClosedError,
    DeadlineExceededError,
    EtcdError,
    UnsupportedByServerError,
)
from aioetcd.types.store import KeyValue

__all__ = ["Cache", "CacheChanges", "Change"]

_T = TypeVar("_T")
_D = TypeVar("_D")

_logger: logging.Logger = logging.getLogger("aioetcd.concurrency")


class Change(Generic[_T], metaclass=NoPublicConstructor):
    """A key of a cache that has changed; `Cache.changes` gives it.

    Attributes:
        key: The key.
        old_kv: What it was before, for whoever reads these changes; None where it was not there.
        new_kv: What it is; None where it was deleted.
    """

    __slots__ = ("_decode", "key", "new_kv", "old_kv")

    def __init__(self, key: bytes, step: Step, decode: Callable[[bytes], _T]) -> None:
        self.key: bytes = key
        self.old_kv: KeyValue | None = step.old
        self.new_kv: KeyValue | None = step.new
        self._decode = decode

    def __repr__(self) -> str:
        """Show both."""
        return f"<Change {self.key!r}: {self.old_kv!r} -> {self.new_kv!r}>"

    @property
    def old(self) -> _T | None:
        """The decoded value before; None where it was not there."""
        return None if self.old_kv is None else self._decode(self.old_kv.value)

    @property
    def new(self) -> _T | None:
        """The decoded value; None where it was deleted."""
        return None if self.new_kv is None else self._decode(self.new_kv.value)


class CacheChanges(Generic[_T], metaclass=NoPublicConstructor):
    """The changes of a cache from now on; `Cache.changes` gives it.

    Whoever is slower than the changes gets of each key the latest, beside what it was when that
    key was last handed over: applied one after the other they always give what the cache has, and
    they take no more memory than the keys that have changed. The loop ends with the cache's block.

    Example:
        async with client.cache("/config/", prefix=True) as cache:
            changes = cache.changes()
            await client.kv.put("/config/a", "1")
            async for change in changes:
                change.key, change.old, change.new  # (b"/config/a", None, b"1")
                break
    """

    def __init__(self, cache: Cache[_T]) -> None:
        self._cache = cache
        self._pending: dict[bytes, Step] = {}

    def __aiter__(self) -> Self:
        """Iterate over the changes."""
        return self

    async def __anext__(self) -> Change[_T]:
        """Give the next one.

        Raises:
            EtcdError: The cache is not kept up any more, by cause.
        """
        while not self._pending:
            if self._cache._left:
                raise StopAsyncIteration
            self._cache._check()
            await self._cache._changed.wait()
        key = next(iter(self._pending))
        step = self._pending.pop(key)
        change: Change[_T] = create(Change, key, step, self._cache._decode)
        return change

    def _add(self, key: bytes, step: Step) -> None:
        if (before := self._pending.pop(key, None)) is not None:
            step = Step(before.old, step.new)
        if step.old != step.new:
            self._pending[key] = step


class _Meta(NoPublicConstructor, ABCMeta):
    """Makes a mapping that has no public constructor."""


class Cache(Upkeep, Mapping[bytes, _T], Generic[_T], metaclass=_Meta):
    """Keys that follow the store, for the time of a block; ``client.cache(...)`` makes it.

    It is a mapping of keys (looked up as str or bytes, iterated as bytes) to decoded values, as the
    store had them at `revision`, all of them: it goes from one revision to the next as a whole.
    Reading it is local, and takes no await. Values are decoded when they are first read.

    Inside the block all keys are there. It is kept up by one watch, over lost connections; after a
    compaction it is read again, and what that finds to be different is told as changes. While the
    store cannot be reached it stays what it was, and `stale_for` says how old that may be. When it
    can be kept up no more, as for a lack of permission, that is logged, `stale_for` grows, and all
    that waits raises.

    Any number of tasks may use it; it is entered once.

    Raises:
        RuntimeError: It is entered a second time.
        EtcdError: The keys could not be read, by cause.

    Example:
        await client.kv.put("/config/a", "1")
        async with client.cache("/config/", prefix=True, decode=bytes.decode) as cache:
            cache["/config/a"], cache.get("/config/b"), len(cache)  # ("1", None, 1)
            put = await client.kv.put("/config/a", "2")
            await cache.wait_for(put.header.revision)
            dict(cache)  # {b"/config/a": "2"}
    """

    def __init__(
        self, parts: Parts, key: str | bytes, *, prefix: bool, decode: Callable[[bytes], _T]
    ) -> None:
        self._mirror = Mirror(parts, key, prefix=prefix)
        super().__init__(parts, "cache", parts.calls.prefix + self._mirror.key)
        self._decode: Callable[[bytes], _T] = check_callable("decode", decode)
        # What was decoded already.
        self._values: dict[bytes, _T] = {}
        self._readers: WeakSet[CacheChanges[_T]] = WeakSet()

    def __repr__(self) -> str:
        """Show how much there is, and of when."""
        return f"<Cache {self._mirror.key!r}: {len(self)} keys at revision {self.revision}>"

    # A mapping.

    def __getitem__(self, key: str | bytes) -> _T:
        """Give the decoded value of a key.

        Args:
            key: The key.

        Raises:
            KeyError: It is not there.
            Exception: What `decode` raises.

        Example:
            await client.kv.put("/config/a", "1")
            async with client.cache("/config/", prefix=True, decode=int) as cache:
                cache["/config/a"]  # 1
        """
        if isinstance(key, str):
            key = key.encode()
        try:
            return self._values[key]
        except KeyError:
            value = self._values[key] = self._decode(self._mirror.kvs[key].value)
            return value

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over the keys that are there now; the cache may change meanwhile."""
        return iter([*self._mirror.kvs])

    def __len__(self) -> int:
        """Give the number of keys."""
        return len(self._mirror.kvs)

    def __contains__(self, key: object) -> bool:
        """Whether a key is there."""
        return (key.encode() if isinstance(key, str) else key) in self._mirror.kvs

    @overload
    def get(self, key: str | bytes) -> _T | None: ...

    @overload
    def get(self, key: str | bytes, default: _D) -> _T | _D: ...

    def get(self, key: str | bytes, default: Any = None) -> Any:
        """Give a value, or something else where the key is not there.

        Args:
            key: The key.
            default: What to give where it is not there.

        Raises:
            Exception: What `decode` raises.

        Example:
            async with client.cache("/config/", prefix=True) as cache:
                cache.get("/config/a", b"none")  # b"none"
        """
        return self[key] if key in self else default  # noqa: SIM401 (it is this method)

    def items(self) -> ItemsView[bytes, _T]:
        """Give all keys and values as they are now: they stay so, also where a loop waits.

        Raises:
            Exception: What `decode` raises.

        Example:
            await client.kv.put("/config/a", "1")
            async with client.cache("/config/", prefix=True) as cache:
                for key, value in cache.items():
                    key, value  # (b"/config/a", b"1")
        """
        return {key: self[key] for key in self}.items()

    def values(self) -> ValuesView[_T]:
        """Give all values as they are now: they stay so, also where a loop waits.

        Raises:
            Exception: What `decode` raises.

        Example:
            await client.kv.put("/config/a", "1")
            async with client.cache("/config/", prefix=True) as cache:
                [*cache.values()]  # [b"1"]
        """
        return {key: self[key] for key in self}.values()

    def kv(self, key: str | bytes) -> KeyValue | None:
        """Give a key with its history, as the store had it at `revision`; None where it is absent.

        Args:
            key: The key.

        Raises:
            TypeError: A key that is neither str nor bytes.

        Example:
            await client.kv.put("/config/a", "1")
            async with client.cache("/config/a") as cache:
                found = cache.kv("/config/a")
                found and found.version  # 1
        """
        if not isinstance(key, str | bytes):
            raise TypeError(f"key must be str or bytes, not {type(key).__name__}")
        return self._mirror.kvs.get(key.encode() if isinstance(key, str) else key)

    # How it is.

    @property
    def revision(self) -> int:
        """The revision of the store that it shows; 0 before it is entered."""
        return self._mirror.revision

    @property
    def is_connected(self) -> bool:
        """Whether changes arrive just now, as far as this client knows."""
        return self._mirror.is_connected

    @property
    def stale_for(self) -> float | None:
        """The seconds for which changes may have been missed so far; None while it is connected."""
        return self._mirror.stale_for

    async def wait_for(self, revision: int, *, timeout: float | Default | None = DEFAULT) -> None:
        """Wait until it shows a revision, or a later one: what was written then can be read.

        Args:
            revision: As an answer's ``header.revision`` has it, from 1 on.
            timeout: Seconds to wait at the most; None is without limit.

        Raises:
            ValueError: `revision` is below 1.
            TypeError: It is no int.
            DeadlineExceededError: It was not reached in time.
            RuntimeError: Outside of the block.
            EtcdError: The cache is not kept up any more, by cause.

        Example:
            async with client.cache("/config/", prefix=True) as cache:
                put = await client.kv.put("/config/a", "1")
                await cache.wait_for(put.header.revision)
                cache["/config/a"]  # b"1"
        """
        check_int("revision", revision, 1)
        seconds = self._parts.calls.resolve_timeout(timeout)
        with anyio.move_on_after(seconds):
            await self._reach(revision)
        if self.revision < revision:
            raise DeadlineExceededError(
                f"the cache of {self._mirror.key!r} is at revision {self.revision}, and did not "
                f"reach {revision} in time",
                timeout=seconds,
            )

    async def sync(self, *, timeout: float | Default | None = DEFAULT) -> None:
        """Wait until it shows all that was written before this call, by whomever (RPC ``Range``).

        Args:
            timeout: Seconds to wait at the most; None is without limit.

        Raises:
            DeadlineExceededError: It was not reached in time.
            RuntimeError: Outside of the block.
            EtcdError: By cause.

        Example:
            async with client.cache("/config/", prefix=True) as cache:
                await client.kv.put("/config/a", "1")
                await cache.sync()
                cache["/config/a"]  # b"1"
        """
        self._check()
        seconds = self._parts.calls.resolve_timeout(timeout)
        deadline = deadline_in(seconds)
        revision = await self._mirror.store_revision(seconds)
        await self.wait_for(revision, timeout=seconds_left(deadline))

    async def wait_until(
        self, predicate: Callable[[Self], object], *, timeout: float | None = None
    ) -> None:
        """Wait until it shows what is wanted; what holds but for a moment may be missed.

        Args:
            predicate: Called with the cache, at once and after changes; true ends the waiting.
            timeout: Seconds to wait at the most; None is without limit.

        Raises:
            ValueError: `timeout` is not above 0.
            TypeError: An argument of the wrong type.
            DeadlineExceededError: It was not so in time.
            RuntimeError: Outside of the block.
            EtcdError: The cache is not kept up any more, by cause.
            Exception: What `predicate` raises.

        Example:
            async with client.cache("/config/", prefix=True) as cache:
                await client.kv.put("/config/a", "1")
                await cache.wait_until(lambda cache: b"/config/a" in cache)
                len(cache)  # 1
        """
        check_callable("predicate", predicate)
        seconds = check_seconds("timeout", timeout)
        deadline = deadline_in(seconds)
        while True:
            self._check()
            if predicate(self):
                return
            with anyio.move_on_after(seconds_left(deadline)) as timer:
                await self._changed.wait()
            if timer.cancelled_caught:
                raise DeadlineExceededError(
                    f"the cache of {self._mirror.key!r} did not show what was waited for in time",
                    timeout=seconds,
                )

    def changes(self) -> CacheChanges[_T]:
        """Give the changes from now on, for an ``async for``; it may be asked for many times.

        Raises:
            RuntimeError: Outside of the block.

        Example:
            async with client.cache("/config/", prefix=True) as cache:
                changes = cache.changes()
                await client.kv.put("/config/a", "1")
                (await anext(changes)).new  # b"1"
        """
        self._check()
        changes: CacheChanges[_T] = create(CacheChanges, self)
        self._readers.add(changes)
        return changes

    # Keeping it up.

    def _check(self) -> None:
        if self._error is not None:
            raise copy(self._error)  # it is told again and again
        if self._task is None or self._left:
            raise RuntimeError("a cache is used inside its block: async with client.cache(...)")
        self._parts.transport.check_usable()  # nobody keeps it up in a child, or for another loop

    async def _run(self) -> None:
        try:
            while (changed := await self._mirror.next()) is not None:
                self._take(changed)
        except EtcdError as error:
            self._error = error
            if self._is_ready and not isinstance(error, ClientClosedError):
                _logger.warning("the %s is kept up no more: %s", self._label, error)
        finally:
            await self._mirror.aclose()

    def _take(self, changed: list[Step]) -> None:
        self._is_ready = True
        for step in changed:
            kv = step.new or step.old
            assert kv is not None
            self._values.pop(kv.key, None)
            for reader in self._readers:
                reader._add(kv.key, step)
        self._pulse()

    async def _reach(self, revision: int) -> None:
        backoff = Backoff(0.05, 1.0)
        while True:
            self._check()
            if self.revision >= revision:
                return
            with anyio.move_on_after(backoff.next_delay()):
                await self._changed.wait()
                continue
            # Nothing of it is ours, perhaps: then nobody tells that it has happened.
            with suppress(*PASSING):
                try:
                    await self._mirror.ask()
                except UnsupportedByServerError:
                    if await self._mirror.store_revision(None) >= revision:
                        await self._mirror.list_again()
