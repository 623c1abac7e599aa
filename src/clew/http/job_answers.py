"""What is answered about jobs: the same for the HTTP API and for the command line. Times are UTC, durations are seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, Self

from pydantic import Field

from clew.history.job_statistics import JobStatistics as Known
from clew.history.job_statistics import LastRun, Report, Statistics
from clew.history.paging import Page, Row
from clew.http.answers import Answer
from clew.jobs.control import Command, Job


class RunInShort(Answer):
    """A run, in short."""

    id: str
    status: str
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, run: LastRun | None) -> Self | None:
        """Return what is answered of a run."""
        return cls(**run._asdict()) if run is not None else None


class RunAnswer(Answer):
    """A run of a job: one that goes on, has ended, or did not start."""

    id: str
    job: str = Field(description="The job's name.")
    job_id: str | None = Field(description="The job's id in its scheduler, or the task's in its queue.")
    source: str = Field(description="What started it: apscheduler, celery, taskiq or clew.")
    trigger: str | None
    status: str = Field(
        description="scheduled, running, completed, failed, cancelled, missed (too late to start), "
        "skipped (the run before went on) or lost (its process died)."
    )
    attempt: int
    progress: float | None = Field(description="From 0 to 1, where the job tells.")
    scheduled_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    duration_s: float | None
    lateness_s: float | None
    user_id: str | None
    error_type: str | None
    error_message: str | None = Field(description="Of a run in a list, how it begins.")
    trace_id: str | None
    span_id: str | None
    correlation_id: str | None
    service: str
    instance: str
    host: str | None
    pid: int | None
    heartbeat_at: datetime | None
    duplicate_of: str | None = Field(description="The run of the same job and time that another process had started.")
    recorded_at: datetime

    @classmethod
    def of(cls, row: Row) -> Self:
        """Return what is answered of a run."""
        return cls.model_validate(dict(row))


class WholeRun(RunAnswer):
    """A run of a job with all that is kept of it."""

    result: Any = Field(description="What the job set as its result, or returned; cut where it was large.")
    metadata: Any = Field(description="What the run was started with, or set; cut where it was large.")
    traceback: str | None = Field(description="Cut where it was large.")


class RunsAnswer(Answer):
    """Some runs, newest first."""

    runs: list[RunAnswer]
    next: str | None = Field(description="Give it as `after` for older runs; null where there are none.")
    previous: str | None = Field(description="Give it as `before` for newer runs; null on the first page.")
    limit: int
    searched_to: datetime | None = Field(
        description="How far back was looked, where that had an end before the page was full: go on with `next`."
    )

    @classmethod
    def of(cls, page: Page, *, limit: int) -> Self:
        """Return what is answered of a page."""
        runs = [RunAnswer.of(row) for row in page.rows]
        return cls(runs=runs, next=page.next, previous=page.previous, limit=limit, searched_to=page.searched_to)


class StatisticsAnswer(Answer):
    """What is known of runs that ended."""

    total: int = Field(description="Runs that started and ended.")
    ok: int = Field(description="Those that completed.")
    failed: int = Field(description="Those that failed, or were lost with their process.")
    cancelled: int
    missed: int = Field(description="Runs that did not start, because it was too late.")
    skipped: int = Field(description="Runs that did not start, because the run before went on.")
    success_rate: float | None = Field(description="The completed among the completed and the failed, from 0 to 1.")
    average_s: float | None
    p50_s: float | None = Field(description="Half of the runs took no longer; give or take 5 %.")
    p95_s: float | None = Field(description="95 % of the runs took no longer; give or take 5 %.")
    running: int = Field(description="Runs that go on now.")


class JobStatisticsAnswer(StatisticsAnswer):
    """What is known of one job."""

    job: str
    last_run: RunInShort | None = Field(description="The run that was recorded last, at any time.")
    last_success: RunInShort | None = Field(description="The last one that completed, at any time.")
    next_run_at: datetime | None = Field(description="When a scheduler will run it next.")

    @classmethod
    def of_job(cls, known: Known) -> Self:
        """Return what is answered of a job."""
        return cls(
            **_figures(known.statistics),
            job=known.job,
            last_run=RunInShort.of(known.last_run),
            last_success=RunInShort.of(known.last_success),
            next_run_at=known.next_run_at,
        )


class ReportAnswer(Answer):
    """Statistics of all jobs, and of each."""

    since: datetime | None = Field(serialization_alias="from", description="The whole hour that it begins with.")
    until: datetime | None = Field(serialization_alias="to", description="The whole hour that it ends with.")
    overall: StatisticsAnswer
    jobs: list[JobStatisticsAnswer] = Field(description="By name.")
    is_cut: bool = Field(description="There are more jobs than are told of one by one.")

    @classmethod
    def of(cls, report: Report) -> Self:
        """Return what is answered of a report."""
        return cls(
            since=report.since,
            until=report.until,
            overall=StatisticsAnswer(**_figures(report.overall)),
            jobs=[JobStatisticsAnswer.of_job(job) for job in report.jobs],
            is_cut=report.is_cut,
        )


class ScheduledJobAnswer(Answer):
    """A job that a scheduler has."""

    id: str = Field(description="The job's id in its scheduler.")
    name: str = Field(description="The job's name, which its runs go by.")
    trigger: str
    next_run_at: datetime | None
    pending: bool = Field(description="The scheduler has not started yet.")
    paused: bool
    service: str
    instance: str
    scheduler: str
    stored: str = Field(description="Where the scheduler keeps it.")
    heartbeat_at: datetime = Field(description="When its process last told.")
    host: str
    pid: int

    @classmethod
    def of(cls, job: Job) -> Self:
        """Return what is answered of a job."""
        return cls.model_validate({**asdict(job), "id": job.job_id, "name": job.job})


class ScheduledJobsAnswer(Answer):
    """The jobs that schedulers have."""

    jobs: list[ScheduledJobAnswer]
    is_cut: bool = Field(description="There are more jobs than these.")

    @classmethod
    def of(cls, jobs: Sequence[Job], *, limit: int) -> Self:
        """Return what is answered of jobs."""
        return cls(jobs=[ScheduledJobAnswer.of(job) for job in jobs[:limit]], is_cut=len(jobs) > limit)


class CommandAnswer(Answer):
    """What was asked of a scheduler, and what came of it."""

    id: str
    job_id: str
    verb: str = Field(description="run, pause, resume or remove.")
    instance: str
    scheduler: str
    requested_by: str | None
    requested_at: datetime
    done_at: datetime | None = Field(description="null while the scheduler has not taken it.")
    outcome: str | None = Field(description="In words; null while the scheduler has not taken it.")

    @classmethod
    def of(cls, command: Command) -> Self:
        """Return what is answered of a command."""
        return cls.model_validate(command)


def _figures(statistics: Statistics) -> dict[str, Any]:
    return {name: getattr(statistics, name) for name in StatisticsAnswer.model_fields}
