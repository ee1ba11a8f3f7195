"""The arguments that a test gives etcd."""

from __future__ import annotations

from collections.abc import Iterable

# What EtcdServer decides by itself. Everything else may be set or overridden by `args`.
_OWN_FLAGS = frozenset({"name", "data-dir", "listen-client-urls", "listen-peer-urls"})
_TLS_FLAGS = frozenset({"cert-file", "key-file", "auto-tls", "client-cert-auth", "trusted-ca-file"})


def flags_of(args: Iterable[str]) -> set[str]:
    """The names of the flags among the arguments, without dashes."""
    return {arg.lstrip("-").partition("=")[0] for arg in args if arg.startswith("-")}


def check_args(args: Iterable[str], *, tls: bool = False) -> list[str]:
    """Give the arguments as a list.

    Args:
        args: What was given.
        tls: Whether the server has certificates of its own.

    Raises:
        TypeError: They are no strings, or one string for all.
        ValueError: There is a flag that the server decides by itself.
    """
    if isinstance(args, str | bytes):
        raise TypeError(f"args must be a list of strings, such as [{args!r}], not {args!r} itself")
    given: list[object] = list(args)
    checked = [arg for arg in given if isinstance(arg, str)]
    if wrong := [arg for arg in given if not isinstance(arg, str)]:
        raise TypeError(f"args must be a list of strings: pass str({wrong[0]!r})")
    flags = flags_of(checked)
    if "config-file" in flags:
        raise ValueError(
            "args: with --config-file etcd ignores all other flags, those that EtcdServer sets "
            "too: give what the file says as flags"
        )
    if own := flags & (_OWN_FLAGS | _TLS_FLAGS if tls else _OWN_FLAGS):
        with_tls = " with tls=" if own & _TLS_FLAGS else ""
        raise ValueError(f"args: EtcdServer{with_tls} sets {', '.join(sorted(own))} by itself")
    return checked
