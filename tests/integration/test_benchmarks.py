"""The benchmarks work from end to end, with what the development environment has: clew and bare FastAPI."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def cells(output: str, row: str) -> list[list[str]]:
    """Return the cells of every row that begins with a text."""
    lines = [line for line in output.splitlines() if line.startswith(f"| {row}")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_request_is_measured_without_and_with_export():
    done = run("--only", "request", "--variants", "bare,clew", "--here", "--dry-run", "--scale", "0.01")
    assert done.returncode == 0, done.stderr
    recording, exporting = cells(done.stdout, "clew: traces")
    assert float(recording[1].replace(",", "")) > 0
    assert exporting[-2:] == ["1.00", "2.00"]  # one span and two log events of each request have arrived
    assert [float(row[5]) for row in cells(done.stdout, "bare FastAPI")] == [1.0, 1.0]


def test_an_outage_is_measured_and_its_spans_arrive_afterwards():
    done = run("--only", "outage", "--variants", "clew", "--here", "--dry-run", "--outage-seconds", "0.2")
    assert done.returncode == 0, done.stderr
    rows = cells(done.stdout, "clew ")
    assert [row[1] for row in rows if row[1] in ("healthy", "refused", "silent")] == ["healthy", "refused", "silent"]
    assert [row[7] for row in rows if row[1] in ("healthy", "refused", "silent")] == ["0", "0", "0"]


def test_health_is_measured_while_parts_answer_and_while_one_hangs():
    done = run("--only", "health", "--here", "--dry-run", "--scale", "0.01")
    assert done.returncode == 0, done.stderr
    for server in ("FastAPI, uvicorn", "clew.serve_worker"):
        rows = cells(done.stdout, server)
        assert [row[1] for row in rows[:3]] == ["all looked at anew", "fresh but for two", "one hangs"]
        assert all(float(row[3]) > 0 for row in rows[:3])


def test_pages_and_statistics_of_messages_and_of_llm_calls_are_read_from_both_databases():
    done = run("--only", "messages", "--here", "--dry-run", "--scale", "0.001")
    assert done.returncode == 0, done.stderr
    for question in (
        "page 400",
        "statistics of all queues",
        "statistics of LLM usage by user",
        "statistics of who hands to whom",
    ):
        row = cells(done.stdout, f"{question} ")[0]
        assert all(float(cell) > 0 for cell in row[1:])
        assert len(row) == 5  # both databases were asked


def test_messages_through_a_real_valkey_are_measured_without_and_with_records():
    done = run("--only", "queue", "--variants", "bare,clew,clew-records", "--here", "--dry-run", "--scale", "0.01")
    assert done.returncode == 0, done.stderr
    (bare,), (without,), (recorded,) = (cells(done.stdout, title) for title in ("bare Fast", "clew, wi", "clew, each"))
    assert all(float(row[column].replace(",", "")) > 0 for row in (bare, without, recorded) for column in (1, 3))
    # Sent and processed: two spans of each message have arrived, and two records are in the database
    assert [[row[8], row[10]] for row in (bare, without, recorded)] == [
        ["0.000", "0.000"],
        ["2.00", "0.000"],
        ["2.00", "2.00"],
    ]


def test_handoffs_and_llm_calls_are_measured_and_all_of_them_are_recorded():
    done = run("--only", "agents", "--here", "--dry-run", "--scale", "0.01")
    assert done.returncode == 0, done.stderr
    for operation in ("task of an agent ", "handoff ", "handoff, picked up", "LLM call "):
        bare, without, recorded = (
            [float(cell.replace(",", "")) for cell in row[2:6]] for row in cells(done.stdout, operation)
        )
        assert all(0 < least < more for least, more in zip(bare, without, strict=True))
        assert without[3] < recorded[3]
    assert "were written" not in done.stdout


def test_a_registry_of_a_thousand_agents_is_measured_on_both_databases():
    done = run("--only", "registry", "--here", "--dry-run", "--scale", "0.01")
    assert done.returncode == 0, done.stderr
    for work in ("the heartbeat", "all of them are told", "GET /agents, all", "GET /agents, a page"):
        (row,) = cells(done.stdout, work)
        assert len(row) == 7
        assert all(float(cell.replace(",", "")) > 0 for cell in row[1:])


def test_a_thousand_watched_queues_of_a_real_valkey_are_measured():
    done = run("--only", "watching", "--here", "--dry-run", "--scale", "0.01")
    assert done.returncode == 0, done.stderr
    rows = [row for kind in ("the same questions", "clew.watch_queue") for row in cells(done.stdout, kind)]
    assert len(rows) == 4  # bare, without a history, and on both databases
    assert all(float(cell.replace(",", "")) > 0 for row in rows for cell in row[1:])


def test_a_variant_that_cannot_run_is_named_with_the_reason():
    done = run("--only", "operations", "--variants", "bare,sentry,logfire", "--here", "--dry-run", "--scale", "0.01")
    assert done.returncode == 0, done.stderr
    assert "logfire: ModuleNotFoundError: No module named 'logfire'" in done.stdout


def test_a_scenario_that_does_not_exist_is_refused():
    done = run("--only", "nonsense", "--dry-run")
    assert done.returncode == 2
    assert "nonsense: no such scenario" in done.stderr
