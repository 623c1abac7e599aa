"""Jobs of a running scheduler, in a process of its own, are listed and steered from other processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.integration.server_process import ROOT, ServerProcess, uvicorn
from tests.integration.waiting import eventually

APP = """
import clew
from fastapi import FastAPI

app = FastAPI()
app.include_router(clew.jobs_router())
"""


def environment(url: str, folder: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("CLEW_", "OTEL_"))}
    return {
        **inherited,
        "CLEW_DATABASE_URL": url,
        "CLEW_DATABASE_AUTO_UPGRADE": "true",
        "CLEW_SPOOL_DIR": str(folder / "spool"),
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
    }


@pytest.fixture
def scheduler(database_url: str, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests/integration/jobs_scheduler_app.py"), "120"],
        env=environment(database_url, tmp_path),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
def client(database_url: str, tmp_path: Path) -> Iterator[httpx.Client]:
    (tmp_path / "app.py").write_text(APP)
    variables = environment(database_url, tmp_path)
    with (
        ServerProcess(uvicorn("app:app", "--log-level", "warning"), cwd=tmp_path, environment=variables) as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        yield client
        assert "Traceback" not in server.said


def listed(client: httpx.Client) -> dict[str, Any]:
    answer = client.get("/jobs")
    return {job["id"]: job for job in answer.json()["jobs"]} if answer.status_code == 200 else {}


def test_a_scheduler_of_another_process_is_listed_and_steered_over_http(scheduler, client):
    eventually(lambda: set(listed(client)) == {"nightly", "a/b ü?%"}, "the scheduler's jobs in the list")
    nightly = listed(client)["nightly"]
    assert nightly["service"] == "shop"
    assert nightly["pid"] == scheduler.pid
    assert nightly["trigger"] == "interval[8:00:00]"
    assert nightly["next_run_at"].endswith("Z")
    assert (nightly["paused"], nightly["pending"]) == (False, False)

    paused = client.post("/jobs/nightly/pause")
    assert (paused.status_code, paused.json()["verb"]) == (200, "pause"), paused.text
    eventually(lambda: listed(client)["nightly"]["paused"], "the job being paused in the list")
    assert client.post("/jobs/nightly/resume").status_code == 200
    eventually(lambda: not listed(client)["nightly"]["paused"], "the job being resumed in the list")

    ran = client.post("/jobs/nightly/run", params={"user": "u-17"})
    assert ran.status_code == 200
    assert ran.json()["outcome"].startswith("done")
    assert ran.json()["requested_by"] == "u-17"
    completed = {"job": "nightly", "status": "completed"}
    eventually(lambda: client.get("/jobs/runs", params=completed).json()["runs"], "the run in the history")
    (run,) = client.get("/jobs/runs", params=completed).json()["runs"]
    assert run["user_id"] == "u-17"
    assert client.get(f"/jobs/runs/{run['id']}").json()["result"] == {"rows": 17}
    assert client.get("/jobs/stats").json()["overall"]["ok"] == 1

    odd = quote("a/b ü?%", safe="")
    assert client.post(f"/jobs/{odd}/pause").status_code == 200
    assert client.delete(f"/jobs/{odd}").status_code == 200
    eventually(lambda: set(listed(client)) == {"nightly"}, "the removed job to leave the list")
    assert client.delete(f"/jobs/{odd}").status_code == 404
    assert client.post("/jobs/nightly/run", params={"instance": "another"}).status_code == 404

    scheduler.kill()
    scheduler.wait()
    assert listed(client) == {}
    gone = client.post("/jobs/nightly/run")
    assert (gone.status_code, "no scheduler has a job 'nightly'" in gone.json()["detail"]) == (404, True)


def test_a_scheduler_that_does_not_answer_may_still_do_it(scheduler, client):
    import signal

    eventually(lambda: "nightly" in listed(client), "the scheduler's jobs in the list")
    scheduler.send_signal(signal.SIGSTOP)
    answer = client.post("/jobs/nightly/pause")
    assert answer.status_code == 202
    assert answer.json()["outcome"] is None
    scheduler.send_signal(signal.SIGCONT)
    eventually(lambda: listed(client)["nightly"]["paused"], "the job being paused after all")


def clew(url: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "clew.cli.app", "jobs", *arguments],
        env=environment(url, folder),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_scheduler_of_another_process_is_steered_by_the_command_line(scheduler, database_url, tmp_path):
    def known() -> dict[str, Any]:
        done = clew(database_url, tmp_path, "list", "--json")
        return {job["job"]: job for job in json.loads(done.stdout)["jobs"]} if done.returncode == 0 else {}

    eventually(lambda: "nightly" in known(), "the scheduler's jobs in the list")
    paused = clew(database_url, tmp_path, "pause", "nightly")
    assert (paused.returncode, paused.stdout.split(":")[0]) == (0, "nightly"), paused.stderr
    eventually(lambda: known()["nightly"]["schedules"][0]["paused"], "the job being paused in the list")
    assert "paused" in clew(database_url, tmp_path, "list").stdout
    ran = clew(database_url, tmp_path, "run", "nightly", "--user", "u-17", "--json")
    assert json.loads(ran.stdout)["outcome"].startswith("done")
    assert json.loads(ran.stdout)["requested_by"] == "u-17"
    refused = clew(database_url, tmp_path, "remove", "nightly")
    assert (refused.returncode, "--yes" in refused.stderr) == (2, True)
    removed = clew(database_url, tmp_path, "remove", "nightly", "--yes")
    assert removed.returncode == 0
    again = clew(database_url, tmp_path, "run", "nightly")
    assert (again.returncode, again.stdout) == (1, "")
    assert "no scheduler that is alive has a job 'nightly'" in again.stderr
