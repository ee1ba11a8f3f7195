"""pytest fixtures: running etcds, faults before them, and a client connected.

Loaded by itself where aioetcd is installed. It is no part of the package `aioetcd`, because
importing that loads gRPC: the fixtures that need it import it, so that a run without them does not
pay for it. The async ones work with pytest-asyncio in auto and strict mode, and without it with
anyio's own plugin.

- `etcd_server`: one etcd for the whole run; under pytest-xdist, for each worker.
- `etcd_client`: a client of it, whose store is empty at first: no keys, no leases.
- `etcd_proxy`: a `FaultProxy` before it.
- `etcd_own_server`, `etcd_cluster`: the test's own, which it may kill, pause and isolate.

The etcd and more arguments for it come from pytest's configuration (``etcd_binary``,
``etcd_args``), and for a test's own also from its marker. A test's own are quick
(`aioetcd.testing.EtcdServer`) unless it says otherwise, for they start anew for each test;
`etcd_server` starts once and has etcd's own timing, so that its shortest lease is production's::

    @pytest.mark.etcd(args=["--quota-backend-bytes=1000000"], members=5, quick=False)
    async def test_full(etcd_cluster): ...

A client belongs to the event loop of its first use, and the async fixtures are made for each test.
Tests of one loop for the whole run use them where that loop runs fixtures as well: with
pytest-asyncio (0.26 and later) by its configuration, both lines::

    asyncio_default_fixture_loop_scope = "session"
    asyncio_default_test_loop_scope = "session"

With anyio's plugin a test and its fixtures share a loop always; a fixture ``anyio_backend`` with
``scope="session"`` lets fixtures of the session be async. A client for the whole run is a fixture
of yours (with pytest-asyncio, of ``loop_scope="session"``), for `etcd_server` knows no loop::

    @pytest_asyncio.fixture(scope="session", loop_scope="session")
    async def client(etcd_server):
        async with Client(etcd_server.endpoint) as client:
            yield client

When a test fails, the end of the log of each etcd that it used is in the report;
``--etcd-keep=FOLDER`` keeps the data and the whole logs of its own ones there.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator

    from aioetcd import Client
    from aioetcd.testing.cluster import EtcdCluster
    from aioetcd.testing.proxy import FaultProxy
    from aioetcd.testing.server import EtcdServer


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the configuration say which etcd, and how it is started."""
    parser.addini("etcd_binary", "the etcd program of the etcd fixtures")
    parser.addini("etcd_args", "more arguments for it, one a line", type="linelist", default=[])
    parser.getgroup("etcd").addoption(
        "--etcd-keep",
        metavar="FOLDER",
        help="keep the data and logs of a failed test's own etcds in FOLDER",
    )


@pytest.fixture(scope="session")
def etcd_server(pytestconfig: pytest.Config) -> Iterator[EtcdServer]:
    """A real etcd for the whole run, or for a worker of pytest-xdist, without TLS and auth.

    See `aioetcd.testing.EtcdServer`. The tests share it and its data:
    ``await etcd_server.clear()`` empties it.
    """
    from aioetcd.testing.server import EtcdServer

    server = EtcdServer(_binary(pytestconfig), args=pytestconfig.getini("etcd_args"))
    try:
        _run(server.start)
        yield server
    finally:
        _run(server.aclose)


def pytest_configure(config: pytest.Config) -> None:
    """Offer the async fixtures by the plugin that runs them here."""
    config.addinivalue_line(
        "markers",
        "etcd(args=(), binary=None, members=3, quick=True): how etcd_own_server and etcd_cluster "
        "are started",
    )
    fixtures = ModuleType(f"{__name__}.async_fixtures")
    decorate: Callable[..., Any] = pytest.fixture
    if config.pluginmanager.hasplugin("asyncio"):
        import pytest_asyncio

        decorate = pytest_asyncio.fixture
    for function in (_etcd_client, _etcd_proxy, _etcd_own_server, _etcd_cluster):
        name = function.__name__.removeprefix("_")
        fixtures.__dict__[name] = decorate(function, name=name)
    config.pluginmanager.register(fixtures, fixtures.__name__)


async def _etcd_client(etcd_server: EtcdServer) -> AsyncIterator[Client]:
    """A client of `etcd_server`, closed after the test.

    The store is empty at first: no keys, no leases, whoever left them. What fills it for a test
    is therefore a fixture that asks for this one. The server is without TLS and auth: where
    ``etcd_args`` or a test before gave it one of them, the test ends with an error that says so.
    """
    from aioetcd import Client

    await _empty(etcd_server)
    async with Client(etcd_server.endpoint) as client:
        yield client


async def _etcd_proxy(etcd_server: EtcdServer) -> AsyncIterator[FaultProxy]:
    """A network before `etcd_server` that fails on demand. See `aioetcd.testing.FaultProxy`."""
    from aioetcd.testing.proxy import FaultProxy

    async with FaultProxy(etcd_server.endpoint) as proxy:
        yield proxy


async def _etcd_own_server(request: pytest.FixtureRequest) -> AsyncIterator[EtcdServer]:
    """An etcd of the test's own, which it may stop, kill and pause."""
    from aioetcd.testing.server import EtcdServer

    marked = _marked(request)
    marked.pop("members", None)
    async with EtcdServer(marked.pop("binary"), **marked) as server:
        yield server
        await _keep(request, [server])


async def _etcd_cluster(request: pytest.FixtureRequest) -> AsyncIterator[EtcdCluster]:
    """A cluster of the test's own. See `aioetcd.testing.EtcdCluster`."""
    from aioetcd.testing.cluster import EtcdCluster

    marked = _marked(request)
    async with EtcdCluster(marked.pop("members", 3), **marked) as cluster:
        yield cluster
        await _keep(request, cluster.members)


async def _empty(server: EtcdServer) -> None:
    """Empty the store, or say why that cannot be."""
    if server.client_url.startswith("https"):
        raise pytest.UsageError(
            "etcd_client speaks without TLS, and etcd_args give etcd a certificate: make a Client "
            "of etcd_server.endpoint yourself"
        )
    try:
        await server.clear()
    except RuntimeError as exc:  # it answered, and refused
        raise pytest.UsageError(
            f"etcd_client begins with an empty store, and {server!r} lets nobody empty it; where "
            f"a test turned auth on, give it an etcd_own_server: {exc}"
        ) from exc


_MARKED = {"args", "binary", "members", "quick"}


def _binary(config: pytest.Config) -> str | None:
    binary: str = config.getini("etcd_binary")
    return binary or None


def _marked(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Give what the configuration and the nearest marker say of a server."""
    marker = request.node.get_closest_marker("etcd")
    marked: dict[str, Any] = {} if marker is None else dict(marker.kwargs)
    if marker is not None and (marker.args or marked.keys() - _MARKED):
        raise pytest.UsageError("the marker etcd takes args=, binary=, members= and quick=")
    marked["args"] = [*request.config.getini("etcd_args"), *marked.get("args", ())]
    marked.setdefault("binary", _binary(request.config))
    marked.setdefault("quick", True)
    return marked


# --- what failed tests leave for their reader -----------------------------------------------

_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the end of the logs of a failed test's etcds into its report."""
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
        for server in _servers(item):
            try:
                tail = server.log_tail()
            except (OSError, RuntimeError):  # it never started
                continue
            report.sections.append((f"etcd's log ({server.name})", tail))
    return report


def _servers(item: pytest.Item) -> list[EtcdServer]:
    values = getattr(item, "funcargs", {})
    found = [values[name] for name in ("etcd_server", "etcd_own_server") if name in values]
    return [*found, *(values["etcd_cluster"].members if "etcd_cluster" in values else ())]


async def _keep(request: pytest.FixtureRequest, servers: list[EtcdServer]) -> None:
    """Copy what a failed test's servers have on disk, where that is asked for."""
    folder = request.config.getoption("--etcd-keep")
    if folder is None or not request.node.stash.get(_FAILED, False):
        return
    for server in servers:  # first all of them: what one misses, the others need not write down
        await server.kill()
    import re
    import shutil
    from pathlib import Path

    test = Path(folder) / re.sub(r"[^\w.\[\]-]+", "-", request.node.nodeid)
    shutil.rmtree(test, ignore_errors=True)  # of a run before
    for server in servers:
        try:
            data, log = server.data_dir, server.log_path
        except RuntimeError:  # the test has closed it
            continue
        shutil.copytree(data, test / server.name / "data")
        shutil.copy(log, test / server.name / "log")


def _run(function: Callable[[], Awaitable[None]]) -> None:
    """Run to its end in a loop of a thread of its own: this thread may have a loop already."""
    from concurrent.futures import ThreadPoolExecutor

    import anyio

    with ThreadPoolExecutor(1, thread_name_prefix="aioetcd-testing") as pool:
        pool.submit(anyio.run, function).result()
