"""Tasks and handoffs of agents in the history: each way in which they begin, end and fail, in one process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any

import pytest

import clew
from clew import diagnostics
from clew.agents.registry import registry
from clew.engine.state import state
from clew.history.models import Agent, AgentTask, Handoff, HandoffTotal, LlmCall
from clew.history.recorder import recorder
from clew.testing import CapturedTelemetry
from tests.integration.job_history import History, own_history
from tests.integration.waiting import eventually


@pytest.fixture
def history(
    database_url: str, captured_telemetry: CapturedTelemetry, monkeypatch: pytest.MonkeyPatch
) -> Iterator[History]:
    """An empty history that this process's recorder writes to."""
    monkeypatch.setattr(registry, "_known", {})
    with own_history(database_url, monkeypatch, heartbeat_s=0.2) as opened:
        yield opened


def rows(history: History, model: Any, **equal: Any) -> list[dict[str, Any]]:
    found = recorder()
    assert found is not None
    assert found.flush(15)
    return [dict(row) for row in history.all(model, **equal)]


def only(history: History, model: Any, **equal: Any) -> dict[str, Any]:
    (row,) = rows(history, model, **equal)
    return row


def handoff_totals(history: History) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in history.all(HandoffTotal, grain="day"):
        found[row["status"]] = found.get(row["status"], 0) + row["handoffs"]
    return {status: number for status, number in found.items() if number}


def test_a_task_is_recorded_from_its_start_to_its_end(history: History, captured_telemetry: CapturedTelemetry) -> None:
    with (
        clew.correlation("order-17"),
        clew.agent_task(
            "topicizer",
            type="topicization",
            version="2",
            task_id="doc-1",
            user_id="u-1",
            attempt=2,
            password="x",
            pages=3,
        ) as task,
    ):
        eventually(lambda: history.all(AgentTask), "its start is recorded")
        (started,) = history.all(AgentTask)
        with clew.agent_task("helper"):
            pass
        task.set_result({"topics": ["a"], "api_key": "sk-1234567890abcdef"})
    ended = only(history, AgentTask, agent="topicizer")
    assert (started["status"], started["finished_at"]) == ("running", None)
    assert (ended["status"], ended["id"], ended["type"], ended["version"]) == (
        "completed",
        task.id,
        "topicization",
        "2",
    )
    assert (ended["task_id"], ended["user_id"], ended["attempt"], ended["pid"]) == ("doc-1", "u-1", 2, os.getpid())
    assert ended["metadata"] == {"password": "[redacted]", "pages": 3}
    assert "sk-123" not in str(ended["result"])
    span = captured_telemetry.span("invoke_agent topicizer")
    assert (ended["trace_id"], ended["span_id"]) == (span.trace_id, span.span_id)
    assert ended["correlation_id"] == "order-17"
    assert span.attributes["gen_ai.agent.version"] == "2"
    helper = only(history, AgentTask, agent="helper")
    assert helper["parent_id"] == ended["id"]


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (ValueError("bad"), "failed", "ValueError"),
        (asyncio.CancelledError(), "cancelled", "cancelled"),
        (KeyboardInterrupt(), "cancelled", "cancelled"),
        (GeneratorExit(), "completed", None),
        (ValueError("nul \x00 and \ud800"), "failed", "ValueError"),
    ],
    ids=repr,
)
def test_how_tasks_and_handoffs_end(history: History, error: BaseException, status: str, kind: str | None) -> None:
    with pytest.raises(type(error)), clew.agent_task("ends"), clew.handoff(to="other"):
        raise error
    task, handoff = only(history, AgentTask), only(history, Handoff)
    assert (task["status"], task["error_type"], handoff["status"], handoff["error_type"]) == (
        status,
        kind,
        status,
        kind,
    )
    assert bool(task["traceback"]) == (status != "completed")
    assert handoff_totals(history) == {status: 1}


def test_functions_coroutines_generators_and_classes(history: History) -> None:
    @clew.agent("function")
    def function() -> int:
        return 1

    @clew.agent("coroutine")
    async def coroutine() -> int:
        return 2

    @clew.agent("generator")
    def generator() -> Generator[int, None, None]:
        yield 3

    @clew.agent("stream")
    async def stream() -> AsyncIterator[int]:
        yield 4

    @clew.agent("caller", type="object")
    class Caller:
        def __call__(self, value: int) -> int:
            return value

    @clew.agent("runner", method="run")
    class Runner:
        @classmethod
        async def run(cls) -> str:
            return cls.__name__

    class Base:
        def run(self) -> int:
            return 6

    @clew.agent("heir", method="run")
    class Heir(Base):
        pass

    async def main() -> None:
        assert await coroutine() == 2
        assert [item async for item in stream()] == [4]
        assert await Runner.run() == "Runner"

    asyncio.run(main())
    assert (function(), list(generator()), Caller()(5), Heir().run(), Base().run()) == (1, [3], 5, 6, 6)
    found = {row["agent"]: row["status"] for row in rows(history, AgentTask)}
    names = ("function", "coroutine", "generator", "stream", "caller", "runner", "heir")
    assert found == dict.fromkeys(names, "completed")
    eventually(lambda: {row["agent"] for row in history.all(Agent)} == set(names), "all are registered")
    diagnostics.set_strict(strict=False)
    clew.agent("nobody", method="missing")(type("Empty", (), {}))


def test_what_the_registry_counts(history: History) -> None:
    for _ in range(2):
        with clew.agent_task("counted", type="test") as task:
            task.fail("refused")
    eventually(lambda: [row["failures"] for row in history.all(Agent)] == [2], "failures are told")
    (row,) = history.all(Agent)
    assert (row["tasks"], row["failures_in_a_row"], row["last_error_type"], row["active"]) == (2, 2, "refused", 0)
    with clew.agent_task("counted"):
        eventually(lambda: history.all(Agent)[0]["active"] == 1, "it is told to be active")
    eventually(lambda: history.all(Agent)[0]["failures_in_a_row"] == 0, "one that did not fail ends the row")
    before = history.all(Agent)[0]["heartbeat_at"]
    eventually(lambda: history.all(Agent)[0]["heartbeat_at"] > before, "its heart beats")
    assert history.all(Agent)[0]["type"] == "test"


def test_a_thousand_agents_take_one_statement_a_beat(history: History) -> None:
    from sqlalchemy import event

    from clew.agents.upkeep import the_recorder

    for number in range(1_000):
        registry.note(f"agent-{number}", "test", None)
    the_recorder()
    eventually(lambda: len(history.all(Agent)) == 1_000, "all are registered")
    found = recorder()
    assert found is not None
    statements: list[str] = []
    event.listen(
        found.database.engine,
        "before_cursor_execute",
        lambda _c, _cursor, statement, *_: statements.append(statement) if "agents" in statement else None,
    )
    beats = {row["heartbeat_at"] for row in history.all(Agent)}
    eventually(lambda: beats.isdisjoint({row["heartbeat_at"] for row in history.all(Agent)}), "all of them beat")
    # That may have been a beat which was under way before it was listened to
    eventually(lambda: any(statement.startswith("UPDATE") for statement in statements), "and beat again")
    writes = [statement for statement in statements if statement.startswith(("UPDATE", "INSERT", "DELETE"))]
    beats = {row["heartbeat_at"] for row in history.all(Agent)}
    assert len(beats) == 1
    # A sweep for what others left may fall into this time; a beat itself is one statement for all agents
    of_beats = [statement for statement in writes if not statement.startswith("DELETE")]
    assert {statement.split(" SET")[0] for statement in of_beats} == {"UPDATE agents"}


def test_a_handoff_that_comes_back(history: History, captured_telemetry: CapturedTelemetry) -> None:
    @clew.agent("topicizer")
    def topics(text: str) -> list[str]:
        return text.split()

    with (
        clew.agent_task("processor"),
        clew.handoff(to="topicizer", task={"id": "doc-17"}, reason="topics wanted", summary={"pages": 2, "token": "x"}),
    ):
        assert topics("one two") == ["one", "two"]
    handoff = only(history, Handoff)
    task = only(history, AgentTask, agent="topicizer")
    assert (handoff["status"], handoff["source"], handoff["target"]) == ("completed", "processor", "topicizer")
    assert (handoff["reason"], handoff["task_id"]) == ("topics wanted", "doc-17")
    assert handoff["summary"] == {"pages": 2, "token": "[redacted]"}
    assert (handoff["depth"], handoff["chain"], handoff["is_loop"]) == (1, ["processor"], False)
    assert (task["handoff_id"], handoff["accepted_by"]) == (handoff["id"], task["instance"])
    assert handoff["duration_s"] > task["duration_s"]
    span = captured_telemetry.span("execute_tool transfer_to_topicizer")
    assert (handoff["trace_id"], handoff["span_id"]) == (span.trace_id, span.span_id)
    assert handoff_totals(history) == {"completed": 1}
    assert captured_telemetry.metric("clew.agent.handoff.wait.duration").count == 1


def test_what_a_handoff_is_about_its_task_is_about(history: History) -> None:
    with clew.handoff(to="topicizer", task="doc 18 §"), clew.agent_task("topicizer"):
        pass
    with clew.handoff(to="topicizer", task="doc 19 §") as passing:
        carrier = passing.carrier
    for chosen in (None, "page-1"):
        with clew.agent_task("topicizer", carrier=carrier, task_id=chosen):
            pass
    with clew.handoff(to="topicizer"), clew.agent_task("topicizer"):
        pass
    about = [row["task_id"] for row in sorted(rows(history, AgentTask), key=lambda row: row["started_at"])]
    assert about == ["doc 18 §", "doc 19 §", "page-1", None]


def test_llm_calls_are_made_for_whom_the_task_is_done(history: History) -> None:
    def ask(**named: str) -> None:
        with clew.llm_call("openai", "m", **named):
            pass

    ask()
    with clew.agent_task("support", user_id="ada"):
        ask()
        with clew.agent_task("helper"):
            ask()
            ask(user_id="bob")
        with clew.agent_task("other", user_id="eve"):
            ask()
    users = [row["user_id"] for row in sorted(rows(history, LlmCall), key=lambda row: row["started_at"])]
    assert users == [None, "ada", "ada", "bob", "eve"]


def test_control_that_is_passed_is_over_when_the_other_task_is(history: History) -> None:
    with clew.agent_task("a"), clew.handoff(to="b", mode="pass_control") as passing:
        carrier = passing.carrier
    assert only(history, Handoff)["status"] == "waiting"
    for fails in (True, False):
        with clew.agent_task("b", carrier=carrier, attempt=1 if fails else 2) as task:
            eventually(lambda: history.all(AgentTask, agent="b", status="running"), "it is picked up")
            if fails:
                task.fail("refused", "the model refused")
        found = only(history, Handoff)
        assert (found["status"], found["error_type"]) == (("failed", "refused") if fails else ("completed", None))
    assert handoff_totals(history) == {"completed": 1}
    # Who was not meant picks nothing up
    with clew.agent_task("stranger", carrier=carrier):
        pass
    assert only(history, AgentTask, agent="stranger")["handoff_id"] is None


def test_what_was_picked_up_may_be_recorded_first(history: History) -> None:
    from clew.history.writing import Change, write

    with clew.agent_task("a"), clew.handoff(to="b", mode="pass_control", reason="why") as passing:
        carrier = passing.carrier
    with clew.agent_task("b", carrier=carrier):
        pass
    written = only(history, Handoff)
    names = ("id", "service", "instance", "recorded_at", "source", "target", "mode", "depth", "chain", "handed_at")
    taken = {**{name: written[name] for name in names}, "is_loop": False, "is_too_deep": False}
    accepted = {
        **taken,
        **{name: written[name] for name in ("accepted_at", "accepted_by", "wait_s")},
        "status": "accepted",
    }
    over = {**taken, **{name: written[name] for name in ("finished_at", "duration_s")}, "status": "completed"}
    made = {**taken, "status": "waiting", "carrier": {"x": "y"}, "reason": "why", "finished_at": None}
    changes = {"made": made, "accepted": accepted, "over": over}
    for number, order in enumerate(
        (("made", "accepted", "over"), ("accepted", "over", "made"), ("over", "made", "accepted"))
    ):
        identity = f"{number:032x}"
        for repeat in range(2):
            for name in order:
                with history.database.write() as connection:
                    write(connection, [Change(table="handoffs", row={**changes[name], "id": identity}, verb="join")])
            assert handoff_totals(history) == {"completed": number + 2}, (order, repeat)
        with history.database.write() as connection:
            together = [Change(table="handoffs", row={**changes[name], "id": identity}, verb="join") for name in order]
            write(connection, together)
        (found,) = history.all(Handoff, id=identity)
        assert (found["status"], found["reason"], found["accepted_by"]) == ("completed", "why", written["accepted_by"])
        assert found["carrier"] == {"x": "y"}


def test_loops_and_long_chains_are_marked_and_counted_and_raise_nothing(
    history: History, captured_telemetry: CapturedTelemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert state.settings is not None
    monkeypatch.setattr(state, "settings", state.settings.model_copy(update={"handoff_max_depth": 3}))

    def pass_on(names: list[str]) -> None:
        with clew.agent_task(names[0]):
            if names[1:]:
                with clew.handoff(to=names[1], mode="pass_control"):
                    pass_on(names[1:])

    pass_on(["a", "b", "c", "a", "d"])
    # Ids of one millisecond are in any order
    found = sorted(rows(history, Handoff), key=lambda row: int(row["depth"]))
    assert [(row["source"], row["target"], row["depth"], row["is_loop"], row["is_too_deep"]) for row in found] == [
        ("a", "b", 1, False, False),
        ("b", "c", 2, False, False),
        ("c", "a", 3, True, False),
        ("a", "d", 4, False, True),
    ]
    assert {row["status"] for row in found} == {"completed"}
    problems = {
        (series.labels["clew.handoff.problem"], series.labels["clew.handoff.source"]): series.value
        for series in clew.summary("clew.agent.handoff.problems")
    }
    assert problems == {("loop", "c"): 1, ("too_deep", "a"): 1}
    clew.flush(5)
    events = [log.body for log in captured_telemetry.logs if log.body.startswith("agent_handoff_")]
    assert events == ["agent_handoff_loop", "agent_handoff_too_deep"]


def test_the_same_agent_twice_from_the_same_caller_is_no_loop(history: History) -> None:
    with clew.agent_task("a"):
        for _ in range(2):
            with clew.handoff(to="b"), clew.agent_task("b"):
                pass
    assert [(row["depth"], row["is_loop"]) for row in rows(history, Handoff)] == [(1, False), (1, False)]


def test_without_a_history_all_else_works(
    captured_telemetry: CapturedTelemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert state.settings is not None
    monkeypatch.setattr(state, "settings", state.settings.model_copy(update={"history": False}))
    with clew.agent_task("a") as task, clew.handoff(to="b") as passing, clew.agent_task("b"):
        assert task.id == ""
        assert passing.id
    assert captured_telemetry.span("invoke_agent b").attributes["clew.handoff.id"] == passing.id


def test_a_handoff_goes_over_a_queue_and_over_http(history: History, valkey_url: str) -> None:
    """A broker that is instrumented carries it by itself, a request in the headers that the app injects."""
    from fastapi import FastAPI
    from fastapi.testclient import TestClient
    from faststream.redis import RedisBroker

    broker: Any = clew.instrument(RedisBroker(valkey_url))
    taken = asyncio.Event()

    async def take(_: str) -> None:
        with clew.agent_task("consumer"):
            taken.set()

    broker.subscriber(list="documents")(take)

    app: FastAPI = clew.instrument(FastAPI())

    @app.post("/agents/answer")
    async def answer() -> dict[str, str]:
        with clew.agent_task("server"), clew.handoff(to="helper"):
            return {}

    async def over_the_queue() -> None:
        async with broker:
            await broker.start()
            with clew.agent_task("producer"), clew.handoff(to="consumer", mode="pass_control", task="doc-1"):
                await broker.publish("text", list="documents")
            await asyncio.wait_for(taken.wait(), 30)

    asyncio.run(over_the_queue())
    with clew.agent_task("client"), clew.handoff(to="server", task="doc-2"), TestClient(app) as client:
        assert client.post("/agents/answer", headers=clew.inject({})).status_code == 200
    eventually(lambda: {row["status"] for row in rows(history, Handoff)} == {"completed"}, "all are over")
    found = {row["target"]: row for row in rows(history, Handoff)}
    assert all(found[name]["accepted_at"] is not None for name in ("consumer", "server"))
    assert (found["helper"]["depth"], found["helper"]["chain"]) == (2, ["client", "server"])
    ids = {row["agent"]: row["handoff_id"] for row in rows(history, AgentTask)}
    assert (ids["consumer"], ids["server"]) == (found["consumer"]["id"], found["server"]["id"])
