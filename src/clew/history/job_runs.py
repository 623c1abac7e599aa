"""Runs of jobs, newest first, page by page."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from sqlalchemy import Connection, Table, and_

from clew.history.models import JobRun
from clew.history.paging import DEFAULT_LIMIT, Conditions, Page, Shelf, equal

RunStatus = Literal["scheduled", "running", "completed", "failed", "cancelled", "missed", "skipped", "lost"]
RunSource = Literal["apscheduler", "celery", "clew"]

_TABLE: Final[Table] = JobRun.__table__  # type: ignore[assignment]
RUNS: Final = Shelf(table=_TABLE, large=frozenset({"result", "metadata", "traceback"}))
"""All runs."""


@dataclass(frozen=True, kw_only=True)
class RunFilter:
    """Which runs are wanted; what is ``None`` does not matter.

    Attributes:
        job: the job's name.
        status: the run's status.
        source: what started the run.
        user: who asked for it.
        since: recorded at this time or later, with a time zone. A run is recorded when it starts, or when it is known
            that it does not.
        until: recorded before this time, with a time zone.
        error: words that the error's type or message has, each of them, in any order and case.
        trace_id: the trace it belongs to.
        correlation_id: the correlation id it carries.

    Example:
        >>> RunFilter(job="cleanup", status="failed").job
        'cleanup'
    """

    job: str | None = None
    status: RunStatus | None = None
    source: RunSource | None = None
    user: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    error: str | None = None
    trace_id: str | None = None
    correlation_id: str | None = None


def page(
    connection: Connection,
    wanted: RunFilter | None = None,
    *,
    after: str | None = None,
    before: str | None = None,
    limit: int = DEFAULT_LIMIT,
) -> Page:
    """Return runs, newest first: see :meth:`clew.history.paging.Shelf.page`.

    Words of an error, a source, and filters that are combined in ways that no index knows, have to be looked for.

    Args:
        connection: to the history.
        wanted: which ones; by default all.
        after: ``next`` of the page before: older runs than that page's.
        before: ``previous`` of a page: newer runs than that page's.
        limit: how many.

    Raises:
        ValueError: `after` or `before` is none of ours.

    Example:
        >>> from clew.history.reading import Reader
        >>> with Reader("sqlite:////nowhere/history.db").open() as connection:
        ...     page(connection, RunFilter(status="failed")).rows
        []
    """
    wanted = wanted or RunFilter()
    conditions = Conditions()
    conditions.within(_TABLE, wanted.since, wanted.until)
    # What the index of jobs, of statuses, or of jobs with their statuses serves
    given = (equal(_TABLE.c.job, wanted.job), equal(_TABLE.c.status, wanted.status))
    kind = [one for one in given if one is not None]
    conditions.exactly(
        equal(_TABLE.c.trace_id, wanted.trace_id),
        equal(_TABLE.c.correlation_id, wanted.correlation_id),
        equal(_TABLE.c.user_id, wanted.user),
        and_(*kind) if kind else None,
    )
    if wanted.source is not None:
        conditions.scanned.append(_TABLE.c.source == wanted.source)
    conditions.words(wanted.error, _TABLE.c.error_message, _TABLE.c.error_type)
    return RUNS.page(connection, conditions, after=after, before=before, limit=limit)
