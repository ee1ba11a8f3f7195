"""An election: one of many leads, and all can know who; etcdctl and Go's client understand it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Self, TypeVar

import anyio

from aioetcd._constructor import NoPublicConstructor, create
from aioetcd._transport.backoff import PASSING, Backoff
from aioetcd.concurrency._guard import OnLost
from aioetcd.concurrency._mirror import Mirror
from aioetcd.concurrency._parts import Parts
from aioetcd.concurrency._queued import Queued, held_by, queued_at
from aioetcd.concurrency.session import Session
from aioetcd.config.timeouts import DEFAULT, Default
from aioetcd.errors import (
    ElectionError,
    ElectionTimeoutError,
    LeadershipLostError,
    LeaseNotFoundError,
)
from aioetcd.keys import encode, encode_key
from aioetcd.ops import Op
from aioetcd.types.store import KeyValue

__all__ = ["Election", "Leaders", "Leadership"]

_T = TypeVar("_T")

_logger: logging.Logger = logging.getLogger("aioetcd.concurrency")


class Leadership(Queued):
    """The leadership of an election for the time of a block; `Election.campaign` makes it.

    Inside the block one leads, as far as anybody can know; when the lease is lost or the key is
    deleted, the body is cancelled and the block raises `LeadershipLostError`. A process that is
    stopped for longer than the lease lives cannot be told in time: put ``leadership.is_owner()``
    among the comparisons of each txn that only the leader may make, or give
    ``leadership.revision``, which grows from leader to leader, to what you write to.

    Who cannot use a block calls `win` and `resign`; then nothing is cancelled, and `wait_lost`
    tells. Leaving, or to give up while waiting, is as safe as a lock's. It is entered once; for
    another term, campaign again.

    Raises:
        LeadershipLostError: The leadership was lost in the block, which was cancelled.
        EtcdError: It was not won, by the causes of `win`.

    Example:
        async with client.election("/jobs").campaign("host-7") as leadership:
            await leadership.proclaim("host-7, ready")
            leadership.key.startswith(b"/jobs/"), leadership.is_lost  # (True, False)
    """

    _kind = "leadership"

    def __repr__(self) -> str:
        """Show the key."""
        return f"<Leadership {self.key!r}>"

    async def win(self) -> None:
        """Wait until one leads, without a block: `resign`.

        A failed or cancelled attempt leaves neither key nor lease behind, and takes a second
        longer at the most.

        Raises:
            ElectionTimeoutError: One did not lead within the timeout.
            LeadershipLostError: The lease or the key was lost while waiting.
            ElectionError: What leads is a key that is no candidate's.
            RuntimeError: It was entered before, or the session is not open.
            EtcdError: By cause.

        Example:
            leadership = client.election("/jobs").campaign("host-7", timeout=5)
            await leadership.win()
            try:
                leadership.is_lost  # False
            finally:
                await leadership.resign()
        """
        await self._enter()

    async def proclaim(
        self, value: str | bytes, *, timeout: float | Default | None = DEFAULT
    ) -> None:
        """Tell those who observe another value, while one leads (RPC ``Txn``).

        Args:
            value: What they see.
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            TypeError: A value that is neither str nor bytes.
            LeadershipLostError: One does not lead any more.
            RuntimeError: It was not won.
            EtcdError: By cause; see its `maybe_applied`.

        Example:
            async with client.election("/jobs").campaign("starting") as leadership:
                await leadership.proclaim("ready")
        """
        put = Op.put(self.key, encode("value", value), lease=self.lease_id)
        result = await self._kv.txn(compare=[self.is_owner()], success=[put], timeout=timeout)
        if not result.succeeded:
            if not self._left:
                self._lost("its key was deleted", None)
            raise self._guard.error or self._loss("its key was deleted")

    async def resign(self) -> None:
        """Let the next one lead, where it was won without a block; again, it does nothing.

        It waits, a second at the most, until the key is gone from the server, which goes on in the
        background without whoever is cancelled or does not get an answer.

        Raises:
            RuntimeError: It was not won.

        Example:
            leadership = client.election("/jobs").campaign("host-7")
            await leadership.win()
            await leadership.resign()
        """
        self._check_held()
        await self._leave()

    def _is_its_loss(self, error: Exception) -> bool:
        """Whether an error, or a group of a task group's, is the loss of this, and nothing else."""
        loss = self._guard.error
        if isinstance(error, ExceptionGroup):
            return error.split(lambda each: each is loss)[1] is None
        return error is loss

    async def _wait_turn(self) -> None:
        if (alien := await self._turn.take()) is not None:
            raise ElectionError(
                f"the leadership {self._name!r} cannot be had while there is the key "
                f"{alien.key!r}: it is older, and no candidate's, so it may stay for ever"
            )

    def _late(self, holder: KeyValue | None, seconds: float) -> ElectionTimeoutError:
        held = "" if holder is None else f": it is held {held_by(holder)}"
        return ElectionTimeoutError(
            f"the leadership {self._name!r} was not won within {seconds:g} s{held}",
            timeout=seconds,
            leader=holder,
        )

    def _loss(self, why: str) -> LeadershipLostError:
        return LeadershipLostError(f"the leadership {self._name!r} is lost: {why}")


class Leaders(metaclass=NoPublicConstructor):
    """Who leads, followed for ever; `Election.observe` gives it.

    Every change is told, in order, also over lost connections; where the history of a time without
    a connection is compacted away, what is the case after it. A wait that is cancelled, by
    `asyncio.wait_for` too, loses nothing. It ends when it is dropped, or by `aclose`.

    Example:
        leaders = client.election("/jobs").observe()
        await anext(leaders)  # None
        await leaders.aclose()
    """

    def __init__(self, parts: Parts, prefix: bytes) -> None:
        self._mirror = Mirror(parts, prefix, prefix=True)
        self._told: KeyValue | None = None
        self._is_first = True
        self._closed = False

    def __aiter__(self) -> Self:
        """Iterate over the leaders."""
        return self

    async def __anext__(self) -> KeyValue | None:
        """Give the leader's key, at first as it is, then when it is another; None for nobody.

        Raises:
            EtcdError: By cause; what may pass is waited for, but for the first read.
        """
        while not self._closed:
            if await self._mirror.next() is None:
                break
            candidates = self._mirror.kvs.values()
            leader = min(candidates, key=lambda kv: kv.create_revision, default=None)
            if self._is_first or leader != self._told:
                self._is_first, self._told = False, leader
                return leader
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End it; a loop over it ends.

        Example:
            leaders = client.election("/jobs").observe()
            await leaders.aclose()
        """
        self._closed = True
        await self._mirror.aclose()


class Election(metaclass=NoPublicConstructor):
    """An election; ``client.election(name)`` makes it, which sends nothing.

    Candidates lead in the order of their coming: the first one does until it resigns or is gone,
    then the next. `etcdctl elect` and the Go client's elections are understood, and understand it.

    Example:
        election = client.election("/jobs")
        async with election.campaign("host-7"):
            leader = await election.leader()
            leader and leader.text  # "host-7"
    """

    def __init__(
        self, parts: Parts, name: str | bytes, *, session: Session | None, ttl: int | None
    ) -> None:
        self._parts = parts
        self._name = encode_key(name)
        self._prefix = self._name + b"/"
        self._session = session
        self._ttl = ttl
        # What is wrong is told here, and not by the first campaign.
        self.campaign()

    def __repr__(self) -> str:
        """Show the name."""
        return f"<Election {self._name!r}>"

    def campaign(
        self, value: str | bytes = b"", *, timeout: float | None = None, on_lost: OnLost = "cancel"
    ) -> Leadership:
        """Make a candidacy, for an ``async with``: to enter it waits until one leads.

        It costs a lease, kept alive, or a session's; a txn; a watch on its own key; and while it
        waits, a watch on the key before it. A failed or cancelled attempt leaves neither key nor
        lease behind, and takes a second longer at the most.

        Args:
            value: What others see of the candidate, and of the leader.
            timeout: Wait so many seconds at the most; None waits without limit.
            on_lost: ``"cancel"`` cancels the body when the leadership is lost, and the block
                raises `LeadershipLostError`; ``"ignore"`` leaves it to `Leadership.wait_lost`.

        Raises:
            ValueError: `timeout` or `on_lost` is out of its limits.
            TypeError: An argument of the wrong type.

        Example:
            async with client.election("/jobs").campaign("host-7", timeout=5) as leadership:
                mine = leadership.is_owner()
                saved = await client.kv.txn(compare=[mine], success=[Op.put("/result", "42")])
                saved.succeeded  # True
        """
        return create(
            Leadership,
            self._parts,
            self._name,
            value=value,
            session=self._session,
            ttl=self._ttl,
            timeout=timeout,
            on_lost=on_lost,
        )

    async def leader(self, *, timeout: float | Default | None = DEFAULT) -> KeyValue | None:
        """Read who leads (RPC ``Range``), as the quorum knows it.

        Args:
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Returns:
            The leader's key, whose ``value`` is what it proclaims; None where nobody leads.

        Raises:
            EtcdError: By cause.

        Example:
            await client.election("/jobs").leader()  # None
        """
        first = await queued_at(self._parts.kv, self._prefix, limit=1, timeout=timeout)
        return first[0] if first else None

    async def candidates(
        self, *, timeout: float | Default | None = DEFAULT
    ) -> tuple[KeyValue, ...]:
        """Read who leads, and who waits (RPC ``Range``), in the order in which they will lead.

        Args:
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            EtcdError: By cause.

        Example:
            election = client.election("/jobs")
            async with election.campaign("host-7"):
                [candidate.text for candidate in await election.candidates()]  # ["host-7"]
        """
        return await queued_at(self._parts.kv, self._prefix, timeout=timeout)

    def observe(self) -> Leaders:
        """Follow who leads, and what the leader proclaims, in an ``async for``.

        It costs one watch. Nothing is sent before the loop begins.

        Example:
            election = client.election("/jobs")
            async with election.campaign("host-7"):
                async for leader in election.observe():
                    leader and leader.text  # "host-7"
                    break
        """
        return create(Leaders, self._parts, self._prefix)

    async def run(
        self, work: Callable[[Leadership], Awaitable[_T]], value: str | bytes = b""
    ) -> _T:
        """Campaign, and work while one leads; again and again, until the work is done.

        When the leadership is lost, the work is cancelled, and done from its beginning once one
        leads again. While nobody can be reached to campaign, that is tried again with growing
        pauses; what the work itself raises ends it, errors of etcd's too.

        Args:
            work: A coroutine function; it is given the `Leadership`.
            value: As in `campaign`.

        Returns:
            What the work gives, after resigning. What it raises is raised.

        Raises:
            TypeError: A value that is neither str nor bytes.
            EtcdError: One cannot campaign, by cause, and that does not pass by itself.

        Example:
            async def work(leadership: Leadership) -> str:
                return f"done by {leadership.lease_id > 0}"

            await client.election("/jobs").run(work, "host-7")  # "done by True"
        """
        backoff = Backoff(0.1, 10.0)
        while True:
            leadership = self.campaign(value)
            has_led = is_done = False
            try:
                async with leadership:
                    has_led = True
                    backoff.reset()
                    result = await work(leadership)
                    is_done = True
            except (LeadershipLostError, ExceptionGroup) as error:
                if is_done:  # it was lost at the very end
                    return result
                if has_led and not leadership._is_its_loss(error):
                    raise
                _logger.info("leads no more, and campaigns again: %s", error)
            except (*PASSING, LeaseNotFoundError) as error:
                if has_led:
                    raise
                _logger.info("cannot campaign, and tries again: %s", error)
            else:
                return result
            await anyio.sleep(backoff.next_delay())
