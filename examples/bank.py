"""Moves money between accounts in transactions, while the network breaks.

    python examples/bank.py                            on an etcd of its own, for 3 seconds
    python examples/bank.py --seconds 30
    python examples/bank.py --endpoints HOST:PORT      on a running one, below /bank/

Each teller moves money between two accounts in a transaction, with a receipt of its own, so that
each transfer is made once also where its answer is lost. An auditor reads all accounts in a
transaction that costs no commit: their sum is the same at any time.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from contextlib import AsyncExitStack

from aioetcd import Client, EtcdError, Namespace, Transaction
from aioetcd.testing import EtcdNotFoundError, EtcdServer, FaultProxy

ACCOUNTS = [f"account {number}" for number in range(10)]
EACH = 1000
TELLERS = 8


class Bank:
    """Tellers, an auditor, and what they have done."""

    def __init__(self, store: Namespace) -> None:
        self.transfers = self.sums = self.unknown = 0
        self.is_open = True
        self._store = store

    async def begin(self) -> None:
        await self._store.kv.put_many(dict.fromkeys(ACCOUNTS, str(EACH)))

    async def transfer(self, source: str, target: str, amount: int, receipt: str) -> bool:
        """Give whether there was enough."""

        async def move(tx: Transaction) -> bool:
            there, here = int(await tx.get(source) or 0), int(await tx.get(target) or 0)
            if there < amount:
                return False
            tx.put(source, str(there - amount))
            tx.put(target, str(here + amount))
            return True

        return await self._store.stm(move, receipt=receipt)

    async def total(self) -> int:
        async def read(tx: Transaction) -> int:
            return sum([int(await tx.get(each) or 0) for each in ACCOUNTS])

        return await self._store.stm(read)

    async def tell(self, number: int) -> None:
        while self.is_open:
            source, target = random.sample(ACCOUNTS, 2)
            amount = random.randint(1, 100)
            try:
                self.transfers += await self.transfer(source, target, amount, f"receipt {number}")
            except EtcdError as error:
                # Where nobody can tell, the accounts are right all the same: all of it, or nothing.
                self.unknown += error.maybe_applied
                print(error, file=sys.stderr)

    async def audit(self) -> None:
        while self.is_open:
            if (total := await self.total()) != EACH * len(ACCOUNTS):
                raise ValueError(f"there are {total} in the bank")
            self.sums += 1


async def open_bank(store: Namespace, seconds: float, proxy: FaultProxy | None) -> None:
    bank = Bank(store)
    await bank.begin()
    async with asyncio.timeout(seconds + 60), asyncio.TaskGroup() as tasks:
        for number in range(TELLERS):
            tasks.create_task(bank.tell(number))
        tasks.create_task(bank.audit())
        for _ in range(int(seconds * 5)):
            await asyncio.sleep(0.2)
            if proxy is not None:
                proxy.cut_after(random.randint(1, 2000))
        bank.is_open = False
    cuts = 0 if proxy is None else proxy.cuts
    print(f"{bank.transfers} transfers, {bank.unknown} unknown; {cuts} connections were cut")
    print(f"{bank.sums} times the sum was right; in the end it is {await bank.total()}")


async def run(endpoints: list[str] | None, seconds: float) -> None:
    async with AsyncExitStack() as stack:
        proxy = None
        if endpoints is None:
            server = await stack.enter_async_context(EtcdServer())
            proxy = await stack.enter_async_context(FaultProxy(server.endpoint))
            endpoints = [proxy.endpoint]
        client = await stack.enter_async_context(Client(endpoints))
        await open_bank(client.namespace("/bank/"), seconds, proxy)


def main() -> None:
    parser = argparse.ArgumentParser(description="Move money between accounts.")
    parser.add_argument(
        "--endpoints",
        metavar="HOST:PORT[,HOST:PORT...]",
        type=lambda text: text.split(","),
    )
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    try:
        asyncio.run(run(arguments.endpoints, arguments.seconds))
    except (EtcdNotFoundError, EtcdError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
