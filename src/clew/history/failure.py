"""What is kept of an error: its type, its message, and how its traceback ends; redacted and capped."""

from __future__ import annotations

from typing import Any

from clew.engine import logs
from clew.history import payload


def error_columns(
    kind: str,
    message: str | None,
    error: BaseException | None,
    *,
    max_bytes: int,
    redact: payload.Redact | None = None,
) -> dict[str, Any]:
    """Return the columns that tell of an error.

    Args:
        kind: its type, or a low-cardinality name of it.
        message: what a person should read.
        error: what was raised, where something was.
        max_bytes: of the message, and of the traceback, in UTF-8.
        redact: returns what may be shown of a value under a key.

    Example:
        >>> error_columns("timeout", "too slow", None, max_bytes=100)
        {'error_type': 'timeout', 'error_message': 'too slow', 'traceback': None}
    """
    trace = None
    if error is not None:
        # The end of a stack trace says most: what is too long loses its beginning
        whole = logs._stacktrace(error)
        encoded = str(whole if redact is None else redact("", whole)).encode("utf-8", "replace")
        kept = encoded if len(encoded) <= max_bytes else "…".encode() + encoded[3 - max_bytes :]
        trace = payload.text(kept.decode("utf-8", "ignore"), max_bytes=max_bytes)
    return {
        "error_type": payload.name(kind),
        "error_message": payload.text(message or None, max_bytes=max_bytes, redact=redact),
        "traceback": trace,
    }
