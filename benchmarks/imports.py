"""What importing aioetcd costs beside what it stands on: best of ten processes each.

python benchmarks/imports.py
"""

from __future__ import annotations

import subprocess
import sys

FOUNDATION = "import grpc.aio, anyio, google.protobuf.internal.builder"
OURS = "import aioetcd"
TIMED = "import time; began = time.perf_counter(); {}; print(time.perf_counter() - began)"
PROCESSES = 10


def seconds(statement: str) -> float:
    command = [sys.executable, "-c", TIMED.format(statement)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    # In turns, so that both see the machine fast and slow.
    pairs = [(seconds(FOUNDATION), seconds(OURS)) for _ in range(PROCESSES)]
    foundation, ours = (min(each) for each in zip(*pairs, strict=True))
    print(f"{FOUNDATION}: {foundation * 1000:.1f} ms")
    print(f"{OURS}: {ours * 1000:.1f} ms, {ours / foundation:.2f} x")


if __name__ == "__main__":
    main()
