"""LangChain's ``create_agent`` against the stand-in model: its name, tools, LLM calls, streams, errors and middleware."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    HumanInTheLoopMiddleware,
    ModelFallbackMiddleware,
    ToolRetryMiddleware,
    after_model,
    before_agent,
    before_model,
    wrap_model_call,
    wrap_tool_call,
)
from langchain_core.messages import SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command

import clew
from clew.history.models import AgentTask, Handoff, LlmCall
from clew.testing import CapturedTelemetry
from tests.integration.agent_runs import CHAT, check_commands, check_records, rows, tree
from tests.integration.job_history import History
from tests.integration.langgraph_runs import (
    ASKED,
    CONVERSATION,
    TEXT,
    broken,
    make_model,
    transfer,
    word_count,
)

# The experimental events of LangGraph say that they are
pytestmark = pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")


@pytest.fixture
def model(stand_in_url: str, captured_telemetry: CapturedTelemetry) -> ChatOpenAI:
    """A fresh model for each test, each of which has an event loop of its own."""
    return make_model(stand_in_url)


def counter(model: Any, **more: Any) -> Any:
    return clew.instrument(create_agent(model, [word_count], system_prompt="Use word_count.", name="counter", **more))


def below(captured: CapturedTelemetry, name: str = "request") -> Counter[str]:
    return Counter(tree(captured, captured.span(name), without=("POST", "reading")))


COUNTER = Counter(
    [
        "invoke_agent counter",
        *[f"invoke_agent counter > {CHAT}"] * 2,
        "invoke_agent counter > execute_tool word_count",
        "invoke_agent counter > execute_tool word_count > counting",
    ]
)


# How an agent can be asked. What reads is no part of the run


def invoke(agent: Any) -> None:
    assert "word_count: 7" in agent.invoke(ASKED, CONVERSATION)["messages"][-1].content


def ainvoke(agent: Any) -> None:
    asyncio.run(agent.ainvoke(ASKED, CONVERSATION))


def read(pieces: Iterator[Any]) -> None:
    number = 0
    for _ in pieces:
        with clew.span("reading"):
            number += 1
    assert number


def stream(agent: Any) -> None:
    read(agent.stream(ASKED, CONVERSATION, stream_mode=["messages", "updates"]))


def stream_events(agent: Any) -> None:
    events = agent.stream_events(ASKED, CONVERSATION, version="v3")
    read(events.messages)
    assert events.output["messages"]


def astream(agent: Any) -> None:
    async def main() -> None:
        async for _ in agent.astream(ASKED, CONVERSATION, stream_mode="messages"):
            with clew.span("reading"):
                pass

    asyncio.run(main())


def astream_events(agent: Any) -> None:
    async def main() -> None:
        async for _ in agent.astream_events(ASKED, CONVERSATION, version="v2"):
            with clew.span("reading"):
                pass

    asyncio.run(main())


@pytest.mark.parametrize(
    "way", [invoke, ainvoke, stream, astream, stream_events, astream_events], ids=lambda way: way.__name__
)
def test_all_ways_to_ask_an_agent(
    agent_history: History, captured_telemetry: CapturedTelemetry, model: ChatOpenAI, way: Callable[[Any], None]
) -> None:
    agent = counter(model)
    with clew.agent_task("app", user_id="ada"), clew.span("request"):
        way(agent)
    assert below(captured_telemetry) == COUNTER
    reading = [span for span in captured_telemetry.spans if span.name == "reading"]
    assert {span.parent_id for span in reading} <= {captured_telemetry.span("request").span_id}
    assert bool(reading) == ("stream" in way.__name__)
    assert captured_telemetry.metric("clew.agent.task.duration", gen_ai__agent__name="counter").count == 1
    assert captured_telemetry.metric("clew.tool.duration", gen_ai__tool__name="word_count").count == 1
    if reading:
        assert captured_telemetry.metric("gen_ai.client.operation.time_to_first_chunk").count == 2
    (task,) = [row for row in rows(agent_history, AgentTask) if row["agent"] != "app"]
    assert (task["agent"], task["status"], task["task_id"]) == ("counter", "completed", "conversation-1")
    calls = rows(agent_history, LlmCall)
    assert [(row["agent"], row["user_id"], row["status"]) for row in calls] == [("counter", "ada", "completed")] * 2
    assert all(row["input_tokens"] and row["output_tokens"] for row in calls)


def test_many_at_once(agent_history: History, captured_telemetry: CapturedTelemetry, model: ChatOpenAI) -> None:
    agent = counter(model)
    with clew.span("request"):
        assert len(agent.batch([ASKED] * 8)) == 8
    assert below(captured_telemetry) == Counter({name: 8 * number for name, number in COUNTER.items()})
    assert Counter(row["agent"] for row in rows(agent_history, LlmCall)) == {"counter": 16}


def test_a_chain_of_handoffs_by_tools(
    agent_history: History, captured_telemetry: CapturedTelemetry, model: ChatOpenAI
) -> None:
    kwargs: Any = {"Triage": ("transfer_to_processor", [transfer("processor")])}
    kwargs["processor"] = ("word_count, then transfer_to_exporter", [word_count, transfer("exporter")])
    kwargs["exporter"] = ("Answer.", [])
    builder = StateGraph(MessagesState)
    for name, (said, tools) in kwargs.items():
        agent = create_agent(model, tools, system_prompt=said, name=name)
        builder.add_node(name, agent, destinations=tuple(kwargs))
    builder.add_edge(START, "Triage")
    graph = clew.instrument(builder.compile(name="support"))
    with clew.agent_task("app", user_id="ada"), clew.span("request"):
        graph.invoke(ASKED, CONVERSATION)
    check_records(
        captured_telemetry,
        agent_history,
        mode="pass_control",
        calls={"Triage": 1, "processor": 2, "exporter": 1},
    )
    check_commands()
    # A handoff lasts from the end of the tool that decides to the beginning of the other agent
    spans = captured_telemetry.spans
    for target in ("processor", "exporter"):
        tool_span, made = sorted(
            (span for span in spans if span.name == f"execute_tool transfer_to_{target}"),
            key=lambda span: "clew.handoff.id" in span.attributes,
        )
        begun = captured_telemetry.span(f"invoke_agent {target}")
        assert made.start_ns <= tool_span.end_ns < made.end_ns <= begun.start_ns
        assert begun.parent_id == made.span_id
    waits = captured_telemetry.metric("clew.agent.handoff.wait.duration", clew__handoff__source="Triage")
    assert waits.sum > 0
    for row in rows(agent_history, Handoff):
        assert row["wait_s"] > 0


# Middleware


def decide(state: Any, runtime: Any) -> Any:
    with clew.span("deciding"):
        return Command(goto="helper", graph=Command.PARENT)


def after_the_tool(request: Any, handler: Callable[[Any], Any]) -> Any:
    said = handler(request)
    with clew.span("deciding"):
        messages = [*request.state["messages"], said]
    return Command(goto="helper", graph=Command.PARENT, update={"messages": messages})


TRIAGE = "invoke_workflow support > invoke_agent triage"
HELPER = "invoke_workflow support > execute_tool transfer_to_helper"
DECIDED = [
    "invoke_workflow support",
    *(TRIAGE, f"{TRIAGE} > deciding"),
    *(HELPER, f"{HELPER} > invoke_agent helper", f"{HELPER} > invoke_agent helper > {CHAT}"),
]


@pytest.mark.parametrize(
    ("hook", "before"),
    [
        (before_agent(decide), []),
        (before_model(decide), []),
        (after_model(decide), [CHAT]),
        (wrap_tool_call(after_the_tool), [CHAT, "execute_tool word_count", "execute_tool word_count > counting"]),
    ],
    ids=["before_agent", "before_model", "after_model", "wrap_tool_call"],
)
def test_middleware_that_gives_control_to_another_agent(
    agent_history: History, captured_telemetry: CapturedTelemetry, model: ChatOpenAI, hook: Any, before: list[str]
) -> None:
    triage = create_agent(model, [word_count], system_prompt="Use word_count.", middleware=[hook], name="triage")
    builder = StateGraph(MessagesState)
    builder.add_node("triage", triage, destinations=("helper",))
    builder.add_node("helper", create_agent(model, [], system_prompt="Answer.", name="helper"))
    builder.add_edge(START, "triage")
    graph = clew.instrument(builder.compile(name="support"))
    with clew.span("request"):
        graph.invoke(ASKED)
    assert below(captured_telemetry) == Counter([*DECIDED, *(f"{TRIAGE} > {name}" for name in before)])
    (made,) = rows(agent_history, Handoff)
    assert (made["source"], made["target"], made["status"]) == ("triage", "helper", "completed")
    # Where no tool said when, it is the end of the agent
    span = captured_telemetry.span("execute_tool transfer_to_helper")
    assert captured_telemetry.span("deciding").end_ns <= span.start_ns < span.end_ns


def test_an_agent_that_middleware_gives_other_instructions_stays_one_agent(
    agent_history: History, captured_telemetry: CapturedTelemetry, model: ChatOpenAI
) -> None:
    @wrap_model_call
    def by_step(request: Any, handler: Callable[[Any], Any]) -> Any:
        is_first = not any(message.type == "tool" for message in request.messages)
        said = "Use word_count." if is_first else "Answer."
        return handler(request.override(system_message=SystemMessage(said)))

    agent = clew.instrument(create_agent(model, [word_count], middleware=[by_step], name="counter"))
    with clew.span("request"):
        agent.invoke(ASKED)
    assert below(captured_telemetry) == COUNTER
    assert rows(agent_history, Handoff) == []


def test_middleware_that_tries_again(
    agent_history: History, captured_telemetry: CapturedTelemetry, model: ChatOpenAI, stand_in_url: str
) -> None:
    tried = []

    @tool
    def flaky(text: str) -> str:
        """Fail once."""
        tried.append(text)
        if len(tried) == 1:
            raise ConnectionError("not yet")
        return "done"

    refusing = make_model(stand_in_url, default_headers={"x-stand-in-refuse": "9"})
    middleware: Any = [ModelFallbackMiddleware(model), ToolRetryMiddleware(max_retries=1, initial_delay=0.0)]
    agent = create_agent(refusing, [flaky], system_prompt="Use flaky.", middleware=middleware, name="patient")
    with clew.span("request"):
        assert "flaky: done" in clew.instrument(agent).invoke(ASKED)["messages"][-1].content
    assert below(captured_telemetry) == Counter(
        [
            "invoke_agent patient",
            *[f"invoke_agent patient > {CHAT}"] * 4,
            *["invoke_agent patient > execute_tool flaky"] * 2,
        ]
    )
    tools = [span.attributes.get("error.type") for span in captured_telemetry.spans if "flaky" in span.name]
    assert tools == ["ConnectionError", None]
    assert captured_telemetry.span("invoke_agent patient").status == "unset"
    assert Counter(row["status"] for row in rows(agent_history, LlmCall)) == {"failed": 2, "completed": 2}
    (task,) = rows(agent_history, AgentTask)
    assert (task["agent"], task["status"]) == ("patient", "completed")


def test_middleware_that_asks_a_person(captured_telemetry: CapturedTelemetry, model: ChatOpenAI) -> None:
    agent = counter(
        model, middleware=[HumanInTheLoopMiddleware(interrupt_on={"word_count": True})], checkpointer=InMemorySaver()
    )
    with clew.span("asking"):
        assert agent.invoke(ASKED, CONVERSATION)["__interrupt__"]
    with clew.span("answering"):
        agent.invoke(Command(resume={"decisions": [{"type": "approve"}]}), CONVERSATION)
    asked, answered = (below(captured_telemetry, name) for name in ("asking", "answering"))
    assert asked == Counter(["invoke_agent counter", f"invoke_agent counter > {CHAT}"])
    assert asked + answered == COUNTER + Counter(["invoke_agent counter"])
    assert {span.status for span in captured_telemetry.spans} == {"unset"}


def test_what_goes_wrong(
    agent_history: History, captured_telemetry: CapturedTelemetry, model: ChatOpenAI, stand_in_url: str
) -> None:
    refusing = make_model(stand_in_url, default_headers={"x-stand-in-refuse": "9"})
    clew.instrument(create_agent(model, []))
    with clew.span("request"):
        with pytest.raises(openai.RateLimitError):
            create_agent(refusing, [word_count], name="refused").invoke(ASKED)
        with pytest.raises(OSError, match="disk full"):
            create_agent(model, [broken], system_prompt="Use broken.", name="careless").invoke(ASKED)
    found = {row["agent"]: (row["status"], row["error_type"]) for row in rows(agent_history, AgentTask)}
    assert found == {"refused": ("failed", "OpenAIRateLimitError"), "careless": ("failed", "OSError")}
    failed = captured_telemetry.span("execute_tool broken")
    assert (failed.status, failed.attributes["error.type"]) == ("error", "OSError")
    assert TEXT not in str([(span.attributes, span.events) for span in captured_telemetry.spans])
