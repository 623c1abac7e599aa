"""LangGraph against the stand-in model: what its runs leave in spans, metrics, records, and in a terminal."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import openai
import pytest
import typer
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import InjectedToolCallId, tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphRecursionError
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import InjectedState, ToolNode, create_react_agent, tools_condition
from langgraph.types import Command, interrupt
from typer.testing import CliRunner

import clew
from clew.agents.registry import registry
from clew.cli import agents as command
from clew.demo.settings import STAND_IN_MODEL
from clew.engine.state import state
from clew.history import recorder as recording
from clew.history.models import AgentTask, Handoff, LlmCall
from clew.testing import CapturedSpan, CapturedTelemetry
from tests import stand_in
from tests.integration.job_history import History, own_history
from tests.otlp_sink import OtlpSink

pytestmark = pytest.mark.filterwarnings("ignore::langgraph.warnings.LangGraphDeprecatedSinceV10")

TEXT = "The thread leads through the maze. 🧵"
ASKED: Any = {"messages": [("user", TEXT)]}
CHAT = f"chat {STAND_IN_MODEL}"
CONVERSATION: Any = {"configurable": {"thread_id": "conversation-1"}}


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
def model(url: str, captured_telemetry: CapturedTelemetry) -> ChatOpenAI:
    """A fresh model for each test, each of which has an event loop of its own."""
    return make_model(url)


def make_model(url: str, **more: Any) -> ChatOpenAI:
    return ChatOpenAI(model=STAND_IN_MODEL, base_url=url, api_key="none", stream_usage=True, max_retries=1, **more)


@tool
def word_count(text: str) -> int:
    """Count the words of a text."""
    with clew.span("counting"):
        return len(text.split())


@tool
async def slow_count(text: str) -> int:
    """Count the words of a text."""
    with clew.span("counting"):
        await asyncio.sleep(0)
        return len(text.split())


@tool
def broken(text: str) -> str:
    """Fail."""
    raise OSError("disk full")


def transfer(target: str) -> Any:
    """Return a handoff tool, as LangGraph's documentation has it."""

    @tool(f"transfer_to_{target}")
    def pass_control(state: Annotated[Any, InjectedState], call_id: Annotated[str, InjectedToolCallId]) -> Any:
        """Transfer."""
        answered = ToolMessage("Transferred.", tool_call_id=call_id, name=f"transfer_to_{target}")
        messages = [*state["messages"], answered]
        return Command(goto=target, update={"messages": messages}, graph=Command.PARENT)

    return pass_control


def chain(model: Any, **compiled: Any) -> Any:
    """Return a graph in which an agent hands to a second one by a tool, and the node of that one to a third by a command."""
    triage = create_react_agent(
        model, [transfer("processor")], prompt="transfer_to_processor at once.", name="Triage"
    )
    processor = create_react_agent(model, [word_count], prompt="Use word_count.", name="processor")
    exporter = create_react_agent(
        model, ToolNode([broken], handle_tool_errors=True), prompt="Use broken, then answer.", name="exporter"
    )

    def process(state: MessagesState) -> Command[Any]:
        with clew.span("preparing"):
            pass
        said = processor.invoke({"messages": [("user", TEXT)]})
        return Command(goto="exporter", update={"messages": said["messages"][-1:]})

    async def process_async(state: MessagesState) -> Command[Any]:
        with clew.span("preparing"):
            pass
        said = await processor.ainvoke({"messages": [("user", TEXT)]})
        return Command(goto="exporter", update={"messages": said["messages"][-1:]})

    from langgraph._internal._runnable import RunnableCallable

    builder = StateGraph(MessagesState)
    builder.add_node("Triage", triage, destinations=("processor",))
    builder.add_node("processor", RunnableCallable(process, process_async, trace=False), destinations=("exporter",))
    builder.add_node("exporter", exporter)
    builder.add_node("closing", lambda _: {})
    builder.add_edge(START, "Triage")
    builder.add_edge("exporter", "closing")
    return clew.instrument(builder.compile(name="support", **compiled))


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


WORKFLOW = "invoke_workflow support"
TRIAGE = f"{WORKFLOW} > invoke_agent Triage"
TO_PROCESSOR = f"{WORKFLOW} > processor > execute_tool transfer_to_processor"
PROCESSOR = f"{TO_PROCESSOR} > invoke_agent processor"
EXPORTER = f"{WORKFLOW} > execute_tool transfer_to_exporter > invoke_agent exporter"
WHOLE = Counter(
    [
        WORKFLOW,
        TRIAGE,
        f"{TRIAGE} > {CHAT}",
        # The tool that gives control away
        f"{TRIAGE} > execute_tool transfer_to_processor",
        f"{WORKFLOW} > processor",
        f"{WORKFLOW} > processor > preparing",
        TO_PROCESSOR,
        PROCESSOR,
        f"{PROCESSOR} > {CHAT}",
        f"{PROCESSOR} > execute_tool word_count",
        f"{PROCESSOR} > execute_tool word_count > counting",
        f"{PROCESSOR} > {CHAT}",
        f"{WORKFLOW} > execute_tool transfer_to_exporter",
        EXPORTER,
        f"{EXPORTER} > {CHAT}",
        f"{EXPORTER} > execute_tool broken",
        f"{EXPORTER} > {CHAT}",
        f"{WORKFLOW} > closing",
    ]
)


def check_telemetry(captured: CapturedTelemetry) -> None:
    assert Counter(tree(captured, captured.span("request"))) == WHOLE
    workflow = captured.span(WORKFLOW)
    assert workflow.attributes["gen_ai.conversation.id"] == "conversation-1"
    failed = captured.span("execute_tool broken")
    assert (failed.status, failed.attributes["error.type"]) == ("error", "OSError")
    assert {span.status for span in captured.spans if span.name.startswith("invoke_")} == {"unset"}
    passed = captured.span("execute_tool transfer_to_exporter").attributes
    assert (passed["clew.handoff.source"], passed["gen_ai.transfer.mode"]) == ("processor", "pass_control")
    assert captured.metric("gen_ai.client.operation.duration").count == 5
    assert captured.metric("clew.tool.duration", gen_ai__tool__name="broken", error__type="OSError").count == 1
    assert captured.metric("clew.agent.handoff.wait.duration", clew__handoff__source="Triage").count == 1
    assert "disk full" not in str([span for span in captured.spans if span.name.startswith("invoke_")])
    assert "thread" not in str([span.attributes for span in captured.spans])


def check_records(captured: CapturedTelemetry, history: History) -> None:
    spans = {span.span_id: span for span in captured.spans}
    tasks = {row["agent"]: row for row in rows(history, AgentTask) if row["agent"] != "app"}
    handoffs = {row["target"]: row for row in rows(history, Handoff)}
    assert list(tasks) == ["Triage", "processor", "exporter"]
    assert {(row["status"], row["task_id"]) for row in tasks.values()} == {("completed", "conversation-1")}
    assert {name: (row["source"], row["status"], row["mode"], row["depth"]) for name, row in handoffs.items()} == {
        "processor": ("Triage", "completed", "pass_control", 1),
        "exporter": ("processor", "completed", "pass_control", 2),
    }
    assert [tasks[name]["handoff_id"] for name in handoffs] == [row["id"] for row in handoffs.values()]
    calls = rows(history, LlmCall)
    assert Counter(row["agent"] for row in calls) == {"Triage": 1, "processor": 2, "exporter": 2}
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


def invoke(graph: Any) -> Any:
    return graph.invoke(ASKED, CONVERSATION)["messages"][-1].content


def ainvoke(graph: Any) -> Any:
    return asyncio.run(graph.ainvoke(ASKED, CONVERSATION))["messages"][-1].content


def stream(graph: Any) -> Any:
    read = []
    for piece in graph.stream(ASKED, CONVERSATION, stream_mode="messages"):
        # What reads is no part of the run
        with clew.span("reading"):
            read.append(piece)
    return read[-1][0].content


def astream(graph: Any) -> Any:
    async def read() -> Any:
        pieces = []
        async for piece in graph.astream(ASKED, CONVERSATION, stream_mode=["messages", "values"], subgraphs=True):
            with clew.span("reading"):
                pieces.append(piece)
        return pieces[-1][-1]["messages"][-1].content

    return asyncio.run(read())


@pytest.mark.parametrize("way", [invoke, ainvoke, stream, astream], ids=lambda way: way.__name__)
def test_a_run_over_two_handoffs(
    history: History, captured_telemetry: CapturedTelemetry, model: ChatOpenAI, way: Callable[[Any], Any]
) -> None:
    graph = chain(model)
    # A user of the app is a user of the calls
    with clew.agent_task("app", user_id="ada"), clew.span("request") as request:
        way(graph)
        assert clew.trace_id() == captured_telemetry.span("invoke_agent exporter").trace_id
    reading = [span for span in captured_telemetry.spans if span.name == "reading"]
    assert {span.parent_id for span in reading} <= {request.span_id}
    assert bool(reading) == ("stream" in way.__name__)
    captured_telemetry.spans[:] = [span for span in captured_telemetry.spans if span.name != "reading"]
    check_telemetry(captured_telemetry)
    check_records(captured_telemetry, history)
    if reading:
        assert captured_telemetry.metric("gen_ai.client.operation.time_to_first_chunk").count == 5
    if way is invoke:
        check_commands()
