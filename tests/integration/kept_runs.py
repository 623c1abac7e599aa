"""Runs of jobs as processes would have left them, for tests that read them."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

from clew.history.database import Database
from clew.history.ids import least_id
from clew.history.models import JobRun
from clew.history.writing import Change, write
from clew.settings import Settings

NOW = datetime.now(UTC).replace(microsecond=0)


def run_row(
    job: str = "cleanup", status: str = "completed", *, ago_s: float = 60.0, took_s: float | None = 0.25, **columns: Any
) -> dict[str, Any]:
    """Return a row of a run that started some time ago."""
    started_at = NOW - timedelta(seconds=ago_s)
    ended = status not in ("running", "scheduled")
    chance = int.from_bytes(os.urandom(9))
    return {
        "id": f"{int(least_id(started_at), 16) | 7 << 76 | chance:032x}",
        "job": job,
        "source": "clew",
        "status": status,
        "service": "shop",
        "instance": "shop-1",
        "trace_id": os.urandom(16).hex(),
        "span_id": os.urandom(8).hex(),
        "correlation_id": os.urandom(4).hex(),
        "recorded_at": started_at,
        "started_at": started_at,
        "finished_at": started_at + timedelta(seconds=took_s or 0.0) if ended else None,
        "duration_s": took_s if ended else None,
        **columns,
    }


def keep(*rows: dict[str, Any]) -> list[dict[str, Any]]:
    """Write rows into the history that the environment names; its tables are made."""
    kept = list(rows)
    database = Database(Settings.load().history_url())
    database.ensure(auto_upgrade=True)
    with database.write() as connection:
        write(connection, [Change(table=JobRun.__tablename__, row=row, verb="end") for row in kept])
    database.engine.dispose()
    return kept
