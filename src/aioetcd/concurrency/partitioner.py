"""A partitioner: items shared out among those who work on them."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import AnyStr, Generic

import anyio

from aioetcd._checks import check_callable, check_int
from aioetcd._constructor import NoPublicConstructor, create
from aioetcd._transport.backoff import PASSING, Backoff
from aioetcd.compare import Compare
from aioetcd.concurrency._membership import Membership
from aioetcd.concurrency._parts import Parts
from aioetcd.config.timeouts import DEFAULT, Default
from aioetcd.errors import LeaseLostError, LeaseNotFoundError, NoSpaceError
from aioetcd.keys import encode, encode_key
from aioetcd.lease import MAX_TTL
from aioetcd.types.store import KeyValue

__all__ = ["Partitioner", "Share"]

_logger: logging.Logger = logging.getLogger("aioetcd.concurrency")


class Share(Generic[AnyStr], metaclass=NoPublicConstructor):
    """An item that is held here; `Partitioner.run` gives it to the work.

    Attributes:
        item: The item, as it was given.
        key: Its key, which is there as long as it is held.
        revision: The fencing token: the key's create revision, greater than any holder's before.
        lease_id: The id of the lease that the key hangs on, which is all the member's shares'.

    Example:
        class Done(Exception): ...

        async def work(share: Share[str]) -> None:
            share.item, share.key  # ("a.example", b"/crawl/items/a.example")
            raise Done

        try:
            await client.partitioner("/crawl", ["a.example"]).run(work)
        except Done:
            pass
    """

    def __init__(self, item: AnyStr, key: bytes, revision: int, lease_id: int) -> None:
        self.item: AnyStr = item
        self.key: bytes = key
        self.revision: int = revision
        self.lease_id: int = lease_id

    def __repr__(self) -> str:
        """Show the item."""
        return f"<Share {self.item!r} at revision {self.revision}>"

    def is_owner(self) -> Compare:
        """Make the comparison that holds as long as the item is held.

        Example:
            class Done(Exception): ...

            async def work(share: Share[str]) -> None:
                mine = share.is_owner()
                result = await client.kv.txn(compare=[mine], success=[Op.put("/result", "42")])
                result.succeeded  # True
                raise Done

            try:
                await client.partitioner("/crawl", ["a.example"]).run(work)
            except Done:
                pass
        """
        return Compare.create_revision(self.key) == self.revision


class Partitioner(Generic[AnyStr], metaclass=NoPublicConstructor):
    """Items shared out among the members of a group; ``client.partitioner(...)`` makes it.

    Whoever is in `run` is a member, and has as many items as any other, or one more or less. When
    members come and go, as few items as possible go elsewhere.

    An item is held by one member at a time. It stays with a member, whose work on it is cancelled,
    until that work has ended; then another one has it. A process that is stopped for longer than
    the lease lives cannot be told in time: put ``share.is_owner()`` among the comparisons of each
    txn, or give ``share.revision``, which grows from holder to holder, to what you write to.

    Example:
        partitioner = client.partitioner("/crawl", ["a.example"])
        begun = asyncio.Event()

        async def work(share: Share[str]) -> None:
            begun.set()
            await asyncio.Event().wait()  # until it goes to somebody else

        running = asyncio.create_task(partitioner.run(work))
        await begun.wait()
        partitioner.held  # frozenset({"a.example"})
        running.cancel()
    """

    def __init__(
        self,
        parts: Parts,
        name: str | bytes,
        items: Iterable[AnyStr],
        *,
        value: str | bytes,
        ttl: int,
    ) -> None:
        if isinstance(items, str | bytes):
            raise TypeError("items must be several: a list, and not one str or bytes")
        self._parts = parts
        self._name = encode_key(name)
        self._prefix = self._name + b"/items/"
        self._value = encode("value", value)
        self._ttl = check_int("ttl", ttl, 1, MAX_TTL)
        self._items: dict[bytes, AnyStr] = {}
        for item in items:
            encoded = encode_key(item, "an item")
            if encoded in self._items:
                raise ValueError(f"items must be different ones, and {item!r} is there twice")
            self._items[encoded] = item
        if not self._items:
            raise ValueError("items must not be empty")
        self._membership: Membership | None = None

    def __repr__(self) -> str:
        """Show the name, and how many items there are."""
        return f"<Partitioner {self._name!r}: {len(self._items)} items>"

    @property
    def held(self) -> frozenset[AnyStr]:
        """The items that are held here just now, as far as this client knows."""
        held = frozenset[bytes]() if self._membership is None else self._membership.held
        return frozenset(self._items[item] for item in held)

    async def holders(self, *, timeout: float | Default | None = DEFAULT) -> dict[AnyStr, KeyValue]:
        """Read who holds which items (RPC ``Range``).

        Args:
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Returns:
            The keys of the items that are held, whose ``value`` is what their holders wrote, and
            whose ``lease`` tells those apart.

        Raises:
            EtcdError: By cause.

        Example:
            await client.partitioner("/crawl", ["a.example"]).holders()  # {}
        """
        found = await self._parts.kv.get(self._prefix, prefix=True, timeout=timeout)
        there = {kv.key.removeprefix(self._prefix): kv for kv in found.kvs}
        return {item: there[key] for key, item in self._items.items() if key in there}

    async def run(self, work: Callable[[Share[AnyStr]], Awaitable[object]]) -> None:
        """Be a member, and work on the items that are held, each in a task; until cancelled.

        When an item is to go to another member its task is cancelled, once, and waited for, however
        long it takes; then the item is given back. A work that returns has its item kept, without
        work, until it is to go elsewhere. When the lease is lost all tasks are cancelled, in time;
        once they have ended, this joins again, by itself, and so it does after an outage.

        When a work raises, or this is cancelled, all tasks are cancelled and waited for, also when
        it is cancelled again; then all items are given back, which it waits for up to a second and
        which goes on in the background. Of several works that raise the first one's error is
        raised, as it is, and the others' are logged.

        Args:
            work: A coroutine function; it is given the `Share`.

        Raises:
            Exception: What a work raises.
            TypeError: `work` is no function.
            RuntimeError: It runs already, or somebody else has cancelled a work.
            EtcdError: It cannot go on, by cause, and that does not pass by itself.

        Example:
            class Done(Exception): ...

            async def work(share: Share[str]) -> None:
                raise Done(share.item)

            try:
                await client.partitioner("/crawl", ["a.example"]).run(work)
            except Done as done:
                str(done)  # "a.example"
        """
        check_callable("work", work)
        if self._membership is not None:
            raise RuntimeError("this partitioner runs already: make another one")
        backoff = Backoff(0.1, 10.0)

        async def work_on(item: bytes, revision: int, lease_id: int) -> None:
            key = self._prefix + item
            share: Share[AnyStr] = create(Share, self._items[item], key, revision, lease_id)
            await work(share)

        try:
            while True:
                membership = self._membership = Membership(
                    self._parts, self._name, sorted(self._items), self._value, self._ttl, work_on
                )
                try:
                    await membership.run()
                except (*PASSING, NoSpaceError, LeaseLostError, LeaseNotFoundError) as error:
                    if error is membership.failure:
                        raise
                    _logger.warning(
                        "no member of the partitioner %r, and joins again: %s", self._name, error
                    )
                if membership.has_joined:
                    backoff.reset()
                await anyio.sleep(backoff.next_delay())
        finally:
            self._membership = None
