"""Migrations up and down with data in the tables, on both databases, and by several processes at once."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, select

from benchmarks.runs import fill
from clew.history.database import Database, DatabaseError
from clew.history.migrations import HEAD
from clew.history.models import JobRun, JobRunDailyTotal, JobRunTotal
from clew.settings import Settings
from tests.integration.server_process import ROOT

MIGRATIONS = ROOT / "src" / "clew" / "history" / "migrations"


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    made = Database(Settings.load().history_url())
    yield made
    made.close()


def everything(database: Database, model: Any) -> list[tuple[Any, ...]]:
    table = model.__table__
    with database.read() as connection:
        return [tuple(row) for row in connection.execute(select(table).order_by(*table.primary_key.columns))]


def tables(database: Database) -> set[str]:
    return set(inspect(database.engine).get_table_names())


def test_models_and_migrations_agree(database: Database) -> None:
    assert database.current() is None
    database.upgrade()
    assert database.current() == HEAD
    assert database.differences() == []


def test_head_is_the_newest_revision() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


def test_up_and_down_with_data_in_the_tables(database: Database) -> None:
    database.upgrade()
    fill(database, 500, over=timedelta(days=20))
    runs, hours, days = (everything(database, model) for model in (JobRun, JobRunTotal, JobRunDailyTotal))
    assert len(days) > 20
    database.downgrade("0001")
    assert "job_run_daily_totals" not in tables(database)
    assert (everything(database, JobRun), everything(database, JobRunTotal)) == (runs, hours)
    database.upgrade()
    assert database.differences() == []
    assert (everything(database, JobRun), everything(database, JobRunTotal)) == (runs, hours)
    # Put together from the hours again; sums of fractions may differ in the last digit
    again = everything(database, JobRunDailyTotal)
    assert [row[:-1] for row in again] == [row[:-1] for row in days]
    assert [row[-1] for row in again] == pytest.approx([row[-1] for row in days])
    database.downgrade("base")
    assert tables(database) <= {"clew_alembic_version"}
    database.upgrade()
    assert everything(database, JobRun) == []


def test_tables_of_the_app_are_none_of_our_business(database: Database) -> None:
    with database.write() as connection:
        connection.exec_driver_sql("CREATE TABLE orders (id INTEGER)")
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32))")
    database.upgrade()
    assert database.differences() == []
    database.downgrade("base")
    assert tables(database) >= {"orders", "alembic_version"}


def test_sqlite_is_upgraded_without_being_asked_and_postgresql_only_where_it_is_allowed(database: Database) -> None:
    if database.is_sqlite:
        database.ensure(auto_upgrade=False)
    else:
        with pytest.raises(DatabaseError, match="run 'clew db upgrade'"):
            database.ensure(auto_upgrade=False)
        assert database.current() is None
        database.ensure(auto_upgrade=True)
    assert database.current() == HEAD
    database.ensure(auto_upgrade=False)


def test_processes_that_upgrade_at_once_wait_for_one_another(database: Database) -> None:
    code = "from clew.history.database import Database; from clew.settings import Settings; Database(Settings.load().history_url()).upgrade()"
    processes = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for process in processes:
        _, complained = process.communicate(timeout=120)
        assert process.returncode == 0, complained
    assert database.current() == HEAD
    assert database.differences() == []


def test_the_wheel_has_the_migrations(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=120,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
    here = {f"clew/history/migrations/{path.relative_to(MIGRATIONS)}" for path in MIGRATIONS.rglob("*.py")}
    assert here <= names
