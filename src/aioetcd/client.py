"""The client: a namespace with a life."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from time import monotonic
from types import TracebackType
from typing import Self, Unpack

from aioetcd._constructor import PublicConstructor, create
from aioetcd._transport.transport import Transport
from aioetcd.auth import Auth
from aioetcd.cluster import Cluster
from aioetcd.config.client import ClientOptions, Config
from aioetcd.config.endpoints import parse_endpoints
from aioetcd.config.srv import Resolver
from aioetcd.config.timeouts import DEFAULT, Default
from aioetcd.config.tls import TLS
from aioetcd.config.user import User
from aioetcd.errors import PermissionDeniedError
from aioetcd.maintenance import Maintenance
from aioetcd.namespace import Namespace, Shared
from aioetcd.observe import Observer
from aioetcd.remote import Remote
from aioetcd.types.stats import ClientStats

__all__ = ["Client"]


class Client(Namespace, metaclass=PublicConstructor):
    """A client of one etcd cluster.

    Use it as ``async with Client(...) as client``, or close it with ``await client.aclose()``: one
    that nobody closes warns (`ResourceWarning`). Nothing is sent before the first call, which
    connects. Many tasks of one event loop may share a client; it belongs to the loop of its first
    use, and raises `RuntimeError` in another one.

    Args:
        endpoints: ``"host:port"``, several of them separated by commas, or a sequence. With
            several, another one is used when the one in use fails.
        timeout: The default deadline of a call in seconds, above 0; None is none.
        keepalive_time: Ping a connection with open streams so many seconds after it was last
            heard; 5 at the least, or etcd closes the connection, and 2 000 000 at the most.
        keepalive_timeout: Give it up when the ping is not answered in so many seconds, above 0 and
            2 000 000 at the most.
        tls: Speak TLS, with these certificates; an endpoint ``https://...`` speaks it anyway.
        username: Sign in as this user; with `password`.
        password: The user's.
        auto_sync: Once the client is in use, do what `sync_endpoints` does every so many seconds,
            above 0; None never does. A failure is logged, and changes nothing.
        observers: Are told of each call, and of what happens beside them.

    Attributes:
        kv: Reads and writes keys.
        lease: Grants leases and keeps them alive.
        watch: Call it to watch keys: ``client.watch("key")``.
        cluster: Lists and changes the cluster's members.
        maintenance: Looks after the members' databases.
        auth: Manages users, roles and permissions.
        remote: Calls the locks and elections that etcd itself keeps.

    Raises:
        ValueError: An endpoint that cannot be parsed, a duration out of its limits, a file of
            `tls` that cannot be read or holds something else.
        TypeError: An argument of the wrong type.

    Example:
        async with Client("127.0.0.1:2379", timeout=5) as client:
            await client.kv.put("greeting", "hello")
            (await client.kv.get("greeting")).value  # b"hello"
    """

    def __init__(
        self,
        endpoints: str | Iterable[str] = "127.0.0.1:2379",
        *,
        timeout: float | None = 10.0,
        keepalive_time: float = 10.0,
        keepalive_timeout: float = 5.0,
        tls: TLS | None = None,
        username: str | None = None,
        password: str | None = None,
        auto_sync: float | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self._transport = Transport(
            Config.checked(
                endpoints,
                timeout=timeout,
                keepalive_time=keepalive_time,
                keepalive_timeout=keepalive_timeout,
                tls=tls,
                username=username,
                password=password,
                auto_sync=auto_sync,
                observers=observers,
            )
        )
        super().__init__(Shared(self._transport), self._transport)
        self.cluster: Cluster = create(Cluster, self._transport)
        self.maintenance: Maintenance = create(Maintenance, self._transport)
        self.auth: Auth = create(Auth, self._transport)
        self.remote: Remote = create(Remote, self._transport)

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Make a client of a URL: ``etcds://user:password@host-1:2379,host-2:2379/?timeout=5``.

        ``etcd://`` speaks plaintext, ``etcds://`` TLS. Without a port it is 2379; IPv6 addresses
        stand in brackets. Options are those of `Client`, `timeout`, `keepalive_time`,
        `keepalive_timeout` and `auto_sync`, in seconds (``inf`` is none), and with ``etcds://``
        those of `TLS`: `ca`, `cert` and `key`, which are paths, and `server_name`. What is special
        in a URL is percent-encoded: an ``@`` in a password is ``%40``.

        Args:
            url: It; errors do not show its user and password.

        Raises:
            ValueError: It is no such URL, has an option that is not known, or one twice, or a value
                that `Client` would not take.
            TypeError: It is no str.

        Example:
            async with Client.from_url("etcd://127.0.0.1:2379/?timeout=5") as client:
                await client.kv.put("greeting", "hello")
        """
        from aioetcd.config.url import read_url

        return cls(**read_url(url))

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Make a client of the environment variables that `etcdctl` reads.

        They are ``ETCDCTL_ENDPOINTS``, ``_USER`` (``name:password``, or the name alone with
        ``_PASSWORD``), ``_CACERT``, ``_CERT``, ``_KEY``, ``_INSECURE_TRANSPORT`` (with ``false``
        TLS is spoken also without these files), ``_COMMAND_TIMEOUT`` (the default deadline),
        ``_KEEPALIVE_TIME`` and ``_KEEPALIVE_TIMEOUT``; durations are Go's, such as ``1m30s``. What
        is not there is as in `Client`, not as in `etcdctl`. Other variables are ignored.

        Args:
            environ: Read these instead of `os.environ`.

        Raises:
            ValueError: A variable, which is named, cannot be read or is out of the limits of
                `Client`; or it asks for what this client does not do: not to verify certificates
                (``_INSECURE_SKIP_TLS_VERIFY``), DNS (``_DISCOVERY_SRV``, see `from_srv`), or a
                ready-made token (``_AUTH_JWT_TOKEN``).

        Example:
            async with Client.from_env({"ETCDCTL_ENDPOINTS": "127.0.0.1:2379"}) as client:
                await client.kv.put("greeting", "hello")
        """
        from aioetcd.config.env import read_env

        return cls(**read_env(os.environ if environ is None else environ))

    @classmethod
    async def from_srv(
        cls,
        domain: str,
        service_name: str | None = None,
        *,
        resolver: Resolver | None = None,
        **options: Unpack[ClientOptions],
    ) -> Self:
        """Make a client of a domain whose DNS names the members, as `etcdctl --discovery-srv` does.

        Members at ``_etcd-client-ssl._tcp.DOMAIN`` speak TLS, those at ``_etcd-client._tcp.DOMAIN``
        plaintext; with `tls` the latter are left out. DNS is asked once, now. It needs dnspython
        (``pip install 'aioetcd[srv]'``).

        Args:
            domain: Whose DNS.
            service_name: Of several clusters of a domain, this one:
                ``_etcd-client-ssl-NAME._tcp.DOMAIN``.
            resolver: Ask this one; None asks those that the system is configured with.
            options: The arguments of `Client`, but for its endpoints.

        Raises:
            NoEndpointError: DNS names no member; its `reasons` say why, for both names.
            ImportError: dnspython is not installed.
            ValueError: `domain` or `service_name` is empty, or an option out of its limits.
            TypeError: An argument of the wrong type.

        Example:
            from types import SimpleNamespace

            host, port = "127.0.0.1:2379".split(":")

            class Zone:  # what DNS would say
                async def resolve(self, qname: str, rdtype: str, /) -> list[SimpleNamespace]:
                    if "ssl" in qname:
                        return []
                    return [SimpleNamespace(target=host, port=int(port), priority=0, weight=1)]

            async with await Client.from_srv("example.com", resolver=Zone()) as client:
                await client.kv.put("greeting", "hello")
        """
        from aioetcd.config.srv import discover

        only_tls = options.get("tls") is not None
        found = await discover(domain, service_name, resolver, only_tls=only_tls)
        return cls(found, **options)

    def set_endpoints(self, endpoints: str | Iterable[str]) -> None:
        """Use other endpoints of the same cluster from now on.

        Connections to those that are in both lists stay. From the others streams move, watches
        without losing an event, and so do reads; a write under way is waited for.

        Args:
            endpoints: As in `Client`.

        Raises:
            ValueError: There is none, or one that cannot be parsed.
            TypeError: One of the wrong type.
            ClientClosedError: The client is closed.
            RuntimeError: It belongs to another event loop, or there is none.

        Example:
            client.set_endpoints(["127.0.0.1:2379"])
        """
        parsed = parse_endpoints(endpoints)
        self._transport.check_usable()
        self._transport.picker.replace(parsed)

    async def sync_endpoints(self, timeout: float | Default | None = DEFAULT) -> None:
        """Ask the cluster for its members, and use the endpoints that they advertise.

        Without learners and members that have not started. Where nothing is left, all stays as it
        is. Members may advertise addresses that are of no use from where you are. A client that
        speaks TLS takes no endpoint that does not.

        Args:
            timeout: The deadline in seconds; None is none.

        Raises:
            EtcdError: By cause; RPC ``MemberList``.

        Example:
            await client.sync_endpoints()
            len(client.stats().connections)  # 1
        """
        await self._transport.endpoint_sync.once(timeout)

    def set_credentials(self, username: str | None, password: str | None) -> None:
        """Call as another user from now on, or with the same one's new password.

        Nothing is sent yet: a wrong password is an error of the next call. Streams that are open
        stay what they are until they are opened again.

        Args:
            username: The user; None, with `password`, signs out.
            password: The user's.

        Raises:
            ValueError: One of them is empty.
            TypeError: One of them is None alone, or no str.
            ClientClosedError: The client is closed.
            RuntimeError: It belongs to another event loop, or there is none.

        Example:
            client.set_credentials("app", "a new password")
            client.set_credentials(None, None)
        """
        user = User.checked(username, password)
        self._transport.check_usable()
        self._transport.tokens.change(user)

    def __repr__(self) -> str:
        """Show the endpoints, and which one is in use."""
        endpoints = ",".join(m.endpoint.name for m in self._transport.picker.members)
        return f"<Client {endpoints} {self._transport.state}>"

    async def ping(self, *, timeout: float | Default | None = DEFAULT) -> float:
        """See that a member answers, and has a quorum (RPC ``Range``, of a key that nobody has).

        It is for probes of readiness. A user without any permission may do it.

        Args:
            timeout: The call's deadline in seconds, waiting for a connection and retries included;
                None is none.

        Returns:
            How long it took, in seconds.

        Raises:
            EtcdError: There is none, by cause.

        Example:
            await client.ping(timeout=2) < 2  # True
        """
        began = monotonic()
        # A member asks its quorum before it asks who wants to know.
        with suppress(PermissionDeniedError):
            await self.kv.get(b"\0", count_only=True, timeout=timeout)
        return monotonic() - began

    def stats(self) -> ClientStats:
        """Tell what the client is doing, without asking anybody.

        Example:
            stats = client.stats()
            stats.watches, stats.leases, stats.soonest_expiry  # (0, 0, None)
        """
        shared = self._shared
        watches, turns, leases = shared.watches.stats(), shared.turns.stats(), shared.leases.stats()
        current = self._transport.picker.current
        return ClientStats(
            connections=self._transport.picker.states(),
            endpoint=None if current is None else current.endpoint.name,
            calls=self._transport.monitor.calls,
            retries=self._transport.monitor.retries,
            reconnects=watches.reconnects + turns.reconnects + leases.reconnects,
            watches=watches.open + turns.open,
            paused_watches=watches.paused + turns.paused,
            leases=leases.kept,
            soonest_expiry=leases.soonest_expiry,
        )

    def __del__(self) -> None:
        """Close a client that was not closed, with a `ResourceWarning`."""
        if hasattr(self, "_transport"):  # else there was a wrong argument
            self._transport.forgotten()

    async def __aenter__(self) -> Client:
        """Do nothing yet: the first call connects."""
        self._transport.check_usable()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the client."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close the client: everything open on it ends with `ClientClosedError`.

        It waits, 5 seconds at the most, until the connections are closed and the leases that
        sessions and locks leave behind are revoked; to be cancelled ends only the waiting. Again,
        it does nothing.

        Raises:
            RuntimeError: The client belongs to another event loop.

        Example:
            client = Client("127.0.0.1:2379")
            await client.aclose()
        """
        await self._transport.aclose()
