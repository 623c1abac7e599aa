"""A history to measure with: any number of runs of jobs, as a service of some weeks would have left them, written in bulk."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from benchmarks import databases
from clew.history.database import Database
from clew.history.ids import least_id
from clew.history.models import JobRun

JOBS: Final = 40
_STATUSES: Final = ("completed",) * 185 + ("failed",) * 12 + ("missed", "lost", "cancelled")
_TRACEBACK: Final = 'Traceback (most recent call last):\n  File "shop/jobs.py", line 12, in run\n' * 4


def fill(
    database: Database, runs: int, *, until: datetime | None = None, over: timedelta = timedelta(days=60), seed: int = 0
) -> None:
    """Write runs of jobs, oldest first, and their totals, into empty tables that are there.

    Args:
        database: where.
        runs: how many.
        until: when the last one ended; by default now.
        over: the time over which they are spread evenly.
        seed: the same one gives the same runs.

    Example:
        >>> fill(Database("sqlite:////tmp/runs.db"), 1_000_000)  # doctest: +SKIP
    """
    chance = random.Random(seed)  # noqa: S311 - the same runs each time
    ended = until or datetime.now(UTC)
    databases.fill(
        database, JobRun, (_run(chance, ended - over + over * ((number + 1) / runs)) for number in range(runs))
    )


def _run(chance: random.Random, finished_at: datetime) -> dict[str, Any]:
    kind = min(int(chance.expovariate(0.15)), JOBS - 1)
    job = f"job-{kind:02d}"
    status = chance.choice(_STATUSES)
    took = None if status == "missed" else 0.05 * 1.25**kind * chance.lognormvariate(0.0, 0.3)
    started_at = None if took is None else finished_at - timedelta(seconds=took)
    lateness = chance.expovariate(20)
    scheduled_at = (started_at or finished_at) - timedelta(seconds=lateness)
    failed = status in ("failed", "lost")
    return {
        "id": f"{int(least_id(scheduled_at), 16) | 7 << 76 | chance.getrandbits(76):032x}",
        "service": "bench",
        "instance": "bench-1",
        "trace_id": f"{chance.getrandbits(128):032x}",
        "span_id": f"{chance.getrandbits(64):016x}",
        "correlation_id": f"{chance.getrandbits(128):032x}",
        "recorded_at": finished_at,
        "job": job,
        "job_id": job,
        "source": "apscheduler",
        "trigger": "interval[0:00:10]",
        "status": status,
        "scheduled_at": scheduled_at,
        "started_at": started_at,
        "finished_at": finished_at,
        "duration_s": took,
        "lateness_s": lateness,
        "attempt": 1,
        "progress": None,
        "user_id": f"u-{chance.randrange(1000)}" if chance.random() < 0.3 else None,
        "result": {"rows": chance.randrange(10_000)} if status == "completed" else None,
        "error_type": "builtins.ValueError" if failed else None,
        "error_message": f"order {chance.randrange(100_000)} can't be read" if failed else None,
        "traceback": _TRACEBACK if status == "failed" else None,
        "metadata": {"region": chance.choice(("north", "south"))},
        "host": "bench",
        "pid": 4711,
    }
