"""What recipes are made of."""

from __future__ import annotations

import os
from typing import NamedTuple

from aioetcd._transport.calls import Calls
from aioetcd._transport.transport import Transport
from aioetcd.kv import KV
from aioetcd.lease import Leases
from aioetcd.watch import Watcher


class Parts(NamedTuple):
    """The services of a namespace, for its recipes.

    Attributes:
        transport: Owns what goes on in the background.
        calls: For what is left to be done at the end.
        kv: Reads and writes.
        leases: Grants leases and keeps them alive.
        watcher: Watches on the recipes' own streams.
    """

    transport: Transport
    calls: Calls
    kv: KV
    leases: Leases
    watcher: Watcher


def new_id() -> bytes:
    """Give what nobody else has."""
    return os.urandom(16).hex().encode()
