"""Importing the package loads what every client needs, and no more."""

from __future__ import annotations

import json
import subprocess
import sys

# What grpc.aio, anyio and protobuf's runtime load is there anyhow.
PROGRAM = """
import json, sys
import grpc.aio, anyio, anyio.lowlevel
import google.protobuf.internal.builder
before = set(sys.modules)
import aioetcd
print(json.dumps(sorted(set(sys.modules) - before)))
"""
# Of the standard library: back-off and lease ids, heaps of deadlines; `gc` for forks.
LIGHT = {"_bisect", "_random", "_sha2", "_sha512", "bisect", "gc", "heapq", "hashlib", "random"}


def test_import_is_light() -> None:
    """Beside gRPC, anyio and protobuf, `import aioetcd` loads itself and next to nothing else."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True
    )
    loaded = set(json.loads(done.stdout))
    ours = {name for name in loaded if name.split(".")[0] == "aioetcd"}
    assert "aioetcd.client" in ours
    assert not {name for name in ours if name.startswith("aioetcd.testing")}
    others = {name for name in loaded - ours if not name.startswith("google.protobuf")}
    assert others <= LIGHT
