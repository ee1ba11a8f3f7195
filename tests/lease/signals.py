"""Writes down what a client and a store say about leases, for the checkers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from aioetcd import Client, EtcdError, EventType, KeepAlive, LeaseLostError, Session
from aioetcd._proto import rpc_pb2
from aioetcd._transport.wish import Wish
from aioetcd.lease._state import Lane
from aioetcd.testing.checkers import assert_clean, check_leases
from aioetcd.testing.history import LeaseSignal, Recorder
from tests.waiting import Lateness

SECOND = 1_000_000_000

# How late an event loop may be, beside the lateness that is measured.
LATENESS = 250_000_000


class LeaseSpy:
    """Records the grants, the renewals and their answers that pass a client's lease rules.

    The times are its own, and answers are matched to renewals by itself: what it says does not
    rest on what the client makes of them.

    Attributes:
        reopened_ns: When each renewal stream was opened.
        in_flight_most: The most renewals of one lease that were unanswered at a time.
    """

    def __init__(self, client: Client, recorder: Recorder) -> None:
        self.reopened_ns: list[int] = []
        self.in_flight_most = 0
        self._recorder = recorder
        rules = client._shared.leases.rules
        self._granted = rules.granted
        rules.granted = self.granted  # type: ignore[method-assign]
        self._lanes = [_LaneSpy(self, lane) for lane in rules.lanes]

    def unanswered_ns(self, lease_id: int) -> int | None:
        """When the oldest renewal of a lease was sent that is not answered yet."""
        unanswered = [sent[0] for lane in self._lanes if (sent := lane.sent.get(lease_id))]
        return min(unanswered, default=None)

    def granted(self, lease_id: int, ttl: int, sent_at: float, now: float) -> None:
        """A lease was granted."""
        self.add(lease_id, "granted", int(sent_at * 1e9), ttl)
        self._granted(lease_id, ttl, sent_at, now)

    def add(
        self, lease_id: int, kind: str, sent_ns: int | None = None, ttl: float | None = None
    ) -> None:
        """Write a signal down."""
        now = time.monotonic_ns()
        signal = LeaseSignal(lease_id, kind, now, sent_ns, ttl)  # type: ignore[arg-type]
        self._recorder.add(signal)


class _LaneSpy:
    """Looks at one stream's renewals for a `LeaseSpy`."""

    def __init__(self, spy: LeaseSpy, lane: Lane) -> None:
        self._spy = spy
        self.sent: dict[int, deque[int]] = {}
        self._opened, self._next_request = lane.opened, lane.next_request
        self._received = lane.received
        for name in ("opened", "next_request", "received"):
            setattr(lane, name, getattr(self, name))

    def opened(self, endpoint: str, now: float) -> None:
        """A new stream answers nothing that the old one was asked."""
        self._spy.reopened_ns.append(time.monotonic_ns())
        self.sent.clear()
        self._opened(endpoint, now)

    def next_request(self, now: float) -> rpc_pb2.LeaseKeepAliveRequest | None:
        """Perhaps a renewal goes out."""
        request = self._next_request(now)
        if request is not None:
            sent = self.sent.setdefault(request.ID, deque())
            sent.append(time.monotonic_ns())
            self._spy.in_flight_most = max(self._spy.in_flight_most, len(sent))
            self._spy.add(request.ID, "sent")
        return request

    def received(
        self, response: rpc_pb2.LeaseKeepAliveResponse, size: int, now: float
    ) -> Wish | None:
        """A renewal was answered."""
        if sent := self.sent.get(response.ID):
            self._spy.add(response.ID, "answered", sent.popleft(), response.TTL)
        return self._received(response, size, now)


class LeaseWitness:
    """Knows of each lease what its owner was told, and when the store dropped its key.

    Attributes:
        recorder: All of it, for the checkers.
        spy: What passed the client.
        deleted_ns: When the oracle saw a lease's key go, by the lease's id.
        errors: What the owners were told.
        excused: Leases whose owner could not be told in time, being stopped itself.
        late: How late the event loop was.
    """

    def __init__(self, client: Client) -> None:
        self.recorder = Recorder()
        self.spy = LeaseSpy(client, self.recorder)
        self.deleted_ns: dict[int, int] = {}
        self.errors: dict[int, EtcdError] = {}
        self.excused: set[int] = set()
        self.late = Lateness()
        self._changed = anyio.Event()
        self._client = client

    async def attach(self, lease_id: int) -> None:
        """Give a lease the key by which the store shows that it is gone."""
        await self._client.kv.put(f"lease/{lease_id}", "", lease=lease_id)

    async def revoke(self, lease_id: int) -> None:
        """Revoke a lease, which is no loss; its owner does not keep it any more."""
        self.recorder.add(LeaseSignal(lease_id, "revoked", time.monotonic_ns()))
        await self._client.lease.revoke(lease_id)

    def keep(self, lease_id: int) -> KeepAlive:
        """Make a keep-alive; when it tells the loss is written down at the very moment."""
        return self._client.lease._keep(lease_id, lambda error: self.told(lease_id, error))

    async def listen_to(self, session: Session) -> None:
        """Write down when a session tells the loss; it waits for that."""
        self.told(session.lease_id, await session.wait_lost())

    def told(self, lease_id: int, error: EtcdError) -> None:
        """Write down a loss."""
        reason = error.reason if isinstance(error, LeaseLostError) else "closed"
        self.recorder.add(LeaseSignal(lease_id, "lost", time.monotonic_ns(), reason=reason))
        self.errors[lease_id] = error
        self._wake()

    def signals(self, lease_id: int, kind: str) -> list[LeaseSignal]:
        """All signals of one kind of a lease."""
        signals = self.recorder.of(LeaseSignal)
        return [s for s in signals if s.lease_id == lease_id and s.kind == kind]

    async def wait_told(self, lease_id: int, *, within: float = 10.0) -> EtcdError:
        """Wait until the loss was told."""
        with anyio.fail_after(within):
            while lease_id not in self.errors:
                await self._changed.wait()
        return self.errors[lease_id]

    async def wait_deleted(self, lease_id: int, *, within: float = 10.0) -> int:
        """Wait until the oracle has seen the lease's key go."""
        with anyio.fail_after(within):
            while lease_id not in self.deleted_ns:
                await self._changed.wait()
        return self.deleted_ns[lease_id]

    async def wait_answered(self, lease_id: int, *, since_ns: int, within: float = 10.0) -> None:
        """Wait until a renewal that was sent after a time was answered.

        Raises:
            EtcdError: The lease was lost before.
        """

        def is_answered() -> bool:
            answered = self.signals(lease_id, "answered")
            return any((signal.sent_ns or 0) > since_ns for signal in answered)

        with anyio.fail_after(within):
            while not is_answered():
                if lease_id in self.errors:
                    raise self.errors[lease_id]
                await anyio.sleep(0.01)  # between two looks

    async def watch(
        self, oracle: Client, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Be the oracle: it sees every change, whatever happens to the client."""
        async with oracle.watch("lease/", prefix=True) as watch:
            task_status.started()
            async for event in watch:
                if event.type is EventType.DELETE:
                    lease_id = int(event.kv.key.partition(b"/")[2])
                    self.deleted_ns.setdefault(lease_id, time.monotonic_ns())
                    self._wake()

    @property
    def nothing_lost(self) -> bool:
        """Whether no owner was told a loss, and no key went."""
        return not self.errors and not self.deleted_ns

    def check(self) -> None:
        """Every loss was told once, in time, and before the store showed it (checker 10)."""
        signals = [s for s in self.recorder.of(LeaseSignal) if s.lease_id not in self.excused]
        revoked = {signal.lease_id for signal in signals if signal.kind == "revoked"}
        ran_out = {
            lease_id: at
            for lease_id, at in self.deleted_ns.items()
            if lease_id not in revoked | self.excused
            and getattr(self.errors.get(lease_id), "reason", "expired") == "expired"
        }
        tolerance = LATENESS + int(self.late.seconds * SECOND)
        for tolerance_ns, expired_ns in ((tolerance, None), (0, ran_out)):
            found = check_leases(
                signals,
                expired_ns=expired_ns,
                until_ns=time.monotonic_ns(),
                tolerance_ns=tolerance_ns,
            )
            # Without tolerance, only whether the store was quicker counts.
            assert_clean(v for v in found if tolerance_ns or v.checker == "lease before the store")

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


@asynccontextmanager
async def witnessed(client: Client, oracle: Client) -> AsyncIterator[LeaseWitness]:
    """Watch a client's leases; at the end what was told is checked."""
    witness = LeaseWitness(client)
    async with anyio.create_task_group() as tasks:
        await tasks.start(witness.watch, oracle)
        tasks.start_soon(witness.late.measure)
        yield witness
        witness.check()
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def kept_lease(
    witness: LeaseWitness, client: Client, ttl: int
) -> AsyncIterator[tuple[int, KeepAlive]]:
    """A lease with a key, kept alive and witnessed; revoked at the end unless it was lost."""
    lease = await client.lease.grant(ttl)
    await witness.attach(lease.id)
    async with witness.keep(lease.id) as keep_alive:
        yield lease.id, keep_alive
    if lease.id not in witness.errors:
        await witness.revoke(lease.id)


async def wait_renewed_for(
    witness: LeaseWitness, lease_id: int, seconds: float, *, within: float = 20.0
) -> None:
    """Wait until renewals were answered for so long from now on: beyond the lease's time."""
    since_ns = time.monotonic_ns() + int(seconds * SECOND)
    await witness.wait_answered(lease_id, since_ns=since_ns, within=within)
