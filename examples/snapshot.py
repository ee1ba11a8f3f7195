"""Saves a snapshot of a member's database, with a bar that shows how far it is.

    python examples/snapshot.py                              of an etcd of its own
    python examples/snapshot.py FILE --endpoint HOST:PORT    of a running one

The file is whole and verified when the program ends with exit status 0; else FILE is as it was
before, also after Ctrl-C. ``etcdutl snapshot restore FILE`` makes a member's data of it. It needs
rich.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from aioetcd import Client, EtcdError
from aioetcd.testing import EtcdNotFoundError, EtcdServer


async def save(client: Client, path: Path) -> None:
    columns = [TextColumn("{task.description}"), BarColumn(), DownloadColumn()]
    with Progress(*columns, TransferSpeedColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task(str(path), total=None)
        size = await client.maintenance.snapshot_to(
            path, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    print(f"{path}: {size} bytes, verified")


async def demonstrate() -> None:
    async with EtcdServer() as server, Client(server.endpoint) as client:
        await client.kv.put_many({f"/demo/{n}": b"x" * 100_000 for n in range(200)})
        with TemporaryDirectory() as folder:
            await save(client, Path(folder, "etcd.db"))


async def run(path: Path | None, endpoint: str) -> None:
    if path is None:
        await demonstrate()
        return
    async with Client(endpoint) as client:
        await save(client, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Save a snapshot of a member's database.")
    parser.add_argument("path", metavar="FILE", type=Path, nargs="?", help="where to")
    parser.add_argument("--endpoint", metavar="HOST:PORT", default="127.0.0.1:2379")
    arguments = parser.parse_args()
    try:
        asyncio.run(run(arguments.path, arguments.endpoint))
    except (EtcdNotFoundError, EtcdError, OSError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
