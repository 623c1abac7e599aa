"""What the process has to do: its schedulers with their jobs, and its runs.

Job stores and the history may be databases, which may hang: they are asked as checks are, one look at a time.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from clew import clock
from clew.engine.lifecycle import lifecycle
from clew.health.answers import PATIENCE_S, Answer, Overall, code_of
from clew.health.check import Check, HealthReport, Status
from clew.health.checks.scheduler import is_alive, is_paused, late_by_s, schedulers
from clew.health.sweep import Sweep
from clew.health.watcher import Watcher
from clew.jobs.running import running

MAX_JOBS: Final = 1_000
MAX_LATEST_RUNS: Final = 20
_TIMEOUT_S: Final = 2.0
_FRESH_S: Final = 0.5


class JobStatus(BaseModel):
    """A job of a scheduler."""

    id: str
    name: str
    trigger: str
    next_run_at: datetime | None
    paused: bool
    pending: bool
    overdue_s: float


class SchedulerStatus(BaseModel):
    """A scheduler and its jobs, a thousand at most; it is stopped where it was not started, or was shut down."""

    kind: str
    running: bool
    stopped: bool
    paused: bool
    jobs: list[JobStatus]


class RunStatus(BaseModel):
    """A run of a job of this process. Its error, result and metadata are in the history."""

    id: str
    job: str
    status: str
    attempt: int
    started_at: datetime | None
    finished_at: datetime | None
    duration_s: float | None
    progress: float | None
    trace_id: str | None


class Jobs(BaseModel):
    """The runs of this process: those that go on, and the latest that ended, newest first; and what its schedulers have.

    Where a job store or the history does not answer, the text says so.
    """

    running: list[RunStatus]
    latest: list[RunStatus]
    text: str
    schedulers: list[SchedulerStatus]


class Schedulers(Overall):
    """The schedulers of the process: failed where one should run and does not, degraded where one is paused.

    Where a job store does not answer, the text says so, and the jobs are those that were known before.
    """

    text: str
    schedulers: list[SchedulerStatus]


def scheduled() -> Answer:
    """Answer what the schedulers of the process have to do."""
    return _scheduled(Sweep([_known.schedulers], patience_s=PATIENCE_S).run())


async def scheduled_async() -> Answer:
    """Do as :func:`scheduled`, while the event loop runs on."""
    return _scheduled(await Sweep([_known.schedulers], patience_s=PATIENCE_S).run_async())


def jobs() -> Answer:
    """Answer which runs of the process go on, which were the latest, and what its schedulers have."""
    report = Sweep([_known.schedulers, _known.runs], patience_s=PATIENCE_S).run()
    body = Jobs(
        running=[_running(run, record) for run, record in running.all() if record is not None][:MAX_JOBS],
        latest=_known.latest,
        text="; ".join(f"{result.name}: {result.text}" for result in report.results if result.text),
        schedulers=_known.found,
    )
    return Answer(status=200, body=body)


class _Known:
    """What was found when it was asked last."""

    def __init__(self) -> None:
        self.found: list[SchedulerStatus] = []
        self.latest: list[RunStatus] = []
        self.schedulers = self._watcher("schedulers", self._ask_schedulers)
        self.runs = self._watcher("history", self._ask_history)

    @staticmethod
    def _watcher(name: str, probe: Any) -> Watcher:
        return Watcher(Check(name=name, probe=probe, timeout_s=_TIMEOUT_S, fresh_s=_FRESH_S), lambda _: None)

    def _ask_schedulers(self) -> None:
        now = clock.utc_now()
        self.found = [_scheduler(one, now) for one in schedulers()]

    def _ask_history(self) -> None:
        self.latest = _latest()


_known = _Known()


def _after_fork() -> None:
    global _known
    _known = _Known()


os.register_at_fork(after_in_child=_after_fork)


def _scheduled(report: HealthReport) -> Answer:
    result, found = report.results[0], _known.found
    status: Status = "ok"
    if any(one.paused for one in found):
        status = "degraded"
    if result.status == "failed" or any(not (one.running or one.stopped) for one in found):
        status = "failed"
    return Answer(status=code_of(status), body=Schedulers(status=status, text=result.text, schedulers=found))


def _running(run: Any, record: Any) -> RunStatus:
    started_at = record.started_at
    return RunStatus(
        id=record.id,
        job=str(run.attributes.get("clew.job.name", "")),
        status="running",
        attempt=int(run.attributes.get("clew.job.attempt", 1)),
        started_at=started_at,
        finished_at=None,
        duration_s=round((clock.utc_now() - started_at).total_seconds(), 3) if started_at is not None else None,
        progress=record.progress,
        trace_id=run._thread()["trace_id"],
    )


def _latest() -> list[RunStatus]:
    """Return the runs of this process that ended, newest first."""
    from sqlalchemy import select

    from clew.history.ids import least_id
    from clew.history.models import JobRun
    from clew.history.recorder import recorder

    writer = recorder()
    if writer is None or (writer.database.is_sqlite and not Path(writer.database.url.database or "").exists()):
        return []
    names = ("id", "job", "status", "attempt", "started_at", "finished_at", "duration_s", "progress", "trace_id")
    query = (
        select(*[getattr(JobRun, name) for name in names])
        .where(
            JobRun.id >= least_id(lifecycle.started_at),
            JobRun.instance == writer.origin.instance,
            JobRun.finished_at.is_not(None),
        )
        .order_by(JobRun.id.desc())
        .limit(MAX_LATEST_RUNS)
    )
    with writer.database.read() as connection:
        return [RunStatus(**dict(row._mapping)) for row in connection.execute(query)]


def _scheduler(target: Any, now: datetime) -> SchedulerStatus:
    alive_now = is_alive(target)
    jobs = target.get_jobs()[:MAX_JOBS] if alive_now else []
    return SchedulerStatus(
        kind=type(target).__name__,
        running=alive_now,
        stopped=not getattr(target, "state", 0),
        paused=is_paused(target),
        jobs=[
            JobStatus(
                id=str(job.id),
                name=str(job.name),
                trigger=str(job.trigger),
                next_run_at=due.astimezone(UTC) if (due := getattr(job, "next_run_time", None)) else None,
                paused=getattr(job, "next_run_time", None) is None,
                pending=bool(job.pending),
                overdue_s=round(late_by_s(job, now), 3),
            )
            for job in jobs
        ],
    )
