"""A cluster whose members DNS names (SRV records), for etcdctl with ``--discovery-srv`` too."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import Any, NamedTuple, Protocol

from aioetcd._checks import check_text
from aioetcd.errors import NoEndpointError


class Resolver(Protocol):
    """Asks DNS: dnspython's ``dns.asyncresolver.Resolver``, or what is like it.

    Whoever makes it may share it; `Client.from_srv` only asks it.

    Example:
        from types import SimpleNamespace

        host, port = "127.0.0.1:2379".split(":")

        class Zone:  # in the place of dnspython's, with `nameservers` of its own, as of Consul
            async def resolve(self, qname: str, rdtype: str, /) -> list[SimpleNamespace]:
                if "ssl" in qname:
                    return []
                return [SimpleNamespace(target=host, port=int(port), priority=0, weight=1)]

        async with await Client.from_srv("example.com", resolver=Zone()) as client:
            await client.kv.put("greeting", "hello")
    """

    def resolve(self, qname: str, rdtype: str, /) -> Awaitable[Iterable[Any]]:
        """Look up the records of a name.

        Args:
            qname: The name.
            rdtype: The records' type, ``"SRV"``: each has a `target`, a `port`, a `priority` and a
                `weight`.

        Raises:
            OSError: DNS cannot be asked; what dnspython raises (``DNSException``) is as good.

        Example:
            from types import SimpleNamespace

            class Zone:
                async def resolve(self, qname: str, rdtype: str, /) -> list[SimpleNamespace]:
                    return [SimpleNamespace(target="a.test.", port=2379, priority=0, weight=1)]

            found = await Zone().resolve("_etcd-client._tcp.example.com", "SRV")
            [record.target for record in found]  # ['a.test.']
        """


class _Target(NamedTuple):
    priority: int
    rank: int  # the greater the weight, the sooner
    host: str
    port: int


async def discover(
    domain: str, service_name: str | None, resolver: Resolver | None, *, only_tls: bool
) -> list[str]:
    """Look up the members of a domain, those that speak TLS first, by priority.

    Args:
        domain: Whose.
        service_name: Of several clusters of the domain, this one.
        resolver: Whom to ask; None takes the system's configuration.
        only_tls: Leave out those that speak plaintext.

    Raises:
        ImportError: dnspython is not installed.
        TypeError: `domain` or `service_name` is no str.
        ValueError: One of them is empty.
        NoEndpointError: There are none.
    """
    check_text("domain", domain)
    if service_name is not None:
        check_text("service_name", service_name)
    try:
        from dns.asyncresolver import Resolver as System
        from dns.exception import DNSException
    except ImportError as error:
        raise ImportError("Client.from_srv needs dnspython: pip install 'aioetcd[srv]'") from error
    suffix = "" if service_name is None else f"-{service_name}"
    found: dict[tuple[str, int], str] = {}
    reasons: dict[str, str] = {}
    for service, scheme in (("etcd-client-ssl", "https"), ("etcd-client", "http")):
        name = f"_{service}{suffix}._tcp.{domain}"
        try:
            targets = _targets(await (resolver or System()).resolve(name, "SRV"))
        except (DNSException, OSError) as error:
            reasons[name] = str(error) or type(error).__name__
            continue
        if not targets:
            reasons[name] = "the domain says that it has no such service"
        elif only_tls and scheme == "http":
            reasons[name] = "those speak plaintext, and this client is to speak TLS"
        else:
            for target in targets:  # one that is named twice speaks TLS
                address = target.host, target.port
                found.setdefault(address, f"{scheme}://{target.host}:{target.port}")
    if not found:
        told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise NoEndpointError(f"DNS names no endpoint: {told}", reasons=reasons)
    return list(found.values())


def _targets(records: Iterable[Any]) -> list[_Target]:
    return sorted(
        _Target(record.priority, -record.weight, host, record.port)
        for record in records
        # A lone dot is DNS's way to say that there is no such service.
        if (host := str(record.target).rstrip("."))
    )
