"""Holds a lease and is stopped from outside; says what it saw as JSON lines.

    python paused_client.py ENDPOINT TTL

Each line has the monotonic time in nanoseconds. It says `held` when it keeps the lease alive,
`acted` before each thing that only the lease's owner may do, and `lost` when it was told the loss.
It ends by itself after the loss.
"""

from __future__ import annotations

import json
import sys
import time

import anyio

from aioetcd import Client, EtcdError

ACTION_EVERY = 0.05


def say(what: str, **more: object) -> None:
    print(json.dumps({"what": what, "at_ns": time.monotonic_ns(), **more}), flush=True)  # noqa: T201


async def main(endpoint: str, ttl: int) -> None:
    async with Client(endpoint) as client:
        sent_ns = time.monotonic_ns()
        lease = await client.lease.grant(ttl)
        await client.kv.put(f"lease/{lease.id}", "", lease=lease.id)

        def on_lost(error: EtcdError) -> None:
            say("lost", error=type(error).__name__)
            tasks.cancel_scope.cancel()

        async def act() -> None:
            while True:
                if not keep_alive.expires_in:
                    say("refused")
                    return
                say("acted")
                await anyio.sleep(ACTION_EVERY)

        keep_alive = client.lease._keep(lease.id, on_lost)
        async with keep_alive, anyio.create_task_group() as tasks:
            async for renewal in keep_alive:
                say("held", lease_id=lease.id, ttl=renewal.ttl, sent_ns=sent_ns)
                break
            tasks.start_soon(act)
            await anyio.sleep_forever()


anyio.run(main, sys.argv[1], int(sys.argv[2]))
