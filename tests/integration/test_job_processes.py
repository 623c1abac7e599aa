"""Jobs in real processes that are killed, stopped, asked to end, or that fork: what the history says of their runs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from clew.history.liveness import mark_lost
from tests.integration.job_history import History, Program, eventually


@pytest.fixture
def history(database_url: str) -> Iterator[History]:
    with History(database_url) as opened:
        yield opened


def test_a_run_whose_process_is_killed_is_lost_once(history: History, tmp_path: Path) -> None:
    with ExitStack() as stack:
        watchers = [stack.enter_context(Program(tmp_path, "watch")) for _ in range(3)]
        for watcher in watchers:
            watcher.wait_for("started")
        killed = stack.enter_context(Program(tmp_path, "run", "60"))
        killed.wait_for("started")
        history.wait_for_runs("long")
        (running,) = history.runs("long")
        assert (running["status"], running["pid"], running["metadata"]) == ("running", killed.process.pid, {"shard": 3})
        eventually(lambda: history.runs("long")[0]["progress"] == 0.4, "a heartbeat brings the progress")
        killed.end(signal.SIGKILL)
        eventually(lambda: history.runs("long", "lost"), "the run is lost")
        told = [event for watcher in watchers for event in watcher.events("job_lost")]
        eventually(lambda: any(watcher.events("job_lost") for watcher in watchers), "somebody says so")
        # Each of them has looked again by now
        beats = [history.runs("long")[0]["heartbeat_at"]]
        eventually(lambda: all(not watcher.process.poll() for watcher in watchers), "they go on")
        told = [event for watcher in watchers for event in watcher.events("job_lost")]
        assert [(event["level"], event["clew.job.run.id"]) for event in told] == [("error", running["id"])]
        (lost,) = history.runs("long")
        assert (lost["error_type"], lost["error_message"]) == ("lost", "its process ended before it did")
        assert lost["heartbeat_at"] == beats[0]
        assert history.totals("long") == {"lost": 1}
        assert mark_lost(history.database) == 0


def test_a_restart_finds_what_the_last_process_left(history: History, tmp_path: Path) -> None:
    with Program(tmp_path, "run", "60") as killed:
        killed.wait_for("started")
        history.wait_for_runs("long")
        killed.end(signal.SIGKILL)
    assert [run["status"] for run in history.runs("long")] == ["running"]
    with Program(tmp_path, "run", "0") as restarted:
        restarted.wait_for("ended")
        assert restarted.process.wait(30) == 0
    assert [run["status"] for run in history.runs("long")] == ["lost", "completed"]
    history.check_totals("long")


def test_a_reader_that_does_not_watch_marks_what_is_gone(history: History, tmp_path: Path) -> None:
    with Program(tmp_path, "run", "60") as killed:
        killed.wait_for("started")
        history.wait_for_runs("long")
        assert mark_lost(history.database) == 0
        killed.end(signal.SIGKILL)
    assert mark_lost(history.database) == 1
    assert mark_lost(history.database) == 0
    assert history.totals("long") == {"lost": 1}


def test_a_process_that_is_stopped_or_busy_is_not_gone(history: History, tmp_path: Path) -> None:
    with (
        Program(tmp_path, "watch") as watcher,
        Program(tmp_path, "run", "8") as stopped,
        Program(tmp_path, "hog", "4") as busy,
    ):
        for one in (watcher, stopped, busy):
            one.wait_for("started")
        history.wait_for_runs("watching")
        history.wait_for_runs("long", 2)
        with history.held():
            stopped.process.send_signal(signal.SIGSTOP)
        busy.wait_for("ended")
        stopped.process.send_signal(signal.SIGCONT)
        stopped.wait_for("ended")
        eventually(lambda: len(history.runs("long", "completed")) == 2, "both end well")
        assert not watcher.events("job_lost")
    history.check_totals("long")


@pytest.mark.parametrize("name", ["background", "blocking", "loop", "run"])
def test_sigterm_lets_a_run_finish(history: History, tmp_path: Path, name: str) -> None:
    with Program(tmp_path, name, "1.2", CLEW_SHUTDOWN_TIMEOUT_S="20") as program:
        program.wait_for("started")
        assert program.end(signal.SIGTERM) == -signal.SIGTERM
        assert program.said("ended")
    runs = [run for run in history.runs("long") if run["status"] != "skipped"]
    assert [run["status"] for run in runs] == ["completed"]
    assert not history.runs("long", "running")
    assert history.scheduled() == []
    history.check_totals("long")


@pytest.mark.parametrize("name", ["background", "blocking", "loop", "run"])
def test_sigterm_marks_what_does_not_finish(history: History, tmp_path: Path, name: str) -> None:
    with Program(tmp_path, name, "60", CLEW_SHUTDOWN_TIMEOUT_S="3") as program:
        program.wait_for("started")
        assert program.end(signal.SIGTERM) == -signal.SIGTERM
        assert not program.said("ended")
    (run,) = [run for run in history.runs("long") if run["status"] != "skipped"]
    assert (run["status"], run["error_type"]) == ("cancelled", "shutdown")
    assert run["error_message"] == "the process ended before the run did"
    history.check_totals("long")


def test_sigint_marks_a_run_that_goes_on_and_completes_it_when_it_ends(history: History, tmp_path: Path) -> None:
    with Program(tmp_path, "background", "6", CLEW_SHUTDOWN_TIMEOUT_S="2") as program:
        program.wait_for("started")
        program.process.send_signal(signal.SIGINT)
        eventually(lambda: history.runs("long", "cancelled"), "the run is marked")
        # The interpreter waits for the threads of a pool, as it does without clew
        assert program.process.wait(30) == -signal.SIGINT
        assert program.said("ended")
    assert [run["result"] for run in history.runs("long", "completed")] == [{"worked_s": 6.0}]
    history.check_totals("long")


def test_a_program_that_ends_at_once_says_nothing_of_that(history: History, tmp_path: Path) -> None:
    with Program(tmp_path, "unused") as program:
        assert program.process.wait(60) == 0
        assert program.levels() <= {"info"}
    assert history.scheduled() == []


def test_a_child_that_is_forked_within_a_run_ends_nothing(history: History, tmp_path: Path) -> None:
    with Program(tmp_path, "forking") as program:
        eventually(lambda: history.runs("forks", "completed"), "the parent's run ends")
        children = psutil.Process(program.process.pid).children()
        (run,) = history.runs("forks")
        assert run["pid"] == program.process.pid
        for child in children:
            os.kill(child.pid, signal.SIGKILL)
    assert history.totals("forks") == {"completed": 1}


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_process_of_a_pool_that_is_killed(history: History, tmp_path: Path, method: str) -> None:
    with Program(tmp_path, "pool", method) as program:
        program.wait_for("started")
        eventually(lambda: history.runs("die", "lost"), "its run is lost")
        eventually(lambda: history.runs("nothing", "completed"), "a new pool runs the next job")
        (lost,), (after,) = history.runs("die"), history.runs("nothing")
        pids = {lost["pid"], after["pid"], program.process.pid}
        assert len(pids) == 3
        assert len(program.events("job_lost")) == 1
        said = [event["event"] for name in ("Error running job",) for event in program.events(name)]
        assert not said
    assert (history.totals("die"), history.totals("nothing")) == ({"lost": 1}, {"completed": 1})
