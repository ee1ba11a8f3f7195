"""The client: opens the transport and hands out the services."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from aioetcd._checks import check_seconds
from aioetcd._constructor import create
from aioetcd._transport.token import User
from aioetcd._transport.transport import Transport
from aioetcd.concurrency import Lock, OnLost, Session
from aioetcd.config.endpoints import parse_endpoints
from aioetcd.config.sources import from_env, from_url
from aioetcd.config.tls import TLS
from aioetcd.kv import KV
from aioetcd.lease import Leases
from aioetcd.observe import Observer
from aioetcd.types.stats import ClientStats
from aioetcd.watch import Watcher

__all__ = ["Client"]

# gRPC counts it in milliseconds, as a C int.
_LONGEST_KEEPALIVE = 2_000_000


def _user(username: str | None, password: str | None) -> User | None:
    given: dict[str, Any] = {"username": username, "password": password}
    if username is None and password is None:
        return None
    for name, text in given.items():
        if not isinstance(text, str):
            kind = "None" if text is None else type(text).__name__
            raise TypeError(f"{name} must be a str, not {kind}: username and password go together")
        if not text:
            raise ValueError(f"{name} must not be empty")
    return User(given["username"], given["password"])


class Client:
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
        observers: Are told of each call, and of what happens beside them.

    Attributes:
        kv: Reads and writes keys.
        lease: Grants leases and keeps them alive.
        watch: Call it to watch keys: ``client.watch("key")``.

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
        observers: Sequence[Observer] = (),
    ) -> None:
        for name, seconds in (
            ("keepalive_time", keepalive_time),
            ("keepalive_timeout", keepalive_timeout),
        ):
            if check_seconds(name, seconds) is None or seconds > _LONGEST_KEEPALIVE:
                raise ValueError(f"{name} must be at most {_LONGEST_KEEPALIVE} seconds")
        if keepalive_time < 5:
            raise ValueError(f"keepalive_time must be at least 5 seconds, not {keepalive_time}")
        self._transport = Transport(
            parse_endpoints(endpoints),
            timeout=check_seconds("timeout", timeout),
            keepalive_time=keepalive_time,
            keepalive_timeout=keepalive_timeout,
            tls=tls,
            user=_user(username, password),
            observers=observers,
        )
        self.kv: KV = create(KV, self._transport)
        self.lease: Leases = create(Leases, self._transport)
        self.watch: Watcher = create(Watcher, self._transport)
        # On a stream of their own: a large answer to one of the user's watches delays no lock.
        self._turns = create(Watcher, self._transport)

    @classmethod
    def from_url(cls, url: str) -> Client:
        """Make a client from a URL, ``etcd://`` or, with TLS, ``etcds://``.

        Args:
            url: ``etcds://user:password@host:2379,other/?timeout=5&ca=/etc/etcd/ca.pem``. What has
                a meaning in URLs is percent-encoded in the user and the password; the port is 2379
                where there is none. The options are ``timeout``, ``keepalive_time`` and
                ``keepalive_timeout`` in seconds (``none`` for no timeout), and for TLS ``ca``,
                ``cert``, ``key`` (paths) and ``server_name``.

        Raises:
            ValueError: It is no such URL, an option there is not, or one twice.
            TypeError: It is no str.

        Example:
            async with Client.from_url("etcd://127.0.0.1:2379/?timeout=5") as client:
                await client.kv.put("greeting", "hello")
        """
        return cls(**from_url(url))

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Client:
        """Make a client from etcdctl's environment variables.

        ``ETCDCTL_ENDPOINTS``, ``_USER`` (``name:password``), ``_PASSWORD``, ``_CACERT``, ``_CERT``,
        ``_KEY``, ``_COMMAND_TIMEOUT``, ``_KEEPALIVE_TIME`` and ``_KEEPALIVE_TIMEOUT``; without them
        the defaults of `Client`.

        Args:
            environ: The variables; None takes those of the process.

        Raises:
            ValueError: One cannot be read, or asks for what there is not, as for no verification.

        Example:
            async with Client.from_env({"ETCDCTL_ENDPOINTS": "127.0.0.1:2379"}) as client:
                await client.kv.put("greeting", "hello")
        """
        return cls(**from_env(os.environ if environ is None else environ))

    def set_endpoints(self, endpoints: str | Iterable[str]) -> None:
        """Take another list of endpoints while running.

        Those that stay keep their connections. Reads and streams on one that is gone move; a write
        on its way there is waited for.

        Args:
            endpoints: As for `Client`.

        Raises:
            ValueError: There is none, or one cannot be parsed.
            TypeError: Not str.

        Example:
            client.set_endpoints(["127.0.0.1:2379"])
            await client.kv.put("greeting", "hello")
        """
        self._transport.picker.replace(parse_endpoints(endpoints))

    def set_credentials(self, username: str | None, password: str | None) -> None:
        """Sign in as somebody else, or with another password, from the next call on.

        Args:
            username: The user; None, with `password`, calls without one.
            password: The user's.

        Raises:
            ValueError: One of them is empty.
            TypeError: One of them is missing, or no str.

        Example:
            client.set_credentials("app", "another password")
            client.set_credentials(None, None)
        """
        self._transport.tokens.change(_user(username, password))

    def session(self, *, ttl: int = 10, on_lost: OnLost = "cancel") -> Session:
        """Make a session: a lease that is kept alive for an ``async with``.

        Nothing is sent before it is entered.

        Args:
            ttl: Seconds that the lease lives without being renewed, from 1 to 9 000 000 000; the
                server may raise it, to 2 at the least by default.
            on_lost: ``"cancel"`` cancels the body when the lease is lost, and the block raises
                `LeaseLostError`; ``"ignore"`` leaves it to `Session.wait_lost`.

        Raises:
            ValueError: `ttl` is out of its limits, or `on_lost` neither of these.
            TypeError: `ttl` is no int.

        Example:
            async with client.session(ttl=10) as session:
                await client.kv.put("/services/a", "10.0.0.7:80", lease=session)
            (await client.kv.get("/services/a")).value  # None
        """
        return create(Session, self._transport, self.lease, ttl=ttl, on_lost=on_lost)

    def lock(
        self,
        name: str | bytes,
        *,
        session: Session | None = None,
        ttl: int | None = None,
        value: str | bytes = b"",
        blocking: bool = True,
        timeout: float | None = None,
        on_lost: OnLost = "cancel",
    ) -> Lock:
        """Make a lock on a name, for an ``async with``.

        It costs a lease, kept alive, or a session's; a txn; a watch on its own key; and while it
        waits, a watch on the key before it. `etcdctl lock` and the Go client's mutex respect it.
        Nothing is sent before it is entered.

        Args:
            name: What to lock; not another lock's name followed by a slash and more.
            session: Whose lease to use; any number of locks may. None gives it one of its own.
            ttl: Seconds after which others may enter when this process is gone, from 1 to
                9 000 000 000, 10 by default; with a `session`, that is its own.
            value: What others see of the holder, for example in `LockNotAcquiredError.holder`.
            blocking: Wait for one's turn; False fails at once instead.
            timeout: Wait so many seconds at the most; None waits without limit.
            on_lost: ``"cancel"`` cancels the body when the lock is lost, and the block raises
                `LockLostError`; ``"ignore"`` leaves it to `Lock.wait_lost`.

        Raises:
            ValueError: An empty name, `ttl` out of its limits or with a `session`, `timeout` with
                ``blocking=False``, a session of another client.
            TypeError: An argument of the wrong type.

        Example:
            async with client.lock("/locks/nightly", value="host-7") as lock:
                mine = lock.is_owner()
                saved = await client.kv.txn(compare=[mine], success=[Op.put("/result", "42")])
                saved.succeeded  # True
        """
        return create(
            Lock,
            self._transport,
            self.kv,
            self.lease,
            self._turns,
            name,
            session=session,
            ttl=ttl,
            value=value,
            blocking=blocking,
            timeout=timeout,
            on_lost=on_lost,
        )

    def __repr__(self) -> str:
        """Show the endpoints, and which one is in use."""
        endpoints = ",".join(m.endpoint.name for m in self._transport.picker.members)
        return f"<Client {endpoints} {self._transport.state}>"

    def stats(self) -> ClientStats:
        """Tell what the client is doing, without asking anybody.

        Example:
            stats = client.stats()
            stats.watches, stats.leases, stats.soonest_expiry  # (0, 0, None)
        """
        watches, turns, leases = self.watch._stats(), self._turns._stats(), self.lease._stats()
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
