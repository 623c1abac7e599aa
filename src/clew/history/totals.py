"""Reading the totals: whole days from the totals by day, the hours at both ends from those by hour, so that few rows are read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Connection, Select, func, select

from clew.history.models import JobRunDailyTotal, JobRunTotal


@dataclass(frozen=True, kw_only=True)
class Total:
    """Runs of a job that ended with a status after about the same time.

    Attributes:
        job: the job's name.
        status: how they ended.
        bucket: how long they took: see :func:`clew.history.tally.middle_s`.
        runs: how many.
        duration_s: how long all of them took together.
    """

    job: str
    status: str
    bucket: int
    runs: int
    duration_s: float


def totals(
    connection: Connection, *, since: datetime | None = None, until: datetime | None = None, job: str | None = None
) -> list[Total]:
    """Return how runs of jobs ended within a time.

    Args:
        connection: where to read.
        since: the beginning of it, rounded down to the hour; by default the beginning of all.
        until: the end of it, rounded up to the hour; by default there is none.
        job: of this job only.
    """
    parts = [
        _part(JobRunDailyTotal, JobRunDailyTotal.day, begin, end, job)
        if grain == "day"
        else _part(JobRunTotal, JobRunTotal.hour, begin, end, job)
        for grain, begin, end in stretches(since, until)
    ]
    runs: Counter[tuple[str, str, int]] = Counter()
    seconds: dict[tuple[str, str, int], float] = {}
    for part in parts:
        for name, status, bucket, number, took in connection.execute(part):
            key = (name, status, bucket)
            runs[key] += int(number)
            seconds[key] = seconds.get(key, 0.0) + float(took)
    return [
        Total(job=key[0], status=key[1], bucket=key[2], runs=number, duration_s=seconds[key])
        for key, number in sorted(runs.items())
        # A run that was taken for lost and ended after all has left a total of none
        if number
    ]


def stretches(
    since: datetime | None, until: datetime | None
) -> list[tuple[Literal["hour", "day"], datetime | None, datetime | None]]:
    """Return what a time is made of: whole days in the middle, and hours at both ends; a stretch without an end has ``None``.

    Args:
        since: the beginning, rounded down to the hour; by default the beginning of all.
        until: the end, rounded up to the hour; by default there is none.

    Example:
        >>> since, until = datetime(2026, 1, 1, 23, 30, tzinfo=UTC), datetime(2026, 1, 3, tzinfo=UTC)
        >>> [(grain, str(begin)[5:13], str(end)[5:13]) for grain, begin, end in stretches(since, until)]
        [('day', '01-02 00', '01-03 00'), ('hour', '01-01 23', '01-02 00')]
    """
    first = hour_of(since) if since is not None else None
    last = until_hour(until) if until is not None else None
    # The days that lie within it as a whole
    from_day = _ceil_day(first) if first is not None else None
    to_day = last.replace(hour=0) if last is not None else None
    if from_day is not None and to_day is not None and from_day >= to_day:
        return [("hour", first, last)]
    parts: list[tuple[Literal["hour", "day"], datetime | None, datetime | None]] = [("day", from_day, to_day)]
    if first is not None and from_day is not None and first < from_day:
        parts.append(("hour", first, from_day))
    if last is not None and to_day is not None and to_day < last:
        parts.append(("hour", to_day, last))
    return parts


def _part(model: Any, column: Any, since: datetime | None, until: datetime | None, job: str | None) -> Select[Any]:
    columns = (model.job, model.status, model.bucket)
    query = select(*columns, func.sum(model.runs), func.sum(model.duration_s)).group_by(*columns)
    if since is not None:
        query = query.where(column >= since)
    if until is not None:
        query = query.where(column < until)
    return query if job is None else query.where(model.job == job)


def hour_of(at: datetime) -> datetime:
    """Return the beginning of the hour that a time is in."""
    return at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def until_hour(at: datetime) -> datetime:
    """Return the end of the hour that a time is in; a whole hour is its own end."""
    hour = hour_of(at)
    return hour if hour == at else hour + timedelta(hours=1)


def _ceil_day(hour: datetime) -> datetime:
    return hour if hour.hour == 0 else hour.replace(hour=0) + timedelta(days=1)
