"""A lock that many may hold to read, or one to write."""

from __future__ import annotations

from aioetcd._constructor import NoPublicConstructor, create
from aioetcd.concurrency._guard import OnLost
from aioetcd.concurrency._parts import Parts
from aioetcd.concurrency.lock import Lock
from aioetcd.concurrency.session import Session
from aioetcd.keys import encode_key

__all__ = ["RWLock"]

_READERS, _WRITERS = b"read/", b"write/"


class RWLock(metaclass=NoPublicConstructor):
    """A readers-writer lock; ``client.rwlock(name)`` makes it, which sends nothing.

    It is fair: a reader waits for the writers that came before it, a writer for everybody who did,
    so that neither readers nor writers starve. `read` and `write` each give a `Lock`. Who reads
    must release that before writing: one would wait for oneself.

    Example:
        shared = client.rwlock("/locks/catalogue")
        async with shared.read(), shared.read() as lock:
            lock.key.startswith(b"/locks/catalogue/read/")  # True
        async with shared.write() as lock:
            lock.is_lost  # False
    """

    def __init__(
        self, parts: Parts, name: str | bytes, *, session: Session | None, ttl: int | None
    ) -> None:
        self._parts = parts
        self._name = encode_key(name)
        self._session = session
        self._ttl = ttl
        self.read()  # what is wrong is told here

    def __repr__(self) -> str:
        """Show the name."""
        return f"<RWLock {self._name!r}>"

    def read(
        self,
        *,
        value: str | bytes = b"",
        blocking: bool = True,
        timeout: float | None = None,
        on_lost: OnLost = "cancel",
    ) -> Lock:
        """Make a lock to read under, beside other readers, for an ``async with``.

        Args:
            value: What others see of the holder, for example in `LockNotAcquiredError.holder`.
            blocking: Wait for one's turn; False fails at once instead.
            timeout: Wait so many seconds at the most; None waits without limit.
            on_lost: ``"cancel"`` cancels the body when the lock is lost, and the block raises
                `LockLostError`; ``"ignore"`` leaves it to `Lock.wait_lost`.

        Raises:
            ValueError: `timeout` with ``blocking=False``, or out of its limits.
            TypeError: An argument of the wrong type.

        Example:
            async with client.rwlock("/locks/catalogue").read(timeout=5):
                (await client.kv.get("/catalogue")).value  # None
        """
        return self._lock(value, blocking, timeout, on_lost, _READERS, (_WRITERS,))

    def write(
        self,
        *,
        value: str | bytes = b"",
        blocking: bool = True,
        timeout: float | None = None,
        on_lost: OnLost = "cancel",
    ) -> Lock:
        """Make a lock to write under, alone, for an ``async with``.

        Args:
            value: What others see of the holder, for example in `LockNotAcquiredError.holder`.
            blocking: Wait for one's turn; False fails at once instead.
            timeout: Wait so many seconds at the most; None waits without limit.
            on_lost: ``"cancel"`` cancels the body when the lock is lost, and the block raises
                `LockLostError`; ``"ignore"`` leaves it to `Lock.wait_lost`.

        Raises:
            ValueError: `timeout` with ``blocking=False``, or out of its limits.
            TypeError: An argument of the wrong type.

        Example:
            async with client.rwlock("/locks/catalogue").write() as lock:
                mine = lock.is_owner()
                saved = await client.kv.txn(compare=[mine], success=[Op.put("/catalogue", "42")])
                saved.succeeded  # True
        """
        return self._lock(value, blocking, timeout, on_lost, _WRITERS, (b"", _READERS, _WRITERS))

    def _lock(
        self,
        value: str | bytes,
        blocking: bool,
        timeout: float | None,
        on_lost: OnLost,
        queue: bytes,
        behind: tuple[bytes, ...],
    ) -> Lock:
        return create(
            Lock,
            self._parts,
            self._name,
            value=value,
            session=self._session,
            ttl=self._ttl,
            blocking=blocking,
            timeout=timeout,
            on_lost=on_lost,
            queue=queue,
            behind=behind,
        )
