"""What is older than is kept is archived, verified, and only then deleted; archives tell when they are damaged, and can be restored."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from benchmarks.runs import fill
from clew.history import retention
from clew.history.archive import ArchiveError, archives, describe, read, restore, verify
from clew.history.database import Database
from clew.history.ids import least_id
from clew.history.migrations import HEAD
from clew.history.models import HealthCheck, JobCommand, JobRun, JobRunDailyTotal, JobRunTotal, QueueDepth
from clew.history.totals import totals
from clew.history.writing import Change, write
from clew.settings import Settings
from tests.integration.waiting import eventually

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    made = Database(Settings.load().history_url())
    made.upgrade()
    yield made
    made.close()


def settings(tmp_path: Path, **retention_s: float) -> Settings:
    return Settings.load(archive_dir=tmp_path / "archive", retention_s=retention_s)


def everything(database: Database, model: Any = JobRun) -> list[dict[str, Any]]:
    with database.read() as connection:
        return [
            dict(row) for row in connection.execute(select(model.__table__).order_by(model.__table__.c.id)).mappings()
        ]


def count(database: Database, model: Any = JobRun) -> int:
    with database.read() as connection:
        return connection.scalar(select(func.count()).select_from(model)) or 0


def test_old_runs_are_archived_and_deleted_and_come_back_the_same(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "ROWS_PER_FILE", 2_000)
    fill(database, 6_000, until=NOW, over=timedelta(days=180))
    before = everything(database)
    (runs, *others) = retention.clean_up(database, settings(tmp_path), now=NOW)
    assert (runs.table, len(runs.files)) == ("job_runs", 2)
    assert runs.rows == pytest.approx(3_000, abs=5)
    assert {other.rows for other in others} == {0}
    left = everything(database)
    assert len(left) + runs.rows == 6_000
    assert min(row["finished_at"] for row in left) >= NOW - timedelta(days=90, seconds=1)
    assert sum(verify(path) for path in runs.files) == runs.rows
    archived = [row for path in runs.files for row in read(path)]
    assert sorted([*archived, *left], key=lambda row: str(row["id"])) == before
    assert not list((tmp_path / "archive").glob("*.part"))
    # Nothing more to do
    assert not any(cleaned.files for cleaned in retention.clean_up(database, settings(tmp_path), now=NOW))
    for _ in range(2):
        assert sum(restore(path, database) for path in runs.files) == runs.rows
    assert everything(database) == before


def test_totals_go_with_their_hours_and_days(database: Database, tmp_path: Path) -> None:
    fill(database, 2_000, until=NOW, over=timedelta(days=10))
    retention.clean_up(database, settings(tmp_path, job_runs=3 * 86_400), now=NOW)
    with database.read() as connection:
        hour, day = (
            connection.scalar(select(func.min(JobRunTotal.hour))),
            connection.scalar(select(func.min(JobRunDailyTotal.day))),
        )
        kept = totals(connection, since=NOW - timedelta(days=2), until=NOW)
        assert sum(total.runs for total in kept) == pytest.approx(400, abs=30)
    assert hour == datetime(2026, 2, 26, 12, tzinfo=UTC)
    assert day == datetime(2026, 2, 26, tzinfo=UTC)


def test_totals_of_any_time_are_those_of_its_hours(database: Database) -> None:
    fill(database, 3_000, until=NOW, over=timedelta(days=5))
    runs = everything(database)
    for since, until in (
        (None, None),
        (NOW - timedelta(hours=3), None),
        (NOW - timedelta(days=3), NOW - timedelta(hours=7)),
        (None, NOW - timedelta(days=1)),
        (datetime(2026, 2, 26, tzinfo=UTC), datetime(2026, 2, 27, tzinfo=UTC)),
        (datetime(2026, 2, 26, 5, tzinfo=UTC), datetime(2026, 2, 26, 9, tzinfo=UTC)),
    ):
        first = since.replace(minute=0) if since else datetime.min.replace(tzinfo=UTC)
        last = (
            (until.replace(minute=0) + timedelta(hours=1 if until.minute else 0))
            if until
            else datetime.max.replace(tzinfo=UTC)
        )
        expected = [run for run in runs if first <= run["finished_at"] < last]
        with database.read() as connection:
            found = totals(connection, since=since, until=until)
            of_one = totals(connection, since=since, until=until, job="job-03")
        assert sum(total.runs for total in found) == len(expected)
        assert sum(total.runs for total in of_one) == sum(run["job"] == "job-03" for run in expected)
        assert sum(total.duration_s for total in found) == pytest.approx(
            sum(run["duration_s"] or 0 for run in expected)
        )


def test_what_goes_on_or_has_changed_is_kept(database: Database, tmp_path: Path) -> None:
    old = NOW - timedelta(days=200)

    def run(number: int, **columns: Any) -> Change:
        identity = f"{int(least_id(old), 16) + number:032x}"
        common = {"id": identity, "service": "s", "instance": "i", "job": "j", "source": "clew", "attempt": 1}
        return Change(
            table="job_runs", row={**common, "recorded_at": old, "status": "completed", "finished_at": old, **columns}
        )

    with database.write() as connection:
        write(
            connection,
            [
                run(1),
                run(2, status="running", finished_at=None),
                run(3, finished_at=NOW - timedelta(days=1)),
                run(4, status="missed", finished_at=None),
                # Whoever makes ids by other means is not punished for it
                run(5, id="0" * 32, recorded_at=NOW),
            ],
        )
    (runs, *_) = retention.clean_up(database, settings(tmp_path), now=NOW)
    assert runs.rows == 2
    assert {row["status"] for row in everything(database)} == {"running", "completed"}
    assert count(database) == 3


def test_each_table_has_its_own_time(database: Database, tmp_path: Path) -> None:
    with database.write() as connection:
        for days in (5, 8, 20):
            at = NOW - timedelta(days=days)
            row = {
                "id": least_id(at),
                "service": "s",
                "instance": "i",
                "recorded_at": at,
                "name": "disk",
                "status": "ok",
                "duration_s": 0.1,
            }
            write(connection, [Change(table="health_checks", row={**row, "details": {"free": [1, None, "ü"]}})])
            command = {
                "id": least_id(at),
                "instance": "i",
                "scheduler": "s",
                "job_id": "j",
                "verb": "run",
                "requested_at": at,
            }
            connection.execute(JobCommand.__table__.insert(), [{**command, "done_at": at if days != 8 else None}])  # type: ignore[attr-defined]
    found = retention.clean_up(database, settings(tmp_path, job_commands=7 * 86_400), now=NOW)
    rows = {cleaned.table: cleaned.rows for cleaned in found if cleaned.rows}
    assert rows == {"health_checks": 2, "job_commands": 1}
    assert (count(database, HealthCheck), count(database, JobCommand)) == (1, 2)


def test_queues_that_nobody_looks_at_any_more_are_forgotten(database: Database, tmp_path: Path) -> None:
    def depth(queue: str, ago: timedelta) -> Change:
        row = {
            "id": f"{queue:-<32}",
            "service": "s",
            "instance": "i",
            "system": "redis",
            "queue": queue,
            "kind": "list",
        }
        return Change(table="queue_depths", row={**row, "length": 7, "observed_at": NOW - ago}, verb="end")

    hour = timedelta(hours=1)
    with database.write() as connection:
        write(connection, [depth("documents", hour), depth("slow", 23 * hour), depth("of-a-day", 25 * hour)])
        write(connection, [depth("renamed", 900 * hour), depth("taken-up-again", 900 * hour)])
        # Whoever looks at a queue after a while finds its row
        write(connection, [depth("taken-up-again", hour)])
    assert count(database, QueueDepth) == 5
    retention.clean_up(database, settings(tmp_path), now=NOW)
    assert {row["queue"] for row in everything(database, QueueDepth)} == {"documents", "slow", "taken-up-again"}
    assert not list((tmp_path / "archive").glob("*.gz"))


def test_the_checksum_is_that_of_the_lines(database: Database, tmp_path: Path) -> None:
    fill(database, 100, until=NOW - timedelta(days=100))
    (runs, *_) = retention.clean_up(database, settings(tmp_path), now=NOW)
    (path,) = runs.files
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    manifest, end = json.loads(lines[0]), json.loads(lines[-1])
    assert manifest["format"] == "clew-archive/1"
    assert (manifest["table"], manifest["revision"]) == ("job_runs", HEAD)
    assert manifest["columns"] == [column.name for column in JobRun.__table__.columns]
    assert end == {"rows": 100, "sha256": hashlib.sha256(b"".join(lines[:-1])).hexdigest()}
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    (found,) = archives(path.parent)
    assert (found.table, found.rows, found.path) == ("job_runs", 100, path)


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    lines = gzip.decompress(data).splitlines(keepends=True)
    if how == "a bit":
        middle = len(data) // 2
        data = data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]
    elif how == "cut":
        data = data[: len(data) // 2]
    elif how == "a value":
        data = gzip.compress(b"".join(lines).replace(b'"service":"bench"', b'"service":"bunch"', 1))
    elif how == "a row less":
        data = gzip.compress(b"".join(lines[:5] + lines[6:]))
    elif how == "no end":
        data = gzip.compress(b"".join(lines[:-1]))
    elif how == "another format":
        data = gzip.compress(b"".join([lines[0].replace(b"clew-archive/1", b"clew-archive/9"), *lines[1:]]))
    elif how == "no gzip":
        data = b"".join(lines)
    elif how == "empty":
        data = b""
    path.write_bytes(data)


@pytest.mark.parametrize(
    "how", ["a bit", "cut", "a value", "a row less", "no end", "another format", "no gzip", "empty"]
)
def test_a_damaged_archive_is_told_and_nothing_of_it_restored(
    database_url: str, database: Database, tmp_path: Path, how: str
) -> None:
    fill(database, 300, until=NOW - timedelta(days=100))
    (runs, *_) = retention.clean_up(database, settings(tmp_path), now=NOW)
    (path,) = runs.files
    assert count(database) == 0
    damage(path, how)
    with pytest.raises(ArchiveError, match=path.name):
        verify(path)
    with pytest.raises(ArchiveError):
        restore(path, database)
    assert count(database) == 0


def test_an_archive_of_a_newer_version_is_not_restored(database: Database, tmp_path: Path) -> None:
    fill(database, 10, until=NOW - timedelta(days=100))
    (runs, *_) = retention.clean_up(database, settings(tmp_path), now=NOW)
    lines = gzip.decompress(runs.files[0].read_bytes())
    newer = tmp_path / "job_runs-newer-10.jsonl.gz"
    newer.write_bytes(gzip.compress(lines.replace(b'"attempt"', b'"tries"')))
    assert describe(newer).rows == 10
    with pytest.raises(ArchiveError, match="upgrade clew"):
        restore(newer, database)


@pytest.mark.parametrize("fails", ["verify", "disk"])
def test_what_is_not_verified_is_not_deleted(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    fill(database, 300, until=NOW - timedelta(days=100))

    def damaged(path: Path) -> int:
        damage(path, "a bit")
        return verify(path)

    with monkeypatch.context() as patch:
        if fails == "verify":
            patch.setattr(retention, "verify", damaged)
        else:
            (tmp_path / "archive").write_text("no folder")
        with pytest.raises((ArchiveError, OSError)):
            retention.clean_up(database, settings(tmp_path), now=NOW)
    assert count(database) == 300


def test_one_process_at_a_time(database: Database, tmp_path: Path) -> None:
    fill(database, 100, until=NOW - timedelta(days=100))
    with retention._alone(database, tmp_path / "archive") as alone:
        assert alone
        assert retention.clean_up(database, settings(tmp_path), now=NOW) == []
        if not database.is_sqlite:
            # Nor one on another machine, with a folder of its own
            assert retention.clean_up(database, Settings.load(archive_dir=tmp_path / "other"), now=NOW) == []
    assert retention.clean_up(database, settings(tmp_path), now=NOW)[0].rows == 100


def test_killed_at_any_moment_nothing_is_lost_and_it_is_finished_later(database: Database, tmp_path: Path) -> None:
    fill(database, 4_000, until=NOW - timedelta(days=100))
    before = everything(database)
    code = """
        from clew.history import retention
        from clew.history.database import Database
        from clew.settings import Settings
        retention.ROWS_PER_FILE = 1_000
        retention._AT_ONCE = 100
        settings = Settings.load()
        retention.clean_up(Database(settings.history_url()), settings)
    """
    environment = {**os.environ, "CLEW_ARCHIVE_DIR": str(tmp_path / "archive")}
    left = count(database)
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], env=environment)

        def goes_on(process: subprocess.Popen[bytes] = process, left: int = left) -> bool:
            return process.poll() is not None or count(database) < left

        eventually(goes_on, "rows are deleted")
        process.send_signal(signal.SIGKILL)
        process.wait()
        left = count(database)
        known = {row["id"]: row for path in archives(tmp_path / "archive") for row in read(path.path)}
        known.update({row["id"]: row for row in everything(database)})
        assert [known[key] for key in sorted(known)] == before
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=environment, check=True, timeout=60)
    assert count(database) == 0
    for archive in archives(tmp_path / "archive"):
        restore(archive.path, database)
    assert everything(database) == before
