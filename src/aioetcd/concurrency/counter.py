"""A counter: a number under a key, to which each addition is made exactly once."""

from __future__ import annotations

import asyncio
import re

import anyio

from aioetcd._checks import check_int
from aioetcd._constructor import NoPublicConstructor
from aioetcd.concurrency._parts import Parts
from aioetcd.concurrency._transaction import Isolation, Transaction
from aioetcd.concurrency.stm import Stm
from aioetcd.config.timeouts import DEFAULT, Default, deadline_in, seconds_left
from aioetcd.errors import DeadlineExceededError
from aioetcd.keys import encode_key
from aioetcd.types.value import short

__all__ = ["Counter"]

_NUMBER = re.compile(rb"-?[0-9]{1,1000}")


class Counter(metaclass=NoPublicConstructor):
    """A whole number under a key; ``client.counter(...)`` makes it.

    The key holds it in decimal digits, for everybody to read; to set it, put or delete the key.
    Beside it the key ``KEY/receipt`` tells of each addition whether it was made, so that one whose
    answer was lost is made once all the same: leave that alone.

    Tasks that share a counter wait for one another; those who count elsewhere make each other's
    additions begin anew, which takes the longer the more they are.

    Example:
        visits = client.counter("/visits")
        await visits.add()  # 1
        await visits.add(10)  # 11
        (await client.kv.get("/visits")).text  # "11"
    """

    def __init__(self, parts: Parts, key: str | bytes) -> None:
        self._parts = parts
        self._key = encode_key(key)
        self._lock = asyncio.Lock()

    def __repr__(self) -> str:
        """Show the key."""
        return f"<Counter {self._key!r}>"

    async def add(self, n: int = 1, *, timeout: float | Default | None = DEFAULT) -> int:
        """Add to the number, and give what it is then (RPCs ``Txn``).

        It costs two round trips, more where others count as well or an answer is lost. To be
        cancelled leaves open whether it was added.

        Args:
            n: How much; it may be negative.
            timeout: The deadline in seconds for all of it; None is none.

        Raises:
            ValueError: What the key holds is no number; nothing is written then.
            TypeError: `n` is no int.
            DeadlineExceededError: Others were faster until then, or as of any call.
            EtcdError: By cause; `maybe_applied` where nobody can say whether it was added: no
                server answered until the deadline, or the history was compacted meanwhile.

        Example:
            await client.counter("/stock").add(-1)  # -1
        """
        check_int("n", n, -(2**63))
        seconds = self._parts.calls.resolve_timeout(timeout)
        deadline = deadline_in(seconds)

        async def add(tx: Transaction) -> int:
            number = self._number(await tx.get(self._key)) + n
            tx.put(self._key, str(number))
            return number

        with anyio.move_on_after(seconds) as waiting:
            await self._lock.acquire()
        if waiting.cancelled_caught:
            raise DeadlineExceededError(
                f"other tasks used the counter {self._key!r}", timeout=seconds
            )
        try:
            return await Stm(
                self._parts,
                add,
                isolation=Isolation.SERIALIZABLE,
                tries=None,
                receipt=self._key + b"/receipt",
                timeout=seconds_left(deadline),
            ).run()
        finally:
            self._lock.release()

    async def value(self, *, timeout: float | Default | None = DEFAULT) -> int:
        """Read the number (RPC ``Range``); 0 where there is none.

        Args:
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Raises:
            ValueError: What the key holds is no number.
            EtcdError: By cause.

        Example:
            await client.counter("/visits").value()  # 0
        """
        return self._number((await self._parts.kv.get(self._key, timeout=timeout)).value)

    def _number(self, value: bytes | None) -> int:
        if value is None:
            return 0
        if not _NUMBER.fullmatch(value):
            raise ValueError(f"the key {self._key!r} holds {short(value)}, which is no number")
        return int(value)
