"""Throw-away certificates: those of a server, of its clients, and of who has signed them."""

from __future__ import annotations

import os
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from aioetcd.config.tls import TLS
from aioetcd.testing._process import HOST


class Authority:
    """An authority of a test's own, which signs for servers and for their clients.

    Raises:
        ModuleNotFoundError: There is no `trustme`.
    """

    def __init__(self) -> None:
        try:
            import trustme
        except ModuleNotFoundError as exc:
            raise ModuleNotFoundError(
                "tls= needs the package trustme, which the extra aioetcd[testing] brings: "
                "pip install 'aioetcd[testing]'",
                name=exc.name,
            ) from exc
        self._signer = trustme.CA()
        client = self._signer.issue_cert("client@aioetcd.test")
        self.ca: bytes = self._signer.cert_pem.bytes()
        self.client_cert: bytes = b"".join(blob.bytes() for blob in client.cert_chain_pems)
        self.client_key: bytes = client.private_key_pem.bytes()

    def issue(self, *names: str, expired: bool = False) -> bytes:
        """Sign for a server of these names or addresses; give key and certificate in one PEM."""
        now = datetime.now(UTC)
        signed = self._signer.issue_cert(
            *names,
            not_before=now - timedelta(days=2),
            not_after=now - timedelta(days=1) if expired else now + timedelta(days=1),
        )
        return signed.private_key_and_cert_chain_pem.bytes()


class Certificates:
    """The files of one server.

    Made by the server's first start; they are gone with its folder.

    Args:
        folder: Where they are put.
        authority: Who signs for the server and its clients.
        is_mutual: Whether clients must show a certificate as well.

    Attributes:
        tls: What a client needs.
    """

    def __init__(self, folder: Path, authority: Authority, *, is_mutual: bool) -> None:
        self._folder = folder
        self._is_mutual = is_mutual
        self._authorities = 1
        folder.mkdir(parents=True, exist_ok=True)
        # Key and certificate are one file, which is replaced as one: etcd reads it for each
        # connection, and would read the one of before and the other of after.
        self._server = self._write("server.pem", authority.issue(HOST, "localhost"))
        self.ca = self._write("ca.pem", authority.ca)
        self._cert = self._write("client.pem", authority.client_cert)
        self._key = self._write("client-key.pem", authority.client_key)
        self.tls = self._tls(self.ca)
        self._authority = authority

    @property
    def args(self) -> dict[str, str]:
        """What etcd is told, by flag."""
        flags = {"cert-file": str(self._server), "key-file": str(self._server)}
        if self._is_mutual:
            flags |= {"client-cert-auth": "true", "trusted-ca-file": str(self.ca)}
        return flags

    def context(self) -> ssl.SSLContext:
        """Make what the kit itself asks the server with: it takes any certificate of the server."""
        context = unverified()
        if self._is_mutual:
            context.load_cert_chain(self._cert, self._key)
        return context

    def renew(self, *, expired: bool, name: str | None, other_authority: bool) -> TLS:
        """Replace the server's certificate on disk; give what a client needs to trust it."""
        tls, authority = self.tls, self._authority
        if other_authority:
            authority = Authority()
            self._authorities += 1
            tls = self._tls(self._write(f"ca-{self._authorities}.pem", authority.ca))
        names = (HOST, "localhost") if name is None else (name,)
        self._write(self._server.name, authority.issue(*names, expired=expired))
        return tls

    def _tls(self, ca: Path) -> TLS:
        if self._is_mutual:
            return TLS(ca=str(ca), cert=str(self._cert), key=str(self._key))
        return TLS(ca=str(ca))

    def _write(self, name: str, content: bytes) -> Path:
        path, draft = self._folder / name, self._folder / f"{name}.new"
        draft.touch(mode=0o600)
        draft.write_bytes(content)
        os.replace(draft, path)
        return path


def unverified() -> ssl.SSLContext:
    """Make a context that takes any certificate: the kit knows whom it has started itself."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
