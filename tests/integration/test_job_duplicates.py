"""The same job fired by several processes: four workers with a scheduler each, and replicas over one store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from clew.jobs.control import list_jobs
from tests.integration.job_history import History, Program, eventually
from tests.integration.server_process import ROOT, ServerProcess


@pytest.fixture
def history(database_url: str) -> Iterator[History]:
    with History(database_url) as opened:
        yield opened


def reports(said: str, job: str) -> list[str]:
    return [line for line in said.splitlines() if '"job_duplicate"' in line and f'"clew.job.name": "{job}"' in line]


def reported(server: ServerProcess, job: str) -> bool:
    return len(reports(server.said, job)) >= 3


def test_workers_with_a_scheduler_each(history: History, database_url: str, tmp_path: Path) -> None:
    environment = {
        "CLEW_DATABASE_URL": database_url,
        "CLEW_HEARTBEAT_S": "1",
        "CLEW_LOG_FORMAT": "json",
        "OTEL_SDK_DISABLED": "true",
        "OTEL_SERVICE_NAME": "workers",
        "PYTHONPATH": str(ROOT),
    }
    command = ["gunicorn", "-w", "4", "-b", "127.0.0.1:{port}", "tests.integration.gunicorn_scheduler_app:app"]
    with ServerProcess(command, cwd=tmp_path, environment=environment, timeout_s=90) as server:
        for job in ("every-second", "tick"):
            eventually(partial(reported, server, job), f"three workers report {job}")
        eventually(lambda: len({row["pid"] for row in history.scheduled()}) == 4, "each worker shows its scheduler")
        server.stop()

    for job in ("every-second", "tick"):
        runs = history.runs(job)
        processes = {run["process_key"] for run in runs}
        assert len(processes) == 4
        by_id = {run["id"]: run for run in runs}
        marked = [run for run in runs if run["duplicate_of"] is not None]
        assert marked
        # One process's runs are those that others repeat, and it is the first of those that there were
        originals = {by_id[run["duplicate_of"]]["process_key"] for run in marked}
        assert originals & processes
        assert all(by_id[run["duplicate_of"]]["process_key"] != run["process_key"] for run in marked)
        # Once a job and process, however many runs there are
        assert len(reports(server.said, job)) <= 4
    due: dict[Any, list[str | None]] = {}
    for run in history.runs("every-second"):
        due.setdefault(run["scheduled_at"], []).append(run["duplicate_of"])
    for marks in due.values():
        # Of the runs of a second, one at least is not marked
        assert None in marks
    # What a busy machine leaves no time to take away is told from what there is
    assert list_jobs(database=history.database) == []


def has_run(history: History, count: int) -> bool:
    return len(history.runs("stored", "completed")) >= count


def test_replicas_over_one_store(history: History, tmp_path: Path) -> None:
    store = str(tmp_path / "jobs.sqlite")
    with ExitStack() as stack:
        first = stack.enter_context(Program(tmp_path, "shared", store))
        first.wait_for("started")
        second = stack.enter_context(Program(tmp_path, "shared", store))
        second.wait_for("started")
        eventually(
            lambda: [*first.events("job_duplicate"), *second.events("job_duplicate")], "it is noticed that both fire it"
        )
        (event, *_) = [*first.events("job_duplicate"), *second.events("job_duplicate")]
        assert (event["level"], event["clew.job.name"]) == ("warning", "stored")
        assert event["clew.job.duplicate.reason"] == "shared_store"
    assert [run for run in history.runs("stored") if run["duplicate_of"] is not None]


def test_one_process_that_restarts_repeats_nothing(history: History, tmp_path: Path) -> None:
    store = str(tmp_path / "jobs.sqlite")
    for count in (2, 4):
        with Program(tmp_path, "shared", store) as program:
            eventually(partial(has_run, history, count), "some runs")
            assert not program.events("job_duplicate")
    assert not [run for run in history.runs("stored") if run["duplicate_of"] is not None]
