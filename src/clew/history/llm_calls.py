"""LLM calls, newest first, page by page."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from sqlalchemy import Connection, Table

from clew.history.models import LlmCall
from clew.history.paging import DEFAULT_LIMIT, Conditions, Page, Shelf, equal

CallStatus = Literal["completed", "failed", "cancelled"]

_TABLE: Final[Table] = LlmCall.__table__  # type: ignore[assignment]
CALLS: Final = Shelf(table=_TABLE, large=frozenset({"prompt", "completion"}))
"""All calls."""


@dataclass(frozen=True, kw_only=True)
class CallFilter:
    """Which calls are wanted; what is ``None`` does not matter.

    Attributes:
        model: the model that was asked for.
        provider: who was asked.
        agent: the agent that asked.
        user: for whom it was asked.
        service: the service that asked.
        status: how it ended.
        since: recorded at this time or later, with a time zone. A call is recorded when it ends.
        until: recorded before this time, with a time zone.
        error: words that the error's type or message has, each of them, in any order and case.
        trace_id: the trace it belongs to.
        correlation_id: the correlation id it carries.

    Example:
        >>> CallFilter(model="gpt-4o", status="failed").model
        'gpt-4o'
    """

    model: str | None = None
    provider: str | None = None
    agent: str | None = None
    user: str | None = None
    service: str | None = None
    status: CallStatus | None = None
    since: datetime | None = None
    until: datetime | None = None
    error: str | None = None
    trace_id: str | None = None
    correlation_id: str | None = None


def page(
    connection: Connection,
    wanted: CallFilter | None = None,
    *,
    after: str | None = None,
    before: str | None = None,
    limit: int = DEFAULT_LIMIT,
) -> Page:
    """Return calls, newest first: see :meth:`clew.history.paging.Shelf.page`.

    Words of an error, a provider, a service, and filters that are combined, have to be looked for.

    Args:
        connection: to the history.
        wanted: which ones; by default all.
        after: ``next`` of the page before: older calls than that page's.
        before: ``previous`` of a page: newer calls than that page's.
        limit: how many.

    Raises:
        ValueError: `after` or `before` is none of ours.

    Example:
        >>> from clew.history.reading import Reader
        >>> with Reader("sqlite:////nowhere/history.db").open() as connection:
        ...     page(connection, CallFilter(status="failed")).rows
        []
    """
    wanted = wanted or CallFilter()
    conditions = Conditions()
    conditions.within(_TABLE, wanted.since, wanted.until)
    # What tells most comes first
    conditions.exactly(
        equal(_TABLE.c.trace_id, wanted.trace_id),
        equal(_TABLE.c.correlation_id, wanted.correlation_id),
        equal(_TABLE.c.user_id, wanted.user),
        equal(_TABLE.c.agent, wanted.agent),
        equal(_TABLE.c.model, wanted.model),
        equal(_TABLE.c.status, wanted.status),
    )
    for column, value in ((_TABLE.c.provider, wanted.provider), (_TABLE.c.service, wanted.service)):
        if value is not None:
            conditions.scanned.append(column == value)
    conditions.words(wanted.error, _TABLE.c.error_message, _TABLE.c.error_type)
    return CALLS.page(connection, conditions, after=after, before=before, limit=limit)
