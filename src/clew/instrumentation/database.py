"""What the drop-ins of databases share: the operation of a statement or a command, and when there is one."""

from __future__ import annotations

from typing import Any

from opentelemetry import trace

from clew.catalog import semconv
from clew.catalog.operations import DB_QUERY
from clew.diagnostics import report
from clew.engine.context import correlation_id
from clew.engine.operation import Operation


def is_at_work() -> bool:
    """Tell whether a query belongs to something: only then is it worth a span.

    A consumer's blocking poll, or a scheduler's look at its store, would make a trace of its own each time. Both run in tasks
    and threads that may have inherited the context of whatever started them, and that has long ended.

    Example:
        >>> is_at_work()
        False
    """
    span = trace.get_current_span()
    span_context = span.get_span_context()
    if not span_context.is_valid:
        # Tracing is off: what is measured still has a correlation id
        return correlation_id() is not None
    # Sampled, of this process and not recording: it has ended
    return span.is_recording() or span_context.is_remote or not span_context.trace_flags.sampled


def begin_query(system: str, operation: str, attributes: dict[str, Any]) -> Operation | None:
    """Start the operation of a query, without making it current: nothing of the app's runs within it.

    Args:
        system: ``db.system.name``, such as ``postgresql``.
        operation: ``db.operation.name``, such as ``SELECT``.
        attributes: the rest; values of the query are no part of them.
    """
    try:
        given = {semconv.DB_SYSTEM_NAME: system, semconv.DB_OPERATION_NAME: operation, **attributes}
        query = Operation(DB_QUERY, given)
        query.begin()
    except Exception as error:
        report(f"instrument {system}", error)
        return None
    return query


def end_query(query: Operation | None, error: BaseException | None = None, code: str = "") -> None:
    """End the operation of a query.

    Args:
        query: what :func:`begin_query` returned.
        error: what was raised. Only its type is recorded, because drivers put keys and values into their messages.
        code: the database's own code of the error.
    """
    if query is None:
        return
    try:
        if code:
            query.set(semconv.DB_RESPONSE_STATUS_CODE, code)
        if isinstance(error, Exception):
            query.fail(type(error).__qualname__, code)
            error = None
        query.finish(error)
    except Exception as problem:
        report("instrument", problem)
