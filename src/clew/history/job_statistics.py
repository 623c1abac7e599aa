"""Statistics of jobs, read from the totals that every end of a run adds to: as quick for a million runs as for a hundred."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple

from sqlalchemy import Connection, func, literal, select

from clew.history.models import JobRun, ScheduledJob
from clew.history.tally import NO_DURATION, middle_s
from clew.history.totals import hour_of, totals, until_hour

MAX_JOBS: Final = 500
"""How many jobs are told of one by one; those beyond are in the figures of all."""

_FAILED: Final = ("failed", "lost")
_STARTED: Final = ("completed", "failed", "lost", "cancelled")


class LastRun(NamedTuple):
    """A run, in short."""

    id: str
    status: str
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What is known of runs that ended.

    Attributes:
        total: runs that started and ended.
        ok: those that completed.
        failed: those that failed, or were lost with their process.
        cancelled: those that were cancelled.
        missed: runs that were due and did not start, because it was too late.
        skipped: runs that were due and did not start, because the run before went on.
        success_rate: the completed among the completed and the failed, from 0 to 1; ``None`` where there are neither.
        average_s: the mean duration.
        p50_s: half of the runs took no longer than this, give or take 5 %.
        p95_s: 95 % of the runs took no longer than this, give or take 5 %.
        running: runs that go on now.
    """

    total: int = 0
    ok: int = 0
    failed: int = 0
    cancelled: int = 0
    missed: int = 0
    skipped: int = 0
    success_rate: float | None = None
    average_s: float | None = None
    p50_s: float | None = None
    p95_s: float | None = None
    running: int = 0


@dataclass(frozen=True, kw_only=True)
class JobStatistics:
    """What is known of one job.

    Attributes:
        job: its name.
        statistics: of its runs within the time asked for.
        last_run: the run that was recorded last, at any time.
        last_success: the last one that completed, at any time.
        next_run_at: when a scheduler will run it next.
    """

    job: str
    statistics: Statistics
    last_run: LastRun | None = None
    last_success: LastRun | None = None
    next_run_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is known of all jobs.

    Attributes:
        since: from when on, a whole hour; ``None`` for the beginning.
        until: until when, a whole hour; ``None`` for now.
        overall: of all jobs together.
        jobs: of each job, by name.
        is_cut: there are more jobs than are told of one by one.
    """

    since: datetime | None
    until: datetime | None
    overall: Statistics
    jobs: Sequence[JobStatistics]
    is_cut: bool = False


@dataclass(slots=True)
class _Sum:
    """What the totals of a job add up to."""

    by_status: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    buckets: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    took_s: float = 0.0
    running: int = 0

    def add(self, status: str, bucket: int, runs: int, took_s: float) -> None:
        self.by_status[status] += runs
        if bucket != NO_DURATION:
            self.buckets[bucket] += runs
            self.took_s += took_s

    def statistics(self) -> Statistics:
        ok = self.by_status["completed"]
        failed = sum(self.by_status[status] for status in _FAILED)
        timed = sum(self.buckets.values())
        return Statistics(
            total=sum(self.by_status[status] for status in _STARTED),
            ok=ok,
            failed=failed,
            cancelled=self.by_status["cancelled"],
            missed=self.by_status["missed"],
            skipped=self.by_status["skipped"],
            success_rate=ok / (ok + failed) if ok + failed else None,
            average_s=max(0.0, self.took_s) / timed if timed > 0 else None,
            p50_s=self._quantile(0.5, timed),
            p95_s=self._quantile(0.95, timed),
            running=self.running,
        )

    def _quantile(self, share: float, timed: int) -> float | None:
        passed = 0
        for bucket, runs in sorted(self.buckets.items()):
            passed += runs
            if runs > 0 and passed >= share * timed:
                return middle_s(bucket)
        return None


def report(
    connection: Connection,
    *,
    job: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int = MAX_JOBS,
) -> Report:
    """Return the statistics of jobs: of runs that ended within a time.

    Totals are kept by the hour, so the time begins and ends with whole hours: it takes in the hours that `since` and `until` are
    in. Runs that go on, the last run and the next one are told as they are now.

    Args:
        connection: to the history.
        job: of this one only.
        since: from then on, with a time zone; by default from the beginning.
        until: until then, with a time zone; by default until now.
        limit: how many jobs, :data:`MAX_JOBS` at most.

    Example:
        >>> from clew.history.reading import Reader
        >>> with Reader("sqlite:////nowhere/history.db").open() as connection:
        ...     report(connection).overall.total
        0
    """
    sums: defaultdict[str, _Sum] = defaultdict(_Sum)
    overall = _Sum()
    for total in totals(connection, since=since, until=until, job=job):
        for known in (sums[total.job], overall):
            known.add(total.status, total.bucket, total.runs, total.duration_s)
    for name, running in _running(connection, job):
        sums[name].running = running
        overall.running += running
    upcoming = _next_runs(connection, job)
    last, successes = _last_runs(connection, job)
    names = sorted({*sums, *upcoming, *last})
    told = names[: max(1, min(limit, MAX_JOBS))]
    short = _in_short(connection, [*(last.get(name) for name in told), *(successes.get(name) for name in told)])
    jobs = [
        JobStatistics(
            job=name,
            statistics=sums[name].statistics(),
            last_run=short.get(last.get(name, "")),
            last_success=short.get(successes.get(name, "")),
            next_run_at=upcoming.get(name),
        )
        for name in told
    ]
    return Report(
        since=hour_of(since) if since is not None else None,
        until=until_hour(until) if until is not None else None,
        overall=overall.statistics(),
        jobs=jobs,
        is_cut=len(names) > len(told),
    )


def _running(connection: Connection, job: str | None) -> Iterable[tuple[str, int]]:
    query = select(JobRun.job, func.count()).where(JobRun.status == "running").group_by(JobRun.job)
    if job is not None:
        query = query.where(JobRun.job == job)
    return [(row[0], row[1]) for row in connection.execute(query)]


def _next_runs(connection: Connection, job: str | None) -> Mapping[str, datetime | None]:
    query = select(ScheduledJob.job, func.min(ScheduledJob.next_run_at)).group_by(ScheduledJob.job)
    if job is not None:
        query = query.where(ScheduledJob.job == job)
    return {row[0]: row[1] for row in connection.execute(query)}


def _last_runs(connection: Connection, only: str | None) -> tuple[dict[str, str], dict[str, str]]:
    """Return the ids of the last run of each job, and of the last one that completed, by job."""
    if only is not None:
        jobs = select(literal(only).label("job")).cte("jobs")
    else:
        # From each job's name to the next one in the index: not a million rows for forty names
        jobs = select(func.min(JobRun.job).label("job")).cte("jobs", recursive=True)
        following = select(func.min(JobRun.job)).where(JobRun.job > jobs.c.job).scalar_subquery()
        jobs = jobs.union_all(select(following).where(jobs.c.job.is_not(None)))
    newest = select(func.max(JobRun.id)).where(JobRun.job == jobs.c.job)
    success = newest.where(JobRun.status == "completed")
    query = select(jobs.c.job, newest.scalar_subquery(), success.scalar_subquery()).where(jobs.c.job.is_not(None))
    rows = connection.execute(query).all()
    return {row[0]: row[1] for row in rows if row[1]}, {row[0]: row[2] for row in rows if row[2]}


def _in_short(connection: Connection, ids: Iterable[str | None]) -> dict[str, LastRun]:
    query = select(JobRun.id, JobRun.status, JobRun.started_at, JobRun.finished_at)
    rows = connection.execute(query.where(JobRun.id.in_({identity for identity in ids if identity is not None})))
    return {row.id: LastRun(*row) for row in rows}
