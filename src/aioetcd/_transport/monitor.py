"""Where everything passes that is to be counted, logged, or told to the user's observers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from time import monotonic

from aioetcd._transport.connection import Metadata
from aioetcd.errors import EtcdError
from aioetcd.observe import CallReport, Notice, NoticeKind, Observer

logger = logging.getLogger("aioetcd.transport")


class WatchedCall:
    """Sees a unary call through, and reports it, however it ends.

    Attributes:
        endpoint: Who was asked last.
        retries: How often it was sent again.
    """

    def __init__(self, monitor: Monitor, method: str) -> None:
        self.endpoint: str | None = None
        self.retries: int = 0
        self._monitor = monitor
        self._method = method
        self._began = monotonic()

    def __enter__(self) -> WatchedCall:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        seconds = monotonic() - self._began
        self._monitor.call_ended(
            CallReport(self._method, self.endpoint, seconds, self.retries, error)
        )


class Monitor:
    """Counts, logs and tells.

    Args:
        observers: The user's.

    Attributes:
        calls: Calls made, retries not counted.
        retries: How often one of them was sent again.
        is_watched: Whether there are observers: without, a call makes no report.
    """

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self.calls: int = 0
        self.retries: int = 0
        self.is_watched: bool = bool(observers)
        self._observers = tuple(observers)
        self._lost_at: float | None = None

    def call_ended(self, report: CallReport) -> None:
        """A unary call has ended."""
        for observer in self._observers:
            self._tell(partial(observer.call_ended, report))

    def retried(self, method: str, endpoint: str, delay: float, error: EtcdError) -> None:
        """A call is sent again, after a pause."""
        self.retries += 1
        logger.debug("%s is tried again in %.3f s: %s", method, delay, error)
        self._notice(NoticeKind.RETRY, endpoint, method, None, error)

    def member_lost(self, endpoint: str, error: EtcdError | None) -> None:
        """The one in use is used no more, and there is no other yet."""
        if self._lost_at is not None:
            return
        self._lost_at = monotonic()
        logger.warning("endpoint %s is lost: %s", endpoint, error or "it does not answer")
        self._notice(NoticeKind.MEMBER_LOST, endpoint, None, None, error)

    def endpoints_changed(self, names: Iterable[str], *, leaves: bool) -> None:
        """There is another list; `leaves` where the one in use is not in it."""
        logger.info("the endpoints are %s from now on", ", ".join(names))
        if leaves and self._lost_at is None:
            self._lost_at = monotonic()  # on purpose, which is nothing to warn of

    def member_found(self, endpoint: str) -> None:
        """One is in use."""
        seconds = None
        if self._lost_at is not None:
            seconds, self._lost_at = monotonic() - self._lost_at, None
            logger.info("endpoint %s is in use after %.3f s", endpoint, seconds)
        self._notice(NoticeKind.MEMBER_FOUND, endpoint, None, seconds, None)

    def stream_lost(
        self, to: logging.Logger, method: str, endpoint: str, error: EtcdError, *, is_news: bool
    ) -> None:
        """A stream has ended; `is_news` unless it was lost before and has not answered since."""
        if is_news:
            to.warning("%s stream to %s is lost: %s", method, endpoint, error)
        self._notice(NoticeKind.STREAM_LOST, endpoint, method, None, error)

    def stream_opened(
        self, to: logging.Logger, method: str, endpoint: str, seconds: float | None
    ) -> None:
        """A stream has answered; `seconds` after it was lost."""
        if seconds is not None:
            to.info("%s stream is back at %s after %.3f s", method, endpoint, seconds)
        self._notice(NoticeKind.STREAM_OPENED, endpoint, method, seconds, None)

    def signed_in(self) -> None:
        """There is a token."""
        logger.debug("there is a fresh token")
        self._notice(NoticeKind.SIGNED_IN, None, None, None, None)

    def metadata(self, method: str) -> Metadata:
        """Give what the observers want to be sent with a call."""
        added: list[tuple[str, str]] = []
        for observer in self._observers:
            self._tell(lambda each=observer: added.extend(each.metadata(method)))  # type: ignore[misc]
        return added

    def _notice(
        self,
        kind: NoticeKind,
        endpoint: str | None,
        method: str | None,
        seconds: float | None,
        error: EtcdError | None,
    ) -> None:
        if self.is_watched:
            notice = Notice(kind, endpoint, method, seconds, error)
            for observer in self._observers:
                self._tell(partial(observer.noticed, notice))

    @staticmethod
    def _tell(tell: Callable[[], object]) -> None:
        try:
            tell()
        except Exception:
            logger.exception("an observer has failed")
