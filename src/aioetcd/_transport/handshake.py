"""Why there is no connection, where it is for TLS: gRPC says "handshake failed", or less."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    import ssl

# For connecting and the handshake.
_PATIENCE = 1.0
# What is left of a connection that was refused for what it spoke.
_REFUSALS = (
    "Socket closed",
    "http1.x server",
    "handshake",
    "SSL",
    "TSI",
    "reset by peer",
    "EOF",
    "Verification Check",
)


_NO_TLS = "it speaks no TLS at this port, and this client does"


def may_be_tls(reason: str) -> bool:
    """Whether a failure to connect may have to do with TLS."""
    return any(text in reason for text in _REFUSALS)


async def speaks_tls(target: str) -> bool | None:
    """Whether there is TLS at a port, whatever certificates it wants or has.

    None where nobody has answered it: then it is not known.

    Args:
        target: ``host:port`` or ``[ipv6]:port``; a socket's path speaks no TLS.
    """
    import ssl  # large, and seldom needed

    anything = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anything.check_hostname = False
    anything.verify_mode = ssl.CERT_NONE
    try:
        await _shake_hands(target, anything, None)
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")  # it wants a certificate, or another version
    except (anyio.BrokenResourceError, anyio.EndOfStream, ConnectionResetError):
        return False
    except OSError:  # TimeoutError is one
        return None
    return True


async def why_no_tls(target: str, context: ssl.SSLContext, server_name: str | None) -> str | None:
    """Say why a handshake fails; None where it does not, or for no reason of TLS.

    Args:
        target: ``host:port`` or ``[ipv6]:port``.
        context: What the client has.
        server_name: The name that the server's certificate is to be for, if not the host's.
    """
    import ssl

    try:
        await _shake_hands(target, context, server_name)
    except ssl.SSLCertVerificationError as error:
        return f"the server's certificate is refused: {error.verify_message}"
    except ssl.SSLError as error:
        reason = error.reason or str(error)
        if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"):
            return _NO_TLS
        if "CERTIFICATE" in reason or "HANDSHAKE_FAILURE" in reason:
            words = reason.lower().replace("_", " ")
            return f"the server refuses the client's certificate, or its lack of one: {words}"
        return f"no TLS: {reason}"
    except (anyio.BrokenResourceError, anyio.EndOfStream, ConnectionResetError):
        return _NO_TLS
    except OSError:
        return None
    return None


async def _shake_hands(target: str, context: ssl.SSLContext, server_name: str | None) -> None:
    import ssl

    if target.startswith("unix:"):
        raise OSError("a socket's path")
    host, _, port = target.rpartition(":")
    host = host.strip("[]")
    with anyio.fail_after(_PATIENCE):
        stream = await anyio.connect_tcp(
            host,
            int(port),
            ssl_context=context,
            tls_hostname=server_name or host,
            tls_standard_compatible=False,
        )
        try:
            # With TLS 1.3 the server judges the client's certificate after the client is done.
            await stream.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
            await stream.receive(1)
        except (anyio.BrokenResourceError, anyio.EndOfStream) as error:
            if isinstance(error.__cause__, ssl.SSLError):
                raise error.__cause__ from None
        finally:
            await stream.aclose()
