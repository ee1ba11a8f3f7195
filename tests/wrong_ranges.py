"""Keys and ranges that are refused, whoever takes them."""

from __future__ import annotations

from typing import Any

# The arguments, the error, and the argument that it names.
WRONG_RANGES: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    (("",), {}, ValueError, "key"),
    ((1,), {}, TypeError, "key"),
    ((None,), {}, TypeError, "key"),
    (("k",), {"range_end": ""}, ValueError, "range_end"),
    (("k",), {"range_end": 1}, TypeError, "range_end"),
    (("k",), {"prefix": True, "range_end": "l"}, ValueError, "prefix"),
]
