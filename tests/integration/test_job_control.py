"""Jobs seen and steered from other processes, and from the scheduler's own."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
from apscheduler.schedulers.background import BackgroundScheduler
from sqlalchemy import delete, update

import clew
from clew import clock
from clew.history.models import JobCommand, ScheduledJob
from clew.jobs.control import UnknownCommandError, UnknownJobError, ask, list_jobs, outcome
from clew.jobs.schedule import Verb
from tests.integration.job_history import History, Program, eventually


@pytest.fixture
def history(database_url: str) -> Iterator[History]:
    with History(database_url) as opened:
        yield opened


def done(history: History, job_id: str, verb: Any, **options: Any) -> str:
    """Ask for something and return what came of it."""
    asked = ask(job_id, verb, database=history.database, **options)
    eventually(lambda: outcome(asked.id, database=history.database).outcome, f"{verb} is answered")
    return str(outcome(asked.id, database=history.database).outcome)


def test_another_process_runs_pauses_resumes_and_removes(history: History, tmp_path: Path) -> None:
    with Program(tmp_path, "scheduled") as program:
        program.wait_for("started")
        eventually(lambda: len(list_jobs(database=history.database)) == 2, "its jobs are shown")
        long, nightly = sorted(list_jobs(database=history.database), key=lambda job: job.job_id)
        assert (nightly.trigger, nightly.paused, nightly.pending) == ("interval[1 day, 0:00:00]", False, False)
        assert (nightly.stored, nightly.service, nightly.pid) == ("memory", "jobs", program.process.pid)
        assert nightly.next_run_at is not None
        due = nightly.next_run_at

        assert done(history, "nightly", "run", requested_by="ada") == "done: started"
        eventually(lambda: history.runs("nightly", "completed"), "it has run")
        (run,) = history.runs("nightly")
        assert (run["trigger"], run["user_id"], run["scheduled_at"]) == ("manual", "ada", None)
        # Its schedule is what it was
        assert next(job for job in list_jobs(database=history.database) if job.job_id == "nightly").next_run_at == due

        assert done(history, "long", "run") == "done: started"
        program.wait_for("started")
        assert done(history, "long", "run").startswith("refused: it runs already")

        assert done(history, "nightly", "pause") == "done: paused"
        eventually(lambda: list_jobs(job_id="nightly", database=history.database)[0].paused, "it is shown as paused")
        assert done(history, "nightly", "resume") == "done: resumed"
        assert done(history, "nightly", "remove") == "done: removed"
        eventually(lambda: not list_jobs(job_id="nightly", database=history.database), "it is shown no more")
        with pytest.raises(UnknownJobError, match="nightly"):
            ask("nightly", "run", database=history.database)

        assert program.process.stdin is not None
        program.process.stdin.write(b"\n")
        program.process.stdin.flush()
        program.wait_for("shut down")
        eventually(lambda: not history.scheduled(), "a scheduler that was shut down has nothing")
        assert long.job_id == "long"


def test_a_process_that_is_gone_has_no_jobs(history: History, tmp_path: Path) -> None:
    with Program(tmp_path, "scheduled") as program:
        program.wait_for("started")
        eventually(lambda: len(list_jobs(database=history.database)) == 2, "its jobs are shown")
        program.end(signal.SIGKILL)
        assert list_jobs(database=history.database) == []
        with pytest.raises(UnknownJobError):
            ask("long", "run", database=history.database)
    assert len(history.scheduled()) == 2
    with Program(tmp_path, "watch"):
        eventually(lambda: not history.scheduled(), "another process sweeps them away")


def test_what_was_swept_away_of_a_process_that_lives_comes_back(history: History, tmp_path: Path) -> None:
    with Program(tmp_path, "scheduled") as program:
        program.wait_for("started")
        eventually(lambda: len(list_jobs(database=history.database)) == 2, "its jobs are shown")
        with history.database.write() as connection:
            connection.execute(delete(ScheduledJob.__table__))  # type: ignore[arg-type]
        eventually(lambda: len(list_jobs(database=history.database)) == 2, "its jobs are shown again")


def test_a_command_that_waited_for_too_long_is_refused(history: History, tmp_path: Path) -> None:
    with Program(tmp_path, "scheduled") as program:
        program.wait_for("started")
        eventually(lambda: len(list_jobs(database=history.database)) == 2, "its jobs are shown")
        with history.held():
            program.process.send_signal(signal.SIGSTOP)
        asked = ask("nightly", "run", database=history.database)
        assert outcome(asked.id, database=history.database).outcome is None
        with history.database.write() as connection:
            long_ago = clock.utc_now() - timedelta(minutes=2)
            connection.execute(update(JobCommand.__table__).values(requested_at=long_ago))  # type: ignore[arg-type]
        expired = outcome(asked.id, database=history.database)
        assert (expired.done_at, expired.outcome) == (None, "expired: its process did not take it")
        program.process.send_signal(signal.SIGCONT)
        eventually(lambda: outcome(asked.id, database=history.database).done_at, "it is answered")
        assert str(outcome(asked.id, database=history.database).outcome).startswith("refused: it was asked")
    assert not history.runs("nightly")


def test_a_scheduler_of_this_process_is_asked_directly() -> None:
    ran: list[int] = []
    scheduler = clew.instrument(BackgroundScheduler(timezone="UTC"))
    # A function without a name can be neither pickled nor stored
    scheduler.add_job(lambda: ran.append(1), "interval", days=1, id="local-job")
    scheduler.start()
    try:
        eventually(lambda: list_jobs(job_id="local-job"), "it is shown")
        asked = ask("local-job", "run", requested_by="ada")
        assert (asked.outcome, asked.requested_by) == ("done: started", "ada")
        assert outcome(asked.id) == asked
        eventually(lambda: ran, "it has run")
        for verb in ("pause", "resume", "remove"):
            assert str(ask("local-job", verb).outcome).startswith("done")
    finally:
        scheduler.shutdown()
    assert set(get_args(Verb)) == {"run", "pause", "resume", "remove"}


def test_what_nobody_asked_for() -> None:
    with pytest.raises(UnknownCommandError):
        outcome("0" * 32)
    with pytest.raises(ValueError, match="explode"):
        ask("nightly", "explode")  # type: ignore[arg-type]
