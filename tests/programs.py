"""Programs of tests' own, each in a process of its own, as a user would run one."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

# What each program begins with.
PREAMBLE = """
import asyncio, contextlib, gc, logging, os, sys, time, warnings, weakref
import aioetcd
from aioetcd import Client

ENDPOINT, LOOP, *ARGUMENTS = sys.argv[1:]

def new_loop():
    if LOOP == "uvloop":
        import uvloop
        return uvloop.new_event_loop()
    return asyncio.new_event_loop()

def run(main):
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(main)

def say(*words):
    print(*words, flush=True)
"""


@dataclass(frozen=True)
class Ended:
    """How a program ended.

    Attributes:
        code: Its exit code.
        out: The lines that it wrote.
        err: What it wrote to stderr.
        seconds: How long it took.
    """

    code: int
    out: list[str]
    err: str
    seconds: float


def run_program(
    program: str,
    endpoint: str,
    *arguments: str,
    loop: str = "asyncio",
    options: tuple[str, ...] = (),
    within: float = 20.0,
) -> Ended:
    """Run a program, which finds the arguments in `ENDPOINT`, `LOOP` and `ARGUMENTS`.

    Args:
        program: Its source, after `PREAMBLE`.
        endpoint: The server.
        arguments: What else it is to know.
        loop: What its function `run` runs on.
        options: The interpreter's.
        within: Seconds after which it hangs.
    """
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, *options, "-c", PREAMBLE + program, endpoint, loop, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=within,
        check=False,
    )
    seconds = time.monotonic() - began
    return Ended(done.returncode, done.stdout.splitlines(), done.stderr, seconds)


STRANGER = """
import grpc, grpc.aio

async def refuse(request, context):
    if ARGUMENTS[0] == "HANG":
        await asyncio.Event().wait()
    await context.abort(grpc.StatusCode[ARGUMENTS[0]], ARGUMENTS[1])

async def babble(request, context):
    return bytes([255, 255])

async def babble_on(requests, context):
    async for _ in requests:
        yield bytes([255, 255])

class Refusing(grpc.GenericRpcHandler):
    def service(self, call):
        if ARGUMENTS == ["BABBLE"] and call.method.startswith("/etcdserverpb."):
            if call.method.endswith(("/Watch", "/LeaseKeepAlive")):
                return grpc.stream_stream_rpc_method_handler(babble_on)
            return grpc.unary_unary_rpc_method_handler(babble)
        if call.method.startswith("/etcdserverpb.KV/") and ARGUMENTS:
            return grpc.unary_unary_rpc_method_handler(refuse)

async def main():
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([Refusing()])
    say(server.add_insecure_port("127.0.0.1:0"))
    await server.start()
    await server.wait_for_termination()

run(main())
"""


@contextmanager
def stranger(*kv: str) -> Iterator[str]:
    """Run a gRPC server that is no etcd, and give its endpoint.

    Args:
        kv: The code and the text with which it refuses all calls of etcd's service KV, or "HANG",
            which never answers one; or "BABBLE": whatever of etcd's it is asked, it answers with
            bytes that are no message. Without any it has no service at all.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + STRANGER, "", "asyncio", *kv],
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            yield f"127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()
