"""Tasks of agents, newest first, page by page."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from sqlalchemy import Connection, Table

from clew.history.models import AgentTask
from clew.history.paging import DEFAULT_LIMIT, Conditions, Page, Shelf, equal

TaskStatus = Literal["running", "completed", "failed", "cancelled", "lost"]

_TABLE: Final[Table] = AgentTask.__table__  # type: ignore[assignment]
TASKS: Final = Shelf(table=_TABLE, large=frozenset({"result", "metadata", "traceback"}))
"""All tasks."""


@dataclass(frozen=True, kw_only=True)
class TaskFilter:
    """Which tasks are wanted; what is ``None`` does not matter.

    Attributes:
        agent: whose they are.
        type: what kind of agent that is.
        status: the task's status.
        task_id: what it is about.
        user: for whom it is done.
        handoff_id: the handoff that it picked up.
        since: recorded at this time or later, with a time zone.
        until: recorded before this time, with a time zone.
        error: words that the error's type or message has, each of them, in any order and case.
        trace_id: the trace it belongs to.
        correlation_id: the correlation id it carries.
    """

    agent: str | None = None
    type: str | None = None
    status: TaskStatus | None = None
    task_id: str | None = None
    user: str | None = None
    handoff_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    error: str | None = None
    trace_id: str | None = None
    correlation_id: str | None = None


def page(
    connection: Connection,
    wanted: TaskFilter | None = None,
    *,
    after: str | None = None,
    before: str | None = None,
    limit: int = DEFAULT_LIMIT,
) -> Page:
    """Return tasks, newest first: see :meth:`clew.history.paging.Shelf.page`.

    Args:
        connection: to the history.
        wanted: which ones; by default all.
        after: ``next`` of the page before: older tasks than that page's.
        before: ``previous`` of a page: newer tasks than that page's.
        limit: how many.

    Raises:
        ValueError: `after` or `before` is none of ours.

    Example:
        >>> from clew.history.reading import Reader
        >>> with Reader("sqlite:////nowhere/history.db").open() as connection:
        ...     page(connection, TaskFilter(status="failed")).rows
        []
    """
    wanted = wanted or TaskFilter()
    conditions = Conditions()
    conditions.within(_TABLE, wanted.since, wanted.until)
    conditions.exactly(
        equal(_TABLE.c.trace_id, wanted.trace_id),
        equal(_TABLE.c.correlation_id, wanted.correlation_id),
        equal(_TABLE.c.task_id, wanted.task_id),
        equal(_TABLE.c.handoff_id, wanted.handoff_id),
        equal(_TABLE.c.user_id, wanted.user),
        equal(_TABLE.c.agent, wanted.agent),
        equal(_TABLE.c.status, wanted.status),
    )
    if wanted.type is not None:
        conditions.scanned.append(_TABLE.c.type == wanted.type)
    conditions.words(wanted.error, _TABLE.c.error_message, _TABLE.c.error_type)
    return TASKS.page(connection, conditions, after=after, before=before, limit=limit)
