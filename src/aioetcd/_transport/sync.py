"""Takes the endpoints that the cluster itself names."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeAlias

import anyio

from aioetcd._proto import rpc_pb2
from aioetcd._transport.picker import Picker
from aioetcd.config.endpoints import Endpoint, advertised
from aioetcd.config.timeouts import Default
from aioetcd.errors import EtcdError

logger = logging.getLogger("aioetcd.transport")

AskMembers: TypeAlias = Callable[[float | Default | None], Awaitable[Iterable[rpc_pb2.Member]]]
"""Asks the cluster for its members, within a deadline."""

# As long the cluster has to name them where nobody waits for that.
_TIMEOUT = 5.0


class EndpointSync:
    """Keeps the endpoints of a client as the cluster names them.

    Args:
        picker: Whose endpoints they are.
        is_secure: Whether TLS is spoken to one.
        ask: Asks the cluster.
    """

    def __init__(
        self, picker: Picker, *, is_secure: Callable[[Endpoint], bool], ask: AskMembers
    ) -> None:
        self._picker = picker
        self._is_secure = is_secure
        self._ask = ask

    async def once(self, timeout: float | Default | None) -> None:
        """Take the endpoints that the cluster names now.

        Raises:
            EtcdError: It did not name them.
        """
        before = self._endpoints()
        endpoints = self.named_by(await self._ask(timeout))
        # Meanwhile the user may have said where to go, who knows better.
        if endpoints and self._endpoints() == before:
            self._picker.replace(endpoints)

    def named_by(self, members: Iterable[rpc_pb2.Member]) -> tuple[Endpoint, ...]:
        """Give the endpoints that members name, and that this client may speak to."""
        # Whoever has spoken TLS is not to send its password in plaintext because a member says so.
        only_tls = any(self._is_secure(endpoint) for endpoint in self._endpoints())
        return advertised(members, only_tls=only_tls)

    async def forever(self, seconds: float) -> None:
        """Do that again and again."""
        while True:
            await anyio.sleep(seconds)
            try:
                await self.once(_TIMEOUT)
            except EtcdError as error:
                logger.info("the endpoints stay as they are: %s", error)

    def _endpoints(self) -> list[Endpoint]:
        return [member.endpoint for member in self._picker.members]
