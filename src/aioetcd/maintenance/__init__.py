"""The upkeep of a cluster: etcd's Maintenance service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from os import PathLike
from time import monotonic
from typing import Any

import anyio

from aioetcd import _decode
from aioetcd._checks import check_callable, check_int, check_member, check_text
from aioetcd._constructor import NoPublicConstructor
from aioetcd._proto import rpc_pb2
from aioetcd._transport.backoff import Backoff
from aioetcd._transport.methods import (
    ALARM,
    DEFRAGMENT,
    DOWNGRADE,
    HASH,
    HASH_KV,
    MEMBER_LIST,
    MOVE_LEADER,
    SNAPSHOT,
    STATUS,
    Effect,
)
from aioetcd._transport.transport import Transport
from aioetcd.config.endpoints import Endpoint, parse_endpoint
from aioetcd.config.timeouts import DEFAULT, Default, deadline_in, seconds_left
from aioetcd.errors import EtcdError, MemberNotFoundError, NoLeaderError, NotLeaderError
from aioetcd.types.cluster import MemberLike
from aioetcd.types.maintenance import (
    Alarm,
    AlarmList,
    AlarmType,
    DowngradeResponse,
    HashKVResponse,
    HashResponse,
    SnapshotChunk,
    Status,
)

__all__ = ["Maintenance"]

_GET_ALARMS = ALARM.doing(Effect.READ)
_VALIDATE_DOWNGRADE = DOWNGRADE.doing(Effect.READ)


class Maintenance(metaclass=NoPublicConstructor):
    """Looks after the members' databases; it is ``client.maintenance``.

    What is about one member takes its `endpoint`, which need not be one of the client's; None is
    the member in use. A call that names a member is sent to it once, without retries.

    With authentication on, all but `status` and `alarms` are for users with the role ``root``.

    Any call may raise, beside the errors that it names, `NoEndpointError` (nobody could be reached
    in time), `UnavailableError` (the connection or the member broke), `DeadlineExceededError` and
    `ClientClosedError`.

    Example:
        status = await client.maintenance.status()
        status.is_leader, status.errors  # (True, ())
    """

    def __init__(self, transport: Transport) -> None:
        self._calls = transport

    async def status(
        self, endpoint: str | None = None, *, timeout: float | Default | None = DEFAULT
    ) -> Status:
        """Ask a member how it is (RPC ``Status``). It answers without a quorum, too.

        Args:
            endpoint: The member; None is the one in use.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            ValueError: An endpoint that cannot be parsed.
            TypeError: An endpoint that is no str.
            EtcdError: By cause.

        Example:
            status = await client.maintenance.status("127.0.0.1:2379")
            status.db_size >= status.db_size_in_use  # True
        """
        at = parse_endpoint(endpoint)
        return _status(await self._calls.unary(STATUS, rpc_pb2.StatusRequest(), timeout, at=at))

    async def statuses(
        self, *, timeout: float | Default | None = DEFAULT
    ) -> dict[str, Status | EtcdError]:
        """Ask all of the client's endpoints how they are, at the same time (RPC ``Status``).

        Args:
            timeout: The deadline in seconds of each; None is none.

        Returns:
            By endpoint, the answer, or the error of one that gave none.

        Raises:
            ClientClosedError: The client is closed.

        Example:
            for endpoint, status in (await client.maintenance.statuses()).items():
                endpoint  # "127.0.0.1:2379"
                isinstance(status, EtcdError)  # False
        """
        self._calls.check_usable()

        async def ask(endpoint: Endpoint) -> Status | EtcdError:
            request = rpc_pb2.StatusRequest()
            try:
                return _status(await self._calls.unary(STATUS, request, timeout, at=endpoint))
            except EtcdError as error:
                return error

        endpoints = [member.endpoint for member in self._calls.picker.members]
        answers = await asyncio.gather(*map(ask, endpoints))
        return {at.name: answer for at, answer in zip(endpoints, answers, strict=True)}

    async def alarms(self, *, timeout: float | Default | None = DEFAULT) -> AlarmList:
        """List the alarms of all members (RPC ``Alarm``).

        Args:
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            EtcdError: By cause.

        Example:
            (await client.maintenance.alarms()).alarms  # ()
        """
        return _alarms(await self._calls.unary(_GET_ALARMS, rpc_pb2.AlarmRequest(), timeout))

    async def disarm(self, alarm: Alarm, *, timeout: float | Default | None = DEFAULT) -> AlarmList:
        """Take back an alarm (RPC ``Alarm``), when its reason is gone.

        After `AlarmType.NOSPACE`: compact, defragment, then disarm.

        Args:
            alarm: One of those that `alarms` lists.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Returns:
            What was disarmed; none where it was gone already.

        Raises:
            TypeError: It is no `Alarm`.
            EtcdError: By cause; see its `maybe_applied`.

        Example:
            for alarm in (await client.maintenance.alarms()).alarms:
                await client.maintenance.disarm(alarm)
        """
        if not isinstance(alarm, Alarm):
            raise TypeError(f"alarm must be an Alarm, not {type(alarm).__name__}")
        request = rpc_pb2.AlarmRequest(
            action=rpc_pb2.AlarmRequest.DEACTIVATE,
            memberID=alarm.member_id,
            alarm=int(alarm.type),  # type: ignore[arg-type]
        )
        return _alarms(await self._calls.unary(ALARM, request, timeout))

    async def defragment(self, endpoint: str, *, timeout: float | Default | None = DEFAULT) -> None:
        """Write a member's database anew, without the gaps (RPC ``Defragment``).

        The member serves nobody meanwhile: one after the other, the leader last.

        Args:
            endpoint: The member.
            timeout: The call's deadline in seconds; a large database takes minutes. Where it runs
                out, the member goes on with it.

        Raises:
            ValueError: An endpoint that cannot be parsed.
            TypeError: An endpoint that is no str.
            EtcdError: By cause; see its `maybe_applied`.

        Example:
            await client.maintenance.defragment("127.0.0.1:2379", timeout=60)
        """
        at = Endpoint.parse(endpoint)
        await self._calls.unary(DEFRAGMENT, rpc_pb2.DefragmentRequest(), timeout, at=at)

    async def hash(
        self, endpoint: str | None = None, *, timeout: float | Default | None = DEFAULT
    ) -> HashResponse:
        """Hash a member's whole database (RPC ``Hash``), which is for tests of etcd.

        Members with the same keys may have different ones: see `hash_kv`.

        Args:
            endpoint: The member; None is the one in use.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            ValueError: An endpoint that cannot be parsed.
            TypeError: An endpoint that is no str.
            EtcdError: By cause.

        Example:
            (await client.maintenance.hash()).hash > 0  # True
        """
        at = parse_endpoint(endpoint)
        response = await self._calls.unary(HASH, rpc_pb2.HashRequest(), timeout, at=at)
        return HashResponse(_decode.header(response.header), response.hash)

    async def hash_kv(
        self,
        endpoint: str | None = None,
        *,
        revision: int | None = None,
        timeout: float | Default | None = DEFAULT,
    ) -> HashKVResponse:
        """Hash a member's keys and their history (RPC ``HashKV``), to compare it with another.

        Args:
            endpoint: The member; None is the one in use.
            revision: Up to this revision, from 1 on; None is the latest, which may differ between
                two members that are asked one after the other.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            ValueError: An endpoint that cannot be parsed, a revision below 1.
            TypeError: An argument of the wrong type.
            CompactedError: `revision` is no longer in the history.
            FutureRevisionError: `revision` has not happened yet.
            EtcdError: By cause.

        Example:
            put = await client.kv.put("/config/a", "1")
            hashed = await client.maintenance.hash_kv(revision=put.header.revision)
            again = await client.maintenance.hash_kv(revision=put.header.revision)
            again.hash == hashed.hash  # True
        """
        at = parse_endpoint(endpoint)
        request = rpc_pb2.HashKVRequest()
        if revision is not None:
            request.revision = check_int("revision", revision, 1, none="the latest")
        response = await self._calls.unary(HASH_KV, request, timeout, at=at)
        return HashKVResponse(
            _decode.header(response.header),
            response.hash,
            response.compact_revision,
            response.hash_revision or None,
        )

    async def move_leader(
        self, to: MemberLike, *, timeout: float | Default | None = DEFAULT
    ) -> None:
        """Have another member lead (RPC ``MoveLeader``), before the one that does is stopped.

        It is sent to the leader, where that says that clients reach it.

        Args:
            to: The member that is to lead: its id, or the `Member`.
            timeout: The deadline in seconds for all of this together; None is none.

        Raises:
            ValueError: No id of a member.
            TypeError: It names no member.
            MemberError: There is no such member, or it is a learner.
            NoLeaderError: There is no leader now.
            EtcdError: By cause; see its `maybe_applied`.

        Example:
            (member,) = (await client.cluster.members()).members
            await client.maintenance.move_leader(member)  # which it is already
        """
        request = rpc_pb2.MoveLeaderRequest(targetID=check_member("to", to))
        seconds = self._calls.resolve_timeout(timeout)
        deadline = deadline_in(seconds)
        backoff = Backoff(0.05, 0.5)
        while True:
            leader = await self._leader(seconds_left(deadline))
            try:
                await self._calls.unary(MOVE_LEADER, request, seconds_left(deadline), at=leader)
            except NotLeaderError:
                delay = backoff.next_delay()
                if deadline is not None and monotonic() + delay >= deadline:
                    raise
                await anyio.sleep(delay)
            else:
                return

    async def _leader(self, timeout: float | None) -> Endpoint | None:
        """Find where clients reach the leader; None where it is the member in use."""
        status = await self.status(timeout=timeout)
        if status.leader is None:
            raise NoLeaderError("the cluster has no leader")
        if status.is_leader:
            return None
        request = rpc_pb2.MemberListRequest()
        response = await self._calls.unary(MEMBER_LIST, request, timeout)
        leaders = [member for member in response.members if status.leader == member.ID]
        for endpoint in self._calls.endpoint_sync.named_by(leaders):
            return endpoint
        raise MemberNotFoundError(
            f"the leader {status.leader:x} does not say where clients reach it"
        )

    async def validate_downgrade(
        self, version: str, *, timeout: float | Default | None = DEFAULT
    ) -> DowngradeResponse:
        """Ask whether the cluster can be downgraded (RPC ``Downgrade``; etcd from 3.5 on).

        Args:
            version: The version to go to, ``"3.5.0"``: the minor version before the cluster's.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            ValueError: An empty version.
            TypeError: No str.
            InvalidRequestError: It is no version that the cluster can go to.
            MemberError: It is being downgraded already.
            UnsupportedByServerError: The server is older than 3.5.
            EtcdError: By cause.

        Example:
            try:
                await client.maintenance.validate_downgrade("3.0.0")
            except InvalidRequestError as error:
                error.maybe_applied  # False
        """
        action = rpc_pb2.DowngradeRequest.VALIDATE
        return await self._downgrade(action, check_text("version", version), timeout)

    async def enable_downgrade(
        self, version: str, *, timeout: float | Default | None = DEFAULT
    ) -> DowngradeResponse:
        """Begin to downgrade the cluster (RPC ``Downgrade``; etcd from 3.5 on).

        Then its members are replaced one after the other by older ones.

        Args:
            version: The version to go to, ``"3.5.0"``: the minor version before the cluster's.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            ValueError: An empty version.
            TypeError: No str.
            InvalidRequestError: It is no version that the cluster can go to.
            MemberError: It is being downgraded already.
            UnsupportedByServerError: The server is older than 3.5.
            EtcdError: By cause; see its `maybe_applied`.

        Example:
            try:
                await client.maintenance.enable_downgrade("3.0.0")
            except InvalidRequestError as error:
                error.maybe_applied  # False
        """
        action = rpc_pb2.DowngradeRequest.ENABLE
        return await self._downgrade(action, check_text("version", version), timeout)

    async def cancel_downgrade(
        self, *, timeout: float | Default | None = DEFAULT
    ) -> DowngradeResponse:
        """Do not downgrade the cluster after all (RPC ``Downgrade``; etcd from 3.5 on).

        Args:
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            MemberError: It is not being downgraded. (Servers from 3.6 on do nothing then.)
            UnsupportedByServerError: The server is older than 3.5.
            EtcdError: By cause; see its `maybe_applied`.

        Example:
            from contextlib import suppress

            with suppress(MemberError):
                await client.maintenance.cancel_downgrade()
        """
        return await self._downgrade(rpc_pb2.DowngradeRequest.CANCEL, "", timeout)

    async def _downgrade(
        self, action: Any, version: str, timeout: float | Default | None
    ) -> DowngradeResponse:
        only_asks = action == rpc_pb2.DowngradeRequest.VALIDATE
        response = await self._calls.unary(
            _VALIDATE_DOWNGRADE if only_asks else DOWNGRADE,
            rpc_pb2.DowngradeRequest(action=action, version=version),
            timeout,
        )
        return DowngradeResponse(_decode.header(response.header), response.version)

    async def snapshot(
        self, endpoint: str | None = None, *, timeout: float | Default | None = DEFAULT
    ) -> AsyncGenerator[SnapshotChunk, None]:
        """Read a member's whole database (RPC ``Snapshot``), from which etcdutl restores a cluster.

        A loop that may be left early is best put into `contextlib.aclosing`.

        Args:
            endpoint: The member; None is the one in use.
            timeout: Seconds that the next part may take; None is no limit.

        Raises:
            ValueError: An endpoint that cannot be parsed.
            TypeError: An endpoint that is no str.
            SnapshotError: What came is not whole: throw it away.
            EtcdError: By cause.

        Example:
            size = 0
            async for chunk in client.maintenance.snapshot():
                size += len(chunk.data)
            size % 512  # 32
        """
        from aioetcd.maintenance._snapshot import Digest  # it imports much

        at = parse_endpoint(endpoint)
        digest = Digest()
        answers = self._calls.download(SNAPSHOT, rpc_pb2.SnapshotRequest(), timeout, at=at)
        try:
            async for answer in answers:
                digest.update(answer.blob)
                yield SnapshotChunk(answer.blob, answer.remaining_bytes, answer.version or None)
        finally:
            answers.close()
        digest.check()

    async def snapshot_to(
        self,
        path: str | PathLike[str],
        endpoint: str | None = None,
        *,
        progress: Callable[[int, int], object] | None = None,
        timeout: float | Default | None = DEFAULT,
    ) -> int:
        """Save a member's database to a file (RPC ``Snapshot``).

        It is written beside `path`, for the user alone to read, and put there when it is whole and
        on the disk. Where it fails or is cancelled, nothing is left, and what was there stays.

        Args:
            path: The file; one that is there is replaced.
            endpoint: The member; None is the one in use.
            progress: Called now and then with the bytes that have come, and those of all.
            timeout: Seconds that the next part may take; None is no limit.

        Returns:
            The size of the file in bytes.

        Raises:
            ValueError: An endpoint that cannot be parsed.
            TypeError: An argument of the wrong type.
            SnapshotError: What came was not whole.
            OSError: The file cannot be written.
            EtcdError: By cause.

        Example:
            import tempfile
            from pathlib import Path

            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "etcd.db")
                size = await client.maintenance.snapshot_to(path)
                path.stat().st_size == size  # True
        """
        from aioetcd.maintenance._snapshot import SnapshotFile  # it imports much

        check_callable("progress", progress)
        chunks = self.snapshot(endpoint, timeout=timeout)
        file = SnapshotFile(path)
        done = 0
        try:
            async for chunk in chunks:
                await file.write(chunk.data)
                done += len(chunk.data)
                if progress is not None:
                    progress(done, done + chunk.remaining)
            await file.finish()
        finally:
            try:
                file.discard()
            finally:
                await chunks.aclose()
        return done


def _status(message: rpc_pb2.StatusResponse) -> Status:
    downgrade = message.downgradeInfo
    return Status(
        _decode.header(message.header),
        message.version,
        message.dbSize,
        message.dbSizeInUse,
        message.leader or None,
        message.raftIndex,
        message.raftAppliedIndex,
        message.raftTerm,
        tuple(message.errors),
        message.isLearner,
        message.storageVersion or None,
        message.dbSizeQuota or None,
        downgrade.targetVersion if downgrade.enabled else None,
    )


def _alarms(message: rpc_pb2.AlarmResponse) -> AlarmList:
    return AlarmList(
        _decode.header(message.header),
        tuple(Alarm(each.memberID, _alarm_type(each.alarm)) for each in message.alarms),
    )


def _alarm_type(number: int) -> AlarmType | int:
    try:
        return AlarmType(number)
    except ValueError:  # of a server that is newer than this
        return number
