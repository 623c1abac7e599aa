"""A log record on its way to the export thread."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.util.instrumentation import InstrumentationScope


class LogItem:
    """What the engine queues for one log event. It is coerced, redacted and encoded on the export thread.

    Args:
        time_ns: when it happened, in nanoseconds since the epoch.
        severity_number: OTLP's, from 1 to 24.
        severity_text: the level's name.
        body: the event.
        attributes: its fields. Values may be anything that does not change any more.
        trace_id: the trace it is part of, 0 for none.
        span_id: the span it is part of, 0 for none.
        trace_flags: the span's.
        scope: the logger.
    """

    __slots__ = (
        "attributes",
        "body",
        "scope",
        "severity_number",
        "severity_text",
        "span_id",
        "time_ns",
        "trace_flags",
        "trace_id",
    )

    def __init__(  # noqa: PLR0913 - positional, because keywords cost on the hot path
        self,
        time_ns: int,
        severity_number: int,
        severity_text: str,
        body: Any,
        attributes: dict[str, Any],
        trace_id: int,
        span_id: int,
        trace_flags: int,
        scope: InstrumentationScope,
    ) -> None:
        self.time_ns = time_ns
        self.severity_number = severity_number
        self.severity_text = severity_text
        self.body = body
        self.attributes = attributes
        self.trace_id = trace_id
        self.span_id = span_id
        self.trace_flags = trace_flags
        self.scope = scope
