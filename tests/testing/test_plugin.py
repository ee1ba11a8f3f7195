"""The pytest plugin loads by itself, gives a server and a client, and costs nothing unused."""

from __future__ import annotations

import sys

import pytest

pytestmark = pytest.mark.fault("each starts an interpreter and an etcd")

STRICT = """
import pytest

@pytest.mark.asyncio
async def test_client(etcd_client):
    await etcd_client.kv.put("a", "1")
    assert (await etcd_client.kv.get("a")).value == b"1"
"""

AUTO = STRICT.replace("@pytest.mark.asyncio\n", "")

ANYIO = STRICT.replace("@pytest.mark.asyncio", "@pytest.mark.anyio") + (
    """
@pytest.fixture
def anyio_backend():
    return "asyncio"
"""
)

SERVER = """
import anyio

def test_running(etcd_server):
    assert etcd_server.is_running
    assert anyio.run(etcd_server.is_healthy)

def test_same_server(etcd_server, record_property):
    assert etcd_server.is_running

async def helper(etcd_server):
    await etcd_server.clear()

def test_loops(etcd_server):
    anyio.run(helper, etcd_server)
    anyio.run(helper, etcd_server)
"""


def run(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    if "no:asyncio" not in args:
        args = ("-o", "asyncio_default_fixture_loop_scope=function", *args)
    return pytester.runpytest_subprocess("-W", "error", "-p", "no:cacheprovider", *args)


@pytest.mark.parametrize(
    ("test", "options"),
    [
        pytest.param(STRICT, ("--asyncio-mode=strict",), id="strict"),
        pytest.param(AUTO, ("--asyncio-mode=auto",), id="auto"),
        pytest.param(ANYIO, ("-p", "no:asyncio"), id="anyio"),
        pytest.param(ANYIO, (), id="anyio-beside-asyncio"),
    ],
)
def test_client_fixture(pytester: pytest.Pytester, test: str, options: tuple[str, ...]) -> None:
    """`etcd_client` is connected under every plugin that runs coroutines."""
    pytester.makepyfile(test)
    run(pytester, *options).assert_outcomes(passed=1)


def test_server_fixture(pytester: pytest.Pytester) -> None:
    """`etcd_server` runs for tests of any loop and of none."""
    pytester.makepyfile(SERVER)
    run(pytester, "--asyncio-mode=strict").assert_outcomes(passed=3)


def test_server_fixture_inside_a_running_loop(pytester: pytest.Pytester) -> None:
    """The server can be asked for while a loop runs in this thread."""
    pytester.makepyfile(
        """
        async def test_late(request):
            server = request.getfixturevalue("etcd_server")
            assert await server.is_healthy()
        """
    )
    run(pytester, "--asyncio-mode=auto").assert_outcomes(passed=1)


EMPTY = """
import pytest

@pytest.mark.parametrize("number", range(2))
async def test_leaves(etcd_client, etcd_server, number):
    assert (await etcd_client.kv.get("", prefix=True)).count == 0
    assert (await etcd_server.gateway("lease/leases")).get("leases", []) == []
    lease = await etcd_client.lease.grant(60)
    await etcd_client.kv.put("a", "1", lease=lease.id)
    await etcd_client.kv.put("\\0", "1")
"""


def test_client_fixture_begins_with_an_empty_store(pytester: pytest.Pytester) -> None:
    """What a test left, keys and leases, the next one with `etcd_client` does not find."""
    pytester.makepyfile(EMPTY)
    run(pytester, "--asyncio-mode=auto").assert_outcomes(passed=2)


def test_client_fixture_and_tls(pytester: pytest.Pytester) -> None:
    """Where the configuration gives the server TLS, `etcd_client` says that it has none."""
    pytester.makeini("[pytest]\netcd_args = --auto-tls\nasyncio_mode = auto\n")
    pytester.makepyfile("async def test_it(etcd_client): pass")
    result = run(pytester)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*UsageError: etcd_client speaks without TLS, and etcd_args*"])


def test_client_fixture_and_auth(pytester: pytest.Pytester) -> None:
    """Where a test left auth on, `etcd_client` says that it cannot empty the store."""
    pytester.makepyfile(
        """
        async def test_leaves_auth_on(etcd_server):
            await etcd_server.gateway("auth/user/add", {"name": "root", "password": "p"})
            await etcd_server.gateway("auth/role/add", {"name": "root"})
            await etcd_server.gateway("auth/user/grant", {"user": "root", "role": "root"})
            await etcd_server.gateway("auth/enable")

        async def test_next(etcd_client):
            pass
        """
    )
    result = run(pytester, "--asyncio-mode=auto", "-p", "no:randomly")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*UsageError: etcd_client begins with an empty store, and*"])


LOOP = """
import asyncio
import pytest
from aioetcd import Client

loops = set()

async def works(*clients):
    loops.add(asyncio.get_running_loop())
    assert len(loops) == 1
    for client in clients:
        await client.kv.put("a", "1")
        assert (await client.kv.get("a")).value == b"1"

@FIXTURE
async def client(etcd_server):
    async with Client(etcd_server.endpoint) as client:
        yield client

async def test_one(etcd_client, client):
    await works(etcd_client, client)

async def test_two(etcd_client, etcd_proxy, client):
    async with Client(etcd_proxy.endpoint) as proxied:
        await works(etcd_client, client, proxied)
"""

LOOP_OF_ASYNCIO = LOOP.replace("@FIXTURE", "@pytest.fixture(scope='session')")

LOOP_OF_ANYIO = LOOP_OF_ASYNCIO + (
    """
pytestmark = pytest.mark.anyio

@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio"
"""
)

SESSION = (
    "-o",
    "asyncio_default_fixture_loop_scope=session",
    "-o",
    "asyncio_default_test_loop_scope=session",
)


@pytest.mark.parametrize(
    ("test", "options"),
    [
        pytest.param(LOOP_OF_ASYNCIO, ("--asyncio-mode=auto", *SESSION), id="asyncio"),
        pytest.param(LOOP_OF_ANYIO, ("-p", "no:asyncio"), id="anyio"),
    ],
)
def test_one_loop_for_the_run(
    pytester: pytest.Pytester, test: str, options: tuple[str, ...]
) -> None:
    """The fixtures, and a client for the whole run, work in the one loop of all tests."""
    pytester.makepyfile(test)
    run(pytester, *options).assert_outcomes(passed=2)


def test_each_worker_has_its_own_server(pytester: pytest.Pytester) -> None:
    """Under pytest-xdist, no worker's tests see what another's do to `etcd_server`."""
    pytester.makepyfile(
        """
        import os
        from pathlib import Path

        def test_it(etcd_server):
            name = os.environ["PYTEST_XDIST_WORKER"]
            Path(f"{name}.server").write_text(f"{etcd_server.pid} {etcd_server.data_dir}")
        """
    )
    # Every worker runs every test.
    run(pytester, "-n", "2", "--dist=each").assert_outcomes(passed=2)
    servers = [path.read_text().split() for path in pytester.path.glob("*.server")]
    assert len(servers) == 2
    assert not set(servers[0]) & set(servers[1])


@pytest.mark.fault("starts an interpreter and three etcds")
def test_own_servers(pytester: pytest.Pytester) -> None:
    """A test's own server and cluster are started as the configuration and its marker say."""
    pytester.makeini(
        """
        [pytest]
        etcd_args =
            --max-txn-ops=7
            --heartbeat-interval=50
            --election-timeout=250
        asyncio_mode = auto
        """
    )
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.etcd(args=["--max-request-bytes=5000"])
        async def test_server(etcd_own_server, etcd_server):
            assert etcd_own_server is not etcd_server
            assert etcd_own_server.args == [*etcd_server.args, "--max-request-bytes=5000"]
            assert etcd_server.args[0] == "--max-txn-ops=7"
            await etcd_own_server.restart()

        @pytest.mark.etcd(members=1)
        async def test_cluster(etcd_cluster):
            assert len(etcd_cluster.members) == 1
            await etcd_cluster.leader()

        async def test_proxy(etcd_proxy, etcd_server):
            assert etcd_proxy.target == etcd_server.endpoint

        @pytest.mark.etcd("--max-txn-ops=7")
        async def test_wrong_marker(etcd_own_server):
            pass
        """
    )
    result = run(pytester)
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(
        ["*UsageError: the marker etcd takes args=, binary=, members= and*"]
    )


@pytest.mark.fault("starts an interpreter and four etcds")
def test_own_servers_are_quick(pytester: pytest.Pytester) -> None:
    """A test's own servers elect quickly, unless its marker says otherwise."""
    pytester.makepyfile(
        """
        import pytest

        async def shortest(server):
            return (await server.gateway("lease/grant", {"TTL": "1"}))["TTL"]

        async def test_server(etcd_own_server):
            assert await shortest(etcd_own_server) == "1"

        @pytest.mark.etcd(members=1)
        async def test_cluster(etcd_cluster):
            assert await shortest(await etcd_cluster.leader()) == "1"

        @pytest.mark.etcd(quick=False)
        async def test_slow_server(etcd_own_server):
            assert await shortest(etcd_own_server) == "2"

        @pytest.mark.etcd(members=1, quick=False)
        async def test_slow_cluster(etcd_cluster):
            assert await shortest(await etcd_cluster.leader()) == "2"
        """
    )
    run(pytester, "--asyncio-mode=auto").assert_outcomes(passed=4)


def test_binary_of_the_configuration(pytester: pytest.Pytester) -> None:
    """The program that the configuration names is taken."""
    pytester.makeini(f"[pytest]\netcd_binary = {pytester.path / 'absent'}\n")
    pytester.makepyfile("def test_it(etcd_server): pass")
    result = run(pytester)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*EtcdNotFoundError: *absent is not a program to run"])


@pytest.mark.fault("starts an interpreter and three etcds")
def test_logs_of_a_failed_test(pytester: pytest.Pytester) -> None:
    """A failed test's report has the logs of its etcds, and their data is kept where asked for."""
    pytester.makepyfile(
        """
        import pytest

        async def test_passes(etcd_own_server):
            pass

        @pytest.mark.parametrize("path", ["a/../b"])
        async def test_fails(etcd_own_server, etcd_server, path):
            assert False

        async def test_closes(etcd_own_server):
            await etcd_own_server.aclose()
            assert False
        """
    )
    pytester.makepyfile(test_other="async def test_fails(etcd_own_server): assert False")
    kept = pytester.path / "kept"
    for _ in range(2):
        result = run(pytester, "--asyncio-mode=auto", f"--etcd-keep={kept}")
        result.assert_outcomes(passed=1, failed=3)
        assert result.stdout.str().count("etcd's log (default)") == 3
    names = ["test_logs_of_a_failed_test.py-test_fails[a-..-b]", "test_other.py-test_fails"]
    assert sorted(each.name for each in kept.iterdir()) == names
    for name in names:
        assert (kept / name / "default" / "data" / "member").is_dir()
        assert (kept / name / "default" / "log").read_text().startswith("{")


def test_missing_etcd_is_told(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an etcd, the tests that need one fail with the way to get it."""
    monkeypatch.setenv("AIOETCD_TEST_ETCD", str(pytester.path / "absent"))
    pytester.makepyfile("def test_it(etcd_server): pass")
    result = run(pytester)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*EtcdNotFoundError: AIOETCD_TEST_ETCD=*"])


@pytest.mark.parametrize("options", [(), ("-p", "no:asyncio")], ids=["asyncio", "plain"])
def test_plugin_loads_and_starts_nothing(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    """A test run that uses no fixture of ours pays for no server, pytest-asyncio or not."""
    monkeypatch.setenv("AIOETCD_TEST_ETCD", str(pytester.path / "absent"))
    pytester.makepyfile(
        """
        import sys

        def test_loaded():
            assert "aioetcd_pytest" in sys.modules
        """
    )
    run(pytester, *options).assert_outcomes(passed=1)


def test_testing_needs_no_pytest(pytester: pytest.Pytester) -> None:
    """`aioetcd.testing` can be imported where there is no pytest."""
    result = pytester.run(
        sys.executable,
        "-W",
        "error",
        "-c",
        "import sys; sys.modules['pytest'] = None\n"
        "from aioetcd.testing import EtcdServer, find_binary",
    )
    assert result.ret == 0
