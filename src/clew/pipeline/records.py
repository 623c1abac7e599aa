"""A log record on its way to the export thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from opentelemetry.sdk.util.instrumentation import InstrumentationScope


class LogItem(NamedTuple):
    """What the engine queues for one log event. It is coerced, redacted and encoded on the export thread.

    Attributes:
        time_ns: when it happened, in nanoseconds since the epoch.
        severity_number: OTLP's, from 1 to 24.
        severity_text: the level's name.
        body: the event.
        attributes: its fields, or what returns them. Values may be anything that does not change any more.
        trace_id: the trace it is part of, 0 for none.
        span_id: the span it is part of, 0 for none.
        trace_flags: the span's.
        scope: the logger.
    """

    time_ns: int
    severity_number: int
    severity_text: str
    body: Any
    attributes: dict[str, Any] | Callable[[], dict[str, Any]]
    trace_id: int
    span_id: int
    trace_flags: int
    scope: InstrumentationScope


class Facts(Protocol):
    """What is known of a piece of work, from which attributes are made when they are needed: mostly on the export thread.

    It holds no more than it needs: whatever it refers to lives until it has been sent.
    """

    duration_ns: int
    correlation_id: str | None

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of the span, as far as they are known by now."""
        ...

    def at_start(self) -> dict[str, Any]:
        """Return the fields of the log event that says that the work has begun."""
        ...

    def at_end(self) -> dict[str, Any]:
        """Return the fields of the log event that says that it has ended."""
        ...
