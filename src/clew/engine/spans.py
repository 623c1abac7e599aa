"""``clew.span``: a piece of work that the app names itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, overload

from opentelemetry import trace

from clew.catalog.operations import SPAN
from clew.diagnostics import report
from clew.engine.operation import Operation

P = ParamSpec("P")
R = TypeVar("R")


@overload
def span(name: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def span(name: str, /, **attributes: Any) -> Operation: ...
def span(name: Any, /, **attributes: Any) -> Any:
    """Trace a block, or every call of a function.

    Works the same for ``with`` and ``async with``, and as a decorator for functions, coroutine functions, generators and async
    generators. An exception is recorded and goes on its way.

    Args:
        name: the span's name, of low cardinality; or, with ``@clew.span`` alone, the function, whose qualified name it takes.
        attributes: anything; what telemetry can't carry is turned into text.

    Example:
        >>> import clew
        >>> with clew.span("price", sku="A-17") as span:
        ...     span.set("currency", "EUR")
        >>> @clew.span
        ... def total(prices): return sum(prices)
        >>> total([1, 2])
        3
    """
    if type(name) is str and name:
        return Operation(SPAN, attributes, name=name)
    if callable(name):
        return Operation(SPAN, {}, name=getattr(name, "__qualname__", type(name).__qualname__))(name)
    report("span", f"a span's name is a text, not {type(name).__qualname__} {str(name)[:50]!r}")
    return Operation(SPAN, attributes, name="unnamed")


def trace_id() -> str:
    """Return the current trace's id in 32 hexadecimal digits, or ``""`` outside of any.

    Example:
        >>> import clew
        >>> with clew.span("work"):
        ...     len(clew.trace_id())
        32
    """
    span_context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(span_context.trace_id) if span_context.is_valid else ""
