"""Right usages; never run. mypy and pyright, both strict, say nothing of them."""

from collections.abc import AsyncIterator
from typing import assert_type

from aioetcd import (
    KV,
    AnyOp,
    Client,
    Compare,
    CompareTarget,
    DeleteResponse,
    Event,
    GetResponse,
    HasLease,
    KeyValue,
    Lease,
    LeaseLike,
    Leases,
    Lock,
    OnLost,
    Op,
    OpResponse,
    PutResponse,
    Session,
    TxnResponse,
    Watch,
    Watcher,
)

# ------------------------------------------------------- Blocks swallow nothing: no return follows


async def returns_from_a_client() -> int:
    async with Client("127.0.0.1:2379"):
        return 1


async def returns_from_a_lock(client: Client) -> int:
    async with client.lock("k"):
        return 1


async def returns_from_a_session(client: Client) -> int:
    async with client.session() as session:
        return session.lease_id


async def returns_from_a_watch(client: Client) -> Event:
    async with client.watch("k") as watch:
        return await anext(watch)


async def returns_from_renewals(client: Client, lease: Lease) -> int:
    async with client.lease.keep_alive(lease) as renewals:
        return (await anext(renewals)).ttl


async def sets_in_a_block(client: Client) -> int:
    async with client.lock("k", session=client.session()):
        got = await client.kv.get("k")
    return got.count


# ------------------------------------------------------------------------------------- Operations


async def each_operation_has_its_answer(client: Client) -> None:
    get, put, delete, txn = Op.get("k"), Op.put("k", "v"), Op.delete("k"), Op.txn()
    assert_type(get, Op[GetResponse])
    result = await client.kv.txn(success=[get, put, delete, txn])
    assert_type(result[get], GetResponse)
    assert_type(result[put], PutResponse)
    assert_type(result[delete], DeleteResponse)
    assert_type(result[txn], TxnResponse)
    assert_type(result[get].value, bytes | None)


async def mixed_operations(client: Client, keys: list[str]) -> None:
    unannotated = [Op.get("k"), Op.put("k", "v"), Op.delete("k"), Op.txn()]
    annotated: list[AnyOp] = [Op.get("k"), Op.put("k", "v"), Op.delete("k"), Op.txn()]
    annotated.append(Op.get("k"))
    puts = [Op.put(key, "v") for key in keys]
    await client.kv.txn(success=unannotated, failure=annotated)
    await client.kv.txn(success=[*puts, Op.get("k")], failure=puts)
    await client.kv.txn(success=[Op.txn(success=unannotated), *annotated], failure=puts[1:])
    result = await client.kv.txn(success=annotated)
    assert_type(result[annotated[0]], OpResponse)
    assert_type(result.responses[0].header.revision, int)


async def responses_by_their_class(client: Client) -> list[object]:
    result = await client.kv.txn(success=[Op.put("k", "v"), Op.get("k")])
    match result.responses:
        case PutResponse(prev_kv=None), GetResponse(kvs=(KeyValue(version=version), *_)):
            return [version]
        case TxnResponse(header, succeeded), DeleteResponse(_, deleted, _):
            return [header.revision, succeeded, deleted]
        case _:
            return list(result.responses)


async def comparisons(client: Client) -> None:
    assert_type(Compare.version("k"), CompareTarget[int])
    assert_type(Compare.version("k") == 1, Compare)
    assert_type(Compare.value("k") != b"v", Compare)
    assert_type(Compare.value("k") < "v", Compare)
    compare = [Compare.missing("k"), Compare.exists("k"), Compare.mod_revision("k") > 1]
    got = await client.kv.get("k")
    if got.kv is not None:
        compare.append(Compare.unchanged(got.kv))
    await client.kv.txn(compare=compare)


# ------------------------------------------------------------------------------- Names and leases


class Service:
    """Names everything that a client hands out."""

    def __init__(self, client: Client, *, on_lost: OnLost = "ignore") -> None:
        self.kv: KV = client.kv
        self.leases: Leases = client.lease
        self.watcher: Watcher = client.watch
        self.watch: Watch = client.watch("k", prefix=True)
        self.session: Session = client.session(on_lost=on_lost)
        self.lock: Lock = client.lock("k", session=self.session, on_lost=on_lost)

    async def events(self) -> AsyncIterator[tuple[bytes, str]]:
        async for event in self.watch:
            if event.prev_kv is not None:
                yield event.kv.key, event.prev_kv.text

    async def put(self, key: str | bytes, *, lease: LeaseLike | None = None) -> PutResponse:
        return await self.kv.put(key, "v", lease=lease)

    async def put_many(self) -> None:
        on_lease: list[HasLease] = [self.session, self.lock]
        leases: list[LeaseLike] = [7, await self.leases.grant(10), self.session, self.lock]
        for lease in leases + on_lease:
            await self.put("k", lease=lease)
            await self.leases.revoke(lease)
