"""Clients that write and read during a stress run, all of it written down."""

from __future__ import annotations

import random

import anyio

from aioetcd import Client, Compare, DeleteResponse, Op
from aioetcd.testing.history import Comparison, Delete, Get, Put, Txn
from tests.stress.shared import Party, Run, tried

KEYS = [f"k/{number}".encode() for number in range(12)]
PREFIX, PREFIX_END = b"k/", b"k0"


async def put(run: Run, client: Client, name: str, key: bytes, lease: int | None = None) -> None:
    """Put a new value."""
    value = run.value()
    with run.recorder.call(name, Put(key, value, lease)) as call:
        answer = await client.kv.put(key, value, lease=lease)
        call.ok(run.saw(answer.header.revision))


async def delete(run: Run, client: Client, name: str, key: bytes) -> None:
    """Delete a key."""
    with run.recorder.call(name, Delete(key)) as call:
        answer = await client.kv.delete(key)
        call.ok(run.saw(answer.header.revision), deleted=answer.deleted)


async def _swap(run: Run, client: Client, name: str, chance: random.Random) -> None:
    """Change two keys if one is as it was read; else delete or put another one."""
    key, other = chance.sample(KEYS, 2)
    kv = (await client.kv.get(key)).kv
    revision = 0 if kv is None else kv.mod_revision
    one, two, three = run.value(), run.value(), run.value()
    fallback = Delete(other) if chance.random() < 0.5 else Put(other, three)
    request = Txn(
        (Comparison(key, "mod_revision", "==", revision),),
        (Put(key, one), Put(other, two)),
        (fallback,),
    )
    with run.recorder.call(name, request) as call:
        answer = await client.kv.txn(
            compare=[Compare.mod_revision(key) == revision],
            success=[Op.put(key, one), Op.put(other, two)],
            failure=[Op.delete(other) if isinstance(fallback, Delete) else Op.put(other, three)],
        )
        deletes = [r.deleted for r in answer.responses if isinstance(r, DeleteResponse)]
        call.ok(
            run.saw(answer.header.revision),
            succeeded=answer.succeeded,
            deleted=sum(deletes) if deletes else None,
        )


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
        request = Get(
            chance.choice(KEYS) if is_single else PREFIX,
            None if is_single else PREFIX_END,
            revision=max(1, run.revision - chance.randrange(50)) if chance.random() < 0.2 else None,
            limit=chance.choice((None, None, 3)),
            serializable=chance.random() < 0.4,
        )
        async with tried(run, party, client, chance):
            with run.recorder.call(name, request) as call:
                answer = await client.kv.get(
                    request.key,
                    range_end=request.range_end,
                    revision=request.revision,
                    limit=request.limit,
                    serializable=request.serializable,
                )
                call.ok(run.saw(answer.header.revision), kvs=answer.kvs)
        await anyio.sleep(chance.uniform(0, 0.06))
