"""Agents, tasks and handoffs as processes would have left them, for tests that read them."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from sqlalchemy import insert

from clew.history.database import Database
from clew.history.models import Agent
from clew.history.processes import key_of
from clew.history.writing import Change, write
from clew.settings import Settings
from tests.integration.kept_runs import NOW, run_row


def task_row(agent: str = "topicizer", status: str = "completed", **columns: Any) -> dict[str, Any]:
    """Return a row of a task that began some time ago."""
    row = {"agent": agent, "type": "test", **run_row(agent, status, **columns)}
    return {name: value for name, value in row.items() if name not in ("job", "source")}


def handoff_row(
    source: str, target: str, status: str = "completed", *, ago_s: float = 60.0, **columns: Any
) -> dict[str, Any]:
    """Return a row of a handoff that was made some time ago."""
    made = run_row("", ago_s=ago_s)
    handed_at = NOW - timedelta(seconds=ago_s)
    over = status not in ("waiting", "accepted")
    own = ("id", "service", "instance", "trace_id", "span_id", "correlation_id", "recorded_at")
    return {
        **{name: made[name] for name in own},
        "source": source,
        "target": target,
        "mode": "pass_control",
        "status": status,
        "depth": 1,
        "chain": [source] if source else [],
        "is_loop": False,
        "is_too_deep": False,
        "handed_at": handed_at,
        "carrier": {"traceparent": "x"},
        "accepted_at": handed_at if status in ("completed", "accepted", "failed") else None,
        "wait_s": 0.5 if status in ("completed", "accepted", "failed") else None,
        "finished_at": handed_at + timedelta(seconds=2) if over else None,
        "duration_s": 2.0 if status in ("completed", "failed") else None,
        **columns,
    }


def agent_row(agent: str = "topicizer", **columns: Any) -> dict[str, Any]:
    """Return a row of an agent of this process."""
    return {
        "agent": agent,
        "instance": "shop-1",
        "process": str(os.getpid()),
        "type": "test",
        "version": "1",
        "service": "shop",
        "registered_at": NOW,
        "active": 0,
        "tasks": 5,
        "failures": 0,
        "failures_in_a_row": 0,
        "host": "here",
        "pid": os.getpid(),
        "process_key": key_of(os.getpid()),
        "heartbeat_at": NOW,
        "heartbeat_s": 10.0,
        **columns,
    }


def keep(*, tasks: list[Any] = [], handoffs: list[Any] = [], agents: list[Any] = []) -> None:  # noqa: B006 - read only
    """Write rows into the history that the environment names; its tables are made."""
    database = Database(Settings.load().history_url())
    database.ensure(auto_upgrade=True)
    with database.write() as connection:
        write(connection, [Change(table="agent_tasks", row=row, verb="end") for row in tasks])
        write(connection, [Change(table="handoffs", row=row, verb="join") for row in handoffs])
        for row in agents:
            connection.execute(insert(Agent), row)
    database.engine.dispose()
