"""Reading a range of any size at one revision, in bounded memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Any

from aioetcd import _decode
from aioetcd._proto import kv_pb2, rpc_pb2
from aioetcd._transport.calls import Calls
from aioetcd._transport.methods import RANGE, RANGE_STREAM, Method
from aioetcd.errors import UnavailableError, UnsupportedByServerError
from aioetcd.types.store import KeyValue

# Of values whose size nobody knows yet, so many are asked for; then as many as make a megabyte.
_FIRST_PAGE = 10
_PAGE_BYTES = 2**20
_LARGEST_PAGE = 10_000


class Scan:
    """What is left of a range.

    Args:
        calls: Make the RPCs.
        lacking: What the server was found to lack; shared with other scans.
        request: The range. It is changed as the reading goes on.
        page_size: Keys to ask for at a time; None asks for a megabyte, and has the server choose
            where it can.
        limit: Keys to give at the most.
        progress: Called with the keys given and those in all.
        timeout: Seconds that each answer may take.
    """

    def __init__(
        self,
        calls: Calls,
        lacking: set[Method[Any, Any]],
        request: rpc_pb2.RangeRequest,
        *,
        page_size: int | None,
        limit: int | None,
        progress: Callable[[int, int], object] | None,
        timeout: float | None,
    ) -> None:
        self._calls = calls
        self._lacking = lacking
        self._request = request
        self._page_size = page_size
        self._limit = limit
        self._progress = progress
        self._timeout = timeout
        self._given = 0
        self._total = 0
        self._has_more = True

    async def read(self) -> AsyncGenerator[KeyValue, None]:
        """Give the keys."""
        page = await self._page(self._page_size or _FIRST_PAGE)
        # Whatever follows is of this page's revision.
        self._request.revision = self._request.revision or page.header.revision
        self._total = page.count if self._limit is None else min(page.count, self._limit)
        while True:
            for kv in self._taken(page.kvs):
                yield kv
            while self._has_more and self._page_size is None and self._can_stream:
                before, is_whole = self._given, False
                self._request.limit = 0 if self._limit is None else self._limit - self._given
                parts = self._calls.download(RANGE_STREAM, self._request, self._timeout)
                try:
                    async for part in parts:
                        for kv in self._taken(part.range_response.kvs):
                            yield kv
                        is_whole = part.range_response.HasField("header")  # the last one's mark
                    if not is_whole and self._given == before:
                        raise UnavailableError("RangeStream: the server ended the stream early")
                    self._has_more = not is_whole
                except UnsupportedByServerError:
                    self._lacking.add(RANGE_STREAM)
                except UnavailableError:
                    if self._given == before:
                        raise
                finally:
                    parts.close()
                if self._given == self._limit:
                    self._has_more = False
            if not self._has_more:
                return
            page = await self._page(self._page_size or self._fitting(page))

    @property
    def _can_stream(self) -> bool:
        return RANGE_STREAM not in self._lacking

    async def _page(self, size: int) -> rpc_pb2.RangeResponse:
        self._request.limit = size if self._limit is None else min(size, self._limit - self._given)
        page = await self._calls.unary(RANGE, self._request, self._timeout)
        self._has_more = page.more and self._limit != self._given + len(page.kvs)
        return page

    def _fitting(self, page: rpc_pb2.RangeResponse) -> int:
        """Give how many keys make a page, if the next ones are as large as those of the last."""
        size = len(page.kvs)
        fitting = _PAGE_BYTES * size // max(page.ByteSize(), 1)
        return max(1, min(fitting, 16 * size, _LARGEST_PAGE))

    def _taken(self, kvs: Sequence[kv_pb2.KeyValue]) -> Iterator[KeyValue]:
        """Copy the keys of an answer, each when it is taken; those after them are the next."""
        for kv in kvs:
            yield _decode.key_value(kv)
        if kvs:
            self._given += len(kvs)
            self._request.key = kvs[-1].key + b"\0"
            if self._progress is not None:
                self._progress(self._given, self._total)
