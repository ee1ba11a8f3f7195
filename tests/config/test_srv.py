"""DNS names the members; what it does not name is an error that says where it was looked for."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import dns.asyncresolver
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from aioetcd import TLS, Client, NoEndpointError

TLS_NAME = "_etcd-client-ssl._tcp.example.com"
PLAIN_NAME = "_etcd-client._tcp.example.com"


class Zone(asyncio.DatagramProtocol):
    """A DNS server's answers; a name that is not there does not exist.

    Attributes:
        records: By name: each the priority, the weight, the port and the target.
        asked: The names that it was asked for, in order.
    """

    def __init__(self, records: dict[str, list[str]]) -> None:
        self.records = records
        self.asked: list[str] = []
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Know where to answer."""
        self._transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        """Answer."""
        query = dns.message.from_wire(data)
        name = query.question[0].name
        self.asked.append(name.to_text(omit_final_dot=True))
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        records = self.records.get(self.asked[-1])
        if records is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
        elif records:
            response.answer.append(dns.rrset.from_text_list(name, 60, "IN", "SRV", records))
        self._transport.sendto(response.to_wire(), address)


@asynccontextmanager
async def serving(records: dict[str, list[str]]) -> AsyncIterator[tuple[Zone, Any]]:
    """Serve a zone on loopback, and give it with a resolver that asks it."""
    zone = Zone(records)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: zone, local_addr=("127.0.0.1", 0))
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers = ["127.0.0.1"]
    resolver.port = transport.get_extra_info("sockname")[1]
    resolver.lifetime = 10
    try:
        yield zone, resolver
    finally:
        transport.close()


def endpoints_of(client: Client) -> list[tuple[str, str, bool | None]]:
    """What a client was told: the name, the target, and whether TLS is spoken there."""
    return [(each.name, each.target, each.tls) for each in client._transport._config.endpoints]


async def test_both_kinds() -> None:
    """TLS before plaintext, by priority, then by weight; the dot at a name's end is not kept."""
    records = {
        TLS_NAME: [
            "20 99 2379 c.example.com.",
            "10 1 2379 b.example.com.",
            "10 9 1 a.example.com.",
        ],
        PLAIN_NAME: ["0 0 2379 d.example.com."],
    }
    async with serving(records) as (zone, resolver):
        client = await Client.from_srv("example.com", resolver=resolver, timeout=3)
    assert endpoints_of(client) == [
        ("https://a.example.com:1", "a.example.com:1", True),
        ("https://b.example.com:2379", "b.example.com:2379", True),
        ("https://c.example.com:2379", "c.example.com:2379", True),
        ("http://d.example.com:2379", "d.example.com:2379", False),
    ]
    assert client._transport.timeout == 3
    assert zone.asked == [TLS_NAME, PLAIN_NAME]


async def test_service_name() -> None:
    """A service's name stands in the names that are looked up."""
    records = {"_etcd-client-blue._tcp.example.com": ["0 0 2379 a."]}
    async with serving(records) as (zone, resolver):
        client = await Client.from_srv("example.com", "blue", resolver=resolver)
    assert endpoints_of(client) == [("http://a:2379", "a:2379", False)]
    assert zone.asked[0] == "_etcd-client-ssl-blue._tcp.example.com"


async def test_one_that_is_named_twice_speaks_tls() -> None:
    """An address in both answers is one endpoint, and speaks TLS."""
    records = {TLS_NAME: ["0 0 2379 a."], PLAIN_NAME: ["0 0 2379 a.", "0 0 2379 b."]}
    async with serving(records) as (_, resolver):
        client = await Client.from_srv("example.com", resolver=resolver)
    assert [name for name, _, _ in endpoints_of(client)] == ["https://a:2379", "http://b:2379"]


async def test_no_plaintext_beside_tls() -> None:
    """Who is to speak TLS is not sent elsewhere by DNS, which anybody may have written."""
    records = {TLS_NAME: ["0 0 2379 a."], PLAIN_NAME: ["0 0 2379 b."]}
    async with serving(records) as (_, resolver):
        client = await Client.from_srv("example.com", resolver=resolver, tls=TLS())
        assert [name for name, _, _ in endpoints_of(client)] == ["https://a:2379"]
    del records[TLS_NAME]
    async with serving(records) as (_, resolver):
        with pytest.raises(NoEndpointError) as caught:
            await Client.from_srv("example.com", resolver=resolver, tls=TLS())
    assert "plaintext" in caught.value.reasons[PLAIN_NAME]


@pytest.mark.parametrize("records", [{}, {TLS_NAME: [], PLAIN_NAME: []}, {TLS_NAME: ["0 0 0 ."]}])
async def test_nobody_is_named(records: dict[str, list[str]]) -> None:
    """No such name, no such records, or the word that there is no such service: both are told."""
    async with serving(records) as (_, resolver):
        with pytest.raises(NoEndpointError) as caught:
            await Client.from_srv("example.com", resolver=resolver)
    assert set(caught.value.reasons) == {TLS_NAME, PLAIN_NAME}
    for name, reason in caught.value.reasons.items():
        assert f"{name}: {reason}" in str(caught.value)
        assert reason


async def test_nobody_answers() -> None:
    """A resolver that cannot be reached, or a domain that is no name, is told as the reason."""
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers, resolver.port, resolver.lifetime = ["127.0.0.1"], 9, 0.2
    for domain in ("example.com", "a..b"):
        with pytest.raises(NoEndpointError) as caught:
            await Client.from_srv(domain, resolver=resolver)
        assert all(caught.value.reasons.values())


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (("",), ValueError, "domain must not be empty"),
        (("a", ""), ValueError, "service_name must not be empty"),
        ((None,), TypeError, "domain must be a str, not NoneType"),
        (("a", 7), TypeError, "service_name must be a str, not int"),
    ],
)
async def test_refused(arguments: tuple[Any, ...], error: type[Exception], text: str) -> None:
    """What is no name is refused before anybody is asked."""
    with pytest.raises(error, match=text):
        await Client.from_srv(*arguments)


async def test_without_dnspython(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where dnspython is not installed, the error says what to install."""
    monkeypatch.setitem(sys.modules, "dns.asyncresolver", None)
    with pytest.raises(ImportError, match=r"pip install 'aioetcd\[srv\]'"):
        await Client.from_srv("example.com")
