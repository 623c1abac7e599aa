"""LangGraph against the stand-in model: what its runs leave in spans, metrics, records, and in a terminal."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphRecursionError
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, create_react_agent, tools_condition
from langgraph.types import Command, interrupt

import clew
from clew.engine.state import state
from clew.history.models import AgentTask, Handoff, LlmCall
from clew.testing import CapturedTelemetry
from tests.integration.agent_runs import (
    CHAT,
    check_commands,
    check_concurrent_runs,
    check_records,
    check_service,
    rows,
    tree,
)
from tests.integration.job_history import History
from tests.integration.langgraph_runs import (
    ASKED,
    CONVERSATION,
    TEXT,
    broken,
    make_model,
    slow_count,
    transfer,
    word_count,
)
from tests.otlp_sink import OtlpSink

pytestmark = pytest.mark.filterwarnings("ignore::langgraph.warnings.LangGraphDeprecatedSinceV10")


@pytest.fixture
def model(stand_in_url: str, captured_telemetry: CapturedTelemetry) -> ChatOpenAI:
    """A fresh model for each test, each of which has an event loop of its own."""
    return make_model(stand_in_url)


def chain(model: Any, **compiled: Any) -> Any:
    """Return a graph in which an agent hands to a second one by a tool, and the node of that one to a third by a command."""
    triage = create_react_agent(model, [transfer("processor")], prompt="transfer_to_processor at once.", name="Triage")
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

    builder = StateGraph(MessagesState)
    builder.add_node("Triage", triage, destinations=("processor",))
    builder.add_node("processor", RunnableLambda(process, process_async), destinations=("exporter",))
    builder.add_node("exporter", exporter)
    builder.add_node("closing", lambda _: {})
    builder.add_edge(START, "Triage")
    builder.add_edge("exporter", "closing")
    return clew.instrument(builder.compile(name="support", **compiled))


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
    assert Counter(tree(captured, captured.span("request"), without=("POST", "reading"))) == WHOLE
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
    agent_history: History, captured_telemetry: CapturedTelemetry, model: ChatOpenAI, way: Callable[[Any], Any]
) -> None:
    graph = chain(model)
    # A user of the app is a user of the calls
    with clew.agent_task("app", user_id="ada"), clew.span("request") as request:
        way(graph)
        assert clew.trace_id() == captured_telemetry.span("invoke_agent exporter").trace_id
    reading = [span for span in captured_telemetry.spans if span.name == "reading"]
    assert {span.parent_id for span in reading} <= {request.span_id}
    assert bool(reading) == ("stream" in way.__name__)
    check_telemetry(captured_telemetry)
    check_records(
        captured_telemetry, agent_history, mode="pass_control", calls={"Triage": 1, "processor": 2, "exporter": 2}
    )
    if reading:
        assert captured_telemetry.metric("gen_ai.client.operation.time_to_first_chunk").count == 5
    if way is invoke:
        check_commands()


def test_concurrent_runs_keep_to_their_own(
    agent_history: History, captured_telemetry: CapturedTelemetry, model: ChatOpenAI
) -> None:
    graph = chain(model)

    async def one(number: int) -> None:
        with clew.correlation(f"run-{number}"), clew.span("request", number=number):
            if number % 2:
                await graph.ainvoke(ASKED)
            else:
                assert [piece async for piece in graph.astream(ASKED)]

    async def main() -> None:
        await asyncio.gather(*(one(number) for number in range(18)))
        # Two of one trace, at once: each has handoffs of its own
        with clew.span("together"):
            await asyncio.gather(*(graph.ainvoke(ASKED) for _ in range(2)))

    asyncio.run(main())
    spans = captured_telemetry.spans
    requests = [span for span in spans if span.name == "request"]
    assert len({span.trace_id for span in requests}) == 18
    for request in requests:
        assert Counter(tree(captured_telemetry, request, without=("POST", "reading"))) == WHOLE
        (correlation,) = {span.attributes["clew.correlation.id"] for span in spans if span.trace_id == request.trace_id}
        assert correlation == f"run-{request.attributes['number']}"
    both = Counter(tree(captured_telemetry, captured_telemetry.span("together"), without=("POST", "reading")))
    assert both == Counter({name: 2 * number for name, number in WHOLE.items()})
    check_concurrent_runs(captured_telemetry, agent_history, runs=20)


def test_threads_run_graphs_at_once(captured_telemetry: CapturedTelemetry, model: ChatOpenAI) -> None:
    graph = chain(model)

    def one() -> None:
        with clew.span("request"):
            graph.invoke(ASKED)

    threads = [threading.Thread(target=one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    requests = [span for span in captured_telemetry.spans if span.name == "request"]
    assert len(requests) == 6
    for request in requests:
        assert Counter(tree(captured_telemetry, request, without=("POST", "reading"))) == WHOLE


async def go_wrong(url: str, model: ChatOpenAI) -> None:
    refusing = make_model(url, default_headers={"x-stand-in-refuse": "9"})
    with pytest.raises(openai.RateLimitError):
        await create_react_agent(refusing, [word_count], name="refused").ainvoke(ASKED)
    counter = create_react_agent(model, [slow_count], prompt="Use slow_count.", name="looping")
    with pytest.raises(GraphRecursionError):
        await counter.ainvoke(ASKED, {"recursion_limit": 1})
    careless = create_react_agent(model, [broken], prompt="Use broken.", name="careless")
    builder = StateGraph(MessagesState)
    builder.add_node("careless", careless)
    builder.add_edge(START, "careless")
    with pytest.raises(OSError, match="disk full"):
        await builder.compile(name="outer").ainvoke(ASKED)
    started = asyncio.Event()

    @tool
    async def sleep() -> None:
        """Sleep."""
        started.set()
        await asyncio.sleep(60)

    sleeper = create_react_agent(model, [sleep], prompt="Use sleep.", name="sleeper")
    running = asyncio.ensure_future(sleeper.ainvoke(ASKED))
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    # A stream that its reader leaves
    left = create_react_agent(model, [slow_count], prompt="Use slow_count.", name="left")
    async for _ in left.astream(ASKED, stream_mode="messages"):
        break
    for _ in left.stream(ASKED, stream_mode="updates"):
        break
    # An app that runs an agent while it handles an error of its own
    try:
        raise LookupError("unrelated")
    except LookupError:
        await create_react_agent(model, [slow_count], name="well").ainvoke(ASKED)


def test_what_goes_wrong(
    agent_history: History, captured_telemetry: CapturedTelemetry, model: ChatOpenAI, stand_in_url: str
) -> None:
    clew.instrument(create_react_agent(model, []))

    async def main() -> None:
        with clew.span("request"):
            await go_wrong(stand_in_url, model)

    asyncio.run(main())
    found = {(row["agent"], row["status"], row["error_type"]) for row in rows(agent_history, AgentTask)}
    assert found >= {
        # LangChain's own kind of it
        ("refused", "failed", "OpenAIRateLimitError"),
        ("looping", "failed", "GraphRecursionError"),
        ("careless", "failed", "OSError"),
        ("sleeper", "cancelled", "cancelled"),
        ("well", "completed", None),
    }
    left = [(row["status"], row["error_type"]) for row in rows(agent_history, AgentTask) if row["agent"] == "left"]
    assert left == [("cancelled", "cancelled")] * 2
    calls = rows(agent_history, LlmCall)
    assert (calls[0]["status"], calls[0]["error_type"], calls[0]["retries"]) == ("failed", "RateLimitError", 1)
    # Nothing is left open, and nothing stays current
    request = captured_telemetry.span("request")
    known = {span.span_id for span in captured_telemetry.spans}
    assert all(span.parent_id in known for span in captured_telemetry.spans if span.parent_id)
    roots = [span.name for span in captured_telemetry.spans if span.parent_id == request.span_id]
    assert Counter(roots) == {
        "invoke_agent refused": 1,
        "invoke_agent looping": 1,
        "invoke_workflow outer": 1,
        "invoke_agent sleeper": 1,
        "invoke_agent left": 2,
        "invoke_agent well": 1,
    }
    assert captured_telemetry.span("execute_tool sleep").attributes["error.type"] == "cancelled"
    assert captured_telemetry.span("invoke_workflow outer").attributes["error.type"] == "OSError"
    assert TEXT not in str([(span.attributes, span.events) for span in captured_telemetry.spans])


@pytest.mark.parametrize("way", ["stream", "astream"])
def test_a_workflow_whose_stream_its_reader_leaves_is_cancelled(
    agent_history: History, captured_telemetry: CapturedTelemetry, model: ChatOpenAI, way: str
) -> None:
    graph = chain(model)
    asked: Any = {"stream_mode": "messages", "subgraphs": True}

    async def leave() -> None:
        async for _ in graph.astream(ASKED, CONVERSATION, **asked):
            break

    with clew.span("request"):
        if way == "astream":
            asyncio.run(leave())
        else:
            for _ in graph.stream(ASKED, CONVERSATION, **asked):
                break
    workflow = captured_telemetry.span(WORKFLOW)
    assert (workflow.status, workflow.attributes["error.type"]) == ("unset", "cancelled")
    # A loop cancels the node that is at work; a thread goes on to the node's end
    (task,) = rows(agent_history, AgentTask)
    assert (task["agent"], task["status"]) == ("Triage", "cancelled" if way == "astream" else "completed")
    assert rows(agent_history, Handoff) == []
    known = {span.span_id for span in captured_telemetry.spans}
    assert all(span.parent_id in known for span in captured_telemetry.spans if span.parent_id)


def test_an_interrupted_run_is_no_error_and_goes_on_as_another_one(
    captured_telemetry: CapturedTelemetry, model: ChatOpenAI
) -> None:
    @tool
    def delete(text: str) -> str:
        """Delete it."""
        return str(interrupt("May I?"))

    careful = create_react_agent(model, [delete], prompt="Use delete.", name="careful")
    builder = StateGraph(MessagesState)
    builder.add_node("careful", careful)
    builder.add_edge(START, "careful")
    graph = clew.instrument(builder.compile(name="support", checkpointer=InMemorySaver()))
    with clew.span("asking"):
        assert graph.invoke(ASKED, CONVERSATION)["__interrupt__"][0].value == "May I?"
    with clew.span("answering"):
        said = asyncio.run(graph.ainvoke(Command(resume="gone"), CONVERSATION))
    assert "gone" in said["messages"][-1].content
    of_run = "invoke_workflow support > invoke_agent careful"
    for request in ("asking", "answering"):
        assert tree(captured_telemetry, captured_telemetry.span(request), without=("POST", "reading")) == [
            "invoke_workflow support",
            of_run,
            f"{of_run} > {CHAT}",
            f"{of_run} > execute_tool delete",
        ]
    assert {span.status for span in captured_telemetry.spans if not span.name.startswith("POST")} == {"unset"}


def test_a_hand_made_agent_an_agent_as_a_tool_and_a_tool_in_a_node(
    captured_telemetry: CapturedTelemetry, model: ChatOpenAI
) -> None:
    inner = create_react_agent(model, [], prompt="Answer.", name="inner")

    @tool
    async def ask_inner(text: str) -> str:
        """Ask."""
        return str((await inner.ainvoke({"messages": [("user", text)]}))["messages"][-1].content)

    bound = model.bind_tools([ask_inner])

    async def answer(state: Any) -> Any:
        return {"messages": [await bound.ainvoke([("system", "Use ask_inner."), *state["messages"]])]}

    builder = StateGraph(MessagesState)
    builder.add_node("chatbot", answer)
    builder.add_node("tools", ToolNode([ask_inner]))
    builder.add_edge(START, "chatbot")
    builder.add_conditional_edges("chatbot", tools_condition)
    builder.add_edge("tools", "chatbot")

    # Nobody named it: it is called as the node that it is in
    unnamed = builder.compile()

    async def prepare(state: Any) -> Any:
        assert await slow_count.ainvoke({"text": TEXT}) == 7
        with clew.span("afterwards"):
            return {}

    outer = StateGraph(MessagesState)
    outer.add_node("prepare", prepare)
    outer.add_node("helper", unnamed)
    outer.add_edge(START, "prepare")
    outer.add_edge("prepare", "helper")
    graph = clew.instrument(outer.compile())
    with clew.span("request"):
        asyncio.run(graph.ainvoke(ASKED))
    of_run = "invoke_workflow LangGraph > invoke_agent helper"
    assert Counter(
        tree(captured_telemetry, captured_telemetry.span("request"), without=("POST", "reading"))
    ) == Counter(
        [
            "invoke_workflow LangGraph",
            "invoke_workflow LangGraph > prepare",
            "invoke_workflow LangGraph > prepare > execute_tool slow_count",
            "invoke_workflow LangGraph > prepare > execute_tool slow_count > counting",
            "invoke_workflow LangGraph > prepare > afterwards",
            of_run,
            f"{of_run} > {CHAT}",
            f"{of_run} > {CHAT}",
            f"{of_run} > execute_tool ask_inner",
            f"{of_run} > execute_tool ask_inner > invoke_agent inner",
            f"{of_run} > execute_tool ask_inner > invoke_agent inner > {CHAT}",
        ]
    )
    # An edge is the graph's doing: no agent gave control away
    assert not [span for span in captured_telemetry.spans if "clew.handoff.id" in span.attributes]


def test_a_model_that_no_client_of_openai_asks_is_recorded_by_what_langchain_says(
    agent_history: History, captured_telemetry: CapturedTelemetry
) -> None:
    usage: Any = {"input_tokens": 5, "output_tokens": 3, "total_tokens": 8}
    parrot = GenericFakeChatModel(messages=iter([AIMessage("hello", usage_metadata=usage)]))
    agent = clew.instrument(create_react_agent(parrot, [], name="parrot"))
    agent.invoke(ASKED)
    (call,) = rows(agent_history, LlmCall)
    assert (call["agent"], call["input_tokens"], call["output_tokens"], call["prompt"]) == ("parrot", 5, 3, None)
    (span,) = [span for span in captured_telemetry.spans if span.name.startswith("chat")]
    assert span.parent_id == captured_telemetry.span("invoke_agent parrot").span_id


def test_content_where_it_is_asked_for(
    captured_telemetry: CapturedTelemetry, model: ChatOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert state.settings is not None
    monkeypatch.setattr(state, "settings", state.settings.model_copy(update={"llm_content": True}))
    clew.instrument(create_react_agent(model, [word_count], prompt="Use word_count.", name="counter")).invoke(ASKED)
    called = captured_telemetry.span("execute_tool word_count").attributes
    assert "thread" in called["gen_ai.tool.call.arguments"]
    assert "7" in called["gen_ai.tool.call.result"]


def test_what_is_outside_of_graphs_is_left_alone(captured_telemetry: CapturedTelemetry, model: ChatOpenAI) -> None:
    clew.instrument(create_react_agent(model, [])).invoke(ASKED)
    before = len(captured_telemetry.spans)
    model.invoke(TEXT)
    assert word_count.invoke({"text": TEXT}) == 7
    names = {span.name for span in captured_telemetry.spans[before:]}
    assert "counting" in names
    assert not names & {CHAT, "execute_tool word_count"}


SERVICE = """
import sys
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import create_react_agent
from langgraph.types import Command

model = ChatOpenAI(model=sys.argv[2], base_url=sys.argv[1], api_key="none")

@tool
def transfer_to_helper():
    "Transfer."
    return Command(goto="helper", graph=Command.PARENT)

builder = StateGraph(MessagesState)
triage = create_react_agent(model, [transfer_to_helper], prompt="transfer_to_helper.", name="triage")
builder.add_node("triage", triage, destinations=("helper",))
builder.add_node("helper", create_react_agent(model, [], prompt="Answer.", name="helper"))
builder.add_edge(START, "triage")
graph = builder.compile(name="support")
async def answer():
    return (await graph.ainvoke({"messages": [("user", "The thread leads on.")]}))["messages"][-1].content
"""


def test_no_code_is_needed(otlp_sink: OtlpSink, stand_in_url: str, tmp_path: Path) -> None:
    check_service(SERVICE, otlp_sink, stand_in_url, tmp_path, calls=2, transfers=2)
