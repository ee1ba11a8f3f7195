"""What the members of a cluster say of it, each asked by itself and past all proxies."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

import anyio

from aioetcd.testing.server import EtcdServer

# One member's answer: a hung one must not keep the others' from being looked at. It is doubled
# whenever one did not come in time: on a busy machine members are late without being hung.
_ANSWER_LIMIT = 1.0
_LOG_TAIL = 1000


@dataclass(slots=True)
class Status:
    """What one member says of the cluster; 0 is no leader. Its health may not be known."""

    server: EtcdServer
    member_id: int
    leader_id: int
    raft_term: int
    is_healthy: bool | None = None


class Survey:
    """Asks all members again and again, for a wait that tells what they said last.

    Made by a wait, which alone uses it.

    Args:
        members: Whom to ask; it may change meanwhile.
        ask: How to ask one of them.

    Attributes:
        seen: What those said that answered last.
    """

    def __init__(
        self, members: Sequence[EtcdServer], ask: Callable[[EtcdServer], Awaitable[Status]]
    ) -> None:
        self._members = members
        self._ask = ask
        self._limit = _ANSWER_LIMIT
        self.seen: list[Status] = []

    async def ask(self, *, healths: bool = False) -> None:
        """Ask all members side by side; what they say takes the place of what was seen before."""
        answers: list[Status] = []
        late = False

        async def ask_one(member: EtcdServer) -> None:
            nonlocal late
            with (
                contextlib.suppress(OSError, RuntimeError),  # it does not answer
                anyio.move_on_after(self._limit) as scope,  # its health stays unknown then
            ):
                answers.append(status := await self._ask(member))
                if healths:
                    status.is_healthy = await member.is_healthy()
            late = late or scope.cancelled_caught

        async with anyio.create_task_group() as tasks:
            for member in self._members:
                if member.is_running and not member.is_paused:
                    tasks.start_soon(ask_one, member)
        # One that was removed meanwhile says nothing of the cluster any more.
        self.seen = [status for status in answers if status.server in self._members]
        if late:
            self._limit *= 2

    @contextlib.contextmanager
    def bounded(self, timeout: float, missed: str) -> Iterator[None]:
        """Bound a wait; its error tells what the members said last."""
        try:
            with anyio.fail_after(timeout):
                yield
        except TimeoutError:
            told = "\n".join(self._told())
            raise TimeoutError(f"{missed} within {timeout:g} s:\n{told}") from None

    def _told(self) -> Iterator[str]:
        names = {status.member_id: status.server.name for status in self.seen}
        said = {status.server.name: status for status in self.seen}
        for member in self._members:
            status = said.get(member.name)
            if status is None:
                yield f"{member!r} does not answer; its log ends with:\n{_tail(member)}"
                continue
            leader = names.get(status.leader_id, f"{status.leader_id:x}")
            follows = f"follows {leader}" if status.leader_id else "has no leader"
            line = f"{member!r} {follows} in term {status.raft_term}"
            if status.is_healthy is not False and status.leader_id:
                yield line
            else:
                yield f"{line} and is not healthy; its log ends with:\n{_tail(member)}"


def _tail(member: EtcdServer) -> str:
    try:
        return member.log_tail()[-_LOG_TAIL:]
    except (OSError, RuntimeError):  # it was never started
        return ""
