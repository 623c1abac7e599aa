"""APScheduler: whether it runs, and does what is due."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from clew import clock
from clew.health.check import Check, HealthResult

_RUNNING: Final = 1
_PAUSED: Final = 2
_SHOWN: Final = 5


def scheduler(
    target: Any = None,
    *,
    name: str = "scheduler",
    overdue_after_s: float = 10.0,
    critical: bool = False,
    timeout_s: float = 2.0,
) -> Check:
    """Return a check of a scheduler: failed when it does not run, degraded when it is paused or jobs are overdue.

    Args:
        target: a scheduler of APScheduler 3. The check does not keep it alive. By default all of this process that are
            instrumented or watched: of those, one that was not started is no fault.
        name: the check's name.
        overdue_after_s: how late a job may be before it counts as overdue, in seconds.
        critical: see :class:`~clew.health.check.Check`.
        timeout_s: the same.
    """
    probe: Callable[[], HealthResult]
    if target is None:
        probe = partial(_probe_all, overdue_after_s)
    else:
        _watched.add(target)
        probe = partial(_probe, weakref.ref(target), overdue_after_s)
    return Check(name=name, probe=probe, critical=critical, timeout_s=timeout_s)


_watched: Final[weakref.WeakSet[Any]] = weakref.WeakSet()


def schedulers() -> list[Any]:
    """Return the schedulers of this process that are instrumented or watched."""
    found = {id(one): one for one in list(_watched)}
    # Imported by what instruments a scheduler; without it there is none
    schedule: Any = sys.modules.get("clew.jobs.schedule")
    for shown in schedule.schedules.all().values() if schedule is not None else ():
        one = shown._reference() if hasattr(shown, "_reference") else None
        if one is not None:
            found[id(one)] = one
    return list(found.values())


def is_alive(target: Any) -> bool:
    """Tell whether a scheduler runs, paused or not, and its thread lives where it has one."""
    thread = getattr(target, "_thread", None)
    return getattr(target, "state", 0) in (_RUNNING, _PAUSED) and (thread is None or thread.is_alive())


def is_paused(target: Any) -> bool:
    """Tell whether a scheduler is paused as a whole."""
    return bool(getattr(target, "state", 0) == _PAUSED)


def late_by_s(job: Any, now: datetime) -> float:
    """Return how long ago a job should have been run, in seconds; 0 for one that is paused or due later."""
    due = getattr(job, "next_run_time", None)
    return max(0.0, (now - due.astimezone(UTC)).total_seconds()) if due is not None else 0.0


def _probe(reference: weakref.ref[Any], overdue_after_s: float) -> HealthResult:
    target = reference()
    if target is None:
        return HealthResult(status="failed", text="the scheduler is gone")
    return _look(target, overdue_after_s)


def _probe_all(overdue_after_s: float) -> HealthResult:
    started = [one for one in schedulers() if getattr(one, "state", 0)]
    if not started:
        return HealthResult(text="no scheduler runs in this process")
    found = [_look(one, overdue_after_s) for one in started]
    worst = max(found, key=lambda one: ("ok", "degraded", "failed").index(one.status))
    return HealthResult(status=worst.status, text=worst.text, data={"schedulers": [dict(one.data) for one in found]})


def _look(target: Any, overdue_after_s: float) -> HealthResult:
    if not is_alive(target):
        return HealthResult(status="failed", text="it does not run")
    jobs = target.get_jobs()
    now = clock.utc_now()
    overdue = {job.id: late_by_s(job, now) for job in jobs if late_by_s(job, now) > overdue_after_s}
    data = {"jobs": len(jobs), "overdue": dict(sorted(overdue.items(), key=lambda item: -item[1])[:_SHOWN])}
    if is_paused(target):
        return HealthResult(status="degraded", text=f"it is paused, with {len(jobs)} jobs", data=data)
    if overdue:
        worst = max(overdue, key=lambda job: overdue[job])
        text = f"{len(overdue)} of {len(jobs)} jobs overdue; {worst} for {overdue[worst]:.0f} s"
        return HealthResult(status="degraded", text=text, data=data)
    return HealthResult(text=f"{len(jobs)} jobs, none overdue", data=data)
