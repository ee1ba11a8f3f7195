"""Makes the connections: in plaintext, or with what the files for TLS hold at that moment."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from aioetcd._transport.connection import Connection
from aioetcd._transport.handshake import may_be_tls, speaks_tls, why_no_tls
from aioetcd.config.endpoints import Endpoint
from aioetcd.config.tls import TLS, Material, context, read

logger = logging.getLogger("aioetcd.transport")

_TLS_PORT = "it speaks TLS at this port, and this client does not"


class Credentials:
    """What a client connects with.

    Args:
        tls: The user's; None has none, and an endpoint that wants TLS all the same gets the
            defaults.
        options: Of every channel.
        signs_in: Whether there is a user, whose password is not to be read by others.

    Raises:
        ValueError: A file that cannot be read, or holds something else.
    """

    def __init__(
        self,
        tls: TLS | None,
        options: Sequence[tuple[str, Any]],
        *,
        signs_in: Callable[[], bool] = lambda: False,
    ) -> None:
        self._tls = tls or TLS()
        self._has_tls = tls is not None
        self._options = options
        self._material: Material = read(self._tls)
        # Of endpoints to which a plaintext client has no connection; asked once until there is one.
        self._speaks_tls: dict[Endpoint, bool] = {}
        self._signs_in = signs_in
        self._has_warned = False

    def is_secure(self, endpoint: Endpoint) -> bool:
        """Whether TLS is spoken to an endpoint."""
        return self._has_tls if endpoint.tls is None else endpoint.tls

    def connect(self, endpoint: Endpoint) -> Connection:
        """Make a connection; nothing is sent yet."""
        if not self.is_secure(endpoint):
            self._warn(endpoint)
            return Connection(endpoint, self._options)
        material = self._fresh()
        options = list(self._options)
        name = self._server_name(endpoint)
        if name is not None:
            options += [("grpc.ssl_target_name_override", name), ("grpc.default_authority", name)]
        made = grpc.ssl_channel_credentials(material.ca, material.key, material.cert)
        return Connection(endpoint, options, made)

    def _warn(self, endpoint: Endpoint) -> None:
        if self._signs_in() and not endpoint.is_local and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "the password goes to %s in plaintext, for everybody on the way to read: use TLS",
                endpoint.name,
            )

    def _server_name(self, endpoint: Endpoint) -> str | None:
        if self._tls.server_name is not None:
            return self._tls.server_name
        return endpoint.host if endpoint.target.startswith("unix:") else None

    def _fresh(self) -> Material:
        """Read the files again; while they are half written, what they held before is as good."""
        try:
            self._material = read(self._tls)
        except ValueError as error:
            logger.warning("the files for TLS are not read again: %s", error)
        return self._material

    async def explain(self, endpoint: Endpoint, reason: str) -> str:
        """Say why there is no connection, where gRPC's reason does not and TLS is behind it."""
        if not may_be_tls(reason):
            return reason
        if self.is_secure(endpoint):
            made = context(self._material)
            why = await why_no_tls(endpoint.target, made, self._server_name(endpoint))
        else:
            known = self._speaks_tls.get(endpoint)
            if known is None and (known := await speaks_tls(endpoint.target)) is not None:
                self._speaks_tls[endpoint] = known
            why = _TLS_PORT if known else None
        return reason if why is None else f"{why} ({reason})"

    def answered(self, endpoint: Endpoint) -> None:
        """Know that there is a connection: another server may come in this one's place."""
        self._speaks_tls.pop(endpoint, None)
