"""How a client proves who it is to a server, and the server to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from aioetcd.types.value import Value

if TYPE_CHECKING:
    import ssl

PEM: TypeAlias = str | os.PathLike[str] | bytes
"""A path to a file in PEM, or what would be in it."""


class Material(NamedTuple):
    """What the files held when they were read, in PEM."""

    ca: bytes | None
    cert: bytes | None
    key: bytes | None


class TLS(Value):
    """What a client needs for TLS; each of these in PEM, as a path or as bytes.

    Files are read again for each new connection, so that a certificate that is renewed on disk is
    used from the next connection on.

    Attributes:
        ca: The certificates of the authorities that may have signed the server's; None takes those
            that gRPC brings along.
        cert: The client's certificate, with those between it and the authority behind it; etcd may
            take its common name for the name of a user.
        key: Its private key, without a passphrase.
        server_name: The name that the server's certificate is to be for; None takes the endpoint's
            host.

    Raises:
        ValueError: A certificate without its key or the other way round.
        TypeError: An argument of the wrong type.

    Example:
        tls = TLS(ca="/etc/etcd/ca.pem", cert="/etc/etcd/app.pem", key="/etc/etcd/app-key.pem")
        tls.server_name  # None
    """

    __slots__ = ("ca", "cert", "key", "server_name")

    ca: PEM | None
    cert: PEM | None
    key: PEM | None
    server_name: str | None

    def __init__(
        self,
        ca: PEM | None = None,
        cert: PEM | None = None,
        key: PEM | None = None,
        server_name: str | None = None,
    ) -> None:
        for name, pem in (("ca", ca), ("cert", cert), ("key", key)):
            if pem is not None and not isinstance(pem, str | os.PathLike | bytes):
                kind = type(pem).__name__
                raise TypeError(f"{name} must be a path (str) or PEM (bytes), not {kind}")
        if server_name is not None and not isinstance(server_name, str):
            raise TypeError(f"server_name must be a str, not {type(server_name).__name__}")
        if (cert is None) != (key is None):
            given, missing = ("cert", "key") if key is None else ("key", "cert")
            raise ValueError(f"{given} needs {missing}: a certificate and its key go together")
        super().__init__(ca, cert, key, server_name)

    def __repr__(self) -> str:
        """Show what there is, and no key."""
        shown = [
            f"{name}={'<PEM>' if isinstance(pem, bytes) else repr(os.fspath(pem))}"
            for name, pem in (("ca", self.ca), ("cert", self.cert), ("key", self.key))
            if pem is not None
        ]
        if self.server_name is not None:
            shown.append(f"server_name={self.server_name!r}")
        return f"TLS({', '.join(shown)})"


def read(tls: TLS) -> Material:
    """Read the files, and see that they are what they are said to be.

    Raises:
        ValueError: A file that cannot be read, or holds something else; a key that is another
            certificate's, or has a passphrase.
    """
    material = Material(*(_read(name, getattr(tls, name)) for name in ("ca", "cert", "key")))
    if any(material):
        context(material)
    return material


def _read(name: str, pem: PEM | None) -> bytes | None:
    if pem is None or isinstance(pem, bytes):
        return pem
    try:
        with open(pem, "rb") as file:
            return file.read()
    except OSError as error:
        raise ValueError(f"{name}: {os.fspath(pem)!r} cannot be read: {error.strerror}") from error


def context(material: Material) -> ssl.SSLContext:
    """Make Python's own context of it: for checking, and for finding out why gRPC has failed.

    Raises:
        ValueError: It is not what it is said to be.
    """
    import ssl  # large, and only needed with TLS

    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.set_alpn_protocols(["h2"])
    try:
        if material.ca is None:
            made.load_default_certs()
        else:
            made.load_verify_locations(cadata=material.ca.decode("ascii", "replace"))
    except ssl.SSLError as error:
        raise ValueError(f"ca holds no certificate in PEM: {error.reason or error}") from error
    if material.cert is not None and material.key is not None:
        try:
            with _files(material.cert, material.key) as (cert, key):
                made.load_cert_chain(cert, key, password=_refuse)
        except ssl.SSLError as error:
            raise ValueError(f"cert and key do not fit, or are no PEM: {error.reason}") from error
    return made


def _refuse() -> str:
    raise ValueError("key has a passphrase: gRPC takes none, so store it without one")


@contextmanager
def _files(*contents: bytes) -> Iterator[list[str]]:
    """Put what OpenSSL reads from files alone into some that nobody else may read."""
    import tempfile

    with ExitStack() as stack:
        names = []
        for content in contents:
            file = stack.enter_context(tempfile.NamedTemporaryFile(prefix="aioetcd-"))
            file.write(content)
            file.flush()
            names.append(file.name)
        yield names
