"""Fixtures of the suite."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from aioetcd._transport import picker
from aioetcd.testing import EtcdServer, FaultProxy, find_binary
from tests.servers import SERVER

if TYPE_CHECKING:
    from aioetcd import Client
    from aioetcd._transport.calls import Calls
    from aioetcd.namespace import Shared

pytest_plugins = ("tests.tiers", "tests.leftovers")

# An example that takes long is not slow: the machine may just have had no core for this process.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the whole suite run on another event loop."""
    parser.addoption(
        "--uvloop",
        action="store_true",
        default=os.environ.get("AIOETCD_TEST_LOOP") == "uvloop",
        help="run the tests on uvloop (also: AIOETCD_TEST_LOOP=uvloop)",
    )
    parser.addoption(
        "--namespaced",
        action="store_true",
        help="have each client of the tests see the keys below a prefix alone",
    )
    parser.addoption(
        "--batched",
        action="store_true",
        help="have the calls of each client of the tests share round trips",
    )
    parser.addoption(
        "--write-tables",
        action="store_true",
        help="write what the tests see of this etcd into the documentation's tables (without -n)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Use the event loop that was asked for."""
    if config.getoption("--uvloop"):
        config.pluginmanager.register(_Uvloop(), "uvloop")
    from aioetcd._prefixed import Prefixed
    from aioetcd.kv._batched import Batched

    if config.getoption("--namespaced"):
        _ask_through(lambda calls: Prefixed(calls, b"/ns\xff"))
    if config.getoption("--batched"):
        _ask_through(Batched)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what a client below a prefix cannot see, and what is not so in a batch."""
    for option, name in (("--namespaced", "outside"), ("--batched", "unbatched")):
        for item in items if config.getoption(option) else ():
            if (marker := item.get_closest_marker(name)) is not None:
                item.add_marker(pytest.mark.skip(reason=f"{name}: {marker.args[0]}"))


def _ask_through(decorate: Callable[[Calls], Calls]) -> None:
    """Have clients call through something that stands before the transport."""
    from aioetcd import Client, Namespace

    init = Namespace.__init__

    def decorated(self: Namespace, shared: Shared, calls: Calls) -> None:
        init(self, shared, decorate(calls) if isinstance(self, Client) else calls)

    Namespace.__init__ = decorated  # type: ignore[method-assign]


class _Uvloop:
    def pytest_asyncio_loop_factories(
        self,
    ) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
        import uvloop

        return {"uvloop": uvloop.new_event_loop}


def pytest_report_header(config: pytest.Config) -> str:
    """Say what the tests run on."""
    loop = "uvloop" if config.getoption("--uvloop") else "asyncio"
    try:
        return f"etcd: {EtcdServer().version} ({find_binary()}), loop: {loop}"
    except FileNotFoundError as exc:
        return f"etcd: {exc}, loop: {loop}"


class InOrder(random.Random):
    """Gives ever greater numbers."""

    def __init__(self) -> None:
        super().__init__()
        self._last = 0.0

    def random(self) -> float:
        """Give the next one."""
        self._last += 1
        return self._last


@pytest.fixture(autouse=True)
def members_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have endpoints tried in the order of the list: chance would take another one each time."""
    monkeypatch.setattr(picker, "_chance", InOrder())


@pytest.fixture(scope="session")
def server(etcd_server: EtcdServer, pytestconfig: pytest.Config) -> EtcdServer:
    """The session's etcd. Do not stop, kill or pause it: a test that does has one of its own."""
    pytestconfig.stash[SERVER] = etcd_server
    return etcd_server


@pytest.fixture
async def client(server: EtcdServer) -> AsyncIterator[Client]:
    """A client of the session's etcd, which has no keys and no leases at first."""
    from aioetcd import Client

    await server.clear()
    async with Client(server.endpoint) as client:
        yield client


@pytest.fixture
async def direct(server: EtcdServer) -> AsyncIterator[Client]:
    """A client that no fault reaches, of the session's etcd, which has no keys at first."""
    from aioetcd import Client

    await server.clear()
    async with Client(server.endpoint) as client:
        yield client


@pytest.fixture
async def proxy(server: EtcdServer) -> AsyncIterator[FaultProxy]:
    """A network between the client and the session's etcd, which has no keys at first."""
    await server.clear()
    async with FaultProxy(server.endpoint) as proxy:
        yield proxy


@pytest.fixture
async def own_server() -> AsyncIterator[EtcdServer]:
    """An etcd that a test may kill."""
    async with EtcdServer(quick=True) as server:
        yield server


@pytest.fixture
def rng() -> random.Random:
    """Chance, and its seed in the report of a failure."""
    seed = int(os.environ.get("AIOETCD_TEST_SEED", random.randrange(2**32)))
    print("AIOETCD_TEST_SEED", seed)  # noqa: T201
    return random.Random(seed)
