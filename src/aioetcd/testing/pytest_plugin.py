"""pytest fixtures: a running etcd, and a client connected to it.

Loaded by itself where aioetcd is installed; what is heavy is imported by the fixtures that need
it. `etcd_client` works with pytest-asyncio in auto and strict mode, and without it with anyio's
own plugin.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from aioetcd import Client
    from aioetcd.testing.server import EtcdServer


@pytest.fixture(scope="session")
def etcd_server() -> Iterator[EtcdServer]:
    """A real etcd for the whole run, without TLS and auth. See `aioetcd.testing.EtcdServer`.

    The tests share it and its data: ``await etcd_server.clear()`` empties it.
    """
    from aioetcd.testing.server import EtcdServer

    server = EtcdServer()
    _run(server.start)
    try:
        yield server
    finally:
        _run(server.aclose)


def pytest_configure(config: pytest.Config) -> None:
    """Offer `etcd_client` by the plugin that runs async fixtures here."""
    fixtures = ModuleType("aioetcd.testing.async_fixtures")
    if config.pluginmanager.hasplugin("asyncio"):
        import pytest_asyncio

        fixtures.__dict__["etcd_client"] = pytest_asyncio.fixture(_etcd_client, name="etcd_client")
    else:
        fixtures.__dict__["etcd_client"] = pytest.fixture(_etcd_client, name="etcd_client")
    config.pluginmanager.register(fixtures, fixtures.__name__)


async def _etcd_client(etcd_server: EtcdServer) -> AsyncIterator[Client]:
    """A client of `etcd_server`, closed after the test."""
    from aioetcd import Client

    async with Client(etcd_server.endpoint) as client:
        yield client


def _run(function: Callable[[], Awaitable[None]]) -> None:
    """Run to its end in a loop of a thread of its own: this thread may have a loop already."""
    import anyio

    with ThreadPoolExecutor(1, thread_name_prefix="aioetcd-testing") as pool:
        pool.submit(anyio.run, function).result()
