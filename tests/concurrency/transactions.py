"""What tests of transactions have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from aioetcd import (
    Client,
    Isolation,
    Transaction,
)

SNAPSHOT, SERIALIZABLE = Isolation.SERIALIZABLE_SNAPSHOT, Isolation.SERIALIZABLE
REPEATABLE, COMMITTED = Isolation.REPEATABLE_READS, Isolation.READ_COMMITTED

all_levels = pytest.mark.parametrize("isolation", Isolation, ids=lambda each: each.name)
levels_of_one_revision = pytest.mark.parametrize(
    "isolation", [SNAPSHOT, SERIALIZABLE], ids=lambda each: each.name
)


async def number(tx: Transaction, key: str) -> int:
    """Read a number, 0 where there is none."""
    return int(await tx.get(key) or 0)


async def increment(tx: Transaction) -> int:
    """Count."""
    count = await number(tx, "k") + 1
    tx.put("k", str(count))
    return count


class Interfering:
    """Does something between a try's reads and its commit, in the first tries.

    Attributes:
        tries: How many there were.
    """

    def __init__(
        self,
        client: Client,
        function: Callable[[Transaction], Awaitable[object]],
        *,
        put: str,
        times: int = 1,
    ) -> None:
        self.tries = 0
        self._client = client
        self._function = function
        self._put = put
        self._times = times

    async def __call__(self, tx: Transaction) -> object:
        self.tries += 1
        result = await self._function(tx)
        if self.tries <= self._times:
            await self._client.kv.put(self._put, f"another's {self.tries}")
        return result


async def calls_of(client: Client, transaction: Awaitable[object]) -> int:
    """Give how many calls something makes."""
    before = client.stats().calls
    await transaction
    return client.stats().calls - before


async def get(tx: Transaction, key: str) -> bytes | None:
    return await tx.get(key)
