"""An error that an app handles, and tells of."""

from __future__ import annotations

from typing import Any

from opentelemetry import trace

from clew.catalog import semconv
from clew.catalog.metrics import ERRORS
from clew.diagnostics import report
from clew.engine.metrics import registry
from clew.engine.runtime import current_log_stream
from clew.pipeline.coercion import name_text


def error(error: BaseException | str, /, *, component: str, **fields: Any) -> None:
    """Tell of an error that was handled: it is counted, logged with its stack trace, and an event of the span at hand.

    The span does not fail by it: whoever handles an error goes on.

    Args:
        error: the exception, or a low-cardinality name of what went wrong.
        component: the part of the app that it went wrong in, of low cardinality.
        fields: more about it, for the log.

    Example:
        >>> import clew
        >>> try:
        ...     int("seven")
        ... except ValueError as problem:
        ...     clew.error(problem, component="parser", line=7)
    """
    try:
        raised = error if isinstance(error, BaseException) else None
        kind = type(error).__qualname__ if raised is not None else name_text(error)
        labels = {"clew.error.component": name_text(component), semconv.ERROR_TYPE: kind}
        registry.declared(ERRORS).add(1, **labels)
        current_log_stream().take("error", "error", "clew.error", {**labels, **fields}, error=raised)
        span = trace.get_current_span()
        if span.is_recording():
            # The stack trace is in the log
            span.add_event("error", labels)
    except Exception as problem:
        report("error", problem)
