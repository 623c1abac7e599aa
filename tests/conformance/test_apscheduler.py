"""APScheduler with clew does what it does without: one script of each behaviour, run on a bare and on an instrumented scheduler."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from apscheduler.events import EVENT_ALL
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger

import clew

WAIT_S = 30.0
BERLIN = ZoneInfo("Europe/Berlin")

Script = Callable[[Any, "Seen"], None]


class Seen:
    """What a scheduler tells its listeners, and what jobs see."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.ran: list[Any] = []
        self.release = threading.Event()

    def told(self) -> list[tuple[Any, ...]]:
        """Return the events without times and ids that differ from run to run."""
        return [
            (
                event.code,
                getattr(event, "job_id", None),
                getattr(event, "retval", None),
                repr(getattr(event, "exception", None)),
                len(getattr(event, "scheduled_run_times", ())),
                bool(getattr(event, "traceback", None)),
            )
            for event in self.events
        ]

    def until(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, self.told()
            time.sleep(0.01)

    def until_told(self, *names: str, count: int = 1) -> None:
        import apscheduler.events as known

        codes = {getattr(known, name) for name in names}
        self.until(lambda: sum(event.code in codes for event in self.events) >= count)


def ago(seconds: float) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)


def returns(scheduler: Any, seen: Seen) -> None:
    scheduler.add_job(lambda: {"sum": 3}, "date", run_date=ago(0), id="one", misfire_grace_time=None)
    scheduler.start()
    seen.until_told("EVENT_JOB_EXECUTED")


def raises(scheduler: Any, seen: Seen) -> None:
    def fail() -> None:
        raise LookupError("nothing there")

    scheduler.add_job(fail, "date", run_date=ago(0), id="one", misfire_grace_time=None)
    scheduler.start()
    seen.until_told("EVENT_JOB_ERROR")


def exits(scheduler: Any, seen: Seen) -> None:
    def leave() -> None:
        raise SystemExit(3)

    scheduler.add_job(leave, "date", run_date=ago(0), id="one", misfire_grace_time=None)
    scheduler.start()
    seen.until_told("EVENT_JOB_ERROR")


def comes_too_late(scheduler: Any, seen: Seen) -> None:
    scheduler.add_job(seen.ran.append, "date", run_date=ago(30), args=(1,), id="late", misfire_grace_time=5)
    scheduler.add_job(seen.ran.append, "date", run_date=ago(30), args=(2,), id="in-time", misfire_grace_time=600)
    scheduler.start()
    seen.until_told("EVENT_JOB_MISSED", "EVENT_JOB_EXECUTED", count=2)


def catches_up(scheduler: Any, seen: Seen) -> None:
    for job_id, coalesce in (("each", False), ("merged", True)):
        scheduler.add_job(
            seen.ran.append,
            "interval",
            hours=1,
            start_date=ago(3 * 3600 + 60),
            next_run_time=ago(3 * 3600 + 60),
            end_date=ago(-60),
            args=(job_id,),
            id=job_id,
            coalesce=coalesce,
            misfire_grace_time=None,
        )
    scheduler.start()
    seen.until(lambda: len(seen.ran) == 5)
    seen.until_told("EVENT_JOB_EXECUTED", count=5)


def overlaps(scheduler: Any, seen: Seen) -> None:
    scheduler.add_job(seen.release.wait, "interval", seconds=3600, id="slow", args=(WAIT_S,), next_run_time=ago(0))
    scheduler.start()
    seen.until_told("EVENT_JOB_SUBMITTED")
    scheduler.modify_job("slow", next_run_time=datetime.now(UTC))
    seen.until_told("EVENT_JOB_MAX_INSTANCES")
    seen.release.set()
    seen.until_told("EVENT_JOB_EXECUTED")


def is_steered(scheduler: Any, seen: Seen) -> None:
    scheduler.add_job(seen.ran.append, "interval", days=1, args=("daily",), id="daily")
    scheduler.start()
    scheduler.pause_job("daily")
    seen.ran.append(scheduler.get_job("daily").next_run_time)
    scheduler.resume_job("daily")
    scheduler.reschedule_job("daily", trigger="interval", days=2)
    seen.ran.append(str(scheduler.get_job("daily").trigger))
    scheduler.modify_job("daily", name="renamed")
    scheduler.pause()
    scheduler.resume()
    seen.ran.append(scheduler.get_job("daily").name)
    scheduler.remove_job("daily")


def is_stored(scheduler: Any, seen: Seen) -> None:
    scheduler.add_job("builtins:len", "date", run_date=ago(-3600), args=("ab",), id="stored", jobstore="stored")
    scheduler.start()
    loaded = scheduler.get_job("stored")
    seen.ran += [loaded.id, loaded.func_ref, loaded.misfire_grace_time, loaded.coalesce]
    loaded.modify(next_run_time=ago(0), misfire_grace_time=None)
    seen.until_told("EVENT_JOB_EXECUTED")


SCRIPTS: tuple[Script, ...] = (
    returns,
    raises,
    exits,
    comes_too_late,
    catches_up,
    overlaps,
    is_steered,
    is_stored,
)


def play(script: Script, scheduler: Any) -> tuple[Any, Any]:
    seen = Seen()
    scheduler.add_listener(seen.events.append, EVENT_ALL)
    try:
        script(scheduler, seen)
    finally:
        if scheduler.running:
            scheduler.shutdown()
    # What is submitted and what is removed is told by different threads
    return sorted(seen.told(), key=repr), sorted(map(repr, seen.ran))


def new_scheduler(folder: Path) -> Any:
    stores = {"stored": SQLAlchemyJobStore(url=f"sqlite:///{folder / 'jobs.sqlite'}")}
    return BackgroundScheduler(timezone="UTC", jobstores=stores, executors={"default": ThreadPoolExecutor(4)})


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_a_scheduler_does_what_it_does_without_clew(script: Script, tmp_path: Path) -> None:
    for name in ("bare", "clew"):
        (tmp_path / name).mkdir()
    bare = play(script, new_scheduler(tmp_path / "bare"))
    instrumented = play(script, clew.instrument(new_scheduler(tmp_path / "clew")))
    assert instrumented == bare


def test_coroutines_too() -> None:
    async def answer() -> int:
        await asyncio.sleep(0)
        return 17

    async def fail() -> None:
        raise LookupError("nothing there")

    async def hang() -> None:
        await asyncio.Event().wait()

    async def main(prepare: Callable[[Any], Any]) -> list[tuple[Any, ...]]:
        seen = Seen()
        scheduler = prepare(AsyncIOScheduler(timezone="UTC"))
        scheduler.add_listener(seen.events.append, EVENT_ALL)
        for function in (answer, fail, hang):
            scheduler.add_job(function, "date", run_date=ago(0), id=function.__name__, misfire_grace_time=None)
        scheduler.start()
        deadline = time.monotonic() + WAIT_S
        while len([event for event in seen.events if hasattr(event, "scheduled_run_time")]) < 2:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        scheduler.shutdown()
        await asyncio.sleep(0.1)
        return sorted(seen.told(), key=repr)

    def unchanged(scheduler: Any) -> Any:
        return scheduler

    assert asyncio.run(main(clew.instrument)) == asyncio.run(main(unchanged))


@pytest.mark.parametrize(
    ("start", "due"),
    [
        # In spring there is no half past two, in autumn there are two of them
        (datetime(2027, 3, 27, 12, tzinfo=BERLIN), CronTrigger(hour=2, minute=30, timezone=BERLIN)),
        (datetime(2026, 10, 24, 12, tzinfo=BERLIN), CronTrigger(hour=2, minute=30, timezone=BERLIN)),
        (datetime(2026, 10, 25, 0, tzinfo=BERLIN), CronTrigger(minute=0, timezone=BERLIN)),
        (datetime(2027, 3, 28, 0, tzinfo=BERLIN), CronTrigger(minute=0, timezone=BERLIN)),
    ],
    ids=["spring", "autumn", "hourly in autumn", "hourly in spring"],
)
def test_cron_over_a_change_of_the_clocks(start: datetime, due: CronTrigger) -> None:
    """Due times are APScheduler's, and stand in UTC in records: none twice, none before the one before it."""

    def times(scheduler: Any) -> list[datetime]:
        job = scheduler.add_job(print, due, id="night", next_run_time=due.get_next_fire_time(None, start))
        found: list[datetime] = job._get_run_times(start + timedelta(days=3))
        return found

    bare = times(BackgroundScheduler(timezone=BERLIN))
    instrumented = times(clew.instrument(BackgroundScheduler(timezone=BERLIN)))
    assert instrumented == bare
    in_utc = [time.astimezone(UTC) for time in instrumented]
    assert in_utc == sorted(set(in_utc))
