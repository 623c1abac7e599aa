"""Maintenance jobs on real schedulers: what they do, what they leave alone, and how they are switched off."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from sqlalchemy import func, select

import clew
from benchmarks.runs import fill
from clew.engine import runtime
from clew.engine.state import state
from clew.history.archive import archives
from clew.history.database import Database
from clew.history.models import JobRun
from clew.maintenance import MaintenanceError
from clew.settings import Settings
from tests.integration.waiting import eventually

DAY_S = 86_400.0


@pytest.fixture
def scheduler() -> Iterator[BackgroundScheduler]:
    made = BackgroundScheduler(timezone="UTC")
    made.start()
    yield made
    made.shutdown()


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have the process configured for one test."""

    def configure(**given: Any) -> None:
        monkeypatch.setattr(state, "settings", Settings.load(**given))

    runtime.ready()
    return configure


def run_now(scheduler: BackgroundScheduler, name: str) -> None:
    scheduler.modify_job(f"clew.{name}", next_run_time=datetime.now(UTC))


def files(folder: Path, *names: str, each_older_by_s: float = DAY_S) -> None:
    """Make files, the first of which is the newest."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        path = folder / name
        path.write_text(name)
        at = time.time() - number * each_older_by_s
        os.utime(path, (at, at))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_each_is_one_call_and_there_once(scheduler: BackgroundScheduler, tmp_path: Path, configured) -> None:
    configured()
    for _ in range(2):
        clew.maintenance.clean_history(scheduler, hour=2)
        clew.maintenance.check_health(scheduler, every_s=60)
        clew.maintenance.delete_old_logs(scheduler, tmp_path)
        clew.maintenance.delete_old_backups(scheduler, tmp_path)
    assert {job.id for job in scheduler.get_jobs()} == {
        "clew.clean_history",
        "clew.check_health",
        "clew.delete_old_logs",
        "clew.delete_old_backups",
    }


def test_a_setting_switches_them(
    scheduler: BackgroundScheduler, tmp_path: Path, configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value, there in (("delete_old_logs", {"clew.delete_old_logs"}), ("none", set())):
        scheduler.remove_all_jobs()
        monkeypatch.setenv("CLEW_MAINTENANCE", value)
        configured()
        clew.maintenance.clean_history(scheduler)
        clew.maintenance.delete_old_logs(scheduler, tmp_path)
        assert {job.id for job in scheduler.get_jobs()} == there


def test_they_are_stored_and_found_again(tmp_path: Path, configured) -> None:
    configured()
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    first = BackgroundScheduler(jobstores={"default": SQLAlchemyJobStore(url=url)}, timezone="UTC")
    first.start(paused=True)
    files(tmp_path / "backups", "a.db", "b.db", "c.db")
    clew.maintenance.delete_old_backups(first, tmp_path / "backups", keep=1)
    first.shutdown()
    second = BackgroundScheduler(jobstores={"default": SQLAlchemyJobStore(url=url)}, timezone="UTC")
    second.start()
    try:
        run_now(second, "delete_old_backups")
        eventually(lambda: names(tmp_path / "backups") == {"a.db"}, "the newest is left")
    finally:
        second.shutdown()


def test_expired_records_are_archived_first(
    scheduler: BackgroundScheduler, database_url: str, tmp_path: Path, configured
) -> None:
    configured(archive_dir=tmp_path / "archive", retention_s={"job_runs": 5 * DAY_S})
    database = Database(Settings.load().history_url())
    database.upgrade()
    fill(database, 1_000, over=timedelta(days=10))
    clew.maintenance.clean_history(scheduler)
    run_now(scheduler, "clean_history")

    def left() -> int:
        with database.read() as connection:
            return connection.scalar(select(func.count()).select_from(JobRun)) or 0

    eventually(lambda: left() <= 501, "older runs are gone")
    (archive,) = archives(tmp_path / "archive")
    assert archive.rows + left() == 1_000
    database.close()


def test_old_logs_are_deleted_and_nothing_else(scheduler: BackgroundScheduler, tmp_path: Path, configured) -> None:
    configured()
    logs, elsewhere = tmp_path / "logs", tmp_path / "elsewhere"
    files(logs, "app.log", "app.log.1", "app.log.2", "app.log.3", "notes.txt", each_older_by_s=20 * DAY_S)
    files(logs / "app.log.folder", "app.log", "old.log", each_older_by_s=100 * DAY_S)
    files(elsewhere, "new.log", "precious.log", each_older_by_s=100 * DAY_S)
    (logs / "linked.log").symlink_to(elsewhere / "precious.log")
    (logs / "away.log").symlink_to(elsewhere)
    clew.maintenance.delete_old_logs(scheduler, logs)
    run_now(scheduler, "delete_old_logs")
    eventually(lambda: "app.log.2" not in names(logs), "old logs are gone")
    scheduler.pause()
    assert names(logs) == {"app.log", "app.log.1", "notes.txt", "app.log.folder", "linked.log", "away.log"}
    assert names(logs / "app.log.folder") == {"app.log", "old.log"}
    assert names(elsewhere) == {"new.log", "precious.log"}


def test_the_newest_log_stays_however_old_it_is(scheduler: BackgroundScheduler, tmp_path: Path, configured) -> None:
    configured()
    files(tmp_path / "logs", "a.log", "b.log", each_older_by_s=1)
    for path in (tmp_path / "logs").iterdir():
        os.utime(path, (path.stat().st_mtime - 99 * DAY_S,) * 2)
    clew.maintenance.delete_old_logs(scheduler, tmp_path / "logs")
    run_now(scheduler, "delete_old_logs")
    eventually(lambda: names(tmp_path / "logs") == {"a.log"}, "only the newest is left")


def test_ten_backups_are_kept(scheduler: BackgroundScheduler, tmp_path: Path, configured) -> None:
    configured()
    backups = tmp_path / "backups"
    files(backups, *(f"orders-{number:02d}.db" for number in range(15)), "other.txt")
    clew.maintenance.delete_old_backups(scheduler, backups, pattern="orders-*.db")
    run_now(scheduler, "delete_old_backups")
    eventually(lambda: len(names(backups)) == 11, "ten backups and what is none are left")
    assert names(backups) == {f"orders-{number:02d}.db" for number in range(10)} | {"other.txt"}


def test_a_folder_that_has_become_a_link_is_left_alone(tmp_path: Path) -> None:
    files(tmp_path / "elsewhere", "a.db", "b.db")
    (tmp_path / "backups").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MaintenanceError, match="leads somewhere else"):
        clew.maintenance._delete_old_backups(str(tmp_path / "backups"), "*.db", 1)
    assert names(tmp_path / "elsewhere") == {"a.db", "b.db"}


@pytest.mark.parametrize("pattern", ["*", "**", "../*.log", "/etc/*", "", "*.*", "?*"])
def test_a_pattern_that_means_everything_is_refused(
    scheduler: BackgroundScheduler, tmp_path: Path, configured, pattern: str
) -> None:
    configured()
    with pytest.raises(MaintenanceError):
        clew.maintenance.delete_old_logs(scheduler, tmp_path, pattern=pattern)
    with pytest.raises(MaintenanceError):
        clew.maintenance.delete_old_backups(scheduler, "/", pattern="*.db")
    with pytest.raises(MaintenanceError):
        clew.maintenance.delete_old_backups(scheduler, tmp_path, keep=0)


def test_health_is_looked_at_and_what_is_not_well_is_a_warning(
    scheduler: BackgroundScheduler, configured, caplog
) -> None:
    configured()

    @clew.health_check("broken-for-a-test")
    def broken() -> bool:
        raise RuntimeError("as it must")

    try:
        clew.maintenance.check_health(scheduler)
        run_now(scheduler, "check_health")
        eventually(
            lambda: [
                r for r in caplog.records if "broken-for-a-test" in r.getMessage() and r.name == "clew.maintenance"
            ],
            "a warning is logged",
        )
    finally:
        clew.unwatch("broken-for-a-test")
