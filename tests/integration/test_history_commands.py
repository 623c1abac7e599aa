"""``clew db`` and ``clew archive`` as somebody types them."""

from __future__ import annotations

import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select

from benchmarks.runs import fill
from clew.history import retention
from clew.history.database import Database
from clew.history.migrations import HEAD
from clew.history.models import JobRun
from clew.settings import Settings
from tests.integration.postgresql import PostgreSQL
from tests.integration.server_process import BIN


def clew(*arguments: str, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        [str(BIN / "clew"), *arguments],
        env={**os.environ, "COLUMNS": "300", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def unattended(database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where tables in PostgreSQL are made only when somebody asks for it."""
    monkeypatch.delenv("CLEW_DATABASE_AUTO_UPGRADE")
    return database_url


def test_tables_are_made_checked_and_told_of(unattended: str) -> None:
    code, said = clew("db", "current")
    assert (code, said.strip()) == (1, "none")
    code, said = clew("db", "check")
    assert code == 1
    assert "run 'clew db upgrade'" in said
    code, said = clew("db", "upgrade")
    assert (code, f"from no tables to revision {HEAD}" in said) == (0, True)
    code, said = clew("db", "upgrade")
    assert (code, "already" in said) == (0, True)
    code, said = clew("db", "current")
    assert (code, said.strip()) == (0, HEAD)
    code, said = clew("db", "check")
    assert (code, "as they should be" in said) == (0, True)
    database = Database(Settings.load().history_url())
    with database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE job_runs DROP COLUMN progress")
    database.close()
    code, said = clew("db", "check")
    assert code == 1
    assert "progress" in said


def test_a_database_that_is_not_there_is_told_in_a_sentence() -> None:
    url = "postgresql://user:hunter2@127.0.0.1:1/history"
    for command in (["db", "upgrade"], ["db", "current"], ["db", "check"]):
        code, said = clew(*command, CLEW_DATABASE_URL=url)
        assert code == 2
        assert "127.0.0.1" in said
        assert "hunter2" not in said
        assert len(said.splitlines()) == 1


def test_a_database_that_is_newer_than_clew_is_left_alone(unattended: str) -> None:
    database = Database(Settings.load().history_url())
    database.upgrade()
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE clew_alembic_version SET version_num = '9999'")
    database.close()
    code, said = clew("db", "upgrade")
    assert code == 2
    assert "upgrade clew" in said
    assert clew("db", "current") == (1, "9999\n")


@pytest.fixture
def archive(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLEW_ARCHIVE_DIR", str(tmp_path / "archive"))
    database = Database(Settings.load().history_url())
    database.upgrade()
    fill(database, 1_234, until=datetime.now(UTC) - timedelta(days=100))
    (runs, *_) = retention.clean_up(database, Settings.load())
    database.close()
    (path,) = runs.files
    return path


def test_archives_are_listed_verified_and_restored(archive: Path) -> None:
    code, said = clew("archive", "list", COLUMNS="60")
    assert code == 0
    (line,) = said.splitlines()[1:]
    assert line.split()[:2] == ["job_runs", "1,234"]
    # In one piece, to be given to the other commands
    assert line.endswith(f"  {archive}")
    assert clew("archive", "verify") == (0, f"{archive}: 1,234 rows, whole\n")
    for _ in range(2):
        code, said = clew("archive", "restore", str(archive))
        assert (code, "1,234 rows are in" in said) == (0, True)
    database = Database(Settings.load().history_url())
    with database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(JobRun)) == 1_234
    database.close()


def test_a_damaged_archive_is_told_in_a_sentence(archive: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-500])
    for command in (["archive", "verify"], ["archive", "restore", str(archive)], ["archive", "verify", str(archive)]):
        code, said = clew(*command)
        assert code == 1
        assert f"{archive} is damaged" in said
        assert len(said.splitlines()) == 1
    archive.write_bytes(b"nothing of that kind")
    code, said = clew("archive", "list")
    assert code == 1
    assert "clew archive verify" in said


def test_where_there_are_no_archives_it_is_said(tmp_path: Path) -> None:
    code, said = clew("archive", "list", CLEW_ARCHIVE_DIR=str(tmp_path / "none"))
    assert code == 0
    assert "no archive" in said
    code, said = clew("archive", "restore", str(tmp_path / "none.jsonl.gz"))
    assert code == 1
    assert "can't be read" in said


def test_restoring_waits_for_the_tables(archive: Path, postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLEW_DATABASE_AUTO_UPGRADE")
    code, said = clew("archive", "restore", str(archive), CLEW_DATABASE_URL=postgresql.new_database())
    assert code == 2
    assert "run 'clew db upgrade'" in said
