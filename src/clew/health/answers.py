"""What is answered about the health of the process, as typed values: the same for an app's routes and for the small server.

``/livez`` and ``/readyz`` are for what starts and stops processes, ``/health`` and ``/healthz`` for load balancers, ``/status`` for
people; ``/status/detailed`` and ``/scheduler`` show more, and not to everybody.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from pydantic import BaseModel

from clew import clock
from clew._version import __version__
from clew.catalog import semconv
from clew.engine import runtime
from clew.engine.lifecycle import lifecycle
from clew.health.check import Check, CheckResult, HealthReport, Status
from clew.health.checks.scheduler import is_alive, is_paused, late_by_s, schedulers
from clew.health.monitor import Monitor
from clew.health.sweep import Sweep
from clew.health.watcher import Watcher

PATIENCE_S: Final = 0.05
"""How long an answer waits for a part that is slow, in seconds, where an older result can be told."""

MAX_JOBS: Final = 1_000
_LISTING_TIMEOUT_S: Final = 2.0


class Alive(BaseModel):
    """The process answers, and so does its event loop."""

    status: Literal["ok", "failed"]
    reason: str = ""


class Ready(BaseModel):
    """Whether the process takes work, and if not, why."""

    status: Literal["ready", "unready"]
    reasons: list[str]


class Overall(BaseModel):
    """How the process is, in a word."""

    status: Status


class CheckStatus(BaseModel):
    """How one check is, in a word."""

    name: str
    status: Status
    critical: bool


class Health(Overall):
    """How the process is, and how each check is."""

    checks: list[CheckStatus]


class ServiceStatus(Overall):
    """What the process is, since when, and how it is."""

    service: str
    version: str
    instance: str
    ready: bool
    started_at: datetime
    uptime_s: float
    checks: dict[Status, int]


class PastResult(BaseModel):
    """What a check found some time ago."""

    status: Status
    text: str
    duration_s: float
    checked_at: datetime


class CheckDetail(CheckStatus):
    """What a check found, and what it found before; the newest is first among the recent ones."""

    text: str
    data: dict[str, Any]
    duration_s: float
    timeout_s: float
    checked_at: datetime
    age_s: float
    hangs: bool
    recent: list[PastResult]


class SignalAccount(BaseModel):
    """What became of one signal of telemetry."""

    emitted: int
    delivered: int
    dropped: dict[str, int]
    pending: int


class DetailedStatus(ServiceStatus):
    """Everything that there is to say."""

    pid: int
    python: str
    clew: str
    took_s: float
    details: list[CheckDetail]
    telemetry: dict[str, SignalAccount]


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
    """A scheduler and its jobs, a thousand at most."""

    kind: str
    running: bool
    paused: bool
    jobs: list[JobStatus]


class Schedulers(Overall):
    """The schedulers of the process: failed where one does not run, degraded where one is paused.

    Where a job store does not answer, the text says so, and the jobs are those that were known before.
    """

    text: str
    schedulers: list[SchedulerStatus]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is answered.

    Attributes:
        status: of HTTP: 200, or 503.
        body: the answer.
    """

    status: int
    body: BaseModel


def alive(*, loop_answers: bool) -> Answer:
    """Answer whether the process lives.

    Args:
        loop_answers: whether its event loop does.
    """
    if loop_answers:
        return Answer(status=200, body=Alive(status="ok"))
    return Answer(status=503, body=Alive(status="failed", reason="the event loop does not answer"))


def ready(report: HealthReport) -> Answer:
    """Answer whether the process takes work.

    Args:
        report: of the critical checks.
    """
    reasons = _reasons(report)
    body = Ready(status="unready" if reasons else "ready", reasons=reasons)
    return Answer(status=503 if reasons else 200, body=body)


def overall(report: HealthReport) -> Answer:
    """Answer how the process is, in a word."""
    return Answer(status=_code(report.status), body=Overall(status=report.status))


def health(report: HealthReport) -> Answer:
    """Answer how each check is, in a word."""
    checks = [
        CheckStatus(name=result.name, status=result.status, critical=result.critical) for result in report.results
    ]
    return Answer(status=_code(report.status), body=Health(status=report.status, checks=checks))


def service(report: HealthReport) -> Answer:
    """Answer what the process is, and how."""
    return Answer(status=_code(report.status), body=ServiceStatus(**_service(report)))


def detailed(report: HealthReport, monitor: Monitor) -> Answer:
    """Answer everything."""
    resource = runtime.resource_attributes()
    watchers = {one.check.name: one for one in monitor.watchers()}
    body = DetailedStatus(
        **_service(report),
        pid=int(str(resource.get("process.pid", 0))),
        python=str(resource.get("process.runtime.version", "")),
        clew=__version__,
        took_s=round(report.duration_s, 6),
        details=[_detail(result, watchers.get(result.name)) for result in report.results],
        telemetry={
            signal: SignalAccount(
                emitted=account.emitted,
                delivered=account.delivered,
                dropped=dict(account.dropped),
                pending=account.pending,
            )
            for signal, account in runtime.accounts().items()
        },
    )
    return Answer(status=_code(report.status), body=body)


def scheduled() -> Answer:
    """Answer what the schedulers of the process have to do."""
    return _listed(Sweep([_listing.watcher], patience_s=PATIENCE_S).run())


async def scheduled_async() -> Answer:
    """Do as :func:`scheduled`, while the event loop runs on."""
    return _listed(await Sweep([_listing.watcher], patience_s=PATIENCE_S).run_async())


class _Listing:
    """Asks schedulers for their jobs as a check does: their stores may be databases, which may hang."""

    def __init__(self) -> None:
        self.found: list[SchedulerStatus] = []
        check = Check(name="schedulers", probe=self._ask, timeout_s=_LISTING_TIMEOUT_S, fresh_s=0.5)
        self.watcher = Watcher(check, lambda _: None)

    def _ask(self) -> None:
        now = clock.utc_now()
        self.found = [_scheduler(one, now) for one in list(schedulers)]


_listing = _Listing()


def _after_fork() -> None:
    global _listing
    _listing = _Listing()


os.register_at_fork(after_in_child=_after_fork)


def _listed(report: HealthReport) -> Answer:
    result, found = report.results[0], _listing.found
    status: Status = "ok"
    if any(one.paused for one in found):
        status = "degraded"
    if result.status == "failed" or any(not one.running for one in found):
        status = "failed"
    return Answer(status=_code(status), body=Schedulers(status=status, text=result.text, schedulers=found))


def _code(status: Status) -> int:
    return 503 if status == "failed" else 200


def _reasons(report: HealthReport) -> list[str]:
    reasons = []
    if lifecycle.stopping:
        reasons.append("it is shutting down")
    if lifecycle.starting:
        reasons.append("its start-up is under way")
    return reasons + [
        f"check {result.name} failed" for result in report.results if result.critical and result.status == "failed"
    ]


def _service(report: HealthReport) -> dict[str, Any]:
    resource = runtime.resource_attributes()
    counts: dict[Status, int] = {"ok": 0, "degraded": 0, "failed": 0}
    for result in report.results:
        counts[result.status] += 1
    return {
        "status": report.status,
        "service": str(resource.get(semconv.SERVICE_NAME, "")),
        "version": str(resource.get("service.version", "")),
        "instance": str(resource.get(semconv.SERVICE_INSTANCE_ID, "")),
        "ready": not _reasons(report),
        "started_at": lifecycle.started_at,
        "uptime_s": round(lifecycle.uptime_s, 3),
        "checks": counts,
    }


def _detail(result: CheckResult, watcher: Watcher | None) -> CheckDetail:
    past = watcher.results if watcher is not None else []
    return CheckDetail(
        name=result.name,
        status=result.status,
        critical=result.critical,
        text=result.text,
        data=dict(result.data),
        duration_s=round(result.duration_s, 6),
        timeout_s=watcher.check.timeout_s if watcher is not None else 0.0,
        checked_at=result.checked_at,
        age_s=round(max(0.0, clock.monotonic_s() - result.finished_s), 3),
        hangs=result.hangs,
        recent=[
            PastResult(status=one.status, text=one.text, duration_s=round(one.duration_s, 6), checked_at=one.checked_at)
            for one in past
        ],
    )


def _scheduler(target: Any, now: datetime) -> SchedulerStatus:
    alive_now = is_alive(target)
    jobs = target.get_jobs()[:MAX_JOBS] if alive_now else []
    return SchedulerStatus(
        kind=type(target).__name__,
        running=alive_now,
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
