"""The services and the recipes of a client, on the keys below a prefix."""

from __future__ import annotations

from aioetcd._constructor import create
from aioetcd._prefixed import Prefixed
from aioetcd._transport.calls import Calls
from aioetcd._transport.transport import Transport
from aioetcd.concurrency import Parts, Recipes
from aioetcd.keys import encode_key
from aioetcd.kv import KV
from aioetcd.lease import Leases, LeaseStreams
from aioetcd.watch import Watcher, WatchStreams

__all__ = ["Namespace", "Shared"]


class Shared:
    """What a client and its namespaces have in common: connections, streams, background tasks.

    Attributes:
        transport: Makes the calls.
        leases: The renewals.
        watches: The users' watches.
        turns: The recipes' watches, on streams of their own: a large answer to one of the users'
            delays no lock.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport: Transport = transport
        self.leases: LeaseStreams = LeaseStreams(transport)
        self.watches: WatchStreams = WatchStreams(transport)
        self.turns: WatchStreams = WatchStreams(transport)


class Namespace(Recipes):
    """The store below a prefix; ``client.namespace(...)`` makes it. A `Client` is one without.

    Keys go in and come out without the prefix: in txns and their comparisons, in events, and in
    the names of locks. What is outside can neither be read, nor written, nor watched: a range
    without end, or the prefix ``""``, means all keys of the namespace. A key that *is* the prefix
    is outside. Leases belong to the whole cluster: of their keys those inside are shown, and who
    revokes one deletes all of them. So does the history: `KV.compact` forgets everybody's.

    It costs nothing to have one: connections, streams and background tasks are the client's, with
    which it ends.

    Attributes:
        kv: Reads and writes keys.
        lease: Grants leases and keeps them alive.
        watch: Call it to watch keys: ``namespace.watch("key")``.

    Example:
        tenant = client.namespace("/tenant-7/")
        await tenant.kv.put("name", "Ada")
        (await client.kv.get("/tenant-7/name")).value  # b"Ada"
    """

    def __init__(self, shared: Shared, calls: Calls) -> None:
        self._shared = shared
        self._calls = calls
        self.kv: KV = create(KV, calls)
        self.lease: Leases = create(Leases, calls, shared.leases)
        self.watch: Watcher = create(Watcher, calls, shared.watches)
        turns = create(Watcher, calls, shared.turns)
        self._parts = Parts(shared.transport, calls, self.kv, self.lease, turns)

    def __repr__(self) -> str:
        """Show the prefix."""
        return f"<Namespace {self._calls.prefix!r}>"

    def namespace(self, prefix: str | bytes) -> Namespace:
        """Give the same API on the keys below a prefix, which is itself below this one's.

        Args:
            prefix: What all keys begin with; end it with a separator, or it has the neighbour's
                keys too, as ``"/tenant-7"`` those of ``"/tenant-77"``.

        Raises:
            ValueError: It is empty.
            TypeError: It is neither str nor bytes.

        Example:
            jobs = client.namespace("/tenant-7/").namespace("jobs/")
            await jobs.kv.put("1", "ready")
            (await client.kv.get("/tenant-7/jobs/1")).value  # b"ready"
        """
        return create(Namespace, self._shared, Prefixed(self._calls, encode_key(prefix, "prefix")))

    def _below(self, prefix: bytes) -> Parts:
        return self.namespace(prefix)._parts
