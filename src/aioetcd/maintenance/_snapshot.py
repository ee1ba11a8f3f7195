"""A snapshot on its way into a file."""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

import anyio.to_thread

from aioetcd.errors import SnapshotError

_DIGEST = hashlib.sha256().digest_size
# bbolt's pages are multiples of it.
_SECTOR = 512
# So many bytes go to a thread at a time.
_BLOCK = 2**20


class Digest:
    """Sees the bytes of a snapshot pass, and whether they are whole."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._tail = b""
        self._size = 0

    def update(self, data: bytes) -> None:
        """See the next ones."""
        self._size += len(data)
        data = self._tail + data
        self._hash.update(data[:-_DIGEST])
        self._tail = data[-_DIGEST:]

    def check(self) -> None:
        """See that they were all.

        Raises:
            SnapshotError: They were not.
        """
        if self._size % _SECTOR != _DIGEST:
            raise SnapshotError(f"the snapshot ended early, after {self._size} bytes")
        if self._hash.digest() != self._tail:
            raise SnapshotError(
                f"the snapshot of {self._size} bytes is damaged: its SHA-256 is another"
            )


class SnapshotFile:
    """Beside the place where it is to be; there at once, and whole, or not at all.

    Args:
        path: The place; what is there is replaced at the end.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        descriptor, self._part = tempfile.mkstemp(
            prefix=f"{self._path.name}.", suffix=".part", dir=self._path.parent
        )
        # Buffered, so that it has a lock: who is cancelled closes it while a thread writes.
        self._file = open(descriptor, "wb")  # noqa: SIM115
        self._block = bytearray()

    async def write(self, data: bytes) -> None:
        """Write the next bytes."""
        self._block += data
        if len(self._block) >= _BLOCK:
            block, self._block = self._block, bytearray()
            await anyio.to_thread.run_sync(self._file.write, block)

    async def finish(self) -> None:
        """Have it on the disk, and in its place."""
        await anyio.to_thread.run_sync(self._sync)
        self._file.close()
        os.replace(self._part, self._path)

    def _sync(self) -> None:
        self._file.write(self._block)
        self._file.flush()
        os.fsync(self._file.fileno())

    def discard(self) -> None:
        """Leave nothing behind; after `finish` there is nothing to leave."""
        with suppress(OSError):  # it writes what it has, and fails again where that did before
            self._file.close()
        Path(self._part).unlink(missing_ok=True)
