"""Plain HTTP to a server on loopback."""

from __future__ import annotations

import anyio

from aioetcd.testing._process import HOST


async def request(port: int, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """One HTTP exchange with a server on loopback.

    Written out because the standard library's client would block the event loop that a client
    under test runs in.

    Raises:
        OSError: There was no answer, or none within five seconds.
    """
    head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.0\r\nHost: {HOST}:{port}\r\n"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    answer = bytearray()
    with anyio.fail_after(5):
        async with await anyio.connect_tcp(HOST, port) as stream:
            try:
                await stream.send(head.encode() + b"\r\n" + (body or b""))
                async for chunk in stream:
                    answer += chunk
            except anyio.BrokenResourceError as exc:
                raise ConnectionResetError(f"{HOST}:{port}{path}: connection lost") from exc
    first, _, rest = bytes(answer).partition(b"\r\n")
    status = first.split()[1:2]
    if not status:
        raise ConnectionResetError(f"{HOST}:{port}{path}: connection closed without an answer")
    return int(status[0]), rest.partition(b"\r\n\r\n")[2]
