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
            assert "aioetcd.testing.pytest_plugin" in sys.modules
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
