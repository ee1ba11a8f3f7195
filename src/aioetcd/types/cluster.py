"""Members, and what the service of the cluster answers."""

from __future__ import annotations

from typing import TypeAlias

from aioetcd.types.store import ResponseHeader
from aioetcd.types.value import Value


class Member(Value):
    """A member of the cluster.

    Attributes:
        id: Its id.
        name: Its name; empty until it has started.
        peer_urls: Where the other members reach it.
        client_urls: Where it says that clients reach it; empty until it has started.
        is_learner: Whether it only learns: it has no vote, and serves little.
    """

    __slots__ = ("client_urls", "id", "is_learner", "name", "peer_urls")

    id: int
    name: str
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...]
    is_learner: bool

    @property
    def is_started(self) -> bool:
        """Whether it has ever been there since it was added."""
        return self.name != ""


class MemberList(Value):
    """The members of the cluster.

    Attributes:
        header: Who answered; etcd leaves its revision 0 here.
        members: They.
    """

    __slots__ = ("header", "members")

    header: ResponseHeader
    members: tuple[Member, ...]


class MemberAddResponse(Value):
    """The answer to the addition of a member.

    Attributes:
        header: Who answered; etcd leaves its revision 0 here.
        member: The new one; its id was given by the cluster.
        members: All of them, the new one among them.
    """

    __slots__ = ("header", "member", "members")

    header: ResponseHeader
    member: Member
    members: tuple[Member, ...]


MemberLike: TypeAlias = int | Member
"""What names a member: its id, or the `Member`."""
