"""Exports the keys below a prefix as JSON lines, and imports them.

    python examples/transfer.py                                there and back, on an etcd of its own
    python examples/transfer.py export PREFIX >FILE            from a running one
    python examples/transfer.py import PREFIX <FILE            into a running one

A line is an object with `key`, without the prefix, and `value`: text, or base64 below `key_base64`
and `value_base64` where it is no UTF-8. All keys are of one revision, and the memory that both need
does not grow with their number. Leases and revisions are not exported.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import sys
from collections.abc import Iterable
from itertools import islice
from typing import TextIO

from aioetcd import KV, Client, EtcdError, PartialWriteError
from aioetcd.testing import EtcdNotFoundError, EtcdServer

AT_A_TIME = 1000


def fields(name: str, data: bytes) -> dict[str, str]:
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode()}


def field(name: str, item: dict[str, str]) -> bytes:
    if name in item:
        return item[name].encode()
    return base64.b64decode(item[f"{name}_base64"], validate=True)


async def export_to(file: TextIO, kv: KV) -> int:
    count = 0
    async for each in kv.scan("", prefix=True):
        print(json.dumps(fields("key", each.key) | fields("value", each.value)), file=file)
        count += 1
    return count


async def import_from(lines: Iterable[str], kv: KV) -> int:
    """Put what the lines say. Where some of it fails, the same lines may be put again."""
    count = 0
    rest = map(json.loads, lines)
    while items := {field("key", item): field("value", item) for item in islice(rest, AT_A_TIME)}:
        await kv.put_many(items)
        count += len(items)
    return count


async def demonstrate() -> None:
    async with EtcdServer() as server, Client(server.endpoint) as client:
        source, target = client.namespace("/source/"), client.namespace("/target/")
        await source.kv.put_many({f"{n:05}": f"value {n}" for n in range(5000)})
        await source.kv.put("no text: \udcff".encode("utf-8", "surrogateescape"), b"\xff\x00")
        file = io.StringIO()
        print(await export_to(file, source.kv), "keys exported")
        file.seek(0)
        print(await import_from(file, target.kv), "keys imported")
        same = await source.kv.get("", prefix=True), await target.kv.get("", prefix=True)
        print("the same:", same[0].as_dict() == same[1].as_dict())


async def run(what: str | None, prefix: str, endpoints: list[str]) -> None:
    if what is None:
        await demonstrate()
        return
    async with Client(endpoints) as client:
        kv = client.namespace(prefix).kv if prefix else client.kv
        if what == "export":
            count = await export_to(sys.stdout, kv)
        else:
            count = await import_from(sys.stdin, kv)
    print(f"{count} keys {what}ed", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description="Export and import keys as JSON lines.")
    parser.add_argument("what", choices=["export", "import"], nargs="?")
    parser.add_argument("prefix", metavar="PREFIX", nargs="?", default="", help="'' is all keys")
    parser.add_argument(
        "--endpoints",
        metavar="HOST:PORT[,HOST:PORT...]",
        type=lambda text: text.split(","),
        default=["127.0.0.1:2379"],
    )
    arguments = parser.parse_args()
    try:
        asyncio.run(run(arguments.what, arguments.prefix, arguments.endpoints))
    except PartialWriteError as error:
        for key in error.failed:
            print(f"not written, or nobody knows: {key!r}", file=sys.stderr)
        sys.exit(str(error))
    except (EtcdNotFoundError, EtcdError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
