"""Changes of who is a member, asked again for as long as etcd says that it is not the time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeAlias

import anyio

from aioetcd.testing.server import EtcdServer

Entry: TypeAlias = dict[str, Any]
"""What the list of members says of one of them."""

Others: TypeAlias = Callable[[], Awaitable[Iterable[EtcdServer]]]
"""Finds out who may be asked now."""

_POLL = 0.1

# What etcd refuses for the time being. A change wants all members to have been connected for five
# seconds, and a leader; a learner is promoted once it has what the leader has.
_NOT_YET = (
    "unhealthy cluster",
    "not enough started members",
    "in sync with leader",
    "leader changed",
    "no leader",
    "not leader",
    "request timed out",
    "too many requests",
)

# How it refuses what has happened already.
_DONE_BEFORE = ("already exist", "member not found", "can only promote a learner")


def is_not_yet(refused: RuntimeError) -> bool:
    """Whether a refusal is of this moment."""
    return any(told in str(refused) for told in _NOT_YET)


async def add(others: Others, url: str, *, learner: bool, timeout: float) -> list[Entry]:
    """Let a member be one who is dialled at a URL; give all members then.

    Raises:
        TimeoutError: etcd still refused it, or nobody answered; it says what was heard last.
        RuntimeError: etcd refused it for good.
    """
    body = {"peerURLs": [url], "isLearner": learner}
    return await _change(others, "add", url, body, lambda found: found is not None, timeout)


async def remove(others: Others, url: str, *, timeout: float) -> None:
    """Let it be a member no more, with the errors of `add`."""
    await _change(others, "remove", url, None, lambda found: found is None, timeout)


async def promote(others: Others, url: str, *, timeout: float) -> None:
    """Give it a vote, with the errors of `add`."""

    def has_vote(found: Entry | None) -> bool:
        return found is not None and not found.get("isLearner", False)

    await _change(others, "promote", url, None, has_vote, timeout)


async def _change(
    others: Others,
    rpc: str,
    url: str,
    body: Mapping[str, object] | None,
    is_done: Callable[[Entry | None], bool],
    timeout: float,
) -> list[Entry]:
    """Ask until it has happened. An answer that was lost may have been one of success."""
    last: Exception = ConnectionError("no member runs that could be asked")
    tried = False
    try:
        with anyio.fail_after(timeout):
            while True:
                for asked in await others():
                    try:
                        listed: list[Entry]
                        listed = (await asked.gateway("cluster/member/list"))["members"]
                        found = next((entry for entry in listed if url in entry["peerURLs"]), None)
                        # Before it was tried, a member may just not have heard of the one that
                        # was added last.
                        if tried and is_done(found):
                            return listed
                        if body is None and found is None:
                            last = LookupError(f"{asked!r} knows no member at {url}")
                            continue
                        tried = True
                        about = {"ID": found["ID"]} if body is None and found else body
                        answer = await asked.gateway(f"cluster/member/{rpc}", about)
                        return list(answer["members"])
                    except OSError as exc:
                        last = exc
                    except RuntimeError as exc:
                        last = exc
                        if not is_not_yet(exc) and not (tried and _is_done_before(exc)):
                            raise
                await anyio.sleep(_POLL)
    except TimeoutError:
        raise TimeoutError(f"{rpc}: not within {timeout:g} s; at last: {last}") from None


def _is_done_before(refused: RuntimeError) -> bool:
    return any(told in str(refused) for told in _DONE_BEFORE)


def initial_cluster(listed: Iterable[Entry], url: str, name: str) -> str:
    """Give what a new member is to know of the others, and of itself."""
    entries = []
    for entry in listed:
        # One that was never started has no name yet; etcd compares the URLs alone.
        called = name if url in entry["peerURLs"] else entry.get("name") or f"id{entry['ID']}"
        entries += [f"{called}={peer_url}" for peer_url in entry["peerURLs"]]
    return ",".join(entries)
