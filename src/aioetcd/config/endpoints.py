"""Where the members of a cluster listen for clients."""

from __future__ import annotations

from collections.abc import Iterable

from aioetcd._proto import rpc_pb2
from aioetcd.types.value import Value


class Endpoint(Value):
    """Where a member listens for clients.

    Attributes:
        name: As the user wrote it; errors and logs say it.
        target: The address in gRPC's syntax.
        tls: Whether TLS is spoken there; None leaves it to whether the client has a `TLS`.
    """

    __slots__ = ("name", "target", "tls")

    name: str
    target: str
    tls: bool | None

    @property
    def host(self) -> str:
        """The name or address; of a socket, the last part of its path."""
        if self.target.startswith("unix:"):
            return self.target.rpartition("/")[2].removeprefix("unix:")
        return self.target.rpartition(":")[0].strip("[]")

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine, as far as its address says."""
        host = self.host
        return (
            self.target.startswith("unix:")
            or host in ("localhost", "::1")
            or (host.startswith("127."))
        )

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Read ``host:port``, ``[ipv6]:port``, ``http(s)://host:port`` or ``unix(s):path``.

        With ``http`` and ``https`` plaintext and TLS are spoken there whatever the client has, and
        with ``unixs`` TLS; else the client's `TLS` decides.

        Raises:
            TypeError: It is not a str.
            ValueError: It is none of these.
        """
        if not isinstance(text, str):
            raise TypeError(f"an endpoint must be a str, not {type(text).__name__}")
        text = text.strip()
        kind, _, path = text.partition(":")
        if kind in ("unix", "unixs"):
            path = path.removeprefix("//")
            if not path:
                raise ValueError(f"endpoint {text!r} has no path")
            return cls(text, f"unix:{path}", True if kind == "unixs" else None)
        from urllib.parse import urlsplit  # it imports much

        address, tls = text, None
        if "://" in text:
            scheme, _, address = text.partition("://")
            if scheme not in ("http", "https"):
                raise ValueError(f"endpoint {text!r} has an unknown scheme {scheme!r}")
            tls = scheme == "https"
        try:
            parts = urlsplit(f"//{address}")
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise ValueError(f"endpoint {text!r} cannot be parsed: {error}") from None
        if not host or any(character.isspace() for character in address):
            raise ValueError(f"endpoint {text!r} has no host (expected host:port)")
        if not port:
            raise ValueError(f"endpoint {text!r} has no port (expected host:port, such as 2379)")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError(f"endpoint {text!r} must be host:port and nothing more")
        if parts.path not in ("", "/"):
            raise ValueError(f"endpoint {text!r} must not have a path")
        return cls(text, f"[{host}]:{port}" if ":" in host else f"{host}:{port}", tls)


def _split(text: str) -> list[str]:
    """Split a list at its commas, of which one may follow the last endpoint."""
    texts = text.split(",")
    return texts if texts[-1].strip() else texts[:-1]


def parse_endpoints(endpoints: str | Iterable[str]) -> tuple[Endpoint, ...]:
    """Read one endpoint, several separated by commas, or a sequence of them.

    Raises:
        ValueError: There is none, one cannot be parsed, or one is there twice.
        TypeError: Not str.
    """
    if not isinstance(endpoints, Iterable):
        kind = type(endpoints).__name__
        raise TypeError(f"endpoints must be a str or an iterable of str, not {kind}")
    texts = _split(endpoints) if isinstance(endpoints, str) else list(endpoints)
    parsed = tuple(Endpoint.parse(text) for text in texts)
    if not parsed:
        raise ValueError("endpoints must name at least one endpoint")
    if len({endpoint.target for endpoint in parsed}) != len(parsed):
        raise ValueError(f"endpoints names the same one twice: {', '.join(map(str, texts))}")
    return parsed


def parse_endpoint(endpoint: str | None) -> Endpoint | None:
    """Read the one that is meant, where one is.

    Raises:
        ValueError: It cannot be parsed.
        TypeError: Not a str.
    """
    return None if endpoint is None else Endpoint.parse(endpoint)


def advertised(members: Iterable[rpc_pb2.Member], *, only_tls: bool) -> tuple[Endpoint, ...]:
    """Give where the members of a cluster say that clients may go; perhaps nowhere.

    Learners do not serve everything, and a member without a name has not started yet.

    Args:
        members: As the RPC ``MemberList`` gives them.
        only_tls: Leave out those that speak plaintext.
    """
    found: dict[str, Endpoint] = {}
    for member in members:
        if member.isLearner or not member.name:
            continue
        for url in member.clientURLs:
            try:
                endpoint = Endpoint.parse(url)
            except ValueError:
                continue
            if endpoint.tls is not False or not only_tls:
                found.setdefault(endpoint.target, endpoint)
    return tuple(found.values())
