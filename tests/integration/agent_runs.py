"""What one run of three agents leaves, whichever framework runs them: Triage hands to processor, and that one to exporter."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import typer
from typer.testing import CliRunner

from clew.cli import agents as command
from clew.demo.settings import STAND_IN_MODEL
from clew.history import recorder as recording
from clew.history.models import AgentTask, Handoff, LlmCall
from clew.testing import CapturedSpan, CapturedTelemetry
from tests.integration.job_history import History

CHAT: Final = f"chat {STAND_IN_MODEL}"


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


def check_commands() -> None:
    """See that ``clew agents`` shows the run."""
    assert {row["agent"] for row in _say("list")["agents"]} == {"app", "Triage", "processor", "exporter"}
    assert len(_say("history", "--task", "conversation-1")["tasks"]) == 3
    assert {row["target"] for row in _say("handoffs")["handoffs"]} == {"processor", "exporter"}
    edges = {(edge["source"], edge["target"]) for edge in _say("graph")["edges"]}
    assert edges == {("Triage", "processor"), ("processor", "exporter")}


def _say(*arguments: str) -> Any:
    app = typer.Typer()
    command.register(app)
    app.command()(lambda: None)
    done = CliRunner().invoke(app, ["agents", *arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.output)
