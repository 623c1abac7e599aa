"""What a job is called, and by what it is the same job in every process."""

from __future__ import annotations

import hashlib
import re
import reprlib
from datetime import datetime
from typing import Any, Final

from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from clew.instrumentation.apscheduler.thread import MERGED, REQUESTED_BY, carriers
from clew.jobs.occasion import Occasion

_GENERATED_ID: Final = re.compile(r"[0-9a-f]{32}")
_LIMITED: Final = reprlib.Repr()
_LIMITED.maxstring = _LIMITED.maxother = 1_000


def name_of(job: Any) -> str:
    """Return a job's name of low cardinality.

    A job's id where the app chose it; the function's name where APScheduler made the id up, and for a job that runs once,
    whose id tells one request from another.
    """
    if isinstance(job.trigger, DateTrigger) or _GENERATED_ID.fullmatch(job.id):
        return _function_of(job).rpartition(":")[2]
    return str(job.id)


def key_of(job: Any) -> str | None:
    """Return what the same job has in every process: an id that the app chose, or else what is called, with what, and when."""
    try:
        if not _GENERATED_ID.fullmatch(job.id):
            told = f"id {job.id}"
        else:
            told = f"{_function_of(job)} {_LIMITED.repr(job.args)} {_LIMITED.repr(job.kwargs)} {job.trigger}"
        return hashlib.sha256(told.encode("utf-8", "replace")).hexdigest()[:32]
    except Exception:
        # An argument that can't be shown
        return None


def occasion_of(job: Any, run_time: datetime) -> Occasion:
    """Return what makes a job run now."""
    carrier = carriers.get(job) or {}
    requested_by = carrier.get(REQUESTED_BY)
    if requested_by is not None:
        return Occasion(source="apscheduler", job_id=job.id, trigger="manual", user_id=requested_by or None)
    return Occasion(
        source="apscheduler",
        job_id=job.id,
        trigger=type(job.trigger).__name__.removesuffix("Trigger").lower(),
        scheduled_at=run_time,
        job_key=key_of(job),
        period_s=job.trigger.interval_length if isinstance(job.trigger, IntervalTrigger) else None,
    )


def attributes_of(job: Any) -> dict[str, Any]:
    """Return what more there is to say of a run of a job."""
    merged = (carriers.get(job) or {}).get(MERGED)
    return {"clew.job.coalesced": int(merged)} if merged is not None and merged.isdecimal() else {}


def thread_of(job: Any) -> dict[str, str]:
    """Return the carrier of what scheduled a job."""
    carrier = carriers.get(job) or {}
    return {key: value for key, value in carrier.items() if key not in (MERGED, REQUESTED_BY)}


def copy_of(job: Any) -> Any:
    """Return a job like another; pickling, which a function that has no name refuses, is not needed for it."""
    copied = object.__new__(type(job))
    for name in type(job).__slots__:
        if name != "__weakref__" and hasattr(job, name):
            setattr(copied, name, getattr(job, name))
    return copied


def _function_of(job: Any) -> str:
    return str(job.func_ref or getattr(job.func, "__qualname__", type(job.func).__qualname__))
