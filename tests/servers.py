"""How the servers of tests are started, and where the session's is found."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from aioetcd.testing import EtcdServer, find_binary
from aioetcd.testing._process import HOST, Ports, spawn

SERVER = pytest.StashKey[EtcdServer]()
"""The session's etcd, in the stash of pytest's config, once a test has asked for it."""


@asynccontextmanager
async def grpc_proxy(server: EtcdServer, *options: str) -> AsyncIterator[str]:
    """Put etcd's own proxy before a server; gives its endpoint."""
    ports = Ports(1)
    (port,) = ports.numbers
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryFile() as log:
        command = [
            *(str(find_binary()), "grpc-proxy", "start", f"--endpoints={server.endpoint}"),
            *(f"--listen-addr={HOST}:{port}", f"--data-dir={directory}", *options),
        ]
        process = spawn(command, log.fileno())
        try:
            yield f"{HOST}:{port}"
        finally:
            process.kill()
            ports.release()
