"""One call after the other, until there is an answer, or none is to be had.

What holds at any moment of a call:

- A write is sent again only where all attempts before surely were not applied; from the first on
  that may have been, each error says so.
- Nothing is sent after the deadline, and no answer is waited for beyond it.
- A refused token is renewed and the call sent again, whatever it does: it was refused before it
  would have been applied.
"""

from __future__ import annotations

import asyncio
from math import inf
from time import monotonic
from typing import Any

import anyio

from aioetcd._transport.backoff import Backoff
from aioetcd._transport.call import ChannelClosedError, Failure, LeftError
from aioetcd._transport.connection import Connection, Metadata
from aioetcd._transport.ending import Ending
from aioetcd._transport.methods import AUTHENTICATE, Method, Request, Response
from aioetcd._transport.monitor import Monitor, WatchedCall
from aioetcd._transport.picker import Picker
from aioetcd._transport.supervisor import AS_ALL, Supervisor
from aioetcd._transport.token import REFUSALS, Tokens
from aioetcd._verdicts.raised import error_from_status
from aioetcd._verdicts.table import Blame, Verdict, verdict_for
from aioetcd.config.timeouts import deadline_in
from aioetcd.errors import (
    ClientClosedError,
    ClusterMismatchError,
    DeadlineExceededError,
    EtcdError,
    NoEndpointError,
)

# When a call has waited so long, or a fifth of its time, its member is looked at.
PATIENCE = 1.0
# A deadline that gRPC says has passed has passed here too, give or take its timer.
_TIMER = 0.01


class Unary:
    """Makes the unary calls of a client.

    Args:
        picker: Gives the connection to use.
        tokens: Gives what goes with a call.
        monitor: Is told of what is sent again.
        supervisor: Ends the client where gRPC is ended.
        ending: That it has closed.
    """

    def __init__(
        self,
        picker: Picker,
        tokens: Tokens,
        *,
        monitor: Monitor,
        supervisor: Supervisor,
        ending: Ending,
    ) -> None:
        self._picker = picker
        self._tokens = tokens
        self._monitor = monitor
        self._supervisor = supervisor
        self._ending = ending

    async def call(
        self,
        loop: asyncio.AbstractEventLoop,
        method: Method[Request, Response],
        request: Request,
        seconds: float | None,
        connection: Connection | None,
        watched: WatchedCall | None = None,
    ) -> Response:
        """Call, and call again where that may be.

        Args:
            loop: The client's.
            method: The RPC.
            request: Its request message.
            seconds: The deadline for all of it.
            connection: Ask this one only, and once.
            watched: What the user's observers are told of it.

        Raises:
            EtcdError: By cause.
        """
        deadline = deadline_in(seconds)
        added = self._monitor.metadata(method.name) if watched is not None else ()
        fixed = connection is not None
        effect = method.effect
        may_leave = effect.is_repeatable and not fixed
        backoff: Backoff | None = None
        patience = PATIENCE if seconds is None else min(PATIENCE, seconds / 5)
        if method.waits:
            patience = inf  # its silence says nothing of the member
        # Whether an attempt before this one may have been applied.
        uncertain = False
        refusals = 0
        failure: EtcdError | None = None
        while True:
            if connection is None:
                connection = self._picker.in_use()
                if connection is None or (connection.is_doubted and not effect.is_repeatable):
                    connection = await self.connect(
                        deadline, uncertain, failure, sure=not effect.is_repeatable
                    )
            # Whoever asks for a token sends none: etcd 3.4 would refuse the old one.
            has_token = method is not AUTHENTICATE
            if has_token and self._tokens.is_missing:
                await self.sign_in(deadline, uncertain=uncertain, failure=failure)
                if connection.is_left and not fixed:
                    connection = None  # somebody has moved meanwhile
                    continue
            if watched is not None:
                watched.endpoint = connection.endpoint.name
            generation = self._tokens.generation
            sent: Metadata = self._tokens.metadata if has_token else ()
            if added:
                sent = (*sent, *added)
            sent_at = monotonic()
            left = None if deadline is None else deadline - sent_at
            wait = [sent_at + patience, sent_at]
            waiting = connection.waiting
            waiting[id(wait)] = wait
            if not self._picker.is_watching:
                self._picker.watch(loop)
            try:
                # No name for the call: a traceback that somebody keeps would hold gRPC's thread.
                response: Any = await connection.calls.answer(
                    connection.unary(method)(request, timeout=left, metadata=sent or None),
                    may_leave=may_leave,
                )
            except Failure as caught:
                status = caught
            except LeftError:
                # What may not leave was not even sent: the connection was closed before.
                uncertain = uncertain or (may_leave and effect.is_write)
                failure = _no_answer(method, connection, seconds, maybe_applied=uncertain)
                if fixed:
                    raise failure from None
                # The next one may only be slow, and what is slow must come to an end.
                patience *= 2
                self._retry(method, connection, 0.0, failure, watched)
                connection = None
                continue
            except ChannelClosedError:
                # If it was not us, somebody has cancelled gRPC's own task.
                self._supervisor.end("gRPC's task for a call was cancelled" + AS_ALL)
                failure = self._ending.error(maybe_applied=uncertain or effect.is_write)
                raise failure from failure.__cause__
            else:
                connection.heard_at = sent_at
                cluster_id: int = response.header.cluster_id
                if cluster_id == self._picker.members.cluster_id or self._picker.members.is_ours(
                    cluster_id, decides=not fixed
                ):
                    return response  # type: ignore[no-any-return]
                failure = self._of_another_cluster(method, connection, cluster_id)
                if effect.is_write or fixed:
                    raise failure
                connection = None
                continue
            finally:
                del waiting[id(wait)]
            left = None if deadline is None else deadline - monotonic()
            timed_out = left is not None and left <= _TIMER and status.is_deadline
            verdict, failure = self.judge(
                method, request, connection, status, timeout=seconds if timed_out else None
            )
            uncertain = failure.maybe_applied = uncertain or failure.maybe_applied
            if timed_out:  # which may just be this caller's haste
                self._picker.doubt(connection, sent_at)
                raise failure
            connection.heard_at = sent_at
            self._picker.failed(connection, verdict.blame, failure)
            is_stale = (
                verdict.blame is Blame.TOKEN
                and has_token
                and refusals < REFUSALS
                and self._tokens.refused(generation)
            )
            refusals += is_stale
            if not is_stale and (fixed or not verdict.transient):
                raise failure
            if verdict.maybe_applied and not effect.is_repeatable:
                raise failure
            backoff = backoff or Backoff(0.025, 1.0)
            delay = backoff.next_delay()
            if left is not None and delay >= left:
                raise failure
            self._retry(method, connection, delay, failure, watched)
            if not fixed:
                connection = (
                    self._picker.elsewhere(connection) if verdict.blame is Blame.ROLE else None
                )
            with anyio.move_on_after(delay):
                await self._ending.told.wait()
            if self._ending.reason is not None:
                raise self._ending.error(maybe_applied=uncertain)

    def judge(
        self,
        method: Method[Any, Any],
        request: Any,
        connection: Connection,
        status: Failure,
        *,
        timeout: float | None = None,
    ) -> tuple[Verdict, EtcdError]:
        """Give what a failed attempt means, and the error that says so."""
        code, details = status.code, status.details
        if timeout is not None:
            code, details = "DEADLINE_EXCEEDED", "Deadline Exceeded"
        verdict = verdict_for(code, details, request_size=request.ByteSize())
        failure = error_from_status(
            verdict,
            code=code,
            details=details,
            what=method.name,
            is_write=method.effect.is_write,
            endpoint=connection.endpoint.name,
            request=request,
            timeout=timeout,
            known=self._picker.known(connection),
            since=method.since,
        )
        failure.__cause__ = status.__cause__
        return verdict, failure

    def _retry(
        self,
        method: Method[Any, Any],
        connection: Connection,
        delay: float,
        failure: EtcdError,
        watched: WatchedCall | None,
    ) -> None:
        self._monitor.retried(method.name, connection.endpoint.name, delay, failure)
        if watched is not None:
            watched.retries += 1

    def _of_another_cluster(
        self, method: Method[Any, Any], connection: Connection, cluster_id: int
    ) -> ClusterMismatchError:
        ours = self._picker.members.cluster_id
        name = connection.endpoint.name
        failure = ClusterMismatchError(
            f"{method.name} at {name}: cluster {cluster_id:x} has answered, and the others are of "
            f"{ours:x}",
            maybe_applied=method.effect.is_write,
            endpoint=name,
        )
        self._picker.failed(connection, Blame.MEMBER, failure)
        return failure

    async def connect(
        self,
        deadline: float | None,
        uncertain: bool = False,
        failure: EtcdError | None = None,
        *,
        sure: bool = False,
    ) -> Connection:
        """Wait for a connection.

        Args:
            deadline: Until then, in `time.monotonic`'s seconds.
            uncertain: Whether an attempt before may have been applied.
            failure: How that one failed.
            sure: Wait also for what a look brings at the member in use (`Picker.wait`).

        Raises:
            EtcdError: There was none by `deadline`, or the client closes.
        """
        try:
            return await self._picker.wait(deadline, sure=sure)
        except ClientClosedError:
            closed = self._ending.error(maybe_applied=uncertain)
            raise closed from closed.__cause__
        except NoEndpointError as error:
            # That it was not applied, or never sent, would be a lie.
            if failure is not None and (uncertain or isinstance(failure, DeadlineExceededError)):
                raise failure from failure.__cause__ or error
            raise error from failure

    async def sign_in(
        self,
        deadline: float | None = None,
        *,
        uncertain: bool = False,
        failure: EtcdError | None = None,
    ) -> None:
        """Wait for the token; the arguments are those of `connect`.

        Raises:
            EtcdError: There was none by `deadline`; the authentication failed.
        """
        limit = None if deadline is None else deadline - monotonic()
        with anyio.move_on_after(limit) as scope:
            try:
                await self._tokens.wait()
            except ClientClosedError:
                closed = self._ending.error(maybe_applied=uncertain)
                raise closed from closed.__cause__
            except EtcdError as error:
                error.maybe_applied = uncertain  # an attempt before may have been
                raise
        if scope.cancelled_caught:
            if uncertain and failure is not None:
                raise failure
            if self._picker.current is None:
                raise self._picker.unreachable() from failure
            raise DeadlineExceededError("no token: Authenticate was not answered") from failure


def _no_answer(
    method: Method[Any, Any],
    connection: Connection,
    seconds: float | None,
    *,
    maybe_applied: bool,
) -> DeadlineExceededError:
    name = connection.endpoint.name
    return DeadlineExceededError(
        f"{method.name} at {name}: no answer",
        timeout=seconds,
        code="DEADLINE_EXCEEDED",
        details="Deadline Exceeded",
        maybe_applied=maybe_applied,
        endpoint=name,
    )
