"""What is answered about the health of the process, as typed values: the same for an app's routes and for the small server.

``/livez`` and ``/readyz`` are for what starts and stops processes, ``/health`` and ``/healthz`` for load balancers, ``/status`` for
people; ``/status/detailed`` and ``/scheduler`` show more, and not to everybody.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from pydantic import BaseModel

from clew import clock
from clew._version import __version__
from clew.catalog import semconv
from clew.engine import runtime
from clew.engine.lifecycle import lifecycle
from clew.health.check import CheckResult, HealthReport, Status
from clew.health.monitor import Monitor
from clew.health.watcher import Watcher

PATIENCE_S: Final = 0.05
"""How long an answer waits for a part that is slow, in seconds, where an older result can be told."""


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
    return Answer(status=code_of(report.status), body=Overall(status=report.status))


def health(report: HealthReport) -> Answer:
    """Answer how each check is, in a word."""
    checks = [
        CheckStatus(name=result.name, status=result.status, critical=result.critical) for result in report.results
    ]
    return Answer(status=code_of(report.status), body=Health(status=report.status, checks=checks))


def service(report: HealthReport) -> Answer:
    """Answer what the process is, and how."""
    return Answer(status=code_of(report.status), body=ServiceStatus(**_service(report)))


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
    return Answer(status=code_of(report.status), body=body)


def code_of(status: Status) -> int:
    """Return the status of HTTP that says it."""
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
