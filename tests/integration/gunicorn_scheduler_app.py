"""An app whose every worker has a scheduler: the mistake that duplicates are made of."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from apscheduler.schedulers.background import BackgroundScheduler

import clew


def tick() -> int:
    """Say which process it is."""
    return os.getpid()


scheduler = clew.instrument(BackgroundScheduler(timezone="UTC"))
scheduler.add_job(tick, "cron", second="*", id="every-second", misfire_grace_time=30)
# Without an id of its own, as most are
scheduler.add_job(tick, "interval", seconds=2, misfire_grace_time=30)
scheduler.start()


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer anything."""
    start_response("200 OK", [("content-type", "text/plain")])
    return [b"ok"]
