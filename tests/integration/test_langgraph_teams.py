"""Supervisors and swarms of agents, by the packages of those names: what their handoff tools leave in spans, records and the graph."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, Send
from langgraph_supervisor import create_supervisor
from langgraph_swarm import create_handoff_tool, create_swarm

import clew
from clew.history.models import AgentTask, Handoff
from clew.testing import CapturedSpan, CapturedTelemetry
from tests.integration.agent_runs import CHAT, edges, rows, tree
from tests.integration.job_history import History
from tests.integration.langgraph_runs import ASKED, CONVERSATION, make_model, word_count

# langgraph-supervisor makes its supervisor by it
pytestmark = pytest.mark.filterwarnings("ignore::langgraph.warnings.LangGraphDeprecatedSinceV10")


@pytest.fixture
def model(stand_in_url: str, captured_telemetry: CapturedTelemetry) -> ChatOpenAI:
    """A fresh model for each test, each of which has an event loop of its own."""
    return make_model(stand_in_url)


class Scripted(GenericFakeChatModel):
    """A model that says what it is told to, and takes tools."""

    def bind_tools(self, tools: Any, **_: Any) -> Any:
        return self


def worker(model: Any, name: str, said: str, *tools: Any) -> Any:
    return create_agent(model, list(tools), system_prompt=said, name=name)


def invoke(graph: Any) -> None:
    graph.invoke(ASKED, CONVERSATION)


def astream(graph: Any) -> None:
    async def main() -> None:
        async for _ in graph.astream(ASKED, CONVERSATION, stream_mode="messages", subgraphs=True):
            pass

    asyncio.run(main())


def handed(history: History) -> list[tuple[str, str, str, int]]:
    found = rows(history, Handoff)
    assert {(row["mode"], row["task_id"]) for row in found} == {("pass_control", "conversation-1")}
    return [(row["source"], row["target"], row["status"], row["depth"]) for row in found]


def lengths(captured: CapturedTelemetry) -> Iterator[CapturedSpan]:
    """See that each handoff begins with the end of a tool and ends with the beginning of a task."""
    for span in captured.spans:
        if "clew.handoff.id" not in span.attributes or not span.name.startswith("execute_tool"):
            continue
        (begun,) = [one for one in captured.spans if one.parent_id == span.span_id]
        assert begun.name == f"invoke_agent {span.attributes['gen_ai.transfer.target.name']}"
        assert span.start_ns < span.end_ns <= begun.start_ns
        assert any(
            one.name.startswith("execute_tool transfer_to_") and one.end_ns >= span.start_ns >= one.start_ns
            for one in captured.spans
            if one.span_id != span.span_id
        )
        yield span


TEAM = "invoke_workflow team"
SUPERVISOR = f"{TEAM} > invoke_agent supervisor"
COUNTER = f"{TEAM} > counter > execute_tool transfer_to_counter > invoke_agent counter"
WRITER = f"{TEAM} > writer > execute_tool transfer_to_writer > invoke_agent writer"


@pytest.mark.parametrize("way", [invoke, astream], ids=lambda way: way.__name__)
def test_a_supervisor(
    agent_history: History, captured_telemetry: CapturedTelemetry, model: ChatOpenAI, way: Callable[[Any], None]
) -> None:
    team = create_supervisor(
        [worker(model, "counter", "Use word_count.", word_count), worker(model, "writer", "Answer.")],
        model=model,
        prompt="transfer_to_counter, then transfer_to_writer.",
    )
    with clew.span("request"):
        way(clew.instrument(team.compile(name="team")))
    assert Counter(tree(captured_telemetry, captured_telemetry.span("request"))) == Counter(
        [
            TEAM,
            *[SUPERVISOR] * 3,
            *[f"{SUPERVISOR} > {CHAT}"] * 3,
            f"{SUPERVISOR} > execute_tool transfer_to_counter",
            f"{TEAM} > counter",
            f"{TEAM} > counter > execute_tool transfer_to_counter",
            *(COUNTER, f"{COUNTER} > {CHAT}", f"{COUNTER} > {CHAT}"),
            *(f"{COUNTER} > execute_tool word_count", f"{COUNTER} > execute_tool word_count > counting"),
            f"{SUPERVISOR} > execute_tool transfer_to_writer",
            f"{TEAM} > writer",
            f"{TEAM} > writer > execute_tool transfer_to_writer",
            *(WRITER, f"{WRITER} > {CHAT}"),
        ]
    )
    assert handed(agent_history) == [
        ("supervisor", "counter", "completed", 1),
        ("supervisor", "writer", "completed", 1),
    ]
    assert len(list(lengths(captured_telemetry))) == 2
    tasks = Counter((row["agent"], row["status"]) for row in rows(agent_history, AgentTask))
    assert tasks == {("supervisor", "completed"): 3, ("counter", "completed"): 1, ("writer", "completed"): 1}
    assert edges() == {("supervisor", "counter"), ("supervisor", "writer")}
    assert {span.status for span in captured_telemetry.spans} == {"unset"}


def test_a_supervisor_of_a_team_hands_to_the_first_agent_in_it(
    agent_history: History, captured_telemetry: CapturedTelemetry, model: ChatOpenAI
) -> None:
    counting = create_supervisor(
        [worker(model, "counter", "Use word_count.", word_count)],
        model=model,
        prompt="transfer_to_counter",
        supervisor_name="lead",
    )
    team = create_supervisor(
        [counting.compile(name="counting"), worker(model, "writer", "Answer.")],
        model=model,
        prompt="transfer_to_counting, then transfer_to_writer.",
    )
    with clew.span("request"):
        invoke(clew.instrument(team.compile(name="team")))
    assert handed(agent_history) == [
        ("supervisor", "lead", "completed", 1),
        ("lead", "counter", "completed", 2),
        ("supervisor", "writer", "completed", 1),
    ]
    assert len(list(lengths(captured_telemetry))) == 3
    assert edges() == {("supervisor", "lead"), ("lead", "counter"), ("supervisor", "writer")}
    parents = [
        name
        for name in tree(captured_telemetry, captured_telemetry.span("request"))
        if name.endswith("invoke_agent lead")
    ]
    inner = f"{TEAM} > counting > invoke_workflow counting"
    assert parents == [f"{inner} > execute_tool transfer_to_lead > invoke_agent lead", f"{inner} > invoke_agent lead"]


def test_workers_of_a_supervisor_hand_to_each_other(
    agent_history: History, captured_telemetry: CapturedTelemetry, model: ChatOpenAI
) -> None:
    counter = worker(
        model, "counter", "word_count, then transfer_to_writer", word_count, create_handoff_tool(agent_name="writer")
    )
    team = create_supervisor([counter, worker(model, "writer", "Answer.")], model=model, prompt="transfer_to_counter")
    invoke(clew.instrument(team.compile(name="team")))
    assert handed(agent_history) == [("supervisor", "counter", "completed", 1), ("counter", "writer", "completed", 2)]
    assert len(list(lengths(captured_telemetry))) == 2


def test_a_supervisor_that_names_several_at_once_hands_to_the_one_that_langgraph_lets_begin(
    agent_history: History, captured_telemetry: CapturedTelemetry, model: ChatOpenAI
) -> None:
    calls: Any = [
        {"name": f"transfer_to_{name}", "args": {}, "id": name, "type": "tool_call"} for name in ("counter", "writer")
    ]
    said = Scripted(messages=iter([AIMessage("", tool_calls=calls), AIMessage("done")]))
    team = create_supervisor(
        [worker(model, "counter", "Use word_count.", word_count), worker(model, "writer", "Answer.")],
        model=said,
        parallel_tool_calls=True,
    )
    clew.instrument(team.compile(name="team")).invoke(ASKED, CONVERSATION)
    (target,) = {row["agent"] for row in rows(agent_history, AgentTask)} - {"supervisor"}
    assert handed(agent_history) == [("supervisor", target, "completed", 1)]
    assert len(list(lengths(captured_telemetry))) == 1


def test_a_node_whose_agent_hands_to_several_at_once(
    agent_history: History, captured_telemetry: CapturedTelemetry, model: ChatOpenAI
) -> None:
    triage = worker(model, "triage", "Answer.")

    async def sort(state: MessagesState) -> Command[Any]:
        said = await triage.ainvoke(state)
        return Command(goto=[Send("writer", said), Send("counter", said), Send("writer", said)])

    builder = StateGraph(MessagesState)
    builder.add_node("sort", sort, destinations=("counter", "writer"))
    builder.add_node("counter", worker(model, "counter", "Use word_count.", word_count))
    builder.add_node("writer", worker(model, "writer", "Answer."))
    builder.add_edge(START, "sort")
    asyncio.run(clew.instrument(builder.compile(name="team")).ainvoke(ASKED, CONVERSATION))
    assert sorted(handed(agent_history)) == [
        ("triage", "counter", "completed", 1),
        *[("triage", "writer", "completed", 1)] * 2,
    ]
    assert len({row["handoff_id"] for row in rows(agent_history, AgentTask) if row["agent"] != "triage"}) == 3
    # No tool decided: they last from the node's end
    said_at = captured_telemetry.span("invoke_agent triage").end_ns
    made = [span for span in captured_telemetry.spans if span.name.startswith("execute_tool transfer_to_")]
    assert len(made) == 3
    assert all(said_at <= span.start_ns < span.end_ns for span in made)


def test_a_swarm(agent_history: History, captured_telemetry: CapturedTelemetry, model: ChatOpenAI) -> None:
    alice = worker(
        model, "Alice", "word_count, then transfer_to_bob", word_count, create_handoff_tool(agent_name="Bob")
    )
    bob = worker(model, "Bob", "Answer.", create_handoff_tool(agent_name="Alice"))
    swarm = create_swarm([alice, bob], default_active_agent="Alice").compile(checkpointer=InMemorySaver(), name="swarm")
    clew.instrument(swarm)
    with clew.span("first"):
        invoke(swarm)
    with clew.span("second"):
        # It goes on with Bob, whom nobody hands to
        invoke(swarm)
    with clew.span("third"):
        swarm.invoke({"messages": [("user", "transfer_to_alice")]}, CONVERSATION)

    of_alice = "invoke_workflow swarm > invoke_agent Alice"
    to_bob = "invoke_workflow swarm > execute_tool transfer_to_Bob"
    assert Counter(tree(captured_telemetry, captured_telemetry.span("first"))) == Counter(
        [
            "invoke_workflow swarm",
            *(of_alice, f"{of_alice} > {CHAT}", f"{of_alice} > {CHAT}"),
            *(f"{of_alice} > execute_tool word_count", f"{of_alice} > execute_tool word_count > counting"),
            f"{of_alice} > execute_tool transfer_to_bob",
            *(to_bob, f"{to_bob} > invoke_agent Bob", f"{to_bob} > invoke_agent Bob > {CHAT}"),
        ]
    )
    of_bob = "invoke_workflow swarm > invoke_agent Bob"
    assert Counter(tree(captured_telemetry, captured_telemetry.span("second"))) == Counter(
        ["invoke_workflow swarm", of_bob, f"{of_bob} > {CHAT}"]
    )
    assert handed(agent_history) == [
        ("Alice", "Bob", "completed", 1),
        ("Bob", "Alice", "completed", 1),
        ("Alice", "Bob", "completed", 2),
    ]
    assert len(list(lengths(captured_telemetry))) == 3
    assert edges() == {("Alice", "Bob"), ("Bob", "Alice")}
