"""The database goes away, hangs, refuses and fills up: nothing accepted is lost, nothing waits for it, and the account tells."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clew import clock
from clew.history.database import Database
from clew.history.ids import new_id
from clew.history.models import HealthCheck, JobRunDailyTotal, JobRunTotal
from clew.history.recorder import Recorder
from clew.history.spooling import spool_of
from clew.history.writing import Change
from clew.pipeline.ledger import Account
from clew.settings import Settings
from tests.integration.history_rows import rows
from tests.integration.postgresql import PostgreSQL
from tests.integration.waiting import eventually

Recorders = Callable[..., Recorder]

pytestmark = pytest.mark.usefixtures("spool_dir")


@pytest.fixture
def recorders() -> Iterator[Callable[..., Recorder]]:
    """Make recorders as a process has one, ended after the test."""
    made: list[Recorder] = []

    def make(**given: Any) -> Recorder:
        made.append(Recorder(Settings.load(**given)))
        return made[-1]

    yield make
    for recorder in made:
        recorder.shutdown(5.0)


def started(recorder: Recorder, job: str = "digest", **columns: Any) -> Change:
    row = recorder.row(id=new_id(), job=job, source="clew", status="running", started_at=clock.utc_now(), attempt=1)
    return Change(table="job_runs", row={**row, **columns})


def ended(start: Change, status: str = "completed", **columns: Any) -> Change:
    row = {**start.row, "status": status, "finished_at": clock.utc_now(), "duration_s": 0.25, **columns}
    return Change(table="job_runs", row=row, verb="end")


def checked(recorder: Recorder, **columns: Any) -> Change:
    row = recorder.row(id=new_id(), name="disk", status="ok", duration_s=0.001)
    return Change(table="health_checks", row={**row, **columns})


def balanced(account: Account) -> bool:
    return account.emitted == account.delivered + sum(account.dropped.values()) + account.pending


def settled(recorder: Recorder) -> bool:
    recorder.flush(5.0)
    return recorder.account().pending == 0


def test_what_steers_is_there_when_the_wait_ends(database_url: str, recorders: Recorders) -> None:
    recorder = recorders()
    # The tables are made first, which may take longer than is waited for
    assert recorder.steer(started(recorder, id="0" * 32)).result(20)
    start = started(recorder, result={"a": [1, "ü\U0001f9f6"]})
    assert recorder.steer_and_wait(start)
    _, row = rows(database_url)
    assert (row.status, row.result, row.started_at) == ("running", {"a": [1, "ü\U0001f9f6"]}, start.row["started_at"])
    assert recorder.steer_and_wait(ended(start))
    _, row = sorted(rows(database_url), key=lambda row: str(row.id))
    assert (row.status, row.duration_s) == ("completed", 0.25)
    assert recorder.account() == Account(emitted=3, delivered=3)


def test_what_records_is_written_within_a_second_or_so(database_url: str, recorders: Recorders) -> None:
    recorder = recorders()
    for _ in range(10):
        recorder.record(checked(recorder))
    eventually(lambda: recorder.account().delivered == 10, "the batch is written without a flush")
    assert len(rows(database_url, HealthCheck)) == 10


def test_rows_of_an_event_loop_are_awaited_without_holding_it_up(database_url: str, recorders: Recorders) -> None:
    recorder = recorders()

    async def work() -> list[bool]:
        return await asyncio.gather(*(recorder.steer_and_await(started(recorder)) for _ in range(50)))

    assert asyncio.run(work()) == [True] * 50

    async def careless() -> bool:
        return recorder.steer_and_wait(started(recorder))

    # On a loop nothing is waited for, but it is there soon
    asyncio.run(careless())
    assert recorder.flush(5.0)
    assert len(rows(database_url)) == 51


def test_fifty_threads_and_fifty_tasks_at_once(database_url: str, recorders: Recorders) -> None:
    recorder = recorders()
    assert recorder.steer(started(recorder)).result(20)
    outcomes: list[bool] = []

    def in_thread() -> None:
        for _ in range(10):
            start = started(recorder)
            outcomes.append(recorder.steer_and_wait(start))
            outcomes.append(recorder.steer_and_wait(ended(start)))

    async def in_task() -> None:
        for _ in range(10):
            start = started(recorder)
            outcomes.append(await recorder.steer_and_await(start))
            outcomes.append(await recorder.steer_and_await(ended(start)))

    async def tasks() -> None:
        await asyncio.gather(*(in_task() for _ in range(50)))

    threads = [threading.Thread(target=in_thread) for _ in range(50)]
    threads.append(threading.Thread(target=asyncio.run, args=(tasks(),)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorder.flush(20.0)
    assert len(outcomes) == 2_000
    assert recorder.account() == Account(emitted=2_001, delivered=2_001)
    found = rows(database_url)
    assert len(found) == 1_001
    assert sum(row.status == "completed" for row in found) == 1_000
    for model in (JobRunTotal, JobRunDailyTotal):
        assert sum(row.runs for row in rows(database_url, model)) == 1_000


def test_postgresql_stopped_and_started_under_load_loses_nothing(
    postgresql: PostgreSQL, postgresql_url: str, recorders: Recorders
) -> None:
    recorder = recorders(database_url=postgresql_url, database_auto_upgrade=True)
    assert recorder.steer(started(recorder)).result(20)
    over = threading.Event()
    longest: list[float] = []
    committed: list[str] = []

    def work() -> None:
        while not over.is_set():
            before = time.monotonic()
            start = started(recorder)
            if recorder.steer_and_wait(start):
                committed.append(start.row["id"])
            recorder.steer_and_wait(ended(start))
            recorder.record(checked(recorder))
            longest.append(time.monotonic() - before)
            over.wait(0.005)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(2):
        postgresql.stop()
        eventually(lambda: recorder.account().spooled > 20, "rows go to disk")
        postgresql.start()
        eventually(lambda: recorder.account().spooled == 0, "rows come back")
    over.set()
    for thread in threads:
        thread.join()
    eventually(lambda: settled(recorder), "everything is written")
    account = recorder.account()
    assert account == Account(emitted=account.emitted, delivered=account.emitted)
    found = rows(postgresql_url)
    assert len(found) == len(longest) + 1
    assert {row.id for row in found} >= set(committed)
    assert sum(row.status == "completed" for row in found) == len(longest)
    # Written twice or not, each is counted once
    for model in (JobRunTotal, JobRunDailyTotal):
        assert sum(row.runs for row in rows(postgresql_url, model)) == len(longest)
    assert len(rows(postgresql_url, HealthCheck)) == len(longest)


def test_a_server_that_accepts_and_never_answers_is_given_up(
    postgresql: PostgreSQL, postgresql_url: str, recorders: Recorders
) -> None:
    recorder = recorders(database_url=postgresql_url, database_auto_upgrade=True)
    assert recorder.steer(started(recorder)).result(20)
    with postgresql.frozen():
        assert not recorder.steer_and_wait(started(recorder))
        # One has waited a second in vain: the others do not
        before = time.monotonic()
        outcomes = [recorder.steer_and_wait(started(recorder)) for _ in range(1_000)]
        assert not any(outcomes)
        assert time.monotonic() - before < 1.0
        eventually(lambda: recorder.account().spooled == 1_001, "rows wait on disk")
    eventually(lambda: settled(recorder), "rows come back")
    assert len(rows(postgresql_url)) == 1_002


def test_sqlite_locked_by_another_process_for_long(tmp_path: Path, recorders: Recorders) -> None:
    url = f"sqlite:///{tmp_path / 'history.db'}"
    recorder = recorders(database_url=url)
    assert recorder.steer(started(recorder)).result(20)
    other = sqlite3.connect(tmp_path / "history.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert not recorder.steer_and_wait(started(recorder))
    eventually(lambda: recorder.account().spooled == 1, "the row waits on disk")
    assert not recorder.steer_and_wait(started(recorder))
    other.execute("ROLLBACK")
    other.close()
    eventually(lambda: settled(recorder), "rows come back")
    assert recorder.steer(started(recorder)).result(20)
    assert len(rows(url)) == 4


def test_postgresql_without_tables_is_told_of_once_and_rows_wait(
    postgresql_url: str, recorders: Recorders, caplog
) -> None:
    recorder = recorders(database_url=postgresql_url)
    for _ in range(3):
        recorder.steer_and_wait(started(recorder))
    recorder.record(checked(recorder))
    eventually(lambda: recorder.account().spooled == 4, "rows wait")
    (said,) = [record.getMessage() for record in caplog.records if record.name == "clew.history"]
    assert "run 'clew db upgrade'" in said
    Database(Settings(database_url=postgresql_url).history_url()).upgrade()
    eventually(lambda: settled(recorder), "rows come in once the tables are there")
    assert len(rows(postgresql_url)) == 3


@pytest.mark.parametrize(
    "bad",
    [
        {"started_at": "yesterday"},
        {"started_at": clock.utc_now().replace(tzinfo=None)},
        {"job": None},
        {"attempt": 2**70},
        {"result": {1, 2}},
        {"user_id": object()},
        {"nonsense": 1},
    ],
    ids=lambda bad: next(iter(bad)),
)
def test_a_row_that_is_refused_takes_no_other_with_it(
    database_url: str, recorders: Recorders, bad: dict[str, Any]
) -> None:
    recorder = recorders()
    changes = [started(recorder) for _ in range(20)]
    changes[7] = Change(table="job_runs", row={**changes[7].row, **bad})
    for change in changes:
        recorder.record(change)
    recorder.flush(10.0)
    assert recorder.account() == Account(emitted=20, delivered=19, dropped={"refused": 1})
    assert len(rows(database_url)) == 19
    assert recorder.steer(started(recorder)).result(20)


def test_a_row_that_is_refused_after_an_outage_is_not_tried_for_ever(tmp_path: Path, recorders: Recorders) -> None:
    blocker = tmp_path / "folder"
    blocker.write_text("no folder")
    url = f"sqlite:///{blocker / 'history.db'}"
    recorder = recorders(database_url=url)
    for number in range(20):
        # What JSON can write down, but no table takes
        recorder.record(started(recorder, job="" if number != 7 else None))  # type: ignore[arg-type]
    recorder.record(Change(table="no_such_table", row={"id": "1"}))
    recorder.flush(5.0)
    assert recorder.account().spooled == 21
    blocker.unlink()
    eventually(lambda: settled(recorder), "rows come back")
    assert recorder.account() == Account(emitted=21, delivered=19, dropped={"refused": 2})
    assert len(rows(url)) == 19


def test_a_file_that_is_deleted_is_made_anew(tmp_path: Path, recorders: Recorders) -> None:
    url = f"sqlite:///{tmp_path / 'history.db'}"
    recorder = recorders(database_url=url)
    assert recorder.steer(started(recorder)).result(20)
    for name in ("history.db", "history.db-wal", "history.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    assert recorder.steer(started(recorder)).result(20)
    assert len(rows(url)) == 1


def test_without_a_database_and_without_room_on_disk_what_is_lost_is_counted(
    tmp_path: Path, recorders: Recorders
) -> None:
    blocker = tmp_path / "folder"
    blocker.write_text("no folder")
    recorder = recorders(database_url=f"sqlite:///{blocker / 'history.db'}", spool_max_bytes=100_000)
    for _ in range(50):
        recorder.steer_and_wait(started(recorder, traceback=os.urandom(5_000).hex()))
        recorder.flush(5.0)
    account = recorder.account()
    assert balanced(account)
    assert account.spooled > 0
    assert account.dropped["spool_full"] == 50 - account.spooled
    unspooled = recorders(database_url=f"sqlite:///{blocker / 'history.db'}", spool_max_bytes=0)
    unspooled.record(checked(unspooled))
    unspooled.flush(5.0)
    assert unspooled.account() == Account(emitted=1, dropped={"no_spool": 1})
    nowhere = recorders(database_url=f"sqlite:///{blocker / 'history.db'}", spool_dir=blocker / "spool")
    nowhere.record(checked(nowhere))
    nowhere.flush(5.0)
    assert nowhere.account() == Account(emitted=1, dropped={"spool_error": 1})


def test_rows_that_waited_come_in_order(tmp_path: Path, recorders: Recorders) -> None:
    blocker = tmp_path / "folder"
    blocker.write_text("no folder")
    url = f"sqlite:///{blocker / 'history.db'}"
    recorder = recorders(database_url=url)
    start = started(recorder)
    recorder.steer_and_wait(start)
    recorder.steer_and_wait(ended(start, "failed", error_type="E"))
    eventually(lambda: recorder.account().spooled == 2, "rows wait")
    blocker.unlink()
    recorder.steer_and_wait(ended(start, "completed", error_type=None))
    eventually(lambda: settled(recorder), "rows come back")
    (row,) = rows(url)
    assert row.status == "completed"
    assert [(total.status, total.runs) for total in rows(url, JobRunTotal) if total.runs] == [("completed", 1)]


def test_too_many_rows_are_counted_as_lost(
    tmp_path: Path, recorders: Recorders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clew.history.recorder.MAX_QUEUED_ROWS", 10)
    url = f"sqlite:///{tmp_path / 'history.db'}"
    recorder = recorders(database_url=url)
    assert recorder.steer(started(recorder)).result(20)
    other = sqlite3.connect(tmp_path / "history.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    recorder.steer(started(recorder))
    futures = [recorder.steer(started(recorder)) for _ in range(100)]
    for _ in range(100):
        recorder.record(checked(recorder))
    other.execute("ROLLBACK")
    other.close()
    eventually(lambda: settled(recorder), "what was taken is written")
    assert all(future.done() for future in futures)
    account = recorder.account()
    assert account.dropped["queue_full"] >= 150
    assert balanced(account)
    assert len(rows(url)) + len(rows(url, HealthCheck)) == account.delivered


def test_the_end_within_its_deadline_leaves_the_rest_on_disk_for_the_next_start(
    postgresql: PostgreSQL, postgresql_url: str, recorders: Recorders
) -> None:
    recorder = recorders(database_url=postgresql_url, database_auto_upgrade=True)
    assert recorder.steer(started(recorder)).result(20)
    with postgresql.frozen():
        for _ in range(200):
            recorder.steer(started(recorder))
            recorder.record(checked(recorder))
        before = time.monotonic()
        recorder.shutdown(1.0)
        assert time.monotonic() - before < 3.0
        account = recorder.account()
        assert (account.delivered, account.spooled, account.pending) == (1, 400, 400)
        late = recorder.steer(started(recorder))
        assert late.result(0) is False
        assert recorder.account().spooled == 401
    following = recorders(database_url=postgresql_url, database_auto_upgrade=True)
    assert following.steer_and_wait(started(following))
    eventually(lambda: following.account().replayed == 401, "the next start takes it along")
    assert len(rows(postgresql_url)) == 1 + 200 + 1 + 1
    assert len(rows(postgresql_url, HealthCheck)) == 200


def test_nothing_of_a_password_is_logged_or_on_disk(recorders: Recorders, caplog, spool_dir: Path) -> None:
    recorder = recorders(database_url="postgresql://user:hunter2-secret@127.0.0.1:1/history")
    recorder.steer_and_wait(started(recorder))
    eventually(lambda: recorder.account().spooled == 1, "the row waits")
    assert caplog.records
    assert not [record for record in caplog.records if "hunter2-secret" in record.getMessage()]
    assert not [path for path in spool_dir.rglob("*") if "hunter2" in str(path)]
    waiting = spool_of(Settings.load(database_url="postgresql://user:another@127.0.0.1:1/history"))
    assert waiting is not None
    assert waiting.waiting_bytes() > 0
