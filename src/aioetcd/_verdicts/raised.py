"""The error that a user sees, made of a verdict and of what is known of the request."""

from __future__ import annotations

import re
from typing import Any

from google.protobuf.message import Message

from aioetcd import errors as e
from aioetcd._verdicts.asked import asked
from aioetcd._verdicts.table import BY_CODE, Verdict

# A watch's cancel reason may be a whole gRPC status printed by Go.
_GO_STATUS = re.compile(r"rpc error: code = (\w+) desc = (.*)", re.DOTALL)


def error_from_status(
    verdict: Verdict,
    *,
    code: str,
    details: str,
    what: str,
    is_write: bool,
    endpoint: str | None,
    request: Message | None = None,
    timeout: float | None = None,
    known: str | None = None,
    since: str | None = None,
) -> e.EtcdError:
    """Make the error that the user sees.

    Args:
        verdict: What `verdict_for` found.
        code: The gRPC status name as it came over the wire.
        details: The status message.
        what: The RPC's name, for the message.
        is_write: Whether the request could change anything.
        endpoint: Who answered.
        request: What was refused, where it is known.
        timeout: The deadline in seconds, where it was the caller's own that ran out.
        known: What is wrong with who answered, where that was seen before.
        since: The first version of etcd that has the RPC, where some in use have not.
    """
    where = f"{what} at {endpoint}" if endpoint else what
    facts: dict[str, Any] = {
        "code": verdict.code or code,
        "details": details,
        "maybe_applied": is_write and verdict.maybe_applied,
        "endpoint": endpoint,
    }
    besides = f" ({known})" if known and known not in details else ""
    if timeout is not None and issubclass(verdict.error, e.DeadlineExceededError):
        return verdict.error(f"{where}: no answer{besides}", timeout=timeout, **facts)
    if since is not None and issubclass(verdict.error, e.UnsupportedByServerError):
        text = f"{where}: etcd has this from {since} on: {details or code}{besides}"
        return verdict.error(text, needs=since, **facts)
    explained = "" if request is None else asked(verdict.error, request)
    return verdict.error(f"{where}: {details or code}{explained}{besides}", **facts)


def status_of_reason(reason: str) -> tuple[str, str]:
    """Give the code and the text of a watch's cancel reason: a bare text, or a status by Go."""
    code, details = "FAILED_PRECONDITION", reason
    match = _GO_STATUS.match(reason)
    if match:
        # Go prints PermissionDenied for PERMISSION_DENIED.
        code = (
            re.sub(r"(?<=[a-z])(?=[A-Z])", "_", match[1]).upper().replace("CANCELED", "CANCELLED")
        )
        details = match[2]
    return code if code in BY_CODE else "UNKNOWN", details
