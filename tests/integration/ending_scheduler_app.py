"""An app with a scheduler and one run that goes on while its server is asked to end: served by uvicorn and by gunicorn.

``SCHEDULER`` is ``asyncio`` or ``background``, ``WORK_S`` how long the run takes, ``AT_END`` whether the app shuts its scheduler down
or ``leaves`` it, and ``BARE`` keeps clew out, for comparison.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from fastapi import FastAPI

WORK_S = float(os.environ["WORK_S"])


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def work() -> str:
    say("started")
    time.sleep(WORK_S)
    say("ended")
    return "worked"


async def work_on_loop() -> str:
    say("started")
    await asyncio.sleep(WORK_S)
    say("ended")
    return "worked"


def instrument(*targets: Any) -> None:
    if "BARE" not in os.environ:
        import clew

        clew.instrument(*targets)


def started(kind: str) -> Any:
    """Return a scheduler whose one run begins now."""
    scheduler = AsyncIOScheduler(timezone="UTC") if kind == "asyncio" else BackgroundScheduler(timezone="UTC")
    instrument(scheduler)
    function = work_on_loop if kind == "asyncio" else work
    now = datetime.now(UTC)
    scheduler.add_job(function, "interval", days=1, id="long", next_run_time=now, misfire_grace_time=None)
    scheduler.start()
    return scheduler


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    scheduler = started(os.environ["SCHEDULER"])
    yield
    if os.environ["AT_END"] == "shutdown":
        scheduler.shutdown()


app = FastAPI(lifespan=lifespan)
instrument(app)


def wsgi() -> Callable[..., Iterable[bytes]]:
    """Return an app that has no lifespan: its scheduler starts with it, and is left to itself."""
    scheduler = started("background")

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [("content-type", "text/plain")])
        return [str(scheduler.running).encode()]

    return answer
