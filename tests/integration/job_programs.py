"""Programs with jobs, for tests that start, stop and kill them: ``python -m tests.integration.job_programs NAME [ARGUMENT]``.

Each says what happens in a line of its own on standard output; log events go to standard error as JSON.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import clew

PROGRAMS: dict[str, Callable[[str], None]] = {}


def program(function: Callable[[str], None]) -> Callable[[str], None]:
    PROGRAMS[function.__name__] = function
    return function


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def work(duration_s: float = 60.0) -> dict[str, float]:
    """Work for so long, and say so."""
    say("started")
    time.sleep(duration_s)
    say("ended")
    return {"worked_s": duration_s}


async def work_on_loop(duration_s: float = 60.0) -> str:
    say("started")
    await asyncio.sleep(duration_s)
    say("ended")
    return "worked"


def nothing() -> None:
    """End at once."""


def die() -> None:
    say("started")
    os.kill(os.getpid(), signal.SIGKILL)


def forever() -> None:
    while True:
        time.sleep(0.05)


@program
def run(duration_s: str) -> None:
    with clew.job("long", shard=3) as one:
        one.progress(0.4)
        work(float(duration_s))


@program
def watch(_: str) -> None:
    """Look after other processes' runs."""
    with clew.job("watching"):
        pass
    say("started")
    forever()


@program
def hog(duration_s: str) -> None:
    """Keep the interpreter to itself for a while."""
    sys.setswitchinterval(60.0)
    with clew.job("long"):
        say("started")
        until = time.monotonic() + float(duration_s)
        while time.monotonic() < until:
            sum(range(10_000))
    say("ended")
    sys.setswitchinterval(0.005)
    forever()


@program
def background(duration_s: str) -> None:
    from apscheduler.schedulers.background import BackgroundScheduler

    scheduler = clew.instrument(BackgroundScheduler(timezone="UTC"))
    scheduler.add_job(work, "interval", seconds=0.2, id="long", args=(float(duration_s),), coalesce=True)
    scheduler.start()
    forever()


@program
def blocking(duration_s: str) -> None:
    from apscheduler.schedulers.blocking import BlockingScheduler

    scheduler = clew.instrument(BlockingScheduler(timezone="UTC"))
    scheduler.add_job(work, "interval", seconds=0.2, id="long", args=(float(duration_s),))
    scheduler.start()


@program
def loop(duration_s: str) -> None:
    from apscheduler.schedulers.asyncio import AsyncIOScheduler

    async def main() -> None:
        scheduler = clew.instrument(AsyncIOScheduler(timezone="UTC"))
        scheduler.add_job(work_on_loop, "interval", seconds=0.2, id="long", args=(float(duration_s),))
        scheduler.start()
        await asyncio.Event().wait()

    asyncio.run(main())


@program
def unused(_: str) -> None:
    """End at once, with a scheduler that was not started."""
    from apscheduler.schedulers.background import BackgroundScheduler

    scheduler = clew.instrument(BackgroundScheduler(timezone="UTC"))
    scheduler.add_job(nothing, "interval", days=1, id="nightly")


@program
def scheduled(_: str) -> None:
    """Have jobs for others to look at and to do something with."""
    from apscheduler.schedulers.background import BackgroundScheduler

    scheduler = clew.instrument(BackgroundScheduler(timezone="UTC"))
    scheduler.add_job(nothing, "interval", days=1, id="nightly")
    scheduler.add_job(work, "cron", hour=3, id="long", args=(60.0,))
    scheduler.start()
    say("started")
    sys.stdin.readline()
    scheduler.shutdown(wait=False)
    say("shut down")
    forever()


@program
def shared(store: str) -> None:
    """Fire a stored job, as every replica does."""
    from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
    from apscheduler.schedulers.background import BackgroundScheduler

    stores = {"default": SQLAlchemyJobStore(url=f"sqlite:///{store}", engine_options={"connect_args": {"timeout": 30}})}
    scheduler = clew.instrument(BackgroundScheduler(timezone="UTC", jobstores=stores))
    # Without waiting for a second, which the store's lock may take
    scheduler.add_job(nothing, "cron", second="*", id="stored", replace_existing=True, misfire_grace_time=30)
    scheduler.start()
    say("started")
    forever()


@program
def pool(method: str) -> None:
    """Have a job of a process pool end its process, and a job after that."""
    import multiprocessing

    from apscheduler.executors.pool import ProcessPoolExecutor
    from apscheduler.schedulers.background import BackgroundScheduler

    context = multiprocessing.get_context(method)
    executor = ProcessPoolExecutor(1, pool_kwargs={"mp_context": context})
    scheduler = clew.instrument(BackgroundScheduler(timezone="UTC", executors={"default": executor}))
    named = "tests.integration.job_programs"
    now = datetime.now(UTC)
    scheduler.add_job(f"{named}:die", "date", run_date=now, misfire_grace_time=None)
    scheduler.add_job(
        f"{named}:nothing", "date", run_date=now + timedelta(seconds=8), id="after", misfire_grace_time=None
    )
    scheduler.start()
    forever()


@program
def forking(_: str) -> None:
    """Fork within a run; the child leaves the block, too, and lives on."""
    with clew.job("forks"):
        child = os.fork()
    if child == 0:
        forever()
    say(f"child {child}")
    threading.Event().wait(60)


if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](sys.argv[2] if len(sys.argv) > 2 else "")
