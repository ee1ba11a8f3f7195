"""Wrong usages; never run. Each is marked with what mypy and pyright, both strict, say of it."""

from aioetcd import Client, Compare, GetResponse, KeyValue, LockTimeoutError, Op


async def keys_and_values(client: Client) -> None:
    await client.kv.put("k", 1)  # mypy: arg-type  # pyright: reportArgumentType
    await client.kv.put(7, "v")  # mypy: arg-type  # pyright: reportArgumentType
    await client.kv.put("k", "v", lease="7")  # mypy: arg-type  # pyright: reportArgumentType
    await client.kv.get("k", True)  # mypy: call-arg  # pyright: reportCallIssue
    await client.kv.get("k", limit="1")  # mypy: arg-type  # pyright: reportArgumentType
    await client.kv.get("k", limt=1)  # mypy: call-arg  # pyright: reportCallIssue
    await client.kv.get("k", sort_order="DESCEND")  # mypy: arg-type  # pyright: reportArgumentType
    await client.kv.get("k", timeout="1")  # mypy: arg-type  # pyright: reportArgumentType
    await client.kv.delete(["k"])  # mypy: arg-type  # pyright: reportArgumentType
    await client.kv.compact("1")  # mypy: arg-type  # pyright: reportArgumentType
    client.kv.put("k", "v")  # mypy: unused-coroutine  # pyright: reportUnusedCoroutine
    client.kv.get("k").value  # mypy: attr-defined  # pyright: reportAttributeAccessIssue


async def answers(client: Client) -> None:
    got = await client.kv.get("k")
    got.value.decode()  # mypy: union-attr  # pyright: reportOptionalMemberAccess
    got.kv.value  # mypy: union-attr  # pyright: reportOptionalMemberAccess
    got.text.upper()  # mypy: union-attr  # pyright: reportOptionalMemberAccess
    got.kvs = ()  # mypy: misc  # pyright: reportAttributeAccessIssue
    got.kvs[0].value = b""  # mypy: misc  # pyright: reportGeneralTypeIssues
    got.as_dict()["k"]  # mypy: index  # pyright: reportArgumentType
    put = await client.kv.put("k", "v", prev_kv=True)
    put.value  # mypy: attr-defined  # pyright: reportAttributeAccessIssue
    put.prev_kv.value  # mypy: union-attr  # pyright: reportOptionalMemberAccess
    put.header["revision"]  # mypy: call-overload  # pyright: reportCallIssue


async def comparisons(client: Client) -> None:
    got = await client.kv.get("k")
    await client.kv.txn(compare=[Compare.version("k") == "x"])  # mypy: list-item  # pyright: reportArgumentType
    await client.kv.txn(compare=[Compare.value("k") == 1])  # mypy: list-item  # pyright: reportArgumentType
    await client.kv.txn(compare=[Compare.lease("k") != None])  # mypy: list-item  # pyright: reportArgumentType
    await client.kv.txn(compare=[Compare.create_revision("k") > "0"])  # mypy: operator  # pyright: reportOperatorIssue
    await client.kv.txn(compare=[Compare.mod_revision("k") >= 1])  # mypy: operator  # pyright: reportOperatorIssue
    await client.kv.txn(compare=[Compare.version("k")])  # mypy: list-item  # pyright: reportArgumentType
    await client.kv.txn(compare=Compare.missing("k"))  # mypy: arg-type  # pyright: reportArgumentType
    await client.kv.txn(compare=["k"])  # mypy: list-item  # pyright: reportArgumentType
    Compare.unchanged(got)  # mypy: arg-type  # pyright: reportArgumentType
    Compare.unchanged(got.kv)  # mypy: arg-type  # pyright: reportArgumentType


async def operations(client: Client) -> None:
    read, write = Op.get("k"), Op.put("k", "v")
    result = await client.kv.txn(success=[write, read])
    result[write].value  # mypy: attr-defined  # pyright: reportAttributeAccessIssue
    result[read].deleted  # mypy: attr-defined  # pyright: reportAttributeAccessIssue
    result["k"]  # mypy: index  # pyright: reportArgumentType
    result.responses[0].value  # mypy: attr-defined  # pyright: reportAttributeAccessIssue
    await client.kv.txn([Compare.missing("k")])  # mypy: call-arg  # pyright: reportCallIssue
    await client.kv.txn(success=write)  # mypy: arg-type  # pyright: reportArgumentType
    await client.kv.txn(compare=[write])  # mypy: list-item  # pyright: reportArgumentType
    Op.txn(success=[Compare.missing("k")])  # mypy: list-item  # pyright: reportArgumentType
    Op.get("k", timeout=1)  # mypy: call-arg  # pyright: reportCallIssue
    reads: list[Op[GetResponse]] = [write]  # mypy: list-item  # pyright: reportAssignmentType
    await client.kv.txn(success=reads)


async def events(client: Client) -> None:
    client.watch("k", only="PUT")  # mypy: arg-type  # pyright: reportArgumentType
    client.watch("k", start_revision="1")  # mypy: arg-type  # pyright: reportArgumentType
    client.watch("k", True)  # mypy: call-arg  # pyright: reportCallIssue
    watch = client.watch("k")
    for _ in watch:  # mypy: attr-defined  # pyright: reportGeneralTypeIssues
        pass
    async for event in watch:
        _, _ = event  # mypy: misc  # pyright: reportGeneralTypeIssues
        len(event)  # mypy: arg-type  # pyright: reportArgumentType
        event[0]  # mypy: index  # pyright: reportIndexIssue
        event.kv = KeyValue(b"", b"", 1, 1, 1, None)  # mypy: misc  # pyright: reportAttributeAccessIssue
        event.prev_kv.value  # mypy: union-attr  # pyright: reportOptionalMemberAccess
        if event.type == "PUT":  # mypy: comparison-overlap  # pyright: reportUnnecessaryComparison
            pass
    async for batch in watch.batches():
        batch.kv  # mypy: attr-defined  # pyright: reportAttributeAccessIssue
    watch.stale_for > 5  # mypy: operator  # pyright: reportOptionalOperand
    await watch  # mypy: misc  # pyright: reportGeneralTypeIssues


async def leases(client: Client) -> None:
    lease = await client.lease.grant("10")  # mypy: arg-type  # pyright: reportArgumentType
    await client.lease.revoke("7")  # mypy: arg-type  # pyright: reportArgumentType
    await client.lease.time_to_live(client)  # mypy: arg-type  # pyright: reportArgumentType
    client.lease.keep_alive(None)  # mypy: arg-type  # pyright: reportArgumentType
    lease.ttl = 20  # mypy: misc  # pyright: reportAttributeAccessIssue
    for _ in client.lease.keep_alive(lease):  # mypy: attr-defined  # pyright: reportGeneralTypeIssues
        pass


async def locks(client: Client) -> None:
    client.session(on_lost="stop")  # mypy: arg-type  # pyright: reportArgumentType
    client.lock("k", session=7)  # mypy: arg-type  # pyright: reportArgumentType
    client.lock("k", ttl="10")  # mypy: arg-type  # pyright: reportArgumentType
    with client.lock("k"):  # mypy: attr-defined  # pyright: reportGeneralTypeIssues
        pass
    try:
        async with client.lock("k", timeout=1) as lock:
            lock.revision = 7  # mypy: misc  # pyright: reportAttributeAccessIssue
            await client.kv.txn(compare=[lock.is_owner])  # mypy: list-item  # pyright: reportArgumentType
    except LockTimeoutError as error:
        error.holder.value  # mypy: union-attr  # pyright: reportOptionalMemberAccess


def clients() -> None:
    Client(2379)  # mypy: arg-type  # pyright: reportArgumentType
    Client("a", 5)  # mypy: call-arg  # pyright: reportCallIssue
    Client(timeout="5")  # mypy: arg-type  # pyright: reportArgumentType
    Client().stats().soonest_expiry + 1  # mypy: operator  # pyright: reportOptionalOperand
    with Client():  # mypy: attr-defined  # pyright: reportGeneralTypeIssues
        pass
