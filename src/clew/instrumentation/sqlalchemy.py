"""SQLAlchemy 2: an operation for each statement, by the engine's own events, without its values.

Our own, because OpenTelemetry's instrumentation refuses SQLAlchemy 2.1 and makes a trace of each poll of a job store.

Source: https://docs.sqlalchemy.org/en/20/core/events.html
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

from sqlalchemy import event
from sqlalchemy.engine import Engine

from clew.catalog import semconv
from clew.diagnostics import report
from clew.instrumentation.database import begin_query, end_query, is_at_work
from clew.instrumentation.statement import summarise

T = TypeVar("T")

_QUERY: Final = "_clew_query"
# The registry of well-known values of db.system.name
_SYSTEMS: Final = {"mssql": "microsoft.sql_server", "oracle": "oracle.db"}


def _before(connection: Any, _cursor: Any, statement: str, parameters: Any, context: Any, executemany: Any) -> None:
    # Listened to by an engine and by all engines, it is asked twice
    if context is None or getattr(context, _QUERY, None) is not None or not is_at_work():
        return
    try:
        dialect = connection.dialect.name
        summary = summarise(statement, dialect)
        attributes: dict[str, Any] = {semconv.DB_QUERY_TEXT: summary.text, **_where(connection)}
        if summary.table:
            attributes[semconv.DB_COLLECTION_NAME] = summary.table
        if executemany and len(parameters) > 1:
            attributes[semconv.DB_OPERATION_BATCH_SIZE] = len(parameters)
        query = begin_query(_SYSTEMS.get(dialect, dialect), summary.operation, attributes)
        setattr(context, _QUERY, query)
    except Exception as error:
        report("instrument sqlalchemy", error)


def _after(*cursor_execution: Any) -> None:
    end_query(_take(cursor_execution[4]))


def _failed(exception: Any) -> None:
    error = exception.original_exception
    end_query(_take(exception.execution_context), error, _code(error))


def _take(context: Any) -> Any:
    query = getattr(context, _QUERY, None)
    if query is not None:
        setattr(context, _QUERY, None)
    return query


def _code(error: Any) -> str:
    """Return the database's own code of a driver's error: an SQLSTATE, or SQLite's name."""
    for name in ("sqlstate", "pgcode", "sqlite_errorname"):
        code = getattr(error, name, None)
        if isinstance(code, str) and code:
            return code
    return ""


def _where(connection: Any) -> dict[str, Any]:
    url = connection.engine.url
    found = {semconv.SERVER_ADDRESS: url.host, semconv.SERVER_PORT: url.port}
    if connection.dialect.name != "sqlite":
        # SQLite's is a path of somebody's disk
        found[semconv.DB_NAMESPACE] = url.database
    return {key: value for key, value in found.items() if value}


_LISTENERS: Final = (("before_cursor_execute", _before), ("after_cursor_execute", _after), ("handle_error", _failed))


def _listen(target: Any) -> None:
    for name, listener in _LISTENERS:
        if not event.contains(target, name, listener):
            event.listen(target, name, listener)


def instrument(target: T) -> T:
    """Instrument an engine in place. Twice is harmless, and so is doing it besides :func:`instrument_all`.

    Args:
        target: an engine, or an asyncio engine, of SQLAlchemy 2.

    Raises:
        TypeError: it is none.

    Example:
        >>> from sqlalchemy import create_engine
        >>> engine = instrument(create_engine("sqlite://"))
    """
    engine: Any = getattr(target, "sync_engine", target)
    if not isinstance(engine, Engine):
        raise TypeError(f"a {type(target).__qualname__} is no SQLAlchemy engine")
    _listen(engine)
    return target


def instrument_all() -> None:
    """Instrument every engine, those that exist included. Twice is harmless."""
    _listen(Engine)
