"""A store in memory, to make histories that are right, which the tests then break."""

from dataclasses import dataclass, field

from aioetcd.testing.checkers import Oracle, in_range
from aioetcd.testing.history import (
    Comparison,
    Delete,
    Delivery,
    EventKind,
    EventRecord,
    Get,
    KeyValueRecord,
    Operation,
    Outcome,
    Put,
    StoreRevision,
    Subscription,
    Txn,
)


def is_absent(key: bytes) -> Comparison:
    """The comparison that a key does not exist."""
    return Comparison(key, "create_revision", "==", 0)


def failed(operation: Operation, outcome: Outcome) -> Operation:
    """The same call, but its answer was an error."""
    return Operation(
        operation.client, operation.request, operation.call_ns, operation.return_ns, outcome
    )


@dataclass
class Store:
    """Applies requests one after another, as etcd does, and writes down what it did.

    Each request is applied at the middle of its call; calls are 10 ns long and 10 ns apart unless
    told otherwise.
    """

    now: int = 1000
    revision: int = 1
    keys: dict[bytes, KeyValueRecord] = field(default_factory=dict)
    revisions: list[StoreRevision] = field(default_factory=list)

    @property
    def oracle(self) -> Oracle:
        """The index of all that happened so far."""
        return Oracle(self.revisions)

    def apply(self, request: Put | Get | Delete | Txn, client: str = "c") -> Operation:
        """Apply a request and give the record of a call that was answered."""
        succeeded = None
        branch: tuple[Put | Get | Delete, ...]
        if isinstance(request, Txn):
            succeeded = self._holds(request)
            branch = request.success if succeeded else request.failure
        else:
            branch = (request,)
        events: list[EventRecord] = []
        kvs: list[KeyValueRecord] = []
        deleted = None
        for op in branch:
            if isinstance(op, Put):
                events.append(self._put(op))
            elif isinstance(op, Delete):
                gone = self._range(op.key, op.range_end)
                deleted = (deleted or 0) + len(gone)
                events += [self._delete(kv) for kv in gone]
            else:
                kvs += self._range(op.key, op.range_end)[: op.limit]
        self.now += 20
        if events:
            self.revision += 1
            self.revisions.append(StoreRevision(self.revision, self.now, tuple(events)))
        return Operation(
            client,
            request,
            self.now - 5,
            self.now + 5,
            "ok",
            self.revision,
            tuple(kvs) if isinstance(request, Get) else (),
            deleted,
            succeeded,
        )

    def watch(
        self, subscription: Subscription, *, bookmark: bool = True, per_batch: int = 2
    ) -> list[Delivery]:
        """What a perfect watch delivers: so many revisions a batch, then perhaps a bookmark."""
        changes = [
            [event for event in record.events if self._wanted(subscription, event)]
            for record in self.revisions
            if record.revision >= subscription.start_revision
        ]
        wanted = [events for events in changes if events]
        batches = []
        for start in range(0, len(wanted), per_batch):
            batch = tuple(event for events in wanted[start : start + per_batch] for event in events)
            last = batch[-1].kv.mod_revision
            batches.append(Delivery(subscription.watch, self.now, last, batch))
        if bookmark:
            batches.append(Delivery(subscription.watch, self.now, self.revision))
        return batches

    def _wanted(self, subscription: Subscription, event: EventRecord) -> bool:
        return in_range(event.kv.key, subscription.key, subscription.range_end) and (
            subscription.only in (None, event.type)
        )

    def _holds(self, txn: Txn) -> bool:
        """Comparisons of these tests are all `create_revision == n` or `value == v`."""
        for comparison in txn.compare:
            kv = self.keys.get(comparison.key)
            assert comparison.operator == "=="
            if comparison.target == "value":
                if kv is None or kv.value != comparison.operand:
                    return False
            elif (kv.create_revision if kv else 0) != comparison.operand:
                return False
        return True

    def _range(self, key: bytes, range_end: bytes | None) -> list[KeyValueRecord]:
        return [kv for name, kv in sorted(self.keys.items()) if in_range(name, key, range_end)]

    def _put(self, put: Put) -> EventRecord:
        old, revision = self.keys.get(put.key), self.revision + 1
        kv = KeyValueRecord(
            put.key,
            put.value,
            old.create_revision if old else revision,
            revision,
            old.version + 1 if old else 1,
            put.lease,
        )
        self.keys[put.key] = kv
        return EventRecord(EventKind.PUT, kv, old, is_create=old is None)

    def _delete(self, old: KeyValueRecord) -> EventRecord:
        del self.keys[old.key]
        kv = KeyValueRecord(old.key, b"", 0, self.revision + 1, 0)
        return EventRecord(EventKind.DELETE, kv, old)
