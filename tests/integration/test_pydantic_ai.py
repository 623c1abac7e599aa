"""Pydantic AI against the stand-in model: what its runs leave in spans, metrics, records, and in a terminal."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic_ai import Agent, ApprovalRequired, DeferredToolRequests, ModelRetry, capture_run_messages
from pydantic_ai.exceptions import ModelHTTPError, UsageLimitExceeded
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.usage import UsageLimits
from typer.testing import CliRunner

import clew
from clew.agents.registry import registry
from clew.cli import agents as command
from clew.demo.settings import STAND_IN_MODEL
from clew.engine.state import state
from clew.history import recorder as recording
from clew.history.models import AgentTask, Handoff, LlmCall
from clew.testing import CapturedSpan, CapturedTelemetry
from openai import AsyncOpenAI
from tests import stand_in
from tests.integration.job_history import History, own_history
from tests.otlp_sink import OtlpSink

TEXT = "The thread leads through the maze. 🧵"
CHAT = f"chat {STAND_IN_MODEL}"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with stand_in.served() as served:
        yield served


@pytest.fixture
def history(
    database_url: str, captured_telemetry: CapturedTelemetry, monkeypatch: pytest.MonkeyPatch
) -> Iterator[History]:
    monkeypatch.setattr(registry, "_known", {})
    with own_history(database_url, monkeypatch, heartbeat_s=0.2) as opened:
        yield opened


@pytest.fixture
def model(url: str, captured_telemetry: CapturedTelemetry) -> OpenAIChatModel:
    """A model with a fresh client: each event loop has its own."""
    clew.instrument(Agent(name="any"))
    return made_model(url)


def made_model(url: str, kind: Any = OpenAIChatModel) -> Any:
    client = AsyncOpenAI(base_url=url, api_key="none", max_retries=1)
    return kind(STAND_IN_MODEL, provider=OpenAIProvider(openai_client=client))


def chain(model: Any) -> Agent[None, str]:
    """Return an agent that asks a second one within a tool, and that one a third."""
    exporter = Agent(model, name="exporter", instructions="Use broken, then answer.")
    processor = Agent(model, name="processor", instructions="Use word_count and ask_exporter.")
    triage = Agent(model, name="Triage", instructions="Use ask_processor.")

    @triage.tool_plain
    async def ask_processor(text: str) -> str:
        return (await processor.run(text)).output

    @processor.tool_plain
    def word_count(text: str) -> int:
        with clew.span("counting"):
            return len(text.split())

    @processor.tool_plain
    async def ask_exporter(text: str) -> str:
        with clew.span("asking"):
            return (await exporter.run(text)).output

    @exporter.tool_plain(retries=1)
    async def broken(text: str) -> str:
        raise ModelRetry(f"not {text}")

    @exporter.output_validator
    def fine(said: str) -> str:
        return said

    return triage


TRIAGE = "invoke_agent Triage"
PROCESSOR = f"{TRIAGE} > execute_tool ask_processor > execute_tool transfer_to_processor > invoke_agent processor"
EXPORTER = (
    f"{PROCESSOR} > execute_tool ask_exporter > asking > execute_tool transfer_to_exporter > invoke_agent exporter"
)
WHOLE = Counter(
    [
        *(TRIAGE, f"{TRIAGE} > {CHAT}", f"{TRIAGE} > {CHAT}", f"{TRIAGE} > execute_tool ask_processor"),
        f"{TRIAGE} > execute_tool ask_processor > execute_tool transfer_to_processor",
        *(PROCESSOR, f"{PROCESSOR} > {CHAT}", f"{PROCESSOR} > {CHAT}", f"{PROCESSOR} > execute_tool ask_exporter"),
        *(f"{PROCESSOR} > execute_tool word_count", f"{PROCESSOR} > execute_tool word_count > counting"),
        f"{PROCESSOR} > execute_tool ask_exporter > asking",
        f"{PROCESSOR} > execute_tool ask_exporter > asking > execute_tool transfer_to_exporter",
        *(EXPORTER, f"{EXPORTER} > {CHAT}", f"{EXPORTER} > {CHAT}", f"{EXPORTER} > execute_tool broken"),
    ]
)


def rows(history: History, model: Any) -> list[dict[str, Any]]:
    written = recording._recorder
    assert written is not None
    assert written.flush(30)
    when = "handed_at" if model is Handoff else "started_at"
    return sorted((dict(row) for row in history.all(model)), key=lambda row: row[when])


def tree(captured: CapturedTelemetry, root: CapturedSpan) -> list[str]:
    """Return what is below a span, each name after those of what it is in; without HTTP requests and what is below those."""
    found = []
    for span in captured.spans:
        if span.parent_id == root.span_id and not span.name.startswith("POST"):
            found += [span.name, *(f"{span.name} > {name}" for name in tree(captured, span))]
    return sorted(found)


def check_telemetry(captured: CapturedTelemetry) -> None:
    assert Counter(tree(captured, captured.span("request"))) == WHOLE
    failed = captured.span("execute_tool broken")
    assert (failed.status, failed.attributes["error.type"]) == ("error", "ModelRetry")
    assert {span.status for span in captured.spans if span.name.startswith("invoke_")} == {"unset"}
    passed = captured.span("execute_tool transfer_to_exporter").attributes
    assert (passed["clew.handoff.source"], passed["gen_ai.transfer.mode"]) == ("processor", "return_to_caller")
    assert captured.span(TRIAGE).attributes["gen_ai.conversation.id"] == "conversation-1"
    assert captured.metric("gen_ai.client.operation.duration").count == 6
    assert captured.metric("clew.agent.task.duration", gen_ai__agent__name="exporter").count == 1
    assert captured.metric("clew.tool.duration", gen_ai__tool__name="broken", error__type="ModelRetry").count == 1
    assert captured.metric("clew.agent.handoff.wait.duration", clew__handoff__source="Triage").count == 1
    assert "thread" not in str([(span.attributes, span.events) for span in captured.spans])


def check_records(captured: CapturedTelemetry, history: History) -> None:
    spans = {span.span_id: span for span in captured.spans}
    tasks = {row["agent"]: row for row in rows(history, AgentTask) if row["agent"] != "app"}
    handoffs = {row["target"]: row for row in rows(history, Handoff)}
    assert list(tasks) == ["Triage", "processor", "exporter"]
    assert {(row["status"], row["task_id"]) for row in tasks.values()} == {("completed", "conversation-1")}
    assert {name: (row["source"], row["status"], row["mode"], row["depth"]) for name, row in handoffs.items()} == {
        "processor": ("Triage", "completed", "return_to_caller", 1),
        "exporter": ("processor", "completed", "return_to_caller", 2),
    }
    assert [tasks[name]["handoff_id"] for name in handoffs] == [row["id"] for row in handoffs.values()]
    calls = rows(history, LlmCall)
    assert Counter(row["agent"] for row in calls) == {"Triage": 2, "processor": 2, "exporter": 2}
    assert {row["user_id"] for row in calls} == {"ada"}
    assert all(row["input_tokens"] and row["output_tokens"] for row in calls), calls
    for row, name in [
        *((row, f"invoke_agent {agent}") for agent, row in tasks.items()),
        *((row, f"execute_tool transfer_to_{target}") for target, row in handoffs.items()),
        *((row, CHAT) for row in calls),
    ]:
        span = spans[row["span_id"]]
        assert (span.name, span.trace_id) == (name, row["trace_id"])


def say(*arguments: str) -> Any:
    app = typer.Typer()
    command.register(app)
    app.command()(lambda: None)
    done = CliRunner().invoke(app, ["agents", *arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


def check_commands() -> None:
    assert {row["agent"] for row in say("list")["agents"]} == {"app", "Triage", "processor", "exporter"}
    assert len(say("history", "--task", "conversation-1")["tasks"]) == 3
    assert {row["target"] for row in say("handoffs")["handoffs"]} == {"processor", "exporter"}
    edges = {(edge["source"], edge["target"]) for edge in say("graph")["edges"]}
    assert edges == {("Triage", "processor"), ("processor", "exporter")}


async def ask(agent: Agent[None, str], way: str) -> str:
    if way == "run":
        return (await agent.run(TEXT, conversation_id="conversation-1")).output
    if way == "iter":
        async with agent.iter(TEXT, conversation_id="conversation-1") as run:
            async for _ in run:
                pass
        assert run.result is not None
        return run.result.output
    if way == "run_stream_events":
        async with agent.run_stream_events(TEXT, conversation_id="conversation-1") as events:
            return [event async for event in events][-1].result.output  # type: ignore[union-attr]
    async with agent.run_stream(TEXT, conversation_id="conversation-1") as streamed:
        return [text async for text in streamed.stream_text(debounce_by=None)][-1]


@pytest.mark.parametrize("way", ["run", "run_sync", "iter", "run_stream", "run_stream_events"])
def test_a_run_that_delegates_twice(
    history: History, captured_telemetry: CapturedTelemetry, model: OpenAIChatModel, way: str
) -> None:
    agent = chain(model)
    # A user of the app is a user of the calls
    with clew.agent_task("app", user_id="ada"), clew.span("request"):
        if way == "run_sync":
            said = agent.run_sync(TEXT, conversation_id="conversation-1").output
        else:
            said = asyncio.run(ask(agent, way))
        assert clew.trace_id() == captured_telemetry.span("invoke_agent exporter").trace_id
    assert "word_count: 7" in said
    check_telemetry(captured_telemetry)
    check_records(captured_telemetry, history)
    if "stream" in way:
        first = captured_telemetry.metric("gen_ai.client.operation.time_to_first_chunk")
        # Those who are asked within a tool do not stream
        assert first.count == 2
    if way == "run":
        check_commands()
