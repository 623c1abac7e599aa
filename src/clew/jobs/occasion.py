"""What made a job run: who fires it, when it was due, for whom, and the how manieth attempt it is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Occasion:
    """The occasion of a run.

    Attributes:
        source: what fires the job: ``clew`` (the app itself), ``apscheduler``, ``celery`` or ``taskiq``.
        job_id: the job's or task's id there, which may tell one request from another.
        trigger: the kind of trigger, such as ``cron``.
        scheduled_at: when it was due, with a time zone.
        lateness_s: how much later it started, in seconds.
        attempt: 1 for the first.
        user_id: who asked for it.
        job_key: what the same job has in every process that fires it, where that is known.
        period_s: the time between two runs, where it begins when a process does, in seconds.
        run_id: the id of the run's record, where another process is to know it, too; by default a fresh one.
    """

    source: str = "clew"
    job_id: str | None = None
    trigger: str | None = None
    scheduled_at: datetime | None = None
    lateness_s: float | None = None
    attempt: int = 1
    user_id: str | None = None
    job_key: str | None = None
    period_s: float | None = None
    run_id: str | None = None
