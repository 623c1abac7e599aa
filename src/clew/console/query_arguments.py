"""Checking what a query is asked, so that each mistake is answered with one sentence that names the argument."""

from __future__ import annotations

import math
import re
from datetime import datetime

from clew.console.errors import QueryError
from clew.console.model import unix_nano_from_utc

MAX_LIMIT = 10_000

_TRACE_ID = re.compile(r"[0-9a-f]{32}")
_SPAN_ID = re.compile(r"[0-9a-f]{16}")
_LATEST_UNIX_NANO = 2**63 - 1


def checked_limit(limit: int, name: str = "limit") -> int:
    """Return the limit.

    Raises:
        QueryError: it is not between 1 and MAX_LIMIT.
    """
    if not 1 <= limit <= MAX_LIMIT:
        raise QueryError(f"{name}={limit} is not usable: give a whole number from 1 to {MAX_LIMIT}")
    return limit


def checked_trace_id(trace_id: str) -> bytes:
    """Return a trace id as bytes.

    Raises:
        QueryError: it is not 32 hexadecimal digits.
    """
    return _checked_id("trace_id", trace_id, _TRACE_ID, 32)


def checked_span_id(span_id: str) -> bytes:
    """Return a span id as bytes.

    Raises:
        QueryError: it is not 16 hexadecimal digits.
    """
    return _checked_id("span_id", span_id, _SPAN_ID, 16)


def checked_time(name: str, moment: datetime) -> int:
    """Return a time as Unix nanoseconds.

    Raises:
        QueryError: it has no time zone.
    """
    try:
        unix_nano = unix_nano_from_utc(moment)
    except ValueError:
        raise QueryError(
            f"{name}={moment.isoformat()} has no time zone: give an aware time, such as one ending in Z"
        ) from None
    return max(-_LATEST_UNIX_NANO, min(unix_nano, _LATEST_UNIX_NANO))


def checked_duration(name: str, duration_s: float) -> int:
    """Return a duration as nanoseconds.

    Raises:
        QueryError: it is negative, or not a finite number.
    """
    if not (math.isfinite(duration_s) and duration_s >= 0):
        raise QueryError(f"{name}={duration_s!r} is not usable: give seconds, 0 or more")
    return min(round(duration_s * 1e9), _LATEST_UNIX_NANO)


def _checked_id(name: str, value: str, pattern: re.Pattern[str], digits: int) -> bytes:
    lowered = value.lower()
    if not pattern.fullmatch(lowered):
        raise QueryError(f"{name}={value[:80]!r} is not an id: give {digits} hexadecimal digits")
    return bytes.fromhex(lowered)
