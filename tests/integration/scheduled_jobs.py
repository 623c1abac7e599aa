"""Jobs that a job store and the processes of a pool can import, and a program that runs a scheduler over a stored file.

Run as ``python -m tests.integration.scheduled_jobs STORE ACTION``; see :func:`main`.
"""

from __future__ import annotations

import os
import sys
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED, EVENT_JOB_MISSED
from apscheduler.executors.pool import ProcessPoolExecutor
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler


def export(number: int = 1) -> int:
    """Return a number from within a span, where clew is there."""
    if "clew" not in sys.modules and os.environ.get("WITHOUT_CLEW"):
        return number
    import clew

    with clew.span("inside"):
        return number


def fail() -> None:
    raise RuntimeError("nothing to export")


def stored_scheduler(store: str) -> Any:
    return BackgroundScheduler(jobstores={"default": SQLAlchemyJobStore(url=f"sqlite:///{store}")}, timezone="UTC")


def run_what_is_due(scheduler: Any) -> list[Any]:
    """Start a scheduler, wait for one run, and return its events."""
    events: list[Any] = []
    done = threading.Event()

    def ran(event: Any) -> None:
        events.append(event)
        done.set()

    scheduler.add_listener(ran, EVENT_JOB_EXECUTED | EVENT_JOB_ERROR | EVENT_JOB_MISSED)
    scheduler.start()
    assert done.wait(20.0), "no job ran within 20 s"
    scheduler.shutdown()
    return events


def main(store: str, action: str) -> None:
    """Schedule into a store (``schedule``) or run what it has (``run``); ``-plain`` does it without clew.

    ``pool-spawn``, ``pool-fork`` and ``pool-forkserver`` schedule and run a job in a process pool.
    """
    plain = action.endswith("-plain")
    if action.startswith("pool-"):
        import multiprocessing

        context = multiprocessing.get_context(action.removeprefix("pool-"))
        scheduler: Any = BackgroundScheduler(
            executors={"default": ProcessPoolExecutor(1, {"mp_context": context})}, timezone="UTC"
        )
    else:
        scheduler = stored_scheduler(store)
    if plain:
        if action == "schedule-plain":
            scheduler.start(paused=True)
            scheduler.add_job(export, "date", run_date=datetime.now(UTC), misfire_grace_time=None)
        else:
            assert [event.retval for event in run_what_is_due(scheduler)] == [1]
        assert "clew" not in sys.modules
        return

    import clew

    # Settings that a spawned child has only from here
    clew.configure(service_name="scheduling")
    clew.instrument(scheduler)
    if action == "run":
        assert [event.retval for event in run_what_is_due(scheduler)] == [1]
        return
    later = datetime.now(UTC) + timedelta(seconds=0.2 if action.startswith("pool-") else 0)
    if action == "schedule":
        scheduler.start(paused=True)
    with clew.correlation("order-17"), clew.span("request"):
        scheduler.add_job(export, "date", run_date=later, misfire_grace_time=None)
    if action.startswith("pool-"):
        assert [event.retval for event in run_what_is_due(scheduler)] == [1]


if __name__ == "__main__":
    main(*sys.argv[1:])
