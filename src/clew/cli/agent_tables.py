"""What is known of agents, laid out for people: in a terminal of any width, in a pipe, with colours or without."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clew.cli.job_tables import SHORT_ID, _json, _rate, _table
from clew.cli.wording import ago, duration, moment, number, plain
from clew.http.agent_answers import (
    AgentAnswer,
    GraphAnswer,
    HandoffAnswer,
    TaskAnswer,
    WholeAgent,
    WholeHandoff,
    WholeTask,
)

_STYLES: Final = {
    "completed": "green",
    "active": "cyan",
    "running": "cyan",
    "accepted": "cyan",
    "waiting": "cyan",
    "failing": "red",
    "failed": "red",
    "lost": "red",
    "unclaimed": "red",
    "cancelled": "yellow",
    "gone": "yellow",
}
_OUTSIDE: Final = "(no agent)"


def agents_table(console: Console, agents: Sequence[AgentAnswer], now: datetime) -> Table:
    """Return a row for each agent: in which state it is, and how it does."""
    rows = [
        [
            _name(agent.agent),
            Text(plain(agent.type, max_length=40)),
            _status(agent.state),
            Text(number(agent.processes)),
            Text(number(agent.statistics.active)),
            Text(number(agent.statistics.tasks)),
            _rate(agent.statistics.success_rate),
            Text(duration(agent.statistics.p95_s)),
            Text(ago(agent.last_started_at, now)),
            Text(plain(agent.last_error_type or "", max_length=40)),
        ]
        for agent in agents
    ]
    titles = ["agent", "type", "state", ">processes", ">active", ">tasks", ">ok", ">p95", "last task", "last error"]
    narrow = ("type", "processes", "last error")
    return _table(console, titles, rows, only_if_wide=narrow, cut=("last error", "type", "agent"))


def agent_details(agent: WholeAgent, now: datetime) -> Table:
    """Return what is known of an agent, line by line."""
    known = agent.statistics
    return _details(
        ("agent", plain(agent.agent)),
        ("type", plain(agent.type)),
        ("version", plain(agent.version or "")),
        ("state", _status(agent.state)),
        ("active", number(known.active)),
        ("tasks", f"{number(known.tasks)}, {number(known.failed)} failed, {number(known.cancelled)} cancelled"),
        ("ok", _rate(known.success_rate)),
        ("took", f"{duration(known.average_s)} on average, p50 {duration(known.p50_s)}, p95 {duration(known.p95_s)}"),
        ("last task", moment(agent.last_started_at, now)),
        ("last error", Text(plain(agent.last_error_type or ""), style="red")),
    )


def places_table(console: Console, agent: WholeAgent, now: datetime) -> Table:
    """Return a row for each process that has an agent."""
    rows = [
        [
            _status(place.state),
            Text(plain(place.service, max_length=40)),
            Text(plain(place.instance, max_length=40)),
            Text(plain(f"{place.host or ''}, pid {place.pid}" if place.pid is not None else "")),
            Text(plain(place.version or "", max_length=20)),
            Text(number(place.tasks)),
            Text(number(place.failures), style="red" if place.failures else ""),
            Text(ago(place.gone_at or place.heartbeat_at, now)),
        ]
        for place in agent.places
    ]
    titles = ["state", "service", "instance", "process", "version", ">tasks", ">failed", "last seen"]
    return _table(console, titles, rows, only_if_wide=("instance", "version"), cut=("instance", "process", "service"))


def tasks_table(console: Console, tasks: Sequence[TaskAnswer], now: datetime) -> Table:
    """Return a row for each task."""
    rows = [
        [
            Text(task.id[-SHORT_ID:], style="dim"),
            _name(task.agent),
            Text(plain(task.task_id or "", max_length=30)),
            _status(task.status),
            Text(ago(task.started_at or task.recorded_at, now)),
            Text(duration(task.wait_s)),
            Text("..." if task.status == "running" else duration(task.duration_s)),
            Text(plain(task.user_id or "", max_length=20)),
            _error(task.error_type, task.error_message),
        ]
        for task in tasks
    ]
    titles = ["id", "agent", "task", "status", "started", ">waited", ">took", "user", "error"]
    return _table(console, titles, rows, only_if_wide=("waited", "user"), cut=("error", "task", "agent"))


def task_details(task: WholeTask, now: datetime) -> Table:
    """Return what is known of a task, line by line."""
    return _details(
        ("record", task.id),
        ("agent", plain(", ".join(part for part in (task.agent, task.type, task.version) if part))),
        ("task", plain(task.task_id or "")),
        ("status", _status(task.status)),
        ("error", _error(task.error_type, task.error_message)),
        ("attempt", str(task.attempt) if task.attempt != 1 else ""),
        ("started", moment(task.started_at, now) if task.started_at else ""),
        ("finished", moment(task.finished_at, now) if task.finished_at else ""),
        ("waited", duration(task.wait_s) if task.wait_s is not None else ""),
        ("took", duration(task.duration_s) if task.duration_s is not None else ""),
        ("user", plain(task.user_id or "")),
        ("handoff", task.handoff_id or ""),
        ("within task", task.parent_id or ""),
        ("process", plain(f"{task.service} {task.instance} on {task.host}, pid {task.pid}")),
        ("trace", task.trace_id or ""),
        ("correlation", plain(task.correlation_id or "")),
        ("metadata", _json(task.metadata)),
        ("result", _json(task.result)),
    )


def handoffs_table(console: Console, handoffs: Sequence[HandoffAnswer], now: datetime) -> Table:
    """Return a row for each handoff."""
    rows = [
        [
            Text(handoff.id[-SHORT_ID:], style="dim"),
            _name(handoff.source or _OUTSIDE),
            _name(handoff.target),
            Text(plain(handoff.task_id or "", max_length=30)),
            _status(handoff.status),
            Text(ago(handoff.handed_at, now)),
            Text(duration(handoff.wait_s)),
            Text(duration(handoff.duration_s)),
            Text(number(handoff.depth)),
            Text(_odd(handoff), style="red"),
            _error(handoff.error_type, handoff.error_message),
        ]
        for handoff in handoffs
    ]
    titles = ["id", "from", "to", "task", "status", "handed", ">waited", ">took", ">depth", "odd", "error"]
    narrow = ("task", "waited", "depth", "odd")
    return _table(console, titles, rows, only_if_wide=narrow, cut=("error", "task", "from", "to"))


def handoff_details(handoff: WholeHandoff, now: datetime) -> Table:
    """Return what is known of a handoff, line by line."""
    return _details(
        ("handoff", handoff.id),
        ("from", plain(handoff.source or _OUTSIDE)),
        ("to", plain(handoff.target)),
        ("mode", plain(handoff.mode)),
        ("status", _status(handoff.status)),
        ("odd", Text(_odd(handoff), style="red")),
        ("error", _error(handoff.error_type, handoff.error_message)),
        ("reason", plain(handoff.reason or "")),
        ("task", plain(handoff.task_id or "")),
        ("chain", plain(" > ".join((*(handoff.chain or ()), handoff.target)))),
        ("depth", number(handoff.depth)),
        ("handed", moment(handoff.handed_at, now)),
        ("claim by", moment(handoff.claim_by, now) if handoff.claim_by else ""),
        ("accepted", moment(handoff.accepted_at, now) if handoff.accepted_at else ""),
        ("accepted by", plain(handoff.accepted_by or "")),
        ("finished", moment(handoff.finished_at, now) if handoff.finished_at else ""),
        ("waited", duration(handoff.wait_s) if handoff.wait_s is not None else ""),
        ("took", duration(handoff.duration_s) if handoff.duration_s is not None else ""),
        ("user", plain(handoff.user_id or "")),
        ("within task", handoff.parent_id or ""),
        ("trace", handoff.trace_id or ""),
        ("correlation", plain(handoff.correlation_id or "")),
        ("summary", _json(handoff.summary)),
    )


def graph_table(console: Console, graph: GraphAnswer) -> Table:
    """Return a row for each edge."""
    rows = [
        [
            _name(edge.source or _OUTSIDE),
            _name(edge.target),
            Text(number(edge.handoffs)),
            Text(number(edge.failing), style="red" if edge.failing else ""),
            Text(number(edge.open)),
            Text(duration(edge.average_wait_s)),
            Text(duration(edge.average_s)),
        ]
        for edge in graph.edges
    ]
    titles = ["from", "to", ">handoffs", ">failing", ">open", ">waited", ">took"]
    return _table(console, titles, rows, only_if_wide=(), cut=("from", "to"))


def _details(*lines: tuple[str, str | Text]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for title, value in lines:
        if value:
            table.add_row(title, value if isinstance(value, Text) else Text(value))
    return table


def _odd(handoff: HandoffAnswer) -> str:
    return ", ".join(word for word, holds in (("loop", handoff.is_loop), ("too deep", handoff.is_too_deep)) if holds)


def _name(name: str) -> Text:
    return Text(plain(name, max_length=80))


def _status(status: str) -> Text:
    return Text(plain(status), style=_STYLES.get(status, ""))


def _error(kind: str | None, message: str | None) -> Text:
    return Text(": ".join(plain(part, max_length=120) for part in (kind, message) if part))
