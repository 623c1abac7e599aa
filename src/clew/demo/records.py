"""The durable records of the demo's jobs, read back over the gateway's HTTP interface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import httpx

_TIMEOUT_S: Final = 10.0
_MOST: Final = 500


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of a job as the history has it; ``duration_s`` and ``lateness_s`` are seconds."""

    job: str
    status: str
    service: str
    trigger: str
    trace_id: str | None
    span_id: str | None
    duration_s: float | None
    lateness_s: float | None


def runs_of_jobs(gateway_url: str, since: datetime) -> list[Run]:
    """Return the newest runs of jobs, oldest first; none where the gateway can't tell.

    Args:
        gateway_url: whom to ask.
        since: when they were recorded at the earliest.
    """
    asked: dict[str, str | int] = {"from": since.isoformat(), "limit": _MOST}
    try:
        answer = httpx.get(f"{gateway_url}/jobs/runs", params=asked, timeout=_TIMEOUT_S, trust_env=False)
        runs = answer.raise_for_status().json()["runs"]
    except httpx.HTTPError:
        return []
    return [Run(**{name: run[name] for name in Run.__dataclass_fields__}) for run in reversed(runs)]


def latest(runs: Sequence[Run]) -> list[tuple[Run, int]]:
    """Return the last run of each job and status, and how many there were, sorted by the name of the job."""
    found: dict[tuple[str, str], tuple[Run, int]] = {}
    for run in runs:
        key = (run.job, run.status)
        found[key] = (run, found.get(key, (run, 0))[1] + 1)
    return [found[key] for key in sorted(found)]
