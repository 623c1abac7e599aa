"""The process that is measured by the scenario of jobs: it has APScheduler run an empty job, bare or instrumented.

``python -m benchmarks.jobs bare|clew SECONDS`` prints one line of JSON: the median and the mean of what a run takes, in µs.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from apscheduler.executors import pool
from apscheduler.schedulers.background import BackgroundScheduler


def nothing() -> None:
    """Do no work."""


def measure(prepare: Callable[[Any], Any], seconds: float) -> dict[str, float]:
    """Run the job as a pool's thread does, again and again."""
    logging.getLogger("apscheduler").setLevel(logging.ERROR)
    scheduler = prepare(BackgroundScheduler(timezone="UTC"))
    job = scheduler.add_job(nothing, "interval", days=1, id="nothing", misfire_grace_time=None)
    scheduler.start(paused=True)
    took: list[float] = []
    until = time.monotonic() + seconds
    # Looked up as an executor does, since what is instrumented is put there
    execute: Callable[..., Any] = vars(pool)["run_job"]
    execute(job, "default", [datetime.now(UTC)], "apscheduler.executors.default")
    while len(took) < 20 or time.monotonic() < until:
        started = time.perf_counter()
        execute(job, "default", [datetime.now(UTC)], "apscheduler.executors.default")
        took.append(time.perf_counter() - started)
    scheduler.shutdown()
    return {"median_us": statistics.median(took) * 1e6, "mean_us": statistics.fmean(took) * 1e6}


def main(kind: str, seconds: str) -> None:
    """Measure, and print what was found."""
    if kind == "bare":
        found = measure(lambda scheduler: scheduler, float(seconds))
    else:
        import clew

        os.environ.setdefault("CLEW_LOG_FORMAT", "none")
        found = measure(clew.instrument, float(seconds))
        clew.shutdown()
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
