"""Leases: etcd's Lease service."""

from __future__ import annotations

import random
from collections.abc import Callable
from time import monotonic

from aioetcd import _decode
from aioetcd._checks import INT64_MAX, check_int, check_lease, check_lease_id
from aioetcd._constructor import NoPublicConstructor, create
from aioetcd._proto import rpc_pb2
from aioetcd._transport.calls import Calls
from aioetcd._transport.methods import (
    LEASE_GRANT,
    LEASE_LEASES,
    LEASE_REVOKE,
    LEASE_TIME_TO_LIVE,
)
from aioetcd.config.timeouts import DEFAULT, Default, deadline_in, seconds_left
from aioetcd.errors import EtcdError, LeaseExistsError, LeaseNotFoundError
from aioetcd.lease._handle import KeepAlive
from aioetcd.lease._streams import LeaseStreams
from aioetcd.types.leases import (
    Lease,
    LeaseLike,
    LeaseList,
    LeaseRenewal,
    LeaseRevokeResponse,
    LeaseTimeToLive,
)

__all__ = ["KeepAlive", "LeaseStreams", "Leases"]

# etcd's own limit.
MAX_TTL = 9_000_000_000

_ids = random.SystemRandom()  # ids must differ from those of every other client


def new_lease_id() -> int:
    """Give an id that no other lease has."""
    return _ids.randint(1, INT64_MAX)


class Leases(metaclass=NoPublicConstructor):
    """Grants leases and keeps them alive; it is ``client.lease``, which many tasks may use.

    All renewals of a client share one stream, up to 500 leases; more of them share up to 16
    streams, which then take about three quarters of the CPU. Where the lease is to live as long as
    a block of code, `Client.session` does all of this.

    Any call may raise, beside the errors that it names, `NoEndpointError` (nobody could be reached
    in time), `UnavailableError` (the connection or the member broke), `DeadlineExceededError` and
    `ClientClosedError`.

    Example:
        lease = await client.lease.grant(10)
        await client.kv.put("/services/a", "10.0.0.7:80", lease=lease)
        async with client.lease.keep_alive(lease):
            ...  # serve
        await client.lease.revoke(lease)
        (await client.kv.get("/services/a")).value  # None
    """

    def __init__(self, calls: Calls, streams: LeaseStreams) -> None:
        self._calls = calls
        self._streams = streams

    async def grant(
        self,
        ttl: int,
        *,
        lease_id: int | None = None,
        timeout: float | Default | None = DEFAULT,
    ) -> Lease:
        """Make a lease (RPC ``LeaseGrant``).

        The id is chosen here and not by the server: a grant whose answer was lost is sent again
        with the same id, and so never leaves a second lease behind. Where it was cancelled, the
        lease may be there, and is gone after its time to live.

        Args:
            ttl: Seconds to live, from 1 to 9 000 000 000. The server may raise it, see
                `Lease.ttl`: to 2 s at the least with its default election timeout.
            lease_id: The id to give it; None for a random one. It must be nobody else's: where an
                answer was lost and the lease is there then, it counts as this one.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            ValueError: `ttl` is not within 1 and 9 000 000 000 seconds.
            LeaseExistsError: `lease_id` is taken.
            LeaseNotFoundError: The answer took so long that the lease has run out.
            NoSpaceError: The server's storage quota is used up.
            EtcdError: By cause; where `maybe_applied` is true, the lease may be there, and is
                gone after its time to live.

        Example:
            lease = await client.lease.grant(10)
            lease.ttl  # 10
        """
        check_int("ttl", ttl, 1, MAX_TTL)
        if lease_id is None:
            lease_id = new_lease_id()
        else:
            check_lease_id("lease_id", lease_id)
        deadline = deadline_in(self._calls.resolve_timeout(timeout))
        # Before the request: the server's clock for it starts later.
        sent_at = monotonic()
        request = rpc_pb2.LeaseGrantRequest(TTL=ttl, ID=lease_id)
        try:
            response = await self._calls.unary(LEASE_GRANT, request, timeout)
        except LeaseExistsError as error:
            if not error.maybe_applied:
                raise
            # An earlier try, whose answer was lost, has made it.
            try:
                found = await self.time_to_live(lease_id, timeout=seconds_left(deadline))
            except EtcdError as failure:
                failure.maybe_applied = True
                raise
            lease = Lease(found.header, lease_id, found.granted_ttl)
        else:
            lease = Lease(_decode.header(response.header), response.ID, response.TTL)
        self._streams.rules.granted(lease.id, lease.ttl, sent_at, monotonic())
        if monotonic() >= sent_at + lease.ttl:
            # The answer took longer than the lease lives: whether it still does, the server knows.
            try:
                await self.keep_alive_once(lease.id, timeout=seconds_left(deadline))
            except LeaseNotFoundError:
                raise
            except EtcdError as failure:
                failure.maybe_applied = True
                raise
        return lease

    async def revoke(
        self, lease: LeaseLike, *, timeout: float | Default | None = DEFAULT
    ) -> LeaseRevokeResponse:
        """End a lease and delete its keys (RPC ``LeaseRevoke``), at one revision.

        It is repeated when an answer is lost. Whoever keeps the lease alive is told that it is
        gone. Where it was cancelled, the lease may be there or not.

        Args:
            lease: The lease: its id, or a `Lease`, `Session` or `Lock` (of one on a session: the
                session's own, with all that stands on it).
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            ValueError: An id that no lease has: 0, or no int64.
            TypeError: It names no lease.
            LeaseNotFoundError: There is no such lease.
            EtcdError: By cause; see its `maybe_applied`.

        Example:
            lease = await client.lease.grant(10)
            await client.kv.put("/services/a", "10.0.0.7:80", lease=lease)
            await client.lease.revoke(lease)
            (await client.kv.get("/services/a")).value  # None
        """
        lease_id = check_lease("lease", lease)
        request = rpc_pb2.LeaseRevokeRequest(ID=lease_id)
        deadline = deadline_in(self._calls.resolve_timeout(timeout))
        try:
            response = await self._calls.unary(LEASE_REVOKE, request, timeout)
        except LeaseNotFoundError as error:
            self._streams.revoked(lease_id)
            if not error.maybe_applied:
                raise
            # An earlier try, whose answer was lost, has done it; this one changed nothing, so any
            # header will do.
            question = rpc_pb2.LeaseTimeToLiveRequest(ID=lease_id)
            try:
                found = await self._calls.unary(
                    LEASE_TIME_TO_LIVE, question, seconds_left(deadline)
                )
            except EtcdError as failure:
                failure.maybe_applied = True
                raise
            return LeaseRevokeResponse(_decode.header(found.header))
        self._streams.revoked(lease_id)
        return LeaseRevokeResponse(_decode.header(response.header))

    async def time_to_live(
        self, lease: LeaseLike, *, keys: bool = False, timeout: float | Default | None = DEFAULT
    ) -> LeaseTimeToLive:
        """Ask what is left of a lease (RPC ``LeaseTimeToLive``).

        Args:
            lease: The lease: its id, or a `Lease`, `Session` or `Lock`.
            keys: Also list the keys attached to it.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            ValueError: An id that no lease has: 0, or no int64.
            TypeError: It names no lease.
            LeaseNotFoundError: There is no such lease. (The RPC itself answers with a time of -1.)
            EtcdError: By cause.

        Example:
            lease = await client.lease.grant(10)
            await client.kv.put("/services/a", "10.0.0.7:80", lease=lease)
            left = await client.lease.time_to_live(lease, keys=True)
            left.granted_ttl, left.keys  # (10, (b"/services/a",))
        """
        lease_id = check_lease("lease", lease)
        request = rpc_pb2.LeaseTimeToLiveRequest(ID=lease_id, keys=keys)
        response = await self._calls.unary(LEASE_TIME_TO_LIVE, request, timeout)
        if response.TTL < 0:
            raise LeaseNotFoundError(f"lease {lease_id:x} is not known to the server")
        return LeaseTimeToLive(
            _decode.header(response.header),
            response.ID,
            response.TTL,
            response.grantedTTL,
            tuple(response.keys),
        )

    async def leases(self, *, timeout: float | Default | None = DEFAULT) -> LeaseList:
        """List all leases (RPC ``LeaseLeases``), as the answering member knows them.

        It does not ask the quorum: the answer may be old.

        Args:
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            EtcdError: By cause.

        Example:
            lease = await client.lease.grant(10)
            lease.id in (await client.lease.leases()).ids  # True
        """
        request = rpc_pb2.LeaseLeasesRequest()
        response = await self._calls.unary(LEASE_LEASES, request, timeout)
        return LeaseList(
            _decode.header(response.header),
            tuple(lease.ID for lease in response.leases),
        )

    def keep_alive(
        self, lease: LeaseLike, *, timeout: float | Default | None = DEFAULT
    ) -> KeepAlive:
        """Renew a lease in the background (RPC ``LeaseKeepAlive``), at a third of its time to live.

        Nothing is sent before the `KeepAlive` is entered or looped over.

        Args:
            lease: The lease: its id, or a `Lease`, `Session` or `Lock`.
            timeout: Seconds for which a loop waits for the first answer where this client does not
                know how long the lease lives: it did not grant it, or has let it run out. None
                waits without limit.

        Raises:
            ValueError: An id that no lease has: 0, or no int64.
            TypeError: It names no lease.

        Example:
            lease = await client.lease.grant(10)
            async for renewal in client.lease.keep_alive(lease):
                renewal.ttl  # 10
                break  # stops renewing
        """
        return create(
            KeepAlive,
            self._streams,
            check_lease("lease", lease),
            timeout=self._calls.resolve_timeout(timeout),
        )

    def _keep(self, lease_id: int, on_lost: Callable[[EtcdError], None]) -> KeepAlive:
        """Make what renews a lease for a recipe.

        Args:
            lease_id: The lease.
            on_lost: Called with the error that ends the renewals, at once and in the event loop's
                thread; never after they were stopped.
        """
        return create(
            KeepAlive,
            self._streams,
            lease_id,
            timeout=self._calls.resolve_timeout(DEFAULT),
            on_lost=on_lost,
        )

    async def keep_alive_once(
        self, lease: LeaseLike, *, timeout: float | Default | None = DEFAULT
    ) -> LeaseRenewal:
        """Renew a lease once (RPC ``LeaseKeepAlive``), on a stream that renewals share.

        Args:
            lease: The lease: its id, or a `Lease`, `Session` or `Lock`.
            timeout: The deadline in seconds, waiting for a connection included; None is none.

        Raises:
            ValueError: An id that no lease has: 0, or no int64.
            TypeError: It names no lease.
            LeaseNotFoundError: There is no such lease.
            LeaseLostError: The lease is gone: it was revoked, or its time is over.
            EtcdError: By cause.

        Example:
            lease = await client.lease.grant(10)
            (await client.lease.keep_alive_once(lease)).ttl  # 10
        """
        return await self.keep_alive(lease, timeout=timeout)._once()
