"""Whether a port that closes plaintext connections without a word speaks TLS."""

from __future__ import annotations

import anyio

# For connecting and the handshake.
_PATIENCE = 1.0


async def speaks_tls(target: str) -> bool:
    """Try a TLS handshake, whatever certificate there is.

    Args:
        target: ``host:port`` or ``[ipv6]:port``; a socket's path speaks no TLS.
    """
    if target.startswith("unix:"):
        return False
    import ssl  # seldom needed, and large

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    host, _, port = target.rpartition(":")
    try:
        with anyio.fail_after(_PATIENCE):
            stream = await anyio.connect_tcp(
                host.strip("[]"), int(port), ssl_context=context, tls_standard_compatible=False
            )
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")  # it wants a certificate, or another version
    except (OSError, anyio.BrokenResourceError, anyio.EndOfStream):  # TimeoutError is an OSError
        return False
    await stream.aclose()
    return True
