"""The one clock: wall time for what is recorded, monotonic time for what is measured."""

from __future__ import annotations

import time
from datetime import UTC, datetime

now_ns = time.time_ns
"""Wall time in nanoseconds since the Unix epoch, as OTLP carries it."""

monotonic_ns = time.perf_counter_ns
"""Monotonic time in nanoseconds: only differences have a meaning."""

monotonic_s = time.monotonic
"""Monotonic time in seconds: for deadlines."""


def utc_now() -> datetime:
    """Return the wall time as an aware UTC datetime.

    Example:
        >>> utc_now().tzinfo is UTC
        True
    """
    return datetime.now(UTC)
