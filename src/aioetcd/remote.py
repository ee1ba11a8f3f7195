"""The locks and elections that etcd itself keeps: its Lock and Election services."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from aioetcd import _decode
from aioetcd._checks import check_lease
from aioetcd._constructor import NoPublicConstructor
from aioetcd._proto import election_pb2, lock_pb2
from aioetcd._transport.calls import Calls
from aioetcd._transport.methods import (
    CAMPAIGN,
    LEADER,
    LOCK,
    OBSERVE,
    PROCLAIM,
    RESIGN,
    UNLOCK,
)
from aioetcd.config.timeouts import DEFAULT, Default
from aioetcd.keys import encode, encode_key
from aioetcd.types.leases import LeaseLike
from aioetcd.types.remote import (
    CampaignResponse,
    LeaderKey,
    LeaderResponse,
    RemoteLockResponse,
    RemoteResponse,
)

__all__ = ["Remote"]


class Remote(metaclass=NoPublicConstructor):
    """Calls the locks and elections that run inside of etcd; it is ``client.remote``.

    They are here for programs that share them with clients of these services. For everything else
    `Client.lock` is better: it notices a loss, tells, and leaves nothing behind. What these do not:

    - Nothing renews the lease, and nothing tells that it is lost. Keep it alive, and compare the
      key in the txns that the lock protects.
    - Where a call is cancelled, or its answer lost, the key may be there and stay until the lease
      ends; nobody is told that it was acquired. Nothing is sent again.
    - They wait inside of one member: when that one stops, the waiting ends with an error.

    A lease is always wanted: without one, etcd takes one of 60 s that nobody renews.

    Any call may raise, beside the errors that it names, `NoEndpointError` (nobody could be reached
    in time), `UnavailableError` (the connection or the member broke), `DeadlineExceededError` and
    `ClientClosedError`.

    Example:
        async with client.session(ttl=10) as session:
            lock = await client.remote.lock("/locks/nightly", session)
            await client.remote.unlock(lock.key)
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def lock(
        self,
        name: str | bytes,
        lease: LeaseLike,
        *,
        timeout: float | Default | None = DEFAULT,
    ) -> RemoteLockResponse:
        """Acquire a lock (RPC ``Lock``); the same lease acquires it again at once.

        Args:
            name: What to lock.
            lease: The lease that the lock ends with: its id, or a `Lease`, `Session` or `Lock`.
            timeout: Seconds to wait for it; None waits without limit.

        Raises:
            ValueError: An empty name, or an id that no lease has.
            TypeError: An argument of the wrong type.
            LeaseNotFoundError: There is no such lease.
            DeadlineExceededError: It was not free in time; the key is deleted, unless the member
                stops just then.
            EtcdError: By cause; see its `maybe_applied`.

        Example:
            async with client.session(ttl=10) as session:
                lock = await client.remote.lock("/locks/nightly", session, timeout=None)
                held, write = Compare.exists(lock.key), Op.put("/result", "42")
                (await client.kv.txn(compare=[held], success=[write])).succeeded  # True
        """
        request = lock_pb2.LockRequest(
            name=encode_key(name, "name"), lease=check_lease("lease", lease)
        )
        response = await self._calls.unary(LOCK, request, timeout)
        return RemoteLockResponse(_decode.header(response.header), response.key)

    async def unlock(
        self, key: str | bytes, *, timeout: float | Default | None = DEFAULT
    ) -> RemoteResponse:
        """Release a lock (RPC ``Unlock``): etcd deletes the key, whosever it is.

        Args:
            key: What `lock` has given.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            ValueError: An empty key.
            TypeError: A key that is neither str nor bytes.
            EtcdError: By cause; see its `maybe_applied`.

        Example:
            async with client.session(ttl=10) as session:
                lock = await client.remote.lock("/locks/nightly", session)
                await client.remote.unlock(lock.key)
        """
        request = lock_pb2.UnlockRequest(key=encode_key(key))
        response = await self._calls.unary(UNLOCK, request, timeout)
        return RemoteResponse(_decode.header(response.header))

    async def campaign(
        self,
        name: str | bytes,
        lease: LeaseLike,
        value: str | bytes = b"",
        *,
        timeout: float | Default | None = DEFAULT,
    ) -> CampaignResponse:
        """Wait until one leads (RPC ``Campaign``).

        Args:
            name: The election.
            lease: The lease that the leadership ends with: its id, or a `Lease`, `Session` or
                `Lock`.
            value: What to proclaim then.
            timeout: Seconds to wait for it; None waits without limit.

        Raises:
            ValueError: An empty name, or an id that no lease has.
            TypeError: An argument of the wrong type.
            LeaseNotFoundError: There is no such lease.
            DeadlineExceededError: Somebody else led for that long.
            EtcdError: By cause; see its `maybe_applied`.

        Example:
            async with client.session(ttl=10) as session:
                won = await client.remote.campaign("/leader", session, "host-7")
                (await client.remote.leader("/leader")).kv.value  # b"host-7"
                await client.remote.resign(won.leader)
        """
        request = election_pb2.CampaignRequest(
            name=encode_key(name, "name"),
            lease=check_lease("lease", lease),
            value=encode("value", value),
        )
        response = await self._calls.unary(CAMPAIGN, request, timeout)
        leader = response.leader
        return CampaignResponse(
            _decode.header(response.header),
            LeaderKey(leader.name, leader.key, leader.rev, leader.lease),
        )

    async def proclaim(
        self,
        leader: LeaderKey,
        value: str | bytes,
        *,
        timeout: float | Default | None = DEFAULT,
    ) -> RemoteResponse:
        """Proclaim something else as the leader (RPC ``Proclaim``).

        Args:
            leader: What `campaign` has given.
            value: What to proclaim.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            TypeError: An argument of the wrong type.
            EtcdError: By cause, with the text ``election: not leader`` where the leadership is
                over; see its `maybe_applied`.

        Example:
            async with client.session(ttl=10) as session:
                won = await client.remote.campaign("/leader", session, "starting")
                await client.remote.proclaim(won.leader, "ready")
                (await client.remote.leader("/leader")).kv.value  # b"ready"
        """
        request = election_pb2.ProclaimRequest(
            leader=_leader_key(leader), value=encode("value", value)
        )
        response = await self._calls.unary(PROCLAIM, request, timeout)
        return RemoteResponse(_decode.header(response.header))

    async def leader(
        self, name: str | bytes, *, timeout: float | Default | None = DEFAULT
    ) -> LeaderResponse:
        """Ask who leads (RPC ``Leader``).

        Args:
            name: The election.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            ValueError: An empty name.
            TypeError: A name that is neither str nor bytes.
            EtcdError: By cause, with the text ``election: no leader`` where nobody does.

        Example:
            async with client.session(ttl=10) as session:
                await client.remote.campaign("/leader", session, "host-7")
                (await client.remote.leader("/leader")).kv.value  # b"host-7"
        """
        request = election_pb2.LeaderRequest(name=encode_key(name, "name"))
        return _led(await self._calls.unary(LEADER, request, timeout))

    async def observe(
        self, name: str | bytes, *, timeout: float | Default | None = None
    ) -> AsyncGenerator[LeaderResponse, None]:
        """Follow who leads, and what he proclaims (RPC ``Observe``).

        It begins with the leader of now, or the next one, and may leave out those who led for a
        moment. It ends, without an error, where etcd lost sight of them: begin again. A loop that
        may be left early is best put into `contextlib.aclosing`.

        Args:
            name: The election.
            timeout: Seconds that the next news may take; None is no limit.

        Raises:
            ValueError: An empty name.
            TypeError: A name that is neither str nor bytes.
            EtcdError: By cause.

        Example:
            async with client.session(ttl=10) as session:
                await client.remote.campaign("/leader", session, "host-7")
                async for leader in client.remote.observe("/leader"):
                    leader.kv.value  # b"host-7"
                    break
        """
        request = election_pb2.LeaderRequest(name=encode_key(name, "name"))
        answers = self._calls.download(OBSERVE, request, timeout)
        try:
            async for answer in answers:
                yield _led(answer)
        finally:
            answers.close()

    async def resign(
        self, leader: LeaderKey, *, timeout: float | Default | None = DEFAULT
    ) -> RemoteResponse:
        """Lead no more (RPC ``Resign``); where it is over already, it does nothing.

        Args:
            leader: What `campaign` has given.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            TypeError: It is no `LeaderKey`.
            EtcdError: By cause; see its `maybe_applied`.

        Example:
            async with client.session(ttl=10) as session:
                won = await client.remote.campaign("/leader", session)
                await client.remote.resign(won.leader)
        """
        request = election_pb2.ResignRequest(leader=_leader_key(leader))
        response = await self._calls.unary(RESIGN, request, timeout)
        return RemoteResponse(_decode.header(response.header))


def _leader_key(leader: LeaderKey) -> election_pb2.LeaderKey:
    if not isinstance(leader, LeaderKey):
        raise TypeError(f"leader must be a LeaderKey, not {type(leader).__name__}")
    return election_pb2.LeaderKey(
        name=leader.name, key=leader.key, rev=leader.revision, lease=leader.lease
    )


def _led(message: election_pb2.LeaderResponse) -> LeaderResponse:
    return LeaderResponse(_decode.header(message.header), _decode.key_value(message.kv))
