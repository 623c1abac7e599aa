"""Agents in real processes that are killed, end, or hand work to each other: what the history says of it."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from clew.history.liveness import mark_lost
from clew.history.models import Agent, AgentTask, AgentTaskTotal, Handoff, HandoffTotal
from tests.integration.job_history import History, Program, eventually


class AgentProgram(Program):
    module = "tests.integration.agent_programs"


@pytest.fixture
def history(database_url: str) -> Iterator[History]:
    with History(database_url) as opened:
        yield opened


def agents(history: History) -> dict[str, Any]:
    return {row["agent"]: row for row in history.all(Agent)}


def totals(history: History, model: Any, column: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in history.all(model, grain="day"):
        found[row["status"]] = found.get(row["status"], 0) + row[column]
    return {status: number for status, number in found.items() if number}


def test_a_task_whose_process_is_killed_is_lost_once_with_what_it_handed_over(history: History, tmp_path: Path) -> None:
    with ExitStack() as stack:
        watchers = [stack.enter_context(AgentProgram(tmp_path, "watch_agents")) for _ in range(3)]
        for watcher in watchers:
            watcher.wait_for("started")
        killed = stack.enter_context(AgentProgram(tmp_path, "work_as_agent", "60"))
        killed.wait_for("started")
        eventually(lambda: history.all(AgentTask, agent="worker"), "the task is recorded")
        (task,) = history.all(AgentTask, agent="worker")
        assert (task["status"], task["pid"], task["task_id"]) == ("running", killed.process.pid, "doc-1")
        eventually(
            lambda: history.all(AgentTask, agent="worker")[0]["heartbeat_at"] > task["heartbeat_at"],
            "a heartbeat keeps it alive",
        )
        eventually(lambda: "worker" in agents(history), "the agent is registered")
        killed.end(signal.SIGKILL)
        eventually(lambda: history.all(AgentTask, status="lost"), "the task is lost")
        eventually(lambda: history.all(Handoff, status="lost"), "so is the handoff that it waited for")
        eventually(lambda: agents(history)["worker"]["gone_at"], "the agent is gone")
        eventually(lambda: any(one.events("agent_task_lost") for one in watchers), "somebody says so")
        eventually(lambda: any(one.events("agent_handoff_lost") for one in watchers), "and of the handoff, too")
        told = [event for watcher in watchers for event in watcher.events("agent_task_lost")]
        assert [(event["level"], event["clew.agent.task.id"]) for event in told] == [("error", task["id"])]
        assert len([event for watcher in watchers for event in watcher.events("agent_handoff_lost")]) == 1
        (lost,) = history.all(AgentTask, agent="worker")
        assert (lost["error_type"], lost["error_message"]) == ("lost", "its process ended before it did")
        assert mark_lost(history.database) == 0
    assert totals(history, AgentTaskTotal, "tasks") == {"completed": 3, "lost": 1}
    assert totals(history, HandoffTotal, "handoffs") == {"lost": 1}


def test_what_one_look_marks(history: History, tmp_path: Path) -> None:
    with AgentProgram(tmp_path, "work_as_agent", "60") as killed:
        killed.wait_for("started")
        eventually(lambda: "worker" in agents(history) and history.all(Handoff), "all of it is recorded")
        assert mark_lost(history.database) == 0
        killed.end(signal.SIGKILL)
    assert mark_lost(history.database) == 2
    assert mark_lost(history.database) == 0
    assert agents(history)["worker"]["gone_at"] is not None


def test_an_agent_that_was_only_declared_is_registered_and_stays_when_its_process_has_ended(
    history: History, tmp_path: Path
) -> None:
    with AgentProgram(tmp_path, "work_as_agent", "0") as program:
        assert program.process.wait(60) == 0
    found = agents(history)
    assert set(found) == {"declared", "worker"}
    declared = found["declared"]
    assert (declared["type"], declared["version"], declared["tasks"]) == ("test", "3", 0)
    worker = found["worker"]
    assert (worker["tasks"], worker["failures"], worker["active"]) == (1, 0, 0)
    assert all(row["gone_at"] is not None for row in found.values())


def test_more_agents_than_are_told_of_at_once_are_all_told_of(history: History, tmp_path: Path) -> None:
    with AgentProgram(tmp_path, "have_many_agents", "250") as program:
        program.wait_for("started")
        eventually(lambda: len(agents(history)) == 252, "all are registered: these, the worker and the declared one")
        program.end(signal.SIGTERM)
    assert all(row["gone_at"] is not None for row in agents(history).values())


def test_sigterm_marks_what_does_not_finish(history: History, tmp_path: Path) -> None:
    with AgentProgram(tmp_path, "work_as_agent", "60", CLEW_SHUTDOWN_TIMEOUT_S="2") as program:
        program.wait_for("started")
        assert program.end(signal.SIGTERM) == -signal.SIGTERM
    (task,) = history.all(AgentTask)
    assert (task["status"], task["error_type"]) == ("cancelled", "shutdown")
    (handoff,) = history.all(Handoff)
    assert (handoff["status"], handoff["error_type"]) == ("cancelled", "shutdown")


def test_a_handoff_crosses_processes_by_its_carrier(history: History, tmp_path: Path) -> None:
    with AgentProgram(tmp_path, "hand_over") as giver:
        assert giver.process.wait(60) == 0
        carrier = giver.output()[0]
    (handoff,) = history.all(Handoff)
    assert (handoff["status"], handoff["source"], handoff["target"]) == ("waiting", "giver", "taker")
    assert handoff["carrier"] == json.loads(carrier)
    with AgentProgram(tmp_path, "take", carrier) as taker:
        assert taker.process.wait(60) == 0
    (handoff,) = history.all(Handoff)
    (task,) = history.all(AgentTask, agent="taker")
    (source,) = history.all(AgentTask, agent="giver")
    assert (handoff["status"], handoff["task_id"], handoff["accepted_by"]) == ("completed", "doc-7", task["instance"])
    assert (handoff["parent_id"], task["handoff_id"]) == (source["id"], handoff["id"])
    assert handoff["wait_s"] == task["wait_s"] > 0
    assert handoff["duration_s"] == pytest.approx(task["wait_s"] + task["duration_s"])
    assert handoff["instance"] == source["instance"] != task["instance"]
    assert totals(history, HandoffTotal, "handoffs") == {"completed": 1}


def test_a_handoff_whose_taker_is_killed_is_lost(history: History, tmp_path: Path) -> None:
    with AgentProgram(tmp_path, "hand_over") as giver:
        assert giver.process.wait(60) == 0
        carrier = giver.output()[0]
    with AgentProgram(tmp_path, "take", carrier, WORK_S="60") as taker:
        taker.wait_for("started")
        eventually(lambda: history.all(Handoff, status="accepted"), "it is accepted")
        taker.end(signal.SIGKILL)
    assert mark_lost(history.database) == 1
    assert [handoff["status"] for handoff in history.all(Handoff)] == ["lost"]
    # Its carrier is kept: another process takes it up
    (kept,) = history.all(Handoff)
    with AgentProgram(tmp_path, "take", json.dumps(kept["carrier"])) as again:
        assert again.process.wait(60) == 0
    assert [handoff["status"] for handoff in history.all(Handoff)] == ["completed"]
    assert totals(history, HandoffTotal, "handoffs") == {"completed": 1}
    assert totals(history, AgentTaskTotal, "tasks") == {"completed": 2, "lost": 1}


def test_a_loop_over_processes_is_told_of(history: History, tmp_path: Path) -> None:
    with AgentProgram(tmp_path, "hand_over") as giver:
        assert giver.process.wait(60) == 0
        carrier = giver.output()[0]
    with AgentProgram(tmp_path, "hand_on", carrier) as taker:
        assert taker.process.wait(60) == 0
        (event,) = taker.events("agent_handoff_loop")
    assert event["clew.handoff.chain"] == "giver > taker > giver"
    rows = {row["source"]: row for row in history.all(Handoff)}
    assert [(rows[name]["is_loop"], rows[name]["depth"]) for name in ("giver", "taker")] == [(False, 1), (True, 2)]
    assert rows["taker"]["chain"] == ["giver", "taker"]


def test_a_handoff_that_nobody_picks_up_is_told_of_once_and_may_be_picked_up_yet(
    history: History, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        watchers = [stack.enter_context(AgentProgram(tmp_path, "watch_agents")) for _ in range(2)]
        for watcher in watchers:
            watcher.wait_for("started")
        giver = stack.enter_context(AgentProgram(tmp_path, "hand_over", "0.5"))
        assert giver.process.wait(60) == 0
        eventually(lambda: history.all(Handoff, status="unclaimed"), "it is unclaimed")
        eventually(lambda: any(one.events("agent_handoff_unclaimed") for one in watchers), "somebody says so")
        taker = stack.enter_context(AgentProgram(tmp_path, "take", giver.output()[0]))
        assert taker.process.wait(60) == 0
        told = [event for watcher in watchers for event in watcher.events("agent_handoff_unclaimed")]
        assert [event["clew.task.id"] for event in told] == ["doc-7"]
    assert [handoff["status"] for handoff in history.all(Handoff)] == ["completed"]
    assert totals(history, HandoffTotal, "handoffs") == {"completed": 1}
