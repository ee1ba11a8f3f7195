"""Shows how each member of a cluster is, as a table.

    python examples/status.py                                    of a cluster of three, for itself
    python examples/status.py --endpoints HOST:PORT[,HOST:PORT]  of a running one

It asks the endpoints given; one that does not answer is shown with the reason. The exit status is 1
where one does not, where there is no leader, or where an alarm is on: a check for cron.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

from aioetcd import Client, EtcdError, Status
from aioetcd.testing import EtcdCluster, EtcdNotFoundError

COLUMNS = ["endpoint", "name", "version", "role", "raft term", "applied", "database", "in use"]


def row(endpoint: str, status: Status, names: dict[int, str]) -> list[str]:
    role = "learner" if status.is_learner else "leader" if status.is_leader else "follower"
    return [
        endpoint,
        names.get(status.header.member_id, "?"),
        status.version,
        role,
        str(status.raft_term),
        str(status.raft_applied_index),
        f"{status.db_size / 2**20:.1f} MiB",
        f"{status.db_size_in_use / max(status.db_size, 1):.0%}",
    ]


def show(rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)))


async def named(client: Client) -> dict[int, str]:
    """Give the members' names by id. Without a quorum, what one of them remembers."""
    for linearizable in (True, False):
        try:
            found = await client.cluster.members(linearizable=linearizable, timeout=2)
        except EtcdError:
            continue
        return {member.id: member.name for member in found.members}
    return {}


async def report(client: Client) -> bool:
    """Print the table, and give whether all is well."""
    statuses = await client.maintenance.statuses(timeout=5)
    answered = {at: each for at, each in statuses.items() if isinstance(each, Status)}
    names = await named(client) if answered else {}
    show([COLUMNS, *(row(at, status, names) for at, status in answered.items())])
    has_problem = False
    for endpoint, status in statuses.items():
        problems = [str(status)] if isinstance(status, EtcdError) else list(status.errors)
        for problem in problems:
            print(f"{endpoint}: {problem}")
            has_problem = True
    if not any(status.leader for status in answered.values()):
        print("there is no leader")
        has_problem = True
    return not has_problem


async def run(endpoints: list[str] | None) -> bool:
    if endpoints is not None:
        async with Client(endpoints) as client:
            return await report(client)
    async with EtcdCluster(3) as cluster, Client(cluster.endpoints) as client:
        return await report(client)


def main() -> None:
    parser = argparse.ArgumentParser(description="Show how each member of a cluster is.")
    parser.add_argument(
        "--endpoints",
        metavar="HOST:PORT[,HOST:PORT...]",
        type=lambda text: text.split(","),
        help="use these instead of starting a cluster",
    )
    try:
        sys.exit(0 if asyncio.run(run(parser.parse_args().endpoints)) else 1)
    except (EtcdNotFoundError, EtcdError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
