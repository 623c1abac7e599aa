"""APScheduler's stores and executors: what the history says of runs and of what is stored where."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from apscheduler.jobstores.redis import RedisJobStore
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from redis import Redis

import clew
from clew.jobs.control import list_jobs
from tests.integration import scheduled_jobs
from tests.integration.job_history import History, eventually, own_history


@pytest.fixture
def history(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[History]:
    with own_history(database_url, monkeypatch, heartbeat_s=0.5) as opened:
        yield opened


def soon() -> datetime:
    return datetime.now(UTC) + timedelta(milliseconds=50)


@pytest.mark.parametrize("kind", ["memory", "sqlalchemy", "redis"])
def test_a_run_from_each_store(history: History, kind: str, valkey_url: str, tmp_path: Path) -> None:
    stores: dict[str, Any] = {}
    if kind == "redis":
        options = Redis.from_url(valkey_url).connection_pool.connection_kwargs
        stores = {"default": RedisJobStore(host=options["host"], port=options["port"], password=None)}
    elif kind == "sqlalchemy":
        stores = {"default": SQLAlchemyJobStore(url=f"sqlite:///{tmp_path / 'jobs.sqlite'}")}
    scheduler = clew.instrument(BackgroundScheduler(timezone="UTC", jobstores=stores))
    scheduler.add_job(scheduled_jobs.export, "date", run_date=soon(), args=(4,), misfire_grace_time=None)
    scheduler.add_job(scheduled_jobs.export, "interval", days=1, id="daily")
    scheduler.start()
    try:
        eventually(lambda: history.runs("export", "completed"), "the run is recorded")
        eventually(lambda: list_jobs(job_id="daily"), "the other is shown")
        (shown,) = list_jobs(job_id="daily")
    finally:
        scheduler.shutdown()
    (run,) = history.runs("export")
    assert (run["source"], run["trigger"], run["result"]) == ("apscheduler", "date", 4)
    assert run["lateness_s"] == pytest.approx((run["started_at"] - run["scheduled_at"]).total_seconds(), abs=0.5)
    assert shown.stored.startswith("memory") == (kind == "memory")
    eventually(lambda: not list_jobs(job_id="daily"), "nothing is shown of a scheduler that was shut down")


def test_misfires_and_merged_runs(history: History) -> None:
    scheduler = clew.instrument(BackgroundScheduler(timezone="UTC"))
    long_ago = datetime.now(UTC) - timedelta(hours=2, seconds=30)
    scheduler.add_job(scheduled_jobs.export, "date", run_date=long_ago, id="late", misfire_grace_time=1)
    scheduler.add_job(
        scheduled_jobs.export,
        "interval",
        hours=1,
        id="merged",
        coalesce=True,
        start_date=long_ago,
        next_run_time=long_ago,
        misfire_grace_time=None,
    )
    scheduler.start()
    try:
        eventually(lambda: history.runs("merged", "completed"), "the merged run")
        eventually(lambda: history.runs("export", "missed"), "the missed run")
    finally:
        scheduler.shutdown()
    (missed,), (merged,) = history.runs("export"), history.runs("merged")
    assert (missed["job_id"], missed["started_at"], missed["duration_s"]) == ("late", None, None)
    assert merged["metadata"] == {"clew.job.coalesced": 3}


def test_failures_and_coroutines(history: History) -> None:
    async def answer() -> dict[str, int]:
        await asyncio.sleep(0)
        assert [run["status"] for run in history.runs("answers")] == ["running"]
        return {"answer": 42}

    async def main() -> None:
        scheduler = clew.instrument(AsyncIOScheduler(timezone="UTC"))
        scheduler.add_job(answer, "interval", days=1, id="answers", next_run_time=soon(), misfire_grace_time=None)
        scheduler.add_job(scheduled_jobs.fail, "date", run_date=soon(), misfire_grace_time=None)
        scheduler.start()
        await asyncio.to_thread(eventually, lambda: history.runs("answers", "completed"), "the coroutine's run")
        await asyncio.to_thread(eventually, lambda: history.runs("fail", "failed"), "the failed run")
        scheduler.shutdown()

    asyncio.run(main())
    (answered,), (failed,) = history.runs("answers"), history.runs("fail")
    assert answered["result"] == {"answer": 42}
    assert (failed["error_type"], failed["error_message"]) == ("RuntimeError", "nothing to export")
    assert "nothing to export" in failed["traceback"]
