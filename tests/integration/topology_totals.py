"""What totals and metrics must say of many topologies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import clew
from clew.history.models import AgentTaskTotal, HandoffTotal, JobRunTotal, LlmUsageTotal, QueueMessageTotal
from tests.integration.job_history import History
from tests.integration.topology_oracle import Expected

_LABELS: Final = {
    "messaging.client.sent.messages": "messaging.destination.name",
    "messaging.client.consumed.messages": "messaging.destination.name",
    "messaging.client.operation.duration": "messaging.destination.name",
    "messaging.process.duration": "messaging.destination.name",
    "clew.queue.redeliveries": "messaging.destination.name",
    "clew.queue.dead_letters": "messaging.destination.name",
    "clew.queue.rejected": "messaging.destination.name",
    "clew.agent.task.duration": "gen_ai.agent.name",
    "clew.agent.handoff.duration": "gen_ai.transfer.target.name",
    "clew.agent.handoff.wait.duration": "gen_ai.transfer.target.name",
    "clew.agent.handoff.problems": "clew.handoff.problem",
    "clew.job.duration": "clew.job.name",
    "gen_ai.client.operation.duration": "gen_ai.request.model",
    "gen_ai.client.token.usage": "gen_ai.token.type",
}
_ACTIVE: Final = ("clew.queue.active", "clew.agent.active", "clew.job.active")


def foretold(expected: Iterable[Expected]) -> Iterator[tuple[str, str]]:
    """Yield each measurement that there must be: the metric and one of its labels."""
    for one in expected:
        what, columns = one.name.rsplit(" ", 1)[-1], one.columns
        if one.table == "agent_tasks":
            yield "clew.agent.task.duration", what
            if columns["handoff_id"] is not None:
                yield "clew.agent.handoff.wait.duration", what
        elif one.table == "handoffs":
            yield "clew.agent.handoff.duration", columns["target"]
            for column, problem in (("is_loop", "loop"), ("is_too_deep", "too_deep")):
                if columns[column]:
                    yield "clew.agent.handoff.problems", problem
        elif one.table == "job_runs":
            yield "clew.job.duration", what
        elif one.table == "llm_calls":
            yield "gen_ai.client.operation.duration", what
            yield "gen_ai.client.token.usage", "input"
            yield "gen_ai.client.token.usage", "output"
        elif one.table == "queue_messages":
            yield from _of_message(one, what)


def _of_message(one: Expected, queue: str) -> Iterator[tuple[str, str]]:
    messages, is_sent = one.columns["messages"], one.columns["direction"] == "sent"
    yield "messaging.client.operation.duration" if is_sent else "messaging.process.duration", queue
    counters = ["messaging.client.sent.messages" if is_sent else "messaging.client.consumed.messages"]
    if one.columns.get("attempt", 1) > 1:
        counters.append("clew.queue.redeliveries")
    if "dead_lettered" in one.statuses:
        counters.append("clew.queue.dead_letters")
    if "rejected" in one.statuses:
        counters.append("clew.queue.rejected")
    for _ in range(messages):
        for counter in counters:
            yield counter, queue


def measured() -> Counter[tuple[str, str]]:
    """Return what was measured, and what is active: how often, by metric and one of its labels."""
    found: Counter[tuple[str, str]] = Counter()
    for series in clew.summary():
        if series.name in _LABELS:
            label = str(series.labels[_LABELS[series.name]])
            found[series.name, label] += series.count if series.type == "histogram" else int(series.value)
        elif series.name in _ACTIVE and series.value:
            found[series.name, str(series.labels)] += int(series.value)
    return found


def counted(table: str, row: Mapping[str, Any]) -> Iterator[tuple[str, str, int]]:
    """Yield what a row adds to its totals: the table, the status, and how much."""
    if table == "queue_messages":
        yield table, f"{row['direction']} {row['status']}", row["messages"]
    elif table in ("llm_calls", "handoffs") or row["finished_at"] is not None:
        # A handoff is counted as it stands, also while it waits
        yield table, row["status"], 1


def kept(history: History) -> Counter[tuple[str, str]]:
    """Return what the totals of the history say, by table and status."""
    found: Counter[tuple[str, str]] = Counter()
    for row in history.all(QueueMessageTotal, grain="day"):
        found["queue_messages", f"{row['direction']} {row['status']}"] += row["messages"]
    for row in history.all(AgentTaskTotal, grain="day"):
        found["agent_tasks", row["status"]] += row["tasks"]
    for row in history.all(HandoffTotal, grain="day"):
        found["handoffs", row["status"]] += row["handoffs"]
    for row in history.all(LlmUsageTotal, grain="day", dimension="agent"):
        found["llm_calls", row["status"]] += row["calls"]
    for row in history.all(JobRunTotal):
        found["job_runs", row["status"]] += row["runs"]
    return found
