"""Runs of jobs are found page by page, and what is said of them adds up, on both databases."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, insert

from clew.history import paging
from clew.history.database import Database, DatabaseError
from clew.history.job_runs import RUNS, RunFilter, page
from clew.history.job_statistics import Report, report
from clew.history.models import ScheduledJob
from clew.history.reading import Reader
from clew.settings import Settings
from tests.integration.kept_runs import NOW, keep, run_row


@pytest.fixture
def reader(database_url: str) -> Iterator[Reader]:
    reader = Reader(Settings.load().history_url())
    yield reader
    reader.close()


def ids(rows: Any) -> list[str]:
    return [row["id"] for row in rows]


def newest_first(rows: list[dict[str, Any]]) -> list[str]:
    return sorted(ids(rows), reverse=True)


def everything(connection: Connection, wanted: RunFilter | None = None, limit: int = 7) -> list[str]:
    found: list[str] = []
    after: str | None = None
    while True:
        one_page = page(connection, wanted, after=after, limit=limit)
        found += ids(one_page.rows)
        after = one_page.next
        if after is None:
            return found


def test_pages_have_every_run_once_newest_first(reader):
    kept = keep(*(run_row(ago_s=random.uniform(1, 5000)) for _ in range(50)))
    with reader.open() as connection:
        assert everything(connection) == newest_first(kept)
        assert len(page(connection, limit=10).rows) == 10


def test_a_page_stays_what_it_was_while_runs_come_in(reader):
    kept = keep(*(run_row(ago_s=100 + number) for number in range(20)))
    with reader.open() as connection:
        first = page(connection, limit=10)
    keep(*(run_row(ago_s=1) for _ in range(5)))
    with reader.open() as connection:
        second = page(connection, after=first.next, limit=10)
    assert ids(first.rows) + ids(second.rows) == newest_first(kept)


def test_pages_lead_back_to_newer_runs(reader):
    kept = newest_first(keep(*(run_row(ago_s=100 + number) for number in range(30))))
    with reader.open() as connection:
        first = page(connection, limit=10)
        second = page(connection, after=first.next, limit=10)
        third = page(connection, after=second.next, limit=10)
        assert first.previous is None
        assert third.next is None
        again = page(connection, before=third.previous, limit=10)
        assert ids(again.rows) == ids(second.rows) == kept[10:20]
        assert ids(page(connection, before=again.previous, limit=10).rows) == ids(first.rows)
        # Nothing is newer than the first page: back again leads to where one was
        nothing = page(connection, before=kept[0], limit=10)
        assert nothing.rows == []
        assert nothing.previous is None
        assert ids(page(connection, after=nothing.next, limit=10).rows) == kept[:10]


@pytest.mark.parametrize("limit", [-5, 0, 1])
def test_a_page_has_one_run_at_least(reader, limit):
    keep(run_row(), run_row())
    with reader.open() as connection:
        assert len(page(connection, limit=limit).rows) == 1


def test_a_page_has_so_many_runs_at_most(reader):
    keep(*(run_row() for _ in range(paging.MAX_LIMIT + 5)))
    with reader.open() as connection:
        assert len(page(connection, limit=10**9).rows) == paging.MAX_LIMIT


@pytest.mark.parametrize("cursor", ["", "x", "0" * 31, "0" * 33, "G" * 32, "'; DROP TABLE job_runs; --", "٣" * 32])
def test_a_cursor_that_is_none_of_ours_is_refused(reader, cursor):
    keep()
    with reader.open() as connection, pytest.raises(ValueError, match="'next' or 'previous'"):
        page(connection, after=cursor)


def test_filters_find_what_they_say_alone_and_together(reader):
    chance = random.Random(1)
    kept = keep(
        *(
            run_row(
                chance.choice(["cleanup", "digest", "100%_done\\"]),
                status,
                ago_s=chance.uniform(0, 100_000),
                source=chance.choice(["clew", "apscheduler", "celery"]),
                user_id=chance.choice([None, "u-1", "ü-2"]),
                error_type="ValueError" if status == "failed" else None,
                error_message=chance.choice(["order 17 can't be read", "100% gone_by \\", None])
                if status == "failed"
                else None,
                correlation_id=chance.choice(["breakfast", None]),
            )
            for status in chance.choices(["completed", "failed", "missed", "running"], k=300)
        )
    )

    def same(row: dict[str, Any], wanted: RunFilter) -> bool:
        text = f"{row['error_message'] or ''} {row['error_type'] or ''}".lower()
        return (
            wanted.job in (None, row["job"])
            and wanted.status in (None, row["status"])
            and wanted.source in (None, row["source"])
            and wanted.user in (None, row["user_id"])
            and wanted.trace_id in (None, row["trace_id"])
            and wanted.correlation_id in (None, row["correlation_id"])
            and (wanted.since is None or row["started_at"] >= wanted.since)
            and (wanted.until is None or row["started_at"] < wanted.until)
            and all(word.lower() in text for word in (wanted.error or "").split())
        )

    choices: dict[str, list[Any]] = {
        "job": ["cleanup", "100%_done\\", "nothing"],
        "status": ["failed", "running", "lost"],
        "source": ["celery", "clew"],
        "user": ["u-1", "ü-2"],
        "error": ["ORDER read", "can't valueerror", "%", "_", "\\", "100% gone_by", "zzz", "  "],
        "trace_id": [kept[0]["trace_id"], "0" * 32],
        "correlation_id": ["breakfast", "lunch"],
        "since": [NOW - timedelta(seconds=50_000)],
        "until": [NOW - timedelta(seconds=20_000)],
    }
    with reader.open() as connection:
        for _ in range(150):
            names = chance.sample(sorted(choices), k=chance.choice([1, 1, 2, 3]))
            wanted = RunFilter(**{name: chance.choice(choices[name]) for name in names})
            expected = newest_first([row for row in kept if same(row, wanted)])
            assert everything(connection, wanted) == expected, wanted


def test_what_no_index_knows_is_looked_for_in_bounded_steps(reader, monkeypatch):
    monkeypatch.setattr(paging, "MAX_SCANNED", 20)
    kept = keep(
        *(run_row(ago_s=1000 - number, error_message="needle" if number in (3, 70) else None) for number in range(100))
    )
    found = [kept[70]["id"], kept[3]["id"]]
    with reader.open() as connection:
        first = page(connection, RunFilter(error="needle"), limit=10)
        assert ids(first.rows) == []
        assert first.searched_to is not None
        assert abs((first.searched_to - kept[79]["started_at"]).total_seconds()) < 0.01
        assert everything(connection, RunFilter(error="needle")) == found
        assert everything(connection, RunFilter(source="clew"), limit=7) == newest_first(kept)
        backward = page(connection, RunFilter(error="needle"), before=kept[0]["id"], limit=1)
        assert ids(backward.rows) == [kept[3]["id"]]


def test_a_list_has_the_beginning_of_errors_only_and_one_run_has_all(reader):
    (kept,) = keep(
        run_row(
            status="failed",
            error_type="ValueError",
            error_message="é" * 5000,
            traceback="Traceback\n  line",
            result={"rows": [1, 2.5, None, "ö"]},
        )
    )
    with reader.open() as connection:
        (listed,) = page(connection).rows
        assert listed["error_message"] == "é" * 300
        assert not {"traceback", "result", "metadata"} & set(listed)
        found = RUNS.one(connection, kept["id"])
        assert found is not None
        assert found["error_message"] == "é" * 5000
        assert found["result"] == {"rows": [1, 2.5, None, "ö"]}
        assert found["traceback"] == "Traceback\n  line"
        assert found["started_at"] == kept["started_at"]
        assert found["started_at"].tzinfo is not None


@pytest.mark.parametrize("identity", ["", "x", "0" * 32, "%", "\x00", "0" * 1000, "ffffffffffffffffffffffffffffffff"])
def test_there_is_no_run_of_another_id(reader, identity):
    keep(run_row())
    with reader.open() as connection:
        assert RUNS.one(connection, identity) is None


def test_a_part_of_an_id_is_enough(reader):
    kept = keep(*(run_row(ago_s=1000 * number) for number in range(5)))
    wanted = kept[2]["id"]
    with reader.open() as connection:
        assert ids(RUNS.alike(connection, wanted)) == [wanted]
        assert ids(RUNS.alike(connection, wanted[:12])) == [wanted]
        assert ids(RUNS.alike(connection, wanted[-8:].upper())) == [wanted]
        assert ids(RUNS.alike(connection, f"{wanted[:8]}-{wanted[8:12]}-{wanted[12:16]}")) == [wanted]
        assert ids(RUNS.alike(connection, wanted[:4])) == newest_first(kept)
        assert RUNS.alike(connection, wanted[:3]) == []
        assert RUNS.alike(connection, "zzzz") == []
        assert RUNS.alike(connection, "%%%%") == []


def reckoned(kept: list[dict[str, Any]], since: datetime | None = None, until: datetime | None = None) -> Any:
    """Return the same figures by going through all rows."""
    ended = [
        row
        for row in kept
        if row["finished_at"] is not None
        and (since is None or row["finished_at"] >= since.replace(minute=0, second=0, microsecond=0))
        and (until is None or row["finished_at"] < until)
    ]
    by = {
        status: sum(row["status"] == status for row in ended)
        for status in ("completed", "failed", "lost", "cancelled", "missed", "skipped")
    }
    took = sorted(row["duration_s"] for row in ended if row["duration_s"] is not None)
    good, bad = by["completed"], by["failed"] + by["lost"]
    return {
        "total": good + bad + by["cancelled"],
        "ok": good,
        "failed": bad,
        "cancelled": by["cancelled"],
        "missed": by["missed"],
        "skipped": by["skipped"],
        "success_rate": good / (good + bad) if good + bad else None,
        "average_s": pytest.approx(statistics.fmean(took)) if took else None,
        "p50_s": pytest.approx(took[-(-len(took) // 2) - 1], rel=0.05) if took else None,
        "p95_s": pytest.approx(took[-(-95 * len(took) // 100) - 1], rel=0.05) if took else None,
        "running": sum(row["status"] == "running" for row in kept),
    }


def figures(known: Report) -> dict[str, Any]:
    return dict(vars(known.overall))


def some_runs(chance: random.Random, number: int = 400) -> list[dict[str, Any]]:
    def took(status: str) -> float | None:
        return None if status in ("missed", "skipped", "lost", "running") else chance.lognormvariate(0, 2)

    statuses = chance.choices(
        ["completed", "failed", "lost", "cancelled", "missed", "skipped", "running"], [60, 10, 3, 3, 5, 5, 3], k=number
    )
    return [
        run_row(
            chance.choice(["cleanup", "digest", "ärger"]),
            status,
            ago_s=chance.uniform(0, 8 * 86_400),
            took_s=took(status),
        )
        for status in statuses
    ]


def test_statistics_add_up_for_all_time_and_for_any_hours(reader):
    chance = random.Random(2)
    kept = keep(*some_runs(chance))
    with reader.open() as connection:
        assert figures(report(connection)) == reckoned(kept)
        for _ in range(30):
            since = NOW - timedelta(hours=chance.uniform(0, 200))
            until = (since + timedelta(hours=chance.randrange(1, 100))).replace(minute=0, second=0, microsecond=0)
            assert figures(report(connection, since=since)) == reckoned(kept, since), since
            assert figures(report(connection, since=since, until=until)) == reckoned(kept, since, until), (since, until)
        only = [row for row in kept if row["job"] == "digest"]
        known = report(connection, job="digest")
        assert figures(known) == reckoned(only)
        assert [job.job for job in known.jobs] == ["digest"]
        told = report(connection, since=NOW - timedelta(minutes=90))
        assert told.since == (NOW - timedelta(minutes=90)).replace(minute=0, second=0)


def test_each_job_has_its_last_run_its_last_success_and_its_next_run(reader):
    kept = keep(
        run_row("cleanup", "completed", ago_s=500),
        run_row("cleanup", "failed", ago_s=400),
        run_row("cleanup", "running", ago_s=5),
        run_row("digest", "failed", ago_s=300),
        run_row("only running", "running", ago_s=5),
    )
    schedule_a_job("cleanup", NOW + timedelta(hours=1))
    schedule_a_job("never ran", NOW + timedelta(hours=2))
    with reader.open() as connection:
        known = {job.job: job for job in report(connection).jobs}
    assert list(known) == ["cleanup", "digest", "never ran", "only running"]
    cleanup = known["cleanup"]
    assert cleanup.last_run is not None
    assert (cleanup.last_run.id, cleanup.last_run.status) == (kept[2]["id"], "running")
    assert cleanup.last_success is not None
    assert cleanup.last_success.finished_at == kept[0]["finished_at"]
    assert cleanup.next_run_at == NOW + timedelta(hours=1)
    assert cleanup.statistics.running == 1
    assert known["digest"].last_success is None
    assert known["digest"].statistics.success_rate == 0.0
    assert known["only running"].statistics.total == 0
    assert known["never ran"].next_run_at == NOW + timedelta(hours=2)
    assert known["never ran"].last_run is None


def schedule_a_job(job: str, next_run_at: datetime) -> None:
    table: Any = ScheduledJob.__table__
    row: dict[str, Any] = {
        "instance": "shop-1",
        "scheduler": "apscheduler@1",
        "job_id": job,
        "job": job,
        "service": "shop",
        "trigger": "interval[1:00:00]",
        "next_run_at": next_run_at,
        "pending": False,
        "paused": False,
        "stored": "memory",
        "host": "elsewhere",
        "pid": 1,
        "heartbeat_at": datetime.now(UTC),
        "heartbeat_s": 10.0,
    }
    database = Database(Settings.load().history_url())
    with database.write() as connection:
        connection.execute(insert(table).values({name: value for name, value in row.items() if name in table.c}))
    database.engine.dispose()


def test_statistics_of_nothing_are_nothing(reader):
    keep()
    with reader.open() as connection:
        known = report(connection, since=NOW)
        assert known.jobs == []
        assert known.overall.success_rate is None
        assert known.overall.p95_s is None
        assert report(connection, job="nope").jobs == []


def test_of_very_many_jobs_some_are_told_and_all_are_counted(reader):
    keep(*(run_row(f"job-{number:03d}") for number in range(30)))
    with reader.open() as connection:
        known = report(connection, limit=10)
    assert len(known.jobs) == 10
    assert known.is_cut
    assert known.overall.total == 30


def test_reading_makes_no_database(tmp_path: Path):
    path = tmp_path / "folder" / "history.db"
    reader = Reader(f"sqlite:///{path}")
    with reader.open() as connection:
        assert page(connection).rows == []
        assert report(connection).jobs == []
        assert RUNS.one(connection, "0" * 32) is None
    assert reader.missing is not None
    assert str(path) in reader.missing
    assert not path.parent.exists()


@pytest.mark.parametrize("content", [b"", None])
def test_a_file_without_tables_reads_as_empty_until_it_has_some(tmp_path: Path, monkeypatch, content):
    path = tmp_path / "history.db"
    if content is None:
        with Database(f"sqlite:///{path}").write() as connection:
            connection.exec_driver_sql("CREATE TABLE others (id INTEGER)")
    else:
        path.write_bytes(content)
    reader = Reader(f"sqlite:///{path}")
    with reader.open() as connection:
        assert page(connection).rows == []
    monkeypatch.setenv("CLEW_DATABASE_URL", f"sqlite:///{path}")
    keep(run_row())
    with reader.open() as connection:
        assert len(page(connection).rows) == 1


def test_what_is_no_database_is_said(tmp_path: Path):
    path = tmp_path / "history.db"
    path.write_bytes(b"This is no database, it is a letter to a friend. " * 100)
    with (
        pytest.raises(DatabaseError, match=r"can't be read: file is not a database"),
        Reader(f"sqlite:///{path}").open(),
    ):
        pass


def test_tables_that_are_not_there_are_asked_for_in_postgresql(postgresql_url: str, monkeypatch):
    monkeypatch.setenv("CLEW_DATABASE_URL", postgresql_url)
    with pytest.raises(DatabaseError, match="run 'clew db upgrade'"), Reader(Settings.load().history_url()).open():
        pass


def test_tables_of_another_version_are_not_read(reader):
    keep(run_row())
    database = Database(Settings.load().history_url())
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE clew_alembic_version SET version_num = '9999'")
    with pytest.raises(DatabaseError, match=r"revision 9999, .*: upgrade clew"), reader.open():
        pass
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE clew_alembic_version SET version_num = '0000'")
    with pytest.raises(DatabaseError, match="run 'clew db upgrade'"), reader.open():
        pass
    database.engine.dispose()
