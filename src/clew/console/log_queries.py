"""Questions about log records."""

# ruff: noqa: S608 - what is put into statements are names from this package; values are always bound

from __future__ import annotations

from datetime import datetime

from clew.console.errors import QueryError
from clew.console.model import LogRecord
from clew.console.query_arguments import checked_limit, checked_span_id, checked_time, checked_trace_id
from clew.console.row_reader import LOG_COLUMNS, SourceReader, log_from_row
from clew.console.store import Store
from clew.console.text_search import text_condition
from clew.console.trace_queries import SCOPES_OF_SERVICE

_MOST_SEVERE = 24


def logs(  # noqa: PLR0913 - each is a filter of its own, and named
    store: Store,
    *,
    trace_id: str | None = None,
    span_id: str | None = None,
    service: str | None = None,
    min_severity: int | None = None,
    text: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    oldest_first: bool = False,
    limit: int = 100,
) -> tuple[LogRecord, ...]:
    """Return the log records that match all conditions, newest first.

    Args:
        store: where to look.
        trace_id: written within this trace, 32 hexadecimal digits.
        span_id: written within this span, 16 hexadecimal digits.
        service: written by this service.
        min_severity: OTLP severity number, 1 to 24 (9 is INFO, 13 WARN, 17 ERROR), or above.
        text: in the body, event name or attributes, in any case.
        since: at this aware time or later.
        until: before this aware time.
        oldest_first: turn the order round, and with it which records the limit keeps.
        limit: at most so many, 1 to 10 000.

    Raises:
        QueryError: an argument is not usable.
        StoreUnavailableError: the store cannot answer.

    Example:
        >>> import tempfile
        >>> with Store(tempfile.mkdtemp()) as store:
        ...     logs(store, min_severity=17, text="timeout")
        ()
    """
    conditions: list[str] = ["TRUE"]
    arguments: list[object] = []

    def where(condition: str, *values: object) -> None:
        conditions.append(condition)
        arguments.extend(values)

    if trace_id is not None:
        where("trace_id = ?", checked_trace_id(trace_id))
    if span_id is not None:
        where("span_id = ?", checked_span_id(span_id))
    if service is not None:
        where(f"scope_id IN ({SCOPES_OF_SERVICE})", service)
    if min_severity is not None:
        if not 1 <= min_severity <= _MOST_SEVERE:
            raise QueryError(f"min_severity={min_severity} is not usable: give a number from 1 to {_MOST_SEVERE}")
        where("severity_number >= ?", min_severity)
    if since is not None:
        where("at_ns >= ?", checked_time("since", since))
    if until is not None:
        where("at_ns < ?", checked_time("until", until))
    if text is not None:
        condition, needles = text_condition(text, ("body_text", "event_name"), ("attributes",))
        where(condition, *needles)
    order = "at_ns, id" if oldest_first else "at_ns DESC, id DESC"
    statement = f"SELECT {LOG_COLUMNS} FROM logs WHERE {' AND '.join(conditions)} ORDER BY {order} LIMIT ?"
    with store.reading() as connection:
        sources = SourceReader(connection)
        rows = connection.execute(statement, [*arguments, checked_limit(limit)])
        return tuple(log_from_row(row, sources) for row in rows)
