"""Which measurements may become exemplars, and the trace they were made in."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, SpanContext, TraceFlags, set_span_in_context

from clew.pipeline.current import get_current
from clew.settings import ExemplarFilter

(SPAN_KEY,) = set_span_in_context(INVALID_SPAN, Context())
"""The key of the current span in a context."""

in_any_span: bool = False
"""Whether a measurement may become an exemplar that was made in a span which is not sampled."""
_filter: ExemplarFilter = "trace_based"


def use(chosen: ExemplarFilter) -> Callable[[], Mapping[str, object]]:
    """Choose which measurements may become exemplars, and return what finds the current span for that."""
    global _filter, in_any_span
    _filter, in_any_span = chosen, chosen == "always_on"
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
    return in_any_span


def _context_with_span() -> Mapping[str, object]:
    return {SPAN_KEY: get_current().get(SPAN_KEY) or INVALID_SPAN}
