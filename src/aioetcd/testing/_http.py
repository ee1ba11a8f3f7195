"""HTTP to a server on loopback.

Written out because the standard library's client would block the event loop that a client under
test runs in.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import ByteStream

from aioetcd.testing._process import HOST


async def request(
    port: int,
    path: str,
    body: bytes | None = None,
    *,
    context: ssl.SSLContext | None = None,
    token: str | None = None,
) -> tuple[int, bytes]:
    """One HTTP exchange with a server on loopback.

    Args:
        port: Where it listens.
        path: What is asked for.
        body: What is sent, in JSON; without it nothing is.
        context: Speak TLS.
        token: What ``Authorization`` says.

    Returns:
        The status, and what the answer holds.

    Raises:
        OSError: There was no answer, or none within five seconds, or but a part of one.
    """
    answer = bytearray()
    with anyio.fail_after(5):
        async with _asked(port, path, body, context, token) as stream:
            async for chunk in _chunks(stream, port, path):
                answer += chunk
    first, _, rest = bytes(answer).partition(b"\r\n")
    version, _, status = first.partition(b" ")
    headers, ended, content = rest.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)^content-length: *(\d+)", headers, re.MULTILINE)
    if not ended or (length is not None and len(content) < int(length[1])):
        raise ConnectionResetError(f"{HOST}:{port}{path}: the answer has no end")
    if not version.startswith(b"HTTP/") or not status[:3].isdigit():
        raise ConnectionResetError(f"{HOST}:{port}{path}: not an HTTP server")
    return int(status[:3]), content


async def read_lines(
    port: int,
    path: str,
    body: bytes,
    *,
    context: ssl.SSLContext | None = None,
    token: str | None = None,
) -> AsyncIterator[bytes]:
    """Give the lines of an answer that does not end by itself.

    Raises:
        OSError: There is nobody, or the connection broke.
    """
    async with _asked(port, path, body, context, token) as stream:
        rest, head = b"", True
        async for chunk in _chunks(stream, port, path):
            rest += chunk
            if head:
                _, ended, rest_of_it = rest.partition(b"\r\n\r\n")
                if not ended:
                    continue
                head, rest = False, rest_of_it
            *lines, rest = rest.split(b"\n")
            for line in lines:
                yield line


@asynccontextmanager
async def _asked(
    port: int, path: str, body: bytes | None, context: ssl.SSLContext | None, token: str | None
) -> AsyncIterator[ByteStream]:
    # An HTTP/1.0 answer is not cut into chunks: it ends with the connection.
    head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.0\r\nHost: {HOST}:{port}\r\n"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    if token is not None:
        head += f"Authorization: {token}\r\n"
    try:
        stream = await _connected(port, context)
    except (anyio.BrokenResourceError, anyio.EndOfStream) as exc:  # while it shook hands
        raise ConnectionResetError(f"{HOST}:{port}{path}: no TLS") from exc
    async with stream:
        try:
            await stream.send(head.encode() + b"\r\n" + (body or b""))
        except anyio.BrokenResourceError as exc:
            raise ConnectionResetError(f"{HOST}:{port}{path}: connection lost") from exc
        yield stream


async def _connected(port: int, context: ssl.SSLContext | None) -> ByteStream:
    if context is None:
        return await anyio.connect_tcp(HOST, port)
    # Nobody waits for the other side's farewell: a killed server says none.
    return await anyio.connect_tcp(
        HOST, port, tls=True, ssl_context=context, tls_standard_compatible=False
    )


async def _chunks(stream: ByteStream, port: int, path: str) -> AsyncIterator[bytes]:
    try:
        async for chunk in stream:
            yield chunk
    except anyio.BrokenResourceError as exc:
        raise ConnectionResetError(f"{HOST}:{port}{path}: connection lost") from exc
