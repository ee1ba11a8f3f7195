"""Clients that write and read during a stress run, all of it written down."""

from __future__ import annotations

import random

import anyio

from aioetcd import Client, Compare, Op
from aioetcd.kv import KV
from aioetcd.testing import RecordedClient
from tests.stress.shared import Party, Run, tried

KEYS = [f"k/{number}".encode() for number in range(12)]
PREFIX, PREFIX_END = b"k/", b"k0"


def recorded(run: Run, client: Client, name: str) -> KV:
    """Give a client's calls as they are written down: batched, as the txns that they become."""
    if not run.is_batched:
        return RecordedClient(client, run.recorder, name).kv
    if (kv := run.batched.get(client)) is None:
        name = name.partition(".")[0]
        kv = run.batched[client] = RecordedClient(client, run.recorder, name).kv.batched()
    return kv


async def put(run: Run, client: Client, name: str, key: bytes, lease: int | None = None) -> None:
    """Put a new value."""
    answer = await recorded(run, client, name).put(key, run.value(), lease=lease)
    run.saw(answer.header.revision)


async def delete(run: Run, client: Client, name: str, key: bytes) -> None:
    """Delete a key."""
    answer = await recorded(run, client, name).delete(key)
    run.saw(answer.header.revision)


async def _swap(run: Run, client: Client, name: str, chance: random.Random) -> None:
    """Change two keys if one is as it was read; else delete or put another one; and read."""
    key, other = chance.sample(KEYS, 2)
    kv = (await client.kv.get(key)).kv
    revision = 0 if kv is None else kv.mod_revision
    fallback = Op.delete(other) if chance.random() < 0.5 else Op.put(other, run.value())
    answer = await recorded(run, client, name).txn(
        compare=[Compare.mod_revision(key) == revision],
        success=[Op.put(key, run.value()), Op.get(key), Op.put(other, run.value())],
        failure=[Op.get(PREFIX, prefix=True), fallback, Op.get(other)],
    )
    run.saw(answer.header.revision)


async def writer(run: Run, party: Party, name: str) -> None:
    """Puts, deletes and transactions."""
    chance = run.chance(name)
    while not run.stopping:
        client = party.client
        async with tried(run, party, client, chance):
            match chance.choices(("put", "delete", "swap"), (6, 1, 2))[0]:
                case "put":
                    await put(run, client, name, chance.choice(KEYS))
                case "delete":
                    await delete(run, client, name, chance.choice(KEYS))
                case _:
                    await _swap(run, client, name, chance)
        await anyio.sleep(chance.uniform(0, 0.04))


async def reader(run: Run, party: Party, name: str) -> None:
    """Linearizable, serializable and historical reads of keys and ranges."""
    chance = run.chance(name)
    while not run.stopping:
        client = party.client
        is_single = chance.random() < 0.5
        async with tried(run, party, client, chance):
            answer = await recorded(run, client, name).get(
                chance.choice(KEYS) if is_single else PREFIX,
                range_end=None if is_single else PREFIX_END,
                revision=max(1, run.revision - chance.randrange(50))
                if chance.random() < 0.2
                else None,
                limit=chance.choice((None, None, 3)),
                serializable=chance.random() < 0.4,
            )
            run.saw(answer.header.revision)
        await anyio.sleep(chance.uniform(0, 0.06))
