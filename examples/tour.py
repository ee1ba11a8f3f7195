"""A tour of aioetcd: does everything once, and prints what it does and what it sees.

    python examples/tour.py                                   on an etcd of its own
    python examples/tour.py --endpoints HOST:PORT[,HOST:PORT]  on a running one

It works below a prefix of its own, which it removes at the end, and ends with exit status 0 only
if it saw everything that it should.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
from anyio.abc import TaskStatus

from aioetcd import (
    Client,
    Compare,
    Event,
    EventType,
    GetResponse,
    Lock,
    LockLostError,
    LockNotAcquiredError,
    NoEndpointError,
    Op,
    PutResponse,
    SortOrder,
    SortTarget,
    Status,
    Watch,
)
from aioetcd.testing import EtcdNotFoundError, EtcdServer

NOBODY = "127.0.0.1:1"  # nothing listens there


class UnexpectedError(Exception):
    """etcd, or the client, did something else than this tour tells."""


def heading(text: str) -> None:
    print(f"\n== {text} ==")


def say(text: str) -> None:
    print(f"  {text}")


# ------------------------------------------------------------------------------------- Connect


async def show_connect(endpoints: list[str]) -> None:
    heading("Connect")

    # Nothing is sent before the first call, which takes the first endpoint that answers. `timeout`
    # is the deadline of each call, waiting for a connection and retries included.
    async with Client([NOBODY, *endpoints], timeout=5) as client:
        got = await client.kv.get("any", timeout=2)  # a call may have a deadline of its own
        say(f"endpoints {NOBODY}, {', '.join(endpoints)}:")
        say(f"  an answer at revision {got.header.revision}")

    async with Client(NOBODY) as client:
        try:
            await client.kv.get("any", timeout=0.5)
        except NoEndpointError as error:
            say(f"only {NOBODY}, for 0.5 s:")
            say(f"  {type(error).__name__}: {error.reasons[NOBODY]}")
            if error.maybe_applied:
                raise UnexpectedError("nothing was sent") from error
        else:
            raise UnexpectedError(f"somebody answers at {NOBODY}")


# ------------------------------------------------------------------------------------ Put, get


async def show_put(client: Client, prefix: str) -> None:
    heading("Put")
    key = prefix + "keys/k1"

    first = await client.kv.put(key, "one")  # str goes as UTF-8, bytes as they are
    say(f"put {key} = one")
    header = first.header
    say(f"  header: revision {header.revision}, cluster {header.cluster_id:x}")
    say(f"          member {header.member_id:x}, raft term {header.raft_term}")
    if 0 in header:
        raise UnexpectedError(f"a header without {header}")

    second = await client.kv.put(key, "two", prev_kv=True)
    previous = second.prev_kv
    if previous is None or previous.value != b"one":
        raise UnexpectedError(f"the previous value is not 'one': {previous}")
    if second.header.revision <= header.revision:
        raise UnexpectedError("the revision did not grow")
    say(f"put {key} = two, at revision {second.header.revision}")
    say(f"  before: {previous.value!r}, version {previous.version}")


async def show_get(client: Client, prefix: str) -> None:
    heading("Get")
    keys = prefix + "keys/"
    for number, value in ((2, "due"), (3, "trois"), (4, "vier")):
        await client.kv.put(f"{keys}k{number}", value)

    one = await client.kv.get(keys + "k1")
    if one.kv is None or one.value != b"two" or one.kv.version != 2:
        raise UnexpectedError(f"k1 is {one.kv}")
    say(f"k1: {one.value!r}, version {one.kv.version}, lease {one.kv.lease}")
    say(f"    created at revision {one.kv.create_revision}, changed at {one.kv.mod_revision}")

    missing = await client.kv.get(keys + "k9")
    if missing.kv is not None or missing.value is not None:
        raise UnexpectedError(f"there is a key that nobody put: {missing.kv}")
    say(f"k9: {missing.value}")

    counted = await client.kv.get(keys, prefix=True, count_only=True)
    if counted.count != 4 or counted.kvs:
        raise UnexpectedError(f"counted {counted.count} keys, got {len(counted.kvs)}")
    say(f"count only, below {keys}: {counted.count}")

    newest = await client.kv.get(
        keys, prefix=True, sort_target=SortTarget.MOD, sort_order=SortOrder.DESCEND, limit=3
    )
    found = [kv.value for kv in newest.kvs]
    if found != [b"vier", b"trois", b"due"] or newest.count != 4 or not newest.more:
        raise UnexpectedError(f"sorted and limited: {newest}")
    say(f"the 3 changed last: {found}, of {newest.count}, more: {newest.more}")


async def show_delete(client: Client, prefix: str) -> None:
    heading("Delete")
    keys = prefix + "keys/"

    one = await client.kv.delete(keys + "k1", prev_kv=True)
    if one.deleted != 1 or [kv.value for kv in one.prev_kvs] != [b"two"]:
        raise UnexpectedError(f"deleted {one}")
    say(f"k1: {one.deleted} deleted, it was {one.prev_kvs[0].value!r}")

    rest = await client.kv.delete(keys, prefix=True, prev_kv=True)
    values = [kv.value for kv in rest.prev_kvs]
    if rest.deleted != 3 or values != [b"due", b"trois", b"vier"]:
        raise UnexpectedError(f"deleted {rest}")
    say(f"below {keys}: {rest.deleted} deleted, they were {values}")

    again = await client.kv.delete(keys, prefix=True)
    if again.deleted != 0:
        raise UnexpectedError(f"deleted {again}")
    say(f"once more: {again.deleted} deleted")


# ------------------------------------------------------------------------- Many keys, Namespace


async def show_many(client: Client, prefix: str) -> None:
    heading("Many keys")
    keys = prefix + "many/"
    put = await client.kv.put_many({f"{keys}{number:04}": str(number) for number in range(1000)})
    say(f"put {len(put.revisions)} keys in {len(set(put.revisions.values()))} round trips")

    read = 0
    async for kv in client.kv.scan(keys, prefix=True):
        if kv.text != str(read):
            raise UnexpectedError(f"key number {read} is {kv}")
        read += 1
    say(f"scanned {read} keys, at one revision")

    found = await client.kv.get_many([keys + "0007", keys + "none"])
    values = [kv and kv.value for kv in found.kvs]
    if read != 1000 or values != [b"7", None]:
        raise UnexpectedError(f"scanned {read} keys, got {values}")
    say(f"got two of them: {values}")


async def show_namespace(client: Client, prefix: str) -> None:
    heading("Namespace")
    below = client.namespace(prefix + "tenant/")
    await below.kv.put("name", "Ada")
    inside = (await below.kv.get("", prefix=True)).as_dict()
    outside = (await client.kv.get(prefix + "tenant/", prefix=True)).as_dict()
    if inside != {b"name": b"Ada"} or [*outside] != [f"{prefix}tenant/name".encode()]:
        raise UnexpectedError(f"inside {inside}, outside {outside}")
    say(f"inside: {inside}")
    say(f"outside: {outside}")


# --------------------------------------------------------------------------------------- Lease


async def show_lease(client: Client, prefix: str) -> None:
    heading("Lease")
    key = prefix + "leased"

    granted = await client.lease.grant(2)
    await client.kv.put(key, "here for as long as the lease", lease=granted.id)
    say(f"granted lease {granted.id:x} of {granted.ttl} s, put {key} with it")
    left = await client.lease.time_to_live(granted.id, keys=True)
    if left.keys != (key.encode(),) or left.granted_ttl != granted.ttl or left.ttl > granted.ttl:
        raise UnexpectedError(f"time to live: {left}")
    say(f"time to live: {left.ttl} s of {left.granted_ttl}, keys {list(left.keys)}")

    limit = granted.ttl + 1.5
    renewals = 0

    async def renew() -> None:
        nonlocal renewals
        with anyio.move_on_after(limit):
            async for renewal in client.lease.keep_alive(granted.id):
                renewals += 1
                say(f"  renewed: {renewal.ttl} s from now")

    say(f"keep it alive in the background, for {limit} s:")
    started = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(renew)
    got = await client.kv.get(key)
    passed = anyio.current_time() - started
    if got.kv is None or got.kv.lease != granted.id or renewals < 2 or passed < granted.ttl:
        raise UnexpectedError(f"after {passed:.1f} s and {renewals} renewals the key is {got.kv}")
    say(f"after {passed:.1f} s and {renewals} renewals the key is there")

    with anyio.fail_after(15):  # the server takes its time to notice, at the most some seconds
        while True:
            got = await client.kv.get(key)
            if got.kv is None:
                break
            await anyio.sleep(0.1)
    passed = anyio.current_time() - started - passed
    say(f"no longer renewed: the key was gone {passed:.1f} s later")


# --------------------------------------------------------------------------------------- Watch


def describe(event: Event) -> str:
    kv = event.kv
    if event.type is EventType.DELETE:  # of a deleted key there is only the name
        return f"DELETE         mod revision {kv.mod_revision}"
    kind = "create" if event.is_create else "modify"
    return (
        f"PUT    {kind}  mod revision {kv.mod_revision}, created at {kv.create_revision}, "
        f"version {kv.version}: {kv.value!r}"
    )


async def show_watch(client: Client, prefix: str) -> None:
    heading("Watch")
    key = prefix + "watched"
    rounds = 10

    async def change_then_close(watch: Watch) -> None:
        for number in range(rounds):
            await client.kv.put(key, f"value {number}")
            await client.kv.delete(key)
        await all_seen.wait()
        say("the other task closes the watch")
        await watch.aclose()

    await client.kv.put(key, "at first")
    got = await client.kv.get(key)
    start_revision = got.header.revision + 1  # what comes after this get: nothing is missed
    say(f"{key} is {got.value!r} at revision {got.header.revision}: watch from {start_revision}")
    events: list[Event] = []
    all_seen = anyio.Event()
    with anyio.fail_after(10):
        async with (
            client.watch(key, start_revision=start_revision) as watch,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(change_then_close, watch)
            async for event in watch:
                say(f"  {describe(event)}")
                events.append(event)
                if len(events) == 2 * rounds:
                    all_seen.set()
            say("and so the loop ends")

    kinds = ["create" if e.is_create else "modify" if e.is_modify else "delete" for e in events]
    if kinds != ["modify", "delete"] + ["create", "delete"] * (rounds - 1):
        raise UnexpectedError(f"saw {kinds}")
    revisions = [e.kv.mod_revision for e in events]
    if revisions != sorted(set(revisions)) or revisions[0] < start_revision:
        raise UnexpectedError(f"saw the revisions {revisions}")
    say(", ".join(f"{kind}: {count}" for kind, count in Counter(kinds).items()))


# --------------------------------------------------------------------------------- Transaction


async def show_transaction(client: Client, prefix: str) -> None:
    heading("Transaction")
    key = prefix + "leader"

    async with client.session(ttl=5) as session:  # a lease that is kept alive for this block
        for name in ("alice", "bob"):
            result = await client.kv.txn(
                compare=[Compare.create_revision(key) == 0],  # it was never created
                success=[Op.put(key, name, lease=session.lease_id)],
                failure=[Op.get(key)],
            )
            match result.succeeded, *result.responses:
                case True, PutResponse() if name == "alice":
                    say(f"{name}: succeeded, put {key} at revision {result.header.revision}")
                case False, GetResponse(value=b"alice", kv=kv) if name == "bob" and kv is not None:
                    say(f"{name}: failed, it is {kv.value!r} since revision {kv.create_revision}")
                case _:
                    raise UnexpectedError(f"{name}: {result}")

    if (await client.kv.get(key)).kv is not None:
        raise UnexpectedError("the session's key is there after its end")
    say("the session is over, and its key is gone")


# ---------------------------------------------------------------------------------------- Lock


async def hold(client: Client, name: str, *, task_status: TaskStatus[Lock]) -> None:
    try:
        async with client.lock(name, ttl=5, value="host-1") as lock:
            say(f"first: inside, with the fencing token {lock.revision}")
            task_status.started(lock)
            await anyio.sleep_forever()
    except LockLostError as error:
        say(f"first: body cancelled, {type(error).__name__}: {error}")
    else:
        raise UnexpectedError("the first was not told")


async def try_at_once(client: Client, name: str) -> None:
    try:
        async with client.lock(name, blocking=False):
            raise UnexpectedError("two are inside")
    except LockNotAcquiredError as error:
        say(f"second: refused at once, {error.holder.value!r} is inside")
        if error.holder.value != b"host-1":
            raise UnexpectedError(f"the holder is {error.holder}") from error


async def wait_turn(client: Client, name: str, first: Lock) -> None:
    say("third: waits its turn")
    async with client.lock(name, ttl=5, value="host-3", timeout=10) as lock:
        say(f"third: inside, with the fencing token {lock.revision}")
        if lock.revision <= first.revision:
            raise UnexpectedError("the fencing token did not grow")
        # The lock guards what is written only where each write asks for it.
        for who, owner in (("first", first), ("third", lock)):
            result = await client.kv.txn(
                compare=[owner.is_owner()], success=[Op.put(f"{name}-result", who)]
            )
            say(f"  a write that needs the {who}'s lock: {result.succeeded}")
            if result.succeeded is not (owner is lock):
                raise UnexpectedError("somebody without the lock wrote, or its owner could not")


async def show_lock(endpoints: list[str], prefix: str) -> None:
    heading("Lock")
    name = prefix + "nightly"

    async with (
        Client(endpoints) as one,
        Client(endpoints) as two,
        Client(endpoints) as three,
        anyio.create_task_group() as tasks,
    ):
        first: Lock = await tasks.start(hold, one, name)
        await try_at_once(two, name)
        tasks.start_soon(wait_turn, three, name, first)
        while True:
            queue = await two.kv.get(name + "/", prefix=True, count_only=True)
            if queue.count == 2:  # the third's key is there: it stands in the queue
                break
            await anyio.sleep(0.01)
        say("second: revokes the first's lease")
        await two.lease.revoke(first.lease_id)


# ------------------------------------------------------------------------------------- Cluster


async def show_cluster(client: Client) -> None:
    heading("Cluster")
    say(f"a quorum answered within {await client.ping() * 1000:.1f} ms")
    for member in (await client.cluster.members()).members:
        say(f"member {member.id:x}: {member.name}, {', '.join(member.client_urls)}")
    for endpoint, status in (await client.maintenance.statuses()).items():
        if not isinstance(status, Status):
            raise UnexpectedError(f"{endpoint} does not tell how it is: {status}")
        leads = "leads" if status.is_leader else "follows"
        say(f"{endpoint}: etcd {status.version}, {status.db_size} bytes, {leads}")

    with TemporaryDirectory() as folder:
        size = await client.maintenance.snapshot_to(Path(folder, "etcd.db"))
    say(f"a snapshot has {size} bytes, whole and verified")


# ---------------------------------------------------------------------------------------------


async def tour(endpoints: list[str] | None) -> None:
    async with AsyncExitStack() as stack:
        if endpoints is None:
            server = await stack.enter_async_context(EtcdServer())
            print(f"started etcd {server.version} at {server.endpoint}")
            endpoints = [server.endpoint]
        stack.enter_context(anyio.fail_after(60))
        prefix = f"/aioetcd-tour/{secrets.token_hex(4)}/"
        async with Client(endpoints, timeout=5) as client:
            await show_connect(endpoints)
            try:
                await show_put(client, prefix)
                await show_get(client, prefix)
                await show_delete(client, prefix)
                await show_many(client, prefix)
                await show_namespace(client, prefix)
                await show_lease(client, prefix)
                await show_watch(client, prefix)
                await show_transaction(client, prefix)
                await show_lock(endpoints, prefix)
                await show_cluster(client)
            finally:
                with anyio.move_on_after(5, shield=True):
                    await client.kv.delete(prefix, prefix=True)
    print("\nEverything was as it should be.")


def main() -> None:
    parser = argparse.ArgumentParser(description="Show what aioetcd does, on a real etcd.")
    parser.add_argument(
        "--endpoints",
        metavar="HOST:PORT[,HOST:PORT...]",
        type=lambda text: text.split(","),
        help="use these instead of starting an etcd",
    )
    arguments = parser.parse_args()
    try:
        asyncio.run(tour(arguments.endpoints))
    except (EtcdNotFoundError, NoEndpointError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
