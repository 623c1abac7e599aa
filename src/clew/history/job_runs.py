"""Runs of jobs, newest first, page by page: each page costs the same, however far back it is and however many runs there are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, Table, and_, func, or_, select
from sqlalchemy.orm import InstrumentedAttribute

from clew.history.ids import ID_LENGTH, least_id, made_at
from clew.history.models import JobRun

RunStatus = Literal["scheduled", "running", "completed", "failed", "cancelled", "missed", "skipped", "lost"]
RunSource = Literal["apscheduler", "celery", "clew"]

MAX_LIMIT: Final = 500
DEFAULT_LIMIT: Final = 50
MAX_SCANNED: Final = 10_000
"""How many runs one page looks through for what no index knows."""
MIN_PART: Final = 4
"""How many digits of an id tell enough to look for it."""

MAX_WORDS: Final = 8
"""How many words of an error are looked for; more are passed over."""

_ERROR_HEAD: Final = 300
_HEX: Final = re.compile(rf"[0-9a-f]{{1,{ID_LENGTH}}}")
_TABLE: Final[Table] = JobRun.__table__  # type: ignore[assignment]
# Large, and told of one run only
_ONE_RUN_ONLY: Final = frozenset({"result", "metadata", "traceback", "error_message"})

Row = RowMapping
"""Columns of a run by their names."""


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


@dataclass(frozen=True, kw_only=True)
class RunPage:
    """Some runs, newest first.

    Attributes:
        runs: columns by name, without those that are large; of an error's message its beginning.
        next: where older runs go on, or ``None`` where there are none.
        previous: where newer runs go on, or ``None`` on the first page.
        searched_to: where the search was left off, because there was much to look through; it goes on at ``next``.
    """

    runs: Sequence[Row]
    next: str | None
    previous: str | None
    searched_to: datetime | None = None


def page(
    connection: Connection,
    wanted: RunFilter | None = None,
    *,
    after: str | None = None,
    before: str | None = None,
    limit: int = DEFAULT_LIMIT,
) -> RunPage:
    """Return runs, newest first.

    Words of an error, a source, and filters that are combined in ways that no index knows, are looked for in
    :data:`MAX_SCANNED` runs at a time: a page may then have fewer runs than wanted, or none, and a ``next`` all the same.

    Args:
        connection: to the history.
        wanted: which ones; by default all.
        after: ``next`` of the page before: older runs than that page's.
        before: ``previous`` of a page: newer runs than that page's.
        limit: how many, :data:`MAX_LIMIT` at most.

    Raises:
        ValueError: `after` or `before` is none of ours.

    Example:
        >>> from clew.history.reading import Reader
        >>> with Reader("sqlite:////nowhere/history.db").open() as connection:
        ...     page(connection, RunFilter(status="failed")).runs
        []
    """
    wanted = wanted or RunFilter()
    limit = max(1, min(limit, MAX_LIMIT))
    backward = before is not None and after is None
    start = _cursor(before if backward else after)
    indexed, scanned = _conditions(wanted)
    if start is not None:
        indexed.append(JobRun.id > start if backward else JobRun.id < start)
    order = JobRun.id.asc() if backward else JobRun.id.desc()
    edge: str | None = None
    if scanned:
        edge = connection.scalar(_edge(indexed, order))
        if edge is not None:
            indexed.append(JobRun.id <= edge if backward else JobRun.id >= edge)
    query = select(*_listed()).where(*indexed, *scanned).order_by(order).limit(limit + 1)
    found: list[Row] = [row._mapping for row in connection.execute(query)]
    more = len(found) > limit
    found = found[:limit]
    searched_to = made_at(edge) if edge is not None and not more else None
    onward = found[-1]["id"] if more else edge
    if backward:
        found.reverse()
        # Whoever finds nothing newer comes back to where he was
        back = found[-1]["id"] if found else _beside(start, 1)
        return RunPage(runs=found, next=back, previous=onward, searched_to=searched_to)
    back = found[0]["id"] if found else _beside(start, -1)
    return RunPage(runs=found, next=onward, previous=back if start is not None else None, searched_to=searched_to)


def one(connection: Connection, identity: str) -> Row | None:
    """Return a run with all of its columns, or ``None`` where there is none of that id."""
    if not _HEX.fullmatch(identity):
        return None
    row = connection.execute(select(*_TABLE.c).where(JobRun.id == identity)).first()
    return row._mapping if row is not None else None


def alike(connection: Connection, part: str, *, limit: int = 10) -> list[Row]:
    """Return the runs whose id begins, or else ends, with a part of one; ends are looked for among the newest runs only.

    Args:
        connection: to the history.
        part: hexadecimal digits, four at least; hyphens are left out.
        limit: how many.

    Example:
        >>> from clew.history.reading import Reader
        >>> with Reader("sqlite:////nowhere/history.db").open() as connection:
        ...     alike(connection, "018cc251")
        []
    """
    digits = part.strip().lower().replace("-", "")
    if not _HEX.fullmatch(digits) or len(digits) < MIN_PART:
        return []
    # A range, not LIKE: an index serves it in every database and collation
    lowest, highest = digits.ljust(ID_LENGTH, "0"), digits.ljust(ID_LENGTH, "f")
    newest = select(*_listed()).order_by(JobRun.id.desc()).limit(limit)
    begins = newest.where(JobRun.id >= lowest, JobRun.id <= highest)
    found = list(connection.execute(begins))
    if not found:
        among = select(JobRun.id).order_by(JobRun.id.desc()).limit(20 * MAX_SCANNED).subquery()
        ends = select(among.c.id).where(func.substr(among.c.id, ID_LENGTH + 1 - len(digits)) == digits).limit(limit)
        found = list(connection.execute(newest.where(JobRun.id.in_(ends.scalar_subquery()))))
    return [row._mapping for row in found]


def _listed() -> list[ColumnElement[Any]]:
    columns: list[ColumnElement[Any]] = [column for column in _TABLE.c if column.name not in _ONE_RUN_ONLY]
    return [*columns, func.substr(_TABLE.c.error_message, 1, _ERROR_HEAD).label("error_message")]


def _conditions(wanted: RunFilter) -> tuple[list[ColumnElement[bool]], list[ColumnElement[bool]]]:
    """Return the conditions that an index serves in the order of ids, and those for which runs have to be looked through."""
    indexed: list[ColumnElement[bool]] = []
    scanned: list[ColumnElement[bool]] = []
    if wanted.since is not None:
        indexed.append(JobRun.id >= least_id(wanted.since))
    if wanted.until is not None:
        indexed.append(JobRun.id < least_id(wanted.until))
    # The first of these that is given has an index of its own; the rest is looked for in what that one finds
    exact: tuple[tuple[InstrumentedAttribute[Any], str | None], ...] = (
        (JobRun.trace_id, wanted.trace_id),
        (JobRun.correlation_id, wanted.correlation_id),
        (JobRun.user_id, wanted.user),
    )
    chosen = [column == value for column, value in exact if value is not None]
    kind = and_(*_kind(wanted)) if _kind(wanted) else None
    if kind is not None:
        chosen.append(kind)
    indexed += chosen[:1]
    scanned += chosen[1:]
    if wanted.source is not None:
        scanned.append(JobRun.source == wanted.source)
    for word in (wanted.error or "").split()[:MAX_WORDS]:
        pattern = f"%{_escaped(word)}%"
        scanned.append(
            or_(JobRun.error_message.ilike(pattern, escape="\\"), JobRun.error_type.ilike(pattern, escape="\\"))
        )
    return indexed, scanned


def _kind(wanted: RunFilter) -> list[ColumnElement[bool]]:
    """Return what the index of jobs, of statuses, or of jobs with their statuses serves."""
    given = ((JobRun.job, wanted.job), (JobRun.status, wanted.status))
    return [column == value for column, value in given if value is not None]


def _edge(indexed: Sequence[ColumnElement[bool]], order: Any) -> Select[Any]:
    return select(JobRun.id).where(*indexed).order_by(order).limit(1).offset(MAX_SCANNED)


def _escaped(words: str) -> str:
    return re.sub(r"([\\%_])", r"\\\1", words)


def _beside(identity: str | None, step: int) -> str | None:
    return None if identity is None else f"{max(0, min(int(identity, 16) + step, 16**ID_LENGTH - 1)):0{ID_LENGTH}x}"


def _cursor(value: str | None) -> str | None:
    if value is None:
        return None
    if len(value) != ID_LENGTH or not _HEX.fullmatch(value):
        raise ValueError("give what 'next' or 'previous' of a page said")
    return value
