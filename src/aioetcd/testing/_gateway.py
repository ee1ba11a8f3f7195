"""etcd's JSON gateway, as curl would ask it: with TLS and a token where the server wants them."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Mapping
from typing import Any

from aioetcd.testing._http import read_lines, request

# A token that has run out, that a restart has forgotten, or that is older than the users are.
_STALE = ("invalid auth token", "revision of auth store is old", "user name is empty")


class Gateway:
    """How one server is asked.

    Made by a server, whose tasks may share it; nothing to close.

    Args:
        user: As whom it is asked, where auth is enabled: name and password.

    Attributes:
        user: As whom it is asked.
        context: For TLS; set by each start of the server.
        token: The user's, as of the last `sign_in`.
    """

    def __init__(self, user: tuple[str, str] | None) -> None:
        self.user = user
        self.context: ssl.SSLContext | None = None
        self.token: str | None = None

    async def ask(self, port: int, path: str, body: Mapping[str, object] | None) -> Any:
        """Ask one RPC and give the decoded answer.

        Raises:
            RuntimeError: It was refused; the message has etcd's.
            OSError: There is nobody, or the connection broke.
        """
        status, answer = await request(
            port,
            f"/v3/{path}",
            json.dumps(body or {}).encode(),
            context=self.context,
            token=self.token,
        )
        if status != 200:
            raise RuntimeError(f"/v3/{path}: {status} {answer.decode(errors='replace')}")
        try:
            return json.loads(answer)
        except ValueError as exc:  # of a long one the length is not known before
            raise ConnectionResetError(f"/v3/{path}: the answer has no end") from exc

    async def stream(
        self, port: int, path: str, body: Mapping[str, object]
    ) -> AsyncIterator[dict[str, Any]]:
        """Ask a streaming RPC, and give its answers.

        Raises:
            OSError: There is nobody, or the connection broke.
        """
        lines = read_lines(
            port, f"/v3/{path}", json.dumps(body).encode(), context=self.context, token=self.token
        )
        async for line in lines:
            yield json.loads(line)

    async def sign_in(self, port: int) -> None:
        """Get a token of this server, or none where auth is not enabled.

        Raises:
            RuntimeError: The user or the password is wrong, or the server is a learner.
            OSError: There is nobody, or the connection broke.
        """
        if self.user is None:
            return
        name, password = self.user
        self.token = None  # a stale one is refused, whatever it comes with
        try:
            answer = await self.ask(port, "auth/authenticate", {"name": name, "password": password})
        except RuntimeError as refused:
            if "authentication is not enabled" not in str(refused):
                raise
        else:
            self.token = answer["token"]

    async def enable_auth(self, port: int) -> None:
        """Make the user root with the role root, and enable auth, unless that was done before.

        Raises:
            RuntimeError: It was refused.
            OSError: There is nobody, or the connection broke.
        """
        await self.sign_in(port)
        if self.user is None or self.token is not None:
            return
        name, password = self.user
        for path, body in (
            ("auth/user/add", {"name": name, "password": password}),
            ("auth/role/add", {"name": "root"}),
            ("auth/user/grant", {"user": name, "role": "root"}),
        ):
            try:
                await self.ask(port, path, body)
            except RuntimeError as refused:
                if "already exists" not in str(refused):  # in a data directory of before
                    raise
        await self.ask(port, "auth/enable", None)
        await self.sign_in(port)


def is_stale(refused: RuntimeError) -> bool:
    """Whether a call was refused for its token, or for having none."""
    return any(told in str(refused) for told in _STALE)
