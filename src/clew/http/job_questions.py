"""What may be asked about jobs, and what is allowed: the same for the HTTP API and for the command line."""

from __future__ import annotations

from pydantic import Field

from clew.history.job_runs import RunFilter, RunSource, RunStatus
from clew.history.job_statistics import MAX_JOBS
from clew.http.question import PageQuestion, Question, Text, TimeQuestion, TraceId


class RunsQuestion(PageQuestion):
    """Which runs are asked for."""

    job: Text | None = Field(default=None, description="Runs of this job, by its name.")
    status: RunStatus | None = Field(default=None, description="Runs with this status.")
    source: RunSource | None = Field(default=None, description="Runs that were started by this.")
    user: Text | None = Field(default=None, description="Runs that this user asked for.")
    error: Text | None = Field(
        default=None, description="Words that the error's type or message has, each of them, in any order."
    )
    trace_id: TraceId | None = Field(default=None, description="Runs of this trace: 32 hexadecimal digits.")
    correlation_id: Text | None = Field(default=None, description="Runs with this correlation id.")

    def filter(self) -> RunFilter:
        """Return it as the history takes it."""
        return RunFilter(
            job=self.job,
            status=self.status,
            source=self.source,
            user=self.user,
            since=self.begin(),
            until=self.until,
            error=self.error,
            trace_id=self.trace_id,
            correlation_id=self.correlation_id,
        )


class StatisticsQuestion(TimeQuestion):
    """Which statistics are asked for."""

    job: Text | None = Field(default=None, description="Of this job only, by its name.")
    limit: int = Field(
        default=MAX_JOBS, ge=1, description=f"How many jobs are told of one by one; not more than {MAX_JOBS}."
    )


class JobsQuestion(Question):
    """Which jobs of schedulers are asked for."""

    job: Text | None = Field(default=None, description="Jobs of this name.")
    instance: Text | None = Field(default=None, description="Those of this instance of a service.")
    limit: int = Field(default=MAX_JOBS, ge=1, description=f"How many jobs; not more than {MAX_JOBS}.")


class ControlQuestion(Question):
    """Which scheduler's job is meant, where several have one of that id."""

    instance: Text | None = Field(default=None, description="The instance of the service whose job is meant.")
    scheduler: Text | None = Field(default=None, description="The scheduler whose job is meant.")
    user: Text | None = Field(default=None, description="Who asks for it; a run that is started becomes theirs.")
