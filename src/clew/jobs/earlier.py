"""The run before, of a task that is delivered again: nobody but the history knows of it."""

from __future__ import annotations

import threading
from typing import Any, Final

from clew.diagnostics import report
from clew.jobs.record import the_recorder

WAIT_S: Final = 0.5
"""How long the history is waited for: a task is not held up by what it is linked to."""

_MAX_SCANNED: Final = 1_000


def earlier_run(job_id: str, *, correlation_id: str, attempt: int) -> dict[str, str] | None:
    """Return the carrier of the latest run of the same task.

    Args:
        job_id: the task's id.
        correlation_id: what its runs have in common with others. The latest 1,000 of those are looked through.
        attempt: which try it was.

    Returns:
        ``None`` where none is known, or the history does not answer within half a second.
    """
    found: list[dict[str, str]] = []
    failed: list[Exception] = []

    def look() -> None:
        try:
            found.extend(_look(job_id, correlation_id, attempt))
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=look, name="clew-earlier-run", daemon=True)
    thread.start()
    thread.join(WAIT_S)
    if failed:
        report("job history", failed[0])
    return found[0] if found else None


def _look(job_id: str, correlation_id: str, attempt: int) -> list[dict[str, str]]:
    recorder = the_recorder()
    if recorder is None:
        return []
    from sqlalchemy import select

    from clew.history.models import JobRun

    table: Any = JobRun.__table__
    wanted = ("id", "job_id", "attempt", "trace_id", "span_id")
    alike = (
        select(*(table.c[name] for name in wanted))
        .where(table.c.correlation_id == correlation_id)
        .order_by(table.c.id.desc())
        .limit(_MAX_SCANNED)
        .subquery()
    )
    query = (
        select(alike.c.trace_id, alike.c.span_id)
        .where(alike.c.job_id == job_id, alike.c.attempt == attempt, alike.c.span_id.is_not(None))
        .order_by(alike.c.id.desc())
        .limit(1)
    )
    with recorder.database.read() as connection:
        rows = connection.execute(query).all()
    return [{"traceparent": f"00-{row.trace_id}-{row.span_id}-01"} for row in rows]
