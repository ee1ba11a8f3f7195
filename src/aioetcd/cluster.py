"""The members of the cluster: etcd's Cluster service."""

from __future__ import annotations

from collections.abc import Iterable

from aioetcd import _decode
from aioetcd._checks import check_flag, check_member
from aioetcd._constructor import NoPublicConstructor
from aioetcd._proto import rpc_pb2
from aioetcd._transport.calls import Calls
from aioetcd._transport.methods import (
    MEMBER_ADD,
    MEMBER_LIST,
    MEMBER_PROMOTE,
    MEMBER_REMOVE,
    MEMBER_UPDATE,
)
from aioetcd.config.endpoints import parse_endpoint
from aioetcd.config.timeouts import DEFAULT, Default
from aioetcd.types.cluster import MemberAddResponse, MemberLike, MemberList

__all__ = ["Cluster"]


class Cluster(metaclass=NoPublicConstructor):
    """Lists and changes the members of the cluster; it is ``client.cluster``.

    With authentication on, the changes are for users with the role ``root``. They are never sent
    twice; where an answer is lost, `members` tells whether the change was made. Of two changes
    right after one another etcd may drop the second, which then has no answer: call `members` in
    between, which waits until the first is done with.

    Any call may raise, beside the errors that it names, `NoEndpointError` (nobody could be reached
    in time), `UnavailableError` (the connection or the member broke), `DeadlineExceededError` and
    `ClientClosedError`.

    Example:
        found = await client.cluster.members()
        [member.name for member in found.members]  # ["default"]
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def members(
        self,
        *,
        linearizable: bool = True,
        endpoint: str | None = None,
        timeout: float | Default | None = DEFAULT,
    ) -> MemberList:
        """List the members (RPC ``MemberList``).

        Args:
            linearizable: Ask the quorum; False takes what the answering member knows, which may be
                old, and is there without a quorum. Servers before 3.5 never ask it.
            endpoint: Ask this member; it need not be one of the client's. None asks the one in use.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            ValueError: An endpoint that cannot be parsed.
            TypeError: An argument of the wrong type.
            EtcdError: By cause.

        Example:
            (member,) = (await client.cluster.members()).members
            member.is_started, member.is_learner  # (True, False)
        """
        request = rpc_pb2.MemberListRequest(linearizable=check_flag("linearizable", linearizable))
        at = parse_endpoint(endpoint)
        return _decode.member_list(await self._calls.unary(MEMBER_LIST, request, timeout, at=at))

    async def add(
        self,
        peer_urls: str | Iterable[str],
        *,
        learner: bool = False,
        timeout: float | Default | None = DEFAULT,
    ) -> MemberAddResponse:
        """Add a member (RPC ``MemberAdd``), which is then to be started.

        A voter counts for the quorum at once, before it has started: a cluster of one that gets a
        second is without a quorum until that one runs. Add it as a learner, start it, and `promote`
        it when it has caught up.

        Args:
            peer_urls: Where the other members will reach it, ``"http://10.0.0.4:2380"``; one, or
                several.
            learner: Add it without a vote; the server's default allows one such member.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            ValueError: There is no URL, or one that is none of a peer's.
            TypeError: An argument of the wrong type.
            LearnerError: There are as many learners as the cluster allows.
            MemberError: Another member has the URL, or has been added with it.
            MemberNotFoundError: One with the same URLs was removed in this second: etcd would give
                the new one the same id. Try again.
            UnhealthyClusterError: Too few members are healthy.
            EtcdError: By cause; see its `maybe_applied`.

        Example:
            added = await client.cluster.add("http://127.0.0.1:11", learner=True)
            added.member.is_learner, added.member.is_started  # (True, False)
            await client.cluster.members()
            await client.cluster.remove(added.member)
        """
        request = rpc_pb2.MemberAddRequest(
            peerURLs=_checked(peer_urls), isLearner=check_flag("learner", learner)
        )
        response = await self._calls.unary(MEMBER_ADD, request, timeout)
        return MemberAddResponse(
            _decode.header(response.header),
            _decode.member(response.member),
            tuple(_decode.member(each) for each in response.members),
        )

    async def promote(
        self, member: MemberLike, *, timeout: float | Default | None = DEFAULT
    ) -> MemberList:
        """Give a learner its vote (RPC ``MemberPromote``).

        Args:
            member: The learner: its id, or the `Member`.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            ValueError: No id of a member.
            TypeError: It names no member.
            LearnerError: It is no learner, or has not caught up with the leader: ask again.
            MemberNotFoundError: There is no such member.
            EtcdError: By cause; see its `maybe_applied`.

        Example:
            added = await client.cluster.add("http://127.0.0.1:12", learner=True)
            try:
                await client.cluster.promote(added.member)
            except LearnerError as error:  # it does not even run
                error.maybe_applied  # False
            await client.cluster.members()
            await client.cluster.remove(added.member)
        """
        request = rpc_pb2.MemberPromoteRequest(ID=check_member("member", member))
        return _decode.member_list(await self._calls.unary(MEMBER_PROMOTE, request, timeout))

    async def update(
        self,
        member: MemberLike,
        peer_urls: str | Iterable[str],
        *,
        timeout: float | Default | None = DEFAULT,
    ) -> MemberList:
        """Change where the other members reach one (RPC ``MemberUpdate``).

        Old servers (3.4.23 and 3.5.1 among them) forget that a learner is one when it is updated.

        Args:
            member: The member: its id, or the `Member`.
            peer_urls: As in `add`; they replace those that it has.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            ValueError: No id of a member; there is no URL, or one that is none of a peer's.
            TypeError: An argument of the wrong type.
            MemberNotFoundError: There is no such member.
            MemberError: Another member has the URL.
            EtcdError: By cause; see its `maybe_applied`.

        Example:
            (member,) = (await client.cluster.members()).members
            updated = await client.cluster.update(member, member.peer_urls)
            updated.members == (member,)  # True
        """
        request = rpc_pb2.MemberUpdateRequest(
            ID=check_member("member", member), peerURLs=_checked(peer_urls)
        )
        return _decode.member_list(await self._calls.unary(MEMBER_UPDATE, request, timeout))

    async def remove(
        self, member: MemberLike, *, timeout: float | Default | None = DEFAULT
    ) -> MemberList:
        """Remove a member for good (RPC ``MemberRemove``): its data is of no use afterwards.

        Args:
            member: The member: its id, or the `Member`.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            ValueError: No id of a member.
            TypeError: It names no member.
            MemberNotFoundError: There is no such member: also where somebody has removed it before.
            UnhealthyClusterError: The rest would not be a quorum.
            EtcdError: By cause; see its `maybe_applied`.

        Example:
            added = await client.cluster.add("http://127.0.0.1:14", learner=True)
            await client.cluster.members()
            left = await client.cluster.remove(added.member)
            added.member.id in [member.id for member in left.members]  # False
        """
        request = rpc_pb2.MemberRemoveRequest(ID=check_member("member", member))
        return _decode.member_list(await self._calls.unary(MEMBER_REMOVE, request, timeout))


def _checked(peer_urls: str | Iterable[str]) -> list[str]:
    """Give the URLs as a list, if they are what etcd takes for those of a peer."""
    if not isinstance(peer_urls, Iterable):
        kind = type(peer_urls).__name__
        raise TypeError(f"peer_urls must be a str or an iterable of str, not {kind}")
    from urllib.parse import urlsplit  # it imports much

    urls = [peer_urls] if isinstance(peer_urls, str) else list(peer_urls)
    if not urls:
        raise ValueError("peer_urls must name at least one URL")
    for url in urls:
        if not isinstance(url, str):
            raise TypeError(f"peer_urls must hold str, not {type(url).__name__}")
        scheme, _, rest = url.partition("://")
        if scheme in ("unix", "unixs") and rest:
            continue
        try:
            parts = urlsplit(url)
            is_whole = parts.hostname is not None and parts.port is not None
        except ValueError:
            is_whole = False
        if scheme not in ("http", "https") or not is_whole or parts.path or parts.query:
            raise ValueError(f"peer_urls: {url!r} is none (expected http://host:2380)")
    return urls
