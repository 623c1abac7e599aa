"""Which measurements may become exemplars, and the trace they were made in."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, SpanContext, TraceFlags, set_span_in_context

from clew.pipeline.current import get_current
from clew.settings import ExemplarFilter

(SPAN_KEY,) = set_span_in_context(INVALID_SPAN, Context())
"""The key of the current span in a context."""

_filter: ExemplarFilter = "trace_based"


def use(chosen: ExemplarFilter) -> Callable[[], Mapping[str, object]]:
    """Choose which measurements may become exemplars, and return what finds the current span for that."""
    global _filter
    _filter = chosen
    ways: dict[ExemplarFilter, Callable[[], Mapping[str, object]]] = {
        "trace_based": get_current,
        "always_on": _context_with_span,
        "always_off": dict,
    }
    return ways[chosen]


def may_be_sampled(span_context: SpanContext) -> bool:
    """Tell whether a measurement made in a span may become an exemplar."""
    if _filter == "trace_based":
        return bool(span_context.trace_flags & TraceFlags.SAMPLED)
    return _filter == "always_on"


def _context_with_span() -> Mapping[str, object]:
    return {SPAN_KEY: get_current().get(SPAN_KEY) or INVALID_SPAN}
