"""What a client tells about itself while it runs, to whoever wants to measure, trace or count."""

from __future__ import annotations

import enum
from collections.abc import Iterable

from aioetcd.errors import EtcdError
from aioetcd.types.value import Value

__all__ = ["CallReport", "Notice", "NoticeKind", "Observer"]


class CallReport(Value):
    """One call that has ended, with all its tries.

    Attributes:
        method: The RPC's name, such as ``"Range"``.
        endpoint: Who answered last; None where nobody was asked.
        seconds: From its beginning to its end, waiting for a connection included.
        retries: How often it was sent again.
        error: Why it failed, or None. A call that was cancelled has a `CancelledError`.
    """

    __slots__ = ("endpoint", "error", "method", "retries", "seconds")

    method: str
    endpoint: str | None
    seconds: float
    retries: int
    error: BaseException | None


class NoticeKind(enum.Enum):
    """What a `Notice` is about.

    Attributes:
        MEMBER_LOST: The endpoint in use is used no more, and another one is searched.
        MEMBER_FOUND: An endpoint is in use.
        RETRY: A call is sent again.
        STREAM_OPENED: A stream of watches or renewals is there: its first answer came.
        STREAM_LOST: It ended, and is opened again as long as somebody needs it.
        SIGNED_IN: There is a fresh token.
    """

    MEMBER_LOST = "member lost"
    MEMBER_FOUND = "member found"
    RETRY = "retry"
    STREAM_OPENED = "stream opened"
    STREAM_LOST = "stream lost"
    SIGNED_IN = "signed in"


class Notice(Value):
    """Something that happened beside the calls.

    Attributes:
        kind: What.
        endpoint: Where; None where it concerns none.
        method: The RPC, of a retry or a stream.
        seconds: How long what has ended had lasted, where that is known: the search for a member,
            the time without a stream.
        error: Why, or None.
    """

    __slots__ = ("endpoint", "error", "kind", "method", "seconds")

    kind: NoticeKind
    endpoint: str | None
    method: str | None
    seconds: float | None
    error: EtcdError | None


class Observer:
    """Is told what a client does; override what is of interest, and pass it as ``observers=``.

    It is called in the client's event loop, in the middle of what it is told of: it must be quick
    and must not wait. What it raises is logged, and harms nobody.

    Example:
        class Slow(Observer):
            def call_ended(self, call: CallReport) -> None:
                if call.seconds > 1:
                    print(call.method, call.endpoint, call.seconds)

        async with Client("127.0.0.1:2379", observers=[Slow()]) as client:
            await client.kv.get("greeting")
    """

    def call_ended(self, call: CallReport) -> None:
        """Be told that a unary call has its answer, or its error.

        Args:
            call: Which call, and how it went.

        Raises:
            Exception: Anything; it is logged.

        Example:
            class Errors(Observer):
                def call_ended(self, call: CallReport) -> None:
                    if call.error is not None:
                        print(call.method, call.error)

            async with Client("127.0.0.1:2379", observers=[Errors()]) as client:
                await client.kv.get("greeting")
        """

    def noticed(self, notice: Notice) -> None:
        """Be told of something beside the calls.

        Args:
            notice: What happened.

        Raises:
            Exception: Anything; it is logged.

        Example:
            class Losses(Observer):
                def noticed(self, notice: Notice) -> None:
                    if notice.kind is NoticeKind.MEMBER_LOST:
                        print(notice.endpoint, notice.error)

            async with Client("127.0.0.1:2379", observers=[Losses()]) as client:
                await client.kv.get("greeting")
        """

    def metadata(self, method: str) -> Iterable[tuple[str, str]]:
        """Give what is to be sent with a call or a stream beside its request, as for tracing.

        It runs in the context of whoever calls; a txn of `KV.batched` is of many, and in nobody's.

        Args:
            method: The RPC's name.

        Raises:
            Exception: Anything; it is logged, and nothing is sent.

        Example:
            class Traced(Observer):
                def metadata(self, method: str) -> list[tuple[str, str]]:
                    return [("x-request-id", "7")]

            async with Client("127.0.0.1:2379", observers=[Traced()]) as client:
                await client.kv.get("greeting")
        """
        return ()
