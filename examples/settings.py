"""A FastAPI app whose settings follow a prefix of etcd.

    python examples/settings.py                     some requests, on an etcd of its own
    ETCD=HOST:PORT uvicorn examples.settings:app    as a service

Requests read the settings from memory; a change is seen as soon as etcd tells it. While etcd cannot
be reached the app goes on with what it has, and ``/ready`` tells a balancer for how long it may
have been out of date. Needs fastapi, and httpx for the requests or uvicorn for the service.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from fastapi import FastAPI, HTTPException

from aioetcd import (
    Batch,
    Client,
    CompactedError,
    DeadlineExceededError,
    EtcdError,
    EventType,
    TooManyRequestsError,
    UnavailableError,
    Watch,
)
from aioetcd.testing import EtcdNotFoundError, EtcdServer

PREFIX = "/settings/"
TOO_OLD = 30.0  # seconds without etcd after which the app says that it is not ready


@dataclass
class Settings:
    """What etcd has below the prefix, as far as this process knows."""

    values: dict[str, str] = field(default_factory=dict)
    revision: int = 0
    watch: Watch | None = None

    @property
    def stale_for(self) -> float:
        """Give for how many seconds changes may have been missed, so far."""
        return (self.watch and self.watch.stale_for) or 0.0

    async def read(self, client: Client) -> None:
        got = await client.kv.get(PREFIX, prefix=True)
        # `values` is always replaced as a whole, so that no request sees half of a change.
        self.values = {name_of(kv.key): kv.text for kv in got.kvs}
        self.revision = got.header.revision

    async def follow(self, client: Client) -> None:
        """Follow each change after what was read, for ever."""
        while True:
            try:
                async with client.watch(
                    PREFIX, prefix=True, start_revision=self.revision + 1, timeout=None
                ) as self.watch:
                    async for batch in self.watch.batches():
                        self.apply(batch)
            except CompactedError:  # it was away for longer than the history is kept
                while True:
                    try:
                        await self.read(client)
                        break
                    except (UnavailableError, DeadlineExceededError, TooManyRequestsError):
                        await asyncio.sleep(1)

    def apply(self, batch: Batch) -> None:
        values = dict(self.values)
        for event in batch.events:
            if event.type is EventType.DELETE:
                values.pop(name_of(event.kv.key), None)
            else:
                values[name_of(event.kv.key)] = event.kv.text
        self.values, self.revision = values, batch.revision


def name_of(key: bytes) -> str:
    return key.decode().removeprefix(PREFIX)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
    async with Client(os.environ.get("ETCD", "127.0.0.1:2379")) as client:
        app.state.settings = Settings()
        await app.state.settings.read(client)
        app.state.following = asyncio.create_task(app.state.settings.follow(client))
        try:
            yield
        finally:
            app.state.following.cancel()
            await asyncio.wait([app.state.following])


app = FastAPI(lifespan=lifespan)


@app.get("/settings")
async def settings() -> dict[str, str]:
    values: dict[str, str] = app.state.settings.values
    return values


@app.get("/ready")
async def ready() -> dict[str, float]:
    current: Settings = app.state.settings
    if app.state.following.done():  # as for a lack of permission
        raise HTTPException(503, f"settings are not followed: {app.state.following.exception()!r}")
    if current.stale_for > TOO_OLD:
        raise HTTPException(503, f"no news of etcd for {current.stale_for:.0f} s")
    return {"revision": current.revision, "stale_for": current.stale_for}


async def demonstrate() -> None:
    import httpx

    async with EtcdServer() as server, Client(server.endpoint) as client:
        os.environ["ETCD"] = server.endpoint
        await client.kv.put(f"{PREFIX}greeting", "hello")
        transport = httpx.ASGITransport(app)
        async with (
            lifespan(app),
            httpx.AsyncClient(transport=transport, base_url="http://app") as http,
        ):
            print((await http.get("/settings")).json())
            put = await client.kv.put(f"{PREFIX}greeting", "good morning")
            while (await http.get("/ready")).json()["revision"] < put.header.revision:
                await asyncio.sleep(0.01)
            print((await http.get("/settings")).json())
            await server.restart()
            put = await client.kv.put(f"{PREFIX}colour", "blue")
            while (await http.get("/ready")).json()["revision"] < put.header.revision:
                await asyncio.sleep(0.01)
            print((await http.get("/settings")).json(), "after a restart of etcd")


if __name__ == "__main__":
    try:
        asyncio.run(demonstrate())
    except (EtcdNotFoundError, EtcdError) as error:
        sys.exit(str(error))
