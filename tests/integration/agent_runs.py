"""What one run of three agents leaves, whichever framework runs them: Triage hands to processor, and that one to exporter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import typer
from typer.testing import CliRunner

from clew.cli import agents as command
from clew.demo.settings import STAND_IN_MODEL
from clew.history import recorder as recording
from clew.history.models import AgentTask, Handoff, LlmCall
from clew.testing import CapturedSpan, CapturedTelemetry
from tests.integration.job_history import History
from tests.otlp_sink import OtlpSink

CHAT: Final = f"chat {STAND_IN_MODEL}"

# Below what a framework's test has it answer with
_SERVICE: Final = """
from fastapi import FastAPI
from fastapi.testclient import TestClient

app = FastAPI()

@app.get("/ask")
async def ask():
    return await answer()

with TestClient(app) as client:
    print(client.get("/ask").json())
"""


def rows(history: History, model: Any) -> list[dict[str, Any]]:
    """Return the records of a kind by when they began: ids of one millisecond have no order."""
    written = recording._recorder
    assert written is not None
    assert written.flush(30)
    when = "handed_at" if model is Handoff else "started_at"
    return sorted((dict(row) for row in history.all(model)), key=lambda row: row[when])


def tree(captured: CapturedTelemetry, root: CapturedSpan, *, without: tuple[str, ...] = ("POST",)) -> list[str]:
    """Return what is below a span, each name after those of what it is in; without HTTP requests and what is below those."""
    found = []
    for span in captured.spans:
        if span.parent_id == root.span_id and not span.name.startswith(without):
            found += [span.name, *(f"{span.name} > {name}" for name in tree(captured, span, without=without))]
    return sorted(found)


def check_records(captured: CapturedTelemetry, history: History, *, mode: str, calls: Mapping[str, int]) -> None:
    """See that each task, handoff and LLM call has a record, and each record its span.

    Args:
        captured: the spans.
        history: the records.
        mode: of the handoffs.
        calls: how many LLM calls each agent made.
    """
    spans = {span.span_id: span for span in captured.spans}
    tasks = {row["agent"]: row for row in rows(history, AgentTask) if row["agent"] != "app"}
    handoffs = {row["target"]: row for row in rows(history, Handoff)}
    assert list(tasks) == ["Triage", "processor", "exporter"]
    assert {(row["status"], row["task_id"]) for row in tasks.values()} == {("completed", "conversation-1")}
    assert {name: (row["source"], row["status"], row["mode"], row["depth"]) for name, row in handoffs.items()} == {
        "processor": ("Triage", "completed", mode, 1),
        "exporter": ("processor", "completed", mode, 2),
    }
    assert [tasks[name]["handoff_id"] for name in handoffs] == [row["id"] for row in handoffs.values()]
    asked = rows(history, LlmCall)
    assert Counter(row["agent"] for row in asked) == calls
    assert {row["user_id"] for row in asked} == {"ada"}
    assert all(row["input_tokens"] and row["output_tokens"] for row in asked), asked
    for row, name in [
        *((row, f"invoke_agent {agent}") for agent, row in tasks.items()),
        *((row, f"execute_tool transfer_to_{target}") for target, row in handoffs.items()),
        *((row, CHAT) for row in asked),
    ]:
        span = spans[row["span_id"]]
        assert (span.name, span.trace_id) == (name, row["trace_id"])


def check_concurrent_runs(captured: CapturedTelemetry, history: History, *, runs: int) -> None:
    """See that each of the runs, which went on at once, had tasks and handoffs of its own.

    Args:
        captured: the spans.
        history: the records.
        runs: how many there were.
    """
    assert Counter(row["status"] for row in rows(history, Handoff)) == {"completed": 2 * runs}
    tasks = rows(history, AgentTask)
    assert Counter(row["agent"] for row in tasks) == {"Triage": runs, "processor": runs, "exporter": runs}
    parents = {span.span_id: span.parent_id for span in captured.spans}
    handed = {row["id"]: row["span_id"] for row in rows(history, Handoff)}
    for row in tasks:
        if row["agent"] != "Triage":
            assert parents[row["span_id"]] == handed[row["handoff_id"]]


def clew_run(script: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program that has no line of clew's."""
    known = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    return subprocess.run(
        [str(Path(sys.executable).with_name("clew")), "run", sys.executable, str(script), *arguments],
        env={**known, **environment},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def check_service(
    source: str, sink: OtlpSink, url: str, folder: Path, *, calls: int, transfers: int = 1
) -> subprocess.CompletedProcess[str]:
    """See that a service without a line of clew's is traced and recorded: in a request an agent hands to ``helper``, which answers.

    Args:
        source: makes the agents, and ``answer``, which asks them for the answer to "The thread leads on."
        sink: where its telemetry goes.
        url: of the model.
        folder: for the program and its history.
        calls: how many LLM calls there are.
        transfers: how many spans of a handoff or a tool of that name.
    """
    script = folder / "service.py"
    script.write_text(source + _SERVICE)
    database = {"CLEW_DATABASE_URL": f"sqlite:///{folder / 'history.db'}", "CLEW_DATABASE_AUTO_UPGRADE": "true"}
    done = clew_run(script, url, STAND_IN_MODEL, **sink.environment, **database)
    assert done.returncode == 0, done.stderr
    assert done.stdout.partition("\n")[0] == "The thread leads on."
    helper = sink.wait_for_span("invoke_agent helper")
    request = sink.wait_for_span("GET /ask")
    assert request.trace_id == helper.trace_id
    names = Counter(span.name for span in sink.spans if span.trace_id == helper.trace_id)
    assert (names[CHAT], names["execute_tool transfer_to_helper"]) == (calls, transfers)
    with History(database["CLEW_DATABASE_URL"]) as history:
        assert [row["status"] for row in history.all(Handoff)] == ["completed"]
        assert len(history.all(LlmCall)) == calls
    return done


def check_commands() -> None:
    """See that ``clew agents`` shows the run."""
    assert {row["agent"] for row in _say("list")["agents"]} == {"app", "Triage", "processor", "exporter"}
    assert len(_say("history", "--task", "conversation-1")["tasks"]) == 3
    assert {row["target"] for row in _say("handoffs")["handoffs"]} == {"processor", "exporter"}
    assert edges() == {("Triage", "processor"), ("processor", "exporter")}


def edges() -> set[tuple[str, str]]:
    """Return who handed to whom, as ``clew agents graph`` shows it."""
    return {(edge["source"], edge["target"]) for edge in _say("graph")["edges"]}


def _say(*arguments: str) -> Any:
    app = typer.Typer()
    command.register(app)
    app.command()(lambda: None)
    done = CliRunner().invoke(app, ["agents", *arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.output)
